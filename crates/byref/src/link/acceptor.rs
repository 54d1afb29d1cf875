//! The one socket at which a process listens in a rendezvous directory. Each of its publishers and event queues has a name of its own
//! for it. A process connects once, and opens a channel for each publisher that it wants, by that name.

use crate::link::channel::Channel;
use crate::link::claims::Claim;
use crate::link::doorstep::{Doorstep, Guest, handshake_time};
use crate::link::handshake::{self, Call, Greeting, NotUnderstood, ToSubscriber, Wish};
use crate::link::pair::{Answers, Attendant, Pair, Wire};
use crate::link::pairs::Pairs;
use crate::link::rendezvous::{Announced, Directory};
use crate::link::service::Handle;
use crate::link::tasks::{Event, Next, Service, Token};
use crate::sync::locks::Mutex;
use crate::sys::epoll::Interest;
use crate::sys::limits;
use crate::sys::socket::{self, MAX_PACKET, Received, is_hang_up};
use rustix::fd::OwnedFd;
use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// The most connections that are accepted at once: the service thread has other tasks, too.
const ACCEPTED_AT_ONCE: usize = 32;
/// After a failure to accept, as a rule for want of descriptors, the next attempt is made after this time.
const RETRY: Duration = Duration::from_millis(10);

/// What is announced under a name.
pub(crate) trait Host: Send + Sync {
    /// Answers who opened a channel, and keeps that if it is welcome. Dropping it is an answer, too.
    fn take_call(self: Arc<Self>, channel: Channel, wish: Wish, lease: Option<OwnedFd>) -> io::Result<()>;
    /// Answers who connected with a question.
    fn answer(self: Arc<Self>, socket: &OwnedFd, wish: Wish) -> io::Result<()>;
    /// A connection could not be taken for want of something; it is tried again.
    fn is_short_of(&self, error: &io::Error);
    /// What its log lines are about.
    fn topic(&self) -> &str;
}

/// Everything that is announced, by its names.
#[derive(Default)]
struct Hosts(Mutex<HashMap<String, Weak<dyn Host>>>);

impl Hosts {
    fn all(&self) -> Vec<Arc<dyn Host>> {
        self.0.lock().values().filter_map(Weak::upgrade).collect()
    }

    fn get(&self, name: &str) -> Option<Arc<dyn Host>> {
        self.0.lock().get(name).and_then(Weak::upgrade)
    }
}

impl Answers for Hosts {
    fn called(&self, pair: &Arc<Pair>, wire: Arc<Wire>, wanted: &[u8], passed: io::Result<Option<OwnedFd>>) {
        let channel = Channel::of(pair, wire);
        let Some(Call { name, wish }) = handshake::decode_call(wanted) else {
            log::log!(pair.level_of_refusal(), "byref: refused a subscriber: it wants what makes no sense");
            return;
        };
        let Some(host) = self.get(&name) else {
            // Of a full socket the end of the channel is answer enough.
            let _ = channel.send(&handshake::encode_first(&ToSubscriber::NotThisProcess), None);
            return;
        };
        // Of a shortage the end of the channel is answer enough, too: who called tries again.
        match passed.and_then(|passed| Arc::clone(&host).take_call(channel, wish, passed)) {
            Err(why) if limits::is_shortage(&why) => host.is_short_of(&why),
            Err(why) if !is_hang_up(&why) => {
                log::log!(pair.level_of_refusal(), "byref: topic '{}': refused a subscriber: {why}", host.topic());
            }
            Ok(()) | Err(_) => {}
        }
    }
}

/// A listening socket, and the names that lead to it.
struct Acceptor {
    directory: Arc<Directory>,
    socket: Arc<OwnedFd>,
    names: Mutex<HashSet<String>>,
    hosts: Arc<Hosts>,
    pairs: Arc<Pairs>,
    doorstep: Doorstep,
    service: Weak<Handle>,
}

/// A listening socket with the task that accepts from it.
struct Listening {
    acceptor: Arc<Acceptor>,
    task: Token,
}

