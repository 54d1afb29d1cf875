//! Arrow data by reference, through the PyCapsule interface in both directions; no Arrow library is needed for it.

use crate::capsule::{give, take};
use crate::ending;
use crate::errors::{error, is_error};
use crate::foreign::Foreign;
use byref_parts::arrow::{Chunk, Class, Field, abi, export_schema, export_stream, show};
use pyo3::exceptions::{PyBufferError, PyException, PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyTuple;
use std::cell::RefCell;
use std::sync::Arc;

/// What a producer in this process exported.
pub struct Imported {
    pub kind: Arc<Known>,
    pub class: Class,
    pub arrays: Vec<abi::Array>,
}

/// A type, and the form in which it travels.
pub struct Known {
    pub field: Field,
    pub encoded: Vec<u8>,
    /// Some elements are 8 bytes without a type, as polars exports the pointers to Python's objects.
    pub may_be_pointers: bool,
}

fn may_be_pointers(field: &Field) -> bool {
    field.format() == "w:8" || field.children.iter().chain(field.dictionary.as_deref()).any(may_be_pointers)
}

/// How many types a thread remembers, of at most how many bytes each.
const REMEMBERED: usize = 8;
const MOST_REMEMBERED: usize = 16 << 10;

thread_local! {
    /// What was imported last, the latest first: most senders send one type again and again.
    static RECENT: RefCell<Vec<Arc<Known>>> = const { RefCell::new(Vec::new()) };
}

impl Known {
    fn import(schema: &abi::Schema) -> Result<Arc<Self>, String> {
        RECENT.with_borrow_mut(|recent| {
            if let Some(index) = recent.iter().position(|known| known.field.is(schema)) {
                recent[..=index].rotate_right(1);
                return Ok(Arc::clone(&recent[0]));
            }
            let field = Field::import(schema)?;
            let known = Arc::new(Known { encoded: field.encode(), may_be_pointers: may_be_pointers(&field), field });
            if known.encoded.len() <= MOST_REMEMBERED {
                recent.truncate(REMEMBERED - 1);
                recent.insert(0, Arc::clone(&known));
            }
            Ok(known)
        })
    }
}

/// Takes the Arrow data of an object that offers any. (A stream is read to its end.)
pub fn import(data: &Bound<'_, PyAny>) -> PyResult<Option<Imported>> {
    let py = data.py();
    let as_array = data.getattr_opt(intern!(py, "__arrow_c_array__"))?;
    let as_stream = data.getattr_opt(intern!(py, "__arrow_c_stream__"))?;
    let refused = |why: String| PyValueError::new_err(format!("cannot send this Arrow data: {why}"));
    if let Some(as_array) = as_array {
        match as_array.call0() {
            Ok(capsules) => {
                let (schema, array): (Bound<'_, PyAny>, Bound<'_, PyAny>) = capsules.extract()?;
                let schema: abi::Schema = take(&schema)?;
                let array: abi::Array = take(&array)?;
                let kind = Known::import(&schema).map_err(refused)?;
                let class = if kind.field.is_table() { Class::Batch } else { Class::Array };
                return Ok(Some(Imported { kind, class, arrays: vec![array] }));
            }
            // It has several chunks, perhaps.
            Err(error) if as_stream.is_some() && error.is_instance_of::<PyException>(py) => {}
            Err(error) => return Err(error),
        }
    }
    let Some(as_stream) = as_stream else { return Ok(None) };
    let mut stream: abi::Stream = take(&as_stream.call0()?)?;
    let kind = Known::import(&stream.schema().map_err(refused)?).map_err(refused)?;
    let mut arrays = Vec::new();
    while let Some(array) = stream.next_array().map_err(refused)? {
        arrays.push(array);
    }
    let class = if kind.field.is_table() { Class::Table } else { Class::Chunked };
    Ok(Some(Imported { kind, class, arrays }))
}

/// The type of an object that offers one.
pub fn import_schema(schema: &Bound<'_, PyAny>) -> PyResult<Field> {
    let Some(offer) = schema.getattr_opt(intern!(schema.py(), "__arrow_c_schema__"))? else {
        let found = schema.get_type().name()?;
        return Err(PyTypeError::new_err(format!("{found} is no Arrow schema (it has no __arrow_c_schema__)")));
    };
    let schema: abi::Schema = take(&offer.call0()?)?;
    Field::import(&schema).map_err(PyValueError::new_err)
}

#[doc = doc!("Arrow")]
#[pyclass(frozen, subclass, module = "byref")]
pub struct Arrow {
    field: Arc<Field>,
    class: Class,
    chunks: Arc<[Chunk]>,
    payload: Arc<Foreign>,
}

impl Arrow {
    pub fn new(field: Arc<Field>, class: Class, chunks: Vec<Chunk>, payload: Arc<Foreign>) -> Self {
        Arrow { field, class, chunks: chunks.into(), payload }
    }

    /// As pyarrow has it, where that is installed.
    pub fn natural<'py>(self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        static PYARROW: PyOnceLock<Option<[Py<PyAny>; 4]>> = PyOnceLock::new();
        ending::outlive(); // Imports, and pyarrow's own code.
        let pyarrow = PYARROW.get_or_try_init(py, || {
            let Ok(pyarrow) = py.import("pyarrow") else { return Ok::<_, PyErr>(None) };
            let made_by = |name: &str| pyarrow.getattr(name).map(Bound::unbind);
            Ok(Some([made_by("array")?, made_by("record_batch")?, made_by("chunked_array")?, made_by("table")?]))
        })?;
        let (class, topic) = (self.class, pyarrow.as_ref().map(|_| self.payload.topic().to_owned()));
        let shown = match class {
            Class::Array | Class::Batch => {
                Bound::new(py, PyClassInitializer::from(self).add_subclass(ArrowArray))?.into_any()
            }
            Class::Chunked | Class::Table => Bound::new(py, self)?.into_any(),
        };
        let (Some(functions), Some(topic)) = (pyarrow, topic) else { return Ok(shown) };
        functions[class as usize].bind(py).call1((shown,)).map_err(|cause| pyarrow_refused(py, &topic, cause))
    }

    /// The data, as capsules `arrow_schema` and `arrow_array`; a BufferError when they are in several chunks.
    pub fn capsules<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        ending::outlive();
        if self.chunks.len() != 1 {
            let text =
                format!("these Arrow data have {} chunks; take msg.value, or them as a stream", self.chunks.len());
            return Err(PyBufferError::new_err(text));
        }
        let array = self.export(0).map_err(|why| refused(py, self.payload.topic(), why))?;
        PyTuple::new(py, [self.__arrow_c_schema__(py)?, give(py, array)?])
    }

    fn export(&self, index: usize) -> Result<abi::Array, String> {
        show(&self.field, &self.chunks[index], &self.payload)
    }
}

