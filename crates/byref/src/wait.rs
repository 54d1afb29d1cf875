//! How long a call may wait, and who may interrupt it.

use std::time::{Duration, Instant};

const FIRST_SLICE: Duration = Duration::from_millis(50);
const LONGEST_SLICE: Duration = Duration::from_secs(5);

/// A call's permission to wait.
pub struct Wait<'a> {
    allowed: bool,
    timeout: Option<Duration>,
    started: Option<Instant>,
    slice: Duration,
    interrupt: Option<&'a mut dyn FnMut() -> bool>,
    polled_since: Option<Instant>,
    over: bool,
}

impl<'a> Wait<'a> {
    /// Do not wait: a call that would have to gives [`Error::WouldBlock`](crate::Error::WouldBlock).
    pub fn never() -> Self {
        Wait { allowed: false, ..Self::up_to(None) }
    }

    /// Wait up to `timeout`; `None` means without limit.
    pub fn up_to(timeout: Option<Duration>) -> Self {
        Wait {
            allowed: true,
            timeout,
            started: None,
            slice: FIRST_SLICE,
            interrupt: None,
            polled_since: None,
            over: false,
        }
    }

    /// Do not wait, as with [`never`](Self::never); the caller tries again and again since `began`. That counts as a wait
    /// against subscribers that stall the publisher.
    pub fn polling(began: Instant) -> Self {
        Wait { polled_since: Some(began), ..Self::never() }
    }

    /// Do not wait: the caller has waited for `timeout` already. A call that would have to wait gives
    /// [`Error::Timeout`](crate::Error::Timeout).
    pub fn over(timeout: Duration) -> Self {
        Wait { over: true, ..Self::up_to(Some(timeout)) }
    }

    /// Ask `interrupt` before going to sleep, after each signal, and now and then; `true` ends the call with
    /// [`Error::Interrupted`](crate::Error::Interrupted). It is called without any lock held.
    pub fn interruptible(mut self, interrupt: &'a mut dyn FnMut() -> bool) -> Self {
        self.interrupt = Some(interrupt);
        self
    }

    pub(crate) fn is_allowed(&self) -> bool {
        self.allowed
    }

    /// Since when the caller has tried again and again.
    pub(crate) fn polled_since(&self) -> Option<Instant> {
        self.polled_since
    }

    /// The time given, for error texts.
    pub(crate) fn given(&self) -> Duration {
        self.timeout.unwrap_or_default()
    }

    /// What is left (`Some(None)`: no limit), or `None` when the time is over. The clock starts with the first call.
    pub(crate) fn remaining(&mut self) -> Option<Option<Duration>> {
        if self.over {
            return None;
        }
        let Some(timeout) = self.timeout else { return Some(None) };
        let started = *self.started.get_or_insert_with(Instant::now);
        timeout.checked_sub(started.elapsed()).filter(|left| !left.is_zero()).map(Some)
    }

    /// How long to sleep at once, of what is left. A signal may arrive just before a sleep, or at another thread; so someone
    /// who may be interrupted first sleeps briefly, then longer and longer.
    pub(crate) fn slice(&mut self, left: Option<Duration>) -> Option<Duration> {
        if self.interrupt.is_none() {
            return left;
        }
        let slice = self.slice;
        self.slice = (slice * 2).min(LONGEST_SLICE);
        Some(left.map_or(slice, |left| left.min(slice)))
    }

    pub(crate) fn is_interrupted(&mut self) -> bool {
        self.interrupt.as_mut().is_some_and(|interrupt| interrupt())
    }
}
