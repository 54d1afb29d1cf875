//! `Puller` and `Job`, seen from Python.
#![allow(unsafe_code)]

use crate::ending;
use crate::errors::to_python;
use crate::message::{Manner, Message, PublisherInfo};
use crate::publisher::{non_negative, positive, state};
use crate::receipt::note_caller;
use crate::subscriber::stats_dict;
use crate::waiting::{Attempt, Patience, Timeout};
use byref::{Error, Readiness};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyTuple};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::raw::c_int;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

#[doc = doc!("Puller")]
#[pyclass(frozen, weakref, module = "byref")]
pub struct Puller {
    core: byref::Puller,
    manner: Manner,
    /// Kept open beyond `close()`, so that an event loop never polls another file's descriptor by mistake.
    readiness: OnceLock<Readiness>,
}

/// The end of an iteration is no error.
fn unless_closed<T>(received: byref::Result<T>) -> byref::Result<Option<T>> {
    match received {
        Ok(received) => Ok(Some(received)),
        Err(Error::Closed { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Puller {
    /// For who receives from it: its receiving half, and how it wants its jobs.
    pub fn parts(&self) -> (byref::Subscriber, Manner) {
        (self.core.inbox(), self.manner)
    }

    #[inline]
    fn wrap<'py>(&self, py: Python<'py>, job: byref::Job) -> PyResult<Bound<'py, Job>> {
        note_caller(py, job.message());
        Bound::new(py, Job::new(job, self.manner))
    }

    fn receive<'py>(&self, py: Python<'py>, timeout: impl Patience) -> PyResult<Bound<'py, Job>> {
        let job = timeout.wait_if_needed(py, |wait| self.core.recv_with(wait))?;
        self.wrap(py, job)
    }

    /// The next one; `None`: it was closed.
    fn next<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, Job>>> {
        let next = Timeout::new(None)?.wait_if_needed(py, |wait| unless_closed(self.core.recv_with(wait)))?;
        next.map(|job| self.wrap(py, job)).transpose()
    }
}

#[pymethods]
impl Puller {
    #[new]
    #[pyo3(signature = (queue, prefetch=1, writable=false, allow_pickle=false, name=None, spin=None))]
    fn new(
        py: Python<'_>,
        queue: &str,
        prefetch: i128,
        writable: bool,
        allow_pickle: bool,
        name: Option<String>,
        spin: Option<f64>,
    ) -> PyResult<Self> {
        ending::outlive();
        let mut builder = byref::Puller::builder(queue).prefetch(non_negative("prefetch", prefetch)?);
        if let Some(name) = name {
            builder = builder.name(name);
        }
        if let Some(spin) = spin {
            let text = || PyValueError::new_err(format!("spin must be 0 seconds or more, up to 1e19, not {spin}"));
            builder = builder.spin(Duration::try_from_secs_f64(spin).map_err(|_| text())?);
        }
        let core = builder.build().map_err(|error| to_python(py, error))?;
        Ok(Puller { core, manner: Manner { writable, allow_pickle, is_direct: false }, readiness: OnceLock::new() })
    }

