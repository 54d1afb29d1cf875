//! `Client` and `PendingReply`, seen from Python.

use crate::ending;
use crate::errors::to_python;
use crate::guarded::Guarded;
use crate::headers;
use crate::identity::Identity;
use crate::loan::Loan;
use crate::message::{Manner, Message};
use crate::outlet::{self, Outlet};
use crate::publisher::{non_negative, positive, state};
use crate::receipt::note_caller;
use crate::refusals::class_name;
use crate::waiting::Timeout;
use byref::{Ask, Encoded, Error, Readiness, Wait};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyString, PyTuple};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::OnceLock;
use std::time::Duration;

#[doc = doc!("Client")]
#[pyclass(frozen, weakref, module = "byref")]
pub struct Client {
    core: byref::Client,
    manner: Manner,
    /// Kept open beyond `close()`, so that an event loop never polls another file's descriptor by mistake.
    readiness: OnceLock<Readiness>,
}

impl Outlet for byref::Client {
    fn topic(&self) -> &str {
        self.service()
    }

    fn loan_with(&self, len: usize, attributes_len: usize, wait: &mut Wait<'_>) -> byref::Result<byref::Loan> {
        byref::Client::loan_with(self, len, attributes_len, wait)
    }

    fn explain(&self, bytes: &[u8]) -> byref::Result<Option<byref::Entry>> {
        byref::Client::explain(self, bytes)
    }
}

/// How a request is made, from Python's arguments.
fn ask_of(
    timeout: Option<f64>,
    to: Option<&Bound<'_, PyAny>>,
    wait: Option<f64>,
    retry: Option<&str>,
    timestamp_ns: Option<u64>,
) -> PyResult<Ask> {
    let mut ask = Ask::default().timeout(Timeout::new(timeout)?.duration()).timestamp_ns(timestamp_ns);
    if let Some(to) = to {
        ask = match (to.cast::<Identity>(), to.cast::<PyString>()) {
            (Ok(identity), _) => ask.to(&identity.get().0),
            (_, Ok(group)) => ask.to_group(group.to_str()?),
            _ => {
                let text = format!(
                    "to must be a byref.Identity, such as reply.sender, or a group (str), not {}",
                    class_name(to)
                );
                return Err(PyTypeError::new_err(text));
            }
        };
    }
    ask = match wait {
        None | Some(0.0) => ask,
        Some(seconds) if seconds.is_infinite() && seconds > 0.0 => ask.come_within(Duration::MAX),
        Some(seconds) => ask.come_within(positive("wait", seconds)?),
    };
    match retry {
        None => Ok(ask),
        Some("idempotent") => Ok(ask.repeatable()),
        Some(other) => Err(PyValueError::new_err(format!("retry must be None or 'idempotent', not {other:?}"))),
    }
}

impl Client {
    fn submit_as(
        &self,
        data: &Bound<'_, PyAny>,
        headers: Option<&Bound<'_, PyDict>>,
        ask: &Ask,
        pickled: bool,
    ) -> PyResult<byref::PendingReply> {
        // The deadline is the request's; what there is to wait for before is short, or said by `wait`.
        let unlimited = Timeout::new(None)?;
        if let (Ok(loan), false) = (data.cast::<Loan>(), pickled) {
            return loan.get().send_as(data.py(), headers, |loan, attributes| {
                unlimited.wait_if_needed(data.py(), |wait| self.core.submit_loan(loan, attributes, ask, wait))
            });
        }
        let send = |bytes: &[u8], attributes: &Encoded, wait: &mut Wait<'_>| {
            self.core.submit_with(bytes, attributes, ask, wait)
        };
        let send_loan = |loan: &mut byref::Loan, attributes: &Encoded, wait: &mut Wait<'_>| {
            self.core.submit_loan(loan, attributes, ask, wait)
        };
        if pickled {
            return outlet::send_pickle(&self.core, data, headers, unlimited, (send, send_loan));
        }
        outlet::send(&self.core, data, headers, unlimited, (send, send_loan))
    }
}

