//! Tickets: who asks, and who waits, whether a tracked message is released. (How that is found out, see [`release`](super::release).)

use crate::error::{Error, Result};
use crate::link::tasks::Next;
use crate::protocol::claim::Policy;
use crate::protocol::ring::NEVER;
use crate::sync::heavy_fence;
use crate::sync::wait::Wait;
use crate::writer::attempt::LOST_RING;
use crate::writer::line::Line;
use crate::writer::owner::Owner;
use crate::writer::release::{Outcome, Releases, Tracked};
use crate::writer::store::Store;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

/// Tells when a [`Tracked`](crate::Tracked) message is released: every subscriber that was connected
/// at some moment after the send has passed it, and none holds it any more. (That the publisher keeps it for late
/// subscribers, as history, does not count; one that comes later and receives it is not waited for.)
///
/// A clone is a ticket of the same message.
#[derive(Clone)]
pub struct Ticket {
    owner: Arc<dyn Owner>,
    tracked: Arc<Tracked>,
    sequence: u64,
}

impl Ticket {
    pub(crate) fn new(owner: Arc<dyn Owner>, tracked: Arc<Tracked>, sequence: u64) -> Self {
        Ticket { owner, tracked, sequence }
    }

    /// The message's number.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The topic.
    pub fn topic(&self) -> &str {
        self.owner.topic()
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
            releases.wait(slice).map_err(self.failed())?;
        }
        Ok(())
    }

    fn settle(&self) -> Result<Outcome> {
        let settled =
            self.owner.within(|_, lines| Line::find(lines, self.tracked.line()).map(|line| line.settle(&self.tracked)));
        match settled {
            Ok(outcome) => Ok(outcome.unwrap_or_else(|| self.tracked.outcome())),
            Err(Error::Closed { .. }) => Ok(self.tracked.outcome()),
            Err(error) => Err(error),
        }
    }

    /// Whether there is nothing to wait for any more; an error when there never will be.
    fn is_over(&self) -> Result<bool> {
        match self.settle()? {
            Outcome::Pending => Ok(false),
            Outcome::Released => Ok(true),
            Outcome::Closed => Err(self.owner.closed()),
        }
    }

    fn failed(&self) -> impl FnOnce(io::Error) -> Error {
        Error::system(self.topic(), "cannot wait for a release")
    }

    fn timed_out(&self, wait: &Wait<'_>) -> Error {
        let mut hint = format!("; message {} ", self.sequence);
        let obstacle = |store: &mut Store, line: &mut Line| line.describe_obstacle(store, &self.tracked);
        hint += &self.owner.at_line(self.tracked.line(), obstacle).unwrap_or_default();
        let topic = self.topic().to_owned();
        Error::Timeout { what: "waiting for a release", topic, waited: wait.given(), hint }
    }
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ticket {{ topic: {:?}, sequence: {} }}", self.topic(), self.sequence)
    }
}

impl Releases {
    /// Waits for `ticket`, under a name that `take` will tell, once.
    pub fn add(self: &Arc<Self>, ticket: &Ticket, name: u64) -> Result<()> {
        let tracked = &ticket.tracked;
        let begin = |_: &mut Store, lines: &mut [Line]| {
            let Some(line) = Line::find_mut(lines, tracked.line()) else { return false };
            line.begin_to_await();
            let is_pending = line.settle(tracked) == Outcome::Pending;
            if is_pending {
                tracked.tell(self, name);
                line.watch(tracked);
            }
            is_pending
        };
        let begun = match ticket.owner.within(begin) {
            Err(Error::Closed { .. }) => false,
            begun => begun?,
        };
        if !begun {
            self.put(name);
        }
        Ok(())
    }

    /// Waits for `ticket` no more, under that name.
    pub fn remove(&self, ticket: &Ticket, name: u64) {
        ticket.tracked.tell_no_more(self, name);
    }
}

impl Line {
    /// Looks whether a tracked message is released.
    pub fn settle(&self, tracked: &Tracked) -> Outcome {
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
    pub fn watch(&mut self, tracked: &Arc<Tracked>) {
        if !tracked.set_listed(true) {
            self.awaited.push(Arc::clone(tracked));
        }
        let skip_at = self.skip_of(tracked);
        if self.settle(tracked) == Outcome::Pending && skip_at < self.skip_at {
            self.look_at_awaited();
        }
    }

    /// Looks at the messages whose release is waited for.
    #[inline]
    pub fn look_at_awaited(&mut self) {
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
                    tracked.set_listed(false);
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

    /// Somebody begins to wait for a release. A look has to follow.
    pub fn begin_to_await(&mut self) {
        self.rings.awaits.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst); // Pairs with the one of who has heard a ring.
        if std::mem::replace(&mut self.looks_for_releases, true) {
            return;
        }
        // Rings may get lost for want of memory.
        let (errands, number) = (self.errands.clone(), self.number);
        self.service.after(LOST_RING, move |_, _, _| match errands.upgrade() {
            Some(errands) if errands.look_at_awaited(number) => Next::After(LOST_RING),
            _ => Next::Done,
        });
    }

    /// A subscriber rang, perhaps because it let go of something.
    pub fn look_for_releases(&mut self) {
        self.look_at_awaited();
        self.rings.awaits.store(!self.awaited.is_empty(), Ordering::Relaxed);
    }

    /// The same without a ring; `false`: nobody waits any more.
    pub fn look_once_more(&mut self) -> bool {
        self.look_for_releases();
        self.looks_for_releases = !self.awaited.is_empty();
        self.looks_for_releases
    }

    /// The publisher is closing: nobody will know any more when a message is released that is not by now.
    pub fn end_ticket(&self, tracked: &Tracked) {
        if self.settle(tracked) == Outcome::Pending {
            tracked.close();
        }
    }

    /// Why a message is not released, for error texts.
    fn describe_obstacle(&self, store: &Store, tracked: &Tracked) -> String {
        let (position, slot) = tracked.place();
        let is_there = store.pool.sent(slot).on(self.number).is_some_and(|sent| sent.position == position);
        if let Some(holder) = self.peers.iter().find(|peer| is_there && peer.lease().is_held(slot)) {
            return format!("is held by {}", store.describe_hold(self, holder, slot));
        }
        let mut late =
            self.peers.iter().filter(|peer| peer.has_yet_to_pass(position, self.log.tail(), self.log.reclaim()));
        late.next().map_or_else(|| "is released now".to_owned(), |peer| format!("was not taken yet by {}", peer.who()))
    }
}
