//! Who sent a message.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Weak;

/// Who published a message. Valid beyond the publisher's death.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct PublisherInfo {
    /// Different from every other publisher's.
    pub id: u128,
    /// Its process (0 when it is out of sight).
    pub pid: i32,
    /// Its name, where it was given one.
    pub name: Option<String>,
    /// The topic.
    pub topic: String,
    pub(crate) acked_at: AckedAt,
}

/// Why a subscriber takes no acknowledgement any more.
pub(crate) enum Over {
    Closed,
    /// It is the parent process's.
    Forked,
}

/// A subscriber that acknowledges by hand.
pub(crate) trait Acknowledges: Send + Sync {
    /// Messages of a connection are done with.
    fn acknowledge(&self, connection: u64, sequences: &mut dyn Iterator<Item = u64>) -> Result<(), Over>;
}

/// Where messages of a connection are acknowledged, if by hand. It is no part of whom they come from.
#[derive(Clone, Default)]
pub(crate) struct AckedAt(Option<(Weak<dyn Acknowledges>, u64)>);

impl AckedAt {
    pub fn of(subscriber: Weak<dyn Acknowledges>, connection: u64) -> Self {
        AckedAt(Some((subscriber, connection)))
    }

    /// Who takes the acknowledgement, and the number of the connection there.
    pub fn place(&self) -> Option<(&Weak<dyn Acknowledges>, u64)> {
        self.0.as_ref().map(|(subscriber, connection)| (subscriber, *connection))
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
        f.write_str(if self.0.is_some() { "by hand" } else { "by themselves" })
    }
}
