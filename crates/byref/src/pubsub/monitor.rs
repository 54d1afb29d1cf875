//! What an event queue tells of itself: to its own process, to others, and to the log when a threshold is passed.
//!
//! The figures of a queue with a name lie in a sealed segment that anybody of the same user may map for reading: a socket in
//! the rendezvous directory hands it out. There is one writer for each word: the queue's thread counts callbacks, the service
//! thread counts what waits (when it is asked), and both only make plain stores. So a queue whose callback hangs can still be
//! looked at, and the service thread, which never enters an interpreter, logs that it hangs while it does.
//!
//! # Layout, in words
//!
//! | words | content |
//! | --- | --- |
//! | 0 | how many receivers there are |
//! | 1..=6 | [`Figures`] of the queue |
//! | 7 | how many kinds of timers there are |
//! | 8, 9 | who is called, as place + 1 (0: nobody), and since when |
//! | 10, 11, 12 | how many callbacks were slow; how long the last of them took, and who (place + 1) |
//! | 64 (k + 1) | receiver `k`: its generation (0: none), [`Figures`], then at 8 its topic and at 40 its name. Without a topic it is a kind of timers |
//!
//! The texts of a place are rewritten when it is used anew. A reader looks at the generation before and after, as with a
//! sequence lock, and leaves out what changed meanwhile. Places beyond the segment's are kept in the process alone.

use crate::error::{Error, Result};
use crate::link::acceptor::Host;
use crate::link::announcement::Announcement;
use crate::link::ask::{Answered, look_at};
use crate::link::channel::Channel;
use crate::link::handshake::{self, ToSubscriber, Wish};
use crate::link::location::Location;
use crate::link::lookout::Lookout;
use crate::link::rendezvous::{self, Announced, CANNOT_LIST, Directory};
use crate::link::service::{self, Handle};
use crate::link::tasks::{Next, Service};
use crate::pubsub::subscriber::Subscriber;
use crate::sync::locks::Mutex;
use crate::sync::{AtomicU64, Ordering, fence};
use crate::sys::clock;
use crate::sys::fork::ForkId;
use crate::sys::memory::{Mapping, OwnedSegment, PeerSegment};
use crate::sys::process::{monotonic_ns, realtime_ns};
use crate::sys::socket::{self, MAX_PACKET, Received};
use crate::sys::text::printable;
use crate::topic::MAX_TOPIC;
use rustix::fd::OwnedFd;
use serde::{Deserialize, Serialize};
use std::io;
use std::ops::Range;

use std::sync::{Arc, Weak};
use std::time::Duration;

/// Receivers and kinds of timers that the segment has places for.
pub const MAX_LISTED: usize = 256;
const ROW: usize = 64;
const SEGMENT_WORDS: usize = ROW * (MAX_LISTED + 1);
pub(crate) const SEGMENT_LEN: u64 = SEGMENT_WORDS as u64 * 8;

// Of a queue, and of each receiver.
const CALLBACKS: usize = 1;
const TIME: usize = 2;
const LONGEST: usize = 3;
const WAITING: usize = 4;
const OLDEST: usize = 5;
const LOST: usize = 6;
// Of the queue.
const COUNT: usize = 0;
const TIMERS: usize = 7;
const CALLED: usize = 8;
const SINCE: usize = 9;
const SLOW: usize = 10;
const SLOW_TIME: usize = 11;
const SLOW_WHO: usize = 12;
// Of a receiver.
const GENERATION: usize = 0;
const TOPIC: Range<usize> = 8..40;
const NAME: Range<usize> = 40..ROW;

/// The service thread looks so often at the most and at the least; at half of the shortest threshold in between.
const LOOK_EVERY: Range<Duration> = Duration::from_millis(10)..Duration::from_millis(250);

/// What is logged as a warning, by the service thread, when it is passed. `None`: nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Thresholds {
    /// How long one callback may take: reported while it still runs, and again with its time when it is over.
    pub slow_callback: Option<Duration>,
    /// How many messages may wait.
    pub backlog: Option<u64>,
    /// How long a message may wait, by its timestamp.
    pub max_age: Option<Duration>,
}

