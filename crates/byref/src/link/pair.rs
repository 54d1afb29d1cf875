//! The one socket between this process and another. All endpoints of both share it, in both directions.
//!
//! The process that connects sends a [`Greeting`](crate::link::handshake::Greeting), the other one answers [`Paired`]. Everything else
//! is a packet of one *channel*: a byte that says what it is, four bytes with the channel's number, and the rest. Either side opens
//! channels; who connected takes even numbers, the other side odd ones, each number once.
//!
//! | kind | what it is |
//! | --- | --- |
//! | `OPEN` | opens a channel, and says what is wanted of whom |
//! | `SAY` | what an endpoint says to another one, perhaps with a descriptor |
//! | `RING` | look at shared memory; several that are not read yet are one |
//! | `CLOSE` | nothing more comes on this channel, from either side |
//!
//! # Reading
//!
//! Any thread may read the socket, one at a time. What is read goes to the inboxes of the channels, also of those that the
//! reader has nothing to do with. Their owners are told by the service thread, without any lock: it watches the socket, and other
//! readers call it. So what one topic does not read is in nobody's way. A channel whose peer sends what no peer
//! sends ends alone. A packet that belongs to no channel ends the pair.
//!
//! # Writing
//!
//! Packets go straight to the socket. If it is full, the sender of a `SAY` tries again later, as its own queue says, so that a
//! channel's packets keep their order. A `RING` or a `CLOSE` that finds it full is *owed*, and sent by the service thread.
//!
//! # Limits
//!
//! What a peer can make this side keep has a bound: channels that it opened ([`MOST_CHANNELS`]; more are closed at once), packets that
//! wait in each, closings that it does not read (their channels count until these are sent), and bells. A packet whose descriptor
//! this process has no room for waits in front of all others, if its channel wants it. Otherwise it is taken without: a channel that is
//! to be opened is refused, and who is called hears why.
//!
//! # The end
//!
//! When its last channel is closed, the side that connected hangs up. The other side keeps an idle pair: it is about to be asked for the
//! next channel, perhaps. Whoever opens a channel on a pair that ends at this moment is told so, and connects anew. The pair
//! also watches the other process, and tells all channels of its death, which a hang-up does not tell if a forked child has the socket.
//! How far all this has come is one [`Stage`] of the pair, and one [`Phase`] of each channel.

use crate::link::deaths::Liveness;
use crate::link::handshake::{self, Paired};
use crate::link::inbox::{Inbox, Phase, Said};
use crate::link::service::Handle;
use crate::link::tasks::{Event, Next, Service, Token};
use crate::sync::locks::{Mutex, MutexGuard};
use crate::sys::epoll::Interest;
use crate::sys::fork::ForkId;
use crate::sys::limits::most_descriptors;
use crate::sys::socket::{self, MAX_PACKET, Received};
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::process::Pid;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

const OPEN: u8 = 0;
const SAY: u8 = 1;
const RING: u8 = 2;
const CLOSE: u8 = 3;
/// The kind and the number.
const HEAD: usize = 5;

/// Packets read at a time.
const AT_ONCE: usize = 64;
/// Reads in a row that found so many; then a peer that floods the socket is left alone for a moment.
const ROUNDS: u32 = 16;
const REST: Duration = Duration::from_millis(2);
/// What a full socket did not take, or found no descriptor free here, is tried again after this time.
const LATER: Duration = Duration::from_millis(10);
/// Channels that the other side has opened, and that were not answered yet: with more, only the service thread goes on reading.
const MANY_CALLS: usize = 64;
/// The most channels of one pair that the other side has opened. A subscription takes a mapping here, of which a process may have 65,530.
pub(super) const MOST_CHANNELS: usize = 1 << 14;
/// The last number. (A thousand channels each second last for weeks; then another pair begins.)
const LAST: u32 = u32::MAX - 1;

/// Whoever answers when the other side opens a channel.
pub(crate) trait Answers: Send + Sync {
    /// On the service thread, without any lock. The error says that this process has no room for the descriptor that was passed.
    fn called(&self, pair: &Arc<Pair>, wire: Arc<Wire>, wanted: &[u8], passed: io::Result<Option<OwnedFd>>);
}

/// Called on the service thread, without any lock, when something came for a channel.
pub(crate) type Listener = Arc<dyn Fn() + Send + Sync>;