/// How this process is reached, and reaches others.
pub(crate) struct Acceptors {
    /// The listening socket that gets new names. Former ones may have some still.
    present: Mutex<Option<Arc<Listening>>>,
    hosts: Arc<Hosts>,
    pairs: Arc<Pairs>,
}

impl Default for Acceptors {
    fn default() -> Self {
        let hosts = Arc::<Hosts>::default();
        let pairs = Arc::new(Pairs::new(Arc::clone(&hosts) as Arc<dyn Answers>));
        Acceptors { present: Mutex::default(), hosts, pairs }
    }
}

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
    /// The processes with which this one is connected.
    pub fn pairs(&self) -> &Arc<Pairs> {
        &self.pairs
    }

    /// Announces `host` in a directory.
    pub fn announce(
        &self,
        service: &Arc<Handle>,
        directory: &Arc<Directory>,
        who: Announced,
        host: &Weak<dyn Host>,
    ) -> io::Result<Place> {
        let claim = Claim::for_name(&who, directory)?;
        let mut present = self.present.lock();
        if let Some(listening) = present.as_ref().filter(|it| Arc::ptr_eq(&it.acceptor.directory, directory))
            && let Some(name) = listening.acceptor.link(&who, host)
        {
            return Ok(Place { who, name, listening: Arc::clone(listening), _claim: claim });
        }
        let (socket, name) = directory.listen(&who)?;
        self.hosts.0.lock().insert(name.clone(), Weak::clone(host));
        let acceptor = Arc::new(Acceptor {
            directory: Arc::clone(directory),
            socket: Arc::new(socket),
            names: Mutex::new(HashSet::from([name.clone()])),
            hosts: Arc::clone(&self.hosts),
            pairs: Arc::clone(&self.pairs),
            doorstep: Doorstep::default(),
            service: Arc::downgrade(service),
        });
        let accepting = Arc::clone(&acceptor);
        let accept = move |service: &Arc<Service>, _, _| accepting.accept(service);
        let watched = service.watch(Arc::clone(&acceptor.socket), Interest::IN, None, accept);
        let task = watched.inspect_err(|_| {
            acceptor.directory.remove(&name);
            self.hosts.0.lock().remove(&name);
        })?;
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
        let mut present = self.present.lock();
        // The name of a mailbox is always the same.
        if successor.is_none_or(|other| other.name != place.name) {
            self.hosts.0.lock().remove(&place.name);
        }
        let is_last = {
            let mut names = acceptor.names.lock();
            names.remove(&place.name);
            names.is_empty()
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
            let mut names = self.names.lock();
            let any = names.iter().next().cloned();
            names.insert(name.clone());
            any?
        };
        self.hosts.0.lock().insert(name.clone(), Weak::clone(host)); // Before anybody can ask for it.
        // Names can have been removed by others, one or all.
        let others = || self.names.lock().iter().filter(|other| **other != name).cloned().collect::<Vec<_>>();
        let is_linked = |other: &String| self.directory.link(other, who).is_ok();
        if is_linked(&any) || others().iter().any(is_linked) {
            return Some(name);
        }
        self.names.lock().remove(&name);
        self.hosts.0.lock().remove(&name);
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
                    self.are_short_of(&error);
                    return Next::Pause(RETRY);
                }
            };
            fault!("accept.accepted");
            let (socket_of_caller, acceptor) = (Arc::clone(&socket), Arc::clone(self));
            let guest = Arc::<Guest>::default();
            let mut caller = Caller {
                socket: socket_of_caller,
                acceptor,
                guest: Arc::clone(&guest),
                pair: None,
                is_at_doorstep: true,
            };
            let hear = move |service: &Arc<Service>, task, event| caller.hear(service, task, event);
            match self.doorstep.enter(guest, || service.watch(socket, Interest::IN, Some(handshake_time()), hear)) {
                Ok(Some(oldest)) => service.cancel(oldest),
                Ok(None) => {}
                Err(error) => log::warn!("byref: cannot watch a connection: {error}"),
            }
        }
        Next::Keep // Others may wait; the service's other tasks go first.
    }

    /// This process is short of something that a connection takes.
    fn are_short_of(&self, error: &io::Error) {
        self.hosts.all().iter().for_each(|host| host.is_short_of(error));
    }

    /// What to answer one that speaks another version of the protocol: with a topic, if there is only one.
    fn answer_to_other_version(&self) -> Vec<u8> {
        let hosts = self.hosts.all();
        let topic = if let [host] = &hosts[..] { host.topic() } else { "" };
        handshake::encode_for_other_version(topic)
    }
}

