//! The endpoints of publish and subscribe, and what they give their callers.

pub(crate) mod form;
pub(crate) mod inspect;
pub(crate) mod loan;
pub(crate) mod monitor;
pub(crate) mod publisher;
pub(crate) mod selector;
pub(crate) mod subscriber;
