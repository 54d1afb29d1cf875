//! The Python binding of `byref`, and nothing else: it turns Python objects into bytes and back, releases the interpreter
//! while it waits, and keeps messages alive as long as any view onto them.

// `doc!("Publisher.send")`: the docstring that the type stubs have. They are its only source (build.rs).
include!(concat!(env!("OUT_DIR"), "/docs.rs"));

mod array;
mod arrow;
mod batch;
mod buffered;
mod called;
mod capsule;
mod client;
mod columns;
mod dlpack;
mod draft;
mod ending;
mod entries;
mod errors;
mod event;
mod foreign;
mod freelist;
mod guarded;
mod headers;
mod identity;
mod loan;
mod logging;
mod mailbox;
mod message;
mod outlet;
mod outstanding;
mod owner;
mod packed;
mod payload;
mod publisher;
mod puller;
mod pusher;
mod queue;
mod receipt;
mod receiver;
mod refusals;
mod report;
mod rows;
mod sending;
mod server;
mod serving;
mod subscriber;
mod ticket;
mod timer;
mod undelivered;
mod value;
mod waiting;

use byref::Cause;
use pyo3::exceptions::PyImportError;
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// Whether this is the interpreter that the process began with: objects that are kept for all of them belong to it.
#[allow(unsafe_code)]
fn in_main_interpreter() -> bool {
    // SAFETY: importing a module, this thread has an interpreter.
    let current = unsafe { ffi::PyInterpreterState_Get() };
    // SAFETY: asks for a pointer that is set when Python starts.
    current == unsafe { ffi::PyInterpreterState_Main() }
}

/// What `byref exec` does, in Python.
fn exec(py: Python<'_>, asked: &byref_cli::Exec) -> u8 {
    let call = || -> PyResult<u8> {
        let module = py.import(intern!(py, "byref.integrations._exec"))?;
        module.call_method1(intern!(py, "run"), (asked.adapters(), asked.quiet, &asked.program))?.extract()
    };
    call().unwrap_or_else(|error| {
        error.print(py);
        1
    })
}

// On a free-threaded interpreter the module asks for the GIL, until its stress (`make test-threaded`) has passed on a version that
// PyO3 supports. What is in `test_free_threads.py` holds without the GIL; PYTHON_GIL=0 has the last word.
#[pymodule(gil_used = true)]
mod _byref {
    use super::*;

    #[pymodule_export]
    use crate::arrow::Arrow;
    #[pymodule_export]
    use crate::batch::Batch;
    #[pymodule_export]
    use crate::buffered::Buffered;
    #[pymodule_export]
    use crate::client::{Client, PendingReply};
    #[pymodule_export]
    use crate::event::Event;
    #[pymodule_export]
    use crate::identity::Identity;
    #[pymodule_export]
    use crate::loan::Loan;
    #[pymodule_export]
    use crate::logging::{_close_log, _open_log, _tell_lost_log};
    #[pymodule_export]
    use crate::mailbox::Mailbox;
    #[pymodule_export]
    use crate::message::{Message, PublisherInfo};
    #[pymodule_export]
    use crate::outstanding::{Holder, Outstanding};
    #[pymodule_export]
    use crate::owner::Owner;
    #[pymodule_export]
    use crate::publisher::{Publisher, SubscriberInfo};
    #[pymodule_export]
    use crate::puller::{Job, Jobs, Puller};
    #[pymodule_export]
    use crate::pusher::{Pusher, Rejected};
    #[pymodule_export]
    use crate::queue::EventQueue;
    #[pymodule_export]
    use crate::receipt::record_receives;
    #[pymodule_export]
    use crate::receiver::Receiver;
    #[pymodule_export]
    use crate::report::monitors;
    #[pymodule_export]
    use crate::sending::Sending;
    #[pymodule_export]
    use crate::server::{Request, Server};
    #[pymodule_export]
    use crate::subscriber::{Iteration, Subscriber};
    #[pymodule_export]
    use crate::ticket::{Releases, Ticket};
    #[pymodule_export]
    use crate::timer::Timer;
    #[pymodule_export]
    use crate::undelivered::Undelivered;

    #[doc = doc!("copied_bytes")]
    #[pyfunction]
    fn copied_bytes(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
        let (copied, counts) = (byref::copied_bytes(), PyDict::new(py));
        for cause in Cause::ALL {
            let name = match cause {
                Cause::Send => "send",
                Cause::Receive => "receive",
                Cause::Private => "writable",
                Cause::Asked => "copy",
            };
            counts.set_item(name, copied[cause])?;
        }
        Ok(counts)
    }

    /// The `byref` command with these arguments; gives its exit code.
    #[pyfunction]
    fn _command(py: Python<'_>, arguments: Vec<std::ffi::OsString>) -> u8 {
        py.detach(|| byref_cli::run_within(arguments, |asked| Python::attach(|py| exec(py, &asked))))
    }

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
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        if !in_main_interpreter() {
            let text = "byref does not work in sub-interpreters; import it in the main one, or use another process";
            return Err(PyImportError::new_err(text));
        }
        logging::install();
        receipt::from_environment();
        // What is otherwise made at first use would be missing for ever in a child that is forked at that moment.
        byref::prepare();
        freelist::install(module.py());
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
