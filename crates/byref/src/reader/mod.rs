//! What subscribers read: connections to publishers, a reader that takes turns among them and sleeps for all, and the messages,
//! batches and events that come from them.

pub(crate) mod batch;
pub(crate) mod bells;
pub(crate) mod connection;
pub(crate) mod ends;
pub(crate) mod errands;
pub(crate) mod event;
pub(crate) mod future;
pub(crate) mod item;
pub(crate) mod job;
pub(crate) mod message;
pub(crate) mod receipts;
pub(crate) mod sender;
pub(crate) mod sleep;
pub(crate) mod take;
pub(crate) mod turns;
