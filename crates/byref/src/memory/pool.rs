//! The publisher's payload memory: chunks in segments that grow up to `max_memory`.
//!
//! The allocator's state is private to the publisher, so no peer can harm it. Segments are sparse files: they take memory
//! only up to the highest byte ever handed out, and that is what `max_memory` limits. Within a segment, `offset-allocator`
//! (Aaltonen's two-level segregated fit) hands out chunks, the ones freed last first: their pages are warm. Its table of chunks
//! begins small, and a larger one replaces it when it is full.

use crate::protocol::lease::MAX_SLOTS;
use crate::sys::memory::{OwnedSegment, View, page_ceil};
use offset_allocator::{Allocation, Allocator, ext::min_allocator_size};
use rustix::io::Errno;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

/// Chunks start at multiples of this many bytes: a cache line, and what Arrow and SIMD code wish for.
pub(crate) const ALIGNMENT: u64 = 64;
/// The size of a segment, unless a payload needs a larger one. Virtual: memory comes as it is used.
const SEGMENT_LEN: u64 = 64 << 20;
/// A segment with more memory than this does not stay when it is the last one.
const WARM: u64 = 2 * SEGMENT_LEN;
/// A huge payload's segment has addresses for one of so many times its size, up to `max_memory`.
const HUGE_FACTOR: u64 = 4;
/// Memory is taken from the system in steps: the first of a segment at least of this size,
const FIRST_STEP: u64 = 64 << 10;
/// each one as large as what is there, up to this size.
const LAST_STEP: u64 = 1 << 20;

/// Entries in the first table of a segment's allocator (4 KiB): one for each chunk and each gap between chunks.
const FIRST_ENTRIES: u32 = 128;
/// Each table has so many times the entries of the one before.
const MORE_ENTRIES: u32 = 4;
/// The most entries of a table.
const MOST_ENTRIES: u32 = 1 << 17;
/// Bytes that an allocator needs for each of them, and some more for other threads.
const BOOKKEEPING: usize = 64;

/// Why there is no chunk.
#[derive(Debug)]
pub(crate) enum NoChunk {
    /// The pool is at `max_memory`, or out of slots: room may return.
    Full,
    /// The system refused.
    System(io::Error),
}

impl From<io::Error> for NoChunk {
    fn from(error: io::Error) -> Self {
        NoChunk::System(error)
    }
}

/// Keeps a chunk's memory mapped and unused for others as long as somebody in this process may still touch it.
pub(crate) struct Pin {
    segment: Arc<OwnedSegment>,
    offset: u64,
}

impl Pin {
    pub fn segment(&self) -> &Arc<OwnedSegment> {
        &self.segment
    }

    pub fn as_ptr(&self) -> *mut u8 {
        self.segment.map().as_ptr().wrapping_add(self.offset as usize)
    }

    /// A view of its first `len` bytes that is only read.
    pub fn view(&self, len: usize) -> io::Result<View> {
        self.segment.view(self.offset..self.offset + len as u64)
    }
}

/// A chunk that was handed out.
pub(crate) struct Chunk {
    /// Its size.
    pub bytes: u64,
    /// The part of its segment that may have no memory yet, to be given some before the chunk is used. Parts of several
    /// chunks may overlap: of two threads, each makes sure of what it uses.
    pub unpopulated: Range<u64>,
    pub slot: u32,
    pub segment: u32,
    pub offset: u64,
    pub pin: Arc<Pin>,
}

struct Slot<S> {
    segment: u32,
    allocation: Allocation,
    bytes: u64,
    /// `None` while the slot is free. Local users hold clones.
    pin: Option<Arc<Pin>>,
    sent: S,
}

struct Segment {
    id: u32,
    memory: Arc<OwnedSegment>,
    allocator: Allocator,
    /// Entries in the allocator's table.
    entries: u32,
    chunks: u32,
    /// Bytes from the start that have memory, or are to be given some.
    populated: u64,
    /// No chunk was there at the last look for unused segments, nor was one taken since.
    unused: bool,
    /// It was made for a payload of more than half a usual segment. Small ones stay out of it where they can.
    huge: bool,
    /// It was retired before: somebody may have it mapped under another number.
    is_reused: bool,
}