/// This side's end of a channel.
pub(crate) struct Wire {
    number: u32,
    inbox: Mutex<Inbox>,
    listener: Mutex<Option<Listener>>,
    /// Whether a `RING` or a `CLOSE` (a bit each) is still to be sent.
    owes: AtomicU8,
}

impl Wire {
    fn new(number: u32) -> Arc<Self> {
        Arc::new(Wire { number, inbox: Mutex::default(), listener: Mutex::default(), owes: AtomicU8::new(0) })
    }

    pub fn is_hung_up(&self) -> bool {
        self.inbox.lock().is_hung_up()
    }

    #[cfg(all(test, not(loom)))]
    pub fn has_news(&self) -> bool {
        self.inbox.lock().has_news()
    }

    pub fn take(&self) -> io::Result<Said> {
        self.inbox.lock().take()
    }

    /// Packets are not wanted any more, only the end.
    pub fn stop(&self) {
        self.inbox.lock().reach(Phase::Deaf);
    }
}

/// A call of the other side's.
struct Call {
    wire: Arc<Wire>,
    wanted: Box<[u8]>,
    passed: io::Result<Option<OwnedFd>>,
}

/// How far a pair has come towards its end. It only goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
enum Stage {
    /// Channels can be opened.
    Open,
    /// The other side refuses packets, or nobody is left who reads here. What was sent before can still be read.
    Shut,
    /// The other process died. A forked child of it may have the socket: what is shared with that stays.
    Dead,
    /// The other side broke the rules. Nothing more is read; what it holds is its own until it hangs up.
    Broken,
    /// It was hung up.
    Over,
}

/// A [`Stage`] that all threads see. Those from `Broken` on are reached with the channels locked.
struct Progress(AtomicU8);

impl Progress {
    fn get(&self) -> Stage {
        const ALL: [Stage; 5] = [Stage::Open, Stage::Shut, Stage::Dead, Stage::Broken, Stage::Over];
        ALL[self.0.load(Ordering::Relaxed) as usize]
    }

