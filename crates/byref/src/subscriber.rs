//! The subscribing side: one subscriber follows every publisher of its topic.

use crate::claim::{Policy, retention_limit};
use crate::connection::{Connection, Stop};
use crate::error::{Error, Result};
use crate::handshake::{self, Hello, NotUnderstood, ToSubscriber, VERSION, Welcome};
use crate::lease::LEASE_LEN;
use crate::lookout::{Listener, Lookout};
use crate::message::{Message, PublisherInfo};
use crate::rendezvous::{self, Directory};
use crate::service::{self, Handle, Next};
use crate::spin::Spin;
use crate::sync::heavy_fence;
use crate::sys::epoll::{Door, Interest, Woken};
use crate::sys::fork::ForkId;
use crate::sys::membarrier;
use crate::sys::memory::{Mapping, OwnedSegment};
use crate::sys::process::Process;
use crate::sys::socket::{self, Connect, MAX_PACKET, Received};
use crate::topic;
use crate::wait::Wait;
use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Messages taken from one publisher before the next one's turn.
const TURN: u32 = 8;
/// A busy subscriber looks for publishers that hung up once in so many messages.
const HOUSEKEEPING: u32 = 4096;
/// A publisher whose backlog is full is tried again after this time.
const RETRY: Duration = Duration::from_millis(10);
/// How long a thread that waits for its turn to sleep does so before it looks for signals.
const FOLLOWER_SLICE: Duration = Duration::from_millis(100);
/// Marks the token of a publisher's pidfd.
const DEATH: u64 = 1 << 63;

/// Settings of a [`Subscriber`]; see [`Subscriber::builder`].
#[derive(Clone, Debug)]
pub struct SubscriberBuilder {
    topic: String,
    policy: Policy,
    depth: Option<u64>,
    history: u64,
    name: Option<String>,
}

impl SubscriberBuilder {
    /// What happens when it falls behind (default: [`Policy::Block`]).
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// How many messages of each publisher may wait for it. Default and most: what the publisher's ring holds (half of it
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

    /// A name for people, shown to publishers and in error texts.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// How many messages of a publisher whose ring holds `capacity` it wants at most when it falls behind.
    #[inline]
    fn keeps(&self, capacity: u64) -> u64 {
        match self.policy {
            Policy::Block => u64::MAX,
            Policy::Latest => 1,
            Policy::DropOldest => self.depth.unwrap_or(u64::MAX).min(retention_limit(capacity)),
        }
    }

    /// Makes the subscriber and looks for publishers.
    pub fn build(self) -> Result<Subscriber> {
        topic::validate(&self.topic)?;
        if self.depth == Some(0) {
            return Err(Error::InvalidArgument("depth must be at least 1 message".into()));
        }
        if self.name.as_ref().is_some_and(|name| name.len() > topic::MAX_TOPIC) {
            return Err(Error::InvalidArgument("a name can be at most 1024 bytes long".into()));
        }
        Subscriber::new(self)
    }
}

/// Receives the messages of every publisher of one topic, present and future.
///
/// It may be shared by threads: each message goes to exactly one caller. Messages of one publisher come in order; among
/// several publishers turns are fair.
pub struct Subscriber {
    shared: Arc<Shared>,
}

/// A descriptor that becomes readable when a message comes after [`Subscriber::try_recv`] returned `None`; before that it
/// says nothing. It stays open as long as this lives, and is only to be polled.
pub struct Readiness(pub(crate) Arc<Door>);

impl AsFd for Readiness {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.epoll.as_fd()
    }
}

struct Shared {
    options: SubscriberBuilder,
    made_in: ForkId,
    open: Mutex<Option<Open>>,
    /// What the counters said at `close`.
    final_stats: Mutex<SubscriberStats>,
    /// Publishers came or went.
    changed: Condvar,
    /// Held by the one thread that sleeps for a publisher's ring; others look again now and then.
    sleeping: Mutex<()>,
}