impl Segment {
    fn len(&self) -> u64 {
        self.memory.map().len() as u64
    }

    /// Bytes that have to be taken from the system for a chunk of so many behind what is there.
    fn missing(&self, bytes: u64) -> u64 {
        bytes.saturating_sub(self.populated)
    }

    /// What its addresses are to the allocator.
    fn units(&self) -> u32 {
        (self.len() / ALIGNMENT) as u32
    }

    /// Whether the allocator's table may be full: there are no more gaps than chunks, and one. (It keeps two entries to itself.)
    fn lacks_entries(&self) -> bool {
        2 * self.chunks + 3 >= self.entries && self.entries < most_entries(self.units())
    }
}

/// How many entries a table for a segment of so many units can use.
fn most_entries(units: u32) -> u32 {
    units.clamp(16, MOST_ENTRIES)
}

/// An allocator with a table of so many entries.
fn new_allocator(units: u32, entries: u32) -> io::Result<Allocator> {
    // It takes its own memory without asking; whoever cannot have that ends.
    let bookkeeping = Vec::<[u8; BOOKKEEPING]>::new().try_reserve_exact(entries as usize);
    bookkeeping.map_err(|_| io::Error::from(Errno::NOMEM))?;
    Ok(Allocator::with_max_allocs(units, entries))
}

/// The same for a segment with these chunks (offset and size, by offset); also their new allocations.
///
/// A fresh allocator has one free range, whose front it hands out. So chunks and the gaps between them are taken in the order in
/// which they lie, and the gaps are given back. `None`: a chunk of an odd size is the last but for a remainder that is too small.
fn rebuild(units: u32, entries: u32, chunks: &[(u32, u32)]) -> Option<(Allocator, Vec<Allocation>)> {
    let mut allocator = new_allocator(units, entries).ok()?;
    let (mut allocations, mut gaps, mut at) = (Vec::with_capacity(chunks.len()), Vec::new(), 0);
    let mut take = |at: &mut u32, units: u32| {
        let taken = allocator.allocate(units)?;
        let is_next = taken.offset == *at;
        *at += units;
        is_next.then_some(taken)
    };
    for &(offset, units) in chunks {
        while at < offset {
            let size = class_within(offset - at);
            gaps.push(take(&mut at, size)?);
        }
        allocations.push(take(&mut at, units)?);
    }
    gaps.into_iter().for_each(|gap| allocator.free(gap));
    Some((allocator, allocations))
}

/// The largest of the allocator's size classes within `units`: it has four significant bits.
fn class_within(units: u32) -> u32 {
    let insignificant = (u32::BITS - units.leading_zeros()).saturating_sub(4);
    units >> insignificant << insignificant
}

/// The pool. `S`: what is noted about a chunk that was sent.
pub(crate) struct Pool<S> {
    max_memory: u64,
    segments: Vec<Segment>,
    next_segment: u32,
    slots: Vec<Slot<S>>,
    free: Vec<u32>,
    /// Bytes of memory taken from the system.
    populated: u64,
    /// Bytes in chunks.
    used: u64,
    /// Segments that subscribers have yet to unmap.
    retired: Vec<Retired>,
}

/// A segment that was retired. Its memory counts until nobody has it mapped any more; if it is needed meanwhile, the segment is
/// used again, with another number.
struct Retired {
    /// The ring's generation that tells subscribers of it.
    generation: u64,
    since: Instant,
    segment: Segment,
    /// The subscribers that were never sent its descriptor.
    unsent: Vec<u64>,
    written_off: bool,
}

/// What is found out about the memory of a retired segment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Somebody has it mapped: it counts.
    Kept,
    /// Somebody has it mapped who is waited for no more.
    WrittenOff,
    Unmapped,
}

