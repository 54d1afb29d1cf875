//! Where publishers and subscribers meet: a private directory of unix sockets, one for each process, with a name (a hard link) for
//! each of its publishers.
//!
//! A process's first publisher binds under a temporary name, listens, and then renames to `<topic hash>-<publisher id>`, which is never
//! used again; the next ones link that socket under such names of their own. So a final name that refuses a connection belongs to
//! nobody any more, and whoever meets it removes it. Subscribers watch the directory first and list it afterwards, so none is missed.
//!
//! A publisher whose name vanished, with the directory or alone, announces itself again under a name that begins with the same 24
//! digits of its identity, so that who is connected to it can tell.

use crate::error::{Error, Result};
use crate::link::access::Access;
use crate::link::location::Location;
use crate::link::names::{Key, is_mailbox, is_queue, key_in, mailbox_name, may_match, publisher_name, queue_name};
use crate::link::role::Role;
use crate::sys::process::{self, Process};
use crate::sys::socket::{self, Connect};
use crate::sys::users;
use crate::topic;
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;
use rustix::process::Gid;
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
/// The most publishers that are tried to find out whether one listens in another directory.
const GLANCES: usize = 16;
const TEMPORARY: &str = "tmp-";
/// The file whose bytes are the claims on addresses.
const ADDRESSES: &str = "addresses";
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
    pub fn open(location: &Location, topic: &str) -> Result<Self> {
        Self::open_for(Access::from_environment()?, location, topic)
    }

    pub fn open_for(access: Access, location: &Location, topic: &str) -> Result<Self> {
        let (path, links) = location.path();
        Self::open_at(topic, path, links, access)
    }

    /// Opens the directory that stands in the place of `self` now; `None`: none does.
    pub fn successor(&self, location: &Location) -> Result<Option<Self>> {
        let (path, links) = location.path();
        match Self::open_existing("*", path, links, self.access.clone()) {
            Ok(found) => found.check_as(by_number).map(|()| Some(found)),
            Err((Errno::NOENT, _)) => Ok(None),
            Err((_, error)) => Err(error),
        }
    }

    /// Opens a directory at `path` that somebody else has made; `None`: there is none that may be used.
    pub fn glance(path: PathBuf, access: Access) -> Option<Self> {
        let found = Self::open_existing("*", path, OFlags::NOFOLLOW, access).ok()?;
        found.check_as(by_number).ok().map(|()| found)
    }

    /// `links`: whether a link in its place is followed.
    fn open_at(topic: &str, path: PathBuf, links: OFlags, access: Access) -> Result<Self> {
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
        let directory = Self::open_existing(topic, path.clone(), links, access.clone()).map_err(|(errno, error)| {
            // Most likely it is somebody else's.
            let stat = rustix::fs::stat(&path).ok().filter(|_| errno == Errno::ACCESS);
            let why = stat.and_then(|stat| access.check_directory(&stat, users::told).err());
            why.map_or(error, |why| Error::directory(&path, why))
        })?;
        if let (Some(group), false) = (directory.access.group(), was_there) {
            directory.share_with(group)?;
        }
        directory.check()?;
        Ok(directory)
    }

    /// Opens what is there, without a check.
    fn open_existing(topic: &str, path: PathBuf, links: OFlags, access: Access) -> Result<Self, (Errno, Error)> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC | links;
        match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(fd) => Ok(Directory { path, fd, access }),
            Err(errno) => Err((errno, Error::meeting(topic, &path, "cannot open it as a directory")(errno.into()))),
        }
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
        self.check_as(users::told)
    }

    fn check_as(&self, told: fn(u32) -> String) -> Result<()> {
        let stat = rustix::fs::fstat(&self.fd)
            .map_err(|error| Error::directory(&self.path, io::Error::from(error).to_string()))?;
        self.access.check_directory(&stat, told).map_err(|why| Error::directory(&self.path, why))
    }

    /// Whether both are the same directory.
    pub fn is(&self, other: &Directory) -> bool {
        let own = rustix::fs::fstat(&self.fd).ok().map(identity);
        own.is_some() && own == rustix::fs::fstat(&other.fd).ok().map(identity)
    }

    /// Whether newcomers meet here, too: whether the path that they take leads to this very directory.
    pub fn is_at(&self, location: &Location) -> bool {
        let (path, _) = location.path();
        let there = rustix::fs::stat(&path).ok().map(identity);
        there.is_some() && there == rustix::fs::fstat(&self.fd).ok().map(identity)
    }

    /// Whether newcomers who open it now get this very directory, and may use it.
    pub fn is_in_order_at(&self, location: &Location) -> bool {
        let (path, links) = location.path();
        let at = if links.contains(OFlags::NOFOLLOW) { rustix::fs::lstat(&path) } else { rustix::fs::stat(&path) };
        let (Ok(there), Ok(own)) = (at, rustix::fs::fstat(&self.fd)) else { return false };
        identity(there) == identity(own) && self.access.check_directory(&there, by_number).is_ok()
    }

    /// When names last came or went.
    pub fn stamp(&self) -> io::Result<Stamp> {
        let stat = rustix::fs::fstat(&self.fd)?;
        Ok(Stamp {
            modified: (stat.st_mtime, stat.st_mtime_nsec as u64),
            changed: (stat.st_ctime, stat.st_ctime_nsec as u64),
        })
    }

    /// Whether the directory has this name.
    pub fn has(&self, name: &str) -> bool {
        !matches!(rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW), Err(Errno::NOENT))
    }

    /// To which socket a name leads.
    pub fn socket_id(&self, name: &str) -> Option<SocketId> {
        rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW).ok().map(identity)
    }

    /// Whom its users talk to.
    pub fn access(&self) -> &Access {
        &self.access
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

    /// Starts to listen, and announces it; gives the socket and its name in the directory.
    pub fn listen(&self, who: &Announced) -> io::Result<(OwnedFd, String)> {
        let name = who.name();
        let temporary = format!("{TEMPORARY}{:032x}", new_id());
        // What is bound is found by its path, in whatever directory that leads to; what is renamed, in the one that was checked.
        let path = self.socket_path(&temporary);
        let listening = socket::listen(&path).and_then(|listener| {
            fault!("listen.bound");
            if self.access.is_shared() {
                // To connect one needs the permission to write; who has it was decided for the directory.
                self.open_to_others(&temporary)?;
            }
            rustix::fs::renameat(&self.fd, &temporary, &self.fd, &name)?;
            Ok(listener)
        });
        let listener = listening.inspect_err(|_| drop(std::fs::remove_file(&path)))?;
        fault!("listen.announced");
        Ok((listener, name))
    }

    /// Announces the listening socket that has the name `other` for `who`, too; gives its name.
    pub fn link(&self, other: &str, who: &Announced) -> io::Result<String> {
        let name = who.name();
        let temporary = format!("{TEMPORARY}{:032x}", new_id());
        // A link alone would not be told to those who watch for renames.
        rustix::fs::linkat(&self.fd, other, &self.fd, &temporary, AtFlags::empty())?;
        fault!("listen.linked");
        let renamed = match who {
            // Who has the claim on an address puts itself in the place of a dead holder.
            Announced::Mailbox { .. } => rustix::fs::renameat(&self.fd, &temporary, &self.fd, &name),
            // In a shared directory somebody else may have taken the name.
            _ => rustix::fs::renameat_with(&self.fd, &temporary, &self.fd, &name, RenameFlags::NOREPLACE),
        };
        renamed.inspect_err(|_| self.remove(&temporary))?;
        fault!("listen.announced");
        Ok(name)
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
    /// while a forked child keeps the listening descriptor, and will never accept. (A mailbox's name stays: by now it may be that of
    /// the next one with this address. Only who has the claim on that touches it.)
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
            if !is_mailbox(name) {
                self.remove(name);
            }
        }
        Ok(outcome)
    }

    pub fn remove(&self, name: &str) {
        let _ = rustix::fs::unlinkat(&self.fd, name, AtFlags::empty());
    }

    /// Whether looking at the directory often will do instead of a watch, which was refused.
    pub fn can_do_without_watch(&self, why: &io::Error) -> bool {
        match why.raw_os_error() {
            // Of two limits it may have been the one of inotify: there is room for a descriptor.
            Some(libc::EMFILE) => rustix::io::fcntl_dupfd_cloexec(&self.fd, 0).is_ok(),
            // Watches of this user; a sandbox; a system without inotify.
            Some(libc::ENOSPC | libc::EPERM | libc::EACCES | libc::ENOSYS) => true,
            _ => false,
        }
    }

    /// All readable names in the directory.
    pub fn entries(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.fd)? {
            names.extend(entry?.file_name().to_str().ok().map(str::to_owned));
        }
        Ok(names)
    }

    /// Whether a publisher listens here whom subscribers with this pattern ask. One that is busy counts, too. Nothing changes.
    pub fn has_publishers(&self, pattern: &str) -> bool {
        let names = self.entries().unwrap_or_default();
        let mut asked = names.iter().filter(|name| may_match(name, pattern)).take(GLANCES);
        asked.any(|name| matches!(socket::connect(&self.socket_path(name)), Ok(Connect::Connected(_) | Connect::Busy)))
    }

    /// The names of all event queues' sockets.
    pub fn queues(&self) -> io::Result<Vec<String>> {
        Ok(self.entries()?.into_iter().filter(|name| is_queue(name)).collect())
    }

    /// How many names of servers of a service there are.
    pub fn servers(&self, service: &str) -> io::Result<usize> {
        let key = Some(Key::Service(topic::hash(service)));
        Ok(self.entries()?.iter().filter(|name| key_in(name) == key).count())
    }

    /// The names of all mailboxes' sockets.
    pub fn mailboxes(&self) -> io::Result<Vec<String>> {
        Ok(self.entries()?.into_iter().filter(|name| is_mailbox(name)).collect())
    }

    /// The device and inode of the file with the claims on addresses, if there is one.
    pub fn identity_of_addresses(&self) -> Option<(u64, u64)> {
        rustix::fs::statat(&self.fd, ADDRESSES, AtFlags::SYMLINK_NOFOLLOW).ok().map(identity)
    }

    /// Opens that file, making it when it is missing.
    pub fn open_addresses(&self) -> io::Result<(OwnedFd, (u64, u64))> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let mode = Mode::from_raw_mode(if self.access.is_shared() { 0o660 } else { 0o600 });
        // Not made and opened in one call: in a shared directory the kernel may refuse that for a file of somebody else's.
        let fd = loop {
            match rustix::fs::openat(&self.fd, ADDRESSES, flags, Mode::empty()) {
                Err(Errno::NOENT) => {}
                opened => break opened?,
            }
            match rustix::fs::openat(&self.fd, ADDRESSES, flags | OFlags::CREATE | OFlags::EXCL, mode) {
                Err(Errno::EXIST) => {}
                made => {
                    let made = made?;
                    rustix::fs::fchmod(&made, mode)?; // Whatever the umask.
                    break made;
                }
            }
        };
        let stat = rustix::fs::fstat(&fd)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(io::Error::other(format!("somebody put something else in the place of '{ADDRESSES}'")));
        }
        Ok((fd, identity(stat)))
    }

    /// Whether it is the temporary name of one that died long ago.
    pub fn is_abandoned(&self, name: &str) -> bool {
        if !name.starts_with(TEMPORARY) {
            return false;
        }
        let Ok(stat) = rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) else { return false };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
            return false;
        }
        let made = SystemTime::UNIX_EPOCH + Duration::from_secs(stat.st_mtime.max(0) as u64);
        let old = SystemTime::now().duration_since(made).is_ok_and(|age| age > ABANDONED);
        old && matches!(socket::connect(&self.socket_path(name)), Ok(Connect::Refused))
    }
}

