//! The publishing side: appends to the ring, and serves subscribers.

use crate::attributes::Encoded;
use crate::biased::{Biased, BiasedGuard};
use crate::changes::{Changes, Ended};
use crate::claim::{Claim, Horizon, Policy, horizon, retention_limit};
use crate::doorstep::{ACCEPTED_AT_ONCE, Doorstep};
use crate::error::{Error, Result};
use crate::handshake::{self, Hello, NotUnderstood, ToSubscriber, Welcome};
use crate::lease::{CLOSED, COUNTS, LEASE_LEN, Lease};
use crate::loan::Loan;
use crate::pool::{Chunk, NoChunk, Pool};
use crate::rendezvous::{self, Directory};
use crate::ring::{Descriptor, INLINE_LIMIT, NEVER, PREPARED_AHEAD, Place, Ring};
use crate::service::{self, Event, Handle, Next, Service, Token};
use crate::sync::{Pairing, heavy_fence};
use crate::sys::clock::Clock;
use crate::sys::epoll::{Door, Interest, Woken};
use crate::sys::fork::ForkId;
use crate::sys::memory::{Mapping, OwnedSegment, PeerSegment};
use crate::sys::process::Process;
use crate::sys::socket::{self, MAX_PACKET, Received};
use crate::sys::{cgroup, membarrier};
use crate::topic;
use crate::wait::Wait;
use crate::wake::Sleeper;
use parking_lot::Mutex;
use rustix::fd::OwnedFd;
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Records in a ring, unless the history needs more.
const DEFAULT_CAPACITY: u64 = 1 << 14;
/// The most records in a ring: 1 GiB.
const MAX_CAPACITY: u64 = 1 << 22;
/// A connection that says nothing for so long is closed.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// How long a publisher without room looks again and again before it sleeps, and how often.
const SPINS: u32 = 50;
/// Chunks that leases hold are looked at again after so many bytes of new payload,
const COLLECT_EVERY: u64 = 256 << 10;
/// so many at a time.
const RECHECKS: usize = 64;
/// What a full socket did not take is tried again after this time.
const LATER: Duration = Duration::from_millis(10);
/// Memory is taken from the system in steps of this size, between which signals are noticed.
const POPULATE_STEP: u64 = 64 << 20;
/// A waiting publisher that nobody rings looks again after this time: a system without memory may have swallowed the ring.
const LOST_RING: Duration = Duration::from_millis(100);
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

    /// How many records the ring holds at least (default: 16384).
    pub fn capacity(mut self, records: u64) -> Self {
        self.capacity = records;
        self
    }

    /// A name for people, shown to subscribers and in error texts.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
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
    /// Bytes of the attributes, which lie behind the payload.
    pub attributes_len: usize,
}

/// What a publisher and its loans share.
pub(crate) struct Shared {
    topic: String,
    id: u128,
    name: Option<String>,
    max_memory: u64,
    history: u64,
    made_in: ForkId,
    open: Biased<Option<Open>>,
    /// What the counters said at `close`.
    final_stats: Mutex<PublisherStats>,
    /// Subscribers came or went.
    changed: Changes,
    /// Held by the one thread that sleeps for a subscriber's ring; others look again now and then.
    sleeping: Mutex<()>,
}

/// Everything that closing gives back.
struct Open {
    ring: OwnedSegment,
    capacity: u64,
    clock: Clock,
    tail: u64,
    /// Positions below may be appended without a look at the cursors.
    limit: u64,
    reclaim: u64,
    peers: Vec<Peer>,
    last_peer: u64,
    pairing: Pairing,
    pool: Pool,
    /// Published chunks whose positions are not yet reclaimed, oldest first.
    pending: VecDeque<(u64, u32)>,
    /// Chunks below the mark that somebody holds.
    held: VecDeque<u32>,
    /// Payload bytes since the last collection.
    uncollected: u64,
    generation: u64,
    /// Messages; so the number of the next one.
    sent: u64,
    sent_bytes: u64,
    copied_bytes: u64,
    waits: u64,
    /// A task of the service thread sends what full sockets did not take.
    flushing: bool,
    shared: Weak<Shared>,
    door: Arc<Door>,
    directory: Arc<Directory>,
    service: Arc<Handle>,
    socket: Arc<OwnedFd>,
    socket_name: String,
    listener: Token,
}

/// A connected subscriber.
struct Peer {
    id: u64,
    pid: i32,
    name: Option<String>,
    socket: Arc<OwnedFd>,
    lease: Mapping,
    policy: Policy,
    depth: u64,
    start: u64,
    sleeper: Sleeper,
    membarrier: bool,
    /// Its process lives. Otherwise a forked child keeps the socket: its holds count, its cursor does not.
    alive: bool,
    /// Descriptors that its full socket did not take yet.
    outbox: VecDeque<(ToSubscriber, Option<Arc<OwnedSegment>>)>,
    tasks: Vec<Token>,
}

