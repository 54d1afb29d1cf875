//! Loom models of the protocols: the code that ships, under every interleaving of its threads and with every value that
//! the C++20 memory model lets a load return. Run them, or one of them by name, with
//!
//! ```sh
//! RUSTFLAGS="--cfg loom" cargo test -p byref --lib --target-dir target/loom models
//! ```
//!
//! # What runs
//!
//! [`Ring`], [`Lease`], [`Sleeper`], [`Waiter`], [`Pairing::light`], [`heavy_fence`] and [`horizon`] themselves, over the
//! words of [`cells`]. What surrounds them in `publisher.rs`, `connection.rs` and `subscriber.rs` (maps, sockets, locks)
//! cannot run here; [`parties`] repeats the order of its steps, and each method there names its original.
//!
//! `docs/orderings.md` lists every ordering of the protocols, and the model that fails without it; `make weaken` checks the
//! list.
//!
//! # What loom does not see
//!
//! - Membarrier. The wake-up models use [`Pairing::Fenced`], the order that membarrier(2) guarantees. All other models use
//!   [`Pairing::Asymmetric`], whose light fence orders nothing here, so that nothing else comes to rely on it.
//! - A load that returns what is stored only later (a load and a later store of one thread exchanged). What such a load
//!   must not see is guarded by a [`Plain`](parties::Plain) beside it: loom reports accesses to that which are not ordered.
//!
//! A model that names a preemption bound explores all executions in which threads are interrupted at most so often;
//! `LOOM_MAX_PREEMPTIONS` sets another bound for all. One without is exhaustive.
//!
//! [`Ring`]: crate::protocol::ring::Ring
//! [`Lease`]: crate::protocol::lease::Lease
//! [`Sleeper`]: crate::protocol::wake::Sleeper
//! [`Waiter`]: crate::protocol::wake::Waiter
//! [`horizon`]: crate::protocol::claim::horizon
//! [`Pairing::light`]: crate::sync::Pairing::light
//! [`Pairing::Fenced`]: crate::sync::Pairing::Fenced
//! [`Pairing::Asymmetric`]: crate::sync::Pairing::Asymmetric
//! [`heavy_fence`]: crate::sync::heavy_fence

mod answers;
mod biased;
pub(crate) mod cells;
mod death;
mod lease;
mod parties;
mod ring;
mod wake;

/// No preemption bound.
const EXHAUSTIVE: Option<usize> = None;

/// Runs `model` in every execution, up to a number of preemptions.
fn explore(preemptions: Option<usize>, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(preemptions);
    builder.check(model);
}