impl Thresholds {
    fn look_every(&self) -> Option<Duration> {
        let times = self.slow_callback.into_iter().chain(self.max_age).map(|time| time / 2);
        let shortest = times.chain(self.backlog.map(|_| LOOK_EVERY.end)).min()?;
        Some(shortest.clamp(LOOK_EVERY.start, LOOK_EVERY.end))
    }
}

/// Numbers of an event queue, or of one of its receivers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Callbacks that were made.
    pub callbacks: u64,
    /// The time they took together, in nanoseconds.
    pub callback_ns: u64,
    /// The time that the longest of them took.
    pub longest_ns: u64,
    /// Messages that were sent and not yet given to a callback.
    pub waiting: u64,
    /// How long ago the oldest of those was sent, in nanoseconds, by its timestamp.
    pub oldest_age_ns: Option<u64>,
    /// Messages lost by the receivers' policies; calls that timers missed.
    pub lost: u64,
}

/// Who is called at this moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Running {
    /// The receiver's topic (shortened when long; empty for a timer, and when it is not listed).
    pub topic: String,
    /// The receiver's or timer's name (the same).
    pub name: String,
    /// For how long, in nanoseconds.
    pub time_ns: u64,
}

/// What one receiver tells, or all timers of one name together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiverReport {
    /// Its topic; shortened to 256 bytes when it comes from another process. Timers have none.
    pub topic: String,
    /// Its name; shortened to 192 bytes when it comes from another process.
    pub name: String,
    /// Its numbers.
    pub figures: Figures,
}

/// What an event queue tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueReport {
    /// The queue's name.
    pub name: Option<String>,
    /// Its process (0 when it is out of sight).
    pub pid: i32,
    /// How many receivers it has.
    pub count: u64,
    /// The receivers; of another process's queue, [`MAX_LISTED`] at the most, with the timers.
    pub receivers: Vec<ReceiverReport>,
    /// How many names of timers there are.
    pub timer_count: u64,
    /// The timers, by name; [`Figures::lost`] is what they missed.
    pub timers: Vec<ReceiverReport>,
    /// All receivers together; callbacks of timers, and of those that were closed, count, too.
    pub figures: Figures,
    /// The callback that runs.
    pub running: Option<Running>,
}

/// Words of the shared segment, or of this process's own.
enum Words {
    Shared(Arc<OwnedSegment>, usize),
    Own(Box<[AtomicU64]>),
}

impl Words {
    fn own() -> Self {
        Words::Own((0..ROW).map(|_| AtomicU64::new(0)).collect())
    }

    #[inline]
    fn get(&self) -> &[AtomicU64] {
        match self {
            Words::Shared(segment, row) => &segment.map().words()[row * ROW..][..ROW],
            Words::Own(words) => words,
        }
    }
}

/// The account of one receiver, or of the timers of one name. Its counters are the queue's thread's.
pub struct Account {
    /// Timers have none.
    subscriber: Option<Arc<Subscriber>>,
    name: String,
    place: u64,
    words: Words,
}

impl Account {
    /// Its numbers now.
    pub fn figures(&self) -> Figures {
        let row = self.words.get();
        let Some(subscriber) = &self.subscriber else {
            return Figures { lost: row[LOST].load(Ordering::Relaxed), ..counted(row) };
        };
        let lost = subscriber.stats().map_or(0, |stats| stats.lost);
        let backlog = subscriber.backlog().unwrap_or_default();
        let oldest_age_ns = backlog.oldest_ns.map(age);
        Figures { waiting: backlog.messages, oldest_age_ns, lost, ..counted(row) }
    }

    /// The queue's thread: timers came too late for so many calls.
    pub fn missed(&self, calls: u64) {
        add(&self.words.get()[LOST], calls);
    }

    fn topic(&self) -> &str {
        self.subscriber.as_ref().map_or("", |subscriber| subscriber.topic())
    }

    fn report(&self) -> ReceiverReport {
        let (topic, name) = (self.topic().to_owned(), self.name.clone());
        ReceiverReport { topic, name, figures: self.figures() }
    }

    fn who(&self) -> String {
        match &self.subscriber {
            Some(subscriber) => format!("receiver '{}' of topic '{}'", self.name, subscriber.topic()),
            None => format!("timer '{}'", self.name),
        }
    }

