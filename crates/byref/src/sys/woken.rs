//! How waits end.

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    Ready,
    TimedOut,
    /// A signal arrived.
    Interrupted,
}
