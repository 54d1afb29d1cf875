//! `EventQueue`: calls receivers as messages come.
//!
//! One thread at a time *runs* a queue. With the interpreter held it takes turns among the receivers that have something,
//! until nothing is left or [`SLICE`] is over; then it lets go of the interpreter, and waits without it. What others do
//! meanwhile (subscribe, stop, close) they leave in [`Shared`], set `attention`, and ring.
//!
//! The queue owns the callables: a [`Slot`] is known to the queue, to its `Receiver`, and to the selector, but the queue
//! alone shows the callable to the garbage collector, and takes it away when it dies.

use crate::errors::{closed, error, forked, timed_out, to_python};
use crate::message::Message;
use crate::publisher::non_negative;
use crate::receiver::{Receiver, Slot, label_of, resolve};
use crate::report::queue_dict;
use crate::subscriber;
use crate::waiting::Timeout;
use byref::{Ended, Error, Monitor, Readiness, Selector, Thresholds, Turn, Waker};
use pyo3::exceptions::{PyException, PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyDict, PyTuple, PyType};
use pyo3::{PyTraverseError, PyVisit};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

/// A running queue lets other threads have the interpreter, and signals their handlers, after this time (the interpreter's
/// own switch interval): a callable written in C gives no other occasion.
const SLICE: Duration = Duration::from_millis(5);
/// In an event loop the other tasks have their turn after this time.
const ASYNC_SLICE: Duration = Duration::from_millis(1);
/// How often a user's `stop_event`, and the signals of who waits for a callback's end, are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What becomes of an exception in a callback.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OnError {
    Raise,
    Log,
    Detach,
}

/// Who runs a queue.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Runner {
    Nobody,
    /// A thread that was started for it and has not come to it.
    Starting,
    Thread(ThreadId),
}

struct State {
    runner: Runner,
    /// The receiver whose turn it is: its callable may be running.
    turn: Option<Arc<Slot>>,
}

#[derive(Default)]
struct Slots {
    open: Vec<Arc<Slot>>,
    /// Those of them that the selector does not know yet.
    new: Vec<Arc<Slot>>,
}

/// What a queue shares with its receivers. No lock is held while Python code runs, but that of the selector.
pub struct Shared {
    name: Option<String>,
    on_error: OnError,
    waker: Waker,
    monitor: Arc<Monitor>,
    /// Held by whoever runs the queue.
    selector: Mutex<Selector<Arc<Slot>>>,
    slots: Mutex<Slots>,
    state: Mutex<State>,
    /// A turn or a run is over.
    changed: Condvar,
    /// Whoever runs the queue is to end its turn and look at the rest of this.
    attention: AtomicBool,
    stopping: AtomicBool,
    closed: AtomicBool,
}

/// How much is to be done at once.
struct Limits {
    handled: u64,
    most: u64,
    /// By [`Monitor::now`]: no callback begins later.
    deadline: u64,
}

impl Limits {
    const NONE: Limits = Limits { handled: 0, most: u64::MAX, deadline: u64::MAX };
}

/// Why no more callbacks are made for now.
enum Pause {
    /// Nothing is left.
    Empty,
    /// Others may have the interpreter.
    Slice,
    /// The limits are reached.
    Enough,
    /// The queue was stopped or closed.
    Stop,
    /// This coroutine has to end first.
    Await(Py<PyAny>),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn after(duration: Duration) -> u64 {
    Monitor::now().saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
}

/// The right to run a queue, given back on drop.
struct Running<'a>(&'a Shared);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Shared {
    fn label(&self) -> String {
        self.name.as_ref().map_or_else(|| "event queue".to_owned(), |name| format!("event queue '{name}'"))
    }

    /// Only the process that made a queue can use it: elsewhere its locks may be taken for ever.
    fn check_process(&self, py: Python<'_>) -> PyResult<()> {
        if self.waker.is_here() {
            return Ok(());
        }
        Err(forked(
            py,
            format!("this {} belongs to the process that forked this one; create a new one here", self.label()),
        ))
    }

    fn check_open(&self, py: Python<'_>) -> PyResult<()> {
        self.check_process(py)?;
        if self.closed.load(Ordering::Acquire) {
            return Err(closed(py, format!("this {} is closed; create a new one", self.label())));
        }
        Ok(())
    }

