//! The parties of the models, and the memory that they share.

use super::cells::{AtomicU32, AtomicU64, Ordering, step};
use crate::protocol::claim::{Claim, Policy, retention_limit};
use crate::protocol::lease::{AWAKE, CLOSED, Lease};
use crate::protocol::regions;
use crate::protocol::regions::Regions;
use crate::protocol::ring::{Descriptor, InlineData, Look, NEVER, Place, RECORD_WORDS, Ring};
use crate::protocol::wake::{BY_WORD, Heard, Sleeper, Waiter, Way, note, raise};
use crate::sync::{Pairing, heavy_fence};
use crate::writer::log::Log;
use loom::cell::UnsafeCell;
use loom::sync::{Condvar, Mutex};
use std::cell::Cell;
use std::collections::VecDeque;
use std::ops::DerefMut;
use std::rc::Rc;

/// Memory that is not atomic: loom reports two accesses, one of them a write, that are not ordered.
pub struct Plain {
    content: Cell<u64>,
    order: UnsafeCell<()>,
}

impl Plain {
    pub fn new() -> Self {
        Plain { content: Cell::new(u64::MAX), order: UnsafeCell::new(()) }
    }

    pub fn write(&self, content: u64) {
        step();
        self.order.with_mut(|_| self.content.set(content));
    }

    pub fn read(&self) -> u64 {
        step();
        self.order.with(|_| self.content.get())
    }
}

/// How much memory a model needs.
pub struct Shape {
    pub capacity: u64,
    /// Records of the first region, of which each next one has twice as many; `None`: the ring does not grow.
    pub first: Option<u64>,
    pub readers: usize,
    pub chunks: u32,
}

/// What the processes share: a ring, a lease for each reader, and a pool.
pub struct Memory {
    shape: regions::Shape,
    ring: Vec<AtomicU64>,
    leases: Vec<(Vec<AtomicU64>, Vec<AtomicU32>)>,
    /// The payloads: a chunk contains the position of the message that it was written for.
    pub chunks: Vec<Plain>,
    /// The records as a reader sees them that is never to be lapped: it has to be done with one before it is overwritten.
    records: Vec<Plain>,
    /// The wake word, where a model needs it.
    alarm: Option<Alarm>,
}

/// A wake word, and what the kernel keeps of those who sleep at it.
pub struct Alarm {
    word: AtomicU32,
    queue: Mutex<()>,
    woken: Condvar,
    /// Written by who finds the first sleeper, before the word is raised for it.
    pub cause: Plain,
}

impl Alarm {
    fn new() -> Self {
        Alarm { word: AtomicU32::new(0), queue: Mutex::new(()), woken: Condvar::new(), cause: Plain::new() }
    }

    /// `FUTEX_WAIT`: the kernel compares under the lock of the queue.
    fn wait(&self, noted: u32) {
        let queue = self.queue.lock().expect("not poisoned");
        if self.word.load(Ordering::Relaxed) == noted {
            drop(self.woken.wait(queue).expect("not poisoned"));
        }
    }

    /// `Siren::sound`, `Gong::strike`.
    pub fn sound(&self) {
        raise(&self.word);
        let queue = self.queue.lock().expect("not poisoned");
        self.woken.notify_all();
        drop(queue);
    }

    /// `Words::note`, `Gong::strikes`. Nobody notes a value without the cause that it was raised for.
    fn note(&self) -> u32 {
        let noted = note(&self.word);
        if noted > 0 {
            self.cause.read();
        }
        noted
    }
}

/// `waker::Waker` and its thread, which serve one publisher.
pub struct Waker {
    waiting: Mutex<Requested>,
    changed: Condvar,
}

#[derive(Default)]
struct Requested {
    requested: bool,
    over: bool,
}

impl Waker {
    pub fn new() -> Rc<Self> {
        Rc::new(Waker { waiting: Mutex::default(), changed: Condvar::new() })
    }

    /// `Waker::request`.
    fn request(&self) {
        let mut waiting = self.waiting.lock().expect("not poisoned");
        if !std::mem::replace(&mut waiting.requested, true) {
            self.changed.notify_one();
        }
    }

