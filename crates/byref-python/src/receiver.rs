//! `Receiver`: a callable that an event queue calls, and the handle by which it is closed.

use crate::errors::to_python;
use crate::guarded::Guarded;
use crate::message::Manner;
use crate::receipt::place_of;
use crate::report::add_figures;
use crate::serving::Shared;
use crate::subscriber::stats_dict;
use byref::{Account, Subscriber};
use pyo3::exceptions::PyTypeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyFunction, PyTuple};
use pyo3::{PyTraverseError, PyVisit};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A receiver as its queue knows it.
pub struct Slot {
    pub subscriber: Arc<Subscriber>,
    pub account: Arc<Account>,
    /// For people: its name, or the callable's.
    pub label: String,
    /// Where its callable is defined.
    pub place: String,
    pub wants: Wants,
    pub is_coroutine_function: bool,
    /// The queue's; absent once it is closed. The queue shows it to the garbage collector.
    callable: Guarded<Option<Arc<Py<PyAny>>>>,
    closed: AtomicBool,
}

/// What a receiver is called with.
#[derive(Clone, Copy)]
pub struct Wants {
    pub manner: Manner,
    /// Batches of so many messages at the most, instead of messages.
    pub batch: Option<usize>,
}

impl Slot {
    /// `callable` is what [`resolve`] made.
    pub fn new(
        subscriber: Arc<Subscriber>,
        account: Arc<Account>,
        label: String,
        wants: Wants,
        callable: Resolved,
    ) -> Self {
        Slot {
            subscriber,
            account,
            label,
            place: callable.place,
            wants,
            is_coroutine_function: callable.is_coroutine_function,
            callable: Guarded::new(Some(Arc::new(callable.callable))),
            closed: AtomicBool::new(false),
        }
    }

    pub fn callable(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        let callable = self.callable.with(|callable| callable.clone())?;
        Some(callable.clone_ref(py))
    }

    pub fn take_callable(&self) -> Option<Arc<Py<PyAny>>> {
        self.callable.with(Option::take)
    }

    /// Shows the callable to the garbage collector, unless somebody is at it just now: then it counts as in use.
    pub fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.callable.visit(|callable| visit.call(callable.as_deref())).unwrap_or(Ok(()))
    }

    #[inline]
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Marks it as closed; `true` for the first one who does.
    pub fn mark_closed(&self) -> bool {
        !self.closed.swap(true, Ordering::AcqRel)
    }

    pub fn who(&self) -> String {
        format!("the receiver {} of topic '{}'", self.label, self.subscriber.topic())
    }
}

/// A callable, ready to be called.
pub struct Resolved {
    callable: Py<PyAny>,
    place: String,
    is_coroutine_function: bool,
}

/// Finds out once how `callable` is called. An instance whose class defines `__call__` in Python becomes a bound method, which
/// the interpreter calls without another look at the class.
pub fn resolve(callable: &Bound<'_, PyAny>) -> PyResult<Resolved> {
    let py = callable.py();
    if !callable.is_callable() {
        let kind = callable.get_type().name()?;
        return Err(PyTypeError::new_err(format!("a receiver has to be callable, and this {kind} is not")));
    }
    let inspect = py.import(intern!(py, "inspect"))?;
    let is_coroutine_function = |of: &Bound<'_, PyAny>| -> PyResult<bool> {
        inspect.call_method1(intern!(py, "iscoroutinefunction"), (of,))?.extract()
    };
    let class = callable.get_type();
    let call = class.getattr(intern!(py, "__call__"))?;
    let bound = match call.cast::<PyFunction>() {
        Ok(function) => function.call_method1(intern!(py, "__get__"), (callable, &class))?,
        Err(_) => callable.clone(),
    };
    let is_coroutine_function = is_coroutine_function(callable)? || is_coroutine_function(&bound)?;
    Ok(Resolved { callable: bound.unbind(), place: place_of(callable), is_coroutine_function })
}

/// What people call a callable.
pub fn label_of(callable: &Bound<'_, PyAny>) -> String {
    let py = callable.py();
    let inner = callable.getattr(intern!(py, "func")).unwrap_or_else(|_| callable.clone());
    let named = inner.getattr(intern!(py, "__qualname__")).and_then(|name| name.extract());
    named.unwrap_or_else(|_| callable.get_type().name().map_or_else(|_| "callable".to_owned(), |name| name.to_string()))
}

#[doc = doc!("Receiver")]
#[pyclass(frozen, weakref, module = "byref")]
pub struct Receiver {
    pub slot: Arc<Slot>,
    pub queue: Arc<Shared>,
}

#[pymethods]
impl Receiver {
    #[doc = doc!("Receiver.topic")]
    #[getter]
    fn topic(&self) -> &str {
        self.slot.subscriber.topic()
    }

    #[doc = doc!("Receiver.name")]
    #[getter]
    fn name(&self) -> &str {
        &self.slot.label
    }

    #[doc = doc!("Receiver.closed")]
    #[getter]
    fn closed(&self) -> bool {
        self.slot.is_closed()
    }

    #[doc = doc!("Receiver.stats")]
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.slot.subscriber.stats().map_err(|error| to_python(py, error))?;
        let dict = stats_dict(py, &stats)?;
        add_figures(&dict, &self.slot.account.figures())?;
        Ok(dict)
    }

    #[doc = doc!("Receiver.close")]
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.queue.close_receiver(py, &self.slot)
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.close(py)
    }

    fn __repr__(&self) -> String {
        let closed = if self.slot.is_closed() { ", closed" } else { "" };
        format!("<byref.Receiver {} of {:?}{closed}>", self.slot.label, self.slot.subscriber.topic())
    }
}
