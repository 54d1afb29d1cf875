//! The jobs of a pusher and its pullers: which job goes to whom, and what an answer, an end or the clock makes of it. A plain state
//! machine: no I/O, no clock, no memory but its own.
//!
//! # The states of a job
//!
//! ```text
//!            add                    give                        answer: done
//!   (pusher) ────► waiting ────────────────► given to a puller ─────────────► over
//!                  ▲  ▲  ▲ not taken: at the front   │ │ │      answer: reject, or too many failures
//!                  │  │  └───────────────────────────┘ │ └────────────────────► rejected
//!                  │  └── failed: retry ───────────────┤
//!                  └───── delayed, until its time ◄────┘ retry(delay)
//! ```
//!
//! A job is *given* when its record is in the puller's ring. What ends the puller, or its time, gives it back: as *not taken*, if the
//! puller's cursor has not passed the record, and then nothing has happened to it; else as *failed*, since it may have been worked on.
//! Only failures count as attempts.
//!
//! # The states of a puller
//!
//! *Ready* with room (no job: idle; else partly busy), *full*, *stuck* (its ring or its socket takes nothing now), *frozen* (it was given up
//! for its silence, and has not stirred since), *closed* (it takes no more, and may still answer). What was taken back from a frozen
//! puller that had taken it stays in its list as a *ghost*: it occupies the puller until that answers, and the answer is dropped.

use crate::protocol::answers::{Verdict, WINDOW};
use std::collections::{BTreeSet, VecDeque};
use std::fmt;

/// A job's place in the table.
pub(super) type Key = usize;

/// What becomes of jobs that fail.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Terms {
    /// So many failures, and a job is rejected.
    pub max_attempts: Option<u32>,
    /// What may have been worked on is given again.
    pub redeliver: bool,
    /// How long (ns) a puller that has jobs may answer none of them.
    pub max_time: Option<u64>,
}

/// Why a job will not be given again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A puller rejected it, and said why.
    Rejected(String),
    /// It failed so often as the pusher allows.
    Failed,
    /// Its puller ended or gave it up after it had taken it, and the pusher does not redeliver: it may have been done.
    Unknown,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Rejected(reason) if reason.is_empty() => f.write_str("a puller rejected it"),
            Reason::Rejected(reason) => f.write_str(reason),
            Reason::Failed => f.write_str("it failed as often as max_attempts allows"),
            Reason::Unknown => {
                f.write_str("its puller ended or gave it up after it had taken it: it may have been done")
            }
        }
    }
}

#[derive(Debug)]
pub(super) struct Job<B> {
    /// Different from those of the pusher's other jobs.
    pub number: u64,
    /// How often it has failed.
    pub failures: u32,
    pub body: B,
}

impl<B> Job<B> {
    /// The number of the attempt that begins when it is given, from 1.
    pub fn attempt(&self) -> u32 {
        self.failures.saturating_add(1)
    }
}

/// A job that is over: done, or, with a reason, not.
pub(super) type Over<B> = (Job<B>, Option<Reason>);

/// A job that was given to a puller, by its number on the line; a ghost has no key.
#[derive(Clone, Copy, Debug)]
struct Flight {
    place: u64,
    key: Option<Key>,
}

/// How much a puller is wanted for the next job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// It can have none.
    No,
    /// It has no job.
    Idle,
    /// It has some, and room for more.
    Partly,
}

#[derive(Debug)]
struct Puller {
    id: u32,
    prefetch: u64,
    /// Jobs of others that it has.
    elsewhere: u64,
    /// In the order of their places.
    flights: VecDeque<Flight>,
    /// The place of the next one.
    next: u64,
    /// When it last did something, or was given something to do.
    stirred_at: u64,
    is_frozen: bool,
    is_closed: bool,
    is_stuck: bool,
    /// How it is listed, and the stamp of that; other stamps are out of date.
    class: Class,
    stamp: u64,
}

impl Puller {
    fn class(&self) -> Class {
        let is_out = self.is_frozen || self.is_closed || self.is_stuck;
        let busy = self.elsewhere.saturating_add(self.flights.len() as u64);
        match busy {
            _ if is_out || busy >= self.prefetch => Class::No,
            0 => Class::Idle,
            _ => Class::Partly,
        }
    }

    /// Whether the answer to a job of the next place would lie where that of an older one is awaited.
    fn is_entry_taken(&self) -> bool {
        let is_far = self.flights.front().is_some_and(|oldest| oldest.place + WINDOW <= self.next);
        is_far && self.flights.iter().any(|flight| (self.next - flight.place).is_multiple_of(WINDOW))
    }

    fn has_jobs(&self) -> bool {
        self.flights.iter().any(|flight| flight.key.is_some())
    }
}