    /// Becomes the one who runs the queue; a second one is refused. `starting`: for a thread that will come.
    fn claim(&self, py: Python<'_>, starting: bool) -> PyResult<()> {
        self.check_open(py)?;
        let mut state = lock(&self.state);
        if state.runner != Runner::Nobody {
            drop(state);
            let text = "runs already, in another thread or further up in this one; stop it there first";
            return Err(error(py, format!("this {} {text}", self.label())));
        }
        state.runner = if starting { Runner::Starting } else { Runner::Thread(thread::current().id()) };
        self.attention.store(true, Ordering::Release); // What came before is to be looked at.
        Ok(())
    }

    fn enter(&self, py: Python<'_>) -> PyResult<Running<'_>> {
        self.claim(py, false).map(|()| Running(self))
    }

    /// Gives the right back.
    fn leave(&self) {
        if self.closed.load(Ordering::Acquire) {
            lock(&self.selector).retain(|_| false);
        }
        lock(&self.state).runner = Runner::Nobody;
        self.changed.notify_all();
    }

    /// Has whoever runs the queue look up.
    fn call_attention(&self) {
        self.attention.store(true, Ordering::Release);
        self.waker.wake();
    }

    fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.call_attention();
    }

    fn must_stop(&self) -> bool {
        self.stopping.load(Ordering::Acquire) || self.closed.load(Ordering::Acquire)
    }

    /// Closes a receiver. From another thread than the one that calls it, waits until it is not being called.
    pub fn close_receiver(&self, py: Python<'_>, slot: &Arc<Slot>) -> PyResult<()> {
        if !self.waker.is_here() {
            return Ok(());
        }
        self.detach_receiver(slot);
        let here = Runner::Thread(thread::current().id());
        self.wait_until(py, |state| {
            state.runner == here || state.turn.as_ref().is_none_or(|turn| !Arc::ptr_eq(turn, slot))
        })?;
        if let Ok(mut selector) = self.selector.try_lock() {
            selector.retain(|slot| !slot.is_closed());
        }
        Ok(())
    }

    /// Closes a receiver, without waiting for a callback in progress. The callable is let go of at once; whoever calls it
    /// just now has a reference of its own.
    fn detach_receiver(&self, slot: &Arc<Slot>) {
        let first = {
            let _no_turn_begins = lock(&self.state);
            slot.mark_closed()
        };
        if first {
            slot.subscriber.close();
            self.monitor.close(&slot.account);
            let mut slots = lock(&self.slots);
            slots.open.retain(|open| !Arc::ptr_eq(open, slot));
            slots.new.retain(|new| !Arc::ptr_eq(new, slot));
        }
        drop(slot.take_callable());
    }

    fn detach_all(&self) {
        self.closed.store(true, Ordering::Release);
        let open = lock(&self.slots).open.clone();
        for slot in open {
            self.detach_receiver(&slot);
        }
        self.monitor.shut();
        self.call_attention();
    }

    /// Waits without the interpreter; signal handlers run meanwhile.
    fn wait_until(&self, py: Python<'_>, is_so: impl Fn(&State) -> bool + Sync) -> PyResult<()> {
        while !is_so(&lock(&self.state)) {
            py.detach(|| {
                let state = lock(&self.state);
                if !is_so(&state) {
                    drop(self.changed.wait_timeout(state, LOOK_EVERY));
                }
            });
            py.check_signals()?;
        }
        Ok(())
    }

    /// Lets new receivers in.
    fn admit(&self, py: Python<'_>, selector: &mut Selector<Arc<Slot>>, awaits: bool) -> PyResult<()> {
        self.attention.store(false, Ordering::Release);
        let mut slots = lock(&self.slots);
        if !awaits && let Some(slot) = slots.open.iter().find(|slot| slot.is_coroutine_function) {
            let text = format!("{} is a coroutine function; use `await queue.run_async()`", slot.who());
            self.attention.store(true, Ordering::Release); // It will be so the next time, too.
            drop(slots);
            return Err(PyTypeError::new_err(text));
        }
        while let Some(slot) = slots.new.first() {
            match selector.add(Arc::clone(&slot.subscriber), Arc::clone(slot)) {
                Ok(()) | Err(Error::Closed { .. }) => drop(slots.new.remove(0)),
                Err(problem) => {
                    drop(slots);
                    return Err(to_python(py, problem));
                }
            }
        }
        Ok(())
    }

