//! Locks that keep all of their state in themselves.
//!
//! A process may fork while its threads take and release locks. A child that makes objects of its own must find their locks
//! usable, so no lock may depend on a table that all locks of a process share, as those of `parking_lot` do: another
//! thread may have held that table's own lock at the fork. The standard library's locks are a word and a futex each.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, PoisonError};
use std::time::{Duration, Instant};

pub(crate) use std::sync::MutexGuard;

/// A mutex that a panic does not poison: what it protects is consistent between any two statements that may panic.
#[derive(Default)]
pub(crate) struct Mutex<T>(std::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub const fn new(value: T) -> Self {
        Mutex(std::sync::Mutex::new(value))
    }

    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A right that one thread at a time has, and that others wait for up to a time limit.
#[derive(Default)]
pub(crate) struct Turn {
    state: Mutex<State>,
    given_back: Condvar,
    /// Changes when those who wait are to do something else first.
    nudges: AtomicU32,
}

#[derive(Default)]
struct State {
    taken: bool,
    /// Threads that wait for it. Notifying nobody is a system call, too.
    waiting: u32,
}

/// The right; dropping it gives it back.
pub(crate) struct TurnGuard<'a>(&'a Turn);

impl Turn {
    /// Takes the right; `None`: another thread had it for all of `most`.
    pub fn take_within(&self, most: Duration) -> Option<TurnGuard<'_>> {
        self.take_unless_nudged(most, self.nudges())
    }

    /// How often those who wait were nudged.
    pub fn nudges(&self) -> u32 {
        self.nudges.load(Ordering::Acquire)
    }

    /// [`take_within`](Self::take_within); also `None` if they were nudged more often than that.
    pub fn take_unless_nudged(&self, most: Duration, nudges: u32) -> Option<TurnGuard<'_>> {
        let deadline = Instant::now().checked_add(most);
        let mut state = self.state.lock();
        while state.taken {
            let left = deadline.map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()));
            if left.is_zero() || self.nudges() != nudges {
                return None;
            }
            state.waiting += 1;
            state = self.given_back.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            state.waiting -= 1;
        }
        state.taken = true;
        Some(TurnGuard(self))
    }

    /// Ends the waits that are under way.
    pub fn nudge(&self) {
        self.nudges.fetch_add(1, Ordering::Release);
        let is_awaited = self.state.lock().waiting > 0; // Under the lock: who has not seen the number does not sleep yet.
        if is_awaited {
            self.given_back.notify_all();
        }
    }
}

impl Drop for TurnGuard<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.taken = false;
        let is_awaited = state.waiting > 0;
        drop(state);
        if is_awaited {
            self.0.given_back.notify_one();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_one_threads_and_comes_back() {
        let turn = Turn::default();
        let mine = turn.take_within(Duration::ZERO).expect("nobody has it");
        assert!(turn.take_within(Duration::from_millis(20)).is_none());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| turn.take_within(Duration::MAX).is_some());
            drop(mine);
            assert!(waiting.join().unwrap());
        });
        assert!(turn.take_within(Duration::ZERO).is_some());
    }

    #[test]
    fn a_nudge_ends_a_wait_that_it_comes_before_or_in() {
        let turn = Turn::default();
        let _mine = turn.take_within(Duration::ZERO);
        let seen = turn.nudges();
        turn.nudge();
        assert!(turn.take_unless_nudged(Duration::MAX, seen).is_none());
        let seen = turn.nudges();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| turn.take_unless_nudged(Duration::MAX, seen).is_none());
            std::thread::sleep(Duration::from_millis(20));
            turn.nudge();
            assert!(waiting.join().unwrap());
        });
    }
}
