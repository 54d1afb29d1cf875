//! What a selector's subscribers give, of whichever kind.

use crate::error::Result;
use crate::reader::batch::Batch;
use crate::reader::event::Event;
use crate::reader::job::Job;
use crate::reader::message::Message;
use crate::reader::take::Source;
use std::any::Any;

/// Who makes something of its own of what a subscriber receives.
pub(crate) trait Taker: Send + Sync {
    /// The next one.
    fn take(&self, from: &mut Source<'_>) -> Result<Option<Item>>;
}

/// What a subscriber in a selector gave.
#[derive(Debug)]
pub enum Item {
    /// A message.
    Message(Message),
    /// Several at once, for one that was [added](crate::Selector::add_batched) like that.
    Batch(Box<Batch>),
    /// A job, from a puller.
    Job(Box<Job>),
    /// What the receiving half of a server gives: a [`Request`](crate::Request), to be downcast to.
    Request(Box<dyn Any + Send>),
    /// What happened to a publisher, from a subscriber with [events](crate::SubscriberBuilder::events).
    Event(Box<Event>),
}