impl<S: Default> Pool<S> {
    pub fn new(max_memory: u64) -> Self {
        let (segments, slots, free) = (Vec::new(), Vec::new(), Vec::new());
        Pool {
            max_memory: page_ceil(max_memory),
            segments,
            next_segment: 0,
            slots,
            free,
            populated: 0,
            used: 0,
            retired: Vec::new(),
        }
    }

    pub fn used(&self) -> u64 {
        self.used
    }

    /// Bytes of memory taken from the system, with what subscribers have yet to give back.
    pub fn populated(&self) -> u64 {
        self.populated + self.retired_bytes(|_| true)
    }

    fn retired_bytes(&self, which: impl Fn(&Retired) -> bool) -> u64 {
        self.retired.iter().filter(|retired| which(retired)).map(|retired| retired.segment.populated).sum()
    }

    /// The bytes of a slot's chunk.
    pub fn bytes(&self, slot: u32) -> u64 {
        self.slots[slot as usize].bytes
    }

    /// All segments: their numbers, and the memory to share.
    pub fn segments(&self) -> impl Iterator<Item = (u32, &Arc<OwnedSegment>)> {
        self.segments.iter().map(|segment| (segment.id, &segment.memory))
    }

    /// Takes a chunk of at least `bytes`. `Ok` also says whether a segment was added for it.
    ///
    /// The chunk's `unpopulated` part is the caller's to populate: that can take long, and needs no lock.
    pub fn allocate(&mut self, bytes: u64) -> Result<(Chunk, bool), NoChunk> {
        if self.free.is_empty() && self.slots.len() >= MAX_SLOTS as usize {
            return Err(NoChunk::Full);
        }
        let exact = u32::try_from(bytes.max(1).div_ceil(ALIGNMENT)).map_err(|_| NoChunk::Full)?;
        // Sizes of the allocator's own classes: a freed chunk of that size serves the next equal request.
        let rounded = min_allocator_size(exact);
        let huge = exact as u64 * ALIGNMENT > SEGMENT_LEN / 2;
        for units in [rounded, exact] {
            if let Some(chunk) = self.allocate_in_suited(units, huge) {
                return Ok((chunk, false));
            }
            if let Some(chunk) = self.allocate_in_retired(units, huge) {
                return Ok((chunk, true));
            }
            match self.add_segment(units, huge) {
                Ok(index) => match self.allocate_in(index, units) {
                    Some(chunk) => return Ok((chunk, true)),
                    None => drop(self.segments.remove(index)),
                },
                Err(NoChunk::Full) => {}
                Err(error) => return Err(error),
            }
            if let Some(chunk) = (0..self.segments.len()).find_map(|index| self.allocate_in(index, units)) {
                return Ok((chunk, false));
            }
        }
        Err(NoChunk::Full)
    }

    /// Bytes that may still be taken from the system.
    fn budget(&self) -> u64 {
        let kept = self.retired_bytes(|retired| !retired.written_off);
        self.max_memory.saturating_sub(self.populated + kept)
    }

    /// Takes a chunk where such ones belong. A huge payload has a segment to itself, so that its memory can go back when it is
    /// gone: the empty one that needs the least memory from the system. The other segments serve when that gives no more.
    fn allocate_in_suited(&mut self, units: u32, huge: bool) -> Option<Chunk> {
        let bytes = units as u64 * ALIGNMENT;
        if !huge {
            let usual = |this: &Self, index: usize| !this.segments[index].huge;
            return (0..self.segments.len()).find_map(|at| usual(self, at).then(|| self.allocate_in(at, units))?);
        }
        let serves = |segment: &Segment| segment.huge && segment.chunks == 0 && segment.len() >= bytes;
        let empty = self.segments.iter().enumerate().filter(|(_, segment)| serves(segment));
        let (index, _) = empty.min_by_key(|(_, segment)| segment.missing(bytes))?;
        self.allocate_in(index, units)
    }

