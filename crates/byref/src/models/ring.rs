//! Models of the ring's invariants.

use super::parties::{Memory, Publisher, Reader, Shape, append_block, append_inline, append_pooled, look};
use super::{EXHAUSTIVE, explore};
use crate::protocol::claim::Policy;
use crate::protocol::ring::{Look, Ring};
use crate::sync::Pairing;
use loom::thread;
use std::rc::Rc;

/// *Append, read.* A reader takes records in order, each of them whole, while the publisher appends, laps it, and appends
/// again. Every message is either taken or counted as lost; a lossless reader loses none.
#[test]
fn append_read_lap() {
    for (policy, capacity, messages, takes) in
        [(Policy::Block, 2, 4, 3), (Policy::DropOldest, 2, 3, 1), (Policy::Latest, 1, 2, 2)]
    {
        explore(Some(3), move || {
            let memory = Memory::new(Shape { capacity, first: None, readers: 1, chunks: 0 });
            let mut publisher = Publisher::new(&memory, Pairing::Asymmetric, &[policy]);
            let mut reader = Reader::new(&memory, Pairing::Asymmetric, 0, policy);
            let reading = thread::spawn(move || {
                let taken: Vec<_> = (0..takes).filter_map(|_| reader.take()).map(|taken| taken.position).collect();
                (reader, taken)
            });
            for _ in 0..messages {
                // A full ring refuses some.
                let _ = publisher.send_inline();
            }
            let (mut reader, mut taken) = reading.join().expect("the reader ends");
            taken.append(&mut reader.drain());
            assert!(taken.is_sorted_by(|a, b| a < b));
            assert_eq!(taken.len() as u64 + reader.lost, publisher.tail());
            assert!(policy != Policy::Block || reader.lost == 0);
        });
    }
}

