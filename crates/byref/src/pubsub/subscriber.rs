//! The subscribing side: one subscriber follows every publisher of its topic, or of all topics that its pattern
//! matches.

#[cfg(all(test, not(loom)))]
mod tests;

use crate::copies::{self, Cause, Endpoint};
use crate::direct::identity::{Identity, Successor};
use crate::error::{Error, PULLER, Result};
use crate::link::candidates::{Candidate, Candidates, FIRST_PAUSE};
use crate::link::channel::Channel;
use crate::link::handshake::{self, Call, Hello, NotUnderstood, ToSubscriber, VERSION, Welcome, Wish};
use crate::link::inbox::Said;
use crate::link::lookout::{Listener, ListenerId, Lookout};
use crate::link::names::{self, Key};
use crate::link::pair::Pair;
use crate::link::pairs::Reached;
use crate::link::rendezvous::Directory;
use crate::link::role::Role;
use crate::link::service::{self, Handle};
use crate::link::tasks::Next;
use crate::protocol::answers::PULLER_LEASE_LEN;
use crate::protocol::claim::Policy;
use crate::protocol::lease::{CLOSED, COUNTS, LEASE_LEN, Lease};
use crate::reader::connection::Connection;
use crate::reader::errands::Errands;
use crate::reader::event::{EventKind, Incoming};
use crate::reader::future::Receiving;
use crate::reader::item::{Item, Taker};
use crate::reader::job::{Desk, Floor, Job};
use crate::reader::message::Message;
use crate::reader::receipts::Unacknowledged;
use crate::reader::sender::{AckedAt, Acknowledges, Over, PublisherInfo};
use crate::reader::sleep::{self, Owner, Rest};
use crate::reader::take::{One, OneJob, Source, Take};
use crate::reader::turns::{Backlog, Keep, Reader, SubscriberStats};
use crate::sync::Pairing;
use crate::sync::biased::{Biased, BiasedGuard};
use crate::sync::changes::{Changes, Ended};
use crate::sync::locks::Mutex;
use crate::sync::spin::DEFAULT_MOST;
use crate::sync::wait::Wait;
use crate::sys::door::Door;
use crate::sys::fork::ForkId;
use crate::sys::limits;
use crate::sys::membarrier;
use crate::sys::memory::{Mapping, OwnedSegment, PeerSegment};
use crate::sys::socket::is_hang_up;
use crate::sys::text::printable;
use crate::topic;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::process::Pid;
use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

/// A publisher that takes longer to answer does not hold up the others that are to be asked.
const TIME_TO_ANSWER: Duration = Duration::from_millis(200);
/// How often a question without an answer looks whether its subscriber was closed.
const STILL_WANTED: Duration = Duration::from_secs(1);
/// Who has waited so long for a publisher is told if one is in another directory, which takes a moment to find out.
const LONG_WAIT: Duration = Duration::from_millis(100);
/// Settings of a [`Subscriber`]; see [`Subscriber::builder`].
#[derive(Clone, Debug)]
pub struct SubscriberBuilder {
    topic: String,
    policy: Policy,
    depth: Option<u64>,
    history: u64,
    spin: Duration,
    events: bool,
    manual_ack: bool,
    name: Option<String>,
    /// It is the receiving half of a mailbox, a client or a server with the address `topic`.
    direct: Option<Direct>,
    /// It is a puller of the queue `topic`.
    puller: Option<Pull>,
}

/// Whose receiving half it is.
#[derive(Clone, Copy, Debug)]
struct Direct {
    role: Role,
    incarnation: u128,
}

/// What a puller is.
#[derive(Clone)]
pub(crate) struct Pull {
    pub prefetch: u64,
    pub floor: Arc<Floor>,
}

impl std::fmt::Debug for Pull {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pull({})", self.prefetch)
    }
}

/// How much of a ring a puller needs to know when it is to ring.
const RING_HEAD: u64 = 4096;

impl SubscriberBuilder {
    /// Makes it the receiving half of a puller, whose queue is its topic.
    pub(crate) fn of_puller(mut self, pull: Pull) -> Self {
        self.puller = Some(pull);
        self
    }

    /// Makes it the receiving half of an endpoint whose address is its topic: it collects from those that it is told of, and of a
    /// client from all servers.
    pub(crate) fn of_direct(mut self, role: Role, incarnation: u128) -> Self {
        self.direct = Some(Direct { role, incarnation });
        self
    }