/// Everything that closing gives back.
struct Open {
    connections: Vec<Connection>,
    /// Whose turn it is, and for how many more messages.
    turn: usize,
    turn_left: u32,
    last_id: u64,
    /// Sockets that were met already.
    known: HashSet<String>,
    /// The number of the last sleep.
    epoch: u64,
    /// Publishers were told that this subscriber sleeps.
    armed: bool,
    /// A thread sleeps, or is about to: events are its business, and so are the wake-ups.
    asleep: bool,
    /// Somebody polls the descriptor.
    polled: bool,
    since_housekeeping: u32,
    spin: Spin,
    stats: SubscriberStats,
    /// Found while connecting in the background, reported by the next receive that finds no message.
    trouble: Option<Error>,
    door: Arc<Door>,
    directory: Arc<Directory>,
    service: Arc<Handle>,
    _lookout: Arc<Lookout>,
}

/// Counters of a subscriber.
#[derive(Clone, Debug, Default)]
pub struct SubscriberStats {
    /// Messages received.
    pub received: u64,
    /// Their payload bytes.
    pub bytes: u64,
    /// Payload bytes copied on the way (small messages, out of the ring).
    pub copied_bytes: u64,
    /// Messages lost by this subscriber's policy.
    pub lost: u64,
    /// How often it went to sleep.
    pub sleeps: u64,
}

/// What waits for a subscriber.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Messages that were sent and not taken yet.
    pub messages: u64,
    /// When the oldest of them was sent: nanoseconds of `CLOCK_REALTIME`, or what its sender gave.
    pub oldest_ns: Option<u64>,
}

impl Subscriber {
    /// Settings for a subscriber to `topic`.
    pub fn builder(topic: impl Into<String>) -> SubscriberBuilder {
        SubscriberBuilder { topic: topic.into(), policy: Policy::Block, depth: None, history: 0, name: None }
    }

    fn new(options: SubscriberBuilder) -> Result<Self> {
        let topic = options.topic.clone();
        let (directory, service) = service::connect(&topic)?;
        let door = Arc::new(Door::new().map_err(Error::system(&topic, "cannot make an epoll descriptor"))?);
        let lookout = Lookout::over(&directory, &service);
        let lookout =
            lookout.map_err(|error| Error::directory(directory.path(), format!("cannot watch it: {error}")))?;
        let open = Open {
            connections: Vec::new(),
            turn: 0,
            turn_left: TURN,
            last_id: 0,
            known: HashSet::new(),
            epoch: 0,
            armed: false,
            asleep: false,
            polled: false,
            since_housekeeping: 0,
            spin: Spin::default(),
            stats: SubscriberStats::default(),
            trouble: None,
            door,
            directory: Arc::clone(&directory),
            service,
            _lookout: Arc::clone(&lookout),
        };
        let shared = Arc::new(Shared {
            options,
            made_in: ForkId::current(),
            open: Mutex::new(Some(open)),
            final_stats: Mutex::default(),
            changed: Condvar::new(),
            sleeping: Mutex::new(()),
        });
        let registered = lookout.register(&shared);
        registered.map_err(|error| Error::directory(directory.path(), format!("cannot list it: {error}")))?;
        Ok(Subscriber { shared })
    }

    /// The next message; waits without limit.
    pub fn recv(&self) -> Result<Message> {
        self.recv_with(&mut Wait::up_to(None))
    }

