//! The publishing side: one store and one line.

mod idle;
mod linger;
#[cfg(all(test, not(loom)))]
mod tests;

use self::idle::{Idle, OnIdle};
use crate::attributes::Beside;
use crate::copies::{self, Cause, Endpoint};
use crate::error::{Error, Result};
use crate::link::acceptor::Host;
use crate::link::announcement::Announcement;
use crate::link::channel::Channel;
use crate::link::handshake::{self, Hello, ToSubscriber, Wish};
use crate::link::rendezvous::{self, Announced};
use crate::link::service;
use crate::memory::glossary::Entry;
use crate::memory::pool::Chunk;
use crate::protocol::claim::Policy;
use crate::protocol::lease::LEASE_LEN;
use crate::pubsub::form::{self, Form, Single};
use crate::pubsub::inspect::{self, PublisherReport, PublisherStats, SubscriberReport};
use crate::pubsub::loan::{Lender, Loan};
use crate::reader::sender::{AckedAt, PublisherInfo};
use crate::sync::biased::{Biased, BiasedGuard};
use crate::sync::changes::{Changes, Ended};
use crate::sync::locks::Mutex;
use crate::sync::wait::Wait;
use crate::sys::fork::ForkId;
use crate::sys::limits;
use crate::sys::memory::PeerSegment;
use crate::sys::process::realtime_ns;
use crate::sys::socket;
use crate::topic;
use crate::writer::append::{self, Filled};
use crate::writer::attempt::{Attempt, Call};
use crate::writer::errands::Errands;
use crate::writer::line::{Limits, Line, Plan};
use crate::writer::outstanding::{Outstanding, warn_after};
use crate::writer::owner::Owner;
use crate::writer::readers::{Introduction, Newcomer};
use crate::writer::room;
use crate::writer::store::{self, Store};
use rustix::fd::OwnedFd;
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Records in a ring, unless the history needs more.
const DEFAULT_CAPACITY: u64 = 1 << 14;
/// The most records in a ring: 1 GiB.
pub(crate) const MAX_CAPACITY: u64 = 1 << 22;
/// Who has waited so long for a subscriber is told if byref is in use in another directory, which takes a moment to find out.
const LONG_WAIT: Duration = Duration::from_millis(100);

/// Settings of a [`Publisher`]; see [`Publisher::builder`].
#[derive(Clone, Debug)]
pub struct PublisherBuilder {
    topic: String,
    /// `None`: the default of [`store::check_max_memory`].
    max_memory: Option<u64>,
    history: u64,
    capacity: u64,
    name: Option<String>,
    hold_warning: Option<Duration>,
    limits: Limits,
    on_idle: Option<OnIdle>,
}

impl PublisherBuilder {
    /// The most bytes of payload memory (default: 1 GiB, or half of the control group's limit where that is less). It is
    /// taken as needed.
    pub fn max_memory(mut self, bytes: u64) -> Self {
        self.max_memory = Some(bytes);
        self
    }

    /// How many of the last messages a late subscriber may ask for (default: 0).
    pub fn history(mut self, messages: u64) -> Self {
        self.history = messages;
        self
    }

    /// How many records the ring can hold at least (default: 16384). It takes memory for them as subscribers lag.
    pub fn capacity(mut self, records: u64) -> Self {
        self.capacity = records;
        self
    }

    /// A name for people, shown to subscribers and in error texts.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Logs a warning, once, about each message that a subscriber holds longer than this (default: never). A send that finds no
    /// memory because messages are held warns in any case, at most once a second.
    pub fn hold_warning(mut self, limit: Duration) -> Self {
        self.hold_warning = Some(limit);
        self
    }

    /// Evicts a subscriber that holds more than so many bytes of messages (default: no limit). It is looked for when memory is
    /// taken for a payload, at least once in an eighth of that many bytes.
    pub fn max_held(mut self, bytes: u64) -> Self {
        self.limits.held = Some(bytes);
        self
    }

    /// Evicts a lossless subscriber for which senders have waited so long while it neither took nor released anything (default:
    /// never). Their waits are added up.
    pub fn max_stall(mut self, limit: Duration) -> Self {
        self.limits.stall = Some(limit);
        self
    }

