//! `Undelivered`: a message that its destination never took, seen from Python.

use crate::ending;
use crate::headers;
use crate::identity::Identity;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

#[doc = doc!("Undelivered")]
#[pyclass(frozen, module = "byref")]
pub struct Undelivered(pub byref::Undelivered);

#[pymethods]
impl Undelivered {
    #[doc = doc!("Undelivered.peer")]
    #[getter]
    fn peer(&self) -> Identity {
        Identity(self.0.peer().clone())
    }

    #[doc = doc!("Undelivered.sequence")]
    #[getter]
    fn sequence(&self) -> u64 {
        self.0.sequence()
    }

    #[doc = doc!("Undelivered.timestamp_ns")]
    #[getter]
    fn timestamp_ns(&self) -> u64 {
        self.0.timestamp_ns()
    }

    #[doc = doc!("Undelivered.tag")]
    #[getter]
    fn tag(&self) -> u64 {
        self.0.tag()
    }

    #[doc = doc!("Undelivered.headers")]
    #[getter]
    fn headers<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        ending::outlive();
        headers::to_python(py, &self.0.attributes().headers)
    }

    #[doc = doc!("Undelivered.nbytes")]
    #[getter]
    fn nbytes(&self) -> usize {
        self.0.len()
    }

    fn __len__(&self) -> usize {
        self.0.len()
    }

    fn __bytes__<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        byref::count_copied(byref::Cause::Asked, self.0.len());
        PyBytes::new(py, &self.0)
    }

    fn __repr__(&self) -> String {
        let (number, len, address) = (self.0.sequence(), self.0.len(), self.0.peer().address());
        format!("<byref.Undelivered {number} to {address:?}, {len} bytes>")
    }
}
