//! What subscribers' rings are for.

use crate::sys::futex::Gong;
use std::sync::atomic::AtomicBool;

/// Who waits for subscribers to ring. The service thread, which hears them, looks here without the line's lock.
#[derive(Default)]
pub(crate) struct Rings {
    /// What senders that wait for room sleep at.
    pub room: Gong,
    /// Somebody waits for a release, perhaps.
    pub awaits: AtomicBool,
}