    /// Has `call` called when the last subscriber is gone: closed, dead or evicted; not before there was one, not when the publisher is
    /// closed, and not if another one came meanwhile. It is called on a thread of its own, once at a time.
    pub fn on_idle(mut self, call: impl Fn() + Send + Sync + 'static) -> Self {
        self.on_idle = Some(OnIdle(Arc::new(call)));
        self
    }

    /// Makes the publisher and announces it.
    pub fn build(self) -> Result<Publisher> {
        topic::validate(&self.topic)?;
        let max_memory = store::check_max_memory(self.max_memory)?;
        if self.limits.stall.is_some_and(|limit| limit.is_zero()) {
            return Err(Error::InvalidArgument("max_stall must be more than 0 seconds".into()));
        }
        let wanted = self.capacity.max(self.history.saturating_mul(2));
        if wanted > MAX_CAPACITY {
            let most = MAX_CAPACITY / 2;
            return Err(Error::InvalidArgument(format!("history can be at most {most} messages, capacity twice that")));
        }
        if self.name.as_ref().is_some_and(|name| name.len() > topic::MAX_TOPIC) {
            return Err(Error::InvalidArgument("a name can be at most 1024 bytes long".into()));
        }
        let capacity = wanted.max(16).next_power_of_two();
        Publisher::new(self, max_memory, capacity)
    }
}

/// Publishes messages on one topic.
///
/// It may be shared by threads. Dropping it closes it: what was sent before still reaches every connected lossless
/// subscriber.
pub struct Publisher {
    pub(crate) shared: Arc<Shared>,
}

/// What a publisher and its loans share.
pub(crate) struct Shared {
    /// What its own messages say of it.
    info: Arc<PublisherInfo>,
    max_memory: u64,
    made_in: ForkId,
    open: Biased<Option<Open>>,
    /// What the counters said at `close`.
    final_stats: Mutex<PublisherStats>,
    /// Subscribers came or went.
    changed: Changes,
    idle: Option<Arc<Idle>>,
    /// What this process is short of, so that the last subscriber to come could not be taken in.
    short_of: Mutex<Option<String>>,
}

/// Everything that closing gives back.
struct Open {
    store: Store,
    line: Line,
    announcement: Arc<Announcement>,
}

/// The number of a publisher's only line.
const LINE: u32 = 0;

/// A subscriber as its publisher sees it.
#[derive(Clone, Debug)]
pub struct SubscriberInfo {
    id: u64,
    /// Its process (0 when it is out of sight).
    pub pid: i32,
    /// Its name, where it gave one.
    pub name: Option<String>,
    /// What it wants done when it falls behind.
    pub policy: Policy,
    /// Messages that it has not taken yet, as far as they are still in the ring. A block counts until all of it is taken.
    pub lag: u64,
    /// How long senders have waited for it since it last took or released something. Only counted with
    /// [`max_stall`](PublisherBuilder::max_stall).
    pub stalled: Duration,
}

impl Publisher {
    /// Settings for a publisher on `topic`.
    pub fn builder(topic: impl Into<String>) -> PublisherBuilder {
        PublisherBuilder {
            topic: topic.into(),
            max_memory: None,
            history: 0,
            capacity: DEFAULT_CAPACITY,
            name: None,
            hold_warning: None,
            limits: Limits::default(),
            on_idle: None,
        }
    }

    fn new(options: PublisherBuilder, max_memory: u64, capacity: u64) -> Result<Self> {
        let topic = options.topic;
        let (lookout, service) = service::connect(&topic)?;
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        let (id, name, acked_at) = (rendezvous::new_id(), options.name, AckedAt::default());
        let shared = Arc::new(Shared {
            info: Arc::new(PublisherInfo { id, pid, name, topic, acked_at }),
            max_memory,
            made_in: ForkId::current(),
            open: Biased::new(None),
            final_stats: Mutex::default(),
            changed: Changes::default(),
            idle: options.on_idle.map(Idle::new),
            short_of: Mutex::default(),
        });
        let topic = &shared.info.topic;
        let errands: Weak<dyn Errands> = Arc::downgrade(&shared) as _;
        let (history, limits) = (options.history, options.limits);
        let plan = Plan { number: LINE, topic, capacity, history, limits, generation: 0, keeps_untaken: false };
        let line = Line::new(plan, &service, errands.clone()).map_err(Error::system(topic, "cannot make the ring"))?;
        fault!("listen.ring_made");
        let store = Store::new(max_memory, limits, &service, errands);
        let mut open = shared.open.lock();
        let announcement = {
            let host: Weak<dyn Host> = Arc::downgrade(&shared) as _;
            let who = Announced::Publisher { topic: topic.clone(), id: shared.info.id, times: 0 };
            Announcement::new(&lookout, &service, topic, who, host)?
        };
        *open = Some(Open { store, line, announcement });
        if let Some(limit) = options.hold_warning {
            warn_after(&service, Arc::downgrade(&shared) as _, limit);
        }
        drop(open);
        copies::register(Cause::Send, &shared);
        Ok(Publisher { shared })
    }

