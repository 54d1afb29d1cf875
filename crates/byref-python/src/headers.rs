//! Headers: `dict[str, str | bytes | int | float | bool]`, both ways.

use crate::entries::entries;
use byref::HeaderValue;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyString};

/// Checks and takes over a `headers` argument.
pub fn from_python(headers: &Bound<'_, PyDict>) -> PyResult<Vec<(String, HeaderValue)>> {
    entries(headers)
        .into_iter()
        .map(|(key, value)| {
            let Ok(name) = key.cast::<PyString>() else {
                return Err(PyTypeError::new_err(format!("header names must be str, not {}", type_name(&key))));
            };
            Ok((name.to_str()?.to_owned(), value_from_python(name, &value)?))
        })
        .collect()
}

fn value_from_python(name: &Bound<'_, PyString>, value: &Bound<'_, PyAny>) -> PyResult<HeaderValue> {
    if let Ok(text) = value.cast::<PyString>() {
        Ok(HeaderValue::Str(text.to_str()?.to_owned()))
    } else if let Ok(flag) = value.cast::<PyBool>() {
        Ok(HeaderValue::Bool(flag.is_true()))
    } else if value.is_instance_of::<PyInt>() {
        let number = value.extract::<i64>();
        number
            .map(HeaderValue::Int)
            .map_err(|_| PyValueError::new_err(format!("header {name}: integers must fit into 64 bits")))
    } else if value.is_instance_of::<PyFloat>() {
        Ok(HeaderValue::Float(value.extract()?))
    } else if let Ok(bytes) = value.cast::<PyBytes>() {
        Ok(HeaderValue::Bytes(bytes.as_bytes().to_vec()))
    } else {
        let found = type_name(value);
        Err(PyTypeError::new_err(format!("header {name}: values must be str, bytes, int, float or bool, not {found}")))
    }
}

/// The headers as a new `dict`.
pub fn to_python<'py>(py: Python<'py>, headers: &[(String, HeaderValue)]) -> PyResult<Bound<'py, PyDict>> {
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

fn type_name(of: &Bound<'_, PyAny>) -> String {
    of.get_type().name().map_or_else(|_| "?".to_owned(), |name| name.to_string())
}
