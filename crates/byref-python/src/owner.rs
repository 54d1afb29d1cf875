//! What NumPy arrays over byref's memory have as their base.

use crate::batch::Batch;
use crate::message::Message;
use byref::{LoanMemory, Writable};
use pyo3::prelude::*;

/// What keeps the memory of an array.
pub enum Memory {
    /// A message's payload; the message counts it as an open view.
    Message(Py<Message>),
    /// A batch's payloads, and the numbers that belong to them.
    Batch(#[expect(dead_code, reason = "kept, not read")] Py<Batch>),
    /// A batch's payloads, copied to lie in one piece.
    Copy(#[expect(dead_code, reason = "kept, not read")] Vec<u8>),
    /// A private copy-on-write view.
    Private(#[expect(dead_code, reason = "kept, not read")] Writable),
    /// A loan's chunk.
    Loan(#[expect(dead_code, reason = "kept, not read")] LoanMemory),
}

#[doc = doc!("_Owner")]
#[pyclass(frozen, name = "_Owner", module = "byref")]
pub struct Owner(Memory);

impl Owner {
    /// The base object for an array over `memory`.
    pub fn wrap(py: Python<'_>, memory: Memory) -> PyResult<Bound<'_, PyAny>> {
        Ok(Bound::new(py, Owner(memory))?.into_any())
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if let Memory::Message(message) = &self.0 {
            message.get().close_view();
        }
    }
}
