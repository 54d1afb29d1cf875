//! `Publisher`, seen from Python.

use crate::ending;
use crate::errors::to_python;
use crate::headers;
use crate::loan::Loan;
use crate::message::{Manner, Message};
use crate::outlet::{self, In, Marks, Outlet};
use crate::outstanding::Outstanding;
use crate::refusals::class_name;
use crate::sending::{self, Exit};
use crate::ticket::Ticket;
use crate::waiting::Timeout;
use byref::{Kept, Policy, Rows, Single, Tracked, Wait};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyRange, PyTuple};
use pyo3::{PyTraverseError, PyVisit};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

#[doc = doc!("SubscriberInfo")]
#[pyclass(frozen, module = "byref")]
pub struct SubscriberInfo(byref::SubscriberInfo);

#[pymethods]
impl SubscriberInfo {
    #[doc = doc!("SubscriberInfo.pid")]
    #[getter]
    fn pid(&self) -> i32 {
        self.0.pid
    }

    #[doc = doc!("SubscriberInfo.name")]
    #[getter]
    fn name(&self) -> Option<&str> {
        self.0.name.as_deref()
    }

    #[doc = doc!("SubscriberInfo.policy")]
    #[getter]
    fn policy(&self) -> &'static str {
        POLICIES.iter().find(|(_, known)| *known == self.0.policy).expect("all policies have names").0
    }

    #[doc = doc!("SubscriberInfo.lag")]
    #[getter]
    fn lag(&self) -> u64 {
        self.0.lag
    }

    #[doc = doc!("SubscriberInfo.stalled")]
    #[getter]
    fn stalled(&self) -> f64 {
        self.0.stalled.as_secs_f64()
    }

    fn __repr__(&self) -> String {
        let name = self.name().map(|name| format!(" {name:?}")).unwrap_or_default();
        format!("<byref.SubscriberInfo{name}, process {}, {}, lag {}>", self.pid(), self.policy(), self.lag())
    }
}

/// The policies' names in Python.
pub const POLICIES: [(&str, Policy); 3] =
    [("block", Policy::Block), ("drop_oldest", Policy::DropOldest), ("latest", Policy::Latest)];

#[doc = doc!("Publisher")]
#[pyclass(frozen, weakref, module = "byref")]
pub struct Publisher(pub byref::Publisher, Option<Arc<OnIdle>>);

/// What a publisher calls when its last subscriber is gone; `None` once it is not needed any more.
struct OnIdle(Mutex<Option<Py<PyAny>>>);

impl OnIdle {
    fn lock(&self) -> MutexGuard<'_, Option<Py<PyAny>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// On a thread of the library's own.
    fn call(&self) {
        Python::try_attach(|py| {
            ending::outlive();
            let callable = self.lock().as_ref().map(|callable| callable.clone_ref(py));
            if let Some(callable) = callable
                && let Err(error) = callable.call0(py)
            {
                error.write_unraisable(py, Some(callable.bind(py)));
            }
        });
    }
}

impl Publisher {
    #[cold]
    fn send_kept<'py>(
        &self,
        data: &Bound<'py, PyAny>,
        headers: Option<&Bound<'py, PyDict>>,
        marks: Marks,
        timeout: Timeout,
    ) -> PyResult<Bound<'py, PyAny>> {
        ending::outlive();
        let message = outlet::send(&Plain(&self.0), data, headers, timeout, In(&self.0, Kept, marks))?;
        Ok(Bound::new(data.py(), Message::new(message, Manner::default()))?.into_any())
    }
}

/// A publisher whose messages tell all about themselves: it does not listen to what it explained once for all subscribers.
struct Plain<'a>(&'a byref::Publisher);

impl Outlet for Plain<'_> {
    fn topic(&self) -> &str {
        self.0.topic()
    }

    fn loan_with(&self, len: usize, attributes_len: usize, wait: &mut Wait<'_>) -> byref::Result<byref::Loan> {
        self.0.loan_with(len, attributes_len, wait)
    }

    fn explain(&self, _: &[u8]) -> byref::Result<Option<byref::Entry>> {
        Ok(None)
    }
}

