//! What subscribers hold, seen from Python.

use pyo3::prelude::*;

#[doc = doc!("Holder")]
#[pyclass(frozen, get_all, module = "byref")]
pub struct Holder {
    #[doc = doc!("Holder.pid")]
    pid: i32,
    #[doc = doc!("Holder.name")]
    name: Option<String>,
    #[doc = doc!("Holder.messages")]
    messages: u64,
    #[doc = doc!("Holder.bytes")]
    bytes: u64,
    #[doc = doc!("Holder.oldest_sequence")]
    oldest_sequence: u64,
    #[doc = doc!("Holder.oldest_age")]
    oldest_age: f64,
    #[doc = doc!("Holder.received_at")]
    received_at: Option<String>,
}

impl From<byref::Holder> for Holder {
    fn from(holder: byref::Holder) -> Self {
        let byref::Holder { pid, name, messages, bytes, oldest_sequence, oldest_age, received_at } = holder;
        Holder { pid, name, messages, bytes, oldest_sequence, oldest_age: oldest_age.as_secs_f64(), received_at }
    }
}

#[pymethods]
impl Holder {
    fn __repr__(&self) -> String {
        let Holder { pid, messages, bytes, oldest_sequence, oldest_age, .. } = self;
        let name = self.name.as_deref().map(|name| format!(" {name:?}")).unwrap_or_default();
        let place = self.received_at.as_ref().map(|place| format!(", received at {place}")).unwrap_or_default();
        format!(
            "<byref.Holder{name}, process {pid}, {messages} messages of {bytes} bytes, the oldest number \
             {oldest_sequence}, sent {oldest_age:.1} s ago{place}>"
        )
    }
}

#[doc = doc!("Outstanding")]
#[pyclass(frozen, module = "byref")]
pub struct Outstanding {
    #[doc = doc!("Outstanding.messages")]
    #[pyo3(get)]
    messages: u64,
    #[doc = doc!("Outstanding.bytes")]
    #[pyo3(get)]
    bytes: u64,
    holders: Vec<Py<Holder>>,
    oldest: Option<Py<Holder>>,
}

impl Outstanding {
    pub fn new(py: Python<'_>, found: byref::Outstanding) -> PyResult<Self> {
        let oldest = found.oldest().map(|oldest| oldest.oldest_sequence);
        let (messages, bytes) = (found.messages, found.bytes);
        let holders: Vec<Py<Holder>> =
            found.holders.into_iter().map(|holder| Py::new(py, Holder::from(holder))).collect::<PyResult<_>>()?;
        let oldest = holders.iter().find(|holder| Some(holder.get().oldest_sequence) == oldest);
        let oldest = oldest.map(|holder| holder.clone_ref(py));
        Ok(Outstanding { messages, bytes, holders, oldest })
    }
}

#[pymethods]
impl Outstanding {
    #[doc = doc!("Outstanding.holders")]
    #[getter]
    fn holders(&self, py: Python<'_>) -> Vec<Py<Holder>> {
        self.holders.iter().map(|holder| holder.clone_ref(py)).collect()
    }

    #[doc = doc!("Outstanding.oldest")]
    #[getter]
    fn oldest(&self, py: Python<'_>) -> Option<Py<Holder>> {
        self.oldest.as_ref().map(|holder| holder.clone_ref(py))
    }

    fn __repr__(&self) -> String {
        let (messages, bytes, holders) = (self.messages, self.bytes, self.holders.len());
        format!("<byref.Outstanding, {messages} messages of {bytes} bytes, {holders} holders>")
    }
}
