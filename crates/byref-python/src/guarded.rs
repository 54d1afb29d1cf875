//! State behind a lock, under which nothing of Python runs.
//!
//! # The rule
//!
//! While any lock of this binding is held, nothing of Python is called. That is more than calls of callables: formatting,
//! comparing or hashing an object may run its methods; iterating over a container may; making an object may start the garbage
//! collector, and so finalisers (making an exception is no exception); importing runs a module; and giving back the last
//! reference to an object runs its finaliser. Such code may
//!
//! - come back to the same lock on the same thread, which then waits for itself;
//! - let another thread have the interpreter, which then waits for the lock and never gives the interpreter back;
//! - on a free-threaded interpreter, wait for `gc.collect()`, which waits for each attached thread, also for one that waits
//!   for the lock.
//!
//! So whoever needs the state takes out what they need, and goes on without the lock. A lock that is held so may be waited
//! for with the interpreter attached, since whoever holds it needs nothing to go on.
//!
//! [`Guarded`] keeps what a compiler can: what `look` captures is `Send`, and whatever proves that the interpreter is attached
//! (`Python`, `Bound`) is not. What remains to be seen to: no [`Py`](pyo3::Py) is dropped in `look`, or overwritten; it is
//! returned, and dropped by the caller. An `Arc` in the state lets a reference leave without the interpreter.
//!
//! The lock around a queue's selector is no exception: it is the right to run the queue, and nobody waits for it
//! ([`serving`](crate::serving)).

use std::sync::{Mutex, PoisonError};

/// A value behind a lock.
#[derive(Default)]
pub struct Guarded<T>(Mutex<T>);

impl<T> Guarded<T> {
    pub const fn new(value: T) -> Self {
        Guarded(Mutex::new(value))
    }

    /// Runs `look` on the value, with the lock held: see the rule above.
    #[inline]
    pub fn with<R>(&self, look: impl FnOnce(&mut T) -> R + Send) -> R {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// For the garbage collector, which visits references and may neither wait nor call anything; `None`: somebody is at it.
    pub fn visit<R>(&self, look: impl FnOnce(&T) -> R) -> Option<R> {
        self.0.try_lock().ok().map(|value| look(&value))
    }
}
