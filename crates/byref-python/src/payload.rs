//! What can be sent: bytes-like objects and NumPy arrays.
#![allow(unsafe_code)]

use crate::array::{contiguous_bytes, describe_type, refuse_objects};
use crate::message::Message;
use crate::refusals::{class_name, refuse, refuse_row, resolve};
use byref::Layout;
use numpy::{PyArrayDescr, PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyByteArray, PyBytes, PyMemoryView, PyString};
use std::ffi::CStr;

/// A payload in this process's memory, kept there as long as this lives.
pub enum Payload<'py> {
    Bytes(Bound<'py, PyBytes>),
    Buffer(RawBuffer),
    Array(Bound<'py, PyUntypedArray>),
}

/// An acquired buffer of plain bytes.
pub struct RawBuffer(Box<ffi::Py_buffer>);

impl RawBuffer {
    /// The object's buffer; `None` when it has none.
    fn acquire(data: &Bound<'_, PyAny>) -> Option<Self> {
        let mut view = Box::new(ffi::Py_buffer::new());
        // SAFETY: `view` is writable and stays at its place until it is released.
        let failed = unsafe { ffi::PyObject_GetBuffer(data.as_ptr(), &mut *view, ffi::PyBUF_FULL_RO) };
        if failed != 0 {
            drop(PyErr::take(data.py()));
            return None;
        }
        Some(RawBuffer(view))
    }

    /// Whether it is one row of bytes without gaps, and nothing more.
    fn is_plain(&self) -> bool {
        let view = &self.0;
        // SAFETY: an acquired buffer's format is null or a C string that lives as long as the buffer.
        let format = (!view.format.is_null()).then(|| unsafe { CStr::from_ptr(view.format) });
        let is_bytes = format.is_none_or(|format| matches!(format.to_bytes(), b"B" | b"c"));
        // SAFETY: `view` is an acquired buffer.
        let is_contiguous = unsafe { ffi::PyBuffer_IsContiguous(&**view, b'C' as _) } != 0;
        is_bytes && view.ndim <= 1 && is_contiguous
    }

    fn bytes(&self) -> &[u8] {
        if self.0.len == 0 {
            return &[];
        }
        // SAFETY: an acquired contiguous buffer has `len` readable bytes at `buf` until it is released. Whoever writes to
        // them meanwhile tears this one message, as with any write(2).
        unsafe { std::slice::from_raw_parts(self.0.buf.cast::<u8>(), self.0.len as usize) }
    }
}

impl Drop for RawBuffer {
    fn drop(&mut self) {
        // SAFETY: acquired once, released once, with the interpreter attached (`Payload` never leaves the call).
        unsafe { ffi::PyBuffer_Release(&mut *self.0) };
    }
}

impl<'py> Payload<'py> {
    /// Finds out what `data` is; a `TypeError` lists what would be accepted.
    #[inline]
    pub fn of(data: &Bound<'py, PyAny>) -> PyResult<Self> {
        if let Ok(bytes) = data.cast_exact::<PyBytes>() {
            return Ok(Payload::Bytes(bytes.clone()));
        }
        if let Ok(array) = data.cast_exact::<PyUntypedArray>() {
            refuse_objects(&array.dtype())?;
            return Ok(Payload::Array(array.clone()));
        }
        if data.is_exact_instance_of::<PyByteArray>()
            || data.is_exact_instance_of::<PyMemoryView>()
            || data.is_instance_of::<Message>()
        {
            return Self::of_resolved(data);
        }
        if let Some(array) = numpy_scalar(data)? {
            return Ok(Payload::Array(array));
        }
        Self::of_resolved(&resolve(data)?)
    }

    /// What an object is that stands for itself.
    pub fn of_resolved(data: &Bound<'py, PyAny>) -> PyResult<Self> {
        if let Ok(array) = data.cast::<PyUntypedArray>() {
            return Self::of_array(array.clone());
        }
        match RawBuffer::acquire(data) {
            Some(buffer) if buffer.is_plain() => Ok(Payload::Buffer(buffer)),
            // Typed or strided memory is an array by another name; a message knows its own type.
            Some(_) => Self::of_array(as_array(data).map_err(|cause| unreadable(data, cause))?),
            None if data.is_instance_of::<Message>() => Self::of_array(as_array(data)?),
            None if is_arrow(data)? => Err(refuse_row(data)),
            None if data.hasattr(intern!(data.py(), "__dlpack__"))? => Self::of_array(tensor_as_array(data)?),
            None => Err(refuse(data)),
        }
    }

    fn of_array(array: Bound<'py, PyUntypedArray>) -> PyResult<Self> {
        refuse_objects(&array.dtype())?;
        Ok(Payload::Array(array))
    }

    /// The bytes; `None` when they do not lie in one C-ordered piece.
    #[inline]
    pub fn bytes(&self) -> Option<&[u8]> {
        match self {
            Payload::Bytes(bytes) => Some(bytes.as_bytes()),
            Payload::Buffer(buffer) => Some(buffer.bytes()),
            // SAFETY: a concurrent writer tears this one message, no more.
            Payload::Array(array) => unsafe { contiguous_bytes(array) },
        }
    }

    /// How many bytes there are, wherever they lie.
    pub fn len(&self) -> usize {
        match self {
            Payload::Bytes(bytes) => bytes.as_bytes().len(),
            Payload::Buffer(buffer) => buffer.bytes().len(),
            Payload::Array(array) => array.len() * array.dtype().itemsize(),
        }
    }

    /// How the receiver is to understand them.
    pub fn layout(&self) -> PyResult<Option<Layout>> {
        match self {
            Payload::Bytes(_) | Payload::Buffer(_) => Ok(None),
            Payload::Array(array) => {
                layout_of(&array.dtype(), array.shape().iter().map(|extent| *extent as u64)).map(Some)
            }
        }
    }
}

/// The layout of an array.
pub fn layout_of(dtype: &Bound<'_, PyArrayDescr>, shape: impl Iterator<Item = u64>) -> PyResult<Layout> {
    Ok(Layout { kind: describe_type(dtype)?, shape: shape.collect() })
}

fn is_arrow(data: &Bound<'_, PyAny>) -> PyResult<bool> {
    let py = data.py();
    Ok(data.hasattr(intern!(py, "__arrow_c_array__"))? || data.hasattr(intern!(py, "__arrow_c_stream__"))?)
}

/// A NumPy scalar as an array without dimensions; `None` for anything else.
pub fn numpy_scalar<'py>(value: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyUntypedArray>>> {
    static GENERIC: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = value.py();
    let generic = GENERIC.get_or_try_init(py, || py.import("numpy")?.getattr("generic").map(Bound::unbind))?;
    if !value.is_instance(generic.bind(py))? {
        return Ok(None);
    }
    let array = as_array(value)?;
    refuse_objects(&array.dtype())?;
    // An array's elements end where their last zeros begin.
    let ends_in_zero = match (value.cast::<PyString>(), value.cast::<PyBytes>()) {
        (Ok(text), _) => text.to_str()?.ends_with('\0'),
        (_, Ok(bytes)) => bytes.as_bytes().ends_with(&[0]),
        _ => false,
    };
    if ends_in_zero {
        let (found, base) = (class_name(value), if value.is_instance_of::<PyString>() { "str" } else { "bytes" });
        let text = format!("cannot send a {found} that ends in NUL, which NumPy's arrays do not keep; send {base}(x)");
        return Err(PyTypeError::new_err(text));
    }
    Ok(Some(array))
}

/// The error for a buffer whose elements NumPy cannot read.
fn unreadable(data: &Bound<'_, PyAny>, cause: PyErr) -> PyErr {
    let py = data.py();
    if !cause.is_instance_of::<PyValueError>(py) && !cause.is_instance_of::<PyTypeError>(py) {
        return cause;
    }
    PyTypeError::new_err(format!(
        "cannot send this {}, whose elements NumPy cannot read ({}); send memoryview(x).cast('B'), its bytes",
        class_name(data),
        cause.value(py)
    ))
}

fn as_array<'py>(data: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyUntypedArray>> {
    static ASARRAY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = data.py();
    let asarray = ASARRAY.get_or_try_init(py, || py.import("numpy")?.getattr("asarray").map(Bound::unbind))?;
    Ok(asarray.bind(py).call1((data,))?.cast_into()?)
}

/// An array over a tensor of another library.
fn tensor_as_array<'py>(tensor: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyUntypedArray>> {
    static AS_ARRAY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = tensor.py();
    let as_array =
        AS_ARRAY.get_or_try_init(py, || py.import("byref._tensors")?.getattr("as_array").map(Bound::unbind))?;
    Ok(as_array.bind(py).call1((tensor,))?.cast_into()?)
}
