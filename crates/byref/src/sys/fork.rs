//! Telling a forked child from the process that made an object, with one load.
//!
//! A page marked `MADV_WIPEONFORK` holds a word that identifies the process; the kernel zeroes it in a forked child,
//! whichever way the child was made. Identities come from a counter that the child inherits, so a child never takes its
//! parent's.
#![allow(unsafe_code)]

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

/// The identity of one process between two forks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ForkId(u64);

static NEXT: AtomicU64 = AtomicU64::new(1);

static WORD: OnceLock<&AtomicU64> = OnceLock::new();

#[inline]
fn word() -> &'static AtomicU64 {
    WORD.get_or_init(|| make_word().expect("whoever asks first has called `ForkId::prepare`"))
}

fn make_word() -> io::Result<&'static AtomicU64> {
    let len = rustix::param::page_size();
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a fresh private anonymous mapping at an address of the kernel's choice overlaps nothing.
    let page = unsafe { mmap_anonymous(std::ptr::null_mut(), len, protection, MapFlags::PRIVATE) }?;
    // SAFETY: the range is the mapping made above; the advice (Linux 4.14) changes only what a forked child sees.
    if let Err(refused) = unsafe { madvise(page, len, Advice::LinuxWipeOnFork) } {
        // SAFETY: nobody has seen the mapping made above.
        let _ = unsafe { munmap(page, len) };
        return Err(refused.into());
    }
    // SAFETY: the page is readable, writable, aligned, zeroed (a valid AtomicU64) and never unmapped.
    Ok(unsafe { &*page.cast::<AtomicU64>() })
}

impl ForkId {
    /// Makes sure that there is a page to look at, before anything that has an identity is made: the system may refuse it.
    pub fn prepare() -> io::Result<()> {
        if WORD.get().is_none() {
            let _ = WORD.set(make_word()?); // Of two threads, one leaves a page unused.
        }
        Ok(())
    }

    /// The identity of the running process.
    pub fn current() -> Self {
        let word = word();
        let seen = word.load(Ordering::Relaxed);
        if seen != 0 {
            return ForkId(seen);
        }
        let fresh = NEXT.fetch_add(1, Ordering::Relaxed);
        match word.compare_exchange(0, fresh, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => ForkId(fresh),
            Err(other) => ForkId(other),
        }
    }

    /// Its number, never 0.
    pub fn number(self) -> u64 {
        self.0
    }

    /// Whether the running process is the one that took this identity (and not a forked child of it).
    #[inline]
    pub fn is_current(self) -> bool {
        word().load(Ordering::Relaxed) == self.0
    }
}

/// A value of which each process has its own. A forked child begins with a new one: its parent's may be locked by a thread
/// that the child does not have. What it was is forgotten, and its memory never given back.
pub(crate) struct PerProcess<T> {
    current: AtomicPtr<Of<T>>,
    make: fn() -> T,
}

struct Of<T> {
    process: ForkId,
    value: T,
}

impl<T: Send + Sync + 'static> PerProcess<T> {
    pub const fn new(make: fn() -> T) -> Self {
        PerProcess { current: AtomicPtr::new(std::ptr::null_mut()), make }
    }

    /// The running process's own.
    pub fn get(&self) -> &'static T {
        let before = self.current.load(Ordering::Acquire);
        // SAFETY: it is null, or a box that was leaked below, which lives for ever and is never changed.
        if let Some(of) = unsafe { before.as_ref() }
            && of.process.is_current()
        {
            return &of.value;
        }
        let mine = Box::leak(Box::new(Of { process: ForkId::current(), value: (self.make)() }));
        match self.current.compare_exchange(before, mine, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => &mine.value,
            // SAFETY: as above; another thread of this process was faster.
            Err(other) => unsafe { &(*other).value },
        }
    }
}
