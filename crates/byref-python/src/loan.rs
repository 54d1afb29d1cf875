//! `Loan`: pool memory to be filled in place.
#![allow(unsafe_code)]

use crate::array;
use crate::columns::{self, Columns};
use crate::ending;
use crate::entries::entries;
use crate::errors::{closed, to_python};
use crate::guarded::Guarded;
use crate::headers;
use crate::message::shape_text;
use crate::owner::{Memory, Owner};
use crate::waiting::Timeout;
use byref::{Attributes, Beside, Encoded, Layout, Single};
use byref_parts::arrow::Field;
use numpy::{PyArrayDescr, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PySlice};
use std::sync::Arc;

#[doc = doc!("Loan")]
#[pyclass(frozen, generic, weakref, module = "byref")]
pub struct Loan {
    state: Guarded<State>,
    headers: Py<PyDict>,
    topic: String,
}

struct State {
    /// `None` once it was sent or discarded, and while it is being sent.
    loan: Option<byref::Loan>,
    /// The array, or the columns of a batch by name.
    array: Arc<Py<PyAny>>,
    /// Every array that was handed out: they become read-only together.
    handed_out: Vec<Arc<Py<PyAny>>>,
    /// They have become so: it is over.
    frozen: bool,
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

/// What came of shortening the memory.
enum Shortened {
    Array,
    /// A batch of so many rows, whose columns are shortened apart.
    Batch(u64),
    Over,
    TooLong(Vec<u64>),
    Failed(byref::Error),
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
        let handed_out = vec![Arc::new(array.clone_ref(py))];
        Self::of(py, loan, array, handed_out, Content::Array { layout, row }, topic)
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
        let handed_out = arrays_of(&arrays);
        Self::of(py, loan, arrays.into_any().unbind(), handed_out, Content::Batch(columns), topic)
    }

