//! What can be sent as several messages: an array's rows, or payloads of equal size.
#![allow(unsafe_code)]

use crate::array::contiguous_bytes;
use crate::outlet::{gather, resized};
use crate::payload::{Payload, layout_of};
use crate::refusals::{class_name, located, refuse_row};
use byref::{Layout, Loan};
use numpy::{PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};

/// Payloads of equal size.
pub enum Rows<'py> {
    /// Those along the first dimension.
    Array(Bound<'py, PyUntypedArray>),
    Each(Vec<Payload<'py>>),
}

impl<'py> Rows<'py> {
    pub fn of(rows: &Bound<'py, PyAny>, topic: &str) -> PyResult<Self> {
        let py = rows.py();
        if rows.is_instance_of::<PyList>() || rows.is_instance_of::<PyTuple>() {
            let mut payloads = Vec::new();
            for (index, row) in rows.try_iter()?.enumerate() {
                payloads.push(Self::row(&row?).map_err(|error| located(py, topic, &format!("[{index}]"), error))?);
            }
            return Self::of_each(payloads).map_err(|error| located(py, topic, "", error));
        }
        let found = Self::row(rows).and_then(|payload| match payload {
            Payload::Array(array) if array.ndim() > 0 => Ok(Rows::Array(array)),
            _ => Err(PyTypeError::new_err(format!(
                "send_many takes an array with rows, or a list or tuple of payloads of equal size, not {}",
                class_name(rows)
            ))),
        });
        found.map_err(|error| located(py, topic, "", error))
    }

    fn row(row: &Bound<'py, PyAny>) -> PyResult<Payload<'py>> {
        if row.is_instance_of::<PyDict>() || row.is_instance_of::<PyList>() || row.is_instance_of::<PyTuple>() {
            return Err(refuse_row(row));
        }
        Payload::of(row)
    }

    fn of_each(payloads: Vec<Payload<'py>>) -> PyResult<Self> {
        let described = |payload: &Payload<'py>| -> PyResult<_> { Ok((payload.len(), payload.layout()?)) };
        if let Some((first, others)) = payloads.split_first() {
            let first = described(first)?;
            for (index, other) in others.iter().enumerate() {
                if described(other)? != first {
                    let text = format!(
                        "payloads that are sent together have the same size and type; number {} differs from number 0",
                        index + 1
                    );
                    return Err(PyValueError::new_err(text));
                }
            }
        }
        Ok(Rows::Each(payloads))
    }

    pub fn count(&self) -> usize {
        match self {
            Rows::Array(array) => array.shape()[0],
            Rows::Each(payloads) => payloads.len(),
        }
    }

    pub fn row_len(&self) -> usize {
        match self {
            Rows::Array(array) => array.shape()[1..].iter().product::<usize>() * array.dtype().itemsize(),
            Rows::Each(payloads) => payloads.first().map_or(0, Payload::len),
        }
    }

    /// How a receiver is to understand each row.
    pub fn layout(&self) -> PyResult<Option<Layout>> {
        match self {
            Rows::Array(array) => {
                layout_of(&array.dtype(), array.shape()[1..].iter().map(|extent| *extent as u64)).map(Some)
            }
            Rows::Each(payloads) => payloads.first().map_or(Ok(None), Payload::layout),
        }
    }

    /// The bytes of all; `None` when they do not lie in one piece.
    pub fn bytes(&self) -> Option<&[u8]> {
        match self {
            // SAFETY: a concurrent writer tears these messages, no more.
            Rows::Array(array) => unsafe { contiguous_bytes(array) },
            Rows::Each(_) => None,
        }
    }

    /// Copies them into a loan of their size.
    pub fn gather(&self, loan: &mut Loan) -> PyResult<()> {
        let payloads = match self {
            Rows::Array(array) => return gather(array, loan),
            Rows::Each(payloads) => payloads,
        };
        let row_len = loan.len() / payloads.len();
        loan.count_copied(loan.len());
        for (payload, place) in payloads.iter().zip(loan.chunks_exact_mut(row_len)) {
            match (payload.bytes(), payload) {
                (Some(bytes), _) => copy(bytes, place)?,
                (None, Payload::Array(array)) => {
                    copy(array.call_method0("tobytes")?.cast::<PyBytes>()?.as_bytes(), place)?;
                }
                (None, _) => unreachable!("only arrays come in pieces"),
            }
        }
        Ok(())
    }
}

fn copy(bytes: &[u8], place: &mut [u8]) -> PyResult<()> {
    if bytes.len() != place.len() {
        return Err(resized());
    }
    place.copy_from_slice(bytes);
    Ok(())
}
