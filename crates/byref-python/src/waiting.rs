//! Calls that may wait: first an attempt with the interpreter held, then the wait without it.

use crate::ending;
use crate::errors::to_python;
use byref::{Error, Result, Wait};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::cell::Cell;
use std::time::Duration;

/// Whether this is the thread in which Python runs signal handlers.
fn is_main_thread(py: Python<'_>) -> PyResult<bool> {
    thread_local! {
        static IS_MAIN: Cell<Option<bool>> = const { Cell::new(None) };
    }
    if let Some(known) = IS_MAIN.get() {
        return Ok(known);
    }
    let threading = py.import("threading")?;
    let main = threading.call_method0("main_thread")?.getattr("ident")?;
    let is_main = main.eq(threading.call_method0("get_ident")?)?;
    IS_MAIN.set(Some(is_main));
    Ok(is_main)
}

/// A checked `timeout` argument; `None` means without limit.
#[derive(Clone, Copy)]
pub struct Timeout(Option<Duration>);

impl Timeout {
    /// From seconds; `None` and infinity mean without limit.
    pub fn new(seconds: Option<f64>) -> PyResult<Self> {
        match seconds {
            None => Ok(Timeout(None)),
            Some(seconds) if seconds.is_nan() || seconds < 0.0 => {
                Err(PyValueError::new_err(format!("timeout must be None or at least 0 seconds, not {seconds}")))
            }
            Some(seconds) => Ok(Timeout(Duration::try_from_secs_f64(seconds).ok())),
        }
    }

    /// So long, or without limit.
    pub fn of(duration: Option<Duration>) -> Self {
        Timeout(duration)
    }

    /// The time; `None` means without limit.
    pub fn duration(self) -> Option<Duration> {
        self.0
    }

    /// Runs `call` without the interpreter. In the main thread, signal handlers run whenever it is about to sleep and after
    /// each signal; what they raise ends the call. Other threads have none, and must not attach for them: a daemon thread
    /// that attaches when the interpreter is gone crashes.
    pub fn wait<T: Send>(self, py: Python<'_>, call: impl FnOnce(&mut Wait<'_>) -> Result<T> + Send) -> PyResult<T> {
        if !is_main_thread(py)? {
            ending::outlive();
            return py.detach(|| call(&mut Wait::up_to(self.0))).map_err(|error| to_python(py, error));
        }
        let mut raised = None;
        let result = py.detach(|| {
            let mut check = || {
                raised = Python::attach(|py| py.check_signals().err());
                raised.is_some()
            };
            call(&mut Wait::up_to(self.0).interruptible(&mut check))
        });
        match (result, raised) {
            (Ok(value), _) => Ok(value),
            (Err(Error::Interrupted { .. }), Some(exception)) => Err(exception),
            (Err(error), _) => Err(to_python(py, error)),
        }
    }

    /// Runs `call` with the interpreter held; only when it would have to wait, again without.
    #[inline]
    pub fn wait_if_needed<T: Send>(
        self,
        py: Python<'_>,
        mut call: impl FnMut(&mut Wait<'_>) -> Result<T> + Send,
    ) -> PyResult<T> {
        match call(&mut Wait::never()) {
            Ok(value) => Ok(value),
            Err(Error::WouldBlock { .. }) => self.wait(py, call),
            Err(error) => Err(to_python(py, error)),
        }
    }
}
