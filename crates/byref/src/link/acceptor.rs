//! The one socket at which a process listens in a rendezvous directory. Each of its publishers and event queues has a name of its own
//! for it; whoever connects says first whom it wants.

use crate::link::claims::Claim;
use crate::link::doorstep::{Doorstep, handshake_time};
use crate::link::handshake::{self, Call, NotUnderstood, ToSubscriber, Wish};
use crate::link::rendezvous::{Announced, Directory};
use crate::link::service::{Event, Handle, Next, Service, Token};
use crate::sync::locks::Mutex;
use crate::sys::epoll::Interest;
use crate::sys::limits;
use crate::sys::socket::{self, MAX_PACKET, Received};
use rustix::fd::OwnedFd;
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// The most connections that are accepted at once: the service thread has other tasks, too.
const ACCEPTED_AT_ONCE: usize = 32;
/// After a failure to accept, as a rule for want of descriptors, the next attempt is made after this time.
const RETRY: Duration = Duration::from_millis(10);

/// What is announced under a name.
pub(crate) trait Host: Send + Sync {
    /// Answers who connected. With a number the connection goes on, watched by `task`, and [`hung_up`](Self::hung_up) is told that
    /// number when it ends.
    fn take_call(
        self: Arc<Self>,
        socket: &Arc<OwnedFd>,
        task: Token,
        wish: Wish,
        passed: Option<OwnedFd>,
    ) -> io::Result<Option<u64>>;
    fn hung_up(&self, connection: u64);
    /// A connection could not be taken for want of something; it is tried again.
    fn is_short_of(&self, error: &io::Error);
    /// What its log lines are about.
    fn topic(&self) -> &str;
}

/// A listening socket, and what it is the way to.
struct Acceptor {
    directory: Arc<Directory>,
    socket: Arc<OwnedFd>,
    hosts: Mutex<HashMap<String, Weak<dyn Host>>>,
    doorstep: Doorstep,
}

/// A listening socket with the task that accepts from it.
struct Listening {
    acceptor: Arc<Acceptor>,
    task: Token,
}

/// The listening socket of this process that gets new names. Former ones may have some still.
#[derive(Default)]
pub(crate) struct Acceptors(Mutex<Option<Arc<Listening>>>);

/// A name in a directory under which something is announced.
pub(crate) struct Place {
    pub who: Announced,
    pub name: String,
    listening: Arc<Listening>,
    /// The name is this one's as long as it has this; given back after the name.
    _claim: Option<Arc<Claim>>,
}

impl Place {
    pub fn directory(&self) -> &Arc<Directory> {
        &self.listening.acceptor.directory
    }
}

impl Acceptors {
    /// Announces `host` in a directory.
    pub fn announce(
        &self,
        service: &Handle,
        directory: &Arc<Directory>,
        who: Announced,
        host: &Weak<dyn Host>,
    ) -> io::Result<Place> {
        let claim = who.claim(directory)?;
        let mut present = self.0.lock();
        if let Some(listening) = present.as_ref().filter(|it| Arc::ptr_eq(&it.acceptor.directory, directory))
            && let Some(name) = listening.acceptor.link(&who, host)
        {
            return Ok(Place { who, name, listening: Arc::clone(listening), _claim: claim });
        }
        let (socket, name) = directory.listen(&who)?;
        let hosts = Mutex::new(HashMap::from([(name.clone(), Weak::clone(host))]));
        let (directory, socket) = (Arc::clone(directory), Arc::new(socket));
        let acceptor = Arc::new(Acceptor { directory, socket, hosts, doorstep: Doorstep::default() });
        let accepting = Arc::clone(&acceptor);
        let accept = move |service: &Arc<Service>, _, _| accepting.accept(service);
        let watched = service.watch(Arc::clone(&acceptor.socket), Interest::IN, None, accept);
        let task = watched.inspect_err(|_| acceptor.directory.remove(&name))?;
        let listening = Arc::new(Listening { acceptor, task });
        *present = Some(Arc::clone(&listening));
        Ok(Place { who, name, listening, _claim: claim })
    }

    /// Takes a name back: nobody can connect by it any more, unless `successor` has it. The socket goes with its last name.
    pub fn leave(&self, place: &Place, successor: Option<&Place>, service: Option<&Handle>) {
        let Listening { acceptor, task } = &*place.listening;
        let has_name = |other: &&Place| other.name == place.name && Arc::ptr_eq(other.directory(), place.directory());
        match successor.filter(has_name) {
            Some(other) if Arc::ptr_eq(&other.listening, &place.listening) => return,
            Some(_) => {}
            None => acceptor.directory.remove(&place.name),
        }
        fault!("close.publisher_unlinked");
        let mut present = self.0.lock();
        let is_last = {
            let mut hosts = acceptor.hosts.lock();
            hosts.remove(&place.name);
            hosts.is_empty()
        };
        if !is_last {
            return;
        }
        present.take_if(|present| Arc::ptr_eq(present, &place.listening));
        drop(present);
        if let Some(service) = service {
            service.cancel(*task);
        }
        socket::hang_up(&acceptor.socket); // A forked child may have it, and would never accept.
    }

    /// Answers those who have connected by a name before it is taken back.
    pub fn answer_all(&self, place: &Place, service: &Arc<Service>) {
        place.listening.acceptor.accept(service);
    }
}

