//! What Python objects are sent through: a publisher, or the way from a mailbox to others.
#![allow(unsafe_code)]

use crate::array::{self, itemsize, refuse_objects, size_of_shape};
use crate::arrow::import_schema;
use crate::columns::Columns;
use crate::draft::Draft;
use crate::ending;
use crate::errors::to_python;
use crate::headers;
use crate::loan::Loan;
use crate::owner::{Memory, Owner};
use crate::payload::{Payload, layout_of};
use crate::publisher::{extents, non_negative};
use crate::refusals::located;
use crate::rows::Rows;
use crate::value;
use crate::waiting::Patience;
use byref::{Attributes, Encoded, HeaderValue, Wait};
use byref_parts::layout::{Place, Whole};
use numpy::{PyArrayDescr, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyInt, PyRange};
use std::sync::OnceLock;

/// From this size on, the interpreter is released while the payload is copied, in bytes.
const COPY_DETACHED: usize = 64 << 10;
/// Room for headers that are set after a loan was made, in bytes.
const HEADER_ROOM: usize = 256;

/// Where messages go, in memory of its own.
pub trait Outlet: Sync {
    /// What errors are about.
    fn topic(&self) -> &str;
    fn loan_with(&self, len: usize, attributes_len: usize, wait: &mut Wait<'_>) -> byref::Result<byref::Loan>;
    fn explain(&self, bytes: &[u8]) -> byref::Result<Option<byref::Entry>>;
}

impl Outlet for byref::Publisher {
    fn topic(&self) -> &str {
        byref::Publisher::topic(self)
    }

    fn loan_with(&self, len: usize, attributes_len: usize, wait: &mut Wait<'_>) -> byref::Result<byref::Loan> {
        byref::Publisher::loan_with(self, len, attributes_len, wait)
    }

