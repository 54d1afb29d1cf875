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
use byref::{Attributes, Beside, Encoded, Form, HeaderValue, Wait};
use byref_parts::layout::{Place, Whole};
use numpy::{PyArrayDescr, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyInt, PyRange};
use std::ops::Range;
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

/// One that sends in any form.
pub trait Sender: Outlet {
    fn send_as<F: Form>(
        &self,
        form: F,
        payload: &[u8],
        beside: Beside<'_>,
        wait: &mut Wait<'_>,
    ) -> byref::Result<F::Sent>;
}

impl Sender for byref::Publisher {
    #[inline]
    fn send_as<F: Form>(
        &self,
        form: F,
        payload: &[u8],
        beside: Beside<'_>,
        wait: &mut Wait<'_>,
    ) -> byref::Result<F::Sent> {
        byref::Publisher::send_as(self, form, payload, beside, wait)
    }
}

/// What is done with a message when it is known where it lies.
pub trait Way: Send {
    type Sent: Send;

    /// In one piece, to be copied.
    fn send_copy(&mut self, payload: &[u8], attributes: &Encoded, wait: &mut Wait<'_>) -> byref::Result<Self::Sent>;

    /// In a loan of the outlet's.
    fn send_loan(
        &mut self,
        loan: &mut byref::Loan,
        attributes: &Encoded,
        wait: &mut Wait<'_>,
    ) -> byref::Result<Self::Sent>;
}

/// A function for each case.
impl<T, C, L> Way for (C, L)
where
    T: Send,
    C: FnMut(&[u8], &Encoded, &mut Wait<'_>) -> byref::Result<T> + Send,
    L: FnMut(&mut byref::Loan, &Encoded, &mut Wait<'_>) -> byref::Result<T> + Send,
{
    type Sent = T;

    #[inline]
    fn send_copy(&mut self, payload: &[u8], attributes: &Encoded, wait: &mut Wait<'_>) -> byref::Result<T> {
        self.0(payload, attributes, wait)
    }

    fn send_loan(&mut self, loan: &mut byref::Loan, attributes: &Encoded, wait: &mut Wait<'_>) -> byref::Result<T> {
        self.1(loan, attributes, wait)
    }
}

/// It is sent in a form, by `0`.
pub struct In<'a, S, F>(pub &'a S, pub F, pub Marks);

/// What a sender may say of a message beside its headers.
#[derive(Clone, Copy)]
pub struct Marks {
    pub timestamp_ns: Option<u64>,
    pub tag: u64,
}

impl Marks {
    pub fn with(self, attributes: &Encoded) -> Beside<'_> {
        Beside { attributes, timestamp_ns: self.timestamp_ns, tag: self.tag }
    }
}

impl<S: Sender, F: Form<Sent: Send> + Send> Way for In<'_, S, F> {
    type Sent = F::Sent;

    #[inline]
    fn send_copy(&mut self, payload: &[u8], attributes: &Encoded, wait: &mut Wait<'_>) -> byref::Result<F::Sent> {
        self.0.send_as(self.1, payload, self.2.with(attributes), wait)
    }

    fn send_loan(
        &mut self,
        loan: &mut byref::Loan,
        attributes: &Encoded,
        wait: &mut Wait<'_>,
    ) -> byref::Result<F::Sent> {
        loan.send_as(self.1, self.2.with(attributes), wait)
    }
}

/// Sends what `data` is, as a copy if it lies in one piece, else by way of a loan.
pub fn send<W: Way>(
    outlet: &impl Outlet,
    data: &Bound<'_, PyAny>,
    headers: Option<&Bound<'_, PyDict>>,
    timeout: impl Patience,
    mut way: W,
) -> PyResult<W::Sent> {
    let py = data.py();
    if let (Ok(bytes), None) = (data.cast_exact::<PyBytes>(), headers) {
        // Most messages, before anything larger than registers is passed around.
        return send_bytes(py, bytes.as_bytes(), &Encoded::default(), timeout, way);
    }
    ending::outlive(); // Reading it may run any Python code.
    let payload = match Draft::of(data, outlet.topic())? {
        Ok(payload) => payload,
        Err(draft) => return send_draft(outlet, py, &draft, headers, timeout, way),
    };
    let layout = payload.layout().map_err(|error| located(py, outlet.topic(), "", error))?;
    let attributes = if layout.is_none() && headers.is_none() {
        Encoded::default()
    } else {
        let headers = header_list(outlet, headers)?;
        Attributes { layout, headers }.encode().map_err(|error| to_python(py, error))?
    };
    match (payload.bytes(), &payload) {
        (Some(bytes), _) => send_bytes(py, bytes, &attributes, timeout, way),
        (None, Payload::Array(array)) => {
            let send = |loan: &mut byref::Loan, wait: &mut Wait<'_>| way.send_loan(loan, &attributes, wait);
            send_array(outlet, array, attributes.len(), timeout, send)
        }
        (None, _) => unreachable!("only arrays come in pieces"),
    }
}

