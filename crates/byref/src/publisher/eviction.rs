//! Subscribers that are disconnected for the others' sake: because they stall a lossless publisher, hold too much, or because an
//! operator says so.
//!
//! Eviction ends a subscriber's claim, no more: its cursor holds nobody up, and it is sent nothing further. What it holds stays
//! its own until it lets go; its lease is looked at as before. It may be frozen in the middle of taking a record: the order of
//! hold and look (invariant 2 of the lease) tells it, when it wakes, that the record is gone. It learns of the eviction from its
//! socket, to which the ring's generation sends it if it never sleeps.

use super::{Open, Shared};
use crate::claim::Policy;
use crate::error::Result;
use crate::handshake::ToSubscriber;
use std::time::Duration;

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
    cursor: u64,
    held: u64,
    pub waited: Duration,
}

impl Open {
    /// Disconnects the subscriber at `index`.
    fn evict(&mut self, topic: &str, index: usize, why: &str) {
        let peer = &mut self.peers[index];
        log::warn!("byref: topic '{topic}': evicted {}, which {why}", peer.who());
        peer.evicted = true;
        peer.outbox.clear();
        peer.outbox.push_back((ToSubscriber::Evicted { why: why.to_owned() }, None));
        self.send_outboxes();
        self.call_readers();
        self.update_pairing();
        self.limit = self.tail; // Look at the cursors again.
        self.door.bell.ring();
    }

    /// Has all subscribers read their sockets, also those that never sleep.
    pub(super) fn call_readers(&mut self) {
        self.generation += 1;
        self.ring().set_generation(self.generation);
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

    /// Counts `waited` against each lossless subscriber that keeps a send waiting and has done nothing since, and evicts those
    /// for whom it is too much. Gives the time until the next one is. `at`: the cursor that the send waits for.
    pub(super) fn limit_stalls(&mut self, topic: &str, most: Duration, at: u64, waited: Duration) -> Option<Duration> {
        let mut left = None;
        for index in 0..self.peers.len() {
            let peer = &self.peers[index];
            if peer.policy != Policy::Block || !peer.is_connected() {
                continue;
            }
            let (cursor, held) = (peer.cursor(self.tail), self.held_bytes(peer));
            if cursor >= at || (cursor == self.tail && held == 0) {
                continue;
            }
            let before = peer.stall.filter(|stall| (stall.cursor, stall.held) == (cursor, held));
            let waited = before.map_or(Duration::ZERO, |stall| stall.waited + waited);
            self.peers[index].stall = Some(Stall { cursor, held, waited });
            if waited >= most {
                let why = format!("kept the others waiting for more than max_stall={} s", most.as_secs_f64());
                self.evict(topic, index, &why);
            } else {
                left = Some((most - waited).min(left.unwrap_or(most)));
            }
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
