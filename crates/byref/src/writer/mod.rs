//! What publishers write: a store of payload memory, and lines, each a ring with its readers.

pub(crate) mod append;
pub(crate) mod attempt;
pub(crate) mod duties;
pub(crate) mod errands;
pub(crate) mod eviction;
pub(crate) mod line;
pub(crate) mod log;
pub(crate) mod outstanding;
pub(crate) mod owner;
pub(crate) mod peer;
pub(crate) mod readers;
pub(crate) mod release;
pub(crate) mod rings;
pub(crate) mod room;
pub(crate) mod sent;
pub(crate) mod store;
#[cfg(all(test, not(loom)))]
mod tests;
pub(crate) mod ticket;
pub(crate) mod waker;