    /// The last publisher is gone.
    pub fn stop(&self) {
        self.waiting.lock().expect("not poisoned").over = true;
        self.changed.notify_one();
    }

    /// `Work::run` and `Work::take`.
    pub fn run(&self, alarm: &Alarm) {
        loop {
            let mut waiting = self.waiting.lock().expect("not poisoned");
            while !waiting.requested && !waiting.over {
                waiting = self.changed.wait(waiting).expect("not poisoned");
            }
            if !std::mem::take(&mut waiting.requested) {
                return;
            }
            drop(waiting);
            alarm.sound();
        }
    }
}

impl Memory {
    pub fn new(shape: Shape) -> Rc<Self> {
        // A pooled record uses five words of data, an inline one of the models two.
        let data_words = if shape.chunks > 0 { 5 } else { 2 };
        let regions = regions::Shape::with(shape.capacity, shape.first.unwrap_or(shape.capacity), 1);
        let grows = !regions.is_last(0);
        let ring = (0..regions.words() as usize).map(|word| match word {
            16 | 17 | 32 | 34 | 38 => AtomicU64::new(0),
            40..48 if grows => AtomicU64::new(0),
            33 | 36 => AtomicU64::new(NEVER),
            64.. if word % RECORD_WORDS < 4 + data_words => AtomicU64::new(0),
            _ => AtomicU64::absent(),
        });
        let head =
            || (0..33).map(|word| if matches!(word, 16 | 17 | 32) { AtomicU64::new(0) } else { AtomicU64::absent() });
        let held = || (0..shape.chunks).map(|_| AtomicU32::new(0));
        Rc::new(Memory {
            shape: regions,
            ring: ring.collect(),
            leases: (0..shape.readers).map(|_| (head().collect(), held().collect())).collect(),
            chunks: (0..shape.chunks).map(|_| Plain::new()).collect(),
            records: (0..regions.words() as usize / RECORD_WORDS).map(|_| Plain::new()).collect(),
            alarm: None,
        })
    }

    /// With a wake word.
    pub fn with_alarm(shape: Shape) -> Rc<Self> {
        let mut memory = Memory::new(shape);
        Rc::get_mut(&mut memory).expect("it is new").alarm = Some(Alarm::new());
        memory
    }

    pub fn alarm(&self) -> &Alarm {
        self.alarm.as_ref().expect("the model has one")
    }

    pub fn ring(&self) -> Ring<'_> {
        Regions::new(self.shape).ring(&self.ring)
    }

    pub fn lease(&self, reader: usize) -> Lease<'_> {
        let (head, held) = &self.leases[reader];
        Lease::new(head, held)
    }

    pub fn words(&self) -> &[AtomicU64] {
        &self.ring
    }

    /// What somebody knows of the ring at first.
    pub fn regions(&self) -> Regions {
        Regions::new(self.shape)
    }

    fn capacity(&self) -> u64 {
        self.shape.capacity()
    }

    fn record(&self, regions: &Regions, position: u64) -> &Plain {
        &self.records[regions.at(&self.ring, position).number_of(position)]
    }
}

/// The payload of an inline record: two words that belong together.
const PAYLOAD: usize = 16;

fn place(position: u64) -> Place {
    Place { position, sequence: position, timestamp_ns: position }
}

pub fn append_inline(ring: Ring<'_>, position: u64) {
    ring.append_inline(place(position), &(position + 1).to_ne_bytes().repeat(PAYLOAD / 8), &[], 0);
}

pub fn append_pooled(ring: Ring<'_>, position: u64, slot: u32) {
    ring.append_pooled(place(position), descriptor(position, slot), 1);
}

/// A record whose release is waited for.
fn append_tracked(ring: Ring<'_>, position: u64, slot: u32) {
    ring.append_pooled(place(position), Descriptor { tracked: true, ..descriptor(position, slot) }, 1);
}