impl Peer {
    #[inline]
    fn lease(&self) -> Lease<'_> {
        Lease::new(self.lease.words(), self.lease.counts(COUNTS))
    }

    fn is_connected(&self) -> bool {
        self.alive && self.lease().cursor() != CLOSED
    }

    /// The first position it has not taken, whatever it claims.
    fn cursor(&self, tail: u64) -> u64 {
        self.lease().cursor().clamp(self.start, tail)
    }

    fn claim(&self, tail: u64) -> Option<Claim> {
        self.is_connected().then(|| Claim { cursor: self.cursor(tail), policy: self.policy, depth: self.depth })
    }

    /// Wakes it from a sleep for which it was not woken yet; `false`: later, from the outbox.
    #[cold]
    fn wake(&mut self) -> bool {
        let woken = socket::wake(&self.socket, handshake::WAKE);
        if !woken && !matches!(self.outbox.back(), Some((ToSubscriber::Wake, _))) {
            self.outbox.push_back((ToSubscriber::Wake, None));
        }
        woken
    }

    /// Sends what waits; `false` while some of it does not fit.
    fn flush_outbox(&mut self) -> bool {
        while let Some((packet, segment)) = self.outbox.front() {
            let fd = segment.as_ref().map(|segment| segment.shared());
            match socket::send(&self.socket, &handshake::encode(packet), fd) {
                Ok(true) => self.outbox.pop_front(),
                Ok(false) => return false,
                Err(_) => return true, // It hung up; the service thread will notice.
            };
        }
        true
    }

    fn who(&self) -> String {
        match &self.name {
            Some(name) => format!("process {} ('{name}')", self.pid),
            None => format!("process {}", self.pid),
        }
    }
}

