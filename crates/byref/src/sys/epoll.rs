//! Waiting for descriptors.

use super::limits;
pub(crate) use super::woken::Woken;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::{Errno, read, write};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime};
use std::io;
use std::time::Duration;

pub(crate) use rustix::event::epoll::EventFlags as Interest;

/// The most descriptors that one wait tells of; those that stay ready come again.
pub(crate) const READY_AT_ONCE: usize = 64;

/// An epoll instance whose entries carry a `u64` token.
pub(crate) struct Epoll(OwnedFd);

impl Epoll {
    pub fn new() -> io::Result<Self> {
        let made = epoll::create(epoll::CreateFlags::CLOEXEC);
        Ok(Epoll(made.map_err(|error| limits::name_if_forbidden("epoll_create1", error.into()))?))
    }

    pub fn add(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(epoll::add(&self.0, fd, epoll::EventData::new_u64(token), interest)?)
    }

    pub fn modify(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(epoll::modify(&self.0, fd, epoll::EventData::new_u64(token), interest)?)
    }

    /// Takes a descriptor out; one that is not in it is no error.
    pub fn remove(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.0, fd);
    }

    /// Waits up to `timeout` (`None`: without limit) and pushes the tokens of what is ready onto `tokens`.
    pub fn wait(&self, timeout: Option<Duration>, tokens: &mut Vec<u64>) -> io::Result<Woken> {
        let mut events = [epoll::Event { flags: Interest::empty(), data: epoll::EventData::new_u64(0) }; READY_AT_ONCE];
        match epoll::wait(&self.0, &mut events[..], timeout.map(timespec).as_ref()) {
            Ok(0) => Ok(Woken::TimedOut),
            Ok(n) => {
                tokens.extend(events[..n].iter().map(|event| event.data.u64()));
                Ok(Woken::Ready)
            }
            Err(Errno::INTR) => Ok(Woken::Interrupted),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The kernel refuses times beyond its clock; a year is as good as for ever.
fn timespec(duration: Duration) -> Timespec {
    let duration = duration.min(Duration::from_secs(365 * 86400));
    Timespec { tv_sec: duration.as_secs() as _, tv_nsec: duration.subsec_nanos() as _ }
}

/// A process-private doorbell. It is never handed to a peer, who could make it blocking.
pub(crate) struct Bell(OwnedFd);

impl Bell {
    pub fn new() -> io::Result<Self> {
        let made = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let made = made.map_err(|error| limits::name_if_forbidden("eventfd2", error.into()))?;
        limits::leave_room(&made);
        Ok(Bell(made))
    }

    pub fn ring(&self) {
        let _ = write(&self.0, &1u64.to_ne_bytes());
    }

    /// Waits up to `timeout` (`None`: without limit) for a ring, which stays until it is silenced.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<Woken> {
        match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], timeout.map(timespec).as_ref()) {
            Ok(0) => Ok(Woken::TimedOut),
            Ok(_) => Ok(Woken::Ready),
            Err(Errno::INTR) => Ok(Woken::Interrupted),
            Err(error) => Err(error.into()),
        }
    }

    pub fn silence(&self) {
        let _ = read(&self.0, &mut [0u8; 8]);
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A descriptor that becomes readable at a time of `CLOCK_MONOTONIC`.
pub(crate) struct Alarm {
    fd: OwnedFd,
    /// What it is set to, in nanoseconds.
    at: Option<u64>,
}

impl Alarm {
    pub fn new() -> io::Result<Self> {
        let made = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK);
        let fd = made.map_err(|error| limits::name_if_forbidden("timerfd_create", error.into()))?;
        limits::leave_room(&fd);
        Ok(Alarm { fd, at: None })
    }

    /// Sets the time, in nanoseconds; `None`: never. It is not readable before that.
    pub fn set(&mut self, at: Option<u64>) -> io::Result<()> {
        if at != self.at {
            // To the kernel, zero is never.
            let at_ns = at.map_or(0, |at| at.max(1));
            let it_value = Timespec { tv_sec: (at_ns / 1_000_000_000) as _, tv_nsec: (at_ns % 1_000_000_000) as _ };
            let times = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
            timerfd_settime(&self.fd, TimerfdTimerFlags::ABSTIME, &times)?;
            self.at = at;
        }
        Ok(())
    }
}

impl AsFd for Alarm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
