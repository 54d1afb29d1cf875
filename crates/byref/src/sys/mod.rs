//! The only system calls of the crate, behind owned descriptors and checked mappings.

pub(crate) mod cgroup;
pub(crate) mod clock;
pub(crate) mod epoll;
pub(crate) mod fork;
pub(crate) mod limits;
pub(crate) mod membarrier;
pub(crate) mod memory;
pub(crate) mod prefetch;
pub(crate) mod process;
pub(crate) mod processor;
pub(crate) mod socket;
pub(crate) mod users;
