//! Running an event queue.
//!
//! One thread at a time *runs* a queue. With the interpreter held it takes turns among the receivers that have something,
//! until nothing is left or [`SLICE`] is over; then it lets go of the interpreter, and waits without it. What others do
//! meanwhile (subscribe, stop, close) they leave in [`Shared`], set `attention`, and ring.
//!
//! The queue owns the callables: a [`Slot`] is known to the queue, to its `Receiver`, and to the selector (and a timer
//! to the queue and its `Timer`), but the queue alone shows the callable to the garbage collector, and takes it away when it dies.

use crate::batch::Batch;
use crate::called::AnyCalled;
use crate::ending;
use crate::errors::{closed, error, forked, to_python};
use crate::event::Event;
use crate::message::Message;
use crate::puller::Job;
use crate::receipt::note_receiver;
use crate::receiver::Slot;
use crate::server::Request;
use crate::timer::Timers;
use crate::waiting::let_interpreter_work;
use byref::{Error, Item, Monitor, Selector, Turn, Waker};
use pyo3::exceptions::{PyException, PyTypeError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyType};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

/// A running queue lets other threads have the interpreter, and signals their handlers, after this time (the interpreter's
/// own switch interval): a callable written in C gives no other occasion.
const SLICE: Duration = Duration::from_millis(5);
/// In an event loop the other tasks have their turn after this time.
const ASYNC_SLICE: Duration = Duration::from_millis(1);
/// How often a user's `stop_event`, and the signals of who waits for a callback's end, are looked at.
pub const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What becomes of an exception in a callback.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    Raise,
    Log,
    Detach,
}

/// Who runs a queue.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Runner {
    Nobody,
    /// A thread that was started for it and has not come to it.
    Starting,
    Thread(ThreadId),
}

pub struct State {
    pub runner: Runner,
    /// Whose turn it is: its callable may be running.
    pub turn: Option<Arc<dyn AnyCalled>>,
    /// Threads in `wait_until`. To notify a condition variable is a system call, also when nobody waits.
    pub waiting: usize,
}

#[derive(Default)]
pub struct Slots {
    pub open: Vec<Arc<Slot>>,
    /// Those of them that the selector does not know yet.
    new: VecDeque<Arc<Slot>>,
    /// How many of the open ones are coroutine functions.
    awaited: usize,
}

impl Slots {
    pub fn add(&mut self, slot: &Arc<Slot>) {
        self.awaited += usize::from(slot.is_coroutine_function);
        self.open.push(Arc::clone(slot));
        self.new.push_back(Arc::clone(slot));
    }

    pub fn remove(&mut self, slot: &Slot) {
        let is_it = |other: &Arc<Slot>| std::ptr::eq(&raw const **other, slot);
        let Some(at) = self.open.iter().position(is_it) else { return };
        self.open.remove(at);
        self.new.retain(|new| !is_it(new));
        self.awaited -= usize::from(slot.is_coroutine_function);
    }
}

/// What a queue shares with its receivers. No lock is held while Python code runs ([`guarded`](crate::guarded) says why), but
/// that of the selector, for which nobody waits who does not have the right to run the queue.
pub struct Shared {
    pub name: Option<String>,
    pub on_error: OnError,
    pub waker: Waker,
    pub monitor: Arc<Monitor>,
    /// Held by whoever runs the queue.
    pub selector: Mutex<Selector<Arc<Slot>>>,
    pub slots: Mutex<Slots>,
    pub timers: Timers,
    pub state: Mutex<State>,
    /// A turn or a run is over.
    pub changed: Condvar,
    /// Whoever runs the queue is to end its turn and look at the rest of this.
    pub attention: AtomicBool,
    pub stopping: AtomicBool,
    pub closed: AtomicBool,
}

/// How much is to be done at once.
pub struct Limits {
    pub handled: u64,
    pub most: u64,
    /// By [`Monitor::now`]: no callback begins later.
    pub deadline: u64,
}

impl Limits {
    pub const NONE: Limits = Limits { handled: 0, most: u64::MAX, deadline: u64::MAX };
}

/// Why no more callbacks are made for now.
pub enum Pause {
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

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub fn after(duration: Duration) -> u64 {
    Monitor::now().saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
}

/// The right to run a queue, given back on drop.
pub struct Running<'a>(pub &'a Shared);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Shared {
    pub fn label(&self) -> String {
        self.name.as_ref().map_or_else(|| "event queue".to_owned(), |name| format!("event queue '{name}'"))
    }

