//! Messages that their destination never took.
#![allow(unsafe_code)]

use crate::attributes::Attributes;
use crate::direct::identity::Identity;
use crate::memory::pool::Pin;
use crate::protocol::ring::{Descriptor, Head, InlineData};
use crate::sys::fork::ForkId;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// A message that was sent to a mailbox which ended before it took it. Nobody has seen it; what a mailbox had taken when it ended may
/// have been processed, and is not among these.
///
/// Dereferences to the payload, which stays where it is: [`Mailbox::send_undelivered`](crate::Mailbox::send_undelivered) sends it
/// elsewhere without a copy. Dropping it gives the memory back.
#[derive(Clone)]
pub struct Undelivered(Arc<Untaken>);

struct Untaken {
    peer: Identity,
    sequence: u64,
    timestamp_ns: u64,
    tag: u64,
    body: Body,
    /// The store that it lies in is that of this mailbox.
    sender: u128,
    made_in: ForkId,
}

#[derive(Clone)]
pub(crate) enum Body {
    /// Payload and encoded attributes, copied out of the ring.
    Inline(Arc<[u8]>, Arc<[u8]>),
    Pooled(Pooled),
}

/// A message in a chunk of its own, or a row of a chunk.
#[derive(Clone)]
pub(crate) struct Pooled {
    pub pin: Arc<Pin>,
    /// All of the chunk; `tracked` no more.
    pub at: Descriptor,
    /// The part of the payload that the message is: an offset, and a length.
    pub part: (u64, u64),
}

impl Pooled {
    /// Whether it is all that is in the chunk.
    pub fn is_whole(&self) -> bool {
        self.part == (0, self.at.len)
    }
}

impl Undelivered {
    pub(super) fn inline(peer: &Identity, sender: u128, head: Head, data: &InlineData) -> Self {
        let bytes: Vec<u8> = data.words().take(head.data_words()).flat_map(u64::to_ne_bytes).collect();
        let behind = head.payload_len().next_multiple_of(8);
        let (payload, attributes) = (&bytes[..head.payload_len()], &bytes[behind..behind + head.attributes_len()]);
        Self::copied(peer, sender, head.sequence, head.timestamp_ns, head.tag(data), payload, attributes)
    }

    pub(crate) fn copied(
        peer: &Identity,
        sender: u128,
        sequence: u64,
        timestamp_ns: u64,
        tag: u64,
        payload: &[u8],
        attributes: &[u8],
    ) -> Self {
        Self::new(peer, sender, (sequence, timestamp_ns, tag), Body::Inline(payload.into(), attributes.into()))
    }

    pub(crate) fn pooled(peer: &Identity, sender: u128, sequence: u64, timestamp_ns: u64, pooled: Pooled) -> Self {
        Self::new(peer, sender, (sequence, timestamp_ns, pooled.at.tag), Body::Pooled(pooled))
    }

    fn new(peer: &Identity, sender: u128, (sequence, timestamp_ns, tag): (u64, u64, u64), body: Body) -> Self {
        let (peer, made_in) = (peer.clone(), ForkId::current());
        Undelivered(Arc::new(Untaken { peer, sequence, timestamp_ns, tag, body, sender, made_in }))
    }

    /// What was sent inside of a record, for who may send it again.
    pub(crate) fn of_inline(peer: &Identity, sender: u128, payload: &[u8], attributes: &[u8]) -> Self {
        Self::new(peer, sender, (0, 0, 0), Body::Inline(payload.into(), attributes.into()))
    }

    /// The same for what was sent in a chunk.
    pub(crate) fn of_pooled(peer: &Identity, sender: u128, pin: Arc<Pin>, at: Descriptor) -> Self {
        Self::pooled(peer, sender, 0, 0, Pooled { pin, at, part: (0, at.len) })
    }

    /// The mailbox that it was sent to.
    pub fn peer(&self) -> &Identity {
        &self.0.peer
    }

    /// Its number among the messages that were sent to that one, from 0.
    pub fn sequence(&self) -> u64 {
        self.0.sequence
    }

    /// When it was sent: nanoseconds of `CLOCK_REALTIME`, or what the sender gave.
    pub fn timestamp_ns(&self) -> u64 {
        self.0.timestamp_ns
    }

    /// The number that its sender gave it beside the payload; 0: none.
    pub fn tag(&self) -> u64 {
        self.0.tag
    }

    /// Layout and headers.
    pub fn attributes(&self) -> Attributes {
        Attributes::decode(self.encoded_attributes())
    }

    pub(crate) fn body(&self) -> &Body {
        &self.0.body
    }

    /// The mailbox that sent it.
    pub(super) fn sender(&self) -> u128 {
        self.0.sender
    }

    pub(super) fn encoded_attributes(&self) -> &[u8] {
        match &self.0.body {
            Body::Inline(_, attributes) => attributes,
            Body::Pooled(Pooled { at, .. }) => self.bytes(at.len.next_multiple_of(8), at.attributes_len as u64),
        }
    }

    /// Whether its payload and attributes refer to the sender's glossary, which other senders' readers do not have.
    pub(super) fn refers(&self) -> bool {
        matches!(&self.0.body, Body::Pooled(Pooled { at: Descriptor { refers: true, .. }, .. }))
    }

    /// Bytes of the chunk, from an offset from its payload's start on.
    fn bytes(&self, from: u64, len: u64) -> &[u8] {
        let Body::Pooled(Pooled { pin, .. }) = &self.0.body else { return &[] };
        if !self.0.made_in.is_current() {
            return &[]; // A forked child does not have that memory.
        }
        let start = pin.as_ptr().wrapping_add(from as usize);
        // SAFETY: payload and attributes of the record that was read from the mailbox's own ring lie in its chunk, and nobody writes
        // there: the chunk was sent, and the pin keeps it from being used for anything else. (Who writes through an older array
        // of the loan changes the message's values; see SAFETY.md.)
        unsafe { std::slice::from_raw_parts(start, len as usize) }
    }
}

impl Deref for Undelivered {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0.body {
            Body::Inline(payload, _) => payload,
            Body::Pooled(Pooled { part: (from, len), .. }) => self.bytes(*from, *len),
        }
    }
}

impl fmt::Debug for Undelivered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Undelivered({} bytes, number {} to {:?})", self.len(), self.0.sequence, self.0.peer)
    }
}
