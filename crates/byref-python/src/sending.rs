//! `Publisher.send_async`: a send that waits for room without a thread's waiting.
//!
//! A coroutine makes an attempt now and then ([`Sending::attempt`]). What an attempt has got done is kept for the next one: Arrow
//! data that can be exported once only, and the memory once it is taken and filled. Nobody sees a message before the last
//! attempt, so a coroutine that is cancelled in between has sent nothing.
#![allow(unsafe_code)]

use crate::draft::Draft;
use crate::ending;
use crate::errors::is_would_block;
use crate::outlet::{self, Marks};
use crate::payload::Payload;
use crate::publisher::Publisher;
use crate::waiting::{Attempt, Patience};
use byref::{Encoded, Error, INLINE_LIMIT, Loan, Single, Wait};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// A message that waits for room.
#[pyclass(frozen, name = "_Sending", module = "byref")]
pub struct Sending {
    publisher: Py<Publisher>,
    headers: Option<Py<PyDict>>,
    marks: Marks,
    began: Instant,
    /// `None`: it was sent or given up, or an attempt is being made.
    stage: Mutex<Option<Stage>>,
}

/// How far it has come.
enum Stage {
    /// An object that can be read again: as it was given, or the array that stands for it.
    Object(Py<PyAny>),
    /// What was read, without memory to put it.
    Draft(Kept),
    /// All is in its place.
    Filled(Loan, Encoded),
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
        let publisher = self.publisher.get();
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
                return publisher.0.send_as(Single, bytes, self.marks.with(attributes), wait);
            }
            let mut loan = publisher.0.loan_with(bytes.len(), attributes.len(), wait)?;
            loan.write(0, bytes);
            loan.count_copied(bytes.len());
            send_loan(&mut loan, attributes, wait)
        };
        let (sent, unsent) = match stage {
            Stage::Object(object) => {
                let sent = outlet::send(&publisher.0, object.bind(py), headers, attempt, (send, send_loan));
                (sent, Stage::Object(object))
            }
            Stage::Draft(kept) => {
                let sent = outlet::send_draft(&publisher.0, py, &kept.0, headers, attempt, (send, send_loan));
                (sent, Stage::Draft(kept))
            }
            Stage::Filled(mut loan, attributes) => {
                let send = |wait: &mut Wait<'_>| loan.send_as(Single, self.marks.with(&attributes), wait);
                let sent = attempt.wait_if_needed(py, send);
                (sent, Stage::Filled(loan, attributes))
            }
        };
        match sent {
            Ok(sequence) => Ok(Some(sequence)),
            Err(error) if is_would_block(py, &error) => {
                let filled = lock(&filled).take();
                *lock(&self.stage) = Some(filled.map_or(unsent, |(loan, attributes)| Stage::Filled(loan, attributes)));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// Sends `data` at once if there is room: its sequence number. Otherwise what is to be tried again.
pub fn begin<'py>(
    publisher: &Bound<'py, Publisher>,
    data: &Bound<'py, PyAny>,
    headers: Option<Bound<'py, PyDict>>,
    marks: Marks,
) -> PyResult<Bound<'py, PyAny>> {
    let py = data.py();
    ending::outlive();
    let began = Instant::now();
    let stage = match Draft::of(data, publisher.get().0.topic())? {
        Err(draft) => Stage::Draft(Kept::new(draft)),
        // What it took to make an array of the object is not done again at each attempt.
        Ok(Payload::Array(array)) => Stage::Object(array.into_any().unbind()),
        Ok(Payload::Bytes(_) | Payload::Buffer(_)) => Stage::Object(data.clone().unbind()),
    };
    let (publisher, headers) = (publisher.clone().unbind(), headers.map(Bound::unbind));
    let sending = Sending { publisher, headers, marks, began, stage: Mutex::new(None) };
    match sending.try_once(py, stage, Attempt::Since(began))? {
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
