//! What a publisher knows of those who read from it.

pub(crate) mod peer;
pub(crate) mod waker;
