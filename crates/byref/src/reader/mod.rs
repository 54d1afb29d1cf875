//! What subscribers read: connections to publishers, and the messages, batches and events that come from them.

pub(crate) mod batch;
pub(crate) mod connection;
pub(crate) mod event;
pub(crate) mod message;