    /// Only the process that made a queue can use it: elsewhere its locks may be taken for ever.
    pub fn check_process(&self, py: Python<'_>) -> PyResult<()> {
        if self.waker.is_here() {
            return Ok(());
        }
        Err(forked(
            py,
            format!("this {} belongs to the process that forked this one; create a new one here", self.label()),
        ))
    }

    pub fn check_open(&self, py: Python<'_>) -> PyResult<()> {
        self.check_process(py)?;
        if self.closed.load(Ordering::Acquire) {
            return Err(closed(py, format!("this {} is closed; create a new one", self.label())));
        }
        Ok(())
    }

    /// Becomes the one who runs the queue; a second one is refused. `starting`: for a thread that will come.
    pub fn claim(&self, py: Python<'_>, starting: bool) -> PyResult<()> {
        self.check_open(py)?;
        let mut state = lock(&self.state);
        if state.runner != Runner::Nobody {
            drop(state);
            let text = "runs already, in another thread or further up in this one; stop it there first";
            return Err(error(py, format!("this {} {text}", self.label())));
        }
        state.runner = if starting { Runner::Starting } else { Runner::Thread(thread::current().id()) };
        drop(state);
        ending::outlive(); // Callbacks may do anything.
        self.attention.store(true, Ordering::Release); // What came before is to be looked at.
        Ok(())
    }

    pub fn enter(&self, py: Python<'_>) -> PyResult<Running<'_>> {
        self.claim(py, false).map(|()| Running(self))
    }

    /// Gives the right back.
    pub fn leave(&self) {
        if self.closed.load(Ordering::Acquire) {
            lock(&self.selector).retain(|_| false);
        }
        self.change(|state| state.runner = Runner::Nobody);
    }

    /// Changes the state, and tells those who wait for that.
    fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = lock(&self.state);
        let result = change(&mut state);
        let is_awaited = state.waiting > 0;
        drop(state);
        if is_awaited {
            self.changed.notify_all();
        }
        result
    }

