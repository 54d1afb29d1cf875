//! A publisher that writes anything into its ring and pool and onto its socket, read by a connection.

use super::{Number, each};
use crate::batch::Batch;
use crate::claim::retention_limit;
use crate::connection::{Connection, LOSSLESS, Stop};
use crate::handshake::{ToSubscriber, Welcome, encode};
use crate::lease::{COUNTS, LEASE_LEN, Lease, MAX_SLOTS};
use crate::message::{Message, PublisherInfo};
use crate::ring::{DATA_WORDS, Descriptor, NEVER, Place, Ring};
use crate::sync::{AtomicU64, Ordering};
use crate::sys::memory::{Mapping, OwnedSegment, PeerSegment};
use crate::sys::process::Process;
use crate::sys::socket;
use arbitrary::{Arbitrary, Unstructured};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use std::hint::black_box;
use std::sync::Arc;

/// The most records of the ring, and the pages of each of the segments; of the last one the second has no memory.
const MOST_RECORDS: u64 = 16;
const PAGES: [u64; 2] = [4, 2];
/// Where in the ring its counters lie (see `ring.rs`), and the first record.
const COUNTERS: [usize; 6] = [16, 17, 32, 33, 34, 35];
const RECORDS: usize = 64;
const RECORD_WORDS: usize = DATA_WORDS + 4;

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
    Announce { segment: u8 },
    // What others do.
    Counter { which: u8, value: Number },
    Word { at: u16, value: Number },
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
        let ring = OwnedSegment::new("fuzz-ring", Ring::words_needed(MOST_RECORDS) * 8).expect("some memory");
        ring.populate(0..ring.map().len() as u64).expect("some memory");
        let pool = PAGES.map(|pages| OwnedSegment::new("fuzz-pool", pages * page).expect("some memory"));
        pool[0].populate(0..PAGES[0] * page).expect("some memory");
        pool[1].populate(0..page).expect("some memory");
        Memory { ring, pool }
    }

    /// Whether the second page of the second segment has no memory.
    fn has_holes(&self) -> bool {
        let page = rustix::param::page_size() as u64;
        rustix::fs::fstat(self.pool[1].shared()).is_ok_and(|stat| stat.st_blocks as u64 * 512 == page)
    }
}

struct Stage<'a> {
    memory: &'a Memory,
    ring: Ring<'a>,
    words: &'a [AtomicU64],
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
        let words = memory.ring.map().words();
        words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        let Some((mut stage, lease)) = Stage::set(memory, &beginning) else { return };
        each(input, |step| stage.play(step));
        let Stage { connection, messages, batches, mut slots, .. } = stage;
        connection.leave();
        drop((connection, messages, batches));
        slots.push(0);
        let lease = Lease::new(lease.words(), lease.counts(COUNTS));
        assert!(slots.iter().all(|slot| !lease.is_held(*slot)), "a hold outlives all messages");
        assert!(memory.has_holes(), "a hole was read, and has memory now");
    });
}

impl<'a> Stage<'a> {
    /// Shakes hands; also gives another view of the lease.
    fn set(memory: &'a Memory, beginning: &Beginning) -> Option<(Self, Mapping)> {
        let capacity = 1 << (beginning.records % 5);
        let (start, first) = (beginning.start.of(0), beginning.first.of(0));
        let lease = OwnedSegment::new("fuzz-lease", LEASE_LEN).expect("some memory");
        let view = PeerSegment::new(copy(lease.shared()), Some(LEASE_LEN))
            .map_err(|(error, _)| error)
            .expect("a lease")
            .into_map();
        let (socket, theirs) = socket::pair().expect("two sockets");
        let info = PublisherInfo { id: 0, pid: 0, name: None, topic: "t".into() };
        let welcome = Welcome { publisher: 0, topic: "t".into(), name: None, start, first, capacity, membarrier: true };
        let (ring, lease, theirs) = (copy(memory.ring.shared()), lease.into_map(), Arc::new(theirs));
        let connection =
            Connection::new(1, info, &welcome, ring, lease, theirs, Process::Unknown, beginning.tell_gaps).ok()?;
        let words = memory.ring.map().words();
        let ring = Ring::new(words, capacity);
        ring.set_wake_at(NEVER);
        let depth = match beginning.depth {
            0..128 => LOSSLESS,
            depth => (depth as u64 - 127).min(retention_limit(capacity)),
        };
        let next = Place { position: start, sequence: first, timestamp_ns: 0 };
        let stage = Stage {
            memory,
            ring,
            words,
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
                self.append(1, |ring, place| ring.append_inline(place, content, &[0; 40][..attributes as usize % 40]));
            }
            Step::SendPooled { at, count } => {
                let at = at.descriptor();
                self.slots.push(at.slot % MAX_SLOTS);
                self.append(count as u64, |ring, place| ring.append_pooled(place, at, count as u32));
            }
            Step::Reclaim { by } => self.ring.set_reclaim(self.ring.reclaim().saturating_add(by as u64)),
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

    fn append(&mut self, count: u64, write: impl FnOnce(Ring<'a>, Place)) {
        // A publisher that counts to the end of all numbers would fail by itself.
        if self.next.position < 1 << 63 && self.next.sequence < 1 << 63 {
            write(self.ring, self.next);
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
        let _ = socket::send(&self.socket, packet, passed);
    }

    fn take(&mut self) -> bool {
        if self.depth == LOSSLESS
            && let Some(head) = self.connection.take_inline()
        {
            let message = Message::inline(Arc::clone(&self.connection.link.info), head, &self.connection.scratch);
            self.took(message);
            return true;
        }
        match self.connection.take(self.depth, &mut self.lost) {
            Ok(taken) => {
                let info = Arc::clone(&self.connection.link.info);
                let message = Message::new(info, taken, &self.connection.scratch);
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
