//! Waiting as a future, without a runtime: the service thread, which hears pullers, wakes the tasks.

use crate::attributes::Encoded;
use crate::error::{Error, Result};
use crate::sync::wait::Wait;
use crate::work::open::Awaited;
use crate::work::open::Open;
use crate::work::pusher::{Pusher, Shared};
use crate::work::watch::Waiting;
use std::future::poll_fn;
use std::task::{Context, Poll};

impl Pusher {
    /// [`send`](Self::send) as a future. Dropped before it is ready, it has pushed nothing.
    pub fn send_async<'a>(&'a self, payload: &'a [u8]) -> impl Future<Output = Result<u64>> + Send + 'a {
        let send = || self.send_with(payload, &Encoded::default(), None, &mut Wait::never());
        self.shared.when(Awaited::Room, move |_| match send() {
            Err(Error::WouldBlock { .. }) => None,
            outcome => Some(outcome),
        })
    }

    /// [`join`](Self::join) as a future.
    pub fn join_async(&self) -> impl Future<Output = Result<()>> + Send + '_ {
        self.shared.when(Awaited::End, |shared| match shared.within_turn(|open| open.table.pending() == 0) {
            Ok(false) => None,
            Ok(true) => Some(Ok(())),
            Err(error) => Some(Err(error)),
        })
    }
}

impl Shared {
    /// Ready when `look`, which takes a turn, gives something.
    fn when<'a, T>(
        &'a self,
        what: Awaited,
        mut look: impl FnMut(&Shared) -> Option<Result<T>> + Send + 'a,
    ) -> impl Future<Output = Result<T>> + Send + 'a {
        let mut waiting = None;
        poll_fn(move |context| {
            let polled = self.poll_once(what, &mut look, &mut waiting, context);
            if polled.is_ready() {
                waiting = None;
            }
            polled
        })
    }

    fn poll_once<'a, T>(
        &'a self,
        what: Awaited,
        look: &mut impl FnMut(&Shared) -> Option<Result<T>>,
        waiting: &mut Option<Waiting<'a>>,
        context: &mut Context<'_>,
    ) -> Poll<Result<T>> {
        if let Some(found) = look(self) {
            return Poll::Ready(found);
        }
        if waiting.is_none() {
            *waiting = Some(Waiting::begin(self, what)?);
        }
        self.changed.wake_after_next(context.waker()); // Before the next look: what changes after that wakes the task.
        self.within_turn(Open::arm)?;
        look(self).map_or(Poll::Pending, Poll::Ready)
    }
}