    /// What it is in errors.
    fn what(&self) -> &'static str {
        match (self.direct, &self.puller) {
            (Some(direct), _) => direct.role.what(),
            (_, Some(_)) => PULLER,
            _ => "subscriber",
        }
    }

    /// What happens when it falls behind (default: [`Policy::Block`]).
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// How many messages of each publisher may wait for it. Default and most: what the publisher's ring can hold (half of it
    /// for [`Policy::DropOldest`]).
    pub fn depth(mut self, messages: u64) -> Self {
        self.depth = Some(messages);
        self
    }

    /// How many messages from before it came it wants of each publisher, as far as that has them (default: 0).
    pub fn history(mut self, messages: u64) -> Self {
        self.history = messages;
        self
    }

    /// How long at most a receive without a message looks again and again before it sleeps (default: 150 us). Waking up takes
    /// 30 us or more. It adapts: it grows when messages come that fast, and shrinks to nothing when they do not.
    pub fn spin(mut self, time: Duration) -> Self {
        self.spin = time;
        self
    }

    /// Whether [`Told`](crate::Told) also gives what happens to publishers (default: no).
    pub fn events(mut self, wanted: bool) -> Self {
        self.events = wanted;
        self
    }

    /// Whether messages count as taken only when they are [acknowledged](crate::Message::ack) (default: no, when they are received). One
    /// that is never acknowledged stops its publisher for good, `depth` messages later. Only with [`Policy::Block`].
    ///
    /// They may be acknowledged in any order; room is made from the oldest on.
    pub fn manual_ack(mut self, wanted: bool) -> Self {
        self.manual_ack = wanted;
        self
    }

    /// A name for people, shown to publishers and in error texts.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Makes the subscriber and looks for publishers.
    pub fn build(self) -> Result<Subscriber> {
        match (self.direct, &self.puller) {
            (None, None) => topic::validate_pattern(&self.topic)?,
            _ => topic::validate(&self.topic)?,
        }
        if self.depth == Some(0) {
            return Err(Error::InvalidArgument("depth must be at least 1 message".into()));
        }
        if self.manual_ack && self.policy != Policy::Block {
            let text =
                "only a subscriber with the policy 'block' acknowledges by hand: the others lose messages anyway";
            return Err(Error::InvalidArgument(text.into()));
        }
        if self.name.as_ref().is_some_and(|name| name.len() > topic::MAX_TOPIC) {
            return Err(Error::InvalidArgument("a name can be at most 1024 bytes long".into()));
        }
        Subscriber::new(self)
    }
}

/// Receives the messages of every publisher of one topic, or of all topics that a pattern matches, present and future.
///
/// A pattern has wildcards among its `/`-separated levels: `*` stands for exactly one level, `**` for any number of
/// them, none too. `camera/*` matches `camera/front`; `ticks/**` matches `ticks` and `ticks/EUR/bid`; `**/bid` matches
/// `bid`. [`Message::topic`] tells which topic a message was published on. A wildcard is a whole level; `a*` is
/// [`Error::InvalidTopic`].
///
/// It may be shared by threads: each message goes to exactly one caller. Messages of one publisher come in order; among
/// several publishers turns are fair.
pub struct Subscriber {
    shared: Arc<Shared>,
    /// Dropping it closes it.
    closes: bool,
    /// Makes something else of messages, in a selector.
    taker: Option<Arc<dyn Taker>>,
}

/// A descriptor that becomes readable when a message comes after [`Subscriber::try_recv`] returned `None`; before that it
/// says nothing. It stays open as long as this lives, and is only to be polled.
pub struct Readiness(pub(crate) Arc<Door>);

impl AsFd for Readiness {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.epoll().as_fd()
    }
}

struct Shared {
    options: SubscriberBuilder,
    made_in: ForkId,
    open: Biased<Option<Open>>,
    /// What the counters said at `close`.
    final_stats: Mutex<SubscriberStats>,
    /// Publishers came or went.
    changed: Changes,
    rest: Rest,
    lookout: Weak<Lookout>,
    listener: ListenerId,
    /// Of a client: servers may be looked for.
    looks: AtomicBool,
    /// Who has taken a mailbox's address over.
    successor: OnceLock<Successor>,
}

/// A publisher that was asked, and has not answered yet.
struct Question {
    candidate: Candidate,
    /// The channel and the lease that it was sent; `None`: that is settled.
    open: Mutex<Option<(Arc<Channel>, Mapping)>>,
    /// It takes so long that the next one was asked.
    is_slow: AtomicBool,
}

impl Question {
    /// Goes before an answer has come.
    fn leave(&self) {
        if let Some((channel, lease)) = self.open.lock().take() {
            say_nothing_was_taken(&lease);
            channel.hang_up();
        }
    }

    /// No answer is wanted any more.
    fn withdraw(&self) {
        let open = self.open.lock().take();
        drop(open); // Without the lock.
    }
}

fn say_nothing_was_taken(lease: &Mapping) {
    let lease = Lease::new(lease.words(), lease.counts(COUNTS));
    lease.set_row(0);
    lease.set_cursor(CLOSED);
}

/// Everything that closing gives back.
struct Open {
    reader: Reader,
    candidates: Candidates,
    /// Those that it has said hello to, and that have not answered yet. The channel of each keeps the question, and that the channel.
    greeted: Vec<Arc<Question>>,
    /// The same, from just before that on: names, and processes.
    expected: Vec<(String, i32)>,
    directory: Arc<Directory>,
    lookout: Arc<Lookout>,
}

impl Subscriber {
    /// Settings for a subscriber to `topic`, which may be a pattern.
    pub fn builder(topic: impl Into<String>) -> SubscriberBuilder {
        SubscriberBuilder {
            topic: topic.into(),
            policy: Policy::Block,
            depth: None,
            history: 0,
            spin: DEFAULT_MOST,
            events: false,
            manual_ack: false,
            name: None,
            direct: None,
            puller: None,
        }
    }

