//! The payload memory of a writing endpoint: chunks, which of them are free again, and what the subscribers of all its lines are told
//! of segments.
//!
//! A store serves any number of lines, behind one lock with them. A chunk is sent on one line or on several; it is free when the marks
//! of all of them have passed its records, and no reader of theirs holds it.

use crate::error::{Error, Result};
use crate::link::handshake::ToSubscriber;
use crate::link::service::Handle;
use crate::link::tasks::Next;
use crate::memory::glossary::{Entry, GLOSSARY, Glossary};
use crate::memory::pool::{Chunk, Fate, NoChunk, Pool};
use crate::protocol::ring::{Descriptor, NEVER};
use crate::sync::wait::Wait;
use crate::sys::cgroup;
use crate::sys::memory::OwnedSegment;
use crate::writer::attempt::{Attempt, LEASE_POLL};
use crate::writer::errands::Errands;
use crate::writer::line::{Limits, Line};
use crate::writer::release::Tracked;
use crate::writer::sent::{Records, Sent};
use std::collections::{HashSet, VecDeque};
use std::io;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Chunks that leases hold are looked at again after so many bytes of new payload,
const COLLECT_EVERY: u64 = 256 << 10;
/// so many at a time.
const RECHECKS: usize = 64;
/// Segments without a message are looked for so often, and given back when they were not used between two looks.
const UNUSED: Duration = Duration::from_secs(5);
/// How long a subscriber that may lose messages can delay a send by keeping retired memory mapped. (Those of a process that runs
/// unmap it within some hundred milliseconds at most.)
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);
/// The first pause before a look whether retired memory was unmapped, and the longest; each is twice the one before.
const FIRST_SETTLING: Duration = Duration::from_millis(20);
const LAST_SETTLING: Duration = Duration::from_millis(250);
/// Memory is taken from the system in steps of this size, between which signals are noticed.
const POPULATE_STEP: u64 = 64 << 20;

/// What is there once, however many lines there are.
pub(crate) struct Store {
    pub pool: Pool<Records>,
    glossary: Option<Glossary>,
    max_memory: u64,
    pub limits: Limits,
    /// Chunks below the mark of a line that somebody holds, or that are pending on another one.
    pub held: VecDeque<u32>,
    /// Payload bytes since the last collection.
    uncollected: u64,
    /// And since holds were last compared with their limit.
    pub unchecked: u64,
    /// When a warning last said that held messages block a send.
    pub warned: Option<Instant>,
    /// The generation of the lines' rings with which memory was retired last.
    pub generation: u64,
    last_peer: u64,
    /// A task of the service thread gives unused segments back.
    shrinking: bool,
    /// And one looks whether what was retired is unmapped.
    settling: bool,
    errands: Weak<dyn Errands>,
    service: Arc<Handle>,
}

impl Store {
    pub fn new(max_memory: u64, limits: Limits, service: &Arc<Handle>, errands: Weak<dyn Errands>) -> Self {
        Store {
            pool: Pool::new(max_memory),
            glossary: None,
            max_memory,
            limits,
            held: VecDeque::new(),
            uncollected: 0,
            unchecked: 0,
            warned: None,
            generation: 0,
            last_peer: 0,
            shrinking: false,
            settling: false,
            errands,
            service: Arc::clone(service),
        }
    }

    /// A number for a subscriber, of whichever line.
    pub fn number_peer(&mut self) -> u64 {
        self.last_peer += 1;
        self.last_peer
    }

    pub fn explain(&mut self, lines: &mut [Line], bytes: &[u8]) -> io::Result<Option<Entry>> {
        if self.glossary.is_none() {
            let glossary = Glossary::new()?;
            let memory = Arc::clone(glossary.memory());
            self.glossary = Some(glossary);
            announce(lines, GLOSSARY, &memory);
        }
        self.glossary.as_mut().expect("made above").explain(bytes)
    }

    /// What a new subscriber has to be sent.
    pub fn segments(&self) -> impl Iterator<Item = (u32, &Arc<OwnedSegment>)> {
        let glossary = self.glossary.as_ref().map(|glossary| (GLOSSARY, glossary.memory()));
        self.pool.segments().chain(glossary)
    }

    // ---- chunks ----

