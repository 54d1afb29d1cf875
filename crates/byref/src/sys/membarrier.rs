//! The expedited global memory barrier: the rare side of [`Pairing::Asymmetric`](crate::sync::Pairing).

use rustix::thread::{MembarrierCommand, membarrier, membarrier_query};
use std::sync::OnceLock;

/// Registers this process as one whose running threads take part in other processes' barriers, and says whether both
/// that and issuing barriers work here (the call may be missing, or refused by a sandbox).
///
/// A registration is inherited by forked children, so once per program image is enough.
pub(crate) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        let supported = membarrier_query();
        supported.contains_command(MembarrierCommand::GlobalExpedited)
            && membarrier(MembarrierCommand::RegisterGlobalExpedited).is_ok()
            && membarrier(MembarrierCommand::GlobalExpedited).is_ok()
    })
}

/// Runs a full fence on every core that executes a registered process, including this one.
pub(crate) fn issue() {
    // It cannot fail where it has succeeded before (membarrier(2): the result is constant until reboot).
    let done = membarrier(MembarrierCommand::GlobalExpedited);
    debug_assert!(done.is_ok(), "membarrier stopped working");
}
