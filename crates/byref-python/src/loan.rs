//! `Loan`: pool memory to be filled in place.
#![allow(unsafe_code)]

use crate::array;
use crate::columns::{self, Columns};
use crate::errors::{closed, to_python};
use crate::headers;
use crate::message::shape_text;
use crate::owner::{Memory, Owner};
use crate::waiting::Timeout;
use byref::{Attributes, Layout};
use byref_parts::arrow::Field;
use numpy::{PyArrayDescr, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PySlice};
use std::sync::{Mutex, MutexGuard};

#[doc = doc!("Loan")]
#[pyclass(frozen, generic, weakref, module = "byref")]
pub struct Loan {
    state: Mutex<State>,
    headers: Py<PyDict>,
    topic: String,
}

struct State {
    /// `None` once it was sent or discarded.
    loan: Option<byref::Loan>,
    /// The array, or the columns of a batch by name.
    array: Py<PyAny>,
    /// Every array that was handed out: they become read-only together.
    handed_out: Vec<Py<PyAny>>,
    content: Content,
}

/// What the receiver is told.
#[derive(Clone)]
enum Content {
    /// An array, one step along whose first dimension takes `row` bytes; or so many bytes.
    Array {
        layout: Option<Layout>,
        row: usize,
    },
    Batch(Columns),
}

