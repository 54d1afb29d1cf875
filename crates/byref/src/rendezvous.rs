//! Where publishers and subscribers meet: a private directory of unix sockets, one for each publisher.
//!
//! A publisher binds under a temporary name, listens, and then renames to `<topic hash>-<publisher id>`, which is never used
//! again. So a final name that refuses a connection belongs to nobody any more, and whoever meets it removes it. Subscribers
//! watch the directory first and list it afterwards, so none is missed.

use crate::access::Access;
use crate::error::{Error, Result};
use crate::sys::process::{self, Process};
use crate::sys::socket::{self, Connect};
use crate::topic;
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::Gid;
use std::collections::HashSet;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// A temporary name this old belongs to a publisher that died between `bind` and `rename`.
const ABANDONED: Duration = Duration::from_secs(60);
/// The longest path that fits into a socket address with its final NUL.
const MAX_SOCKET_PATH: usize = 107;
/// The most strangers that are turned away before the service thread does something else.
const REFUSED_AT_ONCE: usize = 64;
const TEMPORARY: &str = "tmp-";
const QUEUE: &str = "queue-";
/// What could not be done with the directory.
pub(crate) const CANNOT_LISTEN: &str = "cannot make a socket in the rendezvous directory";
pub(crate) const CANNOT_LIST: &str = "cannot list the rendezvous directory";

/// The rendezvous directory, checked.
pub(crate) struct Directory {
    path: PathBuf,
    fd: OwnedFd,
    access: Access,
}

impl Directory {
    /// Opens the directory that the environment names, making it when it is missing. `topic`: of whoever needs it.
    pub fn open(topic: &str) -> Result<Self> {
        let (path, links) = choose();
        Self::open_at(topic, path, links)
    }