/// Appends a block of `count` messages, the first of which has the number `sequence`.
pub fn append_block(ring: Ring<'_>, position: u64, sequence: u64, count: u32) {
    ring.append_pooled(Place { sequence, ..place(position) }, descriptor(position, 0), count);
}

/// All parts of a descriptor tell whose it is.
fn descriptor(position: u64, slot: u32) -> Descriptor {
    let mark = position as u32 + 1;
    Descriptor {
        segment: mark,
        slot,
        offset: mark.into(),
        len: mark.into(),
        attributes_len: mark,
        refers: mark % 2 == 1,
        tracked: false,
        tag: mark.into(),
    }
}

/// Looks at the record of `position` and copies it. An inline copy must be that record; a descriptor may be torn, but the
/// reader can know (`Connection::hold`).
pub fn look(ring: Ring<'_>, position: u64) -> Look {
    let data = InlineData::new();
    let look = ring.look(position, &data);
    match look {
        Look::Inline(head) => {
            assert_eq!((head.timestamp_ns, head.sequence, head.payload_len()), (position, position, PAYLOAD));
            assert!(data.words().take(PAYLOAD / 8).all(|word| word == position + 1));
        }
        Look::Pooled(head, at)
            if (head.timestamp_ns, head.sequence) == (position, position)
                && at == (Descriptor { tracked: at.tracked, ..descriptor(position, at.slot) }) => {}
        Look::Pooled(..) => assert!(ring.was_reclaimed(position), "a torn descriptor, taken for a bad one"),
        Look::Empty | Look::Lapped => {}
        Look::Grown => assert!(!ring.was_reclaimed(position)),
        Look::Invalid => panic!("a record that no publisher writes"),
    }
    look
}

/// What a sleeper waits for: a wake-up in its socket, or the bell that its own process has for it.
pub struct Door {
    waiting: Mutex<Waiting>,
    readable: Condvar,
    /// How many wake-ups came through the socket.
    pub wakes: Cell<u64>,
}

#[derive(Default)]
struct Waiting {
    wake: bool,
    bell: bool,
}

impl Door {
    fn new() -> Rc<Self> {
        Rc::new(Door { waiting: Mutex::default(), readable: Condvar::new(), wakes: Cell::new(0) })
    }

    /// The peer sends a wake-up.
    fn wake(&self) {
        self.wakes.set(self.wakes.get() + 1);
        self.waiting.lock().expect("not poisoned").wake = true;
        self.readable.notify_one();
    }

    /// Another thread of the sleeper's process rings.
    fn ring(&self) {
        self.waiting.lock().expect("not poisoned").bell = true;
        self.readable.notify_one();
    }

    /// Reads the socket; whether a wake-up was in it.
    fn read_socket(&self) -> bool {
        std::mem::take(&mut self.waiting.lock().expect("not poisoned").wake)
    }

    /// Sleeps until something is there, and reads it.
    fn wait(&self) {
        let mut waiting = self.waiting.lock().expect("not poisoned");
        while !waiting.wake && !waiting.bell {
            waiting = self.readable.wait(waiting).expect("not poisoned");
        }
        *waiting = Waiting::default();
    }
}

/// A subscriber as the publisher knows it.
pub struct Peer {
    reader: usize,
    policy: Policy,
    alive: bool,
    sleeper: Sleeper,
    /// The subscriber's.
    pub door: Rc<Door>,
}

/// The publisher, `publisher::Open`.
pub struct Publisher {
    memory: Rc<Memory>,
    pairing: Pairing,
    log: Log,
    pub peers: Vec<Peer>,
    free: Vec<u32>,
    pending: VecDeque<(u64, u32)>,
    held: VecDeque<u32>,
    pub door: Rc<Door>,
    /// For how many cursors it has waited.
    pub waits: u64,
    /// Wakes those at the wake word in its stead.
    pub waker: Option<Rc<Waker>>,
    has_found_sleepers: bool,
}

