//! The processes with which this one is connected, by one [pair](crate::link::pair) each, whoever of the two made the connection.
//!
//! A process is known by its listening socket: names that lead to the same file lead to the same process, and need no connection of
//! their own. A process that connected here may listen, too, at a socket that is not known yet. So whoever connects to a socket asks the
//! kernel who listens there. If that process is connected already, the new connection is closed again. (What a process says of
//! itself would not do: it could name another one's socket, and answer in its stead.) Of two processes that
//! connect to each other at the same moment, both connections stay.

use crate::link::pair::{Answers, Attendant, Pair, Side};
use crate::link::rendezvous::{Directory, SocketId};
use crate::link::service::Handle;
use crate::link::tasks::Token;
use crate::sync::locks::Mutex;
use crate::sys::socket::{self, Connect, is_hang_up};
use rustix::fd::OwnedFd;
use rustix::process::getpid;
use std::collections::{HashMap, HashSet};
use std::io;
use std::ops::Deref;
use std::sync::{Arc, Weak};

/// So many sockets of second libraries are kept in mind.
const MOST_APART: usize = 1024;

pub(crate) struct Pairs {
    known: Mutex<Known>,
    answers: Arc<dyn Answers>,
}

#[derive(Default)]
struct Known {
    by_socket: HashMap<SocketId, Weak<Pair>>,
    all: Vec<Weak<Pair>>,
    /// Sockets of processes that are connected, but do not know who listens there: a second library in the process, perhaps.
    apart: HashSet<SocketId>,
}

impl Known {
    fn add(&mut self, pair: &Arc<Pair>) {
        self.all.retain(|known| known.strong_count() > 0);
        self.all.push(Arc::downgrade(pair));
    }
}

/// A pair that does not end as long as this is kept.
pub(crate) struct Visit(Arc<Pair>);

impl Visit {
    fn of(pair: Arc<Pair>) -> Option<Self> {
        pair.visit().then_some(Visit(pair))
    }
}

impl Deref for Visit {
    type Target = Arc<Pair>;

    fn deref(&self) -> &Arc<Pair> {
        &self.0
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// The outcome of an attempt to reach a process.
pub(crate) enum Reached {
    Pair(Visit),
    /// It cannot take more at the moment: try again.
    Busy,
    /// Nobody listens under this name any more.
    Nobody,
}

impl Pairs {
    /// `answers` is asked when another process opens a channel.
    pub fn new(answers: Arc<dyn Answers>) -> Self {
        Pairs { known: Mutex::default(), answers }
    }

    /// The pair with the process that listens under `name`, made if there is none.
    pub fn reach(&self, directory: &Directory, name: &str, service: &Handle) -> io::Result<Reached> {
        let Some(id) = directory.socket_id(name) else { return Ok(Reached::Nobody) };
        let mut known = self.known.lock(); // Two threads shall not connect to one process.
        let usable = |pair: &Weak<Pair>| pair.upgrade().filter(|pair| pair.is_usable()).and_then(Visit::of);
        if let Some(visit) = known.by_socket.get(&id).and_then(usable) {
            return Ok(Reached::Pair(visit));
        }
        let socket = match directory.connect(name)? {
            Connect::Connected(socket) => socket,
            Connect::Busy => return Ok(Reached::Busy),
            Connect::Refused | Connect::Absent => return Ok(Reached::Nobody),
        };
        let pid = socket::peer_pid(&socket);
        let is_it = |pair: &&Weak<Pair>| pair.upgrade().is_some_and(|pair| pair.pid() == pid && pair.is_greeted());
        // In this process there may be others at work who know nothing of byref's one listening socket.
        let is_apart = pid.is_none() || pid == Some(getpid()) || known.apart.contains(&id);
        let found = if is_apart { None } else { known.all.iter().filter(is_it).find_map(usable) };
        let visit = match found {
            Some(visit) => visit,
            None => {
                fault!("connect.connected");
                let answers = Arc::clone(&self.answers);
                let pair = match Pair::new(Arc::new(socket), Side::Connected, Some(service), answers, service) {
                    // Nobody would accept that: a forked child of it has the socket, at the most.
                    Ok(pair) if pair.is_dead() => return Ok(Reached::Nobody),
                    Err(error) if is_hang_up(&error) => return Ok(Reached::Busy),
                    pair => pair?,
                };
                let visit = Visit::of(pair).expect("it has just begun");
                visit.attend()?;
                known.add(&visit);
                visit
            }
        };
        known.by_socket.retain(|_, known| known.strong_count() > 0);
        known.by_socket.insert(id, Arc::downgrade(&visit));
        Ok(Reached::Pair(visit))
    }

    /// A process that was reached under `name` does not know it: another one may listen there by now, at a file of the same number.
    /// It gets a connection of its own.
    pub fn forget(&self, directory: &Directory, name: &str) {
        let Some(id) = directory.socket_id(name) else { return };
        let mut known = self.known.lock();
        known.by_socket.remove(&id);
        if known.apart.len() >= MOST_APART {
            known.apart.clear();
        }
        known.apart.insert(id);
    }

    /// A process that has connected, and wants to be a pair; `task` watches the socket. Before others know of the pair, `is_welcome`
    /// decides.
    pub fn accept(
        &self,
        socket: &Arc<OwnedFd>,
        task: Token,
        service: &Handle,
        is_welcome: impl FnOnce(&Arc<Pair>) -> bool,
    ) -> io::Result<(Arc<Pair>, Attendant)> {
        let answers = Arc::clone(&self.answers);
        let pair = Pair::new(Arc::clone(socket), Side::Accepted, Some(service), answers, service)?;
        let attendant = pair.adopt(task);
        if !is_welcome(&pair) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        self.known.lock().add(&pair);
        Ok((pair, attendant))
    }
}
