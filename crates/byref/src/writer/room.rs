//! Waiting for room: in a ring, for a subscriber that has yet to take what is in it, or in a store, for what is yet to be released.

use crate::error::{Error, Result};
use crate::protocol::ring::NEVER;
use crate::sync::heavy_fence;
use crate::sync::wait::Wait;
use crate::sys::epoll::Woken;
use crate::sys::futex::{self, Words};
use crate::writer::attempt::{Attempt, Call, LEASE_POLL, LOST_RING};
use crate::writer::line::Line;
use crate::writer::owner::Owner;
use crate::writer::store::Store;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a publisher without room looks again and again before it sleeps, and how often.
const SPINS: u32 = 50;
/// What a look at store and lines found.
type Attempts<'a, T> = &'a mut dyn FnMut(&mut Store, &mut [Line]) -> Attempt<T>;

/// One round of waiting.
enum Step<T> {
    Over(Result<T>),
    Again,
    /// The ring says now for what it waits.
    Armed,
    Sleep(Duration),
}

/// A call that waits for readers of one line.
struct Waiting<'a> {
    owner: &'a dyn Owner,
    line: u32,
    call: Call,
    began: Instant,
    /// What the ring says that it waits for, and what it waited for last.
    armed: u64,
    wanted: u64,
    /// The last sleep ended without a ring.
    hurry: bool,
}

/// Makes attempts until one is conclusive, after a first one that has to wait for `first`; `line` is the one whose readers ring.
#[cold]
pub(crate) fn wait<T>(
    owner: &dyn Owner,
    line: u32,
    wait: &mut Wait<'_>,
    call: Call,
    first: (u64, Option<Duration>),
    attempt: Attempts<'_, T>,
) -> Result<T> {
    let (at, poll) = first;
    if !wait.is_allowed() {
        if let Some(began) = wait.polled_since() {
            let count = |store: &Store, line: &mut Line| {
                line.limit_waits(store, call, at, began);
                line.warn_of_silence(store, call.name(), at, began);
            };
            owner.at_line(line, |store, line| count(store, line));
        }
        return Err(Error::WouldBlock { topic: owner.topic().to_owned() });
    }
    let begin = |line: &mut Line| {
        line.waits += 1;
        // Taking each free record as it comes costs the reader a line that it needs for every message.
        if poll.is_none() { line.batch(at) } else { 0 }
    };
    let batch = owner.within(|_, lines| Line::find_mut(lines, line).map_or(0, begin))?;
    for round in 1..=SPINS {
        for _ in 0..32 {
            std::hint::spin_loop();
        }
        let attempted = owner.within(|store, lines| {
            let has_room = |lines: &[Line]| Line::find(lines, line).is_none_or(|line| line.has_room(batch));
            if batch > 0 && round < SPINS && !has_room(lines) {
                return Ok((at, poll));
            }
            attempt(store, lines).over()
        })?;
        if let Err(outcome) = attempted {
            return outcome;
        }
    }
    let waiting = Waiting { owner, line, call, began: Instant::now(), armed: NEVER, wanted: NEVER, hurry: false };
    waiting.sleep(wait, poll.is_some(), attempt)
}