impl Publisher {
    /// The publisher of `memory`, whose readers follow the given policies.
    pub fn new(memory: &Rc<Memory>, pairing: Pairing, policies: &[Policy]) -> Self {
        let peer =
            |(reader, &policy)| Peer { reader, policy, alive: true, sleeper: Sleeper::default(), door: Door::new() };
        Publisher {
            memory: Rc::clone(memory),
            pairing,
            log: Log::new(memory.shape),
            peers: policies.iter().enumerate().map(peer).collect(),
            free: (0..memory.chunks.len() as u32).collect(),
            pending: VecDeque::new(),
            held: VecDeque::new(),
            door: Door::new(),
            waits: 0,
            waker: None,
            has_found_sleepers: false,
        }
    }

    pub fn tail(&self) -> u64 {
        self.log.tail()
    }

    /// The ring as it is seen from the region that is written.
    pub fn ring(&self) -> Ring<'_> {
        self.log.ring(&self.memory.ring)
    }

    /// `Publisher::send` of a small message. `Err`: there is no room before some cursor comes to this position.
    pub fn send_inline(&mut self) -> Result<(), u64> {
        if let Some(needed) = self.must_wait() {
            return Err(needed);
        }
        self.append(append_inline);
        Ok(())
    }

    /// `Publisher::loan`, fill it, `Shared::commit`. `false`: there is no chunk, or no room.
    pub fn send_pooled(&mut self) -> bool {
        self.send_chunk(append_pooled).is_some()
    }

    /// A `Tracked` message; position and slot.
    pub fn send_tracked(&mut self) -> (u64, u32) {
        let slot = self.send_chunk(append_tracked).expect("there is room");
        (self.log.tail() - 1, slot)
    }

    fn send_chunk(&mut self, write: impl Fn(Ring<'_>, u64, u32)) -> Option<u32> {
        let slot = self.allocate()?;
        self.memory.chunks[slot as usize].write(self.log.tail());
        if self.must_wait().is_some() {
            self.free.push(slot);
            return None;
        }
        self.pending.push_back((self.log.tail(), slot));
        self.append(|ring, position| write(ring, position, slot));
        Some(slot)
    }

    /// `Ticket::wait_released_with` and `Open::look_at_all_awaited`; here one thread looks and sleeps.
    pub fn wait_released(&mut self, (position, slot): (u64, u32)) {
        let mut skip_at = NEVER;
        loop {
            let has_yet_to_pass = |peer: &Peer| {
                peer.alive && position >= self.log.reclaim() && self.memory.lease(peer.reader).cursor() <= position
            };
            let wants = |peer: &Peer| has_yet_to_pass(peer) || self.memory.lease(peer.reader).is_held(slot);
            let mut lossy = self.peers.iter().filter(|peer| peer.policy != Policy::Block);
            let at = if lossy.any(has_yet_to_pass) { position + 1 } else { NEVER };
            if !self.peers.iter().any(wants) {
                return;
            }
            if at == skip_at {
                self.door.wait();
                continue;
            }
            skip_at = at;
            self.memory.ring().set_skip_at(at);
            heavy_fence();
        }
    }

    /// `Shared::until_slowly`.
    pub fn send_inline_waiting(&mut self) {
        let mut armed = NEVER;
        while let Err(at) = self.send_inline() {
            if at == armed {
                self.door.wait();
            } else {
                armed = at;
                self.waits += 1;
                self.memory.ring().set_wake_at(at);
                heavy_fence();
            }
        }
        self.memory.ring().set_wake_at(NEVER);
    }

    /// `Open::append`.
    fn append(&mut self, write: impl Fn(Ring<'_>, u64)) {
        let position = self.log.tail();
        self.memory.record(self.log.regions(), position).write(position);
        write(self.ring(), position);
        self.log.appended();
        self.pairing.light();
        let mut at_word = 0;
        for peer in &mut self.peers {
            match peer.sleeper.due(self.memory.lease(peer.reader)) {
                None => {}
                Some(Way::Word) => at_word += 1,
                Some(Way::Socket) => peer.door.wake(),
            }
        }
        if at_word > 0 {
            self.wake_those_at_word();
        }
    }

    /// `Open::wake_those_at_word`.
    fn wake_those_at_word(&mut self) {
        if !std::mem::replace(&mut self.has_found_sleepers, true) {
            self.memory.alarm().cause.write(0);
        }
        match &self.waker {
            Some(waker) => waker.request(),
            None => self.memory.alarm().sound(),
        }
    }

    /// `Open::must_wait` and `Open::make_room`; memory is there.
    pub fn must_wait(&mut self) -> Option<u64> {
        if self.log.has_room() {
            return None;
        }
        let mut needed = NEVER;
        if !self.log.is_between_steps() {
            needed = self.look_at_cursors();
        }
        while let Some(step) = self.log.step(0) {
            self.log.stepped(&self.memory.ring, step.end, 0);
        }
        (!self.log.has_room()).then_some(needed)
    }

    /// `Open::claims`.
    fn claims<'a>(memory: &'a Memory, peers: &'a [Peer], tail: u64) -> impl Iterator<Item = Claim> + 'a {
        let capacity = memory.capacity();
        peers.iter().filter_map(move |peer| {
            let cursor = memory.lease(peer.reader).cursor();
            let depth = match peer.policy {
                Policy::Block => capacity,
                Policy::DropOldest => retention_limit(capacity),
                Policy::Latest => 1,
            };
            let claim = Claim { cursor: cursor.min(tail), policy: peer.policy, depth };
            (peer.alive && cursor != CLOSED).then_some(claim)
        })
    }

    /// `Open::look_at_cursors`.
    fn look_at_cursors(&mut self) -> u64 {
        let claims = Self::claims(&self.memory, &self.peers, self.log.tail());
        self.log.look(&self.memory.ring, 0, claims).needed
    }

    /// `Open::allocate`.
    fn allocate(&mut self) -> Option<u32> {
        self.collect();
        let claims = Self::claims(&self.memory, &self.peers, self.log.tail());
        let lossless = self.log.horizon(0, false, claims).reclaim;
        while self.free.is_empty()
            && let Some(&(position, _)) = self.pending.front()
            && position < lossless
        {
            self.log.move_mark(&self.memory.ring, position + 1);
            self.free_reclaimed();
        }
        self.free.pop()
    }

    /// `Open::collect`.
    fn collect(&mut self) {
        self.look_at_cursors();
        let known = self.held.len();
        self.free_reclaimed();
        for _ in 0..known {
            let slot = self.held.pop_front().expect("the loop counts what is there");
            self.free_unless_held(slot);
        }
    }

    /// `Open::free_reclaimed`.
    fn free_reclaimed(&mut self) {
        while let Some(&(position, slot)) = self.pending.front()
            && position < self.log.reclaim()
        {
            self.pending.pop_front();
            self.free_unless_held(slot);
        }
    }

    /// `Open::free_unless_held`.
    fn free_unless_held(&mut self, slot: u32) {
        if self.peers.iter().any(|peer| self.memory.lease(peer.reader).is_held(slot)) {
            self.held.push_back(slot);
        } else {
            self.free.push(slot);
        }
    }

    /// `Line::note_departure`; how far the reader came.
    pub fn revoke(&mut self, reader: usize) -> u64 {
        self.memory.ring().revoke();
        heavy_fence();
        self.memory.lease(reader).cursor()
    }

    /// `Shared::lose`.
    pub fn lose(&mut self, reader: usize, hung_up: bool) {
        let Some(index) = self.peers.iter().position(|peer| peer.reader == reader) else { return };
        self.peers[index].alive = false;
        if hung_up {
            self.peers.remove(index);
        }
        self.log.look_again();
    }
}

/// What a reader took. Dropping it releases nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    pub position: u64,
    pub slot: Option<u32>,
    tracked: bool,
}

