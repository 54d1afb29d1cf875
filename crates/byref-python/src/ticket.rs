//! `Ticket`: the release of a message, seen from Python.

use crate::ending;
use crate::errors::to_python;
use crate::waiting::Timeout;
use pyo3::prelude::*;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;

#[doc = doc!("Ticket")]
#[pyclass(frozen, weakref, module = "byref")]
pub struct Ticket(pub byref::Ticket);

#[pymethods]
impl Ticket {
    #[doc = doc!("Ticket.sequence")]
    #[getter]
    fn sequence(&self) -> u64 {
        self.0.sequence()
    }

    #[doc = doc!("Ticket.released")]
    #[getter]
    fn released(&self, py: Python<'_>) -> PyResult<bool> {
        self.0.is_released().map_err(|error| to_python(py, error))
    }

    #[doc = doc!("Ticket.wait_released")]
    #[pyo3(signature = (timeout=None))]
    fn wait_released(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<()> {
        Timeout::new(timeout)?.wait_if_needed(py, |wait| self.0.wait_released_with(wait))
    }

    #[doc = doc!("Ticket.__await__")]
    fn __await__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        ending::outlive();
        let waiting = slf.py().import("byref._aio")?.getattr("released")?.call1((slf,))?;
        waiting.call_method0("__await__")
    }

    fn __repr__(&self) -> String {
        format!("<byref.Ticket of message {} on {:?}>", self.0.sequence(), self.0.topic())
    }
}

#[doc = doc!("_Releases")]
#[pyclass(frozen, name = "_Releases", module = "byref")]
pub struct Releases(Arc<byref::Releases>);

#[pymethods]
impl Releases {
    #[new]
    fn new() -> PyResult<Self> {
        Ok(Releases(Arc::new(byref::Releases::new()?)))
    }

    #[doc = doc!("_Releases.fileno")]
    fn fileno(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }

    #[doc = doc!("_Releases.add")]
    fn add(&self, py: Python<'_>, ticket: &Ticket, name: u64) -> PyResult<()> {
        self.0.add(&ticket.0, name).map_err(|error| to_python(py, error))
    }

    #[doc = doc!("_Releases.remove")]
    fn remove(&self, ticket: &Ticket, name: u64) {
        self.0.remove(&ticket.0, name);
    }

    #[doc = doc!("_Releases.take")]
    fn take(&self) -> Vec<u64> {
        ending::outlive();
        self.0.take()
    }
}
