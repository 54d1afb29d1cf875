//! How long a call may wait, and who may interrupt it.

use std::time::{Duration, Instant};

const FIRST_SLICE: Duration = Duration::from_millis(50);
const LONGEST_SLICE: Duration = Duration::from_secs(5);

/// A call's permission to wait.
pub struct Wait<'a> {
    permission: Permission,
    timeout: Option<Duration>,
    started: Option<Instant>,
    slice: Duration,
    longest_slice: Duration,
    interrupt: Option<&'a mut dyn FnMut() -> bool>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Permission {
    Never,
    /// As never; the caller has tried again and again since `started`.
    Polling,
    UpTo,
    /// All of the time has passed.
    Over,
}

impl<'a> Wait<'a> {
    #[inline]
    fn with(permission: Permission, timeout: Option<Duration>) -> Self {
        let (slice, longest_slice) = (FIRST_SLICE, LONGEST_SLICE);
        Wait { permission, timeout, started: None, slice, longest_slice, interrupt: None }
    }

    /// Do not wait: a call that would have to gives [`Error::WouldBlock`](crate::Error::WouldBlock).
    #[inline]
    pub fn never() -> Self {
        Self::with(Permission::Never, None)
    }

    /// Wait up to `timeout`; `None` means without limit.
    #[inline]
    pub fn up_to(timeout: Option<Duration>) -> Self {
        Self::with(Permission::UpTo, timeout)
    }

    /// Do not wait, as with [`never`](Self::never); the caller tries again and again since `began`. That counts as a wait
    /// against subscribers that stall the publisher.
    pub fn polling(began: Instant) -> Self {
        Wait { started: Some(began), ..Self::with(Permission::Polling, None) }
    }

    /// Do not wait: the caller has waited for `timeout` already. A call that would have to wait gives
    /// [`Error::Timeout`](crate::Error::Timeout).
    pub fn over(timeout: Duration) -> Self {
        Self::with(Permission::Over, Some(timeout))
    }

    /// Ask `interrupt` before going to sleep, after each signal, and now and then; `true` ends the call with
    /// [`Error::Interrupted`](crate::Error::Interrupted). It is called without any lock held.
    pub fn interruptible(mut self, interrupt: &'a mut dyn FnMut() -> bool) -> Self {
        self.interrupt = Some(interrupt);
        self
    }

    /// Ask that at least so often, for an `interrupt` that has work to do meanwhile. No message is missed for it.
    pub fn at_least_every(mut self, longest_slice: Duration) -> Self {
        self.longest_slice = longest_slice;
        self.slice = self.slice.min(longest_slice);
        self
    }

    pub(crate) fn is_allowed(&self) -> bool {
        matches!(self.permission, Permission::UpTo | Permission::Over)
    }

    /// Since when the caller has tried again and again.
    pub(crate) fn polled_since(&self) -> Option<Instant> {
        self.started.filter(|_| self.permission == Permission::Polling)
    }

    /// The time given, for error texts.
    pub(crate) fn given(&self) -> Duration {
        self.timeout.unwrap_or_default()
    }

    /// What is left (`Some(None)`: no limit), or `None` when the time is over. The clock starts with the first call.
    pub(crate) fn remaining(&mut self) -> Option<Option<Duration>> {
        if self.permission == Permission::Over {
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
        self.slice = (slice * 2).min(self.longest_slice);
        Some(left.map_or(slice, |left| left.min(slice)))
    }

    /// The same for so long, with the same interruptions.
    pub(crate) fn limited_to(&mut self, timeout: Option<Duration>) -> Wait<'_> {
        let (slice, longest_slice) = (self.slice, self.longest_slice);
        let interrupt = self.interrupt.as_mut().map(|interrupt| &mut **interrupt as &mut dyn FnMut() -> bool);
        Wait { permission: Permission::UpTo, timeout, started: None, slice, longest_slice, interrupt }
    }

    pub(crate) fn may_be_interrupted(&self) -> bool {
        self.interrupt.is_some()
    }

    pub(crate) fn is_interrupted(&mut self) -> bool {
        self.interrupt.as_mut().is_some_and(|interrupt| interrupt())
    }
}
