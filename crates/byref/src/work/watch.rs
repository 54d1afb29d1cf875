//! Who takes turns when no call of the user does: waiting calls, and the service thread.

use crate::error::{Error, Result};
use crate::link::tasks::Next;
use crate::sync::wait::Wait;
use crate::work::open::{Awaited, Open};
use crate::work::pusher::Shared;
use std::sync::Weak;
use std::time::{Duration, Instant};

/// A call that waits looks again and again, as long as jobs were over within this time, before it sleeps.
const SPIN: Duration = Duration::from_micros(50);
/// A look that took longer was interrupted by somebody who needs the processor.
const INTERRUPTED: Duration = Duration::from_micros(200);
/// How often the service thread looks whether calls still take turns, and whether memory has come back; and how long pullers may
/// keep their answers to themselves.
const WATCH: Duration = Duration::from_millis(1);

impl Shared {
    /// Takes turns until `look` gives something.
    pub fn wait_until<T>(
        &self,
        wait: &mut Wait<'_>,
        what: Awaited,
        mut look: impl FnMut(&mut Open) -> Option<Result<T>>,
    ) -> Result<T> {
        {
            let mut guard = self.lock()?;
            let open = self.opened(&mut guard)?;
            open.calls += 1;
            open.turn();
            let found = look(open);
            self.see_to(open);
            if let Some(found) = found {
                return found;
            }
        }
        if !wait.is_allowed() {
            return Err(Error::WouldBlock { topic: self.queue().to_owned() });
        }
        if let Some(found) = self.spin(&mut look)? {
            return found;
        }
        let _waiting = Waiting::begin(self, what)?;
        let mut found = None;
        let ended = self.changed.until(wait, || {
            let mut guard = self.lock()?;
            let open = self.opened(&mut guard)?;
            open.turn();
            found = look(open);
            if found.is_none() {
                open.arm();
                open.turn(); // What was answered before that rings nobody.
                found = look(open);
            }
            self.see_to(open);
            Ok(found.is_some())
        })?;
        match found {
            Some(found) => found,
            None => {
                let what = match what {
                    Awaited::Room => "push",
                    Awaited::End => "join",
                };
                self.ended(ended, wait, what)?;
                Err(crate::writer::owner::Owner::closed(self))
            }
        }
    }

    /// Looks again and again, as long as that seems to pay.
    fn spin<T>(&self, look: &mut impl FnMut(&mut Open) -> Option<Result<T>>) -> Result<Option<Result<T>>> {
        let (mut before, mut since, mut looked) = (0, Instant::now(), Instant::now());
        loop {
            for _ in 0..64 {
                std::hint::spin_loop();
            }
            {
                let mut guard = self.lock()?;
                let open = self.opened(&mut guard)?;
                open.calls += 1;
                open.turn();
                if let Some(found) = look(open) {
                    return Ok(Some(found));
                }
                let over = open.table.tally.done + open.table.tally.rejected;
                if over != before {
                    (before, since) = (over, Instant::now());
                }
            }
            let took = looked.elapsed();
            looked += took;
            if took > INTERRUPTED || since.elapsed() > SPIN {
                return Ok(None);
            }
        }
    }

    /// Sees to it that somebody takes turns after this one, if jobs wait, and that the clock is looked at.
    #[inline]
    pub fn see_to(&self, open: &mut Open) {
        if open.needs_watch() {
            self.watch(open);
        }
        if open.needs_clock() {
            self.set_alarm(open);
        }
        if open.needs_refining() {
            self.refine_soon(open);
        }
        if open.wants_memory && open.room_waiters > 0 {
            self.watch_memory(open);
        }
    }

    #[cold]
    fn refine_soon(&self, open: &mut Open) {
        open.is_refining = true;
        let shared = Weak::clone(&self.me);
        self.service.after(WATCH, move |_, _, _| {
            if let Some(shared) = shared.upgrade() {
                shared.look_with(Open::refine);
            }
            Next::Done
        });
    }

    /// Who waits for memory is woken to look for it: dropping a message rings nobody.
    #[cold]
    fn watch_memory(&self, open: &mut Open) {
        open.wants_memory = false;
        if std::mem::replace(&mut open.watches_memory, true) {
            return;
        }
        let shared = Weak::clone(&self.me);
        self.service.after(WATCH, move |_, _, _| {
            if let Some(shared) = shared.upgrade() {
                shared.look_with(|open| open.watches_memory = false);
            }
            Next::Done
        });
    }

    /// Does what a task of the service thread is for, and wakes who waits.
    fn look_with(&self, act: impl FnOnce(&mut Open)) {
        {
            let Ok(mut guard) = self.lock() else { return };
            let Some(open) = guard.as_mut() else { return };
            act(open);
            self.see_to(open);
        }
        self.changed.notify();
    }

    #[cold]
    fn watch(&self, open: &mut Open) {
        open.is_watched = true;
        let (shared, mut calls) = (Weak::clone(&self.me), open.calls);
        self.service.after(WATCH, move |_, _, _| {
            let Some(shared) = shared.upgrade() else { return Next::Done };
            shared.look_after_calls(&mut calls)
        });
    }

    /// Whether calls still take turns; if not, pullers ring from now on.
    fn look_after_calls(&self, calls: &mut u64) -> Next {
        let Ok(mut guard) = self.lock() else { return Next::Done };
        let Some(open) = guard.as_mut() else { return Next::Done };
        let is_busy = std::mem::replace(calls, open.calls) != open.calls;
        if open.unstick() || !is_busy {
            open.turn();
        }
        if is_busy {
            return Next::After(WATCH);
        }
        if open.table.waiting() > 0 {
            open.arm();
            open.turn(); // What was answered before that rings nobody.
        }
        open.is_watched = false;
        self.see_to(open);
        Next::Done
    }

    #[cold]
    fn set_alarm(&self, open: &mut Open) {
        let Some(at) = open.next_look() else { return };
        open.alarm = Some(at);
        let delay = Duration::from_nanos(at.saturating_sub(open.now()));
        let shared = Weak::clone(&self.me);
        self.service.after(delay, move |_, _, _| {
            if let Some(shared) = shared.upgrade() {
                shared.look_at_clock(at);
            }
            Next::Done
        });
    }

    /// The time of an alarm has come.
    fn look_at_clock(&self, at: u64) {
        self.look_with(|open| {
            if open.alarm == Some(at) {
                open.alarm = None;
            }
            open.look_at_clock();
            if open.is_awaited() {
                open.arm();
                open.turn();
            }
        });
    }
}

/// A thread, or a task, that waits.
pub(super) struct Waiting<'a>(&'a Shared, Awaited);

impl<'a> Waiting<'a> {
    pub fn begin(shared: &'a Shared, what: Awaited) -> Result<Self> {
        let mut guard = shared.lock()?;
        let open = shared.opened(&mut guard)?;
        open.waiters += 1;
        open.room_waiters += usize::from(what == Awaited::Room);
        Ok(Waiting(shared, what))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Ok(mut guard) = self.0.lock()
            && let Some(open) = guard.as_mut()
        {
            open.waiters -= 1;
            open.room_waiters -= usize::from(self.1 == Awaited::Room);
        }
    }
}
