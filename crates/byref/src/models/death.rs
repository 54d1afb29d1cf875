//! Models of deaths: a party stops after any number of accesses to shared memory.

use super::cells::mortal;
use super::parties::{Memory, Publisher, Reader, Shape};
use super::{EXHAUSTIVE, explore};
use crate::protocol::claim::Policy;
use crate::sync::Pairing;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

/// Explores `model` with a party that dies after 0, 1, 2, ... steps, until it survives every execution; `model` says whether
/// it did.
fn explore_deaths(preemptions: Option<usize>, model: impl Fn(u32) -> bool + Send + Sync + 'static) {
    let (model, died) = (Arc::new(model), Arc::new(std::sync::atomic::AtomicBool::new(true)));
    for steps in 0.. {
        if !died.swap(false, Ordering::Relaxed) {
            break;
        }
        let (model, died) = (Arc::clone(&model), Arc::clone(&died));
        explore(preemptions, move || {
            if !model(steps) {
                died.store(true, Ordering::Relaxed);
            }
        });
    }
}

/// What the kernel tells others of a process.
#[derive(Default)]
struct Process {
    /// Its pidfd is readable.
    dead: AtomicBool,
    /// No process has its sockets, or what came through them, any more.
    hung_up: AtomicBool,
}

/// A reader dies anywhere on its way through a message; a child that it forked reads what it held, and ends later. After
/// the death the publisher does not wait for the reader's cursor, after the hang-up not for its holds either; until then
/// they count. The other reader receives every message.
#[test]
fn death_of_a_reader() {
    explore_deaths(EXHAUSTIVE, |steps| {
        let memory = Memory::new(Shape { capacity: 1, first: None, readers: 2, chunks: 1 });
        let mut publisher = Publisher::new(&memory, Pairing::Asymmetric, &[Policy::Block; 2]);
        assert!(publisher.send_pooled());
        let process = Rc::new(Process::default());
        let dying = {
            let process = Rc::clone(&process);
            let mut reader = Reader::new(&memory, Pairing::Asymmetric, 0, Policy::Block);
            thread::spawn(move || {
                let message = Cell::new(None);
                let survived = mortal(steps, || {
                    message.set(reader.take());
                    let taken = message.get().expect("it was sent before");
                    reader.read(taken);
                    message.set(None);
                    reader.release(taken);
                });
                process.dead.store(true, Ordering::Release);
                if let Some(inherited) = message.get() {
                    reader.read(inherited);
                }
                process.hung_up.store(true, Ordering::Release);
                survived.is_some()
            })
        };
        let mut other = Reader::new(&memory, Pairing::Asymmetric, 1, Policy::Block);
        let mut received = other.drain();
        for _ in 0..2 {
            if process.dead.load(Ordering::Acquire) {
                publisher.lose(0, process.hung_up.load(Ordering::Acquire));
            }
            publisher.send_pooled();
            received.append(&mut other.drain());
        }
        let survived = dying.join().expect("deaths are caught");
        publisher.lose(0, false);
        assert!(publisher.must_wait().is_none(), "a dead reader keeps room");
        publisher.lose(0, true);
        assert!(publisher.send_pooled(), "a dead reader keeps memory");
        received.append(&mut other.drain());
        assert!(received.into_iter().eq(0..publisher.tail()));
        survived
    });
}

/// A publisher dies anywhere in its work. A reader receives everything up to the last complete record, and only then
/// concludes that nothing comes any more.
#[test]
fn death_of_a_publisher() {
    for policy in [Policy::Block, Policy::Latest] {
        explore_deaths(Some(2), move |steps| {
            let memory = Memory::new(Shape { capacity: 2, first: None, readers: 1, chunks: 0 });
            let process = Rc::new(Process::default());
            let dying = {
                let process = Rc::clone(&process);
                let mut publisher = Publisher::new(&memory, Pairing::Asymmetric, &[policy]);
                thread::spawn(move || {
                    let sent = Cell::new(0);
                    let survived = mortal(steps, || {
                        for _ in 0..3 {
                            sent.set(sent.get() + publisher.send_inline().is_ok() as u64);
                        }
                    });
                    process.dead.store(true, Ordering::Release);
                    (sent.get(), survived.is_some())
                })
            };
            let mut reader = Reader::new(&memory, Pairing::Asymmetric, 0, policy);
            let mut received = Vec::new();
            // `Connection::take`: whether the publisher has ended is noted before the look.
            let mut look = |ended: bool| match reader.take() {
                Some(taken) => {
                    received.push(taken.position);
                    true
                }
                None => !ended,
            };
            let over = (0..2).any(|_| !look(process.dead.load(Ordering::Acquire)));
            let (sent, survived) = dying.join().expect("deaths are caught");
            while !over && look(true) {}
            let end = received.last().map_or(0, |last| last + 1);
            assert!((sent..=sent + 1).contains(&end), "{sent} were sent, {end} reached");
            assert_eq!(received.len() as u64 + reader.lost, end);
            assert!(policy != Policy::Block || reader.lost == 0);
            survived
        });
    }
}