    /// The next message; waits up to `timeout`.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Message> {
        self.recv_with(&mut Wait::up_to(Some(timeout)))
    }

    /// The next message; `None` when none is there. After `None`, [`readiness`](Self::readiness) becomes readable when one comes.
    #[inline]
    pub fn try_recv(&self) -> Result<Option<Message>> {
        let mut guard = self.shared.lock()?;
        let open = self.shared.opened(&mut guard)?;
        match open.take(&self.shared.options) {
            Ok(None) => open.found_nothing(&self.shared),
            result => result,
        }
    }

    /// The next message, with an interruptible wait.
    pub fn recv_with(&self, wait: &mut Wait<'_>) -> Result<Message> {
        let taken = {
            let mut guard = self.shared.lock()?;
            self.shared.opened(&mut guard)?.take(&self.shared.options)?
        };
        match taken {
            Some(message) => Ok(message),
            None if !wait.is_allowed() => Err(Error::WouldBlock { topic: self.shared.options.topic.clone() }),
            None => self.shared.recv_slowly(wait),
        }
    }

    /// Waits until at least `n` publishers are connected.
    pub fn wait_for_publishers(&self, n: usize, timeout: Option<Duration>) -> Result<()> {
        self.wait_for_publishers_with(n, &mut Wait::up_to(timeout))
    }

    /// [`wait_for_publishers`](Self::wait_for_publishers) with an interruptible wait.
    pub fn wait_for_publishers_with(&self, n: usize, wait: &mut Wait<'_>) -> Result<()> {
        loop {
            let mut guard = self.shared.lock()?;
            let open = self.shared.opened(&mut guard)?;
            open.handle_events(&self.shared.options)?;
            if open.connections.iter().filter(|connection| connection.is_live()).count() >= n {
                return Ok(());
            }
            if let Some(trouble) = open.trouble.take() {
                return Err(trouble);
            }
            let Some(left) = wait.remaining() else {
                drop(guard);
                return Err(self.shared.timed_out(wait, "waiting for publishers"));
            };
            // In slices, so that a signal is noticed.
            let slice = left.unwrap_or(Duration::MAX).min(Duration::from_millis(20));
            self.shared.changed.wait_for(&mut guard, slice);
            drop(guard);
            if wait.is_interrupted() {
                return Err(Error::Interrupted { topic: self.shared.options.topic.clone() });
            }
        }
    }

    /// The publishers that are connected and alive.
    pub fn publishers(&self) -> Result<Vec<Arc<PublisherInfo>>> {
        let mut guard = self.shared.lock()?;
        let open = self.shared.opened(&mut guard)?;
        open.handle_events(&self.shared.options)?;
        let live = open.connections.iter().filter(|connection| connection.is_live());
        Ok(live.map(|connection| Arc::clone(&connection.link.info)).collect())
    }

    /// A descriptor to poll for messages.
    pub fn readiness(&self) -> Result<Readiness> {
        let mut guard = self.shared.lock()?;
        let open = self.shared.opened(&mut guard)?;
        open.polled = true;
        Ok(Readiness(Arc::clone(&open.door)))
    }

    /// What waits to be received: messages that were sent and not taken yet. Nothing after `close`.
    pub fn backlog(&self) -> Result<Backlog> {
        let guard = self.shared.lock()?;
        let mut backlog = Backlog::default();
        for connection in guard.iter().flat_map(|open| &open.connections) {
            let (messages, oldest) = connection.backlog(self.shared.options.keeps(connection.capacity()));
            backlog.messages += messages;
            backlog.oldest_ns = backlog.oldest_ns.into_iter().chain(oldest).min();
        }
        Ok(backlog)
    }

    /// Counters; after `close`, the last ones.
    pub fn stats(&self) -> Result<SubscriberStats> {
        let guard = self.shared.lock()?;
        Ok(guard.as_ref().map_or_else(|| self.shared.final_stats.lock().clone(), |open| open.stats.clone()))
    }

    /// The topic.
    pub fn topic(&self) -> &str {
        &self.shared.options.topic
    }

    /// Closes the subscriber. Calls that wait in other threads end with [`Error::Closed`]; messages stay valid. Closing
    /// twice is fine.
    pub fn close(&self) {
        self.shared.close();
    }
}

