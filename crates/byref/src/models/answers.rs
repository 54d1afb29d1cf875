//! A model of answers.

use super::cells::AtomicU64;
use super::{EXHAUSTIVE, explore};
use crate::protocol::answers::{Answers, Verdict};
use crate::protocol::regions::{Regions, Shape};
use crate::protocol::ring;
use crate::sync::{Pairing, heavy_fence};
use loom::sync::{Condvar, Mutex};
use loom::thread;
use std::rc::Rc;

const JOBS: u64 = 2;
/// The words of answers that these jobs need: the count, and an entry of two words for each.
const USED: std::ops::Range<usize> = 8..8 + 2 * JOBS as usize;
const ANSWER_AT: usize = 37;

struct Both {
    ring: Vec<AtomicU64>,
    answers: Vec<AtomicU64>,
    bell: Mutex<bool>,
    rung: Condvar,
}

fn cells(len: usize, used: impl Fn(usize) -> bool) -> Vec<AtomicU64> {
    (0..len).map(|word| if used(word) { AtomicU64::new(0) } else { AtomicU64::absent() }).collect()
}

/// A pusher that sleeps until a job is answered is rung, and finds every answer that is counted.
#[test]
fn no_lost_answer() {
    explore(EXHAUSTIVE, || {
        let shape = Shape::of(16);
        let both = Rc::new(Both {
            ring: cells(shape.words() as usize, |word| word == ANSWER_AT),
            answers: cells(USED.end, |word| word == 0 || USED.contains(&word)),
            bell: Mutex::new(false),
            rung: Condvar::new(),
        });
        let ring = |both: &Both, at| Regions::new(Shape::of(16)).ring(&both.ring).set_answer_at(at);
        ring(&both, ring::NEVER);
        let puller = Rc::clone(&both);
        // As in `Desk::answer`.
        let working = thread::spawn(move || {
            let mut rung = ring::NEVER;
            for job in 0..JOBS {
                let verdict = if job == 0 { Verdict::Done } else { Verdict::Retry(7) };
                let count = Answers::over(&puller.answers).give(job, &verdict);
                Pairing::Fenced.light();
                let awaited = ring::answer_at(&puller.ring);
                if count >= awaited && rung != awaited {
                    rung = awaited;
                    *puller.bell.lock().expect("nobody panics") = true;
                    puller.rung.notify_one();
                }
            }
        });
        // As in `Shared::wait_until`.
        let answers = Answers::over(&both.answers);
        let (mut seen, mut open) = (0, vec![0, 1]);
        let turn = |seen: &mut u64, open: &mut Vec<u64>| {
            let count = answers.count();
            if count != *seen {
                *seen = count;
                open.retain(|job| match answers.get(*job) {
                    None => true,
                    Some(verdict) => {
                        assert_eq!(verdict, if *job == 0 { Verdict::Done } else { Verdict::Retry(7) });
                        false
                    }
                });
            }
            assert!(open.len() as u64 <= JOBS - count, "an answer that was counted was not found");
        };
        loop {
            turn(&mut seen, &mut open);
            ring(&both, seen + open.len() as u64);
            heavy_fence();
            turn(&mut seen, &mut open);
            if open.is_empty() {
                break;
            }
            let mut bell = both.bell.lock().expect("nobody panics");
            while !*bell {
                bell = both.rung.wait(bell).expect("nobody panics");
            }
            *bell = false;
        }
        working.join().expect("it ends");
    });
}