    #[doc = doc!("Puller.recv")]
    #[pyo3(signature = (timeout=None))]
    fn recv<'py>(&self, py: Python<'py>, timeout: Option<f64>) -> PyResult<Bound<'py, Job>> {
        self.receive(py, Timeout::new(timeout)?)
    }

    #[doc = doc!("Puller.recv_async")]
    #[pyo3(signature = (timeout=None))]
    fn recv_async<'py>(slf: &Bound<'py, Self>, timeout: Option<f64>) -> PyResult<Bound<'py, PyAny>> {
        ending::outlive();
        static RECV: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let py = slf.py();
        Timeout::new(timeout)?;
        let recv = RECV.get_or_try_init(py, || py.import("byref._aio")?.getattr("recv").map(Bound::unbind))?;
        recv.bind(py).call1((slf, timeout))
    }

    /// For `recv_async`: the last attempt, after a wait of so many seconds.
    fn _recv_at_last<'py>(&self, py: Python<'py>, waited: f64) -> PyResult<Bound<'py, Job>> {
        self.receive(py, Attempt::last(waited))
    }

    #[doc = doc!("Puller.try_recv")]
    fn try_recv<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, Job>>> {
        let job = self.core.try_recv().map_err(|error| to_python(py, error))?;
        job.map(|job| self.wrap(py, job)).transpose()
    }

    fn __iter__(slf: Bound<'_, Self>) -> PyResult<Bound<'_, Jobs>> {
        ending::outlive();
        let py = slf.py();
        Jobs::new(py, slf.clone().unbind(), is_loop(py)?)
    }

    fn __aiter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        ending::outlive();
        slf.py().import("byref._aio")?.getattr("Jobs")?.call1((slf, is_loop(slf.py())?))
    }

    /// For `async for`: what answers the jobs of that loop.
    fn _loop<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, Jobs>> {
        Jobs::new(slf.py(), slf.clone().unbind(), true)
    }

    #[doc = doc!("Puller.fileno")]
    fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        if self.readiness.get().is_none() {
            let readiness = self.core.inbox().readiness().map_err(|error| to_python(py, error))?;
            let _ = self.readiness.set(readiness);
        }
        Ok(self.readiness.get().expect("set above").as_fd().as_raw_fd())
    }

    #[doc = doc!("Puller.wait_for_pushers")]
    #[pyo3(signature = (n=1, timeout=None))]
    fn wait_for_pushers(&self, py: Python<'_>, n: usize, timeout: Option<f64>) -> PyResult<()> {
        Timeout::new(timeout)?.wait(py, |wait| self.core.wait_for_pushers_with(n, wait))
    }

    #[doc = doc!("Puller.pushers")]
    #[getter]
    fn pushers(&self, py: Python<'_>) -> PyResult<Vec<PublisherInfo>> {
        ending::outlive();
        let found = self.core.pushers().map_err(|error| to_python(py, error))?;
        Ok(found.into_iter().map(PublisherInfo).collect())
    }

    #[doc = doc!("Puller.unanswered")]
    #[getter]
    fn unanswered(&self) -> u64 {
        self.core.unanswered()
    }

    #[doc = doc!("Puller.queue")]
    #[getter]
    fn queue(&self) -> &str {
        self.core.queue()
    }

    #[doc = doc!("Puller.stats")]
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        stats_dict(py, &self.core.stats().map_err(|error| to_python(py, error))?)
    }

    #[doc = doc!("Puller.close")]
    fn close(slf: &Bound<'_, Self>) -> PyResult<()> {
        let this = slf.get();
        this.core.close();
        if this.readiness.get().is_some() {
            ending::outlive();
            slf.py().import("byref._aio")?.getattr("closed")?.call1((slf,))?;
        }
        Ok(())
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(slf: &Bound<'_, Self>, _exception: &Bound<'_, PyTuple>) -> PyResult<()> {
        Self::close(slf)
    }

    fn __repr__(&self) -> String {
        format!("<byref.Puller of {:?}{}>", self.core.queue(), state(self.core.is_closed()))
    }
}

#[doc = doc!("Job")]
#[pyclass(frozen, weakref, module = "byref")]
pub struct Job {
    core: Arc<byref::Job>,
    manner: Manner,
    /// Made when somebody wants more than to answer.
    message: PyOnceLock<Py<Message>>,
}

impl Job {
    pub fn new(job: byref::Job, manner: Manner) -> Self {
        Job { core: Arc::new(job), manner, message: PyOnceLock::new() }
    }

