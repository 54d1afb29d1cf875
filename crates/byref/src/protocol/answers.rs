//! Answers: what a puller tells a pusher of the jobs that it was given, in the puller's lease, which it alone writes.
//!
//! # Layout (64-bit words from [`ANSWERS`] on in the lease of a puller)
//!
//! | word | content |
//! | --- | --- |
//! | 0 | how often an answer was given, or `elsewhere` changed, so far |
//! | 1 | `elsewhere`: jobs of other pushers that this puller has not answered |
//! | 8 + 2 e | entry `e`: the job that it answers, plus 1 (bits 8..), and the [`Verdict`] (bits 0..8) |
//! | 9 + 2 e | of that entry: nanoseconds of a delay, or bytes of a reason |
//! | 8 + 2 [`WINDOW`] + 32 e | the reason of entry `e`: up to [`MOST_REASON`] bytes of text |
//!
//! A job is known by its number on the line, and its entry is that number modulo [`WINDOW`]. The pusher gives a job that number only
//! when the puller has answered the one that had the entry before; a number whose entry is taken it gives to a record that is no job.
//! A puller has at most half as many jobs as there are entries, so one is free soon, however old some of its jobs are.
//!
//! # Invariants
//!
//! 1. An entry is stored with release after its second word and its reason, so a pusher that loads it with acquire sees these.
//! 2. The count is raised with release after the entry. A pusher that loads the count with acquire, and then looks at all jobs that
//!    are not answered, finds every answer that it counts. So it looks only when the count has changed.
//! 3. *No lost ring.* A pusher that goes to sleep stores in the ring's `answer_at` the count that it waits for, makes a heavy fence, and
//!    looks once more; a puller raises the count, makes a light fence, and looks at `answer_at`. One of them sees the other's store
//!    (see [`wake`](crate::protocol::wake)).

use crate::protocol::lease::LEASE_LEN;
use crate::sync::{AtomicU64, Ordering};

/// Jobs that can wait for their answers on one line, from the oldest to the newest.
pub(crate) const WINDOW: u64 = 1024;
/// The most bytes of a reason.
pub(crate) const MOST_REASON: usize = 256;
/// Where the answers begin in a puller's lease, in words.
const ANSWERS: usize = LEASE_LEN as usize / 8;
/// The length of a puller's lease in bytes.
pub(crate) const PULLER_LEASE_LEN: u64 = LEASE_LEN + (REASONS as u64 + WINDOW * REASON_WORDS as u64) * 8;

const COUNT: usize = 0;
const ELSEWHERE: usize = 1;
const ENTRIES: usize = 8;
const REASONS: usize = ENTRIES + 2 * WINDOW as usize;
const REASON_WORDS: usize = MOST_REASON / 8;

const DONE: u64 = 1;
const RETRY: u64 = 2;
const REJECT: u64 = 3;
const FAIL: u64 = 4;

/// What became of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Done,
    /// It is to be given again, after so many nanoseconds.
    Retry(u64),
    /// Its puller gave it up in the middle.
    Failed,
    /// It is never to be given again.
    Reject(String),
}

/// The answers over borrowed cells: mapped memory, or loom's.
#[derive(Clone, Copy)]
pub(crate) struct Answers<'a>(&'a [AtomicU64]);

impl<'a> Answers<'a> {
    /// `lease`: the words of a puller's lease.
    #[inline]
    pub fn new(lease: &'a [AtomicU64]) -> Self {
        Answers(&lease[ANSWERS..])
    }

    /// Over cells of its own, for models.
    #[cfg(all(test, loom))]
    pub fn over(cells: &'a [AtomicU64]) -> Self {
        Answers(cells)
    }

    // ---- the puller's side ----

    /// Answers the job of that number; gives the new count.
    pub fn give(self, job: u64, verdict: &Verdict) -> u64 {
        let entry = (job % WINDOW) as usize;
        let (code, detail) = match verdict {
            Verdict::Done => (DONE, 0),
            Verdict::Retry(delay) => (RETRY, *delay),
            Verdict::Failed => (FAIL, 0),
            Verdict::Reject(reason) => {
                let words = &self.0[REASONS + entry * REASON_WORDS..][..REASON_WORDS];
                let reason = &reason.as_bytes()[..reason.len().min(MOST_REASON)];
                for (to, from) in words.iter().zip(reason.chunks(8)) {
                    let mut word = [0; 8];
                    word[..from.len()].copy_from_slice(from);
                    to.store(u64::from_ne_bytes(word), Ordering::Relaxed);
                }
                (REJECT, reason.len() as u64)
            }
        };
        self.0[ENTRIES + 2 * entry + 1].store(detail, Ordering::Relaxed);
        fault!("answer.written");
        self.0[ENTRIES + 2 * entry].store((job + 1) << 8 | code, Ordering::Release); // Invariant 1.
        fault!("answer.given");
        self.count_one()
    }

