//! A line: one ring, and those who read from it.
//!
//! A line appends, wakes who sleeps, and knows how far its readers are. What they are told, and how they come and go, is in
//! [`readers`](super::readers). Payload memory is the [`store`](super::store)'s, which may serve many lines.

use crate::link::service::Handle;
use crate::link::tasks::Next;
use crate::protocol::claim::{Claim, Horizon, Policy};
use crate::protocol::lease::{CLOSED, COUNTS, Lease, RING_WORD};
use crate::protocol::regions::Shape;
use crate::protocol::ring::{NEVER, PREPARED_AHEAD, Place, Ring};
use crate::protocol::wake::{WAKE_WORD, Way};
use crate::sync::locks::Turn;
use crate::sync::{AtomicU32, Pairing, heavy_fence};
use crate::sys::clock::Clock;
use crate::sys::futex::MOST_WORDS;
use crate::sys::membarrier;
use crate::sys::memory::OwnedSegment;
use crate::writer::errands::Errands;
use crate::writer::log::Log;
use crate::writer::peer::Peer;
use crate::writer::release::Tracked;
use crate::writer::rings::Rings;
use crate::writer::waker::{Siren, Waker};
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Sleepers at the wake word that another thread wakes in the sender's stead.
pub(crate) const MANY: usize = 8;
/// Who could have no thread that wakes subscribers asks for one again after this time.
const NO_WAKER: Duration = Duration::from_secs(1);
/// So long (ns) after its first message, what a publisher sends to nobody makes its ring grow.
const NEW: u64 = 2_000_000_000;

/// What a publisher puts up with.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limits {
    /// Bytes of messages that one subscriber may hold.
    pub held: Option<u64>,
    /// How long one subscriber may keep senders waiting without any progress.
    pub stall: Option<Duration>,
}

/// What a line is to be.
pub(crate) struct Plan<'a> {
    /// Different from those of the other lines of its store, which lie in the order of their numbers.
    pub number: u32,
    /// What its log lines are about.
    pub topic: &'a str,
    /// The most records that its ring can have.
    pub capacity: u64,
    /// How many of the last messages a late subscriber may ask for.
    pub history: u64,
    pub limits: Limits,
    /// The generation of its store.
    pub generation: u64,
    /// It has one reader, and what that never takes is kept until [`Line::let_go`].
    pub keeps_untaken: bool,
}

/// One ring and its readers.
pub(crate) struct Line {
    pub number: u32,
    pub topic: Arc<str>,
    pub history: u64,
    pub limits: Limits,
    pub ring: Arc<OwnedSegment>,
    pub siren: Arc<Siren>,
    /// Wakes many sleepers; made when they are first found, by the service thread, which was asked for it.
    pub waker: Option<Arc<Waker>>,
    asked_for_waker: bool,
    pub log: Log,
    pub clock: Clock,
    pub peers: Vec<Peer>,
    keeps_untaken: bool,
    /// How far the reader came that is known to have ended: its cursor, and the row that it would have taken next.
    departed: Option<(u64, u64)>,
    /// There has been a subscriber.
    pub had_readers: bool,
    /// When it first sent something.
    began: Option<u64>,
    /// It waits for a first subscriber before it closes.
    pub lingers: bool,
    pairing: Pairing,
    /// Chunks whose positions are not yet reclaimed, oldest first.
    pending: VecDeque<(u64, u32)>,
    /// Tracked messages whose release is waited for, and the `skip_at` for their sake.
    pub awaited: Vec<Arc<Tracked>>,
    pub skip_at: u64,
    /// A task of the service thread looks at them now and then.
    pub looks_for_releases: bool,
    /// Up to when waits were counted against those who stall.
    pub counted: Option<Instant>,
    pub generation: u64,
    /// Messages; so the number of the next one.
    pub sent: u64,
    pub sent_bytes: u64,
    pub copied_bytes: u64,
    pub waits: u64,
    /// A task of the service thread sends what full sockets did not take.
    pub flushing: bool,
    pub errands: Weak<dyn Errands>,
    pub rings: Arc<Rings>,
    /// Taken by the one thread that sleeps for a subscriber's ring; others look again now and then.
    pub sleeping: Arc<Turn>,
    pub service: Arc<Handle>,
}

