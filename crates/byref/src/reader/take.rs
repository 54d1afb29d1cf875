//! What a receive takes.

use crate::error::{Error, Result};
use crate::reader::batch::Batch;
use crate::reader::event::Incoming;
use crate::reader::job::Job;
use crate::reader::message::Message;
use crate::reader::turns::Reader;

/// What [`Subscriber::receive`](crate::Subscriber::receive) takes: [`One`] message, or [`UpTo`] so many; [`Told`] adds events.
pub trait Take {
    /// What it gives.
    type Taken;

    #[doc(hidden)]
    fn check(&self, topic: &str) -> Result<()>;

    /// The next one, up to the next event.
    #[doc(hidden)]
    fn take_up_to_event(&self, from: &mut Source<'_>) -> Result<Option<Self::Taken>>;

    /// The next one, whatever happened before.
    #[doc(hidden)]
    #[inline(always)]
    fn take(&self, from: &mut Source<'_>) -> Result<Option<Self::Taken>> {
        if from.0.tells_events {
            return from.0.take_past_events(|reader| self.take_up_to_event(&mut Source(reader)));
        }
        self.take_up_to_event(from)
    }
}

/// Whom it is taken from.
#[doc(hidden)]
pub struct Source<'a>(pub(crate) &'a mut Reader);

/// One message.
#[derive(Clone, Copy, Debug, Default)]
pub struct One;

impl Take for One {
    type Taken = Message;

    #[inline(always)]
    fn check(&self, _: &str) -> Result<()> {
        Ok(())
    }

    #[inline(always)]
    fn take_up_to_event(&self, from: &mut Source<'_>) -> Result<Option<Message>> {
        from.0.take_one()
    }
}

/// One job, of a puller.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct OneJob;

impl Take for OneJob {
    type Taken = Job;

    #[inline]
    fn check(&self, _: &str) -> Result<()> {
        Ok(())
    }

    #[inline]
    fn take_up_to_event(&self, from: &mut Source<'_>) -> Result<Option<Job>> {
        from.0.take_job()
    }
}

/// A batch of the messages that are there, at most so many. It waits for the first only. Messages that were sent together with
/// [`Rows`](crate::Rows) are a batch, or several, without others.
#[derive(Clone, Copy, Debug)]
pub struct UpTo(pub usize);

impl Take for UpTo {
    type Taken = Batch;

    fn check(&self, topic: &str) -> Result<()> {
        match self.0 {
            0 => Err(Error::InvalidArgument(format!("topic '{topic}': a batch has at least 1 message"))),
            _ => Ok(()),
        }
    }

    fn take_up_to_event(&self, from: &mut Source<'_>) -> Result<Option<Batch>> {
        from.0.take_batch(self.0)
    }
}

/// The same, and what happens to publishers, of a subscriber with [`events`](crate::SubscriberBuilder::events).
#[derive(Clone, Copy, Debug)]
pub struct Told<T>(pub T);

impl<T: Take> Take for Told<T> {
    type Taken = Incoming<T::Taken>;

    fn check(&self, topic: &str) -> Result<()> {
        self.0.check(topic)
    }

    fn take_up_to_event(&self, from: &mut Source<'_>) -> Result<Option<Self::Taken>> {
        from.0.take_incoming(|reader| self.0.take_up_to_event(&mut Source(reader)))
    }

    fn take(&self, from: &mut Source<'_>) -> Result<Option<Self::Taken>> {
        self.take_up_to_event(from)
    }
}
