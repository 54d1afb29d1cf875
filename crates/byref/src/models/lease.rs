//! Models of the lease's invariants.

use super::parties::{Memory, Publisher, Reader, Shape};
use super::{EXHAUSTIVE, explore};
use crate::protocol::claim::Policy;
use crate::sync::Pairing;
use loom::thread;

/// *Hold, reclaim.* A lossy reader takes a hold while the publisher reclaims the record and wants its chunk: either the
/// reader finds the record gone and gives the hold back, or the publisher finds the hold and leaves the chunk alone.
#[test]
fn hold_against_reclaim() {
    explore(EXHAUSTIVE, || {
        let memory = Memory::new(Shape { capacity: 2, first: None, readers: 1, chunks: 1 });
        let mut publisher = Publisher::new(&memory, Pairing::Asymmetric, &[Policy::Latest]);
        assert!(publisher.send_pooled());
        let mut reader = Reader::new(&memory, Pairing::Asymmetric, 0, Policy::Latest);
        let reading = thread::spawn(move || {
            let taken = reader.take();
            if let Some(taken) = taken {
                reader.read(taken);
            }
            (reader, taken)
        });
        publisher.send_pooled();
        let (mut reader, taken) = reading.join().expect("the reader ends");
        if let Some(taken) = taken {
            reader.read(taken); // Whatever the publisher did meanwhile.
            reader.release(taken);
        }
        reader.drain();
        assert!(publisher.send_pooled(), "a hold was left behind");
    });
}

/// *Release, count.* The publisher reuses a chunk, and its record, only after the last of several holds is gone; it sees
/// everything that was done under them.
#[test]
fn release_before_reuse() {
    explore(EXHAUSTIVE, || {
        let memory = Memory::new(Shape { capacity: 1, first: None, readers: 1, chunks: 1 });
        let mut publisher = Publisher::new(&memory, Pairing::Asymmetric, &[Policy::Block]);
        assert!(publisher.send_pooled());
        let mut reader = Reader::new(&memory, Pairing::Asymmetric, 0, Policy::Block);
        let reading = thread::spawn(move || {
            let message = reader.take().expect("it was sent before");
            reader.lease().hold_again(0);
            let clone = message;
            reader.read(message);
            reader.release(message);
            reader.read(clone);
            reader.release(clone);
            reader
        });
        publisher.send_pooled();
        publisher.send_pooled();
        let mut reader = reading.join().expect("the reader ends");
        publisher.send_pooled();
        assert_eq!(reader.drain().last(), Some(&(publisher.tail() - 1)));
        assert!(publisher.tail() >= 2, "the chunk stayed behind");
    });
}

/// *Advance.* A cursor that has passed a record shows the hold that was taken on the way.
#[test]
fn advance_shows_hold() {
    explore(EXHAUSTIVE, || {
        let memory = Memory::new(Shape { capacity: 1, first: None, readers: 1, chunks: 1 });
        let mut publisher = Publisher::new(&memory, Pairing::Asymmetric, &[Policy::Block]);
        assert!(publisher.send_pooled());
        let mut reader = Reader::new(&memory, Pairing::Asymmetric, 0, Policy::Block);
        let reading = thread::spawn(move || reader.take());
        if memory.lease(0).cursor() == 1 {
            assert!(memory.lease(0).is_held(0));
        }
        assert!(reading.join().expect("the reader ends").is_some());
    });
}

/// The same with two readers, the second one lossless or lossy, and a publisher that wants the chunk: the lossless ones get
/// every message, and what anybody holds stays as it is.
#[test]
fn readers_of_both_kinds() {
    for other in [Policy::Block, Policy::Latest] {
        explore(Some(4), move || {
            let policies = [Policy::Block, other];
            let memory = Memory::new(Shape { capacity: 1, first: None, readers: 2, chunks: 1 });
            let mut publisher = Publisher::new(&memory, Pairing::Asymmetric, &policies);
            assert!(publisher.send_pooled());
            let reading = [0, 1].map(|number| {
                let mut reader = Reader::new(&memory, Pairing::Asymmetric, number, policies[number]);
                thread::spawn(move || {
                    if let Some(taken) = reader.take() {
                        reader.read(taken);
                        reader.release(taken);
                    }
                    reader
                })
            });
            publisher.send_pooled();
            for (reading, policy) in reading.into_iter().zip(policies) {
                let mut reader = reading.join().expect("the reader ends");
                reader.drain();
                assert!(policy != Policy::Block || reader.lost == 0);
            }
            assert!(publisher.send_pooled(), "a hold was left behind");
        });
    }
}

/// A lossless reader that is frozen somewhere on its way to a message, evicted, and wakes up later, takes either that
/// message, unchanged, or none. What it holds stays as it is.
#[test]
fn evicted_reader() {
    explore(Some(5), || {
        let memory = Memory::new(Shape { capacity: 1, first: None, readers: 1, chunks: 1 });
        let mut publisher = Publisher::new(&memory, Pairing::Asymmetric, &[Policy::Block]);
        assert!(publisher.send_pooled());
        let mut reader = Reader::new(&memory, Pairing::Asymmetric, 0, Policy::Block);
        reader.lossless = false;
        let reading = thread::spawn(move || {
            let taken = reader.take();
            if let Some(taken) = taken {
                reader.read(taken);
            }
            (reader, taken)
        });
        publisher.lose(0, false);
        assert!(publisher.must_wait().is_none(), "an evicted reader keeps room");
        publisher.send_pooled();
        let (reader, taken) = reading.join().expect("the reader ends");
        if let Some(taken) = taken {
            reader.read(taken);
            reader.release(taken);
        }
        assert!(publisher.send_pooled(), "a hold was left behind");
    });
}

/// *Taken, revoked.* A reader is given up while it takes a message, inline or held: if it gives that out, its cursor says so to who gave
/// it up, who sends what it does not find taken elsewhere.
#[test]
fn taken_or_revoked() {
    for pooled in [false, true] {
        explore(EXHAUSTIVE, move || {
            let memory = Memory::new(Shape { capacity: 2, first: None, readers: 1, chunks: 1 });
            let mut publisher = Publisher::new(&memory, Pairing::Fenced, &[Policy::Block]);
            if pooled {
                assert!(publisher.send_pooled());
            } else {
                publisher.send_inline().expect("there is room");
            }
            let mut reader = Reader::new(&memory, Pairing::Fenced, 0, Policy::Block);
            reader.exact = true;
            let reading = thread::spawn(move || {
                let taken = reader.take();
                if let Some(taken) = taken {
                    reader.read(taken);
                    reader.release(taken);
                }
                taken
            });
            let untaken = publisher.revoke(0) == 0;
            let taken = reading.join().expect("the reader ends");
            assert!(!(untaken && taken.is_some()), "a message is given out, and sent elsewhere");
        });
    }
}
