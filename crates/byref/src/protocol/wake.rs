//! Wake-ups that cost nothing while nobody sleeps.
//!
//! # Publisher wakes subscriber
//!
//! The publisher appends, makes a *light* fence, and looks at `sleeping` of each subscriber. A subscriber that found nothing
//! stores the number of this sleep (its *epoch*) in `sleeping`, makes a *heavy* fence, looks at every ring once more, and
//! only then sleeps. This is Dekker's pattern: of two processes that each store and then load, at least one sees the
//! other's store, so either the publisher sees the sleeper or the sleeper sees the record; no wake-up is lost.
//! [`Pairing`](crate::sync::Pairing) says what the fences are.
//!
//! `sleeping` also says at what it sleeps ([`BY_WORD`]):
//!
//! - At its *socket*: the publisher sends a byte. A full socket means that the byte before is still unread: awake already.
//! - At the publisher's *wake word* ([`raise`], [`note`]), which lies beside the ring. The sleeper notes its value before it announces the
//!   sleep, and the kernel puts it to sleep only if the word still has that value; the publisher raises the word and then has
//!   the kernel wake all who wait for it: one system call, however many they are. If the publisher sees the announcement, the
//!   word is raised after its value was noted: either before the kernel looks, which then refuses the sleep, or after the
//!   sleeper was queued, who then is woken. Another thread of the publisher's process may do both in the sender's stead: a
//!   request that it has not taken does for every sleep that was seen by then.
//!
//! One wake-up per epoch: the publisher remembers the epoch it has rung for ([`Sleeper`]), so a sleeper that is slow to run
//! costs no more system calls. One that was woken, or refused its sleep, announces a new epoch before the next one. After a
//! sleep that ended for another reason it may sleep again with the same epoch and the same noted value.
//!
//! Who sleeps at words does not see its sockets. A *gong* tells of them: one more word, of the sleeper's own process, which other
//! threads raise when a socket has something, or when they did something themselves. The sleeper counts the strikes before it looks
//! at anything, and sleeps only as long as there are no more ([`Heard`]).
//!
//! # Subscriber wakes publisher
//!
//! A publisher that waits (for room, or in `flush`) stores in `wake_at` the cursor it waits for, makes a heavy fence, looks at
//! the cursors once more, and sleeps. A subscriber stores its cursor, makes a light fence, and compares it with `wake_at`.
//! It rings once per value ([`Waiter`]): once its cursor has passed that value, this publisher waits for it no more. To ring is to raise a
//! word of the lease and to have the kernel wake who waits for it. The publisher notes the words of all lossless subscribers before it
//! looks at their cursors, so the kernel refuses a sleep after a ring that it missed. If nobody waits for the word, the subscriber rings
//! on the channel, too: the publisher may have no `futex_waitv`, or more subscribers than one wait can be for. `skip_at`
//! works alike, for who waits for the release of a message (see [`release`](crate::writer::release)); it is looked at only after
//! records were skipped.
//!
//! Models: `no_lost_wake_up`, `no_lost_wake_up_by_word`, `no_lost_wake_up_by_another_thread`, `no_lost_wake_up_of_a_sleep_in_pieces`,
//! `no_lost_news`, `no_lost_room`, `one_wake_per_epoch`. Loom has no `membarrier`; there both fences are the
//! sequentially consistent one. What membarrier(2) guarantees for a compiler barrier paired with it is the same order.

use crate::protocol::lease::{AWAKE, Lease};
use crate::protocol::ring::NEVER;
use crate::sync::{AtomicU32, Ordering};

/// A bit of `sleeping`: the subscriber sleeps at the publisher's wake word.
pub(crate) const BY_WORD: u64 = 1 << 63;
/// The wake word's place in the ring's segment, in bytes: a cache line of its own.
pub(crate) const WAKE_WORD: usize = 48 * 8;

/// How a sleeper is to be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Socket,
    Word,
}

/// Changes the wake word; its publisher's threads alone do that. Afterwards all who wait for it are to be woken.
pub(crate) fn raise(word: &AtomicU32) {
    word.fetch_add(1, Ordering::Release);
}

/// The value of a wake word, before a sleep at it is announced.
pub(crate) fn note(word: &AtomicU32) -> u32 {
    // Pairs with the release in `raise`: a value that was raised because of this very sleep cannot be noted before that.
    word.load(Ordering::Acquire)
}

/// What a sleeper has heard of its gong, by the number of strikes.
#[derive(Default)]
pub(crate) struct Heard(u32);

impl Heard {
    /// Before a sleep until there are more than so many `strikes`: whether something has happened since the last time, to which
    /// the sleeper sees first.
    pub fn is_news(&mut self, strikes: u32) -> bool {
        std::mem::replace(&mut self.0, strikes) != strikes
    }

    /// It has seen to something, and the rest may be told of no more: the number of strikes for a sleep that is refused. After
    /// that it looks again.
    pub fn look_again(&mut self) -> u32 {
        self.0 = self.0.wrapping_sub(1);
        self.0
    }
}

/// The publisher's memory of whom it has rung.
#[derive(Default)]
pub(crate) struct Sleeper {
    rung: u64,
}

impl Sleeper {
    /// How to wake this subscriber, if it sleeps and has not been woken for this sleep. To be asked after [`Pairing::light`].
    ///
    /// [`Pairing::light`]: crate::sync::Pairing::light
    #[inline]
    pub fn due(&mut self, lease: Lease<'_>) -> Option<Way> {
        let epoch = lease.sleeping();
        if epoch == AWAKE || epoch == self.rung {
            return None;
        }
        self.rung = epoch;
        Some(if epoch & BY_WORD == 0 { Way::Socket } else { Way::Word })
    }
}

/// A subscriber's memory of which wait of the publisher it has answered.
pub(crate) struct Waiter {
    rung: u64,
}

impl Default for Waiter {
    fn default() -> Self {
        Waiter { rung: NEVER }
    }
}

impl Waiter {
    /// Whether the publisher, which awaits the cursor `awaited`, waits for this one and has not been rung. To be asked after
    /// [`Pairing::light`].
    ///
    /// [`Pairing::light`]: crate::sync::Pairing::light
    #[inline]
    pub fn is_due(&mut self, awaited: u64, cursor: u64) -> bool {
        if cursor < awaited || awaited == self.rung {
            return false;
        }
        self.rung = awaited;
        true
    }
}