    /// Has whoever runs the queue look up.
    pub fn call_attention(&self) {
        self.attention.store(true, Ordering::Release);
        self.waker.wake();
    }

    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.call_attention();
    }

    fn must_stop(&self) -> bool {
        self.stopping.load(Ordering::Acquire) || self.closed.load(Ordering::Acquire)
    }

    /// Closes a receiver or timer. From another thread than the one that calls it, waits until it is not being called.
    pub fn close_called(&self, py: Python<'_>, called: &Arc<dyn AnyCalled>) -> PyResult<()> {
        if !self.waker.is_here() {
            return Ok(());
        }
        self.detach(&**called);
        let here = Runner::Thread(thread::current().id());
        let is_it = |turn: &Arc<dyn AnyCalled>| std::ptr::addr_eq(Arc::as_ptr(turn), Arc::as_ptr(called));
        self.wait_until(py, |state| state.runner == here || !state.turn.as_ref().is_some_and(is_it))?;
        if let Ok(mut selector) = self.selector.try_lock() {
            selector.retain(|slot| !slot.is_closed());
        }
        Ok(())
    }

    /// Closes a receiver or timer, without waiting for a callback in progress. The callable is let go of at once; whoever calls
    /// it just now has a reference of its own.
    pub fn detach(&self, called: &dyn AnyCalled) {
        let first = {
            let _no_turn_begins = lock(&self.state);
            called.mark_closed()
        };
        if first {
            called.end(self);
        }
        ending::outlive();
        drop(called.take_callable()); // Without a lock: a finaliser may run.
    }

    pub fn detach_all(&self) {
        self.closed.store(true, Ordering::Release);
        let open = lock(&self.slots).open.clone();
        for slot in open {
            self.detach(&*slot);
        }
        for timer in self.timers.all() {
            self.detach(&*timer);
        }
        self.monitor.shut();
        self.call_attention();
    }

    /// Waits without the interpreter; signal handlers run meanwhile.
    pub fn wait_until(&self, py: Python<'_>, is_so: impl Fn(&State) -> bool + Sync) -> PyResult<()> {
        while !is_so(&lock(&self.state)) {
            py.detach(|| {
                let mut state = lock(&self.state);
                if !is_so(&state) {
                    state.waiting += 1;
                    let woken = self.changed.wait_timeout(state, LOOK_EVERY).unwrap_or_else(PoisonError::into_inner);
                    let (mut state, _) = woken;
                    state.waiting -= 1;
                }
            });
            let_interpreter_work(py)?;
        }
        Ok(())
    }

    /// Lets new receivers in.
    pub fn admit(&self, py: Python<'_>, selector: &mut Selector<Arc<Slot>>, awaits: bool) -> PyResult<()> {
        self.attention.store(false, Ordering::Release);
        let mut slots = lock(&self.slots);
        if !awaits {
            let receiver =
                (slots.awaited > 0).then(|| slots.open.iter().find(|slot| slot.is_coroutine_function)).flatten();
            if let Some(who) = receiver.map(|slot| slot.who()).or_else(|| self.timers.who_is_awaited()) {
                self.attention.store(true, Ordering::Release); // It will be so the next time, too.
                drop(slots);
                let text = format!("{who} is a coroutine function; use `await queue.run_async()`");
                return Err(PyTypeError::new_err(text));
            }
        }
        while let Some(slot) = slots.new.front() {
            let subscriber = Arc::clone(&slot.source.subscriber);
            let added = match slot.source.wants.batch {
                Some(most) => selector.add_batched(subscriber, Arc::clone(slot), most),
                None => selector.add(subscriber, Arc::clone(slot)),
            };
            match added {
                Ok(()) | Err(Error::Closed { .. }) => drop(slots.new.pop_front()),
                Err(problem) => {
                    // A mailbox whose address was taken over says so once.
                    let over = matches!(problem, Error::AddressInUse { .. }).then(|| slots.new.pop_front()).flatten();
                    drop(slots);
                    over.iter().for_each(|slot| self.detach(&**slot));
                    return Err(to_python(py, problem));
                }
            }
        }
        Ok(())
    }

    /// Begins a turn: the callable. `None` when it was closed.
    pub fn begin_turn(&self, py: Python<'_>, called: &Arc<dyn AnyCalled>) -> Option<Py<PyAny>> {
        let mut state = lock(&self.state);
        if called.is_closed() {
            return None;
        }
        state.turn = Some(Arc::clone(called));
        drop(state);
        called.callable(py)
    }

    /// Ends it; who waits for that goes on. Nothing refers to the callable any more on its account.
    pub fn end_turn(&self) {
        self.monitor.rest();
        let turn = self.change(|state| state.turn.take());
        if let Some(called) = turn.filter(|called| called.is_over()) {
            self.detach(&*called);
        }
    }

    /// Makes callbacks until there is a reason to pause. `awaits`: the caller awaits coroutines.
    pub fn serve(
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
            if self.timers.is_due()
                && let Some(pause) = self.call_due(py, limits, slice_ends, awaits)?
            {
                return Ok(pause);
            }
            let Some(mut turn) = selector.turn().map_err(|problem| to_python(py, problem))? else {
                return Ok(Pause::Empty);
            };
            let slot = Arc::clone(turn.value());
            // Whoever is closing it waits for the interpreter, perhaps, before this queue hears of it.
            let Some(callable) = self.begin_turn(py, &(Arc::clone(&slot) as _)) else {
                turn.give_up(); // It would be this one's turn for ever.
                return Ok(Pause::Slice);
            };
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
            let (mut messages, mut work) = (1, None);
            let argument = match received {
                Ok(Item::Message(message)) => {
                    note_receiver(&message, &slot.place);
                    Bound::new(py, Message::new(message, slot.source.wants.manner))?.into_any()
                }
                Ok(Item::Batch(batch)) => {
                    note_receiver(&*batch, &slot.place);
                    messages = batch.len() as u64;
                    Bound::new(py, Batch::new(*batch, slot.source.wants.manner))?.into_any()
                }
                Ok(Item::Job(job)) => {
                    note_receiver(job.message(), &slot.place);
                    let job = Bound::new(py, Job::new(*job, slot.source.wants.manner))?;
                    work = Some(job.clone());
                    job.into_any()
                }
                Ok(Item::Request(request)) => match request.downcast() {
                    Ok(request) => Request::wrap(py, *request, slot.source.wants.manner)?.into_any(),
                    Err(_) => continue,
                },
                Ok(Item::Event(event)) => {
                    messages = 0;
                    Bound::new(py, Event::new(*event, slot.source.mailbox.as_ref()))?.into_any()
                }
                Err(problem) => {
                    if let Error::AddressInUse { .. } = problem {
                        self.detach(&**slot); // The mailbox is over; it says so once.
                    }
                    self.handle_problem(slot, to_python(py, problem), py)?;
                    break;
                }
            };
            let result = callable.call1((argument,));
            limits.handled += messages;
            if awaits
                && let Ok(result) = &result
                && is_coroutine(slot.is_coroutine_function, result)
            {
                return Ok(Some(Pause::Await(match work {
                    None => result.clone().unbind(),
                    Some(job) => settled_after(&job, result)?,
                })));
            }
            if let Some(job) = work {
                job.get().settle(result.is_ok());
            }
            let now = Monitor::now();
            self.monitor.done(&slot.account, now);
            if let Err(raised) = result {
                self.handle_exception(&**slot, raised, py)?;
            }
            if now >= limits.deadline || limits.handled >= limits.most {
                return Ok(Some(Pause::Enough));
            }
            if now >= slice_ends {
                return Ok(Some(Pause::Slice));
            }
            if self.attention.load(Ordering::Relaxed) || slot.is_closed() || self.timers.is_due_at(now) {
                break;
            }
        }
        Ok(None)
    }

    /// Calls what is due, the earliest first, once each.
    #[cold]
    fn call_due(&self, py: Python<'_>, limits: &Limits, slice_ends: u64, awaits: bool) -> PyResult<Option<Pause>> {
        let mut now = Monitor::now();
        let due_by = now;
        while let Some(timer) = self.timers.take_due(due_by, now) {
            let called: Arc<dyn AnyCalled> = Arc::clone(&timer) as _;
            let Some(callable) = self.begin_turn(py, &called) else { continue };
            self.monitor.begin(&timer.account, now);
            let result = callable.bind(py).call0();
            drop(callable);
            if awaits
                && let Ok(result) = &result
                && is_coroutine(timer.is_coroutine_function, result)
            {
                return Ok(Some(Pause::Await(result.clone().unbind())));
            }
            now = Monitor::now();
            self.monitor.done(&timer.account, now);
            self.end_turn();
            if let Err(raised) = result {
                self.handle_exception(&*timer, raised, py)?;
            }
            if now >= limits.deadline {
                return Ok(Some(Pause::Enough));
            }
            if now >= slice_ends {
                return Ok(Some(Pause::Slice));
            }
            if self.must_stop() {
                return Ok(Some(Pause::Stop));
            }
        }
        Ok(None)
    }

    /// Follows the queue's setting. What is no `Exception` (`KeyboardInterrupt`, `SystemExit`) ends a run always.
    #[cold]
    pub fn handle_exception(&self, called: &dyn AnyCalled, raised: PyErr, py: Python<'_>) -> PyResult<()> {
        ending::outlive();
        if !raised.is_instance_of::<PyException>(py) {
            return Err(raised);
        }
        if self.on_error == OnError::Raise {
            let note = format!("byref: raised in {}", called.who());
            let _ = raised.value(py).call_method1(intern!(py, "add_note"), (note,)); // Only help for people.
            return Err(raised);
        }
        let mut text = format!("{}: an exception in {}", self.label(), called.who());
        if self.on_error == OnError::Detach && !called.is_closed() {
            self.detach(called);
            text.push_str(", which is detached now");
        }
        log_exception(py, &text, &raised)
    }

    /// The system, or a peer, kept a receiver from receiving. That ends a run, or is logged; the receiver tries again.
    #[cold]
    fn handle_problem(&self, slot: &Arc<Slot>, problem: PyErr, py: Python<'_>) -> PyResult<()> {
        if self.on_error == OnError::Raise {
            return Err(problem);
        }
        log_exception(py, &format!("{}: {} cannot receive", self.label(), slot.who()), &problem)
    }
}

fn log_exception(py: Python<'_>, text: &str, raised: &PyErr) -> PyResult<()> {
    let logger = py.import(intern!(py, "logging"))?.call_method1(intern!(py, "getLogger"), ("byref",))?;
    let options = PyDict::new(py);
    options.set_item("exc_info", raised)?;
    logger.call_method("error", ("%s", text), Some(&options)).map(drop)
}

/// What is to be awaited of a callback that works on a job: the job is done when it ends, or has failed when it raises.
#[cold]
fn settled_after(job: &Bound<'_, Job>, coroutine: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
    let settled = coroutine.py().import(intern!(coroutine.py(), "byref._aio"))?;
    Ok(settled.call_method1(intern!(coroutine.py(), "settled"), (job, coroutine))?.unbind())
}

/// Whether a callback's result has to be awaited.
#[inline]
fn is_coroutine(is_expected: bool, result: &Bound<'_, PyAny>) -> bool {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let is_one = || CLASS.import(result.py(), "types", "CoroutineType").is_ok_and(|class| result.get_type().is(class));
    !result.is_none() && (is_expected || is_one())
}
