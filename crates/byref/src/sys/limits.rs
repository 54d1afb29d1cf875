//! The limits of this process and of the system, for those who ran into one.

use rustix::fd::{AsFd, AsRawFd};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io;

/// Where fewer descriptors than this are left, the limit is raised.
const ROOM: u64 = 64;

/// How many descriptors this process may have at a time.
pub(crate) fn most_descriptors() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Raises this process's own limit of descriptors to what the system allows it, when `fd`, which is new, shows that few are left:
/// the kernel gives the lowest number that is free. `BYREF_RAISE_NOFILE=0` forbids it, for programs that use `select(2)`.
pub(crate) fn leave_room(fd: impl AsFd) {
    let limit = getrlimit(Resource::Nofile);
    let is_near = limit.current.is_some_and(|most| fd.as_fd().as_raw_fd() as u64 + ROOM >= most);
    if is_near
        && limit.current != limit.maximum
        && std::env::var_os("BYREF_RAISE_NOFILE").is_none_or(|value| value != "0")
    {
        raise(limit);
    }
}

#[cold]
fn raise(limit: Rlimit) {
    let number = |limit: Option<u64>| limit.map_or("unlimited".into(), |most| most.to_string());
    let (before, after) = (number(limit.current), number(limit.maximum));
    match setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        Ok(()) => log::info!(
            "byref: the limit of descriptors of this process, `ulimit -n`, was raised from {before} to {after}"
        ),
        Err(error) => log::debug!("byref: the limit of descriptors cannot be raised from {before} to {after}: {error}"),
    }
}

/// Whether the system refused something of which there may be more later.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    !behind(error).is_empty()
}

/// Which limits can be behind an error, as the end of a sentence. Empty: it is no shortage.
pub(crate) fn behind(error: &io::Error) -> String {
    let text = match error.raw_os_error() {
        Some(libc::EMFILE) => {
            let most = most_descriptors();
            format!("the descriptors of this process, `ulimit -n`: {most}")
        }
        Some(libc::ENFILE) => "the descriptors of the system, fs.file-max".into(),
        Some(libc::ENOMEM | libc::ENOBUFS) => {
            let space = getrlimit(Resource::As).current;
            let space =
                space.map(|most| format!("the address space of this process, `ulimit -v`: {} KiB; ", most >> 10));
            let mappings = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap_or_default();
            let mappings = mappings.trim_end();
            let space = space.unwrap_or_default();
            format!("{space}its mappings, vm.max_map_count: {mappings}; or the system's memory")
        }
        Some(libc::ENOSPC) => "the system's memory, or fs.epoll.max_user_watches".into(),
        Some(libc::EFBIG) => {
            let most = getrlimit(Resource::Fsize).current.unwrap_or(u64::MAX);
            format!("the size of files and of shared memory, `ulimit -f`: {} KiB", most >> 10)
        }
        Some(libc::EAGAIN) => {
            "the threads of this user, `ulimit -u`, or of its control group, pids.max; or memory".into()
        }
        _ => return String::new(),
    };
    format!(" (a limit was reached: {text}; raise it, or use less)")
}

/// What else can be behind an error, as the end of a sentence: a system call that is not allowed. Empty: something else.
pub(crate) fn sandbox(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::ENOSYS) => {
            " (a sandbox or container forbids this, most likely by a seccomp filter: have the system call allowed, or run outside of it)"
        }
        _ => "",
    }
}

/// An error of `call` that names it, if it was forbidden.
pub(crate) fn name_if_forbidden(call: &str, error: io::Error) -> io::Error {
    let why = sandbox(&error);
    if why.is_empty() { error } else { io::Error::new(error.kind(), format!("{call}: {error}{why}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_named_with_their_values() {
        let text = |errno| behind(&io::Error::from_raw_os_error(errno));
        assert!(text(libc::EMFILE).contains(&format!("`ulimit -n`: {}", most_descriptors())));
        let mappings = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap();
        assert!(text(libc::ENOMEM).contains(&format!("vm.max_map_count: {};", mappings.trim())));
        assert!(is_shortage(&io::Error::from_raw_os_error(libc::ENOSPC)));
        let forbidden = name_if_forbidden("memfd_create", io::Error::from_raw_os_error(libc::EPERM)).to_string();
        assert!(forbidden.starts_with("memfd_create: ") && forbidden.contains("seccomp"), "{forbidden}");
        assert!(!is_shortage(&io::Error::from_raw_os_error(libc::EACCES)) && !is_shortage(&io::Error::other("else")));
    }
}
