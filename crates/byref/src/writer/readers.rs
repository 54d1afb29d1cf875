//! The subscribers of a line: how they come and go, and what they are told.

use crate::link::channel::Channel;
use crate::link::handshake::{self, Hello, ToSubscriber, Welcome};
use crate::link::tasks::Next;
use crate::protocol::claim::{Policy, retention_limit};
use crate::protocol::wake::Sleeper;
use crate::sys::membarrier;
use crate::sys::memory::{Mapping, OwnedSegment};
use crate::sys::text::printable;
use crate::writer::line::Line;
use crate::writer::peer::{Peer, Silence};
use crate::writer::store::Store;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// What a full socket did not take is tried again after this time.
const LATER: Duration = Duration::from_millis(10);
/// A subscriber that was written off is looked at again after this time, while something waits for it.
const WRITTEN_OFF_LOOK: Duration = Duration::from_millis(50);

/// A subscriber that says hello.
pub(crate) struct Newcomer {
    pub hello: Hello,
    pub lease: Mapping,
    pub channel: Channel,
}

/// What a subscriber is told of whom it reads from.
pub(crate) struct Introduction<'a> {
    pub publisher: u128,
    pub topic: &'a str,
    pub name: Option<&'a str>,
}

impl Line {
    /// Has senders that wait look again.
    pub fn wake_senders(&self) {
        self.rings.room.strike();
    }

    /// Whether every lossless subscriber has been sent all descriptors.
    pub fn announced_to_lossless(&mut self) -> bool {
        let mut all = true;
        let next = self.generation + 1;
        for peer in &mut self.peers {
            if !peer.outbox.is_empty() {
                all &= peer.flush_outbox(next) || peer.policy != Policy::Block || !peer.is_connected();
            }
        }
        self.call_those_told_late();
        all
    }

    /// Tells all subscribers that can still want it of a new segment.
    pub fn announce(&mut self, id: u32, segment: &Arc<OwnedSegment>) {
        for peer in self.peers.iter_mut().filter(|peer| peer.is_connected()) {
            peer.outbox.push_back((ToSubscriber::Segment { id }, Some(Arc::clone(segment))));
        }
        self.send_outboxes();
    }

    /// Sends what waits, as far as the sockets take it now; the service thread does the rest.
    pub fn send_outboxes(&mut self) {
        self.flush_all(self.generation + 1);
        self.call_those_told_late();
    }

    /// The same; the news of retired memory are acknowledged with the ring's generation `next`.
    pub fn flush_all(&mut self, next: u64) {
        let mut all = true;
        for peer in self.peers.iter_mut().filter(|peer| peer.is_told()) {
            all &= peer.flush_outbox(next);
        }
        if !all {
            self.send_later();
        }
    }

    /// Who was sent the news of retired memory after the generation had changed for it may have acknowledged that before.
    fn call_those_told_late(&mut self) {
        if self.peers.iter().any(|peer| peer.owes > self.generation) {
            self.call_readers();
        }
    }

    /// Has the service thread send what is in the outboxes.
    #[cold]
    pub fn send_later(&mut self) {
        if !std::mem::replace(&mut self.flushing, true) {
            let (errands, number) = (self.errands.clone(), self.number);
            self.service.after(LATER, move |_, _, _| {
                errands.upgrade().and_then(|errands| errands.flush_outboxes(number)).map_or(Next::Done, Next::After)
            });
        }
    }

    /// Sends what full sockets did not take before; gives the time to try again, unless that was all.
    pub fn flush_late_outboxes(&mut self) -> Option<Duration> {
        let next = self.generation + 1;
        let mut again = None;
        let mut evicted = false;
        for peer in self.peers.iter_mut().filter(|peer| peer.is_told()) {
            if !peer.flush_outbox(next) {
                let pause = if peer.written_off { WRITTEN_OFF_LOOK } else { LATER };
                again = again.into_iter().chain([pause]).min();
            }
            evicted |= peer.evicted && peer.outbox.is_empty();
        }
        self.flushing = again.is_some();
        if evicted {
            self.call_readers();
        }
        self.call_those_told_late();
        again
    }
}

