//! What an object is by its exact type (`byref._kinds` knows), and errors that say where in the data something is wrong.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

/// A member of `byref._kinds`.
fn member<'py>(py: Python<'py>, cell: &'static PyOnceLock<Py<PyAny>>, name: &str) -> PyResult<&'py Bound<'py, PyAny>> {
    let found = cell.get_or_try_init(py, || py.import("byref._kinds")?.getattr(name).map(Bound::unbind))?;
    Ok(found.bind(py))
}

/// What travels for an object that is no bytes, array, container, scalar or message: itself, or what stands for it.
pub fn resolve<'py>(data: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    static RESOLVE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    member(data.py(), &RESOLVE, "resolve")?.call1((data,))
}

/// Refuses a polars frame that exports pointers to Python's objects, or types that no other library knows.
pub fn check_polars(data: &Bound<'_, PyAny>) -> PyResult<()> {
    static CHECK: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    member(data.py(), &CHECK, "check_polars")?.call1((data,)).map(drop)
}

/// The error for an object that has nothing to send.
pub fn refuse(data: &Bound<'_, PyAny>) -> PyErr {
    static REFUSE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    refusal(&REFUSE, "refuse", data)
}

/// The error for an object that cannot be one of several payloads.
pub fn refuse_row(data: &Bound<'_, PyAny>) -> PyErr {
    static REFUSE_ROW: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    refusal(&REFUSE_ROW, "refuse_row", data)
}

fn refusal(cell: &'static PyOnceLock<Py<PyAny>>, name: &str, data: &Bound<'_, PyAny>) -> PyErr {
    let made = member(data.py(), cell, name).and_then(|refuse| refuse.call1((data,)));
    made.map_or_else(|failed| failed, PyErr::from_value)
}

/// The qualified name of an object's class, as texts have it.
pub fn class_name(of: &Bound<'_, PyAny>) -> String {
    of.get_type().fully_qualified_name().map_or_else(|_| "?".to_owned(), |name| name.to_string())
}

/// The error with the topic, and the place in the data (`""`: all of it), before its text. Exceptions of other libraries' own
/// classes stay what they are, and get a note.
pub fn located(py: Python<'_>, topic: &str, place: &str, error: PyErr) -> PyErr {
    static REFUSAL: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let at = if place.is_empty() { String::new() } else { format!(", at {place}") };
    let class = error.get_type(py);
    let is_refusal = REFUSAL.import(py, "byref._kinds", "Refusal").is_ok_and(|refusal| class.is(refusal));
    let text = || format!("topic '{topic}'{at}: {}", error.value(py));
    let found = if is_refusal {
        return PyTypeError::new_err(text());
    } else if class.is(py.get_type::<PyTypeError>()) {
        PyTypeError::new_err(text())
    } else if class.is(py.get_type::<PyValueError>()) {
        PyValueError::new_err(text())
    } else {
        // It may refuse notes; what matters is the error.
        let _ =
            error.value(py).call_method1(intern!(py, "add_note"), (format!("while sending to topic '{topic}'{at}"),));
        return error;
    };
    if error.traceback(py).is_some() {
        found.set_cause(py, Some(error)); // Raised by code of somebody else.
    }
    found
}
