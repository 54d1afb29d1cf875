//! Recording where messages are received, for their publishers to tell who holds them too long. Off by default.

use crate::ending;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

static RECORDING: AtomicBool = AtomicBool::new(false);

#[doc = doc!("record_receives")]
#[pyfunction]
#[pyo3(signature = (on=true))]
pub fn record_receives(on: bool) {
    RECORDING.store(on, Ordering::Relaxed);
}

/// `BYREF_RECORD_RECEIVES=1`.
pub fn from_environment() {
    record_receives(std::env::var_os("BYREF_RECORD_RECEIVES").is_some_and(|value| value == "1"));
}

/// What is received: messages that hold memory of their publisher are worth a note.
pub trait Received {
    fn is_holding(&self) -> bool;
    fn note_received_at(&self, place: &str);
}

impl Received for byref::Message {
    #[inline]
    fn is_holding(&self) -> bool {
        !self.is_inline()
    }

    fn note_received_at(&self, place: &str) {
        self.note_received_at(place);
    }
}

impl Received for byref::Batch {
    #[inline]
    fn is_holding(&self) -> bool {
        self.is_holding()
    }

    fn note_received_at(&self, place: &str) {
        self.note_received_at(place);
    }
}

/// Notes the place in the caller's code, if that is wanted.
#[inline]
pub fn note_caller(py: Python<'_>, received: &impl Received) {
    if received.is_holding()
        && RECORDING.load(Ordering::Relaxed)
        && let Some(place) = caller(py)
    {
        received.note_received_at(&place);
    }
}

/// Notes the place of a receiver's callable, if that is wanted.
#[inline]
pub fn note_receiver(received: &impl Received, place: &str) {
    if received.is_holding() && RECORDING.load(Ordering::Relaxed) {
        received.note_received_at(place);
    }
}

/// File and line of the innermost Python frame outside of this package.
#[cold]
fn caller(py: Python<'_>) -> Option<String> {
    ending::outlive();
    static OWN_FILES: PyOnceLock<String> = PyOnceLock::new();
    let own_files = OWN_FILES.get_or_try_init(py, || -> PyResult<String> {
        let init: String = py.import(intern!(py, "byref"))?.getattr(intern!(py, "__file__"))?.extract()?;
        Ok(init.trim_end_matches("__init__.py").to_owned())
    });
    let own_files = own_files.ok()?;
    let frame = py.import(intern!(py, "sys")).and_then(|sys| sys.call_method0(intern!(py, "_getframe")));
    let mut frame = frame.ok()?; // There is none in a thread that runs no Python code.
    loop {
        let code = frame.getattr(intern!(py, "f_code")).ok()?;
        let file: String = code.getattr(intern!(py, "co_filename")).ok()?.extract().ok()?;
        if !file.starts_with(own_files) {
            let line: usize = frame.getattr(intern!(py, "f_lineno")).ok()?.extract().ok()?;
            return Some(format!("{file}:{line}"));
        }
        frame = frame.getattr(intern!(py, "f_back")).ok().filter(|back| !back.is_none())?;
    }
}
