//! A thread that wakes many sleepers in a sender's stead.
//!
//! Waking a hundred processes takes a fifth of a millisecond of processor time, and longer where they run at once on the sender's
//! own processor. So a sender that finds several of them asleep at its wake word asks this thread to raise the word and to
//! wake them, and goes on. The service thread starts it when it is first needed; it is there once per process, receives no signals, and
//! ends with the last publisher that needed it.
//!
//! It runs beside the senders' threads if that is possible ([`spawn_helper`]). But somebody may keep it from running for long. A
//! sender that finds its request not taken after [`LATE`], is about to wait, or closes, wakes the sleepers itself; twice does no harm.
//! (The last resort is that nobody sleeps for more than a second at once.)
//!
//! A request that waits already does for what is found meanwhile, too, since the word is raised after it was taken: one system
//! call for a whole burst. After a round that took long the thread pauses as long, up to [`LONGEST_PAUSE`]: readers of a burst then find
//! many messages each time they wake, instead of one.

use crate::protocol::wake::raise;
use crate::sync::AtomicU32;
use crate::sync::locks::Mutex;
use crate::sys::fork::{ForkId, PerProcess};
use crate::sys::futex::{self, Gong};
use crate::sys::memory::OwnedSegment;
use crate::sys::process::{monotonic_ns, spawn_helper};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Rounds that took longer are followed by a pause.
const SHORT: Duration = Duration::from_micros(50);
const LONGEST_PAUSE: Duration = Duration::from_micros(500);
/// A request that waits for so long (ns) is its sender's own business. Longer than a pause.
const LATE: u64 = 1_000_000;

/// A publisher's wake word, and whether it is to be raised.
pub(crate) struct Siren {
    ring: Arc<OwnedSegment>,
    /// Where in it the word lies, in bytes.
    place: usize,
    /// It is among the requested ones; changed under their lock.
    is_requested: AtomicBool,
    /// Since when, by the monotonic clock (ns).
    since: AtomicU64,
}

impl Siren {
    pub fn new(ring: &Arc<OwnedSegment>, place: usize) -> Arc<Self> {
        Arc::new(Siren {
            ring: Arc::clone(ring),
            place,
            is_requested: AtomicBool::new(false),
            since: AtomicU64::new(0),
        })
    }

    fn word(&self) -> &AtomicU32 {
        &self.ring.map().counts(self.place)[0]
    }

    /// Wakes all who sleep at the word.
    pub fn sound(&self) {
        let word = self.word();
        fault!("wake.word_before");
        raise(word);
        fault!("wake.word_raised");
        futex::wake_all(word);
        fault!("wake.word_after");
    }

    /// Whether the thread may be about to do that.
    pub fn is_requested(&self) -> bool {
        self.is_requested.load(Ordering::Relaxed)
    }

    /// Whether it should have done so long ago.
    pub fn is_late(&self) -> bool {
        self.is_requested() && monotonic_ns().saturating_sub(self.since.load(Ordering::Relaxed)) > LATE
    }
}

/// Keeps the thread running.
pub(crate) struct Waker(Arc<Work>);

struct Work {
    requested: Mutex<Vec<Arc<Siren>>>,
    gong: Gong,
    stopped: AtomicBool,
    made_in: ForkId,
}

/// That of this process, if any.
static RUNNING: PerProcess<Mutex<Weak<Waker>>> = PerProcess::new(Mutex::default);

impl Waker {
    /// The thread of this process, if it runs.
    pub fn running() -> Option<Arc<Waker>> {
        RUNNING.get().lock().upgrade()
    }

    /// The same, started if there is none. For the service thread.
    pub fn start() -> io::Result<Arc<Waker>> {
        if let Some(waker) = Waker::running() {
            return Ok(waker);
        }
        // Without the lock, on which a sender may wait.
        let waker = Waker::idle();
        let thread = Arc::clone(&waker.0);
        spawn_helper("byref-waker", move || thread.run())?;
        *RUNNING.get().lock() = Arc::downgrade(&waker);
        Ok(waker)
    }

    /// One whose thread does not run yet.
    pub(crate) fn idle() -> Arc<Waker> {
        let (requested, gong) = (Mutex::default(), Gong::default());
        Arc::new(Waker(Arc::new(Work { requested, gong, stopped: AtomicBool::new(false), made_in: ForkId::current() })))
    }

    /// Has the thread wake all who sleep at the siren's word.
    pub fn request(&self, siren: &Arc<Siren>) {
        let mut requested = self.0.requested.lock();
        if !siren.is_requested.swap(true, Ordering::Relaxed) {
            siren.since.store(monotonic_ns(), Ordering::Relaxed);
            requested.push(Arc::clone(siren));
            drop(requested);
            fault!("wake.requested");
            self.0.gong.strike();
        }
    }
}

impl Drop for Waker {
    fn drop(&mut self) {
        if self.0.made_in.is_current() {
            self.0.stopped.store(true, Ordering::Relaxed);
            self.0.gong.strike();
        }
    }
}

impl Work {
    /// What is asked for. Requests from now on are new ones: the words are raised after this.
    fn take(&self) -> Vec<Arc<Siren>> {
        let mut requested = self.requested.lock();
        for siren in &*requested {
            siren.is_requested.store(false, Ordering::Relaxed);
        }
        std::mem::take(&mut *requested)
    }

    fn run(&self) {
        loop {
            let strikes = self.gong.strikes();
            let requested = self.take();
            if requested.is_empty() {
                if self.stopped.load(Ordering::Relaxed) {
                    return;
                }
                self.gong.wait(strikes);
                continue;
            }
            let begin = Instant::now();
            for siren in requested {
                siren.sound();
            }
            let took = begin.elapsed();
            if took > SHORT {
                std::thread::sleep(took.min(LONGEST_PAUSE));
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sys::epoll::Woken;
    use crate::sys::futex::Words;

    #[test]
    fn who_sleeps_is_woken_and_the_thread_ends() {
        let ring = Arc::new(OwnedSegment::new("test", 4096).unwrap());
        ring.populate(0..4096).unwrap();
        let waker = Waker::start().unwrap();
        assert!(Arc::ptr_eq(&waker, &Waker::running().unwrap()), "there is one per process");
        let siren = Siren::new(&ring, 64);
        for _ in 0..100 {
            let (gong, mut words) = (Gong::default(), Words::new());
            words.note(std::iter::once(siren.word()));
            waker.request(&siren);
            waker.request(&siren);
            assert_eq!(words.wait(&gong, gong.strikes(), Duration::from_secs(60)).unwrap(), Woken::Ready);
        }
        let work = Arc::downgrade(&waker.0);
        drop((waker, siren));
        let begin = Instant::now();
        while work.strong_count() > 0 {
            assert!(begin.elapsed() < Duration::from_secs(20), "the thread goes on");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