/// The headers, checked.
pub fn header_list(outlet: &impl Outlet, headers: Option<&Bound<'_, PyDict>>) -> PyResult<Vec<(String, HeaderValue)>> {
    headers.map_or_else(|| Ok(Vec::new()), |headers| headers::from_python(headers, outlet.topic()))
}

/// Sends what `draft` is made of: a packed value or a lone pickle as a copy, anything else by way of a loan.
pub fn send_draft<'py, W: Way>(
    outlet: &impl Outlet,
    py: Python<'py>,
    draft: &Draft<'py>,
    headers: Option<&Bound<'py, PyDict>>,
    timeout: impl Patience,
    way: W,
) -> PyResult<W::Sent> {
    match draft.whole() {
        Some((whole, stream)) => send_whole(outlet, py, whole, stream, headers, timeout, way),
        None => send_parts(outlet, py, draft, headers, timeout, way),
    }
}

/// Sends what lies in one piece.
fn send_whole<'py, W: Way>(
    outlet: &impl Outlet,
    py: Python<'py>,
    whole: Whole,
    stream: &[u8],
    headers: Option<&Bound<'py, PyDict>>,
    timeout: impl Patience,
    way: W,
) -> PyResult<W::Sent> {
    /// What most of them have beside the payload.
    static PLAIN: [OnceLock<Encoded>; 2] = [OnceLock::new(), OnceLock::new()];
    let encode = |headers| Attributes { layout: Some(value::layout(Place::Whole(whole))), headers }.encode();
    if headers.is_none() {
        let plain = PLAIN[usize::from(whole == Whole::Pickle)]
            .get_or_init(|| encode(Vec::new()).expect("a layout alone is short"));
        return send_bytes(py, stream, plain, timeout, way);
    }
    let attributes = encode(header_list(outlet, headers)?).map_err(|error| to_python(py, error))?;
    send_bytes(py, stream, &attributes, timeout, way)
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
fn send_parts<'py, W: Way>(
    outlet: &impl Outlet,
    py: Python<'py>,
    draft: &Draft<'py>,
    headers: Option<&Bound<'py, PyDict>>,
    timeout: impl Patience,
    mut way: W,
) -> PyResult<W::Sent> {
    let headers = header_list(outlet, headers)?;
    let planned = draft.plan(py, outlet, headers)?;
    let (size, room) = (planned.size(), planned.attributes.len());
    let mut loan = timeout.wait_if_needed(py, |wait| outlet.loan_with(size, room, wait))?;
    let attributes = planned.fill(py, &mut loan)?;
    timeout.wait_if_needed(py, |wait| way.send_loan(&mut loan, &attributes, wait))
}

/// Sends bytes in one piece; large ones are copied without the interpreter.
#[inline]
fn send_bytes<W: Way>(
    py: Python<'_>,
    bytes: &[u8],
    attributes: &Encoded,
    timeout: impl Patience,
    mut way: W,
) -> PyResult<W::Sent> {
    let send = |wait: &mut Wait<'_>| way.send_copy(bytes, attributes, wait);
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

/// Sends the pickle of an object.
pub fn send_pickle<'py, W: Way>(
    outlet: &impl Outlet,
    object: &Bound<'py, PyAny>,
    headers: Option<&Bound<'py, PyDict>>,
    timeout: impl Patience,
    way: W,
) -> PyResult<W::Sent> {
    ending::outlive();
    let py = object.py();
    let draft = Draft::pickle(object).map_err(|error| located(py, outlet.topic(), "", error))?;
    send_draft(outlet, py, &draft, headers, timeout, way)
}

/// Sends rows together, by the `way` for so many. Gives their numbers.
pub fn send_many<'py, W: Way<Sent = Range<u64>>>(
    outlet: &impl Outlet,
    rows: &Bound<'py, PyAny>,
    headers: Option<&Bound<'py, PyDict>>,
    timeout: impl Patience,
    way: impl FnOnce(usize) -> W,
) -> PyResult<Bound<'py, PyRange>> {
    ending::outlive();
    let py = rows.py();
    let rows = Rows::of(rows, outlet.topic())?;
    let headers = header_list(outlet, headers)?;
    let attributes = Attributes { layout: rows.layout()?, headers }.encode().map_err(|error| to_python(py, error))?;
    let count = rows.count();
    if count > 0 && rows.row_len() == 0 {
        let text = "rows of 0 bytes cannot be sent together; send them one by one";
        return Err(located(py, outlet.topic(), "", PyValueError::new_err(text)));
    }
    let mut way = way(count);
    let sent = match rows.bytes() {
        bytes if count == 0 || bytes.is_some() => send_bytes(py, bytes.unwrap_or_default(), &attributes, timeout, way)?,
        _ => {
            let len = count.saturating_mul(rows.row_len());
            let mut loan = timeout.wait_if_needed(py, |wait| outlet.loan_with(len, attributes.len(), wait))?;
            rows.gather(&mut loan)?;
            timeout.wait_if_needed(py, |wait| way.send_loan(&mut loan, &attributes, wait))?
        }
    };
    PyRange::new(py, sent.start as isize, sent.end as isize)
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