/// How users are called on the service thread: to ask for their names may take long.
fn by_number(user: u32) -> String {
    user.to_string()
}

/// The number of a socket's file, which all its names have.
pub(crate) type SocketId = (u64, u64);

fn identity(stat: Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

/// When a directory was last changed. Two changes within one tick of the system's clock look the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    modified: (i64, u64),
    changed: (i64, u64),
}

/// Who listens. Names are never used again: `times` counts the announcements before this one.
#[derive(Clone, Debug)]
pub(crate) enum Announced {
    Publisher {
        topic: String,
        id: u128,
        times: u32,
    },
    Queue {
        id: u128,
        times: u32,
    },
    /// Its name follows from the address; only who has the claim on that may take it, again and again.
    Mailbox {
        address: String,
        id: u128,
    },
    /// A client or a server of a service. Its name follows from the address, which nobody else ever has.
    Party {
        role: Role,
        address: String,
    },
}

impl Announced {
    /// The same, under the next name.
    pub fn again(mut self) -> Self {
        match &mut self {
            Announced::Publisher { times, .. } | Announced::Queue { times, .. } => *times = times.wrapping_add(1),
            Announced::Mailbox { .. } | Announced::Party { .. } => {}
        }
        self
    }

    /// Its last 32 bits count the announcements.
    fn id(&self) -> u128 {
        match self {
            Announced::Publisher { id, times, .. } | Announced::Queue { id, times } => {
                (id >> 32 << 32) | (*id as u32).wrapping_add(*times) as u128
            }
            Announced::Mailbox { id, .. } => *id,
            Announced::Party { .. } => 0,
        }
    }