    /// Takes a retired segment back that subscribers have yet to unmap, if that serves.
    fn allocate_in_retired(&mut self, units: u32, huge: bool) -> Option<Chunk> {
        let bytes = units as u64 * ALIGNMENT;
        let serves = |retired: &Retired| retired.segment.len() >= bytes && (huge || !retired.segment.huge);
        let candidates = self.retired.iter().enumerate().filter(|(_, retired)| serves(retired));
        let (at, _) = candidates.min_by_key(|(_, retired)| retired.segment.missing(bytes))?;
        let Retired { generation, since, mut segment, unsent, written_off } = self.retired.remove(at);
        let (id, was_reused, index) = (segment.id, segment.is_reused, self.segments.len());
        segment.id = self.next_segment;
        segment.is_reused = true;
        self.populated += segment.populated;
        self.segments.push(segment);
        if let Some(chunk) = self.allocate_in(index, units) {
            self.next_segment += 1;
            return Some(chunk);
        }
        let mut segment = self.segments.pop()?;
        self.populated -= segment.populated;
        (segment.id, segment.is_reused) = (id, was_reused);
        self.retired.push(Retired { generation, since, segment, unsent, written_off });
        None
    }

    fn allocate_in(&mut self, index: usize, units: u32) -> Option<Chunk> {
        let budget = self.budget();
        let allocation = match self.segments[index].allocator.allocate(units) {
            Some(allocation) => allocation,
            None if self.add_entries(index) => self.segments[index].allocator.allocate(units)?,
            None => return None,
        };
        let segment = &mut self.segments[index];
        let offset = allocation.offset as u64 * ALIGNMENT;
        let end = offset + units as u64 * ALIGNMENT;
        let before = segment.populated;
        if end > before {
            let needed = page_ceil(end) - before;
            if needed > budget {
                segment.allocator.free(allocation);
                return None;
            }
            let step = before.clamp(FIRST_STEP, LAST_STEP).max(needed.next_multiple_of(FIRST_STEP));
            let step = step.min(segment.len() - before).min(budget);
            segment.populated += step;
            self.populated += step;
        }
        let ready = segment.memory.populated();
        let unpopulated = match end {
            _ if end > before => ready..segment.populated,
            _ if end > ready => ready..page_ceil(end),
            _ => ready..ready,
        };
        segment.chunks += 1;
        segment.unused = false;
        let (id, bytes) = (segment.id, units as u64 * ALIGNMENT);
        self.used += bytes;
        let pin = Arc::new(Pin { segment: Arc::clone(&segment.memory), offset });
        let taken = Some(Arc::clone(&pin));
        let number = match self.free.pop() {
            Some(number) => {
                // Not as a whole: what was noted about its last chunk is reset already.
                let slot = &mut self.slots[number as usize];
                (slot.segment, slot.allocation, slot.bytes, slot.pin) = (id, allocation, bytes, taken);
                number
            }
            None => {
                self.slots.push(Slot { segment: id, allocation, bytes, pin: taken, sent: S::default() });
                self.slots.len() as u32 - 1
            }
        };
        Some(Chunk { bytes, unpopulated, slot: number, segment: id, offset, pin })
    }

    /// Gives a segment's allocator a larger table, if it may lack one.
    #[cold]
    fn add_entries(&mut self, index: usize) -> bool {
        let segment = &mut self.segments[index];
        if !segment.lacks_entries() {
            return false;
        }
        let entries = (segment.entries * MORE_ENTRIES).min(most_entries(segment.units()));
        let is_inside = |slot: &&mut Slot<S>| slot.pin.is_some() && slot.segment == segment.id;
        let mut slots: Vec<_> = self.slots.iter_mut().filter(is_inside).collect();
        slots.sort_unstable_by_key(|slot| slot.allocation.offset);
        let chunks: Vec<_> =
            slots.iter().map(|slot| (slot.allocation.offset, (slot.bytes / ALIGNMENT) as u32)).collect();
        let Some((allocator, allocations)) = rebuild(segment.units(), entries, &chunks) else { return false };
        slots.into_iter().zip(allocations).for_each(|(slot, allocation)| slot.allocation = allocation);
        (segment.allocator, segment.entries) = (allocator, entries);
        true
    }

