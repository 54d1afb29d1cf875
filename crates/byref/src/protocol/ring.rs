//! The broadcast ring: one publisher appends records, any number of readers follow with cursors of their own.
//!
//! # Layout (64-bit words in the publisher's ring segment; every word is written by the publisher alone)
//!
//! | word | content |
//! | --- | --- |
//! | 0 to 15 | one bit for each of 1,024 *flags* of the endpoint's own (see [`rpc`](crate::rpc)) |
//! | 16 | `tail`: the position after the newest record |
//! | 17 | `next_sequence`: the number of the message after the newest one |
//! | 18 to 31, 49 and 50 | a second bit for each of them |
//! | 32 | `reclaim`: positions below it may be overwritten, and their chunks reused |
//! | 33 | `wake_at`: a reader whose cursor reaches it rings the publisher ([`NEVER`]: nobody waits) |
//! | 34 | `generation`: changes when a reader should look at its socket although it never sleeps |
//! | 35 | `closed`: 1 when the publisher was closed in good order |
//! | 36 | `skip_at`: a reader that skips records and comes to it rings the publisher ([`NEVER`]: nobody waits) |
//! | 37 | `answer_at`: a puller whose number of [answers](crate::protocol::answers) reaches it rings the pusher ([`NEVER`]: nobody waits) |
//! | 38 | `revoked`: 1 when what the only reader has not taken is given to others: see invariant 6 of the [lease](crate::protocol::lease) |
//! | 39 + r | the first position of [region](crate::protocol::regions) `r`, from 1 on; 0 while there is no such region |
//! | 48 | the wake word, in its first four bytes (see [`wake`](crate::protocol::wake)) |
//! | 64 + 32 k | record `k`: `stamp`, `timestamp`, `meta`, `sequence`, then 28 words of data |
//!
//! The record of position `p` lies at number `p % capacity` of a region; its `stamp` becomes `p + 1` when it is complete. `meta`
//! holds the length of an inline payload (bits 0..16) and of the attributes behind it (bits 16..32), or bit 63 and the number of
//! messages (bits 0..32), with a [`Descriptor`] in the data words; bit 63 of its last word says that the publisher wants to know
//! of its release (see [`release`](crate::writer::release)). Bit 62 of `meta`: it is no record, but says that this one
//! lies in the next region. Bit 61: the record has a *tag*, a word of the endpoint's own: behind the attributes of an inline record,
//! behind the descriptor of another. Most records are one message; a *block* is several of equal length, which lie packed in one chunk.
//! Positions count records, sequences count messages.
//!
//! # Invariants
//!
//! 1. Record `p` is written only when `p - capacity < reclaim`: the mark moves first, the words change later. (The capacity is
//!    that of its region; in a new region there is nothing yet.)
//! 2. *Append, read.* The publisher stores the words relaxed, then `stamp` with release. A reader that loads `p + 1` with
//!    acquire sees all words of record `p`, or later ones.
//! 3. *Lap.* A reader that read a word of a later lap knows it: the publisher stored `reclaim > p`, made a release fence,
//!    and stored the word; the reader loaded the word, makes an acquire fence and loads `reclaim`. The fences synchronise
//!    (C++20 [atomics.fences]/2), so it sees `reclaim > p`. Hence a copy is good when the mark, looked at *after* the copy,
//!    is at most `p`. This is the reader's half of a sequence lock (Boehm, "Can seqlocks get along with programming
//!    language memory models?", MSPC 2012), with one mark for the whole ring instead of a counter per record.
//! 4. *Counting.* The publisher stores `tail`, then `next_sequence` with release. A reader that loads `next_sequence` with
//!    acquire, and then a `tail` equal to its cursor, is not behind by any message below that number; so it never counts
//!    one as lost that is still to come.
//!
//! Models: `append_read_lap`, `lapped_reader_knows`, `sequences_follow_positions` in `models.rs`. The mark's second duty,
//! memory reuse, is explained in [`lease`](crate::protocol::lease), the wake-ups in [`wake`](crate::protocol::wake).