    /// `links`: whether a link in its place is followed.
    fn open_at(topic: &str, path: PathBuf, links: OFlags) -> Result<Self> {
        let access = Access::from_environment()?;
        let was_there = path.is_dir();
        let made = std::fs::DirBuilder::new().mode(0o700).recursive(true).create(&path);
        if let Err(error) = made
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(Error::directory(
                &path,
                format!("it cannot be made: {error}; set BYREF_DIR to a directory of your own"),
            ));
        }
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC | links;
        let fd = rustix::fs::open(&path, flags, Mode::empty()).map_err(io::Error::from).map_err(Error::meeting(
            topic,
            &path,
            "cannot open it as a directory",
        ))?;
        let directory = Directory { path, fd, access };
        if let (Some(group), false) = (directory.access.group(), was_there) {
            directory.share_with(group)?;
        }
        directory.check()?;
        Ok(directory)
    }

    /// Opens a directory that this process has made to a group. Its members remove no files but their own.
    fn share_with(&self, group: u32) -> Result<()> {
        rustix::fs::fchown(&self.fd, None, Some(Gid::from_raw(group)))
            .and_then(|()| rustix::fs::fchmod(&self.fd, Mode::from_raw_mode(0o3770)))
            .map_err(|error| {
                let error = io::Error::from(error);
                Error::directory(&self.path, format!("it cannot be given to group {group} (see BYREF_ALLOW): {error}"))
            })
    }

    /// Only who may connect may look into the directory: whoever can connect can read messages.
    fn check(&self) -> Result<()> {
        let stat = rustix::fs::fstat(&self.fd)
            .map_err(|error| Error::directory(&self.path, io::Error::from(error).to_string()))?;
        self.access.check_directory(&stat).map_err(|why| Error::directory(&self.path, why))
    }

    /// Whether both are the same directory.
    pub fn is(&self, other: &Directory) -> bool {
        let identity = |of: &Directory| rustix::fs::fstat(&of.fd).ok().map(|stat| (stat.st_dev, stat.st_ino));
        identity(self).is_some_and(|own| Some(own) == identity(other))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path to `name` that fits into a socket address, however deep the directory lies.
    fn socket_path(&self, name: &str) -> PathBuf {
        let full = self.path.join(name);
        if full.as_os_str().len() <= MAX_SOCKET_PATH {
            return full;
        }
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.fd.as_raw_fd()))
    }

    /// Starts to listen for subscribers of `topic`; gives the socket and its name in the directory.
    pub fn listen(&self, topic: &str, id: u128) -> io::Result<(OwnedFd, String)> {
        self.listen_as(socket_name(topic, id), id)
    }

    /// Starts to listen for those who want to look at an event queue; gives the socket and its name in the directory.
    pub fn listen_for_onlookers(&self, id: u128) -> io::Result<(OwnedFd, String)> {
        self.listen_as(format!("{QUEUE}{id:032x}"), id)
    }

    fn listen_as(&self, name: String, id: u128) -> io::Result<(OwnedFd, String)> {
        let temporary = format!("{TEMPORARY}{id:032x}");
        let listener = socket::listen(&self.socket_path(&temporary))?;
        fault!("listen.bound");
        if self.access.is_shared() {
            // To connect one needs the permission to write; who has it was decided for the directory.
            self.open_to_others(&temporary)?;
        }
        if let Err(error) = rustix::fs::renameat(&self.fd, &temporary, &self.fd, &name) {
            self.remove(&temporary);
            return Err(error.into());
        }
        fault!("listen.announced");
        Ok((listener, name))
    }

    /// Lets others of the directory connect to a socket in it. They may put something else in its place meanwhile.
    fn open_to_others(&self, name: &str) -> io::Result<()> {
        let socket =
            rustix::fs::openat(&self.fd, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        if FileType::from_raw_mode(rustix::fs::fstat(&socket)?.st_mode) != FileType::Socket {
            return Err(io::Error::other("somebody replaced the socket"));
        }
        let path = format!("/proc/self/fd/{}", socket.as_raw_fd());
        Ok(rustix::fs::chmod(path, Mode::from_raw_mode(0o660))?)
    }

    /// The next who connects and may; `None`: nobody waits, or so many in a row may not.
    pub fn accept(&self, listener: &OwnedFd) -> io::Result<Option<OwnedFd>> {
        for _ in 0..REFUSED_AT_ONCE {
            let Some(socket) = socket::accept(listener)? else { break };
            match self.access.check_peer(&socket) {
                Ok(()) => return Ok(Some(socket)),
                Err(why) => log::warn!("byref: refused a connection: {why}"),
            }
        }
        Ok(None)
    }

    /// Connects to a publisher's socket. One that nobody listens on any more is removed; so is one whose publisher died
    /// while a forked child keeps the listening descriptor, and will never accept.
    pub fn connect(&self, name: &str) -> io::Result<Connect> {
        let mut outcome = socket::connect(&self.socket_path(name))?;
        if let Connect::Connected(socket) = &outcome
            && let Process::Dead = Process::find(socket::peer_pid(socket))?
        {
            outcome = Connect::Refused;
        }
        if let Connect::Connected(socket) = &outcome
            && let Err(why) = self.access.check_peer(socket)
        {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("it is not to be trusted: {why}")));
        }
        if matches!(outcome, Connect::Refused) {
            fault!("connect.refused");
            self.remove(name);
        }
        Ok(outcome)
    }

    pub fn remove(&self, name: &str) {
        let _ = rustix::fs::unlinkat(&self.fd, name, AtFlags::empty());
    }

    /// All readable names in the directory.
    fn entries(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.fd)? {
            names.extend(entry?.file_name().to_str().ok().map(str::to_owned));
        }
        Ok(names)
    }

    /// The names of all publishers' sockets.
    pub fn names(&self) -> io::Result<HashSet<String>> {
        Ok(self.entries()?.into_iter().filter(|name| is_final(name)).collect())
    }

    /// The names of all event queues' sockets.
    pub fn queues(&self) -> io::Result<Vec<String>> {
        Ok(self.entries()?.into_iter().filter(|name| is_queue(name)).collect())
    }

    /// Removes what dead publishers of any topic, and dead event queues, left behind.
    pub fn sweep(&self) {
        for name in self.entries().unwrap_or_default() {
            if is_final(&name) || is_queue(&name) {
                let _ = self.connect(&name); // A live publisher sees a connection that says nothing and ends.
            } else if name.starts_with(TEMPORARY) && self.is_abandoned(&name) {
                self.remove(&name);
            }
        }
    }

    fn is_abandoned(&self, name: &str) -> bool {
        let Ok(stat) = rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) else { return false };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
            return false;
        }
        let made = SystemTime::UNIX_EPOCH + Duration::from_secs(stat.st_mtime.max(0) as u64);
        let old = SystemTime::now().duration_since(made).is_ok_and(|age| age > ABANDONED);
        old && matches!(socket::connect(&self.socket_path(name)), Ok(Connect::Refused))
    }
}

/// The final name of a publisher's socket.
fn socket_name(topic: &str, id: u128) -> String {
    format!("{:016x}-{id:032x}", topic::hash(topic))
}

/// Whether this is the name of a socket whose publisher may match a pattern. Only the names of single topics can be
/// told apart.
pub(crate) fn may_match(name: &str, pattern: &str) -> bool {
    let same_hash = || name.starts_with(&format!("{:016x}-", topic::hash(pattern)));
    is_final(name) && (topic::is_pattern(pattern) || same_hash())
}