    fn add_segment(&mut self, units: u32, huge: bool) -> Result<usize, NoChunk> {
        let bytes = units as u64 * ALIGNMENT;
        if bytes > self.budget() {
            return Err(NoChunk::Full);
        }
        // Payloads that differ in size follow each other in one segment, as memory that is there already.
        let len = if huge { bytes * HUGE_FACTOR } else { SEGMENT_LEN };
        let wanted = len.min(self.max_memory).max(bytes) / ALIGNMENT;
        // The allocator's size classes are coarse: this is the smallest one that serves the request.
        let size = min_allocator_size(wanted as u32);
        let memory = OwnedSegment::new("byref-pool", size as u64 * ALIGNMENT)?;
        let entries = most_entries(size).min(FIRST_ENTRIES);
        let allocator = new_allocator(size, entries)?;
        let id = self.next_segment;
        self.next_segment += 1;
        self.segments.push(Segment {
            id,
            memory: Arc::new(memory),
            allocator,
            entries,
            chunks: 0,
            populated: 0,
            unused: false,
            huge,
            is_reused: false,
        });
        Ok(self.segments.len() - 1)
    }

    /// Whether somebody in this process may still touch the slot's chunk.
    pub fn is_pinned(&mut self, slot: u32) -> bool {
        // `get_mut`, unlike `strong_count`, orders the last holder's accesses before what is done with the memory next.
        self.slots[slot as usize].pin.as_mut().is_some_and(|pin| Arc::get_mut(pin).is_none())
    }

    /// What keeps a slot's chunk from being freed; `None`: it is free.
    pub fn pin(&self, slot: u32) -> Option<Arc<Pin>> {
        self.slots.get(slot as usize)?.pin.clone()
    }

    /// What is noted about a slot's chunk: the default while it is free, or lent.
    #[inline]
    pub fn sent(&self, slot: u32) -> &S {
        &self.slots[slot as usize].sent
    }

    #[inline]
    pub fn sent_mut(&mut self, slot: u32) -> &mut S {
        &mut self.slots[slot as usize].sent
    }

    /// Takes a chunk back; what is noted about it is the caller's to reset. The caller knows that nobody reads it, here or elsewhere.
    pub fn free(&mut self, slot: u32) {
        let taken = &mut self.slots[slot as usize];
        taken.pin = None;
        self.used -= taken.bytes;
        let id = taken.segment;
        let segment = self.segments.iter_mut().find(|segment| segment.id == id).expect("a chunk's segment is live");
        segment.allocator.free(taken.allocation);
        segment.chunks -= 1;
        self.free.push(slot);
    }

    /// Retires segments without a chunk, of which subscribers hear with `generation`; returns their numbers.
    pub fn retire_empty(&mut self, generation: u64) -> Vec<u32> {
        self.retire(generation, |segment| segment.chunks == 0)
    }

    /// The same for segments that nobody has used since the last call. One stays: its memory is warm.
    pub fn retire_unused(&mut self, generation: u64) -> Vec<u32> {
        let kept = self.segments.iter().find(|segment| segment.populated <= WARM).map(|segment| segment.id);
        self.retire(generation, |segment| {
            let unused = std::mem::replace(&mut segment.unused, segment.chunks == 0);
            unused && Some(segment.id) != kept
        })
    }

    fn retire(&mut self, generation: u64, is_due: impl FnMut(&mut Segment) -> bool) -> Vec<u32> {
        let mut numbers = Vec::new();
        for segment in self.segments.extract_if(.., is_due) {
            self.populated -= segment.populated;
            numbers.push(segment.id);
            let unsent = Vec::new();
            self.retired.push(Retired { generation, since: Instant::now(), segment, unsent, written_off: false });
        }
        numbers
    }

