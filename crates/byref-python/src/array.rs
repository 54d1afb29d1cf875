//! NumPy: element types across processes, and arrays over memory that byref keeps.
#![allow(unsafe_code)]

use crate::ending;
use crate::errors::error;
use crate::guarded::Guarded;
use numpy::npyffi::{self, NpyTypes, PY_ARRAY_API, flags};
use numpy::{PyArrayDescr, PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::exceptions::{PyImportError, PyMemoryError, PyOSError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;
use std::collections::HashMap;
use std::ffi::CString;
use std::os::raw::c_int;
use std::sync::Arc;

/// The most element types remembered; a peer that invents more of them makes the memory start anew.
const MOST_TYPES: usize = 1024;
/// The longest description of an element type, and the longest that is remembered, in bytes.
const MOST_WORDS: usize = 1 << 20;
const REMEMBERED_WORDS: usize = 4 << 10;
/// The most dimensions of an array, NumPy's own limit.
const MOST_DIMENSIONS: usize = 64;

/// An element type as a receiver needs it.
pub struct ElementType {
    pub dtype: Py<PyArrayDescr>,
    pub itemsize: usize,
    /// Its name in the buffer protocol; `None` for types that the protocol cannot express, such as `datetime64`.
    pub format: Option<CString>,
}

/// A function of the package's helper module.
fn helper<'py>(py: Python<'py>, cell: &'static PyOnceLock<Py<PyAny>>, name: &str) -> PyResult<Bound<'py, PyAny>> {
    let function = cell.get_or_try_init(py, || py.import("byref._dtypes")?.getattr(name).map(Bound::unbind))?;
    Ok(function.bind(py).clone())
}

/// Describes an element type in words that another process understands.
pub fn describe_type(dtype: &Bound<'_, PyArrayDescr>) -> PyResult<Vec<u8>> {
    static ENCODE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    static RECORD: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let py = dtype.py();
    let encode = helper(py, &ENCODE, "encode")?;
    if dtype.has_fields() && dtype.typeobj().is(RECORD.import(py, "numpy", "record")?) {
        return encode.call1((dtype, true))?.extract();
    }
    encode.call1((dtype,))?.extract()
}

/// The element type that `kind` describes; a new one is remembered.
fn element_type(py: Python<'_>, kind: &[u8]) -> PyResult<Arc<ElementType>> {
    static KNOWN: Guarded<Option<HashMap<Vec<u8>, Arc<ElementType>>>> = Guarded::new(None);
    static DECODE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    if let Some(found) = KNOWN.with(|known| known.as_ref()?.get(kind).cloned()) {
        return Ok(found);
    }
    ending::outlive(); // The description is read by Python code, which imports what it names.
    if kind.len() > MOST_WORDS {
        return Err(PyValueError::new_err(format!("a description of an element type with {} bytes", kind.len())));
    }
    let decoded = helper(py, &DECODE, "decode")?.call1((kind,))?;
    let (dtype, format): (Bound<'_, PyArrayDescr>, Option<String>) = decoded.extract()?;
    if dtype.has_object() {
        return Err(PyValueError::new_err("a peer declared Python objects in shared memory"));
    }
    let format = format.map(|format| CString::new(format).expect("formats have no NUL"));
    let found = Arc::new(ElementType { itemsize: dtype.itemsize(), dtype: dtype.unbind(), format });
    if kind.len() <= REMEMBERED_WORDS {
        let (kind, found) = (kind.to_vec(), Arc::clone(&found));
        // What makes room, and what another thread has put there meanwhile, holds types: it goes when the lock is gone.
        let gone = KNOWN.with(|known| {
            let known = known.get_or_insert_default();
            let too_many = (known.len() >= MOST_TYPES).then(|| std::mem::take(known));
            (too_many, known.insert(kind, found))
        });
        drop(gone);
    }
    Ok(found)
}

/// The bytes that `shape` elements of `itemsize` bytes take; an error for shapes that cannot be.
pub fn size_of_shape(shape: &[u64], itemsize: usize) -> PyResult<usize> {
    let overflow =
        || PyValueError::new_err(format!("an array of shape {shape:?} with {itemsize} bytes each is too large"));
    if shape.len() > MOST_DIMENSIONS {
        return Err(PyValueError::new_err(format!("an array can have at most {MOST_DIMENSIONS} dimensions")));
    }
    // As NumPy does: the extents without the empty ones must be countable, too.
    let all = shape
        .iter()
        .filter(|extent| **extent > 0)
        .try_fold(itemsize.max(1) as u64, |size, extent| size.checked_mul(*extent));
    let all = all.filter(|size| *size <= isize::MAX as u64).ok_or_else(overflow)?;
    Ok(if shape.contains(&0) || itemsize == 0 { 0 } else { all as usize })
}

/// The element type of a payload of `len` bytes that its sender declared as an array; an error if it is not that.
pub fn declared_type(py: Python<'_>, kind: &[u8], shape: &[u64], len: usize) -> PyResult<Arc<ElementType>> {
    let wrong = |why: String| error(py, format!("the sender declared an array that its payload is not: {why}"));
    let element = element_type(py, kind).map_err(|cause| {
        let is_ours = cause.is_instance_of::<PyImportError>(py)
            || cause.is_instance_of::<PyOSError>(py) // Out of descriptors, say.
            || cause.is_instance_of::<PyMemoryError>(py);
        if is_ours { cause } else { wrong(cause.to_string()) }
    })?;
    let size = size_of_shape(shape, element.itemsize).map_err(|cause| wrong(cause.to_string()))?;
    if size != len {
        return Err(wrong(format!("{size} bytes declared, {len} there")));
    }
    Ok(element)
}

/// The strides of a C-contiguous array of a shape that `size_of_shape` has checked, where one element counts as `unit`.
pub fn contiguous_strides(shape: &[u64], unit: usize) -> Vec<isize> {
    let mut strides = vec![unit as isize; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i].max(1) as isize;
    }
    strides
}

/// A C-contiguous array over the memory at `data`, kept by `owner`.
///
/// # Safety
///
/// `data` points to as many bytes as `dtype` and `shape` take, readable (and writable, when `writable`) as long as `owner`
/// lives; `dtype` holds no Python objects.
pub unsafe fn over<'py>(
    dtype: Bound<'py, PyArrayDescr>,
    shape: &[u64],
    data: *mut u8,
    writable: bool,
    owner: Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = dtype.py();
    let mut extents: Vec<npyffi::npy_intp> = shape.iter().map(|extent| *extent as npyffi::npy_intp).collect();
    let array_flags = if writable { flags::NPY_ARRAY_WRITEABLE } else { 0 } | flags::NPY_ARRAY_C_CONTIGUOUS;
    // SAFETY: asking for the type object of ndarray has no condition but an attached interpreter.
    let ndarray = unsafe { npyffi::get_type_object(py, NpyTypes::PyArray_Type) };
    // SAFETY: the pointers are valid for the call, the reference to the dtype is given away as NumPy expects, and the
    // caller vouches for the memory.
    let array = unsafe {
        PY_ARRAY_API.PyArray_NewFromDescr(
            py,
            ndarray,
            dtype.into_ptr().cast(),
            extents.len() as c_int,
            extents.as_mut_ptr(),
            std::ptr::null_mut(),
            data.cast(),
            array_flags,
            std::ptr::null_mut(),
        )
    };
    // SAFETY: a new reference, or null with an exception set.
    let array = unsafe { Bound::from_owned_ptr_or_err(py, array) }?;
    // SAFETY: `array` is a new array without a base; the reference to the owner is given away, also on failure.
    let failed = unsafe { PY_ARRAY_API.PyArray_SetBaseObject(py, array.as_ptr().cast(), owner.into_ptr()) };
    if failed != 0 { Err(PyErr::fetch(py)) } else { Ok(array) }
}

/// The bytes of an array that lies in one C-ordered piece; `None` for others.
///
/// # Safety
///
/// Nobody writes to the array while the slice is in use, unless a torn message is all that they get from it.
pub unsafe fn contiguous_bytes<'a>(array: &'a Bound<'_, PyUntypedArray>) -> Option<&'a [u8]> {
    let len = array.len() * array.dtype().itemsize();
    if len == 0 {
        return Some(&[]);
    }
    if !array.is_c_contiguous() {
        return None;
    }
    // SAFETY: the array object is alive, and `data` is a plain field of it.
    let data = unsafe { (*array.as_array_ptr()).fields.data };
    // SAFETY: a C-contiguous array has its `len` bytes there, as long as the object lives.
    Some(unsafe { std::slice::from_raw_parts(data.cast::<u8>(), len) })
}

/// Copies the elements of `from`, in whatever order they lie, into `to`, which has the same shape and type.
pub fn copy_elements(to: &Bound<'_, PyAny>, from: &Bound<'_, PyUntypedArray>) -> PyResult<()> {
    // SAFETY: both are arrays (`to` was made by `over`), and the interpreter is attached.
    let failed = unsafe { PY_ARRAY_API.PyArray_CopyInto(from.py(), to.as_ptr().cast(), from.as_array_ptr()) };
    if failed != 0 { Err(PyErr::fetch(from.py())) } else { Ok(()) }
}

/// The bytes of one element.
pub fn itemsize(dtype: &Bound<'_, PyArrayDescr>) -> usize {
    dtype.itemsize()
}

/// Copies `from` into `out`, an array of its shape (element types are converted as `np.copyto` does), or into a new array.
pub fn copy<'py>(from: &Bound<'py, PyAny>, out: Option<Bound<'py, PyAny>>) -> PyResult<Bound<'py, PyAny>> {
    static COPYTO: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = from.py();
    ending::outlive(); // NumPy lets go of the interpreter while it copies.
    byref::count_copied(byref::Cause::Asked, from.getattr("nbytes")?.extract()?);
    let Some(out) = out else { return from.call_method0("copy") };
    let Ok(to) = out.cast::<PyUntypedArray>() else {
        return Err(PyTypeError::new_err(format!("out must be a NumPy array, not {}", out.get_type().name()?)));
    };
    let from = from.cast::<PyUntypedArray>()?;
    if to.shape() != from.shape() {
        let text = format!("a payload of shape {} does not fit into", from.getattr("shape")?);
        return Err(PyValueError::new_err(format!("{text} an array of shape {}", to.getattr("shape")?)));
    }
    let copyto = COPYTO.get_or_try_init(py, || py.import("numpy")?.getattr("copyto").map(Bound::unbind))?;
    copyto.bind(py).call1((to, from))?;
    Ok(out)
}

/// Refuses element types that mean nothing in another process.
pub fn refuse_objects(dtype: &Bound<'_, PyArrayDescr>) -> PyResult<()> {
    if dtype.has_object() {
        let text = "cannot send an array of Python objects: its elements are pointers into this process; give it a type of \
                    fixed size (x.astype), or use send_pickle";
        return Err(PyTypeError::new_err(text));
    }
    Ok(())
}
