//! `Subscriber`, seen from Python.

use crate::errors::to_python;
use crate::message::{Message, PublisherInfo};
use crate::publisher::{POLICIES, non_negative};
use crate::waiting::Timeout;
use byref::{Error, Readiness};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::OnceLock;

/// Receives the messages of every publisher of one topic. It may be shared by threads: each message goes to one caller.
#[pyclass(frozen, weakref, module = "byref")]
pub struct Subscriber {
    core: byref::Subscriber,
    writable: bool,
    /// Kept open beyond `close()`, so that an event loop never polls another file's descriptor by mistake.
    readiness: OnceLock<Readiness>,
}

impl Subscriber {
    #[inline]
    fn wrap(&self, message: byref::Message) -> Message {
        Message::new(message, self.writable)
    }
}

/// A subscriber of the core, from Python's arguments.
pub fn build(
    py: Python<'_>,
    topic: &str,
    policy: &str,
    depth: Option<i128>,
    history: i128,
    name: Option<String>,
) -> PyResult<byref::Subscriber> {
    let Some((_, policy)) = POLICIES.iter().find(|(known, _)| *known == policy) else {
        return Err(PyValueError::new_err(format!(
            "policy must be 'block', 'drop_oldest' or 'latest', not {policy:?}"
        )));
    };
    let mut builder = byref::Subscriber::builder(topic).policy(*policy).history(non_negative("history", history)?);
    if let Some(depth) = depth {
        builder = builder.depth(non_negative("depth", depth)?);
    }
    if let Some(name) = name {
        builder = builder.name(name);
    }
    builder.build().map_err(|error| to_python(py, error))
}

/// The counters, as a dict.
pub fn stats_dict<'py>(py: Python<'py>, stats: &byref::SubscriberStats) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("received", stats.received)?;
    dict.set_item("bytes", stats.bytes)?;
    dict.set_item("copied_bytes", stats.copied_bytes)?;
    dict.set_item("lost", stats.lost)?;
    dict.set_item("sleeps", stats.sleeps)?;
    Ok(dict)
}

#[pymethods]
impl Subscriber {
    #[new]
    #[pyo3(signature = (topic, policy="block", depth=None, history=0, writable=false, name=None))]
    fn new(
        py: Python<'_>,
        topic: &str,
        policy: &str,
        depth: Option<i128>,
        history: i128,
        writable: bool,
        name: Option<String>,
    ) -> PyResult<Self> {
        let core = build(py, topic, policy, depth, history, name)?;
        Ok(Subscriber { core, writable, readiness: OnceLock::new() })
    }

    /// The next message. Timeout when none came in `timeout` seconds (None: waits without limit).
    #[pyo3(signature = (timeout=None))]
    fn recv(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Message> {
        let timeout = Timeout::new(timeout)?;
        Ok(self.wrap(timeout.wait_if_needed(py, |wait| self.core.recv_with(wait))?))
    }

    /// The next message, or None when none is there.
    fn try_recv(&self, py: Python<'_>) -> PyResult<Option<Message>> {
        let message = self.core.try_recv().map_err(|error| to_python(py, error))?;
        Ok(message.map(|message| self.wrap(message)))
    }

    fn __iter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Message>> {
        match self.core.try_recv() {
            Ok(Some(message)) => return Ok(Some(self.wrap(message))),
            Ok(None) => {}
            Err(Error::Closed { .. }) => return Ok(None),
            Err(error) => return Err(to_python(py, error)),
        }
        let received = Timeout::new(None)?.wait(py, |wait| match self.core.recv_with(wait) {
            Ok(message) => Ok(Some(message)),
            Err(Error::Closed { .. }) => Ok(None),
            Err(error) => Err(error),
        })?;
        Ok(received.map(|message| self.wrap(message)))
    }

    fn __aiter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        slf.py().import("byref._aio")?.getattr("Messages")?.call1((slf,))
    }

    /// A descriptor for event loops: readable when a message comes after `try_recv` returned None; before that it says
    /// nothing. Only to be polled.
    fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        if self.readiness.get().is_none() {
            let readiness = self.core.readiness().map_err(|error| to_python(py, error))?;
            let _ = self.readiness.set(readiness);
        }
        Ok(self.readiness.get().expect("set above").as_fd().as_raw_fd())
    }

    /// Waits until at least `n` publishers are connected.
    #[pyo3(signature = (n=1, timeout=None))]
    fn wait_for_publishers(&self, py: Python<'_>, n: usize, timeout: Option<f64>) -> PyResult<()> {
        Timeout::new(timeout)?.wait(py, |wait| self.core.wait_for_publishers_with(n, wait))
    }

    /// The publishers that are connected and alive.
    #[getter]
    fn publishers(&self, py: Python<'_>) -> PyResult<Vec<PublisherInfo>> {
        let found = self.core.publishers().map_err(|error| to_python(py, error))?;
        Ok(found.into_iter().map(PublisherInfo).collect())
    }

    /// How many messages this subscriber's policy lost.
    #[getter]
    fn lost(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(self.core.stats().map_err(|error| to_python(py, error))?.lost)
    }

    /// The topic.
    #[getter]
    fn topic(&self) -> &str {
        self.core.topic()
    }

    /// A dict of counters; see the documentation.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        stats_dict(py, &self.core.stats().map_err(|error| to_python(py, error))?)
    }

    /// Closes the subscriber; messages and views stay valid. Twice is fine.
    fn close(slf: &Bound<'_, Self>) -> PyResult<()> {
        let this = slf.get();
        this.core.close();
        if this.readiness.get().is_some() {
            slf.py().import("byref._aio")?.getattr("closed")?.call1((slf,))?;
        }
        Ok(())
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(slf: &Bound<'_, Self>, _exception: &Bound<'_, PyTuple>) -> PyResult<()> {
        Self::close(slf)
    }

    fn __repr__(&self) -> String {
        format!("<byref.Subscriber to {:?}>", self.core.topic())
    }
}