#[pymethods]
impl Publisher {
    #[new]
    #[pyo3(signature = (
        topic, max_memory=None, history=0, name=None, hold_warning=None, max_held=None, max_stall=None, on_idle=None
    ))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments")]
    fn new(
        py: Python<'_>,
        topic: &str,
        max_memory: Option<i128>,
        history: i128,
        name: Option<String>,
        hold_warning: Option<f64>,
        max_held: Option<i128>,
        max_stall: Option<f64>,
        on_idle: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        ending::outlive();
        let mut builder = byref::Publisher::builder(topic).history(non_negative("history", history)?);
        if let Some(max_memory) = max_memory {
            builder = builder.max_memory(non_negative("max_memory", max_memory)?);
        }
        if let Some(name) = name {
            builder = builder.name(name);
        }
        if let Some(seconds) = hold_warning {
            builder = builder.hold_warning(positive("hold_warning", seconds)?);
        }
        if let Some(bytes) = max_held {
            builder = builder.max_held(non_negative("max_held", bytes)?);
        }
        if let Some(seconds) = max_stall {
            builder = builder.max_stall(positive("max_stall", seconds)?);
        }
        let on_idle = on_idle.map(|callable| {
            if !callable.is_callable() {
                let text = format!("on_idle must be callable, not {}", class_name(callable));
                return Err(PyTypeError::new_err(text));
            }
            Ok(Arc::new(OnIdle(Mutex::new(Some(callable.clone().unbind())))))
        });
        let on_idle = on_idle.transpose()?;
        if let Some(on_idle) = on_idle.clone() {
            builder = builder.on_idle(move || on_idle.call());
        }
        let core = builder.build().map_err(|error| to_python(py, error))?;
        Ok(Publisher(core, on_idle))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // Whoever has the lock is clearing it, or about to call it: it is alive.
        let Some(on_idle) = &self.1 else { return Ok(()) };
        on_idle.0.try_lock().map_or(Ok(()), |callable| visit.call(&*callable))
    }

    fn __clear__(&self) {
        if let Some(on_idle) = &self.1 {
            let callable = on_idle.lock().take();
            drop(callable); // Without the lock: it may run anything.
        }
    }

    #[doc = doc!("Publisher.send")]
    #[pyo3(signature = (data, headers=None, timestamp_ns=None, timeout=None, keep=false, tag=0))]
    fn send<'py>(
        &self,
        data: &Bound<'py, PyAny>,
        #[pyo3(from_py_with = headers::argument)] headers: Option<Bound<'py, PyDict>>,
        timestamp_ns: Option<u64>,
        timeout: Option<f64>,
        keep: bool,
        tag: u64,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (timeout, marks) = (Timeout::new(timeout)?, Marks { timestamp_ns, tag });
        if keep {
            return self.send_kept(data, headers.as_ref(), marks, timeout);
        }
        let sent = outlet::send(&self.0, data, headers.as_ref(), timeout, In(&self.0, Single, marks))?;
        Ok(sent.into_pyobject(data.py())?.into_any())
    }

    #[doc = doc!("Publisher.send_async")]
    #[pyo3(signature = (data, headers=None, timestamp_ns=None, timeout=None, tag=0))]
    fn send_async<'py>(
        slf: &Bound<'py, Self>,
        data: &Bound<'py, PyAny>,
        headers: Option<&Bound<'py, PyAny>>,
        timestamp_ns: Option<u64>,
        timeout: Option<f64>,
        tag: u64,
    ) -> PyResult<Bound<'py, PyAny>> {
        Timeout::new(timeout)?;
        sending::coroutine(slf.as_any(), (data, headers, timestamp_ns, tag), timeout)
    }

    /// For `send_async`: the sequence number, if there is room at once; else what to try again.
    fn _send_now<'py>(
        slf: &Bound<'py, Self>,
        data: &Bound<'py, PyAny>,
        #[pyo3(from_py_with = headers::argument)] headers: Option<Bound<'py, PyDict>>,
        timestamp_ns: Option<u64>,
        tag: u64,
    ) -> PyResult<Bound<'py, PyAny>> {
        sending::begin(Exit::Publisher(slf.clone().unbind()), data, headers, Marks { timestamp_ns, tag })
    }

    #[doc = doc!("Publisher.send_tracked")]
    #[pyo3(signature = (data, headers=None, timestamp_ns=None, timeout=None, tag=0))]
    fn send_tracked(
        &self,
        data: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = headers::argument)] headers: Option<Bound<'_, PyDict>>,
        timestamp_ns: Option<u64>,
        timeout: Option<f64>,
        tag: u64,
    ) -> PyResult<Ticket> {
        ending::outlive();
        let way = In(&self.0, Tracked, Marks { timestamp_ns, tag });
        outlet::send(&self.0, data, headers.as_ref(), Timeout::new(timeout)?, way).map(Ticket)
    }

    #[doc = doc!("Publisher.send_pickle")]
    #[pyo3(signature = (obj, headers=None, timestamp_ns=None, timeout=None, tag=0))]
    fn send_pickle(
        &self,
        obj: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = headers::argument)] headers: Option<Bound<'_, PyDict>>,
        timestamp_ns: Option<u64>,
        timeout: Option<f64>,
        tag: u64,
    ) -> PyResult<u64> {
        let way = In(&self.0, Single, Marks { timestamp_ns, tag });
        outlet::send_pickle(&self.0, obj, headers.as_ref(), Timeout::new(timeout)?, way)
    }

    #[doc = doc!("Publisher.send_many")]
    #[pyo3(signature = (rows, headers=None, timestamp_ns=None, timeout=None, tag=0))]
    fn send_many<'py>(
        &self,
        rows: &Bound<'py, PyAny>,
        #[pyo3(from_py_with = headers::argument)] headers: Option<Bound<'py, PyDict>>,
        timestamp_ns: Option<u64>,
        timeout: Option<f64>,
        tag: u64,
    ) -> PyResult<Bound<'py, PyRange>> {
        let way = |count| In(&self.0, Rows(count), Marks { timestamp_ns, tag });
        outlet::send_many(&self.0, rows, headers.as_ref(), Timeout::new(timeout)?, way)
    }

    #[doc = doc!("Publisher.loan")]
    #[pyo3(signature = (shape, dtype=None, timeout=None))]
    fn loan<'py>(
        &self,
        py: Python<'py>,
        shape: &Bound<'py, PyAny>,
        dtype: Option<&Bound<'py, PyAny>>,
        timeout: Option<f64>,
    ) -> PyResult<Bound<'py, Loan>> {
        outlet::loan(&self.0, py, shape, dtype, Timeout::new(timeout)?)
    }

    #[doc = doc!("Publisher.loan_batch")]
    #[pyo3(signature = (schema, rows, timeout=None))]
    fn loan_batch<'py>(
        &self,
        py: Python<'py>,
        schema: &Bound<'py, PyAny>,
        rows: i128,
        timeout: Option<f64>,
    ) -> PyResult<Bound<'py, Loan>> {
        outlet::loan_batch(&self.0, py, schema, rows, Timeout::new(timeout)?)
    }

    #[doc = doc!("Publisher.wait_for_subscribers")]
    #[pyo3(signature = (n=1, timeout=None))]
    fn wait_for_subscribers(&self, py: Python<'_>, n: usize, timeout: Option<f64>) -> PyResult<()> {
        Timeout::new(timeout)?.wait(py, |wait| self.0.wait_for_subscribers_with(n, wait))
    }

    #[doc = doc!("Publisher.flush")]
    #[pyo3(signature = (timeout=None))]
    fn flush(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<()> {
        Timeout::new(timeout)?.wait(py, |wait| self.0.flush_with(wait))
    }

    #[doc = doc!("Publisher.evict")]
    fn evict(&self, py: Python<'_>, subscriber: &SubscriberInfo) -> PyResult<bool> {
        self.0.evict(&subscriber.0).map_err(|error| to_python(py, error))
    }

    #[doc = doc!("Publisher.subscribers")]
    #[getter]
    fn subscribers(&self, py: Python<'_>) -> PyResult<Vec<SubscriberInfo>> {
        ending::outlive();
        let found = self.0.subscribers().map_err(|error| to_python(py, error))?;
        Ok(found.into_iter().map(SubscriberInfo).collect())
    }

    #[doc = doc!("Publisher.outstanding")]
    #[getter]
    fn outstanding(&self, py: Python<'_>) -> PyResult<Outstanding> {
        ending::outlive();
        Outstanding::new(py, self.0.outstanding().map_err(|error| to_python(py, error))?)
    }

    #[doc = doc!("Publisher.topic")]
    #[getter]
    fn topic(&self) -> &str {
        self.0.topic()
    }

    #[doc = doc!("Publisher.stats")]
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        ending::outlive();
        let stats = self.0.stats().map_err(|error| to_python(py, error))?;
        let dict = PyDict::new(py);
        dict.set_item("sent", stats.sent)?;
        dict.set_item("bytes", stats.sent_bytes)?;
        dict.set_item("copied_bytes", stats.copied_bytes)?;
        dict.set_item("waits", stats.waits)?;
        dict.set_item("subscribers", stats.subscribers)?;
        dict.set_item("pool_used", stats.pool_used)?;
        dict.set_item("pool_allocated", stats.pool_allocated)?;
        Ok(dict)
    }

    #[doc = doc!("Publisher.close")]
    #[pyo3(signature = (linger=None))]
    fn close(&self, py: Python<'_>, linger: Option<f64>) -> PyResult<()> {
        match linger {
            None => {
                self.0.close();
                Ok(())
            }
            Some(seconds) if seconds.is_nan() || seconds < 0.0 => {
                Err(PyValueError::new_err(format!("linger must be None or at least 0 seconds, not {seconds}")))
            }
            linger => Timeout::new(linger)?.wait(py, |wait| self.0.close_within_with(wait)),
        }
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, _exception: &Bound<'_, PyTuple>) {
        self.0.close();
    }

    fn __repr__(&self) -> String {
        format!("<byref.Publisher on {:?}{}>", self.0.topic(), state(self.0.is_closed()))
    }
}

