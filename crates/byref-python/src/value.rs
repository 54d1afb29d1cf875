//! Messages of several parts, as what was sent.
#![allow(unsafe_code)]

use crate::array;
use crate::arrow::Arrow;
use crate::ending;
use crate::errors::error;
use crate::foreign::Foreign;
use crate::packed::unpack;
use byref::{Entry, Layout};
use byref_parts::arrow::Field;
use byref_parts::layout::{KIND, Place};
use byref_parts::packed::MOST_CONTAINERS;
use byref_parts::plan::Part;
use byref_parts::tokens::{Token, Words};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyMemoryView, PyTuple};
use std::cell::Cell;
use std::sync::Arc;

/// The layout of a message that says this of itself.
pub fn layout(place: Place) -> Layout {
    Layout { kind: KIND.to_vec(), shape: place.shape() }
}

/// What a message of that layout says of itself; `None`: it is bytes, or an array.
pub fn place(layout: &Layout) -> Option<Place> {
    Place::of(&layout.kind, &layout.shape)
}

/// The value of a message that is one packed value, of which this is a copy.
pub fn unpacked<'py>(py: Python<'py>, topic: &str, stream: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    ending::outlive(); // New containers may have the garbage collector run, and so any Python code.
    let wrong = |why: &str| wrong(py, topic, why);
    let other = |_| Err(wrong(OTHERS));
    unpack(py, stream, 0, &Cell::new(MOST_CONTAINERS), other, wrong)
}

/// What unpickles, where that is allowed.
fn loads(py: Python<'_>, topic: &str, is_allowed: bool) -> PyResult<&'static Py<PyAny>> {
    static LOADS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    if !is_allowed {
        return Err(error(
            py,
            format!(
                "topic '{topic}': this message is a pickle, and unpickling runs whatever code its sender likes; \
                 if you trust the sender, receive with allow_pickle=True"
            ),
        ));
    }
    LOADS.get_or_try_init(py, || py.import("byref._pickles")?.getattr("loads").map(Bound::unbind))
}

/// The object of a message that is one pickle, of which this is a copy.
pub fn unpickled<'py>(py: Python<'py>, topic: &str, stream: &[u8], is_allowed: bool) -> PyResult<Bound<'py, PyAny>> {
    ending::outlive();
    loads(py, topic, is_allowed)?.bind(py).call1((topic, PyBytes::new(py, stream), PyTuple::empty(py)))
}

/// Where the arrays and buffers of a value lie.
pub struct Shown<'py> {
    pub payload: Arc<Foreign>,
    /// The first byte of the payload that they show: the message's own, or a private copy.
    pub data: *mut u8,
    pub writable: bool,
    /// Keeps `data`.
    pub owner: Bound<'py, PyAny>,
    pub allow_pickle: bool,
}

const OTHERS: &str = "packed values with others than announced";

/// The receiver's error: a peer sent what is none.
pub fn wrong(py: Python<'_>, topic: &str, why: &str) -> PyErr {
    error(py, format!("topic '{topic}': the sender declared parts that its payload has not: {why}"))
}

/// The Arrow type that a message refers to.
pub fn field(message: &byref::Message, words: Words) -> Result<Arc<Field>, String> {
    match words {
        Words::Explained(offset, len) => message
            .explained(Entry { offset, len }, |bytes| Field::decode(&bytes))
            .ok_or("an Arrow type that it never described")?,
        Words::Here(at) => {
            // A copy, since its sender may change it meanwhile.
            let words: Box<[u8]> = at.of(message).ok_or("an Arrow type outside of it")?.into();
            Field::decode(&words).map(Arc::new)
        }
    }
}

/// What is still to come.
struct Rest<'a> {
    tokens: std::vec::IntoIter<Token>,
    /// How many packed containers there may be.
    containers: &'a Cell<usize>,
}