    fn explain(&self, bytes: &[u8]) -> byref::Result<Option<byref::Entry>> {
        byref::Publisher::explain(self, bytes)
    }
}

/// Sends what `data` is, `send` if it lies in one piece, else by way of a loan, `send_loan`.
pub fn send<T: Send>(
    outlet: &impl Outlet,
    data: &Bound<'_, PyAny>,
    headers: Option<&Bound<'_, PyDict>>,
    timeout: impl Patience,
    send: impl FnMut(&[u8], &Encoded, &mut Wait<'_>) -> byref::Result<T> + Send,
    mut send_loan: impl FnMut(&mut byref::Loan, &Encoded, &mut Wait<'_>) -> byref::Result<T> + Send,
) -> PyResult<T> {
    let py = data.py();
    if let (Ok(bytes), None) = (data.cast_exact::<PyBytes>(), headers) {
        // Most messages, before anything larger than registers is passed around.
        return send_bytes(py, bytes.as_bytes(), &Encoded::default(), timeout, send);
    }
    ending::outlive(); // Reading it may run any Python code.
    let payload = match Draft::of(data, outlet.topic())? {
        Ok(payload) => payload,
        Err(draft) => return send_draft(outlet, py, &draft, headers, timeout, send, send_loan),
    };
    let layout = payload.layout().map_err(|error| located(py, outlet.topic(), "", error))?;
    let attributes = if layout.is_none() && headers.is_none() {
        Encoded::default()
    } else {
        let headers = header_list(outlet, headers)?;
        Attributes { layout, headers }.encode().map_err(|error| to_python(py, error))?
    };
    match (payload.bytes(), &payload) {
        (Some(bytes), _) => send_bytes(py, bytes, &attributes, timeout, send),
        (None, Payload::Array(array)) => {
            let send = |loan: &mut byref::Loan, wait: &mut Wait<'_>| send_loan(loan, &attributes, wait);
            send_array(outlet, array, attributes.len(), timeout, send)
        }
        (None, _) => unreachable!("only arrays come in pieces"),
    }
}

/// The headers, checked.
pub fn header_list(outlet: &impl Outlet, headers: Option<&Bound<'_, PyDict>>) -> PyResult<Vec<(String, HeaderValue)>> {
    headers.map_or_else(|| Ok(Vec::new()), |headers| headers::from_python(headers, outlet.topic()))
}

/// Sends what `draft` is made of: a packed value or a lone pickle by `send`, anything else by way of a loan, `send_loan`.
pub fn send_draft<'py, T: Send>(
    outlet: &impl Outlet,
    py: Python<'py>,
    draft: &Draft<'py>,
    headers: Option<&Bound<'py, PyDict>>,
    timeout: impl Patience,
    send: impl FnMut(&[u8], &Encoded, &mut Wait<'_>) -> byref::Result<T> + Send,
    send_loan: impl FnMut(&mut byref::Loan, &Encoded, &mut Wait<'_>) -> byref::Result<T> + Send,
) -> PyResult<T> {
    match draft.whole() {
        Some((whole, stream)) => send_whole(outlet, py, whole, stream, headers, timeout, send),
        None => send_parts(outlet, py, draft, headers, timeout, send_loan),
    }
}

/// Sends what lies in one piece.
fn send_whole<'py, T: Send>(
    outlet: &impl Outlet,
    py: Python<'py>,
    whole: Whole,
    stream: &[u8],
    headers: Option<&Bound<'py, PyDict>>,
    timeout: impl Patience,
    send: impl FnMut(&[u8], &Encoded, &mut Wait<'_>) -> byref::Result<T> + Send,
) -> PyResult<T> {
    /// What most of them have beside the payload.
    static PLAIN: [OnceLock<Encoded>; 2] = [OnceLock::new(), OnceLock::new()];
    let encode = |headers| Attributes { layout: Some(value::layout(Place::Whole(whole))), headers }.encode();
    if headers.is_none() {
        let plain = PLAIN[usize::from(whole == Whole::Pickle)]
            .get_or_init(|| encode(Vec::new()).expect("a layout alone is short"));
        return send_bytes(py, stream, plain, timeout, send);
    }
    let attributes = encode(header_list(outlet, headers)?).map_err(|error| to_python(py, error))?;
    send_bytes(py, stream, &attributes, timeout, send)
}

/// Sends an array by way of a loan.
fn send_array<T: Send>(
    outlet: &impl Outlet,
    array: &Bound<'_, PyUntypedArray>,
    attributes_len: usize,
    timeout: impl Patience,
    mut send: impl FnMut(&mut byref::Loan, &mut Wait<'_>) -> byref::Result<T> + Send,
) -> PyResult<T> {
    let py = array.py();
    let len = array.len() * itemsize(&array.dtype());
    let mut loan = timeout.wait_if_needed(py, |wait| outlet.loan_with(len, attributes_len, wait))?;
    gather(array, &mut loan)?;
    timeout.wait_if_needed(py, |wait| send(&mut loan, wait))
}

/// Sends what `draft` is made of in one loan.
fn send_parts<'py, T: Send>(
    outlet: &impl Outlet,
    py: Python<'py>,
    draft: &Draft<'py>,
    headers: Option<&Bound<'py, PyDict>>,
    timeout: impl Patience,
    mut send: impl FnMut(&mut byref::Loan, &Encoded, &mut Wait<'_>) -> byref::Result<T> + Send,
) -> PyResult<T> {
    let headers = header_list(outlet, headers)?;
    let planned = draft.plan(py, outlet, headers)?;
    let (size, room) = (planned.size(), planned.attributes.len());
    let mut loan = timeout.wait_if_needed(py, |wait| outlet.loan_with(size, room, wait))?;
    let attributes = planned.fill(py, &mut loan)?;
    timeout.wait_if_needed(py, |wait| send(&mut loan, &attributes, wait))
}

/// Sends bytes in one piece; large ones are copied without the interpreter.
#[inline]
fn send_bytes<T: Send>(
    py: Python<'_>,
    bytes: &[u8],
    attributes: &Encoded,
    timeout: impl Patience,
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

/// Sends rows together: by `send` if they lie in one piece, else by way of a loan. Gives their numbers.
pub fn send_many<'py>(
    outlet: &impl Outlet,
    py: Python<'py>,
    rows: &Bound<'py, PyAny>,
    headers: Option<&Bound<'py, PyDict>>,
    timestamp_ns: Option<u64>,
    timeout: impl Patience,
    mut send: impl FnMut(&[u8], usize, &Encoded, &mut Wait<'_>) -> byref::Result<u64> + Send,
) -> PyResult<Bound<'py, PyRange>> {
    ending::outlive();
    let rows = Rows::of(rows, outlet.topic())?;
    let headers = header_list(outlet, headers)?;
    let attributes = Attributes { layout: rows.layout()?, headers }.encode().map_err(|error| to_python(py, error))?;
    let (count, row_len) = (rows.count(), rows.row_len());
    if count > 0 && row_len == 0 {
        let text = "rows of 0 bytes cannot be sent together; send them one by one";
        return Err(located(py, outlet.topic(), "", PyValueError::new_err(text)));
    }
    let first = match rows.bytes() {
        bytes if count == 0 || bytes.is_some() => {
            // No rows have no length either; that the endpoint is closed shows all the same.
            let (bytes, row_len) = (bytes.unwrap_or_default(), row_len.max(1));
            let send = |wait: &mut Wait<'_>| send(bytes, row_len, &attributes, wait);
            if bytes.len() < COPY_DETACHED { timeout.wait_if_needed(py, send)? } else { timeout.wait(py, send)? }
        }
        _ => {
            let len = count.saturating_mul(row_len);
            let mut loan = timeout.wait_if_needed(py, |wait| outlet.loan_with(len, attributes.len(), wait))?;
            rows.gather(&mut loan)?;
            timeout.wait_if_needed(py, |wait| loan.send_many_with(count, &attributes, timestamp_ns, wait))?
        }
    };
    PyRange::new(py, first as isize, (first + count as u64) as isize)
}

/// Lends memory as an array of that type and shape.
pub fn loan<'py>(
    outlet: &impl Outlet,
    py: Python<'py>,
    shape: &Bound<'py, PyAny>,
    dtype: Option<&Bound<'py, PyAny>>,
    timeout: impl Patience,
) -> PyResult<Bound<'py, Loan>> {
    ending::outlive();
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
    let loan = timeout.wait_if_needed(py, |wait| outlet.loan_with(len, room, wait))?;
    Loan::new(loan, dtype, &extents, row, layout, outlet.topic())
}

/// Lends memory as the columns of a record batch.
pub fn loan_batch<'py>(
    outlet: &impl Outlet,
    py: Python<'py>,
    schema: &Bound<'py, PyAny>,
    rows: i128,
    timeout: impl Patience,
) -> PyResult<Bound<'py, Loan>> {
    ending::outlive();
    let field = import_schema(schema)?;
    let (columns, size) = Columns::new(py, outlet, &field, non_negative("rows", rows)?)?;
    let loan = timeout.wait_if_needed(py, |wait| outlet.loan_with(size, HEADER_ROOM, wait))?;
    Loan::of_batch(py, loan, columns, &field, outlet.topic())
}
