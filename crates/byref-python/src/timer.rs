//! Timers: what an event queue calls at a time instead of for a message, on its own thread, between two messages.

use crate::called::{Called, Source, label_of, resolve};
use crate::serving::{Shared, after, lock};
use byref::{Account, Monitor};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use pyo3::{PyTraverseError, PyVisit};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// When a timer is due. Times are nanoseconds by [`Monitor::now`].
pub struct Schedule {
    number: u64,
    /// Between two calls, for one that goes on.
    period: Option<u64>,
    /// The next call.
    due: AtomicU64,
    calls: AtomicU64,
    missed: AtomicU64,
    _kind: Arc<Kind>,
}

/// With more names than this, those of which no timer is left are forgotten.
const KINDS: usize = 64;
/// No call is to come.
const NEVER: u64 = u64::MAX;

type Slot = Called<Schedule>;

impl Source for Schedule {
    fn describe(&self, label: &str) -> String {
        format!("the timer {label}")
    }

    fn is_over(&self) -> bool {
        self.due.load(Ordering::Relaxed) == NEVER
    }

    fn end(timer: &Slot, queue: &Shared) {
        queue.timers.remove(timer);
    }
}

/// Timers of one name, which have one account.
struct Kind {
    account: Arc<Account>,
    monitor: Arc<Monitor>,
}

impl Drop for Kind {
    fn drop(&mut self) {
        self.monitor.close(&self.account);
    }
}

/// The timers of a queue.
pub struct Timers {
    scheduled: Mutex<Scheduled>,
    /// The earliest time in it, for a look without the lock.
    next: AtomicU64,
}

#[derive(Default)]
struct Scheduled {
    /// By due time, those of one time in the order in which they were made.
    by_due: BTreeMap<(u64, u64), Arc<Slot>>,
    /// Also of timers that are over, for whoever asks for their numbers.
    kinds: HashMap<String, Arc<Kind>>,
    last: u64,
    /// How many are coroutine functions.
    awaited: usize,
}

impl Default for Timers {
    fn default() -> Self {
        Timers { scheduled: Mutex::default(), next: AtomicU64::new(NEVER) }
    }
}

impl Timers {
    /// Changes what is scheduled.
    fn change<R>(&self, change: impl FnOnce(&mut Scheduled) -> R) -> R {
        let mut scheduled = lock(&self.scheduled);
        let result = change(&mut scheduled);
        let next = scheduled.by_due.first_key_value().map_or(NEVER, |((due, _), _)| *due);
        self.next.store(next, Ordering::Release);
        result
    }

    #[inline]
    pub fn is_due_at(&self, now: u64) -> bool {
        self.next.load(Ordering::Relaxed) <= now
    }

    /// Whether one is due now. Without any that asks no clock.
    #[inline]
    pub fn is_due(&self) -> bool {
        let next = self.next.load(Ordering::Acquire);
        next != NEVER && next <= Monitor::now()
    }

    /// When the next one is due.
    pub fn next_due(&self) -> Option<u64> {
        Some(self.next.load(Ordering::Acquire)).filter(|next| *next != NEVER)
    }

    pub fn until_due(&self) -> Option<Duration> {
        self.next_due().map(|due| Duration::from_nanos(due.saturating_sub(Monitor::now())))
    }

    /// One that is due by `due_by`; its next call is set, after `now`. What it came too late for is counted.
    pub fn take_due(&self, due_by: u64, now: u64) -> Option<Arc<Slot>> {
        if !self.is_due_at(due_by) {
            return None;
        }
        let (timer, missed) = self.change(|scheduled| {
            let entry = scheduled.by_due.first_entry().filter(|entry| entry.key().0 <= due_by)?;
            let ((due, number), timer) = entry.remove_entry();
            let next = timer.source.period.map(|period| next_after(due, period, now));
            let (next, missed) = next.unwrap_or((NEVER, 0));
            timer.source.due.store(next, Ordering::Relaxed);
            if next != NEVER {
                scheduled.by_due.insert((next, number), Arc::clone(&timer));
            } else {
                scheduled.awaited -= usize::from(timer.is_coroutine_function);
            }
            Some((timer, missed))
        })?;
        timer.source.calls.fetch_add(1, Ordering::Relaxed);
        if missed > 0 {
            timer.source.missed.fetch_add(missed, Ordering::Relaxed);
            timer.account.missed(missed);
        }
        Some(timer)
    }

    fn remove(&self, timer: &Slot) {
        let removed = self.change(|scheduled| {
            let due = timer.source.due.swap(NEVER, Ordering::Relaxed);
            let removed = scheduled.by_due.remove(&(due, timer.source.number))?;
            scheduled.awaited -= usize::from(removed.is_coroutine_function);
            Some(removed)
        });
        drop(removed); // Without the lock.
    }

    pub fn all(&self) -> Vec<Arc<Slot>> {
        lock(&self.scheduled).by_due.values().cloned().collect()
    }

