//! Lists, tuples and dicts of Python's scalars as one run of bytes, and back: the fast path, without a Rust object for each.
#![allow(unsafe_code)]

use byref_parts::bounds::MOST_LEVELS;
use byref_parts::packed::{self, Builder, MOST_BYTES, MOST_CONTAINERS, Sequence, Writer};
use pyo3::Borrowed;
use pyo3::exceptions::{PyTypeError, PyUnicodeDecodeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyComplex, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};
use std::cell::Cell;
use std::collections::HashMap;
use std::vec::Drain;

/// The most keys of a dict that share a hash. Python compares each with all the others, so a sender that chooses them
/// could stop its receiver for an hour.
const MOST_ALIKE: usize = 256;

/// A container, packed.
pub struct Packing {
    /// Its stream.
    pub stream: Vec<u8>,
    /// How many containers it has.
    pub containers: usize,
}

/// What is no scalar of Python's own, and no container that can be packed.
pub struct Other<'py> {
    /// The object.
    pub object: Bound<'py, PyAny>,
    /// How deep it lies.
    pub level: usize,
    /// It is a dict's key.
    pub is_key: bool,
}

/// A container, and what belongs beside it.
type Packed<'py> = (Packing, Vec<Other<'py>>);

/// Why a container cannot be packed, after the stream up to it, and what belongs beside that.
pub struct Unpackable<'py> {
    pub stream: Vec<u8>,
    pub others: Vec<Other<'py>>,
    pub error: PyErr,
}

/// Packs a list, tuple or dict; gives also what belongs beside it, in order. `None` for anything else.
///
/// All of it is read at once: no other Python code runs meanwhile that could change it. (Without the interpreter's lock, each
/// container is read at once.)
pub fn pack<'py>(data: &Bound<'py, PyAny>) -> Result<Option<Packed<'py>>, Unpackable<'py>> {
    let mut packer = Packer { writer: Writer::default(), others: Vec::new(), containers: 0, kept: Vec::new() };
    let packed = packer.container(data.as_borrowed(), 0);
    let Packer { writer, others, containers, .. } = packer;
    match packed {
        Ok(true) => Ok(Some((Packing { stream: writer.finish(), containers }, others))),
        Ok(false) => Ok(None),
        Err(error) => Err(Unpackable { stream: writer.finish(), others, error }),
    }
}

/// The refusal of containers that are nested too deep.
pub fn too_deep() -> PyErr {
    PyValueError::new_err(format!("cannot send containers that are nested deeper than {MOST_LEVELS} levels"))
}

/// While it works, no code of others may run: it calls only what looks at exact built-in types, and nothing that makes an object
/// of which the garbage collector knows.
struct Packer<'py> {
    writer: Writer,
    others: Vec<Other<'py>>,
    containers: usize,
    /// Copies of containers that other threads may change.
    kept: Vec<Bound<'py, PyAny>>,
}

impl<'py> Packer<'py> {
    #[inline]
    fn value(&mut self, value: Borrowed<'_, 'py, PyAny>, level: usize) -> PyResult<()> {
        if !self.scalar(value)? && !self.container(value, level)? {
            self.other(value, level, false)?;
        }
        Ok(())
    }

    fn other(&mut self, value: Borrowed<'_, 'py, PyAny>, level: usize, is_key: bool) -> PyResult<()> {
        if self.others.len() >= MOST_CONTAINERS {
            return Err(too_many());
        }
        self.writer.other();
        self.others.push(Other { object: value.to_owned(), level, is_key });
        Ok(())
    }

