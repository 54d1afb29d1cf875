//! Leaving a processor that somebody else needs.

use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_getcpu, sched_setaffinity};

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

/// Where a thread of byref's own is to run. A thread runs where the one that starts it does: one that is pinned to a processor, and
/// looks for work there without a pause, would leave it nothing. So it runs where any thread of the process may that is not pinned
/// to a single processor, and not where one is pinned: a program that was given some processors keeps to these. Where all threads
/// are pinned, or nothing is left so, it runs where any of them may. Threads of byref's own do not count.
fn for_helpers() -> Option<CpuSet> {
    let (mut roomy, mut pinned) = (CpuSet::new(), CpuSet::new());
    for thread in std::fs::read_dir("/proc/self/task").ok()? {
        let Ok(thread) = thread else { continue };
        if std::fs::read(thread.path().join("comm")).is_ok_and(|name| name.starts_with(b"byref")) {
            continue;
        }
        let id = thread.file_name().to_str().and_then(|id| Pid::from_raw(id.parse().ok()?));
        let Some(set) = id.and_then(|id| sched_getaffinity(Some(id)).ok()) else { continue };
        let sort = if set.count() == 1 { &mut pinned } else { &mut roomy };
        (0..CpuSet::MAX_CPU).filter(|processor| set.is_set(*processor)).for_each(|processor| sort.set(processor));
    }
    if roomy.count() == 0 {
        return (pinned.count() > 0).then_some(pinned);
    }
    let mut free = roomy;
    (0..CpuSet::MAX_CPU).filter(|processor| pinned.is_set(*processor)).for_each(|processor| free.unset(processor));
    Some(if free.count() > 0 { free } else { roomy })
}

/// Starts a thread by `start` that runs [there](for_helpers) from its first instruction: where this one is, it may never get to move.
pub(crate) fn start_apart<T>(start: impl FnOnce() -> T) -> T {
    let here = sched_getaffinity(None).ok();
    let apart = for_helpers().filter(|apart| here.is_some_and(|here| here != *apart));
    let moved = apart.is_some_and(|apart| sched_setaffinity(None, &apart).is_ok());
    let started = start();
    if let Some(here) = here.filter(|_| moved) {
        let _ = sched_setaffinity(None, &here); // As in `leave`.
    }
    started
}
