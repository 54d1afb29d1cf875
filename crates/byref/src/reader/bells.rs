//! What publishers ring when a subscriber sleeps at sockets: one bell for each process that publishes, of which all its publishers have
//! an end. (At words, or where a bell cannot be had, they ring on their channels, and the service thread passes it on.)

use crate::link::channel::Channel;
use crate::link::handshake::{self, ToPublisher};
use crate::link::pair::Pair;
use crate::reader::connection::Connection;
use crate::sys::door::Door;
use crate::sys::epoll::Interest;
use crate::sys::socket;
use rustix::fd::{AsFd, OwnedFd};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// A bell that its publishers have broken is replaced so often. None that speaks this protocol breaks one.
pub(crate) const MOST_BROKEN: u32 = 4;

#[derive(Default)]
pub(crate) struct Bells(Vec<Bell>);

/// A bell that hangs at the door.
struct Bell {
    /// No other one of this process has it.
    number: u64,
    pair: Weak<Pair>,
    /// Its two ends; `None`: they could not be made, or were broken too often.
    ends: Option<(OwnedFd, OwnedFd)>,
    /// How often they were.
    broken: u32,
}

impl Bells {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Tells publishers that were not told yet by what to wake this subscriber.
    pub fn hand_out(&mut self, connections: &mut [Connection], door: &Door) {
        if door.sockets().is_none() {
            return; // They could not be made. The service thread wakes this subscriber.
        }
        for connection in connections.iter_mut().filter(|it| !it.has_bell && it.is_live()) {
            let told = self.tell(&connection.link.channel, door);
            connection.has_bell = told.unwrap_or(false); // If not, it is tried again.
        }
    }

    fn tell(&mut self, channel: &Channel, door: &Door) -> io::Result<bool> {
        let bell = self.of(channel.pair(), door)?;
        let Some((_, theirs)) = &bell.ends else { return Ok(true) }; // The service thread wakes this subscriber.
        let packet = handshake::encode_to_publisher(&ToPublisher::Bell { number: bell.number });
        channel.send(&packet, Some(theirs.as_fd()))
    }

    /// The bell of a process, hung at `door` if there was none.
    fn of(&mut self, pair: &Arc<Pair>, door: &Door) -> io::Result<&Bell> {
        let at = self.0.iter().position(|bell| bell.is_of(pair)).unwrap_or_else(|| {
            self.0.push(Bell { number: 0, pair: Arc::downgrade(pair), ends: None, broken: 0 });
            self.0.len() - 1
        });
        let bell = &mut self.0[at];
        if bell.ends.is_none() && bell.broken <= MOST_BROKEN {
            bell.hang(door)?;
        }
        Ok(bell)
    }

    /// Takes those down that nobody has to ring any more.
    pub fn keep_those_of(&mut self, connections: &[Connection], door: &Door) {
        let is_used = |bell: &Bell| connections.iter().any(|it| bell.is_of(it.link.channel.pair()));
        for mut unused in self.0.extract_if(.., |bell| !is_used(bell)) {
            unused.take_down(door);
        }
    }

    /// One was rung. One that was broken is replaced, and publishers are told of the new one.
    pub fn silence(&mut self, number: u64, connections: &mut [Connection], door: &Door) {
        let Some(bell) = self.0.iter_mut().find(|bell| bell.number == number) else { return };
        if bell.ends.as_ref().is_none_or(|(own, _)| socket::silence(own)) {
            return;
        }
        bell.take_down(door);
        bell.broken += 1;
        let of_pair = connections.iter_mut().filter(|it| bell.is_of(it.link.channel.pair()));
        of_pair.for_each(|connection| connection.has_bell = false);
        self.hand_out(connections, door);
    }
}

impl Bell {
    /// Makes its two ends, one hung at `door` under a new number.
    fn hang(&mut self, door: &Door) -> io::Result<()> {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let ends = socket::bell()?;
        self.number = LAST.fetch_add(1, Ordering::Relaxed);
        door.epoll().add(&ends.0, self.number, Interest::IN)?;
        self.ends = Some(ends);
        Ok(())
    }

    fn take_down(&mut self, door: &Door) {
        if let Some((own, _)) = self.ends.take() {
            door.epoll().remove(&own);
        }
    }

    fn is_of(&self, pair: &Arc<Pair>) -> bool {
        std::ptr::eq(self.pair.as_ptr(), Arc::as_ptr(pair))
    }
}