    fn new(options: SubscriberBuilder) -> Result<Self> {
        let (topic, spin) = (options.topic.clone(), options.spin);
        let (lookout, service) = service::connect(&topic)?;
        let listener = lookout.new_listener();
        let keep = Keep { policy: options.policy, depth: options.depth };
        let shared = Arc::new_cyclic(|shared: &Weak<Shared>| {
            let errands = Weak::clone(shared) as _;
            let reader = Reader::new(&topic, keep, options.events, spin, &service, errands);
            let directory = lookout.directory();
            let (candidates, lookout) = (Candidates::default(), Arc::clone(&lookout));
            let open = Open {
                reader,
                candidates,
                greeted: Vec::new(),
                expected: Vec::new(),
                directory,
                lookout: Arc::clone(&lookout),
            };
            Shared {
                options,
                made_in: ForkId::current(),
                open: Biased::new(Some(open)),
                final_stats: Mutex::default(),
                changed: Changes::default(),
                rest: Rest::default(),
                lookout: Arc::downgrade(&lookout),
                listener,
                looks: AtomicBool::new(false),
                successor: OnceLock::new(),
            }
        });
        let door = shared.update(|open| Arc::clone(&open.reader.door)).expect("it is open");
        if let Err((what, error)) = lookout.register(listener, &shared, &door) {
            shared.close();
            return Err(Error::meeting(&topic, lookout.directory().path(), what)(error));
        }
        copies::register(Cause::Receive, &shared);
        fault!("connect.looking");
        Ok(Subscriber { shared, closes: true, taker: None })
    }

    /// The next message; waits without limit.
    pub fn recv(&self) -> Result<Message> {
        self.recv_with(&mut Wait::up_to(None))
    }

