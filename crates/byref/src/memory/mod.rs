//! The publisher's memory beside its ring: chunks for payloads, and what many messages refer to.

pub(crate) mod glossary;
pub(crate) mod pool;
