//! The atomics facade: the protocols (`ring`, `lease`, `wake`) name these types only, so that loom checks the very code
//! that ships. Under `--cfg loom` the cells are loom's, and both sides of the asymmetric fence become the sequentially
//! consistent fence that they stand for.

pub(crate) mod biased;
pub(crate) mod changes;
pub(crate) mod locks;
pub(crate) mod spin;
pub(crate) mod wait;

#[cfg(not(all(test, loom)))]
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

#[cfg(all(test, loom))]
pub(crate) use crate::models::cells::{AtomicU32, AtomicU64, Ordering, fence};

/// How the two sides of a store-load pairing (Dekker's pattern) are ordered.
///
/// One side runs on every message, the other only before it goes to sleep. With [`Asymmetric`](Pairing::Asymmetric) the
/// frequent side pays a compiler barrier and the rare side a `membarrier` system call ([`heavy_fence`]), which runs a full
/// fence on every core that executes a registered process. Where not both peers can do that, both pay a full fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pairing {
    Asymmetric,
    Fenced,
}

impl Pairing {
    /// The pairing with a peer that can use `membarrier`, or cannot.
    pub fn with(peer_can: bool) -> Self {
        if peer_can && crate::sys::membarrier::works() { Pairing::Asymmetric } else { Pairing::Fenced }
    }

    /// The frequent side's fence, between its store and its look at the sleeper's flag.
    #[inline]
    pub fn light(self) {
        match self {
            Pairing::Asymmetric => std::sync::atomic::compiler_fence(Ordering::SeqCst),
            Pairing::Fenced => fence(Ordering::SeqCst),
        }
    }
}

/// The rare side's fence, between raising its flag and its last look before it sleeps. It matches either light fence.
///
/// `false`: this process has gone into a sandbox that refuses the barrier, so it matches [`Pairing::Fenced`] only. Who sleeps has to
/// look again before long (see [`slice`](crate::sys::membarrier::slice)); who must not err has to wait.
pub(crate) fn heavy_fence() -> bool {
    fence(Ordering::SeqCst);
    cfg!(all(test, loom)) || !crate::sys::membarrier::available() || crate::sys::membarrier::issue()
}