impl<'py> Shown<'py> {
    /// The object that the tokens describe, which `tokens::decode` gave.
    pub fn value(&self, py: Python<'py>, tokens: Vec<Token>) -> PyResult<Bound<'py, PyAny>> {
        ending::outlive();
        let mut rest = Rest { tokens: tokens.into_iter(), containers: &Cell::new(MOST_CONTAINERS) };
        self.next(py, &mut rest, 0)
    }

    fn wrong(&self, py: Python<'_>, why: &str) -> PyErr {
        wrong(py, self.payload.topic(), why)
    }

    fn next(&self, py: Python<'py>, rest: &mut Rest<'_>, level: usize) -> PyResult<Bound<'py, PyAny>> {
        // Decoding counted them, but for those that packed values ask for.
        let token = rest.tokens.next().ok_or_else(|| self.wrong(py, "fewer parts than announced"))?;
        Ok(match token {
            Token::Bytes(at) => self.buffer(py, at)?,
            Token::Array { kind, shape, at, scalar } => {
                let element = array::declared_type(py, &kind, &shape, at.len as usize)?;
                let data = self.inside(py, at)?;
                let dtype = element.dtype.bind(py).clone();
                // A scalar never changes, and may be a key.
                let writable = self.writable && !scalar;
                // SAFETY: type and shape take the part's bytes, which are inside of the payload and aligned; the owner
                // keeps them, writable or not; `declared_type` refuses objects and made sure of the size.
                let array = unsafe { array::over(dtype, &shape, data, writable, self.owner.clone()) }?;
                if scalar { array.get_item(PyTuple::empty(py))? } else { array }
            }
            Token::Arrow { class, schema, chunks } => {
                let field = field(&self.payload, schema).map_err(|why| self.wrong(py, &why))?;
                Arrow::new(field, class, chunks, Arc::clone(&self.payload)).natural(py)?
            }
            Token::Pickle { stream, buffers } => self.unpickle(py, stream, &buffers)?,
            Token::Packed { at, others } => self.packed(py, at, others, rest, level)?,
        })
    }

    /// A packed value, and the values that belong into it.
    fn packed(
        &self,
        py: Python<'py>,
        at: Part,
        others: u64,
        rest: &mut Rest<'_>,
        level: usize,
    ) -> PyResult<Bound<'py, PyAny>> {
        // A copy, since its sender may change it meanwhile.
        let stream =
            at.of(&self.payload).ok_or_else(|| self.wrong(py, "a part outside of it, or not aligned"))?.to_vec();
        let wrong = |why: &str| self.wrong(py, why);
        let containers = rest.containers;
        let mut left = others;
        let other = |level| {
            left = left.checked_sub(1).ok_or_else(|| wrong(OTHERS))?;
            self.next(py, rest, level)
        };
        let value = unpack(py, &stream, level, containers, other, wrong)?;
        if left > 0 {
            return Err(wrong(OTHERS));
        }
        Ok(value)
    }

    /// The first byte of a part that is inside.
    fn inside(&self, py: Python<'_>, at: Part) -> PyResult<*mut u8> {
        match at.of(&self.payload) {
            Some(_) => Ok(self.data.wrapping_add(at.at as usize)),
            None => Err(self.wrong(py, "a part outside of it, or not aligned")),
        }
    }

    /// Plain bytes, as a memoryview.
    fn buffer(&self, py: Python<'py>, at: Part) -> PyResult<Bound<'py, PyAny>> {
        let data = self.inside(py, at)?;
        // SAFETY: so many bytes are inside of the payload, and the owner keeps them, writable or not.
        let array = unsafe { array::over(numpy::dtype::<u8>(py), &[at.len], data, self.writable, self.owner.clone()) }?;
        Ok(PyMemoryView::from(&array)?.into_any())
    }

    fn unpickle(&self, py: Python<'py>, stream: Part, buffers: &[Part]) -> PyResult<Bound<'py, PyAny>> {
        let loads = loads(py, self.payload.topic(), self.allow_pickle)?;
        let buffers = buffers.iter().map(|at| self.buffer(py, *at)).collect::<PyResult<Vec<_>>>()?;
        loads.bind(py).call1((self.payload.topic(), self.buffer(py, stream)?, buffers))
    }
}
