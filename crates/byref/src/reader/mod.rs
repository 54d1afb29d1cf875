//! One publisher, as a subscriber reads from it.

pub(crate) mod connection;
