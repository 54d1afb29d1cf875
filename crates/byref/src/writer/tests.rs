//! A store and two lines, without an endpoint.

use crate::link::channel::{Channel, joined};
use crate::link::handshake::ToSubscriber;
use crate::link::handshake::{self, Hello};
use crate::link::inbox::Said;
use crate::link::service;
use crate::memory::pool::{Chunk, Pool};
use crate::protocol::claim::Policy;
use crate::protocol::lease::{COUNTS, LEASE_LEN, Lease};
use crate::protocol::ring::{Descriptor, NEVER};
use crate::sys::memory::OwnedSegment;
use crate::sys::memory::PeerSegment;
use crate::writer::attempt::Attempt;
use crate::writer::errands::Errands;
use crate::writer::line::Plan;
use crate::writer::line::{Limits, Line};
use crate::writer::readers::{Introduction, Newcomer};
use crate::writer::rings::Rings;
use crate::writer::store::Store;
use crate::writer::waker::Waker;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Does no errands.
struct Nobody;

impl Errands for Nobody {
    fn flush_outboxes(&self, _: u32) -> Option<Duration> {
        None
    }

    fn hear(&self, _: u32, _: u64, _: &Channel, _: &Rings) {}

    fn look_at_awaited(&self, _: u32) -> bool {
        false
    }

    fn give_waker(&self, _: u32, _: Option<Arc<Waker>>) {}

    fn shrink(&self) -> bool {
        false
    }

    fn settle_retired(&self) -> bool {
        false
    }

    fn readers_changed(&self) {}
}

/// A reader that does nothing by itself.
struct Reader {
    lease: OwnedSegment,
    channel: Channel,
}

impl Reader {
    fn lease(&self) -> Lease<'_> {
        Lease::new(self.lease.map().words(), self.lease.map().counts(COUNTS))
    }

    /// The numbers of the segments that it was told are gone.
    fn retired(&self) -> Vec<u32> {
        let mut numbers = Vec::new();
        self.channel.pump();
        while let Ok(Said::Packet(packet, _)) = self.channel.take() {
            if let Some(ToSubscriber::Retire { id }) = handshake::decode(&packet) {
                numbers.push(id);
            }
        }
        numbers
    }
}

/// A store, and two lines that each have a reader which may lose nothing.
struct Stage {
    store: Store,
    lines: Vec<Line>,
    readers: Vec<Reader>,
}

impl Stage {
    fn set(max_memory: u64) -> Self {
        let (_, service) = service::connect("t").unwrap();
        let errands = || Weak::<Nobody>::new() as Weak<dyn Errands>;
        let limits = Limits::default();
        let mut store = Store::new(max_memory, limits, &service, errands());
        let (mut lines, mut readers) = (Vec::new(), Vec::new());
        for (number, name) in [(3, "first"), (7, "second")] {
            let plan =
                Plan { number, topic: "t", capacity: 16, history: 0, limits, generation: 0, keeps_untaken: false };
            let mut line = Line::new(plan, &service, errands()).unwrap();
            let (channel, theirs) = joined();
            let lease = OwnedSegment::new("test", LEASE_LEN).unwrap();
            let shared = lease.shared().try_clone_to_owned().unwrap();
            let newcomer = Newcomer {
                hello: Hello {
                    topic: "t".into(),
                    policy: Policy::Block,
                    depth: None,
                    history: 0,
                    name: Some(name.into()),
                    membarrier: false,
                },
                lease: PeerSegment::new(shared, Some(LEASE_LEN)).unwrap().into_map(),
                channel: theirs,
            };
            let introduction = Introduction { publisher: 1, topic: "t", name: None };
            line.admit(&mut store, newcomer, &introduction).unwrap();
            lines.push(line);
            readers.push(Reader { lease, channel });
        }
        Stage { store, lines, readers }
    }

    /// A chunk that is sent on these lines; gives its slot.
    fn send(&mut self, bytes: u64, on: &[usize]) -> u32 {
        let chunk = self.store.try_allocate(&mut self.lines, bytes).unwrap();
        let Chunk { segment, slot, offset, .. } = chunk;
        let at =
            Descriptor { segment, slot, offset, len: bytes, attributes_len: 0, refers: false, tracked: false, tag: 0 };
        for index in on {
            let line = &mut self.lines[*index];
            assert!(line.must_wait().is_none());
            self.store.append(line, at, 1, None, None);
        }
        slot
    }

