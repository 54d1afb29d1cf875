//! The expedited global memory barrier: the rare side of [`Pairing::Asymmetric`](crate::sync::Pairing).

use rustix::thread::{MembarrierCommand, membarrier, membarrier_query};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

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

/// The same, and it was never refused since.
pub(crate) fn works() -> bool {
    available() && !FAILED.load(Ordering::Relaxed)
}

/// Runs a full fence on every core that executes a registered process, including this one; whether the system did that.
///
/// It cannot fail where it has succeeded before (membarrier(2): the result is constant until reboot), unless this process has
/// gone into a sandbox since.
pub(crate) fn issue() -> bool {
    let done = membarrier(MembarrierCommand::GlobalExpedited).is_ok();
    if !done {
        FAILED.store(true, Ordering::Relaxed);
    }
    done
}

static FAILED: AtomicBool = AtomicBool::new(false);

/// A store that a running thread made so long ago is seen by all, and its later loads see what was stored so long ago.
///
/// No promise of an architecture says so. But a store leaves the processor's buffer as soon as its cache line has come, which takes
/// a microsecond, or milliseconds never; an interrupt or a switch to another thread empties the buffer, and a processor that
/// executes a thread has one with each tick (every 10 ms where ticks are rarest).
pub(crate) const SETTLED: Duration = Duration::from_millis(20);

/// Stands in for a barrier that was refused, where waiting is all that is left.
#[cold]
pub(crate) fn wait_instead() {
    std::thread::sleep(SETTLED);
}

/// The longest sleep then.
const UNFENCED_SLEEP: Duration = Duration::from_millis(10);

/// How long to sleep at once: `wanted`, but only for a moment if peers that count on this process's barriers get none.
pub(crate) fn slice(wanted: Option<Duration>) -> Option<Duration> {
    if !FAILED.load(Ordering::Relaxed) {
        return wanted;
    }
    Some(wanted.map_or(UNFENCED_SLEEP, |wanted| wanted.min(UNFENCED_SLEEP)))
}
