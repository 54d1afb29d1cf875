//! Where a publisher is in its ring: how far it may append, which positions may be overwritten, and when the ring grows.
//! Arithmetic, and stores into the ring's words: no system call, no clock.
//!
//! A ring grows when its region is full although the claims of its readers and the history allow more, and ahead of that when
//! messages come as a stream and readers lag. One whose readers keep up stays small, however long it is used. Memory for the next
//! region is taken in steps, between which messages are sent.

use crate::protocol::claim::{Claim, Horizon, horizon};
use crate::protocol::regions::{Regions, Shape};
use crate::protocol::ring::Ring;
use crate::sync::AtomicU64;
use crate::sys::memory::page_ceil;
use std::ops::Range;

/// Bytes of memory taken in one step: what that costs is less than a wake-up.
const STEP: u64 = 64 << 10;
/// And at most, for regions of many megabytes.
const LARGE_STEP: u64 = 1 << 20;
/// Nanoseconds between two messages of a stream: a ring with a lag grows ahead of need.
const STREAM: u64 = 10_000;
/// Nanoseconds between two messages of a fast stream,
const FAST_STREAM: u64 = 500;
/// for which a look at the cursors in each lap of a region costs too much if that has fewer records.
const SHORT: u64 = 1024;
/// A ring that got no memory does not ask again for this time, in nanoseconds.
const REFUSAL: u64 = 1_000_000_000;

/// A publisher's place in its ring.
pub(crate) struct Log {
    regions: Regions,
    /// The next position.
    tail: u64,
    /// Positions below may be appended without a look at the cursors.
    limit: u64,
    /// Positions below may be appended as far as the claims are concerned.
    claimed: u64,
    reclaim: u64,
    /// Bytes of the ring, from its start, that have memory.
    ready: u64,
    /// The position from which on the next step is due, while memory for the next region is taken.
    next_step: Option<u64>,
    /// A look at the cursors is due at this position, though the region is not full: so that growth begins in time.
    early_look: u64,
    /// When the rate of messages was last determined, and the tail at that time.
    measured: (u64, u64),
    /// The system gave no memory: until when the ring stays as it is.
    refused: Option<u64>,
}

impl Log {
    /// The log of an empty ring that has memory for its first region.
    pub fn new(shape: Shape) -> Self {
        Log {
            regions: Regions::new(shape),
            tail: 0,
            limit: 0,
            claimed: 0,
            reclaim: 0,
            ready: page_ceil(shape.words_up_to(0) * 8),
            next_step: None,
            early_look: 0,
            measured: (0, 0),
            refused: None,
        }
    }