use crate::sync::{AtomicU64, Ordering, fence};

/// Words of one record: four cache lines.
pub(crate) const RECORD_WORDS: usize = 32;
const LINE_WORDS: usize = 8;
const DATA: usize = 4;
pub(crate) const DATA_WORDS: usize = RECORD_WORDS - DATA;
/// The most bytes of payload and attributes together that travel inside a record.
pub const INLINE_LIMIT: usize = DATA_WORDS * 8;
/// How many records ahead a publisher prepares, and how many cache lines of each.
pub(crate) const PREPARED_AHEAD: u64 = 8;
const PREPARED_LINES: usize = 2;
/// `wake_at` while nobody waits.
pub(crate) const NEVER: u64 = u64::MAX;

const TAIL: usize = 16;
const NEXT_SEQUENCE: usize = 17;
const RECLAIM: usize = 32;
const WAKE_AT: usize = 33;
const GENERATION: usize = 34;
const CLOSED: usize = 35;
const SKIP_AT: usize = 36;
const ANSWER_AT: usize = 37;
const REVOKED: usize = 38;
/// The table of the regions' first positions, in a line of its own: there is none of the first region.
pub(crate) const FIRST_POSITIONS: usize = 39;
/// The most regions of a ring.
pub(crate) const MOST_REGIONS: usize = 9;
pub(crate) const RECORDS: usize = 64;
const POOLED: u64 = 1 << 63;
/// The record of this position lies in the next region.
const GROWN: u64 = 1 << 62;
/// It has a tag.
const TAGGED: u64 = 1 << 61;
/// Where the tag of a pooled record lies among its data.
const POOLED_TAG: usize = 4;
/// Flags of a ring.
pub(crate) const FLAGS: usize = 1024;
/// Bytes from the ring's start up to the end of all flags.
pub(crate) const FLAGS_LEN: u64 = 51 * 8;

/// The word of a flag's second bit.
pub(crate) fn second_flag_word(flag: usize) -> usize {
    match flag / 64 {
        word @ ..14 => 18 + word,
        word => 35 + word,
    }
}

/// Beside the length of the attributes in a descriptor.
const TRACKED: u64 = 1 << 63;
const REFERS: u64 = 1 << 62;

/// A copy of an inline record's data. It belongs to one thread; it is atomic so that it is copied on word by word: a wide
/// load of words that were stored one by one waits until they have left the store buffer.
pub(crate) struct InlineData([std::sync::atomic::AtomicU64; DATA_WORDS]);

impl InlineData {
    pub const fn new() -> Self {
        InlineData([const { std::sync::atomic::AtomicU64::new(0) }; DATA_WORDS])
    }

    /// The words from the first on.
    #[inline]
    pub fn words(&self) -> impl ExactSizeIterator<Item = u64> {
        self.0.iter().map(|word| word.load(std::sync::atomic::Ordering::Relaxed))
    }
}

/// Where in the publisher's pool a payload lies. The attributes follow the payload at the next multiple of 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub segment: u32,
    pub slot: u32,
    pub offset: u64,
    pub len: u64,
    pub attributes_len: u32,
    /// The message refers to the publisher's glossary.
    pub refers: bool,
    /// Whoever drops its last hold rings the publisher.
    pub tracked: bool,
    /// The endpoint's own word; 0: none.
    pub tag: u64,
}

/// Where a record is to be appended, and when it is sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub position: u64,
    /// Of its first message.
    pub sequence: u64,
    pub timestamp_ns: u64,
}

/// What a record says besides its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub timestamp_ns: u64,
    /// Of its first message.
    pub sequence: u64,
    meta: u64,
}