    /// Whether `retire_unused` may have something to do, now or later.
    pub fn is_large(&self) -> bool {
        self.segments.len() > 1 || self.segments.iter().any(|segment| segment.populated > WARM)
    }

    /// Whether retired memory may still be mapped somewhere.
    pub fn has_retired(&self) -> bool {
        !self.retired.is_empty()
    }

    /// Whether there would be room for so many bytes once subscribers have unmapped what was retired.
    pub fn unmapping_may_help(&self, bytes: u64) -> bool {
        let kept = self.retired_bytes(|retired| !retired.written_off);
        kept > 0 && bytes <= self.budget() + kept
    }

    /// Bytes of memory that was retired with the generations that `which` names.
    pub fn retired_with(&self, which: impl Fn(u64) -> bool) -> u64 {
        self.retired_bytes(|retired| which(retired.generation))
    }

    /// A subscriber was never sent the descriptor of a retired segment.
    pub fn note_unsent(&mut self, segment: u32, subscriber: u64) {
        let found = self.retired.iter_mut().find(|retired| retired.segment.id == segment);
        if let Some(retired) = found.filter(|retired| !retired.segment.is_reused) {
            retired.unsent.push(subscriber);
        }
    }

    /// Gives the memory of retired segments back whose fate, by generation and age, is to be unmapped.
    pub fn settle_retired(&mut self, mut fate: impl FnMut(u64, Instant, &[u64]) -> Fate) {
        self.retired.retain_mut(|retired| match fate(retired.generation, retired.since, &retired.unsent) {
            Fate::Unmapped => false,
            found => {
                retired.written_off = found == Fate::WrittenOff;
                true
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Pool = super::Pool<()>;

    #[test]
    fn the_whole_of_max_memory_is_usable_and_no_more() {
        let mut pool = Pool::new(8 << 20);
        let (chunk, added) = pool.allocate(8 << 20).ok().unwrap();
        assert!(added);
        assert!(matches!(pool.allocate(1), Err(NoChunk::Full)));
        drop(chunk.pin);
        pool.free(chunk.slot);
        assert_eq!((pool.used(), pool.populated()), (0, 8 << 20));
        assert!(matches!(pool.allocate((8 << 20) + 1), Err(NoChunk::Full)));
    }

    #[test]
    fn chunks_are_aligned_apart_and_reused() {
        let mut pool = Pool::new(64 << 20);
        let chunks: Vec<_> = (1..200).map(|i| (i, pool.allocate(i * 97).ok().unwrap().0)).collect();
        let mut ranges: Vec<_> = chunks.iter().map(|(i, c)| (c.offset, c.offset + i * 97)).collect();
        ranges.sort();
        assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0));
        assert!(ranges.iter().all(|(start, _)| start % ALIGNMENT == 0));
        let populated = pool.populated();
        for (_, chunk) in chunks {
            drop(chunk.pin);
            pool.free(chunk.slot);
        }
        for _ in 0..1000 {
            let (chunk, _) = pool.allocate(1 << 20).ok().unwrap();
            drop(chunk.pin);
            pool.free(chunk.slot);
        }
        assert!(pool.populated() <= populated.max(1 << 20) + LAST_STEP);
    }

    #[test]
    fn whoever_uses_memory_first_makes_sure_of_it() {
        let mut pool = Pool::new(64 << 20);
        let populate = |chunk: &Chunk| chunk.pin.segment().populate(chunk.unpopulated.clone()).unwrap();
        let slow = pool.allocate(5000).ok().unwrap().0;
        let quick = pool.allocate(5000).ok().unwrap().0;
        assert_eq!(slow.unpopulated, 0..FIRST_STEP);
        assert_eq!(quick.unpopulated, 0..page_ceil(quick.offset + quick.bytes));
        populate(&quick);
        populate(&slow);
        assert!(pool.allocate(5000).ok().unwrap().0.unpopulated.is_empty());
        let more = pool.allocate(FIRST_STEP).ok().unwrap().0;
        assert_eq!(more.unpopulated.start, FIRST_STEP);
    }

    /// A topic with one payload takes what that needs, one with many takes it in large steps.
    #[test]
    fn steps_grow() {
        let mut pool = Pool::new(64 << 20);
        let mut steps = Vec::new();
        while pool.populated() < 8 << 20 {
            let before = pool.populated();
            pool.allocate(1000).ok().unwrap();
            steps.extend(Some((pool.populated() - before) >> 10).filter(|step| *step > 0));
        }
        assert_eq!(steps, [64, 64, 128, 256, 512, 1024, 1024, 1024, 1024, 1024, 1024, 1024]);
        let mut pool = Pool::new(64 << 20);
        pool.allocate(100_000).ok().unwrap();
        assert_eq!(pool.populated(), 128 << 10);
    }

    /// Whatever lies where: what is free afterwards is what was free before.
    #[test]
    fn a_table_of_chunks_grows() {
        let mut pool = Pool::new(64 << 20);
        let mut state = 1u64;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let mut chunks = Vec::new();
        for round in 0..40_000 {
            if round % 3 == 2 && random(2) == 0 {
                let chunk: Chunk = chunks.swap_remove(random(chunks.len() as u64) as usize);
                drop(chunk.pin);
                pool.free(chunk.slot);
            }
            chunks.push(pool.allocate(1 + random(1500)).ok().unwrap().0);
        }
        assert_eq!(pool.segments().count(), 1);
        let [segment] = &pool.segments[..] else { panic!("one segment") };
        assert_eq!((segment.entries, segment.chunks as usize), (MOST_ENTRIES, chunks.len()));
        let mut ranges: Vec<_> = chunks.iter().map(|chunk| (chunk.offset, chunk.offset + chunk.bytes)).collect();
        ranges.sort();
        assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0), "two chunks overlap");
        for chunk in chunks {
            drop(chunk.pin);
            pool.free(chunk.slot);
        }
        let report = pool.segments[0].allocator.storage_report();
        assert_eq!(
            report.total_free_space as u64 * ALIGNMENT,
            pool.segments[0].len(),
            "all of it is free, and in one piece"
        );
        assert!(pool.allocate(30 << 20).is_ok() && pool.segments().count() == 1);
    }

