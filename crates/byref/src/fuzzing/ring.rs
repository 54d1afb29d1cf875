//! A publisher that writes anything into its ring and pool and onto its socket, read by a connection.

use super::{Number, each};
use crate::link::candidates::Candidate;
use crate::link::channel::{Channel, joined};
use crate::link::handshake::{ToSubscriber, Welcome, encode};
use crate::protocol::claim::retention_limit;
use crate::protocol::lease::{COUNTS, LEASE_LEN, Lease, MAX_SLOTS};
use crate::protocol::regions::{Regions, Shape};
use crate::protocol::ring::{Descriptor, FIRST_POSITIONS, NEVER, Place, RECORD_WORDS, RECORDS, Ring};
use crate::reader::batch::Batch;
use crate::reader::connection::{Connection, LOSSLESS, Stop};
use crate::reader::message::Message;
use crate::reader::sender::{AckedAt, PublisherInfo};
use crate::sync::{AtomicU64, Ordering};
use crate::sys::memory::{Mapping, OwnedSegment, PeerSegment, page_ceil};
use crate::sys::socket;
use arbitrary::{Arbitrary, Unstructured};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use std::hint::black_box;
use std::sync::Arc;

/// A ring that does not grow has at most so many records.
const MOST_RECORDS: u64 = 16;
/// Rings that grow: of the longer one, the last region has no memory.
const GROWING: [u64; 2] = [128, 1024];
/// The pages of each of the segments; of the last one the second has no memory.
const PAGES: [u64; 2] = [4, 2];
/// Where in the ring its counters lie (see `ring.rs`).
const COUNTERS: [usize; 9] = [16, 17, 32, 33, 34, 35, 36, FIRST_POSITIONS + 1, FIRST_POSITIONS + 2];

/// The welcome, and what the subscriber is like.
#[derive(Arbitrary, Debug)]
struct Beginning {
    records: u8,
    start: Number,
    first: Number,
    depth: u8,
    tell_gaps: bool,
}

#[derive(Arbitrary, Debug)]
enum Step<'a> {
    // What an honest publisher does.
    Send { content: &'a [u8], attributes: u8 },
    SendPooled { at: Chunk, count: u8 },
    Reclaim { by: u8 },
    Grow,
    Announce { segment: u8 },
    // What others do.
    Counter { which: u8, value: Number },
    Word { at: u16, value: Number },
    FalseMarker { position: Number, told: Number },
    Record { position: Number, stamp: Number, sequence: Number, at: Chunk, meta: u64 },
    Pool { segment: u8, at: u16, content: &'a [u8] },
    Packet { content: &'a [u8], passed: u8 },
    SegmentOfAnyKind { id: Number, passed: u8 },
    Retire { id: Number },
    Die,
    // What the subscriber does.
    Take,
    TakeMany { most: Number },
    ReadSocket,
    Backlog,
    Clone { which: u8 },
    Drop { which: u8 },
    DropBatch,
    Look { which: u8, index: Number },
}

/// Where a payload is said to lie.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Chunk {
    segment: u8,
    slot: Number,
    offset: Number,
    len: Number,
    attributes: Number,
}

impl Chunk {
    fn descriptor(self) -> Descriptor {
        let Chunk { segment, slot, offset, len, attributes } = self;
        let (slot, attributes) = (slot.of(0) as u32, attributes.of(0));
        Descriptor {
            segment: segment as u32,
            slot,
            offset: offset.of(4096), // Near the border between memory and a hole.
            len: len.of(64),
            attributes_len: attributes as u32,
            refers: attributes >> 62 & 1 == 1,
            tracked: attributes >> 63 & 1 == 1,
            tag: attributes >> 40,
        }
    }
}

/// The segments of the publisher, made once.
struct Memory {
    ring: OwnedSegment,
    pool: [OwnedSegment; PAGES.len()],
}

impl Memory {
    fn new() -> Self {
        let page = rustix::param::page_size() as u64;
        let longest = Shape::of(GROWING[1]);
        let ring = OwnedSegment::new("fuzz-ring", longest.words() * 8).expect("some memory");
        ring.populate(0..page_ceil(longest.words_up_to(1) * 8)).expect("some memory");
        let pool = PAGES.map(|pages| OwnedSegment::new("fuzz-pool", pages * page).expect("some memory"));
        pool[0].populate(0..PAGES[0] * page).expect("some memory");
        pool[1].populate(0..page).expect("some memory");
        Memory { ring, pool }
    }

    /// Whether the second page of the second segment has no memory, nor the last region of the ring.
    fn has_holes(&self) -> bool {
        let page = rustix::param::page_size() as u64;
        let has = |fd, bytes| rustix::fs::fstat(fd).is_ok_and(|stat| stat.st_blocks as u64 * 512 == bytes);
        has(self.pool[1].shared(), page) && has(self.ring.shared(), self.ring.populated())
    }

    /// The words of the ring that have memory.
    fn words(&self) -> &[AtomicU64] {
        &self.ring.map().words()[..Shape::of(GROWING[1]).words_up_to(1) as usize]
    }
}

struct Stage<'a> {
    memory: &'a Memory,
    /// Of an honest publisher.
    regions: Regions,
    words: &'a [AtomicU64],
    channel: Channel,
    /// Something that is no memory.
    socket: OwnedFd,
    connection: Connection,
    depth: u64,
    /// What an honest publisher would append next.
    next: Place,
    announced: u32,
    /// The number that the next message has if the count of those that were lost is right.
    first: u64,
    received: u64,
    lost: u64,
    messages: Vec<Message>,
    batches: Vec<Batch>,
    /// Those that were named.
    slots: Vec<u32>,
}

