//! The only system calls of the crate, behind owned descriptors and checked mappings.

pub(crate) mod cgroup;
pub(crate) mod clock;
pub(crate) mod door;
pub(crate) mod epoll;
pub(crate) mod fork;
pub(crate) mod futex;
pub(crate) mod limits;
pub(crate) mod membarrier;
pub(crate) mod memory;
pub(crate) mod prefetch;
pub(crate) mod process;
pub(crate) mod processor;
pub(crate) mod ranges;
pub(crate) mod socket;
pub(crate) mod text;
pub(crate) mod transfer;
pub(crate) mod users;
pub(crate) mod woken;

/// Finds out, once, what is otherwise found out when it is first needed. A process that forks at that very moment leaves its
/// child with an answer that never comes.
pub(crate) fn prepare() {
    let _ = fork::ForkId::prepare(); // If it is refused, the first endpoint says so.
    membarrier::available();
    futex::available();
    clock::prepare();
    transfer::is_large(usize::MAX);
}