    /// The next message; waits up to `timeout`.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Message> {
        self.recv_with(&mut Wait::up_to(Some(timeout)))
    }

    /// A second handle to the same subscriber. Dropping it closes nothing.
    pub fn handle(&self) -> Subscriber {
        Subscriber { shared: Arc::clone(&self.shared), closes: false, taker: None }
    }

    /// The next message; `None` when none is there: see [`try_receive`](Self::try_receive).
    #[inline(always)]
    pub fn try_recv(&self) -> Result<Option<Message>> {
        self.try_receive(One)
    }

    /// The next message, with an interruptible wait.
    #[inline(always)]
    pub fn recv_with(&self, wait: &mut Wait<'_>) -> Result<Message> {
        self.receive(One, wait)
    }

    /// Takes [`One`] message, or [`UpTo`](crate::UpTo) so many at once, or what happens to publishers, too ([`Told`](crate::Told)). Waits for it.
    #[inline(always)]
    pub fn receive<T: Take>(&self, what: T, wait: &mut Wait<'_>) -> Result<T::Taken> {
        what.check(&self.shared.options.topic)?;
        let taken = {
            let mut guard = self.shared.lock()?;
            what.take(&mut Source(&mut self.shared.opened(&mut guard)?.reader))?
        };
        match taken {
            Some(taken) => Ok(taken),
            None => sleep::receive(&*self.shared, wait, |reader| what.take(&mut Source(reader))),
        }
    }

    /// The same without waiting; `None` when nothing is there. After `None`, [`readiness`](Self::readiness) becomes readable when
    /// something comes.
    #[inline(always)]
    pub fn try_receive<T: Take>(&self, what: T) -> Result<Option<T::Taken>> {
        what.check(&self.shared.options.topic)?;
        let mut guard = self.shared.lock()?;
        let reader = &mut self.shared.opened(&mut guard)?.reader;
        if let Some(taken) = what.take(&mut Source(reader))? {
            return Ok(Some(taken));
        }
        reader.found_nothing(|reader| what.take(&mut Source(reader)))
    }

    /// The same as a future, without a runtime of its own.
    pub fn next<T: Take + Copy + Unpin>(&self, what: T) -> Receiving<'_, T> {
        Receiving::new(self, what)
    }

    /// The thread that looks after it.
    pub(crate) fn service(&self) -> Result<Arc<Handle>> {
        Ok(Arc::clone(&self.shared.opened(&mut self.shared.lock()?)?.reader.service))
    }

    /// Waits until at least `n` publishers are connected.
    pub fn wait_for_publishers(&self, n: usize, timeout: Option<Duration>) -> Result<()> {
        self.wait_for_publishers_with(n, &mut Wait::up_to(timeout))
    }

    /// [`wait_for_publishers`](Self::wait_for_publishers) with an interruptible wait.
    pub fn wait_for_publishers_with(&self, n: usize, wait: &mut Wait<'_>) -> Result<()> {
        let shared = &*self.shared;
        let ended = shared.changed.until(wait, || {
            let mut guard = shared.lock()?;
            let reader = &mut shared.opened(&mut guard)?.reader;
            let happened = reader.handle_events()?;
            reader.pass_on(happened);
            if reader.connections.iter().filter(|connection| connection.is_live()).count() >= n {
                return Ok(true);
            }
            reader.trouble.take().map_or(Ok(false), Err)
        });
        match ended? {
            Ended::Done => Ok(()),
            Ended::TimedOut => Err(shared.timed_out(wait, "waiting for publishers")),
            Ended::Interrupted => Err(Error::Interrupted { topic: shared.options.topic.clone() }),
        }
    }

    /// The publishers that are connected and alive.
    pub fn publishers(&self) -> Result<Vec<Arc<PublisherInfo>>> {
        let mut guard = self.shared.lock()?;
        let reader = &mut self.shared.opened(&mut guard)?.reader;
        let happened = reader.handle_events()?;
        reader.pass_on(happened);
        let live = reader.connections.iter().filter(|connection| connection.is_live());
        Ok(live.map(|connection| Arc::clone(&connection.link.info)).collect())
    }

    /// For the receiving half of a mailbox: collects what the mailbox whose socket has this name has for it.
    pub(crate) fn collect_at(&self, name: &str) {
        self.shared.update(|open| open.candidates.call_at(name));
        self.shared.ask_candidates();
    }

    /// For the receiving half of a client: looks for servers from now on, which may call it.
    pub(crate) fn look_for_partners(&self) -> Result<()> {
        let shared = &self.shared;
        let looks = shared.options.direct.is_some_and(|direct| direct.role == Role::Client);
        if !looks || shared.looks.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let looked = shared.update(|open| (Arc::clone(&open.lookout), Arc::clone(&open.reader.door)));
        let Some((lookout, door)) = looked else { return Ok(()) };
        lookout.unregister(shared.listener);
        let topic = &shared.options.topic;
        let failed = |(what, error)| Error::meeting(topic, lookout.directory().path(), what)(error);
        lookout.register(shared.listener, shared, &door).map_err(failed)
    }

    /// Has the thread that sleeps look again.
    pub(crate) fn stir(&self) {
        self.shared.update(|open| open.reader.door.ring());
    }

    /// Has the threads that wait for their turn to sleep look again.
    pub(crate) fn nudge(&self) {
        self.shared.rest.nudge();
    }

    /// Whether it is connected to that one, in that process, as a sender, or has said hello to it and not heard its answer yet.
    pub(crate) fn reads_from(&self, peer: &Identity) -> bool {
        let (id, pid) = (peer.incarnation(), peer.process());
        let is_it = |info: &PublisherInfo| info.id == id && info.pid == pid;
        let name = self.shared.options.direct.and_then(|direct| direct.role.partner().name(peer.address()));
        let is_expected = |(expected, process): &(String, i32)| *process == pid && name.as_ref() == Some(expected);
        let knows = |open: &mut Open| open.reader.find_live(is_it).is_some() || open.expected.iter().any(is_expected);
        self.shared.update(knows).unwrap_or(false)
    }

    /// Closes it, and lets its users know who has taken the address over.
    pub(crate) fn give_way_to(&self, successor: Successor) {
        let _ = self.shared.successor.set(successor);
        self.close();
    }

    /// The error of one that is closed.
    pub(crate) fn closed(&self) -> Error {
        self.shared.closed()
    }

    /// Tells of the end of a mailbox that is not connected as a sender. (The end of one that is comes behind its messages.)
    pub(crate) fn tell_end_of(&self, peer: &Identity, kind: EventKind) {
        self.shared.update(|open| {
            open.reader.tell_end_of(peer.info(), kind);
        });
    }

    /// For the receiving half of a mailbox: the mailboxes that send to it, and live.
    pub(crate) fn senders(&self) -> Result<Vec<Identity>> {
        Ok(self.publishers()?.iter().map(Identity::of).collect())
    }

    /// A descriptor to poll for messages.
    pub fn readiness(&self) -> Result<Readiness> {
        let mut guard = self.shared.lock()?;
        let reader = &mut self.shared.opened(&mut guard)?.reader;
        reader.door.open().map_err(Error::system(&self.shared.options.topic, "cannot make an epoll descriptor"))?;
        reader.polled = true;
        reader.sleep_at_sockets();
        Ok(Readiness(Arc::clone(&reader.door)))
    }

    /// What waits to be received: messages that were sent and not taken yet. Nothing after `close`.
    pub fn backlog(&self) -> Result<Backlog> {
        let mut guard = self.shared.lock()?;
        Ok(guard.as_mut().map_or_else(Backlog::default, |open| open.reader.backlog()))
    }

    /// How many messages were received and not acknowledged yet, where that is done by hand.
    pub fn unacknowledged(&self) -> Result<u64> {
        let guard = self.shared.lock()?;
        let connections = guard.as_ref().map_or(&[][..], |open| &open.reader.connections);
        Ok(connections.iter().filter_map(|it| it.unacknowledged.as_ref()).map(|it| it.count() as u64).sum())
    }

    /// Counters; after `close`, the last ones.
    pub fn stats(&self) -> Result<SubscriberStats> {
        let guard = self.shared.lock()?;
        Ok(guard.as_ref().map_or_else(|| self.shared.final_stats.lock().clone(), |open| open.reader.stats.clone()))
    }

    /// The topic, or the pattern, as it was given.
    pub fn topic(&self) -> &str {
        &self.shared.options.topic
    }

    /// Whether it was closed.
    pub fn is_closed(&self) -> Result<bool> {
        Ok(self.shared.lock()?.is_none())
    }

    /// Closes the subscriber. Calls that wait in other threads end with [`Error::Closed`]; messages stay valid. Closing
    /// twice is fine.
    pub fn close(&self) {
        self.shared.close();
    }
}

/// For a [`Selector`](crate::Selector), which sleeps for many subscribers at once and is the only one to receive from them.
impl Subscriber {
    /// The next message; `None` when none is there. What happened to descriptors is left alone.
    #[inline(always)]
    pub(crate) fn poll(&self) -> Result<Option<Message>> {
        let mut guard = self.shared.lock()?;
        let reader = &mut self.shared.opened(&mut guard)?.reader;
        match One.take(&mut Source(reader)) {
            Ok(None) => reader.trouble.take().map_or(Ok(None), Err),
            result => result,
        }
    }

