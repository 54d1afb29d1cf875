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
//! # The end
//!
//! When its last channel is closed, the side that connected hangs up. The other side keeps an idle pair: it is about to be asked for the
//! next channel, perhaps. Whoever opens a channel on a pair that ends at this moment is told so, and connects anew.

use crate::link::deaths::Liveness;
use crate::link::handshake::{self, Paired};
use crate::link::inbox::{End, Inbox, Said};
use crate::link::service::{Event, Handle, Next, Service, Token};
use crate::sync::locks::Mutex;
use crate::sys::epoll::Interest;
use crate::sys::fork::ForkId;
use crate::sys::socket::{self, MAX_PACKET, Received};
use rustix::fd::{BorrowedFd, OwnedFd};
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
/// The last number. (A thousand channels each second last for weeks; then another pair begins.)
const LAST: u32 = u32::MAX - 1;

/// Whoever answers when the other side opens a channel.
pub(crate) trait Answers: Send + Sync {
    /// On the service thread, without any lock.
    fn called(&self, pair: &Arc<Pair>, wire: Arc<Wire>, wanted: &[u8], passed: Option<OwnedFd>);
}

/// Called on the service thread, without any lock, when something came for a channel.
pub(crate) type Listener = Arc<dyn Fn() + Send + Sync>;

/// This side's end of a channel.
pub(crate) struct Wire {
    number: u32,
    inbox: Mutex<Inbox>,
    listener: Mutex<Option<Listener>>,
    /// This side has closed it.
    is_closed: AtomicBool,
    /// Whether a `RING` or a `CLOSE` (a bit each) is still to be sent.
    owes: AtomicU8,
}

impl Wire {
    fn new(number: u32) -> Arc<Self> {
        Arc::new(Wire {
            number,
            inbox: Mutex::default(),
            listener: Mutex::default(),
            is_closed: AtomicBool::new(false),
            owes: AtomicU8::new(0),
        })
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
        self.inbox.lock().stop();
    }
}

/// A call of the other side's.
struct Call {
    wire: Arc<Wire>,
    wanted: Box<[u8]>,
    passed: Option<OwnedFd>,
}

#[derive(Default)]
struct Channels {
    by_number: HashMap<u32, Arc<Wire>>,
    /// The numbers of the next channel that is opened here and, at least, there.
    next: u32,
    their_next: u32,
    /// Threads that are about to open one.
    visits: usize,
    calls: VecDeque<Call>,
    /// Whose owners are to be told of news.
    news: Vec<Arc<Wire>>,
    /// Something in it is owed.
    owes: bool,
    end: Option<End>,
}

impl Channels {
    fn list(&mut self, wire: &Arc<Wire>) {
        if !std::mem::replace(&mut wire.inbox.lock().is_listed, true) {
            self.news.push(Arc::clone(wire));
        }
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
    Over(End),
}

/// Who made the connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Connected,
    Accepted,
}

/// What is known of the life of the process at the other end.
#[derive(Default)]
pub(crate) struct Life {
    is_over: Arc<AtomicBool>,
    liveness: Liveness,
}

impl Life {
    /// Has its end noted. An error says that this process is short of something.
    pub fn of(pid: Option<Pid>, service: &Handle) -> io::Result<Self> {
        let is_over = Arc::new(AtomicBool::new(false));
        let noted = Arc::clone(&is_over);
        let liveness = service.deaths.watch(service, pid, move || noted.store(true, Ordering::Relaxed))?;
        is_over.fetch_or(liveness.is_dead, Ordering::Relaxed);
        Ok(Life { is_over, liveness })
    }
}

pub(crate) struct Pair {
    socket: Arc<OwnedFd>,
    side: Side,
    pid: Option<Pid>,
    life: Life,
    /// The other side refuses packets.
    is_shut: AtomicBool,
    reading: Mutex<Reading>,
    channels: Mutex<Channels>,
    /// Bells of the other side, which several of its channels may have.
    bells: Mutex<HashMap<u64, Weak<OwnedFd>>>,
    answers: Arc<dyn Answers>,
    service: Arc<Service>,
    task: OnceLock<Token>,
    made_in: ForkId,
}

