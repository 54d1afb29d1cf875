//! `Event`: what happened to a publisher, seen from Python.

use crate::message::PublisherInfo;
use byref::EventKind;
use pyo3::prelude::*;
use std::sync::Arc;

/// What happened to one publisher; it comes in order with that publisher's messages.
#[pyclass(frozen, eq, hash, module = "byref")]
#[derive(PartialEq, Eq, Hash)]
pub struct Event(pub byref::Event);

impl Event {
    fn gap(&self) -> Option<(u64, u64)> {
        match self.0.kind {
            EventKind::Gap { first, count } => Some((first, count)),
            EventKind::Joined | EventKind::Left | EventKind::Lost | EventKind::Evicted => None,
        }
    }
}

#[pymethods]
impl Event {
    /// "joined", "left" (closed), "lost" (died), "evicted" (it disconnected this subscriber), or "gap" (messages were lost).
    #[getter]
    fn kind(&self) -> &'static str {
        match self.0.kind {
            EventKind::Joined => "joined",
            EventKind::Left => "left",
            EventKind::Lost => "lost",
            EventKind::Evicted => "evicted",
            EventKind::Gap { .. } => "gap",
        }
    }

    /// Whom it happened to.
    #[getter]
    fn publisher(&self) -> PublisherInfo {
        PublisherInfo(Arc::clone(&self.0.publisher))
    }

    /// That publisher's topic.
    #[getter]
    fn topic(&self) -> &str {
        &self.0.publisher.topic
    }

    /// Of a gap: how many messages were lost; otherwise 0.
    #[getter]
    fn count(&self) -> u64 {
        self.gap().map_or(0, |(_, count)| count)
    }

    /// Of a gap: the sequence number of the first message lost; otherwise None.
    #[getter]
    fn sequence(&self) -> Option<u64> {
        self.gap().map(|(first, _)| first)
    }

    fn __repr__(&self) -> String {
        let (kind, topic, pid) = (self.kind(), &self.0.publisher.topic, self.0.publisher.pid);
        match self.gap() {
            Some((first, count)) => format!("<byref.Event {kind} of {count} messages from {first} on, {topic:?}>"),
            None => format!("<byref.Event {kind}: {topic:?}, process {pid}>"),
        }
    }
}
