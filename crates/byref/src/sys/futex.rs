//! Waiting for words of memory to change: those of others, which this process may only read, and one of its own.

use super::woken::Woken;
use crate::protocol::wake;
use crate::sync::AtomicU32 as Word;
use rustix::io::Errno;
use rustix::thread::futex::{self, Flags, Wait, WaitFlags, WaitPtr, WaitvFlags};
use rustix::time::{ClockId, Timespec, clock_gettime};
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// The most words of others that one wait can be for, besides the waiter's own.
pub(crate) const MOST_WORDS: usize = 127;

/// Whether a thread can wait for several words here: that takes Linux 5.16, and no sandbox that forbids it.
pub(crate) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        let word = AtomicU32::new(0);
        // One that has changed already.
        let other = entry(&word, 1, WaitFlags::PRIVATE);
        futex::waitv(&[other], WaitvFlags::empty(), None, ClockId::Monotonic) == Err(Errno::AGAIN)
    })
}

/// Wakes everybody, in any process, who waits for `word` to change. It was changed before.
pub(crate) fn wake_all(word: &Word) {
    wake_by(word, Flags::empty());
}

fn wake_by(word: &Word, flags: Flags) {
    #[cfg(not(all(test, loom)))] // Loom's words are not the system's.
    let _ = futex::wake(word, flags, i32::MAX as u32);
    #[cfg(all(test, loom))]
    let _ = (word, flags);
}

/// A word of this process, which its threads change to wake one another.
pub(crate) struct Gong(Word);

impl Default for Gong {
    fn default() -> Self {
        Gong(Word::new(0))
    }
}

impl Gong {
    pub fn strike(&self) {
        wake::raise(&self.0);
        wake_by(&self.0, Flags::PRIVATE);
    }

    /// Sleeps until it was struck more than so often, up to `timeout`; perhaps not so long.
    pub fn wait(&self, strikes: u32, timeout: Option<Duration>) {
        let timeout = timeout.map(|it| Timespec { tv_sec: it.as_secs() as _, tv_nsec: it.subsec_nanos() as _ });
        #[cfg(not(all(test, loom)))]
        let waited = futex::wait(&self.0, Flags::PRIVATE, strikes, timeout.as_ref());
        #[cfg(all(test, loom))]
        let waited = futex::wait(&AtomicU32::new(strikes), Flags::PRIVATE, strikes, timeout.as_ref());
        match waited {
            Ok(()) | Err(Errno::AGAIN | Errno::INTR | Errno::TIMEDOUT) => {}
            Err(_) => std::thread::sleep(Duration::from_millis(1)), // A sandbox forbids it, perhaps.
        }
    }

    /// How often it was struck. What happened before a strike that was counted is seen afterwards.
    pub fn strikes(&self) -> u32 {
        wake::note(&self.0)
    }
}

/// So many times in a row the kernel may find a word unmapped. One that has just gone is among the words no more the next time.
const MOST_UNMAPPED: u32 = 8;

/// Words and the values that they had.
pub(crate) struct Words {
    entries: Vec<Wait>,
    /// How often in a row one was not mapped.
    unmapped: u32,
}

impl Words {
    pub fn new() -> Self {
        Words { entries: Vec::new(), unmapped: 0 }
    }

    /// Notes the values of other words instead.
    pub fn note<'a>(&mut self, words: impl Iterator<Item = &'a Word>) {
        self.entries.clear();
        self.entries.push(Wait::new()); // The gong's.
        self.entries.extend(words.map(|word| entry(word, wake::note(word), WaitFlags::empty())));
    }

    /// Sleeps until one of the words has another value than was noted, or the gong was struck more than so often; up to `timeout`.
    ///
    /// The words need not be mapped any more, if the gong is struck after they have gone: the kernel alone reads them. But if that goes
    /// on, it cannot read them for another reason, and the error says so.
    pub fn wait(&mut self, gong: &Gong, strikes: u32, timeout: Duration) -> io::Result<Woken> {
        self.entries[0] = entry(&gong.0, strikes, WaitFlags::PRIVATE);
        let now = clock_gettime(ClockId::Monotonic);
        let timeout = Duration::new(now.tv_sec as u64, now.tv_nsec as u32).saturating_add(timeout);
        let until = Timespec { tv_sec: timeout.as_secs() as _, tv_nsec: timeout.subsec_nanos() as _ };
        let woken = futex::waitv(&self.entries, WaitvFlags::empty(), Some(&until), ClockId::Monotonic);
        self.unmapped = if woken == Err(Errno::FAULT) { self.unmapped + 1 } else { 0 };
        match woken {
            Ok(_) | Err(Errno::AGAIN) => Ok(Woken::Ready),
            Err(Errno::FAULT) if self.unmapped < MOST_UNMAPPED => Ok(Woken::Ready),
            Err(Errno::TIMEDOUT) => Ok(Woken::TimedOut),
            Err(Errno::INTR) => Ok(Woken::Interrupted),
            Err(error) => Err(error.into()),
        }
    }
}

