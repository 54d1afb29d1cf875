//! Everything that can go wrong, in words for the person who has to act on it.

use crate::attributes::TooLong;
use crate::direct::identity::{Identity, Successor};
use crate::direct::undelivered::Undelivered;
use crate::rpc::failure::Failure;
use crate::sys::limits;
use crate::sys::text::printable;
use std::borrow::Cow;
use std::io;
use std::path::Path;
use std::time::Duration;

/// An error of this library. Its text says what happened, to which topic, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The time given to a call ran out; nothing changed.
    #[error("{} on {} timed out after {waited:?}{hint}", operation(what), on(topic, what))]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// The topic.
        topic: String,
        /// The time given.
        waited: Duration,
        /// Who or what it waited for, with a leading separator; may be empty.
        hint: String,
    },
    /// The endpoint was closed.
    #[error("the {} is closed; create a new one", endpoint(what, topic))]
    Closed {
        /// Publisher, subscriber, loan, or mailbox.
        what: &'static str,
        /// The topic.
        topic: String,
    },
    /// The publisher's memory cannot take the payload.
    #[error("topic '{topic}': no room for {requested} bytes in a pool of max_memory={max_memory} bytes: {reason}")]
    PoolExhausted {
        /// The topic.
        topic: String,
        /// Bytes asked for.
        requested: u64,
        /// The publisher's `max_memory`.
        max_memory: u64,
        /// Who holds the memory, and what to do.
        reason: String,
    },
    /// A peer speaks another version of the protocol.
    #[error(
        "topic '{topic}': the peer (process {pid}) speaks protocol version {theirs}, this process {ours}; run the same byref version in both"
    )]
    VersionMismatch {
        /// The topic.
        topic: String,
        /// The peer's process.
        pid: i32,
        /// The peer's version.
        theirs: u32,
        /// This library's version.
        ours: u32,
    },
    /// A publisher disconnected this subscriber for good.
    #[error(
        "topic '{topic}': the publisher in process {pid} evicted this subscriber, which {why}; other publishers' messages still \
         come; create a new subscriber to connect again, and take and release messages sooner"
    )]
    Evicted {
        /// The topic.
        topic: String,
        /// The publisher's process.
        pid: i32,
        /// What this subscriber did.
        why: String,
    },
    /// The endpoint belongs to the parent of this forked process.
    #[error("the {} belongs to the process that forked this one; create a new one here", endpoint(what, topic))]
    Forked {
        /// Publisher, subscriber, loan, or mailbox.
        what: &'static str,
        /// The topic.
        topic: String,
    },
    /// Not a topic.
    #[error("invalid topic '{}': {reason}", topic.escape_debug())]
    InvalidTopic {
        /// What was given (shortened when long).
        topic: String,
        /// What is wrong with it.
        reason: Cow<'static, str>,
    },
    /// An argument makes no sense.
    #[error("{0}")]
    InvalidArgument(String),
    /// The directory where endpoints meet cannot be used.
    #[error("cannot use the rendezvous directory {path}: {reason}")]
    Directory {
        /// The directory.
        path: String,
        /// Its fault (mode, owner, ...) and what to do.
        reason: String,
    },
    /// Somebody else has the mailbox's address: when it was to be claimed, or by having taken it over.
    #[error("{}", in_use_text(address, *pid, name.as_deref(), *conflict))]
    AddressInUse {
        /// The address.
        address: String,
        /// The process of the mailbox that has it (0 when it is out of sight).
        pid: i32,
        /// What that process is called, where the system tells.
        name: Option<Box<str>>,
        /// How it comes to have it.
        conflict: Conflict,
    },
    /// Nobody has the address that was sent to. Nothing was sent.
    #[error("mailbox '{from}': nobody has the address '{address}'{hint}")]
    Unroutable {
        /// The mailbox that was to send.
        from: String,
        /// The address.
        address: String,
        /// Where it was looked for, and what to do, with a leading separator.
        hint: String,
    },
    /// The mailbox that was sent to has ended: it was closed, its process died, or its address was taken over. The message of
    /// this call was not sent.
    #[error(
        "mailbox '{from}': the mailbox '{}' of process {} has ended; {}",
        peer.address(),
        peer.process(),
        undelivered_text(undelivered.len())
    )]
    PeerLost {
        /// The mailbox that was to send.
        from: String,
        /// The one that is lost.
        peer: Identity,
        /// The messages that were sent to it before and that it never took. [`Mailbox::undelivered`](crate::Mailbox::undelivered)
        /// gives them, too, and forgets them.
        undelivered: Vec<Undelivered>,
    },
    /// Nobody serves. Nothing was sent.
    #[error("service '{service}': nobody serves it{hint}")]
    NoServer {
        /// The service.
        service: String,
        /// Where servers were looked for, and what to do, with a leading separator.
        hint: String,
    },
    /// A server dropped the request without a reply.
    #[error("service '{service}': the server of process {} dropped the request without a reply", peer.process())]
    NoReply {
        /// The service.
        service: String,
        /// The server.
        peer: Identity,
    },
    /// The server of a request has ended without a reply.
    #[error("service '{service}': the server of process {} has ended, {}", peer.process(), taken_text(*taken))]
    ServerLost {
        /// The service.
        service: String,
        /// The server.
        peer: Identity,
        /// It had taken the request, and may have acted on it. Otherwise nobody has seen it.
        taken: bool,
    },
    /// The time for a request is over; a reply that still comes is dropped.
    #[error("service '{service}': no reply within {waited:?}{hint}")]
    DeadlineExceeded {
        /// The service.
        service: String,
        /// The time that it was given.
        waited: Duration,
        /// Where it was, with a leading separator.
        hint: &'static str,
    },
    /// The request was cancelled.
    #[error("service '{service}': the request was cancelled")]
    Cancelled {
        /// The service.
        service: String,
    },
    /// The service failed.
    #[error("service '{service}': the server of process {} failed: {}", peer.process(), failure.text)]
    Remote {
        /// The service.
        service: String,
        /// The server.
        peer: Identity,
        /// What it said.
        failure: Failure,
    },
    /// The caller's interrupt check asked to stop waiting.
    #[error("interrupted while waiting on topic '{topic}'")]
    Interrupted {
        /// The topic.
        topic: String,
    },
    /// A call that was not allowed to wait would have to.
    #[error("topic '{topic}': this would have to wait")]
    WouldBlock {
        /// The topic.
        topic: String,
    },
    /// The system refused something: descriptors, memory, address space. The text names the limits that can be behind it.
    #[error("topic '{topic}': {what}: {source}{}{}", limits::behind(source), limits::sandbox(source))]
    System {
        /// The topic.
        topic: String,
        /// What was being done.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

fn in_use_text(address: &str, pid: i32, name: Option<&str>, conflict: Conflict) -> String {
    let process = if pid == 0 { "a process that is out of sight".to_owned() } else { format!("process {pid}") };
    let name = name.map_or_else(String::new, |name| format!(" ('{}')", printable(name)));
    match conflict {
        Conflict::Held => format!(
            "the address '{address}' is in use by a mailbox of {process}{name}; choose another one, or take it over with takeover"
        ),
        Conflict::Silent => format!(
            "the address '{address}' is in use by a mailbox of {process}{name}, which does not answer; continue or end that process"
        ),
        Conflict::TakenOver => format!(
            "mailbox '{address}': {process}{name} took the address over, so this mailbox is closed; create a new one"
        ),
    }
}

fn taken_text(taken: bool) -> &'static str {
    if taken {
        "after it had taken the request, which it may have acted on"
    } else {
        "before it took the request, and there is no other one"
    }
}