#[inline]
fn wrap(py: Python<'_>, message: byref::Message, manner: Manner) -> PyResult<Bound<'_, Message>> {
    note_caller(py, &message);
    Bound::new(py, Message::new(message, manner))
}

#[pymethods]
impl Client {
    #[new]
    #[pyo3(signature = (service, max_memory=None, writable=false, allow_pickle=false))]
    fn new(
        py: Python<'_>,
        service: &str,
        max_memory: Option<i128>,
        writable: bool,
        allow_pickle: bool,
    ) -> PyResult<Self> {
        ending::outlive();
        let mut builder = byref::Client::builder(service);
        if let Some(max_memory) = max_memory {
            builder = builder.max_memory(non_negative("max_memory", max_memory)?);
        }
        let core = py.detach(|| builder.build()).map_err(|error| to_python(py, error))?;
        let manner = Manner { writable, allow_pickle, is_direct: true };
        Ok(Client { core, manner, readiness: OnceLock::new() })
    }

    #[doc = doc!("Client.request")]
    #[pyo3(
        signature = (data, headers=None, timeout=Some(30.0), to=None, wait=None, retry=None, timestamp_ns=None, pickle=false),
        text_signature = "($self, data, headers=None, timeout=30.0, to=None, wait=None, retry=None, timestamp_ns=None, pickle=False)"
    )]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments")]
    fn request<'py>(
        &self,
        py: Python<'py>,
        data: &Bound<'py, PyAny>,
        #[pyo3(from_py_with = headers::argument)] headers: Option<Bound<'py, PyDict>>,
        timeout: Option<f64>,
        to: Option<&Bound<'py, PyAny>>,
        wait: Option<f64>,
        retry: Option<&str>,
        timestamp_ns: Option<u64>,
        pickle: bool,
    ) -> PyResult<Bound<'py, Message>> {
        let ask = ask_of(timeout, to, wait, retry, timestamp_ns)?;
        let mut pending = match (data.cast_exact::<PyBytes>(), &headers) {
            (Ok(bytes), None) if !pickle => {
                let bytes = bytes.as_bytes();
                Timeout::new(None)?
                    .wait_if_needed(py, |wait| self.core.submit_with(bytes, &Encoded::default(), &ask, wait))?
            }
            _ => self.submit_as(data, headers.as_ref(), &ask, pickle)?,
        };
        let reply = Timeout::new(None)?.wait(py, |wait| pending.wait_with(wait))?;
        wrap(py, reply, self.manner)
    }

    #[doc = doc!("Client.submit")]
    #[pyo3(
        signature = (data, headers=None, timeout=Some(30.0), to=None, wait=None, retry=None, timestamp_ns=None, pickle=false),
        text_signature = "($self, data, headers=None, timeout=30.0, to=None, wait=None, retry=None, timestamp_ns=None, pickle=False)"
    )]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments")]
    fn submit<'py>(
        slf: &Bound<'py, Self>,
        data: &Bound<'py, PyAny>,
        #[pyo3(from_py_with = headers::argument)] headers: Option<Bound<'py, PyDict>>,
        timeout: Option<f64>,
        to: Option<&Bound<'py, PyAny>>,
        wait: Option<f64>,
        retry: Option<&str>,
        timestamp_ns: Option<u64>,
        pickle: bool,
    ) -> PyResult<PendingReply> {
        let ask = ask_of(timeout, to, wait, retry, timestamp_ns)?;
        let this = slf.get();
        let pending = this.submit_as(data, headers.as_ref(), &ask, pickle)?;
        let canceller = pending.canceller();
        Ok(PendingReply {
            canceller,
            core: Guarded::new(Some(pending)),
            outcome: Guarded::default(),
            client: slf.clone().unbind(),
        })
    }

    #[doc = doc!("Client.survey")]
    #[pyo3(signature = (data, headers=None, timeout=1.0, to=None, wait=None))]
    fn survey<'py>(
        &self,
        py: Python<'py>,
        data: &Bound<'py, PyAny>,
        #[pyo3(from_py_with = headers::argument)] headers: Option<Bound<'py, PyDict>>,
        timeout: f64,
        to: Option<&Bound<'py, PyAny>>,
        wait: Option<f64>,
    ) -> PyResult<Vec<Bound<'py, Message>>> {
        let ask = ask_of(Some(timeout), to, wait, None, None)?;
        let unlimited = Timeout::new(None)?;
        // All servers that are known by the time that one is.
        unlimited.wait_if_needed(py, |wait| self.core.wait_for_some(&ask, wait))?;
        let mut pending = Vec::new();
        for server in self.core.servers_for(&ask).map_err(|error| to_python(py, error))? {
            pending.push(self.submit_as(data, headers.as_ref(), &ask.clone().to(&server), false)?);
        }
        let mut replies = Vec::new();
        for mut pending in pending {
            let outcome = unlimited.wait(py, |wait| match pending.wait_with(wait) {
                Ok(reply) => Ok(Some(reply)),
                Err(error @ (Error::Interrupted { .. } | Error::Closed { .. } | Error::Forked { .. })) => Err(error),
                Err(_) => Ok(None), // Too late, failed, or gone.
            })?;
            if let Some(reply) = outcome {
                replies.push(wrap(py, reply, self.manner)?);
            }
        }
        Ok(replies)
    }

    #[doc = doc!("Client.loan")]
    #[pyo3(signature = (shape, dtype=None, timeout=None))]
    fn loan<'py>(
        &self,
        py: Python<'py>,
        shape: &Bound<'py, PyAny>,
        dtype: Option<&Bound<'py, PyAny>>,
        timeout: Option<f64>,
    ) -> PyResult<Bound<'py, Loan>> {
        outlet::loan(&self.core, py, shape, dtype, Timeout::new(timeout)?)
    }

    #[doc = doc!("Client.wait_for_server")]
    #[pyo3(signature = (group=None, timeout=None))]
    fn wait_for_server(&self, py: Python<'_>, group: Option<&str>, timeout: Option<f64>) -> PyResult<()> {
        Timeout::new(timeout)?.wait(py, |wait| self.core.wait_for_server_with(group, wait))
    }

    #[doc = doc!("Client.servers")]
    #[getter]
    fn servers(&self, py: Python<'_>) -> PyResult<Vec<Identity>> {
        ending::outlive();
        let found = self.core.servers().map_err(|error| to_python(py, error))?;
        Ok(found.into_iter().map(Identity).collect())
    }

    #[doc = doc!("Client.service")]
    #[getter]
    fn service(&self) -> &str {
        self.core.service()
    }

    #[doc = doc!("Client.identity")]
    #[getter]
    fn identity(&self) -> Identity {
        Identity(self.core.identity().clone())
    }

    #[doc = doc!("Client.fileno")]
    fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        if self.readiness.get().is_none() {
            let readiness = self.core.readiness().map_err(|error| to_python(py, error))?;
            let _ = self.readiness.set(readiness);
        }
        Ok(self.readiness.get().expect("set above").as_fd().as_raw_fd())
    }

    #[doc = doc!("Client.stats")]
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        ending::outlive();
        let stats = self.core.stats().map_err(|error| to_python(py, error))?;
        let dict = PyDict::new(py);
        dict.set_item("sent", stats.sent)?;
        dict.set_item("copied_bytes", stats.copied_bytes)?;
        dict.set_item("received", stats.received)?;
        dict.set_item("late", stats.late)?;
        dict.set_item("unasked", stats.unasked)?;
        dict.set_item("resent", stats.resent)?;
        dict.set_item("under_way", stats.under_way)?;
        dict.set_item("waiting", stats.waiting)?;
        dict.set_item("servers", stats.servers)?;
        dict.set_item("pool_used", stats.pool_used)?;
        Ok(dict)
    }

    #[doc = doc!("Client.close")]
    fn close(slf: &Bound<'_, Self>) -> PyResult<()> {
        let this = slf.get();
        slf.py().detach(|| this.core.close());
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
        format!("<byref.Client of {:?}{}>", self.core.service(), state(self.core.is_closed()))
    }
}

