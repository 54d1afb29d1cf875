//! A subscriber's connection to one publisher: the reader's half of the ring, lease and wake-up protocols.

use crate::handshake::{self, ToSubscriber, Welcome};
use crate::lease::{CLOSED, MAX_SLOTS};
use crate::message::{Link, Message, PublisherInfo, Segment};
use crate::ring::{Descriptor, Head, InlineData, Look, Ring};
use crate::sync::Pairing;
use crate::sys::memory::{Mapping, PeerSegment};
use crate::sys::process::Process;
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
    map: Mapping,
    capacity: u64,
}

impl MappedRing {
    #[inline]
    fn get(&self) -> Ring<'_> {
        Ring::new(self.map.words(), self.capacity)
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
    /// Descriptors of segments that this process could not map yet.
    unmapped: Vec<(u32, OwnedFd)>,
    /// Where an inline record is copied to before it is known to be whole.
    scratch: InlineData,
    /// Messages taken since nothing was there.
    streak: u32,
    generation: u64,
    waiter: Waiter,
    pairing: Pairing,
    /// The publisher's process died, or hung up: what is not there by now will not come.
    ended: bool,
    /// Why a descriptor could not be taken from the socket, or mapped.
    pub short_of: Option<io::Error>,
    /// A wake-up was read from the socket by somebody who was not asleep.
    pub took_wake: bool,
}

/// After so many messages in a row the publisher is taken to be ahead by more than `EXPECTED_AHEAD` records.
const STREAK: u32 = 16;
const EXPECTED_AHEAD: u64 = 6;
/// The most packets read at once; a flood has to wait.
const AT_ONCE: usize = 64;
/// The most segments of one publisher, and times that the mark may run away from a reader, in one look.
const MOST_SEGMENTS: usize = 4096;
const MOST_LAPS: usize = 4;
/// Positions beyond this one are not reached by counting.
const FAR: u64 = 1 << 62;