    fn of<'py>(
        py: Python<'py>,
        loan: byref::Loan,
        array: Py<PyAny>,
        handed_out: Vec<Arc<Py<PyAny>>>,
        content: Content,
        topic: &str,
    ) -> PyResult<Bound<'py, Self>> {
        let state = State { loan: Some(loan), array: Arc::new(array), handed_out, frozen: false, content };
        let (state, headers) = (Guarded::new(state), PyDict::new(py).unbind());
        Bound::new(py, Loan { state, headers, topic: topic.to_owned() })
    }

    /// The array, or the columns.
    fn shown(&self, py: Python<'_>) -> Py<PyAny> {
        self.state.with(|state| Arc::clone(&state.array)).clone_ref(py)
    }

    /// Shows a shorter array, or shorter columns, which consists of these arrays, from now on.
    fn show(&self, py: Python<'_>, shorter: Py<PyAny>, arrays: Vec<Arc<Py<PyAny>>>) -> PyResult<()> {
        let shorter = Arc::new(shorter);
        let (_replaced, too_late) = self.state.with(|state| {
            let replaced = std::mem::replace(&mut state.array, shorter);
            if state.frozen {
                return (replaced, arrays);
            }
            state.handed_out.extend(arrays);
            (replaced, Vec::new())
        });
        freeze(py, too_late) // Sent by another thread since.
    }

    fn over(&self, py: Python<'_>) -> PyErr {
        closed(py, format!("this loan on topic '{}' was already sent or discarded", self.topic))
    }

    fn truncate_batch(&self, py: Python<'_>, rows: usize, most: u64) -> PyResult<()> {
        if rows as u64 > most {
            return Err(PyValueError::new_err(format!("cannot truncate a loan of {most} rows to {rows}")));
        }
        self.check_columns(py)?;
        let shorter = columns::truncated(self.shown(py).bind(py).cast()?, rows)?;
        self.state.with(|state| {
            if let Content::Batch(columns) = &mut state.content {
                columns.rows = columns.rows.min(rows as u64);
            }
        });
        let arrays = arrays_of(&shorter);
        self.show(py, shorter.into_any().unbind(), arrays)
    }

    /// Refuses a batch whose dict has other arrays than those in the pool: these alone are sent.
    fn check_columns(&self, py: Python<'_>) -> PyResult<()> {
        let seen = self.state.with(|state| {
            let is_batch = matches!(state.content, Content::Batch(_)) && state.loan.is_some();
            is_batch.then(|| (Arc::clone(&state.array), state.handed_out.clone()))
        });
        let Some((arrays, own)) = seen else { return Ok(()) };
        for (name, array) in entries(arrays.bind(py).cast::<PyDict>()?) {
            if !own.iter().any(|own| own.is(&array)) {
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

    /// Has `send` send it, with its headers and these besides.
    pub fn send_as<T>(
        &self,
        py: Python<'_>,
        more: Option<&Bound<'_, PyDict>>,
        send: impl FnOnce(&mut byref::Loan, &Encoded) -> PyResult<T>,
    ) -> PyResult<T> {
        ending::outlive();
        let mut headers = headers::from_python(self.headers.bind(py), &self.topic)?;
        if let Some(more) = more {
            headers.extend(headers::from_python(more, &self.topic)?);
        }
        self.check_columns(py)?;
        let taken = self.state.with(|state| Some((state.loan.take()?, state.content.clone())));
        let Some((mut loan, content)) = taken else { return Err(self.over(py)) };
        let attributes = match content {
            Content::Array { layout, .. } => Attributes { layout, headers }.encode().map_err(Into::into),
            Content::Batch(columns) => columns.finish(&mut loan, headers),
        };
        let sent = attributes.map_err(|error| to_python(py, error)).and_then(|attributes| send(&mut loan, &attributes));
        if sent.is_err() && loan.is_open() {
            // Discarded by another thread meanwhile, it is not put back.
            let _over = self.state.with(|state| match state.frozen {
                true => Some(loan),
                false => state.loan.replace(loan),
            });
        } else {
            self.freeze(py)?;
        }
        sent
    }

    /// Ends the writing, as far as Python's arrays go.
    fn freeze(&self, py: Python<'_>) -> PyResult<()> {
        let handed_out = self.state.with(|state| {
            state.frozen = true;
            std::mem::take(&mut state.handed_out)
        });
        freeze(py, handed_out)
    }
}

/// The arrays of a dict of columns.
fn arrays_of(columns: &Bound<'_, PyDict>) -> Vec<Arc<Py<PyAny>>> {
    entries(columns).into_iter().map(|(_, array)| Arc::new(array.unbind())).collect()
}

/// Makes arrays read-only.
fn freeze(py: Python<'_>, arrays: Vec<Arc<Py<PyAny>>>) -> PyResult<()> {
    ending::outlive();
    arrays.iter().try_for_each(|array| array.bind(py).call_method1("setflags", (false,)).map(drop))
}

#[pymethods]
impl Loan {
    #[doc = doc!("Loan.array")]
    #[getter]
    fn array(&self, py: Python<'_>) -> Py<PyAny> {
        self.shown(py)
    }

    #[doc = doc!("Loan.headers")]
    #[getter]
    fn headers(&self, py: Python<'_>) -> Py<PyDict> {
        self.headers.clone_ref(py)
    }

    #[doc = doc!("Loan.truncate")]
    fn truncate(&self, py: Python<'_>, n: isize) -> PyResult<()> {
        ending::outlive();
        let rows =
            usize::try_from(n).map_err(|_| PyValueError::new_err(format!("cannot truncate a loan to {n} rows")))?;
        let shortened = self.state.with(|State { loan, content, .. }| {
            let Some(loan) = loan else { return Shortened::Over };
            match content {
                Content::Batch(columns) => Shortened::Batch(columns.rows),
                Content::Array { layout: Some(Layout { shape, .. }), .. }
                    if shape.first().is_none_or(|most| rows as u64 > *most) =>
                {
                    Shortened::TooLong(shape.clone())
                }
                Content::Array { layout, row } => match loan.truncate(rows.saturating_mul(*row)) {
                    Ok(()) => {
                        if let Some(layout) = layout {
                            layout.shape[0] = rows as u64;
                        }
                        Shortened::Array
                    }
                    Err(error) => Shortened::Failed(error),
                },
            }
        });
        match shortened {
            Shortened::Array => {
                let shorter = self.shown(py).bind(py).get_item(PySlice::new(py, 0, n, 1))?;
                let arrays = vec![Arc::new(shorter.clone().unbind())];
                self.show(py, shorter.unbind(), arrays)
            }
            Shortened::Batch(most) => self.truncate_batch(py, rows, most),
            Shortened::Over => Err(self.over(py)),
            Shortened::TooLong(shape) => {
                Err(PyValueError::new_err(format!("cannot truncate a loan of shape {shape:?} to {n} rows")))
            }
            Shortened::Failed(error) => Err(to_python(py, error)),
        }
    }

    #[doc = doc!("Loan.send")]
    #[pyo3(signature = (timestamp_ns=None, timeout=None, tag=0))]
    fn send(&self, py: Python<'_>, timestamp_ns: Option<u64>, timeout: Option<f64>, tag: u64) -> PyResult<u64> {
        ending::outlive();
        let timeout = Timeout::new(timeout)?;
        self.send_as(py, None, |loan, attributes| {
            let beside = Beside { attributes, timestamp_ns, tag };
            timeout.wait_if_needed(py, |wait| loan.send_as(Single, beside, wait))
        })
    }

    #[doc = doc!("Loan.discard")]
    fn discard(&self, py: Python<'_>) -> PyResult<()> {
        let loan = self.state.with(|state| state.loan.take());
        drop(loan);
        self.freeze(py)
    }

    fn __enter__(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        if self.state.with(|state| state.loan.is_none()) {
            return Err(self.over(py));
        }
        Ok(self.shown(py))
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
        if self.state.with(|state| state.loan.is_none()) {
            return Ok(());
        }
        let sent = self.send(py, None, None, 0).map(drop);
        if sent.is_err() {
            self.discard(py)?;
        }
        sent
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        ending::outlive();
        let len = self.state.with(|state| state.loan.as_ref().map(|loan| loan.len()));
        let Some(len) = len else { return format!("<byref.Loan on {:?}, sent or discarded>", self.topic) };
        let what = match self.shown(py).bind(py).cast::<PyUntypedArray>() {
            Ok(array) => {
                let shape: Vec<u64> = array.shape().iter().map(|extent| *extent as u64).collect();
                format!("{} of {}, ", shape_text(&shape), array.dtype())
            }
            Err(_) => String::new(),
        };
        format!("<byref.Loan on {:?}, {what}{len} bytes>", self.topic)
    }
}
