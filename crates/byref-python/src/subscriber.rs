//! `Subscriber`, seen from Python.

use crate::batch::Batch;
use crate::ending;
use crate::errors::to_python;
use crate::event::Event;
use crate::message::{Manner, Message, PublisherInfo};
use crate::publisher::{POLICIES, non_negative, state};
use crate::receipt::note_caller;
use crate::waiting::{Attempt, Patience, Timeout};
use byref::{Error, Incoming, One, Readiness, SubscriberBuilder, Told, UpTo};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::OnceLock;
use std::time::Duration;

#[doc = doc!("Subscriber")]
#[pyclass(frozen, generic, weakref, module = "byref")]
pub struct Subscriber {
    core: byref::Subscriber,
    manner: Manner,
    /// What happens to publishers comes among the messages.
    events: bool,
    /// Of which it is the receiving half.
    mailbox: Option<byref::Mailbox>,
    /// Kept open beyond `close()`, so that an event loop never polls another file's descriptor by mistake.
    readiness: OnceLock<Readiness>,
}

impl Subscriber {
    /// The receiving half of a mailbox.
    pub fn of_mailbox(mailbox: &byref::Mailbox, events: bool, manner: Manner) -> Self {
        let (core, mailbox) = (mailbox.inbox(), Some(mailbox.handle()));
        Subscriber { core, manner, events, mailbox, readiness: OnceLock::new() }
    }

    pub fn manner(&self) -> Manner {
        self.manner
    }

    #[inline(always)]
    fn receive<'py>(&self, py: Python<'py>, timeout: impl Patience) -> PyResult<Bound<'py, PyAny>> {
        if self.events {
            let incoming = timeout.wait_if_needed(py, |wait| self.core.receive(Told(One), wait))?;
            return self.wrap_incoming(py, incoming, Self::wrap);
        }
        self.wrap(py, timeout.wait_if_needed(py, |wait| self.core.recv_with(wait))?)
    }

    #[inline]
    fn wrap<'py>(&self, py: Python<'py>, message: byref::Message) -> PyResult<Bound<'py, PyAny>> {
        wrap(py, message, self.manner)
    }

    fn wrap_batch<'py>(&self, py: Python<'py>, batch: byref::Batch) -> PyResult<Bound<'py, PyAny>> {
        ending::outlive();
        note_caller(py, &batch);
        Ok(Bound::new(py, Batch::new(batch, self.manner))?.into_any())
    }

    /// What a subscriber with events received.
    fn wrap_incoming<'py, T>(
        &self,
        py: Python<'py>,
        incoming: Incoming<T>,
        wrap: impl FnOnce(&Self, Python<'py>, T) -> PyResult<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        match incoming {
            Incoming::Message(message) => wrap(self, py, message),
            Incoming::Event(event) => {
                ending::outlive();
                Ok(Bound::new(py, Event::new(event, self.mailbox.as_ref()))?.into_any())
            }
        }
    }
}

#[inline]
fn wrap(py: Python<'_>, message: byref::Message, manner: Manner) -> PyResult<Bound<'_, PyAny>> {
    note_caller(py, &message);
    Ok(Bound::new(py, Message::new(message, manner))?.into_any())
}

/// A subscriber's settings, from Python's arguments.
pub fn options(
    topic: &str,
    policy: &str,
    depth: Option<i128>,
    history: i128,
    name: Option<String>,
    ack: &str,
) -> PyResult<SubscriberBuilder> {
    let Some((_, policy)) = POLICIES.iter().find(|(known, _)| *known == policy) else {
        return Err(PyValueError::new_err(format!(
            "policy must be 'block', 'drop_oldest' or 'latest', not {policy:?}"
        )));
    };
    let by_hand = match ack {
        "auto" => false,
        "manual" => true,
        _ => return Err(PyValueError::new_err(format!("ack must be 'auto' or 'manual', not {ack:?}"))),
    };
    let mut builder = byref::Subscriber::builder(topic).policy(*policy).history(non_negative("history", history)?);
    builder = builder.manual_ack(by_hand);
    if let Some(depth) = depth {
        builder = builder.depth(non_negative("depth", depth)?);
    }
    if let Some(name) = name {
        builder = builder.name(name);
    }
    Ok(builder)
}

/// The counters, as a dict.
pub fn stats_dict<'py>(py: Python<'py>, stats: &byref::SubscriberStats) -> PyResult<Bound<'py, PyDict>> {
    ending::outlive();
    let dict = PyDict::new(py);
    dict.set_item("received", stats.received)?;
    dict.set_item("bytes", stats.bytes)?;
    dict.set_item("copied_bytes", stats.copied_bytes)?;
    dict.set_item("lost", stats.lost)?;
    dict.set_item("sleeps", stats.sleeps)?;
    Ok(dict)
}