impl Loan {
    /// Wraps a loan as an array of that type and shape; `layout` is what the receiver is told.
    pub fn new<'py>(
        loan: byref::Loan,
        dtype: Bound<'py, PyArrayDescr>,
        shape: &[u64],
        row: usize,
        layout: Option<Layout>,
        topic: &str,
    ) -> PyResult<Bound<'py, Self>> {
        let py = dtype.py();
        let memory = loan.memory().map_err(|error| to_python(py, error))?;
        let data = memory.as_ptr();
        let owner = Owner::wrap(py, Memory::Loan(memory))?;
        // SAFETY: the caller took the loan for this type and shape; the owner keeps its memory from being reused.
        let array = unsafe { array::over(dtype, shape, data, true, owner) }?.unbind();
        let handed_out = vec![array.clone_ref(py)];
        let state = State { loan: Some(loan), array, handed_out, content: Content::Array { layout, row } };
        Self::of(py, state, topic)
    }

    /// Wraps a loan as the columns of a record batch of the type `field`.
    pub fn of_batch<'py>(
        py: Python<'py>,
        loan: byref::Loan,
        columns: Columns,
        field: &Field,
        topic: &str,
    ) -> PyResult<Bound<'py, Self>> {
        let arrays = columns.arrays(py, field, &loan)?;
        let handed_out = arrays.values().iter().map(Bound::unbind).collect();
        let (array, content) = (arrays.into_any().unbind(), Content::Batch(columns));
        Self::of(py, State { loan: Some(loan), array, handed_out, content }, topic)
    }

    fn of<'py>(py: Python<'py>, state: State, topic: &str) -> PyResult<Bound<'py, Self>> {
        let headers = PyDict::new(py).unbind();
        Bound::new(py, Loan { state: Mutex::new(state), headers, topic: topic.to_owned() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn over(&self, py: Python<'_>) -> PyErr {
        closed(py, format!("this loan on topic '{}' was already sent or discarded", self.topic))
    }

    fn truncate_batch(&self, py: Python<'_>, rows: usize, most: u64) -> PyResult<()> {
        if rows as u64 > most {
            return Err(PyValueError::new_err(format!("cannot truncate a loan of {most} rows to {rows}")));
        }
        self.check_columns(py)?;
        let shorter = columns::truncated(self.array(py).bind(py).cast()?, rows)?;
        let mut state = self.lock();
        if let Content::Batch(columns) = &mut state.content {
            columns.rows = rows as u64;
        }
        state.handed_out.extend(shorter.values().iter().map(Bound::unbind));
        state.array = shorter.into_any().unbind();
        Ok(())
    }

    /// Refuses a batch whose dict has other arrays than those in the pool: these alone are sent.
    fn check_columns(&self, py: Python<'_>) -> PyResult<()> {
        let state = self.lock();
        let (Ok(arrays), true) = (state.array.bind(py).cast::<PyDict>(), state.loan.is_some()) else { return Ok(()) };
        for (name, array) in arrays {
            if !state.handed_out.iter().any(|own| own.is(&array)) {
                let text = format!(
                    "the column {name} of this loan on topic '{}' was replaced by another object, which would not be \
                     sent; fill the array that is there, as in columns[name][:] = values",
                    self.topic
                );
                return Err(PyValueError::new_err(text));
            }
        }
        Ok(())
    }

    /// Ends the writing, as far as Python's arrays go.
    fn freeze(&self, py: Python<'_>) -> PyResult<()> {
        let handed_out = std::mem::take(&mut self.lock().handed_out);
        for array in handed_out {
            array.bind(py).call_method1("setflags", (false,))?;
        }
        Ok(())
    }
}

#[pymethods]
impl Loan {
    #[doc = doc!("Loan.array")]
    #[getter]
    fn array(&self, py: Python<'_>) -> Py<PyAny> {
        self.lock().array.clone_ref(py)
    }

    #[doc = doc!("Loan.headers")]
    #[getter]
    fn headers(&self, py: Python<'_>) -> Py<PyDict> {
        self.headers.clone_ref(py)
    }

    #[doc = doc!("Loan.truncate")]
    fn truncate(&self, py: Python<'_>, n: isize) -> PyResult<()> {
        let rows =
            usize::try_from(n).map_err(|_| PyValueError::new_err(format!("cannot truncate a loan to {n} rows")))?;
        let mut state = self.lock();
        let State { loan, content, .. } = &mut *state;
        let Some(loan) = loan.as_mut() else {
            drop(state);
            return Err(self.over(py));
        };
        let (layout, row) = match content {
            Content::Array { layout, row } => (layout, row),
            Content::Batch(columns) => {
                let most = columns.rows;
                drop(state);
                return self.truncate_batch(py, rows, most);
            }
        };
        if let Some(Layout { shape, .. }) = layout
            && shape.first().is_none_or(|most| rows as u64 > *most)
        {
            return Err(PyValueError::new_err(format!("cannot truncate a loan of shape {shape:?} to {n} rows")));
        }
        loan.truncate(rows.saturating_mul(*row)).map_err(|error| to_python(py, error))?;
        if let Some(layout) = layout {
            layout.shape[0] = rows as u64;
        }
        let whole = state.array.clone_ref(py);
        drop(state);
        let shorter = whole.bind(py).get_item(PySlice::new(py, 0, n, 1))?.unbind();
        let mut state = self.lock();
        state.handed_out.push(shorter.clone_ref(py));
        state.array = shorter;
        Ok(())
    }

    #[doc = doc!("Loan.send")]
    #[pyo3(signature = (timestamp_ns=None, timeout=None))]
    fn send(&self, py: Python<'_>, timestamp_ns: Option<u64>, timeout: Option<f64>) -> PyResult<u64> {
        let timeout = Timeout::new(timeout)?;
        let headers = headers::from_python(self.headers.bind(py), &self.topic)?;
        self.check_columns(py)?;
        let taken = {
            let mut state = self.lock();
            let content = state.content.clone();
            state.loan.take().map(|loan| (loan, content))
        };
        let Some((mut loan, content)) = taken else { return Err(self.over(py)) };
        let attributes = match content {
            Content::Array { layout, .. } => Attributes { layout, headers }.encode(),
            Content::Batch(columns) => columns.finish(&mut loan, headers),
        };
        let sent = attributes
            .map_err(|error| to_python(py, error))
            .and_then(|attributes| timeout.wait_if_needed(py, |wait| loan.send_with(&attributes, timestamp_ns, wait)));
        if sent.is_err() && loan.is_open() {
            self.lock().loan = Some(loan);
        } else {
            self.freeze(py)?;
        }
        sent
    }

    #[doc = doc!("Loan.discard")]
    fn discard(&self, py: Python<'_>) -> PyResult<()> {
        let loan = self.lock().loan.take();
        drop(loan);
        self.freeze(py)
    }

    fn __enter__(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let state = self.lock();
        if state.loan.is_none() {
            drop(state);
            return Err(self.over(py));
        }
        Ok(state.array.clone_ref(py))
    }

    /// Sends; after an exception in the block, discards. Does nothing when either was done by hand.
    fn __exit__(
        &self,
        py: Python<'_>,
        exception: &Bound<'_, PyAny>,
        _value: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        if !exception.is_none() {
            return self.discard(py);
        }
        if self.lock().loan.is_none() {
            return Ok(());
        }
        let sent = self.send(py, None, None).map(drop);
        if sent.is_err() {
            self.discard(py)?;
        }
        sent
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        let (array, len) = {
            let state = self.lock();
            (state.array.clone_ref(py), state.loan.as_ref().map(|loan| loan.len()))
        };
        let Some(len) = len else { return format!("<byref.Loan on {:?}, sent or discarded>", self.topic) };
        let what = match array.bind(py).cast::<PyUntypedArray>() {
            Ok(array) => {
                let shape: Vec<u64> = array.shape().iter().map(|extent| *extent as u64).collect();
                format!("{} of {}, ", shape_text(&shape), array.dtype())
            }
            Err(_) => String::new(),
        };
        format!("<byref.Loan on {:?}, {what}{len} bytes>", self.topic)
    }
}
