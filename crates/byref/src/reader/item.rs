//! What a selector's subscribers give, of whichever kind.

use crate::reader::batch::Batch;
use crate::reader::event::Event;
use crate::reader::job::Job;
use crate::reader::message::Message;

/// What a subscriber in a selector gave.
#[derive(Debug)]
pub enum Item {
    /// A message.
    Message(Message),
    /// Several at once, for one that was [added](crate::Selector::add_batched) like that.
    Batch(Box<Batch>),
    /// A job, from a puller.
    Job(Box<Job>),
    /// What happened to a publisher, from a subscriber with [events](crate::SubscriberBuilder::events).
    Event(Box<Event>),
}
