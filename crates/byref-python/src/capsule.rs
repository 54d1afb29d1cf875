//! The PyCapsules in which libraries hand Arrow data to each other.
#![allow(unsafe_code)]

use byref_parts::arrow::abi::Owned;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::critical_section::with_critical_section;
use std::ptr;

/// Takes the struct out of a capsule, as its consumer.
pub fn take<T: Owned>(capsule: &Bound<'_, PyAny>) -> PyResult<T> {
    // SAFETY: a valid name; for anything but a capsule of that name this sets an exception.
    let pointer = unsafe { ffi::PyCapsule_GetPointer(capsule.as_ptr(), T::CAPSULE.as_ptr()) }.cast::<T>();
    if pointer.is_null() {
        drop(PyErr::take(capsule.py()));
        let (wanted, found) = (T::CAPSULE.to_string_lossy(), capsule.get_type());
        return Err(PyTypeError::new_err(format!("the sender's Arrow data is no capsule '{wanted}' but {found}")));
    }
    // Two threads that take one capsule at the same time would both have what is in it, and release it twice.
    let taken = with_critical_section(capsule, || {
        // SAFETY: by the interface, a capsule of that name points to such a struct, which its consumer moves out by marking
        // the source as released. No other thread of this module is here meanwhile: the interpreter is attached, and where
        // that excludes nobody, the critical section does, as nothing in it lets go of it.
        unsafe { ptr::replace(pointer, T::empty()) }
    });
    if taken.is_released() {
        return Err(PyValueError::new_err("the sender's Arrow data was consumed already"));
    }
    Ok(taken)
}

/// A capsule of the struct; what nobody consumes is released with it.
pub fn give<T: Owned>(py: Python<'_>, owned: T) -> PyResult<Bound<'_, PyAny>> {
    unsafe extern "C" fn drop_capsule<T: Owned>(capsule: *mut ffi::PyObject) {
        // SAFETY: called by the interpreter for a capsule that `give` made, once.
        let pointer = unsafe { ffi::PyCapsule_GetPointer(capsule, T::CAPSULE.as_ptr()) }.cast::<T>();
        if !pointer.is_null() {
            // SAFETY: the box that `give` leaked; a consumer moved its content out, or it is released now.
            drop(unsafe { Box::from_raw(pointer) });
        }
    }
    let pointer = Box::into_raw(Box::new(owned));
    // SAFETY: the pointer is not null, the name lives for ever, and the destructor fits both.
    let capsule = unsafe { ffi::PyCapsule_New(pointer.cast(), T::CAPSULE.as_ptr(), Some(drop_capsule::<T>)) };
    // SAFETY: a new reference, or null with an exception set.
    match unsafe { Bound::from_owned_ptr_or_err(py, capsule) } {
        Ok(capsule) => Ok(capsule),
        Err(error) => {
            // SAFETY: no capsule took the box over.
            drop(unsafe { Box::from_raw(pointer) });
            Err(error)
        }
    }
}
