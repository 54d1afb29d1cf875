//! Messages passed **by reference** between processes.
//!
//! A [`Publisher`] writes a payload once, into memory it owns; every [`Subscriber`], in any process of the host, gets a
//! read-only view of those very bytes. A received [`Message`] is a lease: the memory is reused only after the last message
//! (or clone, or view) that names it is gone.
//!
//! ```
//! # fn main() -> Result<(), byref::Error> {
//! # let directory = std::env::temp_dir().join(format!("byref-doc-{}", std::process::id()));
//! # // SAFETY: this program has no other thread yet that could read the environment meanwhile.
//! # unsafe { std::env::set_var("BYREF_DIR", &directory) };
//! let subscriber = byref::Subscriber::builder("camera/front").build()?;
//! let publisher = byref::Publisher::builder("camera/front").build()?;
//! publisher.wait_for_subscribers(1, None)?;
//!
//! let mut frame = publisher.loan(1 << 20)?; // filled in place, sent without a copy
//! frame.fill(7);
//! frame.send()?;
//!
//! let message = subscriber.recv()?; // no copy here either
//! assert_eq!(message[12345], 7);
//! # drop((message, subscriber, publisher));
//! # let _ = std::fs::remove_dir_all(directory);
//! # Ok(())
//! # }
//! ```
//!
//! Where to read on: `ARCHITECTURE.md` is the map; the heads of `ring.rs`, `lease.rs`, `wake.rs` and `biased.rs` each explain one
//! lock-free protocol; `SAFETY.md` says what is promised and which test or model covers it.

#[macro_use] // First: the other modules name its macro.
mod faults;

mod access;
mod announcement;
mod attributes;
mod batch;
mod biased;
mod candidates;
mod changes;
mod claim;
mod connection;
mod copies;
mod doorstep;
mod error;
mod event;
#[cfg(all(any(test, fuzzing), not(loom)))]
#[doc(hidden)]
pub mod fuzzing;
mod glossary;
mod handshake;
mod lease;
mod loan;
mod location;
mod locks;
mod lookout;
mod message;
#[cfg(all(test, loom))]
mod models;
mod monitor;
mod note;
mod peer;
mod pool;
mod publisher;
mod rendezvous;
mod ring;
mod selector;
mod service;
mod spin;
mod subscriber;
mod sync;
mod sys;
mod topic;
mod wait;
mod wake;

pub use attributes::{Attributes, Encoded, HeaderValue, Layout, MAX_ATTRIBUTES};
pub use batch::Batch;
pub use claim::Policy;
pub use copies::{Cause, Copied, copied_bytes, count as count_copied};
pub use error::{Error, Result};
pub use event::{Event, EventKind, Incoming};
#[cfg(feature = "faults")]
pub use faults::enabled::faults;
pub use glossary::Entry;
pub use loan::{Loan, LoanMemory};
pub use message::{Message, PublisherInfo, Writable};
pub use monitor::{Account, Figures, MAX_LISTED, Monitor, QueueReport, ReceiverReport, Running, Thresholds, monitors};
pub use publisher::{
    Holder, Outstanding, Publisher, PublisherBuilder, PublisherStats, Releases, SubscriberInfo, Ticket,
};
pub use ring::INLINE_LIMIT;
pub use selector::{Ended, Item, Selector, Turn, Waker};
pub use subscriber::{Backlog, Readiness, Subscriber, SubscriberBuilder, SubscriberStats};
pub use topic::MAX_TOPIC;
pub use wait::Wait;

/// A number for the running process, never 0, that none of those from which it was forked has: for what is remembered about the
/// process, or about a thread. After [`prepare`] it costs one load.
pub fn fork_number() -> u64 {
    sys::fork::ForkId::current().number()
}

/// Looks at the machine, which the first endpoint does otherwise. For programs in which a thread may fork while another one
/// makes that first endpoint: call it before there are threads. A relative `BYREF_DIR` is resolved against the working directory
/// at this moment.
pub fn prepare() {
    sys::prepare();
    location::prepare();
}