/// A subscriber as its publisher sees it.
#[derive(Clone, Debug)]
pub struct SubscriberInfo {
    /// Its process (0 when it is out of sight).
    pub pid: i32,
    /// Its name, where it gave one.
    pub name: Option<String>,
    /// What it wants done when it falls behind.
    pub policy: Policy,
    /// Messages that it has not taken yet, as far as they are still in the ring. A block counts until all of it is taken.
    pub lag: u64,
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
        PublisherBuilder { topic: topic.into(), max_memory: None, history: 0, capacity: DEFAULT_CAPACITY, name: None }
    }

    fn new(options: PublisherBuilder, max_memory: u64, capacity: u64) -> Result<Self> {
        let topic = options.topic;
        let (directory, service) = service::connect(&topic)?;
        let ring_len = Ring::words_needed(capacity) * 8;
        let ring = OwnedSegment::new("byref-ring", ring_len)
            .and_then(|ring| ring.populate(0..ring_len).map(|()| ring))
            .map_err(Error::system(&topic, "cannot make the ring"))?;
        Ring::new(ring.map().words(), capacity).set_wake_at(NEVER);
        let door = Arc::new(Door::new().map_err(Error::system(&topic, "cannot make an epoll descriptor"))?);
        let id = rendezvous::new_id();
        let (socket, socket_name) = directory
            .listen(&topic, id)
            .map_err(|error| Error::directory(directory.path(), format!("cannot make a socket in it: {error}")))?;
        let socket = Arc::new(socket);
        let shared = Arc::new(Shared {
            topic,
            id,
            name: options.name,
            max_memory,
            history: options.history,
            made_in: ForkId::current(),
            open: Biased::new(None),
            final_stats: Mutex::default(),
            changed: Changes::default(),
            sleeping: Mutex::new(()),
        });
        let mut open = shared.open.lock();
        let listener = {
            let (topic, shared, socket) = (shared.topic.clone(), Arc::downgrade(&shared), Arc::clone(&socket));
            let (listening, doorstep) = (Arc::clone(&socket), Arc::new(Doorstep::new(topic)));
            service
                .watch(socket, Interest::IN, None, move |service, _, _| accept(service, &listening, &shared, &doorstep))
        };
        let listener = listener.map_err(|error| {
            directory.remove(&socket_name);
            Error::system(&shared.topic, "cannot listen for subscribers")(error)
        })?;
        *open = Some(Open {
            ring,
            capacity,
            clock: Clock::realtime(),
            tail: 0,
            limit: 0,
            reclaim: 0,
            peers: Vec::new(),
            last_peer: 0,
            pairing: Pairing::with(true),
            pool: Pool::new(max_memory),
            pending: VecDeque::new(),
            held: VecDeque::new(),
            uncollected: 0,
            generation: 0,
            sent: 0,
            sent_bytes: 0,
            copied_bytes: 0,
            waits: 0,
            flushing: false,
            shared: Arc::downgrade(&shared),
            door,
            directory,
            service,
            socket,
            socket_name,
            listener,
        });
        drop(open);
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
        if fits_inline(payload.len(), attributes.len()) {
            return self.shared.append_inline(payload, attributes, timestamp_ns, wait);
        }
        let mut loan = self.loan_with(payload.len(), attributes.len(), wait)?;
        loan.copy_from_slice(payload);
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
        loan.copy_from_slice(rows);
        let first = loan.send_rows(count, attributes, timestamp_ns, rows.len(), wait)?;
        Ok(first..first + count as u64)
    }

    /// Lends `len` bytes of the pool, to be filled in place and sent without a copy. The content is arbitrary at first.
    pub fn loan(&self, len: usize) -> Result<Loan> {
        self.loan_with(len, 0, &mut Wait::up_to(None))
    }

    /// [`loan`](Self::loan) with room for `attributes_len` bytes of encoded attributes beside the payload.
    pub fn loan_with(&self, len: usize, attributes_len: usize, wait: &mut Wait<'_>) -> Result<Loan> {
        let padded = (len as u64).checked_next_multiple_of(8).unwrap_or(u64::MAX);
        let chunk = self.shared.allocate(padded.saturating_add(attributes_len as u64), len as u64, wait)?;
        Ok(Loan::new(Arc::clone(&self.shared), chunk, len))
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
            Ended::TimedOut => Err(shared.timed_out(wait, "waiting for subscribers")),
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
            let target = *target.get_or_insert(open.tail);
            let done = open.peers.iter().all(|peer| !peer.is_connected() || peer.cursor(open.tail) >= target);
            if done { Attempt::Done(()) } else { Attempt::Wait { at: target, poll: None } }
        })
    }

    /// The connected subscribers.
    pub fn subscribers(&self) -> Result<Vec<SubscriberInfo>> {
        let mut open = self.shared.lock()?;
        let open = self.shared.opened(&mut open)?;
        let connected = open.peers.iter().filter(|peer| peer.is_connected());
        Ok(connected
            .map(|peer| SubscriberInfo {
                pid: peer.pid,
                name: peer.name.clone(),
                policy: peer.policy,
                lag: open.lag(peer),
            })
            .collect())
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
fn fits_inline(payload: usize, attributes: usize) -> bool {
    payload <= INLINE_LIMIT && payload.next_multiple_of(8) + attributes.next_multiple_of(8) <= INLINE_LIMIT
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
        let &Filled { chunk, count, len, attributes_len, copied } = filled;
        let at = Descriptor {
            segment: chunk.segment,
            slot: chunk.slot,
            offset: chunk.offset,
            len: len as u64,
            attributes_len: attributes_len as u32,
        };
        self.until(wait, "send", |shared, open| {
            if let Some((at, poll)) = open.must_wait(shared.history) {
                return Attempt::Wait { at, poll };
            }
            if !open.announced_to_lossless() {
                return Attempt::Wait { at: NEVER, poll: Some(LEASE_POLL) };
            }
            open.pending.push_back((open.tail, at.slot));
            open.copied_bytes += copied as u64;
            let append = |ring: Ring<'_>, place| ring.append_pooled(place, at, count);
            Attempt::Done(open.append(timestamp_ns, at.len as usize, count, append))
        })
    }

    /// Sends `payload` inside the record instead of the chunk it lies in.
    pub fn commit_inline(
        &self,
        payload: &[u8],
        attributes: &[u8],
        timestamp_ns: Option<u64>,
        wait: &mut Wait<'_>,
    ) -> Option<Result<u64>> {
        fits_inline(payload.len(), attributes.len())
            .then(|| self.append_inline(payload, attributes, timestamp_ns, wait))
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
        let chunk = self.until(wait, "send", |shared, open| match open.allocate(bytes, shared.history) {
            Ok(chunk) => Attempt::Done(chunk),
            Err(NoChunk::System(error)) => {
                Attempt::Fail(Error::system(&shared.topic, "cannot take more payload memory")(error))
            }
            Err(NoChunk::Full) if open.waiting_may_help(bytes, shared.max_memory) => {
                Attempt::Wait { at: open.next_progress(), poll: Some(LEASE_POLL) }
            }
            Err(NoChunk::Full) => {
                let holders = open.describe_holders();
                Attempt::Fail(exhausted(format!(
                    "it is taken by{holders}; release messages (or discard loans), or raise max_memory"
                )))
            }
        })?;
        self.populate(chunk, wait)
    }

    /// Gives a new chunk's pages memory, in steps, without the lock.
    fn populate(&self, chunk: Chunk, wait: &mut Wait<'_>) -> Result<Chunk> {
        let mut from = chunk.unpopulated.start;
        while from < chunk.unpopulated.end {
            let to = chunk.unpopulated.end.min(from + POPULATE_STEP);
            let populated = chunk.pin.segment().populate(from..to);
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
            Attempt::Wait { .. } => {
                drop(guard);
                self.until_slowly(wait, what, &mut attempt)
            }
        }
    }

    #[cold]
    fn until_slowly<T>(
        &self,
        wait: &mut Wait<'_>,
        what: &'static str,
        attempt: &mut dyn FnMut(&Self, &mut Open) -> Attempt<T>,
    ) -> Result<T> {
        if !wait.is_allowed() {
            return Err(Error::WouldBlock { topic: self.topic.clone() });
        }
        let door = {
            let mut guard = self.lock()?;
            let open = self.opened(&mut guard)?;
            open.waits += 1;
            Arc::clone(&open.door)
        };
        for _ in 0..SPINS {
            for _ in 0..32 {
                std::hint::spin_loop();
            }
            match attempt(self, self.opened(&mut self.lock()?)?) {
                Attempt::Done(value) => return Ok(value),
                Attempt::Fail(error) => return Err(error),
                Attempt::Wait { .. } => {}
            }
        }
        let mut leader = None;
        let mut armed = NEVER;
        let mut hurry = false;
        let outcome = loop {
            let Some(left) = wait.remaining() else { break Err(self.timed_out(wait, what)) };
            if wait.is_interrupted() {
                break Err(Error::Interrupted { topic: self.topic.clone() });
            }
            let left = wait.slice(left);
            leader = leader
                .or_else(|| self.sleeping.try_lock_for(Duration::from_millis(5).min(left.unwrap_or(Duration::MAX))));
            let mut guard = self.lock()?;
            let Some(open) = guard.as_mut() else { break Err(self.closed()) };
            let (at, poll) = match attempt(self, open) {
                Attempt::Done(value) => break Ok(value),
                Attempt::Fail(error) => break Err(error),
                Attempt::Wait { at, poll } => (at, poll),
            };
            if leader.is_none() {
                continue;
            }
            // Wait for a quarter of the queue to drain, but not for long: the reader may be waiting for this very message.
            let (at, poll) = if hurry || at == NEVER { (at, poll) } else { open.batched(at) };
            if at != armed {
                armed = at;
                open.ring().set_wake_at(at);
                drop(guard);
                heavy_fence(); // Pairs with the light fence after each cursor store.
                continue;
            }
            drop(guard);
            let timeout = poll.unwrap_or(LOST_RING).min(left.unwrap_or(Duration::MAX));
            let mut ready = Vec::new();
            match door.epoll.wait(Some(timeout), &mut ready) {
                Ok(Woken::Ready | Woken::Interrupted) => {}
                Ok(Woken::TimedOut) => hurry = true,
                Err(error) => break Err(Error::system(&self.topic, "cannot wait for subscribers")(error)),
            }
            for peer in ready {
                if peer == Door::BELL { door.bell.silence() } else { self.answer(peer) }
            }
        };
        if leader.is_some()
            && let Ok(mut guard) = self.lock()
            && let Some(open) = guard.as_mut()
        {
            open.ring().set_wake_at(NEVER);
        }
        outcome
    }

    fn timed_out(&self, wait: &Wait<'_>, what: &'static str) -> Error {
        let hint = self.lock().ok().and_then(|guard| guard.as_ref().map(Open::describe_holders)).unwrap_or_default();
        let hint = if hint.is_empty() { hint } else { format!(";{hint}") };
        Error::Timeout { what, topic: self.topic.clone(), waited: wait.given(), hint }
    }

    /// Reads what a subscriber sent: rings, or the end.
    pub(crate) fn answer(&self, peer: u64) {
        let socket = {
            let guard = self.open.lock();
            let Some(open) = guard.as_ref() else { return };
            let Some(found) = open.peers.iter().find(|found| found.id == peer) else { return };
            Arc::clone(&found.socket)
        };
        let mut packet = [0u8; MAX_PACKET];
        // As many as a subscriber can have sent in good faith; a flood is looked at again later.
        for _ in 0..16 {
            match socket::receive(&socket, &mut packet) {
                Ok(Received::Packet(..)) => {}
                Ok(Received::Empty | Received::OutOfDescriptors) => return,
                Ok(Received::HungUp) | Err(_) => return self.lose(peer, true),
            }
        }
    }

    /// A subscriber's process died, or (`hung_up`) nobody is left who could look at what it holds.
    pub(crate) fn lose(&self, peer: u64, hung_up: bool) {
        let mut guard = self.open.lock();
        let Some(open) = guard.as_mut() else { return };
        let Some(index) = open.peers.iter().position(|found| found.id == peer) else { return };
        open.peers[index].alive = false;
        let lost = hung_up.then(|| open.peers.remove(index));
        open.update_pairing();
        open.limit = open.tail; // Look at the cursors again.
        open.door.bell.ring();
        self.changed.notify();
        let door = Arc::clone(&open.door);
        let service = Arc::clone(&open.service);
        drop(guard);
        if let Some(lost) = lost {
            door.epoll.remove(&lost.socket);
            for task in &lost.tasks {
                service.cancel(*task);
            }
        }
    }

    /// Sends what full sockets did not take before; `true` when that is all.
    fn flush_outboxes(&self) -> bool {
        let mut guard = self.open.lock();
        let Some(open) = guard.as_mut() else { return true };
        let mut all = true;
        for peer in open.peers.iter_mut().filter(|peer| peer.is_connected()) {
            all &= peer.flush_outbox();
        }
        open.flushing = !all;
        all
    }

    /// Takes a subscriber in.
    fn attach(self: &Arc<Self>, socket: &Arc<OwnedFd>, task: Token, hello: Hello, lease: OwnedFd) -> io::Result<u64> {
        let lease = PeerSegment::new(lease, Some(LEASE_LEN)).map_err(|(error, _)| error)?.into_map();
        let pid = socket::peer_pid(socket);
        let mut guard = self.open.lock();
        let Some(open) = guard.as_mut() else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let most = if hello.policy == Policy::Block { open.capacity } else { retention_limit(open.capacity) };
        let depth = if hello.policy == Policy::Latest { 1 } else { hello.depth.unwrap_or(most).clamp(1, most) };
        let late = hello.history.min(self.history).min(if hello.policy == Policy::Block { u64::MAX } else { depth });
        // A position is at least one message, so these are enough; what is reclaimed among them is gone.
        let earliest = open.tail.saturating_sub(late).max(open.reclaim);
        let first = open.sent.saturating_sub(late);
        let start = open.ring().find(earliest, open.tail, first);
        let first = if start == open.tail { open.sent } else { first.max(open.ring().sequence(start)) };
        let welcome = Welcome {
            publisher: self.id,
            topic: self.topic.clone(),
            name: self.name.clone(),
            start,
            first,
            capacity: open.capacity,
            membarrier: membarrier::available(),
        };
        let packet = handshake::encode_first(&ToSubscriber::Welcome(welcome));
        if !socket::send(socket, &packet, Some(open.ring.shared()))? {
            return Err(io::Error::other("its socket is full"));
        }
        let announce =
            |(id, memory): (u32, &Arc<OwnedSegment>)| (ToSubscriber::Segment { id }, Some(Arc::clone(memory)));
        let outbox = open.pool.segments().map(announce).collect();
        open.last_peer += 1;
        let id = open.last_peer;
        let process = Process::find(pid);
        let alive = !matches!(process, Process::Dead);
        let mut tasks = vec![task];
        if let Process::Alive(death) = process {
            let shared = Arc::downgrade(self);
            tasks.push(open.service.watch(Arc::new(death), Interest::IN, None, move |_, _, _| {
                if let Some(shared) = shared.upgrade() {
                    shared.lose(id, false);
                }
                Next::Done
            })?);
        }
        open.door.epoll.add(socket, id, Interest::IN | Interest::RDHUP)?;
        let peer = Peer {
            id,
            pid: pid.map_or(0, |pid| pid.as_raw_nonzero().get()),
            name: hello.name,
            socket: Arc::clone(socket),
            lease,
            policy: hello.policy,
            depth,
            start,
            sleeper: Sleeper::default(),
            membarrier: hello.membarrier,
            alive,
            outbox,
            tasks,
        };
        open.peers.push(peer);
        open.send_outboxes();
        open.update_pairing();
        open.limit = open.tail;
        open.door.bell.ring();
        self.changed.notify();
        Ok(id)
    }

    fn close(&self) {
        if !self.made_in.is_current() {
            return;
        }
        let Some(open) = self.open.lock().take() else { return };
        *self.final_stats.lock() = open.stats();
        open.ring().set_closed();
        open.service.cancel(open.listener);
        open.directory.remove(&open.socket_name);
        socket::hang_up(&open.socket); // A forked child may have it, and would never accept.
        for peer in &open.peers {
            for task in &peer.tasks {
                open.service.cancel(*task);
            }
            // Not only closed: a forked child may have the descriptor, too.
            socket::hang_up(&peer.socket);
        }
        open.door.bell.ring();
        self.changed.notify();
    }
}

