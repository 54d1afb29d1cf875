//! Sealed shared memory and its mappings.
//!
//! The owner of a segment maps it writable and *then* seals it: no process, not even the owner, can make another writable
//! shared mapping, write to it through a descriptor, or change its size (`F_SEAL_FUTURE_WRITE`, Linux 5.1). Others get a
//! descriptor that is also open for reading only.
#![allow(unsafe_code)]

use super::fork::ForkId;
use super::limits;
use crate::sync::{AtomicU32, AtomicU64};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{FallocateFlags, FileType, MemfdFlags, Mode, OFlags, SealFlags, SeekFrom};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};
use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64 as Count, Ordering};

/// What every segment is sealed with, once its owner has mapped it. A reader asks for all of it: what it maps cannot go away.
const SEALS: SealFlags = SealFlags::FUTURE_WRITE.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::SEAL);

/// Rounds up to whole pages.
pub(crate) fn page_ceil(bytes: u64) -> u64 {
    bytes.next_multiple_of(rustix::param::page_size() as u64)
}

/// A mapped range, unmapped on drop.
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
    /// For a mapping that a forked child does not inherit: the process that has it.
    only_in: Option<ForkId>,
}

// SAFETY: a mapping is an address range of the whole process; `Mapping` itself reads and writes nothing.
unsafe impl Send for Mapping {}
// SAFETY: as above; shared access goes through atomics or through raw pointers whose users argue for themselves.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(fd: impl AsFd, offset: u64, len: usize, prot: ProtFlags, flags: MapFlags) -> io::Result<Self> {
        // SAFETY: the kernel chooses the address, so the new mapping overlaps nothing that exists.
        let start = unsafe { mmap(std::ptr::null_mut(), len, prot, flags, fd, offset) }?;
        let start = NonNull::new(start.cast()).expect("mmap never places a mapping at address zero");
        Ok(Mapping { start, len, only_in: None })
    }

    /// A mapping of shared memory, which core dumps leave out: writing a dump would fill the holes of a sparse segment.
    fn shared(fd: impl AsFd, from: u64, len: usize, prot: ProtFlags) -> io::Result<Self> {
        let map = Mapping::new(fd, from, len, prot, MapFlags::SHARED)?;
        map.advise(0..len, Advice::LinuxDontDump)?;
        Ok(map)
    }

    fn advise(&self, range: Range<usize>, advice: Advice) -> io::Result<()> {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: the range lies inside this mapping (checked above), so the sum stays in it.
        let at = unsafe { self.start.as_ptr().add(range.start) };
        // SAFETY: as above; the advices used here (populate; what forks and core dumps get) change no content.
        Ok(unsafe { madvise(at.cast(), range.len(), advice) }?)
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// The whole mapping as atomic words; a tail shorter than a word is left out.
    ///
    /// Through a read-only mapping only loads may be made (std documents that as sound up to the machine's word).
    #[inline]
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: the range is mapped readable as long as `self` lives, page-aligned, and every bit pattern is a valid
        // AtomicU64; other processes change it only in ways that atomics allow for.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast::<AtomicU64>(), self.len / 8) }
    }

    /// The mapping from byte `start` on (a multiple of 4) as atomic 32-bit counts.
    #[inline]
    pub fn counts(&self, start: usize) -> &[AtomicU32] {
        assert!(start <= self.len && start.is_multiple_of(4));
        // SAFETY: `start` lies inside the mapping (checked above).
        let first = unsafe { self.start.as_ptr().add(start) };
        // SAFETY: as in `words`; the start is a multiple of 4 from a page border, and the length stays inside.
        unsafe { std::slice::from_raw_parts(first.cast::<AtomicU32>(), (self.len - start) / 4) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.only_in.is_some_and(|maker| !maker.is_current()) {
            return; // A forked child does not have this mapping; something else may lie at its address.
        }
        // SAFETY: the range was mapped by `new` and is unmapped only here; borrows of its content borrow `self`.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok());
    }
}