/// A subscriber's connection to one publisher, `connection::Connection`.
pub struct Reader {
    pub memory: Rc<Memory>,
    number: usize,
    pairing: Pairing,
    policy: Policy,
    /// It must never be lapped.
    pub lossless: bool,
    /// What it never takes is given to others.
    pub exact: bool,
    regions: Regions,
    cursor: u64,
    /// The number of the next message; in these models also its position.
    expected: u64,
    skipped: bool,
    waiter: Waiter,
    skip_waiter: Waiter,
    /// The publisher's.
    pub door: Rc<Door>,
    pub lost: u64,
}

impl Reader {
    pub fn new(memory: &Rc<Memory>, pairing: Pairing, number: usize, policy: Policy) -> Self {
        Reader {
            memory: Rc::clone(memory),
            number,
            pairing,
            policy,
            lossless: policy == Policy::Block,
            exact: false,
            regions: Regions::new(memory.shape),
            cursor: 0,
            expected: 0,
            skipped: false,
            waiter: Waiter::default(),
            skip_waiter: Waiter::default(),
            door: Door::new(),
            lost: 0,
        }
    }

    pub fn lease(&self) -> Lease<'_> {
        self.memory.lease(self.number)
    }

    /// `MappedRing::learn`.
    fn learn(&mut self) {
        self.regions.learn(&self.memory.ring, |_| true).expect("regions in order");
    }

    /// `MappedRing::go_to`.
    fn go_to(&mut self, position: u64) {
        self.learn();
        self.regions.go_to(position);
    }

    /// `Connection::take` and `Connection::find`.
    pub fn take(&mut self) -> Option<Taken> {
        let memory = Rc::clone(&self.memory);
        let depth = match self.policy {
            Policy::Block => u64::MAX,
            Policy::DropOldest => retention_limit(memory.capacity()),
            Policy::Latest => 1,
        };
        loop {
            let before = self.cursor;
            let sent = if depth == u64::MAX { 0 } else { self.skip_old(depth) };
            let position = self.cursor;
            let ring = self.regions.ring(&memory.ring);
            let (head, at) = match look(ring, position) {
                Look::Inline(head) => (head, None),
                Look::Pooled(head, at) if self.lease().hold(ring, position, at.slot) => (head, Some(at)),
                Look::Pooled(..) | Look::Lapped => {
                    self.skip_to(ring.reclaim());
                    continue;
                }
                Look::Grown => {
                    self.learn();
                    self.regions.follow(position).expect("a region that begins at the marker");
                    continue;
                }
                Look::Empty => {
                    assert!(sent <= position, "a message that was sent is neither there nor gone");
                    let are_gone = position == before || ring.was_reclaimed(position - 1);
                    assert!(are_gone, "messages were given up for one that is not there");
                    self.count_what_was_skipped(ring);
                    return None;
                }
                Look::Invalid => unreachable!("`look` refuses it"),
            };
            self.skipped = false;
            self.lose_up_to(head.sequence);
            self.expected += 1;
            if self.lossless {
                assert_eq!(memory.record(&self.regions, position).read(), position);
            }
            self.advance(position + 1);
            if self.exact && ring.is_revoked() {
                if let Some(at) = at {
                    self.lease().release(at.slot);
                }
                return None;
            }
            let (slot, tracked) = (at.map(|at| at.slot), at.is_some_and(|at| at.tracked));
            return Some(Taken { position, slot, tracked });
        }
    }

    /// `Connection::skip_old`; how many messages it has seen to be sent.
    fn skip_old(&mut self, depth: u64) -> u64 {
        let memory = Rc::clone(&self.memory);
        let ring = memory.ring();
        let next = ring.next_sequence();
        let wanted = next.saturating_sub(depth);
        if wanted <= self.expected {
            return next;
        }
        let tail = ring.tail();
        let from = self.cursor.max(tail.saturating_sub(depth));
        self.learn();
        let position = self.regions.find(&memory.ring, from, tail.max(from), wanted);
        if position > self.cursor {
            self.skip_to(position);
        }
        self.lose_up_to(wanted);
        next
    }

    /// `Connection::count_what_was_skipped`.
    fn count_what_was_skipped(&mut self, ring: Ring<'_>) {
        if self.skipped {
            let next = ring.next_sequence();
            if ring.tail() == self.cursor {
                self.lose_up_to(next);
            }
        }
    }

    /// `Connection::lose_up_to`.
    fn lose_up_to(&mut self, next: u64) {
        let count = next.saturating_sub(self.expected);
        self.lost += count;
        self.expected += count;
    }

    /// `Connection::skip_to`.
    fn skip_to(&mut self, position: u64) {
        assert!(position > self.cursor, "a record that is not where it should be");
        self.skipped = true;
        self.go_to(position);
        self.advance(position);
        if self.skip_waiter.is_due(self.memory.ring().skip_at(), position) {
            self.door.wake();
        }
    }

    /// `Connection::advance`.
    pub fn advance(&mut self, cursor: u64) {
        self.cursor = cursor;
        self.lease().set_cursor(cursor);
        self.pairing.light();
        if self.waiter.is_due(self.memory.ring().wake_at(), cursor) {
            self.door.wake();
        }
    }

    /// `Message::deref`: the payload has to be that of the message.
    pub fn read(&self, taken: Taken) {
        if let Some(slot) = taken.slot {
            assert_eq!(self.memory.chunks[slot as usize].read(), taken.position, "another message's bytes");
        }
    }

    /// `Hold::drop`.
    pub fn release(&self, taken: Taken) {
        if let Some(slot) = taken.slot
            && self.lease().release(slot)
            && taken.tracked
        {
            self.door.wake();
        }
    }

    /// Takes everything that is there, reads and releases it; the positions.
    pub fn drain(&mut self) -> Vec<u64> {
        let mut positions = Vec::new();
        while let Some(taken) = self.take() {
            self.read(taken);
            self.release(taken);
            positions.push(taken.position);
        }
        positions
    }
}

