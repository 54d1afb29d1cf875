//! The lines of a mailbox: one to each mailbox that it has sent to, and what those that have ended never took.

use crate::direct::identity::Identity;
use crate::direct::undelivered::{Pooled, Undelivered};
use crate::link::announcement::Announcement;
use crate::protocol::ring::{Descriptor, InlineData, Look};
use crate::reader::event::EventKind;
use crate::writer::line::Line;
use crate::writer::store::Store;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// The most mailboxes that have ended whose messages are kept to be asked for; those of the first ones go.
const MOST_LOST: usize = 1024;

/// Everything of the sending half that closing gives back.
pub(crate) struct Open {
    pub store: Store,
    /// In the order of their numbers.
    pub lines: Vec<Line>,
    /// Whom they are to, in the same order.
    pub destinations: Vec<Destination>,
    pub last_line: u32,
    /// The line to each address.
    pub routes: HashMap<Box<str>, Route>,
    /// And to each incarnation, of those that read.
    pub by_incarnation: HashMap<u128, u32>,
    /// Who was knocked at and may collect.
    pub expected: Vec<(String, i32)>,
    lost: VecDeque<Lost>,
    pub announcement: Option<Arc<Announcement>>,
    /// What lines that are gone have counted.
    former: MailboxStats,
}

/// The reader of a line.
pub(crate) struct Destination {
    pub peer: Identity,
    /// In the rendezvous directory.
    pub name: String,
    /// It has ended, and its messages are undelivered. The line stays as long as it may hold others.
    pub is_over: bool,
}

/// One who has ended, and what it never took, unless that is kept to be asked for.
pub(crate) struct Parted {
    pub peer: Identity,
    pub kind: EventKind,
    pub untaken: Vec<Undelivered>,
}

/// A line by its number, and where it was found last.
pub(crate) struct Route {
    pub line: u32,
    pub index: usize,
}

/// A mailbox that has ended.
struct Lost {
    peer: Identity,
    messages: Vec<Undelivered>,
}

/// Counters of a mailbox.
#[derive(Clone, Debug, Default)]
pub struct MailboxStats {
    /// Messages sent: one for each destination.
    pub sent: u64,
    /// Their payload bytes.
    pub sent_bytes: u64,
    /// Payload bytes that were copied into shared memory.
    pub copied_bytes: u64,
    /// How often a send had to wait for room.
    pub waits: u64,
    /// Messages received.
    pub received: u64,
    /// Their payload bytes.
    pub received_bytes: u64,
    /// Mailboxes that it is connected to as a sender.
    pub destinations: u64,
    /// Messages that were never taken, and are kept to be asked for.
    pub undelivered: u64,
    /// Bytes of payload memory in use: queued, held, undelivered, or lent.
    pub pool_used: u64,
    /// Bytes of payload memory taken from the system.
    pub pool_allocated: u64,
}

impl MailboxStats {
    fn add(&mut self, line: &Line) {
        self.sent += line.sent;
        self.sent_bytes += line.sent_bytes;
        self.copied_bytes += line.copied_bytes;
        self.waits += line.waits;
    }
}

impl Open {
    pub fn new(store: Store) -> Self {
        Open {
            store,
            lines: Vec::new(),
            destinations: Vec::new(),
            last_line: 0,
            routes: HashMap::new(),
            by_incarnation: HashMap::new(),
            expected: Vec::new(),
            lost: VecDeque::new(),
            announcement: None,
            former: MailboxStats::default(),
        }
    }

    pub fn stats(&self) -> MailboxStats {
        let mut stats = self.former.clone();
        self.lines.iter().for_each(|line| stats.add(line));
        stats.destinations = self.destinations.iter().filter(|destination| !destination.is_over).count() as u64;
        stats.undelivered = self.lost.iter().map(|lost| lost.messages.len() as u64).sum();
        (stats.pool_used, stats.pool_allocated) = (self.store.pool.used(), self.store.pool.populated());
        stats
    }

    pub fn copied_bytes(&self) -> u64 {
        self.former.copied_bytes + self.lines.iter().map(|line| line.copied_bytes).sum::<u64>()
    }

    /// Where the line to an address is, to that incarnation of it alone if one is given.
    #[inline]
    pub fn line_to(&mut self, address: &str, incarnation: Option<u128>) -> Option<usize> {
        let route = self.routes.get_mut(address)?;
        if self.lines.get(route.index).is_none_or(|line| line.number != route.line) {
            route.index = self.lines.binary_search_by_key(&route.line, |line| line.number).ok()?;
        }
        let is_meant = |meant| self.destinations[route.index].peer.incarnation() == meant;
        incarnation.is_none_or(is_meant).then_some(route.index)
    }

    /// Where the line is to the one with this incarnation, if that reads.
    #[inline]
    pub fn line_of(&self, incarnation: u128) -> Option<usize> {
        let number = *self.by_incarnation.get(&incarnation)?;
        self.line_numbered(number)
    }

    /// Where the line of that number is.
    #[inline]
    pub fn line_numbered(&self, number: u32) -> Option<usize> {
        // Lines are added at the end, and seldom removed.
        let index = (number as usize).wrapping_sub(1);
        if self.lines.get(index).is_some_and(|line| line.number == number) {
            return Some(index);
        }
        self.lines.binary_search_by_key(&number, |line| line.number).ok()
    }