    /// One that only an event loop can call.
    pub fn who_is_awaited(&self) -> Option<String> {
        let scheduled = lock(&self.scheduled);
        if scheduled.awaited == 0 {
            return None;
        }
        let found = scheduled.by_due.values().find(|timer| timer.is_coroutine_function);
        found.map(|timer| timer.source.describe(&timer.label))
    }

    /// Shows the callables to the garbage collector. Whoever has the lock is at it just now: then all count as in use.
    pub fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        let Ok(scheduled) = self.scheduled.try_lock() else { return Ok(()) };
        scheduled.by_due.values().try_for_each(|timer| timer.traverse(visit))
    }
}

/// The first of the times `due + k * period` after both `due` and `now`, and how many lie in between.
fn next_after(due: u64, period: u64, now: u64) -> (u64, u64) {
    let missed = now.saturating_sub(due) / period;
    (due.saturating_add(period.saturating_mul(missed + 1)), missed)
}

impl Scheduled {
    /// The account of timers of this name.
    fn kind(&mut self, monitor: &Arc<Monitor>, label: &str) -> Arc<Kind> {
        if let Some(kind) = self.kinds.get(label) {
            return Arc::clone(kind);
        }
        if self.kinds.len() >= KINDS {
            self.kinds.retain(|_, kind| Arc::strong_count(kind) > 1);
        }
        let account = monitor.account(None, label.to_owned());
        let kind = Arc::new(Kind { account, monitor: Arc::clone(monitor) });
        self.kinds.insert(label.to_owned(), Arc::clone(&kind));
        kind
    }
}

#[doc = doc!("Timer")]
#[pyclass(frozen, weakref, module = "byref")]
pub struct Timer {
    timer: Arc<Slot>,
    queue: Arc<Shared>,
}

impl Timer {
    /// Has `function(*args)` called after `wait`, and then again after each `period`.
    pub fn begin(
        queue: &Arc<Shared>,
        function: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
        name: Option<String>,
        wait: Duration,
        period: Option<Duration>,
    ) -> PyResult<Self> {
        let py = function.py();
        queue.check_open(py)?;
        if name.as_ref().is_some_and(String::is_empty) {
            return Err(PyValueError::new_err("the name of a timer must not be empty"));
        }
        let mut callable = resolve(function)?;
        if !args.is_empty() {
            callable.bind(py, args)?;
        }
        let label = name.unwrap_or_else(|| label_of(function));
        let due = after(wait);
        let period = period.map(|period| u64::try_from(period.as_nanos()).unwrap_or(NEVER));
        let timer = queue.timers.change(|scheduled| {
            scheduled.last += 1;
            let kind = scheduled.kind(&queue.monitor, &label);
            let account = Arc::clone(&kind.account);
            let (calls, missed) = (AtomicU64::new(0), AtomicU64::new(0));
            let (number, due_at) = (scheduled.last, AtomicU64::new(due));
            let source = Schedule { number, period, due: due_at, calls, missed, _kind: kind };
            let timer = Arc::new(Slot::new(source, account, label, callable));
            scheduled.awaited += usize::from(timer.is_coroutine_function);
            scheduled.by_due.insert((due, scheduled.last), Arc::clone(&timer));
            timer
        });
        if queue.closed.load(Ordering::Acquire) {
            queue.detach(&*timer); // Closed meanwhile by another thread, which may not have seen it.
            queue.check_open(py)?;
        }
        queue.call_attention();
        Ok(Timer { timer, queue: Arc::clone(queue) })
    }
}

#[pymethods]
impl Timer {
    #[doc = doc!("Timer.name")]
    #[getter]
    fn name(&self) -> &str {
        &self.timer.label
    }

    #[doc = doc!("Timer.period")]
    #[getter]
    fn period(&self) -> Option<f64> {
        self.timer.source.period.map(|period| Duration::from_nanos(period).as_secs_f64())
    }

    #[doc = doc!("Timer.remaining")]
    #[getter]
    fn remaining(&self) -> Option<f64> {
        let due = self.timer.source.due.load(Ordering::Relaxed);
        (due != NEVER).then(|| (due as i128 - i128::from(Monitor::now())) as f64 * 1e-9)
    }

    #[doc = doc!("Timer.calls")]
    #[getter]
    fn calls(&self) -> u64 {
        self.timer.source.calls.load(Ordering::Relaxed)
    }

    #[doc = doc!("Timer.missed")]
    #[getter]
    fn missed(&self) -> u64 {
        self.timer.source.missed.load(Ordering::Relaxed)
    }

    #[doc = doc!("Timer.cancel")]
    fn cancel(&self, py: Python<'_>) -> PyResult<()> {
        self.queue.close_called(py, &(Arc::clone(&self.timer) as _))
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.cancel(py)
    }

    fn __repr__(&self) -> String {
        let Timer { timer, .. } = self;
        let when = match (timer.source.period, timer.source.is_over()) {
            (_, true) => "over".to_owned(),
            (Some(period), false) => format!("every {:?}", Duration::from_nanos(period)),
            (None, false) => format!("in {:.3} s", self.remaining().unwrap_or(0.0)),
        };
        format!("<byref.Timer {} {when}>", timer.label)
    }
}