fn undelivered_text(count: usize) -> String {
    match count {
        0 => "every message that was sent to it before was taken by it".into(),
        1 => "1 message that was sent to it before was never taken: undelivered() gives it back".into(),
        count => {
            format!("{count} messages that were sent to it before were never taken: undelivered() gives them back")
        }
    }
}

/// The end of a text that names an endpoint.
fn on(topic: &str, what: &str) -> String {
    match what {
        _ if what.starts_with(MAILBOX) => format!("mailbox '{topic}'"),
        _ if OF_SERVICES.contains(&what) => format!("service '{topic}'"),
        PUSHER | PULLER | JOB | "push" | "pull" | "join" => format!("queue '{topic}'"),
        _ => format!("topic '{topic}'"),
    }
}

fn operation(what: &str) -> &str {
    what.strip_prefix(MAILBOX).map_or(what, str::trim_start)
}

fn endpoint(what: &str, topic: &str) -> String {
    match what {
        MAILBOX => on(topic, what),
        _ if OF_SERVICES.contains(&what) => format!("{what} of {}", on(topic, what)),
        _ => format!("{what} on {}", on(topic, what)),
    }
}

/// How `what` begins in errors of mailboxes; their topic is an address.
pub(crate) const MAILBOX: &str = "mailbox";
/// What errors about services call what they are about.
const OF_SERVICES: [&str; 4] = ["client", "server", "request", "serving"];

/// What is on a queue, which is their topic.
pub(crate) const PUSHER: &str = "pusher";
pub(crate) const PULLER: &str = "puller";
pub(crate) const JOB: &str = "job";

/// How somebody else comes to have an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Conflict {
    /// It had the address first.
    Held,
    /// It had the address first, and did not give it up when it was asked to.
    Silent,
    /// It has taken the address from this mailbox.
    TakenOver,
}

/// This library's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl From<TooLong> for Error {
    fn from(error: TooLong) -> Self {
        Error::InvalidArgument(error.to_string())
    }
}

impl Error {
    pub(crate) fn system(topic: &str, what: &'static str) -> impl FnOnce(io::Error) -> Error {
        let topic = topic.to_owned();
        move |source| Error::System { topic, what, source }
    }

    /// Something could not be done in the directory: for want of something that a program on `topic` may have more of
    /// later, or because of the directory.
    pub(crate) fn meeting(topic: &str, path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |error| {
            if limits::is_shortage(&error) {
                return Error::system(topic, what)(error);
            }
            Error::directory(path, format!("{what}: {error}"))
        }
    }

    /// Of who had the address before.
    pub(crate) fn taken_over(address: String, by: &Successor) -> Error {
        Error::AddressInUse { address, pid: by.pid, name: by.name.clone(), conflict: Conflict::TakenOver }
    }

    pub(crate) fn directory(path: &Path, reason: impl Into<String>) -> Error {
        Error::Directory { path: path.display().to_string(), reason: reason.into() }
    }
}