pub fn run(input: &[u8]) {
    thread_local! {
        static MEMORY: Memory = Memory::new();
    }
    MEMORY.with(|memory| {
        let mut input = Unstructured::new(input);
        let Ok(beginning) = Beginning::arbitrary(&mut input) else { return };
        memory.words().iter().for_each(|word| word.store(0, Ordering::Relaxed));
        let Some((mut stage, lease)) = Stage::set(memory, &beginning) else { return };
        each(input, |step| stage.play(step));
        let Stage { connection, messages, batches, mut slots, .. } = stage;
        connection.leave();
        drop((messages, batches));
        slots.push(0);
        let lease = Lease::new(lease.words(), lease.counts(COUNTS));
        assert!(slots.iter().all(|slot| !lease.is_held(*slot)), "a hold outlives all messages");
        assert!(memory.has_holes(), "a hole was read, and has memory now");
    });
}

impl<'a> Stage<'a> {
    /// Shakes hands; also gives another view of the lease.
    fn set(memory: &'a Memory, beginning: &Beginning) -> Option<(Self, Mapping)> {
        let capacity = match beginning.records {
            0..192 => 1 << (beginning.records % 5),
            192..224 => GROWING[0],
            _ => GROWING[1],
        };
        let (start, first) = (beginning.start.of(0), beginning.first.of(0));
        let lease = OwnedSegment::new("fuzz-lease", LEASE_LEN).expect("some memory");
        let view = PeerSegment::new(copy(lease.shared()), Some(LEASE_LEN))
            .map_err(|(error, _)| error)
            .expect("a lease")
            .into_map();
        let (theirs, channel) = joined();
        let (socket, _) = socket::pair().expect("two sockets");
        let info = PublisherInfo { id: 0, pid: 0, name: None, topic: "t".into(), acked_at: AckedAt::default() };
        let welcome = Welcome { publisher: 0, topic: "t".into(), name: None, start, first, capacity, membarrier: true };
        let (ring, lease, theirs) = (copy(memory.ring.shared()), lease.into_map(), Arc::new(theirs));
        let connection =
            Connection::new(1, info, &welcome, ring, lease, theirs, Candidate::new(""), beginning.tell_gaps, true)
                .ok()?;
        let (words, regions) = (memory.words(), Regions::new(Shape::of(capacity)));
        regions.ring(words).set_wake_at(NEVER);
        let depth = match beginning.depth {
            0..128 => LOSSLESS,
            depth => (depth as u64 - 127).min(retention_limit(capacity)),
        };
        let next = Place { position: start, sequence: first, timestamp_ns: 0 };
        let stage = Stage {
            memory,
            regions,
            words,
            channel,
            socket,
            connection,
            depth,
            next,
            announced: 0,
            first,
            received: 0,
            lost: 0,
            messages: Vec::new(),
            batches: Vec::new(),
            slots: Vec::new(),
        };
        Some((stage, view))
    }

