//! `EventQueue`: the class. [`serving`](crate::serving) does the work.

use crate::called::{label_of, resolve};
use crate::ending;
use crate::errors::{timed_out, to_python};
use crate::mailbox::Mailbox;
use crate::message::Manner;
use crate::publisher::non_negative;
use crate::puller::Puller;
use crate::receiver::{Receiver, Slot, Subscription, Wants};
use crate::refusals::class_name;
use crate::report::queue_dict;
use crate::server::Server;
use crate::serving::{LOOK_EVERY, Limits, OnError, Pause, Runner, Running, Shared, State, after, lock};
use crate::subscriber;
use crate::timer::{Timer, Timers};
use crate::waiting::{Timeout, let_interpreter_work};
use byref::{Ended, Monitor, Readiness, Selector, Thresholds};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyString, PyTuple};
use pyo3::{PyTraverseError, PyVisit};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

/// An optional time that has to be positive.
fn positive(name: &str, seconds: Option<f64>) -> PyResult<Option<Duration>> {
    let Some(seconds) = seconds else { return Ok(None) };
    if seconds.is_nan() || seconds <= 0.0 {
        return Err(PyValueError::new_err(format!("{name} must be None or more than 0 seconds, not {seconds}")));
    }
    Ok(Duration::try_from_secs_f64(seconds).ok())
}

#[doc = doc!("EventQueue")]
#[pyclass(frozen, weakref, module = "byref")]
pub struct EventQueue {
    shared: Arc<Shared>,
    /// Kept open beyond `close()`, so that an event loop never polls another file's descriptor by mistake.
    readiness: OnceLock<Readiness>,
}

impl EventQueue {
    /// Runs the queue, whose right to run the caller has, until it is stopped.
    fn run_until_stopped(
        &self,
        py: Python<'_>,
        timeout: Option<Duration>,
        stop_event: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let shared = &*self.shared;
        let mut guard = lock(&shared.selector);
        let selector = &mut *guard;
        selector.refresh().map_err(|problem| to_python(py, problem))?;
        let mut limits = Limits::NONE;
        let (mut idle_since, mut looked) = (Instant::now(), None::<Instant>);
        loop {
            let before = limits.handled;
            let pause = shared.serve(py, selector, &mut limits, false)?;
            if limits.handled != before {
                idle_since = Instant::now();
            }
            if let Some(event) = stop_event
                && looked.is_none_or(|looked| looked.elapsed() >= LOOK_EVERY)
            {
                looked = Some(Instant::now());
                if event.call_method0(intern!(py, "is_set"))?.is_truthy()? {
                    return Ok(());
                }
            }
            match pause {
                Pause::Stop => {
                    shared.stopping.store(false, Ordering::Release);
                    return Ok(());
                }
                Pause::Empty => {}
                Pause::Slice | Pause::Enough | Pause::Await(_) => {
                    let_interpreter_work(py)?;
                    py.detach(|| ());
                    continue;
                }
            }
            let left = timeout.map(|timeout| timeout.saturating_sub(idle_since.elapsed()));
            let most = left.into_iter().chain(stop_event.map(|_| LOOK_EVERY)).chain(shared.timers.until_due()).min();
            let ended = Timeout::of(most).wait(py, |wait| selector.wait(wait))?;
            if let (Ended::TimedOut, Some(timeout)) = (ended, timeout)
                && idle_since.elapsed() >= timeout
            {
                let receivers = lock(&shared.slots).open.len();
                let text =
                    format!("no message came for {timeout:?} to the {receivers} receivers of this {}", shared.label());
                return Err(timed_out(py, text));
            }
        }
    }

