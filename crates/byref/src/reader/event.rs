//! What happens to a subscriber's publishers.

use crate::direct::identity::Identity;
use crate::reader::sender::PublisherInfo;
use std::sync::Arc;

/// Something that happened to one publisher. It comes in order with that publisher's messages.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Event {
    /// Whom it is about.
    pub publisher: Arc<PublisherInfo>,
    /// What happened.
    pub kind: EventKind,
}

impl Event {
    /// The mailbox whom it is about, in what a [`Mailbox`](crate::Mailbox) is told.
    pub fn peer(&self) -> Identity {
        Identity::of(&self.publisher)
    }
}

/// What happened to a publisher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// It was found. Its messages follow.
    Joined,
    /// It was closed. All its messages came before.
    Left,
    /// It died, or was disconnected because it broke the rules. All that it sent before came before.
    Lost,
    /// It disconnected this subscriber for good, for the others' sake (see
    /// [`max_stall`](crate::PublisherBuilder::max_stall)), or since it was told to.
    Evicted,
    /// Messages were lost by this subscriber's policy: `count` of them, the first with the number `first`.
    Gap {
        /// The sequence number of the first.
        first: u64,
        /// How many.
        count: u64,
    },
}

/// What a subscriber with [`events`](crate::SubscriberBuilder::events) receives: `T` is a message or a batch of them.
#[derive(Debug)]
pub enum Incoming<T> {
    /// What was sent.
    Message(T),
    /// What happened.
    Event(Event),
}
