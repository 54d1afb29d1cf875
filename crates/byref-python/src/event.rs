//! `Event`: what happened to a publisher, seen from Python.

use crate::identity::Identity;
use crate::message::PublisherInfo;
use crate::undelivered::Undelivered;
use byref::EventKind;
use pyo3::prelude::*;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

#[doc = doc!("Event")]
#[pyclass(frozen, eq, hash, module = "byref")]
pub struct Event {
    event: byref::Event,
    /// It is about a mailbox.
    is_direct: bool,
    undelivered: Vec<byref::Undelivered>,
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.event == other.event
    }
}

impl Eq for Event {}

impl Hash for Event {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.event.hash(state);
    }
}

impl Event {
    /// What a subscriber, or `mailbox`, was told. The end of a mailbox comes with what that never took.
    pub fn new(event: byref::Event, mailbox: Option<&byref::Mailbox>) -> Self {
        let undelivered = match event.kind {
            EventKind::Left | EventKind::Lost | EventKind::Evicted => mailbox.map(|it| it.undelivered(event.peer())),
            EventKind::Joined | EventKind::Gap { .. } => None,
        };
        // A mailbox that was closed has dropped them.
        Event { event, is_direct: mailbox.is_some(), undelivered: undelivered.and_then(Result::ok).unwrap_or_default() }
    }

    fn gap(&self) -> Option<(u64, u64)> {
        match self.event.kind {
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
        match self.event.kind {
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
        PublisherInfo(Arc::clone(&self.event.publisher))
    }

    #[doc = doc!("Event.topic")]
    #[getter]
    fn topic(&self) -> &str {
        &self.event.publisher.topic
    }

    #[doc = doc!("Event.peer")]
    #[getter]
    fn peer(&self) -> Option<Identity> {
        self.is_direct.then(|| Identity(self.event.peer()))
    }

    #[doc = doc!("Event.undelivered")]
    #[getter]
    fn undelivered(&self) -> Vec<Undelivered> {
        self.undelivered.iter().cloned().map(Undelivered).collect()
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
        let (kind, topic, pid) = (self.kind(), &self.event.publisher.topic, self.event.publisher.pid);
        match self.gap() {
            Some((first, count)) => format!("<byref.Event {kind} of {count} messages from {first} on, {topic:?}>"),
            None => format!("<byref.Event {kind}: {topic:?}, process {pid}>"),
        }
    }
}
