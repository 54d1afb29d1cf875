//! A record batch that is built in the pool: its columns as NumPy arrays.
#![allow(unsafe_code)]

use crate::array;
use crate::draft::explain;
use crate::entries::entries;
use crate::outlet::Outlet;
use crate::owner::{Memory, Owner};
use crate::value;
use byref::{Encoded, HeaderValue, Loan};
use byref_parts::arrow::{Chunk, Class, Field};
use byref_parts::layout::Place;
use byref_parts::plan::{ALIGNMENT, Part};
use byref_parts::tokens::{self, Token, Words};
use numpy::{PyArrayDescr, PyArrayDescrMethods};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PySlice};

/// Where the columns of a batch lie in a loan, and how it is described.
#[derive(Clone)]
pub struct Columns {
    schema: Words,
    /// The bytes of one element, and the place, of each column.
    places: Vec<(u64, u64)>,
    pub rows: u64,
    /// The description goes here.
    end: u64,
}

/// The NumPy type in which a column of a batch can be filled.
fn dtype_of<'py>(py: Python<'py>, field: &Field) -> PyResult<Bound<'py, PyArrayDescr>> {
    let format = field.format();
    let unit = |tail: &str| tail.chars().next().map(|unit| if unit == 's' { "s".into() } else { format!("{unit}s") });
    let name = match format {
        "c" => "i1".to_owned(),
        "C" => "u1".to_owned(),
        "s" => "i2".to_owned(),
        "S" => "u2".to_owned(),
        "i" | "tts" | "ttm" => "i4".to_owned(),
        "I" => "u4".to_owned(),
        "l" | "ttu" | "ttn" => "i8".to_owned(),
        "L" => "u8".to_owned(),
        "e" => "f2".to_owned(),
        "f" => "f4".to_owned(),
        "g" => "f8".to_owned(),
        _ => match format.split_at_checked(2) {
            Some(("ts", tail)) => format!("M8[{}]", unit(tail).unwrap_or_default()),
            Some(("tD", tail)) => format!("m8[{}]", unit(tail).unwrap_or_default()),
            Some(("w:", width)) => format!("V{width}"),
            _ => String::new(),
        },
    };
    if name.is_empty() || field.dictionary.is_some() {
        let text = format!(
            "the column '{}' has the Arrow type '{format}', whose elements NumPy cannot fill in place; \
             build the batch and send it",
            field.name()
        );
        return Err(PyTypeError::new_err(text));
    }
    PyArrayDescr::new(py, name)
}

impl Columns {
    /// The places of `rows` rows of a batch of that type, and the bytes that the payload takes.
    pub fn new(py: Python<'_>, outlet: &dyn Outlet, field: &Field, rows: u64) -> PyResult<(Self, usize)> {
        if !field.is_table() {
            return Err(PyTypeError::new_err(
                "loan_batch takes the schema of a record batch, such as pyarrow.schema(...)",
            ));
        }
        let too_large = || PyValueError::new_err(format!("a batch of {rows} rows is too large"));
        let (mut places, mut end) = (Vec::new(), 0u64);
        for column in &field.children {
            let width = dtype_of(py, column)?.itemsize() as u64;
            let at = end.checked_next_multiple_of(ALIGNMENT).ok_or_else(too_large)?;
            end = rows.checked_mul(width).and_then(|len| at.checked_add(len)).ok_or_else(too_large)?;
            places.push((width, at));
        }
        let end = end.checked_next_multiple_of(ALIGNMENT).ok_or_else(too_large)?;
        let entry = explain(py, outlet, &field.encode())?.ok_or_else(|| {
            PyValueError::new_err("there is no room for one more schema in this publisher; build the batch and send it")
        })?;
        let columns = Columns { schema: Words::Explained(entry.offset, entry.len), places, rows, end };
        let size = end.checked_add(columns.describe().len() as u64).ok_or_else(too_large)?;
        Ok((columns, usize::try_from(size).map_err(|_| too_large())?))
    }

    fn describe(&self) -> Vec<u8> {
        let mut chunk = Chunk { lengths: vec![self.rows], buffers: vec![None] };
        for (width, at) in &self.places {
            chunk.lengths.push(self.rows);
            chunk.buffers.extend([None, Some(Part { at: *at, len: width * self.rows })]);
        }
        tokens::encode(&[Token::Arrow { class: Class::Batch, schema: self.schema, chunks: vec![chunk] }])
    }

    /// The columns by name, as writable arrays in the loan's memory.
    pub fn arrays<'py>(&self, py: Python<'py>, field: &Field, loan: &Loan) -> PyResult<Bound<'py, PyDict>> {
        let memory = loan.memory().map_err(|error| crate::errors::to_python(py, error))?;
        let data = memory.as_ptr();
        let owner = Owner::wrap(py, Memory::Loan(memory))?;
        let columns = PyDict::new(py);
        for (column, (_, at)) in field.children.iter().zip(&self.places) {
            let data = data.wrapping_add(*at as usize);
            // SAFETY: the loan was taken for so many elements of each column, at these places; the owner keeps it.
            let array = unsafe { array::over(dtype_of(py, column)?, &[self.rows], data, true, owner.clone()) }?;
            if columns.contains(column.name())? {
                let text = format!("two columns have the name '{}'; build the batch and send it", column.name());
                return Err(PyValueError::new_err(text));
            }
            columns.set_item(column.name(), array)?;
        }
        Ok(columns)
    }

    /// Writes the description behind the columns; gives the attributes to send along.
    pub fn finish(&self, loan: &mut Loan, headers: Vec<(String, HeaderValue)>) -> byref::Result<Encoded> {
        let description = self.describe();
        let at = Part { at: self.end, len: description.len() as u64 };
        loan.truncate((at.at + at.len) as usize)?;
        loan[at.at as usize..].copy_from_slice(&description);
        Ok(byref::Attributes { layout: Some(value::layout(Place::Described(at))), headers }.encode()?.with_glossary())
    }
}

/// The first `rows` rows of `arrays`.
pub fn truncated<'py>(arrays: &Bound<'py, PyDict>, rows: usize) -> PyResult<Bound<'py, PyDict>> {
    let shorter = PyDict::new(arrays.py());
    for (name, array) in entries(arrays) {
        shorter.set_item(name, array.get_item(PySlice::new(arrays.py(), 0, rows as isize, 1))?)?;
    }
    Ok(shorter)
}