    /// An attempt to take a chunk of `bytes`, for a payload of `payload` bytes. `theirs`, 0 at first, is kept from one attempt to the
    /// next; `line` is the one whose progress is waited for.
    #[inline]
    pub fn attempt(
        &mut self,
        lines: &mut [Line],
        line: u32,
        (bytes, payload): (u64, u64),
        theirs: &mut u64,
        topic: &str,
    ) -> Attempt<Chunk> {
        match self.allocate_or_tell(lines, bytes, theirs) {
            Ok(chunk) => Attempt::Done(chunk),
            Err(why) => self.refuse(lines, line, (bytes, payload), *theirs, topic, why),
        }
    }

    /// What follows from it that there is no chunk.
    #[cold]
    fn refuse(
        &mut self,
        lines: &mut [Line],
        line: u32,
        (bytes, payload): (u64, u64),
        theirs: u64,
        topic: &str,
        why: NoChunk,
    ) -> Attempt<Chunk> {
        if let NoChunk::System(error) = why {
            return Attempt::Fail(Error::system(topic, "cannot take more payload memory")(error));
        }
        if self.waiting_may_help(bytes, theirs) {
            if !self.reading_may_help(lines, bytes) {
                self.warn_of_blocked_send(lines);
            }
            let at = Line::find(lines, line).map_or(NEVER, Line::next_progress);
            return Attempt::Wait { at, poll: Some(LEASE_POLL) };
        }
        self.warn_of_blocked_send(lines);
        let obstacles = self.describe_obstacles(lines, true);
        let advice = "release messages (or discard loans), or raise max_memory";
        let reason = if obstacles.is_empty() { advice.to_owned() } else { format!("{obstacles}; {advice}") };
        Attempt::Fail(exhausted(topic, payload, self.max_memory, reason))
    }

    /// Takes a chunk. If there is none, `theirs` is what lossless subscribers could have given back before that was found: they
    /// take and release meanwhile, so that what is seen afterwards is no reason to give up.
    fn allocate_or_tell(&mut self, lines: &mut [Line], bytes: u64, theirs: &mut u64) -> Result<Chunk, NoChunk> {
        match self.allocate_within_limits(lines, bytes) {
            Err(NoChunk::Full) => {
                fault!("publish.pool_full");
                *theirs = self.theirs(lines);
                self.allocate_within_limits(lines, bytes)
            }
            outcome => outcome,
        }
    }

    fn allocate_within_limits(&mut self, lines: &mut [Line], bytes: u64) -> Result<Chunk, NoChunk> {
        let Some(most) = self.limits.held else { return self.allocate(lines, bytes) };
        self.limit_holds(lines, most, bytes, false);
        let outcome = self.allocate(lines, bytes);
        if let Err(NoChunk::Full) = outcome {
            self.limit_holds(lines, most, 0, true);
        }
        outcome
    }

    /// Takes a chunk; when there is none, because of `max_memory` or because the system refuses more, the cheaper remedies
    /// come first.
    fn allocate(&mut self, lines: &mut [Line], bytes: u64) -> Result<Chunk, NoChunk> {
        self.uncollected += bytes;
        if self.uncollected >= COLLECT_EVERY {
            self.uncollected = 0;
            self.collect(lines, RECHECKS);
        }
        if let Ok(chunk) = self.try_allocate(lines, bytes) {
            return Ok(chunk);
        }
        self.collect(lines, usize::MAX);
        if let Ok(chunk) = self.try_allocate(lines, bytes) {
            return Ok(chunk);
        }
        // What only lossy subscribers and late joiners could still want is given up, the oldest first, and no more of it
        // than the chunk needs.
        let lossless: Vec<_> = lines.iter().map(Line::lossless_mark).collect();
        while let Some(index) = self.oldest_below(lines, &lossless) {
            lines[index].give_up_oldest();
            self.free_reclaimed(lines);
            if let Ok(chunk) = self.try_allocate(lines, bytes) {
                return Ok(chunk);
            }
        }
        // Empty segments may have the wrong size.
        self.retire(lines, Pool::retire_empty);
        self.try_allocate(lines, bytes)
    }

