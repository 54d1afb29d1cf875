//! `Event`: what happened to a publisher, seen from Python.

use crate::message::PublisherInfo;
use byref::EventKind;
use pyo3::prelude::*;
use std::sync::Arc;

#[doc = doc!("Event")]
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
    #[doc = doc!("Event.kind")]
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

    #[doc = doc!("Event.publisher")]
    #[getter]
    fn publisher(&self) -> PublisherInfo {
        PublisherInfo(Arc::clone(&self.0.publisher))
    }

    #[doc = doc!("Event.topic")]
    #[getter]
    fn topic(&self) -> &str {
        &self.0.publisher.topic
    }

    #[doc = doc!("Event.count")]
    #[getter]
    fn count(&self) -> u64 {
        self.gap().map_or(0, |(_, count)| count)
    }

    #[doc = doc!("Event.sequence")]
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
