//! The publishing side: appends to the ring, and serves subscribers.

mod eviction;
mod linger;
mod outstanding;
pub(crate) mod ticket;

pub(crate) use eviction::{Silence, Stall};
pub use outstanding::{Holder, Outstanding};
pub use ticket::{Releases, Ticket};

use crate::attributes::Encoded;
use crate::copies::{self, Cause, Endpoint};
use crate::error::{Error, Result, printable};
use crate::link::acceptor::Host;
use crate::link::announcement::Announcement;
use crate::link::channel::Channel;
use crate::link::handshake::{self, Hello, ToPublisher, ToSubscriber, Welcome};
use crate::link::inbox::Said;
use crate::link::rendezvous::{self, Announced};
use crate::link::service::{self, Handle, Next};
use crate::memory::glossary::{Entry, GLOSSARY, Glossary};
use crate::memory::pool::{Chunk, Fate, NoChunk, Pool, Sent};
use crate::protocol::claim::{Claim, Horizon, Policy, retention_limit};
use crate::protocol::lease::{COUNTS, LEASE_LEN, Lease};
use crate::protocol::regions::Shape;
use crate::protocol::ring::{Descriptor, INLINE_LIMIT, NEVER, PREPARED_AHEAD, Place, Ring};
use crate::protocol::wake::{Sleeper, WAKE_WORD, Way};
use crate::pubsub::loan::Loan;
use crate::sync::biased::{Biased, BiasedGuard};
use crate::sync::changes::{Changes, Ended};
use crate::sync::locks::{Mutex, Turn};
use crate::sync::wait::Wait;
use crate::sync::{Pairing, heavy_fence};
use crate::sys::clock::Clock;
use crate::sys::fork::ForkId;
use crate::sys::futex::Gong;
use crate::sys::limits;
use crate::sys::memory::{OwnedSegment, PeerSegment};
use crate::sys::socket;
use crate::sys::{cgroup, membarrier};
use crate::topic;
use crate::writer::log::Log;
use crate::writer::peer::Peer;
use crate::writer::waker::{Siren, Waker};
use eviction::Limits;
use rustix::fd::OwnedFd;
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use ticket::Tracked;

/// Records in a ring, unless the history needs more.
const DEFAULT_CAPACITY: u64 = 1 << 14;
/// The most records in a ring: 1 GiB.
const MAX_CAPACITY: u64 = 1 << 22;
/// How long a publisher without room looks again and again before it sleeps, and how often.
const SPINS: u32 = 50;
/// Chunks that leases hold are looked at again after so many bytes of new payload,
const COLLECT_EVERY: u64 = 256 << 10;
/// so many at a time.
const RECHECKS: usize = 64;
/// What a full socket did not take is tried again after this time.
const LATER: Duration = Duration::from_millis(10);
/// Sleepers at the wake word that another thread wakes in the sender's stead.
const MANY: usize = 8;
/// Segments without a message are looked for so often, and given back when they were not used between two looks.
const UNUSED: Duration = Duration::from_secs(5);
/// How long a subscriber that may lose messages can delay a send by keeping retired memory mapped. (Those of a process that runs
/// unmap it within some hundred milliseconds at most.)
const PATIENCE: Duration = Duration::from_secs(1);
/// The first pause before a look whether retired memory was unmapped, and the longest; each is twice the one before.
const FIRST_SETTLING: Duration = Duration::from_millis(20);
const LAST_SETTLING: Duration = Duration::from_millis(250);
/// A subscriber that was written off is looked at again after this time, while something waits for it.
const WRITTEN_OFF_LOOK: Duration = Duration::from_millis(50);
/// Memory is taken from the system in steps of this size, between which signals are noticed.
const POPULATE_STEP: u64 = 64 << 20;
/// A waiting publisher that nobody rings looks again after this time: a system without memory may have swallowed the ring.
const LOST_RING: Duration = Duration::from_millis(100);
/// Who could have no thread that wakes subscribers asks for one again after this time.
const NO_WAKER: Duration = Duration::from_secs(1);
/// Who has waited so long for a subscriber is told if byref is in use in another directory, which takes a moment to find out.
const LONG_WAIT: Duration = Duration::from_millis(100);
/// So long (ns) after its first message, what a publisher sends to nobody makes its ring grow.
const NEW: u64 = 2_000_000_000;
/// While memory is held by leases, whose release rings no bell, the publisher looks again after this time.
const LEASE_POLL: Duration = Duration::from_millis(1);

/// Settings of a [`Publisher`]; see [`Publisher::builder`].
#[derive(Clone, Debug)]
pub struct PublisherBuilder {
    topic: String,
    /// `None`: [`default_max_memory`].
    max_memory: Option<u64>,
    history: u64,
    capacity: u64,
    name: Option<String>,
    hold_warning: Option<Duration>,
    limits: Limits,
}