    /// Its name in the directory.
    pub fn name(&self) -> String {
        match self {
            Announced::Publisher { topic, .. } => publisher_name(topic, self.id()),
            Announced::Queue { .. } => queue_name(self.id()),
            Announced::Mailbox { address, .. } => mailbox_name(address),
            Announced::Party { role, address } => role.name(address).expect("the role has made the address"),
        }
    }
}

/// What happened to a name in the directory.
pub(crate) enum News {
    /// It was renamed into place.
    Appeared(String),
    Vanished(String),
}

/// What a watch has to tell.
pub(crate) enum Told {
    News(Vec<News>),
    /// Something was missed: list the directory.
    Missed,
    /// The directory was removed, moved or unmounted: the watch may tell nothing any more.
    Gone,
}

/// A watch on a directory that reports names that come and go.
pub(crate) struct Watch(Arc<OwnedFd>);

impl Watch {
    pub fn new(directory: &Directory) -> io::Result<Self> {
        use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let names = WatchFlags::MOVED_TO | WatchFlags::DELETE;
        let itself = WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
        // By its descriptor: another directory may stand at its path by now.
        let path = format!("/proc/self/fd/{}", directory.fd.as_raw_fd());
        let flags = names | itself | WatchFlags::ONLYDIR;
        match inotify::add_watch(&fd, path, flags) {
            Err(Errno::NOENT) => inotify::add_watch(&fd, directory.path(), flags)?, // There is no /proc.
            added => added?,
        };
        Ok(Watch(Arc::new(fd)))
    }

