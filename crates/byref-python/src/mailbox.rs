//! `Mailbox`, seen from Python. What it receives, its receiving half gives, a [`Subscriber`].

use crate::ending;
use crate::errors::to_python;
use crate::headers;
use crate::identity::Identity;
use crate::loan::Loan;
use crate::message::{Manner, Message};
use crate::outlet::{self, In, Marks, Outlet, Sender};
use crate::publisher::{non_negative, positive, state};
use crate::refusals::{class_name, located};
use crate::sending::{self, Exit};
use crate::subscriber::{Iteration, Subscriber};
use crate::ticket::Ticket;
use crate::undelivered::Undelivered;
use crate::waiting::Timeout;
use byref::{Beside, Encoded, Form, Route, Rows, Single, To, Tracked, Wait};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyRange, PyString, PyTuple};
use std::os::fd::RawFd;
use std::time::Duration;

#[doc = doc!("Mailbox")]
#[pyclass(frozen, generic, weakref, module = "byref")]
pub struct Mailbox {
    core: byref::Mailbox,
    inbox: Py<Subscriber>,
}

impl Outlet for Route {
    fn topic(&self) -> &str {
        self.sender()
    }

    fn loan_with(&self, len: usize, attributes_len: usize, wait: &mut Wait<'_>) -> byref::Result<byref::Loan> {
        Route::loan_with(self, len, attributes_len, wait)
    }

    fn explain(&self, bytes: &[u8]) -> byref::Result<Option<byref::Entry>> {
        Route::explain(self, bytes)
    }
}

impl Sender for Route {
    fn send_as<F: Form>(
        &self,
        form: F,
        payload: &[u8],
        beside: Beside<'_>,
        wait: &mut Wait<'_>,
    ) -> byref::Result<F::Sent> {
        Route::send_as(self, form, payload, beside, wait)
    }
}

impl Outlet for byref::Everyone {
    fn topic(&self) -> &str {
        self.sender()
    }

    fn loan_with(&self, len: usize, attributes_len: usize, wait: &mut Wait<'_>) -> byref::Result<byref::Loan> {
        byref::Everyone::loan_with(self, len, attributes_len, wait)
    }

    fn explain(&self, bytes: &[u8]) -> byref::Result<Option<byref::Entry>> {
        byref::Everyone::explain(self, bytes)
    }
}

/// A `to` argument: an address, or an identity.
fn destination(to: &Bound<'_, PyAny>) -> PyResult<To> {
    if let Ok(address) = to.cast::<PyString>() {
        return Ok(To::from(address.to_str()?));
    }
    if let Ok(identity) = to.cast::<Identity>() {
        return Ok(To::from(&identity.get().0));
    }
    let advice = if to.is_instance_of::<Message>() { "; msg.sender is who sent a message" } else { "" };
    let text = format!("to must be an address (str) or a byref.Identity, not {}{advice}", class_name(to));
    Err(PyTypeError::new_err(text))
}

impl Mailbox {
    /// For who receives from it: itself, its receiving half, and how that wants its messages.
    pub fn parts(&self) -> (byref::Mailbox, byref::Subscriber, Manner) {
        (self.core.handle(), self.core.inbox(), self.inbox.get().manner())
    }

    fn address(&self) -> &str {
        self.core.address()
    }

    /// An error if an undelivered message is to be sent with something else beside it.
    fn check_undelivered(&self, py: Python<'_>, is_changed: bool) -> PyResult<()> {
        if !is_changed {
            return Ok(());
        }
        let text = "an undelivered message keeps its headers, timestamp and tag; send bytes(message) with others";
        Err(located(py, self.address(), "", PyValueError::new_err(text)))
    }

    /// The way there; `wait`: for how many seconds to let the address come.
    fn route(&self, to: &Bound<'_, PyAny>, wait: Option<f64>) -> PyResult<Route> {
        let route = self.core.to(destination(to)?);
        Ok(match wait {
            None | Some(0.0) => route,
            Some(seconds) if seconds.is_infinite() && seconds > 0.0 => route.come_within(Duration::MAX),
            Some(seconds) => route.come_within(positive("wait", seconds)?),
        })
    }
}