    /// [`poll`](Self::poll) that tells what happens, too, and gives up to `most` messages at once.
    pub(crate) fn poll_incoming(&self, most: Option<usize>) -> Result<Option<Item>> {
        let mut guard = self.shared.lock()?;
        let reader = &mut self.shared.opened(&mut guard)?.reader;
        if let Some(taker) = &self.taker {
            let taken = taker.take(&mut Source(reader))?;
            return if taken.is_some() { Ok(taken) } else { reader.trouble.take().map_or(Ok(None), Err) };
        }
        let found = match most {
            _ if self.is_puller() => {
                reader.take_incoming(|reader| Ok(reader.take_job()?.map(|job| Item::Job(Box::new(job)))))
            }
            None => reader.take_incoming(|reader| Ok(reader.take_one()?.map(Item::Message))),
            Some(most) => {
                reader.take_incoming(|reader| Ok(reader.take_batch(most)?.map(|batch| Item::Batch(Box::new(batch)))))
            }
        };
        match found? {
            Some(Incoming::Message(item)) => Ok(Some(item)),
            Some(Incoming::Event(event)) => Ok(Some(Item::Event(Box::new(event)))),
            None => reader.trouble.take().map_or(Ok(None), Err),
        }
    }

    /// Whether it gives jobs.
    pub(crate) fn is_puller(&self) -> bool {
        self.shared.options.puller.is_some()
    }

    /// The next job, of a puller.
    pub(crate) fn pull(&self, wait: &mut Wait<'_>) -> Result<Job> {
        self.receive(OneJob, wait)
    }

    /// The same without waiting.
    pub(crate) fn try_pull(&self) -> Result<Option<Job>> {
        self.try_receive(OneJob)
    }

    /// Whether it gives more than messages.
    pub(crate) fn is_plain(&self) -> bool {
        !self.shared.options.events && self.taker.is_none() && !self.is_puller()
    }

    /// A second handle, which gives what `taker` makes of messages to the selector that it is added to.
    pub(crate) fn with_taker(&self, taker: Arc<dyn Taker>) -> Subscriber {
        Subscriber { shared: Arc::clone(&self.shared), closes: false, taker: Some(taker) }
    }

    /// Tells every publisher that this subscriber goes to sleep. A heavy fence has to follow, and another look.
    pub(crate) fn announce_sleep(&self) -> Result<()> {
        self.shared.opened(&mut self.shared.lock()?)?.reader.announce();
        Ok(())
    }

    /// The heavy fence was refused: looks again when that can matter no more, and makes the descriptor readable if there is anything.
    #[cold]
    pub(crate) fn look_later(&self) {
        self.shared.update(|open| open.reader.look_later());
    }

    /// Handles what made the descriptor readable.
    pub(crate) fn handle_events(&self) -> Result<()> {
        let mut guard = self.shared.lock()?;
        self.shared.opened(&mut guard)?.reader.handle_events().map(drop)
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        if self.closes {
            self.shared.close();
        }
    }
}

impl Listener for Shared {
    fn key(&self) -> Option<Key> {
        let topic = &self.options.topic;
        if let Some(direct) = self.options.direct {
            let nobody = Key::Topic(topic::hash("")); // No publisher's.
            let partners = direct.role.looks_for(topic).filter(|_| self.looks.load(Ordering::Relaxed));
            return Some(partners.unwrap_or(nobody));
        }
        if self.options.puller.is_some() {
            return Some(Key::Topic(topic::hash(&names::topic_of_pushers(topic))));
        }
        (!topic::is_pattern(topic)).then(|| Key::Topic(topic::hash(topic)))
    }

    fn appeared(self: Arc<Self>, name: &str) {
        self.update(|open| open.candidates.meet(name));
        self.ask_candidates();
    }

    fn vanished(&self, name: &str) {
        self.update(|open| open.candidates.forget(name));
    }

    fn tidy(&self) -> bool {
        if self.rest.is_attended() {
            return true; // Nobody may attend to it soon.
        }
        let Some((happened, is_needed_again)) = self.update(|open| open.reader.tidy()) else { return false };
        if happened {
            self.changed.notify();
        }
        is_needed_again
    }

    fn look_around(self: Arc<Self>, directory: &Arc<Directory>, names: &HashSet<&str>) {
        self.update(|open| {
            open.directory = Arc::clone(directory);
            open.candidates.meet_all(names);
        });
        self.ask_candidates();
    }
}

