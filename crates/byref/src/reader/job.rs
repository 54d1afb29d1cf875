//! A job: a message from a pusher that wants an answer, and where the answer goes.
//!
//! Each connection of a puller has a *desk*; all desks of a puller are on one *floor*. Any thread may answer: an answer takes no lock, but
//! where there are several pushers, each of which is told how many jobs of the others this puller has.

use crate::error::{Error, JOB, Result};
use crate::protocol::answers::{Answers, MOST_REASON, Verdict};
use crate::protocol::ring::{self, NEVER};
use crate::reader::message::{Link, Message};
use crate::sync::Pairing;
use crate::sync::locks::Mutex;
use crate::sys::memory::Mapping;
use std::fmt;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// What the desks of a puller share.
#[derive(Default)]
pub(crate) struct Floor {
    /// Jobs of all pushers that are not answered.
    open: AtomicU64,
    has_several: AtomicBool,
    desks: Mutex<Vec<Weak<Desk>>>,
}

impl Floor {
    /// Jobs that were taken and not answered.
    pub fn open(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }

    fn add(&self, desk: &Arc<Desk>) {
        let mut desks = self.desks.lock();
        desks.retain(|known| known.strong_count() > 0);
        desks.push(Arc::downgrade(desk));
        self.has_several.store(desks.len() > 1, Ordering::SeqCst); // Pairs with the look after each change of a number.
        drop(desks);
        self.tell_others(None);
    }

    /// Tells all pushers, but the one whose job came or went, how many jobs of the others there are.
    fn tell_others(&self, but: Option<&Desk>) {
        if !self.has_several.load(Ordering::SeqCst) {
            return;
        }
        let desks = self.desks.lock(); // Held: of two threads the later one says the later number.
        // What a pusher is told comes from the numbers of the others alone: whoever changes one of these tells it after that.
        let all: u64 = desks.iter().filter_map(Weak::upgrade).map(|desk| desk.look_at_open()).sum();
        for desk in desks.iter().filter_map(Weak::upgrade) {
            if !but.is_some_and(|but| std::ptr::eq(but, &*desk)) {
                let count = desk.answers().set_elsewhere(all.saturating_sub(desk.counted.load(Ordering::Relaxed)));
                desk.ring_if_due(count);
            }
        }
    }
}

/// Where the jobs of one pusher are answered.
pub(crate) struct Desk {
    link: Arc<Link>,
    /// The head of the pusher's ring, which says when to ring.
    head: Mapping,
    pairing: Pairing,
    /// For which value of `answer_at` the pusher was rung.
    rung: AtomicU64,
    /// Jobs of this pusher that are not answered.
    open: AtomicU64,
    /// So many there were when they were last counted, with the floor's desks locked.
    counted: AtomicU64,
    floor: Arc<Floor>,
}

impl Desk {
    pub fn new(link: &Arc<Link>, head: Mapping, pairing: Pairing, floor: &Arc<Floor>) -> Arc<Self> {
        let desk = Arc::new(Desk {
            link: Arc::clone(link),
            head,
            pairing,
            rung: AtomicU64::new(NEVER),
            open: AtomicU64::new(0),
            counted: AtomicU64::new(0),
            floor: Arc::clone(floor),
        });
        floor.add(&desk);
        desk
    }

    fn answers(&self) -> Answers<'_> {
        Answers::new(self.link.lease_words())
    }

    fn look_at_open(&self) -> u64 {
        let open = self.open.load(Ordering::SeqCst);
        self.counted.store(open, Ordering::Relaxed);
        open
    }

    fn take(&self) {
        self.open.fetch_add(1, Ordering::SeqCst);
        self.floor.open.fetch_add(1, Ordering::Relaxed);
        self.floor.tell_others(Some(self));
    }

    fn answer(&self, place: u64, verdict: &Verdict) {
        let count = self.answers().give(place, verdict);
        self.open.fetch_sub(1, Ordering::SeqCst);
        self.floor.open.fetch_sub(1, Ordering::Relaxed);
        if *verdict == Verdict::Done {
            self.ring_if_due(count);
        } else {
            self.link.channel.ring(); // The job is to go to somebody else, whether its pusher waits for answers or not.
        }
        self.floor.tell_others(Some(self));
    }

    /// Rings a pusher that waits for that count, once for each wait.
    fn ring_if_due(&self, count: u64) {
        self.pairing.light(); // Pairs with the heavy fence of a pusher that goes to sleep (invariant 3 of the answers).
        let awaited = ring::answer_at(self.head.words());
        if count >= awaited && self.rung.swap(awaited, Ordering::Relaxed) != awaited {
            fault!("answer.ringing");
            self.link.channel.ring();
        }
    }
}

