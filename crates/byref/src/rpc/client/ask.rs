//! How a request is made.

use crate::direct::identity::Identity;
use crate::rpc::table::Target;
use std::time::Duration;

/// The time for a reply, unless the caller gives another one.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// How a request is made.
#[derive(Clone, Debug)]
pub struct Ask {
    pub(crate) timeout: Option<Duration>,
    pub(crate) come: Duration,
    pub(crate) target: Target,
    pub(crate) is_repeatable: bool,
    pub(crate) timestamp_ns: Option<u64>,
}

impl Default for Ask {
    fn default() -> Self {
        let (timeout, come) = (Some(DEFAULT_TIMEOUT), Duration::ZERO);
        Ask { timeout, come, target: Target::Any, is_repeatable: false, timestamp_ns: None }
    }
}

impl Ask {
    /// The time for the reply (default: 30 s); `None`: no limit.
    pub fn timeout(mut self, time: Option<Duration>) -> Self {
        self.timeout = time;
        self
    }

    /// Lets a server come, for so long, if nobody serves (default: not at all).
    pub fn come_within(mut self, time: Duration) -> Self {
        self.come = time;
        self
    }

    /// To this server and no other one.
    pub fn to(mut self, server: &Identity) -> Self {
        self.target = Target::Server(server.clone());
        self
    }

    /// To the servers of this group.
    pub fn to_group(mut self, group: &str) -> Self {
        self.target = Target::Group(group.into());
        self
    }

    /// It may be repeated: when a server that has taken it ends without a reply, another one gets it.
    pub fn repeatable(mut self) -> Self {
        self.is_repeatable = true;
        self
    }

    /// The timestamp of the request (nanoseconds; default: `CLOCK_REALTIME`).
    pub fn timestamp_ns(mut self, timestamp_ns: Option<u64>) -> Self {
        self.timestamp_ns = timestamp_ns;
        self
    }
}
