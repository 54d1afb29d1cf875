//! `Identity`: a mailbox, seen from Python.

use pyo3::prelude::*;

#[doc = doc!("Identity")]
#[pyclass(frozen, eq, hash, module = "byref")]
#[derive(PartialEq, Eq, Hash)]
pub struct Identity(pub byref::Identity);

#[pymethods]
impl Identity {
    #[doc = doc!("Identity.address")]
    #[getter]
    fn address(&self) -> &str {
        self.0.address()
    }

    #[doc = doc!("Identity.incarnation")]
    #[getter]
    fn incarnation(&self) -> String {
        format!("{:032x}", self.0.incarnation())
    }

    #[doc = doc!("Identity.process")]
    #[getter]
    fn process(&self) -> i32 {
        self.0.process()
    }

    fn __repr__(&self) -> String {
        let (address, incarnation, process) = (self.address(), self.incarnation(), self.process());
        format!("<byref.Identity {address:?}, {}..., process {process}>", &incarnation[..8])
    }
}
