//! What publishers ring when a subscriber sleeps at sockets: one bell for each process that publishes, of which all its publishers have
//! an end. (At words, or where a bell cannot be had, they ring on their channels, and the service thread passes it on.)

use crate::link::channel::Channel;
use crate::link::handshake::{self, ToPublisher};
use crate::link::pair::Pair;
use crate::reader::connection::Connection;
use crate::sys::epoll::{Door, Interest};
use crate::sys::socket;
use rustix::fd::{AsFd, OwnedFd};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

#[derive(Default)]
pub(crate) struct Bells(Vec<Bell>);

/// A bell that hangs at the door.
struct Bell {
    /// No other one of this process has it.
    number: u64,
    pair: Weak<Pair>,
    /// Its two ends.
    own: OwnedFd,
    theirs: OwnedFd,
}

impl Bells {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Tells publishers that were not told yet by what to wake this subscriber.
    pub fn hand_out(&mut self, connections: &mut [Connection], door: &Door) {
        for connection in connections.iter_mut().filter(|it| !it.has_bell && it.is_live()) {
            let told = self.tell(&connection.link.channel, door);
            connection.has_bell = told.unwrap_or(false); // If not, it is tried again.
        }
    }

    fn tell(&mut self, channel: &Channel, door: &Door) -> io::Result<bool> {
        let bell = self.of(channel.pair(), door)?;
        let packet = handshake::encode_to_publisher(&ToPublisher::Bell { number: bell.number });
        channel.send(&packet, Some(bell.theirs.as_fd()))
    }

    /// The bell of a process, hung at `door` if there was none.
    fn of(&mut self, pair: &Arc<Pair>, door: &Door) -> io::Result<&Bell> {
        static LAST: AtomicU64 = AtomicU64::new(0);
        if let Some(at) = self.0.iter().position(|bell| bell.is_of(pair)) {
            return Ok(&self.0[at]);
        }
        let (own, theirs) = socket::bell()?;
        let number = LAST.fetch_add(1, Ordering::Relaxed);
        door.epoll.add(&own, number, Interest::IN)?;
        self.0.push(Bell { number, pair: Arc::downgrade(pair), own, theirs });
        Ok(self.0.last().expect("it was just added"))
    }

    /// Takes those down that nobody has to ring any more.
    pub fn keep_those_of(&mut self, connections: &[Connection], door: &Door) {
        let is_used = |bell: &Bell| connections.iter().any(|it| bell.is_of(it.link.channel.pair()));
        for unused in self.0.extract_if(.., |bell| !is_used(bell)) {
            door.epoll.remove(&unused.own);
        }
    }

    /// One was rung.
    pub fn silence(&mut self, number: u64, door: &Door) {
        if let Some(at) = self.0.iter().position(|bell| bell.number == number)
            && !socket::silence(&self.0[at].own)
        {
            let broken = self.0.remove(at);
            door.epoll.remove(&broken.own);
        }
    }
}

impl Bell {
    fn is_of(&self, pair: &Arc<Pair>) -> bool {
        std::ptr::eq(self.pair.as_ptr(), Arc::as_ptr(pair))
    }
}
