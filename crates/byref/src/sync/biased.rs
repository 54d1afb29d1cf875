//! A lock that its usual owner takes without a locked instruction.
//!
//! A publisher is mostly used by one thread, and so is a subscriber; others (the service thread, above all) come by now and
//! then. A mutex makes every message pay for them twice: an atomic exchange waits until all stores before it have left the
//! store buffer, and so for cache lines that another processor's reader holds. This lock is biased towards the thread that
//! takes it again and again: that thread stores a flag and looks whether the bias is still its own; whoever else comes takes
//! the bias away, at the price of a `membarrier`. (The idea is that of Kawachiya, Koseki and Onodera, "Lock reservation",
//! OOPSLA 2002.)
//!
//! # Invariants
//!
//! 1. Inside is one of: the owner of the bias that raised its `inside` and still found itself owner; the holder of `slow`,
//!    after it found no owner, or removed the owner and saw its `inside` at zero. The latter may become the former on its way.
//! 2. *Enter, revoke* (Dekker's pattern): the owner raises `inside`, makes a light fence, looks at `owner`; the revoker clears
//!    `owner`, makes a heavy fence, looks at `inside`. One of them sees the other's store, so never both go in. Where the system
//!    has come to refuse the heavy fence (a sandbox), the revoker waits until the owner's store can no longer be on its way.
//! 3. Only the holder of `slow` changes `owner`, and gives the bias to its own thread only.
//! 4. Each thread has an `inside` of its own. One that was owner, and stops between its two looks at `owner`, may go on long
//!    after somebody else has become owner: what it raises and lowers then must be nobody else's.
//! 5. `inside` is lowered with release and looked at with acquire: what was done inside is seen by whoever comes next. The
//!    owner looks as well before it raises it, because a thread may have the identity of one that has ended.
//!
//! Model: `one_inside`.
#![allow(unsafe_code)]

use crate::sync::locks::{Mutex, MutexGuard};
use crate::sync::{AtomicU64, Ordering, Pairing, heavy_fence};
use crate::sys::membarrier;
use std::cell::{Cell, UnsafeCell};
use std::ops::{Deref, DerefMut};
use std::time::Duration;

/// `owner` while nobody is preferred.
const NOBODY: u64 = 0;
/// The thread that took the lock so many times in a row gets the bias; each revocation doubles the number, up to a limit, so
/// that threads which take turns do not pay for a revocation at each.
const FIRST_STREAK: u32 = 16;
const LONGEST_STREAK: u32 = 1 << 16;

/// So many threads can ever be owners of one lock; a thread that has ended may make room for one that comes later.
const OWNERS: usize = 8;

/// The protocol: who is preferred, and whether they are inside.
pub(crate) struct Bias {
    /// A thread's identity, a multiple of [`OWNERS`], plus the number of its `inside`.
    owner: AtomicU64,
    inside: [AtomicU64; OWNERS],
    pairing: Pairing,
}

impl Bias {
    pub fn new(pairing: Pairing) -> Self {
        Bias { owner: AtomicU64::new(NOBODY), inside: std::array::from_fn(|_| AtomicU64::new(0)), pairing }
    }

    fn inside_of(&self, owner: u64) -> &AtomicU64 {
        &self.inside[owner as usize % OWNERS]
    }

    /// Goes in if thread `me` has the bias; tells who is to leave.
    #[inline]
    pub fn enter(&self, me: u64) -> Option<u64> {
        let owner = self.owner.load(Ordering::Relaxed);
        if owner - owner % OWNERS as u64 != me {
            return None;
        }
        let inside = self.inside_of(owner);
        assert!(inside.load(Ordering::Acquire) == 0, "a lock was taken twice by one thread");
        inside.store(1, Ordering::Relaxed);
        self.pairing.light(); // Pairs with the heavy fence in `revoke`.
        if self.owner.load(Ordering::Relaxed) == owner {
            return Some(owner);
        }
        self.leave(owner);
        None
    }

    #[inline]
    pub fn leave(&self, owner: u64) {
        self.inside_of(owner).store(0, Ordering::Release);
    }

    /// For the holder of `slow`: takes the bias from whoever has it, and `pause`s until they are out; whether anybody had it.
    pub fn revoke(&self, mut pause: impl FnMut()) -> bool {
        let owner = self.owner.load(Ordering::Relaxed);
        if owner == NOBODY {
            return false;
        }
        self.owner.store(NOBODY, Ordering::Relaxed);
        if !heavy_fence() {
            // The owner may have raised `inside`, and gone in, with its store still in its processor's buffer. A lock pays this once.
            membarrier::wait_instead();
        }
        // Either pairs with the light fence in `enter`.
        while self.inside_of(owner).load(Ordering::Acquire) != 0 {
            pause();
        }
        true
    }

