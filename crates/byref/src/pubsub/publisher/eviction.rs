//! Subscribers that are disconnected for the others' sake: because they stall a lossless publisher, hold too much, or because an
//! operator says so.
//!
//! Eviction ends a subscriber's claim, no more: its cursor holds nobody up, and it is sent nothing further. What it holds stays
//! its own until it lets go; its lease is looked at as before. It may be frozen in the middle of taking a record: the order of
//! hold and look (invariant 2 of the lease) tells it, when it wakes, that the record is gone. It learns of the eviction from its
//! socket, to which the ring's generation sends it if it never sleeps.

use super::{Open, Shared};
use crate::error::Result;
use crate::link::handshake::ToSubscriber;
use crate::protocol::claim::Policy;
use crate::protocol::ring::NEVER;
use crate::writer::peer::Peer;
use std::time::{Duration, Instant};

/// What a publisher puts up with.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Limits {
    /// Bytes of messages that one subscriber may hold.
    pub held: Option<u64>,
    /// How long one subscriber may keep senders waiting without any progress.
    pub stall: Option<Duration>,
}

/// How far a subscriber was when senders began to wait for it, and how long they have waited since.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Stall {
    /// Its cursor, the row within the block there, and the bytes that it holds.
    at: (u64, u64, u64),
    waited: Duration,
}

/// How far a subscriber was when a call that waits for it looked first, and when that was.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Silence {
    since: Option<((u64, u64, u64), Instant)>,
    /// From which cursor on the next warning is due: when it has read what waited at the last one.
    told: u64,
}

/// A call that waits so long for a subscriber that does nothing warns of it.
const SILENCE: Duration = Duration::from_secs(5);

impl Open {
    /// Disconnects the subscriber at `index`.
    pub(super) fn evict(&mut self, topic: &str, index: usize, why: &str) {
        let peer = &mut self.peers[index];
        log::warn!("byref: topic '{topic}': evicted {}, which {why}", peer.who());
        peer.evicted = true;
        peer.outbox.clear();
        peer.outbox.push_back((ToSubscriber::Evicted { why: why.to_owned() }, None));
        self.send_outboxes();
        self.call_readers();
        self.update_pairing();
        self.log.look_again();
        self.look_at_awaited();
        self.wake_senders();
    }

    /// Has all subscribers read their sockets, also those that never sleep.
    pub(super) fn call_readers(&mut self) {
        self.set_generation(self.generation + 1);
    }

    /// Changes the number at which receivers read their sockets.
    pub(super) fn set_generation(&mut self, generation: u64) {
        self.generation = generation;
        fault!("retire.announced");
        self.ring().set_generation(generation);
        fault!("retire.generation_set");
        // For those that receive nothing: their service thread reads the socket, and looks at the number when that says something. They
        // may have read all before it changed.
        for peer in self.peers.iter_mut().filter(|peer| peer.is_connected()) {
            peer.call();
        }
        self.flush_all();
        // One that read its socket before this, and sleeps again, has not seen it.
        self.wake_sleepers();
    }

    /// Evicts who holds more than `most` bytes. It looks again when an eighth of that was sent since, or when `now`.
    pub(super) fn limit_holds(&mut self, topic: &str, most: u64, bytes: u64, now: bool) {
        self.unchecked += bytes;
        if !now && self.unchecked < most / 8 {
            return;
        }
        self.unchecked = 0;
        for index in 0..self.peers.len() {
            let peer = &self.peers[index];
            let held = if peer.is_connected() { self.held_bytes(peer) } else { 0 };
            if held > most {
                self.evict(topic, index, &format!("holds {held} bytes of messages, more than max_held={most}"));
            }
        }
    }

    /// How far a subscriber is. It has done something when this changes.
    fn progress(&self, peer: &Peer) -> (u64, u64, u64) {
        (peer.cursor(self.log.tail()), peer.lease().row(), self.held_bytes(peer))
    }

    /// How long senders have waited for it since it last did something.
    pub(super) fn stalled(&self, peer: &Peer) -> Duration {
        let stall = peer.stall.filter(|stall| stall.at == self.progress(peer));
        stall.map_or(Duration::ZERO, |stall| stall.waited)
    }