/// 1 GiB, but no more than half of what this process's control group may use: beyond its limit the kernel kills.
fn default_max_memory() -> u64 {
    let share = cgroup::memory_limit().map_or(u64::MAX, |limit| limit / 2);
    share.clamp(1 << 20, 1 << 30)
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

    /// Makes the publisher and announces it.
    pub fn build(self) -> Result<Publisher> {
        topic::validate(&self.topic)?;
        let max_memory = self.max_memory.unwrap_or_else(default_max_memory);
        if max_memory == 0 {
            return Err(Error::InvalidArgument("max_memory must be at least 1 byte".into()));
        }
        if max_memory > 1 << 37 {
            return Err(Error::InvalidArgument("max_memory can be at most 128 GiB".into()));
        }
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

/// A chunk with one or more messages in it.
pub(crate) struct Filled<'a> {
    pub chunk: &'a Chunk,
    /// Messages of equal length.
    pub count: u32,
    /// Payload bytes of all of them, and how many of these the library copied to here.
    pub len: usize,
    pub copied: usize,
    /// Lie behind the payload, too.
    pub attributes: &'a Encoded,
    /// Somebody wants to know of its release.
    pub tracked: Option<&'a Arc<Tracked>>,
}

/// What a publisher and its loans share.
pub(crate) struct Shared {
    topic: String,
    id: u128,
    name: Option<String>,
    max_memory: u64,
    history: u64,
    limits: Limits,
    made_in: ForkId,
    open: Biased<Option<Open>>,
    /// What the counters said at `close`.
    final_stats: Mutex<PublisherStats>,
    /// Subscribers came or went.
    changed: Changes,
    /// What this process is short of, so that the last subscriber to come could not be taken in.
    short_of: Mutex<Option<String>>,
    /// Held by the one thread that sleeps for a subscriber's ring; others look again now and then.
    sleeping: Turn,
    /// What senders that wait sleep at.
    room: Arc<Gong>,
    /// Somebody may wait for a release.
    awaits: AtomicBool,
}

/// Everything that closing gives back.
struct Open {
    ring: Arc<OwnedSegment>,
    siren: Arc<Siren>,
    /// Wakes many sleepers; made when they are first found, by the service thread, which was asked for it.
    waker: Option<Arc<Waker>>,
    asked_for_waker: bool,
    log: Log,
    clock: Clock,
    peers: Vec<Peer>,
    last_peer: u64,
    /// When it first sent something.
    began: Option<u64>,
    /// It waits for a first subscriber before it closes.
    lingers: bool,
    pairing: Pairing,
    pool: Pool,
    glossary: Option<Glossary>,
    /// Published chunks whose positions are not yet reclaimed, oldest first.
    pending: VecDeque<(u64, u32)>,
    /// Chunks below the mark that somebody holds.
    held: VecDeque<u32>,
    /// Tracked messages whose release is waited for, and the `skip_at` for their sake.
    awaited: Vec<Arc<Tracked>>,
    skip_at: u64,
    /// A task of the service thread looks at them now and then.
    looks_for_releases: bool,
    /// When a warning last said that held messages block a send.
    warned: Option<Instant>,
    /// Payload bytes since the last collection.
    uncollected: u64,
    /// And since holds were last compared with their limit.
    unchecked: u64,
    /// Up to when waits were counted against those who stall.
    counted: Option<Instant>,
    generation: u64,
    /// Messages; so the number of the next one.
    sent: u64,
    sent_bytes: u64,
    copied_bytes: u64,
    waits: u64,
    /// A task of the service thread sends what full sockets did not take.
    flushing: bool,
    /// Another one gives unused segments back.
    shrinking: bool,
    /// And one looks whether what was retired is unmapped.
    settling: bool,
    shared: Weak<Shared>,
    /// What senders that wait sleep at.
    room: Arc<Gong>,
    service: Arc<Handle>,
    announcement: Arc<Announcement>,
}

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

/// Counters of a publisher.
#[derive(Clone, Debug, Default)]
pub struct PublisherStats {
    /// Messages sent.
    pub sent: u64,
    /// Their payload bytes.
    pub sent_bytes: u64,
    /// Payload bytes that were copied into shared memory (loans need no copy).
    pub copied_bytes: u64,
    /// How often a send had to wait for room.
    pub waits: u64,
    /// Connected subscribers.
    pub subscribers: u64,
    /// Bytes of payload memory in use: queued, held, or lent.
    pub pool_used: u64,
    /// Bytes of payload memory taken from the system.
    pub pool_allocated: u64,
}

/// The outcome of one attempt at something that may have to wait.
enum Attempt<T> {
    Done(T),
    Fail(Error),
    /// Try again when a cursor reaches `at`, and after `poll`.
    Wait {
        at: u64,
        poll: Option<Duration>,
    },
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
        }
    }

    fn new(options: PublisherBuilder, max_memory: u64, capacity: u64) -> Result<Self> {
        let topic = options.topic;
        let (lookout, service) = service::connect(&topic)?;
        let shape = Shape::of(capacity);
        let log = Log::new(shape);
        let ring = OwnedSegment::new("byref-ring", shape.words() * 8)
            .and_then(|ring| ring.populate(0..shape.words_up_to(0) * 8).map(|()| ring))
            .map_err(Error::system(&topic, "cannot make the ring"))?;
        log.ring(ring.map().words()).set_wake_at(NEVER);
        log.ring(ring.map().words()).set_skip_at(NEVER);
        fault!("listen.ring_made");
        let id = rendezvous::new_id();
        let shared = Arc::new(Shared {
            topic,
            id,
            name: options.name,
            max_memory,
            history: options.history,
            limits: options.limits,
            made_in: ForkId::current(),
            open: Biased::new(None),
            final_stats: Mutex::default(),
            changed: Changes::default(),
            short_of: Mutex::default(),
            sleeping: Turn::default(),
            room: Arc::default(),
            awaits: AtomicBool::new(false),
        });
        let mut open = shared.open.lock();
        let announcement = {
            let host: Weak<dyn Host> = Arc::downgrade(&shared) as _;
            let who = Announced::Publisher { topic: shared.topic.clone(), id, times: 0 };
            Announcement::new(&lookout, &service, &shared.topic, who, host)?
        };
        let ring = Arc::new(ring);
        *open = Some(Open {
            siren: Siren::new(&ring, WAKE_WORD),
            waker: None,
            asked_for_waker: false,
            ring,
            log,
            clock: Clock::realtime(),
            peers: Vec::new(),
            last_peer: 0,
            began: None,
            lingers: false,
            pairing: Pairing::with(true),
            pool: Pool::new(max_memory),
            glossary: None,
            pending: VecDeque::new(),
            held: VecDeque::new(),
            awaited: Vec::new(),
            skip_at: NEVER,
            looks_for_releases: false,
            warned: None,
            uncollected: 0,
            unchecked: 0,
            counted: None,
            generation: 0,
            sent: 0,
            sent_bytes: 0,
            copied_bytes: 0,
            waits: 0,
            flushing: false,
            shrinking: false,
            settling: false,
            shared: Arc::downgrade(&shared),
            room: Arc::clone(&shared.room),
            service,
            announcement,
        });
        if let (Some(limit), Some(open)) = (options.hold_warning, open.as_ref()) {
            shared.warn_after(open, limit);
        }
        drop(open);
        copies::register(Cause::Send, &shared);
        Ok(Publisher { shared })
    }

    /// Sends a copy of `payload`; returns its sequence number. Waits for lossless subscribers without limit.
    pub fn send(&self, payload: &[u8]) -> Result<u64> {
        self.send_with(payload, &Encoded::default(), None, &mut Wait::up_to(None))
    }

    /// Sends a copy of `payload` with attributes and a timestamp (nanoseconds; default: `CLOCK_REALTIME`).
    ///
    /// A call that fails sent nothing to anybody.
    pub fn send_with(
        &self,
        payload: &[u8],
        attributes: &Encoded,
        timestamp_ns: Option<u64>,
        wait: &mut Wait<'_>,
    ) -> Result<u64> {
        if fits_inline(payload.len(), attributes) {
            return self.shared.append_inline(payload, attributes, timestamp_ns, wait);
        }
        let mut loan = self.loan_with(payload.len(), attributes.len(), wait)?;
        loan.write(0, payload);
        loan.send_encoded(attributes, timestamp_ns, payload.len(), wait)
    }

    /// Sends a copy of `rows`, packed payloads of `row_len` bytes each, as that many messages; returns their sequence numbers.
    /// They lie packed for receivers, too, and share attributes and timestamp. A subscriber's `depth` counts them as one
    /// while it blocks the publisher, and one by one when the oldest are dropped.
    ///
    /// A call that fails sent nothing to anybody.
    pub fn send_many(
        &self,
        rows: &[u8],
        row_len: usize,
        attributes: &Encoded,
        timestamp_ns: Option<u64>,
        wait: &mut Wait<'_>,
    ) -> Result<Range<u64>> {
        if row_len == 0 || !rows.len().is_multiple_of(row_len) {
            let text = format!("topic '{}': {} bytes are not rows of {row_len} bytes", self.shared.topic, rows.len());
            return Err(Error::InvalidArgument(text));
        }
        let count = rows.len() / row_len;
        if count < 2 {
            // Also for no rows: whether the publisher is closed shows all the same.
            let first = match count {
                0 => self.shared.next_sequence()?,
                _ => self.send_with(rows, attributes, timestamp_ns, wait)?,
            };
            return Ok(first..first + count as u64);
        }
        let mut loan = self.loan_with(rows.len(), attributes.len(), wait)?;
        loan.write(0, rows);
        let first = loan.send_rows(count, attributes, timestamp_ns, rows.len(), wait)?;
        Ok(first..first + count as u64)
    }

    /// Sends a copy of `payload`, and tells by the ticket when it is released. Waits for lossless subscribers without limit.
    ///
    /// A tracked message always travels through the pool, also a small one.
    pub fn send_tracked(&self, payload: &[u8]) -> Result<Ticket> {
        self.send_tracked_with(payload, &Encoded::default(), None, &mut Wait::up_to(None))
    }

    /// [`send_tracked`](Self::send_tracked) with what [`send_with`](Self::send_with) takes.
    pub fn send_tracked_with(
        &self,
        payload: &[u8],
        attributes: &Encoded,
        timestamp_ns: Option<u64>,
        wait: &mut Wait<'_>,
    ) -> Result<Ticket> {
        let mut loan = self.loan_with(payload.len(), attributes.len(), wait)?;
        loan.write(0, payload);
        loan.send_tracked_encoded(attributes, timestamp_ns, payload.len(), wait)
    }

    /// Lends `len` bytes of the pool, to be filled in place and sent without a copy. The content is arbitrary at first.
    pub fn loan(&self, len: usize) -> Result<Loan> {
        self.loan_with(len, 0, &mut Wait::up_to(None))
    }

    /// [`loan`](Self::loan) with room for `attributes_len` bytes of encoded attributes beside the payload.
    pub fn loan_with(&self, len: usize, attributes_len: usize, wait: &mut Wait<'_>) -> Result<Loan> {
        let padded = (len as u64).checked_next_multiple_of(8).unwrap_or(u64::MAX);
        let chunk = self.shared.allocate(padded.saturating_add(attributes_len as u64), len as u64, wait)?;
        fault!("loan.taken");
        Ok(Loan::new(Arc::clone(&self.shared), chunk, len))
    }

    /// Tells subscribers, those that join later too, what messages may refer to (with [`Encoded::with_glossary`]), once for
    /// all of these messages: [`Message::explained`](crate::Message::explained) gives it back. The same bytes have one entry.
    /// `None`: there is no room left for it, so it has to be told in each message.
    pub fn explain(&self, bytes: &[u8]) -> Result<Option<Entry>> {
        let mut guard = self.shared.lock()?;
        let open = self.shared.opened(&mut guard)?;
        open.explain(bytes).map_err(Error::system(&self.shared.topic, "cannot take memory for the glossary"))
    }

    /// Waits until at least `n` subscribers are connected.
    pub fn wait_for_subscribers(&self, n: usize, timeout: Option<Duration>) -> Result<()> {
        self.wait_for_subscribers_with(n, &mut Wait::up_to(timeout))
    }

    /// [`wait_for_subscribers`](Self::wait_for_subscribers) with an interruptible wait.
    pub fn wait_for_subscribers_with(&self, n: usize, wait: &mut Wait<'_>) -> Result<()> {
        let shared = &*self.shared;
        let ended = shared.changed.until(wait, || {
            let mut guard = shared.lock()?;
            let open = shared.opened(&mut guard)?;
            Ok(open.peers.iter().filter(|peer| peer.is_connected()).count() >= n)
        });
        match ended? {
            Ended::Done => Ok(()),
            Ended::TimedOut => {
                let short_of = shared.short_of.lock().clone();
                let mut hint =
                    short_of.map(|what| format!("; a subscriber cannot be taken in: {what}")).unwrap_or_default();
                hint += &shared.tell_place(wait.given());
                let (what, topic) = ("waiting for subscribers", shared.topic.clone());
                Err(Error::Timeout { what, topic, waited: wait.given(), hint })
            }
            Ended::Interrupted => Err(Error::Interrupted { topic: shared.topic.clone() }),
        }
    }

    /// Waits until every subscriber that is connected now has taken everything sent before the call.
    pub fn flush(&self, timeout: Option<Duration>) -> Result<()> {
        self.flush_with(&mut Wait::up_to(timeout))
    }

    /// [`flush`](Self::flush) with an interruptible wait.
    pub fn flush_with(&self, wait: &mut Wait<'_>) -> Result<()> {
        let mut target = None;
        self.shared.until(wait, "flush", |_, open| {
            let target = *target.get_or_insert(open.log.tail());
            let done = open.peers.iter().all(|peer| !peer.is_connected() || peer.cursor(open.log.tail()) >= target);
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
        let connected = open.peers.iter().filter(|peer| peer.is_connected());
        Ok(connected
            .map(|peer| SubscriberInfo {
                id: peer.id,
                stalled: open.stalled(peer),
                pid: peer.pid,
                name: peer.name.clone(),
                policy: peer.policy,
                lag: open.lag(peer),
            })
            .collect())
    }

    /// What subscribers hold: taken, and not released yet.
    pub fn outstanding(&self) -> Result<Outstanding> {
        self.shared.outstanding()
    }

    /// Counters; after `close`, the last ones.
    pub fn stats(&self) -> Result<PublisherStats> {
        let guard = self.shared.lock()?;
        Ok(guard.as_ref().map_or_else(|| self.shared.final_stats.lock().clone(), Open::stats))
    }

    /// The topic.
    pub fn topic(&self) -> &str {
        &self.shared.topic
    }

    /// This publisher's identity, different from every other's.
    pub fn id(&self) -> u128 {
        self.shared.id
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

/// Whether payload and attributes go into the record itself.
fn fits_inline(payload: usize, attributes: &Encoded) -> bool {
    payload <= INLINE_LIMIT
        && payload.next_multiple_of(8) + attributes.len().next_multiple_of(8) <= INLINE_LIMIT
        && !attributes.is_pooled()
}

impl Shared {
    pub fn topic(&self) -> &str {
        &self.topic
    }

    fn forked(&self) -> Error {
        Error::Forked { what: "publisher", topic: self.topic.clone() }
    }

    fn closed(&self) -> Error {
        Error::Closed { what: "publisher", topic: self.topic.clone() }
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

    /// Appends a record with payload and attributes that fit into it, when there is room for it.
    #[inline]
    fn append_inline(
        &self,
        payload: &[u8],
        attributes: &[u8],
        timestamp_ns: Option<u64>,
        wait: &mut Wait<'_>,
    ) -> Result<u64> {
        self.until(wait, "send", |shared, open| {
            if let Some((at, poll)) = open.must_wait(shared.history) {
                return Attempt::Wait { at, poll };
            }
            open.copied_bytes += payload.len() as u64;
            Attempt::Done(open.append(timestamp_ns, payload.len(), 1, |ring, place| {
                ring.append_inline(place, payload, attributes);
            }))
        })
    }

    fn next_sequence(&self) -> Result<u64> {
        Ok(self.opened(&mut self.lock()?)?.sent)
    }

    /// Publishes a filled chunk.
    pub fn commit(&self, filled: &Filled<'_>, timestamp_ns: Option<u64>, wait: &mut Wait<'_>) -> Result<u64> {
        let &Filled { chunk, count, len, attributes, copied, tracked } = filled;
        let at = Descriptor {
            segment: chunk.segment,
            slot: chunk.slot,
            offset: chunk.offset,
            len: len as u64,
            attributes_len: attributes.len() as u32,
            refers: attributes.refers(),
            tracked: tracked.is_some(),
        };
        self.until(wait, "send", |shared, open| {
            if let Some((at, poll)) = open.must_wait(shared.history) {
                return Attempt::Wait { at, poll };
            }
            if !open.announced_to_lossless() {
                return Attempt::Wait { at: NEVER, poll: Some(LEASE_POLL) };
            }
            let (position, sequence, now) = (open.log.tail(), open.sent, open.clock.now());
            if let Some(tracked) = tracked {
                tracked.set_place(position, at.slot);
            }
            let sent = Sent { position, sequence, count, len: at.len, at: now, tracked: tracked.cloned() };
            open.pool.set_sent(at.slot, sent);
            open.pending.push_back((position, at.slot));
            fault!("publish.pending");
            open.copied_bytes += copied as u64;
            let append = |ring: Ring<'_>, place| ring.append_pooled(place, at, count);
            Attempt::Done(open.append(Some(timestamp_ns.unwrap_or(now)), at.len as usize, count, append))
        })
    }

    /// Sends `payload` inside the record instead of the chunk it lies in.
    pub fn commit_inline(
        &self,
        payload: &[u8],
        attributes: &Encoded,
        timestamp_ns: Option<u64>,
        wait: &mut Wait<'_>,
    ) -> Option<Result<u64>> {
        fits_inline(payload.len(), attributes).then(|| self.append_inline(payload, attributes, timestamp_ns, wait))
    }

    /// Takes a chunk of `bytes` from the pool, for a payload of `payload` bytes.
    pub fn allocate(&self, bytes: u64, payload: u64, wait: &mut Wait<'_>) -> Result<Chunk> {
        let exhausted = |reason: String| Error::PoolExhausted {
            topic: self.topic.clone(),
            requested: payload,
            max_memory: self.max_memory,
            reason,
        };
        if bytes > self.max_memory.next_multiple_of(8) {
            return Err(exhausted(
                "the payload is larger than the whole pool; create the publisher with a larger max_memory".into(),
            ));
        }
        let mut theirs = 0;
        let chunk =
            self.until(wait, "send", |shared, open| match shared.allocate_or_tell(open, bytes, &mut theirs) {
                Ok(chunk) => Attempt::Done(chunk),
                Err(NoChunk::System(error)) => {
                    Attempt::Fail(Error::system(&shared.topic, "cannot take more payload memory")(error))
                }
                Err(NoChunk::Full) if open.waiting_may_help(bytes, shared.max_memory, theirs) => {
                    if !open.reading_may_help(bytes, shared.max_memory) {
                        open.warn_of_blocked_send(&shared.topic);
                    }
                    Attempt::Wait { at: open.next_progress(), poll: Some(LEASE_POLL) }
                }
                Err(NoChunk::Full) => {
                    open.warn_of_blocked_send(&shared.topic);
                    let obstacles = open.describe_obstacles(true);
                    let advice = "release messages (or discard loans), or raise max_memory";
                    Attempt::Fail(exhausted(match obstacles.is_empty() {
                        true => advice.to_owned(),
                        false => format!("{obstacles}; {advice}"),
                    }))
                }
            })?;
        self.populate(chunk, wait)
    }

    /// Takes a chunk. If there is none, `theirs` is what lossless subscribers could have given back before that was found: they
    /// take and release meanwhile, so that what is seen afterwards is no reason to give up.
    fn allocate_or_tell(&self, open: &mut Open, bytes: u64, theirs: &mut u64) -> Result<Chunk, NoChunk> {
        match self.allocate_within_limits(open, bytes) {
            Err(NoChunk::Full) => {
                fault!("publish.pool_full");
                *theirs = open.theirs();
                self.allocate_within_limits(open, bytes)
            }
            outcome => outcome,
        }
    }

    fn allocate_within_limits(&self, open: &mut Open, bytes: u64) -> Result<Chunk, NoChunk> {
        if let Some(most) = self.limits.held {
            open.limit_holds(&self.topic, most, bytes, false);
        }
        match (open.allocate(bytes, self.history), self.limits.held) {
            (Err(NoChunk::Full), Some(most)) => {
                open.limit_holds(&self.topic, most, 0, true);
                Err(NoChunk::Full)
            }
            (outcome, _) => outcome,
        }
    }

    /// Gives a new chunk's pages memory, in steps, without the lock.
    fn populate(&self, chunk: Chunk, wait: &mut Wait<'_>) -> Result<Chunk> {
        let mut from = chunk.unpopulated.start;
        while from < chunk.unpopulated.end {
            let to = chunk.unpopulated.end.min(from + POPULATE_STEP);
            let populated = chunk.pin.segment().populate(from..to);
            fault!("grow.populated");
            from = to;
            let failed = match populated {
                Err(error) => Error::system(&self.topic, "cannot take more payload memory")(error),
                Ok(()) if from < chunk.unpopulated.end && wait.is_interrupted() => {
                    Error::Interrupted { topic: self.topic.clone() }
                }
                Ok(()) => continue,
            };
            let slot = chunk.slot;
            drop(chunk);
            self.discard(slot);
            return Err(failed);
        }
        Ok(chunk)
    }

    /// Gives back a chunk that was never sent.
    pub fn discard(&self, slot: u32) {
        if let Ok(mut guard) = self.lock()
            && let Some(open) = guard.as_mut()
        {
            open.free_unless_held(slot); // Arrays made from its loan may still live.
        }
    }

    /// Makes attempts until one is conclusive. The first is the fast path.
    #[inline]
    fn until<T>(
        &self,
        wait: &mut Wait<'_>,
        what: &'static str,
        mut attempt: impl FnMut(&Self, &mut Open) -> Attempt<T>,
    ) -> Result<T> {
        let mut guard = self.lock()?;
        match attempt(self, self.opened(&mut guard)?) {
            Attempt::Done(value) => Ok(value),
            Attempt::Fail(error) => Err(error),
            Attempt::Wait { at, poll } => {
                drop(guard);
                self.until_slowly(wait, what, (at, poll), &mut attempt)
            }
        }
    }

    #[cold]
    fn until_slowly<T>(
        &self,
        wait: &mut Wait<'_>,
        what: &'static str,
        (at, poll): (u64, Option<Duration>),
        attempt: &mut dyn FnMut(&Self, &mut Open) -> Attempt<T>,
    ) -> Result<T> {
        let limit = self.limits.stall.filter(|_| what == "send");
        if !wait.is_allowed() {
            if let (Some(began), Some(open)) = (wait.polled_since(), self.lock()?.as_mut()) {
                limit.and_then(|most| open.limit_stalls(&self.topic, most, at, began));
                open.warn_of_silence(&self.topic, what, at, began);
            }
            return Err(Error::WouldBlock { topic: self.topic.clone() });
        }
        let batch = {
            let mut guard = self.lock()?;
            let open = self.opened(&mut guard)?;
            open.waits += 1;
            // Taking each free record as it comes costs the reader a line that it needs for every message.
            if poll.is_none() { open.batch(at) } else { 0 }
        };
        for round in 1..=SPINS {
            for _ in 0..32 {
                std::hint::spin_loop();
            }
            let mut guard = self.lock()?;
            let open = self.opened(&mut guard)?;
            if batch > 0 && round < SPINS && !open.has_room(self.history, batch) {
                continue;
            }
            match attempt(self, open) {
                Attempt::Done(value) => return Ok(value),
                Attempt::Fail(error) => return Err(error),
                Attempt::Wait { .. } => {}
            }
        }
        let mut leader = None;
        let mut armed = NEVER;
        let mut hurry = false;
        let (began, mut wanted) = (Instant::now(), NEVER);
        let outcome = loop {
            let Some(left) = wait.remaining() else {
                if let (Some(most), Some(open)) = (limit, self.lock()?.as_mut()) {
                    open.limit_stalls(&self.topic, most, wanted, began);
                }
                // What is unread in the ring takes no payload memory. What stood in the way is looked for first: if it went
                // just now, the attempt does not fail.
                let error = self.timed_out(wait, what, poll.is_some());
                let mut guard = self.lock()?;
                break match attempt(self, self.opened(&mut guard)?) {
                    Attempt::Done(value) => Ok(value),
                    Attempt::Fail(error) => Err(error),
                    Attempt::Wait { .. } => Err(error),
                };
            };
            if wait.is_interrupted() {
                break Err(Error::Interrupted { topic: self.topic.clone() });
            }
            let left = wait.slice(left);
            leader = leader
                .or_else(|| self.sleeping.take_within(Duration::from_millis(5).min(left.unwrap_or(Duration::MAX))));
            let strikes = self.room.strikes(); // Before the look: what comes after it wakes.
            let mut guard = self.lock()?;
            let Some(open) = guard.as_mut() else { break Err(self.closed()) };
            let (at, poll) = match attempt(self, open) {
                Attempt::Done(value) => break Ok(value),
                Attempt::Fail(error) => break Err(error),
                Attempt::Wait { at, poll } => (at, poll),
            };
            wanted = at;
            let until_eviction = limit.and_then(|most| open.limit_stalls(&self.topic, most, at, began));
            open.warn_of_silence(&self.topic, what, at, began);
            if leader.is_none() {
                continue;
            }
            // Wait for a quarter of the queue to drain, but not for long: the reader may be waiting for this very message.
            let (at, poll) = if hurry || at == NEVER { (at, poll) } else { open.batched(at) };
            if at != armed {
                armed = at;
                if open.siren.is_requested() {
                    open.siren.sound(); // It may be for those who are to make room.
                }
                open.ring().set_wake_at(at);
                drop(guard);
                fault!("sleep.publisher_announced");
                heavy_fence(); // Pairs with the light fence after each cursor store.
                continue;
            }
            drop(guard);
            let timeout = [left, until_eviction].into_iter().flatten().fold(poll.unwrap_or(LOST_RING), Duration::min);
            fault!("sleep.publisher_before");
            self.room.wait(strikes, Some(timeout));
            hurry |= self.room.strikes() == strikes;
            fault!("sleep.publisher_after");
        };
        if leader.is_some()
            && let Ok(mut guard) = self.lock()
            && let Some(open) = guard.as_mut()
        {
            open.ring().set_wake_at(NEVER);
        }
        outcome
    }

    /// Where subscribers have to look, for who has waited so long for one.
    fn tell_place(&self, waited: Duration) -> String {
        let lookout = self.open.lock().as_ref().map(|open| Arc::clone(open.announcement.lookout()));
        lookout.map_or_else(String::new, |lookout| lookout.tell_subscribers_place(waited >= LONG_WAIT))
    }

    fn timed_out(&self, wait: &Wait<'_>, what: &'static str, in_pool: bool) -> Error {
        let guard = self.lock().ok();
        let tell = |open: &Open| match open.describe_obstacles(in_pool) {
            text if text.is_empty() => open.describe_obstacles(false),
            text => text,
        };
        let hint = guard.and_then(|guard| guard.as_ref().map(tell)).unwrap_or_default();
        let hint = if hint.is_empty() { hint } else { format!("; {hint}") };
        Error::Timeout { what, topic: self.topic.clone(), waited: wait.given(), hint }
    }

    /// Reads what a subscriber sent: rings, or the end.
    pub(crate) fn answer(&self, peer: u64, channel: &Channel) {
        let mut is_rung = false;
        loop {
            match channel.take() {
                Ok(Said::Ring) => is_rung = true,
                Ok(Said::Nothing) => break,
                Ok(Said::HungUp) => return self.lose(peer, true),
                Ok(Said::OutOfDescriptors) => break, // It does without a bell until there is room.
                Ok(Said::Packet(packet, passed)) => {
                    if !self.take_bell(peer, channel, &packet, passed) {
                        return self.turn_away(peer, channel);
                    }
                }
                Err(_) => return self.turn_away(peer, channel),
            }
        }
        if is_rung {
            self.room.strike();
            self.look_for_releases();
        }
    }

    /// A subscriber has passed what it wants to be woken by; `false`: it is something else.
    fn take_bell(&self, peer: u64, channel: &Channel, packet: &[u8], passed: Option<OwnedFd>) -> bool {
        let Some(ToPublisher::Bell { number }) = handshake::decode_to_publisher(packet) else { return false };
        let Some(passed) = passed else { return false };
        if !socket::is_bell(&passed) {
            return false;
        }
        let bell = channel.pair().bell(number, passed);
        if let Some(open) = self.open.lock().as_mut()
            && let Some(peer) = open.peers.iter_mut().find(|found| found.id == peer)
        {
            peer.bell = Some(bell);
        }
        true
    }

    /// Reads the socket, too, which nobody else does.
    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(crate) fn answer_now(&self, peer: u64) {
        let channel = {
            let guard = self.open.lock();
            let found = guard.as_ref().and_then(|open| open.peers.iter().find(|found| found.id == peer));
            found.map(|found| Arc::clone(&found.channel))
        };
        if let Some(channel) = channel {
            channel.pump();
            self.answer(peer, &channel);
        }
    }

    /// Disconnects a subscriber that broke the rules. Its holds are its own until it hangs up.
    fn turn_away(&self, peer: u64, channel: &Channel) {
        channel.stop_receiving();
        let why = "sent what no subscriber sends";
        let mut guard = self.open.lock();
        let Some(open) = guard.as_mut() else { return };
        if let Some(index) = open.peers.iter().position(|found| found.id == peer && !found.evicted) {
            open.evict(&self.topic, index, why);
        }
        drop(guard);
        self.changed.notify();
    }

    /// A subscriber's process died, or (`hung_up`) its connection was seen to have ended: nobody is left who could look at what
    /// it holds.
    pub(crate) fn lose(&self, peer: u64, hung_up: bool) {
        let mut guard = self.open.lock();
        let Some(open) = guard.as_mut() else { return };
        let Some(index) = open.peers.iter().position(|found| found.id == peer) else { return };
        log::debug!("byref: topic '{}': the subscriber in process {} is gone", self.topic, open.peers[index].pid);
        fault!("lose.noticed");
        open.peers[index].alive = false;
        open.peers[index].outbox.clear(); // Nobody is left to read it.
        let lost = hung_up.then(|| open.peers.remove(index));
        open.update_pairing();
        open.log.look_again();
        open.look_at_awaited();
        open.wake_senders();
        self.changed.notify();
        drop(guard);
        if lost.is_some() {
            fault!("lose.removed");
        }
    }

    /// Sends what full sockets did not take before; gives the time to try again, unless that was all.
    fn flush_outboxes(&self) -> Option<Duration> {
        let mut guard = self.open.lock();
        let open = guard.as_mut()?;
        let next = open.generation + 1;
        let mut again = None;
        let mut evicted = false;
        for peer in open.peers.iter_mut().filter(|peer| peer.is_told()) {
            if !peer.flush_outbox(next) {
                let pause = if peer.written_off { WRITTEN_OFF_LOOK } else { LATER };
                again = again.into_iter().chain([pause]).min();
            }
            evicted |= peer.evicted && peer.outbox.is_empty();
        }
        open.flushing = again.is_some();
        if evicted {
            open.call_readers();
        }
        open.call_those_told_late();
        again
    }

    /// A subscriber could not be taken in for want of something. It, or the socket's backlog, will try again and again; that is
    /// worth one line in the log.
    fn note_shortage(&self, error: &io::Error) {
        let what = format!("{error}{}", limits::behind(error));
        let before = self.short_of.lock().replace(what.clone());
        if before.is_none() {
            log::warn!("byref: topic '{}': a subscriber cannot be taken in, trying again: {what}", self.topic);
        }
    }

    /// Gives segments back that are not used any more; `true`: there may be more later.
    fn shrink(&self) -> bool {
        let mut guard = self.open.lock();
        let Some(open) = guard.as_mut() else { return false };
        open.collect(self.history, usize::MAX);
        open.retire(Pool::retire_unused);
        open.shrinking = open.pool.is_large();
        open.shrinking
    }

    /// Gives retired memory back that nobody has mapped any more; `true`: some of it is still mapped.
    fn settle_retired(&self) -> bool {
        let mut guard = self.open.lock();
        let Some(open) = guard.as_mut() else { return false };
        open.settle_retired();
        open.settling = open.pool.has_retired();
        open.settling
    }

    /// Takes a subscriber in, if it wants this topic; gives its number.
    pub(crate) fn attach_if_welcome(
        self: &Arc<Self>,
        channel: Channel,
        hello: Hello,
        lease: Option<OwnedFd>,
    ) -> io::Result<Option<u64>> {
        if !topic::matches(&hello.topic, &self.topic) {
            // Of a full socket the end of the channel is answer enough.
            channel.send(&handshake::encode_first(&ToSubscriber::NotThisTopic), None)?;
            return Ok(None);
        }
        let lease = lease.ok_or_else(|| io::Error::other("it sent no lease"))?;
        self.attach(channel, hello, lease).map(Some)
    }

    /// Takes a subscriber in.
    fn attach(self: &Arc<Self>, channel: Channel, hello: Hello, lease: OwnedFd) -> io::Result<u64> {
        let lease = PeerSegment::new(lease, Some(LEASE_LEN)).map_err(|(error, _)| error)?.into_map();
        fault!("accept.lease_mapped");
        let pid = channel.peer_pid();
        let mut guard = self.open.lock();
        let Some(open) = guard.as_mut() else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let capacity = open.log.capacity();
        let most = if hello.policy == Policy::Block { capacity } else { retention_limit(capacity) };
        let depth = if hello.policy == Policy::Latest { 1 } else { hello.depth.unwrap_or(most).clamp(1, most) };
        let late = open.history_for(hello.history, self.history).min(if hello.policy == Policy::Block {
            u64::MAX
        } else {
            depth
        });
        // A position is at least one message, so these are enough; what is reclaimed among them is gone.
        let tail = open.log.tail();
        let earliest = tail.saturating_sub(late).max(open.log.reclaim());
        let first = open.sent.saturating_sub(late);
        let (words, regions) = (open.ring.map().words(), open.log.regions());
        let start = regions.find(words, earliest, tail, first);
        let first = if start == tail { open.sent } else { first.max(regions.at(words, start).sequence(start)) };
        fault!("history.start_found");
        let welcome = Welcome {
            publisher: self.id,
            topic: self.topic.clone(),
            name: self.name.clone(),
            start,
            first,
            capacity,
            membarrier: membarrier::works(),
        };
        let announce =
            |(id, memory): (u32, &Arc<OwnedSegment>)| (ToSubscriber::Segment { id }, Some(Arc::clone(memory)));
        let glossary = open.glossary.as_ref().map(|glossary| (GLOSSARY, glossary.memory()));
        let outbox = open.pool.segments().chain(glossary).map(announce).collect();
        open.last_peer += 1;
        let id = open.last_peer;
        // What may fail comes first: whoever is welcome counts on it.
        let shared = Arc::downgrade(self);
        let liveness = open.service.deaths.watch(&open.service, pid, move || {
            if let Some(shared) = shared.upgrade() {
                shared.lose(id, false);
            }
        })?;
        let peer = Peer {
            id,
            pid: pid.map_or(0, |pid| pid.as_raw_nonzero().get()),
            name: hello.name.map(|name| printable(&name)),
            channel: Arc::new(channel),
            bell: None,
            lease,
            policy: hello.policy,
            depth,
            start,
            sleeper: Sleeper::default(),
            membarrier: hello.membarrier,
            alive: !liveness.is_dead,
            _liveness: liveness,
            evicted: false,
            stall: None,
            joined: open.generation,
            written_off: false,
            owes: 0,
            silence: Silence::default(),
            outbox,
        };
        open.welcome(&peer, welcome)?;
        fault!("accept.welcomed");
        let (shared, channel) = (Arc::downgrade(self), Arc::downgrade(&peer.channel));
        peer.channel.listen(move || {
            if let (Some(shared), Some(channel)) = (shared.upgrade(), channel.upgrade()) {
                shared.answer(id, &channel);
            }
        });
        open.peers.push(peer);
        open.send_outboxes();
        log::debug!(
            "byref: topic '{}': a subscriber in process {} is connected",
            self.topic,
            open.peers[open.peers.len() - 1].pid
        );
        fault!("accept.counted");
        open.update_pairing();
        open.log.look_again();
        open.wake_senders();
        *self.short_of.lock() = None;
        self.changed.notify();
        Ok(id)
    }

    fn close(&self) {
        if !self.made_in.is_current() {
            return;
        }
        let close = || {
            let mut guard = self.open.lock();
            let open = guard.take()?;
            open.end_tickets(); // Under the lock: afterwards everybody finds them over.
            Some(open)
        };
        let Some(open) = copies::settle(Cause::Send, close, |open| open.copied_bytes) else { return };
        *self.final_stats.lock() = open.stats();
        open.tell_if_unheard(self);
        fault!("close.publisher_begun");
        open.ring().set_closed();
        fault!("close.publisher_flagged");
        if open.siren.is_requested() {
            open.siren.sound();
        }
        open.announcement.withdraw();
        for peer in &open.peers {
            peer.channel.hang_up();
            fault!("close.publisher_hung_up");
        }
        open.wake_senders();
        self.changed.notify();
    }
}

impl Endpoint for Shared {
    fn copied(&self) -> u64 {
        self.lock().ok().and_then(|open| open.as_ref().map(|open| open.copied_bytes)).unwrap_or(0)
    }
}

impl Open {
    #[inline]
    fn ring(&self) -> Ring<'_> {
        self.log.ring(self.ring.map().words())
    }

    fn stats(&self) -> PublisherStats {
        PublisherStats {
            sent: self.sent,
            sent_bytes: self.sent_bytes,
            copied_bytes: self.copied_bytes,
            waits: self.waits,
            subscribers: self.peers.iter().filter(|peer| peer.is_connected()).count() as u64,
            pool_used: self.pool.used(),
            pool_allocated: self.pool.populated(),
        }
    }

    fn explain(&mut self, bytes: &[u8]) -> io::Result<Option<Entry>> {
        if self.glossary.is_none() {
            let glossary = Glossary::new()?;
            let memory = Arc::clone(glossary.memory());
            self.glossary = Some(glossary);
            self.announce(GLOSSARY, &memory);
        }
        self.glossary.as_mut().expect("made above").explain(bytes)
    }

    /// Has senders that wait look again.
    fn wake_senders(&self) {
        self.room.strike();
    }

    /// Answers a subscriber's hello.
    fn welcome(&self, peer: &Peer, welcome: Welcome) -> io::Result<()> {
        let packet = handshake::encode_first(&ToSubscriber::Welcome(welcome));
        match peer.channel.send(&packet, Some(self.ring.shared()))? {
            true => Ok(()),
            false => Err(io::Error::other("the socket is full")),
        }
    }

    /// How many messages in the ring a subscriber has not taken.
    fn lag(&self, peer: &Peer) -> u64 {
        let tail = self.log.tail();
        let position = peer.cursor(tail).max(self.log.reclaim());
        let sequence = || self.log.regions().at(self.ring.map().words(), position).sequence(position);
        if position == tail { 0 } else { self.sent - sequence() }
    }

    /// Appends a record of `count` messages and wakes whoever sleeps; gives the first message's number. There is room for it.
    #[inline]
    fn append(
        &mut self,
        timestamp_ns: Option<u64>,
        len: usize,
        count: u32,
        write: impl FnOnce(Ring<'_>, Place),
    ) -> u64 {
        let (position, sequence) = (self.log.tail(), self.sent);
        let timestamp_ns = timestamp_ns.unwrap_or_else(|| self.clock.now());
        fault!("publish.begun");
        write(self.ring(), Place { position, sequence, timestamp_ns });
        fault!("publish.written");
        self.ring().prepare(position + PREPARED_AHEAD);
        self.log.appended();
        self.sent += count as u64;
        self.sent_bytes += len as u64;
        self.wake_sleepers();
        sequence
    }

    /// Wakes who sleeps and was not woken from this sleep yet, after something that they look for was stored.
    #[inline]
    fn wake_sleepers(&mut self) {
        self.pairing.light(); // Pairs with the heavy fence of a subscriber that goes to sleep.
        let mut at_word = 0;
        for peer in &mut self.peers {
            let lease = Lease::new(peer.lease.words(), peer.lease.counts(COUNTS));
            match peer.sleeper.due(lease) {
                None => {}
                Some(Way::Word) => at_word += 1,
                Some(Way::Socket) => {
                    fault!("wake.subscriber_before");
                    peer.wake();
                    fault!("wake.subscriber_after");
                }
            }
        }
        if at_word > 0 {
            self.wake_those_at_word(at_word);
        }
    }

    /// Wakes so many who sleep at the wake word, or has them woken.
    #[cold]
    fn wake_those_at_word(&mut self, count: usize) {
        let is_for_waker = (count >= MANY || self.siren.is_requested()) && !self.siren.is_late();
        if is_for_waker && self.has_waker() {
            return self.waker.iter().for_each(|waker| waker.request(&self.siren));
        }
        self.siren.sound();
    }

    /// If none runs, the service thread starts one.
    fn has_waker(&mut self) -> bool {
        if self.waker.is_none() {
            self.waker = Waker::running();
        }
        if self.waker.is_some() || std::mem::replace(&mut self.asked_for_waker, true) {
            return self.waker.is_some();
        }
        let shared = self.shared.clone();
        let mut refused = false;
        self.service.after(Duration::ZERO, move |_, _, _| {
            let Some(shared) = shared.upgrade() else { return Next::Done };
            let started = (!refused).then(Waker::start);
            if let Some(Err(error)) = &started {
                static TOLD: AtomicBool = AtomicBool::new(false);
                if !TOLD.swap(true, Ordering::Relaxed) {
                    log::warn!(
                        "byref: cannot start a thread that wakes subscribers, so senders wake them themselves: {error}"
                    );
                }
            }
            let mut guard = shared.open.lock();
            let Some(open) = guard.as_mut() else { return Next::Done };
            if let Some(Ok(waker)) = started {
                open.waker = Some(waker);
            } else if !std::mem::replace(&mut refused, true) {
                return Next::After(NO_WAKER);
            }
            open.asked_for_waker = false; // Whoever needs one asks again.
            Next::Done
        });
        false
    }

    /// What one more record has to wait for, if anything.
    #[inline]
    fn must_wait(&mut self, history: u64) -> Option<(u64, Option<Duration>)> {
        if self.log.has_room() { None } else { self.make_room(history) }
    }

    /// Looks at the cursors, and lets the ring grow.
    #[cold]
    fn make_room(&mut self, history: u64) -> Option<(u64, Option<Duration>)> {
        let now = self.clock.now();
        self.log.reconsider(now);
        let unheard = self.claim_of_nobody(now);
        let mut needed = NEVER;
        if !self.log.is_between_steps() {
            needed = self.look_for(history, unheard).needed;
        }
        while let Some(step) = self.log.step(now) {
            let end = step.end;
            if let Err(error) = self.ring.populate(step) {
                log::warn!(
                    "byref: topic '{}': no memory for a longer ring, so it stays as it is: {error}",
                    self.topic()
                );
                self.log.refuse(now);
                needed = self.look_for(history, unheard).needed;
                continue;
            }
            fault!("grow.ring_populated");
            self.log.stepped(self.ring.map().words(), end, now);
        }
        (!self.log.has_room()).then_some((needed, None))
    }

    fn topic(&self) -> String {
        self.shared.upgrade().map(|shared| shared.topic.clone()).unwrap_or_default()
    }

    fn claims(peers: &[Peer], tail: u64) -> impl Iterator<Item = Claim> {
        peers.iter().filter_map(move |peer| peer.claim(tail))
    }

    fn horizon(&self, history: u64, keep_lossy: bool) -> Horizon {
        self.log.horizon(history, keep_lossy, Self::claims(&self.peers, self.log.tail()))
    }

    /// What is kept for the first subscriber, as long as none has come: a program may send and be gone before anybody is there (see
    /// [`Publisher::close_within`]). All, of a publisher that has just begun; later, as many as have room without growth. Only
    /// for want of room in the ring; payload memory is not kept for nobody.
    fn claim_of_nobody(&mut self, now: u64) -> Option<Claim> {
        if self.last_peer > 0 {
            return None;
        }
        let began = *self.began.get_or_insert(now);
        let is_new = now.abs_diff(began) < NEW;
        let depth = if is_new { u64::MAX } else { self.log.unheard() };
        Some(Claim { cursor: 0, policy: Policy::DropOldest, depth })
    }

    /// Brings `limit` and the reclaim mark up to date.
    fn look_at_cursors(&mut self, history: u64) -> Horizon {
        self.look_for(history, None)
    }

    fn look_for(&mut self, history: u64, unheard: Option<Claim>) -> Horizon {
        let claims = Self::claims(&self.peers, self.log.tail()).chain(unheard);
        let horizon = self.log.look(self.ring.map().words(), history, claims);
        self.look_at_awaited();
        horizon
    }

    /// How many more records than one are worth waiting for: a quarter of what the subscriber at `needed` has to read, and of what
    /// any other one ever leaves room for.
    fn batch(&self, needed: u64) -> u64 {
        let least = self.lossless().map(|peer| peer.depth).min().unwrap_or(0);
        self.log.tail().saturating_sub(needed).min(least) / 4
    }

    /// From where on to wake a publisher that waits for the cursor `needed`, and when to look without being woken.
    fn batched(&self, needed: u64) -> (u64, Option<Duration>) {
        (needed + self.batch(needed), Some(Duration::from_millis(1)))
    }

    /// Whether there is room for more than so many records; the mark stays where it is.
    fn has_room(&self, history: u64, records: u64) -> bool {
        self.horizon(history, true).limit > self.log.tail() + records
    }

    /// Whether every lossless subscriber has been sent all descriptors.
    fn announced_to_lossless(&mut self) -> bool {
        let mut all = true;
        let next = self.generation + 1;
        for peer in &mut self.peers {
            if !peer.outbox.is_empty() {
                all &= peer.flush_outbox(next) || peer.policy != Policy::Block || !peer.is_connected();
            }
        }
        self.call_those_told_late();
        all
    }

    /// Tells all subscribers that can still want it of a new segment.
    fn announce(&mut self, id: u32, segment: &Arc<OwnedSegment>) {
        for peer in self.peers.iter_mut().filter(|peer| peer.is_connected()) {
            peer.outbox.push_back((ToSubscriber::Segment { id }, Some(Arc::clone(segment))));
        }
        self.send_outboxes();
    }

    /// Sends what waits, as far as the sockets take it now; the service thread does the rest.
    fn send_outboxes(&mut self) {
        self.flush_all();
        self.call_those_told_late();
    }

    fn flush_all(&mut self) {
        let next = self.generation + 1;
        let mut all = true;
        for peer in self.peers.iter_mut().filter(|peer| peer.is_told()) {
            all &= peer.flush_outbox(next);
        }
        if !all {
            self.send_later();
        }
    }

    /// Who was sent the news of retired memory after the generation had changed for it may have acknowledged that before.
    fn call_those_told_late(&mut self) {
        if self.peers.iter().any(|peer| peer.owes > self.generation) {
            self.call_readers();
        }
    }

    /// Has the service thread send what is in the outboxes.
    #[cold]
    fn send_later(&mut self) {
        if !std::mem::replace(&mut self.flushing, true) {
            let shared = self.shared.clone();
            self.service.after(LATER, move |_, _, _| {
                shared.upgrade().and_then(|shared| shared.flush_outboxes()).map_or(Next::Done, Next::After)
            });
        }
    }

    /// Takes a chunk; when there is none, because of `max_memory` or because the system refuses more, the cheaper remedies
    /// come first.
    fn allocate(&mut self, bytes: u64, history: u64) -> Result<Chunk, NoChunk> {
        self.uncollected += bytes;
        if self.uncollected >= COLLECT_EVERY {
            self.uncollected = 0;
            self.collect(history, RECHECKS);
        }
        if let Ok(chunk) = self.try_allocate(bytes) {
            return Ok(chunk);
        }
        self.collect(history, usize::MAX);
        if let Ok(chunk) = self.try_allocate(bytes) {
            return Ok(chunk);
        }
        // What only lossy subscribers and late joiners could still want is given up, the oldest first, and no more of it
        // than the chunk needs.
        let lossless = self.horizon(history, false).reclaim;
        while let Some(&(position, _)) = self.pending.front()
            && position < lossless
        {
            self.log.move_mark(self.ring.map().words(), position + 1);
            self.free_reclaimed();
            if let Ok(chunk) = self.try_allocate(bytes) {
                return Ok(chunk);
            }
        }
        // Empty segments may have the wrong size.
        self.retire(Pool::retire_empty);
        self.try_allocate(bytes)
    }

    fn try_allocate(&mut self, bytes: u64) -> Result<Chunk, NoChunk> {
        let (chunk, added) = self.pool.allocate(bytes)?;
        if added {
            fault!("grow.segment_made");
            self.announce(chunk.segment, chunk.pin.segment());
        }
        if added || !chunk.unpopulated.is_empty() {
            self.shrink_later();
        }
        Ok(chunk)
    }

    /// Has the service thread give back what a burst leaves unused.
    fn shrink_later(&mut self) {
        if self.pool.is_large() && !std::mem::replace(&mut self.shrinking, true) {
            let shared = self.shared.clone();
            self.service.after(UNUSED, move |_, _, _| match shared.upgrade() {
                Some(shared) if shared.shrink() => Next::After(UNUSED),
                _ => Next::Done,
            });
        }
    }

    /// Frees the chunks that nobody can want any more. Of those that were held before, it looks at `rechecks`, or at twice
    /// as many as it adds to them.
    fn collect(&mut self, history: u64, rechecks: usize) {
        self.look_at_cursors(history);
        let known = self.held.len();
        self.free_reclaimed();
        let added = self.held.len() - known;
        for _ in 0..rechecks.max(2 * added).min(known) {
            let slot = self.held.pop_front().expect("the loop counts what is there");
            self.free_unless_held(slot);
        }
        self.settle_retired();
    }

    /// Gives retired memory back that no subscriber has mapped any more. Until then it counts, whoever keeps it. But those who
    /// may lose messages, or lost their claim, delay a send only so long: what they keep counts no more then against what this
    /// publisher may take, and they get no more of it before they have given that back.
    fn settle_retired(&mut self) {
        let (peers, pool) = (&mut self.peers, &mut self.pool);
        pool.settle_retired(|generation, since, unsent| {
            let is_due = since.elapsed() >= PATIENCE;
            let mut fate = Fate::Unmapped;
            for peer in peers.iter_mut().filter(|peer| peer.keeps(generation) && !unsent.contains(&peer.id)) {
                if peer.may_delay() || !is_due {
                    return Fate::Kept;
                }
                peer.written_off = true;
                fate = Fate::WrittenOff;
            }
            fate
        });
    }

    fn free_reclaimed(&mut self) {
        while let Some(&(position, slot)) = self.pending.front()
            && position < self.log.reclaim()
        {
            self.pending.pop_front();
            self.free_unless_held(slot);
        }
    }

    /// Frees a chunk, or queues it among those that a lease, or an array made from its loan, still holds.
    fn free_unless_held(&mut self, slot: u32) {
        if self.pool.is_pinned(slot) || self.peers.iter().any(|peer| peer.lease().is_held(slot)) {
            self.held.push_back(slot);
            return;
        }
        fault!("reclaim.unheld");
        let freed = self.pool.free(slot);
        fault!("reclaim.freed");
        if let Some(Sent { tracked: Some(tracked), .. }) = freed {
            tracked.release();
        }
    }

    fn retire(&mut self, which: impl FnOnce(&mut Pool, u64) -> Vec<u32>) {
        let generation = self.generation + 1;
        let retired = which(&mut self.pool, generation);
        if retired.is_empty() {
            return;
        }
        fault!("retire.dropped");
        for id in retired {
            let is_unsent =
                |packet: &ToSubscriber| matches!(packet, ToSubscriber::Segment { id: unsent } if *unsent == id);
            for peer in &mut self.peers {
                let waiting = peer.outbox.len();
                peer.outbox.retain(|(packet, _)| !is_unsent(packet));
                // Who has not heard of the segment need not. So the outbox of one that never reads does not grow for ever.
                if peer.outbox.len() < waiting {
                    self.pool.note_unsent(id, peer.id);
                } else if peer.is_connected() {
                    peer.outbox.push_back((ToSubscriber::Retire { id }, None));
                }
            }
        }
        self.flush_all();
        self.set_generation(generation);
        self.settle_retired();
        if self.pool.has_retired() && !std::mem::replace(&mut self.settling, true) {
            let shared = self.shared.clone();
            let mut pause = FIRST_SETTLING;
            self.service.after(pause, move |_, _, _| {
                pause = (pause * 2).min(LAST_SETTLING);
                match shared.upgrade() {
                    Some(shared) if shared.settle_retired() => Next::After(pause),
                    _ => Next::Done,
                }
            });
        }
    }

    /// Bytes that lossless subscribers have yet to take or to release.
    fn theirs(&self) -> u64 {
        let held = self.held.iter().copied().filter(|slot| self.lossless().any(|peer| peer.lease().is_held(*slot)));
        self.unread() + held.map(|slot| self.pool.bytes(slot)).sum::<u64>()
    }

    /// Whether waiting can make room: what lossless subscribers had yet to take or to release is enough, or what subscribers
    /// have yet to unmap.
    fn waiting_may_help(&self, bytes: u64, max_memory: u64, theirs: u64) -> bool {
        let is_enough = self.pool.used().saturating_sub(theirs) + bytes <= max_memory;
        is_enough && (theirs > 0 || self.pool.unmapping_may_help(bytes))
    }

    /// Whether room can come without a release, by lossless subscribers that take what they have yet to take. (Each of them holds
    /// the message that it works on: that is no reason for a warning.)
    fn reading_may_help(&self, bytes: u64, max_memory: u64) -> bool {
        self.pool.used().saturating_sub(self.unread()) + bytes <= max_memory
    }

    fn lossless(&self) -> impl Iterator<Item = &Peer> {
        self.peers.iter().filter(|peer| peer.policy == Policy::Block && peer.is_connected())
    }

    /// Bytes in chunks that some lossless subscriber has yet to take.
    fn unread(&self) -> u64 {
        let oldest = self.lossless().map(|peer| peer.cursor(self.log.tail())).min().unwrap_or(self.log.tail());
        let unread = self.pending.iter().rev().take_while(|(position, _)| *position >= oldest);
        unread.map(|(_, slot)| self.pool.bytes(*slot)).sum()
    }

    /// The next position at which some lossless subscriber makes progress.
    fn next_progress(&self) -> u64 {
        self.lossless()
            .map(|peer| peer.cursor(self.log.tail()))
            .filter(|cursor| *cursor < self.log.tail())
            .min()
            .map_or(NEVER, |at| at + 1)
    }

    fn update_pairing(&mut self) {
        self.pairing = Pairing::with(self.peers.iter().all(|peer| peer.membarrier));
    }
}

impl Host for Shared {
    fn take_call(self: Arc<Self>, channel: Channel, hello: Hello, lease: Option<OwnedFd>) -> io::Result<()> {
        self.attach_if_welcome(channel, hello, lease).map(drop)
    }

    /// There is nothing to be seen without a lease.
    fn show(&self, _: &OwnedFd) {}

    fn is_short_of(&self, error: &io::Error) {
        self.note_shortage(error);
    }

    fn topic(&self) -> &str {
        &self.topic
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::Subscriber;
    use crate::link::channel::joined;
    use crate::protocol::wake::note;
    use crate::sys::socket::shortage;
    use std::cell::Cell;

    const SOON: Option<Duration> = Some(Duration::from_secs(20));

    fn pair(capacity: u64) -> (Publisher, Subscriber) {
        let publisher = Publisher::builder("t").capacity(capacity).build().unwrap();
        let subscriber = Subscriber::builder("t").build().unwrap();
        publisher.wait_for_subscribers(1, SOON).unwrap();
        subscriber.wait_for_publishers(1, SOON).unwrap();
        (publisher, subscriber)
    }

    #[test]
    fn a_wake_up_that_the_system_has_no_memory_for_is_repeated() {
        let _meeting = crate::fuzzing::meet_in_private();
        let (publisher, subscriber) = pair(16);
        std::thread::scope(|scope| {
            let receiver = scope.spawn(|| subscriber.recv_timeout(SOON.unwrap()).unwrap().len());
            while subscriber.stats().unwrap().sleeps == 0 {
                std::thread::yield_now();
            }
            shortage::of(1);
            publisher.send(b"hello").unwrap();
            assert_eq!(receiver.join().unwrap(), 5);
        });
    }

    /// A subscriber that does nothing by itself.
    struct Puppet {
        channel: Channel,
        theirs: Cell<Option<Channel>>,
        lease: OwnedSegment,
    }

    impl Puppet {
        fn new() -> Self {
            let (channel, theirs) = joined();
            Puppet { channel, theirs: Some(theirs).into(), lease: OwnedSegment::new("test", LEASE_LEN).unwrap() }
        }

        /// Says hello; gives its number, if it was taken in.
        fn greet(&self, publisher: &Publisher, topic: &str) -> Option<u64> {
            self.greet_as(publisher, topic, Policy::Latest, None)
        }

        fn greet_as(&self, publisher: &Publisher, topic: &str, policy: Policy, depth: Option<u64>) -> Option<u64> {
            let topic = topic.to_owned();
            let hello = Hello { topic, policy, depth, history: 0, name: None, membarrier: false };
            let lease = self.lease.shared().try_clone_to_owned().unwrap();
            let theirs = self.theirs.take().expect("it has said nothing yet");
            publisher.shared.attach_if_welcome(theirs, hello, Some(lease)).ok().flatten()
        }

        /// The packets that it was sent.
        fn told(&self) -> Vec<ToSubscriber> {
            self.channel.pump();
            let next = || match self.channel.take() {
                Ok(Said::Packet(packet, _)) => Some(handshake::decode(&packet)),
                _ => None,
            };
            std::iter::from_fn(next).flatten().collect()
        }
    }

    /// As of a thread that somebody keeps from running.
    #[test]
    fn a_request_that_nobody_takes_is_served_by_its_sender() {
        let _meeting = crate::fuzzing::meet_in_private();
        let publisher = Publisher::builder("t").capacity(16).build().unwrap();
        let subscribers: Vec<_> = (0..MANY).map(|_| Subscriber::builder("t").build().unwrap()).collect();
        publisher.wait_for_subscribers(MANY, SOON).unwrap();
        for subscriber in &subscribers {
            subscriber.wait_for_publishers(1, SOON).unwrap();
        }
        publisher.shared.open.lock().as_mut().unwrap().waker = Some(Waker::idle());
        let raised = || {
            let guard = publisher.shared.open.lock();
            note(&guard.as_ref().unwrap().ring.map().counts(WAKE_WORD)[0])
        };
        let send = || {
            subscribers.iter().for_each(|subscriber| subscriber.announce_sleep().unwrap());
            publisher.send(b"x").unwrap();
        };
        send();
        assert_eq!(raised(), 0, "another thread is to do it");
        for number in 1..4 {
            std::thread::sleep(Duration::from_millis(2));
            send();
            assert_eq!(raised(), number, "it is late");
        }
        publisher.close();
        assert_eq!(subscribers[0].recv_timeout(SOON.unwrap()).unwrap().len(), 1);
    }

    #[test]
    fn only_hellos_for_the_topic_with_a_lease_are_welcome() {
        let _meeting = crate::fuzzing::meet_in_private();
        let publisher = Publisher::builder("a/b").capacity(16).build().unwrap();
        for (topic, is_taken) in [("a/b", true), ("a/*", true), ("a/c", false), ("b/*", false), ("", false)] {
            let puppet = Puppet::new();
            assert_eq!(puppet.greet(&publisher, topic).is_some(), is_taken, "{topic}");
        }
        let short = Puppet { lease: OwnedSegment::new("test", LEASE_LEN / 2).unwrap(), ..Puppet::new() };
        assert_eq!(short.greet(&publisher, "a/b"), None, "its lease is too short");
    }

    #[test]
    fn a_cursor_stays_within_what_the_subscriber_may_read() {
        let _meeting = crate::fuzzing::meet_in_private();
        let publisher = Publisher::builder("t").capacity(16).build().unwrap();
        for _ in 0..5 {
            publisher.send(b"").unwrap();
        }
        let puppet = Puppet::new();
        puppet.greet(&publisher, "t").unwrap();
        for _ in 0..3 {
            publisher.send(b"").unwrap();
        }
        let lease = Lease::new(puppet.lease.map().words(), puppet.lease.map().counts(COUNTS));
        let guard = publisher.shared.open.lock();
        let open = guard.as_ref().unwrap();
        for (said, taken_for) in [(0, 5), (4, 5), (5, 5), (7, 7), (8, 8), (9, 8), (u64::MAX - 1, 8)] {
            lease.set_cursor(said);
            assert_eq!(open.peers[0].cursor(open.log.tail()), taken_for);
        }
    }

    #[test]
    fn a_depth_is_one_that_the_ring_has() {
        let _meeting = crate::fuzzing::meet_in_private();
        let publisher = Publisher::builder("t").capacity(16).build().unwrap();
        for (policy, said, taken_for) in [
            (Policy::Block, Some(0), 1),
            (Policy::Block, Some(u64::MAX), 16),
            (Policy::Block, None, 16),
            (Policy::DropOldest, Some(0), 1),
            (Policy::DropOldest, Some(100), 8),
            (Policy::Latest, Some(100), 1),
        ] {
            Puppet::new().greet_as(&publisher, "t", policy, said).unwrap();
            let guard = publisher.shared.open.lock();
            assert_eq!(guard.as_ref().unwrap().peers.last().unwrap().depth, taken_for, "{policy:?} {said:?}");
        }
    }

    #[test]
    fn only_a_hang_up_takes_holds_away() {
        let _meeting = crate::fuzzing::meet_in_private();
        let publisher = Publisher::builder("t").capacity(16).max_memory(1 << 20).build().unwrap();
        for packet in [&[][..], &[0; 100]] {
            let puppet = Puppet::new();
            let peer = puppet.greet(&publisher, "t").unwrap();
            let lease = Lease::new(puppet.lease.map().words(), puppet.lease.map().counts(COUNTS));
            publisher.send(&[1; 700_000]).unwrap();
            let slot = publisher.shared.open.lock().as_ref().unwrap().pending.back().unwrap().1;
            lease.hold_again(slot);
            assert!(puppet.channel.send(packet, None).unwrap());
            publisher.shared.answer_now(peer);
            assert!(publisher.subscribers().unwrap().is_empty(), "it is turned away");
            assert_eq!(publisher.outstanding().unwrap().messages, 1, "and keeps what it holds");
            let refused = publisher.send_with(&[2; 700_000], &Encoded::default(), None, &mut Wait::never());
            assert!(matches!(refused, Err(Error::PoolExhausted { .. })));
            drop(puppet);
            publisher.shared.answer_now(peer);
            assert_eq!(publisher.outstanding().unwrap().messages, 0);
        }
    }

    #[test]
    fn a_publisher_whose_connection_is_cut_is_asked_again() {
        let _meeting = crate::fuzzing::meet_in_private();
        let (publisher, subscriber) = pair(16);
        for round in 0..3u8 {
            {
                let guard = publisher.shared.open.lock();
                guard.as_ref().unwrap().peers[0].channel.pair().cut();
            }
            let first = |open: &Open| open.peers.first().map(|peer| peer.id);
            let before = publisher.shared.open.lock().as_ref().and_then(first);
            let begin = Instant::now();
            while publisher
                .shared
                .open
                .lock()
                .as_ref()
                .is_none_or(|open| first(open).is_none_or(|id| Some(id) == before))
            {
                assert!(begin.elapsed() < SOON.unwrap(), "it did not come again");
                let _ = subscriber.try_recv().unwrap();
                std::thread::sleep(Duration::from_millis(5));
            }
            publisher.send(&[round]).unwrap();
            assert_eq!(subscriber.recv_timeout(SOON.unwrap()).unwrap()[..], [round]);
        }
    }

    /// Who has read its socket before the generation changed, which it looks at to acknowledge, may sleep again, or receive nothing
    /// more.
    #[test]
    fn all_are_woken_after_the_news_of_retired_memory() {
        let _meeting = crate::fuzzing::meet_in_private();
        let publisher = Publisher::builder("t").capacity(16).max_memory(1 << 20).build().unwrap();
        let puppets = [true, false].map(|sleeps| {
            let puppet = Puppet::new();
            puppet.greet(&publisher, "t").unwrap();
            if sleeps {
                Lease::new(puppet.lease.map().words(), puppet.lease.map().counts(COUNTS)).set_sleeping(1);
            }
            puppet
        });
        drop(publisher.loan(64).unwrap());
        publisher.shared.open.lock().as_mut().unwrap().retire(Pool::retire_empty);
        for puppet in puppets {
            let told = puppet.told();
            let retired = told.iter().position(|packet| matches!(packet, ToSubscriber::Retire { .. }));
            let after = &told[retired.expect("it had the segment")..];
            assert!(matches!(after, [_, ToSubscriber::Wake, ..]), "{told:?}");
        }
    }

    #[test]
    fn what_was_kept_from_a_lossy_subscriber_is_counted_as_lost() {
        let _meeting = crate::fuzzing::meet_in_private();
        let publisher = Publisher::builder("t").capacity(16).build().unwrap();
        let subscriber = Subscriber::builder("t").policy(Policy::DropOldest).build().unwrap();
        subscriber.wait_for_publishers(1, SOON).unwrap();
        {
            // It keeps retired memory, and acknowledges nothing.
            let mut guard = publisher.shared.open.lock();
            let peer = &mut guard.as_mut().unwrap().peers[0];
            (peer.written_off, peer.owes) = (true, u64::MAX);
        }
        publisher.send(&[1; 10_000]).unwrap();
        publisher.send(b"behind").unwrap();
        publisher.close();
        assert_eq!(subscriber.recv_timeout(SOON.unwrap()).unwrap()[..], *b"behind");
        assert_eq!(subscriber.stats().unwrap().lost, 1);
    }

    /// One that has yet to unmap what was retired: it is waited for according to what it may lose.
    #[test]
    fn who_may_lose_messages_delays_a_send_only_so_long() {
        let _meeting = crate::fuzzing::meet_in_private();
        const MAX: u64 = 96 << 20;
        for (policy, is_waited_for) in [(Policy::Latest, false), (Policy::DropOldest, false), (Policy::Block, true)] {
            let publisher = Publisher::builder("t").capacity(64).max_memory(MAX).build().unwrap();
            let frozen = Puppet::new();
            frozen.greet_as(&publisher, "t", policy, None).unwrap();
            let small: Vec<_> = std::iter::from_fn(|| publisher.loan(1 << 20).ok()).take(64).collect();
            drop(small);
            let allocated = || publisher.stats().unwrap().pool_allocated;
            let mut soon = Wait::up_to(Some(3 * PATIENCE));
            let huge = publisher.loan_with(80 << 20, 0, &mut soon);
            if is_waited_for {
                assert!(
                    matches!(huge, Err(Error::Timeout { ref hint, .. }) if hint.contains("yet to unmap")),
                    "{policy:?}"
                );
                assert!(allocated() <= MAX);
                assert!(publisher.loan(1 << 20).is_ok(), "what it keeps mapped serves meanwhile");
                continue;
            }
            assert!(allocated() > MAX, "what it keeps counts: {policy:?}");
            huge.unwrap().send().unwrap();
            let guard = publisher.shared.open.lock();
            let peer = &guard.as_ref().unwrap().peers[0];
            assert!(peer.written_off && peer.outbox.iter().any(|(_, segment)| segment.is_some()), "it gets no more");
            drop(guard);
            let lease = Lease::new(frozen.lease.map().words(), frozen.lease.map().counts(COUNTS));
            lease.set_generation(u64::MAX);
            let begin = Instant::now();
            while allocated() > MAX || !publisher.shared.open.lock().as_ref().unwrap().peers[0].outbox.is_empty() {
                assert!(begin.elapsed() < SOON.unwrap(), "it has given back what it kept");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    #[test]
    fn a_subscriber_that_never_reads_costs_no_more_and_more() {
        let _meeting = crate::fuzzing::meet_in_private();
        let publisher = Publisher::builder("t").capacity(16).max_memory(1 << 20).build().unwrap();
        let lazy = Puppet::new();
        lazy.greet(&publisher, "t").unwrap();
        let mut guard = publisher.shared.open.lock();
        let open = guard.as_mut().unwrap();
        for _ in 0..1000 {
            let chunk = open.try_allocate(64).unwrap();
            open.pool.free(chunk.slot);
            open.retire(Pool::retire_empty);
            open.pool.settle_retired(|_, _, _| Fate::Unmapped);
        }
        let [peer] = &open.peers[..] else { panic!("one subscriber") };
        assert!((1..10).contains(&peer.outbox.len()), "{} packets wait", peer.outbox.len());
    }

    #[test]
    fn a_publisher_that_is_not_rung_looks_by_itself() {
        let _meeting = crate::fuzzing::meet_in_private();
        let (publisher, subscriber) = pair(16);
        std::thread::scope(|scope| {
            for _ in 0..16 {
                publisher.send(b"").unwrap();
            }
            let send = || publisher.send_with(b"one more", &Encoded::default(), None, &mut Wait::up_to(SOON)).unwrap();
            let sender = scope.spawn(send);
            while publisher.stats().unwrap().waits == 0 {
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_millis(20)); // It stops looking by itself every now and then.
            shortage::of(u32::MAX);
            subscriber.recv_timeout(SOON.unwrap()).unwrap();
            assert_eq!(sender.join().unwrap(), 16);
            shortage::of(0);
        });
    }
}
