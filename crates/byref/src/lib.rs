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

mod attributes;
mod copies;
mod direct;
mod doctor;
mod error;
#[cfg(all(any(test, fuzzing), not(loom)))]
#[doc(hidden)]
pub mod fuzzing;
mod link;
mod memory;
#[cfg(all(test, loom))]
mod models;
mod protocol;
mod pubsub;
mod reader;
mod rpc;
mod sync;
mod sys;
mod topic;
mod work;
mod writer;

pub use attributes::{Attributes, Beside, Encoded, HeaderValue, Layout, MAX_ATTRIBUTES, TooLong};
pub use copies::{Cause, Copied, copied_bytes, count as count_copied};
pub use direct::everyone::Everyone;
pub use direct::identity::Identity;
pub use direct::lines::MailboxStats;
pub use direct::mailbox::{Mailbox, MailboxBuilder};
pub use direct::route::{Route, SendError, Target, To};
pub use direct::undelivered::Undelivered;
pub use doctor::{Check, State, checks};
pub use error::{Conflict, Error, Result};
#[cfg(feature = "faults")]
pub use faults::enabled::faults;
pub use memory::glossary::Entry;
pub use protocol::claim::Policy;
pub use protocol::ring::INLINE_LIMIT;
pub use pubsub::form::{Form, Kept, Rows, Single, Tracked};
pub use pubsub::inspect::{PublisherReport, PublisherStats, SubscriberReport, publishers};
pub use pubsub::loan::{Loan, LoanMemory};
pub use pubsub::monitor::{
    Account, Figures, MAX_LISTED, Monitor, QueueReport, ReceiverReport, Running, Thresholds, monitors,
};
pub use pubsub::publisher::{Publisher, PublisherBuilder, SubscriberInfo};
pub use pubsub::selector::{Ended, Selector, Turn, Waker};
pub use pubsub::subscriber::{Readiness, Subscriber, SubscriberBuilder};
pub use reader::batch::Batch;
pub use reader::event::{Event, EventKind, Incoming};
pub use reader::future::Receiving;
pub use reader::item::Item;
pub use reader::job::Job;
pub use reader::message::{Message, Writable};
pub use reader::receipts::Receipt;
pub use reader::sender::PublisherInfo;
pub use reader::take::{One, Take, Told, UpTo};
pub use reader::turns::{Backlog, SubscriberStats};
pub use rpc::client::{Ask, Client, ClientBuilder, ClientStats};
pub use rpc::failure::{Code, Failure};
pub use rpc::pending::{Canceller, PendingReply};
pub use rpc::request::Request;
pub use rpc::server::{Server, ServerBuilder, ServerStats};
pub use sync::wait::Wait;
pub use topic::MAX_TOPIC;
pub use work::puller::{Puller, PullerBuilder};
pub use work::pusher::{Pusher, PusherBuilder};
pub use work::{PusherStats, Reason, Rejected};
pub use writer::outstanding::{Holder, Outstanding};
pub use writer::release::Releases;
pub use writer::ticket::Ticket;

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
    link::location::prepare();
}