impl Acceptor {
    /// Gives this socket one more name; `None`: it has none any more, or the file system does not know such links.
    fn link(&self, who: &Announced, host: &Weak<dyn Host>) -> Option<String> {
        let name = who.name();
        let any = {
            let mut hosts = self.hosts.lock();
            let any = hosts.keys().next().cloned();
            hosts.insert(name.clone(), Weak::clone(host)); // Before anybody can ask for it.
            any?
        };
        // Names can have been removed by others, one or all.
        let others = || self.hosts.lock().keys().filter(|other| **other != name).cloned().collect::<Vec<_>>();
        let is_linked = |other: &String| self.directory.link(other, who).is_ok();
        if is_linked(&any) || others().iter().any(is_linked) {
            return Some(name);
        }
        self.hosts.lock().remove(&name);
        None
    }

    fn accept(self: &Arc<Self>, service: &Arc<Service>) -> Next {
        for _ in 0..ACCEPTED_AT_ONCE {
            fault!("accept.before");
            let socket = match self.directory.accept(&self.socket) {
                Ok(Some(socket)) => Arc::new(socket),
                Ok(None) => return Next::Keep,
                Err(error) => {
                    // The connection stays in the backlog.
                    let hosts: Vec<_> = self.hosts.lock().values().filter_map(Weak::upgrade).collect();
                    hosts.iter().for_each(|host| host.is_short_of(&error));
                    return Next::Pause(RETRY);
                }
            };
            fault!("accept.accepted");
            let mut caller = Caller { socket: Arc::clone(&socket), by: By::Nobody(Arc::clone(self)) };
            let hear = move |_: &Arc<Service>, task, event| caller.hear(task, event);
            match self.doorstep.enter(|| service.watch(socket, Interest::IN, Some(handshake_time()), hear)) {
                Ok(Some(oldest)) => service.cancel(oldest),
                Ok(None) => {}
                Err(error) => log::warn!("byref: cannot watch a subscriber: {error}"),
            }
        }
        Next::Keep // Others may wait; the service's other tasks go first.
    }

    /// What to answer one that speaks another version of the protocol: with a topic, if there is only one.
    fn answer_to_other_version(&self) -> Vec<u8> {
        let hosts: Vec<_> = self.hosts.lock().values().filter_map(Weak::upgrade).collect();
        let topic = if let [host] = &hosts[..] { host.topic() } else { "" };
        handshake::encode_for_other_version(topic)
    }
}

/// Somebody who connected.
struct Caller {
    socket: Arc<OwnedFd>,
    by: By,
}

enum By {
    /// It has not said yet whom it wants.
    Nobody(Arc<Acceptor>),
    /// It is this one's connection of that number.
    Host(Weak<dyn Host>, u64),
}

/// What became of a call.
enum Heard {
    NotYet,
    Taken(Weak<dyn Host>, u64),
    Over,
}

impl Caller {
    /// Runs when it says something or hangs up, and when it has said nothing for too long.
    fn hear(&mut self, task: Token, event: Event) -> Next {
        let acceptor = match &self.by {
            By::Nobody(acceptor) => Arc::clone(acceptor),
            By::Host(..) if !socket::is_hung_up(&self.socket) => return Next::Keep,
            By::Host(host, number) => {
                if let Some(host) = host.upgrade() {
                    host.hung_up(*number);
                }
                return Next::Done;
            }
        };
        let heard = self.answer(&acceptor, task);
        if event == Event::Late || !matches!(heard, Ok(Heard::NotYet)) {
            acceptor.doorstep.leave(task);
        }
        match heard {
            Ok(Heard::Taken(host, number)) => {
                self.by = By::Host(host, number);
                Next::Watch(Interest::RDHUP)
            }
            Ok(Heard::NotYet) if event == Event::Late => {
                log::debug!("byref: a connection said nothing and was closed");
                Next::Done
            }
            Ok(Heard::NotYet) => Next::Keep,
            Ok(Heard::Over) => Next::Done,
            Err(why) => {
                if !is_hang_up(&why) {
                    log::warn!("byref: refused a subscriber: {why}");
                }
                Next::Done
            }
        }
    }

    /// Reads whom it wants, and has that answer.
    fn answer(&self, acceptor: &Acceptor, task: Token) -> io::Result<Heard> {
        let mut packet = [0u8; MAX_PACKET];
        let (len, passed) = match socket::receive(&self.socket, &mut packet)? {
            Received::Packet(len, passed) => (len, passed),
            Received::Empty => return Ok(Heard::NotYet),
            Received::HungUp => return Ok(Heard::Over),
            Received::OutOfDescriptors => return Err(io::Error::from_raw_os_error(libc::EMFILE)),
        };
        fault!("accept.hello_read");
        let Call { name, wish } = match handshake::decode_first(&packet[..len]) {
            Ok(call) => call,
            Err(NotUnderstood::Version(theirs)) => {
                // Our first packet tells it our version.
                socket::send(&self.socket, &acceptor.answer_to_other_version(), None)?;
                return Err(io::Error::other(format!("it speaks protocol version {theirs}")));
            }
            Err(NotUnderstood::Garbage) => return Err(io::Error::other("it does not speak this protocol")),
        };
        let host = acceptor.hosts.lock().get(&name).cloned();
        let Some((weak, host)) = host.and_then(|weak| weak.upgrade().map(|host| (weak, host))) else {
            socket::send(&self.socket, &handshake::encode_first(&ToSubscriber::NotThisTopic), None)?;
            return Ok(Heard::Over);
        };
        match Arc::clone(&host).take_call(&self.socket, task, wish, passed) {
            Ok(Some(number)) => return Ok(Heard::Taken(weak, number)),
            Err(why) if limits::is_shortage(&why) => host.is_short_of(&why),
            Err(why) if !is_hang_up(&why) => {
                log::warn!("byref: topic '{}': refused a subscriber: {why}", host.topic());
            }
            Ok(None) | Err(_) => {}
        }
        Ok(Heard::Over)
    }
}

/// Whether it went away in the middle of it.
fn is_hang_up(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}
