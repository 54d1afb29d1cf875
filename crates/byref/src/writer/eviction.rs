//! Subscribers that are disconnected for the others' sake: because they stall a lossless publisher, hold too much, or because an
//! operator says so.
//!
//! Eviction ends a subscriber's claim, no more: its cursor holds nobody up, and it is sent nothing further. What it holds stays
//! its own until it lets go; its lease is looked at as before. It may be frozen in the middle of taking a record: the order of
//! hold and look (invariant 2 of the lease) tells it, when it wakes, that the record is gone. It learns of the eviction from its
//! socket, to which the ring's generation sends it if it never sleeps.

use crate::link::handshake::ToSubscriber;
use crate::link::tasks::Next;
use crate::protocol::claim::Policy;
use crate::protocol::ring::NEVER;
use crate::writer::attempt::Call;
use crate::writer::line::Line;
use crate::writer::peer::{Peer, Stall};
use crate::writer::store::Store;
use std::time::{Duration, Instant};

/// A call that waits so long for a subscriber that does nothing warns of it.
const SILENCE: Duration = Duration::from_secs(5);

impl Line {
    /// Disconnects the subscriber at `index`.
    pub fn evict(&mut self, index: usize, why: &str) {
        self.note_departure(index);
        let topic = &self.topic;
        let peer = &mut self.peers[index];
        log::warn!("byref: topic '{topic}': evicted {}, which {why}", peer.who());
        peer.evicted = true;
        peer.outbox.retain(|(packet, _)| matches!(packet, ToSubscriber::Welcome(_))); // It understands nothing before that.
        peer.outbox.push_back((ToSubscriber::Evicted { why: why.to_owned() }, None));
        self.send_outboxes();
        self.call_readers();
        self.update_pairing();
        self.log.look_again();
        self.look_at_awaited();
        self.wake_senders();
        let errands = self.errands.clone();
        self.service.after(Duration::ZERO, move |_, _, _| {
            if let Some(errands) = errands.upgrade() {
                errands.readers_changed();
            }
            Next::Done
        });
    }

    /// Has all subscribers read their sockets, also those that never sleep.
    pub fn call_readers(&mut self) {
        self.set_generation(self.generation + 1);
    }

    /// Changes the number at which receivers read their sockets.
    pub fn set_generation(&mut self, generation: u64) {
        self.generation = generation;
        fault!("retire.announced");
        self.ring().set_generation(generation);
        fault!("retire.generation_set");
        // For those that receive nothing: their service thread reads the socket, and looks at the number when that says something. They
        // may have read all before it changed.
        for peer in self.peers.iter_mut().filter(|peer| peer.is_connected()) {
            peer.call();
        }
        self.flush_all(generation + 1);
        // One that read its socket before this, and sleeps again, has not seen it.
        self.wake_sleepers();
    }

    /// How far a subscriber is. It has done something when this changes.
    fn progress(&self, store: &Store, peer: &Peer) -> (u64, u64, u64) {
        (peer.cursor(self.log.tail()), peer.lease().row(), store.held_bytes(self, peer))
    }

    /// How long senders have waited for it since it last did something.
    pub fn stalled(&self, store: &Store, peer: &Peer) -> Duration {
        let stall = peer.stall.filter(|stall| stall.at == self.progress(store, peer));
        stall.map_or(Duration::ZERO, |stall| stall.waited)
    }

    /// For whom a send waits that waits for a cursor to reach `at`. At [`NEVER`] it waits for who does not read its socket, or,
    /// if all do, for memory: who holds the most of it is to blame. (A reader that waits for a message usually holds the last.)
    fn waited_for(&self, store: &Store, at: u64) -> Vec<usize> {
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
        let kept = |peer: &Peer| store.pool.retired_with(|generation| peer.keeps(generation));
        let most = lossless().map(|(index, peer)| (store.held_bytes(self, peer) + kept(peer), index)).max();
        most.filter(|(held, _)| *held > 0).map(|(_, index)| index).into_iter().collect()
    }

    /// Warns, once, of each subscriber that has done nothing while a call waited for it since `began`, for a cursor to reach `at`.
    /// Where memory is short because messages are held, other warnings say so.
    pub fn warn_of_silence(&mut self, store: &Store, what: &str, at: u64, began: Instant) {
        if store.warned.is_some_and(|warned| warned >= began) {
            return;
        }
        for index in self.waited_for(store, at) {
            let progress = self.progress(store, &self.peers[index]);
            let lag = self.lag(&self.peers[index]);
            let topic = &self.topic;
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
    fn limit_stalls(&mut self, store: &Store, at: u64, began: Instant) -> Option<Duration> {
        let most = self.limits.stall?;
        let now = Instant::now();
        let since = self.counted.replace(now).map_or(began, |counted| counted.max(began));
        let mut left = None;
        for index in self.waited_for(store, at) {
            let peer = &self.peers[index];
            let progress = self.progress(store, peer);
            let before = peer.stall.filter(|stall| stall.at == progress);
            let waited = before.map_or(Duration::ZERO, |stall| stall.waited + now.duration_since(since));
            self.peers[index].stall = Some(Stall { at: progress, waited });
            if waited >= most {
                let why = format!("kept the others waiting for more than max_stall={} s", most.as_secs_f64());
                self.evict(index, &why);
                return Some(Duration::ZERO);
            }
            left = Some((most - waited).min(left.unwrap_or(most)));
        }
        left
    }

    /// The same for a call that waits: a flush evicts nobody.
    pub fn limit_waits(&mut self, store: &Store, call: Call, at: u64, began: Instant) -> Option<Duration> {
        if call == Call::Send { self.limit_stalls(store, at, began) } else { None }
    }
}

impl Store {
    /// Evicts who holds more than `most` bytes. It looks again when an eighth of that was sent since, or when `now`.
    pub fn limit_holds(&mut self, lines: &mut [Line], most: u64, bytes: u64, now: bool) {
        self.unchecked += bytes;
        if !now && self.unchecked < most / 8 {
            return;
        }
        self.unchecked = 0;
        for line in lines {
            for index in 0..line.peers.len() {
                let peer = &line.peers[index];
                let held = if peer.is_connected() { self.held_bytes(line, peer) } else { 0 };
                if held > most {
                    line.evict(index, &format!("holds {held} bytes of messages, more than max_held={most}"));
                }
            }
        }
    }
}