    /// The line with the oldest chunk among those that are pending below these marks.
    fn oldest_below(&self, lines: &[Line], marks: &[u64]) -> Option<usize> {
        let oldest = |line: &Line, mark: u64| {
            let (position, slot) = line.oldest_pending().filter(|(position, _)| *position < mark)?;
            Some((self.pool.sent(slot).on(line.number).map(|sent| sent.at), position))
        };
        let candidates = lines.iter().zip(marks).enumerate();
        let candidates = candidates.filter_map(|(index, (line, mark))| Some((oldest(line, *mark)?, index)));
        candidates.min().map(|(_, index)| index)
    }

    pub fn try_allocate(&mut self, lines: &mut [Line], bytes: u64) -> Result<Chunk, NoChunk> {
        let (chunk, added) = self.pool.allocate(bytes)?;
        if added {
            fault!("grow.segment_made");
            announce(lines, chunk.segment, chunk.pin.segment());
        }
        if added || !chunk.unpopulated.is_empty() {
            self.shrink_later();
        }
        Ok(chunk)
    }

    /// Appends the record of a filled chunk to a line, which has room for it; gives the first message's number. The same chunk may
    /// go to other lines, too.
    #[inline]
    pub fn append(
        &mut self,
        line: &mut Line,
        at: Descriptor,
        count: u32,
        timestamp_ns: Option<u64>,
        tracked: Option<&Arc<Tracked>>,
    ) -> u64 {
        let (position, sequence, now) = (line.log.tail(), line.sent, line.clock.now());
        if let Some(tracked) = tracked {
            tracked.set_place(line.number, position, at.slot);
        }
        let tracked = tracked.cloned();
        let sent = Sent { line: line.number, position, sequence, count, len: at.len, at: now, tracked };
        self.pool.sent_mut(at.slot).add(sent);
        line.note_pending(at.slot);
        fault!("publish.pending");
        line.append(Some(timestamp_ns.unwrap_or(now)), at.len as usize, count, |ring, place| {
            ring.append_pooled(place, at, count);
        })
    }

    // ---- reclaiming ----

    /// Frees the chunks that nobody can want any more. Of those that were held before, it looks at `rechecks`, or at twice
    /// as many as it adds to them.
    pub fn collect(&mut self, lines: &mut [Line], rechecks: usize) {
        lines.iter_mut().for_each(Line::look_at_cursors);
        let known = self.held.len();
        self.free_reclaimed(lines);
        let added = self.held.len().saturating_sub(known);
        for _ in 0..rechecks.max(2 * added).min(known).min(self.held.len()) {
            let slot = self.held.pop_front().expect("the loop counts what is there");
            self.free_unless_held(lines, slot);
        }
        self.settle_retired(lines);
    }

    /// Frees what lies below the lines' marks.
    fn free_reclaimed(&mut self, lines: &mut [Line]) {
        for index in 0..lines.len() {
            while let Some(slot) = lines[index].next_reclaimed() {
                self.pass(lines, slot);
            }
        }
    }

    /// Frees all of a line that nobody reads any more.
    pub fn release_all(&mut self, lines: &mut [Line], index: usize) {
        lines[index].look_at_cursors();
        while let Some(slot) = lines[index].next_reclaimed() {
            self.pass(lines, slot);
        }
    }

    /// The mark of a line has passed a chunk.
    fn pass(&mut self, lines: &[Line], slot: u32) {
        let records = self.pool.sent_mut(slot);
        let is_first = records.pass();
        if records.is_pending() {
            // The readers of this line may hold it, so it is counted from now on.
            if is_first {
                self.held.push_back(slot);
            }
            return;
        }
        if !is_first {
            self.held.retain(|held| *held != slot);
        }
        self.free_unless_held(lines, slot);
    }

    /// Frees a chunk, or queues it among those that a lease, or an array made from its loan, still holds.
    pub fn free_unless_held(&mut self, lines: &[Line], slot: u32) {
        if self.pool.sent(slot).is_pending() || self.pool.is_pinned(slot) || self.is_held(slot, lines) {
            self.held.push_back(slot);
            return;
        }
        fault!("reclaim.unheld");
        self.pool.free(slot);
        fault!("reclaim.freed");
        self.pool.sent_mut(slot).release();
    }

    /// Whether a reader of a line on which it was sent holds a chunk.
    pub fn is_held(&self, slot: u32, lines: &[Line]) -> bool {
        let is_held_on = |line: &Line| line.peers.iter().any(|peer| peer.lease().is_held(slot));
        self.pool.sent(slot).iter().any(|sent| Line::find(lines, sent.line).is_some_and(is_held_on))
    }