impl Open {
    #[inline]
    fn ring(&self) -> Ring<'_> {
        Ring::new(self.ring.map().words(), self.capacity)
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

    /// How many messages in the ring a subscriber has not taken.
    fn lag(&self, peer: &Peer) -> u64 {
        let position = peer.cursor(self.tail).max(self.tail.saturating_sub(self.capacity));
        if position == self.tail { 0 } else { self.sent - self.ring().sequence(position) }
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
        let (position, sequence) = (self.tail, self.sent);
        let timestamp_ns = timestamp_ns.unwrap_or_else(|| self.clock.now());
        write(self.ring(), Place { position, sequence, timestamp_ns });
        self.ring().prepare(position + PREPARED_AHEAD);
        self.tail += 1;
        self.sent += count as u64;
        self.sent_bytes += len as u64;
        self.pairing.light(); // Pairs with the heavy fence of a subscriber that goes to sleep.
        let mut woken = true;
        for peer in &mut self.peers {
            let lease = Lease::new(peer.lease.words(), peer.lease.counts(COUNTS));
            if peer.sleeper.is_due(lease) {
                woken &= peer.wake();
            }
        }
        if !woken {
            self.send_later();
        }
        sequence
    }

    /// What one more record has to wait for, if anything.
    #[inline]
    fn must_wait(&mut self, history: u64) -> Option<(u64, Option<Duration>)> {
        if self.tail < self.limit {
            return None;
        }
        let horizon = self.look_at_cursors(history);
        (self.tail >= self.limit).then_some((horizon.needed, None))
    }