    /// `false`: the connection is over.
    fn play(&mut self, step: Step<'_>) -> bool {
        match step {
            Step::Send { content, attributes } => {
                let content = &content[..content.len().min(150)];
                self.append(1, |ring, place| {
                    let tag = u64::from(attributes) / 40;
                    ring.append_inline(place, content, &[0; 40][..attributes as usize % 40], tag);
                });
            }
            Step::SendPooled { at, count } => {
                let at = at.descriptor();
                self.slots.push(at.slot % MAX_SLOTS);
                self.append(count as u64, |ring, place| ring.append_pooled(place, at, count as u32));
            }
            Step::Reclaim { by } => self.ring().set_reclaim(self.ring().reclaim().saturating_add(by as u64)),
            Step::Grow => self.grow(),
            Step::Announce { segment } => {
                self.announce(self.announced, segment);
                self.announced += 1;
            }
            Step::Counter { which, value } => {
                let word = &self.words[COUNTERS[which as usize % COUNTERS.len()]];
                word.store(value.of(word.load(Ordering::Relaxed)), Ordering::Relaxed);
            }
            Step::Word { at, value } => {
                let word = &self.words[at as usize % self.words.len()];
                word.store(value.of(word.load(Ordering::Relaxed)), Ordering::Relaxed);
            }
            Step::FalseMarker { position, told } => {
                let position = position.of(self.next.position);
                if position < u64::MAX {
                    self.ring().set_first_position(self.regions.current() + 1, told.of(position));
                    self.ring().append_marker(position);
                }
            }
            Step::Record { position, stamp, sequence, at, meta } => {
                let at = at.descriptor();
                self.slots.push(at.slot % MAX_SLOTS);
                let position = position.of(self.next.position);
                let record = RECORDS + (position % MOST_RECORDS) as usize * RECORD_WORDS;
                let ids = at.segment as u64 | (at.slot as u64) << 32;
                let stamp = stamp.of(position.wrapping_add(1));
                let sequence = sequence.of(self.next.sequence);
                let content = [stamp, 0, meta, sequence, ids, at.offset, at.len, at.attributes_len as u64];
                for (word, value) in self.words[record..].iter().zip(content) {
                    word.store(value, Ordering::Release);
                }
            }
            Step::Pool { segment, at, content } => {
                let words = self.memory.pool[segment as usize % PAGES.len()].map().words();
                // The page without memory stays so.
                for (index, byte) in content.iter().enumerate() {
                    words[(at as usize + index) % 512].store(*byte as u64 * 0x0101_0101_0101_0101, Ordering::Relaxed);
                }
            }
            Step::Packet { content, passed } => self.say(content, passed),
            Step::SegmentOfAnyKind { id, passed } => {
                let id = id.of(self.announced as u64) as u32;
                self.announce(id, passed);
            }
            Step::Retire { id } => self.say(&encode(&ToSubscriber::Retire { id: id.of(0) as u32 }), u8::MAX),
            Step::Die => self.connection.died(),
            Step::Take => return self.take(),
            Step::TakeMany { most } => return self.take_many(most.of(4) as usize),
            Step::ReadSocket => drop(self.connection.read_socket()),
            Step::Backlog => {
                let (waiting, _) = self.connection.backlog(self.depth);
                assert!(waiting <= self.depth);
            }
            Step::Clone { which } => {
                let clone = self.messages.get(which as usize % self.messages.len().max(1)).cloned();
                self.messages.extend(clone);
            }
            Step::Drop { which } if !self.messages.is_empty() => {
                self.messages.swap_remove(which as usize % self.messages.len());
            }
            Step::Drop { .. } => {}
            Step::DropBatch => drop(self.batches.pop()),
            Step::Look { which, index } => self.look(which as usize, index.of(0) as usize),
        }
        true
    }

