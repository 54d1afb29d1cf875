//! `Pusher`, seen from Python.

use crate::ending;
use crate::errors::to_python;
use crate::headers;
use crate::loan::Loan;
use crate::outlet::{self, Outlet};
use crate::publisher::{non_negative, positive, state};
use crate::waiting::Timeout;
use byref::{Beside, Encoded, Rows, Single, Wait};
use numpy::{PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyRange, PyTuple};

#[doc = doc!("Pusher")]
#[pyclass(frozen, weakref, module = "byref")]
pub struct Pusher(byref::Pusher);

impl Outlet for byref::Pusher {
    fn topic(&self) -> &str {
        self.queue()
    }

    fn loan_with(&self, len: usize, attributes_len: usize, wait: &mut Wait<'_>) -> byref::Result<byref::Loan> {
        byref::Pusher::loan_with(self, len, attributes_len, wait)
    }

    fn explain(&self, bytes: &[u8]) -> byref::Result<Option<byref::Entry>> {
        byref::Pusher::explain(self, bytes)
    }
}

impl Pusher {
    fn rejected_as(py: Python<'_>, found: byref::Result<Vec<byref::Rejected>>) -> PyResult<Vec<Rejected>> {
        Ok(found.map_err(|error| to_python(py, error))?.into_iter().map(Rejected).collect())
    }
}