    /// Sends a copy of `payload`; returns its sequence number. Waits for lossless subscribers without limit.
    pub fn send(&self, payload: &[u8]) -> Result<u64> {
        self.send_as(Single, payload, Beside::NOTHING, &mut Wait::up_to(None))
    }

    /// Sends a copy of `payload` in that form, with what is to be beside it.
    ///
    /// A call that fails sent nothing to anybody.
    ///
    /// ```
    /// use byref::{Beside, Publisher, Rows, Tracked, Wait};
    /// use std::time::Duration;
    ///
    /// let publisher = Publisher::builder("orders").build()?;
    /// let wait = &mut Wait::up_to(Some(Duration::from_secs(1)));
    /// let ticket = publisher.send_as(Tracked, b"one", Beside { tag: 7, ..Beside::NOTHING }, wait)?;
    /// let numbers = publisher.send_as(Rows(2), b"two three", Beside::NOTHING, wait);
    /// assert!(numbers.is_err()); // These are 9 bytes.
    /// assert_eq!(publisher.send_as(Rows(3), b"two three", Beside::NOTHING, wait)?, 1..4);
    /// # drop(ticket);
    /// # Ok::<(), byref::Error>(())
    /// ```
    #[inline]
    pub fn send_as<F: Form>(
        &self,
        form: F,
        payload: &[u8],
        beside: Beside<'_>,
        wait: &mut Wait<'_>,
    ) -> Result<F::Sent> {
        form::send(&self.shared, form, payload, beside, wait)
    }

    /// Lends `len` bytes of the pool, to be filled in place and sent without a copy. The content is arbitrary at first.
    pub fn loan(&self, len: usize) -> Result<Loan> {
        self.loan_with(len, 0, &mut Wait::up_to(None))
    }

    /// [`loan`](Self::loan) with room for `attributes_len` bytes of encoded attributes beside the payload.
    pub fn loan_with(&self, len: usize, attributes_len: usize, wait: &mut Wait<'_>) -> Result<Loan> {
        Loan::take_from(Arc::clone(&self.shared) as _, len, attributes_len, wait)
    }

    /// Tells subscribers, those that join later too, what messages may refer to (with [`Encoded::with_glossary`](crate::Encoded::with_glossary)), once for
    /// all of these messages: [`Message::explained`](crate::Message::explained) gives it back. The same bytes have one entry.
    /// `None`: there is no room left for it, so it has to be told in each message.
    pub fn explain(&self, bytes: &[u8]) -> Result<Option<Entry>> {
        let mut guard = self.shared.lock()?;
        let open = self.shared.opened(&mut guard)?;
        open.store
            .explain(std::slice::from_mut(&mut open.line), bytes)
            .map_err(Error::system(&self.shared.info.topic, "cannot take memory for the glossary"))
    }

    /// Waits until at least `n` subscribers are connected: each finds what is sent from now on, also by a look without a wait.
    pub fn wait_for_subscribers(&self, n: usize, timeout: Option<Duration>) -> Result<()> {
        self.wait_for_subscribers_with(n, &mut Wait::up_to(timeout))
    }

    /// [`wait_for_subscribers`](Self::wait_for_subscribers) with an interruptible wait.
    pub fn wait_for_subscribers_with(&self, n: usize, wait: &mut Wait<'_>) -> Result<()> {
        let shared = &*self.shared;
        let ended = shared.changed.until(wait, || {
            let mut guard = shared.lock()?;
            let open = shared.opened(&mut guard)?;
            Ok(open.line.peers.iter().filter(|peer| peer.has_joined()).count() >= n)
        });
        match ended? {
            Ended::Done => Ok(()),
            Ended::TimedOut => {
                let short_of = shared.short_of.lock().clone();
                let mut hint =
                    short_of.map(|what| format!("; a subscriber cannot be taken in: {what}")).unwrap_or_default();
                hint += &shared.tell_place(wait.given());
                let (what, topic) = ("waiting for subscribers", shared.info.topic.clone());
                Err(Error::Timeout { what, topic, waited: wait.given(), hint })
            }
            Ended::Interrupted => Err(Error::Interrupted { topic: shared.info.topic.clone() }),
        }
    }