impl Waiting<'_> {
    /// `in_pool`: for payload memory.
    fn sleep<T>(mut self, wait: &mut Wait<'_>, in_pool: bool, attempt: Attempts<'_, T>) -> Result<T> {
        let sleeping = |line: &mut Line| (Arc::clone(&line.rings), Arc::clone(&line.sleeping));
        let sleeping = self.owner.within(|_, lines| Line::find_mut(lines, self.line).map(sleeping))?;
        let (rings, turn) = sleeping.unwrap_or_default();
        let mut leader = None;
        let mut words = Words::new();
        let outcome = loop {
            let Some(left) = wait.remaining() else { break self.give_up(wait, in_pool, attempt) };
            if wait.is_interrupted() {
                break Err(Error::Interrupted { topic: self.owner.topic().to_owned() });
            }
            let left = wait.slice(left);
            leader = leader.or_else(|| turn.take_within(Duration::from_millis(5).min(left.unwrap_or(Duration::MAX))));
            let strikes = rings.room.strikes(); // Before the look: what comes after it wakes.
            let timeout = match self.look(left, leader.is_some().then_some(&mut words), attempt) {
                Step::Over(outcome) => break outcome,
                Step::Again => continue,
                Step::Armed => {
                    fault!("sleep.publisher_announced");
                    heavy_fence(); // Pairs with the light fence after each cursor store.
                    continue;
                }
                Step::Sleep(timeout) => timeout,
            };
            fault!("sleep.publisher_before");
            let woken = match futex::available() {
                true => words.wait(&rings.room, strikes, timeout).ok(),
                false => None,
            };
            match woken {
                Some(woken) => self.hurry |= woken == Woken::TimedOut,
                None => {
                    rings.room.wait(strikes, Some(timeout));
                    self.hurry |= rings.room.strikes() == strikes;
                }
            }
            fault!("sleep.publisher_after");
        };
        if leader.is_some() {
            self.owner.at_line(self.line, |_, line| line.ring().set_wake_at(NEVER));
        }
        outcome
    }

    /// Attempts once more, and finds out for how long to sleep otherwise, and at which words.
    fn look<T>(&mut self, left: Option<Duration>, words: Option<&mut Words>, attempt: Attempts<'_, T>) -> Step<T> {
        let is_leader = words.is_some();
        let look = |store: &mut Store, lines: &mut [Line]| {
            if let (Some(words), Some(line)) = (words, Line::find(lines, self.line)) {
                words.note(line.ring_words()); // Before the look, too.
            }
            let (at, poll) = match attempt(store, lines).over() {
                Ok(to_wait_for) => to_wait_for,
                Err(outcome) => return Step::Over(outcome),
            };
            self.wanted = at;
            let Some(line) = Line::find_mut(lines, self.line) else { return Step::Sleep(LEASE_POLL) };
            let until_eviction = line.limit_waits(store, self.call, at, self.began);
            line.warn_of_silence(store, self.call.name(), at, self.began);
            if !is_leader {
                return Step::Again;
            }
            // Wait for a quarter of the queue to drain, but not for long: the reader may be waiting for this very message.
            let (at, poll) = if self.hurry || at == NEVER { (at, poll) } else { line.batched(at) };
            if at != self.armed {
                self.armed = at;
                if line.siren.is_requested() {
                    line.siren.sound(); // It may be for those who are to make room.
                }
                line.ring().set_wake_at(at);
                return Step::Armed;
            }
            let limits = [left, until_eviction].into_iter().flatten();
            Step::Sleep(limits.fold(poll.unwrap_or(LOST_RING), Duration::min))
        };
        self.owner.within(look).unwrap_or_else(|error| Step::Over(Err(error)))
    }

    /// The time is over.
    fn give_up<T>(&self, wait: &Wait<'_>, in_pool: bool, attempt: Attempts<'_, T>) -> Result<T> {
        let count = |store: &Store, line: &mut Line| line.limit_waits(store, self.call, self.wanted, self.began);
        self.owner.at_line(self.line, |store, line| count(store, line));
        // What is unread in the ring takes no payload memory. What stood in the way is looked for first: if it went
        // just now, the attempt does not fail.
        let error = self.timed_out(wait, in_pool);
        match self.owner.within(|store, lines| attempt(store, lines).over())? {
            Ok(_) => Err(error),
            Err(outcome) => outcome,
        }
    }

    fn timed_out(&self, wait: &Wait<'_>, in_pool: bool) -> Error {
        let tell = |store: &mut Store, lines: &mut [Line]| {
            let in_ring = |lines| Line::find(lines, self.line).map(std::slice::from_ref).unwrap_or_default();
            let text = if in_pool { store.describe_obstacles(lines, true) } else { String::new() };
            if text.is_empty() { store.describe_obstacles(in_ring(lines), false) } else { text }
        };
        let hint = self.owner.within(tell).unwrap_or_default();
        let hint = if hint.is_empty() { hint } else { format!("; {hint}") };
        Error::Timeout { what: self.call.name(), topic: self.owner.topic().to_owned(), waited: wait.given(), hint }
    }
}