#[doc = doc!("PendingReply")]
#[pyclass(frozen, generic, weakref, module = "byref")]
pub struct PendingReply {
    /// Absent while somebody waits for it, and once its reply is there.
    core: Guarded<Option<byref::PendingReply>>,
    /// The reply, for who asks again.
    outcome: Guarded<Option<byref::Message>>,
    canceller: byref::Canceller,
    client: Py<Client>,
}

impl PendingReply {
    /// Uses the reply, which one thread at a time may wait for.
    fn with<T>(&self, py: Python<'_>, act: impl FnOnce(&mut byref::PendingReply) -> PyResult<T>) -> PyResult<T> {
        let Some(mut core) = self.core.with(Option::take) else {
            let service = self.client.get().core.service();
            let text = format!("service '{service}': another thread waits for this reply");
            return Err(crate::errors::error(py, text));
        };
        let outcome = act(&mut core);
        let _none = self.core.with(|place| place.replace(core));
        outcome
    }

    fn manner(&self) -> Manner {
        self.client.get().manner
    }
}

#[pymethods]
impl PendingReply {
    #[doc = doc!("PendingReply.result")]
    #[pyo3(signature = (timeout=None))]
    fn result<'py>(&self, py: Python<'py>, timeout: Option<f64>) -> PyResult<Bound<'py, Message>> {
        let timeout = Timeout::new(timeout)?;
        let known = self.outcome.with(|outcome| outcome.clone());
        let reply = match known {
            Some(reply) => reply,
            None => {
                let reply = self.with(py, |core| timeout.wait(py, |wait| core.wait_with(wait)))?;
                let _none = self.outcome.with(|outcome| outcome.replace(reply.clone()));
                reply
            }
        };
        wrap(py, reply, self.manner())
    }

    #[doc = doc!("PendingReply.done")]
    fn done(&self, py: Python<'_>) -> PyResult<bool> {
        if self.outcome.with(|outcome| outcome.is_some()) {
            return Ok(true);
        }
        self.with(py, |core| Ok(core.is_ready()))
    }

    #[doc = doc!("PendingReply.cancel")]
    fn cancel(&self, py: Python<'_>) -> bool {
        self.outcome.with(|outcome| outcome.is_none()) && py.detach(|| self.canceller.cancel())
    }

    /// For event loops: the client, and the seconds that are left until the deadline.
    fn _client(&self, py: Python<'_>) -> Py<Client> {
        self.client.clone_ref(py)
    }

    fn _seconds_left(&self, py: Python<'_>) -> PyResult<Option<f64>> {
        self.with(py, |core| Ok(core.time_left().map(|left| left.as_secs_f64())))
    }

    /// For event loops: the next part if there is one; an error that is hidden if there is none yet.
    fn _next_now<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, Message>>> {
        let attempt = |core: &mut byref::PendingReply| match core.next_with(&mut Wait::never()) {
            Err(Error::WouldBlock { .. }) => Err(crate::errors::would_block(py)),
            outcome => outcome.map_err(|error| to_python(py, error)),
        };
        let part = self.with(py, attempt)?;
        part.map(|part| wrap(py, part, self.manner())).transpose()
    }

    fn __await__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        ending::outlive();
        static REPLY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let py = slf.py();
        let reply = REPLY.get_or_try_init(py, || py.import("byref._aio")?.getattr("reply").map(Bound::unbind))?;
        reply.bind(py).call1((slf,))?.call_method0("__await__")
    }

    fn __iter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, Message>>> {
        let part = self.with(py, |core| Timeout::new(None)?.wait(py, |wait| core.next_with(wait)))?;
        part.map(|part| wrap(py, part, self.manner())).transpose()
    }

    fn __aiter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        ending::outlive();
        slf.py().import("byref._aio")?.getattr("Parts")?.call1((slf,))
    }

    fn __repr__(&self) -> String {
        format!("<byref.PendingReply of {:?}>", self.client.get().core.service())
    }
}