    /// Waits until every subscriber that is connected now has taken everything sent before the call.
    pub fn flush(&self, timeout: Option<Duration>) -> Result<()> {
        self.flush_with(&mut Wait::up_to(timeout))
    }

    /// [`flush`](Self::flush) with an interruptible wait.
    pub fn flush_with(&self, wait: &mut Wait<'_>) -> Result<()> {
        let mut target = None;
        self.shared.until(wait, Call::Flush, |_, line| {
            let target = *target.get_or_insert(line.log.tail());
            let done = line.peers.iter().all(|peer| !peer.is_connected() || peer.cursor(line.log.tail()) >= target);
            if done { Attempt::Done(()) } else { Attempt::Wait { at: target, poll: None } }
        })
    }

    /// Disconnects a subscriber for good, whatever it is doing: it holds nobody up any more, and its next call fails with
    /// [`Error::Evicted`]. What it holds stays valid until it lets go. `false`: it is not connected (any more).
    pub fn evict(&self, subscriber: &SubscriberInfo) -> Result<bool> {
        self.shared.evict(subscriber.id)
    }

    /// The connected subscribers.
    pub fn subscribers(&self) -> Result<Vec<SubscriberInfo>> {
        let mut open = self.shared.lock()?;
        let open = self.shared.opened(&mut open)?;
        let (store, line) = (&open.store, &open.line);
        let connected = line.peers.iter().filter(|peer| peer.is_connected());
        Ok(connected
            .map(|peer| SubscriberInfo {
                id: peer.id,
                stalled: line.stalled(store, peer),
                pid: peer.pid,
                name: peer.name.clone(),
                policy: peer.policy,
                lag: line.lag(peer),
            })
            .collect())
    }

    /// What subscribers hold: taken, and not released yet.
    pub fn outstanding(&self) -> Result<Outstanding> {
        let mut guard = self.shared.lock()?;
        let open = self.shared.opened(&mut guard)?;
        Ok(open.store.outstanding(std::slice::from_ref(&open.line)))
    }

    /// Counters; after `close`, the last ones.
    pub fn stats(&self) -> Result<PublisherStats> {
        let guard = self.shared.lock()?;
        Ok(guard.as_ref().map_or_else(|| self.shared.final_stats.lock().clone(), Open::stats))
    }

    /// The topic.
    pub fn topic(&self) -> &str {
        &self.shared.info.topic
    }

    /// This publisher's identity, different from every other's.
    pub fn id(&self) -> u128 {
        self.shared.info.id
    }

    /// Whether it was closed.
    pub fn is_closed(&self) -> Result<bool> {
        Ok(self.shared.lock()?.is_none())
    }