    /// Begins a receiver's turn: its callable. `None` when it was closed.
    fn begin_turn(&self, py: Python<'_>, slot: &Arc<Slot>) -> Option<Py<PyAny>> {
        let mut state = lock(&self.state);
        if slot.is_closed() {
            return None;
        }
        state.turn = Some(Arc::clone(slot));
        drop(state);
        slot.callable(py)
    }

    /// Ends it; who waits for that goes on. Nothing refers to the callable any more on its account.
    fn end_turn(&self) {
        self.monitor.rest();
        let turn = lock(&self.state).turn.take();
        drop(turn);
        self.changed.notify_all();
    }

    /// Makes callbacks until there is a reason to pause. `awaits`: the caller awaits coroutines.
    fn serve(
        &self,
        py: Python<'_>,
        selector: &mut Selector<Arc<Slot>>,
        limits: &mut Limits,
        awaits: bool,
    ) -> PyResult<Pause> {
        let slice_ends = after(if awaits { ASYNC_SLICE } else { SLICE });
        loop {
            if self.must_stop() {
                return Ok(Pause::Stop);
            }
            if self.attention.load(Ordering::Acquire) {
                self.admit(py, selector, awaits)?;
                continue; // It may have to stop.
            }
            if limits.handled >= limits.most {
                return Ok(Pause::Enough);
            }
            let Some(mut turn) = selector.turn().map_err(|problem| to_python(py, problem))? else {
                return Ok(Pause::Empty);
            };
            let slot = Arc::clone(turn.value());
            let Some(callable) = self.begin_turn(py, &slot) else { continue };
            let outcome = self.take_turn(callable.bind(py), &slot, &mut turn, limits, slice_ends, awaits);
            drop(callable);
            if !matches!(outcome, Ok(Some(Pause::Await(_)))) {
                self.end_turn();
            }
            if let Some(pause) = outcome? {
                return Ok(pause);
            }
        }
    }

    /// The one place where a receiver takes what came, and its callable is called.
    #[inline]
    fn take_turn(
        &self,
        callable: &Bound<'_, PyAny>,
        slot: &Arc<Slot>,
        turn: &mut Turn<'_, Arc<Slot>>,
        limits: &mut Limits,
        slice_ends: u64,
        awaits: bool,
    ) -> PyResult<Option<Pause>> {
        let py = callable.py();
        self.monitor.begin(&slot.account, Monitor::now());
        while let Some(received) = turn.next() {
            let message = match received {
                Ok(message) => Bound::new(py, Message::new(message, slot.writable))?,
                Err(problem) => {
                    self.handle_problem(slot, to_python(py, problem))?;
                    break;
                }
            };
            let result = callable.call1((message,));
            limits.handled += 1;
            if awaits
                && let Ok(result) = &result
                && is_coroutine(slot, result)
            {
                return Ok(Some(Pause::Await(result.clone().unbind())));
            }
            let now = Monitor::now();
            self.monitor.done(&slot.account, now);
            if let Err(raised) = result {
                self.handle_exception(slot, raised, py)?;
            }
            if now >= limits.deadline || limits.handled >= limits.most {
                return Ok(Some(Pause::Enough));
            }
            if now >= slice_ends {
                return Ok(Some(Pause::Slice));
            }
            if self.attention.load(Ordering::Relaxed) || slot.is_closed() {
                break;
            }
        }
        Ok(None)
    }

    /// Follows the queue's setting. What is no `Exception` (`KeyboardInterrupt`, `SystemExit`) ends a run always.
    #[cold]
    fn handle_exception(&self, slot: &Arc<Slot>, raised: PyErr, py: Python<'_>) -> PyResult<()> {
        if !raised.is_instance_of::<PyException>(py) {
            return Err(raised);
        }
        if self.on_error == OnError::Raise {
            let note = format!("byref: raised in {}", slot.who());
            let _ = raised.value(py).call_method1(intern!(py, "add_note"), (note,)); // Only help for people.
            return Err(raised);
        }
        let mut text = format!("{}: an exception in {}", self.label(), slot.who());
        if self.on_error == OnError::Detach {
            self.detach_receiver(slot);
            text.push_str(", which is detached now");
        }
        log_exception(py, &text, &raised)
    }