impl Line {
    pub fn new(plan: Plan<'_>, service: &Arc<Handle>, errands: Weak<dyn Errands>) -> io::Result<Self> {
        let shape = Shape::of(plan.capacity);
        let log = Log::new(shape);
        let ring = OwnedSegment::new("byref-ring", shape.words() * 8)?;
        ring.populate(0..shape.words_up_to(0) * 8)?;
        log.ring(ring.map().words()).set_wake_at(NEVER);
        log.ring(ring.map().words()).set_skip_at(NEVER);
        let ring = Arc::new(ring);
        Ok(Line {
            number: plan.number,
            topic: plan.topic.into(),
            history: plan.history,
            limits: plan.limits,
            siren: Siren::new(&ring, WAKE_WORD),
            waker: None,
            asked_for_waker: false,
            ring,
            log,
            clock: Clock::realtime(),
            peers: Vec::new(),
            keeps_untaken: plan.keeps_untaken,
            departed: None,
            had_readers: false,
            began: None,
            lingers: false,
            pairing: Pairing::with(true),
            pending: VecDeque::new(),
            awaited: Vec::new(),
            skip_at: NEVER,
            looks_for_releases: false,
            counted: None,
            generation: plan.generation,
            sent: 0,
            sent_bytes: 0,
            copied_bytes: 0,
            waits: 0,
            flushing: false,
            errands,
            rings: Arc::default(),
            sleeping: Arc::default(),
            service: Arc::clone(service),
        })
    }

    /// The line of that number among those of a store.
    #[inline]
    pub fn find(lines: &[Line], number: u32) -> Option<&Line> {
        if let [line] = lines {
            return (line.number == number).then_some(line);
        }
        Some(&lines[lines.binary_search_by_key(&number, |line| line.number).ok()?])
    }

    pub fn find_mut(lines: &mut [Line], number: u32) -> Option<&mut Line> {
        let index = lines.binary_search_by_key(&number, |line| line.number).ok()?;
        Some(&mut lines[index])
    }