/// What a job's record says of it beside its payload, in its tag: its number, and that of the attempt in the upper 16 bits (the
/// largest one stands for all beyond).
pub(crate) struct Tag {
    pub number: u64,
    pub attempt: u32,
}

impl Tag {
    /// Of a record that is no job, and only takes a place (see [`answers`](crate::protocol::answers)): the first attempt is 1.
    pub const NO_JOB: u64 = 0;
    const ATTEMPT_AT: u32 = 48;

    pub fn word(&self) -> u64 {
        u64::from(self.attempt).min(u64::from(u16::MAX)) << Self::ATTEMPT_AT | self.number
    }

    fn of(word: u64) -> Self {
        Tag { number: word & ((1 << Self::ATTEMPT_AT) - 1), attempt: (word >> Self::ATTEMPT_AT) as u32 }
    }
}

/// A job that a [`Puller`](crate::Puller) took. Dereferences to its payload, which is a [`Message`]'s.
///
/// Its pusher is told what became of it by [`done`](Self::done), [`retry`](Self::retry) or [`reject`](Self::reject), from any thread and in
/// any order. One that is dropped without an answer has failed. The answer comes from the process that took the job.
pub struct Job {
    message: Message,
    number: u64,
    attempt: u32,
    /// Its number on the line.
    place: u64,
    is_answered: AtomicBool,
    desk: Arc<Desk>,
}

impl Job {
    /// Of a message that was just taken.
    pub(crate) fn new(message: Message, place: u64, desk: &Arc<Desk>) -> Self {
        desk.take();
        let Tag { number, attempt } = Tag::of(message.tag());
        Job {
            message: message.untagged(),
            number,
            attempt,
            place,
            is_answered: AtomicBool::new(false),
            desk: Arc::clone(desk),
        }
    }

    /// Its number among the jobs of its pusher, from 0; the same in each attempt.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The number of this attempt, from 1. It is more when the job has failed before.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The payload and what is beside it. A clone of it may outlive the job.
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// Whether it was answered.
    pub fn is_answered(&self) -> bool {
        self.is_answered.load(Ordering::Relaxed)
    }

    /// It is done, and will not be given again.
    pub fn done(&self) -> Result<()> {
        self.answer(&Verdict::Done)
    }

    /// It has failed, and is to be tried again: after `delay`, by whichever puller has room then.
    pub fn retry(&self, delay: Duration) -> Result<()> {
        self.answer(&Verdict::Retry(u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// It is not to be tried again by anybody; `reason` is for the pusher. Of a reason beyond 256 bytes only the first ones arrive.
    pub fn reject(&self, reason: &str) -> Result<()> {
        let mut len = reason.len().min(MOST_REASON);
        while !reason.is_char_boundary(len) {
            len -= 1;
        }
        self.answer(&Verdict::Reject(reason[..len].to_owned()))
    }

    /// It was given up in the middle: as if it were dropped.
    pub fn fail(&self) -> Result<()> {
        self.answer(&Verdict::Failed)
    }

    #[inline]
    fn answer(&self, verdict: &Verdict) -> Result<()> {
        if !self.desk.link.is_here() {
            return Err(Error::Forked { what: JOB, topic: self.message.topic().to_owned() });
        }
        if self.is_answered.swap(true, Ordering::Relaxed) {
            let (queue, number) = (self.message.topic(), self.number);
            return Err(Error::InvalidArgument(format!(
                "queue '{queue}': job {number} was answered before; call one of done, retry and reject, once"
            )));
        }
        self.desk.answer(self.place, verdict);
        Ok(())
    }
}

impl Deref for Job {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.message
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if !self.is_answered() {
            let _ = self.fail(); // In a forked child it is the parent's.
        }
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Job({} of '{}', attempt {}, {} bytes)", self.number, self.message.topic(), self.attempt, self.len())
    }
}