    /// Says how many jobs of other pushers it has; gives the new count.
    pub fn set_elsewhere(self, jobs: u64) -> u64 {
        self.0[ELSEWHERE].store(jobs, Ordering::Relaxed);
        self.count_one()
    }

    fn count_one(self) -> u64 {
        self.0[COUNT].fetch_add(1, Ordering::Release) + 1 // Invariant 2.
    }

    // ---- the pusher's side ----

    #[inline]
    pub fn count(self) -> u64 {
        self.0[COUNT].load(Ordering::Acquire)
    }

    pub fn elsewhere(self) -> u64 {
        self.0[ELSEWHERE].load(Ordering::Relaxed)
    }

    /// The answer to the job of that number, if it was given.
    #[inline]
    pub fn get(self, job: u64) -> Option<Verdict> {
        let entry = (job % WINDOW) as usize;
        let said = self.0[ENTRIES + 2 * entry].load(Ordering::Acquire);
        if said >> 8 != job + 1 {
            return None;
        }
        if said & 0xff == DONE {
            return Some(Verdict::Done);
        }
        let detail = self.0[ENTRIES + 2 * entry + 1].load(Ordering::Relaxed);
        Some(match said & 0xff {
            RETRY => Verdict::Retry(detail),
            FAIL => Verdict::Failed,
            REJECT => {
                let words = &self.0[REASONS + entry * REASON_WORDS..][..REASON_WORDS];
                let bytes: Vec<u8> = words.iter().flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes()).collect();
                let len = usize::try_from(detail).unwrap_or(MOST_REASON).min(MOST_REASON);
                Verdict::Reject(String::from_utf8_lossy(&bytes[..len]).into_owned())
            }
            _ => Verdict::Reject("it gave an answer that makes no sense".into()),
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn answers_are_found_by_their_jobs() {
        let lease: Vec<_> = (0..PULLER_LEASE_LEN / 8).map(|_| AtomicU64::new(0)).collect();
        let answers = Answers::new(&lease);
        assert_eq!((answers.count(), answers.get(0), answers.get(WINDOW)), (0, None, None));
        let long = "x".repeat(1000);
        let given = [
            Verdict::Done,
            Verdict::Retry(7),
            Verdict::Failed,
            Verdict::Reject("no such file".into()),
            Verdict::Reject(String::new()),
            Verdict::Reject(long),
        ];
        for (job, verdict) in given.iter().enumerate() {
            assert_eq!(answers.give(job as u64, verdict), job as u64 + 1);
        }
        for (job, verdict) in given.iter().enumerate().take(5) {
            assert_eq!(answers.get(job as u64).as_ref(), Some(verdict));
            assert_eq!(answers.get(job as u64 + WINDOW), None, "it is another job's");
        }
        assert_eq!(answers.get(5), Some(Verdict::Reject("x".repeat(MOST_REASON))));
        assert_eq!(answers.set_elsewhere(3), 7);
        assert_eq!((answers.elsewhere(), answers.count()), (3, 7));
    }

    /// A puller can write what it likes.
    #[test]
    fn nonsense_is_an_answer_too() {
        let lease: Vec<_> = (0..PULLER_LEASE_LEN / 8).map(|_| AtomicU64::new(u64::MAX)).collect();
        let answers = Answers::new(&lease);
        assert_eq!(answers.get(5), None);
        lease[ANSWERS + ENTRIES + 2 * 5].store(6 << 8 | 0xff, Ordering::Relaxed);
        assert!(matches!(answers.get(5), Some(Verdict::Reject(_))));
        lease[ANSWERS + ENTRIES + 2 * 5].store(6 << 8 | REJECT, Ordering::Relaxed);
        assert!(matches!(answers.get(5), Some(Verdict::Reject(reason)) if reason.chars().count() == MOST_REASON));
    }
}