impl Head {
    /// How many messages it is; of a record that a peer wrote, perhaps none.
    #[inline]
    pub fn count(self) -> u64 {
        if self.meta & POOLED == 0 { 1 } else { self.meta & 0xffff_ffff }
    }

    pub fn payload_len(self) -> usize {
        (self.meta & 0xffff) as usize
    }

    pub fn attributes_len(self) -> usize {
        ((self.meta >> 16) & 0xffff) as usize
    }

    /// Words of data that an inline record uses.
    #[inline]
    pub fn data_words(self) -> usize {
        self.content_words() + (self.meta & TAGGED != 0) as usize
    }

    /// Those of its payload and attributes.
    #[inline]
    fn content_words(self) -> usize {
        self.payload_len().div_ceil(8) + self.attributes_len().div_ceil(8)
    }

    /// The tag of the inline record that was copied into `data`; 0: it has none.
    #[inline]
    pub fn tag(self, data: &InlineData) -> u64 {
        let word = || data.0[self.content_words()].load(std::sync::atomic::Ordering::Relaxed);
        if self.meta & TAGGED == 0 { 0 } else { word() }
    }
}

/// What a reader finds at its cursor.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// Nothing yet.
    Empty,
    /// The record is gone: the publisher reclaimed it.
    Lapped,
    /// A complete inline copy is in the caller's buffer.
    Inline(Head),
    /// No publisher of this library writes such a record.
    Invalid,
    /// It lies in the next region.
    Grown,
    /// A descriptor, to be trusted only after a hold ([`Lease::hold`](crate::protocol::lease::Lease::hold)) succeeded.
    Pooled(Head, Descriptor),
}

/// The ring over borrowed cells (mapped memory, or loom's), as it is seen from one of its regions.
#[derive(Clone, Copy)]
pub(crate) struct Ring<'a> {
    words: &'a [AtomicU64],
    /// The region's first word, and a mask for its records.
    start: usize,
    mask: u64,
}

impl<'a> Ring<'a> {
    /// See [`Regions::ring`](crate::protocol::regions::Regions::ring).
    #[inline]
    pub fn new(words: &'a [AtomicU64], start: usize, mask: u64) -> Self {
        Ring { words, start, mask }
    }