    fn message<'py>(&self, py: Python<'py>) -> PyResult<&Bound<'py, Message>> {
        let make = || Py::new(py, Message::new(self.core.message().clone(), self.manner));
        Ok(self.message.get_or_try_init(py, make)?.bind(py))
    }

    /// For an end without a word of the user's: it is done, or it has failed.
    pub fn settle(&self, is_done: bool) {
        settle(&self.core, is_done);
    }
}

/// In a forked child it is the parent's to answer; another thread may have answered just now.
fn settle(job: &byref::Job, is_done: bool) {
    if !job.is_answered() {
        let _ = if is_done { job.done() } else { job.fail() };
    }
}

#[pymethods]
impl Job {
    #[doc = doc!("Job.done")]
    fn done(&self, py: Python<'_>) -> PyResult<()> {
        self.core.done().map_err(|error| to_python(py, error))
    }

    #[doc = doc!("Job.retry")]
    #[pyo3(signature = (delay=0.0))]
    fn retry(&self, py: Python<'_>, delay: f64) -> PyResult<()> {
        let delay = match delay {
            0.0 => Duration::ZERO,
            delay => positive("delay", delay)?,
        };
        self.core.retry(delay).map_err(|error| to_python(py, error))
    }

    #[doc = doc!("Job.reject")]
    #[pyo3(signature = (reason=""))]
    fn reject(&self, py: Python<'_>, reason: &str) -> PyResult<()> {
        self.core.reject(reason).map_err(|error| to_python(py, error))
    }

    #[doc = doc!("Job.attempt")]
    #[getter]
    fn attempt(&self) -> u32 {
        self.core.attempt()
    }

    #[doc = doc!("Job.number")]
    #[getter]
    fn number(&self) -> u64 {
        self.core.number()
    }

    #[doc = doc!("Job.answered")]
    #[getter]
    fn answered(&self) -> bool {
        self.core.is_answered()
    }

    #[doc = doc!("Job.message")]
    #[getter(message)]
    fn its_message<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, Message>> {
        self.message(py).cloned()
    }

    #[doc = doc!("Job.value")]
    #[getter]
    fn value<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.message(py)?.getattr("value")
    }

    #[doc = doc!("Job.headers")]
    #[getter]
    fn headers<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.message(py)?.getattr("headers")
    }

    #[doc = doc!("Job.timestamp_ns")]
    #[getter]
    fn timestamp_ns(&self) -> u64 {
        self.core.message().timestamp_ns()
    }

    #[doc = doc!("Job.nbytes")]
    #[getter]
    fn nbytes(&self) -> usize {
        self.core.len()
    }

    #[doc = doc!("Job.pusher")]
    #[getter]
    fn pusher(&self) -> PublisherInfo {
        PublisherInfo(Arc::clone(self.core.message().publisher()))
    }

    /// For a coroutine that worked on it, and has ended, or raised.
    fn _settle(&self, is_done: bool) {
        self.settle(is_done);
    }

    /// Whatever else a message has (`writable()`, `shape`, `__arrow_c_array__`, ...).
    fn __getattr__<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
        self.message(py)?.getattr(name)
    }

    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        self.message(py)?.len()
    }

    /// Always true, also for an empty payload.
    fn __bool__(&self) -> bool {
        true
    }

    fn __bytes__<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        byref::count_copied(byref::Cause::Asked, self.core.len());
        PyBytes::new(py, &self.core)
    }

    /// # Safety
    ///
    /// Called by the interpreter with a valid `view`.
    unsafe fn __getbuffer__(&self, py: Python<'_>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let message = self.message(py)?.as_ptr();
        // SAFETY: the message lives as long as this, and the view is the interpreter's; the message becomes the exporter, which
        // is told of the view's end.
        match unsafe { ffi::PyObject_GetBuffer(message, view, flags) } {
            0 => Ok(()),
            _ => Err(PyErr::fetch(py)),
        }
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(PyTypeError::new_err(
            "a job is a lease of this process and cannot be pickled; send job.value or bytes(job)",
        ))
    }

    fn __repr__(&self) -> String {
        let (number, attempt, len) = (self.core.number(), self.core.attempt(), self.core.len());
        format!("<byref.Job {number} of {:?}, attempt {attempt}, {len} bytes>", self.core.message().topic())
    }
}