    /// The word of the queue that counts those of its kind.
    fn count(&self) -> usize {
        if self.subscriber.is_some() { COUNT } else { TIMERS }
    }
}

/// The account of an event queue.
pub struct Monitor {
    name: Option<String>,
    thresholds: Thresholds,
    slow_ns: u64,
    head: Words,
    /// By place. A place is free for the next receiver when the account is dropped.
    accounts: Mutex<Vec<Weak<Account>>>,
    shared: Option<Arc<OwnedSegment>>,
    /// `None` when nobody else is interested, and after [`shut`](Monitor::shut).
    service: Mutex<Option<Served>>,
    made_in: ForkId,
}

/// What the service thread does for a queue.
struct Served {
    _service: Arc<Handle>,
    /// Where it answers onlookers.
    announcement: Option<Arc<Announcement>>,
}

impl Monitor {
    /// Opens the account of a queue. With a name it can be looked at from other processes, through [`monitors`].
    pub fn new(name: Option<String>, thresholds: Thresholds) -> Result<Arc<Self>> {
        if name.as_ref().is_some_and(|name| name.is_empty() || name.len() > MAX_TOPIC) {
            return Err(Error::InvalidArgument("the name of an event queue has 1 to 1024 bytes".into()));
        }
        let label = name.clone().unwrap_or_default();
        ForkId::prepare().map_err(Error::system(&label, "cannot make an event queue"))?;
        let shared = match &name {
            None => None,
            Some(_) => {
                let segment = OwnedSegment::new("byref-queue", SEGMENT_LEN)
                    .and_then(|segment| segment.populate(0..SEGMENT_LEN).map(|()| segment));
                Some(Arc::new(segment.map_err(Error::system(&label, "cannot make the segment of an event queue"))?))
            }
        };
        let monitor = Arc::new(Monitor {
            slow_ns: thresholds.slow_callback.map_or(u64::MAX, |time| time.as_nanos() as u64),
            thresholds,
            head: shared.as_ref().map_or_else(Words::own, |segment| Words::Shared(Arc::clone(segment), 0)),
            accounts: Mutex::default(),
            shared,
            service: Mutex::default(),
            made_in: ForkId::current(),
            name,
        });
        let look_every = thresholds.look_every();
        if monitor.name.is_some() || look_every.is_some() {
            let (lookout, service) = service::connect(&label)?;
            let announcement = monitor.name.as_ref().map(|_| monitor.listen(&lookout, &service)).transpose()?;
            *monitor.service.lock() = Some(Served { _service: Arc::clone(&service), announcement });
            if let Some(every) = look_every {
                monitor.look_now_and_then(&service, every);
            }
        }
        Ok(monitor)
    }

    /// Opens the account of a receiver, which has a name for people, or of timers (no subscriber).
    pub fn account(&self, subscriber: Option<Arc<Subscriber>>, name: String) -> Arc<Account> {
        let mut accounts = self.accounts.lock();
        let free = accounts.iter().position(|account| account.strong_count() == 0);
        let place = free.unwrap_or(accounts.len());
        let words = match &self.shared {
            Some(segment) if place < MAX_LISTED => Words::Shared(Arc::clone(segment), place + 1),
            _ => Words::own(),
        };
        let row = words.get();
        for word in [CALLBACKS, TIME, LONGEST, WAITING, OLDEST, LOST] {
            row[word].store(0, Ordering::Relaxed);
        }
        let account = Account { subscriber, name, place: place as u64 + 1, words };
        let row = account.words.get();
        write_text(&row[TOPIC], account.topic());
        write_text(&row[NAME], &account.name);
        let generation = row[GENERATION].load(Ordering::Relaxed);
        row[GENERATION].store((generation + 1) | LISTED, Ordering::Release);
        let account = Arc::new(account);
        let known = Arc::downgrade(&account);
        match accounts.get_mut(place) {
            Some(free) => *free = known,
            None => accounts.push(known),
        }
        self.head.get()[account.count()].fetch_add(1, Ordering::Relaxed);
        account
    }

    /// The receiver is closed, or no timer of that name is left: it is listed no more. Once only.
    pub fn close(&self, account: &Account) {
        add(&account.words.get()[GENERATION], 1);
        fence(Ordering::Release); // Before the texts of the next one.
        self.head.get()[account.count()].fetch_sub(1, Ordering::Relaxed);
    }