    /// Closes the publisher. Calls that wait in other threads end with [`Error::Closed`]. Closing twice is fine.
    pub fn close(&self) {
        self.shared.close();
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Shared {
    /// What it tells to whoever looks; `None`: it is closed.
    fn report(&self) -> Option<PublisherReport> {
        let guard = self.open.lock();
        let open = guard.as_ref()?;
        let (store, line) = (&open.store, &open.line);
        let connected = line.peers.iter().filter(|peer| peer.is_connected());
        let subscribers = connected.map(|peer| {
            let (held, held_bytes) = store.held(line, peer);
            SubscriberReport {
                pid: peer.pid,
                name: peer.name.clone(),
                policy: peer.policy,
                depth: peer.depth,
                lag: line.lag(peer),
                held,
                held_bytes,
            }
        });
        Some(PublisherReport {
            topic: self.info.topic.clone(),
            name: self.info.name.clone(),
            id: self.info.id,
            pid: 0, // Who asks is told by the system.
            max_memory: self.max_memory,
            history: line.history,
            capacity: line.log.capacity(),
            at_ns: realtime_ns(),
            stats: open.stats(),
            subscribers: subscribers.collect(),
        })
    }

    fn forked(&self) -> Error {
        Error::Forked { what: "publisher", topic: self.info.topic.clone() }
    }

    /// The lock, unless a forked child asks: there it may be taken for ever.
    #[inline]
    fn lock(&self) -> Result<BiasedGuard<'_, Option<Open>>> {
        self.check_fork()?;
        Ok(self.open.lock())
    }

    #[inline]
    pub fn check_fork(&self) -> Result<()> {
        if self.made_in.is_current() { Ok(()) } else { Err(self.forked()) }
    }

    #[inline]
    fn opened<'a>(&self, guard: &'a mut BiasedGuard<'_, Option<Open>>) -> Result<&'a mut Open> {
        guard.as_mut().ok_or_else(|| self.closed())
    }

    /// Makes attempts until one is conclusive. The first is the fast path.
    #[inline]
    fn until<T>(
        &self,
        wait: &mut Wait<'_>,
        call: Call,
        mut attempt: impl FnMut(&mut Store, &mut Line) -> Attempt<T>,
    ) -> Result<T> {
        let mut guard = self.lock()?;
        let open = self.opened(&mut guard)?;
        match attempt(&mut open.store, &mut open.line) {
            Attempt::Done(value) => Ok(value),
            Attempt::Fail(error) => Err(error),
            Attempt::Wait { at, poll } => {
                drop(guard);
                let mut again = |store: &mut Store, lines: &mut [Line]| attempt(store, &mut lines[0]);
                room::wait(self, LINE, wait, call, (at, poll), &mut again)
            }
        }
    }

    /// Where subscribers have to look, for who has waited so long for one.
    fn tell_place(&self, waited: Duration) -> String {
        let lookout = self.open.lock().as_ref().map(|open| Arc::clone(open.announcement.lookout()));
        lookout.map_or_else(String::new, |lookout| lookout.tell_subscribers_place(waited >= LONG_WAIT))
    }

    /// A subscriber could not be taken in for want of something. It, or the socket's backlog, will try again and again; that is
    /// worth one line in the log.
    fn note_shortage(&self, error: &io::Error) {
        let what = format!("{error}{}", limits::behind(error));
        let before = self.short_of.lock().replace(what.clone());
        if before.is_none() {
            log::warn!("byref: topic '{}': a subscriber cannot be taken in, trying again: {what}", self.info.topic);
        }
    }

    /// Takes a subscriber in, if it wants this topic; gives its number.
    pub(crate) fn attach(&self, channel: Channel, hello: Hello, lease: Option<OwnedFd>) -> io::Result<Option<u64>> {
        if !topic::matches(&hello.topic, &self.info.topic) {
            // Of a full socket the end of the channel is answer enough.
            channel.send(&handshake::encode_first(&ToSubscriber::NotThisTopic), None)?;
            return Ok(None);
        }
        let lease = lease.ok_or_else(|| io::Error::other("it sent no lease"))?;
        let lease = PeerSegment::new(lease, Some(LEASE_LEN)).map_err(|(error, _)| error)?.into_map();
        fault!("accept.lease_mapped");
        let newcomer = Newcomer { hello, lease, channel };
        let introduction =
            Introduction { publisher: self.info.id, topic: &self.info.topic, name: self.info.name.as_deref() };
        let mut guard = self.open.lock();
        let Some(open) = guard.as_mut() else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let id = open.line.admit(&mut open.store, newcomer, &introduction)?;
        self.tell_if_idle(open);
        *self.short_of.lock() = None;
        self.changed.notify();
        Ok(Some(id))
    }

    /// Disconnects the subscriber of that number; `false`: there is none.
    fn evict(&self, id: u64) -> Result<bool> {
        let found = self.opened(&mut self.lock()?)?.line.disconnect(id, "was to go");
        self.note_change();
        Ok(found)
    }

    /// Subscribers came or went.
    fn note_change(&self) {
        if self.idle.is_some()
            && let Some(open) = &*self.open.lock()
        {
            self.tell_if_idle(open);
        }
        self.changed.notify();
    }

    fn tell_if_idle(&self, open: &Open) {
        if let Some(idle) = &self.idle {
            idle.look(open.line.is_read());
        }
    }

    fn close(&self) {
        if !self.made_in.is_current() {
            return;
        }
        let close = || {
            let mut guard = self.open.lock();
            let open = guard.take()?;
            open.store.end_tickets(std::slice::from_ref(&open.line)); // Under the lock: afterwards everybody finds them over.
            Some(open)
        };
        let Some(open) = copies::settle(Cause::Send, close, |open| open.line.copied_bytes) else { return };
        *self.final_stats.lock() = open.stats();
        open.tell_if_unheard(self);
        fault!("close.publisher_begun");
        open.line.say_closed();
        open.announcement.withdraw();
        open.line.hang_up();
        self.changed.notify();
    }
}

impl Endpoint for Shared {
    fn copied(&self) -> u64 {
        self.lock().ok().and_then(|open| open.as_ref().map(|open| open.line.copied_bytes)).unwrap_or(0)
    }
}

impl Open {
    fn stats(&self) -> PublisherStats {
        let (store, line) = (&self.store, &self.line);
        PublisherStats {
            sent: line.sent,
            sent_bytes: line.sent_bytes,
            copied_bytes: line.copied_bytes,
            waits: line.waits,
            subscribers: line.peers.iter().filter(|peer| peer.is_connected()).count() as u64,
            pool_used: store.pool.used(),
            pool_allocated: store.pool.populated(),
        }
    }
}

impl Owner for Shared {
    fn topic(&self) -> &str {
        &self.info.topic
    }

