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
//! 1. *The last hold is dropped.* The record of a tracked message has a bit, which each [`Hold`](crate::pubsub::message) on it
//!    remembers. Whoever lowers `held[slot]` to zero under such a hold then rings.
//! 2. *A cursor passes without a hold.* A subscriber that takes the record drops a hold later, after its cursor has passed. Only one
//!    that skips it has none: it rings after a skip to, or beyond, the ring's `skip_at`.
//! 3. *It leaves.* `close` rings; a hang-up and a death are noticed by the service thread.
//! 4. *The publisher moves the mark.* It looks itself. Where it frees a chunk, that is a release, too: so a ticket never outlives its
//!    slot, and needs no look at a slot that has another message by now.
//!
//! # No wake-up is lost
//!
//! The service thread hears the rings. It looks *after* that, under the publisher's lock, unless nobody waits; and whoever begins to
//! wait enters the ticket among the awaited ones and looks, under the same lock.
//!
//! - The ring comes after `fetch_sub`, and the socket orders what came before the sending before what comes after the
//!   reading. So a ring that is heard after the ticket was entered is followed by a look that sees the count at zero. One
//!   that was heard earlier was followed by a look, or is going to be. If that look comes before the entering, the lock orders
//!   the count before the look at the entering; if it comes after, it is the one that finds the ticket.
//! - Whether somebody waits is Dekker's pattern, too: who begins to wait says so (`awaits`), makes a full fence and looks at the
//!   counts; who has heard a ring, and so sees the count, makes a full fence and asks whether somebody waits.
//! - Rings that were not heard yet are one. None is lost: what a full socket does not take is owed.
//! - `cursor` and `skip_at` are Dekker's pattern, as with `wake_at`: the subscriber stores the cursor, makes a light fence and loads
//!   `skip_at`; the publisher stores `skip_at`, makes a heavy fence and loads the cursor.
//!
//! Models: `no_lost_release`, `no_lost_release_of_what_is_skipped`.

use super::{LOST_RING, Open, Shared};
use crate::error::{Error, Result};
use crate::link::service::Next;
use crate::protocol::claim::Policy;
use crate::protocol::ring::NEVER;
use crate::sync::heavy_fence;
use crate::sync::locks::Mutex;
use crate::sync::wait::Wait;
use crate::sys::epoll::Bell;
use rustix::fd::{AsFd, BorrowedFd};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

/// What became of a tracked message.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Pending,
    Released,
    /// The publisher was closed before that.
    Closed,
}

/// A tracked message: what its tickets and its publisher share.
pub(crate) struct Tracked {
    /// Its position and slot, once it is sent.
    place: OnceLock<(u64, u32)>,
    released: AtomicBool,
    closed: AtomicBool,
    /// It is among the publisher's awaited ones; changed under the publisher's lock only.
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
    pub fn set_place(&self, position: u64, slot: u32) {
        let first = self.place.set((position, slot));
        debug_assert!(first.is_ok(), "a message is sent once");
    }

    fn place(&self) -> (u64, u32) {
        *self.place.get().expect("tickets are of messages that were sent")
    }

    fn outcome(&self) -> Outcome {
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

    fn end(&self, how: &AtomicBool) {
        how.store(true, Ordering::Release);
        for (waiting, name) in self.waiting.lock().drain(..) {
            if let Some(waiting) = waiting.upgrade() {
                waiting.put(name);
            }
        }
    }

    fn is_awaited(&self) -> bool {
        let mut waiting = self.waiting.lock();
        waiting.retain(|(waiting, _)| waiting.strong_count() > 0);
        !waiting.is_empty()
    }
}

/// Tells when the message of a [`send_tracked`](crate::Publisher::send_tracked) is released: every subscriber that was connected
/// at some moment after the send has passed it, and none holds it any more. (That the publisher keeps it for late
/// subscribers, as history, does not count; one that comes later and receives it is not waited for.)
///
/// A clone is a ticket of the same message.
#[derive(Clone)]
pub struct Ticket {
    shared: Arc<Shared>,
    tracked: Arc<Tracked>,
    sequence: u64,
}

impl Ticket {
    pub(crate) fn new(shared: Arc<Shared>, tracked: Arc<Tracked>, sequence: u64) -> Self {
        Ticket { shared, tracked, sequence }
    }

    /// The message's number.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The topic.
    pub fn topic(&self) -> &str {
        self.shared.topic()
    }

