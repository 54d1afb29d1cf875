//! A publisher's place in its ring, and what it knows of those who read from it.

pub(crate) mod log;
pub(crate) mod peer;
pub(crate) mod waker;
