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
//! One byte per epoch: the publisher remembers the epoch it has rung for ([`Sleeper`]), so a sleeper that is slow to run
//! costs no more system calls. A full socket means that the byte before is still unread: awake already.
//!
//! # Subscriber wakes publisher
//!
//! A publisher that waits (for room, or in `flush`) stores in `wake_at` the cursor it waits for, makes a heavy fence, looks at
//! the cursors once more, and sleeps. A subscriber stores its cursor, makes a light fence, and compares it with `wake_at`.
//! It rings once per value ([`Waiter`]): once its cursor has passed that value, this publisher waits for it no more. `skip_at`
//! works alike, for who waits for the release of a message (see [`ticket`](crate::pubsub::publisher::ticket)); it is looked at only after
//! records were skipped.
//!
//! Models: `no_lost_wake_up`, `no_lost_room`, `one_wake_per_epoch`. Loom has no `membarrier`; there both fences are the
//! sequentially consistent one. What membarrier(2) guarantees for a compiler barrier paired with it is the same order.

use crate::protocol::lease::{AWAKE, Lease};
use crate::protocol::ring::NEVER;

/// The publisher's memory of whom it has rung.
#[derive(Default)]
pub(crate) struct Sleeper {
    rung: u64,
}

impl Sleeper {
    /// Whether this subscriber sleeps and has not been rung for this sleep. To be asked after [`Pairing::light`].
    ///
    /// [`Pairing::light`]: crate::sync::Pairing::light
    #[inline]
    pub fn is_due(&mut self, lease: Lease<'_>) -> bool {
        let epoch = lease.sleeping();
        if epoch == AWAKE || epoch == self.rung {
            return false;
        }
        self.rung = epoch;
        true
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
