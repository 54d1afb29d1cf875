//! Everything that can go wrong, in words for the person who has to act on it.

use crate::sys::limits;
use std::borrow::Cow;
use std::io;
use std::path::Path;
use std::time::Duration;

/// An error of this library. Its text says what happened, to which topic, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The time given to a call ran out; nothing changed.
    #[error("{what} on topic '{topic}' timed out after {waited:?}{hint}")]
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
    #[error("the {what} on topic '{topic}' is closed; create a new one")]
    Closed {
        /// Publisher, subscriber, or loan.
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
    #[error("the {what} on topic '{topic}' belongs to the process that forked this one; create a new one here")]
    Forked {
        /// Publisher, subscriber, or loan.
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

/// A text that another process gave, as it may stand in a log line, in an error, and on a terminal.
pub(crate) fn printable(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            printable.extend(character.escape_default());
        } else {
            printable.push(character);
        }
    }
    printable
}

/// This library's results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

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

    pub(crate) fn directory(path: &Path, reason: impl Into<String>) -> Error {
        Error::Directory { path: path.display().to_string(), reason: reason.into() }
    }
}