/// Somebody who connected.
struct Caller {
    socket: Arc<OwnedFd>,
    acceptor: Arc<Acceptor>,
    /// As the doorstep knows it.
    guest: Arc<Guest>,
    /// Once it has said that it is one.
    pair: Option<(Arc<Pair>, Attendant)>,
    /// It has opened no channel yet, and nobody here is about to open one.
    is_at_doorstep: bool,
}

impl Caller {
    /// Runs when it says something or hangs up, and when it has said nothing for too long.
    fn hear(&mut self, service: &Service, task: Token, event: Event) -> Next {
        let next = match &self.pair {
            Some((pair, _)) => pair.run(event),
            None => self.greet(task),
        };
        if !self.is_at_doorstep {
            return next;
        }
        let is_over = matches!(next, Next::Done);
        let is_wanted = self.pair.as_ref().is_some_and(|(pair, _)| pair.is_wanted());
        if !is_over && !is_wanted && event == Event::Ready {
            return next;
        }
        if !is_over && !is_wanted && self.guest.send_away() {
            log::debug!("byref: a connection said nothing and was closed");
            self.acceptor.doorstep.leave(task);
            return Next::Done;
        }
        self.is_at_doorstep = false;
        self.acceptor.doorstep.leave(task);
        service.relax(task);
        next
    }

    /// Reads its first packet.
    fn greet(&mut self, task: Token) -> Next {
        match self.answer(task) {
            Ok(Some(next)) => next,
            Ok(None) => Next::Done,
            Err(why) => {
                if limits::is_shortage(&why) {
                    self.acceptor.are_short_of(&why);
                } else if !is_hang_up(&why) {
                    log::warn!("byref: refused a connection: {why}");
                }
                Next::Done
            }
        }
    }

    /// Answers its first packet; `None`: that was all.
    fn answer(&mut self, task: Token) -> io::Result<Option<Next>> {
        let mut packet = [0u8; MAX_PACKET];
        let len = match socket::receive(&self.socket, &mut packet)? {
            Received::Packet(len, _) => len,
            Received::Empty => return Ok(Some(Next::Keep)),
            Received::HungUp => return Ok(None),
            Received::OutOfDescriptors => return Err(io::Error::from_raw_os_error(libc::EMFILE)),
        };
        match handshake::decode_first(&packet[..len]) {
            Ok(Greeting::Pair) => {
                let service = self.acceptor.service.upgrade().ok_or(io::ErrorKind::BrokenPipe)?;
                let welcome = |pair: &Arc<Pair>| self.guest.is_pair(pair);
                let (pair, attendant) = self.acceptor.pairs.accept(&self.socket, task, &service, welcome)?;
                fault!("accept.paired");
                let next = pair.run(Event::Ready); // What it wants of whom is there, most likely.
                self.pair = Some((pair, attendant));
                Ok(Some(next))
            }
            Ok(Greeting::Ask(Call { name, wish })) => {
                match self.acceptor.hosts.get(&name) {
                    Some(host) => host.answer(&self.socket, wish)?,
                    None => {
                        socket::send(&self.socket, &handshake::encode_first(&ToSubscriber::NotThisProcess), None)?;
                    }
                }
                Ok(None)
            }
            Err(NotUnderstood::Version(theirs)) => {
                // Our first packet tells it our version.
                socket::send(&self.socket, &self.acceptor.answer_to_other_version(), None)?;
                Err(io::Error::other(format!("it speaks protocol version {theirs}")))
            }
            Err(NotUnderstood::Garbage) => Err(io::Error::other("it does not speak this protocol")),
        }
    }
}
