//! `Publisher.send_async`, `Mailbox.send_async`: sends that wait for room without a thread's waiting.
//!
//! A coroutine makes an attempt now and then ([`Sending::attempt`]). What an attempt has got done is kept for the next one: Arrow
//! data that can be exported once only, and the memory once it is taken and filled. Nobody sees a message before the last
//! attempt, so a coroutine that is cancelled in between has sent nothing.
#![allow(unsafe_code)]

use crate::draft::Draft;
use crate::ending;
use crate::errors::{is_would_block, to_python};
use crate::outlet::{self, Marks, Sender};
use crate::payload::Payload;
use crate::publisher::Publisher;
use crate::waiting::{Attempt, Patience};
use byref::{Connecting, Encoded, Error, INLINE_LIMIT, Loan, Route, Single, Wait};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// A message that waits for room.
#[pyclass(frozen, name = "_Sending", module = "byref")]
pub struct Sending {
    exit: Exit,
    headers: Option<Py<PyDict>>,
    marks: Marks,
    began: Instant,
    /// `None`: it was sent or given up, or an attempt is being made.
    stage: Mutex<Option<Stage>>,
}

/// By what it is sent.
pub enum Exit {
    Publisher(Py<Publisher>),
    Route(Mutex<Path>),
}

/// A way to another mailbox.
pub struct Path {
    route: Route,
    /// What finds out to which one, or that it is no longer there.
    connecting: Option<Connecting>,
}

impl Path {
    /// Does what is to be done by now; `true`: the mailbox is known, and a send waits for nothing but room.
    fn step(&mut self) -> byref::Result<bool> {
        loop {
            if let Some(route) = self.route.pinned()? {
                *self = Path { route, connecting: None };
                return Ok(true);
            }
            if !self.connecting.get_or_insert_with(|| self.route.connect()).step()? {
                return Ok(false);
            }
        }
    }
}

impl Exit {
    fn topic(&self) -> String {
        match self {
            Exit::Publisher(publisher) => publisher.get().0.topic().to_owned(),
            Exit::Route(path) => lock(path).route.sender().to_owned(),
        }
    }

    /// By way of a mailbox's route.
    pub fn by(route: Route) -> Self {
        Exit::Route(Mutex::new(Path { route, connecting: None }))
    }
}

/// How far it has come.
enum Stage {
    /// An object that can be read again: as it was given, or the array that stands for it.
    Object(Py<PyAny>),
    /// What was read, without memory to put it.
    Draft(Kept),
    /// All is in its place.
    Filled(Loan, Encoded),
    /// It was sent before.
    Undelivered(byref::Undelivered),
}