    /// Lets the mailbox with that address, in that process, collect.
    pub fn expect(&mut self, address: &str, pid: i32) {
        self.expected.push((address.to_owned(), pid));
    }

    pub fn expect_no_more(&mut self, address: &str, pid: i32) {
        let is_this = |(known, process): &(String, i32)| known == address && *process == pid;
        if let Some(index) = self.expected.iter().position(is_this) {
            self.expected.swap_remove(index);
        }
    }

    pub fn has_line_to_incarnation(&self, address: &str, incarnation: u128) -> bool {
        let is_it = |peer: &Identity| peer.incarnation() == incarnation && peer.address() == address;
        self.destinations.iter().any(|it| !it.is_over && is_it(&it.peer))
    }

    /// Makes the line at `index` over: takes what its reader never took out of it.
    fn part(&mut self, index: usize, sender: u128, keeps: bool) -> Parted {
        fault!("part.begun");
        let (line, destination) = (&mut self.lines[index], &mut self.destinations[index]);
        destination.is_over = true;
        let peer = destination.peer.clone();
        let kind = if line.reader_left() { EventKind::Left } else { EventKind::Lost };
        let messages = untaken(&self.store, line, &peer, sender);
        log::debug!(
            "byref: mailbox '{}': {} ended: {kind:?}, {} messages untaken",
            line.topic,
            peer.address(),
            messages.len()
        );
        line.let_go();
        self.by_incarnation.remove(&peer.incarnation());
        if self.routes.get(peer.address()).is_some_and(|route| route.line == line.number) {
            self.routes.remove(peer.address());
        }
        let messages = if !keeps {
            messages
        } else {
            self.keep_lost(&peer, messages);
            Vec::new()
        };
        fault!("part.noted");
        Parted { peer, kind, untaken: messages }
    }

    /// Keeps what was never taken to be asked for.
    fn keep_lost(&mut self, peer: &Identity, messages: Vec<Undelivered>) {
        if !messages.is_empty() {
            if self.lost.len() == MOST_LOST
                && let Some(Lost { peer, messages }) = self.lost.pop_front()
            {
                let (address, count) = (peer.address(), messages.len());
                log::warn!("byref: nobody asked for {count} messages that '{address}' never took: they are dropped");
            }
            self.lost.push_back(Lost { peer: peer.clone(), messages });
        }
    }

    /// Parts from readers that are known to have ended, and forgets lines that nobody has anything of any more.
    pub fn part_from_departed(&mut self, sender: u128, keeps: bool) -> Vec<Parted> {
        let mut told = Vec::new();
        let mut index = 0;
        while index < self.lines.len() {
            if !self.destinations[index].is_over && self.lines[index].has_departed() {
                told.push(self.part(index, sender, keeps));
            }
            if self.destinations[index].is_over && self.lines[index].peers.is_empty() {
                self.store.release_all(&mut self.lines, index);
                let line = self.lines.remove(index);
                self.destinations.remove(index);
                self.former.add(&line);
                line.hang_up();
            } else {
                index += 1;
            }
        }
        told
    }

    /// Those that read, as far as they are not known to have ended.
    pub fn readers(&self) -> impl Iterator<Item = &Identity> {
        self.destinations.iter().filter(|destination| !destination.is_over).map(|destination| &destination.peer)
    }

    /// What a mailbox never took, as far as nobody has asked for it.
    pub fn undelivered_to(&self, peer: &Identity) -> Vec<Undelivered> {
        let lost = self.lost.iter().filter(|lost| lost.peer.incarnation() == peer.incarnation());
        lost.flat_map(|lost| &lost.messages).cloned().collect()
    }

    /// Gives what an address, or that incarnation of it alone, never took.
    pub fn take_undelivered(&mut self, address: &str, incarnation: Option<u128>) -> Vec<Undelivered> {
        let is_meant = |lost: &Lost| {
            lost.peer.address() == address && incarnation.is_none_or(|meant| lost.peer.incarnation() == meant)
        };
        let mut taken = Vec::new();
        self.lost.retain_mut(|lost| {
            let is_meant = is_meant(lost);
            if is_meant {
                taken.append(&mut lost.messages);
            }
            !is_meant
        });
        taken
    }
}

/// The messages of a line that its reader, who has ended, never took.
fn untaken(store: &Store, line: &Line, peer: &Identity, sender: u128) -> Vec<Undelivered> {
    let (from, first) = line.first_untaken();
    let mut messages = Vec::new();
    let data = InlineData::new();
    for position in from..line.log.tail() {
        match line.log.regions().at(line.ring.map().words(), position).look(position, &data) {
            Look::Inline(head) => messages.push(Undelivered::inline(peer, sender, head, &data)),
            Look::Pooled(head, at) => {
                let Some(pin) = store.pool.pin(at.slot) else { continue };
                let row_len = at.len / head.count().max(1);
                for row in first.saturating_sub(head.sequence).min(head.count())..head.count() {
                    let part = if head.count() == 1 { (0, at.len) } else { (row * row_len, row_len) };
                    let at = Descriptor { tracked: false, ..at };
                    let pooled = Pooled { pin: Arc::clone(&pin), at, part };
                    messages.push(Undelivered::pooled(peer, sender, head.sequence + row, head.timestamp_ns, pooled));
                }
            }
            _ => log::error!("byref: mailbox '{}': record {position} is not in its own ring", line.topic),
        }
    }
    messages
}
