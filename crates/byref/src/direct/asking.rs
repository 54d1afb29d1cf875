//! Questions to the mailbox that has a name in the rendezvous directory: who it is, or whether it will do something. Each has a connection
//! of its own, one packet there and one back, answered by the service thread of the other process.

use crate::direct::identity::Identity;
use crate::link::handshake::{self, Call, NotUnderstood, ToSubscriber, Wish};
use crate::link::rendezvous::Directory;
use crate::sys::socket::{self, Connect, MAX_PACKET, Received};
use crate::topic;
use rustix::fd::OwnedFd;
use std::io;
use std::time::Duration;

/// A question that was put.
pub(crate) struct Question {
    /// Absent where the other side had no room for one more connection.
    socket: Option<OwnedFd>,
    /// The process that is asked (0: out of sight).
    pub pid: i32,
}

/// A connection, before the question is put.
pub(crate) struct Connected {
    question: Question,
    name: String,
}

/// What was answered.
#[derive(Debug, PartialEq)]
pub(crate) enum Answer {
    /// The mailbox that was meant.
    Here(Identity),
    /// Not that one, or it has gone meanwhile.
    No,
    /// It speaks another version of the protocol.
    Version(u32),
}

impl Connected {
    /// Connects to whoever has the name; `None`: nobody listens there. Where too many are connecting, there is no answer for now.
    pub fn to(directory: &Directory, name: &str) -> io::Result<Option<Self>> {
        let socket = match directory.connect(name)? {
            Connect::Connected(socket) => Some(socket),
            Connect::Busy => None,
            Connect::Refused | Connect::Absent => return Ok(None),
        };
        let pid = socket.as_ref().and_then(socket::peer_pid).map_or(0, |pid| pid.as_raw_nonzero().get());
        fault!("ask.connected");
        Ok(Some(Connected { question: Question { socket, pid }, name: name.to_owned() }))
    }

    pub fn pid(&self) -> i32 {
        self.question.pid
    }

    /// Puts the question; `None`: it could not be put, and may be put again later.
    pub fn ask(self, wish: Wish) -> io::Result<Option<Question>> {
        let Some(socket) = &self.question.socket else { return Ok(None) };
        let call = Call { name: self.name, wish };
        match socket::send(socket, &handshake::encode_first(&call), None) {
            Ok(true) => Ok(Some(self.question)),
            Ok(false) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(None), // The next look tells.
            Err(error) => Err(error),
        }
    }
}

impl Question {
    /// Waits so long for the answer; `None`: there is none yet.
    pub fn answer(&self, timeout: Duration) -> io::Result<Option<Answer>> {
        let Some(socket) = &self.socket else { return Ok(None) };
        if !socket::is_readable_within(socket, timeout)? {
            return Ok(None);
        }
        let mut packet = [0; MAX_PACKET];
        let len = match socket::receive(socket, &mut packet)? {
            Received::Packet(len, _) => len,
            Received::Empty => return Ok(None),
            Received::OutOfDescriptors => return Err(io::Error::from_raw_os_error(libc::EMFILE)),
            Received::HungUp => return Ok(Some(Answer::No)),
        };
        Ok(Some(match handshake::decode_first(&packet[..len]) {
            Ok(ToSubscriber::Here(here)) if topic::validate(&here.address).is_ok() => {
                Answer::Here(Identity::new(here.address, here.incarnation, self.pid))
            }
            Err(NotUnderstood::Version(theirs)) => Answer::Version(theirs),
            _ => Answer::No,
        }))
    }
}
