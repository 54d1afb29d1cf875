//! A base for Python classes that are buffers: before 3.12 a class written in Python cannot be one by itself.
#![allow(unsafe_code)]

use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use std::ffi::c_int;

#[doc = doc!("_Buffered")]
#[pyclass(subclass, frozen, name = "_Buffered", module = "byref")]
pub struct Buffered;

#[pymethods]
impl Buffered {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Buffered
    }

    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let lender = slf.getattr(pyo3::intern!(slf.py(), "buffer"))?;
        // SAFETY: the interpreter gave a writable view. What fills it is the other object, which the view then refers to, and which
        // therefore releases it: nothing of `self` is lent.
        let failed = unsafe { ffi::PyObject_GetBuffer(lender.as_ptr(), view, flags) };
        match failed {
            0 => Ok(()),
            _ => Err(PyErr::take(slf.py()).unwrap_or_else(|| PyBufferError::new_err("no buffer"))),
        }
    }
}