/// The receiver's error: a peer sent what is none.
fn refused(py: Python<'_>, topic: &str, why: String) -> PyErr {
    error(py, format!("topic '{topic}': the sender declared Arrow data that its payload is not: {why}"))
}

/// The receiver's error: what a peer sent is safe to read, but nothing that pyarrow knows.
fn pyarrow_refused(py: Python<'_>, topic: &str, cause: PyErr) -> PyErr {
    if is_error(py, &cause) || !cause.is_instance_of::<PyException>(py) {
        return cause;
    }
    let refused = error(py, format!("topic '{topic}': pyarrow cannot take the Arrow data that were sent: {cause}"));
    refused.set_cause(py, Some(cause));
    refused
}

#[pymethods]
impl Arrow {
    /// The type, as an `arrow_schema` capsule.
    pub fn __arrow_c_schema__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        give(py, export_schema(&self.field))
    }

    /// The data, as an `arrow_array_stream` capsule.
    #[pyo3(signature = (requested_schema=None))]
    pub fn __arrow_c_stream__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let _ = requested_schema;
        let arrays = (0..self.chunks.len()).map(|index| self.export(index)).collect::<Result<_, _>>();
        let arrays = arrays.map_err(|why| refused(py, self.payload.topic(), why))?;
        give(py, export_stream(Arc::clone(&self.field), arrays))
    }

    fn __repr__(&self) -> String {
        format!("<byref.Arrow, {:?} in a message on {:?}>", self.class, self.payload.topic())
    }
}

/// Arrow data that are one array, or one record batch. (Consumers prefer what only these offer, so others must not.)
#[pyclass(frozen, extends = Arrow, name = "_ArrowArray", module = "byref")]
pub struct ArrowArray;

#[pymethods]
impl ArrowArray {
    /// The data, as capsules `arrow_schema` and `arrow_array`.
    #[pyo3(signature = (requested_schema=None))]
    fn __arrow_c_array__<'py>(
        slf: &Bound<'py, Self>,
        requested_schema: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyTuple>> {
        let _ = requested_schema; // A best effort may be to keep the type.
        slf.as_super().get().capsules(slf.py())
    }
}
