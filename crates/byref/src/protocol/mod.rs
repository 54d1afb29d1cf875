//! What the two sides of a connection say to each other through shared words. No system call: loom runs these very files.

pub(crate) mod answers;
pub(crate) mod claim;
pub(crate) mod lease;
pub(crate) mod note;
pub(crate) mod regions;
pub(crate) mod ring;
pub(crate) mod wake;