    fn ring(&self) -> Ring<'a> {
        self.regions.ring(self.words)
    }

    /// Moves on to the next region; if there is no memory for it, lies that there is.
    fn grow(&mut self) {
        let (shape, next) = (self.regions.shape(), self.regions.current() + 1);
        if self.regions.are_all_known() || self.next.position <= self.regions.first() || self.next.position >= 1 << 63 {
            return;
        }
        if shape.words_up_to(next) <= self.words.len() as u64 {
            self.regions.grow(self.words, self.next.position);
        } else {
            self.ring().set_first_position(next, self.next.position);
            self.ring().append_marker(self.next.position);
        }
    }

    fn append(&mut self, count: u64, write: impl FnOnce(Ring<'a>, Place)) {
        // A publisher that counts to the end of all numbers would fail by itself.
        if self.next.position < 1 << 63 && self.next.sequence < 1 << 63 {
            write(self.ring(), self.next);
            self.next.position += 1;
            self.next.sequence += count;
        }
    }

    fn announce(&self, id: u32, passed: u8) {
        self.say(&encode(&ToSubscriber::Segment { id }), passed);
    }

    /// Sends a packet; `passed` says with which descriptor.
    fn say(&self, packet: &[u8], passed: u8) {
        let passed: Option<BorrowedFd<'_>> = match passed {
            0..64 => Some(self.memory.pool[0].shared()),
            64..128 => Some(self.memory.pool[1].shared()),
            128..160 => Some(self.memory.ring.shared()),
            160..192 => Some(self.socket.as_fd()),
            _ => None,
        };
        // What does not fit is not said.
        let _ = self.channel.send(packet, passed);
    }

    fn take(&mut self) -> bool {
        if self.depth == LOSSLESS
            && let Some(head) = self.connection.take_inline()
        {
            let message = Message::inline(&self.connection.link.info, head, &self.connection.scratch);
            self.took(message);
            return true;
        }
        match self.connection.take(self.depth, &mut self.lost) {
            Ok(taken) => {
                let message = Message::new(&self.connection.link.info, taken, &self.connection.scratch);
                self.took(message);
                true
            }
            Err(stop) => self.goes_on_after(stop),
        }
    }

    fn took(&mut self, message: Message) {
        assert_eq!(message.sequence(), self.first + self.received + self.lost, "what is missing was counted");
        self.received += 1;
        check(&message);
        self.messages.push(message);
    }

    fn take_many(&mut self, most: usize) -> bool {
        let mut batch = Batch::default();
        let outcome = self.connection.take_many(self.depth, &mut self.lost, most, &mut batch);
        batch.set_publisher(&self.connection.link.info);
        assert!(batch.len() <= most);
        let sequences = batch.sequences();
        assert!(sequences.windows(2).all(|pair| pair[0] < pair[1]));
        self.received += batch.len() as u64;
        // A batch may end with what is missing.
        assert!(sequences.last().is_none_or(|last| *last < self.first + self.received + self.lost));
        assert!(batch.packed().is_none_or(|(len, bytes)| len * batch.len() == bytes.len()));
        batch.iter().for_each(|message| check(&message));
        self.batches.push(batch);
        match outcome {
            Ok(()) => true,
            Err(stop) => self.goes_on_after(stop),
        }
    }

    fn goes_on_after(&mut self, stop: Stop) -> bool {
        match stop {
            Stop::Nothing | Stop::Refused(_) => true,
            Stop::Over | Stop::Evicted(_) => false,
            Stop::Gap => {
                let (first, count) = self.connection.gap.take().expect("a gap is told");
                assert!(count > 0 && first + count == self.first + self.received + self.lost);
                true
            }
        }
    }

    /// Uses what was taken before.
    fn look(&self, which: usize, index: usize) {
        if let Some(batch) = self.batches.get(which % self.batches.len().max(1)) {
            black_box((batch.get(index), batch.layout().ok(), batch.payload_len(), batch.timestamps_ns()));
        }
        if let Some(message) = self.messages.get(which % self.messages.len().max(1)) {
            check(message);
            assert_eq!(message.writable().unwrap().len(), message.len());
        }
    }
}

