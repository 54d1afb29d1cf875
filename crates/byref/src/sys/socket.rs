//! Unix sockets that keep packet borders (`SOCK_SEQPACKET`) and carry descriptors. Never blocking.
#![allow(unsafe_code)]

use crate::sys::limits;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{
    self, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType, sockopt,
};
use rustix::process::Pid;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::path::Path;
use std::time::Duration;

/// The longest packet of the protocol: a topic, a name and some numbers.
pub(crate) const MAX_PACKET: usize = 4096;

/// How many connections may wait to be accepted; more are told to try again.
const BACKLOG: i32 = 256;

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let made = net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
    made.map_err(|error| limits::name_if_forbidden("socket", error.into())).inspect(|fd| limits::leave_room(fd))
}

/// A listening socket bound to `path`.
pub(crate) fn listen(path: &Path) -> io::Result<OwnedFd> {
    let fd = socket()?;
    net::bind(&fd, &SocketAddrUnix::new(path)?)?;
    net::listen(&fd, BACKLOG)?;
    Ok(fd)
}

/// The outcome of a connection attempt.
pub(crate) enum Connect {
    Connected(OwnedFd),
    /// The listener's backlog is full: try again.
    Busy,
    /// Nobody listens on this name any more.
    Refused,
    /// There is no such name (any more).
    Absent,
}

/// Connects to the listener at `path`.
pub(crate) fn connect(path: &Path) -> io::Result<Connect> {
    let fd = socket()?;
    match net::connect(&fd, &SocketAddrUnix::new(path)?) {
        Ok(()) => Ok(Connect::Connected(fd)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(Connect::Busy),
        Err(Errno::CONNREFUSED) => Ok(Connect::Refused),
        Err(Errno::NOENT) => Ok(Connect::Absent),
        Err(error) => Err(error.into()),
    }
}

/// The next waiting connection, `None` when there is none.
pub(crate) fn accept(listener: impl AsFd) -> io::Result<Option<OwnedFd>> {
    match net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
        Ok(fd) => {
            limits::leave_room(&fd);
            Ok(Some(fd))
        }
        Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The process that connected, or listened, at the other end; `None` when it is in another PID namespace.
pub(crate) fn peer_pid(fd: impl AsFd) -> Option<Pid> {
    Pid::from_raw(peer_credentials(fd)?.pid)
}

/// The same, with its user and its first group. The number of a process in another PID namespace is 0.
pub(crate) fn peer_credentials(fd: impl AsFd) -> Option<libc::ucred> {
    // Not through rustix: its `Pid` cannot be zero, which is what the kernel reports for a process out of sight.
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    let (fd, out) = (fd.as_fd().as_raw_fd(), (&raw mut credentials).cast());
    // SAFETY: the descriptor is open, and `out` points to `len` writable bytes of the type that SO_PEERCRED fills.
    let failed = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, out, &mut len) };
    (failed == 0).then_some(credentials)
}

/// The other groups of the process at the other end (Linux 4.13).
pub(crate) fn peer_groups(fd: impl AsFd) -> Vec<u32> {
    const MOST: usize = 1 << 16; // The kernel's own limit.
    let mut groups = vec![0u32; MOST];
    let mut len = size_of_val(&groups[..]) as libc::socklen_t;
    let (fd, out) = (fd.as_fd().as_raw_fd(), groups.as_mut_ptr().cast());
    // SAFETY: the descriptor is open, and `out` points to `len` writable bytes, to be filled with numbers.
    let failed = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERGROUPS, out, &mut len) };
    groups.truncate(if failed != 0 { 0 } else { len as usize / size_of::<u32>() });
    groups
}

/// Whether the other end is closed, by everybody who had it. Packets may still be there to be read.
pub(crate) fn is_hung_up(fd: impl AsFd) -> bool {
    let mut asked = [PollFd::new(&fd, PollFlags::RDHUP)];
    matches!(poll(&mut asked, Some(&Timespec::default())), Ok(1..))
        && asked[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP)
}

