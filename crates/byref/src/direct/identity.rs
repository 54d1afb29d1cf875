//! Who a mailbox is.

use crate::reader::sender::{AckedAt, PublisherInfo};
use crate::sys::process;
use std::fmt;
use std::sync::Arc;

/// A mailbox: its address, this claim on the address, and its process. Valid beyond its end; what is sent to it then is
/// [`PeerLost`](crate::Error::PeerLost), also when somebody else has the address.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Identity(Arc<PublisherInfo>);

impl Identity {
    pub(crate) fn new(address: String, incarnation: u128, process: i32) -> Self {
        Identity(Arc::new(PublisherInfo {
            id: incarnation,
            pid: process,
            name: None,
            topic: address,
            acked_at: AckedAt::default(),
        }))
    }

    /// Of the mailbox that a connection is with.
    pub(crate) fn of(info: &Arc<PublisherInfo>) -> Self {
        Identity(Arc::clone(info))
    }

    pub(crate) fn info(&self) -> &Arc<PublisherInfo> {
        &self.0
    }

    /// Its address.
    pub fn address(&self) -> &str {
        &self.0.topic
    }

    /// Different for each claim on the address.
    pub fn incarnation(&self) -> u128 {
        self.0.id
    }

    /// Its process (0 when it is out of sight).
    pub fn process(&self) -> i32 {
        self.0.pid
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({:?}, {:032x}, process {})", self.address(), self.incarnation(), self.process())
    }
}

/// Who has taken an address over.
#[derive(Clone, Debug)]
pub(crate) struct Successor {
    pub pid: i32,
    pub name: Option<Box<str>>,
}

impl Successor {
    /// The mailbox of a process.
    pub fn in_process(pid: i32) -> Self {
        Successor { pid, name: process::command_of(pid).map(String::into_boxed_str) }
    }
}
