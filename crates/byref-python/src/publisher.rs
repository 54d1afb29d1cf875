//! `Publisher`, seen from Python.
#![allow(unsafe_code)]

use crate::array::{self, itemsize, refuse_objects, size_of_shape};
use crate::arrow::import_schema;
use crate::columns::Columns;
use crate::draft::Draft;
use crate::errors::to_python;
use crate::headers;
use crate::loan::Loan;
use crate::outstanding::Outstanding;
use crate::owner::{Memory, Owner};
use crate::payload::{Payload, layout_of};
use crate::refusals::{class_name, located};
use crate::rows::Rows;
use crate::ticket::Ticket;
use crate::waiting::Timeout;
use byref::{Attributes, Encoded, HeaderValue, Policy, Wait};
use numpy::{PyArrayDescr, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyInt, PyRange, PyTuple};
use std::time::Duration;

/// From this size on, the interpreter is released while the payload is copied, in bytes.
const COPY_DETACHED: usize = 64 << 10;
/// Room for headers that are set after a loan was made, in bytes.
const HEADER_ROOM: usize = 256;

/// A subscriber as its publisher sees it.
#[pyclass(frozen, module = "byref")]
pub struct SubscriberInfo(byref::SubscriberInfo);

#[pymethods]
impl SubscriberInfo {
    /// Its process; 0 when that is out of sight.
    #[getter]
    fn pid(&self) -> i32 {
        self.0.pid
    }

    /// Its name, or None.
    #[getter]
    fn name(&self) -> Option<&str> {
        self.0.name.as_deref()
    }

    /// "block", "drop_oldest" or "latest".
    #[getter]
    fn policy(&self) -> &'static str {
        POLICIES.iter().find(|(_, known)| *known == self.0.policy).expect("all policies have names").0
    }

    /// Messages that it has not taken yet.
    #[getter]
    fn lag(&self) -> u64 {
        self.0.lag
    }

    /// For how many seconds senders have waited for it since it last took or released something; counted with `max_stall`.
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

/// Publishes messages on one topic. It may be shared by threads.
#[pyclass(frozen, weakref, module = "byref")]
pub struct Publisher(byref::Publisher);