impl Connection {
    /// Checks what the publisher said and maps its ring.
    pub fn new(
        id: u64,
        info: PublisherInfo,
        welcome: &Welcome,
        ring: OwnedFd,
        lease: Mapping,
        socket: Arc<OwnedFd>,
        process: Process,
    ) -> io::Result<Self> {
        let capacity = welcome.capacity;
        if !capacity.is_power_of_two() || capacity > 1 << 32 || welcome.start > FAR {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its ring is impossible"));
        }
        let ring = PeerSegment::new(ring, Some(Ring::words_needed(capacity) * 8)).map_err(|(error, _)| error)?;
        let ring = MappedRing { map: ring.into_map(), capacity };
        let link = Arc::new(Link::new(info, lease, socket));
        link.lease().set_cursor(welcome.start);
        let ended = matches!(process, Process::Dead);
        let death = if let Process::Alive(fd) = process { Some(fd) } else { None };
        Ok(Connection {
            id,
            link,
            death,
            ring,
            cursor: welcome.start,
            segments: Vec::new(),
            unmapped: Vec::new(),
            scratch: [0; _],
            streak: 0,
            generation: 0,
            waiter: Waiter::default(),
            pairing: Pairing::with(welcome.membarrier),
            ended,
            short_of: None,
            took_wake: false,
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
        for _ in 0..MOST_LAPS {
            if self.ring.get().generation() != self.generation {
                self.catch_up();
            }
            if depth != u64::MAX {
                let newest = self.ring.get().tail().saturating_sub(depth);
                if newest > self.cursor {
                    self.skip_to(newest, lost)?;
                }
            }
            let ended = self.ended; // Noted before the look: nothing comes after it.
            let position = self.cursor;
            let message = match self.ring.get().look(position, &mut self.scratch) {
                Look::Inline(head) => Message::inline(Arc::clone(&self.link.info), position, head, &self.scratch),
                Look::Pooled(head, at) => match self.hold(position, head, at)? {
                    Some(message) => message,
                    None => {
                        self.skip_to(self.ring.get().reclaim(), lost)?;
                        continue;
                    }
                },
                Look::Empty if ended => return Err(Stop::Over),
                Look::Empty => {
                    self.streak = 0;
                    return Err(Stop::Nothing);
                }
                Look::Lapped => {
                    self.skip_to(self.ring.get().reclaim(), lost)?;
                    continue;
                }
                Look::Invalid => return Err(self.broke_the_rules("a record that is too long")),
            };
            self.advance(position + 1);
            self.streak = self.streak.saturating_add(1);
            if self.streak > STREAK {
                self.ring.get().expect(position + EXPECTED_AHEAD);
            }
            return Ok(message);
        }
        Err(Stop::Nothing)
    }

    /// How many messages wait, `depth` at the most, and when the oldest of them was sent, where that can be read.
    pub fn backlog(&self, depth: u64) -> (u64, Option<u64>) {
        let ring = self.ring.get();
        let tail = ring.tail();
        let waiting = tail.saturating_sub(self.cursor).min(depth).min(self.ring.capacity);
        (waiting, (waiting > 0).then(|| ring.timestamp(tail - waiting)).flatten())
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

    /// Goes on at `position`, which lies ahead; what lies between is lost.
    fn skip_to(&mut self, position: u64, lost: &mut u64) -> Result<(), Stop> {
        if position <= self.cursor || position > FAR {
            return Err(self.broke_the_rules("a record that is not where it should be"));
        }
        *lost += position - self.cursor;
        self.advance(position);
        Ok(())
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
            // Torn by a later lap, perhaps; that is nobody's fault.
            if self.ring.get().was_reclaimed(position) {
                return Ok(None);
            }
            return Err(self.broke_the_rules("a record that names memory outside of its segment"));
        }
        if !self.link.lease().hold(self.ring.get(), position, at.slot) {
            return Ok(None);
        }
        Ok(Some(Message::held(Arc::clone(&self.link.info), position, head, segment, at)))
    }

    /// Reads the socket for a segment that a record names. Its descriptor was sent before the record was published, unless
    /// the socket was full, or this process has no room for it: then the record has to wait.
    #[cold]
    fn fetch(&mut self, position: u64, id: u32) -> Result<Option<Arc<Segment>>, Stop> {
        // A socket's queue is shorter than that.
        for _ in 0..16 {
            if self.read_socket() {
                break;
            }
        }
        for (id, fd) in std::mem::take(&mut self.unmapped) {
            self.map_segment(id, fd);
        }
        if let Some(found) = self.segments.iter().find(|segment| segment.id == id) {
            return Ok(Some(Arc::clone(found)));
        }
        if self.ring.get().was_reclaimed(position) {
            return Ok(None);
        }
        match self.short_of.take() {
            Some(error) => Err(Stop::Refused(error)),
            None if self.ended => Err(self.broke_the_rules("a record that names an unknown segment")),
            None => Err(Stop::Nothing),
        }
    }

    fn broke_the_rules(&mut self, how: &str) -> Stop {
        let (topic, pid) = (&self.link.info.topic, self.link.info.pid);
        log::error!("byref: topic '{topic}': disconnected from process {pid}, which published {how}");
        Stop::Over
    }

    /// The publisher retired segments: unmaps them, and tells so.
    #[cold]
    fn catch_up(&mut self) {
        let generation = self.ring.get().generation();
        if self.read_socket() {
            self.generation = generation;
            self.link.lease().set_generation(generation);
        }
    }

    /// Reads what the publisher sent, up to a limit; `true` when that is all.
    pub fn read_socket(&mut self) -> bool {
        let mut packet = [0u8; MAX_PACKET];
        for _ in 0..AT_ONCE {
            let (len, fd) = match socket::receive(&self.link.socket, &mut packet) {
                Ok(Received::Packet(len, fd)) => (len, fd),
                Ok(Received::Empty) => return true,
                Ok(Received::OutOfDescriptors) => {
                    self.short_of = Some(io::Error::from_raw_os_error(libc::EMFILE));
                    return false;
                }
                Ok(Received::HungUp) | Err(_) => {
                    self.ended = true;
                    return true;
                }
            };
            match (handshake::decode(&packet[..len]), fd) {
                (Some(ToSubscriber::Wake), _) => self.took_wake = true,
                (Some(ToSubscriber::Segment { id }), Some(fd)) if self.segments.len() < MOST_SEGMENTS => {
                    self.map_segment(id, fd);
                }
                (Some(ToSubscriber::Retire { id }), _) => {
                    self.segments.retain(|segment| segment.id != id);
                    self.unmapped.retain(|(unmapped, _)| *unmapped != id);
                }
                _ => log::warn!("byref: topic '{}': a packet that makes no sense", self.link.info.topic),
            }
        }
        false
    }

    fn map_segment(&mut self, id: u32, fd: OwnedFd) {
        match PeerSegment::new(fd, None) {
            Ok(memory) => self.segments.push(Arc::new(Segment::new(id, memory, Arc::clone(&self.link)))),
            Err((error, _)) if error.kind() == io::ErrorKind::InvalidData => {
                log::error!("byref: topic '{}': {error}", self.link.info.topic);
            }
            Err((error, fd)) => {
                self.unmapped.push((id, fd));
                self.short_of = Some(error);
            }
        }
    }

    /// The publisher's process died (a forked child may still keep the socket open). What it sent stays readable.
    pub fn died(&mut self) {
        self.ended = true;
    }

    /// Gives up the cursor. Messages keep the link.
    pub fn leave(&self) {
        self.link.lease().set_cursor(CLOSED);
        let _ = socket::send(&self.link.socket, handshake::RING, None);
    }
}
