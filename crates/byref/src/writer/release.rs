//! Releases that are waited for.
//!
//! A message is *released* when every subscriber that was connected at some moment after the send has passed it (its cursor is
//! beyond the position, or the reclaim mark is, or it is gone) and none holds it. A [`Ticket`] of a tracked message tells. What
//! was released once stays so.
//!
//! # Who looks, and when
//!
//! Nobody looks at tickets that nobody waits for, except at those that are asked. While somebody waits, the publisher looks,
//! under its lock, after everything that can make the condition true:
//!
//! 1. *The last hold is dropped.* The record of a tracked message has a bit, which each [`Hold`](crate::reader::message) on it
//!    remembers. Whoever lowers `held[slot]` to zero under such a hold then sends one byte on the socket.
//! 2. *A cursor passes without a hold.* A subscriber that takes the record drops a hold later, after its cursor has passed. Only one
//!    that skips it has none: it rings after a skip to, or beyond, the ring's `skip_at`.
//! 3. *It leaves.* `close` sends a byte; a hang-up and a death are noticed by the service thread.
//! 4. *The publisher moves the mark.* It looks itself. Where it frees a chunk, that is a release, too: so a ticket never outlives its
//!    slot, and needs no look at a slot that has another message by now.
//!
//! # No wake-up is lost
//!
//! Bytes on the sockets are read by the service thread, which listens as long as somebody waits, or by a sender that waits for room.
//! Either one looks *after* reading, under the publisher's lock; and whoever begins to wait enters the ticket among the awaited ones
//! and looks, under the same lock.
//!
//! - The byte comes after `fetch_sub`, and the socket orders what came before the sending before what comes after the
//!   reading. So a byte that is read after the ticket was entered is followed by a look that sees the count at zero. A byte
//!   that was read earlier was followed by a look, or is going to be. If that look comes before the entering, the lock orders
//!   the count before the look at the entering; if it comes after, it is the one that finds the ticket.
//! - A byte that a full socket refuses is not needed: bytes before it are still unread, and a look follows their reading.
//! - `cursor` and `skip_at` are Dekker's pattern, as with `wake_at`: the subscriber stores the cursor, makes a light fence and loads
//!   `skip_at`; the publisher stores `skip_at`, makes a heavy fence and loads the cursor.
//! - The service thread takes bytes away from a sender that waits for room, so it rings the sender's bell; and the other way round the
//!   sender looks at the tickets.
//!
//! Models: `no_lost_release`, `no_lost_release_of_what_is_skipped`.

use crate::sync::locks::Mutex;
use crate::sys::epoll::Bell;
use rustix::fd::{AsFd, BorrowedFd};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

/// What became of a tracked message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Pending,
    Released,
    /// The publisher was closed before that.
    Closed,
}

/// A tracked message: what its tickets and its publisher share.
pub(crate) struct Tracked {
    /// Its line, position and slot, once it is sent.
    place: OnceLock<(u32, u64, u32)>,
    released: AtomicBool,
    closed: AtomicBool,
    listed: AtomicBool,
    /// Who waits, and what they call it.
    waiting: Mutex<Vec<(Weak<Releases>, u64)>>,
}

impl Tracked {
    pub fn new() -> Arc<Self> {
        Arc::new(Tracked {
            place: OnceLock::new(),
            released: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            listed: AtomicBool::new(false),
            waiting: Mutex::default(),
        })
    }

    /// It was sent.
    pub fn set_place(&self, line: u32, position: u64, slot: u32) {
        let first = self.place.set((line, position, slot));
        debug_assert!(first.is_ok(), "a message is sent once");
    }

    fn full_place(&self) -> (u32, u64, u32) {
        *self.place.get().expect("tickets are of messages that were sent")
    }

    /// The number of its line.
    pub fn line(&self) -> u32 {
        self.full_place().0
    }

    /// Its position there, and its slot.
    pub fn place(&self) -> (u64, u32) {
        let (_, position, slot) = self.full_place();
        (position, slot)
    }

    pub fn outcome(&self) -> Outcome {
        if self.released.load(Ordering::Acquire) {
            Outcome::Released
        } else if self.closed.load(Ordering::Acquire) {
            Outcome::Closed
        } else {
            Outcome::Pending
        }
    }

    /// Under the publisher's lock, as all ends are, so that nobody begins to wait meanwhile.
    pub fn release(&self) {
        self.end(&self.released);
    }

    /// The publisher is closing.
    pub fn close(&self) {
        self.end(&self.closed);
    }

    /// Whether it is among the awaited ones of its line; changed under the publisher's lock only.
    pub fn set_listed(&self, is_listed: bool) -> bool {
        self.listed.swap(is_listed, Ordering::Relaxed)
    }

    /// Has `releases` hear of its end, under that name.
    pub fn tell(&self, releases: &Arc<Releases>, name: u64) {
        self.waiting.lock().push((Arc::downgrade(releases), name));
    }

    /// No more.
    pub fn tell_no_more(&self, releases: &Releases, name: u64) {
        let is_this =
            |(waiting, known): &(Weak<Releases>, u64)| *known == name && std::ptr::eq(waiting.as_ptr(), releases);
        self.waiting.lock().retain(|waiting| !is_this(waiting));
    }

    fn end(&self, how: &AtomicBool) {
        how.store(true, Ordering::Release);
        for (waiting, name) in self.waiting.lock().drain(..) {
            if let Some(waiting) = waiting.upgrade() {
                waiting.put(name);
            }
        }
    }

    pub fn is_awaited(&self) -> bool {
        let mut waiting = self.waiting.lock();
        waiting.retain(|(waiting, _)| waiting.strong_count() > 0);
        !waiting.is_empty()
    }
}

/// Waits for many tickets at once, for event loops: its descriptor is readable when [`take`](Self::take) has something to tell.
pub struct Releases {
    bell: Bell,
    over: Mutex<Vec<u64>>,
}

impl Releases {
    /// Waits for nothing yet. It takes a descriptor.
    pub fn new() -> io::Result<Self> {
        Ok(Releases { bell: Bell::new()?, over: Mutex::default() })
    }

    /// The names of the tickets that are over: their messages are released, or their publishers closed.
    pub fn take(&self) -> Vec<u64> {
        self.bell.silence(); // Before the look: what comes after it rings again.
        std::mem::take(&mut *self.over.lock())
    }

    /// Waits for the next end.
    pub(crate) fn wait(&self, timeout: Duration) -> io::Result<()> {
        self.bell.wait(Some(timeout)).map(|_| ())
    }

    pub(crate) fn put(&self, name: u64) {
        let mut over = self.over.lock();
        over.push(name);
        if over.len() == 1 {
            self.bell.ring();
        }
    }
}

impl AsFd for Releases {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
