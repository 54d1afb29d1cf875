//! What is known of a chunk that was sent: on which lines, and where it is still pending.

use crate::writer::release::Tracked;
use std::num::NonZeroU32;
use std::sync::Arc;

/// The record on one line that a chunk was sent with.
pub(crate) struct Sent {
    /// The number of the line.
    pub line: u32,
    pub position: u64,
    /// Of its first message.
    pub sequence: u64,
    /// Messages (without a zero, so that records take one cache line), and the payload bytes of all of them.
    pub count: NonZeroU32,
    pub len: u64,
    /// When, in nanoseconds of `CLOCK_REALTIME`.
    pub at: u64,
    /// Who wants to know of its release.
    pub tracked: Option<Arc<Tracked>>,
}

/// All the records of a chunk: most have one; of those that go to many lines, one on each.
#[derive(Default)]
pub(crate) struct Records {
    first: Option<Sent>,
    /// A chunk for many is rare, and a slot without one is to be small.
    #[expect(clippy::box_collection, reason = "the pointer is a third of the size")]
    more: Option<Box<Vec<Sent>>>,
    /// Lines whose mark has not passed the record yet.
    pending: u32,
}

impl Sent {
    pub fn messages(&self) -> u64 {
        self.count.get().into()
    }
}

impl Records {
    #[inline]
    pub fn add(&mut self, sent: Sent) {
        self.pending += 1;
        match self.first {
            None => self.first = Some(sent),
            Some(_) => self.add_more(sent),
        }
    }

    #[cold]
    fn add_more(&mut self, sent: Sent) {
        self.more.get_or_insert_default().push(sent);
    }

    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = &Sent> {
        self.first.iter().chain(self.more.iter().flat_map(|more| more.iter()))
    }

    /// The record on the line of that number.
    pub fn on(&self, line: u32) -> Option<&Sent> {
        self.iter().find(|sent| sent.line == line)
    }

    /// Whether some line may still show it to a reader.
    #[inline]
    pub fn is_pending(&self) -> bool {
        self.pending > 0
    }

    /// The mark of one of its lines has passed it; whether it is the first one.
    #[inline]
    pub fn pass(&mut self) -> bool {
        let is_first = self.pending as usize == self.more.as_ref().map_or(0, |more| more.len()) + 1;
        self.pending -= 1;
        is_first
    }
}
