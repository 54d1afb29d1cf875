//! The regions of a ring: it is small at first, and grows while readers read.
//!
//! One segment holds the header and a series of regions, each [`FACTOR`] times as long as the one before; the last one has the
//! ring's full capacity. Addresses cost nothing, and a region has no memory before the publisher moves to it. It never moves
//! back.
//!
//! # Moving
//!
//! To move on at position `p`, the publisher
//!
//! 1. gives the next region memory,
//! 2. stores `p` in the header's table of first positions, with a release fence behind it,
//! 3. appends a *marker* to the old region, where the record of `p` would lie: it has the stamp `p + 1`,
//! 4. appends the record of `p` to the new region, and goes on there.
//!
//! # Invariants
//!
//! 1. The marker takes the last free place of the old region (invariant 1 of the [`ring`](crate::protocol::ring) holds for it), so
//!    a region that is not the last is full when one place is left. Nothing in the old region changes any more: who is behind reads
//!    on there, and comes to the marker.
//! 2. *Marker.* A reader that loads the marker's stamp with acquire sees the table's entry.
//! 3. *Skip.* A reader that goes on at another position than the next one (lapped, skipping, newly come) looks at the table first.
//!    Where it goes it has read from a word (tail, mark) that the publisher stored after the entry, if it lies behind `p`. The
//!    release fence, and the reader's acquire load of that word, make the entry visible. So it never waits in an old region for
//!    a record that lies in a new one.
//! 4. A reader copies the table's entries, each once, and checks each: positions rise, and the region has memory all over. So a
//!    publisher that lies can make it neither allocate memory nor go round in circles.
//!
//! Models: `growing_ring`, `growing_ring_from_its_table`.

use crate::protocol::ring::{FIRST_POSITIONS, MOST_REGIONS, RECORD_WORDS, RECORDS, Ring};
use crate::sync::AtomicU64;

/// Records in the first region (16 KiB), unless the ring is smaller.
const FIRST: u64 = 64;
/// The binary logarithm of a region's length in units of the length of the one before.
const FACTOR: u32 = 3;
/// The most records of a ring: 128 GiB, and as many regions as the table has entries for.
pub(crate) const MOST_RECORDS: u64 = 1 << 29;

/// How long the regions of a ring are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Records of the last region, and of the first one: powers of two.
    capacity: u64,
    first: u64,
    factor: u32,
}

impl Shape {
    /// The shape of a ring of `capacity` records, a power of two and at most [`MOST_RECORDS`].
    pub const fn of(capacity: u64) -> Self {
        Shape::with(capacity, if capacity < FIRST { capacity } else { FIRST }, FACTOR)
    }

    pub const fn with(capacity: u64, first: u64, factor: u32) -> Self {
        Shape { capacity, first, factor }
    }

    pub fn capacity(self) -> u64 {
        self.capacity
    }

    /// Records of a region.
    pub const fn records(self, region: usize) -> u64 {
        let records = self.first << (self.factor * region as u32);
        if records < self.capacity { records } else { self.capacity }
    }

    pub const fn is_last(self, region: usize) -> bool {
        self.records(region) == self.capacity
    }

    /// Words up to the end of a region, the header included.
    pub const fn words_up_to(self, region: usize) -> u64 {
        let (mut at, mut records) = (0, 0);
        while at <= region {
            records += self.records(at);
            at += 1;
        }
        RECORDS as u64 + records * RECORD_WORDS as u64
    }

    /// Words of the whole ring.
    pub const fn words(self) -> u64 {
        let mut region = 0;
        while !self.is_last(region) {
            region += 1;
        }
        self.words_up_to(region)
    }

    fn start(self, region: usize) -> usize {
        if region == 0 { RECORDS } else { self.words_up_to(region - 1) as usize }
    }
}

/// What one side knows of a ring's regions, and which of them it is in.
#[derive(Clone, Debug)]
pub(crate) struct Regions {
    shape: Shape,
    /// The first positions of the regions up to `known`.
    firsts: [u64; MOST_REGIONS],
    known: usize,
    current: usize,
    /// Of the current one: its first word, and a mask for its records.
    start: usize,
    mask: u64,
}

impl Regions {
    /// Only the first region is known.
    pub fn new(shape: Shape) -> Self {
        let mut regions = Regions { shape, firsts: [0; MOST_REGIONS], known: 0, current: 0, start: 0, mask: 0 };
        regions.enter(0);
        regions
    }

    fn enter(&mut self, region: usize) {
        self.current = region;
        (self.start, self.mask) = (self.shape.start(region), self.shape.records(region) - 1);
    }

    pub fn shape(&self) -> Shape {
        self.shape
    }

    pub fn current(&self) -> usize {
        self.current
    }

    /// The first position of the current region.
    pub fn first(&self) -> u64 {
        self.firsts[self.current]
    }

    /// Whether no region is left to move to.
    pub fn are_all_known(&self) -> bool {
        self.shape.is_last(self.known)
    }