    /// Writes a scalar of Python's own; false for anything else.
    #[inline]
    fn scalar(&mut self, value: Borrowed<'_, 'py, PyAny>) -> PyResult<bool> {
        if let Ok(text) = value.cast_exact::<PyString>() {
            self.text(&text)?;
        } else if value.is_exact_instance_of::<PyInt>() {
            match small(value) {
                Some(number) => self.writer.int(number),
                None => self.long(value)?,
            }
        } else if let Some(number) = float(value) {
            self.writer.float(number);
        } else if value.is_none() {
            self.writer.none();
        } else if let Ok(flag) = value.cast_exact::<PyBool>() {
            self.writer.truth(flag.is_true());
        } else if let Ok(number) = value.cast_exact::<PyComplex>() {
            self.writer.complex(number.real(), number.imag());
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    #[inline]
    fn text(&mut self, text: &Bound<'py, PyString>) -> PyResult<()> {
        let identity = text.as_ptr() as usize;
        if !self.writer.same(identity) {
            let text = text.to_str()?;
            self.room(text.len())?;
            self.writer.text(identity, text);
        }
        Ok(())
    }

    /// An integer beyond `i64`.
    #[cold]
    fn long(&mut self, value: Borrowed<'_, 'py, PyAny>) -> PyResult<()> {
        // SAFETY: an object of the interpreter that this thread is attached to.
        let digits = unsafe { ffi::PyNumber_ToBase(value.as_ptr(), 16) };
        // SAFETY: a new reference, or null with an exception set.
        let digits = unsafe { Bound::from_owned_ptr_or_err(value.py(), digits) }?;
        let digits = digits.cast_into::<PyString>()?;
        let digits = digits.to_str()?;
        match (digits.strip_prefix("0x"), digits.strip_prefix("-0x")) {
            (Some(digits), _) => match u64::from_str_radix(digits, 16) {
                Ok(number) => self.writer.unsigned(number),
                Err(_) => {
                    self.room(digits.len())?;
                    self.writer.long(digits);
                }
            },
            (None, Some(digits)) => {
                self.room(digits.len())?;
                self.writer.long(&format!("-{digits}"));
            }
            (None, None) => unreachable!("hexadecimal digits have a prefix"),
        }
        Ok(())
    }

    /// Writes a container and what is in it; false for anything else.
    fn container(&mut self, value: Borrowed<'_, 'py, PyAny>, level: usize) -> PyResult<bool> {
        if let Ok(dict) = value.cast_exact::<PyDict>() {
            self.dict(&dict, level)?;
        } else if let Ok(list) = value.cast_exact::<PyList>() {
            self.list(&list, level)?;
        } else if let Ok(tuple) = value.cast_exact::<PyTuple>() {
            let len = tuple.len();
            let item = |index| tuple.get_borrowed_item(index).ok();
            self.sequence(Sequence::Tuple, level, len, item)?;
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    fn list(&mut self, list: &Bound<'py, PyList>, level: usize) -> PyResult<()> {
        let list = if cfg!(Py_GIL_DISABLED) { self.keep(list.get_slice(0, list.len())) } else { list.clone() };
        let item = |index| {
            // SAFETY: below the list's length, an item is an object.
            (index < list.len()).then(|| unsafe { list_item(&list, index) })
        };
        self.sequence(Sequence::List, level, list.len(), item)
    }

    fn keep<T>(&mut self, copy: Bound<'py, T>) -> Bound<'py, T> {
        self.kept.push(copy.as_any().clone());
        copy
    }

    #[inline]
    fn sequence<'a>(
        &mut self,
        sequence: Sequence,
        level: usize,
        len: usize,
        item: impl Fn(usize) -> Option<Borrowed<'a, 'py, PyAny>>,
    ) -> PyResult<()>
    where
        'py: 'a,
    {
        self.enter(level, len)?;
        self.room(len.saturating_mul(8))?;
        let writer = &mut self.writer;
        if let Some(first) = item(0) {
            let is_packed = if float(first).is_some() {
                writer.floats(sequence, len, |index| item(index).and_then(float))
            } else if first.is_exact_instance_of::<PyInt>() {
                writer.ints(sequence, len, |index| {
                    item(index).filter(|item| item.is_exact_instance_of::<PyInt>()).and_then(small)
                })
            } else if first.is_exact_instance_of::<PyBool>() {
                writer.truths(sequence, len, |index| Some(item(index)?.cast_exact::<PyBool>().ok()?.is_true()))
            } else {
                false
            };
            if is_packed {
                return Ok(());
            }
        }
        writer.sequence(sequence, len);
        for index in 0..len {
            self.room(0)?;
            self.value(item(index).ok_or_else(changed)?, level + 1)?;
        }
        Ok(())
    }

    fn dict(&mut self, dict: &Bound<'py, PyDict>, level: usize) -> PyResult<()> {
        let dict = if cfg!(Py_GIL_DISABLED) { self.keep(dict.copy()?) } else { dict.clone() };
        let len = dict.len();
        self.enter(level, len)?;
        self.room(len.saturating_mul(2))?;
        self.writer.dict(len);
        let mut entries = Entries { dict: &dict, at: 0 };
        for _ in 0..len {
            let (key, value) = entries.next().ok_or_else(changed)?;
            self.room(0)?;
            if !self.scalar(key)? {
                self.other(key, level + 1, true)?;
            }
            self.value(value, level + 1)?;
        }
        Ok(())
    }

    #[inline]
    fn enter(&mut self, level: usize, len: usize) -> PyResult<()> {
        self.containers += 1;
        if level > MOST_LEVELS || level == MOST_LEVELS && len > 0 {
            return Err(too_deep());
        }
        if self.containers > MOST_CONTAINERS {
            return Err(too_many());
        }
        Ok(())
    }

    /// Makes sure that so many bytes are no more than a stream may have.
    #[inline]
    fn room(&self, len: usize) -> PyResult<()> {
        if self.writer.len().saturating_add(len) > MOST_BYTES { Err(too_large()) } else { Ok(()) }
    }
}

#[cold]
fn too_many() -> PyErr {
    let text =
        format!("cannot send a message of more than {MOST_CONTAINERS} parts and containers; put numbers into arrays");
    PyValueError::new_err(text)
}

#[cold]
fn too_large() -> PyErr {
    let text =
        format!("cannot send more than {} MiB of scalars in one message; put numbers into arrays", MOST_BYTES >> 20);
    PyValueError::new_err(text)
}

/// What only a thread without the interpreter's lock could do.
#[cold]
fn changed() -> PyErr {
    PyValueError::new_err("a container changed while it was being sent")
}

/// The float, if it is one exactly.
#[inline]
fn float(value: Borrowed<'_, '_, PyAny>) -> Option<f64> {
    value.cast_exact::<PyFloat>().ok().map(|number| number.value())
}

/// The int, if it has at most 64 bits.
#[inline]
fn small(int: Borrowed<'_, '_, PyAny>) -> Option<i64> {
    let mut overflow = 0;
    // SAFETY: an int, so it sets no exception.
    let number = unsafe { ffi::PyLong_AsLongLongAndOverflow(int.as_ptr(), &mut overflow) };
    (overflow == 0).then_some(number)
}

/// An item of a list.
///
/// # Safety
///
/// The index is below the list's length, and nobody changes the list during `'a`.
#[inline]
unsafe fn list_item<'a, 'py>(list: &'a Bound<'py, PyList>, index: usize) -> Borrowed<'a, 'py, PyAny> {
    // SAFETY: a list, and an index below its length.
    let item = unsafe { ffi::PyList_GET_ITEM(list.as_ptr(), index as ffi::Py_ssize_t) };
    // SAFETY: an object that the list keeps.
    unsafe { Borrowed::from_ptr(list.py(), item) }
}

/// The entries of a dict that nobody changes meanwhile.
struct Entries<'a, 'py> {
    dict: &'a Bound<'py, PyDict>,
    at: ffi::Py_ssize_t,
}

impl<'a, 'py> Entries<'a, 'py> {
    #[inline]
    fn next(&mut self) -> Option<(Borrowed<'a, 'py, PyAny>, Borrowed<'a, 'py, PyAny>)> {
        let (mut key, mut value) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: a dict, and places for what it finds.
        let found = unsafe { ffi::PyDict_Next(self.dict.as_ptr(), &mut self.at, &mut key, &mut value) };
        if found == 0 {
            return None;
        }
        // SAFETY: an object that the dict keeps.
        let key = unsafe { Borrowed::from_ptr(self.dict.py(), key) };
        // SAFETY: an object that the dict keeps.
        let value = unsafe { Borrowed::from_ptr(self.dict.py(), value) };
        Some((key, value))
    }
}

/// Makes what a stream describes, which lies `level` deep in its message; `containers` may still come in that. `other` gives the
/// next value beside the stream, `wrong` the error for a stream that is none.
pub fn unpack<'py>(
    py: Python<'py>,
    stream: &[u8],
    level: usize,
    containers: &Cell<usize>,
    other: impl FnMut(usize) -> PyResult<Bound<'py, PyAny>>,
    wrong: impl Fn(&str) -> PyErr,
) -> PyResult<Bound<'py, PyAny>> {
    packed::read(stream, level, containers, &mut Unpacker { py, other, wrong, alike: HashMap::new() })
}

struct Unpacker<'py, O, W> {
    py: Python<'py>,
    other: O,
    wrong: W,
    /// How many keys of a dict, which its address names, have a hash. It is counted in large dicts only.
    alike: HashMap<(usize, isize), usize>,
}

impl<'py, O, W> Unpacker<'py, O, W> {
    /// Counts a key of a large dict; whether too many have the same hash. Those of texts are random in each process, and those
    /// of different integers below 2^61 - 1 differ.
    #[cold]
    fn is_one_of_too_many(&mut self, dict: &Bound<'py, PyDict>, key: &Bound<'py, PyAny>) -> PyResult<bool> {
        let is_small = |key: &Bound<'py, PyInt>| key.extract::<i64>().is_ok_and(|it| it.unsigned_abs() < (1 << 61) - 1);
        if key.is_exact_instance_of::<PyString>() || key.cast_exact::<PyInt>().is_ok_and(is_small) {
            return Ok(false);
        }
        let count = self.alike.entry((dict.as_ptr() as usize, key.hash()?)).or_default();
        *count += 1;
        Ok(*count > MOST_ALIKE)
    }

