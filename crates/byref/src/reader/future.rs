//! Receiving as a future, without a runtime: the service thread looks at the descriptor, and wakes the task.

use crate::error::{Error, Result};
use crate::link::service::Handle;
use crate::link::tasks::{Next, Token};
use crate::pubsub::subscriber::Subscriber;
use crate::reader::take::Take;
use crate::sys::epoll::Interest;
use rustix::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// What [`Subscriber::next`] gives. Dropped before it is ready, it has taken nothing.
pub struct Receiving<'a, T> {
    subscriber: &'a Subscriber,
    what: T,
    /// The descriptor, and who looks at it; made when nothing was there at first.
    watched: Option<(OwnedFd, Arc<Handle>)>,
    token: Option<Token>,
}

impl<'a, T> Receiving<'a, T> {
    pub(crate) fn new(subscriber: &'a Subscriber, what: T) -> Self {
        Receiving { subscriber, what, watched: None, token: None }
    }

    fn stop_watching(&mut self) {
        if let (Some(token), Some((_, service))) = (self.token.take(), &self.watched) {
            service.cancel(token);
        }
    }
}

impl<T: Take + Copy + Unpin> Future for Receiving<'_, T> {
    type Output = Result<T::Taken>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        this.stop_watching();
        let failed = || Error::system(this.subscriber.topic(), "cannot wait for messages");
        if this.watched.is_none() {
            // Before the look: from then on what comes makes it readable.
            let readiness = this.subscriber.readiness()?;
            let fd = readiness.as_fd().try_clone_to_owned().map_err(failed())?;
            this.watched = Some((fd, this.subscriber.service()?));
        }
        if let Some(taken) = this.subscriber.try_receive(this.what)? {
            return Poll::Ready(Ok(taken));
        }
        let Some((fd, service)) = &this.watched else { return Poll::Pending };
        let waker = context.waker().clone();
        let wake = move |_: &Arc<_>, _, _| {
            waker.wake_by_ref();
            Next::Done
        };
        // A descriptor of its own: the service thread may be about to take the last one out.
        let own = fd.try_clone().map_err(failed())?;
        this.token = Some(service.watch(Arc::new(own), Interest::IN, None, wake).map_err(failed())?);
        Poll::Pending
    }
}

impl<T> Drop for Receiving<'_, T> {
    fn drop(&mut self) {
        self.stop_watching();
    }
}