    // ---- segments ----

    /// Has the service thread give back what a burst leaves unused.
    fn shrink_later(&mut self) {
        if self.pool.is_large() && !std::mem::replace(&mut self.shrinking, true) {
            let errands = self.errands.clone();
            self.service.after(UNUSED, move |_, _, _| match errands.upgrade() {
                Some(errands) if errands.shrink() => Next::After(UNUSED),
                _ => Next::Done,
            });
        }
    }

    /// Gives segments back that are not used any more; `true`: there may be more later.
    pub fn shrink(&mut self, lines: &mut [Line]) -> bool {
        self.collect(lines, usize::MAX);
        self.retire(lines, Pool::retire_unused);
        self.shrinking = self.pool.is_large();
        self.shrinking
    }

    pub fn retire(&mut self, lines: &mut [Line], which: impl FnOnce(&mut Pool<Records>, u64) -> Vec<u32>) {
        // Lines call their readers by themselves, too.
        let generation = lines.iter().map(|line| line.generation).fold(self.generation, u64::max) + 1;
        let retired = which(&mut self.pool, generation);
        if retired.is_empty() {
            return;
        }
        fault!("retire.dropped");
        self.generation = generation;
        for id in retired {
            let is_unsent =
                |packet: &ToSubscriber| matches!(packet, ToSubscriber::Segment { id: unsent } if *unsent == id);
            for peer in lines.iter_mut().flat_map(|line| &mut line.peers) {
                let waiting = peer.outbox.len();
                peer.outbox.retain(|(packet, _)| !is_unsent(packet));
                // Who has not heard of the segment need not. So the outbox of one that never reads does not grow for ever.
                if peer.outbox.len() < waiting {
                    self.pool.note_unsent(id, peer.id);
                } else if peer.is_connected() {
                    peer.outbox.push_back((ToSubscriber::Retire { id }, None));
                }
            }
        }
        for line in lines.iter_mut() {
            line.flush_all(generation);
            line.set_generation(generation);
        }
        self.settle_retired(lines);
        if self.pool.has_retired() && !std::mem::replace(&mut self.settling, true) {
            let errands = self.errands.clone();
            let mut pause = FIRST_SETTLING;
            self.service.after(pause, move |_, _, _| {
                pause = (pause * 2).min(LAST_SETTLING);
                match errands.upgrade() {
                    Some(errands) if errands.settle_retired() => Next::After(pause),
                    _ => Next::Done,
                }
            });
        }
    }

    /// Gives retired memory back that nobody has mapped any more; `true`: some of it is still mapped.
    pub fn settle_late(&mut self, lines: &mut [Line]) -> bool {
        self.settle_retired(lines);
        self.settling = self.pool.has_retired();
        self.settling
    }

    /// Gives retired memory back that no subscriber has mapped any more. Until then it counts, whoever keeps it. But those who
    /// may lose messages, or lost their claim, delay a send only so long: what they keep counts no more then against what this
    /// store may take, and they get no more of it before they have given that back.
    fn settle_retired(&mut self, lines: &mut [Line]) {
        self.pool.settle_retired(|generation, since, unsent| {
            let is_due = since.elapsed() >= PATIENCE;
            let mut fate = Fate::Unmapped;
            let peers = lines.iter_mut().flat_map(|line| &mut line.peers);
            for peer in peers.filter(|peer| peer.keeps(generation) && !unsent.contains(&peer.id)) {
                if peer.may_delay() || !is_due {
                    return Fate::Kept;
                }
                peer.written_off = true;
                fate = Fate::WrittenOff;
            }
            fate
        });
    }

    // ---- what waiting can bring ----

    /// Bytes that lossless subscribers have yet to take or to release.
    pub fn theirs(&self, lines: &[Line]) -> u64 {
        let is_held = |slot: u32| {
            let lines = self.pool.sent(slot).iter().filter_map(|sent| Line::find(lines, sent.line));
            lines.flat_map(Line::lossless).any(|peer| peer.lease().is_held(slot))
        };
        let held = self.held.iter().copied().filter(|slot| is_held(*slot));
        let slots = lines.iter().flat_map(Line::unread).chain(held);
        once_each(lines, slots).map(|slot| self.pool.bytes(slot)).sum()
    }

