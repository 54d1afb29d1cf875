//! The Python binding of `byref`, and nothing else: it turns Python objects into bytes and back, releases the interpreter
//! while it waits, and keeps messages alive as long as any view onto them.

mod array;
mod batch;
mod errors;
mod event;
mod headers;
mod loan;
mod message;
mod owner;
mod payload;
mod publisher;
mod queue;
mod receiver;
mod report;
mod rows;
mod serving;
mod subscriber;
mod waiting;

use pyo3::prelude::*;

#[pymodule]
mod _byref {
    use super::*;

    #[pymodule_export]
    use crate::batch::Batch;
    #[pymodule_export]
    use crate::event::Event;
    #[pymodule_export]
    use crate::loan::Loan;
    #[pymodule_export]
    use crate::message::{Message, PublisherInfo};
    #[pymodule_export]
    use crate::owner::Owner;
    #[pymodule_export]
    use crate::publisher::{Publisher, SubscriberInfo};
    #[pymodule_export]
    use crate::queue::EventQueue;
    #[pymodule_export]
    use crate::receiver::Receiver;
    #[pymodule_export]
    use crate::report::monitors;
    #[pymodule_export]
    use crate::subscriber::Subscriber;

    /// The most bytes of payload and attributes together that travel inside the ring.
    #[pymodule_export]
    const INLINE_LIMIT: usize = byref::INLINE_LIMIT;

    /// The fault points of this build, and how often this process has passed each of them.
    #[cfg(feature = "faults")]
    #[pyfunction]
    fn faults() -> std::collections::HashMap<&'static str, u64> {
        byref::faults().collect()
    }

    #[pymodule_init]
    fn init(_module: &Bound<'_, PyModule>) -> PyResult<()> {
        let filter = env_logger::Env::new().filter_or("BYREF_LOG", "byref=warn");
        // Another logger may be set already; then that one serves.
        let _ = env_logger::Builder::from_env(filter).try_init();
        Ok(())
    }
}