    #[test]
    fn a_rebuilt_allocator_knows_the_same_chunks() {
        let chunks = [(3, 5), (8, 1), (100, 33), (1000, 24)];
        let (mut allocator, allocations) = rebuild(1024, 64, &chunks).unwrap();
        assert!(allocations.iter().zip(chunks).all(|(allocation, (offset, _))| allocation.offset == offset));
        assert_eq!(allocator.storage_report().total_free_space, 1024 - 5 - 1 - 33 - 24);
        allocations.into_iter().for_each(|allocation| allocator.free(allocation));
        assert_eq!(allocator.allocate(1024).unwrap().offset, 0);
        assert!(rebuild(1024, 64, &[(0, 990), (990, 33)]).is_none(), "what remains is of a smaller class");
        assert_eq!([1, 7, 8, 15, 16, 17, 31, 33, 1000].map(class_within), [1, 7, 8, 15, 16, 16, 30, 32, 960]);
    }

    #[test]
    fn holes_serve_equal_requests() {
        let mut pool = Pool::new(64 << 20);
        let mut slots: Vec<_> =
            std::iter::from_fn(|| pool.allocate(1_000_000).ok()).map(|(chunk, _)| chunk.slot).collect();
        let all = slots.len();
        assert!(all >= 60);
        for slot in slots.drain(..).step_by(2) {
            pool.free(slot);
        }
        let again = std::iter::from_fn(|| pool.allocate(1_000_000).ok()).count();
        assert_eq!(again, all.div_ceil(2));
    }