    /// The system, or a peer, kept a receiver from receiving. That ends a run, or is logged; the receiver tries again.
    #[cold]
    fn handle_problem(&self, slot: &Arc<Slot>, problem: PyErr) -> PyResult<()> {
        if self.on_error == OnError::Raise {
            return Err(problem);
        }
        Python::attach(|py| log_exception(py, &format!("{}: {} cannot receive", self.label(), slot.who()), &problem))
    }
}

fn log_exception(py: Python<'_>, text: &str, raised: &PyErr) -> PyResult<()> {
    let logger = py.import(intern!(py, "logging"))?.call_method1(intern!(py, "getLogger"), ("byref",))?;
    let options = PyDict::new(py);
    options.set_item("exc_info", raised)?;
    logger.call_method("error", ("%s", text), Some(&options)).map(drop)
}

/// Whether a callback's result has to be awaited.
#[inline]
fn is_coroutine(slot: &Slot, result: &Bound<'_, PyAny>) -> bool {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let is_one = || CLASS.import(result.py(), "types", "CoroutineType").is_ok_and(|class| result.get_type().is(class));
    !result.is_none() && (slot.is_coroutine_function || is_one())
}

/// An optional time or count that has to be positive.
fn positive(name: &str, seconds: Option<f64>) -> PyResult<Option<Duration>> {
    let Some(seconds) = seconds else { return Ok(None) };
    if seconds.is_nan() || seconds <= 0.0 {
        return Err(PyValueError::new_err(format!("{name} must be None or more than 0 seconds, not {seconds}")));
    }
    Ok(Duration::try_from_secs_f64(seconds).ok())
}

