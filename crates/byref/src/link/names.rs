//! What endpoints are called in the rendezvous directory, and what their names tell.

use crate::topic;

const QUEUE: &str = "queue-";
const MAILBOX: &str = "box-";
pub(crate) const SERVER: &str = "server-";
pub(crate) const CLIENT: &str = "client-";

/// A name of a publisher.
pub(crate) fn publisher_name(topic: &str, id: u128) -> String {
    format!("{:016x}-{id:032x}", topic::hash(topic))
}

/// A name of an event queue.
pub(crate) fn queue_name(id: u128) -> String {
    format!("{QUEUE}{id:032x}")
}

/// What pushers of a queue are announced as: publishers of a topic that no publisher can have.
pub(crate) fn topic_of_pushers(queue: &str) -> String {
    format!("**/pushers/{queue}")
}

/// The name of whichever mailbox has this address.
pub(crate) fn mailbox_name(address: &str) -> String {
    format!("{MAILBOX}{:032x}", topic::wide_hash(address))
}

/// What says whether the publisher of some identity may have announced itself under this name.
pub(crate) fn may_be_of(name: &str) -> impl Fn(u128) -> bool {
    let identity = identity_in(name);
    move |publisher| identity == Some(publisher >> 32)
}

/// Whether both can be names of one publisher.
pub(crate) fn same_publisher(one: &str, other: &str) -> bool {
    identity_in(one).is_some() && identity_in(one) == identity_in(other)
}

/// What the names of one publisher have in common.
fn identity_in(name: &str) -> Option<u128> {
    let (_, id) = name.split_once('-')?;
    Some(u128::from_str_radix(id, 16).ok()? >> 32)
}

/// Whether this is the name of a socket whose publisher may match a pattern. Only the names of single topics can be
/// told apart.
pub(crate) fn may_match(name: &str, pattern: &str) -> bool {
    let same_hash = || name.starts_with(&format!("{:016x}-", topic::hash(pattern)));
    is_final(name) && (topic::is_pattern(pattern) || same_hash())
}

pub(crate) fn is_final(name: &str) -> bool {
    name.split_once('-').is_some_and(|(hash, id)| is_hex(hash, 16) && is_hex(id, 32))
}

/// By what those who look for them know names: by the hash of their topic, or service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    Topic(u64),
    /// The servers of a service.
    Service(u64),
}

/// The key of a name; `None`: nobody looks for it.
pub(crate) fn key_in(name: &str) -> Option<Key> {
    let hash = |name: &str| u64::from_str_radix(&name[..16], 16).ok();
    match name.strip_prefix(SERVER) {
        Some(rest) if is_final(rest) => hash(rest).map(Key::Service),
        None if is_final(name) => hash(name).map(Key::Topic),
        _ => None,
    }
}

/// Whether it is the name of a client or a server.
pub(crate) fn is_party(name: &str) -> bool {
    [SERVER, CLIENT].iter().any(|prefix| name.strip_prefix(prefix).is_some_and(is_final))
}

pub(crate) fn is_queue(name: &str) -> bool {
    name.strip_prefix(QUEUE).is_some_and(|id| is_hex(id, 32))
}

pub(crate) fn is_mailbox(name: &str) -> bool {
    address_hash_in(name).is_some()
}

pub(crate) fn address_hash_in(name: &str) -> Option<u128> {
    let hash = name.strip_prefix(MAILBOX).filter(|hash| is_hex(hash, 32))?;
    u128::from_str_radix(hash, 16).ok()
}

pub(crate) fn is_hex(part: &str, len: usize) -> bool {
    part.len() == len && part.bytes().all(|byte| byte.is_ascii_hexdigit())
}
