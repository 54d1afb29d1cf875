//! How processes find and reach each other: the directory, who may connect, packets, the service thread.

pub(crate) mod acceptor;
pub(crate) mod access;
pub(crate) mod announcement;
pub(crate) mod ask;
pub(crate) mod candidates;
pub(crate) mod channel;
pub(crate) mod claims;
pub(crate) mod deaths;
pub(crate) mod doorstep;
pub(crate) mod handshake;
pub(crate) mod inbox;
pub(crate) mod location;
pub(crate) mod lookout;
#[cfg(all(any(test, fuzzing), not(loom)))]
pub(crate) mod meeting;
pub(crate) mod names;
pub(crate) mod pair;
pub(crate) mod pairs;
pub(crate) mod rendezvous;
pub(crate) mod role;
pub(crate) mod service;
pub(crate) mod sweep;
pub(crate) mod tasks;