/// Whether core dumps are to contain what this process's publishers have written: `BYREF_CORE_DUMPS=payloads`.
fn dumps_payloads() -> bool {
    static WANTED: OnceLock<bool> = OnceLock::new();
    *WANTED.get_or_init(|| std::env::var_os("BYREF_CORE_DUMPS").is_some_and(|what| what == "payloads"))
}

/// Whether the kernel gives memory to a mapping that is asked for it: from Linux 5.14. An advice that it does not know is an error
/// for no bytes, too.
fn can_populate() -> bool {
    // No lock: a process may fork while another thread finds it out.
    static KNOWN: AtomicU8 = AtomicU8::new(UNKNOWN);
    const UNKNOWN: u8 = 0;
    const ABLE: u8 = 1;
    const UNABLE: u8 = 2;
    let known = KNOWN.load(Ordering::Relaxed);
    if known != UNKNOWN {
        return known == ABLE;
    }
    // SAFETY: the range is empty: nothing is changed.
    let is_able = unsafe { madvise(std::ptr::null_mut(), 0, Advice::LinuxPopulateWrite) }.is_ok();
    KNOWN.store(if is_able { ABLE } else { UNABLE }, Ordering::Relaxed);
    is_able
}

/// Populating fails with "bad address" where a store would have raised a signal: there is no memory behind the page.
fn shortage_of_a_fault(error: io::Error) -> io::Error {
    if error.raw_os_error() == Some(libc::EFAULT) { Errno::NOMEM.into() } else { error }
}

/// Part of a segment, mapped for reading.
pub(crate) struct View {
    map: Mapping,
    start: usize,
    len: usize,
}

impl View {
    /// The pages around `range` of a segment that has at least so many bytes.
    fn new(fd: impl AsFd, range: Range<u64>) -> io::Result<Self> {
        let page = rustix::param::page_size() as u64;
        let first = range.start / page * page;
        let len = usize::try_from((range.end - first).max(1)).map_err(|_| io::Error::from(Errno::NOMEM))?;
        let map = Mapping::shared(fd, first, len, ProtFlags::READ)?;
        Ok(View { map, start: (range.start - first) as usize, len: (range.end - range.start) as usize })
    }

    /// # Safety
    /// Nobody may write the bytes as long as the slice lives.
    pub unsafe fn bytes(&self) -> &[u8] {
        let start = self.map.as_ptr().wrapping_add(self.start);
        // SAFETY: `start` and `len` lie inside the mapping (see `new`), which lives as long as `self`; the caller answers for the rest.
        unsafe { std::slice::from_raw_parts(start, self.len) }
    }
}

/// A segment that this process writes and others read.
pub(crate) struct OwnedSegment {
    map: Mapping,
    shared: OwnedFd,
    /// What memory is asked for through, where the mapping cannot be.
    writable: Option<OwnedFd>,
    /// So many bytes from the start were populated.
    populated: Count,
}

