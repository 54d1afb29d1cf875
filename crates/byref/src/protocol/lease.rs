//! The lease: what one subscriber tells one publisher, in a segment that the subscriber alone writes.
//!
//! # Layout
//!
//! | place | content |
//! | --- | --- |
//! | word 16 | `cursor`: every position below it has been taken; [`CLOSED`] after `close()` |
//! | word 17 | `generation`: the ring's generation up to which the socket was read, so retired segments unmapped |
//! | word 18 | `notes`: 1 once this subscriber has noted where it received a message |
//! | word 19 | `row`: the number of the message to take next, while rows are taken from the block at the cursor |
//! | word 20 | `joined`: 1 once this subscriber finds what it is sent |
//! | word 32 | `sleeping`: [`AWAKE`], or the number of this sleep and what it sleeps at (see [`wake`](crate::protocol::wake)) |
//! | byte 4096 + 4 s | `held[s]`: how many holds this subscriber has on the chunk of slot `s` |
//! | byte 4096 + 2^22 + 64 s | where it received the message in slot `s`, if it notes that (see [`note`](crate::protocol::note)) |
//!
//! The segment has room for [`MAX_SLOTS`] counts and notes from the start (its seal forbids growing); untouched pages take no
//! memory.
//!
//! # Invariants
//!
//! 1. A chunk is reused only when `reclaim` is above its position and every subscriber's `held[slot]` is zero, looked at
//!    after the mark moved.
//! 2. *Hold, reclaim* (hazard pointers, Michael 2004): a reader raises `held`, makes a full fence, then looks at `reclaim`;
//!    the publisher stores `reclaim`, makes a full fence, then looks at `held`. One of them sees the other's store: either
//!    the reader finds its position reclaimed and gives the hold back untouched, or the publisher finds the hold. This
//!    covers every reader, also one that was evicted while it was frozen and wakes up in the middle.
//! 3. *Advance*: a lossless reader stores `cursor` with release after its hold; the publisher loads `cursor` with acquire
//!    before it looks at `held`. So a cursor that has passed a record shows the hold that was taken on the way.
//! 4. *Release*: the last access to the chunk comes before `fetch_sub` (release); the publisher's acquire load of zero comes
//!    before it writes the chunk anew.
//! 5. `held` is a count: several messages, clones and views may hold one slot. From a count above zero it may be raised
//!    without a look at the mark, since invariant 1 protects it already.
//! 6. *Taken, revoked* (Dekker's pattern): where what the only reader never took is given to others, that reader stores `cursor`, or
//!    `row`, makes a light fence, and looks at `revoked` before it gives a message out; who gives it up stores `revoked`, makes a heavy
//!    fence, and looks at `cursor` and `row`. One of them sees the other's store: no message is given out here and sent there.
//!
//! Models: `hold_against_reclaim`, `release_before_reuse`, `advance_shows_hold`, `evicted_reader`, `taken_or_revoked`,
//! `death_of_a_reader`.

use crate::protocol::ring::Ring;
use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};

/// The most chunks that a publisher can have in use at one time.
pub(crate) const MAX_SLOTS: u32 = 1 << 20;
/// `cursor` of a subscriber that reads no more.
pub(crate) const CLOSED: u64 = u64::MAX;
/// `sleeping` of a subscriber that needs no wake-up.
pub(crate) const AWAKE: u64 = 0;

const CURSOR: usize = 16;
const GENERATION: usize = 17;
const NOTES: usize = 18;
const ROW: usize = 19;
const JOINED: usize = 20;
const SLEEPING: usize = 32;
/// The place, in bytes, of the word that the subscriber raises to wake a publisher that waits for room: a cache line of its own.
pub(crate) const RING_WORD: usize = 40 * 8;
/// Where the counts start, in bytes: a page of their own keeps `cursor` and `sleeping` apart from them.
pub(crate) const COUNTS: usize = 4096;
/// Where the notes start, in bytes.
pub(crate) const NOTES_START: usize = COUNTS + MAX_SLOTS as usize * 4;
/// Bytes of a note: a cache line.
pub(crate) const NOTE_LEN: usize = 64;
/// The length of a lease segment in bytes.
pub(crate) const LEASE_LEN: u64 = (NOTES_START + MAX_SLOTS as usize * NOTE_LEN) as u64;

