//! `Server` and `Request`, seen from Python.
#![allow(unsafe_code)]

use crate::ending;
use crate::errors::to_python;
use crate::headers;
use crate::identity::Identity;
use crate::loan::Loan;
use crate::message::{Manner, Message};
use crate::outlet::{self, Outlet};
use crate::publisher::{non_negative, state};
use crate::receipt::note_caller;
use crate::waiting::Timeout;
use byref::{Code, Encoded, Error, Failure, Readiness, Wait};
use pyo3::exceptions::PyTypeError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyString, PyTuple};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::raw::c_int;
use std::sync::OnceLock;

#[doc = doc!("Server")]
#[pyclass(frozen, weakref, module = "byref")]
pub struct Server {
    core: byref::Server,
    manner: Manner,
    /// Kept open beyond `close()`, so that an event loop never polls another file's descriptor by mistake.
    readiness: OnceLock<Readiness>,
}

/// The end of an iteration is no error.
fn unless_closed<T>(received: byref::Result<T>) -> byref::Result<Option<T>> {
    match received {
        Ok(received) => Ok(Some(received)),
        Err(Error::Closed { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Server {
    /// Makes one from Python's arguments.
    pub fn make(
        py: Python<'_>,
        service: &str,
        group: &str,
        prefetch: i128,
        max_memory: Option<i128>,
        manner: Manner,
    ) -> PyResult<Self> {
        let prefetch = non_negative("prefetch", prefetch)?;
        let mut builder = byref::Server::builder(service).group(group).prefetch(prefetch);
        if let Some(max_memory) = max_memory {
            builder = builder.max_memory(non_negative("max_memory", max_memory)?);
        }
        let core = py.detach(|| builder.build()).map_err(|error| to_python(py, error))?;
        Ok(Server { core, manner, readiness: OnceLock::new() })
    }

    /// The server itself.
    pub fn into_core(self) -> byref::Server {
        self.core
    }
}

#[pymethods]
impl Server {
    #[new]
    #[pyo3(signature = (service, group="", prefetch=1, max_memory=None, writable=false, allow_pickle=false))]
    fn new(
        py: Python<'_>,
        service: &str,
        group: &str,
        prefetch: i128,
        max_memory: Option<i128>,
        writable: bool,
        allow_pickle: bool,
    ) -> PyResult<Self> {
        ending::outlive();
        let manner = Manner { writable, allow_pickle, is_direct: true };
        Self::make(py, service, group, prefetch, max_memory, manner)
    }

    #[doc = doc!("Server.recv")]
    #[pyo3(signature = (timeout=None))]
    fn recv<'py>(&self, py: Python<'py>, timeout: Option<f64>) -> PyResult<Bound<'py, Request>> {
        let request = Timeout::new(timeout)?.wait_if_needed(py, |wait| self.core.recv_with(wait))?;
        Request::wrap(py, request, self.manner)
    }

    #[doc = doc!("Server.recv_async")]
    #[pyo3(signature = (timeout=None))]
    fn recv_async<'py>(slf: &Bound<'py, Self>, timeout: Option<f64>) -> PyResult<Bound<'py, PyAny>> {
        ending::outlive();
        Timeout::new(timeout)?;
        slf.py().import("byref._aio")?.getattr("recv")?.call1((slf, timeout))
    }

    /// For `recv_async`: the last attempt, after a wait of so many seconds.
    fn _recv_at_last<'py>(&self, py: Python<'py>, waited: f64) -> PyResult<Bound<'py, Request>> {
        let attempt = crate::waiting::Attempt::last(waited);
        let request = crate::waiting::Patience::wait(attempt, py, |wait| self.core.recv_with(wait))?;
        Request::wrap(py, request, self.manner)
    }

    #[doc = doc!("Server.try_recv")]
    fn try_recv<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, Request>>> {
        let request = self.core.try_recv().map_err(|error| to_python(py, error))?;
        request.map(|request| Request::wrap(py, request, self.manner)).transpose()
    }

    fn __iter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, Request>>> {
        let request = Timeout::new(None)?.wait_if_needed(py, |wait| unless_closed(self.core.recv_with(wait)))?;
        request.map(|request| Request::wrap(py, request, self.manner)).transpose()
    }

    fn __aiter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        ending::outlive();
        slf.py().import("byref._aio")?.getattr("Messages")?.call1((slf,))
    }

    #[doc = doc!("Server.fileno")]
    fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        if self.readiness.get().is_none() {
            let readiness = self.core.readiness().map_err(|error| to_python(py, error))?;
            let _ = self.readiness.set(readiness);
        }
        Ok(self.readiness.get().expect("set above").as_fd().as_raw_fd())
    }

    #[doc = doc!("Server.service")]
    #[getter]
    fn service(&self) -> &str {
        self.core.service()
    }

    #[doc = doc!("Server.group")]
    #[getter]
    fn group(&self) -> &str {
        self.core.group()
    }

    #[doc = doc!("Server.identity")]
    #[getter]
    fn identity(&self) -> Identity {
        Identity(self.core.identity().clone())
    }

    #[doc = doc!("Server.stats")]
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        ending::outlive();
        let stats = self.core.stats().map_err(|error| to_python(py, error))?;
        let dict = PyDict::new(py);
        dict.set_item("received", stats.received)?;
        dict.set_item("received_bytes", stats.received_bytes)?;
        dict.set_item("skipped", stats.skipped)?;
        dict.set_item("replied", stats.replied)?;
        dict.set_item("late", stats.late)?;
        dict.set_item("dropped", stats.dropped)?;
        dict.set_item("copied_bytes", stats.copied_bytes)?;
        dict.set_item("clients", stats.clients)?;
        dict.set_item("pool_used", stats.pool_used)?;
        Ok(dict)
    }

    #[doc = doc!("Server.close")]
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
        format!("<byref.Server of {:?}{}>", self.core.service(), state(self.core.is_closed()))
    }
}

