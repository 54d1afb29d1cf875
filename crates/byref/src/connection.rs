//! A subscriber's connection to one publisher: the reader's half of the ring, lease and wake-up protocols.

use crate::handshake::{self, ToSubscriber, Welcome};
use crate::lease::{CLOSED, MAX_SLOTS};
use crate::message::{Link, Message, PublisherInfo, Segment};
use crate::ring::{Descriptor, Head, InlineData, Look, Ring};
use crate::sync::Pairing;
use crate::sys::memory::{OwnedSegment, PeerSegment};
use crate::sys::socket::{self, MAX_PACKET, Received};
use crate::wake::Waiter;
use rustix::fd::OwnedFd;
use std::io;
use std::sync::Arc;

/// Why a look at one publisher gave no message.
pub(crate) enum Stop {
    Nothing,
    /// The publisher is gone (or broke the rules), and everything it sent before was taken.
    Over,
    /// This process could not map what the next record names; it stays where it is.
    Refused(io::Error),
}

/// The publisher's ring, mapped.
struct MappedRing {
    memory: PeerSegment,
    capacity: u64,
}

impl MappedRing {
    #[inline]
    fn get(&self) -> Ring<'_> {
        Ring::new(self.memory.map().words(), self.capacity)
    }
}

/// A connection.
pub(crate) struct Connection {
    pub id: u64,
    pub link: Arc<Link>,
    /// Readable when the publisher's process died.
    pub death: Option<OwnedFd>,
    ring: MappedRing,
    /// The position to take next; also in the lease.
    cursor: u64,
    segments: Vec<Arc<Segment>>,
    /// Where an inline record is copied to before it is known to be whole.
    scratch: InlineData,
    generation: u64,
    waiter: Waiter,
    pairing: Pairing,
    /// The publisher's process died, or hung up: what is not there by now will not come.
    ended: bool,
    /// A descriptor could not be taken from the socket.
    short_of: Option<io::Error>,
}