/// Calls receivers as messages come.
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
                    py.check_signals()?;
                    py.detach(|| ());
                    continue;
                }
            }
            let left = timeout.map(|timeout| timeout.saturating_sub(idle_since.elapsed()));
            let most = left.into_iter().chain(stop_event.map(|_| LOOK_EVERY)).min();
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
            limits.most = selector.backlog();
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
                    py.check_signals()?;
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
            Timeout::of(left).wait(py, |wait| selector.wait(wait))?;
        }
        // Who polls the descriptor has to hear of what is left, and of what comes from now on.
        if self.readiness.get().is_some() && (selector.arm() || shared.attention.load(Ordering::Acquire)) {
            shared.waker.wake();
        }
        Ok(limits.handled)
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
            state: Mutex::new(State { runner: Runner::Nobody, turn: None }),
            changed: Condvar::new(),
            attention: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        };
        Ok(EventQueue { shared: Arc::new(shared), readiness: OnceLock::new() })
    }

    /// Calls `receiver` with each message of `topic` from now on. The other arguments are those of `Subscriber`.
    #[pyo3(signature = (topic, receiver, *, policy="block", depth=None, history=0, writable=false, name=None))]
    #[expect(clippy::too_many_arguments, reason = "Python names them")]
    fn subscribe(
        &self,
        topic: &str,
        receiver: &Bound<'_, PyAny>,
        policy: &str,
        depth: Option<i128>,
        history: i128,
        writable: bool,
        name: Option<String>,
    ) -> PyResult<Receiver> {
        let (py, shared) = (receiver.py(), &self.shared);
        shared.check_open(py)?;
        let callable = resolve(receiver)?;
        let label = name.clone().unwrap_or_else(|| label_of(receiver));
        let subscriber = Arc::new(subscriber::build(py, topic, policy, depth, history, name)?);
        let account = shared.monitor.account(Arc::clone(&subscriber), label.clone());
        let slot = Arc::new(Slot::new(subscriber, account, label, writable, callable));
        {
            let mut slots = lock(&shared.slots);
            slots.open.push(Arc::clone(&slot));
            slots.new.push(Arc::clone(&slot));
        }
        if shared.closed.load(Ordering::Acquire) {
            shared.detach_receiver(&slot); // Closed meanwhile by another thread, which may not have seen it.
            shared.check_open(py)?;
        }
        shared.call_attention();
        Ok(Receiver { slot, queue: Arc::clone(shared) })
    }

    /// Calls receivers until `stop()` or `close()`, or an exception. Timeout when no message came for `timeout` seconds.
    #[pyo3(signature = (timeout=None))]
    fn run(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<()> {
        let timeout = Timeout::new(timeout)?.duration();
        let _running = self.shared.enter(py)?;
        self.run_until_stopped(py, timeout, None)
    }

    /// Runs the queue on a thread of its own.
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

    /// For the thread that `start` made.
    #[pyo3(signature = (stop_event))]
    fn _run_started(&self, py: Python<'_>, stop_event: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        lock(&self.shared.state).runner = Runner::Thread(thread::current().id());
        let _running = Running(&self.shared);
        self.run_until_stopped(py, None, stop_event)
    }

    /// Ends `run`, wherever it runs, after the callback in progress; or else the next one.
    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        self.shared.check_process(py)?;
        self.shared.stop();
        Ok(())
    }

    /// Handles what waits, and returns how many messages that were. Waits up to `timeout` seconds for the first one, and
    /// begins no callback later.
    #[pyo3(signature = (timeout=Some(0.0)), text_signature = "($self, timeout=0.0)")]
    fn dispatch(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<u64> {
        let timeout = Timeout::new(timeout)?.duration();
        let _running = self.shared.enter(py)?;
        self.dispatch_within(py, timeout)
    }

    /// A descriptor for event loops: readable when there is something to `dispatch`. Only to be polled.
    fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        if self.readiness.get().is_none() {
            self.shared.check_open(py)?;
            let _ = self.readiness.set(self.shared.waker.readiness());
            self.shared.waker.wake(); // The first dispatch arms it.
        }
        self.shared.check_process(py)?;
        Ok(self.readiness.get().expect("set above").as_fd().as_raw_fd())
    }

    /// Runs the queue in an event loop; what coroutine functions return is awaited.
    fn run_async<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        slf.get().shared.check_open(slf.py())?;
        slf.py().import("byref._queue")?.getattr("run_async")?.call1((slf,))
    }

    /// For `run_async`: takes the right to run.
    fn _enter(&self, py: Python<'_>) -> PyResult<()> {
        self.shared.claim(py, false)
    }

    /// For `run_async`: a coroutine to await (then comes `_awaited`), True: call again, False: wait for the descriptor,
    /// None: the queue was stopped.
    fn _step(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let shared = &*self.shared;
        let mut guard = lock(&shared.selector);
        let selector = &mut *guard;
        selector.refresh().map_err(|problem| to_python(py, problem))?;
        let again = match shared.serve(py, selector, &mut { Limits::NONE }, true)? {
            Pause::Stop => {
                shared.stopping.store(false, Ordering::Release);
                return Ok(None);
            }
            Pause::Await(coroutine) => return Ok(Some(coroutine)),
            Pause::Empty => selector.arm(),
            Pause::Slice | Pause::Enough => true,
        };
        Ok(Some(PyBool::new(py, again).to_owned().into_any().unbind()))
    }

    /// For `run_async`: the coroutine ended, perhaps with an exception.
    #[pyo3(signature = (raised))]
    fn _awaited(&self, py: Python<'_>, raised: Option<Bound<'_, PyAny>>) -> PyResult<()> {
        let shared = &*self.shared;
        let Some(slot) = lock(&shared.state).turn.clone() else { return Ok(()) };
        shared.monitor.done(&slot.account, Monitor::now());
        shared.end_turn();
        raised.map_or(Ok(()), |raised| shared.handle_exception(&slot, PyErr::from_value(raised), py))
    }

    /// For `run_async`: gives the right to run back.
    fn _leave(&self) {
        self.shared.leave();
    }

    /// The name.
    #[getter]
    fn name(&self) -> Option<&str> {
        self.shared.name.as_deref()
    }

    /// A dict of counters; see the documentation.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        self.shared.check_process(py)?;
        queue_dict(py, &self.shared.monitor.report())
    }

    /// Closes the queue and its receivers, and ends its run, wherever that is. From another thread it waits for a callback in
    /// progress. Twice is fine.
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
        slots.open.iter().try_for_each(|slot| slot.traverse(&visit))
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
