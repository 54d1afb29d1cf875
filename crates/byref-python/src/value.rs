//! Messages of several parts, as what was sent.
#![allow(unsafe_code)]

use crate::array;
use crate::arrow::Arrow;
use crate::ending;
use crate::errors::error;
use crate::foreign::Foreign;
use byref::{Entry, Layout};
use byref_parts::arrow::Field;
use byref_parts::plan::Part;
use byref_parts::tokens::{Token, Words};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyComplex, PyDict, PyInt, PyList, PyMemoryView, PyTuple};
use std::sync::Arc;

/// `Layout::kind` of a message that is described by tokens. (No NumPy type has such a name.)
const KIND: &[u8] = b"parts";

/// The layout of a message whose tokens are these bytes of its payload.
pub fn layout(at: Part) -> Layout {
    Layout { kind: KIND.to_vec(), shape: vec![at.at, at.len] }
}

/// Where the tokens of a message of that layout lie; `None`: it has none.
pub fn place(layout: &Layout) -> Option<Part> {
    match layout.shape[..] {
        [at, len] if layout.kind == KIND => Some(Part { at, len }),
        _ => None,
    }
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

impl<'py> Shown<'py> {
    /// The object that the tokens describe, which `tokens::decode` gave.
    pub fn value(&self, py: Python<'py>, tokens: Vec<Token>) -> PyResult<Bound<'py, PyAny>> {
        ending::outlive();
        self.next(py, &mut tokens.into_iter())
    }

    fn wrong(&self, py: Python<'_>, why: &str) -> PyErr {
        wrong(py, self.payload.topic(), why)
    }

    fn next(&self, py: Python<'py>, tokens: &mut impl Iterator<Item = Token>) -> PyResult<Bound<'py, PyAny>> {
        Ok(match tokens.next().expect("decoding counted them") {
            Token::None => py.None().into_bound(py),
            Token::Bool(flag) => flag.into_pyobject(py)?.to_owned().into_any(),
            Token::Int(number) => number.into_pyobject(py)?.into_any(),
            Token::Long(digits) => {
                let number = py.get_type::<PyInt>().call1((digits, 16));
                number.map_err(|_| self.wrong(py, "an integer that is none"))?
            }
            Token::Float(number) => number.into_pyobject(py)?.into_any(),
            Token::Complex(real, imaginary) => PyComplex::from_doubles(py, real, imaginary).into_any(),
            Token::Str(text) => text.into_pyobject(py)?.into_any(),
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
            Token::List(count) => {
                let list = PyList::empty(py);
                (0..count).try_for_each(|_| list.append(self.next(py, tokens)?))?;
                list.into_any()
            }
            Token::Tuple(count) => {
                let values = (0..count).map(|_| self.next(py, tokens)).collect::<PyResult<Vec<_>>>()?;
                PyTuple::new(py, values)?.into_any()
            }
            Token::Dict(count) => {
                let dict = PyDict::new(py);
                for _ in 0..count {
                    let key = self.next(py, tokens)?;
                    let value = self.next(py, tokens)?;
                    dict.set_item(key, value).map_err(|_| self.wrong(py, "a dict with a key that cannot be one"))?;
                }
                dict.into_any()
            }
            Token::Pickle { stream, buffers } => self.unpickle(py, stream, &buffers)?,
        })
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
        static LOADS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        if !self.allow_pickle {
            return Err(error(
                py,
                format!(
                    "topic '{}': this message is a pickle, and unpickling runs whatever code its sender likes; \
                     if you trust the sender, receive with allow_pickle=True",
                    self.payload.topic()
                ),
            ));
        }
        let loads = LOADS.get_or_try_init(py, || py.import("byref._pickles")?.getattr("loads").map(Bound::unbind))?;
        let buffers = buffers.iter().map(|at| self.buffer(py, *at)).collect::<PyResult<Vec<_>>>()?;
        loads.bind(py).call1((self.payload.topic(), self.buffer(py, stream)?, buffers))
    }
}