    /// For whom a send waits that waits for a cursor to reach `at`. At [`NEVER`] it waits for who does not read its socket, or,
    /// if all do, for memory: who holds the most of it is to blame. (A reader that waits for a message usually holds the last.)
    fn awaited(&self, at: u64) -> Vec<usize> {
        let lossless =
            || self.peers.iter().enumerate().filter(|(_, peer)| peer.policy == Policy::Block && peer.is_connected());
        let indices = |chosen: &dyn Fn(&Peer) -> bool| {
            lossless().filter(|(_, peer)| chosen(peer)).map(|(index, _)| index).collect()
        };
        if at != NEVER {
            return indices(&|peer| peer.cursor(self.log.tail()) < at);
        }
        let deaf: Vec<_> = indices(&|peer| !peer.outbox.is_empty());
        if !deaf.is_empty() {
            return deaf;
        }
        let kept = |peer: &Peer| self.pool.retired_with(|generation| peer.keeps(generation));
        let most = lossless().map(|(index, peer)| (self.held_bytes(peer) + kept(peer), index)).max();
        most.filter(|(held, _)| *held > 0).map(|(_, index)| index).into_iter().collect()
    }

    /// Warns, once, of each subscriber that has done nothing while a call waited for it since `began`, for a cursor to reach `at`.
    /// Where memory is short because messages are held, other warnings say so.
    pub(super) fn warn_of_silence(&mut self, topic: &str, what: &str, at: u64, began: Instant) {
        if self.warned.is_some_and(|warned| warned >= began) {
            return;
        }
        for index in self.awaited(at) {
            let progress = self.progress(&self.peers[index]);
            let lag = self.lag(&self.peers[index]);
            let peer = &mut self.peers[index];
            if at == NEVER && peer.outbox.is_empty() {
                continue;
            }
            let since = match peer.silence.since {
                Some((before, since)) if before == progress => since.max(began),
                _ => {
                    peer.silence.since = Some((progress, Instant::now()));
                    continue;
                }
            };
            if since.elapsed() >= SILENCE && progress.0 >= peer.silence.told {
                peer.silence.told = self.log.tail().max(progress.0 + 1);
                log::warn!(
                    "byref: topic '{topic}': a {what} has waited {} s for {}, which does not read: {lag} messages wait for it; \
                     have it read them (in the same event loop: use send_async), or close it, or give the publisher a max_stall",
                    SILENCE.as_secs(),
                    peer.who()
                );
            }
        }
    }

    /// Counts the time since the last count, but not before `began`, against those for whom a send waits and who have done
    /// nothing since, and evicts the first for whom it is too much. Gives the time until the next one is.
    pub(super) fn limit_stalls(&mut self, topic: &str, most: Duration, at: u64, began: Instant) -> Option<Duration> {
        let now = Instant::now();
        let since = self.counted.replace(now).map_or(began, |counted| counted.max(began));
        let mut left = None;
        for index in self.awaited(at) {
            let peer = &self.peers[index];
            let progress = self.progress(peer);
            let before = peer.stall.filter(|stall| stall.at == progress);
            let waited = before.map_or(Duration::ZERO, |stall| stall.waited + now.duration_since(since));
            self.peers[index].stall = Some(Stall { at: progress, waited });
            if waited >= most {
                let why = format!("kept the others waiting for more than max_stall={} s", most.as_secs_f64());
                self.evict(topic, index, &why);
                return Some(Duration::ZERO);
            }
            left = Some((most - waited).min(left.unwrap_or(most)));
        }
        left
    }
}

impl Shared {
    /// Disconnects the subscriber of that number; `false`: there is none.
    pub(super) fn evict(&self, id: u64) -> Result<bool> {
        let mut guard = self.lock()?;
        let open = self.opened(&mut guard)?;
        let found = open.peers.iter().position(|peer| peer.id == id && peer.is_connected());
        if let Some(index) = found {
            open.evict(&self.topic, index, "was to go");
        }
        drop(guard);
        self.changed.notify();
        Ok(found.is_some())
    }
}