    fn horizon(&self, history: u64, keep_lossy: bool) -> Horizon {
        let claims = self.peers.iter().filter_map(|peer| peer.claim(self.tail));
        horizon(self.tail, self.capacity, history, keep_lossy, claims)
    }

    /// Brings `limit` and the reclaim mark up to date.
    fn look_at_cursors(&mut self, history: u64) -> Horizon {
        let horizon = self.horizon(history, true);
        self.move_mark(horizon.reclaim);
        self.limit = horizon.limit.min(self.reclaim + self.capacity);
        horizon
    }

    fn move_mark(&mut self, mark: u64) {
        if mark > self.reclaim {
            self.reclaim = mark;
            self.ring().set_reclaim(mark);
        }
    }

    /// From where on to wake a publisher that waits for the cursor `needed`, and when to look without being woken.
    fn batched(&self, needed: u64) -> (u64, Option<Duration>) {
        let lag = self.tail.saturating_sub(needed);
        (needed + lag / 4, Some(Duration::from_millis(1)))
    }

    /// Whether every lossless subscriber has been sent all descriptors.
    fn announced_to_lossless(&mut self) -> bool {
        let mut all = true;
        for peer in &mut self.peers {
            if !peer.outbox.is_empty() {
                all &= peer.flush_outbox() || peer.policy != Policy::Block || !peer.alive;
            }
        }
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
        let mut all = true;
        for peer in self.peers.iter_mut().filter(|peer| peer.is_connected()) {
            all &= peer.flush_outbox();
        }
        if !all {
            self.send_later();
        }
    }