    /// The clock of [`begin`](Self::begin) and [`done`](Self::done).
    #[inline]
    pub fn now() -> u64 {
        clock::monotonic()
    }

    /// The queue's thread: a callback of this receiver begins.
    #[inline]
    pub fn begin(&self, account: &Account, now: u64) {
        let head = self.head.get();
        head[SINCE].store(now, Ordering::Relaxed);
        head[CALLED].store(account.place, Ordering::Relaxed);
    }

    /// The queue's thread: the callback is done; the next one of this receiver begins, unless [`rest`](Self::rest) follows.
    #[inline]
    pub fn done(&self, account: &Account, now: u64) {
        let head = self.head.get();
        let took = now.saturating_sub(head[SINCE].load(Ordering::Relaxed));
        for words in [head, account.words.get()] {
            add(&words[CALLBACKS], 1);
            add(&words[TIME], took);
            if took > words[LONGEST].load(Ordering::Relaxed) {
                words[LONGEST].store(took, Ordering::Relaxed);
            }
        }
        head[SINCE].store(now, Ordering::Relaxed);
        if took > self.slow_ns {
            head[SLOW_TIME].store(took, Ordering::Relaxed);
            head[SLOW_WHO].store(account.place, Ordering::Relaxed);
            add(&head[SLOW], 1);
        }
    }

    /// The queue's thread: no callback runs.
    #[inline]
    pub fn rest(&self) {
        self.head.get()[CALLED].store(0, Ordering::Relaxed);
    }

    /// What the queue tells at this moment.
    pub fn report(&self) -> QueueReport {
        let all = self.open_accounts().iter().map(|account| account.report()).collect();
        let (receivers, timers) = parted(all);
        let figures = sum(counted(self.head.get()), receivers.iter().map(|receiver| receiver.figures));
        let running = self.running().map(|(account, time_ns)| {
            let (topic, name) =
                account.map(|account| (account.topic().to_owned(), account.name.clone())).unwrap_or_default();
            Running { topic, name, time_ns }
        });
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        let (count, timer_count) = (receivers.len() as u64, timers.len() as u64);
        QueueReport { name: self.name.clone(), pid, count, receivers, timer_count, timers, figures, running }
    }

    fn open_accounts(&self) -> Vec<Arc<Account>> {
        let accounts = self.accounts.lock();
        let known = accounts.iter().filter_map(Weak::upgrade);
        known.filter(|account| is_listed(account.words.get()[GENERATION].load(Ordering::Relaxed))).collect()
    }

    fn at(&self, place: u64) -> Option<Arc<Account>> {
        self.accounts.lock().get(place.checked_sub(1)? as usize)?.upgrade()
    }

    /// Whose callback runs, and for how long.
    fn running(&self) -> Option<(Option<Arc<Account>>, u64)> {
        let head = self.head.get();
        let place = head[CALLED].load(Ordering::Relaxed);
        let since = head[SINCE].load(Ordering::Relaxed);
        (place != 0).then(|| (self.at(place), monotonic_ns().saturating_sub(since)))
    }

    /// The queue is closed: it is neither shown nor watched any more. Twice is fine.
    pub fn shut(&self) {
        if !self.made_in.is_current() {
            return;
        }
        let served = self.service.lock().take();
        if let Some(Served { announcement: Some(announcement), .. }) = served {
            announcement.withdraw();
        }
    }

    /// Shows the numbers to whoever connects.
    fn listen(self: &Arc<Self>, lookout: &Arc<Lookout>, service: &Arc<Handle>) -> Result<Arc<Announcement>> {
        let host: Weak<dyn Host> = Arc::downgrade(self) as _;
        let who = Announced::Queue { id: rendezvous::new_id(), times: 0 };
        Announcement::new(lookout, service, &self.label(), who, host)
    }

