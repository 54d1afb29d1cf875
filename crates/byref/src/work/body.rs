//! What a job carries, as long as its pusher keeps it; and one that will not be given again.

use crate::attributes::Attributes;
use crate::direct::identity::Identity;
use crate::direct::undelivered::{Pooled, Undelivered};
use crate::memory::pool::Pin;
use crate::protocol::ring::{Descriptor, INLINE_LIMIT};
use crate::work::table::Reason;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// The most bytes of payload and attributes of a job that travels inside the record, beside its number.
pub(super) const MOST_INLINE: usize = INLINE_LIMIT - 8;

/// Whether a job's payload and attributes go into the record itself.
pub(super) fn fits_inline(payload: usize, attributes: usize) -> bool {
    payload <= MOST_INLINE && payload.next_multiple_of(8) + attributes.next_multiple_of(8) <= MOST_INLINE
}

pub(super) struct Body {
    pub timestamp_ns: u64,
    pub content: Content,
}

pub(super) enum Content {
    Inline(Small),
    /// In a chunk, which is kept as long as the job is.
    Pooled(Arc<Pin>, Descriptor),
}

/// Payload, then attributes.
pub(super) struct Small {
    payload: u16,
    attributes: u16,
    bytes: [u8; MOST_INLINE],
}

impl Small {
    /// They have to fit.
    pub fn new(payload: &[u8], attributes: &[u8]) -> Self {
        let mut bytes = [0; MOST_INLINE];
        bytes[..payload.len()].copy_from_slice(payload);
        bytes[payload.len()..][..attributes.len()].copy_from_slice(attributes);
        Small { payload: payload.len() as u16, attributes: attributes.len() as u16, bytes }
    }

    pub fn payload(&self) -> &[u8] {
        &self.bytes[..self.payload as usize]
    }

    pub fn attributes(&self) -> &[u8] {
        &self.bytes[self.payload as usize..][..self.attributes as usize]
    }
}

/// A job that will not be given again, and why. Dereferences to its payload, which stays where it is until this is dropped.
#[derive(Clone)]
pub struct Rejected {
    message: Undelivered,
    attempts: u32,
    reason: Reason,
}

impl Rejected {
    pub(super) fn new(pusher: &Identity, number: u64, failures: u32, reason: Reason, body: Body) -> Self {
        let (sender, timestamp_ns) = (pusher.incarnation(), body.timestamp_ns);
        let message = match body.content {
            Content::Inline(small) => {
                Undelivered::copied(pusher, sender, number, timestamp_ns, 0, small.payload(), small.attributes())
            }
            Content::Pooled(pin, at) => {
                let pooled = Pooled { pin, at, part: (0, at.len) };
                Undelivered::pooled(pusher, sender, number, timestamp_ns, pooled)
            }
        };
        let attempts = failures + u32::from(matches!(reason, Reason::Rejected(_)));
        Rejected { message, attempts, reason }
    }

    /// Its number among the jobs of its pusher.
    pub fn number(&self) -> u64 {
        self.message.sequence()
    }

    /// How often it was tried.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Why it will not be given again.
    pub fn reason(&self) -> &Reason {
        &self.reason
    }

    /// When it was pushed: nanoseconds of `CLOCK_REALTIME`, or what the pusher gave.
    pub fn timestamp_ns(&self) -> u64 {
        self.message.timestamp_ns()
    }

    /// Layout and headers.
    pub fn attributes(&self) -> Attributes {
        self.message.attributes()
    }
}

impl Deref for Rejected {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.message
    }
}

impl fmt::Debug for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rejected(job {}, {} bytes, {})", self.number(), self.len(), self.reason)
    }
}