impl Shared {
    /// The lock, unless a forked child asks: there it may be taken for ever.
    #[inline]
    fn lock(&self) -> Result<BiasedGuard<'_, Option<Open>>> {
        if self.made_in.is_current() {
            Ok(self.open.lock())
        } else {
            Err(Error::Forked { what: self.options.what(), topic: self.options.topic.clone() })
        }
    }

    #[inline]
    fn opened<'a>(&self, guard: &'a mut BiasedGuard<'_, Option<Open>>) -> Result<&'a mut Open> {
        guard.as_mut().ok_or_else(|| self.closed())
    }

    #[cold]
    fn closed(&self) -> Error {
        let topic = self.options.topic.clone();
        match self.successor.get() {
            None => Error::Closed { what: self.options.what(), topic },
            Some(successor) => Error::taken_over(topic, successor),
        }
    }

    /// A publisher has said something, or hung up.
    fn hear(&self, connection: u64) {
        if self.update(|open| open.reader.hear(connection)) == Some(true) {
            self.changed.notify();
        }
    }

    /// Does something with what is open, unless it was closed.
    fn update<T>(&self, change: impl FnOnce(&mut Open) -> T) -> Option<T> {
        self.open.lock().as_mut().map(change)
    }

    /// Asks the publishers whose turn it is.
    fn ask_candidates(self: &Arc<Self>) {
        let next = |open: &mut Open| {
            let pairs = Arc::clone(open.lookout.acceptors().pairs());
            Some((open.candidates.next()?, Arc::clone(&open.directory), pairs, Arc::clone(&open.reader.service)))
        };
        while let Some((candidate, directory, pairs, service)) = self.update(next).flatten() {
            log::debug!("byref: topic '{}': asks the publisher {}", self.options.topic, candidate.name);
            let asked = pairs.reach(&directory, &candidate.name, &service).and_then(|reached| match reached {
                Reached::Pair(pair) if self.knows(&candidate.name, pair.pid()) => Ok(false),
                Reached::Pair(pair) if self.say_hello(&pair, &candidate, &service)? => Ok(true),
                Reached::Pair(_) | Reached::Busy => {
                    self.ask_again(candidate.clone());
                    Ok(false)
                }
                Reached::Nobody => {
                    self.update(|open| open.candidates.is_gone(&candidate.name));
                    Ok(false)
                }
            });
            let waits_for_answer = asked.unwrap_or_else(|error| {
                self.is_short_of(&error);
                if candidate.pause == FIRST_PAUSE {
                    let topic = &self.options.topic;
                    log::warn!("byref: topic '{topic}': cannot connect to a publisher, trying again: {error}");
                }
                self.ask_again(candidate);
                false
            });
            if !waits_for_answer {
                self.update(|open| open.candidates.finished());
            }
        }
    }

    /// Whether the publisher at the other end, which has announced itself anew, is one that this subscriber is connected to; its
    /// further name is kept then. Its process vouches for it: names and identities can be copied.
    fn knows(&self, name: &str, pid: Option<Pid>) -> bool {
        let pid = number(pid);
        let may_be_of = names::may_be_of(name); // Once: there may be a thousand connections.
        let is_same = |info: &PublisherInfo| may_be_of(info.id) && info.pid == pid;
        let known = |open: &mut Open| {
            let is_known = open.reader.find_live(is_same).is_some();
            if is_known {
                open.candidates.keep(name);
            }
            is_known
        };
        self.update(known).unwrap_or(false)
    }

    /// If this process lacks what a connection takes, the next call that finds no message says so; a publisher is asked again
    /// meanwhile.
    fn is_short_of(&self, error: &io::Error) {
        if let Some(errno) = error.raw_os_error().filter(|_| limits::is_shortage(error)) {
            let error = io::Error::from_raw_os_error(errno);
            let trouble = Error::system(&self.options.topic, "cannot connect to a publisher, trying again")(error);
            self.update(|open| open.reader.report(trouble));
            self.changed.notify();
        }
    }

    /// Has a publisher asked again after a pause.
    fn ask_again(self: &Arc<Self>, candidate: Candidate) {
        if let Some(service) = self.update(|open| Arc::clone(&open.reader.service)) {
            self.ask_later(&service, candidate, |_, _| true);
        }
    }

    /// The same, if `is_due` is true of it then.
    fn ask_later(
        self: &Arc<Self>,
        service: &Handle,
        candidate: Candidate,
        is_due: fn(&Candidates, &Candidate) -> bool,
    ) {
        let shared = Arc::downgrade(self);
        service.after(candidate.pause, move |_, _, _| {
            if let Some(shared) = shared.upgrade() {
                shared.update(|open| {
                    if is_due(&open.candidates, &candidate) {
                        open.candidates.again(candidate.clone());
                    }
                });
                shared.ask_candidates();
            }
            Next::Done
        });
    }

    /// The process that was asked has no publisher of this name. It may have been the wrong one.
    fn was_somebody_else(self: &Arc<Self>, candidate: &Candidate) {
        self.update(|open| open.lookout.acceptors().pairs().forget(&open.directory, &candidate.name));
        if !candidate.was_misled {
            self.ask_again(Candidate { was_misled: true, ..candidate.clone() });
        }
    }

    /// A publisher answered, or takes too long: it is the next one's turn.
    fn ask_next(self: &Arc<Self>) {
        self.update(|open| open.candidates.finished());
        self.ask_candidates();
    }

    /// Sends the lease to a publisher, and takes the answer when it comes. `false`: the socket is full, or ends at this moment; it is
    /// asked again.
    fn say_hello(self: &Arc<Self>, pair: &Arc<Pair>, candidate: &Candidate, service: &Handle) -> io::Result<bool> {
        let len = if self.options.puller.is_some() { PULLER_LEASE_LEN } else { LEASE_LEN };
        let lease = OwnedSegment::new("byref-lease", len)?;
        fault!("connect.lease_made");
        let hello = Hello {
            topic: self.options.topic.clone(),
            policy: self.options.policy,
            depth: self.options.depth,
            history: self.options.history,
            name: self.options.name.clone(),
            membarrier: membarrier::works(),
        };
        let wish = match (self.options.direct, &self.options.puller) {
            (Some(Direct { incarnation, .. }), _) => Wish::Collect { hello, incarnation },
            (None, Some(pull)) => Wish::Pull { hello, prefetch: pull.prefetch },
            (None, None) => Wish::Subscribe(hello),
        };
        let call = Call { name: candidate.name.clone(), wish };
        if self.options.direct.is_some() {
            self.update(|open| open.expected.push((candidate.name.clone(), number(pair.pid()))));
        }
        let opened = Channel::open(pair, &call, Some(lease.shared()));
        if !matches!(opened, Ok(Some(_))) {
            self.expect_no_more(&candidate.name);
        }
        let channel = match opened {
            Ok(Some(channel)) => channel,
            Ok(None) => return Ok(false),
            Err(error) if is_hang_up(&error) => return Ok(false),
            Err(error) => return Err(error),
        };
        fault!("connect.hello_sent");
        let channel = Arc::new(channel);
        let question = Arc::new(Question {
            candidate: candidate.clone(),
            open: Mutex::new(Some((Arc::clone(&channel), lease.into_map()))),
            is_slow: AtomicBool::new(false),
        });
        if self.update(|open| open.greeted.push(Arc::clone(&question))).is_none() {
            question.leave(); // It was closed: nobody would ever take what is sent.
            return Ok(true);
        }
        let (shared, asking) = (Arc::downgrade(self), Arc::clone(&question));
        service.after(TIME_TO_ANSWER, move |_, _, _| {
            if asking.open.lock().is_none() {
                return Next::Done;
            }
            let Some(shared) = shared.upgrade() else {
                asking.withdraw();
                return Next::Done;
            };
            if !asking.is_slow.swap(true, Ordering::Relaxed) {
                shared.ask_next();
            }
            shared.update(|_| Next::After(STILL_WANTED)).unwrap_or_else(|| {
                asking.withdraw();
                Next::Done
            })
        });
        let shared = Arc::downgrade(self);
        channel.listen(move || match shared.upgrade() {
            Some(shared) => shared.hear_answer(&question),
            None => question.withdraw(),
        });
        Ok(true)
    }

    /// A publisher has answered, or hung up.
    fn hear_answer(self: &Arc<Self>, question: &Question) {
        let said = {
            let mut open = question.open.lock();
            let Some((channel, _)) = &*open else { return };
            match channel.take() {
                Ok(Said::Nothing | Said::Ring) => return,
                said => said.map(|said| (said, open.take())),
            }
        };
        let candidate = &question.candidate;
        match said {
            Ok((Said::Packet(packet, ring), Some((channel, lease)))) => {
                if let Err(error) = self.welcome(&packet, ring, lease, channel, candidate) {
                    log::warn!("byref: topic '{}': no connection to a publisher: {error}", self.options.topic);
                    self.is_short_of(&error);
                    if error.raw_os_error().is_some() {
                        self.ask_again(candidate.clone());
                    }
                }
            }
            Ok((Said::OutOfDescriptors, _)) => {
                self.is_short_of(&io::Error::from_raw_os_error(libc::EMFILE));
                self.ask_again(candidate.clone());
            }
            // It may be busy, or short of something; one that is gone refuses next time.
            Ok(_) => self.ask_again(candidate.clone()),
            Err(_) => {
                question.withdraw();
                self.ask_again(candidate.clone());
            }
        }
        self.update(|open| open.greeted.retain(|it| !std::ptr::eq(&**it, question)));
        self.expect_no_more(&candidate.name);
        if !question.is_slow.load(Ordering::Relaxed) {
            self.ask_next();
        }
    }

    /// It has answered, or was not asked after all.
    fn expect_no_more(&self, name: &str) {
        self.update(|open| {
            if let Some(index) = open.expected.iter().position(|(expected, _)| expected == name) {
                open.expected.swap_remove(index);
            }
        });
    }

    /// Takes a publisher in.
    fn welcome(
        self: &Arc<Self>,
        packet: &[u8],
        ring: Option<OwnedFd>,
        lease: Mapping,
        channel: Arc<Channel>,
        candidate: &Candidate,
    ) -> io::Result<()> {
        fault!("connect.welcomed");
        let number = number(channel.peer_pid());
        let pattern = &self.options.topic;
        let welcome: Welcome = match handshake::decode_first(packet) {
            Ok(ToSubscriber::Welcome(welcome)) => welcome,
            Ok(ToSubscriber::NotThisTopic) => {
                log::debug!("byref: topic '{pattern}': the publisher in process {number} has another topic");
                return Ok(());
            }
            Ok(ToSubscriber::NotThisProcess) => {
                self.was_somebody_else(candidate);
                return Ok(());
            }
            Err(NotUnderstood::Version(theirs)) => {
                let topic = handshake::topic_of_other_version(packet);
                if topic.is_some_and(|topic| !topic::matches(pattern, topic)) {
                    return Ok(());
                }
                let topic = topic.unwrap_or(pattern).to_owned();
                let trouble = Error::VersionMismatch { topic, pid: number, theirs, ours: VERSION };
                self.update(|open| open.reader.report(trouble));
                return Err(io::Error::other(format!("it speaks protocol version {theirs}")));
            }
            Ok(_) | Err(NotUnderstood::Garbage) => return Err(io::Error::other("it does not speak this protocol")),
        };
        let ring = ring.ok_or_else(|| io::Error::other("it sent no ring"))?;
        let (topic, name) = (welcome.topic.clone(), welcome.name.as_deref().map(printable));
        let is_wanted = match self.options.direct {
            None => topic::matches(pattern, &topic),
            // It has the claim on that name, or the name is its own alone.
            Some(Direct { role, .. }) => role.partner().name(&topic).is_some_and(|name| name == candidate.name),
        };
        if topic::validate(&topic).is_err() || !is_wanted {
            let topic = topic.escape_debug();
            return Err(io::Error::other(format!("process {number} answered for another topic, '{topic}'")));
        }
        let mut info = PublisherInfo { id: welcome.publisher, pid: number, name, topic, acked_at: AckedAt::default() };
        let mut guard = self.open.lock();
        let Some(open) = guard.as_mut() else {
            say_nothing_was_taken(&lease);
            return Ok(());
        };
        let is_same = |known: &PublisherInfo| known.id == info.id && known.pid == info.pid;
        if let Some(known) = open.reader.find_live(is_same) {
            known.candidate = candidate.clone(); // It announced itself anew, and was asked under both names.
            return Ok(());
        }
        let id = open.reader.next_id();
        if self.options.manual_ack {
            info.acked_at = AckedAt::of(Arc::downgrade(self) as _, id);
        }
        let listening = Arc::downgrade(self);
        channel.listen(move || {
            if let Some(shared) = listening.upgrade() {
                shared.hear(id);
            }
        });
        let (candidate, tell_gaps) = (candidate.clone(), self.options.events);
        let has_flags = self.options.direct.is_some_and(|direct| direct.role == Role::Server);
        let head = match &self.options.puller {
            Some(_) => {
                Some(PeerSegment::new(ring.try_clone()?, Some(RING_HEAD)).map_err(|(error, _)| error)?.into_map())
            }
            None => None,
        };
        let mut connection =
            Connection::new(id, info, &welcome, ring, lease, channel, candidate, tell_gaps, has_flags)?;
        if self.options.direct.is_some() || self.options.puller.is_some() {
            connection.set_exact();
        }
        connection.unacknowledged = self.options.manual_ack.then(Unacknowledged::default);
        if let (Some(head), Some(pull)) = (head, &self.options.puller) {
            let pairing = Pairing::with(welcome.membarrier);
            connection.desk = Some(Desk::new(&connection.link, head, pairing, &pull.floor));
        }
        open.reader.add(connection);
        log::debug!("byref: topic '{pattern}': connected to the publisher in process {number}");
        fault!("connect.joined");
        open.reader.door.ring();
        self.changed.notify();
        Ok(())
    }

    fn close(&self) {
        if !self.made_in.is_current() {
            return;
        }
        let closed = copies::settle(Cause::Receive, || self.open.lock().take(), |open| open.reader.stats.copied_bytes);
        let Some(mut open) = closed else { return };
        *self.final_stats.lock() = open.reader.stats.clone();
        open.reader.disarm();
        open.lookout.unregister(self.listener);
        open.greeted.drain(..).for_each(|question| question.leave());
        open.reader.connections.drain(..).for_each(Connection::leave);
        open.reader.door.ring();
        self.changed.notify();
    }
}