impl Pair {
    /// A pair over `socket`. [`attend`](Self::attend) or [`adopt`](Self::adopt) begins to read it.
    pub fn new(
        socket: Arc<OwnedFd>,
        side: Side,
        life: Life,
        answers: Arc<dyn Answers>,
        service: &Arc<Service>,
    ) -> io::Result<Arc<Self>> {
        let first = |is_own: bool| u32::from((side == Side::Connected) != is_own);
        let channels = Channels { next: first(true), their_next: first(false), ..Channels::default() };
        let pair = Pair {
            pid: socket::peer_pid(&socket),
            socket,
            side,
            life,
            is_shut: AtomicBool::new(false),
            reading: Mutex::new(Reading { is_greeted: side == Side::Accepted, rounds: 0 }),
            channels: Mutex::new(channels),
            bells: Mutex::default(),
            answers,
            service: Arc::clone(service),
            task: OnceLock::new(),
            made_in: ForkId::current(),
        };
        let first = match side {
            Side::Connected => handshake::encode_first(&handshake::Greeting::Pair),
            Side::Accepted => handshake::encode_first(&Paired {}),
        };
        match socket::send(&pair.socket, &first, None)? {
            true => Ok(Arc::new(pair)),
            false => Err(io::Error::other("its socket is full")),
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

    /// Whether the other process lives and reads, as far as is known.
    pub fn is_usable(&self) -> bool {
        let has_numbers = |channels: &Channels| channels.end.is_none() && channels.next < LAST;
        self.made_in.is_current()
            && !self.is_shut.load(Ordering::Relaxed)
            && !self.life.is_over.load(Ordering::Relaxed)
            && has_numbers(&self.channels.lock())
    }

    /// Whether the other process is dead, also when that was not noticed yet: a system call.
    pub fn has_died(&self) -> bool {
        self.life.liveness.has_died()
    }

    /// Whether the other side has said that it speaks this protocol.
    pub fn is_greeted(&self) -> bool {
        self.reading.lock().is_greeted
    }

    /// Whether any channel was opened so far.
    pub fn was_used(&self) -> bool {
        let channels = self.channels.lock();
        channels.next > 1 || channels.their_next > 1
    }

    /// Keeps the pair from ending for want of channels, until [`leave`](Self::leave); `false`: it has ended.
    pub fn visit(&self) -> bool {
        let mut channels = self.channels.lock();
        channels.visits += usize::from(channels.end.is_none());
        channels.end.is_none()
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
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        if !self.made_in.is_current() {
            return Err(gone());
        }
        let mut channels = self.channels.lock();
        if channels.end.is_some() || channels.next >= LAST {
            return Err(gone());
        }
        // Under the lock: the other side expects the numbers in their order.
        let wire = Wire::new(channels.next);
        match self.send(OPEN, wire.number, wanted, passed) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(error) => return Err(error),
        }
        channels.next += 2;
        channels.by_number.insert(wire.number, Arc::clone(&wire));
        Ok(Some(wire))
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
            self.is_shut.store(true, Ordering::Relaxed);
        }
        sent
    }