/// Numbers of what has happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub pushed: u64,
    pub done: u64,
    pub rejected: u64,
    /// Failures.
    pub failed: u64,
    /// Jobs that came back although they were not taken.
    pub returned: u64,
    /// Answers that came after the job had been given back.
    pub late: u64,
}

pub(super) struct Table<B> {
    terms: Terms,
    jobs: Vec<Option<Job<B>>>,
    free: Vec<Key>,
    /// Without a puller, the next one first.
    waiting: VecDeque<Key>,
    /// By the time at which they wait again.
    delayed: BTreeSet<(u64, Key)>,
    /// By number.
    pullers: Vec<Puller>,
    /// Those that can have a job, the longest idle first; with what is out of date among them.
    idle: VecDeque<(u32, u64)>,
    partly: VecDeque<(u32, u64)>,
    last_stamp: u64,
    pub tally: Tally,
}

impl<B> Table<B> {
    pub fn new(terms: Terms) -> Self {
        Table {
            terms,
            jobs: Vec::new(),
            free: Vec::new(),
            waiting: VecDeque::new(),
            delayed: BTreeSet::new(),
            pullers: Vec::new(),
            idle: VecDeque::new(),
            partly: VecDeque::new(),
            last_stamp: 0,
            tally: Tally::default(),
        }
    }

    /// Jobs that are not over.
    #[inline]
    pub fn pending(&self) -> usize {
        self.jobs.len() - self.free.len()
    }

    /// Jobs that no puller has, and that are due.
    #[inline]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Adds a job; gives its number.
    #[inline]
    pub fn add(&mut self, body: B) -> u64 {
        let number = self.tally.pushed;
        self.tally.pushed += 1;
        let job = Some(Job { number, failures: 0, body });
        let key = match self.free.pop() {
            Some(key) => {
                self.jobs[key] = job;
                key
            }
            None => {
                self.jobs.push(job);
                self.jobs.len() - 1
            }
        };
        self.waiting.push_back(key);
        number
    }

    #[inline]
    pub fn job(&self, key: Key) -> &Job<B> {
        self.jobs[key].as_ref().expect("a key is that of a job")
    }

    // ---- pullers ----

    fn index_of(&self, id: u32) -> Option<usize> {
        self.pullers.binary_search_by_key(&id, |puller| puller.id).ok()
    }

    /// A puller has come. Its number is higher than those of the others.
    pub fn join(&mut self, id: u32, prefetch: u64, now: u64) {
        debug_assert!(self.pullers.last().is_none_or(|last| last.id < id));
        self.pullers.push(Puller {
            id,
            prefetch: prefetch.clamp(1, WINDOW),
            elsewhere: 0,
            flights: VecDeque::new(),
            next: 0,
            stirred_at: now,
            is_frozen: false,
            is_closed: false,
            is_stuck: false,
            class: Class::No,
            stamp: 0,
        });
        self.relist(self.pullers.len() - 1, false);
    }

    /// How many jobs it has, ghosts among them.
    pub fn flights(&self, id: u32) -> u64 {
        self.index_of(id).map_or(0, |index| self.pullers[index].flights.len() as u64)
    }

    /// Lists a puller as it is now; at the end if that has changed, or if it was just served.
    fn relist(&mut self, index: usize, was_served: bool) {
        let puller = &mut self.pullers[index];
        let class = puller.class();
        if class == puller.class && !was_served {
            return;
        }
        puller.class = class;
        self.last_stamp += 1;
        puller.stamp = self.last_stamp;
        let entry = (puller.id, puller.stamp);
        let list = match class {
            Class::No => return,
            Class::Idle => &mut self.idle,
            Class::Partly => &mut self.partly,
        };
        list.push_back(entry);
        if list.len() > 2 * self.pullers.len() + 16 {
            let is_valid = |(id, stamp): &(u32, u64)| {
                let found = self.pullers.binary_search_by_key(id, |puller| puller.id);
                found.is_ok_and(|index| self.pullers[index].stamp == *stamp)
            };
            list.retain(is_valid);
        }
    }

    /// Who is to have the next job.
    fn next_puller(&mut self) -> Option<usize> {
        for list in [&mut self.idle, &mut self.partly] {
            while let Some((id, stamp)) = list.front() {
                let found = self.pullers.binary_search_by_key(id, |puller| puller.id);
                if let Ok(index) = found
                    && self.pullers[index].stamp == *stamp
                {
                    return Some(index);
                }
                list.pop_front();
            }
        }
        None
    }

    /// Whether some puller could have a job.
    pub fn has_room(&mut self) -> bool {
        self.next_puller().is_some()
    }