    /// The reader of a line takes all, and holds nothing.
    fn take_all(&self, line: usize) {
        self.readers[line].lease().set_cursor(self.lines[line].log.tail());
    }

    fn used(&mut self) -> u64 {
        self.store.collect(&mut self.lines, usize::MAX);
        self.store.pool.used()
    }
}

#[test]
fn a_chunk_on_two_lines_is_free_when_both_have_passed_it_and_nobody_holds_it() {
    let _meeting = crate::link::meeting::meet_in_private();
    for [first, second] in [[0, 1], [1, 0]] {
        let mut stage = Stage::set(1 << 20);
        let slot = stage.send(1 << 16, &[0, 1]);
        assert_eq!(stage.used(), 1 << 16, "both have yet to take it");
        stage.take_all(first);
        assert_eq!(stage.used(), 1 << 16, "one has yet to take it");
        stage.readers[first].lease().hold_again(slot);
        let outstanding = stage.store.outstanding(&stage.lines);
        assert_eq!((outstanding.messages, outstanding.holders.len()), (1, 1));
        stage.take_all(second);
        assert_eq!(stage.used(), 1 << 16, "one holds it");
        stage.readers[first].lease().release(slot);
        assert_eq!(stage.used(), 0);
        assert!(stage.store.held.is_empty());
        let again = stage.send(1 << 16, &[first]);
        assert_eq!(again, slot);
        stage.readers[second].lease().hold_again(slot);
        stage.take_all(first);
        assert_eq!(stage.used(), 0, "who holds what was not sent to it holds nothing");
    }
}

#[test]
fn what_is_unread_on_two_lines_takes_memory_once() {
    let _meeting = crate::link::meeting::meet_in_private();
    let mut stage = Stage::set(1 << 20);
    stage.send(1 << 16, &[0, 1]);
    stage.send(1 << 16, &[1]);
    assert_eq!(stage.store.unread(&stage.lines), 2 << 16);
    assert_eq!(stage.store.theirs(&stage.lines), 2 << 16);
    stage.take_all(1);
    stage.used();
    assert_eq!(stage.store.unread(&stage.lines), 1 << 16);
    let told = stage.store.describe_obstacles(&stage.lines, true);
    assert!(told.contains("'first') has 1 message unread") && !told.contains("'second'"), "{told}");
}

#[test]
fn what_lossless_readers_of_any_line_take_makes_room() {
    let _meeting = crate::link::meeting::meet_in_private();
    let mut stage = Stage::set(1 << 17);
    stage.send(1 << 16, &[0, 1]);
    let attempt = |stage: &mut Stage| {
        let bytes = (1 << 17, 1 << 17);
        stage.store.attempt(&mut stage.lines, 3, bytes, &mut 0, "t")
    };
    assert!(matches!(attempt(&mut stage), Attempt::Wait { at: 1, .. }));
    stage.take_all(0);
    assert!(matches!(attempt(&mut stage), Attempt::Wait { at: NEVER, .. }), "the other line's reader is awaited");
    stage.take_all(1);
    assert!(matches!(attempt(&mut stage), Attempt::Done(_)));
}

#[test]
fn the_readers_of_all_lines_are_told_of_retired_memory() {
    let _meeting = crate::link::meeting::meet_in_private();
    let mut stage = Stage::set(1 << 20);
    stage.send(1 << 16, &[0]);
    stage.take_all(0);
    assert_eq!(stage.used(), 0);
    stage.lines[0].call_readers(); // Its generation is ahead now.
    stage.store.retire(&mut stage.lines, Pool::retire_empty);
    for line in 0..2 {
        assert_eq!(stage.readers[line].retired(), [0]);
        assert_eq!(stage.lines[line].generation, 2);
    }
    let generation = stage.lines[0].generation;
    for line in 0..2 {
        assert!(stage.store.pool.populated() > 0, "one has yet to unmap it");
        stage.readers[line].lease().set_generation(generation + 1);
        stage.store.settle_late(&mut stage.lines);
    }
    assert_eq!(stage.store.pool.populated(), 0);
}