    /// Whether something may be sent on this channel from here.
    fn check(&self, wire: &Wire) -> io::Result<()> {
        if self.made_in.is_current() && !wire.is_closed.load(Ordering::Relaxed) {
            Ok(())
        } else {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }

    /// Sends a packet, unless the socket is full (`false`).
    pub fn say(&self, wire: &Wire, packet: &[u8], passed: Option<BorrowedFd<'_>>) -> io::Result<bool> {
        self.check(wire)?;
        self.send(SAY, wire.number, packet, passed)
    }

    /// Rings, at once or a little later. It takes no lock unless the socket is full.
    pub fn ring(&self, wire: &Wire) {
        if self.check(wire).is_ok() && matches!(self.send(RING, wire.number, &[], None), Ok(false)) {
            self.owe(wire, RING);
        }
    }

    /// The other side's bell of this number, which came along, unless it is here already.
    pub fn bell(&self, number: u64, passed: OwnedFd) -> Arc<OwnedFd> {
        let mut bells = self.bells.lock();
        if let Some(known) = bells.get(&number).and_then(Weak::upgrade) {
            return known;
        }
        let bell = Arc::new(passed);
        bells.retain(|_, known| known.strong_count() > 0);
        bells.insert(number, Arc::downgrade(&bell));
        bell
    }

    /// Closes a channel: nothing more is sent on it, and nothing more heard.
    pub fn close(&self, wire: &Wire) {
        if !self.made_in.is_current() || wire.is_closed.swap(true, Ordering::Relaxed) {
            return;
        }
        wire.stop();
        let listener = wire.listener.lock().take();
        drop(listener);
        // The other side has closed it, perhaps; or it is gone, or the pair is over. Then that is no news.
        let is_news = !wire.is_hung_up() && self.channels.lock().end.is_none();
        if is_news && matches!(self.send(CLOSE, wire.number, &[], None), Ok(false)) {
            return self.owe(wire, CLOSE);
        }
        self.forget(wire);
    }

    fn forget(&self, wire: &Wire) {
        let mut channels = self.channels.lock();
        let forgotten = channels.by_number.remove(&wire.number);
        self.end_if_idle(channels);
        drop(forgotten);
    }

    fn end_if_idle(&self, mut channels: std::sync::MutexGuard<'_, Channels>) {
        let is_due = match channels.end {
            None => self.side == Side::Connected,
            Some(End::Broken(_)) => true,
            Some(End::HungUp) => false,
        };
        if !is_due || !channels.is_idle() {
            return;
        }
        channels.end = Some(End::HungUp);
        drop(channels);
        // Not only closed: a forked child may have the descriptor, too.
        socket::hang_up(&self.socket);
        if let Some(task) = self.task.get() {
            self.service.cancel(*task);
        }
    }

    fn owe(&self, wire: &Wire, what: u8) {
        wire.owes.fetch_or(1 << what, Ordering::Relaxed);
        self.channels.lock().owes = true;
        self.hasten();
    }

    /// Sends what is owed; `false`: the socket is still full.
    fn pay(&self) -> bool {
        let owing: Vec<_> = {
            let mut channels = self.channels.lock();
            if !std::mem::take(&mut channels.owes) {
                return true;
            }
            channels.by_number.values().filter(|wire| wire.owes.load(Ordering::Relaxed) != 0).cloned().collect()
        };
        for wire in owing {
            let owes = wire.owes.swap(0, Ordering::Relaxed);
            let what = if owes & 1 << CLOSE != 0 { CLOSE } else { RING };
            if matches!(self.send(what, wire.number, &[], None), Ok(false)) {
                wire.owes.fetch_or(owes, Ordering::Relaxed);
                self.channels.lock().owes = true;
                return false;
            }
            if what == CLOSE {
                self.forget(&wire);
            }
        }
        true
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
        !channels.news.is_empty() || !channels.calls.is_empty() || channels.owes
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
        matches!(read, Read::All | Read::Over(_))
    }

    /// The service thread's part; what comes of its task.
    pub fn run(self: &Arc<Self>, _: Event) -> Next {
        fault!("pair.woken");
        let read = self.read(None);
        self.tell();
        let paid = self.pay();
        self.end_if_idle(self.channels.lock());
        match read {
            Read::Over(End::HungUp) => Next::Done,
            // Its end is still to come, and matters for what it holds.
            Read::Over(End::Broken(_)) if socket::is_hung_up(&self.socket) => {
                self.end(End::HungUp);
                self.tell();
                Next::Done
            }
            Read::Over(End::Broken(_)) => Next::Watch(Interest::RDHUP),
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
                (std::mem::take(&mut channels.calls), std::mem::take(&mut channels.news))
            };
            if calls.is_empty() && news.is_empty() {
                return;
            }
            for Call { wire, wanted, passed } in calls {
                fault!("pair.called");
                self.answers.called(self, wire, &wanted, passed);
            }
            for wire in news {
                wire.inbox.lock().is_listed = false; // Before the call: what comes meanwhile is news again.
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
            if let Some(end) = self.channels.lock().end {
                return Read::Over(end);
            }
            if own.is_some() && self.is_crowded() {
                return Read::Crowded;
            }
            let received = socket::receive(&self.socket, &mut packet);
            let end = match received {
                Ok(Received::Packet(len, passed)) => match self.distribute(&mut reading, &packet[..len], passed, own) {
                    Ok(()) => continue,
                    Err(end) => end,
                },
                Ok(Received::Empty) => return Read::All,
                Ok(Received::OutOfDescriptors) => {
                    self.tell_of_shortage(&packet, own);
                    return Read::Short;
                }
                Ok(Received::HungUp) if socket::is_hung_up(&self.socket) => End::HungUp,
                Ok(Received::HungUp) => End::Broken("an empty packet"),
                Err(error) if error.kind() == io::ErrorKind::InvalidData => End::Broken("a packet that is too long"),
                Err(_) => return Read::Short, // The system's own trouble.
            };
            if let End::Broken(how) = end {
                let pid = self.pid.map_or(0, |pid| pid.as_raw_nonzero().get());
                log::error!("byref: process {pid} sent {how}: all connections with it end");
            }
            self.end(end);
            return Read::Over(end);
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
        passed: Option<OwnedFd>,
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
            let wire = Wire::new(number);
            channels.by_number.insert(number, Arc::clone(&wire));
            channels.calls.push_back(Call { wire, wanted: body.into(), passed });
            return Ok(());
        }
        let Some(wire) = channels.by_number.get(&number).cloned() else {
            let is_own = number % 2 == channels.next % 2;
            let was_there = number < if is_own { channels.next } else { channels.their_next };
            // It was closed here, and they do not know yet.
            return if was_there { Ok(()) } else { Err(End::Broken("a packet for a channel that nobody opened")) };
        };
        {
            let mut inbox = wire.inbox.lock();
            match kind {
                SAY => inbox.put(body, passed),
                RING => inbox.ring(),
                CLOSE => inbox.end(End::HungUp),
                _ => inbox.end(End::Broken("a packet that makes no sense")),
            }
        }
        if kind == CLOSE && wire.is_closed.load(Ordering::Relaxed) {
            channels.by_number.remove(&number); // Both have; what is owed need not be sent.
        } else if own != Some(number) {
            channels.list(&wire);
        }
        Ok(())
    }

    /// The next packet has a descriptor for which there is no room.
    fn tell_of_shortage(&self, packet: &[u8; MAX_PACKET], own: Option<u32>) {
        let number = u32::from_le_bytes(packet[1..HEAD].try_into().expect("four bytes"));
        let mut channels = self.channels.lock();
        if packet[0] == SAY
            && let Some(wire) = channels.by_number.get(&number).cloned()
        {
            wire.inbox.lock().is_short_of_descriptors();
            if own != Some(number) {
                channels.list(&wire);
            }
        }
    }

    /// Ends all channels.
    fn end(&self, end: End) {
        let mut channels = self.channels.lock();
        channels.end = Some(end);
        let wires: Vec<_> = channels.by_number.values().cloned().collect();
        for wire in wires {
            wire.inbox.lock().end(end);
            channels.list(&wire);
        }
    }
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
        if !pair.made_in.is_current() || pair.channels.lock().end.is_some() {
            return;
        }
        // Descriptors that wait in the socket keep memory, too. None come after this.
        socket::stop_receiving(&pair.socket);
        pair.is_shut.store(true, Ordering::Relaxed);
        let _reading = pair.reading.lock();
        let mut packet = [0u8; MAX_PACKET];
        while let Ok(Received::Packet(..)) = socket::receive(&pair.socket, &mut packet) {}
        let unanswered = std::mem::take(&mut pair.channels.lock().calls);
        drop(unanswered);
    }
}