#[pymethods]
impl Mailbox {
    #[new]
    #[pyo3(signature = (
        address=None, depth=256, max_memory=None, takeover=false, events=false, writable=false, allow_pickle=false
    ))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments")]
    fn new(
        py: Python<'_>,
        address: Option<&str>,
        depth: i128,
        max_memory: Option<i128>,
        takeover: bool,
        events: bool,
        writable: bool,
        allow_pickle: bool,
    ) -> PyResult<Self> {
        ending::outlive();
        let builder = address.map_or_else(byref::Mailbox::anonymous, byref::Mailbox::builder);
        let mut builder = builder.depth(non_negative("depth", depth)?).takeover(takeover).events(events);
        if let Some(max_memory) = max_memory {
            builder = builder.max_memory(non_negative("max_memory", max_memory)?);
        }
        let core = py.detach(|| builder.build()).map_err(|error| to_python(py, error))?;
        let manner = Manner { writable, allow_pickle, is_direct: true };
        let inbox = Py::new(py, Subscriber::of_mailbox(&core, events, manner))?;
        Ok(Mailbox { core, inbox })
    }

    // ---- sending ----

    #[doc = doc!("Mailbox.send")]
    #[pyo3(signature = (to, data, headers=None, timestamp_ns=None, timeout=None, wait=None, tag=0))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments")]
    fn send(
        &self,
        py: Python<'_>,
        to: &Bound<'_, PyAny>,
        data: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = headers::argument)] headers: Option<Bound<'_, PyDict>>,
        timestamp_ns: Option<u64>,
        timeout: Option<f64>,
        wait: Option<f64>,
        tag: u64,
    ) -> PyResult<u64> {
        let timeout = Timeout::new(timeout)?;
        if let (Ok(bytes), None, None) = (data.cast_exact::<PyBytes>(), &headers, wait) {
            // Most messages, without a route of their own.
            let (bytes, beside) = (bytes.as_bytes(), Beside { timestamp_ns, tag, ..Beside::NOTHING });
            if let Ok(address) = to.cast::<PyString>() {
                let address = address.to_str()?;
                return timeout.wait_if_needed(py, |wait| self.core.send_as(Single, address, bytes, beside, wait));
            }
            let to = destination(to)?;
            return timeout.wait_if_needed(py, |wait| self.core.send_as(Single, &to, bytes, beside, wait));
        }
        let route = self.route(to, wait)?;
        if let Ok(message) = data.cast::<Undelivered>() {
            self.check_undelivered(py, headers.is_some() || timestamp_ns.is_some() || tag != 0)?;
            let message = &message.get().0;
            return timeout.wait_if_needed(py, |wait| route.send_undelivered(message, wait));
        }
        outlet::send(&route, data, headers.as_ref(), timeout, In(&route, Single, Marks { timestamp_ns, tag }))
    }

    #[doc = doc!("Mailbox.send_async")]
    #[pyo3(signature = (to, data, headers=None, timestamp_ns=None, timeout=None, wait=None, tag=0))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments")]
    fn send_async<'py>(
        slf: &Bound<'py, Self>,
        to: &Bound<'py, PyAny>,
        data: &Bound<'py, PyAny>,
        headers: Option<&Bound<'py, PyAny>>,
        timestamp_ns: Option<u64>,
        timeout: Option<f64>,
        wait: Option<f64>,
        tag: u64,
    ) -> PyResult<Bound<'py, PyAny>> {
        Timeout::new(timeout)?;
        sending::coroutine(slf.as_any(), (to, data, headers, timestamp_ns, wait, tag), timeout)
    }

    /// For `send_async`: the number, if there is room at once; else what to try again.
    #[expect(clippy::too_many_arguments, reason = "what send_async has")]
    fn _send_now<'py>(
        &self,
        py: Python<'py>,
        to: &Bound<'py, PyAny>,
        data: &Bound<'py, PyAny>,
        #[pyo3(from_py_with = headers::argument)] headers: Option<Bound<'py, PyDict>>,
        timestamp_ns: Option<u64>,
        wait: Option<f64>,
        tag: u64,
    ) -> PyResult<Bound<'py, PyAny>> {
        let route = self.route(to, wait)?;
        if let Ok(message) = data.cast::<Undelivered>() {
            self.check_undelivered(py, headers.is_some() || timestamp_ns.is_some() || tag != 0)?;
            return sending::begin_undelivered(py, route, message.get().0.clone());
        }
        sending::begin(Exit::by(route), data, headers, Marks { timestamp_ns, tag })
    }

    #[doc = doc!("Mailbox.send_pickle")]
    #[pyo3(signature = (to, obj, headers=None, timestamp_ns=None, timeout=None, wait=None, tag=0))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments")]
    fn send_pickle(
        &self,
        to: &Bound<'_, PyAny>,
        obj: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = headers::argument)] headers: Option<Bound<'_, PyDict>>,
        timestamp_ns: Option<u64>,
        timeout: Option<f64>,
        wait: Option<f64>,
        tag: u64,
    ) -> PyResult<u64> {
        let (timeout, route) = (Timeout::new(timeout)?, self.route(to, wait)?);
        outlet::send_pickle(&route, obj, headers.as_ref(), timeout, In(&route, Single, Marks { timestamp_ns, tag }))
    }

    #[doc = doc!("Mailbox.send_tracked")]
    #[pyo3(signature = (to, data, headers=None, timestamp_ns=None, timeout=None, wait=None, tag=0))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments")]
    fn send_tracked(
        &self,
        to: &Bound<'_, PyAny>,
        data: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = headers::argument)] headers: Option<Bound<'_, PyDict>>,
        timestamp_ns: Option<u64>,
        timeout: Option<f64>,
        wait: Option<f64>,
        tag: u64,
    ) -> PyResult<Ticket> {
        let (timeout, route) = (Timeout::new(timeout)?, self.route(to, wait)?);
        ending::outlive();
        let way = In(&route, Tracked, Marks { timestamp_ns, tag });
        outlet::send(&route, data, headers.as_ref(), timeout, way).map(Ticket)
    }

    #[doc = doc!("Mailbox.send_many")]
    #[pyo3(signature = (to, rows, headers=None, timestamp_ns=None, timeout=None, wait=None, tag=0))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments")]
    fn send_many<'py>(
        &self,
        to: &Bound<'py, PyAny>,
        rows: &Bound<'py, PyAny>,
        #[pyo3(from_py_with = headers::argument)] headers: Option<Bound<'py, PyDict>>,
        timestamp_ns: Option<u64>,
        timeout: Option<f64>,
        wait: Option<f64>,
        tag: u64,
    ) -> PyResult<Bound<'py, PyRange>> {
        let (timeout, route) = (Timeout::new(timeout)?, self.route(to, wait)?);
        let way = |count| In(&route, Rows(count), Marks { timestamp_ns, tag });
        outlet::send_many(&route, rows, headers.as_ref(), timeout, way)
    }

    #[doc = doc!("Mailbox.send_to_all")]
    #[pyo3(signature = (pattern, data, headers=None, timestamp_ns=None, timeout=None, tag=0))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments")]
    fn send_to_all(
        &self,
        py: Python<'_>,
        pattern: &str,
        data: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = headers::argument)] headers: Option<Bound<'_, PyDict>>,
        timestamp_ns: Option<u64>,
        timeout: Option<f64>,
        tag: u64,
    ) -> PyResult<Vec<Identity>> {
        let timeout = Timeout::new(timeout)?;
        let everyone = self.core.to_all(pattern).map_err(|error| to_python(py, error))?;
        let marks = Marks { timestamp_ns, tag };
        let send = |bytes: &[u8], attributes: &Encoded, wait: &mut Wait<'_>| {
            everyone.send_with(bytes, marks.with(attributes), wait)
        };
        let send_loan = |loan: &mut byref::Loan, attributes: &Encoded, wait: &mut Wait<'_>| {
            loan.send_as(Single, marks.with(attributes), wait).map(|_| everyone.reached())
        };
        let reached = outlet::send(&everyone, data, headers.as_ref(), timeout, (send, send_loan))?;
        Ok(reached.into_iter().map(Identity).collect())
    }

    #[doc = doc!("Mailbox.loan")]
    #[pyo3(signature = (to, shape, dtype=None, timeout=None, wait=None))]
    fn loan<'py>(
        &self,
        py: Python<'py>,
        to: &Bound<'py, PyAny>,
        shape: &Bound<'py, PyAny>,
        dtype: Option<&Bound<'py, PyAny>>,
        timeout: Option<f64>,
        wait: Option<f64>,
    ) -> PyResult<Bound<'py, Loan>> {
        let timeout = Timeout::new(timeout)?;
        outlet::loan(&self.route(to, wait)?, py, shape, dtype, timeout)
    }

    #[doc = doc!("Mailbox.undelivered")]
    fn undelivered(&self, py: Python<'_>, peer: &Bound<'_, PyAny>) -> PyResult<Vec<Undelivered>> {
        let messages = self.core.undelivered(destination(peer)?).map_err(|error| to_python(py, error))?;
        Ok(messages.into_iter().map(Undelivered).collect())
    }

    // ---- who is there ----

    #[doc = doc!("Mailbox.address")]
    #[getter(address)]
    fn own_address(&self) -> &str {
        self.address()
    }

    #[doc = doc!("Mailbox.identity")]
    #[getter]
    fn identity(&self) -> Identity {
        Identity(self.core.identity().clone())
    }

    #[doc = doc!("Mailbox.peers")]
    #[getter]
    fn peers(&self, py: Python<'_>) -> PyResult<Vec<Identity>> {
        ending::outlive();
        let found = self.core.peers().map_err(|error| to_python(py, error))?;
        Ok(found.into_iter().map(Identity).collect())
    }

    #[doc = doc!("Mailbox.wait_for_peer")]
    #[pyo3(signature = (pattern, timeout=None))]
    fn wait_for_peer(&self, py: Python<'_>, pattern: &str, timeout: Option<f64>) -> PyResult<Identity> {
        Timeout::new(timeout)?.wait(py, |wait| self.core.wait_for_peer_with(pattern, wait)).map(Identity)
    }

    // ---- receiving ----

    #[doc = doc!("Mailbox.recv")]
    #[pyo3(signature = (timeout=None))]
    fn recv<'py>(&self, py: Python<'py>, timeout: Option<f64>) -> PyResult<Bound<'py, PyAny>> {
        self.inbox.get().recv(py, timeout)
    }

    #[doc = doc!("Mailbox.recv_async")]
    #[pyo3(signature = (timeout=None))]
    fn recv_async<'py>(&self, py: Python<'py>, timeout: Option<f64>) -> PyResult<Bound<'py, PyAny>> {
        Subscriber::recv_async(self.inbox.bind(py), timeout)
    }

    #[doc = doc!("Mailbox.try_recv")]
    fn try_recv<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.inbox.get().try_recv(py)
    }

    #[doc = doc!("Mailbox.recv_batch")]
    #[pyo3(signature = (n, timeout=None))]
    fn recv_batch<'py>(&self, py: Python<'py>, n: i128, timeout: Option<f64>) -> PyResult<Bound<'py, PyAny>> {
        self.inbox.get().recv_batch(py, n, timeout)
    }

    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, Iteration>> {
        Subscriber::__iter__(self.inbox.bind(py).clone())
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.inbox.get().__next__(py)
    }

    fn __aiter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Subscriber::__aiter__(self.inbox.bind(py))
    }

    #[doc = doc!("Mailbox.fileno")]
    fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        self.inbox.get().fileno(py)
    }

    #[doc = doc!("Mailbox.stats")]
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        ending::outlive();
        let stats = self.core.stats().map_err(|error| to_python(py, error))?;
        let dict = PyDict::new(py);
        dict.set_item("sent", stats.sent)?;
        dict.set_item("sent_bytes", stats.sent_bytes)?;
        dict.set_item("copied_bytes", stats.copied_bytes)?;
        dict.set_item("waits", stats.waits)?;
        dict.set_item("received", stats.received)?;
        dict.set_item("received_bytes", stats.received_bytes)?;
        dict.set_item("destinations", stats.destinations)?;
        dict.set_item("undelivered", stats.undelivered)?;
        dict.set_item("pool_used", stats.pool_used)?;
        dict.set_item("pool_allocated", stats.pool_allocated)?;
        Ok(dict)
    }

    #[doc = doc!("Mailbox.close")]
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.core.close();
        Subscriber::close(self.inbox.bind(py)) // Lets the tasks know that wait for it.
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.close(py)
    }

    fn __repr__(&self) -> String {
        format!("<byref.Mailbox {:?}{}>", self.address(), state(self.core.is_closed()))
    }
}
