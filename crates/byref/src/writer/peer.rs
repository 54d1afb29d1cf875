//! A connected subscriber, as its publisher knows it.

use crate::link::channel::Channel;
use crate::link::handshake::{self, ToSubscriber};
use crate::protocol::claim::{Claim, Policy};
use crate::protocol::lease::{CLOSED, COUNTS, Lease};
use crate::protocol::note;
use crate::protocol::wake::Sleeper;
use crate::sys::memory::{Mapping, OwnedSegment};
use crate::sys::socket;
use crate::writer::sent::Sent;
use rustix::fd::OwnedFd;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How far a subscriber was when senders began to wait for it, and how long they have waited since.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Stall {
    /// Its cursor, the row within the block there, and the bytes that it holds.
    pub at: (u64, u64, u64),
    pub waited: Duration,
}

/// How far a subscriber was when a call that waits for it looked first, and when that was.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Silence {
    pub since: Option<((u64, u64, u64), Instant)>,
    /// From which cursor on the next warning is due: when it has read what waited at the last one.
    pub told: u64,
}

/// A connected subscriber.
pub(crate) struct Peer {
    pub id: u64,
    pub pid: i32,
    pub name: Option<String>,
    pub channel: Arc<Channel>,
    /// What wakes it if it sleeps at sockets, and has passed one; and how many it has passed.
    pub bell: Option<Arc<OwnedFd>>,
    pub bells: usize,
    pub lease: Arc<Mapping>,
    pub policy: Policy,
    pub depth: u64,
    pub start: u64,
    pub sleeper: Sleeper,
    pub membarrier: bool,
    /// Its process lives. Otherwise a forked child keeps the channel: its holds count, its cursor does not.
    pub alive: bool,
    /// The publisher gave it up: as above.
    pub evicted: bool,
    /// Senders wait for it.
    pub stall: Option<Stall>,
    /// The ring's generation when it came: it has nothing of what was retired before.
    pub joined: u64,
    /// It did not unmap retired memory in time. It is sent no more memory until it has.
    pub written_off: bool,
    /// The generation that it acknowledges when it has read all news of retired memory that it was sent.
    pub owes: u64,
    /// It has done nothing while calls waited for it.
    pub silence: Silence,
    /// What a full socket did not take yet: its welcome, descriptors, news of them.
    pub outbox: VecDeque<(ToSubscriber, Option<Arc<OwnedSegment>>)>,
}

impl Peer {
    #[inline]
    pub fn lease(&self) -> Lease<'_> {
        Lease::new(self.lease.words(), self.lease.counts(COUNTS))
    }

    pub fn is_connected(&self) -> bool {
        self.alive && !self.evicted && self.lease().cursor() != CLOSED
    }

    /// Whether it finds what it is sent. Before that it is connected, and misses nothing, but may not have taken the welcome in.
    pub fn has_joined(&self) -> bool {
        self.is_connected() && self.lease().has_joined()
    }

    /// Whether what waits in its outbox is to be sent.
    pub fn is_told(&self) -> bool {
        self.is_connected() || (self.evicted && !self.outbox.is_empty())
    }

    /// The first position it has not taken, whatever it claims.
    pub fn cursor(&self, tail: u64) -> u64 {
        self.lease().cursor().clamp(self.start, tail)
    }

    pub fn claim(&self, tail: u64) -> Option<Claim> {
        let cursor = self.lease().cursor(); // Once: it may leave between two looks.
        let is_connected = self.alive && !self.evicted && cursor != CLOSED;
        is_connected.then(|| Claim { cursor: cursor.clamp(self.start, tail), policy: self.policy, depth: self.depth })
    }

    /// Whether it can still come to the record of `position`, or holds it. Of one that it has passed the cursor says so before
    /// its holds are looked at (invariant 3 of the lease).
    pub fn wants(&self, position: u64, slot: u32, tail: u64, reclaim: u64) -> bool {
        self.has_yet_to_pass(position, tail, reclaim) || self.lease().is_held(slot)
    }

    /// Whether it can still come to the record of `position`.
    pub fn has_yet_to_pass(&self, position: u64, tail: u64, reclaim: u64) -> bool {
        position >= reclaim && self.is_connected() && self.cursor(tail) <= position
    }

    /// Where it received the record in `slot`, if it noted that.
    pub fn received_at(&self, slot: u32, sent: &Sent) -> Option<String> {
        let noted =
            || note::read(note::of_slot(&self.lease, slot), sent.sequence..sent.sequence + u64::from(sent.count));
        self.lease().has_notes().then(noted).flatten()
    }

    /// Whether it may still have memory mapped that was retired with the ring's `generation`.
    pub fn keeps(&self, generation: u64) -> bool {
        self.joined < generation && (self.is_behind() || self.lease().generation() < generation)
    }

    /// Whether it has news of retired memory to acknowledge, or to be sent.
    fn is_behind(&self) -> bool {
        let has_news = self.outbox.iter().any(|(packet, _)| matches!(packet, ToSubscriber::Retire { .. }));
        (has_news && self.is_told()) || self.lease().generation() < self.owes
    }

    /// Whether a send waits for it as long as it takes.
    pub fn may_delay(&self) -> bool {
        self.policy == Policy::Block && self.is_connected()
    }

    /// Wakes it from a sleep for which it was not woken yet.
    #[cold]
    pub fn wake(&mut self) {
        // One that does not work any more is no matter: the service thread there hears this.
        if !self.bell.as_ref().is_some_and(socket::ring) {
            self.bell = None;
            self.channel.ring();
        }
    }

    /// Has its channel say something, from the outbox.
    pub fn call(&mut self) {
        if !matches!(self.outbox.back(), Some((ToSubscriber::Wake, _))) {
            self.outbox.push_back((ToSubscriber::Wake, None));
        }
    }

    /// Sends what waits; `false` while some of it does not fit, or has to wait until it has given memory back. The news of
    /// retired memory are acknowledged with the ring's generation `next`.
    pub fn flush_outbox(&mut self, next: u64) -> bool {
        self.written_off = self.written_off && self.is_behind();
        // New segments stay behind then. The other packets may overtake them: a segment that was not sent is not retired.
        let is_due = |(packet, segment): &(ToSubscriber, Option<Arc<OwnedSegment>>)| {
            !self.written_off || segment.is_none() || matches!(packet, ToSubscriber::Welcome(_))
        };
        while let Some(at) = self.outbox.iter().position(is_due) {
            let (packet, segment) = &self.outbox[at];
            let fd = segment.as_ref().map(|segment| segment.shared());
            fault!("announce.before");
            let encode = if at == 0 && matches!(packet, ToSubscriber::Welcome(_)) {
                handshake::encode_first
            } else {
                handshake::encode
            };
            match self.channel.send(&encode(packet), fd) {
                Ok(true) => {}
                Ok(false) => return false,
                Err(_) => return true, // It hung up; the service thread will notice.
            }
            fault!("announce.sent");
            if let Some((ToSubscriber::Retire { .. }, _)) = self.outbox.remove(at) {
                self.owes = next;
            }
        }
        self.outbox.is_empty()
    }

    pub fn who(&self) -> String {
        match &self.name {
            Some(name) => format!("process {} ('{name}')", self.pid),
            None => format!("process {}", self.pid),
        }
    }
}
