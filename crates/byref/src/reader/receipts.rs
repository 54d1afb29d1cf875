//! Messages that their subscriber acknowledges itself: until then they wait, as far as the publisher knows.

use crate::error::{Error, Result};
use crate::reader::errands::Errands;
use crate::reader::message::PublisherInfo;
use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Range;
use std::sync::{Arc, Weak};

/// What a connection has taken, and what is not acknowledged yet: the position of each message's record.
#[derive(Default)]
pub(crate) struct Unacknowledged(BTreeMap<u64, u64>);

impl Unacknowledged {
    /// These messages were taken from the record of `position`.
    pub fn taken(&mut self, sequences: Range<u64>, position: u64) {
        self.0.extend(sequences.map(|sequence| (sequence, position)));
    }

    /// Messages that are none of these are acknowledged already.
    pub fn acknowledge(&mut self, sequences: &mut dyn Iterator<Item = u64>) {
        for sequence in sequences {
            self.0.remove(&sequence);
        }
    }

    /// Up to where records are acknowledged, if those below `cursor` were taken.
    pub fn floor(&self, cursor: u64) -> u64 {
        self.0.first_key_value().map_or(cursor, |(_, position)| *position)
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }
}

/// Where messages of a connection are acknowledged, if by hand. It is no part of whom they come from.
#[derive(Clone, Default)]
pub(crate) struct AckedAt(Option<(Weak<dyn Errands>, u64)>);

impl AckedAt {
    pub fn of(subscriber: Weak<dyn Errands>, connection: u64) -> Self {
        AckedAt(Some((subscriber, connection)))
    }

    pub fn is_by_hand(&self) -> bool {
        self.0.is_some()
    }
}

impl PartialEq for AckedAt {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for AckedAt {}

impl Hash for AckedAt {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl fmt::Debug for AckedAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_by_hand() { "by hand" } else { "by themselves" })
    }
}

/// What a message is acknowledged by when it is dropped first.
#[derive(Clone, Debug)]
pub struct Receipt {
    publisher: Arc<PublisherInfo>,
    sequence: u64,
}

impl Receipt {
    pub(crate) fn of(publisher: &Arc<PublisherInfo>, sequence: u64) -> Self {
        Receipt { publisher: Arc::clone(publisher), sequence }
    }

    /// [`Message::ack`](crate::Message::ack).
    pub fn ack(&self) -> Result<()> {
        acknowledge(&self.publisher, &mut std::iter::once(self.sequence))
    }
}

/// Acknowledges messages of one publisher.
pub(crate) fn acknowledge(publisher: &PublisherInfo, sequences: &mut dyn Iterator<Item = u64>) -> Result<()> {
    let topic = &publisher.topic;
    let Some((subscriber, connection)) = &publisher.acked_at.0 else {
        return Err(Error::InvalidArgument(format!(
            "topic '{topic}': this message was acknowledged when it was received; only a subscriber that was made for it acknowledges \
             by hand"
        )));
    };
    match subscriber.upgrade() {
        Some(subscriber) => subscriber.acknowledge(*connection, sequences),
        None => Err(Error::Closed { what: "subscriber", topic: topic.clone() }),
    }
}
