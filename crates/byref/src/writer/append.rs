//! Attempts to append a record to a line.

use crate::attributes::{Beside, Encoded};
use crate::memory::pool::Chunk;
use crate::protocol::ring::{Descriptor, INLINE_LIMIT, NEVER};
use crate::writer::attempt::{Attempt, LEASE_POLL};
use crate::writer::line::Line;
use crate::writer::release::Tracked;
use crate::writer::store::Store;
use std::sync::Arc;
use std::time::Duration;

/// A chunk with one or more messages in it.
pub(crate) struct Filled<'a> {
    pub chunk: &'a Chunk,
    /// Messages of equal length.
    pub count: u32,
    /// Payload bytes of all of them, and how many of these the library copied to here.
    pub len: usize,
    pub copied: usize,
    /// Lie behind the payload, too.
    pub attributes: &'a Encoded,
    /// Somebody wants to know of its release.
    pub tracked: Option<&'a Arc<Tracked>>,
    /// The endpoint's own word; 0: none.
    pub tag: u64,
}

/// Whether payload and what is beside it go into the record itself.
#[inline]
pub(crate) fn fits_inline(payload: usize, beside: Beside<'_>) -> bool {
    fits(payload, beside.attributes, if beside.tag == 0 { INLINE_LIMIT } else { INLINE_LIMIT - 8 })
}

/// Whether payload, attributes and a tag do.
#[inline]
pub(crate) fn fits_inline_tagged(payload: usize, attributes: &Encoded) -> bool {
    fits(payload, attributes, INLINE_LIMIT - 8)
}

#[inline]
fn fits(payload: usize, attributes: &Encoded, room: usize) -> bool {
    payload <= room
        && payload.next_multiple_of(8) + attributes.len().next_multiple_of(8) <= room
        && !attributes.is_pooled()
}

/// Appends a record with payload and attributes that fit into it; gives its number.
#[inline]
pub(crate) fn inline(line: &mut Line, payload: &[u8], beside: Beside<'_>) -> Attempt<u64> {
    inline_tagged(line, payload, beside.attributes, beside.tag, beside.timestamp_ns)
}

/// The same, of what is beside it one by one.
#[inline]
pub(crate) fn inline_tagged(
    line: &mut Line,
    payload: &[u8],
    attributes: &[u8],
    tag: u64,
    timestamp_ns: Option<u64>,
) -> Attempt<u64> {
    if let Some((at, poll)) = line.must_wait() {
        return Attempt::Wait { at, poll };
    }
    line.copied_bytes += payload.len() as u64;
    Attempt::Done(line.append(timestamp_ns, payload.len(), 1, |ring, place| {
        ring.append_inline(place, payload, attributes, tag);
    }))
}

/// Appends a record that names a filled chunk; gives the number of its first message.
pub(crate) fn pooled(
    store: &mut Store,
    line: &mut Line,
    filled: &Filled<'_>,
    timestamp_ns: Option<u64>,
) -> Attempt<u64> {
    let appended = describe(store, line, descriptor(filled), filled.count, filled.tracked, timestamp_ns);
    if let Attempt::Done(_) = appended {
        line.copied_bytes += filled.copied as u64;
    }
    appended
}

/// Where a filled chunk lies.
pub(crate) fn descriptor(filled: &Filled<'_>) -> Descriptor {
    let &Filled { chunk, len, attributes, tracked, tag, .. } = filled;
    Descriptor {
        segment: chunk.segment,
        slot: chunk.slot,
        offset: chunk.offset,
        len: len as u64,
        attributes_len: attributes.len() as u32,
        refers: attributes.refers(),
        tracked: tracked.is_some(),
        tag,
    }
}

/// Appends a record that names a chunk, or a part of one, which was sent before and is kept from being freed.
pub(crate) fn again(store: &mut Store, line: &mut Line, at: Descriptor, timestamp_ns: Option<u64>) -> Attempt<u64> {
    describe(store, line, at, 1, None, timestamp_ns)
}

fn describe(
    store: &mut Store,
    line: &mut Line,
    at: Descriptor,
    count: u32,
    tracked: Option<&Arc<Tracked>>,
    timestamp_ns: Option<u64>,
) -> Attempt<u64> {
    if let Some((at, poll)) = must_wait_for_pooled(line) {
        return Attempt::Wait { at, poll };
    }
    Attempt::Done(store.append(line, at, count, timestamp_ns, tracked))
}

/// What a record that names a chunk has to wait for.
fn must_wait_for_pooled(line: &mut Line) -> Option<(u64, Option<Duration>)> {
    line.must_wait().or_else(|| (!line.announced_to_lossless()).then_some((NEVER, Some(LEASE_POLL))))
}

/// Appends a job's record, with payload and attributes that fit into it beside the tag; `false`: there is no room now.
pub(crate) fn job_inline(line: &mut Line, payload: &[u8], attributes: &[u8], tag: u64, timestamp_ns: u64) -> bool {
    let has_room = line.must_wait().is_none();
    if has_room {
        line.append(Some(timestamp_ns), payload.len(), 1, |ring, place| {
            ring.append_inline(place, payload, attributes, tag);
        });
    }
    has_room
}

/// The same for a job that names a chunk, which is kept from being freed.
pub(crate) fn job_pooled(store: &mut Store, line: &mut Line, at: Descriptor, timestamp_ns: u64) -> bool {
    let has_room = must_wait_for_pooled(line).is_none();
    if has_room {
        store.append(line, at, 1, Some(timestamp_ns), None);
    }
    has_room
}