/// The subscriber, `subscriber::Open`.
pub struct Subscriber {
    pub readers: Vec<Reader>,
    epoch: u64,
    armed: bool,
    asleep: bool,
    /// It sleeps at its publisher's wake word.
    pub at_word: bool,
    pub door: Rc<Door>,
}

impl Subscriber {
    pub fn new(readers: impl IntoIterator<Item = Reader>) -> Self {
        let readers = readers.into_iter().collect();
        Subscriber { readers, epoch: 0, armed: false, asleep: false, at_word: false, door: Door::new() }
    }

    /// How often it went to sleep.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// `Open::take_record` and `Open::stay_awake`.
    fn take(&mut self) -> Option<Taken> {
        let taken = self.readers.iter_mut().find_map(Reader::take)?;
        if self.armed && !self.asleep {
            self.disarm();
        }
        Some(taken)
    }

    /// `Subscriber::try_recv` and `Open::pass_wake_on`, on an occasion to read the sockets (`Connection::catch_up`).
    pub fn try_recv(&mut self) -> Option<Taken> {
        let took_wake = self.door.read_socket();
        let taken = self.take();
        if self.asleep && took_wake {
            self.door.ring();
        }
        taken
    }

    /// `Open::arm`.
    pub fn arm(&mut self) {
        self.announce();
        heavy_fence();
    }

