//! Attempts to append a record to a line.

use crate::attributes::Encoded;
use crate::memory::pool::Chunk;
use crate::protocol::ring::{Descriptor, INLINE_LIMIT, NEVER, Tag};
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
}

/// Whether payload and attributes go into the record itself.
pub(crate) fn fits_inline(payload: usize, attributes: &Encoded) -> bool {
    payload <= INLINE_LIMIT
        && payload.next_multiple_of(8) + attributes.len().next_multiple_of(8) <= INLINE_LIMIT
        && !attributes.is_pooled()
}

/// Appends a record with payload and attributes that fit into it; gives its number.
#[inline]
pub(crate) fn inline(line: &mut Line, payload: &[u8], attributes: &[u8], timestamp_ns: Option<u64>) -> Attempt<u64> {
    if let Some((at, poll)) = line.must_wait() {
        return Attempt::Wait { at, poll };
    }
    line.copied_bytes += payload.len() as u64;
    Attempt::Done(line.append(timestamp_ns, payload.len(), 1, |ring, place| {
        ring.append_inline(place, payload, attributes);
    }))
}

/// Appends a record that names a filled chunk; gives the number of its first message.
pub(crate) fn pooled(
    store: &mut Store,
    line: &mut Line,
    filled: &Filled<'_>,
    timestamp_ns: Option<u64>,
) -> Attempt<u64> {
    let &Filled { chunk, count, len, attributes, copied, tracked } = filled;
    let at = Descriptor {
        segment: chunk.segment,
        slot: chunk.slot,
        offset: chunk.offset,
        len: len as u64,
        attributes_len: attributes.len() as u32,
        refers: attributes.refers(),
        tracked: tracked.is_some(),
    };
    let appended = describe(store, line, at, count, tracked, timestamp_ns);
    if let Attempt::Done(_) = appended {
        line.copied_bytes += copied as u64;
    }
    appended
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

/// Appends a record with a tag, and with payload and attributes that fit into it beside that; `false`: there is no room now.
pub(crate) fn inline_tagged(line: &mut Line, payload: &[u8], attributes: &[u8], timestamp_ns: u64, tag: Tag) -> bool {
    let has_room = line.must_wait().is_none();
    if has_room {
        line.append(Some(timestamp_ns), payload.len(), 1, |ring, place| {
            ring.append_inline_tagged(place, payload, attributes, tag);
        });
    }
    has_room
}

/// The same for one that names a chunk, which is kept from being freed.
pub(crate) fn pooled_tagged(store: &mut Store, line: &mut Line, at: Descriptor, timestamp_ns: u64, tag: Tag) -> bool {
    let has_room = must_wait_for_pooled(line).is_none();
    if has_room {
        store.append_tagged(line, at, timestamp_ns, tag);
    }
    has_room
}
