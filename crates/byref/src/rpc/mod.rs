//! Requests and replies: [`Client`](client::Client) and [`Server`](server::Server) of a service.
//!
//! Both are what a mailbox is made of (see [`direct`](crate::direct)): a line to each of the other kind, one store, one inbox. A request is
//! a record on the client's line to one server; a reply is a record on that server's line to the client. What a request or a reply
//! is beside its payload is one word, the record's [tag](tag).
//!
//! # How a client and a server meet
//!
//! 1. A server announces itself under a name that begins with the hash of its service. A client watches for such names.
//! 2. The client *collects* at that name (what a mailbox does when it was knocked at): the server makes a line to the client, for replies.
//! 3. The server collects at the client's name: the client makes a line to the server, for requests. It allows that to those alone from
//!    whom it collects. So whoever can be sent a request has a line for its reply.
//!
//! # The states of a request
//!
//! | state | known by | if the server ends | if the client ends |
//! | --- | --- | --- | --- |
//! | *waiting*: no server has room | the client | nothing happens to it | it is gone |
//! | *sent*: record on a line | the server's cursor is not past it | it is sent to another server, or `ServerLost`, not taken | the server still takes it, and sees that nobody wants it |
//! | *taken* | the server's cursor is past it, no reply | `ServerLost`, taken; sent to another server if it may be repeated | the server sees that nobody wants it |
//! | *answered* | a last reply on the server's line | it is received: records outlive their writer | the reply is dropped |
//!
//! The number of a request is that of its message on the line, so a reply names it by that alone. A server that ends is dealt with when
//! both are known: how far it had read the line, and that all of its replies were received (in this order nothing is repeated that was
//! answered). Of each server a client has at most `prefetch` requests under way, and each of them a *flag* in the line's ring,
//! which the client sets when it wants no reply any more. The server looks at it without receiving. A flag is used again once its request
//! is answered, so it means that request as long as the server works on it. What is answered then is the end alone, without a payload.
//!
//! A server's line to a client always has room for the last replies to `prefetch` requests; parts of a streamed reply wait for room
//! beyond that. So a server never waits for a client that takes no replies, unless it streams to it.

pub(crate) mod client;
pub(crate) mod failure;
pub(crate) mod pending;
pub(crate) mod request;
pub(crate) mod server;
pub(crate) mod table;
pub(crate) mod tag;
#[cfg(all(test, not(loom)))]
mod tests;

use crate::error::{Error, Result};
use crate::link::role::{MOST_BESIDES, Party, Role};
use crate::topic;

/// The most requests of one client that a server may have at a time: each has a flag.
pub(crate) const MOST_PREFETCHED: u64 = crate::protocol::ring::FLAGS as u64;
/// Parts of streamed replies that may wait for a client.
pub(crate) const STREAMED: u64 = 32;

/// The group in a server's address.
fn group_of(address: &str) -> Option<&str> {
    Party::of(address).map(|party| party.group)
}

/// An error of what clients and servers are made of, said of the service.
fn explained(role: Role, service: &str, error: Error) -> Error {
    let topic = service.to_owned();
    match error {
        Error::Closed { .. } => Error::Closed { what: role.what(), topic },
        Error::Forked { .. } => Error::Forked { what: role.what(), topic },
        Error::Interrupted { .. } => Error::Interrupted { topic },
        Error::WouldBlock { .. } => Error::WouldBlock { topic },
        Error::Timeout { waited, hint, .. } => Error::Timeout { what: "request", topic, waited, hint },
        Error::System { what, source, .. } => Error::System { topic, what, source },
        Error::PoolExhausted { requested, max_memory, reason, .. } => {
            Error::PoolExhausted { topic, requested, max_memory, reason }
        }
        Error::VersionMismatch { pid, theirs, ours, .. } => Error::VersionMismatch { topic, pid, theirs, ours },
        error => error,
    }
}

/// A loan is sent by itself, which cannot be a request or a reply.
fn not_by_itself(service: &str, what: &str) -> Error {
    Error::InvalidArgument(format!(
        "service '{service}': a loan for a {what} is sent by giving it to the call that sends the {what}"
    ))
}

/// Checks the name of a service, and of a group.
fn validate(service: &str, group: &str) -> Result<()> {
    if topic::is_pattern(service) {
        let reason = "a service has one name; '*' is a wildcard";
        return Err(topic::invalid(service, reason.into()));
    }
    topic::validate(service)?;
    if !group.is_empty() {
        topic::validate(group)?;
        if group.contains(['/', '@']) || topic::is_pattern(group) {
            return Err(Error::InvalidArgument(format!(
                "service '{service}': the group '{group}' must be one level of a topic, without '/', '@' and wildcards"
            )));
        }
    }
    let most = topic::MAX_TOPIC - MOST_BESIDES;
    if service.len() + group.len() > most {
        return Err(Error::InvalidArgument(format!(
            "the names of a service and a group can be at most {most} bytes long together"
        )));
    }
    Ok(())
}