/// For a [`Selector`](crate::Selector), which sleeps for many subscribers at once and is the only one to receive from them.
impl Subscriber {
    /// The next message; `None` when none is there. Events are left alone.
    #[inline]
    pub(crate) fn poll(&self) -> Result<Option<Message>> {
        let mut guard = self.shared.lock()?;
        let open = self.shared.opened(&mut guard)?;
        match open.take(&self.shared.options) {
            Ok(None) => open.trouble.take().map_or(Ok(None), Err),
            result => result,
        }
    }

    /// Tells every publisher that this subscriber goes to sleep. A heavy fence has to follow, and another look.
    pub(crate) fn announce_sleep(&self) -> Result<()> {
        self.shared.opened(&mut self.shared.lock()?)?.announce();
        Ok(())
    }

    /// Handles what made the descriptor readable.
    pub(crate) fn handle_events(&self) -> Result<()> {
        let mut guard = self.shared.lock()?;
        self.shared.opened(&mut guard)?.handle_events(&self.shared.options).map(drop)
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Listener for Shared {
    fn appeared(self: Arc<Self>, name: &str) {
        if !name.starts_with(&rendezvous::prefix(&self.options.topic)) {
            return;
        }
        {
            let mut guard = self.open.lock();
            let Some(open) = guard.as_mut() else { return };
            if !open.known.insert(name.to_owned()) {
                return;
            }
        }
        if let Some(again) = self.try_connect(name) {
            self.retry(name.to_owned(), again);
        }
    }
}

impl Shared {
    /// The lock, unless a forked child asks: there it may be taken for ever.
    #[inline]
    fn lock(&self) -> Result<MutexGuard<'_, Option<Open>>> {
        if self.made_in.is_current() {
            Ok(self.open.lock())
        } else {
            Err(Error::Forked { what: "subscriber", topic: self.options.topic.clone() })
        }
    }

    #[inline]
    fn opened<'a>(&self, guard: &'a mut MutexGuard<'_, Option<Open>>) -> Result<&'a mut Open> {
        guard.as_mut().ok_or_else(|| Error::Closed { what: "subscriber", topic: self.options.topic.clone() })
    }

    fn timed_out(&self, wait: &Wait<'_>, what: &'static str) -> Error {
        let connected = self.open.lock().as_ref().map_or(0, |open| open.connections.len());
        let hint = if connected == 0 { "; no publisher is connected".to_owned() } else { String::new() };
        Error::Timeout { what, topic: self.options.topic.clone(), waited: wait.given(), hint }
    }

    #[cold]
    fn recv_slowly(self: &Arc<Self>, wait: &mut Wait<'_>) -> Result<Message> {
        let (door, spin) = {
            let mut guard = self.lock()?;
            let open = self.opened(&mut guard)?;
            (Arc::clone(&open.door), open.spin)
        };
        let limit = wait.remaining().ok_or_else(|| self.timed_out(wait, "recv"))?;
        let found = spin.look(limit, || {
            let mut guard = self.lock()?;
            let open = self.opened(&mut guard)?;
            let taken = open.take(&self.options)?;
            if taken.is_some() {
                open.spin.paid();
            }
            Ok(taken)
        })?;
        if let Some(message) = found {
            return Ok(message);
        }
        let mut leader = None;
        let mut look_for_signals = true;
        let mut still_armed = false;
        loop {
            let Some(left) = wait.remaining() else { return Err(self.timed_out(wait, "recv")) };
            if look_for_signals && wait.is_interrupted() {
                return Err(Error::Interrupted { topic: self.options.topic.clone() });
            }
            let slice = wait.slice(left);
            if leader.is_none() {
                // Whoever sleeps takes one message and lets the next one sleep.
                let most = slice.unwrap_or(FOLLOWER_SLICE).min(FOLLOWER_SLICE);
                leader = self.sleeping.try_lock_for(most);
                look_for_signals = leader.is_none();
                if leader.is_none() {
                    continue;
                }
            }
            {
                let mut guard = self.lock()?;
                let open = self.opened(&mut guard)?;
                if let Some(message) = open.take(&self.options)? {
                    return Ok(message);
                }
                if !(still_armed && open.armed) {
                    open.arm();
                    if let Some(message) = open.take(&self.options)? {
                        return Ok(message);
                    }
                }
                if let Some(trouble) = open.trouble.take() {
                    return Err(trouble);
                }
                open.asleep = true;
                open.stats.sleeps += 1;
            }
            let slept = Instant::now();
            let mut ready = Vec::new();
            let woken = door.epoll.wait(slice, &mut ready);
            let mut guard = self.lock()?;
            let open = self.opened(&mut guard)?;
            open.asleep = false;
            open.spin.slept(slept.elapsed());
            let woken = woken.map_err(Error::system(&self.options.topic, "cannot wait for messages"))?;
            look_for_signals = woken != Woken::Ready;
            still_armed = ready.is_empty();
            open.handle(&ready);
        }
    }

    /// Tries to reach a publisher; `Some`: to be tried again after that time.
    fn try_connect(self: &Arc<Self>, name: &str) -> Option<Duration> {
        let (directory, service) = {
            let guard = self.open.lock();
            let open = guard.as_ref()?;
            (Arc::clone(&open.directory), Arc::clone(&open.service))
        };
        let outcome = directory.connect(name).and_then(|outcome| match outcome {
            Connect::Connected(socket) => self.say_hello(Arc::new(socket), name, &service).map(|()| None),
            Connect::Busy => Ok(Some(RETRY)),
            Connect::Refused | Connect::Absent => {
                self.forget(name);
                Ok(None)
            }
        });
        outcome.unwrap_or_else(|error| {
            log::warn!("byref: topic '{}': cannot connect to a publisher, trying again: {error}", self.options.topic);
            Some(RETRY * 20)
        })
    }

    fn retry(self: &Arc<Self>, name: String, after: Duration) {
        let Some(service) = self.open.lock().as_ref().map(|open| Arc::clone(&open.service)) else { return };
        let shared = Arc::downgrade(self);
        service.after(after, move |_, _, _| {
            let again = shared.upgrade().and_then(|shared| shared.try_connect(&name));
            again.map_or(Next::Done, Next::After)
        });
    }

    fn forget(&self, name: &str) {
        if let Some(open) = self.open.lock().as_mut() {
            open.known.remove(name);
        }
    }

    /// Sends the lease to a publisher, and takes the answer when it comes.
    fn say_hello(self: &Arc<Self>, socket: Arc<OwnedFd>, name: &str, service: &Handle) -> io::Result<()> {
        let lease = OwnedSegment::new("byref-lease", LEASE_LEN)?;
        let hello = Hello {
            topic: self.options.topic.clone(),
            policy: self.options.policy,
            depth: self.options.depth,
            history: self.options.history,
            name: self.options.name.clone(),
            membarrier: membarrier::available(),
        };
        if !socket::send(&socket, &handshake::encode_first(&hello), Some(lease.shared()))? {
            return Err(io::Error::other("its socket is full"));
        }
        let (shared, answering, name) = (Arc::downgrade(self), Arc::clone(&socket), name.to_owned());
        let mut lease = Some(lease.into_map());
        service.watch(socket, Interest::IN, None, move |service, task, _| {
            let Some(shared) = shared.upgrade() else { return Next::Done };
            let mut packet = [0u8; MAX_PACKET];
            match socket::receive(&answering, &mut packet) {
                Ok(Received::Empty) => return Next::Keep,
                Ok(Received::Packet(len, ring)) => {
                    service.cancel(task); // From here on the socket is the receiving thread's.
                    let lease = lease.take().expect("the first packet is handled once");
                    if let Err(error) = shared.welcome(&packet[..len], ring, lease, &answering) {
                        log::warn!("byref: topic '{}': no connection to a publisher: {error}", shared.options.topic);
                        if error.raw_os_error().is_some() {
                            shared.retry(name.clone(), RETRY * 20);
                        }
                    }
                }
                // It may be busy, or out of descriptors, as this process may be; one that is gone refuses next time.
                Ok(Received::OutOfDescriptors | Received::HungUp) | Err(_) => shared.retry(name.clone(), RETRY * 20),
            }
            Next::Done
        })?;
        Ok(())
    }

    /// Takes a publisher in.
    fn welcome(&self, packet: &[u8], ring: Option<OwnedFd>, lease: Mapping, socket: &Arc<OwnedFd>) -> io::Result<()> {
        let pid = socket::peer_pid(socket);
        let number = pid.map_or(0, |pid| pid.as_raw_nonzero().get());
        let topic = || self.options.topic.clone();
        let welcome: Welcome = match handshake::decode_first(packet) {
            Ok(ToSubscriber::Welcome(welcome)) => welcome,
            Ok(ToSubscriber::NotThisTopic) => return Ok(()),
            Err(NotUnderstood::Version(theirs)) => {
                if let Some(open) = self.open.lock().as_mut() {
                    open.trouble = Some(Error::VersionMismatch { topic: topic(), pid: number, theirs, ours: VERSION });
                    open.door.bell.ring();
                }
                return Err(io::Error::other(format!("it speaks protocol version {theirs}")));
            }
            Ok(_) | Err(NotUnderstood::Garbage) => return Err(io::Error::other("it does not speak this protocol")),
        };
        let ring = ring.ok_or_else(|| io::Error::other("it sent no ring"))?;
        let info = PublisherInfo { id: welcome.publisher, pid: number, name: welcome.name.clone(), topic: topic() };
        let process = Process::find(pid);
        let mut guard = self.open.lock();
        let Some(open) = guard.as_mut() else { return Ok(()) };
        open.last_id += 1;
        let id = open.last_id;
        let connection = Connection::new(id, info, &welcome, ring, lease, Arc::clone(socket), process)?;
        open.door.epoll.add(&connection.link.socket, id, Interest::IN | Interest::RDHUP)?;
        if let Some(death) = &connection.death {
            open.door.epoll.add(death, id | DEATH, Interest::IN)?;
        }
        if open.armed {
            connection.link.lease().set_sleeping(open.epoch);
            heavy_fence();
        }
        open.connections.push(connection);
        open.door.bell.ring();
        self.changed.notify_all();
        Ok(())
    }

    fn close(&self) {
        if !self.made_in.is_current() {
            return;
        }
        let Some(open) = self.open.lock().take() else { return };
        *self.final_stats.lock() = open.stats.clone();
        for connection in &open.connections {
            connection.leave();
        }
        open.door.bell.ring();
        self.changed.notify_all();
    }
}

impl Open {
    /// Takes the next message, in turns among the publishers.
    #[inline]
    fn take(&mut self, options: &SubscriberBuilder) -> Result<Option<Message>> {
        for _ in 0..self.connections.len() {
            if self.turn >= self.connections.len() {
                self.turn = 0;
            }
            let connection = &mut self.connections[self.turn];
            let depth = options.keeps(connection.capacity());
            let taken = connection.take(depth, &mut self.stats.lost);
            if self.asleep && std::mem::take(&mut connection.took_wake) {
                self.door.bell.ring(); // It was meant for the thread that sleeps.
            }
            match taken {
                Ok(message) => {
                    self.turn_left -= 1;
                    if self.turn_left == 0 {
                        self.next_turn();
                    }
                    return Ok(Some(self.count(message, options)));
                }
                Err(Stop::Nothing) => self.next_turn(),
                Err(Stop::Over) => {
                    // The others keep their order: each is looked at once.
                    let over = self.connections.remove(self.turn);
                    self.dismiss(over);
                }
                Err(Stop::Refused(error)) => {
                    self.next_turn();
                    return Err(Error::system(&options.topic, "cannot map a publisher's memory")(error));
                }
            }
        }
        Ok(None)
    }

