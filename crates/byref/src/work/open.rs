//! What a pusher has as long as it is open: its jobs, a line to each puller, and how a turn goes: answers are collected, jobs are given.

use crate::direct::identity::Identity;
use crate::link::announcement::Announcement;
use crate::protocol::answers::Answers;
use crate::protocol::lease::{CLOSED, COUNTS, Lease};
use crate::protocol::ring::{Descriptor, NEVER};
use crate::reader::job::Tag;
use crate::sync::heavy_fence;
use crate::sys::clock::Clock;
use crate::sys::memory::Mapping;
use crate::work::body::{Body, Content, Rejected};
use crate::work::table::{Over, Table, Terms};
use crate::writer::append;
use crate::writer::line::Line;
use crate::writer::store::Store;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

/// What a call waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Awaited {
    /// Room for one more job: a place, or memory.
    Room,
    /// The end of all jobs.
    End,
}

/// The most rejected jobs that are kept to be asked for; the first ones go.
const MOST_REJECTED: usize = 1024;

/// Everything of a pusher that closing gives back.
pub(super) struct Open {
    pub store: Store,
    /// One to each puller, in the order of their numbers.
    pub lines: Vec<Line>,
    /// Who reads them, in the same order.
    pub seats: Vec<Seat>,
    pub last_line: u32,
    pub table: Table<Body>,
    terms: Terms,
    /// Whose jobs these are.
    identity: Identity,
    pub rejected: VecDeque<Rejected>,
    /// Reused from one turn to the next.
    over: Vec<Over<Body>>,
    pub announcement: Option<Arc<Announcement>>,
    began: Instant,
    pub clock: Clock,
    pub payload_bytes: u64,
    pub copied_bytes: u64,
    /// When pullers ring.
    armed: Armed,
    /// Answers found so far, and at the last arming.
    heard: u64,
    heard_when_armed: u64,
    /// A task of the service thread is to see to it that each answer rings soon; one does.
    needs_refining: bool,
    pub is_refining: bool,
    /// Somebody could not have memory that readers hold, who tell nobody when they let go of it; a task looks for him.
    pub wants_memory: bool,
    pub watches_memory: bool,
    /// A ring or a socket took nothing: that is to be tried again soon.
    is_stuck: bool,
    /// Calls of the user so far, by which the service thread sees whether anybody takes turns.
    pub calls: u64,
    /// Threads and tasks that wait, and those of them that wait for room.
    pub waiters: usize,
    pub room_waiters: usize,
    /// A task of the service thread looks whether anybody takes turns.
    pub is_watched: bool,
    /// For when a task of the service thread looks at the clock.
    pub alarm: Option<u64>,
}

/// After which answers pullers ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Armed {
    Not,
    /// After the last of its jobs: nothing waits for room.
    AtLast,
    /// After half of its jobs, for a moment: who answers quickly rings seldom.
    AtHalf,
    /// After each.
    AtEach,
}

/// The reader of a line.
pub(super) struct Seat {
    pub pid: i32,
    pub name: Option<String>,
    /// Kept beyond its end: its last answers count.
    pub lease: Arc<Mapping>,
    /// Answers that were counted when it was last looked at, and answers found.
    seen: u64,
    found: u64,
    /// Where its cursor was when it was frozen.
    frozen_at: u64,
    pub state: Presence,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    Here,
    /// It takes no more, and may still answer.
    Closed,
    /// Its line stays as long as a forked child keeps the connection.
    Gone,
}

impl Seat {
    pub fn new(pid: i32, name: Option<String>, lease: Arc<Mapping>) -> Self {
        Seat { pid, name, lease, seen: 0, found: 0, frozen_at: 0, state: Presence::Here }
    }

    fn lease(&self) -> Lease<'_> {
        Lease::new(self.lease.words(), self.lease.counts(COUNTS))
    }
}