    #[inline]
    fn all<T>(&self, sequence: Sequence, values: impl ExactSizeIterator<Item = T>) -> PyResult<Bound<'py, PyAny>>
    where
        T: IntoPyObject<'py>,
    {
        Ok(match sequence {
            Sequence::List => PyList::new(self.py, values)?.into_any(),
            Sequence::Tuple => PyTuple::new(self.py, values)?.into_any(),
        })
    }
}

impl<'py, O, W> Builder for Unpacker<'py, O, W>
where
    O: FnMut(usize) -> PyResult<Bound<'py, PyAny>>,
    W: Fn(&str) -> PyErr,
{
    type Value = Bound<'py, PyAny>;
    type Error = PyErr;

    #[cold]
    fn wrong(&mut self, why: &'static str) -> PyErr {
        (self.wrong)(why)
    }

    #[inline]
    fn none(&mut self) -> Bound<'py, PyAny> {
        self.py.None().into_bound(self.py)
    }

    #[inline]
    fn truth(&mut self, flag: bool) -> Bound<'py, PyAny> {
        PyBool::new(self.py, flag).to_owned().into_any()
    }

    #[inline]
    fn int(&mut self, number: i64) -> PyResult<Bound<'py, PyAny>> {
        Ok(number.into_pyobject(self.py)?.into_any())
    }

    fn unsigned(&mut self, number: u64) -> PyResult<Bound<'py, PyAny>> {
        Ok(number.into_pyobject(self.py)?.into_any())
    }

    fn long(&mut self, digits: &str) -> PyResult<Bound<'py, PyAny>> {
        self.py.get_type::<PyInt>().call1((digits, 16))
    }

    #[inline]
    fn float(&mut self, number: f64) -> PyResult<Bound<'py, PyAny>> {
        Ok(number.into_pyobject(self.py)?.into_any())
    }

    fn complex(&mut self, real: f64, imaginary: f64) -> PyResult<Bound<'py, PyAny>> {
        Ok(PyComplex::from_doubles(self.py, real, imaginary).into_any())
    }

    #[inline]
    fn text(&mut self, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
        match PyString::from_bytes(self.py, bytes) {
            Ok(text) => Ok(text.into_any()),
            Err(error) if error.is_instance_of::<PyUnicodeDecodeError>(self.py) => {
                Err(self.wrong("text that is not UTF-8"))
            }
            Err(error) => Err(error),
        }
    }

    fn other(&mut self, level: usize) -> PyResult<Bound<'py, PyAny>> {
        (self.other)(level)
    }

    #[inline]
    fn sequence(&mut self, sequence: Sequence, values: Drain<'_, Self::Value>) -> PyResult<Bound<'py, PyAny>> {
        self.all(sequence, values)
    }

    fn floats(
        &mut self,
        sequence: Sequence,
        numbers: impl ExactSizeIterator<Item = f64>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.all(sequence, numbers)
    }

    fn ints(&mut self, sequence: Sequence, numbers: impl ExactSizeIterator<Item = i64>) -> PyResult<Bound<'py, PyAny>> {
        self.all(sequence, numbers)
    }

    fn truths(
        &mut self,
        sequence: Sequence,
        flags: impl ExactSizeIterator<Item = bool>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.all(sequence, flags)
    }

    #[inline]
    fn dict(&mut self) -> PyResult<Bound<'py, PyAny>> {
        Ok(PyDict::new(self.py).into_any())
    }

    #[inline]
    fn entry(&mut self, dict: &mut Self::Value, key: Self::Value, value: Self::Value) -> PyResult<()> {
        let dict = dict.cast::<PyDict>()?;
        let is_refused = if dict.len() < MOST_ALIKE { Ok(false) } else { self.is_one_of_too_many(dict, &key) };
        let added = match is_refused {
            Ok(true) => return Err(self.wrong("a dict with too many keys of one hash")),
            Ok(false) => dict.set_item(key, value),
            Err(error) => Err(error),
        };
        match added {
            Ok(()) => Ok(()),
            Err(error) if error.is_instance_of::<PyTypeError>(self.py) => {
                Err(self.wrong("a dict with a key that cannot be one"))
            }
            Err(error) => Err(error),
        }
    }
}
