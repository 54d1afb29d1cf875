//! Waiting until something that seldom happens has happened: a peer came, or left.

use crate::error::Result;
use crate::sync::locks::Mutex;
use crate::sync::wait::Wait;
use std::sync::{Condvar, PoisonError};
use std::task::Waker;
use std::time::Duration;

/// A signal may arrive at another thread, so a waiting one looks so often.
const SLICE: Duration = Duration::from_millis(20);

/// How a wait ended.
pub(crate) enum Ended {
    Done,
    TimedOut,
    Interrupted,
}

/// Counts changes, and wakes those who wait for the next one.
#[derive(Default)]
pub(crate) struct Changes {
    count: Mutex<u64>,
    changed: Condvar,
    /// Tasks that wait for the next one.
    tasks: Mutex<Vec<Waker>>,
}

impl Changes {
    pub fn notify(&self) {
        *self.count.lock() += 1;
        self.changed.notify_all();
        let tasks = std::mem::take(&mut *self.tasks.lock());
        tasks.into_iter().for_each(Waker::wake); // Without the lock.
    }

    /// Wakes a task at the next change.
    pub fn wake_after_next(&self, task: &Waker) {
        let mut tasks = self.tasks.lock();
        if !tasks.iter().any(|known| known.will_wake(task)) {
            tasks.push(task.clone());
        }
    }

    /// Asks `is_done` after each change, until it says so.
    pub fn until(&self, wait: &mut Wait<'_>, is_done: impl FnMut() -> Result<bool>) -> Result<Ended> {
        self.until_or_every(SLICE, wait, is_done)
    }

    /// The same, and asks at least so often.
    pub fn until_or_every(
        &self,
        most: Duration,
        wait: &mut Wait<'_>,
        mut is_done: impl FnMut() -> Result<bool>,
    ) -> Result<Ended> {
        loop {
            let seen = *self.count.lock(); // Before the look: what changes after it ends the sleep.
            if is_done()? {
                return Ok(Ended::Done);
            }
            let Some(left) = wait.remaining() else { return Ok(Ended::TimedOut) };
            let count = self.count.lock();
            if *count == seen {
                let slice = wait.slice(left).unwrap_or(most).min(most);
                drop(self.changed.wait_timeout(count, slice).unwrap_or_else(PoisonError::into_inner));
            } else {
                drop(count);
            }
            if wait.is_interrupted() {
                return Ok(Ended::Interrupted);
            }
        }
    }
}
