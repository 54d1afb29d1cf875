//! The puller: a subscriber that looks for the pushers of a queue, and answers what they send.

use crate::error::{Error, Result};
use crate::protocol::answers::WINDOW;
use crate::pubsub::subscriber::{Pull, Subscriber};
use crate::reader::future::Receiving;
use crate::reader::job::{Floor, Job};
use crate::reader::sender::PublisherInfo;
use crate::reader::take::OneJob;
use crate::reader::turns::SubscriberStats;
use crate::sync::spin::DEFAULT_MOST;
use crate::sync::wait::Wait;
use std::sync::Arc;
use std::time::Duration;

/// The most jobs that a puller can have at a time, of each pusher.
const MOST_PREFETCH: u64 = WINDOW / 2;

/// Settings of a [`Puller`]; see [`Puller::builder`].
#[derive(Clone, Debug)]
pub struct PullerBuilder {
    queue: String,
    prefetch: u64,
    spin: Duration,
    name: Option<String>,
}

impl PullerBuilder {
    /// How many jobs it has at a time, the one that it works on among them (default: 1). More hide the time that an answer and the next
    /// job take; what waits here does not go to others that are idle.
    pub fn prefetch(mut self, jobs: u64) -> Self {
        self.prefetch = jobs;
        self
    }

    /// As for a [`Subscriber`](crate::SubscriberBuilder::spin).
    pub fn spin(mut self, time: Duration) -> Self {
        self.spin = time;
        self
    }

    /// A name for people, shown to pushers.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Makes the puller, which begins to look for pushers.
    pub fn build(self) -> Result<Puller> {
        if self.prefetch == 0 || self.prefetch > MOST_PREFETCH {
            return Err(Error::InvalidArgument(format!("prefetch must be from 1 to {MOST_PREFETCH} jobs")));
        }
        let pull = Pull { prefetch: self.prefetch, floor: Arc::new(Floor::default()) };
        let floor = Arc::clone(&pull.floor);
        let builder = Subscriber::builder(self.queue).spin(self.spin).of_puller(pull);
        let builder = match self.name {
            Some(name) => builder.name(name),
            None => builder,
        };
        Ok(Puller { inbox: builder.build()?, floor })
    }
}

/// Takes jobs from the [`Pusher`](crate::Pusher)s of a queue, present and future.
///
/// It may be shared by threads: each job goes to exactly one caller. Jobs of one pusher come in the order in which they were given; among
/// several pushers turns are fair.
///
/// ```no_run
/// # fn main() -> Result<(), byref::Error> {
/// let puller = byref::Puller::builder("jobs").build()?;
/// loop {
///     let job = puller.recv()?;
///     match std::str::from_utf8(&job) {
///         Ok(text) => println!("{text}"),
///         Err(_) => {
///             job.reject("it is not text")?;
///             continue;
///         }
///     }
///     job.done()?;
/// }
/// # }
/// ```
///
/// Dropping it closes it.
pub struct Puller {
    inbox: Subscriber,
    floor: Arc<Floor>,
}

impl Puller {
    /// Settings for a puller of a queue.
    pub fn builder(queue: impl Into<String>) -> PullerBuilder {
        PullerBuilder { queue: queue.into(), prefetch: 1, spin: DEFAULT_MOST, name: None }
    }

    /// The next job; waits without limit.
    pub fn recv(&self) -> Result<Job> {
        self.recv_with(&mut Wait::up_to(None))
    }

    /// The next job; waits up to `timeout`.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Job> {
        self.recv_with(&mut Wait::up_to(Some(timeout)))
    }

    /// The next job, with an interruptible wait.
    pub fn recv_with(&self, wait: &mut Wait<'_>) -> Result<Job> {
        self.inbox.pull(wait)
    }

    /// The next job; `None` when none is there. After `None`, the [inbox](Self::inbox)'s readiness tells when one comes.
    pub fn try_recv(&self) -> Result<Option<Job>> {
        self.inbox.try_pull()
    }

    /// The next job, as a future.
    pub fn next(&self) -> impl Future<Output = Result<Job>> + Send + '_ {
        Receiving::new(&self.inbox, OneJob)
    }

    /// Its queue.
    pub fn queue(&self) -> &str {
        self.inbox.topic()
    }

    /// Jobs that were taken and not answered.
    pub fn unanswered(&self) -> u64 {
        self.floor.open()
    }

    /// The pushers that it is connected to.
    pub fn pushers(&self) -> Result<Vec<Arc<PublisherInfo>>> {
        self.inbox.publishers()
    }

    /// Waits until at least `n` pushers are connected.
    pub fn wait_for_pushers(&self, n: usize, timeout: Option<Duration>) -> Result<()> {
        self.wait_for_pushers_with(n, &mut Wait::up_to(timeout))
    }

    /// [`wait_for_pushers`](Self::wait_for_pushers) with an interruptible wait.
    pub fn wait_for_pushers_with(&self, n: usize, wait: &mut Wait<'_>) -> Result<()> {
        self.inbox.wait_for_publishers_with(n, wait)
    }

    /// The receiving half, for who waits for it and others: in a [`Selector`](crate::Selector) it gives [`Item::Job`](crate::Item::Job).
    /// Dropping it closes nothing.
    pub fn inbox(&self) -> Subscriber {
        self.inbox.handle()
    }

    /// Counters; after `close`, the last ones.
    pub fn stats(&self) -> Result<SubscriberStats> {
        self.inbox.stats()
    }

    /// Whether it was closed.
    pub fn is_closed(&self) -> Result<bool> {
        self.inbox.is_closed()
    }

    /// Closes it: what it has not taken goes to others. What it has taken may still be answered. Calling it again has no effect.
    pub fn close(&self) {
        self.inbox.close();
    }
}
