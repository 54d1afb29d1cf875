//! Locks on single bytes of a file, as POSIX has them: they belong to the process, not to a descriptor. A forked child does not inherit
//! them, and they are gone when the process is.
//!
//! A process gives all its locks on a file back when it closes *any* descriptor of it: see [`claims`](crate::link::claims).
#![allow(unsafe_code)]

use rustix::fd::{AsFd, AsRawFd};
use std::io;

fn byte(kind: libc::c_int, at: u64) -> libc::flock {
    libc::flock { l_type: kind as _, l_whence: libc::SEEK_SET as _, l_start: at as _, l_len: 1, l_pid: 0 }
}

/// Takes the lock on byte `at`; `false`: another process has it. A process that has it gets it again.
pub(crate) fn try_lock(file: impl AsFd, at: u64) -> io::Result<bool> {
    let lock = byte(libc::F_WRLCK, at);
    // SAFETY: the descriptor is open, and `lock` is what F_SETLK reads.
    let failed = unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_SETLK, &raw const lock) };
    if failed == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(error),
    }
}

/// Gives it back.
pub(crate) fn unlock(file: impl AsFd, at: u64) {
    let lock = byte(libc::F_UNLCK, at);
    // SAFETY: as above.
    unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_SETLK, &raw const lock) };
}

/// The process that has it (0: one that is out of sight); `None`: no other one.
pub(crate) fn holder(file: impl AsFd, at: u64) -> Option<i32> {
    let mut lock = byte(libc::F_WRLCK, at);
    // SAFETY: the descriptor is open, and `lock` is what F_GETLK reads and fills.
    let failed = unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_GETLK, &raw mut lock) };
    (failed == 0 && lock.l_type != libc::F_UNLCK as libc::c_short).then_some(lock.l_pid.max(0))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, memfd_create};

    /// Another process has to hold it: that one's own locks never stand in its way.
    #[test]
    fn a_lock_is_another_process_s_until_that_ends() {
        let file = memfd_create("test", MemfdFlags::empty()).unwrap();
        assert_eq!(holder(&file, 7), None);
        assert!(try_lock(&file, 7).unwrap() && try_lock(&file, 7).unwrap());
        assert_eq!(holder(&file, 7), None, "its own");
        unlock(&file, 7);
        let script = format!(
            "import fcntl, sys; fcntl.lockf({}, fcntl.LOCK_EX, 1, 9); print(flush=True); sys.stdin.read()",
            file.as_raw_fd()
        );
        let mut child = std::process::Command::new("python3")
            .args(["-c", &script])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        assert!(!try_lock(&file, 9).unwrap() && try_lock(&file, 8).unwrap());
        assert_eq!(holder(&file, 9), Some(child.id() as i32));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(holder(&file, 9), None);
        assert!(try_lock(&file, 9).unwrap());
    }
}