impl Publisher {
    /// Sends what `data` is, `send` if it lies in one piece, else by way of a loan, `send_loan`.
    fn send_as<T: Send>(
        &self,
        data: &Bound<'_, PyAny>,
        headers: Option<&Bound<'_, PyDict>>,
        timeout: Option<f64>,
        send: impl FnMut(&[u8], &Encoded, &mut Wait<'_>) -> byref::Result<T> + Send,
        mut send_loan: impl FnMut(&mut byref::Loan, &Encoded, &mut Wait<'_>) -> byref::Result<T> + Send,
    ) -> PyResult<T> {
        let py = data.py();
        let timeout = Timeout::new(timeout)?;
        if let (Ok(bytes), None) = (data.cast_exact::<PyBytes>(), headers) {
            // Most messages, before anything larger than registers is passed around.
            return send_bytes(py, bytes.as_bytes(), &Encoded::default(), timeout, send);
        }
        let payload = match Draft::of(data, self.0.topic())? {
            Ok(payload) => payload,
            Err(draft) => return self.send_draft(py, &draft, headers, timeout, send_loan),
        };
        let layout = payload.layout().map_err(|error| located(py, self.0.topic(), "", error))?;
        let attributes = if layout.is_none() && headers.is_none() {
            Encoded::default()
        } else {
            let headers = self.headers(headers)?;
            Attributes { layout, headers }.encode().map_err(|error| to_python(py, error))?
        };
        match (payload.bytes(), &payload) {
            (Some(bytes), _) => send_bytes(py, bytes, &attributes, timeout, send),
            (None, Payload::Array(array)) => {
                let send = |loan: &mut byref::Loan, wait: &mut Wait<'_>| send_loan(loan, &attributes, wait);
                self.send_array(array, attributes.len(), timeout, send)
            }
            (None, _) => unreachable!("only arrays come in pieces"),
        }
    }

    fn headers(&self, headers: Option<&Bound<'_, PyDict>>) -> PyResult<Vec<(String, HeaderValue)>> {
        headers.map_or_else(|| Ok(Vec::new()), |headers| headers::from_python(headers, self.0.topic()))
    }

    fn send_array<T: Send>(
        &self,
        array: &Bound<'_, PyUntypedArray>,
        attributes_len: usize,
        timeout: Timeout,
        mut send: impl FnMut(&mut byref::Loan, &mut Wait<'_>) -> byref::Result<T> + Send,
    ) -> PyResult<T> {
        let py = array.py();
        let len = array.len() * itemsize(&array.dtype());
        let mut loan = timeout.wait_if_needed(py, |wait| self.0.loan_with(len, attributes_len, wait))?;
        gather(array, &mut loan)?;
        timeout.wait_if_needed(py, |wait| send(&mut loan, wait))
    }

    fn send_draft<'py, T: Send>(
        &self,
        py: Python<'py>,
        draft: &Draft<'py>,
        headers: Option<&Bound<'py, PyDict>>,
        timeout: Timeout,
        mut send: impl FnMut(&mut byref::Loan, &Encoded, &mut Wait<'_>) -> byref::Result<T> + Send,
    ) -> PyResult<T> {
        let headers = self.headers(headers)?;
        let planned = draft.plan(py, &self.0, headers)?;
        let (size, room) = (planned.size(), planned.attributes.len());
        let mut loan = timeout.wait_if_needed(py, |wait| self.0.loan_with(size, room, wait))?;
        let attributes = planned.fill(py, &mut loan)?;
        timeout.wait_if_needed(py, |wait| send(&mut loan, &attributes, wait))
    }
}

/// Sends bytes in one piece; large ones are copied without the interpreter.
#[inline]
fn send_bytes<T: Send>(
    py: Python<'_>,
    bytes: &[u8],
    attributes: &Encoded,
    timeout: Timeout,
    mut send: impl FnMut(&[u8], &Encoded, &mut Wait<'_>) -> byref::Result<T> + Send,
) -> PyResult<T> {
    let send = |wait: &mut Wait<'_>| send(bytes, attributes, wait);
    if bytes.len() < COPY_DETACHED { timeout.wait_if_needed(py, send) } else { timeout.wait(py, send) }
}

/// Copies an array's elements in order into a loan of its size.
pub fn gather(array: &Bound<'_, PyUntypedArray>, loan: &mut byref::Loan) -> PyResult<()> {
    let py = array.py();
    let shape: Vec<u64> = array.shape().iter().map(|extent| *extent as u64).collect();
    // Another thread may have changed it while the loan was waited for.
    if size_of_shape(&shape, itemsize(&array.dtype()))? != loan.len() {
        return Err(resized());
    }
    let memory = loan.memory().map_err(|error| to_python(py, error))?;
    let data = memory.as_ptr();
    loan.count_copied(loan.len());
    let owner = Owner::wrap(py, Memory::Loan(memory))?;
    // SAFETY: the loan was taken for this array's type and shape, and the owner keeps its memory.
    let place = unsafe { array::over(array.dtype(), &shape, data, true, owner) }?;
    array::copy_elements(&place, array)
}

/// Another thread resized what is being sent.
pub fn resized() -> PyErr {
    PyValueError::new_err("the array changed its size while it was being sent")
}

#[pymethods]
impl Publisher {
    #[new]
    #[pyo3(signature = (
        topic, max_memory=None, history=0, name=None, hold_warning=None, max_held=None, max_stall=None
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
    ) -> PyResult<Self> {
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
        builder.build().map(Publisher).map_err(|error| to_python(py, error))
    }

    /// Sends a copy of `data`; returns its sequence number.
    #[pyo3(signature = (data, headers=None, timestamp_ns=None, timeout=None))]
    fn send(
        &self,
        data: &Bound<'_, PyAny>,
        headers: Option<&Bound<'_, PyDict>>,
        timestamp_ns: Option<u64>,
        timeout: Option<f64>,
    ) -> PyResult<u64> {
        let send = |bytes: &[u8], attributes: &Encoded, wait: &mut Wait<'_>| {
            self.0.send_with(bytes, attributes, timestamp_ns, wait)
        };
        let send_loan = |loan: &mut byref::Loan, attributes: &Encoded, wait: &mut Wait<'_>| {
            loan.send_with(attributes, timestamp_ns, wait)
        };
        self.send_as(data, headers, timeout, send, send_loan)
    }

    /// Sends as `send` does; returns a Ticket that tells when the message is released.
    #[pyo3(signature = (data, headers=None, timestamp_ns=None, timeout=None))]
    fn send_tracked(
        &self,
        data: &Bound<'_, PyAny>,
        headers: Option<&Bound<'_, PyDict>>,
        timestamp_ns: Option<u64>,
        timeout: Option<f64>,
    ) -> PyResult<Ticket> {
        let send = |bytes: &[u8], attributes: &Encoded, wait: &mut Wait<'_>| {
            self.0.send_tracked_with(bytes, attributes, timestamp_ns, wait)
        };
        let send_loan = |loan: &mut byref::Loan, attributes: &Encoded, wait: &mut Wait<'_>| {
            loan.send_tracked_with(attributes, timestamp_ns, wait)
        };
        self.send_as(data, headers, timeout, send, send_loan).map(Ticket)
    }

    /// Sends any object that pickle can take: protocol 5, and the buffers of its arrays beside the pickle. Only subscribers
    /// that said `allow_pickle=True` unpickle it. Returns its sequence number.
    #[pyo3(signature = (obj, headers=None, timestamp_ns=None, timeout=None))]
    fn send_pickle(
        &self,
        py: Python<'_>,
        obj: &Bound<'_, PyAny>,
        headers: Option<&Bound<'_, PyDict>>,
        timestamp_ns: Option<u64>,
        timeout: Option<f64>,
    ) -> PyResult<u64> {
        let send = |loan: &mut byref::Loan, attributes: &Encoded, wait: &mut Wait<'_>| {
            loan.send_with(attributes, timestamp_ns, wait)
        };
        let draft = Draft::pickle(obj).map_err(|error| located(py, self.0.topic(), "", error))?;
        self.send_draft(py, &draft, headers, Timeout::new(timeout)?, send)
    }

    /// Sends the rows of an array (or buffers of equal size) as that many messages, in one step; returns their sequence
    /// numbers as a range. They lie packed, so that a receiver can take them as one array (`recv_batch`).
    #[pyo3(signature = (rows, headers=None, timestamp_ns=None, timeout=None))]
    fn send_many<'py>(
        &self,
        py: Python<'py>,
        rows: &Bound<'py, PyAny>,
        headers: Option<&Bound<'py, PyDict>>,
        timestamp_ns: Option<u64>,
        timeout: Option<f64>,
    ) -> PyResult<Bound<'py, PyRange>> {
        let timeout = Timeout::new(timeout)?;
        let rows = Rows::of(rows, self.0.topic())?;
        let headers = self.headers(headers)?;
        let attributes =
            Attributes { layout: rows.layout()?, headers }.encode().map_err(|error| to_python(py, error))?;
        let (count, row_len) = (rows.count(), rows.row_len());
        if count > 0 && row_len == 0 {
            let text = "rows of 0 bytes cannot be sent together; send them one by one";
            return Err(located(py, self.0.topic(), "", PyValueError::new_err(text)));
        }
        let first = match rows.bytes() {
            bytes if count == 0 || bytes.is_some() => {
                // No rows have no length either; that the publisher is closed shows all the same.
                let (bytes, row_len) = (bytes.unwrap_or_default(), row_len.max(1));
                let send = |wait: &mut byref::Wait<'_>| {
                    self.0.send_many(bytes, row_len, &attributes, timestamp_ns, wait).map(|sent| sent.start)
                };
                if bytes.len() < COPY_DETACHED { timeout.wait_if_needed(py, send)? } else { timeout.wait(py, send)? }
            }
            _ => {
                let len = count.saturating_mul(row_len);
                let mut loan = timeout.wait_if_needed(py, |wait| self.0.loan_with(len, attributes.len(), wait))?;
                rows.gather(&mut loan)?;
                timeout.wait_if_needed(py, |wait| loan.send_many_with(count, &attributes, timestamp_ns, wait))?
            }
        };
        PyRange::new(py, first as isize, (first + count as u64) as isize)
    }

    /// Lends memory to be filled in place: of `shape` elements of type `dtype` (default uint8), or `shape` bytes.
    #[pyo3(signature = (shape, dtype=None, timeout=None))]
    fn loan<'py>(
        &self,
        py: Python<'py>,
        shape: &Bound<'py, PyAny>,
        dtype: Option<&Bound<'py, PyAny>>,
        timeout: Option<f64>,
    ) -> PyResult<Bound<'py, Loan>> {
        let timeout = Timeout::new(timeout)?;
        let extents = extents(shape)?;
        let is_bytes = dtype.is_none() && shape.is_instance_of::<PyInt>();
        let dtype = match dtype {
            Some(dtype) => PyArrayDescr::new(py, dtype)?,
            None => numpy::dtype::<u8>(py),
        };
        refuse_objects(&dtype)?;
        let itemsize = itemsize(&dtype);
        let len = size_of_shape(&extents, itemsize)?;
        let row = size_of_shape(extents.get(1..).unwrap_or_default(), itemsize)?;
        let layout = if is_bytes { None } else { Some(layout_of(&dtype, extents.iter().copied())?) };
        let described = Attributes { layout: layout.clone(), headers: Vec::new() };
        let room = described.encode().map_err(|error| to_python(py, error))?.len() + HEADER_ROOM;
        let loan = timeout.wait_if_needed(py, |wait| self.0.loan_with(len, room, wait))?;
        Loan::new(loan, dtype, &extents, row, layout, self.0.topic())
    }

    /// Lends memory for a record batch of `rows` rows, to be filled in place: `schema` is a `pyarrow.Schema` or any other
    /// object with `__arrow_c_schema__`, whose columns have elements of fixed size. `array` of the loan, and its `with` block,
    /// give a dict of writable NumPy arrays by column; no value is null.
    #[pyo3(signature = (schema, rows, timeout=None))]
    fn loan_batch<'py>(
        &self,
        py: Python<'py>,
        schema: &Bound<'py, PyAny>,
        rows: i128,
        timeout: Option<f64>,
    ) -> PyResult<Bound<'py, Loan>> {
        let timeout = Timeout::new(timeout)?;
        let field = import_schema(schema)?;
        let (columns, size) = Columns::new(py, &self.0, &field, non_negative("rows", rows)?)?;
        let loan = timeout.wait_if_needed(py, |wait| self.0.loan_with(size, HEADER_ROOM, wait))?;
        Loan::of_batch(py, loan, columns, &field, self.0.topic())
    }

    /// Waits until at least `n` subscribers are connected.
    #[pyo3(signature = (n=1, timeout=None))]
    fn wait_for_subscribers(&self, py: Python<'_>, n: usize, timeout: Option<f64>) -> PyResult<()> {
        Timeout::new(timeout)?.wait(py, |wait| self.0.wait_for_subscribers_with(n, wait))
    }

    /// Waits until all connected subscribers have read everything sent so far.
    #[pyo3(signature = (timeout=None))]
    fn flush(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<()> {
        Timeout::new(timeout)?.wait(py, |wait| self.0.flush_with(wait))
    }

    /// Disconnects a subscriber, one of `subscribers`, for good; what it holds stays valid. False if it is gone already.
    fn evict(&self, py: Python<'_>, subscriber: &SubscriberInfo) -> PyResult<bool> {
        self.0.evict(&subscriber.0).map_err(|error| to_python(py, error))
    }

    /// The connected subscribers.
    #[getter]
    fn subscribers(&self, py: Python<'_>) -> PyResult<Vec<SubscriberInfo>> {
        let found = self.0.subscribers().map_err(|error| to_python(py, error))?;
        Ok(found.into_iter().map(SubscriberInfo).collect())
    }

    /// What subscribers hold: messages that they took and have not released yet.
    #[getter]
    fn outstanding(&self, py: Python<'_>) -> PyResult<Outstanding> {
        Outstanding::new(py, self.0.outstanding().map_err(|error| to_python(py, error))?)
    }

    /// The topic.
    #[getter]
    fn topic(&self) -> &str {
        self.0.topic()
    }

    /// A dict of counters; see the documentation.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
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

    /// Closes the publisher; what was sent still reaches every connected lossless subscriber. Twice is fine.
    fn close(&self) {
        self.0.close();
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, _exception: &Bound<'_, PyTuple>) {
        self.close();
    }

    fn __repr__(&self) -> String {
        format!("<byref.Publisher on {:?}>", self.0.topic())
    }
}

/// A time argument.
fn positive(name: &str, seconds: f64) -> PyResult<Duration> {
    let limit = Duration::try_from_secs_f64(seconds).ok().filter(|limit| !limit.is_zero());
    limit.ok_or_else(|| PyValueError::new_err(format!("{name} must be more than 0 seconds, not {seconds}")))
}

/// A count argument.
pub fn non_negative(name: &str, value: i128) -> PyResult<u64> {
    u64::try_from(value)
        .map_err(|_| PyValueError::new_err(format!("{name} must be between 0 and 2**64 - 1, not {value}")))
}

/// A shape: one extent or a sequence of them.
fn extents(shape: &Bound<'_, PyAny>) -> PyResult<Vec<u64>> {
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