/// The lease over borrowed cells: mapped memory, or loom's.
#[derive(Clone, Copy)]
pub(crate) struct Lease<'a> {
    head: &'a [AtomicU64],
    held: &'a [AtomicU32],
}

impl<'a> Lease<'a> {
    #[inline]
    pub fn new(head: &'a [AtomicU64], held: &'a [AtomicU32]) -> Self {
        Lease { head, held }
    }

    // ---- the subscriber's side ----

    /// Takes a hold on `slot` for the record of `position`. `false`: the publisher had reclaimed it, nothing is held.
    #[inline]
    pub fn hold(self, ring: Ring<'_>, position: u64, slot: u32) -> bool {
        self.held[slot as usize].fetch_add(1, Ordering::Relaxed);
        fault!("hold.raised");
        // Pairs with the fence in `Ring::set_reclaim` (invariant 2).
        fence(Ordering::SeqCst);
        if ring.is_reclaimed(position) {
            fault!("hold.in_vain");
            self.release(slot);
            return false;
        }
        true
    }

    /// One more hold on a slot that this subscriber holds already (invariant 5).
    #[inline]
    pub fn hold_again(self, slot: u32) {
        self.held[slot as usize].fetch_add(1, Ordering::Relaxed);
        fault!("hold.again");
    }

    /// Gives one hold back; whether it was the last one. The caller reads the chunk no more.
    #[inline]
    pub fn release(self, slot: u32) -> bool {
        fault!("release.before");
        let was_last = self.held[slot as usize].fetch_sub(1, Ordering::Release) == 1;
        fault!("release.after");
        was_last
    }

    #[inline]
    pub fn set_cursor(self, cursor: u64) {
        self.head[CURSOR].store(cursor, Ordering::Release);
    }

    /// Tells of progress that the cursor does not show.
    pub fn set_row(self, sequence: u64) {
        self.head[ROW].store(sequence, Ordering::Relaxed);
    }

    pub fn set_generation(self, generation: u64) {
        self.head[GENERATION].store(generation, Ordering::Release);
    }

    /// There are notes from now on.
    pub fn set_notes(self) {
        self.head[NOTES].store(1, Ordering::Relaxed);
    }

    /// What was sent up to now is found by a look.
    pub fn set_joined(self) {
        self.head[JOINED].store(1, Ordering::Release);
    }

    /// Announces the sleep of number `epoch`, or [`AWAKE`].
    #[inline]
    pub fn set_sleeping(self, epoch: u64) {
        self.head[SLEEPING].store(epoch, Ordering::Relaxed);
    }

    // ---- the publisher's side ----

    #[inline]
    pub fn cursor(self) -> u64 {
        self.head[CURSOR].load(Ordering::Acquire)
    }

    pub fn has_joined(self) -> bool {
        self.head[JOINED].load(Ordering::Acquire) != 0
    }

    pub fn row(self) -> u64 {
        self.head[ROW].load(Ordering::Relaxed)
    }

    pub fn generation(self) -> u64 {
        self.head[GENERATION].load(Ordering::Acquire)
    }

    /// Whether there may be notes. Those of a subscriber that has none are not looked at: reading a hole takes memory.
    pub fn has_notes(self) -> bool {
        self.head[NOTES].load(Ordering::Relaxed) == 1
    }

    #[inline]
    pub fn is_held(self, slot: u32) -> bool {
        self.held[slot as usize].load(Ordering::Acquire) != 0
    }

    #[inline]
    pub fn sleeping(self) -> u64 {
        self.head[SLEEPING].load(Ordering::Relaxed)
    }
}
