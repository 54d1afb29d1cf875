//! Removing from the rendezvous directory what the dead left behind.

use crate::link::claims::{Attempted, Claim};
use crate::link::names::{address_hash_in, is_final, is_party, is_queue};
use crate::link::rendezvous::{Directory, new_id};
use crate::sys::socket::Connect;
use std::collections::HashSet;

/// Removes what dead publishers of any topic, and dead event queues, mailboxes, clients and servers, left behind.
pub(crate) fn sweep(directory: &Directory) {
    // One socket has a name for each publisher of its process.
    let mut alive = HashSet::new();
    for name in directory.entries().unwrap_or_default() {
        if is_final(&name) || is_queue(&name) || is_party(&name) {
            let socket = directory.socket_id(&name);
            // A live process sees a connection that says nothing and ends.
            if !alive.contains(&socket) && !matches!(directory.connect(&name), Ok(Connect::Refused)) {
                alive.insert(socket);
            }
        } else if let Some(hash) = address_hash_in(&name) {
            sweep_mailbox(directory, &name, hash);
        } else if directory.is_abandoned(&name) {
            directory.remove(&name);
        }
    }
}

/// Removes the name of a mailbox that is dead. Whoever claims its address meanwhile has to wait.
fn sweep_mailbox(directory: &Directory, name: &str, hash: u128) {
    if !matches!(directory.connect(name), Ok(Connect::Refused)) {
        return;
    }
    if let Ok(Attempted::Taken(_claim)) = Claim::attempt(directory, hash, new_id())
        && matches!(directory.connect(name), Ok(Connect::Refused))
    {
        directory.remove(name);
    }
}