    fn dispatch_within(&self, py: Python<'_>, timeout: Option<Duration>) -> PyResult<u64> {
        let shared = &*self.shared;
        let mut guard = lock(&shared.selector);
        let selector = &mut *guard;
        selector.refresh().map_err(|problem| to_python(py, problem))?;
        let mut limits = Limits::NONE;
        if timeout == Some(Duration::ZERO) {
            // What waits now; not what comes while that is handled.
            shared.admit(py, selector, false)?;
            // Events are not counted there: they are told also when no message waits.
            limits.most = selector.backlog().max(1);
        } else if let Some(timeout) = timeout {
            limits.deadline = after(timeout);
        }
        loop {
            match shared.serve(py, selector, &mut limits, false)? {
                Pause::Stop => {
                    shared.stopping.store(false, Ordering::Release);
                    break;
                }
                Pause::Slice | Pause::Await(_) => {
                    let_interpreter_work(py)?;
                    py.detach(|| ());
                    continue;
                }
                Pause::Enough => break,
                Pause::Empty => {}
            }
            let left = Duration::from_nanos(limits.deadline.saturating_sub(Monitor::now()));
            let left = timeout.map(|timeout| left.min(timeout));
            if limits.handled > 0 || left == Some(Duration::ZERO) {
                break;
            }
            let left = left.into_iter().chain(shared.timers.until_due()).min();
            Timeout::of(left).wait(py, |wait| selector.wait(wait))?;
        }
        // Who polls the descriptor has to hear of what is left, and of what comes from now on.
        if self.readiness.get().is_some() {
            selector.set_alarm(shared.timers.next_due()).map_err(|problem| to_python(py, problem))?;
            if selector.arm() || shared.attention.load(Ordering::Acquire) {
                shared.waker.wake();
            }
        }
        Ok(limits.handled)
    }
}

/// Messages of a batch for a receiver that leaves the number open.
const BATCH: usize = 1000;

/// The `batch` argument: whether, or how many messages at the most.
fn batch_size(batch: &Bound<'_, PyAny>) -> PyResult<Option<usize>> {
    if let Ok(wanted) = batch.extract::<bool>() {
        return Ok(wanted.then_some(BATCH));
    }
    match batch.extract::<usize>() {
        Ok(most) if most > 0 => Ok(Some(most)),
        _ => Err(PyValueError::new_err(format!("batch must be a bool or at least 1 message, not {batch}"))),
    }
}

impl EventQueue {
    /// Has one more receiver called.
    fn add(&self, py: Python<'_>, slot: Arc<Slot>) -> PyResult<Receiver> {
        let shared = &self.shared;
        lock(&shared.slots).add(&slot);
        if shared.closed.load(Ordering::Acquire) {
            shared.detach(&*slot); // Closed meanwhile by another thread, which may not have seen it.
            shared.check_open(py)?;
        }
        shared.call_attention();
        Ok(Receiver { slot, queue: Arc::clone(shared) })
    }
}

#[pymethods]
impl EventQueue {
    #[new]
    #[pyo3(signature = (on_error="raise", name=None, slow_callback=None, backlog=None, max_age=None))]
    fn new(
        py: Python<'_>,
        on_error: &str,
        name: Option<String>,
        slow_callback: Option<f64>,
        backlog: Option<i128>,
        max_age: Option<f64>,
    ) -> PyResult<Self> {
        let on_error = match on_error {
            "raise" => OnError::Raise,
            "log" => OnError::Log,
            "detach" => OnError::Detach,
            _ => {
                let text = format!("on_error must be 'raise', 'log' or 'detach', not {on_error:?}");
                return Err(PyValueError::new_err(text));
            }
        };
        ending::outlive();
        let thresholds = Thresholds {
            slow_callback: positive("slow_callback", slow_callback)?,
            backlog: backlog.map(|backlog| non_negative("backlog", backlog)).transpose()?,
            max_age: positive("max_age", max_age)?,
        };
        let selector = Selector::new().map_err(|problem| to_python(py, problem))?;
        let monitor = Monitor::new(name.clone(), thresholds).map_err(|problem| to_python(py, problem))?;
        let shared = Shared {
            name,
            on_error,
            waker: selector.waker(),
            monitor,
            selector: Mutex::new(selector),
            slots: Mutex::default(),
            timers: Timers::default(),
            state: Mutex::new(State { runner: Runner::Nobody, turn: None, waiting: 0 }),
            changed: Condvar::new(),
            attention: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        };
        Ok(EventQueue { shared: Arc::new(shared), readiness: OnceLock::new() })
    }

