//! `Batch`: several messages, seen from Python without an object for each.
#![allow(unsafe_code)]

use crate::array;
use crate::ending;
use crate::errors::to_python;
use crate::message::{Manner, Message, PublisherInfo};
use crate::owner::{Memory, Owner};
use crate::refusals::class_name;
use crate::value;
use byref::{Cause, Layout};
use numpy::{PyArray1, PyArrayDescr, PyArrayDescrMethods};
use pyo3::exceptions::{PyIndexError, PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyRange, PySlice};
use std::sync::Arc;

#[doc = doc!("Batch")]
#[pyclass(frozen, sequence, weakref, module = "byref")]
pub struct Batch {
    core: byref::Batch,
    manner: Manner,
}

impl Batch {
    pub fn new(core: byref::Batch, manner: Manner) -> Self {
        Batch { core, manner }
    }

    fn message(&self, index: usize) -> Message {
        Message::new(self.core.get(index).expect("the caller checked the index"), self.manner)
    }

    /// Refuses messages of several parts: their payloads are no elements of anything.
    fn refuse_parts(&self, layout: &Result<Option<Layout>, usize>) -> PyResult<()> {
        let has_parts = |layout: &Layout| value::place(layout).is_some();
        let number = match layout {
            Ok(Some(layout)) if has_parts(layout) => Some(0),
            Ok(_) => None,
            Err(_) => self.core.iter().position(|message| message.attributes().layout.as_ref().is_some_and(has_parts)),
        };
        let Some(message) = number.and_then(|number| self.core.get(number)) else { return Ok(()) };
        Err(PyTypeError::new_err(format!(
            "topic '{}': message number {} of this batch consists of parts (it is a dict, list or tuple, Arrow data, or a \
             pickle), so the batch is not one array; take the messages one by one: [msg.value for msg in batch]",
            message.topic(),
            number.unwrap_or(0),
        )))
    }

    /// The length of every payload; ValueError if they differ.
    fn equal_len(&self) -> PyResult<usize> {
        if let Some((len, _)) = self.core.packed() {
            return Ok(len);
        }
        let mut lengths = self.core.iter().map(|message| message.len());
        let first = lengths.next().unwrap_or(0);
        match lengths.position(|len| len != first) {
            None => Ok(first),
            Some(other) => Err(PyValueError::new_err(format!(
                "the messages of this batch differ in length (number {} from the first); take them one by one",
                other + 1
            ))),
        }
    }
}

/// The element type and the shape of each payload of `len` bytes, as their senders declared them.
fn declared(
    py: Python<'_>,
    layout: Result<Option<Layout>, usize>,
    len: usize,
) -> PyResult<(Bound<'_, PyArrayDescr>, Vec<u64>)> {
    let layout = layout.map_err(|other| {
        let text = "differ in type or shape from those before; take them one by one, or give a dtype";
        PyValueError::new_err(format!("the messages of this batch from number {other} on {text}"))
    })?;
    let Some(Layout { kind, shape }) = layout else {
        return Ok((numpy::dtype::<u8>(py), vec![len as u64]));
    };
    let element = array::declared_type(py, &kind, &shape, len)?;
    Ok((element.dtype.bind(py).clone(), shape))
}

#[pymethods]
impl Batch {
    #[doc = doc!("Batch.ack")]
    fn ack(&self, py: Python<'_>) -> PyResult<()> {
        self.core.ack().map_err(|error| to_python(py, error))
    }