    fn reach(&self, stage: Stage) {
        self.0.fetch_max(stage as u8, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct Channels {
    by_number: HashMap<u32, Arc<Wire>>,
    /// How many of them the other side has opened.
    theirs: usize,
    /// The numbers of the next channel that is opened here and, at least, there.
    next: u32,
    their_next: u32,
    /// Threads that are about to open one.
    visits: usize,
    calls: VecDeque<Call>,
    /// Whose owners are to be told of news.
    news: Vec<Arc<Wire>>,
    /// Those with something that is owed, each once.
    owing: VecDeque<Arc<Wire>>,
    /// It was logged that the other side has too many.
    told: bool,
}

impl Channels {
    fn list(&mut self, wire: &Arc<Wire>) {
        if !std::mem::replace(&mut wire.inbox.lock().is_listed, true) {
            self.news.push(Arc::clone(wire));
        }
    }

    /// Takes out what was listed. What comes from now on is news again, and counts as such for those who look whether there is much.
    fn take_news(&mut self) -> Vec<Arc<Wire>> {
        let news = std::mem::take(&mut self.news);
        news.iter().for_each(|wire| wire.inbox.lock().is_listed = false);
        news
    }

    fn is_own(&self, number: u32) -> bool {
        number % 2 == self.next % 2
    }

    fn add(&mut self, wire: &Arc<Wire>) {
        self.theirs += usize::from(!self.is_own(wire.number));
        self.by_number.insert(wire.number, Arc::clone(wire));
    }

    fn remove(&mut self, number: u32) -> Option<Arc<Wire>> {
        let removed = self.by_number.remove(&number);
        self.theirs -= usize::from(removed.is_some() && !self.is_own(number));
        removed
    }

    fn wires(&self) -> Vec<Arc<Wire>> {
        self.by_number.values().cloned().collect()
    }

    /// Whether any channel was opened so far, or is about to be opened here.
    fn are_wanted(&self) -> bool {
        self.next > 1 || self.their_next > 1 || self.visits > 0
    }

    fn is_idle(&self) -> bool {
        self.by_number.is_empty() && self.visits == 0 && self.calls.is_empty()
    }
}

struct Reading {
    /// The other side has said that it speaks this protocol.
    is_greeted: bool,
    /// Full reads in a row.
    rounds: u32,
}

/// How reading ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Read {
    /// There is nothing more.
    All,
    More,
    /// There is a packet whose descriptor this process has no room for, or the system is short of something.
    Short,
    /// Others have to take out first what is there.
    Crowded,
    /// Nothing more is read.
    Over,
}

/// How a look at a packet ends a pair.
enum End {
    HungUp,
    Broken(&'static str),
}

/// Who made the connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Connected,
    Accepted,
}

pub(crate) struct Pair {
    socket: Arc<OwnedFd>,
    side: Side,
    pid: Option<Pid>,
    stage: Progress,
    reading: Mutex<Reading>,
    channels: Mutex<Channels>,
    /// It was logged that a call of the other side's was refused.
    was_refused: AtomicBool,
    /// Bells of the other side, which several of its channels may have.
    bells: Mutex<HashMap<u64, Weak<OwnedFd>>>,
    answers: Arc<dyn Answers>,
    service: Arc<Service>,
    task: OnceLock<Token>,
    /// This side hears of the death of the other process.
    liveness: OnceLock<Liveness>,
    made_in: ForkId,
}

impl Pair {
    /// A pair over `socket`, which hears of the death of the other process if there is somebody who watches it.
    /// [`attend`](Self::attend) or [`adopt`](Self::adopt) begins to read it. Errors say that the other side is gone, or that this process
    /// or the system is short of something.
    pub fn new(
        socket: Arc<OwnedFd>,
        side: Side,
        watching: Option<&Handle>,
        answers: Arc<dyn Answers>,
        service: &Arc<Service>,
    ) -> io::Result<Arc<Self>> {
        let first = |is_own: bool| u32::from((side == Side::Connected) != is_own);
        let channels = Channels { next: first(true), their_next: first(false), ..Channels::default() };
        let pair = Arc::new(Pair {
            pid: socket::peer_pid(&socket),
            socket,
            side,
            stage: Progress(AtomicU8::new(Stage::Open as u8)),
            reading: Mutex::new(Reading { is_greeted: side == Side::Accepted, rounds: 0 }),
            channels: Mutex::new(channels),
            was_refused: AtomicBool::new(false),
            bells: Mutex::default(),
            answers,
            service: Arc::clone(service),
            task: OnceLock::new(),
            liveness: OnceLock::new(),
            made_in: ForkId::current(),
        });
        if let Some(handle) = watching {
            let dying = Arc::downgrade(&pair);
            let liveness = handle.deaths.watch(handle, pair.pid, move || {
                if let Some(pair) = dying.upgrade() {
                    pair.died();
                }
            })?;
            if liveness.is_dead {
                pair.died();
            }
            let _ = pair.liveness.set(liveness);
        }
        let first = match side {
            Side::Connected => handshake::encode_first(&handshake::Greeting::Pair),
            Side::Accepted => handshake::encode_first(&Paired {}),
        };
        match socket::send(&pair.socket, &first, None)? {
            true => Ok(pair),
            false => Err(Errno::NOBUFS.into()), // Nothing was sent on it before.
        }
    }

    /// Has the service thread read the socket.
    pub fn attend(self: &Arc<Self>) -> io::Result<()> {
        let attendant = Attendant(Arc::clone(self));
        let watched = Arc::clone(&self.socket);
        let task = self.service.watch(watched, Interest::IN, None, move |_, _, event| attendant.0.run(event))?;
        let _ = self.task.set(task);
        if self.has_news() {
            self.service.hasten(task); // It came before the number of the task was known.
        }
        Ok(())
    }

    /// The same for a socket that is watched already: `task` calls [`run`](Self::run) from now on, and drops what this gives at its end.
    pub fn adopt(self: &Arc<Self>, task: Token) -> Attendant {
        let _ = self.task.set(task);
        Attendant(Arc::clone(self))
    }

    /// The process at the other end; `None`: it is out of sight.
    pub fn pid(&self) -> Option<Pid> {
        self.pid
    }

    /// Whether channels can be opened on it, as far as is known.
    pub fn is_usable(&self) -> bool {
        self.made_in.is_current() && self.can_open(&self.channels.lock())
    }

    fn can_open(&self, channels: &Channels) -> bool {
        self.stage.get() == Stage::Open && channels.next < LAST
    }

    /// Whether the other process is known to have died.
    pub fn is_dead(&self) -> bool {
        self.stage.get() == Stage::Dead
    }

    /// Whether the other process is dead, also when that was not noticed yet: a system call.
    pub fn has_died(&self) -> bool {
        self.is_dead() || self.liveness.get().is_some_and(Liveness::has_died)
    }

    /// Whether the other side has said that it speaks this protocol.
    pub fn is_greeted(&self) -> bool {
        self.reading.lock().is_greeted
    }

    /// Whether any channel was opened so far, or is about to be opened here.
    pub fn is_wanted(&self) -> bool {
        self.channels.lock().are_wanted()
    }

    /// Ends it, unless it is wanted.
    pub fn end_unless_wanted(&self) -> bool {
        let channels = self.channels.lock();
        let is_unwanted = !channels.are_wanted();
        if is_unwanted {
            self.hang_up(channels);
        }
        is_unwanted
    }

    /// Keeps the pair from ending for want of channels, until [`leave`](Self::leave); `false`: it has ended.
    pub fn visit(&self) -> bool {
        let mut channels = self.channels.lock();
        let is_there = self.stage.get() < Stage::Broken;
        channels.visits += usize::from(is_there);
        is_there
    }

    pub fn leave(&self) {
        if !self.made_in.is_current() {
            return;
        }
        let mut channels = self.channels.lock();
        channels.visits -= 1;
        self.end_if_idle(channels);
    }

    /// Opens a channel. `None`: the socket is full.
    pub fn open(&self, wanted: &[u8], passed: Option<BorrowedFd<'_>>) -> io::Result<Option<Arc<Wire>>> {
        if !self.made_in.is_current() {
            return Err(gone());
        }
        let mut channels = self.channels.lock();
        if !self.can_open(&channels) {
            return Err(gone());
        }
        // Under the lock: the other side expects the numbers in their order.
        let wire = Wire::new(channels.next);
        if !self.send(OPEN, wire.number, wanted, passed)? {
            return Ok(None);
        }
        channels.next += 2;
        channels.add(&wire);
        Ok(Some(wire))
    }

    /// How loudly to log that a call was refused: a peer can make any number of them.
    pub fn level_of_refusal(&self) -> log::Level {
        if self.was_refused.swap(true, Ordering::Relaxed) { log::Level::Debug } else { log::Level::Warn }
    }

    /// Ends the connection, as a cut would.
    #[cfg(all(test, not(loom)))]
    pub fn cut(&self) {
        socket::hang_up(&self.socket);
    }

    /// The next channel that the other side has opened, as nobody answers calls.
    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub fn next_call(&self) -> Option<Arc<Wire>> {
        self.read(None);
        self.channels.lock().calls.pop_front().map(|call| call.wire)
    }

    fn send(&self, kind: u8, number: u32, body: &[u8], passed: Option<BorrowedFd<'_>>) -> io::Result<bool> {
        let mut head = [kind; HEAD];
        head[1..].copy_from_slice(&number.to_le_bytes());
        let sent = socket::send_parts(&self.socket, [&head, body], passed);
        if let Err(error) = &sent
            && matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
        {
            self.stage.reach(Stage::Shut);
        }
        sent
    }

    /// Whether something may be sent on this channel from here.
    fn check(&self, wire: &Wire) -> io::Result<()> {
        if self.made_in.is_current() && !wire.inbox.lock().is_closed() { Ok(()) } else { Err(gone()) }
    }

    /// Sends a packet, unless the socket is full (`false`).
    pub fn say(&self, wire: &Wire, packet: &[u8], passed: Option<BorrowedFd<'_>>) -> io::Result<bool> {
        self.check(wire)?;
        self.send(SAY, wire.number, packet, passed)
    }

    /// Rings, at once or a little later.
    pub fn ring(&self, wire: &Arc<Wire>) {
        if self.check(wire).is_ok() && matches!(self.send(RING, wire.number, &[], None), Ok(false)) {
            self.owe(wire, RING);
        }
    }

    /// The other side's bell of this number, which came along, unless it is here already; `None`: it has too many.
    pub fn bell(&self, number: u64, passed: OwnedFd) -> Option<Arc<OwnedFd>> {
        let mut bells = self.bells.lock();
        if let Some(known) = bells.get(&number).and_then(Weak::upgrade) {
            return Some(known);
        }
        let most = most_descriptors() / 4;
        if bells.len() as u64 >= most {
            bells.retain(|_, known| known.strong_count() > 0);
        }
        if bells.len() as u64 >= most {
            return None;
        }
        let bell = Arc::new(passed);
        bells.insert(number, Arc::downgrade(&bell));
        Some(bell)
    }

    /// Closes a channel: nothing more is sent on it, and nothing more heard.
    pub fn close(&self, wire: &Arc<Wire>) {
        if !self.made_in.is_current() {
            return;
        }
        let before = wire.inbox.lock().reach(Phase::Closed);
        if before == Phase::Closed {
            return;
        }
        let listener = wire.listener.lock().take();
        drop(listener);
        // The other side has closed it, perhaps; or it is gone, or the pair is over. Then that is no news.
        let is_news = before != Phase::HungUp && self.stage.get() < Stage::Broken;
        if is_news && matches!(self.send(CLOSE, wire.number, &[], None), Ok(false)) {
            return self.owe(wire, CLOSE);
        }
        self.forget(wire);
    }

    fn forget(&self, wire: &Wire) {
        let mut channels = self.channels.lock();
        let forgotten = channels.remove(wire.number);
        self.end_if_idle(channels);
        drop(forgotten);
    }

    fn end_if_idle(&self, channels: MutexGuard<'_, Channels>) {
        let is_due = match self.stage.get() {
            Stage::Open | Stage::Shut | Stage::Dead => self.side == Side::Connected,
            Stage::Broken => true,
            Stage::Over => false,
        };
        if is_due && channels.is_idle() {
            self.hang_up(channels);
        }
    }

    fn hang_up(&self, channels: MutexGuard<'_, Channels>) {
        self.stage.reach(Stage::Over);
        drop(channels);
        // Not only closed: a forked child may have the descriptor, too.
        socket::hang_up(&self.socket);
        if let Some(task) = self.task.get() {
            self.service.cancel(*task);
        }
    }

    fn owe(&self, wire: &Arc<Wire>, what: u8) {
        {
            let mut channels = self.channels.lock();
            if wire.owes.fetch_or(1 << what, Ordering::Relaxed) == 0 {
                channels.owing.push_back(Arc::clone(wire));
            }
        }
        self.hasten();
    }

    /// Sends what is owed; `false`: the socket is still full.
    fn pay(&self) -> bool {
        loop {
            let Some(wire) = self.channels.lock().owing.pop_front() else { return true };
            let owes = wire.owes.swap(0, Ordering::Relaxed);
            let what = match owes {
                0 => continue, // Both sides have closed it meanwhile.
                _ if owes & 1 << CLOSE != 0 => CLOSE,
                _ => RING,
            };
            if matches!(self.send(what, wire.number, &[], None), Ok(false)) {
                let mut channels = self.channels.lock();
                if wire.owes.fetch_or(owes, Ordering::Relaxed) == 0 {
                    channels.owing.push_front(wire);
                }
                return false;
            }
            if what == CLOSE {
                self.forget(&wire);
            }
        }
    }

    /// Has `listener` called when something comes for a channel, or is there.
    pub fn listen(&self, wire: &Arc<Wire>, listener: Listener) {
        let former = wire.listener.lock().replace(listener);
        drop(former);
        if wire.inbox.lock().has_news() {
            self.channels.lock().list(wire);
            self.hasten();
        }
    }

    fn hasten(&self) {
        if let Some(task) = self.task.get() {
            self.service.hasten(*task);
        }
    }

    fn has_news(&self) -> bool {
        let channels = self.channels.lock();
        !channels.news.is_empty() || !channels.calls.is_empty() || !channels.owing.is_empty()
    }

    /// Reads the socket for who needs what came for one channel, perhaps, and takes all of it out afterwards. `true`: there was no more.
    pub fn pump(&self, wire: &Wire) -> bool {
        if !self.made_in.is_current() {
            return true;
        }
        let read = self.read(Some(wire.number));
        if self.has_news() {
            self.hasten();
        }
        matches!(read, Read::All | Read::Over)
    }

    /// The service thread's part; what comes of its task.
    pub fn run(self: &Arc<Self>, _: Event) -> Next {
        fault!("pair.woken");
        let read = self.read(None);
        self.tell();
        let paid = self.pay();
        self.end_if_idle(self.channels.lock());
        match read {
            Read::Over if self.stage.get() == Stage::Over => Next::Done,
            // It broke the rules. Its end is still to come, and matters for what it holds.
            Read::Over if socket::is_hung_up(&self.socket) => {
                self.end(Stage::Over, Phase::HungUp);
                self.tell();
                Next::Done
            }
            Read::Over => Next::Watch(Interest::RDHUP),
            Read::Short => Next::Pause(LATER),
            Read::Crowded => Next::Keep,
            Read::More => {
                let mut reading = self.reading.lock();
                reading.rounds += 1;
                if reading.rounds >= ROUNDS { Next::Pause(REST) } else { Next::Keep }
            }
            Read::All => {
                self.reading.lock().rounds = 0;
                if paid { Next::Keep } else { Next::After(LATER) }
            }
        }
    }

    /// Tells owners of channels what came, and answers calls.
    fn tell(self: &Arc<Self>) {
        loop {
            let (calls, news) = {
                let mut channels = self.channels.lock();
                (std::mem::take(&mut channels.calls), channels.take_news())
            };
            if calls.is_empty() && news.is_empty() {
                return;
            }
            for Call { wire, wanted, passed } in calls {
                fault!("pair.called");
                self.answers.called(self, wire, &wanted, passed);
            }
            for wire in news {
                let listener = wire.listener.lock().clone();
                if let Some(listener) = listener {
                    listener();
                }
            }
        }
    }

    /// Reads the socket, for the channel `own`, or for all.
    fn read(&self, own: Option<u32>) -> Read {
        let mut reading = self.reading.lock();
        let mut packet = [0u8; MAX_PACKET];
        for _ in 0..AT_ONCE {
            if self.stage.get() >= Stage::Broken {
                return Read::Over;
            }
            if own.is_some() && self.is_crowded() {
                return Read::Crowded;
            }
            let received = match socket::receive(&self.socket, &mut packet) {
                Ok(Received::OutOfDescriptors) if self.waits_for_descriptor(&reading, &packet, own) => {
                    return Read::Short;
                }
                Ok(Received::OutOfDescriptors) => {
                    let taken = socket::receive_without_descriptor(&self.socket, &mut packet);
                    taken.map(|len| (len, Err(Errno::MFILE.into())))
                }
                Ok(Received::Packet(len, passed)) => Ok((len, Ok(passed))),
                Ok(Received::Empty) => return Read::All,
                Ok(Received::HungUp) if socket::is_hung_up(&self.socket) => {
                    self.end(Stage::Over, Phase::HungUp);
                    return Read::Over;
                }
                Ok(Received::HungUp) => Ok((0, Ok(None))),
                Err(error) => Err(error),
            };
            let distributed = match received {
                Ok((len, passed)) => self.distribute(&mut reading, &packet[..len], passed, own),
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    Err(End::Broken("a packet that is too long"))
                }
                Err(_) => return Read::Short, // The system's own trouble.
            };
            match distributed {
                Ok(()) => {}
                Err(End::HungUp) => {
                    self.end(Stage::Over, Phase::HungUp);
                    return Read::Over;
                }
                Err(End::Broken(how)) => {
                    let pid = self.pid.map_or(0, |pid| pid.as_raw_nonzero().get());
                    log::error!("byref: process {pid} sent {how}: all connections with it end");
                    self.end(Stage::Broken, Phase::Broken(how));
                    return Read::Over;
                }
            }
        }
        Read::More
    }

    fn is_crowded(&self) -> bool {
        let channels = self.channels.lock();
        channels.calls.len() >= MANY_CALLS || channels.news.iter().any(|wire| wire.inbox.lock().has_many())
    }

    /// Puts a packet where it belongs.
    fn distribute(
        &self,
        reading: &mut Reading,
        packet: &[u8],
        passed: io::Result<Option<OwnedFd>>,
        own: Option<u32>,
    ) -> Result<(), End> {
        let mut channels = self.channels.lock();
        if !reading.is_greeted {
            reading.is_greeted = handshake::decode_first::<Paired>(packet).is_ok();
            if reading.is_greeted {
                return Ok(());
            }
            // All who asked find out by themselves what it says, and whether that concerns them.
            channels.by_number.values().for_each(|wire| wire.inbox.lock().put(packet, None));
            return Err(End::HungUp);
        }
        let Some((&[kind, number @ ..], body)) = packet.split_first_chunk::<HEAD>() else {
            return Err(End::Broken("a packet that is too short"));
        };
        let number = u32::from_le_bytes(number);
        if kind == OPEN {
            if number != channels.their_next || number >= LAST {
                return Err(End::Broken("a channel with an impossible number"));
            }
            channels.their_next += 2;
            if channels.theirs >= MOST_CHANNELS {
                return self.refuse(&mut channels, number);
            }
            let wire = Wire::new(number);
            if self.stage.get() == Stage::Dead {
                wire.inbox.lock().die();
            }
            channels.add(&wire);
            channels.calls.push_back(Call { wire, wanted: body.into(), passed });
            return Ok(());
        }
        let Some(wire) = channels.by_number.get(&number).cloned() else {
            let was_there = number < if channels.is_own(number) { channels.next } else { channels.their_next };
            // It was closed here, and they do not know yet.
            return if was_there { Ok(()) } else { Err(End::Broken("a packet for a channel that nobody opened")) };
        };
        let is_closed = {
            let mut inbox = wire.inbox.lock();
            match kind {
                SAY => inbox.put(body, passed.unwrap_or(None)),
                RING => inbox.ring(),
                CLOSE => drop(inbox.reach(Phase::HungUp)),
                _ => drop(inbox.reach(Phase::Broken("a packet that makes no sense"))),
            }
            inbox.is_closed()
        };
        if kind == CLOSE && is_closed {
            channels.remove(number);
            wire.owes.store(0, Ordering::Relaxed); // Both have closed it: that need not be told any more.
        } else if own != Some(number) && !is_closed {
            channels.list(&wire);
        }
        Ok(())
    }

    /// The other side opens more channels than there may be: closes the one of this number at once.
    #[cold]
    fn refuse(&self, channels: &mut Channels, number: u32) -> Result<(), End> {
        if matches!(self.send(CLOSE, number, &[], None), Ok(false)) {
            return Err(End::Broken("more channels than there may be, and does not read"));
        }
        if !std::mem::replace(&mut channels.told, true) {
            let pid = self.pid.map_or(0, |pid| pid.as_raw_nonzero().get());
            log::warn!("byref: process {pid} has {MOST_CHANNELS} subscriptions here; it gets no more");
        }
        Ok(())
    }

    /// The next packet has a descriptor for which there is no room. Whether it has to stay where it is for that; its channel is told.
    fn waits_for_descriptor(&self, reading: &Reading, packet: &[u8; MAX_PACKET], own: Option<u32>) -> bool {
        let number = u32::from_le_bytes(packet[1..HEAD].try_into().expect("four bytes"));
        let mut channels = self.channels.lock();
        if !reading.is_greeted || packet[0] != SAY {
            return false;
        }
        let Some(wire) = channels.by_number.get(&number).cloned() else { return false };
        let is_wanted = {
            let mut inbox = wire.inbox.lock();
            inbox.is_short_of_descriptors();
            inbox.wants_packets()
        };
        if is_wanted && own != Some(number) {
            channels.list(&wire);
        }
        is_wanted
    }

    /// Ends all channels.
    fn end(&self, stage: Stage, phase: Phase) {
        let mut channels = self.channels.lock();
        self.stage.reach(stage);
        for wire in channels.wires() {
            wire.inbox.lock().reach(phase);
            channels.list(&wire);
        }
    }

    /// The other process died. What it has sent can be read, and a forked child of it may keep the socket.
    fn died(&self) {
        {
            let mut channels = self.channels.lock();
            self.stage.reach(Stage::Dead);
            for wire in channels.wires() {
                wire.inbox.lock().die();
                channels.list(&wire);
            }
        }
        self.hasten();
    }
}

/// What belongs to a pair or a channel that is over cannot be sent.
fn gone() -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}

impl Drop for Pair {
    fn drop(&mut self) {
        if self.made_in.is_current() {
            socket::hang_up(&self.socket); // A forked child may have the descriptor, too.
        }
    }
}

/// The service thread's hold on a pair. When it lets go of one that has not ended, nobody is left who would read the socket: its
/// endpoints are closed, and messages keep the rest.
pub(crate) struct Attendant(Arc<Pair>);

impl Drop for Attendant {
    fn drop(&mut self) {
        let pair = &self.0;
        if !pair.made_in.is_current() || pair.stage.get() >= Stage::Broken {
            return;
        }
        // Descriptors that wait in the socket keep memory, too. None come after this.
        socket::stop_receiving(&pair.socket);
        pair.stage.reach(Stage::Shut);
        let _reading = pair.reading.lock();
        let mut packet = [0u8; MAX_PACKET];
        while let Ok(Received::Packet(..)) = socket::receive(&pair.socket, &mut packet) {}
        let unanswered = std::mem::take(&mut pair.channels.lock().calls);
        drop(unanswered);
    }
}
