//! Leaving a processor that a peer needs.

use rustix::thread::{sched_getaffinity, sched_getcpu, sched_setaffinity};

/// Asks the system to run this thread on another of the processors that it may use, if there is one.
///
/// Two threads that answer each other and never sleep may share a processor for long while another one is idle: waking one
/// of them does not help on a virtual machine, where Linux takes a halted processor for one that the host has taken away
/// (`vcpu_is_preempted`), and balancing comes to it late. Taking the present processor out of the thread's set moves it
/// at once; the set is then what it was before.
pub(crate) fn leave() {
    let Ok(all) = sched_getaffinity(None) else { return };
    if all.count() < 2 {
        return;
    }
    let mut others = all;
    others.unset(sched_getcpu());
    if others.count() > 0 && sched_setaffinity(None, &others).is_ok() {
        // It was allowed a moment ago; if the system has taken processors away since, it has also narrowed the set.
        let _ = sched_setaffinity(None, &all);
    }
}
