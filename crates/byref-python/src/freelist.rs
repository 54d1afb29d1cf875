//! A free list for messages, the one class whose objects come and go by the million.
//!
//! PyO3 has one, too (`freelist` of a class), behind a mutex that is made at the first use: four locked instructions for each
//! message, and a process that forks at that first use leaves a child that waits for ever. The interpreter's lock is enough.
//! A Python without that lock makes its messages as any other object.
#![allow(unsafe_code)]
#![cfg_attr(Py_GIL_DISABLED, allow(dead_code))]

use crate::ending;
use crate::message::Message;
use pyo3::PyTypeInfo;
use pyo3::ffi;
use pyo3::prelude::*;
use std::cell::{Cell, UnsafeCell};
use std::os::raw::c_void;
use std::ptr::null_mut;

/// A burst of so many messages, held at a time, gives back what the next one takes.
const CAPACITY: usize = 256;

/// Memory of messages that are gone.
struct Spares {
    len: Cell<usize>,
    memory: UnsafeCell<[*mut ffi::PyObject; CAPACITY]>,
}

// SAFETY: only `allocate` and `free` touch it, which the interpreter calls in a thread that holds its lock, and of which
// neither gives the lock up in between; `install` sees to it that a Python without the lock never calls them.
unsafe impl Sync for Spares {}

static SPARES: Spares = Spares { len: Cell::new(0), memory: UnsafeCell::new([null_mut(); CAPACITY]) };

/// Lets messages come from the free list and return to it. To be called before the first message is made.
pub fn install(py: Python<'_>) {
    if cfg!(Py_GIL_DISABLED) {
        return;
    }
    let class = Message::type_object_raw(py);
    // SAFETY: asks for a bit of a class that lives as long as the module.
    let has = |feature| unsafe { ffi::PyType_HasFeature(class, feature) } != 0;
    // All objects are of one size, without items or subclasses; and `free` knows whose their memory is.
    assert!(!has(ffi::Py_TPFLAGS_BASETYPE) && has(ffi::Py_TPFLAGS_HAVE_GC));
    // SAFETY: no other thread uses the class yet, and this one holds the interpreter's lock.
    let class = unsafe { &mut *class };
    assert!(class.tp_itemsize == 0);
    class.tp_alloc = Some(allocate);
    class.tp_free = Some(free);
}

/// `tp_alloc`.
unsafe extern "C" fn allocate(class: *mut ffi::PyTypeObject, items: ffi::Py_ssize_t) -> *mut ffi::PyObject {
    let Some(last) = SPARES.len.get().checked_sub(1) else {
        ending::outlive(); // The garbage collector may run, up to CPython 3.11, and with it any Python code.
        // SAFETY: the caller's arguments, passed on.
        return unsafe { ffi::PyType_GenericAlloc(class, items) };
    };
    SPARES.len.set(last);
    // SAFETY: below `len`, `free` has written; nobody else is here (see `Spares`).
    let object = unsafe { (*SPARES.memory.get())[last] };
    // SAFETY: it is the memory of a whole message that is gone, and no longer in the list. PyO3 writes all that comes behind
    // the head that this sets (its own free list leaves that to it, too). The garbage collector is not told: messages refer
    // to no object but their class.
    unsafe { ffi::PyObject_Init(object, class) }
}

/// `tp_free`.
unsafe extern "C" fn free(object: *mut c_void) {
    let len = SPARES.len.get();
    if len == CAPACITY {
        // SAFETY: `PyType_GenericAlloc` takes the memory of a class with garbage collection (`install` asked) from the allocator
        // of these; PyO3 has withdrawn the object from the collector, and has done with it.
        return unsafe { ffi::PyObject_GC_Del(object) };
    }
    // SAFETY: nobody else is here (see `Spares`).
    unsafe { (*SPARES.memory.get())[len] = object.cast() };
    SPARES.len.set(len + 1);
}