impl Connection {
    /// Checks what the publisher said and maps its ring.
    pub fn new(
        id: u64,
        info: PublisherInfo,
        welcome: &Welcome,
        ring: OwnedFd,
        lease: OwnedSegment,
        socket: Arc<OwnedFd>,
        death: Option<OwnedFd>,
    ) -> io::Result<Self> {
        let capacity = welcome.capacity;
        if !capacity.is_power_of_two() || capacity > 1 << 32 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its ring has an impossible size"));
        }
        let ring = MappedRing { memory: PeerSegment::new(ring, Ring::words_needed(capacity) * 8)?, capacity };
        let link = Arc::new(Link::new(info, lease, socket));
        link.lease().set_cursor(welcome.start);
        Ok(Connection {
            id,
            link,
            death,
            ring,
            cursor: welcome.start,
            segments: Vec::new(),
            scratch: [0; _],
            generation: 0,
            waiter: Waiter::default(),
            pairing: Pairing::with(welcome.membarrier),
            ended: false,
            short_of: None,
        })
    }

    pub fn capacity(&self) -> u64 {
        self.ring.capacity
    }

    pub fn is_live(&self) -> bool {
        !self.ended
    }

    /// Takes the next message, skipping what is older than the newest `depth`; adds what was skipped or reclaimed to `lost`.
    #[inline]
    pub fn take(&mut self, depth: u64, lost: &mut u64) -> Result<Message, Stop> {
        loop {
            if self.ring.get().generation() != self.generation {
                self.generation = self.ring.get().generation();
                self.read_socket();
            }
            if depth != u64::MAX {
                let newest = self.ring.get().tail().saturating_sub(depth);
                if newest > self.cursor {
                    *lost += newest - self.cursor;
                    self.advance(newest);
                }
            }
            let ended = self.ended; // Noted before the look: nothing comes after it.
            let position = self.cursor;
            let message = match self.ring.get().look(position, &mut self.scratch) {
                Look::Inline(head) => Message::inline(Arc::clone(&self.link.info), position, head, &self.scratch),
                Look::Pooled(head, at) => match self.hold(position, head, at) {
                    Ok(Some(message)) => message,
                    Ok(None) => {
                        if !self.resynchronise(lost) {
                            return Err(self.broke_the_rules("a record that is not where it should be"));
                        }
                        continue;
                    }
                    Err(stop) => return Err(stop),
                },
                Look::Empty if ended => return Err(Stop::Over),
                Look::Empty => return Err(Stop::Nothing),
                Look::Lapped => {
                    if !self.resynchronise(lost) {
                        return Err(self.broke_the_rules("a record from the future"));
                    }
                    continue;
                }
                Look::Invalid => return Err(self.broke_the_rules("a record that is too long")),
            };
            self.advance(position + 1);
            return Ok(message);
        }
    }

    /// Stores the cursor, and wakes a publisher that waits for it.
    #[inline]
    fn advance(&mut self, cursor: u64) {
        self.cursor = cursor;
        self.link.lease().set_cursor(cursor);
        self.pairing.light(); // Pairs with the heavy fence of a publisher that goes to sleep.
        if self.waiter.is_due(self.ring.get(), cursor) {
            let _ = socket::send(&self.link.socket, handshake::RING, None);
        }
    }

    /// Goes on behind what the publisher reclaimed; `false` when it reclaimed nothing.
    fn resynchronise(&mut self, lost: &mut u64) -> bool {
        let oldest = self.ring.get().reclaim();
        if oldest <= self.cursor {
            return false;
        }
        *lost += oldest - self.cursor;
        self.advance(oldest);
        true
    }

    /// Takes a hold on a chunk. `Ok(None)`: it was reclaimed.
    #[inline]
    fn hold(&mut self, position: u64, head: Head, at: Descriptor) -> Result<Option<Message>, Stop> {
        let known = self.segments.iter().find(|segment| segment.id == at.segment).cloned();
        let segment = match known {
            Some(segment) => segment,
            None => match self.fetch(position, at.segment)? {
                Some(segment) => segment,
                None => return Ok(None),
            },
        };
        if at.slot >= MAX_SLOTS || !segment.contains(&at) {
            return Err(self.broke_the_rules("a record that names memory outside of its segment"));
        }
        if !self.link.lease().hold(self.ring.get(), position, at.slot) {
            return Ok(None);
        }
        Ok(Some(Message::held(Arc::clone(&self.link.info), position, head, segment, at)))
    }

    /// Reads the socket for a segment that a record names: its descriptor was sent before the record was published.
    #[cold]
    fn fetch(&mut self, position: u64, id: u32) -> Result<Option<Arc<Segment>>, Stop> {
        self.read_socket();
        if let Some(found) = self.segments.iter().find(|segment| segment.id == id) {
            return Ok(Some(Arc::clone(found)));
        }
        if self.ring.get().reclaim() > position {
            return Ok(None);
        }
        match self.short_of.take() {
            Some(error) => Err(Stop::Refused(error)),
            None => Err(self.broke_the_rules("a record that names an unknown segment")),
        }
    }

    fn broke_the_rules(&mut self, how: &str) -> Stop {
        let (topic, pid) = (&self.link.info.topic, self.link.info.pid);
        log::error!("byref: topic '{topic}': disconnected from process {pid}, which published {how}");
        Stop::Over
    }

    /// Reads everything that the publisher sent.
    pub fn read_socket(&mut self) {
        let mut packet = [0u8; MAX_PACKET];
        loop {
            let (len, fd) = match socket::receive(&self.link.socket, &mut packet) {
                Ok(Received::Packet(len, fd)) => (len, fd),
                Ok(Received::Empty) => return,
                Ok(Received::OutOfDescriptors) => {
                    self.short_of = Some(io::Error::from_raw_os_error(libc::EMFILE));
                    return;
                }
                Ok(Received::HungUp) | Err(_) => {
                    self.ended = true;
                    return;
                }
            };
            match (handshake::decode(&packet[..len]), fd) {
                (Some(ToSubscriber::Wake), _) => {}
                (Some(ToSubscriber::Segment { id }), Some(fd)) => match PeerSegment::new(fd, 0) {
                    Ok(memory) => self.segments.push(Arc::new(Segment::new(id, memory, Arc::clone(&self.link)))),
                    Err(error) => self.short_of = Some(error),
                },
                (Some(ToSubscriber::Retire { id }), _) => self.segments.retain(|segment| segment.id != id),
                _ => log::warn!("byref: topic '{}': a packet that makes no sense", self.link.info.topic),
            }
        }
    }

    /// The publisher's process died (a forked child may still keep the socket open).
    pub fn died(&mut self) {
        self.read_socket();
        self.ended = true;
    }

    /// Gives up the cursor. Messages keep the link.
    pub fn leave(&self) {
        self.link.lease().set_cursor(CLOSED);
        let _ = socket::send(&self.link.socket, handshake::RING, None);
    }
}