impl OwnedSegment {
    /// Makes a sealed segment of `len` bytes (rounded up to pages), sparse until `populate`.
    pub fn new(name: &str, len: u64) -> io::Result<Self> {
        ForkId::prepare()?;
        let len = page_ceil(len);
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let writable = match rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
            Err(Errno::INVAL) => rustix::fs::memfd_create(name, flags), // before Linux 6.3
            other => other,
        };
        let writable = writable.map_err(|error| limits::name_if_forbidden("memfd_create", error.into()))?;
        rustix::fs::fchmod(&writable, Mode::RUSR | Mode::WUSR)?;
        rustix::fs::ftruncate(&writable, len)?;
        let size = usize::try_from(len).map_err(|_| io::Error::from(Errno::NOMEM))?;
        let mut map = Mapping::shared(&writable, 0, size, ProtFlags::READ | ProtFlags::WRITE)?;
        map.advise(0..size, Advice::LinuxDontFork)?;
        map.only_in = Some(ForkId::current());
        // From here on `map` is the only writable mapping that will ever exist.
        rustix::fs::fcntl_add_seals(&writable, SEALS)?;
        let path = format!("/proc/self/fd/{}", writable.as_raw_fd());
        let shared = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        limits::leave_room(&shared);
        let writable = (!can_populate()).then_some(writable);
        Ok(OwnedSegment { map, shared, writable, populated: Count::new(0) })
    }

    /// Maps part of it for reading, also by children that are forked later.
    pub fn view(&self, range: Range<u64>) -> io::Result<View> {
        assert!(range.start <= range.end && range.end <= self.map.len() as u64);
        View::new(&self.shared, range)
    }

    /// Gives the range memory, and its pages to this process: running out is an error here, not a signal at first touch.
    /// Readers refuse what has no memory.
    pub fn populate(&self, range: Range<u64>) -> io::Result<()> {
        let pages = range.start as usize..range.end as usize;
        match &self.writable {
            None => self.map.advise(pages.clone(), Advice::LinuxPopulateWrite).map_err(shortage_of_a_fault)?,
            Some(writable) => self.populate_through(writable, &range)?,
        }
        if dumps_payloads() {
            let _ = self.map.advise(pages, Advice::LinuxDoDump);
        }
        if range.start <= self.populated() {
            self.populated.fetch_max(range.end, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The same before Linux 5.14.
    #[cold]
    fn populate_through(&self, writable: &OwnedFd, range: &Range<u64>) -> io::Result<()> {
        loop {
            match rustix::fs::fallocate(writable, FallocateFlags::empty(), range.start, range.end - range.start) {
                Err(Errno::INTR) => continue,
                other => break other?,
            }
        }
        // A page that was never touched would look like a hole to readers.
        let words = &self.map.words()[range.start as usize / 8..range.end as usize / 8];
        words.iter().step_by(rustix::param::page_size() / 8).for_each(|word| {
            word.load(Ordering::Relaxed);
        });
        Ok(())
    }

    /// Writes bytes that no other process knows of yet: whoever reads them later was told so through an atomic.
    pub fn write(&self, offset: u64, bytes: &[u8]) {
        let offset = usize::try_from(offset).expect("inside the mapping");
        assert!(offset.checked_add(bytes.len()).is_some_and(|end| end <= self.map.len));
        // SAFETY: the range lies inside this mapping (checked above), so the sum stays in it.
        let to = unsafe { self.map.start.as_ptr().add(offset) };
        // SAFETY: as above; `bytes` are no part of the mapping, of which this process has no slices, and nobody reads the
        // range yet.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }

    /// How many bytes from the start were populated. Others may be, too, or be about to.
    pub fn populated(&self) -> u64 {
        self.populated.load(Ordering::Relaxed)
    }

    pub fn map(&self) -> &Mapping {
        &self.map
    }

    /// The mapping alone: the descriptors are closed.
    pub fn into_map(self) -> Mapping {
        self.map
    }

    /// The descriptor to hand to peers: open for reading only.
    pub fn shared(&self) -> BorrowedFd<'_> {
        self.shared.as_fd()
    }
}

/// A segment that another process writes and this one reads.
pub(crate) struct PeerSegment {
    map: Mapping,
    fd: Option<OwnedFd>,
    /// So many bytes from the start are known to have memory. It never goes away again: sealed memory cannot be punched.
    populated: Count,
}

impl PeerSegment {
    /// Maps a descriptor that came from a peer, after making sure that the memory behind it can neither go away (a signal
    /// at the next access) nor be something other than memory. `InvalidData` says that it is not as it has to be; other
    /// errors are this process's, and the descriptor comes back to be tried again.
    ///
    /// `len`: the bytes to map of a segment whose layout is known; `None` maps all of it.
    pub fn new(fd: OwnedFd, len: Option<u64>) -> Result<Self, (io::Error, OwnedFd)> {
        let mapped = checked_len(&fd, len).and_then(|len| Mapping::shared(&fd, 0, len, ProtFlags::READ));
        match mapped {
            Ok(map) => Ok(PeerSegment { map, fd: Some(fd), populated: Count::new(0) }),
            Err(error) => Err((error, fd)),
        }
    }

    /// Whether there is memory behind all of the range, which lies inside. Reading a hole would allocate it, at the reader's
    /// cost; an honest peer populates what it publishes.
    #[inline]
    pub fn has_memory(&self, range: Range<u64>) -> bool {
        range.end <= self.populated.load(Ordering::Relaxed) || self.find_memory(range)
    }

    /// Asks the kernel. As a rule a segment is populated from its start on, so this is seldom.
    #[cold]
    fn find_memory(&self, range: Range<u64>) -> bool {
        let Some(fd) = &self.fd else { return false };
        // The descriptor's position, which this moves, is nobody's concern.
        let hole_from = |start| rustix::fs::seek(fd, SeekFrom::Hole(start));
        let known = self.populated.load(Ordering::Relaxed);
        if known < range.start
            && let Ok(hole) = hole_from(known)
        {
            self.populated.fetch_max(hole, Ordering::Relaxed);
            if range.end <= hole {
                return true;
            }
        }
        let hole = hole_from(range.start).unwrap_or(0);
        if range.start <= known {
            self.populated.fetch_max(hole, Ordering::Relaxed);
        }
        range.end <= hole
    }

    /// Closes the descriptor: what is not known to have memory by now counts as a hole.
    pub fn close(&mut self) {
        self.fd = None;
    }

    pub fn is_closed(&self) -> bool {
        self.fd.is_none()
    }

    /// The mapping alone: the descriptor is closed.
    pub fn into_map(self) -> Mapping {
        self.map
    }

    pub fn map(&self) -> &Mapping {
        &self.map
    }

    /// A copy of the bytes of `range`; `None` when it is not inside, or has no memory.
    pub fn read(&self, range: Range<u64>) -> Option<Vec<u8>> {
        if range.start > range.end || range.end > self.map.len() as u64 || !self.has_memory(range.clone()) {
            return None;
        }
        let from = self.map.as_ptr().wrapping_add(range.start as usize);
        // SAFETY: the range lies inside the mapping (checked above), which is memory that cannot go away; what an owner that
        // breaks its promise changes meanwhile changes values only.
        Some(unsafe { std::slice::from_raw_parts(from, (range.end - range.start) as usize) }.to_vec())
    }

    /// A mapping of its own of the first `len` bytes.
    pub fn map_start(&self, len: u64) -> io::Result<Mapping> {
        let fd = self.fd.as_ref().ok_or(Errno::BADF)?;
        Mapping::shared(fd, 0, len.min(self.map.len() as u64) as usize, ProtFlags::READ)
    }

    /// A private copy-on-write mapping of the pages around `range`, and where in it the range starts.
    pub fn map_private(&self, range: Range<u64>) -> io::Result<(Mapping, usize)> {
        assert!(range.start < range.end && range.end <= self.map.len() as u64);
        let page = rustix::param::page_size() as u64;
        let start = range.start / page * page;
        let len = (range.end - start) as usize;
        let fd = self.fd.as_ref().ok_or(Errno::BADF)?;
        let map = Mapping::new(fd, start, len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)?;
        Ok((map, (range.start - start) as usize))
    }
}

/// The file system of ordinary memfds, as the kernel names it.
const TMPFS_MAGIC: u64 = 0x0102_1994;
/// The most bytes of one peer's segment that are mapped.
pub(crate) const MOST_MAPPED: u64 = 1 << 37;

fn checked_len(fd: &OwnedFd, len: Option<u64>) -> io::Result<usize> {
    let refuse = |why: &str| io::Error::new(io::ErrorKind::InvalidData, format!("refused a peer's segment: {why}"));
    let stat = rustix::fs::fstat(fd)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(refuse("not memory"));
    }
    // Huge pages have seals, too; a fault in them may be a signal, and one hole costs its reader megabytes.
    if rustix::fs::fstatfs(fd)?.f_type as u64 != TMPFS_MAGIC {
        return Err(refuse("not of ordinary pages"));
    }
    match rustix::fs::fcntl_get_seals(fd) {
        Ok(seals) if seals.contains(SEALS) => {}
        Ok(_) => return Err(refuse("not sealed")),
        Err(_) => return Err(refuse("not a memfd")),
    }
    let size = stat.st_size as u64;
    let len = len.unwrap_or(size);
    if size < len || len == 0 {
        return Err(refuse("too short"));
    }
    if len > MOST_MAPPED {
        return Err(refuse("too long"));
    }
    usize::try_from(len).map_err(|_| refuse("too long"))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn reader(segment: &OwnedSegment) -> PeerSegment {
        PeerSegment::new(segment.shared().try_clone_to_owned().unwrap(), None).map_err(|(error, _)| error).unwrap()
    }

    fn refusal(fd: OwnedFd) -> String {
        let Err((error, _)) = PeerSegment::new(fd, None) else { panic!("a segment") };
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        error.to_string()
    }

    #[test]
    fn holes_are_seen_and_memory_is_remembered() {
        let page = rustix::param::page_size() as u64;
        let segment = OwnedSegment::new("test", 8 * page).unwrap();
        let peer = reader(&segment);
        assert!(!peer.has_memory(0..1));
        assert!(peer.has_memory(0..0), "nothing is read of it");
        segment.populate(0..2 * page).unwrap();
        segment.populate(4 * page..6 * page).unwrap();
        assert!(peer.has_memory(5..2 * page));
        assert!(peer.has_memory(4 * page..6 * page));
        assert!(!peer.has_memory(page..3 * page) && !peer.has_memory(3 * page..5 * page));
        assert!(!peer.has_memory(5 * page..6 * page + 1));
        assert_eq!(peer.populated.load(Ordering::Relaxed), 2 * page);
        assert_eq!(segment.populated(), 2 * page, "what comes behind a hole counts when that is filled");
        segment.populate(2 * page..8 * page).unwrap();
        assert_eq!(segment.populated(), 8 * page);
        assert!(peer.has_memory(7 * page..8 * page));
        assert_eq!(peer.populated.load(Ordering::Relaxed), 8 * page, "all of it is known with one look");
    }

    #[test]
    fn huge_pages_are_refused() {
        let flags = MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB;
        let Ok(fd) = rustix::fs::memfd_create("test", flags) else { return }; // A kernel without them.
        rustix::fs::ftruncate(&fd, 2 << 20).unwrap();
        rustix::fs::fcntl_add_seals(&fd, SEALS).unwrap();
        assert!(refusal(fd).contains("ordinary pages"));
    }

    fn sealed(len: u64, seals: SealFlags) -> OwnedFd {
        let fd = rustix::fs::memfd_create("test", MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&fd, len).unwrap();
        rustix::fs::fcntl_add_seals(&fd, seals).unwrap();
        fd
    }

    #[test]
    fn every_seal_is_asked_for() {
        for missing in [SealFlags::FUTURE_WRITE, SealFlags::SHRINK, SealFlags::GROW, SealFlags::SEAL] {
            assert!(refusal(sealed(4096, SEALS - missing)).contains("not sealed"), "{missing:?}");
        }
        assert!(PeerSegment::new(sealed(4096, SEALS), None).is_ok());
    }

    #[test]
    fn impossible_lengths_are_refused() {
        assert!(refusal(sealed(0, SEALS)).contains("too short"));
        assert!(refusal(sealed(MOST_MAPPED + 4096, SEALS)).contains("too long"));
        let Err((error, _)) = PeerSegment::new(sealed(4096, SEALS), Some(8192)) else { panic!("a segment") };
        assert!(error.to_string().contains("too short"));
    }

    /// Through any descriptor: the one that peers get, and one that is opened for writing by somebody of the same user.
    #[test]
    fn the_kernel_refuses_to_change_a_segment() {
        let page = rustix::param::page_size() as u64;
        let segment = OwnedSegment::new("test", 4 * page).unwrap();
        segment.populate(0..4 * page).unwrap();
        let path = format!("/proc/self/fd/{}", segment.shared().as_raw_fd());
        let opened = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let both = ProtFlags::READ | ProtFlags::WRITE;
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        for fd in [segment.shared(), opened.as_fd()] {
            assert!(Mapping::new(fd, 0, page as usize, both, MapFlags::SHARED).is_err(), "a writable mapping");
            assert!(rustix::io::pwrite(fd, b"x", 0).is_err(), "a write");
            assert!(rustix::fs::fallocate(fd, punch, 0, page).is_err(), "a hole");
            assert!(rustix::fs::ftruncate(fd, page).is_err(), "a shorter one");
            assert!(rustix::fs::ftruncate(fd, 8 * page).is_err(), "a longer one");
            assert!(rustix::fs::fcntl_add_seals(fd, SealFlags::GROW).is_err(), "other seals");
            assert!(
                Mapping::new(fd, 0, page as usize, both, MapFlags::PRIVATE).is_ok(),
                "a private mapping is harmless"
            );
        }
    }

    /// So who may not open the memory anew, being another user, cannot even have the owner's holes filled.
    #[test]
    fn peers_get_a_descriptor_for_reading_only() {
        let segment = OwnedSegment::new("test", 4096).unwrap();
        assert_eq!(rustix::fs::fallocate(segment.shared(), FallocateFlags::empty(), 0, 4096), Err(Errno::BADF));
        assert_eq!(rustix::fs::fstat(segment.shared()).unwrap().st_mode & 0o777, 0o600);
    }

    /// Whether the kernel has noted this of a mapping.
    fn has_flag(map: &Mapping, flag: &str) -> bool {
        let start = format!("{:x}-", map.as_ptr() as usize);
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&start));
        let flags = lines.find_map(|line| line.strip_prefix("VmFlags:")).unwrap();
        flags.split(' ').any(|found| found == flag)
    }

    #[test]
    fn a_forked_child_does_not_get_the_owners_mapping() {
        let segment = OwnedSegment::new("test", 4096).unwrap();
        assert!(has_flag(segment.map(), "dc"), "do not copy");
    }

    #[test]
    fn core_dumps_leave_shared_memory_out() {
        let segment = OwnedSegment::new("test", 1 << 20).unwrap();
        segment.populate(0..4096).unwrap();
        assert!(has_flag(segment.map(), "dd"), "what this process writes");
        assert!(has_flag(reader(&segment).map(), "dd"), "what it reads");
    }

    #[test]
    fn only_memory_that_is_there_is_copied() {
        let page = rustix::param::page_size() as u64;
        let segment = OwnedSegment::new("test", 4 * page).unwrap();
        segment.populate(0..2 * page).unwrap();
        segment.write(5, b"hello");
        let peer = reader(&segment);
        assert_eq!(peer.read(5..10).as_deref(), Some(&b"hello"[..]));
        assert_eq!(peer.read(page..3 * page), None, "a hole");
        segment.populate(2 * page..4 * page).unwrap();
        assert!(peer.read(page..4 * page).is_some());
        for (start, end) in [(0, 4 * page + 1), (5 * page, 5 * page), (10, 5)] {
            assert_eq!(peer.read(start..end), None);
        }
    }

    #[test]
    fn other_files_are_refused() {
        assert!(refusal(std::fs::File::open("/dev/null").unwrap().into()).contains("not memory"));
        assert!(refusal(std::fs::File::open("/").unwrap().into()).contains("not memory"));
        assert!(refusal(std::io::pipe().unwrap().0.into()).contains("not memory"));
        assert!(refusal(std::fs::File::open("/proc/self/exe").unwrap().into()).starts_with("refused"));
    }
}
