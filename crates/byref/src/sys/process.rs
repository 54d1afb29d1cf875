//! Processes, clocks and random names.
#![allow(unsafe_code)]

use super::{limits, processor};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::time::{ClockId, clock_gettime};
use std::io;

/// Nanoseconds of `CLOCK_REALTIME` since the epoch.
#[inline]
pub(crate) fn realtime_ns() -> u64 {
    let now = clock_gettime(ClockId::Realtime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Nanoseconds of `CLOCK_MONOTONIC`, which all processes of a host share.
#[inline]
pub(crate) fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// What can be known of a peer's process.
pub(crate) enum Process {
    /// The descriptor becomes readable when it dies.
    Alive(OwnedFd),
    Dead,
    /// The kernel has no pidfds (before 5.3), or the process is in another PID namespace: hang-up of the socket is then the
    /// only sign of death.
    Unknown,
}

impl Process {
    /// An error says that this process is short of something: the question has to be asked again.
    pub fn find(pid: Option<Pid>) -> io::Result<Self> {
        let Some(pid) = pid else { return Ok(Process::Unknown) };
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => {
                limits::leave_room(&fd);
                Ok(Process::Alive(fd))
            }
            Err(Errno::SRCH) => Ok(Process::Dead),
            Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM)) => Err(error.into()),
            Err(_) => Ok(Process::Unknown),
        }
    }
}

/// Whether the process of a pidfd is dead.
pub(crate) fn is_dead(pidfd: impl AsFd) -> bool {
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&at_once)).is_ok_and(|ready| ready > 0)
}

/// What a process is called, where the system tells.
pub(crate) fn command_of(pid: i32) -> Option<String> {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(name.trim_end().to_owned()).filter(|name| pid > 0 && !name.is_empty())
}

/// A random identity, never used twice.
pub(crate) fn random_id() -> u128 {
    let mut bytes = [0u8; 16];
    let mut filled = 0;
    while filled < bytes.len() {
        filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())
            .expect("getrandom works from Linux 3.17");
    }
    u128::from_ne_bytes(bytes)
}

/// Starts a thread of byref's own: no signal is ever delivered to it, and it has neither the processor nor the real-time priority of
/// the one that starts it.
pub(crate) fn spawn_helper(name: &str, body: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigfillset initialises the set it is given.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: `all` was initialised above; `before` receives this thread's mask.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) };
    // The new thread inherits the mask in force now.
    let builder = std::thread::Builder::new().name(name.to_owned());
    let started = processor::start_apart(|| {
        builder.spawn(|| {
            share_time();
            body();
        })
    });
    // SAFETY: `before` was filled by the first pthread_sigmask, which cannot fail for valid arguments.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut()) };
    started.map(drop)
}

/// Gives up a real-time priority that this thread has inherited.
fn share_time() {
    // SAFETY: it takes a number, that of this thread.
    let policy = unsafe { libc::sched_getscheduler(0) };
    if matches!(policy & !libc::SCHED_RESET_ON_FORK, libc::SCHED_FIFO | libc::SCHED_RR) {
        // SAFETY: all fields of the structure are numbers, whatever others a system has.
        let parameters = unsafe { std::mem::zeroed::<libc::sched_param>() };
        // SAFETY: the kernel reads the structure. If it refuses, the thread keeps its priority.
        unsafe { libc::sched_setscheduler(0, libc::SCHED_OTHER | policy & libc::SCHED_RESET_ON_FORK, &parameters) };
    }
}

/// What a fault point does to this process.
#[cfg(feature = "faults")]
#[derive(Clone, Copy)]
pub(crate) enum Fate {
    Kill,
    Stop,
}

/// Raises the signal in the calling thread, which so goes no further: all of the process ends, or stops until SIGCONT.
#[cfg(feature = "faults")]
#[cold]
pub(crate) fn meet(fate: Fate) {
    let signal = match fate {
        Fate::Kill => libc::SIGKILL,
        Fate::Stop => libc::SIGSTOP,
    };
    // SAFETY: no handler can be installed for these signals, so raising one runs no code of this program.
    unsafe { libc::raise(signal) };
}