/// Whether there is something to receive, or the end of it, within `timeout`. A signal ends the wait.
pub(crate) fn is_readable_within(fd: impl AsFd, timeout: Duration) -> io::Result<bool> {
    let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos() as i64 };
    match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Has the kernel refuse what the other end sends from now on. What was sent before can be received; sending goes on.
pub(crate) fn stop_receiving(fd: impl AsFd) {
    let _ = net::shutdown(fd, Shutdown::Read);
}

/// Ends the connection for every process that shares the descriptor (closing would end it for this one only).
pub(crate) fn hang_up(fd: impl AsFd) {
    let _ = net::shutdown(fd, Shutdown::Both);
}

/// Whether an error of sending or receiving says that the other side went away in the middle of it.
pub(crate) fn is_hang_up(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

/// Sends one packet, with at most one descriptor. `Ok(false)`: the peer's queue is full, or holds too many descriptors, or
/// the system is short of memory.
pub(crate) fn send(fd: impl AsFd, packet: &[u8], passed: Option<BorrowedFd<'_>>) -> io::Result<bool> {
    send_parts(fd, [packet, &[]], passed)
}

/// The same with a packet of two parts.
pub(crate) fn send_parts(fd: impl AsFd, packet: [&[u8]; 2], passed: Option<BorrowedFd<'_>>) -> io::Result<bool> {
    match try_send(fd, packet, passed) {
        Ok(()) => Ok(true),
        Err(Errno::AGAIN | Errno::TOOMANYREFS | Errno::INTR | Errno::NOBUFS | Errno::NOMEM) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The two ends of a bell: bytes that are sent to one make the other readable.
pub(crate) fn bell() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let ends = net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    limits::leave_room(&ends.1);
    Ok(ends)
}

/// Whether `fd` is what [`bell`] makes. Who rings anything else might say something to somebody.
pub(crate) fn is_bell(fd: impl AsFd) -> bool {
    let fd = fd.as_fd();
    sockopt::socket_domain(fd) == Ok(AddressFamily::UNIX)
        && sockopt::socket_type(fd) == Ok(SocketType::STREAM)
        && is_peer_unnamed(fd)
}

/// Whether the socket at the other end has no address: it listened nowhere.
fn is_peer_unnamed(fd: BorrowedFd<'_>) -> bool {
    // Not through rustix, which does not tell such an address from none.
    // SAFETY: the structure consists of numbers.
    let mut address = unsafe { std::mem::zeroed::<libc::sockaddr_un>() };
    let mut len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the descriptor is open, and `address` has `len` writable bytes.
    let failed = unsafe { libc::getpeername(fd.as_raw_fd(), (&raw mut address).cast(), &mut len) };
    failed == 0 && len as usize == size_of::<libc::sa_family_t>()
}

/// Rings at one end of a bell; `false`: it may not be heard, and will not be from now on.
pub(crate) fn ring(fd: impl AsFd) -> bool {
    // Where no byte has room, many were not heard yet.
    matches!(try_send(fd, [&[0], &[]], None), Ok(()) | Err(Errno::AGAIN))
}

/// Takes what was rung at the other end of a bell; `false`: nobody will ring there any more.
pub(crate) fn silence(fd: impl AsFd) -> bool {
    !matches!(net::recv(fd, &mut [0u8; 256], RecvFlags::DONTWAIT), Ok((0, _)) | Err(Errno::CONNRESET | Errno::PIPE))
}

fn try_send(fd: impl AsFd, packet: [&[u8]; 2], passed: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    #[cfg(all(test, not(loom)))]
    shortage::strikes()?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let passed = passed.as_slice();
    if !passed.is_empty() {
        let fits = control.push(SendAncillaryMessage::ScmRights(passed));
        debug_assert!(fits, "the control buffer has room for one descriptor");
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    net::sendmsg(fd, &packet.map(IoSlice::new), &mut control, flags).map(drop)
}

/// Two ends of a connection, for tests that play the other side.
#[cfg(all(any(test, fuzzing), not(loom)))]
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// A system without memory for packets, or a thread without descriptors, which cannot be had otherwise.
#[cfg(all(test, not(loom)))]
pub(crate) mod shortage {
    use rustix::io::Errno;
    use std::cell::Cell;

    thread_local! {
        static LASTS_FOR: Cell<u32> = const { Cell::new(0) };
        static OF_DESCRIPTORS: Cell<bool> = const { Cell::new(false) };
    }

    /// Whether descriptors find no room when this thread receives them.
    pub fn of_descriptors(is_short: bool) {
        OF_DESCRIPTORS.set(is_short);
    }

    pub fn is_of_descriptors() -> bool {
        OF_DESCRIPTORS.get()
    }

    /// The next packets that this thread sends are refused.
    pub fn of(packets: u32) {
        LASTS_FOR.set(packets);
    }

    pub fn strikes() -> Result<(), Errno> {
        let left = LASTS_FOR.get();
        LASTS_FOR.set(left.saturating_sub(1));
        if left > 0 { Err(Errno::NOBUFS) } else { Ok(()) }
    }
}

/// Takes the next packet without the descriptor that came with it, which [`receive`] has no room for; gives its length.
pub(crate) fn receive_without_descriptor(fd: impl AsFd, buffer: &mut [u8; MAX_PACKET]) -> io::Result<usize> {
    // Without a buffer for descriptors the kernel makes none.
    Ok(net::recv(fd, &mut buffer[..], RecvFlags::DONTWAIT)?.0)
}

/// What a look at the socket found.
pub(crate) enum Received {
    /// A packet of this many bytes, and the descriptor that came with it.
    Packet(usize, Option<OwnedFd>),
    /// A descriptor came but could not be taken: this process is out of descriptors. The packet stays queued.
    OutOfDescriptors,
    Empty,
    HungUp,
}

/// Takes the next packet.
///
/// A packet that carries a descriptor is looked at first and taken only once its descriptor is safely here: the kernel
/// throws away what does not fit into a full descriptor table.
pub(crate) fn receive(fd: impl AsFd, buffer: &mut [u8; MAX_PACKET]) -> io::Result<Received> {
    let fd = fd.as_fd();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC | RecvFlags::PEEK;
    let mut look = || net::recvmsg(fd, &mut [IoSliceMut::new(&mut *buffer)], &mut control, flags);
    // A peer that died with unread packets is reported once in front of what it sent; the report is gone with the look.
    let looked = match look() {
        Err(Errno::CONNRESET) => look(),
        looked => looked,
    };
    let seen = match looked {
        Ok(seen) => seen,
        Err(Errno::AGAIN | Errno::INTR) => return Ok(Received::Empty),
        Err(Errno::CONNRESET | Errno::PIPE) => return Ok(Received::HungUp),
        Err(error) => return Err(error.into()),
    };
    let mut passed = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    if seen.bytes == 0 {
        return Ok(Received::HungUp);
    }
    #[cfg(all(test, not(loom)))]
    if passed.is_some() && shortage::is_of_descriptors() {
        return Ok(Received::OutOfDescriptors);
    }
    if passed.is_none() && seen.flags.contains(ReturnFlags::CTRUNC) {
        return Ok(Received::OutOfDescriptors);
    }
    // Without room for descriptors the kernel drops the packet's own: `passed` came with the look.
    let take = || net::recv(fd, &mut [0u8; 1], RecvFlags::DONTWAIT);
    let taken = match take() {
        Err(Errno::CONNRESET) => take(),
        taken => taken,
    };
    if taken.is_err() {
        passed = None;
    }
    if seen.flags.contains(ReturnFlags::TRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a packet longer than the protocol knows"));
    }
    match taken {
        Ok(_) => {
            passed.iter().for_each(limits::leave_room);
            Ok(Received::Packet(seen.bytes, passed))
        }
        // Another thread that reads this socket, too, was faster.
        Err(Errno::AGAIN | Errno::INTR) => Ok(Received::Empty),
        Err(error) => Err(error.into()),
    }
}