#[doc = doc!("Request")]
#[pyclass(frozen, weakref, module = "byref")]
pub struct Request {
    core: byref::Request,
    message: Py<Message>,
}

impl Request {
    #[inline]
    pub fn wrap(py: Python<'_>, core: byref::Request, manner: Manner) -> PyResult<Bound<'_, Self>> {
        note_caller(py, core.message());
        let message = Py::new(py, Message::new(core.message().clone(), manner))?;
        Bound::new(py, Request { core, message })
    }
}

impl Outlet for byref::Request {
    fn topic(&self) -> &str {
        self.service()
    }

    fn loan_with(&self, len: usize, attributes_len: usize, wait: &mut Wait<'_>) -> byref::Result<byref::Loan> {
        byref::Request::loan_with(self, len, attributes_len, wait)
    }

    fn explain(&self, bytes: &[u8]) -> byref::Result<Option<byref::Entry>> {
        byref::Request::explain(self, bytes)
    }
}

/// What a failure is told by.
fn code_of(code: &Bound<'_, PyAny>) -> PyResult<Code> {
    if let Ok(name) = code.cast::<PyString>() {
        return Ok(Code::Name(name.to_str()?.to_owned()));
    }
    code.extract::<i64>().map(Code::Number).map_err(|_| {
        PyTypeError::new_err(format!(
            "code must be an int of 64 bits or a str, not {}",
            crate::refusals::class_name(code)
        ))
    })
}

#[pymethods]
impl Request {
    #[doc = doc!("Request.reply")]
    #[pyo3(signature = (data, headers=None, more=false, timestamp_ns=None, timeout=None, pickle=false))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments")]
    fn reply(
        &self,
        py: Python<'_>,
        data: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = headers::argument)] headers: Option<Bound<'_, PyDict>>,
        more: bool,
        timestamp_ns: Option<u64>,
        timeout: Option<f64>,
        pickle: bool,
    ) -> PyResult<bool> {
        let timeout = Timeout::new(timeout)?;
        if let (Ok(bytes), None, false) = (data.cast_exact::<PyBytes>(), &headers, pickle) {
            let bytes = bytes.as_bytes();
            return timeout
                .wait_if_needed(py, |wait| self.core.reply_with(bytes, &Encoded::default(), more, timestamp_ns, wait));
        }
        if let (Ok(loan), false) = (data.cast::<Loan>(), pickle) {
            return loan.get().send_as(py, headers.as_ref(), |loan, attributes| {
                timeout.wait_if_needed(py, |wait| self.core.reply_loan(loan, attributes, more, timestamp_ns, wait))
            });
        }
        let send = |bytes: &[u8], attributes: &Encoded, wait: &mut Wait<'_>| {
            self.core.reply_with(bytes, attributes, more, timestamp_ns, wait)
        };
        let send_loan = |loan: &mut byref::Loan, attributes: &Encoded, wait: &mut Wait<'_>| {
            self.core.reply_loan(loan, attributes, more, timestamp_ns, wait)
        };
        if pickle {
            return outlet::send_pickle(&self.core, data, headers.as_ref(), timeout, (send, send_loan));
        }
        outlet::send(&self.core, data, headers.as_ref(), timeout, (send, send_loan))
    }

    #[doc = doc!("Request.finish")]
    fn finish(&self, py: Python<'_>) -> PyResult<bool> {
        self.core.finish().map_err(|error| to_python(py, error))
    }

    #[doc = doc!("Request.has_room")]
    #[getter]
    fn has_room(&self, py: Python<'_>) -> PyResult<bool> {
        self.core.has_room().map_err(|error| to_python(py, error))
    }

    #[doc = doc!("Request.fail")]
    #[pyo3(signature = (code, text="", traceback=""))]
    fn fail(&self, py: Python<'_>, code: &Bound<'_, PyAny>, text: &str, traceback: &str) -> PyResult<bool> {
        let failure = Failure { code: code_of(code)?, text: text.to_owned(), traceback: traceback.to_owned() };
        Timeout::new(None)?.wait_if_needed(py, |wait| self.core.fail_with(&failure, wait))
    }

    #[doc = doc!("Request.loan")]
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

    #[doc = doc!("Request.message")]
    #[getter]
    fn message(&self, py: Python<'_>) -> Py<Message> {
        self.message.clone_ref(py)
    }

    #[doc = doc!("Request.value")]
    #[getter]
    fn value<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Message::value(self.message.bind(py))
    }

    #[doc = doc!("Request.deadline")]
    #[getter]
    fn deadline(&self) -> Option<f64> {
        self.core.deadline_us().map(|micros| micros as f64 / 1e6)
    }

    #[doc = doc!("Request.cancelled")]
    #[getter]
    fn cancelled(&self) -> bool {
        self.core.is_cancelled()
    }

    #[doc = doc!("Request.answered")]
    #[getter]
    fn answered(&self) -> bool {
        self.core.is_answered()
    }

    /// All else that a message has.
    fn __getattr__<'py>(&self, py: Python<'py>, name: &Bound<'py, PyString>) -> PyResult<Bound<'py, PyAny>> {
        ending::outlive();
        self.message.bind(py).getattr(name)
    }

    fn __len__(&self) -> usize {
        self.core.len()
    }

    fn __bytes__<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        byref::count_copied(byref::Cause::Asked, self.core.len());
        PyBytes::new(py, &self.core)
    }

    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        // SAFETY: the caller's arguments, passed on: the view becomes one of the message, which it keeps.
        let failed = unsafe { ffi::PyObject_GetBuffer(slf.get().message.as_ptr(), view, flags) };
        if failed == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }

    fn __repr__(&self) -> String {
        let answered = if self.core.is_answered() { ", answered" } else { "" };
        format!("<byref.Request to {:?}, {} bytes{answered}>", self.core.service(), self.core.len())
    }
}