    /// Bytes in chunks that some lossless subscriber has yet to take.
    pub fn unread(&self, lines: &[Line]) -> u64 {
        once_each(lines, lines.iter().flat_map(Line::unread)).map(|slot| self.pool.bytes(slot)).sum()
    }

    /// Whether waiting can make room: what lossless subscribers had yet to take or to release is enough, or what subscribers
    /// have yet to unmap.
    fn waiting_may_help(&self, bytes: u64, theirs: u64) -> bool {
        let is_enough = self.pool.used().saturating_sub(theirs) + bytes <= self.max_memory;
        is_enough && (theirs > 0 || self.pool.unmapping_may_help(bytes))
    }

    /// Whether room can come without a release, by lossless subscribers that take what they have yet to take. (Each of them holds
    /// the message that it works on: that is no reason for a warning.)
    fn reading_may_help(&self, lines: &[Line], bytes: u64) -> bool {
        self.pool.used().saturating_sub(self.unread(lines)) + bytes <= self.max_memory
    }

    /// The endpoint is closing: nobody will know any more when what is pending now is released.
    pub fn end_tickets(&self, lines: &[Line]) {
        for line in lines {
            for tracked in self.sent_on(line).filter_map(|(_, sent)| sent.tracked.as_ref()) {
                line.end_ticket(tracked);
            }
        }
    }
}

/// No chunk of that many bytes can be had, for a payload of `requested` bytes.
fn exhausted(topic: &str, requested: u64, max_memory: u64, reason: String) -> Error {
    Error::PoolExhausted { topic: topic.to_owned(), requested, max_memory, reason }
}

/// 1 GiB, but no more than half of what this process's control group may use: beyond its limit the kernel kills.
fn default_max_memory() -> u64 {
    let share = cgroup::memory_limit().map_or(u64::MAX, |limit| limit / 2);
    share.clamp(1 << 20, 1 << 30)
}

/// A `max_memory` setting, or its default.
pub(crate) fn check_max_memory(given: Option<u64>) -> Result<u64> {
    let max_memory = given.unwrap_or_else(default_max_memory);
    if max_memory == 0 {
        return Err(Error::InvalidArgument("max_memory must be at least 1 byte".into()));
    }
    if max_memory > 1 << 37 {
        return Err(Error::InvalidArgument("max_memory can be at most 128 GiB".into()));
    }
    Ok(max_memory)
}

/// The error if a chunk of `bytes`, for a payload of `payload` bytes, could not be had from an empty store.
pub(crate) fn check_size(topic: &str, bytes: u64, payload: u64, max_memory: u64) -> Result<()> {
    if bytes <= max_memory.next_multiple_of(8) {
        return Ok(());
    }
    let reason = "the payload is larger than the whole pool; create the publisher with a larger max_memory";
    Err(exhausted(topic, payload, max_memory, reason.into()))
}

/// Gives a new chunk's pages memory, in steps, without a lock. An error comes with the slot, which is to be given back.
pub(crate) fn populate(chunk: Chunk, topic: &str, wait: &mut Wait<'_>) -> Result<Chunk, (Error, u32)> {
    let mut from = chunk.unpopulated.start;
    while from < chunk.unpopulated.end {
        let to = chunk.unpopulated.end.min(from + POPULATE_STEP);
        let populated = chunk.pin.segment().populate(from..to);
        fault!("grow.populated");
        from = to;
        let failed = match populated {
            Err(error) => Error::system(topic, "cannot take more payload memory")(error),
            Ok(()) if from < chunk.unpopulated.end && wait.is_interrupted() => {
                Error::Interrupted { topic: topic.to_owned() }
            }
            Ok(()) => continue,
        };
        return Err((failed, chunk.slot));
    }
    Ok(chunk)
}

/// Tells all subscribers that can still want it of a new segment.
fn announce(lines: &mut [Line], id: u32, segment: &Arc<OwnedSegment>) {
    lines.iter_mut().for_each(|line| line.announce(id, segment));
}

/// Each slot once: a chunk that was sent on several lines has a record on each.
pub(crate) fn once_each(lines: &[Line], slots: impl Iterator<Item = u32>) -> impl Iterator<Item = u32> {
    let mut known = HashSet::new();
    let is_unique = lines.len() == 1;
    slots.filter(move |slot| is_unique || known.insert(*slot))
}