/// What `repr` says of an endpoint that cannot be used.
pub fn state(is_closed: byref::Result<bool>) -> &'static str {
    match is_closed {
        Ok(false) => "",
        Ok(true) => ", closed",
        Err(_) => ", of the parent process",
    }
}

/// A time argument.
pub fn positive(name: &str, seconds: f64) -> PyResult<Duration> {
    let limit = Duration::try_from_secs_f64(seconds).ok().filter(|limit| !limit.is_zero());
    limit.ok_or_else(|| PyValueError::new_err(format!("{name} must be more than 0 seconds, not {seconds}")))
}

/// A count argument.
pub fn non_negative(name: &str, value: i128) -> PyResult<u64> {
    u64::try_from(value)
        .map_err(|_| PyValueError::new_err(format!("{name} must be between 0 and 2**64 - 1, not {value}")))
}

/// A shape: one extent or a sequence of them.
pub fn extents(shape: &Bound<'_, PyAny>) -> PyResult<Vec<u64>> {
    let extent = |value: &Bound<'_, PyAny>| -> PyResult<u64> {
        let index = value.py().import("operator")?.getattr("index")?.call1((value,)).map_err(|_| {
            PyTypeError::new_err(format!("a shape is an int or a sequence of ints, not {}", class_name(shape)))
        })?;
        let refused =
            || PyValueError::new_err(format!("a shape's extents must be between 0 and 2**63 - 1, not {index}"));
        index.extract::<i64>().ok().and_then(|extent| u64::try_from(extent).ok()).ok_or_else(refused)
    };
    match shape.try_iter() {
        Ok(values) => values.map(|value| extent(&value?)).collect(),
        Err(_) => Ok(vec![extent(shape)?]),
    }
}