/// *Lap.* A reader that is overtaken while it copies a record never takes the torn copy for one: neither words of two
/// payloads, nor parts of two descriptors, nor one read as the other, or as a marker.
#[test]
fn lapped_reader_knows() {
    let inline: fn(Ring<'_>, u64) = append_inline;
    let pooled: fn(Ring<'_>, u64) = |ring, position| append_pooled(ring, position, 0);
    let marker: fn(Ring<'_>, u64) = |ring, position| ring.append_marker(position);
    for first in [inline, pooled] {
        for second in [inline, pooled, marker] {
            explore(EXHAUSTIVE, move || {
                let memory = Memory::new(Shape { capacity: 1, first: None, readers: 1, chunks: 1 });
                first(memory.ring(), 0);
                let reading = {
                    let memory = Rc::clone(&memory);
                    thread::spawn(move || look(memory.ring(), 0))
                };
                memory.ring().set_reclaim(1);
                second(memory.ring(), 1);
                let found = reading.join().expect("the reader ends");
                assert_ne!(found, Look::Empty);
            });
        }
    }
}

/// *Counting.* A reader that has come to the tail is not behind by any message below the number that it saw before: none
/// that is still to come. What it finds below the tail has all those messages. Blocks differ in length.
#[test]
fn sequences_follow_positions() {
    explore(EXHAUSTIVE, || {
        let memory = Memory::new(Shape { capacity: 4, first: None, readers: 1, chunks: 1 });
        let firsts = [0, 2, 5];
        let reading = {
            let memory = Rc::clone(&memory);
            thread::spawn(move || {
                let ring = memory.ring();
                let next = ring.next_sequence();
                let tail = ring.tail();
                assert!(next <= firsts[tail as usize], "{next} messages in {tail} records");
                let found = memory.regions().find(memory.words(), 0, tail, next);
                assert_eq!(firsts[found as usize], next, "its record is found, if it is there");
            })
        };
        append_block(memory.ring(), 0, firsts[0], 2);
        append_block(memory.ring(), 1, firsts[1], 3);
        reading.join().expect("the reader ends");
    });
}

/// *Retire.* A reader that sees a new `generation` finds in its socket which segments are retired; a publisher that sees
/// it in the lease uses their memory again only after the reader has unmapped it. (Socket and mapping are memory without
/// an order of its own here.)
#[test]
fn retirement_is_seen() {
    explore(EXHAUSTIVE, || {
        let memory = Memory::new(Shape { capacity: 1, first: None, readers: 1, chunks: 2 });
        let reading = {
            let memory = Rc::clone(&memory);
            thread::spawn(move || {
                let [socket, mapping] = [&memory.chunks[0], &memory.chunks[1]];
                mapping.read();
                let generation = memory.ring().generation();
                if generation == 1 {
                    assert_eq!(socket.read(), 1);
                    memory.lease(0).set_generation(generation);
                }
            })
        };
        let [socket, mapping] = [&memory.chunks[0], &memory.chunks[1]];
        socket.write(1);
        memory.ring().set_generation(1);
        if memory.lease(0).generation() == 1 {
            mapping.write(2);
        }
        reading.join().expect("the reader ends");
    });
}

/// *Growing.* The publisher moves on to longer regions while readers of all kinds read: who lags comes by every message on the
/// way, who skips or is lapped finds the region that it goes on in, and nobody waits in an old region for what lies in a new one.
#[test]
fn growing_ring() {
    for (policy, messages, takes) in [(Policy::Block, 3, 2), (Policy::Latest, 3, 1), (Policy::DropOldest, 3, 1)] {
        explore(Some(3), move || {
            let memory = Memory::new(Shape { capacity: 4, first: Some(2), readers: 1, chunks: 0 });
            let mut publisher = Publisher::new(&memory, Pairing::Asymmetric, &[policy]);
            let mut reader = Reader::new(&memory, Pairing::Asymmetric, 0, policy);
            let reading = thread::spawn(move || {
                let taken: Vec<_> = (0..takes).filter_map(|_| reader.take()).map(|taken| taken.position).collect();
                (reader, taken)
            });
            for _ in 0..messages {
                publisher.send_inline().expect("it grows");
            }
            let (mut reader, mut taken) = reading.join().expect("the reader ends");
            taken.append(&mut reader.drain());
            assert!(taken.is_sorted_by(|a, b| a < b));
            assert_eq!(
                (taken.len() as u64 + reader.lost, taken.last()),
                (publisher.tail(), Some(&(publisher.tail() - 1)))
            );
            assert!(policy != Policy::Block || reader.lost == 0);
        });
    }
}

/// The same for a reader that has not been there before and learns of a position from the mark alone: the region that begins
/// there, or before, is in the table.
#[test]
fn growing_ring_from_its_table() {
    explore(EXHAUSTIVE, || {
        let memory = Memory::new(Shape { capacity: 4, first: Some(2), readers: 1, chunks: 0 });
        let reading = {
            let memory = Rc::clone(&memory);
            thread::spawn(move || {
                let mut regions = memory.regions();
                let position = memory.ring().reclaim();
                regions.learn(memory.words(), |_| true).expect("regions in order");
                regions.go_to(position);
                assert_eq!(regions.current(), usize::from(position > 1), "{position}");
            })
        };
        let mut regions = memory.regions();
        append_inline(regions.ring(memory.words()), 0);
        regions.grow(memory.words(), 1);
        append_inline(regions.ring(memory.words()), 1);
        memory.ring().set_reclaim(2);
        reading.join().expect("the reader ends");
    });
}

/// A reader that is on its way through an old region finds everything there as it was, up to the marker, however far the publisher
/// is by then.
#[test]
fn old_region_stays() {
    explore(EXHAUSTIVE, || {
        let memory = Memory::new(Shape { capacity: 4, first: Some(2), readers: 1, chunks: 0 });
        let mut regions = memory.regions();
        append_inline(regions.ring(memory.words()), 0);
        let reading = {
            let memory = Rc::clone(&memory);
            thread::spawn(move || {
                let mut regions = memory.regions();
                assert!(matches!(look(memory.ring(), 0), Look::Inline(_)));
                if look(memory.ring(), 1) == Look::Grown {
                    regions.learn(memory.words(), |_| true).expect("regions in order");
                    regions.follow(1).expect("it begins at the marker");
                    let _ = look(regions.ring(memory.words()), 1);
                }
            })
        };
        regions.grow(memory.words(), 1);
        append_inline(regions.ring(memory.words()), 1);
        append_inline(regions.ring(memory.words()), 2);
        reading.join().expect("the reader ends");
    });
}
