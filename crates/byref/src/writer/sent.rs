//! What is known of a chunk that was sent: on which lines, and where it is still pending.

use crate::writer::release::Tracked;
use std::sync::Arc;

/// The record on one line that a chunk was sent with.
pub(crate) struct Sent {
    /// The number of the line.
    pub line: u32,
    pub position: u64,
    /// Of its first message.
    pub sequence: u64,
    /// Messages, and the payload bytes of all of them.
    pub count: u32,
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
    more: Vec<Sent>,
    /// Records that the mark of their line has not passed yet.
    pending: u32,
    /// It has passed one of them.
    is_passed: bool,
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
        self.more.push(sent);
    }

    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = &Sent> {
        self.first.iter().chain(&self.more)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.more.len()
    }

    /// Forgets those on lines that are not `wanted`. Whether it is pending, and how often, is not changed by that.
    pub fn retain(&mut self, wanted: impl Fn(u32) -> bool) {
        self.more.retain(|sent| wanted(sent.line));
        if self.first.as_ref().is_some_and(|sent| !wanted(sent.line)) {
            self.first = self.more.pop();
        }
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

    /// The chunk is free: tells who waits for that, and forgets what it was sent with.
    #[inline]
    pub fn release(&mut self) {
        self.is_passed = false;
        if let Some(Sent { tracked: Some(tracked), .. }) = self.first.take() {
            tracked.release();
        }
        if !self.more.is_empty() {
            std::mem::take(&mut self.more).iter().filter_map(|sent| sent.tracked.as_ref()).for_each(|it| it.release());
        }
    }

    /// The mark of one of its lines has passed it; whether that is the first time.
    #[inline]
    pub fn pass(&mut self) -> bool {
        self.pending -= 1;
        !std::mem::replace(&mut self.is_passed, true)
    }
}
