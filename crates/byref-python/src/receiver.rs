//! `Receiver`: a callable that an event queue calls with messages, and the handle by which it is closed.

use crate::called::{AnyCalled, Called, Source};
use crate::errors::to_python;
use crate::message::Manner;
use crate::report::add_figures;
use crate::serving::{Shared, lock};
use crate::subscriber::stats_dict;
use byref::Subscriber;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use std::sync::Arc;

/// A receiver as its queue knows it.
pub type Slot = Called<Subscription>;

/// What a receiver is called for.
pub struct Subscription {
    pub subscriber: Arc<Subscriber>,
    /// Of which it is the receiving half: it goes on without the receiver.
    pub mailbox: Option<byref::Mailbox>,
    /// It ends with the receiver.
    pub is_own: bool,
    /// Of which it is the receiving half: it ends with the receiver.
    pub server: Option<byref::Server>,
    pub wants: Wants,
}

impl Source for Subscription {
    fn describe(&self, label: &str) -> String {
        format!("the receiver {label} of topic '{}'", self.subscriber.topic())
    }

    fn end(slot: &Slot, queue: &Shared) {
        match &slot.source.server {
            Some(server) => server.close(),
            None if slot.source.is_own => slot.source.subscriber.close(),
            None => {}
        }
        queue.monitor.close(&slot.account);
        lock(&queue.slots).remove(slot);
    }
}

/// What a receiver is called with.
#[derive(Clone, Copy)]
pub struct Wants {
    pub manner: Manner,
    /// Batches of so many messages at the most, instead of messages.
    pub batch: Option<usize>,
}

#[doc = doc!("Receiver")]
#[pyclass(frozen, weakref, module = "byref")]
pub struct Receiver {
    pub slot: Arc<Slot>,
    pub queue: Arc<Shared>,
}

#[pymethods]
impl Receiver {
    #[doc = doc!("Receiver.topic")]
    #[getter]
    fn topic(&self) -> &str {
        let Subscription { subscriber, server, .. } = &self.slot.source;
        server.as_ref().map_or(subscriber.topic(), byref::Server::service)
    }

    #[doc = doc!("Receiver.name")]
    #[getter]
    fn name(&self) -> &str {
        &self.slot.label
    }

    #[doc = doc!("Receiver.closed")]
    #[getter]
    fn closed(&self) -> bool {
        self.slot.is_closed()
    }

    #[doc = doc!("Receiver.stats")]
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.slot.source.subscriber.stats().map_err(|error| to_python(py, error))?;
        let dict = stats_dict(py, &stats)?;
        add_figures(&dict, &self.slot.account.figures())?;
        Ok(dict)
    }

    #[doc = doc!("Receiver.close")]
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let slot: Arc<dyn AnyCalled> = Arc::clone(&self.slot) as _;
        self.queue.close_called(py, &slot)
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.close(py)
    }

    fn __repr__(&self) -> String {
        let closed = if self.slot.is_closed() { ", closed" } else { "" };
        format!("<byref.Receiver {} of {:?}{closed}>", self.slot.label, self.slot.source.subscriber.topic())
    }
}