/// Counters of a pusher.
#[derive(Clone, Debug, Default)]
pub struct PusherStats {
    /// Jobs pushed, and their payload bytes.
    pub pushed: u64,
    /// Payload bytes of all jobs.
    pub pushed_bytes: u64,
    /// Payload bytes that were copied into shared memory.
    pub copied_bytes: u64,
    /// Jobs that are done.
    pub done: u64,
    /// Jobs that will not be given again.
    pub rejected: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Jobs that came back from a puller which had not taken them.
    pub returned: u64,
    /// Answers that came after the job had been given to somebody else.
    pub late: u64,
    /// Jobs that are not over, and those of them that no puller has.
    pub pending: u64,
    /// Jobs that wait for a puller.
    pub waiting: u64,
    /// Pullers that are connected.
    pub pullers: u64,
    /// Bytes of payload memory in use.
    pub pool_used: u64,
    /// Bytes of payload memory taken from the system.
    pub pool_allocated: u64,
}

impl Open {
    pub fn new(store: Store, terms: Terms, identity: Identity) -> Self {
        Open {
            store,
            lines: Vec::new(),
            seats: Vec::new(),
            last_line: 0,
            table: Table::new(terms),
            terms,
            identity,
            rejected: VecDeque::new(),
            over: Vec::new(),
            announcement: None,
            began: Instant::now(),
            clock: Clock::realtime(),
            payload_bytes: 0,
            copied_bytes: 0,
            armed: Armed::Not,
            heard: 0,
            heard_when_armed: 0,
            needs_refining: false,
            is_refining: false,
            wants_memory: false,
            watches_memory: false,
            is_stuck: false,
            calls: 0,
            waiters: 0,
            room_waiters: 0,
            is_watched: false,
            alarm: None,
        }
    }

    pub fn stats(&self) -> PusherStats {
        let tally = self.table.tally;
        PusherStats {
            pushed: tally.pushed,
            pushed_bytes: self.payload_bytes,
            copied_bytes: self.copied_bytes,
            done: tally.done,
            rejected: tally.rejected,
            failed: tally.failed,
            returned: tally.returned,
            late: tally.late,
            pending: self.table.pending() as u64,
            waiting: self.table.waiting() as u64,
            pullers: self.present().count() as u64,
            pool_used: self.store.pool.used(),
            pool_allocated: self.store.pool.populated(),
        }
    }

    /// Those that take jobs.
    pub fn present(&self) -> impl Iterator<Item = &Seat> {
        self.seats.iter().filter(|seat| seat.state == Presence::Here)
    }