    #[inline]
    fn next_turn(&mut self) {
        self.turn += 1;
        self.turn_left = TURN;
    }

    #[inline]
    fn count(&mut self, message: Message, options: &SubscriberBuilder) -> Message {
        self.stats.received += 1;
        self.stats.bytes += message.len() as u64;
        if message.is_inline() {
            self.stats.copied_bytes += message.len() as u64;
        }
        if self.armed && !self.asleep {
            self.disarm();
        }
        self.since_housekeeping += 1;
        if self.since_housekeeping == HOUSEKEEPING {
            self.since_housekeeping = 0;
            // The message in hand goes first; what is wrong will show again.
            let _ = self.handle_events(options);
        }
        message
    }

    fn dismiss(&mut self, over: Connection) {
        // Messages may keep the link, and so the descriptors, alive: they must not wake anybody any more.
        self.door.epoll.remove(&over.link.socket);
        if let Some(death) = &over.death {
            self.door.epoll.remove(death);
        }
        let PublisherInfo { topic, id, .. } = &*over.link.info;
        self.known.remove(&rendezvous::socket_name(topic, *id));
        over.leave();
    }

    /// Tells every publisher that this subscriber goes to sleep. Afterwards it has to look once more.
    fn arm(&mut self) {
        self.announce();
        heavy_fence(); // Pairs with the light fence after each append.
    }