fn entry<W>(word: &W, value: u32, flags: WaitFlags) -> Wait {
    let mut entry = Wait::new();
    entry.val = value.into();
    entry.uaddr = WaitPtr::new(std::ptr::from_ref(word).cast_mut().cast());
    entry.flags = WaitFlags::SIZE_U32 | flags;
    entry
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sys::memory::{OwnedSegment, PeerSegment};
    use std::sync::atomic::Ordering;

    const LONG: Duration = Duration::from_secs(60);

    /// A word, and its read-only mapping that another process would have.
    fn shared() -> (OwnedSegment, PeerSegment) {
        let owned = OwnedSegment::new("test", 4096).unwrap();
        let theirs = PeerSegment::new(rustix::io::dup(owned.shared()).unwrap(), Some(4096)).map_err(|(error, _)| error);
        owned.populate(0..4096).unwrap();
        (owned, theirs.unwrap())
    }

    #[test]
    fn who_waits_for_a_word_of_others_wakes() {
        assert!(available(), "this system is too old for the test");
        let (owned, theirs) = shared();
        let theirs = theirs.into_map();
        let gong = Gong::default();
        for _ in 0..100 {
            let mut words = Words::new();
            words.note(theirs.counts(8).iter().take(1));
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    owned.map().counts(8)[0].fetch_add(1, Ordering::Release);
                    wake_all(&owned.map().counts(8)[0]);
                });
                assert_eq!(words.wait(&gong, gong.strikes(), LONG).unwrap(), Woken::Ready);
            });
        }
    }

    #[test]
    fn who_waits_wakes_for_its_own_process_and_in_time() {
        let gong = Gong::default();
        let strikes = gong.strikes();
        let mut words = Words::new();
        words.note(std::iter::empty());
        assert_eq!(words.wait(&gong, strikes, Duration::from_millis(1)).unwrap(), Woken::TimedOut);
        gong.strike();
        assert_eq!(words.wait(&gong, strikes, LONG).unwrap(), Woken::Ready, "it was struck before");
        std::thread::scope(|scope| {
            let strikes = gong.strikes();
            scope.spawn(|| gong.strike());
            assert_eq!(words.wait(&gong, strikes, LONG).unwrap(), Woken::Ready);
        });
    }

    #[test]
    fn words_that_stay_unreadable_are_no_place_to_sleep() {
        let gong = Gong::default();
        let mut words = Words::new();
        words.note(std::iter::once(&Word::new(0)));
        words.entries[1].uaddr = WaitPtr::new(std::ptr::without_provenance_mut(8)); // Nothing is ever mapped there.
        for _ in 1..MOST_UNMAPPED {
            assert_eq!(words.wait(&gong, gong.strikes(), LONG).unwrap(), Woken::Ready);
        }
        assert!(words.wait(&gong, gong.strikes(), LONG).is_err());
    }

    #[test]
    fn words_that_are_gone_wake() {
        let (_owned, theirs) = shared();
        let theirs = theirs.into_map();
        let gong = Gong::default();
        let mut words = Words::new();
        words.note(theirs.counts(0).iter().take(1));
        drop(theirs);
        let strikes = gong.strikes();
        gong.strike();
        assert_eq!(words.wait(&gong, strikes, LONG).unwrap(), Woken::Ready);
    }
}
