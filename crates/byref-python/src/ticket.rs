//! `Ticket`: the release of a message, seen from Python.

use crate::errors::to_python;
use crate::waiting::Timeout;
use pyo3::prelude::*;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;

/// Tells when a message is released: every subscriber has passed it, and none holds it any more.
#[pyclass(frozen, weakref, module = "byref")]
pub struct Ticket(pub byref::Ticket);

#[pymethods]
impl Ticket {
    /// The message's sequence number.
    #[getter]
    fn sequence(&self) -> u64 {
        self.0.sequence()
    }

    /// Whether the message is released by now. Once it was, it stays so.
    #[getter]
    fn released(&self, py: Python<'_>) -> PyResult<bool> {
        self.0.is_released().map_err(|error| to_python(py, error))
    }

    /// Waits until the message is released. Timeout, which names who holds it; Closed when the publisher was closed before.
    #[pyo3(signature = (timeout=None))]
    fn wait_released(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<()> {
        Timeout::new(timeout)?.wait_if_needed(py, |wait| self.0.wait_released_with(wait))
    }

    /// `await ticket` waits in an event loop, as `wait_released` does on a thread.
    fn __await__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let waiting = slf.py().import("byref._aio")?.getattr("released")?.call1((slf,))?;
        waiting.call_method0("__await__")
    }

    fn __repr__(&self) -> String {
        format!("<byref.Ticket of message {} on {:?}>", self.0.sequence(), self.0.topic())
    }
}

/// What an event loop polls for all the tickets that its tasks wait for.
#[pyclass(frozen, name = "_Releases", module = "byref")]
pub struct Releases(Arc<byref::Releases>);

#[pymethods]
impl Releases {
    #[new]
    fn new() -> PyResult<Self> {
        Ok(Releases(Arc::new(byref::Releases::new()?)))
    }

    /// Readable when `take` has something to tell.
    fn fileno(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }

    /// Waits for a ticket, under a name.
    fn add(&self, py: Python<'_>, ticket: &Ticket, name: u64) -> PyResult<()> {
        self.0.add(&ticket.0, name).map_err(|error| to_python(py, error))
    }

    /// Waits for it no more.
    fn remove(&self, ticket: &Ticket, name: u64) {
        self.0.remove(&ticket.0, name);
    }

    /// The names of the tickets that are over, each once.
    fn take(&self) -> Vec<u64> {
        self.0.take()
    }
}