    #[doc = doc!("EventQueue.subscribe")]
    #[pyo3(signature = (
        topic, receiver, batch=None, *, policy="block", depth=None, history=0, writable=false, allow_pickle=false,
        name=None, events=false, ack="auto"
    ))]
    #[expect(clippy::too_many_arguments, reason = "Python names them")]
    fn subscribe(
        &self,
        topic: &Bound<'_, PyAny>,
        receiver: &Bound<'_, PyAny>,
        batch: Option<&Bound<'_, PyAny>>,
        policy: &str,
        depth: Option<i128>,
        history: i128,
        writable: bool,
        allow_pickle: bool,
        name: Option<String>,
        events: bool,
        ack: &str,
    ) -> PyResult<Receiver> {
        ending::outlive(); // The callable is looked at, and that may be the caller's code.
        let (py, shared) = (receiver.py(), &self.shared);
        shared.check_open(py)?;
        let callable = resolve(receiver)?;
        let label = name.clone().unwrap_or_else(|| label_of(receiver));
        let batch = batch.map_or(Ok(None), batch_size)?;
        let is_as_made = policy == "block" && depth.is_none() && history == 0 && ack == "auto";
        let is_as_made = is_as_made && !writable && !allow_pickle && !events;
        let (mailbox, subscriber, manner, is_own) = if let Ok(mailbox) = topic.cast::<Mailbox>() {
            if !is_as_made {
                let text = "a mailbox receives as it was made to: policy, depth, history, writable, allow_pickle, events and ack are for topics";
                return Err(PyValueError::new_err(text));
            }
            let (mailbox, subscriber, manner) = mailbox.get().parts();
            (Some(mailbox), subscriber, manner, false)
        } else if let Ok(puller) = topic.cast::<Puller>() {
            if !is_as_made || batch.is_some() {
                let text = "a puller receives as it was made to, one job at a time: batch, policy, depth, history, writable, allow_pickle, events \
                            and ack are for topics";
                return Err(PyValueError::new_err(text));
            }
            let (subscriber, manner) = puller.get().parts();
            (None, subscriber, manner, false)
        } else {
            let Ok(topic) = topic.cast::<PyString>() else {
                let text = format!("topic must be a str, a byref.Mailbox or a byref.Puller, not {}", class_name(topic));
                return Err(PyTypeError::new_err(text));
            };
            let options = subscriber::options(topic.to_str()?, policy, depth, history, name, ack)?.events(events);
            let subscriber = options.build().map_err(|problem| to_python(py, problem))?;
            (None, subscriber, Manner { writable, allow_pickle, is_direct: false }, true)
        };
        let (subscriber, wants) = (Arc::new(subscriber), Wants { manner, batch });
        let account = shared.monitor.account(Some(Arc::clone(&subscriber)), label.clone());
        let subscription = Subscription { subscriber, mailbox, is_own, server: None, wants };
        self.add(py, Arc::new(Slot::new(subscription, account, label, callable)))
    }

    #[doc = doc!("EventQueue.serve")]
    #[pyo3(signature = (
        service, function, *, group="", prefetch=1, max_memory=None, writable=false, allow_pickle=false, name=None
    ))]
    #[expect(clippy::too_many_arguments, reason = "Python names them")]
    fn serve(
        slf: &Bound<'_, Self>,
        py: Python<'_>,
        service: &str,
        function: &Bound<'_, PyAny>,
        group: &str,
        prefetch: i128,
        max_memory: Option<i128>,
        writable: bool,
        allow_pickle: bool,
        name: Option<String>,
    ) -> PyResult<Receiver> {
        ending::outlive(); // As below.
        let this = slf.get();
        let shared = &this.shared;
        shared.check_open(py)?;
        let label = name.unwrap_or_else(|| label_of(function));
        resolve(function)?; // It is callable.
        let answering = py.import("byref._serve")?.getattr("answering")?.call1((function, slf))?;
        let callable = resolve(&answering)?;
        let manner = Manner { writable, allow_pickle, is_direct: true };
        let core = Server::make(py, service, group, prefetch, max_memory, manner)?.into_core();
        let (subscriber, wants) = (Arc::new(core.inbox()), Wants { manner, batch: None });
        let account = shared.monitor.account(Some(Arc::clone(&subscriber)), label.clone());
        let subscription = Subscription { subscriber, mailbox: None, is_own: false, server: Some(core), wants };
        this.add(py, Arc::new(Slot::new(subscription, account, label, callable)))
    }

    #[doc = doc!("EventQueue.call_later")]
    #[pyo3(signature = (seconds, function, *args, name=None))]
    fn call_later(
        &self,
        seconds: f64,
        function: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
        name: Option<String>,
    ) -> PyResult<Timer> {
        ending::outlive(); // The callable is looked at, and that may be the caller's code.
        let Ok(wait) = Duration::try_from_secs_f64(seconds) else {
            return Err(PyValueError::new_err(format!("seconds must be a number of 0 or more, not {seconds}")));
        };
        Timer::begin(&self.shared, function, args, name, wait, None)
    }

    #[doc = doc!("EventQueue.call_every")]
    #[pyo3(signature = (seconds, function, *args, name=None))]
    fn call_every(
        &self,
        seconds: f64,
        function: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
        name: Option<String>,
    ) -> PyResult<Timer> {
        ending::outlive(); // As above.
        let period = Duration::try_from_secs_f64(seconds).ok().filter(|period| !period.is_zero());
        let Some(period) = period else {
            return Err(PyValueError::new_err(format!("seconds must be a number of more than 0, not {seconds}")));
        };
        Timer::begin(&self.shared, function, args, name, period, Some(period))
    }

    #[doc = doc!("EventQueue.run")]
    #[pyo3(signature = (timeout=None))]
    fn run(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<()> {
        let timeout = Timeout::new(timeout)?.duration();
        let _running = self.shared.enter(py)?;
        self.run_until_stopped(py, timeout, None)
    }

    #[doc = doc!("EventQueue.start")]
    #[pyo3(signature = (daemon=false, on_exit=None, stop_event=None))]
    fn start<'py>(
        slf: &Bound<'py, Self>,
        daemon: bool,
        on_exit: Option<Bound<'py, PyAny>>,
        stop_event: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (py, shared) = (slf.py(), &slf.get().shared);
        shared.claim(py, true)?;
        let started = py
            .import("byref._queue")
            .and_then(|module| module.getattr("start")?.call1((slf, daemon, on_exit, stop_event)));
        if started.is_err() {
            shared.leave();
        }
        started
    }

    /// For the thread that `start` made: takes the right to run over.
    fn _take_over(&self) {
        ending::outlive();
        lock(&self.shared.state).runner = Runner::Thread(thread::current().id());
    }

    /// For the thread that `start` made.
    #[pyo3(signature = (stop_event))]
    fn _run_started(&self, py: Python<'_>, stop_event: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        self._take_over();
        let _running = Running(&self.shared);
        self.run_until_stopped(py, None, stop_event)
    }

    #[doc = doc!("EventQueue.stop")]
    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        self.shared.check_process(py)?;
        self.shared.stop();
        Ok(())
    }

    #[doc = doc!("EventQueue.dispatch")]
    #[pyo3(signature = (timeout=Some(0.0)), text_signature = "($self, timeout=0.0)")]
    fn dispatch(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<u64> {
        let timeout = Timeout::new(timeout)?.duration();
        let _running = self.shared.enter(py)?;
        self.dispatch_within(py, timeout)
    }

    #[doc = doc!("EventQueue.fileno")]
    fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        if self.readiness.get().is_none() {
            self.shared.check_open(py)?;
            let _ = self.readiness.set(self.shared.waker.readiness());
            self.shared.waker.wake(); // The first dispatch arms it.
        }
        self.shared.check_process(py)?;
        Ok(self.readiness.get().expect("set above").as_fd().as_raw_fd())
    }

    #[doc = doc!("EventQueue.run_async")]
    fn run_async<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        ending::outlive();
        slf.get().shared.check_open(slf.py())?;
        slf.py().import("byref._queue")?.getattr("run_async")?.call1((slf,))
    }

    /// For `run_async`: takes the right to run.
    fn _enter(&self, py: Python<'_>) -> PyResult<()> {
        self.shared.claim(py, false)
    }

    /// For event loops: True: call again, False: wait for the descriptor, None: the queue was stopped. With `awaits`, also a
    /// coroutine to await (then comes `_awaited`).
    #[pyo3(signature = (awaits))]
    fn _step(&self, py: Python<'_>, awaits: bool) -> PyResult<Option<Py<PyAny>>> {
        ending::outlive();
        let shared = &*self.shared;
        let mut guard = lock(&shared.selector);
        let selector = &mut *guard;
        selector.refresh().map_err(|problem| to_python(py, problem))?;
        let again = match shared.serve(py, selector, &mut { Limits::NONE }, awaits)? {
            Pause::Stop => {
                shared.stopping.store(false, Ordering::Release);
                return Ok(None);
            }
            Pause::Await(coroutine) => return Ok(Some(coroutine)),
            Pause::Empty => {
                selector.set_alarm(shared.timers.next_due()).map_err(|problem| to_python(py, problem))?;
                selector.arm()
            }
            Pause::Slice | Pause::Enough => true,
        };
        Ok(Some(PyBool::new(py, again).to_owned().into_any().unbind()))
    }

    /// For `run_async`: the coroutine ended, perhaps with an exception.
    #[pyo3(signature = (raised))]
    fn _awaited(&self, py: Python<'_>, raised: Option<Bound<'_, PyAny>>) -> PyResult<()> {
        let shared = &*self.shared;
        let Some(called) = lock(&shared.state).turn.clone() else { return Ok(()) };
        shared.monitor.done(called.account(), Monitor::now());
        shared.end_turn();
        raised.map_or(Ok(()), |raised| shared.handle_exception(&*called, PyErr::from_value(raised), py))
    }

    /// For `run_async`: gives the right to run back.
    fn _leave(&self) {
        self.shared.leave();
    }

    #[doc = doc!("EventQueue.name")]
    #[getter]
    fn name(&self) -> Option<&str> {
        self.shared.name.as_deref()
    }

    #[doc = doc!("EventQueue.stats")]
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        self.shared.check_process(py)?;
        queue_dict(py, &self.shared.monitor.report())
    }

    #[doc = doc!("EventQueue.close")]
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let shared = &*self.shared;
        if !shared.waker.is_here() {
            return Ok(());
        }
        shared.detach_all();
        let here = Runner::Thread(thread::current().id());
        shared.wait_until(py, |state| state.runner == here || state.runner == Runner::Nobody)?;
        if let Ok(mut selector) = shared.selector.try_lock() {
            selector.retain(|_| false);
        }
        Ok(())
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.close(py)
    }

    fn __repr__(&self) -> String {
        let closed = if self.shared.closed.load(Ordering::Acquire) { ", closed" } else { "" };
        let name = self.shared.name.as_ref().map(|name| format!(" {name:?}")).unwrap_or_default();
        format!("<byref.EventQueue{name}{closed}>")
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // Whoever has the lock is at it just now: then everything counts as in use.
        let Ok(slots) = self.shared.slots.try_lock() else { return Ok(()) };
        slots.open.iter().try_for_each(|slot| slot.traverse(&visit))?;
        self.shared.timers.traverse(&visit)
    }

    fn __clear__(&self) {
        self.shared.detach_all();
    }
}

impl Drop for EventQueue {
    fn drop(&mut self) {
        if self.shared.waker.is_here() {
            self.shared.detach_all();
        }
    }
}