    /// Sends an onlooker the segment, brought up to date.
    fn show(&self, onlooker: &OwnedFd) {
        let Some(segment) = &self.shared else { return };
        let mut all = Vec::new();
        // What timers missed is written as they count it.
        for account in self.open_accounts().iter().filter(|account| account.subscriber.is_some()) {
            let figures = account.figures();
            sample(account.words.get(), figures);
            all.push(figures);
        }
        let head = self.head.get();
        sample(head, sum(counted(head), all.into_iter()));
        let hello = QueueHello { name: self.name.clone().unwrap_or_default() };
        // Whoever hangs up, or has no room for one packet, wants no answer.
        let _ = socket::send(onlooker, &handshake::encode_first(&hello), Some(segment.shared()));
    }

    /// Holds the queue against its thresholds, until it is shut.
    fn look_now_and_then(self: &Arc<Self>, service: &Service, every: Duration) {
        let monitor = Arc::downgrade(self);
        let mut watch = Watchman::default();
        service.after(every, move |_, _, _| {
            let Some(monitor) = monitor.upgrade().filter(|monitor| monitor.service.lock().is_some()) else {
                return Next::Done;
            };
            watch.look(&monitor);
            Next::After(every)
        });
    }

    fn label(&self) -> String {
        self.name.as_ref().map_or_else(|| "event queue".to_owned(), |name| format!("event queue '{name}'"))
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.shut();
    }
}

/// What was reported already.
#[derive(Default)]
struct Watchman {
    hung_since: u64,
    slow: u64,
    backlog: bool,
    age: bool,
}

impl Watchman {
    fn look(&mut self, monitor: &Monitor) {
        let thresholds = monitor.thresholds;
        if let Some(most) = thresholds.slow_callback {
            self.look_for_slow_callbacks(monitor, most);
        }
        if thresholds.backlog.is_none() && thresholds.max_age.is_none() {
            return;
        }
        let reports: Vec<_> = monitor
            .open_accounts()
            .iter()
            .filter(|account| account.subscriber.is_some())
            .map(|account| (account.figures(), account.who()))
            .collect();
        let figures = sum(Figures::default(), reports.iter().map(|(figures, _)| *figures));
        if let Some(most) = thresholds.backlog
            && passed(&mut self.backlog, figures.waiting > most, figures.waiting <= most / 2)
            && let Some((worst, who)) = reports.iter().max_by_key(|(figures, _)| figures.waiting)
        {
            let (label, all) = (monitor.label(), figures.waiting);
            log::warn!("byref: {label}: {all} messages wait (backlog={most}), {} of them for {who}", worst.waiting);
        }
        if let Some(most) = thresholds.max_age {
            let age = Duration::from_nanos(figures.oldest_age_ns.unwrap_or(0));
            if passed(&mut self.age, age > most, age <= most / 2)
                && let Some((_, who)) = reports.iter().max_by_key(|(figures, _)| figures.oldest_age_ns)
            {
                log::warn!("byref: {}: a message for {who} waits since {age:.1?} (max_age={most:?})", monitor.label());
            }
        }
    }

    fn look_for_slow_callbacks(&mut self, monitor: &Monitor, most: Duration) {
        let head = monitor.head.get();
        let who = |account: Option<Arc<Account>>| account.map_or_else(|| "a receiver".to_owned(), |it| it.who());
        let slow = head[SLOW].load(Ordering::Relaxed);
        if slow != self.slow {
            self.slow = slow;
            let took = Duration::from_nanos(head[SLOW_TIME].load(Ordering::Relaxed));
            let who = who(monitor.at(head[SLOW_WHO].load(Ordering::Relaxed)));
            log::warn!("byref: {}: {who} took {took:.1?} for a callback (slow_callback={most:?})", monitor.label());
        }
        let since = head[SINCE].load(Ordering::Relaxed);
        if let Some((account, time_ns)) = monitor.running()
            && time_ns > monitor.slow_ns
            && since != self.hung_since
        {
            self.hung_since = since;
            let (time, waiting) = (Duration::from_nanos(time_ns), monitor.report().figures.waiting);
            let (label, who) = (monitor.label(), who(account));
            log::warn!(
                "byref: {label}: {who} still runs after {time:.1?} (slow_callback={most:?}); {waiting} messages wait"
            );
        }
    }
}

/// Whether a threshold is passed for the first time since all was well.
fn passed(reported: &mut bool, is_over: bool, is_well: bool) -> bool {
    if is_well {
        *reported = false;
    }
    let first = is_over && !*reported;
    *reported |= is_over;
    first
}