/// The end of an iteration is no error.
fn unless_closed<T>(received: byref::Result<T>) -> byref::Result<Option<T>> {
    match received {
        Ok(received) => Ok(Some(received)),
        Err(Error::Closed { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

#[pymethods]
impl Subscriber {
    #[new]
    #[pyo3(signature = (
        topic, policy="block", depth=None, history=0, writable=false, allow_pickle=false, name=None, events=false,
        spin=None, ack="auto"
    ))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments")]
    fn new(
        py: Python<'_>,
        topic: &str,
        policy: &str,
        depth: Option<i128>,
        history: i128,
        writable: bool,
        allow_pickle: bool,
        name: Option<String>,
        events: bool,
        spin: Option<f64>,
        ack: &str,
    ) -> PyResult<Self> {
        ending::outlive();
        let builder = options(topic, policy, depth, history, name, ack)?.events(events);
        let builder = match spin {
            Some(spin) => builder.spin(Duration::try_from_secs_f64(spin).map_err(|_| {
                PyValueError::new_err(format!("spin must be 0 seconds or more, up to 1e19, not {spin}"))
            })?),
            None => builder,
        };
        let core = builder.build().map_err(|error| to_python(py, error))?;
        let manner = Manner { writable, allow_pickle, is_direct: false };
        Ok(Subscriber { core, manner, events, mailbox: None, readiness: OnceLock::new() })
    }

    #[doc = doc!("Subscriber.recv")]
    #[pyo3(signature = (timeout=None))]
    pub fn recv<'py>(&self, py: Python<'py>, timeout: Option<f64>) -> PyResult<Bound<'py, PyAny>> {
        self.receive(py, Timeout::new(timeout)?)
    }

    #[doc = doc!("Subscriber.recv_async")]
    #[pyo3(signature = (timeout=None))]
    pub fn recv_async<'py>(slf: &Bound<'py, Self>, timeout: Option<f64>) -> PyResult<Bound<'py, PyAny>> {
        ending::outlive();
        static RECV: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let py = slf.py();
        Timeout::new(timeout)?;
        let recv = RECV.get_or_try_init(py, || py.import("byref._aio")?.getattr("recv").map(Bound::unbind))?;
        recv.bind(py).call1((slf, timeout))
    }

    /// For `recv_async`: the last attempt, after a wait of so many seconds.
    pub fn _recv_at_last<'py>(&self, py: Python<'py>, waited: f64) -> PyResult<Bound<'py, PyAny>> {
        self.receive(py, Attempt::last(waited))
    }

    #[doc = doc!("Subscriber.try_recv")]
    pub fn try_recv<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        if self.events {
            let incoming = self.core.try_receive(Told(One)).map_err(|error| to_python(py, error))?;
            return incoming.map(|incoming| self.wrap_incoming(py, incoming, Self::wrap)).transpose();
        }
        match self.core.try_recv() {
            Ok(Some(message)) => Ok(Some(self.wrap(py, message)?)),
            Ok(None) => Ok(None),
            Err(error) => Err(to_python(py, error)),
        }
    }

    #[doc = doc!("Subscriber.recv_batch")]
    #[pyo3(signature = (n, timeout=None))]
    pub fn recv_batch<'py>(&self, py: Python<'py>, n: i128, timeout: Option<f64>) -> PyResult<Bound<'py, PyAny>> {
        let timeout = Timeout::new(timeout)?;
        let most = usize::try_from(non_negative("n", n)?).unwrap_or(usize::MAX);
        if self.events {
            let incoming = timeout.wait_if_needed(py, |wait| self.core.receive(Told(UpTo(most)), wait))?;
            return self.wrap_incoming(py, incoming, Self::wrap_batch);
        }
        self.wrap_batch(py, timeout.wait_if_needed(py, |wait| self.core.receive(UpTo(most), wait))?)
    }

    pub fn __iter__(slf: Bound<'_, Self>) -> PyResult<Bound<'_, Iteration>> {
        ending::outlive();
        let Subscriber { core, manner, events, .. } = slf.get();
        let (core, manner, events) = (core.handle(), *manner, *events);
        Bound::new(slf.py(), Iteration { core, manner, events, subscriber: slf.clone().unbind() })
    }

    pub fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let timeout = Timeout::new(None)?;
        if self.events {
            let incoming = timeout.wait_if_needed(py, |wait| unless_closed(self.core.receive(Told(One), wait)))?;
            return incoming.map(|incoming| self.wrap_incoming(py, incoming, Self::wrap)).transpose();
        }
        let message = timeout.wait_if_needed(py, |wait| unless_closed(self.core.recv_with(wait)))?;
        message.map(|message| self.wrap(py, message)).transpose()
    }

    pub fn __aiter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        ending::outlive();
        slf.py().import("byref._aio")?.getattr("Messages")?.call1((slf,))
    }

    #[doc = doc!("Subscriber.fileno")]
    pub fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        if self.readiness.get().is_none() {
            let readiness = self.core.readiness().map_err(|error| to_python(py, error))?;
            let _ = self.readiness.set(readiness);
        }
        Ok(self.readiness.get().expect("set above").as_fd().as_raw_fd())
    }

    #[doc = doc!("Subscriber.wait_for_publishers")]
    #[pyo3(signature = (n=1, timeout=None))]
    fn wait_for_publishers(&self, py: Python<'_>, n: usize, timeout: Option<f64>) -> PyResult<()> {
        Timeout::new(timeout)?.wait(py, |wait| self.core.wait_for_publishers_with(n, wait))
    }

    #[doc = doc!("Subscriber.publishers")]
    #[getter]
    fn publishers(&self, py: Python<'_>) -> PyResult<Vec<PublisherInfo>> {
        ending::outlive();
        let found = self.core.publishers().map_err(|error| to_python(py, error))?;
        Ok(found.into_iter().map(PublisherInfo).collect())
    }

    #[doc = doc!("Subscriber.lost")]
    #[getter]
    fn lost(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(self.core.stats().map_err(|error| to_python(py, error))?.lost)
    }

    #[doc = doc!("Subscriber.topic")]
    #[getter]
    fn topic(&self) -> &str {
        self.core.topic()
    }

    #[doc = doc!("Subscriber.unacknowledged")]
    #[getter]
    fn unacknowledged(&self, py: Python<'_>) -> PyResult<u64> {
        self.core.unacknowledged().map_err(|error| to_python(py, error))
    }

    #[doc = doc!("Subscriber.stats")]
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        stats_dict(py, &self.core.stats().map_err(|error| to_python(py, error))?)
    }

    #[doc = doc!("Subscriber.close")]
    pub fn close(slf: &Bound<'_, Self>) -> PyResult<()> {
        let this = slf.get();
        this.core.close();
        if this.readiness.get().is_some() {
            ending::outlive();
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
        format!("<byref.Subscriber to {:?}{}>", self.core.topic(), state(self.core.is_closed()))
    }
}

#[doc = doc!("_Iterator")]
#[pyclass(frozen, name = "_Iterator", module = "byref")]
pub struct Iteration {
    /// Of its own, since a look into the other object costs each message some nanoseconds.
    core: byref::Subscriber,
    manner: Manner,
    events: bool,
    subscriber: Py<Subscriber>,
}

#[pymethods]
impl Iteration {
    pub fn __iter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    pub fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        if self.events {
            return self.subscriber.get().__next__(py);
        }
        // Results are taken apart where they are made: one that is passed on whole is read in other pieces than it was
        // written in, and the processor waits for that.
        match unless_closed(self.core.try_recv()) {
            Ok(Some(Some(message))) => return Ok(Some(wrap(py, message, self.manner)?)),
            Ok(Some(None)) => {}
            Ok(None) => return Ok(None),
            Err(error) => return Err(to_python(py, error)),
        }
        let message = Timeout::new(None)?.wait(py, |wait| unless_closed(self.core.recv_with(wait)))?;
        message.map(|message| wrap(py, message, self.manner)).transpose()
    }
}