    // ---- giving ----

    /// The next job and who is to have it. The caller says [`given`](Self::given), or [`is_stuck`](Self::is_stuck).
    #[inline]
    pub fn offer(&mut self) -> Option<(u32, Key)> {
        let key = *self.waiting.front()?;
        let index = self.next_puller()?;
        Some((self.pullers[index].id, key))
    }

    /// Whether a puller's next place is to be passed over: the answer to a very old job is awaited there.
    #[inline]
    pub fn must_pass_over(&self, id: u32) -> bool {
        self.index_of(id).is_some_and(|index| self.pullers[index].is_entry_taken())
    }

    /// The puller was given something that is no job.
    pub fn passed_over(&mut self, id: u32) {
        if let Some(index) = self.index_of(id) {
            self.pullers[index].next += 1;
        }
    }

    /// The job at the front was given to that puller.
    pub fn given(&mut self, id: u32, now: u64) {
        let (Some(index), Some(key)) = (self.index_of(id), self.waiting.pop_front()) else { return };
        let puller = &mut self.pullers[index];
        if puller.flights.is_empty() {
            puller.stirred_at = now;
        }
        puller.flights.push_back(Flight { place: puller.next, key: Some(key) });
        puller.next += 1;
        self.relist(index, true);
    }

    /// A puller takes nothing now, although it has room.
    pub fn is_stuck(&mut self, id: u32) {
        if let Some(index) = self.index_of(id) {
            self.pullers[index].is_stuck = true;
            self.relist(index, false);
        }
    }

    /// Whether there are such; they are tried again.
    pub fn unstick(&mut self) -> bool {
        let mut any = false;
        for index in 0..self.pullers.len() {
            if std::mem::take(&mut self.pullers[index].is_stuck) {
                any = true;
                self.relist(index, false);
            }
        }
        any
    }

    // ---- answers ----

    /// Looks for `expected` answers of a puller; gives how many it found. What is over goes to `over`.
    pub fn collect(
        &mut self,
        id: u32,
        now: u64,
        expected: u64,
        answer: impl Fn(u64) -> Option<Verdict>,
        over: &mut Vec<Over<B>>,
    ) -> u64 {
        let Some(index) = self.index_of(id) else { return 0 };
        let (mut found, mut at) = (0, 0);
        while found < expected
            && let Some(flight) = self.pullers[index].flights.get(at).copied()
        {
            let Some(verdict) = answer(flight.place) else {
                at += 1;
                continue;
            };
            found += 1;
            self.pullers[index].flights.remove(at);
            match flight.key {
                Some(key) => self.settle(key, verdict, now, over),
                None => self.tally.late += 1,
            }
        }
        if found > 0 {
            self.stirs(index, now);
        }
        found
    }

    fn settle(&mut self, key: Key, verdict: Verdict, now: u64, over: &mut Vec<Over<B>>) {
        match verdict {
            Verdict::Done => {
                self.tally.done += 1;
                over.push((self.remove(key), None));
            }
            Verdict::Reject(reason) => self.reject(key, Reason::Rejected(reason), over),
            Verdict::Retry(0) => {
                if self.has_failed(key, false, over) {
                    self.waiting.push_back(key);
                }
            }
            Verdict::Retry(delay) => {
                if self.has_failed(key, false, over) {
                    self.delayed.insert((now.saturating_add(delay), key));
                }
            }
            Verdict::Failed => {
                if self.has_failed(key, true, over) {
                    self.waiting.push_back(key);
                }
            }
        }
    }

    fn remove(&mut self, key: Key) -> Job<B> {
        self.free.push(key);
        self.jobs[key].take().expect("a key is that of a job")
    }

    fn reject(&mut self, key: Key, reason: Reason, over: &mut Vec<Over<B>>) {
        self.tally.rejected += 1;
        over.push((self.remove(key), Some(reason)));
    }

    /// Counts a failure; whether the job is to be given again. `is_unknown`: nobody said what became of it.
    fn has_failed(&mut self, key: Key, is_unknown: bool, over: &mut Vec<Over<B>>) -> bool {
        self.tally.failed += 1;
        let job = self.jobs[key].as_mut().expect("a key is that of a job");
        job.failures = job.failures.saturating_add(1);
        let is_too_often = self.terms.max_attempts.is_some_and(|most| job.failures >= most);
        let reason = match (is_unknown && !self.terms.redeliver, is_too_often) {
            (true, _) => Reason::Unknown,
            (false, true) => Reason::Failed,
            (false, false) => return true,
        };
        self.reject(key, reason, over);
        false
    }