    /// Whether the message is released by now. Once it was, it stays so; after the publisher's `close` nothing changes.
    pub fn is_released(&self) -> Result<bool> {
        Ok(self.settle()? == Outcome::Released)
    }

    /// Waits until the message is released. [`Error::Closed`]: the publisher was closed before that.
    pub fn wait_released(&self, timeout: Option<Duration>) -> Result<()> {
        self.wait_released_with(&mut Wait::up_to(timeout))
    }

    /// [`wait_released`](Self::wait_released) with an interruptible wait.
    pub fn wait_released_with(&self, wait: &mut Wait<'_>) -> Result<()> {
        if self.is_over()? {
            return Ok(());
        }
        if !wait.is_allowed() {
            return Err(Error::WouldBlock { topic: self.topic().to_owned() });
        }
        let releases = Arc::new(Releases::new().map_err(self.failed())?);
        releases.add(self, 0)?;
        let outcome = self.wait_at(&releases, wait);
        releases.remove(self, 0);
        outcome
    }

    fn wait_at(&self, releases: &Releases, wait: &mut Wait<'_>) -> Result<()> {
        while !self.is_over()? {
            let Some(left) = wait.remaining() else { return Err(self.timed_out(wait)) };
            if wait.is_interrupted() {
                return Err(Error::Interrupted { topic: self.topic().to_owned() });
            }
            // A ring may get lost for want of memory.
            let slice = wait.slice(left).map_or(LOST_RING, |slice| slice.min(LOST_RING));
            releases.bell.wait(Some(slice)).map_err(self.failed())?;
        }
        Ok(())
    }

    fn settle(&self) -> Result<Outcome> {
        let guard = self.shared.lock()?;
        Ok(guard.as_ref().map_or_else(|| self.tracked.outcome(), |open| open.settle(&self.tracked)))
    }

    /// Whether there is nothing to wait for any more; an error when there never will be.
    fn is_over(&self) -> Result<bool> {
        match self.settle()? {
            Outcome::Pending => Ok(false),
            Outcome::Released => Ok(true),
            Outcome::Closed => Err(self.shared.closed()),
        }
    }

    fn failed(&self) -> impl FnOnce(io::Error) -> Error {
        Error::system(self.topic(), "cannot wait for a release")
    }

    fn timed_out(&self, wait: &Wait<'_>) -> Error {
        let mut hint = format!("; message {} ", self.sequence);
        if let Ok(guard) = self.shared.lock()
            && let Some(open) = guard.as_ref()
        {
            hint += &open.describe_obstacle(&self.tracked);
        }
        let topic = self.topic().to_owned();
        Error::Timeout { what: "waiting for a release", topic, waited: wait.given(), hint }
    }
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ticket {{ topic: {:?}, sequence: {} }}", self.topic(), self.sequence)
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

    /// Waits for `ticket`, under a name that `take` will tell, once.
    pub fn add(self: &Arc<Self>, ticket: &Ticket, name: u64) -> Result<()> {
        let tracked = &ticket.tracked;
        let mut guard = ticket.shared.lock()?;
        ticket.shared.awaits.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst); // Pairs with the one of who has heard a ring.
        if let Some(open) = guard.as_mut()
            && open.settle(tracked) == Outcome::Pending
        {
            open.look_now_and_then();
            tracked.waiting.lock().push((Arc::downgrade(self), name));
            open.watch(tracked);
        } else {
            self.put(name);
        }
        Ok(())
    }

    /// Waits for `ticket` no more, under that name.
    pub fn remove(&self, ticket: &Ticket, name: u64) {
        let is_this = |(waiting, known): &(Weak<Releases>, u64)| *known == name && std::ptr::eq(waiting.as_ptr(), self);
        ticket.tracked.waiting.lock().retain(|waiting| !is_this(waiting));
    }

    /// The names of the tickets that are over: their messages are released, or their publishers closed.
    pub fn take(&self) -> Vec<u64> {
        self.bell.silence(); // Before the look: what comes after it rings again.
        std::mem::take(&mut *self.over.lock())
    }

