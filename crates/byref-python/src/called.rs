//! A callable of an event queue's: how it is kept, found out about, and let go of.

use crate::guarded::Guarded;
use crate::serving::Shared;
use byref::Account;
use pyo3::exceptions::PyTypeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyFunction, PyTuple};
use pyo3::{PyTraverseError, PyVisit};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What has a callable called.
pub trait Source: Send + Sync + Sized {
    /// Who it is, for people.
    fn describe(&self, label: &str) -> String;
    /// Its last call has begun: it ends after that.
    fn is_over(&self) -> bool {
        false
    }
    /// Ends it, once: nothing comes of it any more.
    fn end(called: &Called<Self>, queue: &Shared);
}

/// A callable as its queue knows it.
pub struct Called<S> {
    pub source: S,
    pub account: Arc<Account>,
    /// For people: its name, or the callable's.
    pub label: String,
    /// Where its callable is defined.
    pub place: String,
    pub is_coroutine_function: bool,
    /// The queue's; absent once it is closed. The queue shows it to the garbage collector.
    callable: Guarded<Option<Arc<Py<PyAny>>>>,
    closed: AtomicBool,
}

impl<S> Called<S> {
    /// `callable` is what [`resolve`] made.
    pub fn new(source: S, account: Arc<Account>, label: String, callable: Resolved) -> Self {
        Called {
            source,
            account,
            label,
            place: callable.place,
            is_coroutine_function: callable.is_coroutine_function,
            callable: Guarded::new(Some(Arc::new(callable.callable))),
            closed: AtomicBool::new(false),
        }
    }

    /// Shows the callable to the garbage collector, unless somebody is at it just now: then it counts as in use.
    pub fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.callable.visit(|callable| visit.call(callable.as_deref())).unwrap_or(Ok(()))
    }

    #[inline]
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

/// One of any source.
pub trait AnyCalled: Send + Sync {
    fn account(&self) -> &Account;
    fn callable(&self, py: Python<'_>) -> Option<Py<PyAny>>;
    fn take_callable(&self) -> Option<Arc<Py<PyAny>>>;
    fn is_closed(&self) -> bool;
    /// Marks it as closed; `true` for the first one who does.
    fn mark_closed(&self) -> bool;
    fn is_over(&self) -> bool;
    /// After that: ends what it comes from.
    fn end(&self, queue: &Shared);
    fn who(&self) -> String;
}

impl<S: Source> AnyCalled for Called<S> {
    fn account(&self) -> &Account {
        &self.account
    }

    fn callable(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        let callable = self.callable.with(|callable| callable.clone())?;
        Some(callable.clone_ref(py))
    }

    fn take_callable(&self) -> Option<Arc<Py<PyAny>>> {
        self.callable.with(Option::take)
    }

    fn is_closed(&self) -> bool {
        self.is_closed()
    }

    fn mark_closed(&self) -> bool {
        !self.closed.swap(true, Ordering::AcqRel)
    }

    fn is_over(&self) -> bool {
        self.source.is_over()
    }

    fn end(&self, queue: &Shared) {
        S::end(self, queue);
    }

    fn who(&self) -> String {
        self.source.describe(&self.label)
    }
}

/// A callable, ready to be called.
pub struct Resolved {
    callable: Py<PyAny>,
    place: String,
    is_coroutine_function: bool,
}

impl Resolved {
    /// Has it called with these arguments.
    pub fn bind(&mut self, py: Python<'_>, args: &Bound<'_, PyTuple>) -> PyResult<()> {
        let partial = py.import(intern!(py, "functools"))?.getattr(intern!(py, "partial"))?;
        let all: Vec<_> = std::iter::once(self.callable.bind(py).clone()).chain(args.iter()).collect();
        self.callable = partial.call1(PyTuple::new(py, all)?)?.unbind();
        Ok(())
    }
}

/// Finds out once how `callable` is called. An instance whose class defines `__call__` in Python becomes a bound method, which
/// the interpreter calls without another look at the class.
pub fn resolve(callable: &Bound<'_, PyAny>) -> PyResult<Resolved> {
    let py = callable.py();
    if !callable.is_callable() {
        let kind = callable.get_type().name()?;
        return Err(PyTypeError::new_err(format!("what a queue calls has to be callable, and this {kind} is not")));
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

/// File and line where a callable is defined; its name, when that is not in Python.
fn place_of(callable: &Bound<'_, PyAny>) -> String {
    let py = callable.py();
    let inner = callable.getattr(intern!(py, "func")).unwrap_or_else(|_| callable.clone()); // Of a functools.partial.
    let defined = || -> PyResult<String> {
        let code = match inner.getattr(intern!(py, "__code__")) {
            Ok(code) => code,
            Err(_) => inner.get_type().getattr(intern!(py, "__call__"))?.getattr(intern!(py, "__code__"))?,
        };
        let file: String = code.getattr(intern!(py, "co_filename"))?.extract()?;
        let line: usize = code.getattr(intern!(py, "co_firstlineno"))?.extract()?;
        Ok(format!("{file}:{line}"))
    };
    defined().unwrap_or_else(|_| label_of(callable))
}