    /// Nanoseconds since it was made.
    #[inline]
    pub fn now(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    // ---- a turn ----

    /// Collects answers and gives jobs.
    pub fn turn(&mut self) {
        for index in 0..self.lines.len() {
            self.collect(index, false);
        }
        self.give();
    }

    /// Looks for answers of a puller; at the end for all that it has given.
    #[inline]
    fn collect(&mut self, index: usize, is_last: bool) {
        let seat = &self.seats[index];
        let answers = Answers::new(seat.lease.words());
        let count = answers.count();
        if count != seat.seen || is_last {
            self.collect_new(index, count, is_last);
        }
    }

    fn collect_new(&mut self, index: usize, count: u64, is_last: bool) {
        let now = self.now();
        let seat = &mut self.seats[index];
        let answers = Answers::new(seat.lease.words());
        seat.seen = count;
        self.heard += 1;
        let id = self.lines[index].number;
        let expected = if is_last { u64::MAX } else { count.saturating_sub(seat.found) };
        let found = self.table.collect(id, now, expected, |place| answers.get(place), &mut self.over);
        // The others counted no job that it has: they were late, or said how busy it is with others.
        seat.found = if found < expected { count } else { seat.found + found };
        self.table.set_elsewhere(id, answers.elsewhere());
        if !self.over.is_empty() {
            self.dispose();
        }
    }

    /// Lets go of what is over.
    fn dispose(&mut self) {
        for (job, reason) in self.over.drain(..) {
            let Some(reason) = reason else { continue };
            if self.rejected.len() == MOST_REJECTED {
                self.rejected.pop_front();
                log::warn!(
                    "byref: queue '{}': nobody asked for {MOST_REJECTED} rejected jobs: the first ones are dropped",
                    self.identity.address()
                );
            }
            self.rejected.push_back(Rejected::new(&self.identity, job.number, job.failures, reason, job.body));
        }
    }

    /// Gives jobs to those that have room.
    #[inline]
    pub fn give(&mut self) {
        // It says since when a puller is silent.
        let now = if self.terms.max_time.is_some() { self.now() } else { 0 };
        while let Some((id, key)) = self.table.offer() {
            let Ok(index) = self.lines.binary_search_by_key(&id, |line| line.number) else { return };
            while self.table.must_pass_over(id) && append::job_inline(&mut self.lines[index], &[], &[], Tag::NO_JOB, 0)
            {
                self.table.passed_over(id);
            }
            let job = self.table.job(key);
            let tag = Tag { number: job.number, attempt: job.attempt() }.word();
            let timestamp_ns = job.body.timestamp_ns;
            fault!("job.giving");
            let is_given = match &job.body.content {
                _ if self.table.must_pass_over(id) => false, // There was no room for that.
                Content::Inline(small) => {
                    let line = &mut self.lines[index];
                    append::job_inline(line, small.payload(), small.attributes(), tag, timestamp_ns)
                }
                Content::Pooled(_, at) => {
                    let at = Descriptor { tag, ..*at };
                    forget_former(&mut self.store, &self.lines, id, at.slot);
                    append::job_pooled(&mut self.store, &mut self.lines[index], at, timestamp_ns)
                }
            };
            if is_given {
                self.table.given(id, now);
                fault!("job.given");
            } else {
                self.table.is_stuck(id);
                self.is_stuck = true;
            }
        }
    }

    // ---- pullers that end ----

    /// Parts from pullers that are known to have ended; whether there were any.
    pub fn part_from_departed(&mut self) -> bool {
        let (mut any, mut index) = (false, 0);
        while index < self.lines.len() {
            any |= self.part(index);
            if self.seats[index].state == Presence::Gone && self.lines[index].peers.is_empty() {
                self.store.release_all(&mut self.lines, index);
                let line = self.lines.remove(index);
                self.seats.remove(index);
                line.hang_up();
                fault!("work.line_removed");
            } else {
                index += 1;
            }
        }
        if any {
            self.give();
        }
        any
    }

    fn part(&mut self, index: usize) -> bool {
        let (line, seat) = (&self.lines[index], &self.seats[index]);
        let is_gone = line.peers.first().is_none_or(|peer| !peer.alive || peer.evicted);
        let is_news = match seat.state {
            Presence::Here => line.has_departed(),
            Presence::Closed => is_gone,
            Presence::Gone => false,
        };
        if !is_news {
            return false;
        }
        fault!("work.parting");
        let (id, (untaken_from, _), pid) = (line.number, line.first_untaken(), seat.pid);
        self.collect(index, true);
        if is_gone {
            self.table.leave(id, untaken_from, &mut self.over);
            self.seats[index].state = Presence::Gone;
        } else {
            self.table.close(id, untaken_from);
            self.seats[index].state = Presence::Closed;
        }
        self.lines[index].let_go(); // What it has not taken is given to others, or free.
        log::debug!(
            "byref: queue '{}': the puller in process {pid} has ended: {:?}",
            self.identity.address(),
            self.seats[index].state
        );
        self.dispose();
        fault!("work.parted");
        true
    }

    /// Looks whether pullers have been closed.
    pub fn look_for_ends(&mut self) {
        for (line, seat) in self.lines.iter_mut().zip(&self.seats) {
            if seat.state == Presence::Here {
                line.look_at_reader();
            }
        }
        self.part_from_departed();
    }

    // ---- the clock ----

    /// Does what is due by now.
    pub fn look_at_clock(&mut self) {
        let now = self.now();
        self.table.wake_delayed(now);
        self.turn();
        for id in self.table.silent(now) {
            self.freeze(id);
        }
        for id in self.table.frozen().collect::<Vec<_>>() {
            let index = self.lines.binary_search_by_key(&id, |line| line.number);
            if index.is_ok_and(|index| self.seats[index].lease().cursor() != self.seats[index].frozen_at) {
                self.table.has_stirred(id, now);
            }
        }
        self.give();
    }

    /// Takes the jobs of a puller back that is silent.
    fn freeze(&mut self, id: u32) {
        let Ok(index) = self.lines.binary_search_by_key(&id, |line| line.number) else { return };
        let (line, seat) = (&mut self.lines[index], &mut self.seats[index]);
        // First: what it has not taken by then, it does not take any more.
        line.give_up_all();
        fault!("work.given_up");
        seat.frozen_at = seat.lease().cursor();
        let has_closed = seat.frozen_at == CLOSED;
        // Each record is one job, so who closes says by the number of the next one how far it came.
        let taken_below = if has_closed { seat.lease().row() } else { seat.frozen_at }.min(line.log.tail());
        // But it may be about to take one record, having looked before.
        let untaken_from = if self.terms.redeliver || has_closed { taken_below } else { taken_below + 1 };
        log::warn!(
            "byref: queue '{}': process {} has answered nothing for max_time; its jobs go to others",
            self.identity.address(),
            seat.pid
        );
        self.table.freeze(id, taken_below, untaken_from, &mut self.over);
        self.dispose();
    }

    /// When the clock is to be looked at next.
    pub fn next_look(&self) -> Option<u64> {
        let look_at_frozen = self.terms.max_time.filter(|_| self.table.frozen().next().is_some());
        let look_at_frozen = look_at_frozen.map(|most| self.now() + (most / 4).max(1_000_000));
        self.table.next_due().into_iter().chain(look_at_frozen).min()
    }

    pub fn needs_clock(&self) -> bool {
        self.alarm.is_none() && (self.terms.max_time.is_some() || self.table.has_delayed())
            || self.alarm.is_some_and(|at| self.table.first_delayed().is_some_and(|due| due < at))
    }

    // ---- rings ----

    /// Whether somebody has to take a turn when pullers have answered.
    pub fn is_awaited(&self) -> bool {
        self.waiters > 0 || self.table.waiting() > 0
    }

    /// Whether the service thread has to look soon whether somebody takes turns.
    #[inline]
    pub fn needs_watch(&self) -> bool {
        !self.is_watched && (self.is_stuck || self.table.waiting() > 0 && self.armed == Armed::Not)
    }

    /// Tries again what took nothing; whether there was such.
    pub fn unstick(&mut self) -> bool {
        std::mem::take(&mut self.is_stuck) && self.table.unstick()
    }

    /// Has pullers ring. Where jobs, or calls, wait for their room: when they have answered half of their jobs, and from the next
    /// moment on after each answer, until one has come. Otherwise after the last. Another look has to follow.
    pub fn arm(&mut self) {
        let is_for_room = self.table.waiting() > 0 || self.room_waiters > 0;
        let has_heard = std::mem::replace(&mut self.heard_when_armed, self.heard) != self.heard;
        self.armed = match self.armed {
            _ if !is_for_room => Armed::AtLast,
            Armed::AtEach if !has_heard => Armed::AtEach,
            _ => Armed::AtHalf,
        };
        self.arm_at();
    }

    /// Each answer rings from now on, if half of them was to.
    pub fn refine(&mut self) {
        self.is_refining = false;
        if self.armed == Armed::AtHalf {
            self.armed = Armed::AtEach;
            self.arm_at();
            self.turn();
        }
    }

    /// Whether a task has to do that soon.
    pub fn needs_refining(&mut self) -> bool {
        std::mem::take(&mut self.needs_refining) && !self.is_refining
    }

    fn arm_at(&mut self) {
        let mut most = 1;
        for (line, seat) in self.lines.iter().zip(&self.seats).filter(|(_, seat)| seat.state != Presence::Gone) {
            let share = match self.armed {
                Armed::AtEach | Armed::Not => 1,
                Armed::AtHalf => self.table.flights(line.number).div_ceil(2).max(1),
                Armed::AtLast => self.table.flights(line.number).max(1),
            };
            most = share.max(most);
            line.ring().set_answer_at(seat.seen.saturating_add(share)); // The count is a peer's word.
        }
        self.needs_refining = self.armed == Armed::AtHalf && most > 1;
        fault!("work.armed");
        heavy_fence(); // Pairs with the light fence after each answer.
    }

    pub fn disarm(&mut self) {
        if std::mem::replace(&mut self.armed, Armed::Not) != Armed::Not {
            self.lines.iter().for_each(|line| line.ring().set_answer_at(NEVER));
        }
    }
}

/// A job that is given again has one record on each line that is still there, however often that happens.
fn forget_former(store: &mut Store, lines: &[Line], line: u32, slot: u32) {
    let records = store.pool.sent_mut(slot);
    if records.on(line).is_some() {
        records.retain(|known| known != line);
    }
    if records.len() > lines.len() {
        records.retain(|known| Line::find(lines, known).is_some());
    }
}
