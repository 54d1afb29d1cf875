//! Calls that may wait: first an attempt with the interpreter held, then the wait without it.

use crate::ending;
use crate::errors::{to_python, would_block};
use byref::{Error, Result, Wait};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
#[cfg(Py_GIL_DISABLED)]
use pyo3::sync::PyOnceLock;
use std::cell::Cell;
use std::time::{Duration, Instant};

/// Whether this is the thread in which Python runs signal handlers. In a forked child that is the thread that forked.
fn is_main_thread(py: Python<'_>) -> PyResult<bool> {
    thread_local! {
        /// In which process it was found out, and what.
        static IS_MAIN: Cell<(u64, bool)> = const { Cell::new((0, false)) };
    }
    let process = byref::fork_number();
    let (known_in, is_main) = IS_MAIN.get();
    if known_in == process {
        return Ok(is_main);
    }
    let threading = py.import("threading")?;
    // Green threads have identities of their own, so the system is asked first: a process is called after its main thread.
    let native: u32 = threading.call_method0("get_native_id")?.extract()?;
    let is_main = native == std::process::id() || {
        let main = threading.call_method0("main_thread")?.getattr("ident")?;
        main.eq(threading.call_method0("get_ident")?)?
    };
    IS_MAIN.set((process, is_main));
    Ok(is_main)
}

/// How long a call may wait.
pub trait Patience: Copy {
    /// Runs `call` without the interpreter.
    fn wait<T: Send>(self, py: Python<'_>, call: impl FnOnce(&mut Wait<'_>) -> Result<T> + Send) -> PyResult<T>;

    /// Runs `call` with the interpreter held; only when it would have to wait, again without.
    fn wait_if_needed<T: Send>(
        self,
        py: Python<'_>,
        call: impl FnMut(&mut Wait<'_>) -> Result<T> + Send,
    ) -> PyResult<T>;
}

/// How long what others drop may stay because its own thread waits, on a free-threaded interpreter.
const SETTLE_EVERY: Duration = Duration::from_millis(10);

/// Lets the interpreter do what this thread has to do from time to time: signal handlers, and whatever else it looks for
/// when Python code begins to run.
pub fn let_interpreter_work(py: Python<'_>) -> PyResult<()> {
    py.check_signals()?;
    // The interpreter offers no other way to have this thread settle references that other threads gave back.
    #[cfg(Py_GIL_DISABLED)]
    {
        static NOTHING: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let nothing = || Ok::<_, PyErr>(py.import("byref._pending")?.getattr("nothing")?.unbind());
        NOTHING.get_or_try_init(py, nothing)?.bind(py).call0()?;
    }
    Ok(())
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

    /// Runs `call` without the interpreter, and lets that do what it has put off, whenever the call is about to sleep, and now
    /// and then. In the main thread these are signal handlers; what they raise ends the call.
    ///
    /// On an ordinary interpreter other threads have nothing of the kind, and need not attach for it. On a free-threaded one
    /// each thread has to settle the references to its own objects that others gave back, or these objects stay for as
    /// long as it waits: messages, and so the memory of their publisher.
    pub fn wait<T: Send>(self, py: Python<'_>, call: impl FnOnce(&mut Wait<'_>) -> Result<T> + Send) -> PyResult<T> {
        ending::outlive(); // Whether it is the main thread, Python code tells.
        if !is_main_thread(py)? && cfg!(not(Py_GIL_DISABLED)) {
            return py.detach(|| call(&mut Wait::up_to(self.0))).map_err(|error| to_python(py, error));
        }
        let mut raised = None;
        let result = py.detach(|| {
            let mut check = || {
                // An interpreter that shuts down has no work for a thread, and would keep one that attaches.
                raised = Python::try_attach(|py| let_interpreter_work(py).err()).flatten();
                raised.is_some()
            };
            let mut wait = Wait::up_to(self.0).interruptible(&mut check);
            if cfg!(Py_GIL_DISABLED) {
                wait = wait.at_least_every(SETTLE_EVERY);
            }
            call(&mut wait)
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

impl Patience for Timeout {
    #[inline]
    fn wait<T: Send>(self, py: Python<'_>, call: impl FnOnce(&mut Wait<'_>) -> Result<T> + Send) -> PyResult<T> {
        Timeout::wait(self, py, call)
    }

    #[inline]
    fn wait_if_needed<T: Send>(
        self,
        py: Python<'_>,
        call: impl FnMut(&mut Wait<'_>) -> Result<T> + Send,
    ) -> PyResult<T> {
        Timeout::wait_if_needed(self, py, call)
    }
}

/// What a coroutine has, which waits between its calls.
#[derive(Clone, Copy)]
pub enum Attempt {
    /// It waits since then. A call that would have to wait fails with [`would_block`].
    Since(Instant),
    /// It has waited so long: the last one.
    Last(Duration),
}

impl Attempt {
    /// The last one, after so many seconds.
    pub fn last(seconds: f64) -> Self {
        Attempt::Last(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
    }

    fn permission<'a>(self) -> Wait<'a> {
        match self {
            Attempt::Since(began) => Wait::polling(began),
            Attempt::Last(waited) => Wait::over(waited),
        }
    }

    fn outcome<T>(self, py: Python<'_>, outcome: Result<T>) -> PyResult<T> {
        outcome.map_err(|error| match (self, error) {
            (Attempt::Since(_), Error::WouldBlock { .. }) => would_block(py),
            (_, error) => to_python(py, error),
        })
    }
}

impl Patience for Attempt {
    fn wait<T: Send>(self, py: Python<'_>, call: impl FnOnce(&mut Wait<'_>) -> Result<T> + Send) -> PyResult<T> {
        ending::outlive();
        let outcome = py.detach(|| call(&mut self.permission()));
        self.outcome(py, outcome)
    }

    fn wait_if_needed<T: Send>(
        self,
        py: Python<'_>,
        mut call: impl FnMut(&mut Wait<'_>) -> Result<T> + Send,
    ) -> PyResult<T> {
        let outcome = call(&mut self.permission());
        self.outcome(py, outcome)
    }
}