#[pymethods]
impl Pusher {
    #[new]
    #[pyo3(signature = (
        queue, max_pending=1000, redeliver=true, max_attempts=None, max_time=None, max_memory=None, name=None
    ))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments")]
    fn new(
        py: Python<'_>,
        queue: &str,
        max_pending: i128,
        redeliver: bool,
        max_attempts: Option<i128>,
        max_time: Option<f64>,
        max_memory: Option<i128>,
        name: Option<String>,
    ) -> PyResult<Self> {
        ending::outlive();
        let max_pending = usize::try_from(non_negative("max_pending", max_pending)?).unwrap_or(usize::MAX);
        let mut builder = byref::Pusher::builder(queue).max_pending(max_pending).redeliver(redeliver);
        if let Some(most) = max_attempts {
            builder = builder.max_attempts(u32::try_from(non_negative("max_attempts", most)?).unwrap_or(u32::MAX));
        }
        if let Some(seconds) = max_time.filter(|seconds| *seconds != f64::INFINITY) {
            builder = builder.max_time(positive("max_time", seconds)?);
        }
        if let Some(max_memory) = max_memory {
            builder = builder.max_memory(non_negative("max_memory", max_memory)?);
        }
        if let Some(name) = name {
            builder = builder.name(name);
        }
        Ok(Pusher(py.detach(|| builder.build()).map_err(|error| to_python(py, error))?))
    }

    #[doc = doc!("Pusher.send")]
    #[pyo3(signature = (data, headers=None, timestamp_ns=None, timeout=None))]
    fn send(
        &self,
        py: Python<'_>,
        data: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = headers::argument)] headers: Option<Bound<'_, PyDict>>,
        timestamp_ns: Option<u64>,
        timeout: Option<f64>,
    ) -> PyResult<u64> {
        let (pusher, timeout) = (&self.0, Timeout::new(timeout)?);
        if let (Ok(rejected), None, None) = (data.cast::<Rejected>(), &headers, timestamp_ns) {
            let (rejected, attributes) = (&rejected.get().0, rejected.get().0.attributes());
            let attributes = attributes.encode().map_err(|error| to_python(py, error))?;
            let timestamp_ns = Some(rejected.timestamp_ns());
            return timeout.wait_if_needed(py, |wait| pusher.send_with(rejected, &attributes, timestamp_ns, wait));
        }
        let send = |bytes: &[u8], attributes: &Encoded, wait: &mut Wait<'_>| {
            pusher.send_with(bytes, attributes, timestamp_ns, wait)
        };
        let send_loan = |loan: &mut byref::Loan, attributes: &Encoded, wait: &mut Wait<'_>| {
            loan.send_as(Single, Beside { attributes, timestamp_ns, tag: 0 }, wait)
        };
        outlet::send(pusher, data, headers.as_ref(), timeout, (send, send_loan))
    }

    #[doc = doc!("Pusher.send_pickle")]
    #[pyo3(signature = (obj, headers=None, timestamp_ns=None, timeout=None))]
    fn send_pickle(
        &self,
        obj: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = headers::argument)] headers: Option<Bound<'_, PyDict>>,
        timestamp_ns: Option<u64>,
        timeout: Option<f64>,
    ) -> PyResult<u64> {
        let (pusher, timeout) = (&self.0, Timeout::new(timeout)?);
        let send = |bytes: &[u8], attributes: &Encoded, wait: &mut Wait<'_>| {
            pusher.send_with(bytes, attributes, timestamp_ns, wait)
        };
        let send_loan = |loan: &mut byref::Loan, attributes: &Encoded, wait: &mut Wait<'_>| {
            loan.send_as(Single, Beside { attributes, timestamp_ns, tag: 0 }, wait)
        };
        outlet::send_pickle(pusher, obj, headers.as_ref(), timeout, (send, send_loan))
    }

    #[doc = doc!("Pusher.send_many")]
    #[pyo3(signature = (rows, headers=None, timestamp_ns=None, timeout=None))]
    fn send_many<'py>(
        &self,
        py: Python<'py>,
        rows: &Bound<'py, PyAny>,
        #[pyo3(from_py_with = headers::argument)] headers: Option<Bound<'py, PyDict>>,
        timestamp_ns: Option<u64>,
        timeout: Option<f64>,
    ) -> PyResult<Bound<'py, PyRange>> {
        ending::outlive();
        let rows = match rows.cast::<PyUntypedArray>() {
            // Each row is copied to a place of its own anyway.
            Ok(array) if !array.is_c_contiguous() => {
                py.import("numpy")?.getattr("ascontiguousarray")?.call1((array,))?
            }
            _ => rows.clone(),
        };
        let pusher = &self.0;
        let way = |count: usize| {
            let send = move |bytes: &[u8], attributes: &Encoded, wait: &mut Wait<'_>| {
                let row_len = bytes.len().checked_div(count).unwrap_or(1);
                pusher.send_many(bytes, row_len, attributes, timestamp_ns, wait)
            };
            let send_loan = move |loan: &mut byref::Loan, attributes: &Encoded, wait: &mut Wait<'_>| {
                loan.send_as(Rows(count), Beside { attributes, timestamp_ns, tag: 0 }, wait)
            };
            (send, send_loan)
        };
        outlet::send_many(pusher, &rows, headers.as_ref(), Timeout::new(timeout)?, way)
    }

    #[doc = doc!("Pusher.loan")]
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

    #[doc = doc!("Pusher.join")]
    #[pyo3(signature = (timeout=None))]
    fn join(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<()> {
        Timeout::new(timeout)?.wait(py, |wait| self.0.join_with(wait))
    }

    #[doc = doc!("Pusher.pending")]
    #[getter]
    fn pending(&self, py: Python<'_>) -> PyResult<usize> {
        self.0.pending().map_err(|error| to_python(py, error))
    }

    #[doc = doc!("Pusher.rejected")]
    #[getter]
    fn rejected(&self, py: Python<'_>) -> PyResult<Vec<Rejected>> {
        ending::outlive();
        Self::rejected_as(py, self.0.rejected())
    }

    #[doc = doc!("Pusher.take_rejected")]
    fn take_rejected(&self, py: Python<'_>) -> PyResult<Vec<Rejected>> {
        ending::outlive();
        Self::rejected_as(py, self.0.take_rejected())
    }

    #[doc = doc!("Pusher.pullers")]
    #[getter]
    fn pullers(&self, py: Python<'_>) -> PyResult<Vec<(i32, Option<String>)>> {
        ending::outlive();
        self.0.pullers().map_err(|error| to_python(py, error))
    }

    #[doc = doc!("Pusher.wait_for_pullers")]
    #[pyo3(signature = (n=1, timeout=None))]
    fn wait_for_pullers(&self, py: Python<'_>, n: usize, timeout: Option<f64>) -> PyResult<()> {
        Timeout::new(timeout)?.wait(py, |wait| self.0.wait_for_pullers_with(n, wait))
    }

    #[doc = doc!("Pusher.queue")]
    #[getter]
    fn queue(&self) -> &str {
        self.0.queue()
    }

    #[doc = doc!("Pusher.stats")]
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        ending::outlive();
        let stats = self.0.stats().map_err(|error| to_python(py, error))?;
        let dict = PyDict::new(py);
        dict.set_item("pushed", stats.pushed)?;
        dict.set_item("pushed_bytes", stats.pushed_bytes)?;
        dict.set_item("copied_bytes", stats.copied_bytes)?;
        dict.set_item("done", stats.done)?;
        dict.set_item("rejected", stats.rejected)?;
        dict.set_item("failed", stats.failed)?;
        dict.set_item("returned", stats.returned)?;
        dict.set_item("late", stats.late)?;
        dict.set_item("pending", stats.pending)?;
        dict.set_item("waiting", stats.waiting)?;
        dict.set_item("pullers", stats.pullers)?;
        dict.set_item("pool_used", stats.pool_used)?;
        dict.set_item("pool_allocated", stats.pool_allocated)?;
        Ok(dict)
    }

    #[doc = doc!("Pusher.close")]
    fn close(&self, py: Python<'_>) {
        ending::outlive(); // It may log.
        py.detach(|| self.0.close());
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyTuple>) {
        self.close(py);
    }

    fn __repr__(&self) -> String {
        format!("<byref.Pusher to {:?}{}>", self.0.queue(), state(self.0.is_closed()))
    }
}

