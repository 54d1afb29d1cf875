//! Calls that may wait: first an attempt with the interpreter held, then the wait without it.

use crate::ending;
use crate::errors::{to_python, would_block};
use byref::{Error, Result, Wait};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::cell::Cell;
use std::time::{Duration, Instant};

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

/// A checked `timeout` argument, or what a coroutine that looks again and again has instead.
#[derive(Clone, Copy)]
pub enum Timeout {
    /// `None` means without limit.
    UpTo(Option<Duration>),
    /// An attempt of a coroutine that has waited since then. When it fails for want of room it is a [`would_block`] error.
    Polling(Instant),
    /// Its last attempt: so long it has waited.
    Over(Duration),
}

impl Timeout {
    /// From seconds; `None` and infinity mean without limit.
    pub fn new(seconds: Option<f64>) -> PyResult<Self> {
        match seconds {
            None => Ok(Timeout::UpTo(None)),
            Some(seconds) if seconds.is_nan() || seconds < 0.0 => {
                Err(PyValueError::new_err(format!("timeout must be None or at least 0 seconds, not {seconds}")))
            }
            Some(seconds) => Ok(Timeout::UpTo(Duration::try_from_secs_f64(seconds).ok())),
        }
    }

    /// So long, or without limit.
    pub fn of(duration: Option<Duration>) -> Self {
        Timeout::UpTo(duration)
    }

    /// The time; `None` means without limit.
    pub fn duration(self) -> Option<Duration> {
        match self {
            Timeout::UpTo(duration) => duration,
            Timeout::Polling(_) | Timeout::Over(_) => Some(Duration::ZERO),
        }
    }

    fn permission<'a>(self) -> Wait<'a> {
        match self {
            Timeout::UpTo(duration) => Wait::up_to(duration),
            Timeout::Polling(began) => Wait::polling(began),
            Timeout::Over(duration) => Wait::over(duration),
        }
    }

    /// Runs `call` without the interpreter. In the main thread, signal handlers run whenever it is about to sleep and after
    /// each signal; what they raise ends the call. Other threads have none, and must not attach for them: a daemon thread
    /// that attaches when the interpreter is gone crashes.
    pub fn wait<T: Send>(self, py: Python<'_>, call: impl FnOnce(&mut Wait<'_>) -> Result<T> + Send) -> PyResult<T> {
        let is_polling = matches!(self, Timeout::Polling(_));
        if is_polling || !is_main_thread(py)? {
            ending::outlive();
            return py.detach(|| call(&mut self.permission())).map_err(|error| self.refused(py, error));
        }
        let mut raised = None;
        let result = py.detach(|| {
            let mut check = || {
                raised = Python::attach(|py| py.check_signals().err());
                raised.is_some()
            };
            call(&mut self.permission().interruptible(&mut check))
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
        if let Timeout::Polling(began) = self {
            return call(&mut Wait::polling(began)).map_err(|error| self.refused(py, error));
        }
        match call(&mut Wait::never()) {
            Ok(value) => Ok(value),
            Err(Error::WouldBlock { .. }) => self.wait(py, call),
            Err(error) => Err(to_python(py, error)),
        }
    }

    fn refused(self, py: Python<'_>, error: Error) -> PyErr {
        match (self, error) {
            (Timeout::Polling(_), Error::WouldBlock { .. }) => would_block(py),
            (_, error) => to_python(py, error),
        }
    }
}