impl Line {
    /// Takes a subscriber in; gives its number.
    pub fn admit(&mut self, store: &mut Store, newcomer: Newcomer, introduction: &Introduction<'_>) -> io::Result<u64> {
        let Newcomer { hello, lease, channel } = newcomer;
        let (pid, channel) = (channel.peer_pid(), Arc::new(channel));
        let capacity = self.log.capacity();
        let most = if hello.policy == Policy::Block { capacity } else { retention_limit(capacity) };
        let depth = if hello.policy == Policy::Latest { 1 } else { hello.depth.unwrap_or(most).clamp(1, most) };
        let late = self.history_for(hello.history).min(if hello.policy == Policy::Block { u64::MAX } else { depth });
        // A position is at least one message, so these are enough; what is reclaimed among them is gone.
        let tail = self.log.tail();
        let earliest = tail.saturating_sub(late).max(self.log.reclaim());
        let first = self.sent.saturating_sub(late);
        let (words, regions) = (self.ring.map().words(), self.log.regions());
        let start = regions.find(words, earliest, tail, first);
        let first = if start == tail { self.sent } else { first.max(regions.at(words, start).sequence(start)) };
        fault!("history.start_found");
        let welcome = Welcome {
            publisher: introduction.publisher,
            topic: introduction.topic.to_owned(),
            name: introduction.name.map(str::to_owned),
            start,
            first,
            capacity,
            membarrier: membarrier::works(),
        };
        let announce =
            |(id, memory): (u32, &Arc<OwnedSegment>)| (ToSubscriber::Segment { id }, Some(Arc::clone(memory)));
        let mut outbox: VecDeque<_> = store.segments().map(announce).collect();
        let welcome = ToSubscriber::Welcome(welcome);
        // What may fail comes first: whoever is welcome counts on it.
        if !channel.send(&handshake::encode_first(&welcome), Some(self.ring.shared()))? {
            outbox.push_front((welcome, Some(Arc::clone(&self.ring))));
        }
        fault!("accept.welcomed");
        self.had_readers = true;
        let id = store.number_peer();
        let peer = Peer {
            id,
            pid: pid.map_or(0, |pid| pid.as_raw_nonzero().get()),
            name: hello.name.map(|name| printable(&name)),
            channel,
            bell: None,
            bells: 0,
            lease: Arc::new(lease),
            policy: hello.policy,
            depth,
            start,
            sleeper: Sleeper::default(),
            membarrier: hello.membarrier,
            alive: true,
            evicted: false,
            stall: None,
            joined: self.generation,
            written_off: false,
            owes: 0,
            silence: Silence::default(),
            outbox,
        };
        let (errands, number) = (self.errands.clone(), self.number);
        let (rings, channel) = (Arc::clone(&self.rings), Arc::downgrade(&peer.channel));
        peer.channel.listen(move || {
            if let (Some(errands), Some(channel)) = (errands.upgrade(), channel.upgrade()) {
                errands.hear(number, id, &channel, &rings);
            }
        });
        self.peers.push(peer);
        self.send_outboxes();
        log::debug!(
            "byref: topic '{}': a subscriber in process {} is connected",
            self.topic,
            self.peers[self.peers.len() - 1].pid
        );
        fault!("accept.counted");
        self.update_pairing();
        self.log.look_again();
        self.wake_senders();
        Ok(id)
    }

    /// How many of the last messages a subscriber may have that comes now, and that has asked for `wanted` of them.
    fn history_for(&self, wanted: u64) -> u64 {
        if self.lingers { u64::MAX } else { wanted.min(self.history) }
    }

    /// Tells subscribers that nothing more comes.
    pub fn say_closed(&self) {
        self.ring().set_closed();
        fault!("close.publisher_flagged");
        if self.siren.is_requested() {
            self.siren.sound();
        }
    }

    /// Ends the connections.
    pub fn hang_up(&self) {
        for peer in &self.peers {
            peer.channel.hang_up();
            fault!("close.publisher_hung_up");
        }
        self.wake_senders();
    }

    pub fn position_of(&self, peer: u64) -> Option<usize> {
        self.peers.iter().position(|found| found.id == peer)
    }

    /// Disconnects the subscriber of that number; `false`: it is not connected.
    pub fn disconnect(&mut self, peer: u64, why: &str) -> bool {
        let found = self.position_of(peer).filter(|index| self.peers[*index].is_connected());
        if let Some(index) = found {
            self.evict(index, why);
        }
        found.is_some()
    }

    /// The end of a subscriber, as far as it needs the lock; gives what is to be done without it.
    pub fn lose(&mut self, peer: u64, hung_up: bool) -> Option<impl FnOnce() + use<>> {
        let index = self.position_of(peer)?;
        log::debug!("byref: topic '{}': the subscriber in process {} is gone", self.topic, self.peers[index].pid);
        fault!("lose.noticed");
        self.note_departure(index);
        self.peers[index].alive = false;
        self.peers[index].outbox.clear(); // Nobody is left to read it.
        let lost = hung_up.then(|| self.peers.remove(index));
        self.update_pairing();
        self.log.look_again();
        self.look_at_awaited();
        self.wake_senders();
        Some(move || {
            if lost.is_some() {
                fault!("lose.removed");
            }
        })
    }
}