    fn put(&self, name: u64) {
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

impl Shared {
    /// A subscriber rang, perhaps because it let go of something.
    pub(super) fn look_for_releases(&self) {
        fence(Ordering::SeqCst); // Pairs with the one of who begins to wait.
        if !self.awaits.load(Ordering::Relaxed) {
            return;
        }
        let mut guard = self.open.lock();
        let Some(open) = guard.as_mut() else { return };
        open.look_at_awaited();
        self.awaits.store(!open.awaited.is_empty(), Ordering::Relaxed);
    }
}

impl Open {
    /// Looks whether a tracked message is released.
    fn settle(&self, tracked: &Tracked) -> Outcome {
        let outcome = tracked.outcome();
        if outcome != Outcome::Pending {
            return outcome;
        }
        // Its slot is still its own: freeing that would have been its release.
        let (position, slot) = tracked.place();
        if self.peers.iter().any(|peer| peer.wants(position, slot, self.log.tail(), self.log.reclaim())) {
            return Outcome::Pending;
        }
        tracked.release();
        Outcome::Released
    }

    /// What `skip_at` has to be for this message: only who may lose it can pass it without a hold. To be asked before `settle`:
    /// a cursor that passes in between is seen there; the other way round nobody would hear of it.
    fn skip_of(&self, tracked: &Tracked) -> u64 {
        let (position, _) = tracked.place();
        let mut lossy = self.peers.iter().filter(|peer| peer.policy != Policy::Block);
        if lossy.any(|peer| peer.has_yet_to_pass(position, self.log.tail(), self.log.reclaim())) {
            position + 1
        } else {
            NEVER
        }
    }

    /// Enters a message, which somebody waits for by now, among the awaited ones, and looks at it.
    fn watch(&mut self, tracked: &Arc<Tracked>) {
        if !tracked.listed.swap(true, Ordering::Relaxed) {
            self.awaited.push(Arc::clone(tracked));
        }
        let skip_at = self.skip_of(tracked);
        if self.settle(tracked) == Outcome::Pending && skip_at < self.skip_at {
            self.look_at_awaited();
        }
    }

    /// Looks at the messages whose release is waited for.
    #[inline]
    pub(super) fn look_at_awaited(&mut self) {
        if !self.awaited.is_empty() {
            self.look_at_all_awaited();
        }
    }

    #[cold]
    fn look_at_all_awaited(&mut self) {
        loop {
            let mut skip_at = NEVER;
            let mut awaited = std::mem::take(&mut self.awaited);
            awaited.retain(|tracked| {
                let skip = self.skip_of(tracked);
                let stays = self.settle(tracked) == Outcome::Pending && tracked.is_awaited();
                if stays {
                    skip_at = skip_at.min(skip);
                } else {
                    tracked.listed.store(false, Ordering::Relaxed);
                }
                stays
            });
            self.awaited = awaited;
            if skip_at == self.skip_at {
                return;
            }
            self.skip_at = skip_at;
            self.ring().set_skip_at(skip_at);
            if skip_at == NEVER {
                return;
            }
            heavy_fence(); // Pairs with the light fence after each cursor store.
        }
    }

    /// Has awaited messages looked at now and then: rings may get lost for want of memory.
    fn look_now_and_then(&mut self) {
        if std::mem::replace(&mut self.looks_for_releases, true) {
            return;
        }
        let shared = self.shared.clone();
        self.service.after(LOST_RING, move |_, _, _| {
            let Some(shared) = shared.upgrade() else { return Next::Done };
            let mut guard = shared.open.lock();
            let Some(open) = guard.as_mut() else { return Next::Done };
            open.look_at_awaited();
            open.looks_for_releases = !open.awaited.is_empty();
            if open.looks_for_releases { Next::After(LOST_RING) } else { Next::Done }
        });
    }

    /// The publisher is closing: nobody will know any more when what is pending now is released.
    pub(super) fn end_tickets(&self) {
        for tracked in self.sent().filter_map(|(_, sent)| sent.tracked.as_ref()) {
            if self.settle(tracked) == Outcome::Pending {
                tracked.end(&tracked.closed);
            }
        }
    }

    /// Why a message is not released, for error texts.
    fn describe_obstacle(&self, tracked: &Tracked) -> String {
        let (position, slot) = tracked.place();
        let is_there = self.pool.sent(slot).is_some_and(|sent| sent.position == position);
        if let Some(holder) = self.peers.iter().find(|peer| is_there && peer.lease().is_held(slot)) {
            return format!("is held by {}", self.describe_hold(holder, slot));
        }
        let mut late =
            self.peers.iter().filter(|peer| peer.has_yet_to_pass(position, self.log.tail(), self.log.reclaim()));
        late.next().map_or_else(|| "is released now".to_owned(), |peer| format!("was not taken yet by {}", peer.who()))
    }
}