    /// `Open::announce`.
    fn announce(&mut self) {
        self.epoch += 1;
        self.armed = true;
        let announced = self.epoch | if self.at_word { BY_WORD } else { 0 };
        for reader in &self.readers {
            reader.lease().set_sleeping(announced);
        }
    }

    /// `Open::disarm`.
    fn disarm(&mut self) {
        self.armed = false;
        for reader in &self.readers {
            reader.lease().set_sleeping(AWAKE);
        }
    }
}

/// The selector of several subscribers, `selector::Selector`. What they sleep at is one door, which tells none of them apart.
pub struct Selector {
    pub subscribers: Vec<Subscriber>,
    /// Those that are looked at in turns; the others are armed.
    awake: Vec<usize>,
    door: Rc<Door>,
}

impl Selector {
    /// All `subscribers` sleep at the first one's door.
    pub fn new(subscribers: Vec<Subscriber>) -> Self {
        let (awake, door) = ((0..subscribers.len()).collect(), Rc::clone(&subscribers[0].door));
        Selector { subscribers, awake, door }
    }

    /// `Selector::arm_those`: whose message was found, if any.
    fn arm_those(&mut self, is_meant: impl Fn(usize) -> bool) -> Option<(usize, Taken)> {
        for &place in self.awake.iter().filter(|place| is_meant(**place)) {
            self.subscribers[place].announce();
        }
        heavy_fence();
        let mut found = None;
        for place in std::mem::take(&mut self.awake) {
            if found.is_none() && is_meant(place) {
                found = self.subscribers[place].take().map(|taken| (place, taken));
                if found.is_none() {
                    continue;
                }
            }
            self.awake.push(place);
        }
        found
    }