impl Host for Monitor {
    /// It publishes nothing.
    fn take_call(self: Arc<Self>, channel: Channel, _: Wish, _: Option<OwnedFd>) -> io::Result<()> {
        channel.send(&handshake::encode_first(&ToSubscriber::NotThisTopic), None).map(drop)
    }

    fn answer(self: Arc<Self>, onlooker: &OwnedFd, wish: Wish) -> io::Result<()> {
        if wish == Wish::Look {
            self.show(onlooker);
        }
        Ok(())
    }

    /// An onlooker does without.
    fn is_short_of(&self, _: &io::Error) {}

    fn topic(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }
}

/// The first packet to an onlooker.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct QueueHello {
    pub name: String,
}

/// What the named event queues of this user tell at this moment, those of this process, too. Queues whose process does not
/// answer soon are left out.
pub fn monitors() -> Result<Vec<QueueReport>> {
    let directory = Directory::open(&Location::from_environment()?, "*")?;
    let unreadable = Error::meeting("*", directory.path(), CANNOT_LIST);
    let names = directory.queues().map_err(unreadable)?;
    let mut reports = Vec::new();
    let asked = look_at(&directory, &names, |_, socket| {
        reports.extend(read_answer(socket));
        Answered::All
    });
    asked.map_err(Error::system("*", "cannot ask event queues"))?;
    reports.sort_by(|one, other| (&one.name, one.pid).cmp(&(&other.name, other.pid)));
    Ok(reports)
}

/// What a queue answered; `None` when that cannot be used.
fn read_answer(socket: &OwnedFd) -> Option<QueueReport> {
    let mut packet = [0u8; MAX_PACKET];
    let Ok(Received::Packet(len, Some(segment))) = socket::receive(socket, &mut packet) else { return None };
    let hello: QueueHello = handshake::decode_first(&packet[..len]).ok()?;
    let segment =
        PeerSegment::new(segment, Some(SEGMENT_LEN)).ok().filter(|it| it.has_memory(0..SEGMENT_LEN))?.into_map();
    let pid = socket::peer_pid(socket).map_or(0, |pid| pid.as_raw_nonzero().get());
    Some(read_segment(&segment, printable(&hello.name), pid))
}

pub(crate) fn read_segment(segment: &Mapping, name: String, pid: i32) -> QueueReport {
    let words = segment.words();
    let rows: Vec<_> = (1..=MAX_LISTED).map(|row| read_row(&words[row * ROW..][..ROW])).collect();
    let load = |word: usize| words[word].load(Ordering::Relaxed);
    let running = (load(CALLED) != 0).then(|| {
        let called = (load(CALLED) as usize).checked_sub(1).and_then(|place| rows.get(place)?.clone());
        let (topic, name) = called.map(|called| (called.topic, called.name)).unwrap_or_default();
        Running { topic, name, time_ns: monotonic_ns().saturating_sub(load(SINCE)) }
    });
    let (receivers, timers) = parted(rows.into_iter().flatten().collect());
    let (count, timer_count, figures) = (load(COUNT), load(TIMERS), sampled(words));
    QueueReport { name: Some(name), pid, count, receivers, timer_count, timers, figures, running }
}

/// Receivers, and timers.
fn parted(all: Vec<ReceiverReport>) -> (Vec<ReceiverReport>, Vec<ReceiverReport>) {
    all.into_iter().partition(|one| !one.topic.is_empty())
}

/// The receiver of a place; `None` when there is none, or it changes at this moment.
fn read_row(row: &[AtomicU64]) -> Option<ReceiverReport> {
    let before = row[GENERATION].load(Ordering::Acquire);
    let report = ReceiverReport { topic: read_text(&row[TOPIC]), name: read_text(&row[NAME]), figures: sampled(row) };
    fence(Ordering::Acquire);
    (is_listed(before) && row[GENERATION].load(Ordering::Relaxed) == before).then_some(report)
}

/// The generation of a place in use has this bit; opened and closed in turns, it never comes back to what it was.
const LISTED: u64 = 1;

fn is_listed(generation: u64) -> bool {
    generation & LISTED != 0
}

