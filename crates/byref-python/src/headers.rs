//! Headers: a mapping of `str` to `str | bytes | int | float | bool` on their way out, a `dict` when received.

use crate::ending;
use crate::entries::entries;
use crate::payload::numpy_scalar;
use crate::refusals::class_name;
use byref::HeaderValue;
use numpy::{PyArrayDescrMethods, PyUntypedArrayMethods};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyMapping, PyString};

/// A `headers` argument: a dict, any other mapping as a dict, or None.
pub fn argument<'py>(headers: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyDict>>> {
    if headers.is_none() {
        return Ok(None);
    }
    if let Ok(dict) = headers.cast::<PyDict>() {
        return Ok(Some(dict.clone()));
    }
    let Ok(mapping) = headers.cast::<PyMapping>() else {
        let text = format!("headers must be a dict or another mapping, not {}", class_name(headers));
        return Err(PyTypeError::new_err(text));
    };
    ending::outlive(); // The mapping may be the caller's own.
    let dict = PyDict::new(headers.py());
    dict.update(mapping)?;
    Ok(Some(dict))
}

/// Checks and takes over a `headers` argument.
pub fn from_python(headers: &Bound<'_, PyDict>, topic: &str) -> PyResult<Vec<(String, HeaderValue)>> {
    ending::outlive();
    entries(headers)
        .into_iter()
        .map(|(key, value)| {
            let Ok(name) = key.cast::<PyString>() else {
                let text = format!("topic '{topic}': header names are str, not {}", class_name(&key));
                return Err(PyTypeError::new_err(text));
            };
            let name = name.to_str()?;
            Ok((name.to_owned(), value_from_python(topic, name, &value)?))
        })
        .collect()
}

fn value_from_python(topic: &str, name: &str, value: &Bound<'_, PyAny>) -> PyResult<HeaderValue> {
    if let Ok(text) = value.cast::<PyString>() {
        Ok(HeaderValue::Str(text.to_str()?.to_owned()))
    } else if let Ok(flag) = value.cast::<PyBool>() {
        Ok(HeaderValue::Bool(flag.is_true()))
    } else if value.is_instance_of::<PyInt>() {
        let number = value.extract::<i64>();
        number.map(HeaderValue::Int).map_err(|_| {
            PyValueError::new_err(format!("topic '{topic}': header '{name}': integers have 64 bits; send str(x)"))
        })
    } else if value.is_instance_of::<PyFloat>() {
        Ok(HeaderValue::Float(value.extract()?))
    } else if let Ok(bytes) = value.cast::<PyBytes>() {
        Ok(HeaderValue::Bytes(bytes.as_bytes().to_vec()))
    } else {
        match plain(value)? {
            Some(plain) => value_from_python(topic, name, &plain),
            None => Err(PyTypeError::new_err(format!(
                "topic '{topic}': header '{name}': values are str, bytes, int, float or bool, or NumPy scalars of these kinds, \
                 not {}; convert it (str(x), bytes(x), float(x)), or make it a part of the message",
                class_name(value)
            ))),
        }
    }
}

/// A NumPy number or truth value as Python's own that equals it; `None` for what has none.
fn plain<'py>(value: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyAny>>> {
    if numpy_scalar(value)?.is_none_or(|array| !matches!(array.dtype().kind(), b'b' | b'i' | b'u' | b'f')) {
        return Ok(None);
    }
    let plain = value.call_method0("item")?;
    // Of a long double, `item` gives itself.
    Ok((plain.is_exact_instance_of::<PyBool>()
        || plain.is_exact_instance_of::<PyInt>()
        || plain.is_exact_instance_of::<PyFloat>())
    .then_some(plain))
}

/// The headers as a new `dict`.
pub fn to_python<'py>(py: Python<'py>, headers: &[(String, HeaderValue)]) -> PyResult<Bound<'py, PyDict>> {
    ending::outlive();
    let dict = PyDict::new(py);
    for (name, value) in headers {
        match value {
            HeaderValue::Str(text) => dict.set_item(name, text)?,
            HeaderValue::Bytes(bytes) => dict.set_item(name, PyBytes::new(py, bytes))?,
            HeaderValue::Int(number) => dict.set_item(name, number)?,
            HeaderValue::Float(number) => dict.set_item(name, number)?,
            HeaderValue::Bool(flag) => dict.set_item(name, flag)?,
        }
    }
    Ok(dict)
}