pub(crate) fn is_final(name: &str) -> bool {
    name.split_once('-').is_some_and(|(hash, id)| is_hex(hash, 16) && is_hex(id, 32))
}

pub(crate) fn is_queue(name: &str) -> bool {
    name.strip_prefix(QUEUE).is_some_and(|id| is_hex(id, 32))
}

fn is_hex(part: &str, len: usize) -> bool {
    part.len() == len && part.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// `$BYREF_DIR`; else `/run/user/UID/byref` where that exists; else a directory per user among the temporary files.
/// A link is followed only where the user named it: anybody can make one among the temporary files.
fn choose() -> (PathBuf, OFlags) {
    if let Some(path) = std::env::var_os("BYREF_DIR").filter(|path| !path.is_empty()) {
        return (PathBuf::from(path), OFlags::empty());
    }
    let user = rustix::process::geteuid().as_raw();
    let runtime = PathBuf::from(format!("/run/user/{user}"));
    if runtime.is_dir() {
        return (runtime.join("byref"), OFlags::NOFOLLOW);
    }
    (std::env::temp_dir().join(format!("byref-{user}")), OFlags::NOFOLLOW)
}

/// What happened to a name in the directory.
pub(crate) enum News {
    /// It was renamed into place.
    Appeared(String),
    Vanished(String),
}

/// A watch on a directory that reports names that come and go.
pub(crate) struct Watch(Arc<OwnedFd>);

impl Watch {
    pub fn new(directory: &Directory) -> io::Result<Self> {
        use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(&fd, directory.path(), WatchFlags::MOVED_TO | WatchFlags::DELETE | WatchFlags::ONLYDIR)?;
        Ok(Watch(Arc::new(fd)))
    }

    /// The descriptor that is readable when there are news.
    pub fn fd(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.0)
    }

    /// What happened since the last call. `None`: something was missed, list the directory again.
    pub fn news(&self) -> Option<Vec<News>> {
        use rustix::fs::inotify::{ReadFlags, Reader};
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(&self.0, &mut buffer);
        let mut news = Vec::new();
        loop {
            match reader.next() {
                Ok(event) if event.events().contains(ReadFlags::QUEUE_OVERFLOW) => return None,
                Ok(event) => {
                    let gone = event.events().contains(ReadFlags::DELETE);
                    let name = event.file_name().and_then(|name| name.to_str().ok()).map(str::to_owned);
                    news.extend(name.map(if gone { News::Vanished } else { News::Appeared }));
                }
                Err(Errno::INTR) => {}
                Err(_) => return Some(news),
            }
        }
    }
}

/// A publisher's identity.
pub(crate) fn new_id() -> u128 {
    process::random_id()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_followed_only_where_the_user_has_named_it() {
        let _meeting = crate::fuzzing::meet_in_private();
        let directory = Directory::open("t").unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(directory.path(), &link).unwrap();
        assert!(Directory::open_at("t", link.clone(), OFlags::empty()).unwrap().is(&directory));
        assert!(Directory::open_at("t", link, OFlags::NOFOLLOW).is_err());
    }

    #[test]
    fn only_old_temporary_sockets_are_swept() {
        let _meeting = crate::fuzzing::meet_in_private();
        let directory = Directory::open("t").unwrap();
        let path = |name: &str| directory.path().join(name);
        let (young, old, alive, file) = ("tmp-1", "tmp-2", "tmp-3", "tmp-4");
        drop([young, old].map(|name| socket::listen(&path(name)).unwrap()));
        let _listener = socket::listen(&path(alive)).unwrap();
        std::fs::write(path(file), "").unwrap();
        let then = rustix::fs::Timespec { tv_sec: 1, tv_nsec: 0 };
        let times = rustix::fs::Timestamps { last_access: then, last_modification: then };
        for name in [old, alive, file] {
            rustix::fs::utimensat(&directory.fd, name, &times, AtFlags::empty()).unwrap();
        }
        directory.sweep();
        assert!(!path(old).exists());
        assert!([young, alive, file].iter().all(|name| path(name).exists()));
    }

    #[test]
    fn which_names_may_match() {
        let name = socket_name("camera/front", 7);
        for pattern in ["camera/front", "camera/*", "**", "ticks/*"] {
            assert!(may_match(&name, pattern), "{pattern}");
            for other in [&name[..40], "tmp-0123", "notes", &format!("{name}0"), &name.replace('-', "+")] {
                assert!(!may_match(other, pattern), "{pattern} {other}");
            }
        }
        assert!(!may_match(&name, "camera/back"));
    }
}