/// Reads all of a message.
fn check(message: &Message) {
    assert!(message.lies_inside());
    black_box(message.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)));
    black_box(message.attributes());
}

fn copy(fd: BorrowedFd<'_>) -> OwnedFd {
    fd.try_clone_to_owned().expect("a descriptor more")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::inbox::Said;
    use crate::memory::glossary::{self, GLOSSARY};
    use crate::sys::memory::MOST_MAPPED;

    const POOLED: u64 = 1 << 63;
    const FAR: u64 = (1 << 62) + 1;
    /// The number of the counter that says how far records are reclaimed.
    const RECLAIM: u8 = 2;

    /// A subscriber's first look at a publisher, whose segment 0 has memory all over.
    fn stage(memory: &Memory) -> Stage<'_> {
        stage_of(memory, 4)
    }

    /// The same for a ring that grows: of 128 records, or of more than there is memory for.
    fn growing_stage(memory: &Memory, has_memory: bool) -> Stage<'_> {
        stage_of(memory, if has_memory { 192 } else { 224 })
    }

    fn stage_of(memory: &Memory, records: u8) -> Stage<'_> {
        memory.words().iter().for_each(|word| word.store(0, Ordering::Relaxed));
        let zero = Number::Small(0);
        let beginning = Beginning { records, start: zero, first: zero, depth: 0, tell_gaps: false };
        let (mut stage, _) = Stage::set(memory, &beginning).expect("an honest welcome");
        stage.play(Step::Announce { segment: 0 });
        stage
    }

    fn chunk(slot: u64, len: u64) -> Chunk {
        let number = Number::Any;
        Chunk { segment: 0, slot: number(slot), offset: number(64), len: number(len), attributes: number(0) }
    }

    fn record<'a>(position: u64, stamp: u64, sequence: u64, at: Chunk, meta: u64) -> Step<'a> {
        let number = Number::Any;
        Step::Record { position: number(position), stamp: number(stamp), sequence: number(sequence), at, meta }
    }

    #[test]
    fn records_that_end_a_connection() {
        let one = POOLED | 1;
        let first = |sequence, at, meta| vec![record(0, 1, sequence, at, meta)];
        let lapped = |mark| {
            let which = Step::Counter { which: RECLAIM, value: Number::Any(mark) };
            vec![record(0, 17, 16, chunk(0, 64), one), which]
        };
        let cases = [
            ("a slot beyond the lease", first(0, chunk(MAX_SLOTS as u64, 64), one)),
            ("no messages", first(1, chunk(0, 64), POOLED)),
            ("no messages and no bytes", first(1, chunk(0, 0), POOLED)),
            ("rows of different lengths", first(0, chunk(0, 64), POOLED | 3)),
            ("empty rows", first(0, chunk(0, 0), POOLED | 2)),
            ("a number that nobody counts to", first(FAR, chunk(0, 64), one)),
            ("an inline record that is too long", first(0, chunk(0, 0), 0xffff)),
            ("a later stamp, and no mark", lapped(0)),
            ("a mark that nobody counts to", lapped(FAR)),
        ];
        let again = vec![record(0, 1, 0, chunk(0, 64), one), Step::Take, record(1, 2, 0, chunk(0, 64), one)];
        let memory = Memory::new();
        for (case, steps) in cases.into_iter().chain([("the same number again", again)]) {
            let mut stage = stage(&memory);
            for step in steps {
                assert!(stage.play(step), "{case}: not yet");
            }
            stage.ring().set_closed();
            assert!(!stage.play(Step::Take), "{case}");
            assert!(!stage.connection.was_closed(), "{case}: it is the publisher's fault");
            assert_eq!(stage.lost, 0, "{case}");
        }
    }

    #[test]
    fn packets_that_end_a_connection() {
        let segment = |id| Step::SegmentOfAnyKind { id: Number::Any(id), passed: 0 };
        let cases = [
            ("no packet at all", vec![Step::Packet { content: &[0xff; 20], passed: u8::MAX }]),
            ("a segment again", vec![segment(0)]),
            ("a retired segment again", vec![Step::Retire { id: Number::Any(0) }, segment(0)]),
            ("a lower number", vec![segment(7), segment(6)]),
        ];
        let memory = Memory::new();
        for (case, steps) in cases {
            let mut stage = stage(&memory);
            for step in steps {
                stage.play(step);
            }
            stage.connection.read_socket();
            assert!(!stage.play(Step::Take), "{case}");
        }
        let explained = OwnedSegment::new("test", glossary::LEN).unwrap();
        let vast = OwnedSegment::new("test", MOST_MAPPED).unwrap();
        for (case, memories) in [
            ("two glossaries", vec![(GLOSSARY, &explained); 2]),
            ("a whole address space", { (1..10).map(|id| (id, &vast)).collect() }),
        ] {
            let mut stage = stage(&memory);
            stage.connection.read_socket();
            for (id, segment) in memories {
                assert!(stage.play(Step::Take), "{case}: not yet");
                let packet = encode(&ToSubscriber::Segment { id });
                assert!(stage.channel.send(&packet, Some(segment.shared())).unwrap());
                stage.connection.read_socket();
                if !stage.connection.is_live() {
                    break;
                }
            }
            assert!(!stage.play(Step::Take), "{case}");
        }
    }

    #[test]
    fn many_packets_are_read_in_one_go() {
        let memory = Memory::new();
        let mut stage = stage(&memory);
        let mut say = |count: usize, expected: bool| {
            let was_said = |_: &usize| stage.channel.send(&encode(&ToSubscriber::Wake), None).unwrap();
            let said = (0..count).take_while(was_said).count();
            assert_eq!(stage.connection.read_socket(), expected, "{said} packets");
        };
        say(100, true);
    }

    #[test]
    fn the_last_hold_of_a_tracked_message_rings() {
        let memory = Memory::new();
        let mut stage = stage(&memory);
        let tracked = Descriptor { tracked: true, ..chunk(3, 64).descriptor() };
        stage.append(1, |ring, place| ring.append_pooled(place, tracked, 1));
        assert!(stage.play(Step::Take) && stage.play(Step::Clone { which: 0 }));
        for is_rung in [false, true] {
            assert!(stage.play(Step::Drop { which: 0 }));
            stage.channel.pump();
            assert_eq!(matches!(stage.channel.take(), Ok(Said::Ring)), is_rung);
        }
    }

    #[test]
    fn rings_that_cannot_be_are_refused() {
        let memory = Memory::new();
        let holes = OwnedSegment::new("test", Shape::of(16).words() * 8).unwrap();
        let connect = |ring: &OwnedSegment, capacity, start, first| {
            let info = PublisherInfo { id: 0, pid: 0, name: None, topic: "t".into(), acked_at: AckedAt::default() };
            let topic = info.topic.clone();
            let welcome = Welcome { publisher: 0, topic, name: None, start, first, capacity, membarrier: true };
            let lease = OwnedSegment::new("fuzz-lease", LEASE_LEN).unwrap().into_map();
            let (ring, theirs) = (copy(ring.shared()), Arc::new(joined().0));
            Connection::new(1, info, &welcome, ring, lease, theirs, Candidate::new(""), false, true).map(drop)
        };
        assert!(connect(&memory.ring, 16, 5, 5).is_ok());
        let capacities = [0, 3, 15, 2048, 1 << 30, 1 << 33, 1 << 56, 1 << 63].map(|capacity| (capacity, 0, 0));
        for (capacity, start, first) in capacities.into_iter().chain([(16, FAR, 0), (16, 0, FAR)]) {
            assert!(connect(&memory.ring, capacity, start, first).is_err(), "{capacity} {start} {first}");
        }
        assert!(connect(&holes, 16, 0, 0).unwrap_err().to_string().contains("holes"));
        // It says that it has grown to where it has no memory.
        Regions::new(Shape::of(GROWING[0])).ring(memory.words()).set_first_position(1, 3);
        assert!(connect(&memory.ring, 1024, 0, 0).is_ok());
        Regions::new(Shape::of(GROWING[0])).ring(memory.words()).set_first_position(2, 9);
        assert!(connect(&memory.ring, 1024, 0, 0).unwrap_err().to_string().contains("holes"));
    }

    /// From wherever it begins, and by whatever it skips.
    #[test]
    fn a_growing_ring_is_followed() {
        let memory = Memory::new();
        for (reclaimed, received) in [(0, 70), (63, 7), (65, 5)] {
            let mut stage = growing_stage(&memory, true);
            for number in 0..70u8 {
                if number == 63 {
                    stage.play(Step::Grow);
                }
                stage.play(Step::Send { content: &[number], attributes: 0 });
            }
            stage.play(Step::Reclaim { by: reclaimed });
            for _ in 0..received {
                assert!(stage.play(Step::Take));
            }
            assert_eq!((stage.received, stage.lost), (received, reclaimed as u64));
            assert_eq!(stage.messages.last().unwrap()[..], [69]);
            let mut lost = 0;
            stage.connection.died();
            assert!(stage.connection.is_used_up(&mut lost) && lost == 0);
        }
    }

    #[test]
    fn a_ring_that_grew_last_thing_is_used_up() {
        let memory = Memory::new();
        let mut stage = growing_stage(&memory, true);
        for step in [Step::Send { content: &[1], attributes: 0 }, Step::Grow, Step::Take, Step::Die] {
            assert!(stage.play(step));
        }
        assert!(stage.connection.is_used_up(&mut 0));
    }

    #[test]
    fn growth_that_ends_a_connection() {
        let (memory, number) = (Memory::new(), Number::Any);
        let marker = |position, told| Step::FalseMarker { position: number(position), told: number(told) };
        let table = |region: u8, value| Step::Counter { which: 6 + region, value: number(value) };
        let send = || Step::Send { content: &[], attributes: 0 };
        let cases = [
            ("a marker without a region", true, vec![send(), Step::Take, marker(1, 0)]),
            ("a marker before everything", true, vec![marker(0, 0)]),
            ("a region that begins elsewhere", true, vec![send(), Step::Take, marker(1, 2)]),
            ("regions out of order", false, vec![send(), Step::Take, table(2, 1), marker(1, 1)]),
            ("a region without memory", false, vec![send(), Step::Grow, send(), Step::Take, Step::Take, Step::Grow]),
            ("a region behind the last", true, vec![send(), Step::Grow, send(), Step::Take, Step::Take, marker(2, 2)]),
        ];
        for (case, has_memory, steps) in cases {
            let mut stage = growing_stage(&memory, has_memory);
            for step in steps {
                assert!(stage.play(step), "{case}: not yet");
            }
            assert!(!stage.play(Step::Take), "{case}");
            assert!(!stage.connection.was_closed(), "{case}: it is the publisher's fault");
        }
        assert!(memory.has_holes());
    }
}