    fn enter(&self, act: &mut dyn FnMut(&mut Store, &mut [Line])) -> Result<()> {
        let mut guard = self.lock()?;
        let open = self.opened(&mut guard)?;
        act(&mut open.store, std::slice::from_mut(&mut open.line));
        Ok(())
    }

    fn closed(&self) -> Error {
        Error::Closed { what: "publisher", topic: self.info.topic.clone() }
    }

    fn changed(&self) {
        self.note_change();
    }

    fn rung(&self, _line: u32) {
        self.note_change(); // It may have joined, or left.
    }
}

impl Lender for Shared {
    fn info(&self) -> &Arc<PublisherInfo> {
        &self.info
    }

    fn check_fork(&self) -> Result<()> {
        Shared::check_fork(self)
    }

    fn owner(self: Arc<Self>) -> Arc<dyn Owner> {
        self
    }

    fn allocate(&self, bytes: u64, payload: u64, wait: &mut Wait<'_>) -> Result<Chunk> {
        let topic = &self.info.topic;
        store::check_size(topic, bytes, payload, self.max_memory)?;
        let mut theirs = 0;
        let chunk = self.until(wait, Call::Send, |store, line| {
            store.attempt(std::slice::from_mut(line), LINE, (bytes, payload), &mut theirs, topic)
        })?;
        store::populate(chunk, topic, wait).map_err(|(error, slot)| {
            self.discard(slot);
            error
        })
    }

    fn discard(&self, slot: u32) {
        if let Ok(mut guard) = self.lock()
            && let Some(open) = guard.as_mut()
        {
            open.store.free_unless_held(std::slice::from_ref(&open.line), slot); // Arrays made from its loan may still live.
        }
    }

    fn next_sequence(&self) -> Result<u64> {
        Ok(self.opened(&mut self.lock()?)?.line.sent)
    }

    #[inline]
    fn commit_inline(&self, payload: &[u8], beside: Beside<'_>, wait: &mut Wait<'_>) -> Result<u64> {
        self.until(wait, Call::Send, |_, line| append::inline(line, payload, beside))
    }

    fn commit(&self, filled: &Filled<'_>, timestamp_ns: Option<u64>, wait: &mut Wait<'_>) -> Result<Result<u64>> {
        self.until(wait, Call::Send, |store, line| append::pooled(store, line, filled, timestamp_ns)).map(Ok)
    }
}

impl Host for Shared {
    fn take_call(self: Arc<Self>, channel: Channel, wish: Wish, lease: Option<OwnedFd>) -> io::Result<()> {
        match wish {
            Wish::Subscribe(hello) => self.attach(channel, hello, lease).map(drop),
            _ => channel.send(&handshake::encode_first(&ToSubscriber::NotThisTopic), None).map(drop),
        }
    }

    fn answer(self: Arc<Self>, socket: &OwnedFd, wish: Wish) -> io::Result<()> {
        match (wish, self.report()) {
            (Wish::Look, Some(report)) => inspect::show(socket, report),
            _ => drop(socket::send(socket, &handshake::encode_first(&ToSubscriber::NotThisTopic), None)?),
        }
        Ok(())
    }

    fn is_short_of(&self, error: &io::Error) {
        self.note_shortage(error);
    }

    fn topic(&self) -> &str {
        &self.info.topic
    }
}