    /// A puller has said how many jobs of others it has.
    pub fn set_elsewhere(&mut self, id: u32, jobs: u64) {
        if let Some(index) = self.index_of(id) {
            self.pullers[index].elsewhere = jobs;
            self.relist(index, false);
        }
    }

    /// A puller has done something.
    pub fn has_stirred(&mut self, id: u32, now: u64) {
        if let Some(index) = self.index_of(id) {
            self.stirs(index, now);
        }
    }

    fn stirs(&mut self, index: usize, now: u64) {
        self.pullers[index].stirred_at = now;
        self.pullers[index].is_frozen = false;
        self.relist(index, false);
    }

    // ---- what ends ----

    /// Takes back what a puller has not taken: from that place on.
    fn return_untaken(&mut self, index: usize, untaken_from: u64) {
        let flights = &mut self.pullers[index].flights;
        let first = flights.partition_point(|flight| flight.place < untaken_from);
        let keys: Vec<_> = flights.drain(first..).filter_map(|flight| flight.key).collect();
        self.tally.returned += keys.len() as u64;
        self.put_in_front(keys);
    }

    /// In the order of their numbers: they have waited longer than the others.
    fn put_in_front(&mut self, mut keys: Vec<Key>) {
        keys.sort_by_key(|key| std::cmp::Reverse(self.job(*key).number));
        keys.into_iter().for_each(|key| self.waiting.push_front(key));
    }

    /// A puller was closed: it takes nothing from that place on. What it has taken it may still answer.
    pub fn close(&mut self, id: u32, untaken_from: u64) {
        let Some(index) = self.index_of(id) else { return };
        self.pullers[index].is_closed = true;
        self.return_untaken(index, untaken_from);
        self.relist(index, false);
    }

    /// A puller is gone, having taken what is before that place.
    pub fn leave(&mut self, id: u32, untaken_from: u64, over: &mut Vec<Over<B>>) {
        let Some(index) = self.index_of(id) else { return };
        self.return_untaken(index, untaken_from);
        let left = self.pullers.remove(index);
        self.give_up(left.flights.into_iter().filter_map(|flight| flight.key), over);
    }

    fn give_up(&mut self, taken: impl Iterator<Item = Key>, over: &mut Vec<Over<B>>) {
        let mut again = Vec::new();
        for key in taken {
            if self.has_failed(key, true, over) {
                again.push(key);
            }
        }
        self.put_in_front(again);
    }

    /// Gives up a puller that is silent, until it stirs. It has taken what lies before `taken_below`, and for sure nothing from `untaken_from`
    /// on; of what lies between nobody knows, and it will not be answered.
    pub fn freeze(&mut self, id: u32, taken_below: u64, untaken_from: u64, over: &mut Vec<Over<B>>) {
        let Some(index) = self.index_of(id) else { return };
        self.return_untaken(index, untaken_from);
        let puller = &mut self.pullers[index];
        puller.is_frozen = true;
        let taken: Vec<_> = puller.flights.iter_mut().filter_map(|flight| flight.key.take()).collect();
        puller.flights.retain(|flight| flight.place < taken_below);
        self.relist(index, false);
        self.give_up(taken.into_iter(), over);
    }

    // ---- the clock ----

    /// Those that have been silent for too long by now.
    pub fn silent(&self, now: u64) -> Vec<u32> {
        let Some(most) = self.terms.max_time else { return Vec::new() };
        let is_silent = |puller: &&Puller| now.saturating_sub(puller.stirred_at) >= most && puller.has_jobs();
        self.pullers.iter().filter(is_silent).map(|puller| puller.id).collect()
    }

    pub fn frozen(&self) -> impl Iterator<Item = u32> {
        self.pullers.iter().filter(|puller| puller.is_frozen).map(|puller| puller.id)
    }

    /// Lets the delayed jobs wait whose time has come.
    pub fn wake_delayed(&mut self, now: u64) {
        while let Some((due, key)) = self.delayed.first().copied()
            && due <= now
        {
            self.delayed.pop_first();
            self.waiting.push_back(key);
        }
    }

    pub fn has_delayed(&self) -> bool {
        !self.delayed.is_empty()
    }

    /// When the first of the delayed jobs is due.
    pub fn first_delayed(&self) -> Option<u64> {
        self.delayed.first().map(|(due, _)| *due)
    }

    /// When the clock has to be looked at next.
    pub fn next_due(&self) -> Option<u64> {
        let delayed = self.delayed.first().map(|(due, _)| *due);
        let due = |most| {
            let busy = self.pullers.iter().filter(|puller| puller.has_jobs());
            busy.map(move |puller| puller.stirred_at.saturating_add(most)).min()
        };
        delayed.into_iter().chain(self.terms.max_time.and_then(due)).min()
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