    /// Has the service thread send what is in the outboxes.
    #[cold]
    fn send_later(&mut self) {
        if !std::mem::replace(&mut self.flushing, true) {
            let shared = self.shared.clone();
            self.service.after(LATER, move |_, _, _| match shared.upgrade() {
                Some(shared) if !shared.flush_outboxes() => Next::After(LATER),
                _ => Next::Done,
            });
        }
    }

    /// Takes a chunk; when there is none, the cheaper remedies come first.
    fn allocate(&mut self, bytes: u64, history: u64) -> Result<Chunk, NoChunk> {
        self.uncollected += bytes;
        if self.uncollected >= COLLECT_EVERY {
            self.uncollected = 0;
            self.collect(history, RECHECKS);
        }
        if let Some(chunk) = self.try_allocate(bytes)? {
            return Ok(chunk);
        }
        self.collect(history, usize::MAX);
        if let Some(chunk) = self.try_allocate(bytes)? {
            return Ok(chunk);
        }
        // What only lossy subscribers and late joiners could still want is given up, the oldest first, and no more of it
        // than the chunk needs.
        let lossless = self.horizon(history, false).reclaim;
        while let Some(&(position, _)) = self.pending.front()
            && position < lossless
        {
            self.move_mark(position + 1);
            self.free_reclaimed();
            if let Some(chunk) = self.try_allocate(bytes)? {
                return Ok(chunk);
            }
        }
        // Empty segments may have the wrong size.
        self.retire_empty();
        self.try_allocate(bytes)?.ok_or(NoChunk::Full)
    }