    #[inline]
    fn record(self, position: u64) -> &'a [AtomicU64; RECORD_WORDS] {
        let start = self.start + (position & self.mask) as usize * RECORD_WORDS;
        self.words[start..start + RECORD_WORDS].try_into().expect("the slice has that length")
    }

    /// The number of the record of `position` among those of all regions.
    #[cfg(all(test, loom))]
    pub fn number_of(self, position: u64) -> usize {
        (self.start - RECORDS) / RECORD_WORDS + (position & self.mask) as usize
    }

    // ---- the publisher's side ----

    /// Appends an inline record. Needs `position - capacity < reclaim` (invariant 1) and a payload, attributes and a tag (0: none) that
    /// fit.
    #[inline]
    pub fn append_inline(self, place: Place, payload: &[u8], attributes: &[u8], tag: u64) {
        let data = &self.record(place.position)[DATA..];
        // The first cache line last, and at one go: a reader may be waiting for it, and takes it from under the pen.
        let (first, rest) = payload.split_at(payload.len().min((LINE_WORDS - DATA) * 8));
        let used = first.len().div_ceil(8);
        let used = used + write_bytes(&data[used..], rest);
        let used = used + write_bytes(&data[used..], attributes);
        let mut meta = payload.len() as u64 | (attributes.len() as u64) << 16;
        if tag != 0 {
            data[used].store(tag, Ordering::Relaxed);
            meta |= TAGGED;
        }
        write_bytes(data, first);
        fault!("publish.inline_words");
        self.complete(place, meta);
    }

    /// Appends a record of `count` messages whose payloads lie in the pool. Needs invariant 1.
    #[inline]
    pub fn append_pooled(self, place: Place, at: Descriptor, count: u32) {
        let data = &self.record(place.position)[DATA..];
        data[0].store(at.segment as u64 | (at.slot as u64) << 32, Ordering::Relaxed);
        data[1].store(at.offset, Ordering::Relaxed);
        data[2].store(at.len, Ordering::Relaxed);
        let flag = |set, flag| if set { flag } else { 0 };
        let flags = flag(at.tracked, TRACKED) | flag(at.refers, REFERS);
        data[3].store(at.attributes_len as u64 | flags, Ordering::Relaxed);
        if at.tag != 0 {
            data[POOLED_TAG].store(at.tag, Ordering::Relaxed);
        }
        fault!("publish.pooled_words");
        self.complete(place, POOLED | flag(at.tag != 0, TAGGED) | count as u64);
    }

    #[inline]
    fn complete(self, place: Place, meta: u64) {
        let Place { position, sequence, timestamp_ns } = place;
        let head = Head { timestamp_ns, sequence, meta };
        let record = self.record(position);
        record[1].store(head.timestamp_ns, Ordering::Relaxed);
        record[2].store(head.meta, Ordering::Relaxed);
        record[3].store(head.sequence, Ordering::Relaxed);
        fault!("publish.before_stamp");
        // Pairs with the acquire in `look`: whoever sees the stamp sees the words above, and the pool bytes they name.
        record[0].store(position + 1, Ordering::Release);
        fault!("publish.after_stamp");
        self.words[TAIL].store(position + 1, Ordering::Release);
        fault!("publish.after_tail");
        // After the tail (invariant 4).
        self.words[NEXT_SEQUENCE].store(head.sequence + head.count(), Ordering::Release);
    }

    /// Says that the record of `position` lies in the next region. Needs invariant 1.
    pub fn append_marker(self, position: u64) {
        let record = self.record(position);
        record[2].store(GROWN, Ordering::Relaxed);
        fault!("grow.before_stamp");
        // Pairs with the acquire in `look`: whoever sees the stamp sees the word above, and the region's first position.
        record[0].store(position + 1, Ordering::Release);
    }

    /// Says where a region begins.
    pub fn set_first_position(self, region: usize, position: u64) {
        self.words[FIRST_POSITIONS + region].store(position, Ordering::Relaxed);
        // For whoever learns of a later position by the mark, which is stored relaxed (invariant 3 of the regions).
        fence(Ordering::Release);
    }

    /// Asks for the lines of a record that will be written soon: readers have them from the lap before, and a publisher
    /// whose lock drains the store buffer would wait for them one by one.
    #[inline]
    pub fn prepare(self, position: u64) {
        for line in self.record(position).chunks(8).take(PREPARED_LINES) {
            crate::sys::prefetch::for_writing(&line[0]);
        }
    }

    /// Declares all positions below `mark` reclaimable. Afterwards their records may be overwritten, and a chunk of theirs
    /// that no lease holds may be reused.
    pub fn set_reclaim(self, mark: u64) {
        self.words[RECLAIM].store(mark, Ordering::Relaxed);
        fault!("reclaim.marked");
        // For `look`, the release fence of invariant 3; for `Lease::hold`, the store-load fence of its invariant 2.
        fence(Ordering::SeqCst);
    }

    /// What was not taken will be given to others. A heavy fence follows, and then a look at the reader's cursor (invariant 6 of the
    /// lease).
    pub fn revoke(self) {
        self.words[REVOKED].store(1, Ordering::Relaxed);
        fault!("part.revoked");
    }

    pub fn set_wake_at(self, position: u64) {
        self.words[WAKE_AT].store(position, Ordering::Relaxed);
    }

    pub fn set_skip_at(self, position: u64) {
        self.words[SKIP_AT].store(position, Ordering::Relaxed);
    }

    pub fn set_answer_at(self, count: u64) {
        self.words[ANSWER_AT].store(count, Ordering::Relaxed);
    }

    pub fn set_generation(self, generation: u64) {
        self.words[GENERATION].store(generation, Ordering::Release);
    }

    /// Sets or clears a flag. Only the endpoint that owns the ring does, under its lock.
    pub fn set_flag(self, flag: usize, is_set: bool) {
        let (word, bit) = (&self.words[flag / 64], 1 << (flag % 64));
        let before = word.load(Ordering::Relaxed);
        let after = if is_set { before | bit } else { before & !bit };
        if after != before {
            word.store(after, Ordering::Release);
        }
    }

    /// Sets or clears the second bit of a flag, as above.
    pub fn set_second_flag(self, flag: usize, is_set: bool) {
        let (word, bit) = (&self.words[second_flag_word(flag)], 1 << (flag % 64));
        let before = word.load(Ordering::Relaxed);
        let after = if is_set { before | bit } else { before & !bit };
        if after != before {
            word.store(after, Ordering::Release);
        }
    }

    pub fn set_closed(self) {
        self.words[CLOSED].store(1, Ordering::Release);
    }

    /// The number of the first message of a record that is there.
    pub fn sequence(self, position: u64) -> u64 {
        head(self.record(position)).sequence
    }

    // ---- the readers' side ----

    /// Asks for the lines of a record that will be read soon. It is to be complete: of one that is being written, the first line
    /// would be taken from under the pen.
    #[inline]
    pub fn expect(self, position: u64) {
        for line in self.record(position).chunks(8).take(PREPARED_LINES) {
            crate::sys::prefetch::for_reading(&line[0]);
        }
    }

    /// Copies the record of `position` into `data` if it is there, whole, and inline; if not, [`look`](Self::look) tells more.
    #[inline(always)]
    pub fn look_inline(self, position: u64, data: &InlineData) -> Option<Head> {
        let record = self.record(position);
        if stamp(record) != position + 1 {
            // A publisher writes this line first and the stamp's last: asked for now, this one comes with that one.
            crate::sys::prefetch::for_reading(&record[LINE_WORDS]);
            return None;
        }
        let head = head(record);
        let used = head.data_words();
        if head.meta & (POOLED | GROWN) != 0 || used > DATA_WORDS {
            return None;
        }
        for (to, from) in data.0.iter().zip(&record[DATA..]).take(used) {
            to.store(from.load(Ordering::Relaxed), std::sync::atomic::Ordering::Relaxed);
        }
        (!self.was_reclaimed(position)).then_some(head)
    }

    /// Looks at the record of `position`, and copies it into `data` when it is an inline one.
    #[inline]
    pub fn look(self, position: u64, data: &InlineData) -> Look {
        let record = self.record(position);
        let stamp = stamp(record);
        if stamp != position + 1 {
            return if stamp > position + 1 { Look::Lapped } else { Look::Empty };
        }
        let head = head(record);
        let from = &record[DATA..];
        if head.meta & POOLED != 0 {
            let [ids, last] = [0, 3].map(|word| from[word].load(Ordering::Relaxed));
            let at = Descriptor {
                segment: ids as u32,
                slot: (ids >> 32) as u32,
                offset: from[1].load(Ordering::Relaxed),
                len: from[2].load(Ordering::Relaxed),
                attributes_len: last as u32,
                refers: last & REFERS != 0,
                tracked: last & TRACKED != 0,
                tag: if head.meta & TAGGED != 0 { from[POOLED_TAG].load(Ordering::Relaxed) } else { 0 },
            };
            return Look::Pooled(head, at);
        }
        match self.look_inline(position, data) {
            Some(head) => Look::Inline(head),
            None if self.was_reclaimed(position) => Look::Lapped,
            None if head.meta & GROWN != 0 => Look::Grown,
            None => Look::Invalid,
        }
    }

    /// Whether all messages of `position` are older than that number. A record that was reclaimed counts as older.
    pub fn is_older(self, position: u64, sequence: u64) -> bool {
        let record = self.record(position);
        let stamp = stamp(record);
        let head = head(record);
        stamp != position + 1 || self.was_reclaimed(position) || head.sequence.saturating_add(head.count()) <= sequence
    }

    /// Where a region begins; 0 while there is none.
    pub fn first_position(self, region: usize) -> u64 {
        self.words[FIRST_POSITIONS + region].load(Ordering::Relaxed)
    }

    /// When the record of `position` was sent; `None` when it is not there.
    pub fn timestamp(self, position: u64) -> Option<u64> {
        let [stamp, timestamp_ns] = [0, 1].map(|word| self.record(position)[word].load(Ordering::Acquire));
        if stamp != position + 1 {
            return None;
        }
        (!self.was_reclaimed(position)).then_some(timestamp_ns)
    }

    /// Whether the words read of `position` so far may be of a later lap.
    #[inline]
    pub fn was_reclaimed(self, position: u64) -> bool {
        // Pairs with the fence in `set_reclaim` (invariant 3).
        fence(Ordering::Acquire);
        self.is_reclaimed(position)
    }

    /// Whether the publisher has given up `position`. Only what is fenced before it gives the answer a meaning.
    #[inline]
    pub fn is_reclaimed(self, position: u64) -> bool {
        self.words[RECLAIM].load(Ordering::Relaxed) > position
    }

    /// Whether what was not taken is given to others. A reader looks after it has shown its cursor, and a fence.
    #[inline]
    pub fn is_revoked(self) -> bool {
        self.words[REVOKED].load(Ordering::Relaxed) != 0
    }

    pub fn reclaim(self) -> u64 {
        self.words[RECLAIM].load(Ordering::Acquire)
    }

    #[inline]
    pub fn tail(self) -> u64 {
        self.words[TAIL].load(Ordering::Acquire)
    }

    /// To be loaded before the tail that it is compared with (invariant 4).
    #[inline]
    pub fn next_sequence(self) -> u64 {
        self.words[NEXT_SEQUENCE].load(Ordering::Acquire)
    }

    pub fn is_closed(self) -> bool {
        self.words[CLOSED].load(Ordering::Acquire) == 1
    }

    #[inline]
    pub fn wake_at(self) -> u64 {
        self.words[WAKE_AT].load(Ordering::Relaxed)
    }

    pub fn skip_at(self) -> u64 {
        self.words[SKIP_AT].load(Ordering::Relaxed)
    }

    #[inline]
    pub fn generation(self) -> u64 {
        self.words[GENERATION].load(Ordering::Acquire)
    }
}