impl Endpoint for Shared {
    fn copied(&self) -> u64 {
        self.lock().ok().and_then(|open| open.as_ref().map(|open| open.reader.stats.copied_bytes)).unwrap_or(0)
    }
}

impl Owner for Shared {
    fn topic(&self) -> &str {
        &self.options.topic
    }

    #[inline]
    fn enter<T>(&self, act: impl FnOnce(&mut Reader) -> T) -> Result<T> {
        Ok(act(&mut self.opened(&mut self.lock()?)?.reader))
    }

    fn rest(&self) -> &Rest {
        &self.rest
    }

    fn timed_out(&self, wait: &Wait<'_>, what: &'static str) -> Error {
        if self.options.direct.is_some() {
            let (topic, hint) = (self.options.topic.clone(), String::new());
            return Error::Timeout { what: "mailbox recv", topic, waited: wait.given(), hint };
        }
        if let Some(pull) = &self.options.puller {
            let (topic, open) = (self.options.topic.clone(), pull.floor.open());
            let is_alone = self.update(|open| open.reader.connections.is_empty()) == Some(true);
            let hint = match open {
                _ if is_alone => "; no pusher is connected".to_owned(),
                0 => String::new(),
                open => format!("; {open} of its jobs are not answered (prefetch={}): call job.done()", pull.prefetch),
            };
            return Error::Timeout { what: "pull", topic, waited: wait.given(), hint };
        }
        let alone = self.update(|open| open.reader.connections.is_empty().then(|| Arc::clone(&open.lookout))).flatten();
        let has_time = wait.given() >= LONG_WAIT;
        let hint = alone.map_or_else(String::new, |it| it.tell_publishers_place(&self.options.topic, has_time));
        Error::Timeout { what, topic: self.options.topic.clone(), waited: wait.given(), hint }
    }
}

impl Errands for Shared {
    fn was_cut_off(self: Arc<Self>, service: &Handle, candidate: Candidate) {
        self.ask_later(service, candidate, |known, candidate| known.has_name_of(&candidate.name));
    }

    fn remind(&self) {
        if let Some(lookout) = self.lookout.upgrade() {
            lookout.remind(self.listener);
        }
    }

    fn look_for_missed(&self) {
        self.update(|open| open.reader.look_for_missed());
    }
}

impl Acknowledges for Shared {
    fn acknowledge(&self, connection: u64, sequences: &mut dyn Iterator<Item = u64>) -> Result<(), Over> {
        let mut guard = self.lock().map_err(|_| Over::Forked)?;
        guard.as_mut().ok_or(Over::Closed)?.reader.acknowledge(connection, sequences);
        Ok(())
    }
}

/// A process's number; 0: it is out of sight.
fn number(pid: Option<Pid>) -> i32 {
    pid.map_or(0, |pid| pid.as_raw_nonzero().get())
}