    #[inline]
    pub fn ring<'a>(&self, words: &'a [AtomicU64]) -> Ring<'a> {
        self.regions.ring(words)
    }

    pub fn regions(&self) -> &Regions {
        &self.regions
    }

    /// The most records that it can have.
    pub fn capacity(&self) -> u64 {
        self.regions.shape().capacity()
    }

    #[inline]
    pub fn tail(&self) -> u64 {
        self.tail
    }

    /// Positions below may be overwritten.
    pub fn reclaim(&self) -> u64 {
        self.reclaim
    }

    /// Whether the record of the tail may be appended.
    #[inline]
    pub fn has_room(&self) -> bool {
        self.tail < self.limit
    }

    /// The record of the tail is there.
    #[inline]
    pub fn appended(&mut self) {
        self.tail += 1;
    }

    /// The claims have changed.
    pub fn look_again(&mut self) {
        (self.limit, self.claimed) = (self.tail, self.tail);
    }

    /// What the claims allow.
    pub fn horizon(&self, history: u64, keep_lossy: bool, claims: impl Iterator<Item = Claim>) -> Horizon {
        let capacity = if self.refused.is_some() { self.region_end() - self.reclaim } else { self.capacity() };
        horizon(self.tail, capacity, history, keep_lossy, claims)
    }

    /// Brings mark and limits up to date.
    pub fn look(&mut self, words: &[AtomicU64], history: u64, claims: impl Iterator<Item = Claim>) -> Horizon {
        let horizon = self.horizon(history, true, claims);
        self.move_mark(words, horizon.reclaim);
        self.claimed = horizon.limit.min(self.reclaim + self.capacity());
        if self.regions.current() > 0 && self.tail >= self.early_look {
            self.early_look = self.tail + self.places() / 8;
        }
        self.set_limit();
        horizon
    }

    pub fn move_mark(&mut self, words: &[AtomicU64], mark: u64) {
        if mark > self.reclaim {
            self.reclaim = mark;
            self.ring(words).set_reclaim(mark);
            // Also between two steps of a growth, when nobody looks at the cursors: there may be room again.
            self.set_limit();
        }
    }

    fn set_limit(&mut self) {
        let pause = self.next_step.unwrap_or(if self.tail < self.early_look { self.early_look } else { u64::MAX });
        self.limit = self.claimed.min(self.region_end()).min(pause);
    }

    /// How many records may wait without growth for who comes late, as long as nobody has ever come.
    pub fn unheard(&self) -> u64 {
        self.places() / 2
    }

    /// Records that the current region can have. Its last place is the marker's.
    fn places(&self) -> u64 {
        let (shape, region) = (self.regions.shape(), self.regions.current());
        if shape.is_last(region) { shape.records(region) } else { shape.records(region) - 1 }
    }

    /// The first position for which there is no place in the current region. (What lies before it is in other regions.)
    fn region_end(&self) -> u64 {
        self.reclaim.max(self.regions.first()) + self.places()
    }

    // ---- growth ----

    /// Whether only a step of growth keeps it from the next record: no look at the cursors is due.
    pub fn is_between_steps(&self) -> bool {
        self.next_step.is_some() && self.tail < self.claimed.min(self.region_end())
    }

    /// The part of the ring to give memory next, if one is due after a look at the cursors at the time `now`. The caller does so,
    /// and says [`stepped`](Self::stepped) or [`refuse`](Self::refuse).
    pub fn step(&mut self, now: u64) -> Option<Range<u64>> {
        if self.regions.are_all_known() || self.refused.is_some() {
            return None;
        }
        let is_full = self.tail >= self.region_end() && self.tail < self.claimed;
        let is_due = match self.next_step {
            _ if is_full => true,
            Some(at) => self.tail >= at,
            None => self.is_busy(now),
        };
        let end = page_ceil(self.next_region_end()).min((self.ready + 1).next_multiple_of(self.step_len()));
        is_due.then_some(self.ready..end)
    }

    /// Bytes of a step: more than usual where the steps for a huge region would not be done before this one is full.
    fn step_len(&self) -> u64 {
        let missing = self.next_region_end().saturating_sub(self.ready);
        let left = self.region_end().saturating_sub(self.tail);
        missing.div_ceil((left / 2).max(1)).clamp(STEP, LARGE_STEP).next_multiple_of(STEP)
    }

    /// Bytes up to the end of the next region.
    fn next_region_end(&self) -> u64 {
        self.regions.shape().words_up_to(self.regions.current() + 1) * 8
    }

    /// Whether messages have come as a stream, and readers lag; or readers lag so much that it will be full.
    fn is_busy(&mut self, now: u64) -> bool {
        let (then, before) = self.measured;
        let (records, lag, most) = (self.tail - before, self.tail - self.reclaim, self.places());
        if lag >= most - most / 8 && self.claimed > self.region_end() {
            return true;
        }
        if records < most / 4 {
            return false; // Too few for a rate.
        }
        self.measured = (now, self.tail);
        // A clock that was set back says nothing.
        let is_faster = |nanoseconds: u64| now > then && now - then < records * nanoseconds;
        let is_short = most < SHORT;
        lag >= most / 4 && is_faster(STREAM) || is_short && lag > 0 && is_faster(FAST_STREAM)
    }

    /// There is memory up to byte `ready`: moves to the next region when it has all.
    pub fn stepped(&mut self, words: &[AtomicU64], ready: u64, now: u64) {
        self.ready = ready;
        if ready < self.next_region_end() {
            let steps = (self.next_region_end() - ready).div_ceil(self.step_len());
            let left = self.region_end().saturating_sub(self.tail);
            self.next_step = Some(self.tail + (left / (2 * steps)).max(1));
        } else {
            self.next_step = None;
            self.measured = (now, self.tail);
            self.regions.grow(words, self.tail);
            self.early_look = self.tail + self.places() / 4;
        }
        self.set_limit();
    }

    /// There is no memory for the next region: what there is has to do, for a while.
    pub fn refuse(&mut self, now: u64) {
        self.next_step = None;
        self.refused = Some(now + REFUSAL);
        self.look_again();
    }

    /// Ends a refusal that is over.
    pub fn reconsider(&mut self, now: u64) {
        if self.refused.is_some_and(|until| now >= until || now + REFUSAL < until) {
            self.refused = None;
            self.look_again();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::protocol::claim::Policy;

    const MILLISECOND: u64 = 1_000_000;

    /// A publisher of messages that come so many nanoseconds after each other, and a reader that may lag.
    struct Stage {
        log: Log,
        words: Vec<AtomicU64>,
        now: u64,
        /// The regions that it moved to, and where.
        moves: Vec<u64>,
        /// The longest row of steps between two messages.
        worst: usize,
        memory: u64,
    }

    impl Stage {
        fn new(capacity: u64) -> Self {
            let shape = Shape::of(capacity);
            let words = (0..shape.words()).map(|_| AtomicU64::new(0)).collect();
            Stage { log: Log::new(shape), words, now: MILLISECOND, moves: Vec::new(), worst: 0, memory: u64::MAX }
        }

        /// Whether there is room for one more message.
        fn send(&mut self, pause: u64, claim: Claim, history: u64) -> bool {
            self.now += pause;
            if !self.log.has_room() {
                self.log.reconsider(self.now);
                if !self.log.is_between_steps() {
                    self.log.look(&self.words, history, std::iter::once(claim));
                }
                let mut steps = 0;
                while let Some(step) = self.log.step(self.now) {
                    steps += 1;
                    if step.end > self.memory {
                        self.log.refuse(self.now);
                        self.log.look(&self.words, history, std::iter::once(claim));
                        continue;
                    }
                    let before = self.log.regions().current();
                    self.log.stepped(&self.words, step.end, self.now);
                    if self.log.regions().current() > before {
                        self.moves.push(self.log.tail());
                    }
                }
                self.worst = self.worst.max(steps);
            }
            let has_room = self.log.has_room();
            if has_room {
                let first = self.log.regions().first();
                let places = self.log.regions().shape().records(self.log.regions().current());
                assert!(
                    self.log.tail() < self.log.reclaim().max(first) + places,
                    "a record that is wanted is overwritten"
                );
                self.log.appended();
            }
            has_room
        }
    }

    fn lossless(cursor: u64) -> Claim {
        Claim { cursor, policy: Policy::Block, depth: u64::MAX }
    }

    #[test]
    fn a_slow_topic_never_grows() {
        let mut stage = Stage::new(1 << 14);
        for number in 0..1_000_000u64 {
            // Now and then its reader is late by a second.
            assert!(stage.send(33 * MILLISECOND, lossless(number.saturating_sub(number / 1000 % 30)), 0));
        }
        assert!(stage.moves.is_empty());
    }

    /// Also at full speed: a message and its answer.
    #[test]
    fn messages_that_are_received_one_by_one_need_no_more() {
        let mut stage = Stage::new(1 << 14);
        for number in 0..100_000 {
            assert!(stage.send(600, lossless(number - u64::from(number > 0)), 0));
        }
        assert!(stage.moves.is_empty());
    }

    #[test]
    fn a_stream_has_the_full_depth_soon_and_no_long_pause() {
        let mut stage = Stage::new(1 << 14);
        for number in 0..(1 << 15) - 2 {
            assert!(stage.send(100, lossless(number / 2), 0));
        }
        assert!(stage.moves.len() == 3 && stage.moves[2] < 10_000, "{:?}", stage.moves);
        assert_eq!(stage.worst, 1, "steps in a row");
        assert!(!stage.send(100, lossless(stage.log.tail() - (1 << 14)), 0), "and no more than that");
    }

    /// A reader that sleeps when the stream begins lags by all of it.
    #[test]
    fn a_sudden_stream_has_no_long_pause_either() {
        let mut stage = Stage::new(1 << 14);
        for _ in 0..1 << 14 {
            assert!(stage.send(100, lossless(0), 0));
        }
        assert!(stage.moves.len() == 3 && stage.worst <= 3, "{:?}, {} steps in a row", stage.moves, stage.worst);
    }

    #[test]
    fn nothing_waits_for_a_reader_that_may_lag() {
        let mut stage = Stage::new(1 << 14);
        for _ in 0..1 << 14 {
            assert!(stage.send(MILLISECOND, lossless(0), 0));
        }
        assert!(!stage.send(MILLISECOND, lossless(0), 0));
        assert_eq!(stage.moves.len(), 3);
        assert!(stage.worst <= 3, "{} steps in a row", stage.worst);
        for cursor in 1..50_000 {
            assert!(stage.send(100, lossless(cursor), 0));
            assert!(!stage.send(100, lossless(cursor), 0));
        }
    }

    #[test]
    fn a_depth_and_a_history_get_what_they_need() {
        let mut stage = Stage::new(1 << 14);
        for _ in 0..40 {
            assert!(stage.send(MILLISECOND, Claim { depth: 40, ..lossless(0) }, 0));
        }
        assert!(!stage.send(MILLISECOND, Claim { depth: 40, ..lossless(0) }, 0));
        assert!(stage.moves.is_empty());
        let mut stage = Stage::new(1 << 14);
        for number in 0..100_000 {
            assert!(stage.send(33 * MILLISECOND, lossless(number), 300));
            assert!(stage.log.reclaim() <= stage.log.tail().saturating_sub(300));
        }
        assert_eq!(stage.moves, [63]);
    }

    /// As when payload memory is short between two steps.
    #[test]
    fn a_mark_that_moves_between_two_looks_makes_room() {
        for moved in 1..600 {
            let mut stage = Stage::new(1 << 14);
            while stage.log.next_step.is_none() || stage.log.regions().current() < 1 {
                assert!(stage.send(100, lossless(0), 0));
            }
            let Stage { log, words, .. } = &mut stage;
            log.move_mark(words, moved);
            for _ in 0..2000 {
                assert!(stage.send(100, lossless(moved), 0), "it stands at {}", stage.log.tail());
            }
        }
    }

    /// Whatever the claims, the rate, and what else moves the mark: who waits, waits for a reader.
    #[test]
    fn nobody_waits_for_nothing() {
        let mut random = 1u64;
        let mut next = |most: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % most
        };
        for _ in 0..300 {
            let mut stage = Stage::new(1 << (6 + next(10)));
            let (mut cursor, policy) = (0, [Policy::Block, Policy::DropOldest][next(2) as usize]);
            let (depth, history) = (1 + next(1 << 15), next(3) * next(1 << 13));
            for _ in 0..5000 {
                let tail = stage.log.tail();
                cursor = if next(20) == 0 { cursor + next(tail - cursor + 1) } else { cursor };
                if next(50) == 0 {
                    let most = if policy == Policy::Block { cursor } else { tail };
                    let Stage { log, words, .. } = &mut stage;
                    log.move_mark(words, log.reclaim.max(next(most + 1)));
                }
                let claim = Claim { cursor, policy, depth };
                if !stage.send([10, 1000, MILLISECOND][next(3) as usize], claim, history) {
                    let waited_for = policy == Policy::Block && cursor < stage.log.tail();
                    assert!(waited_for, "{:?} at {}", claim, stage.log.tail());
                    cursor += 1;
                }
            }
        }
    }

    #[test]
    fn a_ring_that_gets_no_memory_serves_as_it_is() {
        let mut stage = Stage::new(1 << 14);
        stage.memory = 200 << 10;
        let mut sent = 0;
        while stage.send(1000, lossless(0), 0) {
            sent += 1;
        }
        assert_eq!((sent, &stage.moves[..]), (63 + 511, &[63][..]));
        let lossy = |cursor| Claim { policy: Policy::DropOldest, depth: 8192, cursor };
        for _ in 0..10_000 {
            assert!(stage.send(1000, lossy(0), 5000), "who may lose messages does not stop it");
        }
        stage.memory = u64::MAX;
        for _ in 0..10_000 {
            assert!(stage.send(MILLISECOND, lossy(0), 0));
        }
        assert_eq!(stage.moves.len(), 3, "it asks again");
    }
}