    /// The descriptor that is readable when there are news.
    pub fn fd(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.0)
    }

    /// What happened since the last call.
    pub fn told(&self) -> Told {
        use rustix::fs::inotify::{ReadFlags, Reader};
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(&self.0, &mut buffer);
        let mut news = Vec::new();
        let end = ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::UNMOUNT | ReadFlags::IGNORED;
        loop {
            match reader.next() {
                Ok(event) if event.events().intersects(end) => return Told::Gone,
                Ok(event) if event.events().contains(ReadFlags::QUEUE_OVERFLOW) => return Told::Missed,
                Ok(event) => {
                    let gone = event.events().contains(ReadFlags::DELETE);
                    let name = event.file_name().and_then(|name| name.to_str().ok()).map(str::to_owned);
                    news.extend(name.map(if gone { News::Vanished } else { News::Appeared }));
                }
                Err(Errno::INTR) => {}
                Err(_) => return Told::News(news),
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
    use crate::link::names::{is_final, may_be_of};
    use std::collections::HashSet;

    fn open() -> Directory {
        Directory::open(&Location::from_environment().unwrap(), "t").unwrap()
    }

    #[test]
    fn a_link_is_followed_only_where_the_user_has_named_it() {
        let _meeting = crate::link::meeting::meet_in_private();
        let directory = open();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(directory.path(), &link).unwrap();
        let open_at = |links| Directory::open_at("t", link.clone(), links, directory.access().clone());
        assert!(open_at(OFlags::empty()).unwrap().is(&directory));
        assert!(open_at(OFlags::NOFOLLOW).is_err());
    }

    #[test]
    fn only_old_temporary_sockets_are_abandoned() {
        let _meeting = crate::link::meeting::meet_in_private();
        let directory = open();
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
        for name in directory.entries().unwrap() {
            assert_eq!(directory.is_abandoned(&name), name == old, "{name}");
        }
    }

    #[test]
    fn which_names_may_match() {
        let name = Announced::Publisher { topic: "camera/front".into(), id: 7, times: 0 }.name();
        for pattern in ["camera/front", "camera/*", "**", "ticks/*"] {
            assert!(may_match(&name, pattern), "{pattern}");
            for other in [&name[..40], "tmp-0123", "notes", &format!("{name}0"), &name.replace('-', "+")] {
                assert!(!may_match(other, pattern), "{pattern} {other}");
            }
        }
        assert!(!may_match(&name, "camera/back"));
    }

    #[test]
    fn names_are_never_used_again_and_tell_whose_they_are() {
        let id = u128::MAX - 1;
        let mut who = Announced::Publisher { topic: "t".into(), id, times: 0 };
        let mut names = HashSet::new();
        for _ in 0..5 {
            assert!(is_final(&who.name()) && may_be_of(&who.name())(id), "{who:?}");
            assert!(!may_be_of(&who.name())(id ^ 1 << 32));
            assert!(names.insert(who.name()));
            who = who.again();
        }
        assert!(names.iter().next().is_some_and(|name| !may_be_of(&name[..16])(id)));
    }
}