    /// The first half of [`arm`](Self::arm); the heavy fence has to follow.
    fn announce(&mut self) {
        self.epoch += 1;
        self.armed = true;
        for connection in &self.connections {
            connection.link.lease().set_sleeping(self.epoch);
        }
    }

    fn disarm(&mut self) {
        self.armed = false;
        for connection in &self.connections {
            connection.link.lease().set_sleeping(crate::lease::AWAKE);
        }
    }

    /// The rest of a [`Subscriber::try_recv`] that found nothing at first.
    fn found_nothing(&mut self, shared: &Shared) -> Result<Option<Message>> {
        if self.polled {
            let handled = self.handle_events(&shared.options)?;
            if handled || !self.armed {
                self.arm();
                let taken = self.take(&shared.options)?;
                if taken.is_some() {
                    return Ok(taken);
                }
            }
        } else {
            self.since_housekeeping += 1;
            if self.since_housekeeping >= HOUSEKEEPING {
                self.since_housekeeping = 0;
                self.handle_events(&shared.options)?;
            }
        }
        self.trouble.take().map_or(Ok(None), Err)
    }

    /// Handles what has happened, without waiting; `true` when there was anything. While a thread sleeps it is left to that.
    fn handle_events(&mut self, options: &SubscriberBuilder) -> Result<bool> {
        if self.asleep {
            return Ok(false);
        }
        let mut ready = Vec::new();
        let looked = self.door.epoll.wait(Some(Duration::ZERO), &mut ready);
        looked.map_err(Error::system(&options.topic, "cannot look for events"))?;
        self.handle(&ready);
        Ok(!ready.is_empty())
    }

    /// Reads the sockets that have something, and notes who died. A dead publisher's last messages are still delivered.
    fn handle(&mut self, ready: &[u64]) {
        for &token in ready {
            if token == Door::BELL {
                self.door.bell.silence();
            } else if let Some(connection) = self.connections.iter_mut().find(|found| found.id == token & !DEATH) {
                if token & DEATH != 0 {
                    connection.died();
                } else {
                    connection.read_socket();
                    connection.took_wake = false;
                    if let Some(error) = connection.short_of.take() {
                        let topic = &connection.link.info.topic;
                        self.trouble = Some(Error::system(topic, "cannot map a publisher's memory")(error));
                    }
                }
            }
        }
    }
}