/// Adds to a word that this thread alone writes.
#[inline]
fn add(word: &AtomicU64, more: u64) {
    word.store(word.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
}

fn counted(words: &[AtomicU64]) -> Figures {
    let load = |word: usize| words[word].load(Ordering::Relaxed);
    Figures { callbacks: load(CALLBACKS), callback_ns: load(TIME), longest_ns: load(LONGEST), ..Figures::default() }
}

/// Stores what the service thread found out. Ages are kept as the time of sending, plus one: it goes on while nobody looks.
fn sample(words: &[AtomicU64], figures: Figures) {
    words[WAITING].store(figures.waiting, Ordering::Relaxed);
    let oldest = figures.oldest_age_ns.map_or(0, |age| realtime_ns().saturating_sub(age).saturating_add(1));
    words[OLDEST].store(oldest, Ordering::Relaxed);
    words[LOST].store(figures.lost, Ordering::Relaxed);
}

fn sampled(words: &[AtomicU64]) -> Figures {
    let load = |word: usize| words[word].load(Ordering::Relaxed);
    let oldest_age_ns = load(OLDEST).checked_sub(1).map(age);
    Figures { waiting: load(WAITING), oldest_age_ns, lost: load(LOST), ..counted(words) }
}

fn age(sent_ns: u64) -> u64 {
    realtime_ns().saturating_sub(sent_ns)
}

/// What was counted, with what waits for all receivers.
fn sum(counted: Figures, receivers: impl Iterator<Item = Figures>) -> Figures {
    receivers.fold(counted, |sum, one| Figures {
        waiting: sum.waiting + one.waiting,
        oldest_age_ns: sum.oldest_age_ns.into_iter().chain(one.oldest_age_ns).max(),
        lost: sum.lost + one.lost,
        ..sum
    })
}

/// Writes as much of a text as fits, and zeros behind it.
fn write_text(words: &[AtomicU64], text: &str) {
    let mut end = text.len().min(words.len() * 8);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut pieces = text.as_bytes()[..end].chunks(8);
    for word in words {
        let mut bytes = [0; 8];
        let piece = pieces.next().unwrap_or_default();
        bytes[..piece.len()].copy_from_slice(piece);
        word.store(u64::from_ne_bytes(bytes), Ordering::Relaxed);
    }
}

/// Reads a text, whatever the peer made of it.
fn read_text(words: &[AtomicU64]) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes()).collect();
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    printable(&String::from_utf8_lossy(&bytes[..end]))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_answer_of_a_queue_is_a_whole_table_with_memory() {
        for (len, populated, is_read) in
            [(SEGMENT_LEN, SEGMENT_LEN, true), (SEGMENT_LEN, 0, false), (SEGMENT_LEN / 2, SEGMENT_LEN / 2, false)]
        {
            let segment = OwnedSegment::new("test", len).unwrap();
            if populated > 0 {
                segment.populate(0..populated).unwrap();
            }
            let (ours, theirs) = socket::pair().unwrap();
            let hello = handshake::encode_first(&QueueHello { name: "q".into() });
            assert!(socket::send(&theirs, &hello, Some(segment.shared())).unwrap());
            assert_eq!(read_answer(&ours).is_some(), is_read);
        }
    }

    #[test]
    fn texts_are_cut_between_characters() {
        let words: Vec<_> = (0..2).map(|_| AtomicU64::new(u64::MAX)).collect();
        for (text, shown) in [
            ("", ""),
            ("abc", "abc"),
            ("0123456789abcdef", "0123456789abcdef"),
            ("0123456789abcdeä", "0123456789abcde"),
        ] {
            write_text(&words, text);
            assert_eq!(read_text(&words), shown);
        }
        words.iter().for_each(|word| word.store(u64::MAX, Ordering::Relaxed));
        assert!(read_text(&words).chars().all(|c| c == char::REPLACEMENT_CHARACTER), "no text at all");
    }

    #[test]
    fn a_threshold_is_reported_once_until_all_is_well() {
        let mut reported = false;
        let mut said = |waiting: u64| passed(&mut reported, waiting > 10, waiting <= 5);
        let told: Vec<_> = [3, 11, 20, 8, 12, 5, 11, 11].map(&mut said).into();
        assert_eq!(told, [false, true, false, false, false, false, true, false]);
    }
}
