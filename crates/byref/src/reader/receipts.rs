//! Messages that their subscriber acknowledges itself: until then they wait, as far as the publisher knows.

use crate::error::{Error, Result};
use crate::reader::sender::{Over, PublisherInfo};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

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
    let Some((subscriber, connection)) = publisher.acked_at.place() else {
        return Err(Error::InvalidArgument(format!(
            "topic '{topic}': this message was acknowledged when it was received; only a subscriber that was made for it acknowledges \
             by hand"
        )));
    };
    let what = "subscriber";
    match subscriber.upgrade().map_or(Err(Over::Closed), |subscriber| subscriber.acknowledge(connection, sequences)) {
        Ok(()) => Ok(()),
        Err(Over::Closed) => Err(Error::Closed { what, topic: topic.clone() }),
        Err(Over::Forked) => Err(Error::Forked { what, topic: topic.clone() }),
    }
}
