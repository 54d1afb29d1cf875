//! Attempts at something that may have to wait for room.

use crate::error::{Error, Result};
use std::time::Duration;

/// A waiting publisher that nobody rings looks again after this time: a system without memory may have swallowed the ring.
pub(crate) const LOST_RING: Duration = Duration::from_millis(100);
/// While memory is held by leases, whose release rings no bell, the publisher looks again after this time.
pub(crate) const LEASE_POLL: Duration = Duration::from_millis(1);

/// The call that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Send,
    /// It waits for subscribers, but not for their room: it evicts nobody.
    Flush,
}

impl Call {
    /// For error texts.
    pub fn name(self) -> &'static str {
        match self {
            Call::Send => "send",
            Call::Flush => "flush",
        }
    }
}

/// The outcome of one attempt at something that may have to wait.
pub(crate) enum Attempt<T> {
    Done(T),
    Fail(Error),
    /// Try again when a cursor reaches `at`, and after `poll`.
    Wait {
        at: u64,
        poll: Option<Duration>,
    },
}

impl<T> Attempt<T> {
    /// What to wait for; a result is the end.
    pub fn over(self) -> Result<(u64, Option<Duration>), Result<T>> {
        match self {
            Attempt::Done(value) => Err(Ok(value)),
            Attempt::Fail(error) => Err(Err(error)),
            Attempt::Wait { at, poll } => Ok((at, poll)),
        }
    }
}