    fn try_allocate(&mut self, bytes: u64) -> Result<Option<Chunk>, NoChunk> {
        match self.pool.allocate(bytes) {
            Ok((chunk, added)) => {
                if added {
                    self.announce(chunk.segment, chunk.pin.segment());
                }
                Ok(Some(chunk))
            }
            Err(NoChunk::Full) => Ok(None),
            Err(error) => Err(error),
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
        self.forget_unmapped();
    }

    /// Stops counting retired memory that no lossy subscriber has mapped any more. A lossless one is not waited for: a
    /// segment is retired when it has taken and released all of it, so it can be one generation behind, no more; a lossy
    /// one that pauses would keep any number.
    fn forget_unmapped(&mut self) {
        if self.pool.awaits_unmapping() {
            let lossy = self.peers.iter().filter(|peer| peer.policy != Policy::Block && peer.is_connected());
            let unmapped = lossy.map(|peer| peer.lease().generation()).min();
            self.pool.forget_retired(unmapped.unwrap_or(u64::MAX));
        }
    }

    fn free_reclaimed(&mut self) {
        while let Some(&(position, slot)) = self.pending.front()
            && position < self.reclaim
        {
            self.pending.pop_front();
            self.free_unless_held(slot);
        }
    }

    /// Frees a chunk, or queues it among those that a lease, or an array made from its loan, still holds.
    fn free_unless_held(&mut self, slot: u32) {
        if self.pool.is_pinned(slot) || self.peers.iter().any(|peer| peer.lease().is_held(slot)) {
            self.held.push_back(slot);
        } else {
            self.pool.free(slot);
        }
    }

    fn retire_empty(&mut self) {
        let generation = self.generation + 1;
        let retired = self.pool.retire_empty(generation);
        if retired.is_empty() {
            return;
        }
        for id in retired {
            let is_unsent =
                |packet: &ToSubscriber| matches!(packet, ToSubscriber::Segment { id: unsent } if *unsent == id);
            for peer in &mut self.peers {
                let waiting = peer.outbox.len();
                peer.outbox.retain(|(packet, _)| !is_unsent(packet));
                // Who has not heard of the segment need not. So the outbox of one that never reads does not grow for ever.
                if peer.outbox.len() == waiting && peer.is_connected() {
                    peer.outbox.push_back((ToSubscriber::Retire { id }, None));
                }
            }
        }
        self.send_outboxes();
        // Subscribers read their sockets when this changes, also those that never sleep.
        self.generation = generation;
        self.ring().set_generation(generation);
        self.forget_unmapped();
    }

    /// Whether waiting can make room: what lossless subscribers have yet to take or to release is enough.
    fn waiting_may_help(&self, bytes: u64, max_memory: u64) -> bool {
        let lossless = self.peers.iter().filter(|peer| peer.policy == Policy::Block && peer.is_connected());
        let Some(oldest) = lossless.clone().map(|peer| peer.cursor(self.tail)).min() else { return false };
        let unread = self.pending.iter().rev().take_while(|(position, _)| *position >= oldest).map(|(_, slot)| *slot);
        let held = self.held.iter().copied().filter(|slot| lossless.clone().any(|peer| peer.lease().is_held(*slot)));
        let theirs: u64 = unread.chain(held).map(|slot| self.pool.bytes(slot)).sum();
        theirs > 0 && self.pool.used() - theirs + bytes <= max_memory
    }

    /// The next position at which some lossless subscriber makes progress.
    fn next_progress(&self) -> u64 {
        let lossless = self.peers.iter().filter(|peer| peer.policy == Policy::Block && peer.is_connected());
        lossless
            .map(|peer| peer.cursor(self.tail))
            .filter(|cursor| *cursor < self.tail)
            .min()
            .map_or(NEVER, |at| at + 1)
    }

    fn update_pairing(&mut self) {
        self.pairing = Pairing::with(self.peers.iter().all(|peer| peer.membarrier));
    }

    /// Who keeps how much, for error texts.
    fn describe_holders(&self) -> String {
        let mut text = String::new();
        for peer in &self.peers {
            let held: Vec<u32> = self.held.iter().copied().filter(|slot| peer.lease().is_held(*slot)).collect();
            let bytes: u64 = held.iter().map(|slot| self.pool.bytes(*slot)).sum();
            let unread = if peer.is_connected() { self.lag(peer) } else { 0 };
            if unread > 0 || !held.is_empty() {
                let who = peer.who();
                text += &format!(
                    " {who} has {unread} messages unread and holds {} older ones ({bytes} bytes);",
                    held.len()
                );
            }
        }
        if text.is_empty() && self.pool.used() > 0 {
            text = format!(" {} bytes that this process lent or keeps;", self.pool.used());
        }
        text.pop();
        text
    }
}

/// Accepts who waits, so many at a time, and listens to each.
fn accept(service: &Arc<Service>, listener: &OwnedFd, shared: &Weak<Shared>, doorstep: &Arc<Doorstep>) -> Next {
    for _ in 0..ACCEPTED_AT_ONCE {
        let socket = match socket::accept(listener) {
            Ok(Some(socket)) => Arc::new(socket),
            Ok(None) => return Next::Keep,
            Err(error) => {
                // Most likely out of descriptors. The connection stays in the backlog; do not spin on it.
                log::warn!("byref: cannot accept a subscriber: {error}");
                std::thread::sleep(Duration::from_millis(10));
                return Next::Keep;
            }
        };
        let (shared, theirs, step) = (shared.clone(), Arc::clone(&socket), Arc::clone(doorstep));
        let mut peer_id = None;
        let outcome = service.watch(socket, Interest::IN, Some(HANDSHAKE_TIME), move |_, task, event| {
            let Some(shared) = shared.upgrade() else { return Next::Done };
            if let Some(peer) = peer_id {
                shared.lose(peer, true);
                return Next::Done;
            }
            let greeting = greet(&shared, &theirs, task);
            if event == Event::Late || !matches!(greeting, Ok(Greeting::NotYet)) {
                step.leave(task);
            }
            match greeting {
                Ok(Greeting::Taken(peer)) => {
                    peer_id = Some(peer);
                    Next::Watch(Interest::RDHUP)
                }
                Ok(Greeting::NotYet) if event == Event::Late => {
                    log::debug!("byref: a connection on topic '{}' said nothing and was closed", shared.topic);
                    Next::Done
                }
                Ok(Greeting::NotYet) => Next::Keep,
                Ok(Greeting::Over) => Next::Done,
                // It went away in the middle of it.
                Err(why) if matches!(why.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                    Next::Done
                }
                Err(why) => {
                    log::warn!("byref: topic '{}': refused a subscriber: {why}", shared.topic);
                    Next::Done
                }
            }
        });
        match outcome {
            Ok(task) => {
                if let Some(oldest) = doorstep.enter(task) {
                    service.cancel(oldest);
                }
            }
            Err(error) => log::warn!("byref: cannot watch a subscriber: {error}"),
        }
    }
    Next::Keep // Others may wait; the service's other tasks go first.
}

/// What became of a connection.
pub(crate) enum Greeting {
    /// It is subscriber number so and so.
    Taken(u64),
    NotYet,
    /// It wanted nothing, or something else.
    Over,
}

/// Reads a hello and answers it.
pub(crate) fn greet(shared: &Arc<Shared>, socket: &Arc<OwnedFd>, task: Token) -> io::Result<Greeting> {
    let mut packet = [0u8; MAX_PACKET];
    let (len, lease) = match socket::receive(socket, &mut packet)? {
        Received::Packet(len, lease) => (len, lease),
        Received::Empty => return Ok(Greeting::NotYet),
        Received::HungUp => return Ok(Greeting::Over),
        Received::OutOfDescriptors => return Err(io::Error::other("this process is out of descriptors")),
    };
    let hello: Hello = match handshake::decode_first(&packet[..len]) {
        Ok(hello) => hello,
        Err(NotUnderstood::Version(theirs)) => {
            // Our first packet tells it our version.
            socket::send(socket, &handshake::encode_for_other_version(&shared.topic), None)?;
            return Err(io::Error::other(format!("it speaks protocol version {theirs}")));
        }
        Err(NotUnderstood::Garbage) => return Err(io::Error::other("it does not speak this protocol")),
    };
    if !topic::matches(&hello.topic, &shared.topic) {
        socket::send(socket, &handshake::encode_first(&ToSubscriber::NotThisTopic), None)?;
        return Ok(Greeting::Over);
    }
    let lease = lease.ok_or_else(|| io::Error::other("it sent no lease"))?;
    shared.attach(socket, task, hello, lease).map(Greeting::Taken)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::Subscriber;
    use crate::sys::socket::shortage;

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

    #[test]
    fn a_subscriber_that_never_reads_costs_no_more_and_more() {
        let _meeting = crate::fuzzing::meet_in_private();
        let publisher = Publisher::builder("t").capacity(16).max_memory(1 << 20).build().unwrap();
        let (lazy, theirs) = socket::pair().unwrap();
        let topic = publisher.topic().to_owned();
        let hello = Hello { topic, policy: Policy::Latest, depth: None, history: 0, name: None, membarrier: false };
        let lease = OwnedSegment::new("test", LEASE_LEN).unwrap();
        assert!(socket::send(&lazy, &handshake::encode_first(&hello), Some(lease.shared())).unwrap());
        assert!(matches!(greet(&publisher.shared, &Arc::new(theirs), 0), Ok(Greeting::Taken(_))));
        let mut guard = publisher.shared.open.lock();
        let open = guard.as_mut().unwrap();
        for _ in 0..1000 {
            let chunk = open.try_allocate(64).unwrap().unwrap();
            open.pool.free(chunk.slot);
            open.retire_empty();
            open.pool.forget_retired(u64::MAX);
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
