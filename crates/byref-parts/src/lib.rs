//! Payloads of several parts: where the parts go, how they are described, and Arrow data among them.
//!
//! Nothing here knows of Python, or of how messages travel. [`plan`] lays parts out, [`tokens`] describe them, [`layout`] says where
//! those are, [`packed`] holds scalars, [`arrow`] reads and shows data through the Arrow C data interface. What a peer sent is checked here before anybody uses it.

pub mod arrow;
pub mod bounds;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub mod layout;
pub mod packed;
pub mod plan;
pub mod tokens;
