//! How much one message may hold, whatever its format.

/// The deepest nesting of containers.
pub const MOST_LEVELS: usize = 64;
/// The most tokens of a message: a peer can write one in three bytes, but not make its reader spend gigabytes on them.
pub const MOST_TOKENS: usize = 1 << 20;
