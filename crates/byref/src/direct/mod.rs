//! Mailboxes: messages to and from addresses.

pub(crate) mod asking;
pub(crate) mod everyone;
pub(crate) mod identity;
pub(crate) mod lines;
pub(crate) mod mailbox;
pub(crate) mod peers;
pub(crate) mod readers;
pub(crate) mod roster;
pub(crate) mod route;
pub(crate) mod undelivered;
