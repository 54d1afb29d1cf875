//! The content of the caller's dicts.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

/// The entries of a dict, taken at one moment.
///
/// What is done with them may run code that changes the dict, and on a free-threaded interpreter other threads change it at
/// any time: PyO3's iterator panics then.
pub fn entries<'py>(dict: &Bound<'py, PyDict>) -> Vec<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
    if cfg!(not(Py_GIL_DISABLED)) {
        // References are added, and the vector is Rust's: no other thread has a turn.
        return dict.iter().collect();
    }
    // A critical section around the iterator is not enough: it takes one for each step, and one within another lets go of
    // both while it waits. (CPython 3.13 does so; the interpreter's own list is made in one.)
    let pair = |item: Bound<'py, PyAny>| {
        let pair = item.cast::<PyTuple>().expect("items are pairs");
        (pair.get_item(0).expect("a key"), pair.get_item(1).expect("a value"))
    };
    dict.items().iter().map(pair).collect()
}