    #[doc = doc!("Batch.array")]
    #[pyo3(signature = (dtype=None))]
    fn array<'py>(slf: &Bound<'py, Self>, dtype: Option<&Bound<'py, PyAny>>) -> PyResult<Bound<'py, PyAny>> {
        ending::outlive(); // Of a dtype as of an array, NumPy's code.
        let (py, this) = (slf.py(), slf.get());
        let layout = this.core.layout();
        this.refuse_parts(&layout)?;
        let len = this.equal_len()?;
        let (dtype, row) = match dtype {
            None => declared(py, layout, len)?,
            Some(dtype) => {
                let dtype = PyArrayDescr::new(py, dtype)?;
                array::refuse_objects(&dtype)?;
                let itemsize = dtype.itemsize();
                if itemsize == 0 || !len.is_multiple_of(itemsize) {
                    let text = format!("payloads of {len} bytes are no elements of {itemsize} bytes ({dtype})");
                    return Err(PyValueError::new_err(text));
                }
                let elements = (len / itemsize) as u64;
                (dtype, if elements == 1 { Vec::new() } else { vec![elements] })
            }
        };
        let shape: Vec<u64> = std::iter::once(this.core.len() as u64).chain(row).collect();
        let Some((_, bytes)) = this.core.packed() else {
            let mut gathered = Vec::with_capacity(this.core.payload_len());
            this.core.iter().for_each(|message| gathered.extend_from_slice(&message));
            byref::count_copied(Cause::Asked, gathered.len());
            let data = gathered.as_mut_ptr();
            let owner = Owner::wrap(py, Memory::Copy(gathered))?;
            // SAFETY: the shape takes `len` bytes for each of the batch's messages, all of which have that length, and they
            // were copied to `data`, which stays where it is as long as the owner lives. No objects, as below.
            return unsafe { array::over(dtype, &shape, data, false, owner) };
        };
        let data = bytes.as_ptr().cast_mut();
        let owner = Owner::wrap(py, Memory::Batch(slf.clone().unbind()))?;
        // SAFETY: the shape takes `len` bytes for each of the batch's messages, which is what is packed there; a batch never
        // changes, and the owner keeps it. Peers' types hold no objects (`element_type`), nor does the caller's.
        unsafe { array::over(dtype, &shape, data, false, owner) }
    }

    #[doc = doc!("Batch.sequences")]
    #[getter]
    fn sequences<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<u64>> {
        PyArray1::from_vec(py, self.core.sequences())
    }

    #[doc = doc!("Batch.timestamps_ns")]
    #[getter]
    fn timestamps_ns<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<u64>> {
        PyArray1::from_vec(py, self.core.timestamps_ns())
    }

    #[doc = doc!("Batch.tags")]
    #[getter]
    fn tags<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<u64>> {
        PyArray1::from_vec(py, self.core.tags())
    }

    #[doc = doc!("Batch.publishers")]
    #[getter]
    fn publishers<'py>(&self, py: Python<'py>) -> PyResult<Vec<(Bound<'py, PyRange>, PublisherInfo)>> {
        ending::outlive();
        let runs = self.core.publishers();
        let range = |start: usize, end: usize| PyRange::new(py, start as isize, end as isize);
        runs.map(|(run, publisher)| Ok((range(run.start, run.end)?, PublisherInfo(Arc::clone(publisher))))).collect()
    }

    #[doc = doc!("Batch.nbytes")]
    #[getter]
    fn nbytes(&self) -> usize {
        self.core.payload_len()
    }

    fn __len__(&self) -> usize {
        self.core.len()
    }

    /// As for any sequence; type checkers want it said.
    fn __iter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        ending::outlive();
        // SAFETY: a batch has `__getitem__`, which is all that this asks of it, and the interpreter is attached.
        let iterator = unsafe { ffi::PySeqIter_New(slf.as_ptr()) };
        // SAFETY: a new reference, or null with an exception set.
        unsafe { Bound::from_owned_ptr_or_err(slf.py(), iterator) }
    }

    fn __getitem__<'py>(&self, py: Python<'py>, index: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        ending::outlive();
        let len = self.core.len();
        if let Ok(slice) = index.cast::<PySlice>() {
            let indices = slice.indices(len as isize)?;
            let picked = (0..indices.slicelength as isize).map(|n| (indices.start + n * indices.step) as usize);
            let messages = picked.map(|index| Bound::new(py, self.message(index))).collect::<PyResult<Vec<_>>>()?;
            return Ok(PyList::new(py, messages)?.into_any());
        }
        let number: isize = index.extract().map_err(|_| {
            PyTypeError::new_err(format!("a batch's indices are ints or slices, not {}", class_name(index)))
        })?;
        let index = if number < 0 { number + len as isize } else { number };
        if !(0..len as isize).contains(&index) {
            return Err(PyIndexError::new_err(format!("this batch has {len} messages, none with index {number}")));
        }
        Ok(Bound::new(py, self.message(index as usize))?.into_any())
    }

    fn __repr__(&self) -> String {
        let mut topics: Vec<_> = self.core.publishers().map(|(_, publisher)| &publisher.topic).collect();
        topics.sort_unstable();
        topics.dedup();
        let of = match topics[..] {
            [topic] => format!("of {topic:?}"),
            _ => format!("of {} topics", topics.len()),
        };
        format!("<byref.Batch of {} messages {of}, {} bytes>", self.core.len(), self.core.payload_len())
    }
}