    /// For the holder of `slow`, when nobody has the bias: gives it to its own thread, which is `owner` with its number, and
    /// is inside by it at once.
    pub fn grant(&self, owner: u64) {
        self.inside_of(owner).store(1, Ordering::Relaxed);
        self.owner.store(owner, Ordering::Relaxed);
    }
}

/// Who has come the slow way.
struct Visits {
    last: u64,
    /// How often in a row, and how often it takes to get the bias.
    streak: u32,
    needed: u32,
    /// The threads that have had the bias, each at the number of its `inside`.
    owners: Vec<u64>,
}

impl Visits {
    /// Counts a visit of thread `me`, and says whether it is to have the bias: as which owner.
    fn count(&mut self, me: u64) -> Option<u64> {
        self.streak = if self.last == me { self.streak + 1 } else { 1 };
        self.last = me;
        if self.streak < self.needed {
            return None;
        }
        self.streak = 0;
        let known = self.owners.iter().position(|owner| *owner == me);
        let number = known.or_else(|| {
            self.owners.push(me);
            (self.owners.len() <= OWNERS).then_some(self.owners.len() - 1)
        });
        self.owners.truncate(OWNERS);
        number.map(|number| me + number as u64)
    }
}

/// A value and its lock.
pub(crate) struct Biased<T> {
    bias: Bias,
    slow: Mutex<Visits>,
    value: UnsafeCell<T>,
}

// SAFETY: the value moves with its lock.
unsafe impl<T: Send> Send for Biased<T> {}
// SAFETY: a guard is given to one thread at a time (invariants 1 and 2), so `&Biased<T>` gives out no more than `&mut T` in
// turns, for which `T: Send` is enough.
unsafe impl<T: Send> Sync for Biased<T> {}

impl<T> Biased<T> {
    pub fn new(value: T) -> Self {
        let visits = Visits { last: NOBODY, streak: 0, needed: FIRST_STREAK, owners: Vec::new() };
        Biased { bias: Bias::new(Pairing::with(true)), slow: Mutex::new(visits), value: UnsafeCell::new(value) }
    }

    /// Waits for its turn. Not to be called by a thread that has a guard of this lock.
    #[inline]
    pub fn lock(&self) -> BiasedGuard<'_, T> {
        match self.bias.enter(current_thread()) {
            Some(owner) => BiasedGuard { lock: self, by: By::Bias(owner) },
            None => self.lock_slowly(),
        }
    }

    #[cold]
    fn lock_slowly(&self) -> BiasedGuard<'_, T> {
        let me = current_thread();
        let mut visits = self.slow.lock();
        let mut pauses = 0u32;
        let revoked = self.bias.revoke(|| {
            pauses += 1;
            match pauses {
                0..256 => std::hint::spin_loop(),
                // The owner does not run. Who yields gives up its own turn, too; and the owner may have a lower priority.
                _ => std::thread::sleep(Duration::from_micros(50)),
            }
        });
        if revoked {
            visits.needed = (visits.needed * 2).min(LONGEST_STREAK);
        }
        // Without membarrier the owner would have to make a full fence, and would gain nothing; and where it is refused by now, whoever
        // takes the bias away would have to wait.
        match visits.count(me) {
            Some(owner) if self.bias.pairing == Pairing::Asymmetric && membarrier::works() => {
                self.bias.grant(owner);
                BiasedGuard { lock: self, by: By::Bias(owner) }
            }
            _ => BiasedGuard { lock: self, by: By::Slow(visits) },
        }
    }
}

/// How a guard came in.
enum By<'a> {
    Bias(u64),
    Slow(#[expect(dead_code, reason = "kept, not read")] MutexGuard<'a, Visits>),
}

/// The right to use the value. It stays with its thread, as a mutex's guard does.
pub(crate) struct BiasedGuard<'a, T> {
    lock: &'a Biased<T>,
    by: By<'a>,
}

impl<T> Deref for BiasedGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: this thread is inside, alone (invariants 1 and 2), as long as the guard lives.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for BiasedGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`; and the borrow of the guard makes this the only reference.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for BiasedGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        if let By::Bias(owner) = self.by {
            self.lock.bias.leave(owner);
        }
    }
}

/// A multiple of [`OWNERS`] that no other running thread of this process has; not zero.
#[inline]
fn current_thread() -> u64 {
    thread_local! {
        static HERE: Cell<u64> = const { Cell::new(0) };
    }
    const { assert!(align_of::<Cell<u64>>() == OWNERS) };
    HERE.with(|here| std::ptr::from_ref(here).addr() as u64)
}