    /// The ring as it is seen from the current region.
    #[inline]
    pub fn ring<'a>(&self, words: &'a [AtomicU64]) -> Ring<'a> {
        Ring::new(words, self.start, self.mask)
    }

    /// The ring as it is seen from the region that the record of `position` lies in.
    pub fn at<'a>(&self, words: &'a [AtomicU64], position: u64) -> Ring<'a> {
        let region = self.region_of(position);
        Ring::new(words, self.shape.start(region), self.shape.records(region) - 1)
    }

    fn region_of(&self, position: u64) -> usize {
        (1..=self.known).rev().find(|region| self.firsts[*region] <= position).unwrap_or(0)
    }

    /// The first of the positions from `from` on, up to `to`, with a message of that number or a later one. Records that were
    /// reclaimed count as older.
    #[cold]
    pub fn find(&self, words: &[AtomicU64], from: u64, to: u64, sequence: u64) -> u64 {
        let (mut low, mut high) = (from, to);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.at(words, middle).is_older(middle, sequence) { low = middle + 1 } else { high = middle }
        }
        low
    }

    // ---- the publisher's side ----

    /// Moves on to the next region, which has memory, at `position`, for which there is a place in the current one.
    pub fn grow(&mut self, words: &[AtomicU64], position: u64) {
        let old = self.ring(words);
        old.set_first_position(self.current + 1, position);
        fault!("grow.region_told");
        old.append_marker(position);
        fault!("grow.region_marked");
        self.known += 1;
        self.firsts[self.known] = position;
        self.enter(self.known);
    }

    // ---- the readers' side ----

    /// Looks which regions there are by now. `has_memory` says whether the ring has, up to the end of a region in words.
    pub fn learn(&mut self, words: &[AtomicU64], has_memory: impl Fn(u64) -> bool) -> Result<(), &'static str> {
        while !self.are_all_known() {
            let first = self.ring(words).first_position(self.known + 1);
            if first == 0 {
                break;
            }
            if first <= self.firsts[self.known] {
                return Err("a ring whose regions are out of order");
            }
            if !has_memory(self.shape.words_up_to(self.known + 1)) {
                return Err("a ring with holes");
            }
            self.known += 1;
            self.firsts[self.known] = first;
        }
        Ok(())
    }

    /// Goes to the region of `position`.
    pub fn go_to(&mut self, position: u64) {
        if self.known > 0 {
            self.enter(self.region_of(position));
        }
    }

    /// Follows the marker at `position`. It was looked what there is.
    pub fn follow(&mut self, position: u64) -> Result<(), &'static str> {
        if self.current == self.known || self.firsts[self.current + 1] != position {
            return Err("a ring that grows where it does not");
        }
        self.enter(self.current + 1);
        Ok(())
    }
}

const _: () = assert!(Shape::of(MOST_RECORDS).is_last(MOST_REGIONS - 1) && FIRST_POSITIONS + MOST_REGIONS <= RECORDS);

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn regions_follow_each_other_up_to_the_capacity() {
        let lengths = |capacity| -> Vec<u64> {
            let shape = Shape::of(capacity);
            let last = (0..).find(|region| shape.is_last(*region)).unwrap();
            (0..=last).map(|region| shape.records(region)).collect()
        };
        assert_eq!(lengths(16), [16]);
        assert_eq!(lengths(64), [64]);
        assert_eq!(lengths(128), [64, 128]);
        assert_eq!(lengths(1 << 14), [64, 512, 4096, 1 << 14]);
        let shape = Shape::of(1 << 14);
        assert_eq!(shape.words(), shape.words_up_to(3));
        assert_eq!(shape.words_up_to(0), 64 + 64 * 32);
        assert_eq!(shape.start(2) as u64, shape.words_up_to(1));
    }

    #[test]
    fn positions_have_their_regions() {
        let shape = Shape::with(8, 2, 1);
        let words: Vec<_> = (0..shape.words()).map(|_| AtomicU64::new(0)).collect();
        let mut publisher = Regions::new(shape);
        publisher.grow(&words, 1);
        publisher.grow(&words, 4);
        let mut reader = Regions::new(shape);
        reader.learn(&words, |_| true).unwrap();
        let found: Vec<_> = (0..6).map(|position| reader.region_of(position)).collect();
        assert_eq!(found, [0, 1, 1, 1, 2, 2]);
        assert!(reader.follow(2).is_err());
        reader.follow(1).unwrap();
        assert_eq!((reader.current(), reader.first()), (1, 1));
        reader.go_to(0);
        assert_eq!(reader.current(), 0);
        assert_eq!(Regions::new(shape).learn(&words, |_| false), Err("a ring with holes"));
        publisher.ring(&words).set_first_position(2, 1);
        assert_eq!(Regions::new(shape).learn(&words, |_| true), Err("a ring whose regions are out of order"));
    }
}
