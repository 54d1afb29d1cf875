//! Shared memory as the protocols see it in a model: loom's atomics, and threads that die in the middle of what they do.

use loom::sync::atomic;
pub(crate) use loom::sync::atomic::{Ordering, fence};
use std::cell::Cell;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// A word of shared memory: loom's atomic, or nothing where no model needs one (loom pays for each in every execution).
pub(crate) struct Word<A>(Option<A>);

pub(crate) type AtomicU32 = Word<atomic::AtomicU32>;
pub(crate) type AtomicU64 = Word<atomic::AtomicU64>;

impl AtomicU32 {
    pub fn new(value: u32) -> Self {
        Word(Some(atomic::AtomicU32::new(value)))
    }
}

impl AtomicU64 {
    pub fn new(value: u64) -> Self {
        Word(Some(atomic::AtomicU64::new(value)))
    }

    pub fn absent() -> Self {
        Word(None)
    }
}

impl<A> Deref for Word<A> {
    type Target = A;

    fn deref(&self) -> &A {
        step();
        self.0.as_ref().expect("a word that no model needs")
    }
}

loom::thread_local! {
    static STEPS_LEFT: Cell<u32> = Cell::new(u32::MAX);
}

/// What unwinds a thread that has no steps left.
struct Death;

/// Comes before every access to shared memory; the one for which no step is left does not happen.
pub(super) fn step() {
    STEPS_LEFT.with(|left| match left.get() {
        u32::MAX => {}
        0 => resume_unwind(Box::new(Death)),
        steps => left.set(steps - 1),
    });
}

/// Runs `life` up to its end, or until it has accessed shared memory `steps` times and is about to do so again: `None`.
pub(super) fn mortal<R>(steps: u32, life: impl FnOnce() -> R) -> Option<R> {
    STEPS_LEFT.with(|left| left.set(steps));
    let outcome = catch_unwind(AssertUnwindSafe(life));
    STEPS_LEFT.with(|left| left.set(u32::MAX));
    match outcome {
        Ok(value) => Some(value),
        Err(cause) if cause.is::<Death>() => None,
        Err(panic) => resume_unwind(panic),
    }
}
