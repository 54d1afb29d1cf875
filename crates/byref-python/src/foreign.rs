//! Views of a message that live outside of Python's objects: DLPack tensors and the like, which their consumers let go of
//! from whatever thread they like, without the interpreter.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many foreign views of one message object there are: `Message.release` refuses while there are any.
#[derive(Clone, Default)]
pub struct ForeignViews(Arc<AtomicUsize>);

impl ForeignViews {
    /// How many are alive.
    pub fn count(&self) -> usize {
        // Acquire, for the decrements' release: who sees none left also sees their holds given back.
        self.0.load(Ordering::Acquire)
    }
}

/// A foreign view: a hold on the message of its own, counted as long as it lives.
///
/// It holds no Python object, so it may be dropped by any thread, with the interpreter or without, also while that shuts
/// down. Its bytes stay at their place wherever it is moved to. (Those of a small message are a copy of its own.)
pub struct Foreign {
    message: byref::Message,
    // After the message: fields are dropped in this order, so the hold is gone before the count says so.
    _counted: Counted,
}

impl Foreign {
    /// Counts one more view in `views`.
    pub fn new(message: byref::Message, views: &ForeignViews) -> Self {
        views.0.fetch_add(1, Ordering::Relaxed);
        Foreign { message, _counted: Counted(views.clone()) }
    }
}

impl Deref for Foreign {
    type Target = byref::Message;

    fn deref(&self) -> &byref::Message {
        &self.message
    }
}

impl AsRef<[u8]> for Foreign {
    fn as_ref(&self) -> &[u8] {
        &self.message
    }
}

/// One in a count of views, given back on drop.
struct Counted(ForeignViews);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Release);
    }
}