#[doc = doc!("Rejected")]
#[pyclass(frozen, module = "byref")]
pub struct Rejected(byref::Rejected);

#[pymethods]
impl Rejected {
    #[doc = doc!("Rejected.number")]
    #[getter]
    fn number(&self) -> u64 {
        self.0.number()
    }

    #[doc = doc!("Rejected.attempts")]
    #[getter]
    fn attempts(&self) -> u32 {
        self.0.attempts()
    }

    #[doc = doc!("Rejected.reason")]
    #[getter]
    fn reason(&self) -> String {
        self.0.reason().to_string()
    }

    #[doc = doc!("Rejected.may_have_run")]
    #[getter]
    fn may_have_run(&self) -> bool {
        matches!(self.0.reason(), byref::Reason::Unknown)
    }

    #[doc = doc!("Rejected.timestamp_ns")]
    #[getter]
    fn timestamp_ns(&self) -> u64 {
        self.0.timestamp_ns()
    }

    #[doc = doc!("Rejected.headers")]
    #[getter]
    fn headers<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        ending::outlive();
        headers::to_python(py, &self.0.attributes().headers)
    }

    #[doc = doc!("Rejected.nbytes")]
    #[getter]
    fn nbytes(&self) -> usize {
        self.0.len()
    }

    fn __len__(&self) -> usize {
        self.0.len()
    }

    /// Always true, also for an empty payload.
    fn __bool__(&self) -> bool {
        true
    }

    fn __bytes__<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        byref::count_copied(byref::Cause::Asked, self.0.len());
        PyBytes::new(py, &self.0)
    }

    fn __repr__(&self) -> String {
        let (number, len, reason) = (self.number(), self.0.len(), self.reason());
        format!("<byref.Rejected job {number}, {len} bytes: {reason}>")
    }
}