    #[inline]
    pub fn ring(&self) -> Ring<'_> {
        self.log.ring(self.ring.map().words())
    }

    // ---- appending ----

    /// Appends a record of `count` messages and wakes whoever sleeps; gives the first message's number. There is room for it.
    #[inline]
    pub fn append(
        &mut self,
        timestamp_ns: Option<u64>,
        len: usize,
        count: u32,
        write: impl FnOnce(Ring<'_>, Place),
    ) -> u64 {
        let (position, sequence) = (self.log.tail(), self.sent);
        let timestamp_ns = timestamp_ns.unwrap_or_else(|| self.clock.now());
        fault!("publish.begun");
        write(self.ring(), Place { position, sequence, timestamp_ns });
        fault!("publish.written");
        self.ring().prepare(position + PREPARED_AHEAD);
        self.log.appended();
        self.sent += count as u64;
        self.sent_bytes += len as u64;
        self.wake_sleepers();
        sequence
    }

    /// Wakes who sleeps and was not woken from this sleep yet, after something that they look for was stored.
    #[inline]
    pub fn wake_sleepers(&mut self) {
        self.pairing.light(); // Pairs with the heavy fence of a subscriber that goes to sleep.
        let mut at_word = 0;
        for peer in &mut self.peers {
            let lease = Lease::new(peer.lease.words(), peer.lease.counts(COUNTS));
            match peer.sleeper.due(lease) {
                None => {}
                Some(Way::Word) => at_word += 1,
                Some(Way::Socket) => {
                    fault!("wake.subscriber_before");
                    peer.wake();
                    fault!("wake.subscriber_after");
                }
            }
        }
        if at_word > 0 {
            self.wake_those_at_word(at_word);
        }
    }

    /// Wakes so many who sleep at the wake word, or has them woken.
    #[cold]
    fn wake_those_at_word(&mut self, count: usize) {
        let is_for_waker = (count >= MANY || self.siren.is_requested()) && !self.siren.is_late();
        if is_for_waker && self.has_waker() {
            return self.waker.iter().for_each(|waker| waker.request(&self.siren));
        }
        self.siren.sound();
    }

    /// If none runs, the service thread starts one.
    fn has_waker(&mut self) -> bool {
        if self.waker.is_none() {
            self.waker = Waker::running();
        }
        if self.waker.is_some() || std::mem::replace(&mut self.asked_for_waker, true) {
            return self.waker.is_some();
        }
        let (errands, number) = (self.errands.clone(), self.number);
        let mut refused = false;
        self.service.after(Duration::ZERO, move |_, _, _| {
            let Some(errands) = errands.upgrade() else { return Next::Done };
            let started = (!refused).then(Waker::start);
            if let Some(Err(error)) = &started {
                static TOLD: AtomicBool = AtomicBool::new(false);
                if !TOLD.swap(true, Ordering::Relaxed) {
                    log::warn!(
                        "byref: cannot start a thread that wakes subscribers, so senders wake them themselves: {error}"
                    );
                }
            }
            let waker = started.and_then(Result::ok);
            if waker.is_none() && !std::mem::replace(&mut refused, true) {
                return Next::After(NO_WAKER);
            }
            errands.give_waker(number, waker);
            Next::Done
        });
        false
    }

    pub fn take_waker(&mut self, waker: Option<Arc<Waker>>) {
        self.waker = waker;
        self.asked_for_waker = false; // Whoever needs one asks again.
    }

    /// What one more record has to wait for, if anything.
    #[inline]
    pub fn must_wait(&mut self) -> Option<(u64, Option<Duration>)> {
        if self.log.has_room() { None } else { self.make_room() }
    }

    /// Looks at the cursors, and lets the ring grow.
    #[cold]
    fn make_room(&mut self) -> Option<(u64, Option<Duration>)> {
        let now = self.clock.now();
        self.log.reconsider(now);
        let unheard = self.claim_of_nobody(now);
        let mut needed = NEVER;
        if !self.log.is_between_steps() {
            needed = self.look_for(unheard).needed;
        }
        while let Some(step) = self.log.step(now) {
            let end = step.end;
            if let Err(error) = self.ring.populate(step) {
                log::warn!("byref: topic '{}': no memory for a longer ring, so it stays as it is: {error}", self.topic);
                self.log.refuse(now);
                needed = self.look_for(unheard).needed;
                continue;
            }
            fault!("grow.ring_populated");
            self.log.stepped(self.ring.map().words(), end, now);
        }
        (!self.log.has_room()).then_some((needed, None))
    }

    // ---- chunks ----

    /// The next record's chunk is in `slot`.
    #[inline]
    pub fn note_pending(&mut self, slot: u32) {
        self.pending.push_back((self.log.tail(), slot));
    }

    /// The chunks that readers may still come to.
    pub fn pending_slots(&self) -> impl DoubleEndedIterator<Item = u32> {
        self.pending.iter().map(|(_, slot)| *slot)
    }

    /// Those from a position on, the newest first.
    pub fn pending_from(&self, position: u64) -> impl Iterator<Item = u32> {
        self.pending.iter().rev().take_while(move |(at, _)| *at >= position).map(|(_, slot)| *slot)
    }

    /// The position and the slot of the oldest one.
    pub fn oldest_pending(&self) -> Option<(u64, u32)> {
        self.pending.front().copied()
    }

    /// Whether the chunk that was sent at a position is still one of them.
    pub fn is_pending(&self, position: u64) -> bool {
        self.oldest_pending().is_some_and(|(oldest, _)| position >= oldest)
    }

    /// Takes the oldest one out if the mark has passed it.
    pub fn next_reclaimed(&mut self) -> Option<u32> {
        let (position, slot) = self.oldest_pending()?;
        if position >= self.log.reclaim() {
            return None;
        }
        self.pending.pop_front();
        Some(slot)
    }

    /// Moves the mark past the oldest one, whoever may still want it.
    pub fn give_up_oldest(&mut self) {
        if let Some((position, _)) = self.oldest_pending() {
            self.log.move_mark(self.ring.map().words(), position + 1);
        }
    }

    /// Moves the mark past all records: who has not taken them will not find them any more.
    pub fn give_up_all(&mut self) {
        self.log.move_mark(self.ring.map().words(), self.log.tail());
    }

    /// How far the mark may move for the lossless subscribers' sake.
    pub fn lossless_mark(&self) -> u64 {
        self.horizon(false).reclaim
    }

    /// Chunks that some lossless subscriber has yet to take, the newest first.
    pub fn unread(&self) -> impl Iterator<Item = u32> {
        let tail = self.log.tail();
        self.pending_from(self.lossless().map(|peer| peer.cursor(tail)).min().unwrap_or(tail))
    }

    // ---- how far readers are ----

    /// What lossless subscribers raise when they ring for who waits for room.
    pub fn ring_words(&self) -> impl Iterator<Item = &AtomicU32> {
        self.lossless().map(|peer| &peer.lease.counts(RING_WORD)[0]).take(MOST_WORDS)
    }

    /// How many messages in the ring a subscriber has not taken.
    pub fn lag(&self, peer: &Peer) -> u64 {
        let tail = self.log.tail();
        let position = peer.cursor(tail).max(self.log.reclaim());
        let sequence = || self.log.regions().at(self.ring.map().words(), position).sequence(position);
        if position == tail { 0 } else { self.sent - sequence() }
    }

    fn claims(peers: &[Peer], tail: u64, only: Option<Claim>) -> impl Iterator<Item = Claim> {
        let peers = if only.is_some() { &[] } else { peers };
        peers.iter().filter_map(move |peer| peer.claim(tail)).chain(only)
    }

    /// Where untaken records are kept: the claim of the only reader, or, when that has ended, at whatever moment, what it never
    /// took: the mark has not passed it, and stays where it is.
    fn only_claim(&self) -> Option<Claim> {
        let of_reader = || self.peers.iter().find_map(|peer| peer.claim(self.log.tail()));
        let kept = || Claim { cursor: self.log.reclaim(), policy: Policy::Block, depth: u64::MAX };
        self.keeps_untaken.then(|| of_reader().unwrap_or_else(kept))
    }

    fn horizon(&self, keep_lossy: bool) -> Horizon {
        let claims = Self::claims(&self.peers, self.log.tail(), self.only_claim());
        self.log.horizon(self.history, keep_lossy, claims)
    }

    /// What is kept for the first subscriber, as long as none has come: a program may send and be gone before anybody is there (see
    /// [`Publisher::close_within`](crate::Publisher::close_within)). All, of a publisher that has just begun; later, as many as have room without growth. Only
    /// for want of room in the ring; payload memory is not kept for nobody.
    fn claim_of_nobody(&mut self, now: u64) -> Option<Claim> {
        if self.had_readers {
            return None;
        }
        let began = *self.began.get_or_insert(now);
        let is_new = now.abs_diff(began) < NEW;
        let depth = if is_new { u64::MAX } else { self.log.unheard() };
        Some(Claim { cursor: 0, policy: Policy::DropOldest, depth })
    }

    /// Brings `limit` and the reclaim mark up to date.
    pub fn look_at_cursors(&mut self) {
        self.look_for(None);
    }

    fn look_for(&mut self, unheard: Option<Claim>) -> Horizon {
        let only = self.only_claim();
        let claims = Self::claims(&self.peers, self.log.tail(), only).chain(unheard);
        let horizon = self.log.look(self.ring.map().words(), self.history, claims);
        self.look_at_awaited();
        horizon
    }

    /// How many more records than one are worth waiting for: a quarter of what the subscriber at `needed` has to read, and of what
    /// any other one ever leaves room for.
    pub fn batch(&self, needed: u64) -> u64 {
        let least = self.lossless().map(|peer| peer.depth).min().unwrap_or(0);
        self.log.tail().saturating_sub(needed).min(least) / 4
    }

    /// From where on to wake a publisher that waits for the cursor `needed`, and when to look without being woken.
    pub fn batched(&self, needed: u64) -> (u64, Option<Duration>) {
        (needed + self.batch(needed), Some(Duration::from_millis(1)))
    }

    /// Whether there is room for more than so many records; the mark stays where it is.
    pub fn has_room(&self, records: u64) -> bool {
        self.horizon(true).limit > self.log.tail() + records
    }

    pub fn lossless(&self) -> impl Iterator<Item = &Peer> {
        self.peers.iter().filter(|peer| peer.policy == Policy::Block && peer.is_connected())
    }

    /// The next position at which some lossless subscriber makes progress.
    pub fn next_progress(&self) -> u64 {
        self.lossless()
            .map(|peer| peer.cursor(self.log.tail()))
            .filter(|cursor| *cursor < self.log.tail())
            .min()
            .map_or(NEVER, |at| at + 1)
    }

    /// The position that its only reader takes next.
    pub fn unread_from(&self) -> u64 {
        self.peers.first().map_or(self.log.tail(), |peer| peer.cursor(self.log.tail()))
    }

    // ---- the end of an only reader ----

    /// Whether somebody reads it.
    pub fn is_read(&self) -> bool {
        self.peers.iter().any(Peer::is_connected)
    }

    /// Looks whether its reader has left.
    pub fn look_at_reader(&mut self) {
        if let [peer] = &self.peers[..]
            && (!peer.is_connected() || peer.channel.is_hung_up() || peer.channel.has_died())
        {
            self.note_departure(0);
        }
    }

    /// A reader has ended, or is given up.
    pub fn note_departure(&mut self, index: usize) {
        if self.keeps_untaken && self.departed.is_none() {
            if self.peers[index].lease().cursor() != CLOSED {
                self.revoke(); // It may live, and be about to take something.
            }
            let (lease, start) = (self.peers[index].lease(), self.peers[index].start);
            let cursor = lease.cursor(); // Before the row: who leaves says first how far it came.
            let cursor = if cursor == CLOSED { CLOSED } else { cursor.clamp(start, self.log.tail()) };
            self.departed = Some((cursor, lease.row()));
        }
    }

    /// From here on its reader takes nothing any more that its cursor does not show.
    fn revoke(&self) {
        self.ring().revoke();
        // Pairs with the light fence of the reader, who looks after it has shown its cursor.
        if !heavy_fence() {
            membarrier::wait_instead(); // The cursor may be in a store buffer still.
        }
    }

    /// Its reader is given up, whatever it does, for this reason.
    pub fn give_reader_up(&mut self, why: &str) {
        match self.peers.first() {
            None => drop(self.departed.get_or_insert((self.log.tail(), 0))),
            Some(peer) if peer.is_connected() => self.evict(0, why),
            Some(_) => self.note_departure(0),
        }
    }

    pub fn has_departed(&self) -> bool {
        self.departed.is_some()
    }

    /// Whether the reader that has ended did so in good order.
    pub fn reader_left(&self) -> bool {
        self.departed.is_some_and(|(cursor, _)| cursor == CLOSED)
    }

    /// The position of the first record that the reader which has ended never took, or not all of it, and the number of the message
    /// that it would have taken next, where it said that.
    pub fn first_untaken(&self) -> (u64, u64) {
        let (tail, reclaim) = (self.log.tail(), self.log.reclaim());
        match self.departed {
            Some((CLOSED, row)) => {
                (self.log.regions().find(self.ring.map().words(), reclaim, tail, row.min(self.sent)), row)
            }
            Some((cursor, row)) => (cursor.max(reclaim), row),
            None => (tail, 0),
        }
    }

    /// What nobody has taken need not be kept any more.
    pub fn let_go(&mut self) {
        self.keeps_untaken = false;
        self.log.look_again();
    }

    pub fn update_pairing(&mut self) {
        self.pairing = Pairing::with(self.peers.iter().all(|peer| peer.membarrier));
    }
}