/// A draft between two attempts.
struct Kept(Draft<'static>);

// SAFETY: a draft refers to Python objects, and is used and dropped by threads that are attached to the interpreter only: in
// methods and the deallocation of a Python object.
unsafe impl Send for Kept {}

impl Kept {
    fn new(draft: Draft<'_>) -> Self {
        // SAFETY: the lifetime stands for being attached to the interpreter, not for a borrow: the draft owns its references. It
        // is used by attached threads only, as above.
        Kept(unsafe { std::mem::transmute::<Draft<'_>, Draft<'static>>(draft) })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sending {
    /// Makes an attempt; `None`: there is no room yet.
    fn try_once(&self, py: Python<'_>, stage: Stage, attempt: Attempt) -> PyResult<Option<u64>> {
        let route = match &self.exit {
            Exit::Publisher(publisher) => return self.try_by(&publisher.get().0, py, stage, attempt),
            Exit::Route(path) => {
                let mut path = lock(path);
                let is_known = path.step().map_err(|error| to_python(py, error))?;
                if let (false, Attempt::Since(_)) = (is_known, attempt) {
                    *lock(&self.stage) = Some(stage);
                    return Ok(None);
                }
                path.route.clone()
            }
        };
        match stage {
            Stage::Undelivered(message) => {
                let sent = attempt.wait_if_needed(py, |wait| route.send_undelivered(&message, wait));
                self.note(py, sent, Stage::Undelivered(message))
            }
            stage => self.try_by(&route, py, stage, attempt),
        }
    }

    fn try_by(&self, sender: &impl Sender, py: Python<'_>, stage: Stage, attempt: Attempt) -> PyResult<Option<u64>> {
        let headers = self.headers.as_ref().map(|headers| headers.bind(py));
        let filled = Mutex::new(None);
        let send_loan = |loan: &mut Loan, attributes: &Encoded, wait: &mut Wait<'_>| {
            let sent = loan.send_as(Single, self.marks.with(attributes), wait);
            if let Err(Error::WouldBlock { .. }) = sent {
                *lock(&filled) = Some((loan.take(), attributes.clone()));
            }
            sent
        };
        let send = |bytes: &[u8], attributes: &Encoded, wait: &mut Wait<'_>| {
            if bytes.len() <= INLINE_LIMIT {
                return sender.send_as(Single, bytes, self.marks.with(attributes), wait);
            }
            let mut loan = sender.loan_with(bytes.len(), attributes.len(), wait)?;
            loan.write(0, bytes);
            loan.count_copied(bytes.len());
            send_loan(&mut loan, attributes, wait)
        };
        let (sent, unsent) = match stage {
            Stage::Object(object) => {
                let sent = outlet::send(sender, object.bind(py), headers, attempt, (send, send_loan));
                (sent, Stage::Object(object))
            }
            Stage::Draft(kept) => {
                let sent = outlet::send_draft(sender, py, &kept.0, headers, attempt, (send, send_loan));
                (sent, Stage::Draft(kept))
            }
            Stage::Filled(mut loan, attributes) => {
                let send = |wait: &mut Wait<'_>| loan.send_as(Single, self.marks.with(&attributes), wait);
                let sent = attempt.wait_if_needed(py, send);
                (sent, Stage::Filled(loan, attributes))
            }
            Stage::Undelivered(_) => unreachable!("only routes send these, by themselves"),
        };
        let filled = lock(&filled).take();
        self.note(py, sent, filled.map_or(unsent, |(loan, attributes)| Stage::Filled(loan, attributes)))
    }

    /// Notes how far it has come, if there was no room.
    fn note(&self, py: Python<'_>, sent: PyResult<u64>, stage: Stage) -> PyResult<Option<u64>> {
        match sent {
            Ok(sequence) => Ok(Some(sequence)),
            Err(error) if is_would_block(py, &error) => {
                *lock(&self.stage) = Some(stage);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// The coroutine of a `send_async`, whose endpoint's `_send_now` takes these arguments.
pub fn coroutine<'py>(
    endpoint: &Bound<'py, PyAny>,
    arguments: impl IntoPyObject<'py, Target = PyTuple, Output = Bound<'py, PyTuple>, Error = PyErr>,
    timeout: Option<f64>,
) -> PyResult<Bound<'py, PyAny>> {
    static SEND: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    ending::outlive();
    let py = endpoint.py();
    let send = SEND.get_or_try_init(py, || py.import("byref._aio")?.getattr("send").map(Bound::unbind))?;
    send.bind(py).call1((endpoint, arguments.into_pyobject(py)?, timeout))
}

/// Sends `data` at once if there is room: its sequence number. Otherwise what is to be tried again.
pub fn begin<'py>(
    exit: Exit,
    data: &Bound<'py, PyAny>,
    headers: Option<Bound<'py, PyDict>>,
    marks: Marks,
) -> PyResult<Bound<'py, PyAny>> {
    let py = data.py();
    ending::outlive();
    let began = Instant::now();
    let stage = match Draft::of(data, &exit.topic())? {
        Err(draft) => Stage::Draft(Kept::new(draft)),
        // What it took to make an array of the object is not done again at each attempt.
        Ok(Payload::Array(array)) => Stage::Object(array.into_any().unbind()),
        Ok(Payload::Bytes(_) | Payload::Buffer(_)) => Stage::Object(data.clone().unbind()),
    };
    begin_at(stage, py, Sending { exit, headers: headers.map(Bound::unbind), marks, began, stage: Mutex::new(None) })
}

/// The same for what was sent before.
pub fn begin_undelivered<'py>(
    py: Python<'py>,
    route: Route,
    message: byref::Undelivered,
) -> PyResult<Bound<'py, PyAny>> {
    let (exit, marks) = (Exit::by(route), Marks { timestamp_ns: None, tag: 0 });
    let sending = Sending { exit, headers: None, marks, began: Instant::now(), stage: Mutex::new(None) };
    begin_at(Stage::Undelivered(message), py, sending)
}

fn begin_at(stage: Stage, py: Python<'_>, sending: Sending) -> PyResult<Bound<'_, PyAny>> {
    match sending.try_once(py, stage, Attempt::Since(sending.began))? {
        Some(sequence) => Ok(sequence.into_pyobject(py)?.into_any()),
        None => Ok(Bound::new(py, sending)?.into_any()),
    }
}

#[pymethods]
impl Sending {
    #[doc = doc!("_Sending.attempt")]
    #[pyo3(signature = (waited=None))]
    fn attempt(&self, py: Python<'_>, waited: Option<f64>) -> PyResult<Option<u64>> {
        ending::outlive();
        let Some(stage) = lock(&self.stage).take() else { return Ok(None) };
        self.try_once(py, stage, waited.map_or(Attempt::Since(self.began), Attempt::last))
    }

    #[doc = doc!("_Sending.discard")]
    fn discard(&self) {
        ending::outlive();
        let stage = lock(&self.stage).take();
        drop(stage);
    }
}
