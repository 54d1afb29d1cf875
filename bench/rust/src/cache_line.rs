//! The floor: what it takes to pass a number to another processor and back, with nothing but one cache line.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use crate::Outcome;

/// A word with its cache line, and the one that some processors fetch along with it, to itself.
#[repr(align(128))]
struct Line(AtomicU64);

/// Bounces a cache line between two threads that poll it, and times each round trip.
pub fn round_trips(length: u64) -> Outcome {
    let line = Line(AtomicU64::new(0));
    let pass_on = |number: u64| {
        while line.0.load(Ordering::Acquire) != number {}
        line.0.store(number + 1, Ordering::Release);
    };
    thread::scope(|scope| {
        scope.spawn(|| (0..length).for_each(|i| pass_on(2 * i + 1)));
        let mut start = Instant::now();
        let mut times = Vec::with_capacity(length as usize);
        for i in 0..length {
            pass_on(2 * i);
            while line.0.load(Ordering::Acquire) == 2 * i + 1 {}
            let end = Instant::now();
            times.push((end - start).as_nanos() as u64);
            start = end;
        }
        Outcome::of_round_trips(times)
    })
}