    /// `Selector::arm_idle`, for one of them.
    pub fn arm_idle(&mut self, idle: usize) -> Option<(usize, Taken)> {
        self.arm_those(|place| place == idle)
    }

    /// `Selector::turn`, of one that is awake.
    pub fn try_recv(&mut self, place: usize) -> Option<(usize, Taken)> {
        self.subscribers[place].take().map(|taken| (place, taken))
    }

    /// `Selector::wait` and `Selector::turn`.
    pub fn recv(&mut self) -> (usize, Taken) {
        loop {
            if let Some(taken) = self.arm_those(|_| true) {
                return taken;
            }
            self.door.wait();
            // `Selector::look`; the door does not say who was rung, so all may have been.
            self.awake = (0..self.subscribers.len()).collect();
        }
    }
}

/// `Subscriber::recv_with` and `Shared::wait_until`; `lock` gives access to the subscriber.
pub fn recv<G: DerefMut<Target = Subscriber>>(lock: impl Fn() -> G) -> Taken {
    loop {
        let door = {
            let mut subscriber = lock();
            subscriber.arm();
            if let Some(taken) = subscriber.take() {
                return taken;
            }
            subscriber.asleep = true;
            Rc::clone(&subscriber.door)
        };
        door.wait();
        lock().asleep = false;
    }
}

/// The same, of a subscriber of one publisher that sleeps at its wake word. So many of its sleeps end for another reason than a
/// wake-up.
pub fn recv_at_word(subscriber: &mut Subscriber, mut interruptions: u32) -> Taken {
    subscriber.at_word = true;
    let memory = Rc::clone(&subscriber.readers[0].memory);
    let (mut noted, mut still_armed) = (0, false);
    loop {
        if let Some(taken) = subscriber.take() {
            return taken;
        }
        if !(still_armed && subscriber.armed) {
            noted = memory.alarm().note();
            subscriber.arm();
            if let Some(taken) = subscriber.take() {
                return taken;
            }
        }
        still_armed = interruptions > 0;
        if still_armed {
            interruptions -= 1;
        } else {
            memory.alarm().wait(noted);
        }
    }
}

/// The sockets of a subscriber that sleeps at words, and its gong.
pub struct Sockets {
    packets: Mutex<u32>,
    gong: Alarm,
}

impl Sockets {
    pub fn new() -> Rc<Self> {
        Rc::new(Sockets { packets: Mutex::default(), gong: Alarm::new() })
    }

    /// A packet comes, and the service thread strikes the gong.
    pub fn receive(&self, is_first: bool) {
        *self.packets.lock().expect("not poisoned") += 1;
        if is_first {
            self.gong.cause.write(1);
        }
        self.gong.sound();
    }

    /// `Open::look_at_descriptors`, which leaves something if it comes while it looks; whether there was anything.
    fn read(&self) -> bool {
        let mut packets = self.packets.lock().expect("not poisoned");
        let happened = *packets > 0;
        *packets -= u32::from(happened);
        happened
    }

    /// `Open::hear_gong` and `Words::wait`, again and again, until it has read so many packets.
    pub fn hear(&self, mut missing: u32) {
        let mut heard = Heard::default();
        while missing > 0 {
            let mut strikes = self.gong.note();
            if heard.is_news(strikes) && self.read() {
                missing -= 1;
                strikes = heard.look_again();
            }
            if missing > 0 {
                self.gong.wait(strikes);
            }
        }
    }
}