/// The word `answer_at` among those of a ring.
pub(crate) fn answer_at(words: &[AtomicU64]) -> u64 {
    words[ANSWER_AT].load(Ordering::Relaxed)
}

#[inline]
fn stamp(record: &[AtomicU64; RECORD_WORDS]) -> u64 {
    record[0].load(Ordering::Acquire)
}

#[inline]
fn head(record: &[AtomicU64; RECORD_WORDS]) -> Head {
    let [_, timestamp, meta, sequence, ..] = record;
    Head {
        timestamp_ns: timestamp.load(Ordering::Relaxed),
        meta: meta.load(Ordering::Relaxed),
        sequence: sequence.load(Ordering::Relaxed),
    }
}

/// Stores bytes into words, the last one padded with zeros; gives the number of words used.
#[inline]
fn write_bytes(cells: &[AtomicU64], bytes: &[u8]) -> usize {
    let mut words = bytes.chunks_exact(8);
    let mut used = 0;
    for (cell, word) in cells.iter().zip(&mut words) {
        cell.store(u64::from_ne_bytes(word.try_into().expect("eight bytes")), Ordering::Relaxed);
        used += 1;
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        let mut last = [0u8; 8];
        last[..rest.len()].copy_from_slice(rest);
        cells[used].store(u64::from_ne_bytes(last), Ordering::Relaxed);
        used += 1;
    }
    used
}