    #[test]
    fn a_pool_grows_by_segments_and_gives_empty_ones_back() {
        let mut pool = Pool::new(256 << 20);
        let first = pool.allocate(40 << 20).ok().unwrap().0;
        let second = pool.allocate(40 << 20).ok().unwrap();
        assert!(second.1 && second.0.segment != first.segment);
        pool.free(first.slot);
        assert_eq!(pool.retire_empty(1), [first.segment]);
        assert_eq!(pool.populated(), 80 << 20);
        pool.settle_retired(|_, _, _| Fate::Unmapped);
        assert_eq!(pool.populated(), 40 << 20);
    }

    #[test]
    fn huge_payloads_of_changing_sizes_use_the_same_memory() {
        let mut pool = Pool::new(100 << 20);
        for (bytes, is_new) in [(60 << 20, true), (90 << 20, false), (34 << 20, false), (100 << 20, false)] {
            let (chunk, added) = pool.allocate(bytes).ok().unwrap();
            assert_eq!(added, is_new, "{bytes}");
            pool.free(chunk.slot);
        }
        assert_eq!(pool.populated(), 100 << 20);
    }

    #[test]
    fn retired_memory_counts_until_it_is_unmapped_and_serves_meanwhile() {
        let mut pool = Pool::new(128 << 20);
        let fill = |pool: &mut Pool| -> Vec<_> {
            std::iter::from_fn(|| pool.allocate(1 << 20).ok()).map(|(chunk, _)| chunk.slot).collect()
        };
        let slots = fill(&mut pool);
        assert_eq!(slots.len(), 128);
        slots.into_iter().for_each(|slot| pool.free(slot));
        assert_eq!(pool.retire_empty(1), [0, 1]);
        pool.settle_retired(|_, _, _| Fate::Kept);
        assert!(matches!(pool.allocate(100 << 20), Err(NoChunk::Full)), "more memory than there may be");
        assert!(pool.unmapping_may_help(100 << 20));

        let again = fill(&mut pool);
        assert_eq!((again.len(), pool.populated()), (128, 128 << 20));
        let mut numbers: Vec<_> = pool.segments().map(|(number, _)| number).collect();
        numbers.sort();
        assert_eq!(numbers, [2, 3], "subscribers were told that the old ones are gone");

        again.into_iter().for_each(|slot| pool.free(slot));
        pool.retire_empty(2);
        pool.settle_retired(|_, _, _| Fate::WrittenOff);
        assert!(!pool.unmapping_may_help(100 << 20));
        let more = pool.allocate(100 << 20).ok().unwrap().0.bytes;
        assert!(more >= 100 << 20, "nobody is waited for");
        assert_eq!(pool.populated(), (128 << 20) + more, "it counts all the same");
        pool.settle_retired(|_, _, _| Fate::Unmapped);
        assert_eq!(pool.populated(), more);
    }

    #[test]
    fn what_is_not_used_goes_and_one_segment_stays() {
        let mut pool = Pool::new(1 << 30);
        let slots = [40 << 20, 40 << 20, 40 << 20, 200 << 20].map(|bytes| pool.allocate(bytes).ok().unwrap().0.slot);
        assert!(pool.is_large());
        pool.free(slots[1]);
        assert!(pool.retire_unused(1).is_empty(), "it was in use a moment ago");
        assert_eq!(pool.retire_unused(1).len(), 1);
        slots[2..].iter().for_each(|slot| pool.free(*slot));
        assert!(pool.retire_unused(2).is_empty());
        let again = pool.allocate(40 << 20).ok().unwrap().0.slot;
        pool.free(again);
        pool.free(slots[0]);
        assert_eq!(pool.retire_unused(2).len(), 1, "the huge one; the others were used meanwhile");
        assert_eq!(pool.retire_unused(3).len(), 1);
        assert!(pool.retire_unused(3).is_empty() && !pool.is_large(), "the last one is warm");
    }
}
