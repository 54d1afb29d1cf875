//! The one conversion from the core's errors to Python's.

use crate::ending;
use crate::identity::Identity;
use crate::undelivered::Undelivered;
use byref::{Code, Error};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

/// The exception class of that name in `byref._errors`.
fn class<'py>(py: Python<'py>, cell: &'static PyOnceLock<Py<PyType>>, name: &str) -> PyResult<&'py Bound<'py, PyType>> {
    ending::outlive();
    cell.import(py, "byref._errors", name)
}

macro_rules! exception {
    ($py:expr, $name:literal) => {{
        static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
        class($py, &CLASS, $name)
    }};
}

/// The Python exception for a core error.
pub fn to_python(py: Python<'_>, error: impl Into<Error>) -> PyErr {
    let error = error.into();
    let text = error.to_string();
    if let Error::AddressInUse { .. } | Error::Unroutable { .. } | Error::PeerLost { .. } = error {
        return about_address(py, error, text).unwrap_or_else(|failed| failed);
    }
    if let Error::NoReply { .. } | Error::ServerLost { .. } | Error::Remote { .. } = error {
        return about_server(py, error, text).unwrap_or_else(|failed| failed);
    }
    let class = match error {
        Error::Timeout { .. } | Error::WouldBlock { .. } => exception!(py, "Timeout"),
        Error::Closed { .. } => exception!(py, "Closed"),
        Error::PoolExhausted { .. } => exception!(py, "PoolExhausted"),
        Error::Evicted { .. } => exception!(py, "Evicted"),
        Error::VersionMismatch { .. } => exception!(py, "VersionMismatch"),
        Error::Forked { .. } => exception!(py, "Forked"),
        Error::InvalidTopic { .. } => exception!(py, "InvalidTopic"),
        Error::NoServer { .. } => exception!(py, "NoServer"),
        Error::DeadlineExceeded { .. } => exception!(py, "DeadlineExceeded"),
        Error::Cancelled { .. } => exception!(py, "Cancelled"),
        Error::InvalidArgument(_) => return PyValueError::new_err(text),
        _ => exception!(py, "Error"),
    };
    match class {
        Ok(class) => PyErr::from_type(class.clone(), text),
        Err(import_failed) => import_failed,
    }
}

/// An exception that says whom it is about.
#[cold]
fn about_address(py: Python<'_>, error: Error, text: String) -> PyResult<PyErr> {
    let raised = match error {
        Error::AddressInUse { address, pid, name, .. } => {
            let raised = exception!(py, "AddressInUse")?.call1((text,))?;
            raised.setattr("address", address)?;
            raised.setattr("process", pid)?;
            raised.setattr("name", name.as_deref())?;
            raised
        }
        Error::PeerLost { peer, undelivered, .. } => {
            let raised = exception!(py, "PeerLost")?.call1((text,))?;
            raised.setattr("peer", Bound::new(py, Identity(peer))?)?;
            let messages: Vec<_> = undelivered.into_iter().map(Undelivered).collect();
            raised.setattr("undelivered", messages)?;
            raised
        }
        Error::Unroutable { address, .. } => {
            let raised = exception!(py, "Unroutable")?.call1((text,))?;
            raised.setattr("address", address)?;
            raised
        }
        _ => exception!(py, "Error")?.call1((text,))?,
    };
    Ok(PyErr::from_value(raised))
}

/// An exception that says which server it is about.
#[cold]
fn about_server(py: Python<'_>, error: Error, text: String) -> PyResult<PyErr> {
    let (raised, peer) = match error {
        Error::NoReply { peer, .. } => (exception!(py, "NoReply")?.call1((text,))?, peer),
        Error::ServerLost { peer, taken, .. } => {
            let raised = exception!(py, "PeerLost")?.call1((text,))?;
            raised.setattr("undelivered", Vec::<Undelivered>::new())?;
            raised.setattr("taken", taken)?;
            (raised, peer)
        }
        Error::Remote { peer, failure, .. } => {
            let raised = exception!(py, "RemoteError")?.call1((text,))?;
            match failure.code {
                Code::Number(number) => raised.setattr("code", number)?,
                Code::Name(name) => raised.setattr("code", name)?,
            }
            raised.setattr("text", failure.text)?;
            raised.setattr("traceback", failure.traceback)?;
            (raised, peer)
        }
        _ => return exception!(py, "Error").map(|class| PyErr::from_type(class.clone(), text)),
    };
    raised.setattr("peer", Bound::new(py, Identity(peer))?)?;
    Ok(PyErr::from_value(raised))
}

/// Whether it is an error of this library's own.
pub fn is_error(py: Python<'_>, error: &PyErr) -> bool {
    exception!(py, "Error").is_ok_and(|class| error.is_instance(py, class))
}

/// A class of `byref._errors` with a text of the binding's own.
macro_rules! own_text {
    ($(#[$doc:meta])* $function:ident, $name:literal) => {
        $(#[$doc])*
        pub fn $function(py: Python<'_>, text: impl Into<String>) -> PyErr {
            match exception!(py, $name) {
                Ok(class) => PyErr::from_type(class.clone(), text.into()),
                Err(import_failed) => import_failed,
            }
        }
    };
}

own_text!(
    /// `byref.Error`.
    error,
    "Error"
);
own_text!(
    /// `byref.Closed`, for what a binding object guards itself.
    closed,
    "Closed"
);
own_text!(
    /// `byref.Timeout`.
    timed_out,
    "Timeout"
);
own_text!(
    /// `byref.Forked`.
    forked,
    "Forked"
);

/// An attempt found no room; the coroutine that made it looks again. No user sees it.
#[cold]
pub fn would_block(py: Python<'_>) -> PyErr {
    match exception!(py, "WouldBlock") {
        Ok(class) => PyErr::from_type(class.clone(), ()),
        Err(import_failed) => import_failed,
    }
}

/// Whether it is that.
pub fn is_would_block(py: Python<'_>, error: &PyErr) -> bool {
    exception!(py, "WouldBlock").is_ok_and(|class| error.is_instance(py, class))
}
