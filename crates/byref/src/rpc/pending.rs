//! A reply that is still to come.

use crate::error::{Error, Result};
use crate::reader::message::Message;
use crate::rpc::client::Inner;
use crate::rpc::table::{End, JobId};
use crate::sync::wait::Wait;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// The reply to a request that was [submitted](crate::Client::submit). It is a future, too, for any executor.
///
/// Dropping it cancels the request: the server sees that nobody wants a reply.
#[must_use = "dropping it cancels the request"]
pub struct PendingReply {
    inner: Arc<Inner>,
    id: JobId,
    timeout: Option<Duration>,
    /// The last part that came, for who wants no other one.
    last: Option<Message>,
    is_over: bool,
    /// The service thread receives for it.
    is_watched: bool,
}

/// Cancels a request, from whichever thread: what [`PendingReply::canceller`] gives.
#[derive(Clone)]
pub struct Canceller {
    inner: Arc<Inner>,
    id: JobId,
    serial: u64,
}

impl Canceller {
    /// See [`PendingReply::cancel`].
    pub fn cancel(&self) -> bool {
        if self.inner.shared.check_fork().is_err() {
            return false;
        }
        let unwanted = self.inner.with_table(|table| {
            let is_open = table.is_open(self.id, self.serial);
            is_open.then(|| table.end(self.id, End::Cancelled))
        });
        let Some(unwanted) = unwanted else { return false };
        self.inner.after_end(unwanted);
        true
    }
}

impl PendingReply {
    pub(super) fn new(inner: &Arc<Inner>, id: JobId, timeout: Option<Duration>) -> Self {
        PendingReply { inner: Arc::clone(inner), id, timeout, last: None, is_over: false, is_watched: false }
    }

    /// The reply; waits for it until the request's deadline. Of a streamed one, the last part.
    pub fn wait(mut self) -> Result<Message> {
        self.wait_with(&mut Wait::up_to(None))
    }

    /// The same, up to a time limit ([`Error::Timeout`]: ask again), and interruptible. Once it has given the reply it is over.
    pub fn wait_with(&mut self, wait: &mut Wait<'_>) -> Result<Message> {
        while let Some(part) = self.next_with(wait)? {
            self.last = Some(part);
        }
        self.last.take().ok_or_else(|| self.no_more())
    }

    /// The next part of a streamed reply; `None`: there are no more. A reply in one piece has one part.
    pub fn next_with(&mut self, wait: &mut Wait<'_>) -> Result<Option<Message>> {
        self.inner.check_fork()?;
        loop {
            if let Some(outcome) = self.look() {
                return outcome;
            }
            if !wait.is_allowed() {
                self.inner.poll_begins();
                self.inner.progress_for(Some(self.id));
                return self.look().unwrap_or(Err(Error::WouldBlock { topic: self.inner.service.to_string() }));
            }
            let deadline = self.inner.with_table(|table| table.job(self.id).deadline);
            let given = wait.remaining();
            let left = match (given.flatten(), deadline.map(|deadline| deadline.about_left())) {
                (Some(given), Some(left)) => Some(given.min(left)),
                (given, left) => given.or(left),
            };
            let mut limited = wait.limited_to(if given.is_none() { Some(Duration::ZERO) } else { left });
            match self.inner.wait_for_job(self.id, &mut limited) {
                Ok(()) => {}
                Err(Error::Timeout { .. }) if deadline.is_some_and(|deadline| deadline.is_over()) => {
                    self.end(End::Late)
                }
                Err(Error::Timeout { topic, .. }) => {
                    if let Some(outcome) = self.look() {
                        return outcome;
                    }
                    let (what, hint) = ("request", "; it goes on, and can be waited for again".into());
                    return Err(Error::Timeout { what, topic, waited: wait.given(), hint });
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// What there is for the caller now.
    fn look(&mut self) -> Option<Result<Option<Message>>> {
        if self.is_over {
            return Some(Ok(None));
        }
        let (inner, timeout) = (&self.inner, self.timeout);
        let found = inner.with_table(|table| {
            let job = table.job(self.id);
            match job.replies.pop_front() {
                Some(part) => Some((
                    Ok(Some(part)),
                    job.replies.is_empty() && matches!(job.end, Some(End::Done)),
                    job.is_held_up(),
                )),
                None => job.end.as_ref().map(|end| (inner.error_of(end, timeout).map_or(Ok(None), Err), true, false)),
            }
        });
        let (outcome, is_over, is_part) = found?;
        if is_part {
            inner.took_part(self.id);
        }
        // Why it failed can be asked again.
        self.is_over = is_over && outcome.is_ok();
        Some(outcome)
    }

    fn end(&mut self, why: End) {
        let unwanted = self.inner.with_table(|table| table.end(self.id, why));
        self.inner.after_end(unwanted);
    }

    fn no_more(&self) -> Error {
        Error::InvalidArgument(format!(
            "service '{}': the reply was given out before, or was a stream without parts",
            self.inner.service
        ))
    }

    /// What cancels it, for another thread than the one that waits for it.
    pub fn canceller(&self) -> Canceller {
        let serial = self.inner.with_table(|table| table.serial_of(self.id));
        Canceller { inner: Arc::clone(&self.inner), id: self.id, serial }
    }

    /// The time that is left until the deadline; `None`: there is no limit.
    pub fn time_left(&self) -> Option<Duration> {
        self.inner.check_fork().ok()?;
        self.inner.with_table(|table| table.job(self.id).deadline).map(|deadline| deadline.left())
    }

    /// Whether there is something: a reply, a part of it, or the reason why there is none.
    pub fn is_ready(&mut self) -> bool {
        if self.inner.check_fork().is_err() {
            return true; // That is what it tells.
        }
        self.inner.poll_begins();
        self.inner.progress_for(Some(self.id));
        self.is_over || self.inner.with_table(|table| table.is_ready(self.id))
    }

    /// Wants no reply any more; the server sees it while it works on the request. `false`: there was nothing to cancel any more.
    pub fn cancel(&mut self) -> bool {
        !self.is_over && self.inner.check_fork().is_ok() && self.canceller().cancel()
    }
}

impl Drop for PendingReply {
    fn drop(&mut self) {
        if self.inner.check_fork().is_err() {
            return; // It is the parent's.
        }
        let unwanted = self.inner.with_table(|table| table.remove(self.id));
        self.inner.tell(unwanted);
    }
}

impl Future for PendingReply {
    type Output = Result<Message>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        this.inner.check_fork()?;
        loop {
            match this.look() {
                Some(Ok(Some(part))) => this.last = Some(part),
                Some(Ok(None)) => return Poll::Ready(this.last.take().ok_or_else(|| this.no_more())),
                Some(Err(error)) => return Poll::Ready(Err(error)),
                None => {
                    let is_ready = this.inner.with_table(|table| {
                        table.wake_with(this.id, context.waker());
                        table.is_ready(this.id)
                    });
                    if is_ready {
                        continue;
                    }
                    let deadline = this.inner.with_table(|table| table.job(this.id).deadline);
                    let is_watched = std::mem::replace(&mut this.is_watched, true);
                    let watched = || if is_watched { Ok(()) } else { this.inner.react(deadline) };
                    if let Err(error) = this.inner.check().and_then(|()| watched()) {
                        this.is_watched = is_watched;
                        return Poll::Ready(Err(error));
                    }
                    this.inner.progress_for(Some(this.id));
                    if !this.inner.with_table(|table| table.is_ready(this.id)) {
                        return Poll::Pending;
                    }
                }
            }
        }
    }
}

impl std::fmt::Debug for PendingReply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PendingReply({:?})", self.inner.service)
    }
}