/// Whether a `for` statement is about to begin where Python code has called this.
fn is_loop(py: Python<'_>) -> PyResult<bool> {
    static BEGINS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let begins = BEGINS.get_or_try_init(py, || py.import("byref._loops")?.getattr("begins").map(Bound::unbind))?;
    begins.bind(py).call0()?.extract()
}

/// The Python frame that runs now, as a number: 0 if none does.
fn running_frame(_py: Python<'_>) -> usize {
    // SAFETY: this thread is attached to the interpreter.
    unsafe { ffi::PyEval_GetFrame() as usize }
}

/// The same, of who called that one.
fn calling_frame(py: Python<'_>) -> PyResult<usize> {
    let frame = py.import("sys")?.getattr("_getframe")?.call1((1,))?;
    Ok(frame.as_ptr() as usize)
}

/// What a loop works on, and the frame of that loop. The job of a body that has ended is done; if an exception ended it, or its frame
/// ended without it, that job has failed.
#[derive(Default)]
struct Work(Mutex<Option<(Arc<byref::Job>, usize)>>);

impl Work {
    /// The body that worked on the last one has ended without an exception; it goes on with this one.
    fn go_on_with(&self, next: Option<(&Job, usize)>) {
        let next = next.map(|(job, frame)| (Arc::clone(&job.core), frame));
        let last = std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), next);
        if let Some((last, _)) = last {
            settle(&last, true);
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let last = self.0.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((last, frame)) = last.filter(|(last, _)| !last.is_answered()) {
            // A frame that goes on gives the iterator of its loop back itself; one that an exception ends does so while that is set. A
            // generator that is given up may end without any.
            let has_ended = |py: Python<'_>| !PyErr::occurred(py) && running_frame(py) == frame;
            settle(&last, Python::try_attach(has_ended).unwrap_or(false));
        }
    }
}

#[doc = doc!("_Jobs")]
#[pyclass(frozen, name = "_Jobs", module = "byref")]
pub struct Jobs {
    puller: Py<Puller>,
    /// Of an iterator that a `for` statement has for itself: nobody else takes from that. Otherwise who takes a job answers it.
    work: Option<Work>,
}

impl Jobs {
    fn new(py: Python<'_>, puller: Py<Puller>, is_loop: bool) -> PyResult<Bound<'_, Self>> {
        Bound::new(py, Jobs { puller, work: is_loop.then(Work::default) })
    }
}

#[pymethods]
impl Jobs {
    /// A loop over one that others have, too, gets its own.
    fn __iter__(slf: Bound<'_, Self>) -> PyResult<Bound<'_, Self>> {
        ending::outlive();
        let py = slf.py();
        let this = slf.get();
        if this.work.is_none() && is_loop(py)? {
            return Jobs::new(py, this.puller.clone_ref(py), true);
        }
        Ok(slf)
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, Job>>> {
        let Some(work) = &self.work else { return self.puller.get().next(py) };
        work.go_on_with(None);
        let next = self.puller.get().next(py)?;
        work.go_on_with(next.as_ref().map(|job| (job.get(), running_frame(py))));
        Ok(next)
    }

    /// For `async for`: the body that worked on the last job has ended; the caller's caller goes on with this one.
    #[pyo3(signature = (job=None))]
    fn _go_on_with(&self, py: Python<'_>, job: Option<&Bound<'_, Job>>) -> PyResult<()> {
        if let Some(work) = &self.work {
            let frame = if job.is_some() { calling_frame(py)? } else { 0 };
            work.go_on_with(job.map(|job| (job.get(), frame)));
        }
        Ok(())
    }
}
