//! The subscribing side: one subscriber follows every publisher of its topic, or of all topics that its pattern
//! matches.

use crate::copies::{self, Cause, Endpoint};
use crate::error::{Error, Result, printable};
use crate::link::candidates::{Candidate, Candidates, FIRST_PAUSE};
use crate::link::channel::Channel;
use crate::link::handshake::{self, Call, Hello, NotUnderstood, ToPublisher, ToSubscriber, VERSION, Welcome};
use crate::link::inbox::Said;
use crate::link::lookout::{Listener, ListenerId, Lookout};
use crate::link::pair::Pair;
use crate::link::pairs::Reached;
use crate::link::rendezvous::{self, Directory};
use crate::link::service::{self, Handle, Next};
use crate::protocol::claim::{Policy, retention_limit};
use crate::protocol::lease::{AWAKE, LEASE_LEN};
use crate::protocol::wake::BY_WORD;
use crate::pubsub::batch::Batch;
use crate::pubsub::event::{Event, EventKind, Incoming};
use crate::pubsub::message::{Message, PublisherInfo, Taken};
use crate::pubsub::selector::Item;
use crate::reader::connection::{Connection, LOSSLESS, Stop};
use crate::sync::biased::{Biased, BiasedGuard};
use crate::sync::changes::{Changes, Ended};
use crate::sync::heavy_fence;
use crate::sync::locks::{Mutex, Turn};
use crate::sync::spin::{DEFAULT_MOST, Sight, Spin, Spun};
use crate::sync::wait::Wait;
use crate::sys::epoll::{Door, Interest, READY_AT_ONCE, Woken};
use crate::sys::fork::ForkId;
use crate::sys::futex::{self, MOST_WORDS, Words};
use crate::sys::limits;
use crate::sys::membarrier;
use crate::sys::memory::{Mapping, OwnedSegment};
use crate::sys::socket;
use crate::topic;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::process::Pid;
use std::collections::{HashSet, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Messages sent so close to each other come in a stream.
const STREAMING_NS: u64 = 250;
/// Messages taken from one publisher before the next one's turn.
const TURN: u32 = 8;
/// A lossy subscriber keeps the last messages of so many publishers that are gone.
const MOST_GONE: usize = 64;
/// A publisher that takes longer to answer does not hold up the others that are to be asked.
const TIME_TO_ANSWER: Duration = Duration::from_millis(200);
/// How often a question without an answer looks whether its subscriber was closed.
const STILL_WANTED: Duration = Duration::from_secs(1);
/// How long a thread that waits for its turn to sleep does so before it looks for signals.
const FOLLOWER_SLICE: Duration = Duration::from_millis(100);
/// Who has waited so long for a publisher is told if one is in another directory, which takes a moment to find out.
const LONG_WAIT: Duration = Duration::from_millis(100);
/// The most events that wait for a subscriber that receives nothing; the oldest go.
const MOST_EVENTS: usize = 1 << 16;
/// The longest sleep at words of memory. Whoever has a publisher's ring mapped can move those who sleep at its word to another
/// one, where no wake-up reaches them; and some signals do not end such a sleep.
const MOST_AT_WORDS: Duration = Duration::from_secs(1);

/// Settings of a [`Subscriber`]; see [`Subscriber::builder`].
#[derive(Clone, Debug)]
pub struct SubscriberBuilder {
    topic: String,
    policy: Policy,
    depth: Option<u64>,
    history: u64,
    spin: Duration,
    events: bool,
    name: Option<String>,
}

impl SubscriberBuilder {
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
    /// 30 us or more. It adapts: it grows when messages come that fast, and shrinks to 2 us when they do not.
    pub fn spin(mut self, time: Duration) -> Self {
        self.spin = time;
        self
    }

    /// Whether [`next_with`](Subscriber::next_with) and its like also tell what happens to publishers (default: no).
    pub fn events(mut self, wanted: bool) -> Self {
        self.events = wanted;
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
            Policy::Block => LOSSLESS,
            Policy::Latest => 1,
            Policy::DropOldest => self.depth.unwrap_or(u64::MAX).min(retention_limit(capacity)),
        }
    }

    /// Makes the subscriber and looks for publishers.
    pub fn build(self) -> Result<Subscriber> {
        topic::validate_pattern(&self.topic)?;
        if self.depth == Some(0) {
            return Err(Error::InvalidArgument("depth must be at least 1 message".into()));
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
    open: Biased<Option<Open>>,
    /// What the counters said at `close`.
    final_stats: Mutex<SubscriberStats>,
    /// Publishers came or went.
    changed: Changes,
    /// Held by the one thread that sleeps for a publisher's ring; others look again now and then.
    sleeping: Turn,
    /// A thread sleeps in a call: it looks at all that happens. For those who have not the lock.
    attended: AtomicBool,
}

/// What a thread without a message sleeps at.
enum SleepsAt {
    /// The sockets of its publishers, for good: somebody polls them, they are too many, or there is no other way here.
    Sockets,
    /// The wake words of its publishers, and the gong, which was heard so often.
    Words { heard: u32 },
}

/// What publishers ring when a subscriber sleeps at sockets: one bell for each process that publishes.
#[derive(Default)]
struct Bells {
    known: Vec<Hung>,
}

/// A bell that hangs at the door.
struct Hung {
    number: u64,
    pair: Weak<Pair>,
    /// Its two ends.
    own: OwnedFd,
    theirs: OwnedFd,
}

impl Bells {
    /// The bell of a process, hung at `door` if there was none.
    fn of(&mut self, pair: &Arc<Pair>, door: &Door) -> io::Result<&Hung> {
        let is_it = |hung: &Hung| std::ptr::eq(hung.pair.as_ptr(), Arc::as_ptr(pair));
        if let Some(at) = self.known.iter().position(is_it) {
            return Ok(&self.known[at]);
        }
        static LAST: AtomicU64 = AtomicU64::new(0);
        let (own, theirs) = socket::bell()?;
        let number = LAST.fetch_add(1, Ordering::Relaxed);
        door.epoll.add(&own, number, Interest::IN)?;
        self.known.push(Hung { number, pair: Arc::downgrade(pair), own, theirs });
        Ok(self.known.last().expect("it was just added"))
    }

    /// Takes those down that nobody has to ring any more.
    fn keep(&mut self, door: &Door, is_used: impl Fn(&Weak<Pair>) -> bool) {
        for unused in self.known.extract_if(.., |hung| !is_used(&hung.pair)) {
            door.epoll.remove(&unused.own);
        }
    }

    /// It was rung.
    fn silence(&mut self, number: u64, door: &Door) {
        if let Some(at) = self.known.iter().position(|hung| hung.number == number)
            && !socket::silence(&self.known[at].own)
        {
            let broken = self.known.remove(at);
            door.epoll.remove(&broken.own);
        }
    }
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
    /// No answer is wanted any more.
    fn withdraw(&self) -> Next {
        let open = self.open.lock().take();
        drop(open); // Without the lock.
        Next::Done
    }
}

/// Everything that closing gives back.
struct Open {
    /// In the order of their numbers.
    connections: Vec<Connection>,
    /// Whose turn it is, and for how many more messages.
    turn: usize,
    turn_left: u32,
    /// Whose record was taken last; valid until the next look.
    taken_from: usize,
    last_id: u64,
    candidates: Candidates,
    /// The number of the last sleep, and what it was announced as.
    epoch: u64,
    announced: u64,
    /// Publishers were told that this subscriber sleeps.
    armed: bool,
    /// A thread sleeps, or is about to: events are its business, and so are the wake-ups.
    asleep: bool,
    /// Somebody polls the descriptor.
    polled: bool,
    at: SleepsAt,
    spin: Spin,
    /// When the last message was sent, and how long after the one before.
    sent_ns: u64,
    apart_ns: u64,
    stats: SubscriberStats,
    /// Found while connecting in the background, reported by the next receive that finds no message.
    trouble: Option<Error>,
    /// What happened and was not told yet.
    events: VecDeque<Event>,
    shared: Weak<Shared>,
    door: Arc<Door>,
    /// What publishers ring when this subscriber sleeps at sockets.
    bells: Bells,
    directory: Arc<Directory>,
    service: Arc<Handle>,
    lookout: Arc<Lookout>,
    listener: ListenerId,
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
    /// Settings for a subscriber to `topic`, which may be a pattern.
    pub fn builder(topic: impl Into<String>) -> SubscriberBuilder {
        SubscriberBuilder {
            topic: topic.into(),
            policy: Policy::Block,
            depth: None,
            history: 0,
            spin: DEFAULT_MOST,
            events: false,
            name: None,
        }
    }

    fn new(options: SubscriberBuilder) -> Result<Self> {
        let (topic, spin) = (options.topic.clone(), options.spin);
        let (lookout, service) = service::connect(&topic)?;
        let door = Arc::new(Door::new().map_err(Error::system(&topic, "cannot make an epoll descriptor"))?);
        let listener = lookout.new_listener();
        let open = |shared: &Weak<Shared>| Open {
            connections: Vec::new(),
            turn: 0,
            turn_left: TURN,
            taken_from: 0,
            last_id: 0,
            candidates: Candidates::default(),
            epoch: 0,
            announced: AWAKE,
            armed: false,
            asleep: false,
            polled: false,
            at: if futex::available() { SleepsAt::Words { heard: 0 } } else { SleepsAt::Sockets },
            spin: Spin::up_to(spin),
            sent_ns: 0,
            apart_ns: u64::MAX,
            stats: SubscriberStats::default(),
            trouble: None,
            events: VecDeque::new(),
            shared: Weak::clone(shared),
            door: Arc::clone(&door),
            bells: Bells::default(),
            directory: lookout.directory(),
            service: Arc::clone(&service),
            lookout: Arc::clone(&lookout),
            listener,
        };
        let shared = Arc::new_cyclic(|shared| Shared {
            made_in: ForkId::current(),
            open: Biased::new(Some(open(shared))),
            options,
            final_stats: Mutex::default(),
            changed: Changes::default(),
            sleeping: Turn::default(),
            attended: AtomicBool::new(false),
        });
        if let Err((what, error)) = lookout.register(listener, &shared, &door) {
            shared.close();
            return Err(Error::meeting(&topic, lookout.directory().path(), what)(error));
        }
        copies::register(Cause::Receive, &shared);
        fault!("connect.looking");
        Ok(Subscriber { shared, closes: true })
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
        Subscriber { shared: Arc::clone(&self.shared), closes: false }
    }

    /// The next message; `None` when none is there. After `None`, [`readiness`](Self::readiness) becomes readable when one comes.
    #[inline(always)]
    pub fn try_recv(&self) -> Result<Option<Message>> {
        // Not through `try_receive`: passing `take` on costs a call and a move of the message.
        let mut guard = self.shared.lock()?;
        let open = self.shared.opened(&mut guard)?;
        if let Some(message) = open.take(&self.shared.options)? {
            return Ok(Some(message));
        }
        open.found_nothing(&self.shared.options, Open::take)
    }

    /// The next message, with an interruptible wait.
    #[inline(always)]
    pub fn recv_with(&self, wait: &mut Wait<'_>) -> Result<Message> {
        // Not through `receive`, for the same reason.
        let taken = {
            let mut guard = self.shared.lock()?;
            self.shared.opened(&mut guard)?.take(&self.shared.options)?
        };
        match taken {
            Some(message) => Ok(message),
            None => self.shared.receive_slowly(wait, Open::take),
        }
    }

    /// [`try_recv`](Self::try_recv) that tells what happens, too.
    pub fn try_next(&self) -> Result<Option<Incoming<Message>>> {
        self.try_receive(|open, options| open.take_incoming(options, Open::take_one))
    }

    /// [`recv_with`](Self::recv_with) that tells what happens, too.
    pub fn next_with(&self, wait: &mut Wait<'_>) -> Result<Incoming<Message>> {
        self.receive(wait, |open, options| open.take_incoming(options, Open::take_one))
    }

    /// Up to `most` messages; waits without limit for the first.
    pub fn recv_batch(&self, most: usize) -> Result<Batch> {
        self.recv_batch_with(most, &mut Wait::up_to(None))
    }

    /// Up to `most` messages that are there; waits for the first only. Messages that were sent together with
    /// [`send_many`](crate::Publisher::send_many) are a batch, or several, without others.
    pub fn recv_batch_with(&self, most: usize, wait: &mut Wait<'_>) -> Result<Batch> {
        self.check_most(most)?;
        self.receive(wait, |open, options| {
            open.take_past_events(options, |open, options| open.take_batch(options, most))
        })
    }

    /// The batch that is there; `None` when there is no message.
    pub fn try_recv_batch(&self, most: usize) -> Result<Option<Batch>> {
        self.check_most(most)?;
        self.try_receive(|open, options| open.take_past_events(options, |open, options| open.take_batch(options, most)))
    }

    /// [`try_recv_batch`](Self::try_recv_batch) that tells what happens, too.
    pub fn try_next_batch(&self, most: usize) -> Result<Option<Incoming<Batch>>> {
        self.check_most(most)?;
        self.try_receive(|open, options| open.take_incoming(options, |open, options| open.take_batch(options, most)))
    }

    /// [`recv_batch_with`](Self::recv_batch_with) that tells what happens, too.
    pub fn next_batch_with(&self, most: usize, wait: &mut Wait<'_>) -> Result<Incoming<Batch>> {
        self.check_most(most)?;
        self.receive(wait, |open, options| open.take_incoming(options, |open, options| open.take_batch(options, most)))
    }

    fn check_most(&self, most: usize) -> Result<()> {
        let refused =
            || Error::InvalidArgument(format!("topic '{}': a batch has at least 1 message", self.shared.options.topic));
        if most == 0 { Err(refused()) } else { Ok(()) }
    }

    fn try_receive<R>(
        &self,
        mut take: impl FnMut(&mut Open, &SubscriberBuilder) -> Result<Option<R>>,
    ) -> Result<Option<R>> {
        let mut guard = self.shared.lock()?;
        let open = self.shared.opened(&mut guard)?;
        match take(open, &self.shared.options) {
            Ok(None) => open.found_nothing(&self.shared.options, take),
            result => result,
        }
    }

    fn receive<R>(
        &self,
        wait: &mut Wait<'_>,
        mut take: impl FnMut(&mut Open, &SubscriberBuilder) -> Result<Option<R>>,
    ) -> Result<R> {
        let taken = {
            let mut guard = self.shared.lock()?;
            take(self.shared.opened(&mut guard)?, &self.shared.options)?
        };
        match taken {
            Some(taken) => Ok(taken),
            None => self.shared.receive_slowly(wait, take),
        }
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
            let open = shared.opened(&mut guard)?;
            let happened = open.handle_events(&shared.options)?;
            open.pass_on(happened);
            if open.connections.iter().filter(|connection| connection.is_live()).count() >= n {
                return Ok(true);
            }
            open.trouble.take().map_or(Ok(false), Err)
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
        let open = self.shared.opened(&mut guard)?;
        let happened = open.handle_events(&self.shared.options)?;
        open.pass_on(happened);
        let live = open.connections.iter().filter(|connection| connection.is_live());
        Ok(live.map(|connection| Arc::clone(&connection.link.info)).collect())
    }

    /// A descriptor to poll for messages.
    pub fn readiness(&self) -> Result<Readiness> {
        let mut guard = self.shared.lock()?;
        let open = self.shared.opened(&mut guard)?;
        open.polled = true;
        open.sleep_at_sockets();
        Ok(Readiness(Arc::clone(&open.door)))
    }

    /// What waits to be received: messages that were sent and not taken yet. Nothing after `close`.
    pub fn backlog(&self) -> Result<Backlog> {
        let mut guard = self.shared.lock()?;
        let mut backlog = Backlog::default();
        for connection in guard.iter_mut().flat_map(|open| &mut open.connections) {
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
        let open = self.shared.opened(&mut guard)?;
        match open.take(&self.shared.options) {
            Ok(None) => open.trouble.take().map_or(Ok(None), Err),
            result => result,
        }
    }

    /// [`poll`](Self::poll) that tells what happens, too, and gives up to `most` messages at once.
    pub(crate) fn poll_incoming(&self, most: Option<usize>) -> Result<Option<Item>> {
        let mut guard = self.shared.lock()?;
        let open = self.shared.opened(&mut guard)?;
        let options = &self.shared.options;
        let found = match most {
            None => open.take_incoming(options, |open, options| Ok(open.take_one(options)?.map(Item::Message))),
            Some(most) => open.take_incoming(options, |open, options| {
                Ok(open.take_batch(options, most)?.map(|batch| Item::Batch(Box::new(batch))))
            }),
        };
        match found? {
            Some(Incoming::Message(item)) => Ok(Some(item)),
            Some(Incoming::Event(event)) => Ok(Some(Item::Event(Box::new(event)))),
            None => open.trouble.take().map_or(Ok(None), Err),
        }
    }

    /// Whether it tells what happens.
    pub(crate) fn has_events(&self) -> bool {
        self.shared.options.events
    }

    /// Tells every publisher that this subscriber goes to sleep. A heavy fence has to follow, and another look.
    pub(crate) fn announce_sleep(&self) -> Result<()> {
        self.shared.opened(&mut self.shared.lock()?)?.announce();
        Ok(())
    }

    /// The heavy fence was refused: looks again when that can matter no more, and makes the descriptor readable if there is anything.
    #[cold]
    pub(crate) fn look_later(&self) {
        self.shared.update(|open| open.look_later());
    }

    /// Handles what made the descriptor readable.
    pub(crate) fn handle_events(&self) -> Result<()> {
        let mut guard = self.shared.lock()?;
        self.shared.opened(&mut guard)?.handle_events(&self.shared.options).map(drop)
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
    fn topic_hash(&self) -> Option<u64> {
        let topic = &self.options.topic;
        (!topic::is_pattern(topic)).then(|| topic::hash(topic))
    }

    fn appeared(self: Arc<Self>, name: &str) {
        self.update(|open| open.candidates.meet(name));
        self.ask_candidates();
    }

    fn vanished(&self, name: &str) {
        self.update(|open| open.candidates.forget(name));
    }

    fn tidy(&self) -> bool {
        if self.attended.load(Ordering::Relaxed) {
            return true; // Nobody may attend to it soon.
        }
        let Some((happened, is_needed_again)) = self.update(|open| open.tidy(&self.options)) else { return false };
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
            Err(Error::Forked { what: "subscriber", topic: self.options.topic.clone() })
        }
    }

    #[inline]
    fn opened<'a>(&self, guard: &'a mut BiasedGuard<'_, Option<Open>>) -> Result<&'a mut Open> {
        guard.as_mut().ok_or_else(|| Error::Closed { what: "subscriber", topic: self.options.topic.clone() })
    }

    fn timed_out(&self, wait: &Wait<'_>, what: &'static str) -> Error {
        let alone = self.update(|open| open.connections.is_empty().then(|| Arc::clone(&open.lookout))).flatten();
        let has_time = wait.given() >= LONG_WAIT;
        let hint = alone.map_or_else(String::new, |it| it.tell_publishers_place(&self.options.topic, has_time));
        Error::Timeout { what, topic: self.options.topic.clone(), waited: wait.given(), hint }
    }

    #[cold]
    fn receive_slowly<R>(
        &self,
        wait: &mut Wait<'_>,
        mut take: impl FnMut(&mut Open, &SubscriberBuilder) -> Result<Option<R>>,
    ) -> Result<R> {
        if !wait.is_allowed() {
            return Err(Error::WouldBlock { topic: self.options.topic.clone() });
        }
        let mut taken = None;
        self.wait_until(wait, &mut |open| {
            taken = take(open, &self.options)?;
            Ok(taken.is_some())
        })?;
        Ok(taken.expect("the wait ends when something was taken"))
    }

    /// Waits until `take` says that it has taken something. It is called with the lock held.
    fn wait_until(&self, wait: &mut Wait<'_>, take: &mut dyn FnMut(&mut Open) -> Result<bool>) -> Result<()> {
        let mut took_wake_ups = false;
        let outcome = self.sleep_until(wait, take, &mut took_wake_ups);
        if took_wake_ups {
            self.update(|open| open.pass_on(true));
        }
        outcome
    }

    /// `took_wake_ups`: there is somebody who polls the descriptor, and may have missed what made it readable.
    fn sleep_until(
        &self,
        wait: &mut Wait<'_>,
        take: &mut dyn FnMut(&mut Open) -> Result<bool>,
        took_wake_ups: &mut bool,
    ) -> Result<()> {
        let (door, spin, is_stream) = {
            let mut guard = self.lock()?;
            let open = self.opened(&mut guard)?;
            (Arc::clone(&open.door), open.spin, open.apart_ns < STREAMING_NS)
        };
        let limit = wait.remaining().ok_or_else(|| self.timed_out(wait, "recv"))?;
        let spun = spin.look(limit, is_stream, |is_long| {
            if is_long && wait.is_interrupted() {
                return Err(Error::Interrupted { topic: self.options.topic.clone() });
            }
            let mut guard = self.lock()?;
            let open = self.opened(&mut guard)?;
            if take(open)? {
                open.spin.paid();
                return Ok(Sight::Found);
            }
            let happened = is_long && open.handle_events(&self.options)?;
            *took_wake_ups |= happened && open.polled;
            Ok(if happened { Sight::Sleep } else { Sight::Nothing })
        });
        let spun = spun?;
        if spun == Spun::Found {
            return Ok(());
        }
        let mut leader = None;
        let mut look_for_signals = true;
        let mut still_armed = false;
        let mut words = Words::new();
        let mut first_slept = None;
        loop {
            let Some(left) = wait.remaining() else {
                self.update(|open| open.spin.slept_since(first_slept, spun));
                return Err(self.timed_out(wait, "recv"));
            };
            if look_for_signals && wait.may_be_interrupted() {
                // What runs now may receive from here, too, and would wait for the right that its own thread has.
                (leader, still_armed) = (None, false);
                if wait.is_interrupted() {
                    return Err(Error::Interrupted { topic: self.options.topic.clone() });
                }
            }
            let slice = wait.slice(left);
            if leader.is_none() {
                // Whoever sleeps takes one message and lets the next one sleep.
                let most = slice.unwrap_or(FOLLOWER_SLICE).min(FOLLOWER_SLICE);
                leader = self.sleeping.take_within(most);
                look_for_signals = leader.is_none();
                if leader.is_none() {
                    continue;
                }
            }
            let strikes = {
                let mut guard = self.lock()?;
                let open = self.opened(&mut guard)?;
                let strikes = open.hear_gong(&self.options, took_wake_ups)?;
                if take(open)? {
                    open.spin.slept_since(first_slept, spun);
                    return Ok(());
                }
                if !(still_armed && open.armed) {
                    open.note_words(&mut words);
                    open.arm();
                    if take(open)? {
                        open.spin.slept_since(first_slept, spun);
                        return Ok(());
                    }
                }
                if let Some(trouble) = open.trouble.take() {
                    return Err(trouble);
                }
                open.asleep = true;
                open.stats.sleeps += 1;
                strikes
            };
            first_slept.get_or_insert_with(Instant::now);
            let mut ready = Vec::new();
            fault!("sleep.subscriber_before");
            self.attended.store(true, Ordering::Relaxed);
            let slice = membarrier::slice(slice);
            let mut is_refused = false;
            let woken = match strikes {
                None => door.epoll.wait(slice, &mut ready),
                Some(strikes) => {
                    let slept = words.wait(&door.gong, strikes, slice.unwrap_or(MOST_AT_WORDS).min(MOST_AT_WORDS));
                    is_refused = slept.is_err();
                    slept.or(Ok(Woken::Ready))
                }
            };
            self.attended.store(false, Ordering::Relaxed);
            fault!("sleep.subscriber_after");
            let mut guard = self.lock()?;
            let open = self.opened(&mut guard)?;
            open.asleep = false;
            if is_refused {
                open.sleep_at_sockets(); // The process has gone into a sandbox, perhaps.
            }
            let woken = woken.map_err(Error::system(&self.options.topic, "cannot wait for messages"))?;
            look_for_signals = woken != Woken::Ready;
            still_armed = woken != Woken::Ready;
            *took_wake_ups |= !ready.is_empty() && open.polled;
            open.handle(&ready);
        }
    }

    /// A publisher has said something, or hung up.
    fn hear(&self, connection: u64) {
        let is_over = self.update(|open| {
            let Some(connection) = open.connections.iter_mut().find(|found| found.id == connection) else {
                return false;
            };
            connection.read_news();
            connection.tidy(); // Who receives nothing hears of retired memory here.
            connection.took_wake = false;
            if let Some(error) = connection.short_of.take() {
                let topic = &connection.link.info.topic;
                open.trouble = Some(Error::system(topic, "cannot map a publisher's memory")(error));
            }
            let is_over = !connection.is_live();
            if is_over {
                open.lookout.remind(open.listener);
            }
            open.door.ring();
            is_over
        });
        if is_over == Some(true) {
            self.changed.notify();
        }
    }

    /// A publisher's process died.
    fn hear_of_death(&self, connection: u64) {
        self.update(|open| {
            if let Some(connection) = open.connections.iter_mut().find(|found| found.id == connection) {
                connection.died();
                open.lookout.remind(open.listener);
                open.door.ring();
            }
        });
        self.changed.notify();
    }

    /// Does something with what is open, unless it was closed.
    fn update<T>(&self, change: impl FnOnce(&mut Open) -> T) -> Option<T> {
        self.open.lock().as_mut().map(change)
    }

    /// Asks the publishers whose turn it is.
    fn ask_candidates(self: &Arc<Self>) {
        let next = |open: &mut Open| {
            let pairs = Arc::clone(open.lookout.acceptors().pairs());
            Some((open.candidates.next()?, Arc::clone(&open.directory), pairs, Arc::clone(&open.service)))
        };
        while let Some((candidate, directory, pairs, service)) = self.update(next).flatten() {
            log::debug!("byref: topic '{}': asks the publisher {}", self.options.topic, candidate.name);
            let asked = pairs.reach(&directory, &candidate.name, &service).and_then(|reached| match reached {
                Reached::Pair(pair) if self.knows(&candidate.name, pair.pid()) => Ok(false),
                Reached::Pair(pair) => self.say_hello(&pair, &candidate, &service).map(|()| true),
                Reached::Busy => {
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
        let may_be_of = rendezvous::may_be_of(name); // Once: there may be a thousand connections.
        let is_same = |info: &PublisherInfo| may_be_of(info.id) && info.pid == pid;
        let known = |open: &mut Open| {
            let is_known = open.connections.iter().any(|known| known.is_live() && is_same(&known.link.info));
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
            self.update(|open| {
                open.trouble = Some(trouble);
                open.door.ring();
            });
            self.changed.notify();
        }
    }

    /// Has a publisher asked again after a pause.
    fn ask_again(&self, candidate: Candidate) {
        self.update(|open| open.ask_again(candidate));
    }

    /// The process that was asked has no publisher of this name. It may have been the wrong one.
    fn was_somebody_else(&self, candidate: &Candidate) {
        self.update(|open| {
            open.lookout.acceptors().pairs().forget(&open.directory, &candidate.name);
            if !candidate.was_misled {
                open.ask_again(Candidate { was_misled: true, ..candidate.clone() });
            }
        });
    }

    /// A publisher answered, or takes too long: it is the next one's turn.
    fn ask_next(self: &Arc<Self>) {
        self.update(|open| open.candidates.finished());
        self.ask_candidates();
    }

    /// Sends the lease to a publisher, and takes the answer when it comes.
    fn say_hello(self: &Arc<Self>, pair: &Arc<Pair>, candidate: &Candidate, service: &Handle) -> io::Result<()> {
        let lease = OwnedSegment::new("byref-lease", LEASE_LEN)?;
        fault!("connect.lease_made");
        let hello = Hello {
            topic: self.options.topic.clone(),
            policy: self.options.policy,
            depth: self.options.depth,
            history: self.options.history,
            name: self.options.name.clone(),
            membarrier: membarrier::works(),
        };
        let call = Call { name: candidate.name.clone(), hello };
        let Some(channel) = Channel::open(pair, &call, Some(lease.shared()))? else {
            return Err(io::Error::other("its socket is full"));
        };
        fault!("connect.hello_sent");
        let channel = Arc::new(channel);
        let question = Arc::new(Question {
            candidate: candidate.clone(),
            open: Mutex::new(Some((Arc::clone(&channel), lease.into_map()))),
            is_slow: AtomicBool::new(false),
        });
        let (shared, asking) = (Arc::downgrade(self), Arc::clone(&question));
        service.after(TIME_TO_ANSWER, move |_, _, _| {
            if asking.open.lock().is_none() {
                return Next::Done;
            }
            let Some(shared) = shared.upgrade() else { return asking.withdraw() };
            if !asking.is_slow.swap(true, Ordering::Relaxed) {
                shared.ask_next();
            }
            shared.update(|_| Next::After(STILL_WANTED)).unwrap_or_else(|| asking.withdraw())
        });
        let shared = Arc::downgrade(self);
        channel.listen(move || match shared.upgrade() {
            Some(shared) => shared.hear_answer(&question),
            None => drop(question.withdraw()),
        });
        Ok(())
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
                drop(question.withdraw());
                self.ask_again(candidate.clone());
            }
        }
        if !question.is_slow.load(Ordering::Relaxed) {
            self.ask_next();
        }
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
        let pid = channel.peer_pid();
        let number = number(pid);
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
                self.update(|open| {
                    open.trouble = Some(Error::VersionMismatch { topic, pid: number, theirs, ours: VERSION });
                    open.door.ring();
                });
                return Err(io::Error::other(format!("it speaks protocol version {theirs}")));
            }
            Ok(_) | Err(NotUnderstood::Garbage) => return Err(io::Error::other("it does not speak this protocol")),
        };
        let ring = ring.ok_or_else(|| io::Error::other("it sent no ring"))?;
        let (topic, name) = (welcome.topic.clone(), welcome.name.as_deref().map(printable));
        if topic::validate(&topic).is_err() || !topic::matches(pattern, &topic) {
            let topic = topic.escape_debug();
            return Err(io::Error::other(format!("process {number} answered for another topic, '{topic}'")));
        }
        let info = PublisherInfo { id: welcome.publisher, pid: number, name, topic };
        let mut guard = self.open.lock();
        let Some(open) = guard.as_mut() else { return Ok(()) };
        let is_same = |known: &PublisherInfo| known.id == info.id && known.pid == info.pid;
        let known = open.connections.iter_mut().find(|known| known.is_live() && is_same(&known.link.info));
        if let Some(known) = known {
            known.candidate = candidate.clone(); // It announced itself anew, and was asked under both names.
            return Ok(());
        }
        open.last_id += 1;
        let id = open.last_id;
        let dying = Arc::downgrade(self);
        let liveness = open.service.deaths.watch(&open.service, pid, move || {
            if let Some(shared) = dying.upgrade() {
                shared.hear_of_death(id);
            }
        })?;
        let listening = Arc::downgrade(self);
        channel.listen(move || {
            if let Some(shared) = listening.upgrade() {
                shared.hear(id);
            }
        });
        let (candidate, tell_gaps) = (candidate.clone(), self.options.events);
        let connection = Connection::new(id, info, &welcome, ring, lease, channel, liveness, candidate, tell_gaps)?;
        fault!("connect.watched");
        match open.at {
            _ if !open.armed => {}
            SleepsAt::Sockets => {
                connection.link.lease().set_sleeping(open.announced);
                if !heavy_fence() && open.polled {
                    open.look_later();
                }
            }
            // The newcomer's word is not among those that were noted: who sleeps is woken below, and announces a new sleep.
            SleepsAt::Words { .. } => open.disarm(),
        }
        open.happened(&self.options, &connection.link.info, EventKind::Joined);
        open.connections.push(connection);
        open.hand_out_bells();
        open.trouble.take_if(|trouble| matches!(trouble, Error::System { .. })); // If there still is any, it will show again.
        log::debug!("byref: topic '{pattern}': connected to the publisher in process {number}");
        fault!("connect.joined");
        open.door.ring();
        self.changed.notify();
        Ok(())
    }

    fn close(&self) {
        if !self.made_in.is_current() {
            return;
        }
        let closed = copies::settle(Cause::Receive, || self.open.lock().take(), |open| open.stats.copied_bytes);
        let Some(mut open) = closed else { return };
        *self.final_stats.lock() = open.stats.clone();
        open.sleep_at_sockets();
        open.lookout.unregister(open.listener);
        open.connections.drain(..).for_each(Connection::leave);
        open.door.ring();
        self.changed.notify();
    }
}

impl Endpoint for Shared {
    fn copied(&self) -> u64 {
        self.lock().ok().and_then(|open| open.as_ref().map(|open| open.stats.copied_bytes)).unwrap_or(0)
    }
}

impl Open {
    /// Takes the next message, whatever happened before.
    #[inline(always)]
    fn take(&mut self, options: &SubscriberBuilder) -> Result<Option<Message>> {
        if options.events {
            return self.take_past_events(options, Self::take_one);
        }
        self.take_one(options)
    }

    /// Takes the next message, up to the next event.
    #[inline(always)]
    fn take_one(&mut self, options: &SubscriberBuilder) -> Result<Option<Message>> {
        if options.policy == Policy::Block
            && let Some(connection) = self.connections.get_mut(self.turn)
            && let Some(head) = connection.take_inline()
        {
            let message = Message::inline(&connection.link.info, head, &connection.scratch);
            let len = head.payload_len() as u64;
            self.stats.copied_bytes += len;
            self.took(len, head.timestamp_ns);
            return Ok(Some(message));
        }
        self.take_unusual(options)
    }

    #[inline(never)]
    fn take_unusual(&mut self, options: &SubscriberBuilder) -> Result<Option<Message>> {
        let Some(taken) = self.take_record(options)? else { return Ok(None) };
        let connection = &self.connections[self.taken_from];
        Ok(Some(Message::new(&connection.link.info, taken, &connection.scratch)))
    }

    #[cold]
    fn take_past_events<R>(
        &mut self,
        options: &SubscriberBuilder,
        mut take: impl FnMut(&mut Self, &SubscriberBuilder) -> Result<Option<R>>,
    ) -> Result<Option<R>> {
        loop {
            match self.take_incoming(options, &mut take)? {
                None => return Ok(None),
                Some(Incoming::Message(message)) => return Ok(Some(message)),
                Some(Incoming::Event(_)) => {}
            }
        }
    }

    /// Takes the next event or what `take` gives, which stops where an event is due.
    #[inline]
    fn take_incoming<R>(
        &mut self,
        options: &SubscriberBuilder,
        mut take: impl FnMut(&mut Self, &SubscriberBuilder) -> Result<Option<R>>,
    ) -> Result<Option<Incoming<R>>> {
        if self.events.is_empty()
            && let Some(message) = take(self, options)?
        {
            return Ok(Some(Incoming::Message(message)));
        }
        Ok(self.events.pop_front().map(Incoming::Event))
    }

    fn happened(&mut self, options: &SubscriberBuilder, publisher: &Arc<PublisherInfo>, kind: EventKind) {
        if options.events {
            if self.events.len() == MOST_EVENTS {
                self.events.pop_front();
            }
            self.events.push_back(Event { publisher: Arc::clone(publisher), kind });
        }
    }

    /// Goes to the connection whose turn it is.
    #[inline(always)]
    fn at_turn(&mut self) -> &mut Connection {
        if self.turn >= self.connections.len() {
            self.turn = 0;
        }
        &mut self.connections[self.turn]
    }

    /// Takes the next record, in turns among the publishers; notes from whom.
    fn take_record(&mut self, options: &SubscriberBuilder) -> Result<Option<Taken>> {
        for _ in 0..self.connections.len() {
            let mut lost = self.stats.lost;
            let connection = self.at_turn();
            let taken = connection.take(options.keeps(connection.capacity()), &mut lost);
            self.stats.lost = lost;
            self.pass_wake_on();
            match taken {
                Ok(taken) => {
                    self.taken_from = self.turn;
                    if taken.hold.is_none() {
                        self.stats.copied_bytes += taken.payload_len() as u64;
                    }
                    self.took(taken.payload_len() as u64, taken.head.timestamp_ns);
                    return Ok(Some(taken));
                }
                Err(stop) => {
                    if self.is_event_due_after(options, stop)? {
                        return Ok(None);
                    }
                }
            }
        }
        Ok(None)
    }

    /// Takes up to `most` messages, a fair share of them from each publisher; or rows of a block of one.
    fn take_batch(&mut self, options: &SubscriberBuilder, most: usize) -> Result<Option<Batch>> {
        let mut batch = Batch::default();
        let share = most.div_ceil(self.connections.len().max(1)).max(TURN as usize);
        // More than that may come while it looks, without end.
        let full = self.connections.iter().map(|connection| connection.capacity() as usize).sum::<usize>().min(most);
        let mut in_vain = 0; // So many looks in a row found nothing.
        while in_vain < self.connections.len() && batch.len() < full && !batch.is_rows() {
            let before = batch.len();
            let mut lost = self.stats.lost;
            let connection = self.at_turn();
            let depth = options.keeps(connection.capacity());
            let outcome = connection.take_many(depth, &mut lost, share.min(most - before), &mut batch);
            batch.set_publisher(&connection.link.info);
            self.stats.lost = lost;
            self.pass_wake_on();
            in_vain = if batch.len() > before { 0 } else { in_vain + 1 };
            match outcome {
                Ok(()) => self.next_turn(),
                Err(Stop::Refused(_)) if !batch.is_empty() => break, // It will be refused again.
                Err(Stop::Evicted(why)) if !batch.is_empty() => {
                    self.at_turn().postpone_eviction(why);
                    break;
                }
                Err(stop) => {
                    if self.is_event_due_after(options, stop)? {
                        break;
                    }
                }
            }
        }
        if batch.is_empty() {
            return Ok(None);
        }
        self.apart_ns = if batch.len() > 1 { 0 } else { u64::MAX };
        self.stats.received += batch.len() as u64;
        self.stats.bytes += batch.payload_len() as u64;
        self.stats.copied_bytes += batch.copied_len() as u64;
        self.stay_awake();
        Ok(Some(batch))
    }

    /// Deals with why the connection at turn gave nothing (more). The others keep their order, so that each is looked at once.
    #[inline(always)]
    fn is_event_due_after(&mut self, options: &SubscriberBuilder, stop: Stop) -> Result<bool> {
        if let Stop::Nothing = stop {
            self.next_turn();
            return Ok(false);
        }
        self.is_event_due_after_all(options, stop)
    }

    #[cold]
    fn is_event_due_after_all(&mut self, options: &SubscriberBuilder, stop: Stop) -> Result<bool> {
        match stop {
            Stop::Nothing => Ok(false),
            Stop::Over => {
                let over = self.connections.remove(self.turn);
                self.dismiss(over, options);
                Ok(false)
            }
            Stop::Evicted(why) => {
                let evicted = self.connections.remove(self.turn);
                let publisher = Arc::clone(&evicted.link.info);
                self.part_from(evicted);
                if options.events {
                    self.happened(options, &publisher, EventKind::Evicted);
                    return Ok(true);
                }
                let (topic, pid) = (publisher.topic.clone(), publisher.pid);
                Err(Error::Evicted { topic, pid, why: printable(&why) })
            }
            Stop::Refused(error) => {
                let topic = &self.connections[self.turn].link.info.topic;
                let error = Error::system(topic, "cannot map a publisher's memory")(error);
                self.next_turn();
                Err(error)
            }
            Stop::Gap => {
                let connection = &mut self.connections[self.turn];
                let publisher = Arc::clone(&connection.link.info);
                if let Some((first, count)) = connection.gap.take() {
                    self.happened(options, &publisher, EventKind::Gap { first, count });
                }
                Ok(true)
            }
        }
    }

    /// A wake-up that was read from the socket of the connection at turn was meant for the thread that sleeps, if one does.
    #[inline(always)]
    fn pass_wake_on(&mut self) {
        let connection = &mut self.connections[self.turn];
        if (self.asleep || self.polled) && std::mem::take(&mut connection.took_wake) {
            self.door.ring();
        }
    }

    #[inline]
    fn next_turn(&mut self) {
        self.turn = if self.turn + 1 < self.connections.len() { self.turn + 1 } else { 0 };
        self.turn_left = TURN;
    }

    /// Accounts for a message of `len` bytes that the publisher at turn sent.
    #[inline(always)]
    fn took(&mut self, len: u64, sent_ns: u64) {
        self.turn_left -= 1;
        if self.turn_left == 0 {
            self.next_turn();
        }
        self.apart_ns = sent_ns.abs_diff(self.sent_ns);
        self.sent_ns = sent_ns;
        self.stats.received += 1;
        self.stats.bytes += len;
        self.stay_awake();
    }

    /// Who receives messages need not be woken.
    #[inline(always)]
    fn stay_awake(&mut self) {
        // Whoever polls the descriptor besides has to be woken for the next one.
        if self.armed && !self.asleep && !self.polled {
            self.disarm();
        }
    }

    fn dismiss(&mut self, over: Connection, options: &SubscriberBuilder) {
        fault!("over.noticed");
        let kind = if over.was_closed() { EventKind::Left } else { EventKind::Lost };
        let (topic, pid) = (&over.link.info.topic, over.link.info.pid);
        log::debug!("byref: topic '{topic}': the connection to the publisher in process {pid} is over: {kind:?}");
        self.happened(options, &over.link.info, kind);
        if over.was_cut_off() && self.candidates.has_name_of(&over.candidate.name) {
            // One that died refuses, and its name goes. One that lives may have lost the connection, for whatever reason.
            self.ask_again(over.candidate.clone());
        }
        self.part_from(over);
    }

    fn part_from(&mut self, over: Connection) {
        over.leave();
        if !self.bells.known.is_empty() {
            let Open { bells, connections, door, .. } = self;
            bells.keep(door, |pair| {
                connections.iter().any(|it| std::ptr::eq(pair.as_ptr(), Arc::as_ptr(it.link.channel.pair())))
            });
        }
    }

    /// Has a publisher asked again after a pause.
    fn ask_again(&self, candidate: Candidate) {
        let shared = Weak::clone(&self.shared);
        self.service.after(candidate.pause, move |_, _, _| {
            if let Some(shared) = shared.upgrade() {
                shared.update(|open| open.candidates.again(candidate.clone()));
                shared.ask_candidates();
            }
            Next::Done
        });
    }

    /// Does what receiving does besides, for a subscriber that nobody receives from at the moment: notices ends, reads what
    /// publishers say, and parts from those that are gone and left no message. Whether anything happened, and whether this is to be
    /// done again also if the descriptors say nothing.
    fn tidy(&mut self, options: &SubscriberBuilder) -> (bool, bool) {
        if self.asleep {
            return (false, true);
        }
        let mut happened = self.look_at_descriptors().unwrap_or(false);
        for connection in &mut self.connections {
            happened |= connection.tidy();
            connection.took_wake = false;
        }
        let (mut used_up, mut lost) = (Vec::new(), self.stats.lost);
        used_up.extend(self.connections.extract_if(.., |connection| connection.is_used_up(&mut lost)));
        self.stats.lost = lost;
        happened |= !used_up.is_empty();
        for over in used_up {
            self.dismiss(over, options);
        }
        if options.policy != Policy::Block {
            self.forget_oldest(options);
        }
        self.pass_on(happened);
        (happened, self.connections.iter().any(|connection| !connection.is_live()))
    }

    /// What made the descriptor readable was taken from under the eyes of who polls it: they look again.
    fn pass_on(&self, happened: bool) {
        if happened && self.polled {
            self.door.ring();
        }
    }

    /// Who may lose messages loses those of publishers that are gone, beyond the last few of these.
    fn forget_oldest(&mut self, options: &SubscriberBuilder) {
        let gone = self.connections.iter().filter(|connection| !connection.is_live()).count();
        for _ in MOST_GONE..gone {
            let Some(at) = self.connections.iter().position(|connection| !connection.is_live()) else { return };
            let mut over = self.connections.remove(at);
            if let Some((first, count)) = over.gap.take() {
                self.happened(options, &over.link.info, EventKind::Gap { first, count });
            }
            let (first, count) = over.give_up();
            if count > 0 {
                self.stats.lost = self.stats.lost.saturating_add(count);
                self.happened(options, &over.link.info, EventKind::Gap { first, count });
            }
            self.dismiss(over, options);
        }
    }

    /// Tells every publisher that this subscriber goes to sleep. Afterwards it has to look once more.
    fn arm(&mut self) {
        self.announce();
        // Pairs with the light fence after each append.
        if !heavy_fence() && self.polled {
            self.look_later(); // Nobody knows when who polls would look without being told.
        }
    }

    #[cold]
    fn look_later(&self) {
        let shared = Weak::clone(&self.shared);
        self.service.after(membarrier::SETTLED, move |_, _, _| {
            if let Some(shared) = shared.upgrade() {
                shared.update(|open| {
                    let mut backlogs =
                        open.connections.iter_mut().map(|it| it.backlog(shared.options.keeps(it.capacity())));
                    if open.armed && backlogs.any(|(messages, _)| messages > 0) {
                        open.door.ring();
                    }
                });
            }
            Next::Done
        });
    }

    /// The first half of [`arm`](Self::arm); the heavy fence has to follow.
    fn announce(&mut self) {
        self.hand_out_bells();
        self.epoch += 1;
        self.armed = true;
        self.announced = self.epoch | if matches!(self.at, SleepsAt::Words { .. }) { BY_WORD } else { 0 };
        for connection in &self.connections {
            connection.link.lease().set_sleeping(self.announced);
        }
        fault!("sleep.subscriber_announced");
    }

    fn disarm(&mut self) {
        self.armed = false;
        for connection in &self.connections {
            connection.link.lease().set_sleeping(AWAKE);
        }
    }

    /// From now on.
    fn sleep_at_sockets(&mut self) {
        let SleepsAt::Words { .. } = std::mem::replace(&mut self.at, SleepsAt::Sockets) else { return };
        self.hand_out_bells();
        if self.armed {
            // A thread that sleeps at words announces its sleep anew.
            self.disarm();
            self.door.ring();
        }
    }

    /// Tells publishers by what to wake this subscriber. Whoever cannot be told rings at the service thread.
    fn hand_out_bells(&mut self) {
        if !matches!(self.at, SleepsAt::Sockets) {
            return;
        }
        for connection in self.connections.iter_mut().filter(|it| !it.has_bell && it.is_live()) {
            let channel = &connection.link.channel;
            let Ok(bell) = self.bells.of(channel.pair(), &self.door) else { return };
            let packet = handshake::encode_to_publisher(&ToPublisher::Bell { number: bell.number });
            connection.has_bell = channel.send(&packet, Some(bell.theirs.as_fd())).unwrap_or(false);
        }
    }

    /// Before a sleep at words: does what the sockets ask for. How often the gong was struck by then; `None`: sleep at the sockets.
    fn hear_gong(&mut self, options: &SubscriberBuilder, took_wake_ups: &mut bool) -> Result<Option<u32>> {
        if self.connections.len() > MOST_WORDS {
            self.sleep_at_sockets();
        }
        let SleepsAt::Words { heard } = &mut self.at else { return Ok(None) };
        let strikes = self.door.gong.strikes();
        if std::mem::replace(heard, strikes) != strikes {
            let happened =
                self.look_at_descriptors().map_err(Error::system(&options.topic, "cannot look for events"))?;
            if happened {
                // Something may be left, of which the gong does not tell again: no sleep before another look.
                let before = strikes.wrapping_sub(1);
                if let SleepsAt::Words { heard } = &mut self.at {
                    *heard = before;
                }
                *took_wake_ups |= self.polled;
                return Ok(Some(before));
            }
        }
        Ok(Some(strikes))
    }

    /// Notes the values of the wake words that the next announcement is about.
    fn note_words(&self, words: &mut Words) {
        words.note(self.connections.iter().map(Connection::wake_word));
    }

    /// The rest of a [`Subscriber::try_recv`] that found nothing at first.
    fn found_nothing<R>(
        &mut self,
        options: &SubscriberBuilder,
        mut take: impl FnMut(&mut Self, &SubscriberBuilder) -> Result<Option<R>>,
    ) -> Result<Option<R>> {
        if self.polled {
            let handled = self.handle_events(options)?;
            if handled || !self.armed {
                self.arm();
                let taken = take(self, options)?;
                if taken.is_some() {
                    self.pass_on(handled);
                    return Ok(taken);
                }
            }
        }
        self.trouble.take().map_or(Ok(None), Err)
    }

    /// Handles what has happened, without waiting; `true` when there was anything. While a thread sleeps it is left to that.
    fn handle_events(&mut self, options: &SubscriberBuilder) -> Result<bool> {
        if self.asleep {
            return Ok(false);
        }
        self.look_at_descriptors().map_err(Error::system(&options.topic, "cannot look for events"))
    }

    /// Handles all that is ready now; `true` when anything was.
    fn look_at_descriptors(&mut self) -> io::Result<bool> {
        let mut ready = Vec::new();
        // A bell that is rung without end may stay ready: no more looks than there are bells.
        for look in 0..=2 * self.bells.known.len() / READY_AT_ONCE {
            ready.clear();
            self.door.epoll.wait(Some(Duration::ZERO), &mut ready)?;
            self.handle(&ready);
            if ready.len() < READY_AT_ONCE {
                return Ok(look > 0 || !ready.is_empty());
            }
        }
        Ok(true)
    }

    /// Something was rung for.
    fn handle(&mut self, ready: &[u64]) {
        for &token in ready {
            match token {
                Door::BELL => self.door.bell.silence(),
                number => self.bells.silence(number, &self.door),
            }
        }
    }
}

/// A process's number; 0: it is out of sight.
fn number(pid: Option<Pid>) -> i32 {
    pid.map_or(0, |pid| pid.as_raw_nonzero().get())
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::Publisher;

    /// Without a call to it: what may wait is kept, all of it for one that loses nothing.
    #[test]
    fn publishers_that_are_gone_leave_nothing_but_messages() {
        let _meeting = crate::fuzzing::meet_in_private();
        let policies = [Policy::Block, Policy::DropOldest];
        let build = |policy| Subscriber::builder("a/*").policy(policy).build().unwrap();
        let subscribers = policies.map(build);
        let come_and_go = |count: usize, is_sending: bool| {
            for number in 0..count {
                let publisher = Publisher::builder(format!("a/{number}")).capacity(16).build().unwrap();
                publisher.wait_for_subscribers(2, Some(Duration::from_secs(20))).unwrap();
                if is_sending {
                    publisher.send(b"x").unwrap();
                }
            }
        };
        let eventually = |wanted: [usize; 2]| {
            let begin = Instant::now();
            let kept = || subscribers.each_ref().map(|each| each.shared.update(|open| open.connections.len()).unwrap());
            while kept() != wanted {
                assert!(begin.elapsed() < Duration::from_secs(20), "{:?} instead of {wanted:?}", kept());
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        come_and_go(100, false);
        eventually([0, 0]);
        come_and_go(100, true);
        eventually([100, MOST_GONE]);
        let lost = subscribers.each_ref().map(|each| each.stats().unwrap().lost);
        assert_eq!(lost, [0, 100 - MOST_GONE as u64]);
        for (subscriber, count) in subscribers.iter().zip([100, MOST_GONE]) {
            assert_eq!(std::iter::from_fn(|| subscriber.try_recv().unwrap()).count(), count);
        }
        eventually([0, 0]);
    }

    /// The system refused the heavy fence, and so the publisher and the sleeper missed each other.
    #[test]
    fn who_polls_hears_later_of_a_message_that_was_missed() {
        let _meeting = crate::fuzzing::meet_in_private();
        let publisher = Publisher::builder("t").capacity(16).build().unwrap();
        let subscriber = Subscriber::builder("t").build().unwrap();
        publisher.wait_for_subscribers(1, Some(Duration::from_secs(20))).unwrap();
        let readiness = subscriber.readiness().unwrap();
        while subscriber.publishers().unwrap().is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let wait = |time| readiness.0.epoll.wait(Some(time), &mut Vec::new()).unwrap();
        while wait(Duration::ZERO) == Woken::Ready {
            assert!(subscriber.try_recv().unwrap().is_none());
        }
        subscriber.shared.update(Open::disarm);
        publisher.send(b"x").unwrap();
        subscriber.announce_sleep().unwrap();
        assert_eq!(wait(Duration::from_millis(10)), Woken::TimedOut, "nobody tells");
        subscriber.look_later();
        assert_eq!(wait(Duration::from_secs(20)), Woken::Ready);
        assert!(subscriber.try_recv().unwrap().is_some());
    }

    /// It notes the words that there are, and would sleep over what the newcomer sends.
    #[test]
    fn who_sleeps_again_at_words_announces_it_to_a_newcomer() {
        let _meeting = crate::fuzzing::meet_in_private();
        let subscriber = Subscriber::builder("t/*").build().unwrap();
        let is_by_word = subscriber.shared.update(|open| matches!(open.at, SleepsAt::Words { .. })).unwrap();
        let first = Publisher::builder("t/a").capacity(16).build().unwrap();
        subscriber.wait_for_publishers(1, Some(Duration::from_secs(20))).unwrap();
        subscriber.announce_sleep().unwrap();
        let second = Publisher::builder("t/b").capacity(16).build().unwrap();
        subscriber.wait_for_publishers(2, Some(Duration::from_secs(20))).unwrap();
        let sleeps = |open: &mut Open| {
            let said = open.connections.iter().map(|it| it.link.lease().sleeping() != AWAKE);
            (open.armed, said.collect::<Vec<_>>())
        };
        let wanted = !is_by_word; // Who sleeps at sockets has the newcomer's among them.
        assert_eq!(subscriber.shared.update(sleeps).unwrap(), (wanted, vec![wanted; 2]));
        drop((first, second));
    }

    #[test]
    fn a_sleep_in_pieces_is_one_sleep() {
        let _meeting = crate::fuzzing::meet_in_private();
        let subscriber = Subscriber::builder("t").build().unwrap();
        let mut looks = 0;
        let mut look = || {
            looks += 1;
            false
        };
        let brief = Duration::from_millis(1);
        let mut wait = Wait::up_to(Some(20 * brief)).interruptible(&mut look).at_least_every(brief);
        subscriber.recv_with(&mut wait).unwrap_err();
        assert!(looks > 4, "it slept in pieces");
        let time = subscriber.shared.update(|open| open.spin.time()).unwrap();
        assert!(time >= DEFAULT_MOST / 2, "{time:?}: one long sleep halves it once");
    }

    #[test]
    fn publishers_that_are_gone_are_forgotten() {
        let _meeting = crate::fuzzing::meet_in_private();
        let subscribers = ["a/*", "b"].map(|topic| Subscriber::builder(topic).build().unwrap());
        let known =
            || subscribers.each_ref().map(|each| each.shared.update(|open| open.candidates.known.len()).unwrap());
        let publish = |topic: &str| Publisher::builder(topic).capacity(16).build().unwrap();
        let eventually = |wanted: [usize; 2]| {
            let begin = Instant::now();
            while known() != wanted {
                assert!(begin.elapsed() < Duration::from_secs(20), "{:?} instead of {wanted:?}", known());
                std::thread::sleep(Duration::from_millis(5));
            }
        };

        let publishers = ["a/1", "b", "b", "c", "c/d/e"].map(publish);
        eventually([5, 2]);
        let (matching, others) = publishers.split_at(3);
        others.iter().for_each(Publisher::close);
        eventually([3, 2]);
        matching.iter().for_each(Publisher::close);
        eventually([0, 0]);

        // News that were missed.
        let live = publish("a/2");
        eventually([1, 0]);
        for each in &subscribers {
            each.shared.update(|open| open.candidates.meet("gone"));
            let lookout = each.shared.update(|open| Arc::clone(&open.lookout)).unwrap();
            lookout.miss_something();
        }
        eventually([1, 0]);
        drop((live, subscribers));
    }
}
