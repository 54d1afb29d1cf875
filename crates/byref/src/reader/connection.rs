//! A subscriber's connection to one publisher: the reader's half of the ring, lease and wake-up protocols.

use crate::link::candidates::Candidate;
use crate::link::channel::Channel;
use crate::link::handshake::{self, ToSubscriber, Welcome};
use crate::link::inbox::Said;
use crate::memory::glossary::{self, GLOSSARY};
use crate::protocol::lease::{CLOSED, MAX_SLOTS};
use crate::protocol::regions::{MOST_RECORDS, Regions, Shape};
use crate::protocol::ring::{Descriptor, FLAGS_LEN, Head, InlineData, Look, Ring};
use crate::protocol::wake::{WAKE_WORD, Waiter};
use crate::reader::batch::{Batch, FEW};
use crate::reader::job::Desk;
use crate::reader::message::{Hold, Link, Segment, Taken};
use crate::reader::receipts::Unacknowledged;
use crate::reader::sender::PublisherInfo;
use crate::sync::{AtomicU32, Pairing};
use crate::sys::limits::most_descriptors;
use crate::sys::memory::{MOST_MAPPED, Mapping, PeerSegment};
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
    /// The publisher gave this subscriber up, and said why.
    Evicted(String),
    /// Messages were lost before the next one, and somebody wants to know: see [`Connection::gap`].
    Gap,
}

/// What comes next.
enum Found {
    /// Its data is in the scratch.
    Inline(Head),
    Held(Head, Hold),
    /// Rows of `Connection::block`, the next of which is the one with the expected number.
    Block,
}

/// A record of several messages, some of them still to be taken. Its hold is theirs until then.
struct Block {
    head: Head,
    hold: Hold,
}

impl Block {
    /// The number after that of its last message.
    fn end(&self) -> u64 {
        self.head.sequence + self.head.count()
    }

    fn row_len(&self) -> usize {
        self.hold.len() / self.head.count() as usize
    }
}

/// The publisher's ring, mapped.
struct MappedRing {
    memory: PeerSegment,
    regions: Regions,
}

impl MappedRing {
    /// The ring as it is seen from the region that is read.
    #[inline]
    fn get(&self) -> Ring<'_> {
        self.regions.ring(self.memory.map().words())
    }

    /// Looks which regions there are by now.
    fn learn(&mut self) -> Result<(), &'static str> {
        if self.regions.are_all_known() || self.memory.is_closed() {
            return Ok(());
        }
        let MappedRing { memory, regions } = self;
        regions.learn(memory.map().words(), |words| memory.has_memory(0..words * 8))?;
        if regions.are_all_known() {
            memory.close(); // It has served to find holes.
        }
        Ok(())
    }

    /// The publisher is gone: there will be no more regions.
    fn end(&mut self) {
        let _ = self.learn(); // One that lied is found out by what it left behind.
        self.memory.close();
    }

    /// Goes on at `position`.
    fn go_to(&mut self, position: u64) -> Result<(), &'static str> {
        self.learn()?;
        self.regions.go_to(position);
        Ok(())
    }

    /// Follows the marker at `position` to the next region.
    fn follow(&mut self, position: u64) -> Result<(), &'static str> {
        self.learn()?;
        self.regions.follow(position)
    }

    /// See [`Regions::find`]; `to` was read from the ring.
    fn find(&mut self, from: u64, to: u64, sequence: u64) -> Result<u64, &'static str> {
        self.learn()?;
        Ok(self.regions.find(self.memory.map().words(), from, to, sequence))
    }
}

/// A connection.
pub(crate) struct Connection {
    pub id: u64,
    pub link: Arc<Link>,
    /// Whom to ask again, should the connection end without a reason.
    pub candidate: Candidate,
    ring: MappedRing,
    /// The position to take next; also in the lease.
    cursor: u64,
    /// The number of the message to take next.
    expected: u64,
    /// Positions were skipped whose messages are not counted as lost yet.
    skipped: bool,
    /// The subscriber may lose messages.
    may_lose: bool,
    /// What it never takes is given to others, so it looks whether it may give out what it took.
    is_exact: bool,
    /// The record at the cursor, if it is a block that a lossless subscriber has begun.
    block: Option<Block>,
    /// Of a subscriber that acknowledges by hand: what it has not acknowledged yet.
    pub unacknowledged: Option<Unacknowledged>,
    /// Whether to stop at gaps, and the last one: its first message, and how many.
    tell_gaps: bool,
    pub gap: Option<(u64, u64)>,
    segments: Vec<Arc<Segment>>,
    /// Descriptors of segments that this process could not map yet.
    unmapped: Vec<(u32, OwnedFd)>,
    /// The lowest number that the next segment may have.
    next_segment: u32,
    /// Where an inline record is copied to before it is known to be whole.
    pub scratch: InlineData,
    /// Messages taken since nothing was there.
    streak: u32,
    /// Records below are known to be complete.
    complete: u64,
    generation: u64,
    waiter: Waiter,
    /// The same for `skip_at`.
    skip_waiter: Waiter,
    pairing: Pairing,
    /// The publisher's process died, or hung up: what is not there by now will not come.
    ended: bool,
    /// It did what no publisher does.
    is_faulty: bool,
    /// It gave this subscriber up.
    evicted: Option<String>,
    /// Why a descriptor could not be taken from the socket, or mapped.
    pub short_of: Option<io::Error>,
    /// A wake-up was read from the socket by somebody who was not asleep.
    pub took_wake: bool,
    /// The publisher was told by which bell to wake this subscriber.
    pub has_bell: bool,
    /// Where the jobs of a pusher are answered; what it sent ends with it.
    pub desk: Option<Arc<Desk>>,
}

/// Once in so many messages without a pause, first at the second, a reader looks how far the publisher is ahead; and how many
/// records ahead it asks for the lines of those that are complete. (At the first it would take the publisher's tail from it
/// once for each message of two that answer each other.)
const STREAK: u32 = 16;
const LOOK_AHEAD_AT: u32 = 2;
/// Messages of a stream follow each other within this time; a reader right behind it pauses so often, about a microsecond.
const STREAMING_NS: u64 = 1000;
const LEAD: u32 = 40;
const EXPECTED_AHEAD: u64 = 6;
/// How often the socket is read at once; a flood has to wait.
const AT_ONCE: usize = 16;
/// The most segments of one publisher, as far as a quarter of this process's descriptors suffices for them.
const MOST_SEGMENTS: u64 = 4096;
/// The most bytes of addresses of all its segments. Those for huge payloads are four times as long as what they are made for.
const MOST_MAPPED_OF_ALL: u64 = 8 * MOST_MAPPED;
/// How often the mark may run away from a reader, in one look.
const MOST_LAPS: usize = 4;
/// The depth of a subscriber that loses nothing.
pub(crate) const LOSSLESS: u64 = u64::MAX;
/// Positions beyond this one are not reached by counting.
const FAR: u64 = 1 << 62;

impl Connection {
    /// Checks what the publisher said and maps its ring.
    #[expect(clippy::too_many_arguments, reason = "one caller, which has gathered just these")]
    pub fn new(
        id: u64,
        info: PublisherInfo,
        welcome: &Welcome,
        ring: OwnedFd,
        lease: Mapping,
        channel: Arc<Channel>,
        candidate: Candidate,
        tell_gaps: bool,
        has_flags: bool,
    ) -> io::Result<Self> {
        let capacity = welcome.capacity;
        let refuse = |why| io::Error::new(io::ErrorKind::InvalidData, why);
        if !capacity.is_power_of_two() || capacity > MOST_RECORDS || welcome.start > FAR || welcome.first > FAR {
            return Err(refuse("its ring is impossible"));
        }
        let shape = Shape::of(capacity);
        let memory = PeerSegment::new(ring, Some(shape.words() * 8)).map_err(|(error, _)| error)?;
        if !memory.has_memory(0..shape.words_up_to(0) * 8) {
            return Err(refuse("its ring has holes"));
        }
        // First: who has come to know all regions needs the descriptor no more, and the ring may have grown already.
        let flags = has_flags.then(|| memory.map_start(FLAGS_LEN)).transpose()?;
        let mut ring = MappedRing { memory, regions: Regions::new(shape) };
        ring.go_to(welcome.start).map_err(refuse)?;
        fault!("connect.ring_mapped");
        let link = Arc::new(Link::new(info, lease, channel, flags));
        link.lease().set_cursor(welcome.start);
        Ok(Connection {
            id,
            link,
            candidate,
            ring,
            cursor: welcome.start,
            expected: welcome.first,
            skipped: false,
            may_lose: false,
            is_exact: false,
            block: None,
            unacknowledged: None,
            tell_gaps,
            gap: None,
            segments: Vec::new(),
            unmapped: Vec::new(),
            next_segment: 0,
            scratch: InlineData::new(),
            streak: 0,
            complete: 0,
            generation: 0,
            waiter: Waiter::default(),
            skip_waiter: Waiter::default(),
            pairing: Pairing::with(welcome.membarrier),
            ended: false,
            is_faulty: false,
            evicted: None,
            short_of: None,
            took_wake: false,
            has_bell: false,
            desk: None,
        })
    }

    /// What it never takes is given to others.
    pub fn set_exact(&mut self) {
        self.is_exact = true;
    }

    pub fn capacity(&self) -> u64 {
        self.ring.regions.shape().capacity()
    }

    /// What the publisher changes when it wakes those who sleep at it.
    pub fn wake_word(&self) -> &AtomicU32 {
        &self.ring.memory.map().counts(WAKE_WORD)[0]
    }

    /// Whether the publisher was closed in good order, rather than died or broke the rules.
    pub fn was_closed(&self) -> bool {
        !self.is_faulty && self.ring.get().is_closed()
    }

    pub fn is_live(&self) -> bool {
        !self.ended
    }

    /// Whether it ended although the publisher neither closed nor broke the rules: it died, or it may be asked again.
    pub fn was_cut_off(&self) -> bool {
        !self.is_faulty && !self.was_closed()
    }

    /// Whether the publisher is gone and nothing is left to take or to tell; adds what was skipped to `lost`.
    pub fn is_used_up(&mut self, lost: &mut u64) -> bool {
        let may_be = self.ended && self.evicted.is_none() && self.block.is_none() && self.gap.is_none();
        let is_empty = may_be && !self.is_faulty && (self.was_revoked() || self.is_empty());
        self.is_faulty || is_empty && self.count_what_was_skipped(true, lost).is_ok()
    }

    /// Whether there is no record at the cursor.
    fn is_empty(&mut self) -> bool {
        loop {
            match self.ring.get().look(self.cursor, &self.scratch) {
                Look::Grown if self.follow(self.cursor).is_ok() => {}
                look => return matches!(look, Look::Empty | Look::Grown),
            }
        }
    }

    /// Gives up what was not taken: the number of its first message, and how many these are.
    pub fn give_up(&mut self) -> (u64, u64) {
        let next = self.ring.get().next_sequence();
        let count = if next > FAR { 0 } else { next.saturating_sub(self.expected) };
        (self.expected, count)
    }

    /// Takes the next message if all is as usual: it is there, inline, and the one that is expected. Its data is in the
    /// scratch. Only for subscribers that want all messages.
    #[inline(always)]
    pub fn take_inline(&mut self) -> Option<Head> {
        let head = self.find_inline()?;
        fault!("receive.inline_copied");
        self.done();
        self.show(self.cursor);
        if self.was_revoked() {
            self.take_back(1, 1);
            return None;
        }
        Some(head)
    }

    #[inline(always)]
    fn find_inline(&mut self) -> Option<Head> {
        let ring = self.ring.get();
        let is_unusual = self.block.is_some() || self.is_faulty || self.evicted.is_some();
        if ring.generation() != self.generation || is_unusual || self.unacknowledged.is_some() {
            return None;
        }
        ring.look_inline(self.cursor, &self.scratch).filter(|head| head.sequence == self.expected)
    }

    /// Takes the next message, skipping what is older than the newest `depth`; adds what was skipped or reclaimed to `lost`.
    pub fn take(&mut self, depth: u64, lost: &mut u64) -> Result<Taken, Stop> {
        let (head, hold) = match self.find(depth, lost)? {
            Found::Inline(head) => (head, None),
            Found::Held(head, hold) => (head, Some(hold)),
            Found::Block => return self.take_row(depth),
        };
        fault!("receive.found");
        self.note_taken(1);
        self.done();
        self.advance(self.cursor);
        if self.was_revoked() {
            self.take_back(1, 1);
            return Err(self.nothing_is_ours());
        }
        Ok(Taken { sequence: head.sequence, head, hold })
    }

    /// Takes up to `most` messages, up to where a block begins or ends, so that those of a block are all that the batch is;
    /// and not more records than the ring has, so that a publisher that is as fast as this does not keep it here.
    pub fn take_many(&mut self, depth: u64, lost: &mut u64, most: usize, batch: &mut Batch) -> Result<(), Stop> {
        let mut stop = Ok(());
        let (most, before) = (most.min(self.capacity() as usize), batch.len());
        for taken in 0..most {
            match taken {
                0 => batch.announce(FEW),
                // A look at the tail, for which few messages would not be worth to wait.
                FEW => batch.announce((most - FEW).min(self.ring.get().tail().saturating_sub(self.cursor) as usize)),
                _ => {}
            }
            if depth == LOSSLESS
                && let Some(head) = self.find_inline()
            {
                batch.push_inline(head, &self.scratch);
                self.done();
                continue;
            }
            match self.find(depth, lost) {
                Ok(Found::Inline(head)) => batch.push_inline(head, &self.scratch),
                Ok(Found::Held(head, hold)) => batch.push_held(head, hold),
                Ok(Found::Block) if batch.is_empty() => {
                    return self.take_rows(depth, most, batch);
                }
                Ok(Found::Block) => {
                    self.block = None; // It is found again; until then nobody waits for its memory.
                    break;
                }
                Err(why) => {
                    stop = Err(why);
                    break;
                }
            }
            self.note_taken(1);
            self.done();
            fault!("receive.batch_grown");
        }
        fault!("receive.batch_full");
        self.advance(self.cursor);
        if self.was_revoked() {
            let count = batch.len() - before;
            batch.truncate(before);
            self.take_back(count as u64, count as u64);
            return Err(self.nothing_is_ours());
        }
        stop
    }

    /// Whether what it took last, and shows as taken, is not its own: it was given up before it showed that, or in that moment. Comes
    /// after a light fence.
    #[inline(always)]
    fn was_revoked(&self) -> bool {
        // Pairs with the heavy fence of `Line::note_departure` (invariant 6 of the lease).
        self.is_exact && self.ring.get().is_revoked()
    }

    /// So many records and messages are not its own after all. The cursor in the lease tells nobody anything any more.
    #[cold]
    fn take_back(&mut self, records: u64, messages: u64) {
        (self.cursor, self.expected) = (self.cursor - records, self.expected - messages);
    }

    /// It was given up: there is nothing but the news of that.
    #[cold]
    fn nothing_is_ours(&self) -> Stop {
        if self.ended { Stop::Over } else { Stop::Nothing }
    }

    /// Finds the next message. After `Inline` and `Held` the caller says [`done`](Self::done), later `advance`.
    fn find(&mut self, depth: u64, lost: &mut u64) -> Result<Found, Stop> {
        for _ in 0..MOST_LAPS {
            if self.ring.get().generation() != self.generation {
                self.catch_up();
            }
            if self.is_faulty {
                return Err(Stop::Over);
            }
            if let Some(why) = self.evicted.take() {
                return Err(Stop::Evicted(why));
            }
            if self.gap.is_some() {
                return Err(Stop::Gap); // It was found while nobody received.
            }
            if self.was_revoked() {
                return Err(self.nothing_is_ours());
            }
            self.may_lose = depth != LOSSLESS;
            if depth != LOSSLESS {
                self.skip_old(depth, lost)?;
            } else if self.block.is_some() {
                return Ok(Found::Block);
            }
            let ended = self.ended; // Noted before the look: nothing comes after it.
            if self.desk.is_some() && (ended || self.ring.get().is_closed()) {
                return Err(Stop::Over); // Nobody would hear the answer.
            }
            let position = self.cursor;
            let look = loop {
                match self.ring.get().look(position, &self.scratch) {
                    Look::Grown => self.follow(position)?, // It counts as no lap: there may be nothing else to wake up for.
                    look => break look,
                }
            };
            match look {
                Look::Inline(head) => {
                    self.number(head, lost)?;
                    return Ok(Found::Inline(head));
                }
                Look::Pooled(head, at) => match self.hold(position, at)? {
                    Some(hold) => {
                        self.number(head, lost)?;
                        if head.count() == 1 {
                            return Ok(Found::Held(head, hold));
                        }
                        if hold.len() == 0 || !hold.len().is_multiple_of(head.count() as usize) {
                            return Err(self.broke_the_rules("a block of rows that are empty, or differ in length"));
                        }
                        self.block = Some(Block { head, hold });
                        return Ok(Found::Block);
                    }
                    None if self.cursor > position => {} // It was given up.
                    None => self.skip_to(self.ring.get().reclaim())?,
                },
                Look::Empty => {
                    self.streak = 0;
                    self.count_what_was_skipped(ended, lost)?;
                    return Err(if ended { Stop::Over } else { Stop::Nothing });
                }
                Look::Lapped => self.skip_to(self.ring.get().reclaim())?,
                Look::Invalid | Look::Grown => return Err(self.broke_the_rules("a record that is too long")),
            }
        }
        Err(Stop::Nothing)
    }

    /// One record is taken, all of it.
    #[inline(always)]
    fn done(&mut self) {
        self.expected += 1;
        self.cursor += 1;
        self.streak = self.streak.wrapping_add(1);
        if self.streak % STREAK == LOOK_AHEAD_AT {
            self.look_ahead();
        } else if self.cursor + EXPECTED_AHEAD < self.complete {
            self.ring.get().expect(self.cursor + EXPECTED_AHEAD);
        }
    }

    /// Asks for the lines of the next records that are complete. One that is still to be written would only be taken from
    /// under the publisher's pen.
    #[inline(never)]
    fn look_ahead(&mut self) {
        self.complete = self.ring.get().tail();
        // Right behind the publisher every line is waited for, by both; a lead of some records is worth a microsecond.
        if self.complete < self.cursor + EXPECTED_AHEAD && self.is_stream() {
            for _ in 0..LEAD {
                std::hint::spin_loop();
            }
            self.complete = self.ring.get().tail();
        }
        for position in (self.cursor..self.complete).take(EXPECTED_AHEAD as usize + 1) {
            self.ring.get().expect(position);
        }
    }

    /// Whether the last two records were sent in quick succession.
    fn is_stream(&self) -> bool {
        let sent = |back| self.ring.get().timestamp(self.cursor.wrapping_sub(back));
        matches!((sent(2), sent(1)), (Some(first), Some(second)) if second.abs_diff(first) < STREAMING_NS)
    }

    /// Compares the numbers of a record's messages with those that are expected.
    #[inline(always)]
    fn number(&mut self, head: Head, lost: &mut u64) -> Result<(), Stop> {
        if head.sequence == self.expected && head.count() == 1 {
            return Ok(());
        }
        if head.count() == 0 || head.sequence > FAR || head.sequence + head.count() <= self.expected {
            return Err(self.broke_the_rules("messages with impossible numbers"));
        }
        self.skipped = false;
        self.lose_up_to(head.sequence, lost)
    }

    /// Counts the messages below number `next` that were not taken as lost.
    #[cold]
    fn lose_up_to(&mut self, next: u64, lost: &mut u64) -> Result<(), Stop> {
        let count = next.saturating_sub(self.expected);
        if count == 0 {
            return Ok(());
        }
        *lost = lost.saturating_add(count);
        let first = std::mem::replace(&mut self.expected, next);
        if self.tell_gaps {
            self.gap = Some((first, count));
            return Err(Stop::Gap);
        }
        Ok(())
    }

    /// There is no record at the cursor: whether messages before it were lost shows in the publisher's count.
    #[inline]
    fn count_what_was_skipped(&mut self, ended: bool, lost: &mut u64) -> Result<(), Stop> {
        if self.skipped {
            let next = self.ring.get().next_sequence(); // Before the tail (invariant 4 of the ring).
            if (ended || self.ring.get().tail() == self.cursor) && next <= FAR {
                // It may still grow: what is seen of the mark can be newer than what is seen of this count.
                return self.lose_up_to(next, lost);
            }
        }
        Ok(())
    }

    /// Goes on at the newest `depth` messages, if it is behind them.
    #[inline]
    fn skip_old(&mut self, depth: u64, lost: &mut u64) -> Result<(), Stop> {
        let next = self.ring.get().next_sequence();
        let wanted = next.saturating_sub(depth);
        if wanted <= self.expected {
            return Ok(());
        }
        if next > FAR {
            return Err(self.broke_the_rules("messages with impossible numbers"));
        }
        let tail = self.ring.get().tail();
        let from = self.cursor.max(tail.saturating_sub(depth));
        let position = self.ring.find(from, tail.max(from), wanted).map_err(|how| self.broke_the_rules(how))?;
        if position > self.cursor {
            self.skip_to(position)?;
        }
        self.lose_up_to(wanted, lost)
    }

    /// Takes the next row of the block.
    #[cold]
    fn take_row(&mut self, depth: u64) -> Result<Taken, Stop> {
        let block = self.block.as_ref().expect("the caller found it");
        let (head, sequence) = (block.head, self.expected);
        let hold = block.hold.part((sequence - head.sequence) as usize, 1, block.row_len());
        fault!("receive.row_held");
        self.took_rows(depth, 1)?;
        Ok(Taken { sequence, head, hold: Some(hold) })
    }

    /// Takes up to `most` rows of the block.
    fn take_rows(&mut self, depth: u64, most: usize, batch: &mut Batch) -> Result<(), Stop> {
        let block = self.block.as_ref().expect("the caller found it");
        let first = (self.expected - block.head.sequence) as usize;
        let rows = most.min((block.end() - self.expected) as usize);
        let hold = block.hold.part(first, rows, block.row_len());
        fault!("receive.rows_held");
        let (first, timestamp_ns) = (self.expected, block.head.timestamp_ns);
        self.took_rows(depth, rows)?;
        batch.set_rows(first, timestamp_ns, rows, hold);
        Ok(())
    }

    fn took_rows(&mut self, depth: u64, rows: usize) -> Result<(), Stop> {
        self.note_taken(rows);
        self.expected += rows as u64;
        self.link.lease().set_row(self.expected);
        if self.block.as_ref().is_some_and(|block| self.expected == block.end()) {
            self.block = None;
            fault!("receive.block_ended");
            self.advance(self.cursor + 1);
        } else if depth != LOSSLESS {
            // Who may lose messages keeps no memory for those that it has not taken.
            self.block = None;
        }
        self.pairing.light(); // The row is shown, not the cursor.
        if self.was_revoked() {
            self.block = None;
            self.expected -= rows as u64;
            return Err(self.nothing_is_ours());
        }
        Ok(())
    }

    /// How many messages wait, `depth` at the most, and when the oldest of them was sent, where that can be read.
    pub fn backlog(&mut self, depth: u64) -> (u64, Option<u64>) {
        let capacity = self.capacity();
        let ring = self.ring.get();
        let waiting = ring.next_sequence().saturating_sub(self.expected).min(depth);
        if waiting == 0 {
            return (0, None);
        }
        let oldest = self.cursor.max(ring.tail().saturating_sub(depth.min(capacity)));
        // One that lies is found out when something is taken.
        let is_known = self.ring.learn().is_ok();
        let timestamp = || self.ring.regions.at(self.ring.memory.map().words(), oldest).timestamp(oldest);
        (waiting, is_known.then(timestamp).flatten())
    }

    /// The next messages are taken from the record at the cursor.
    #[inline]
    fn note_taken(&mut self, count: usize) {
        if let Some(unacknowledged) = &mut self.unacknowledged {
            unacknowledged.taken(self.expected..self.expected + count as u64, self.cursor);
        }
    }

    /// Messages are done with.
    pub fn acknowledge(&mut self, sequences: &mut dyn Iterator<Item = u64>) {
        if let Some(unacknowledged) = &mut self.unacknowledged {
            unacknowledged.acknowledge(sequences);
            self.advance(self.cursor);
        }
    }

    /// Goes on at `cursor`, and shows how far it is.
    #[inline]
    fn advance(&mut self, cursor: u64) {
        self.cursor = cursor;
        self.show(self.unacknowledged.as_ref().map_or(cursor, |it| it.floor(cursor)));
    }

    /// Stores the cursor, and wakes a publisher that waits for it.
    #[inline]
    fn show(&mut self, cursor: u64) {
        fault!("receive.before_cursor");
        self.link.lease().set_cursor(cursor);
        fault!("receive.after_cursor");
        self.pairing.light(); // Pairs with the heavy fence of a publisher that goes to sleep.
        if self.waiter.is_due(self.ring.get().wake_at(), cursor) {
            fault!("wake.publisher_before");
            self.link.ring_for_room();
            fault!("wake.publisher_after");
        }
    }

    /// Follows the marker at `position`, the cursor, to the next region of the ring.
    #[cold]
    fn follow(&mut self, position: u64) -> Result<(), Stop> {
        match self.ring.follow(position) {
            Ok(()) => {}
            // It went on after its end was noted: that is not waited for.
            Err(_) if self.ended => return Err(Stop::Over),
            Err(how) => return Err(self.broke_the_rules(how)),
        }
        fault!("receive.region_entered");
        Ok(())
    }

    /// Goes on at `position`, which lies ahead.
    fn skip_to(&mut self, position: u64) -> Result<(), Stop> {
        if position <= self.cursor || position > FAR {
            return Err(self.broke_the_rules("a record that is not where it should be"));
        }
        self.skipped = true;
        self.ring.go_to(position).map_err(|how| self.broke_the_rules(how))?;
        fault!("receive.skipping");
        self.advance(position);
        // A message that was not taken is not released either: who waits for that hears it here.
        if self.skip_waiter.is_due(self.ring.get().skip_at(), position) {
            self.link.channel.ring();
        }
        Ok(())
    }

    /// Takes a hold on a chunk. `Ok(None)`: it was reclaimed.
    #[inline]
    fn hold(&mut self, position: u64, at: Descriptor) -> Result<Option<Hold>, Stop> {
        let segment = match self.segment(at.segment) {
            Some(segment) => segment,
            None => match self.fetch(position, |this| this.segment(at.segment))? {
                Some(segment) => segment,
                None => return Ok(None),
            },
        };
        if at.refers && !self.link.glossary.is_there() {
            let there = |this: &Self| this.link.glossary.is_there().then_some(());
            if self.fetch(position, there)?.is_none() {
                return Ok(None);
            }
        }
        let checked =
            if at.slot < MAX_SLOTS { segment.check(&at) } else { Err("a record that names an impossible slot") };
        if let Err(how) = checked {
            // Torn by a later lap, perhaps; that is nobody's fault.
            if self.ring.get().was_reclaimed(position) {
                return Ok(None);
            }
            return Err(self.broke_the_rules(how));
        }
        if !self.link.lease().hold(self.ring.get(), position, at.slot) {
            // A look of the publisher's at a tracked message may have met the hold that was given back.
            self.link.channel.ring();
            return Ok(None);
        }
        fault!("hold.taken");
        Ok(Some(Hold::of(segment, at)))
    }

    #[inline]
    fn segment(&self, id: u32) -> Option<Arc<Segment>> {
        self.segments.iter().find(|segment| segment.id == id).cloned()
    }

    /// Reads the socket for a segment that a record names, until `found` has it. Its descriptor was sent before the record was published, unless
    /// the socket was full, or this process has no room for it: then the record has to wait.
    #[cold]
    fn fetch<T>(&mut self, position: u64, found: impl Fn(&Self) -> Option<T>) -> Result<Option<T>, Stop> {
        fault!("segment.missing");
        self.read_socket();
        for (id, fd) in std::mem::take(&mut self.unmapped) {
            self.map_segment(id, fd).map_err(|how| self.broke_the_rules(how))?;
        }
        self.tidy(); // What was read may have been its last sign.
        if self.is_faulty {
            return Err(Stop::Over);
        }
        if let Some(why) = self.evicted.take() {
            return Err(Stop::Evicted(why));
        }
        if let Some(found) = found(self) {
            return Ok(Some(found));
        }
        if self.ring.get().was_reclaimed(position) {
            return Ok(None);
        }
        match self.short_of.take() {
            Some(error) => Err(Stop::Refused(error)),
            // It was sent no more memory before it had given some back, and now the publisher is gone.
            None if self.ended && self.may_lose => self.skip_to(position + 1).map(|()| None),
            None if self.ended => Err(self.broke_the_rules("a record that names an unknown segment")),
            None => Err(Stop::Nothing),
        }
    }

    fn broke_the_rules(&mut self, how: &str) -> Stop {
        let (topic, pid) = (&self.link.info.topic, self.link.info.pid);
        log::error!("byref: topic '{topic}': disconnected from process {pid}, which published {how}");
        self.is_faulty = true;
        Stop::Over
    }

    /// Does what the publisher asks for, also while nobody receives; `true` when there was anything.
    pub fn tidy(&mut self) -> bool {
        let is_asked = self.ring.get().generation() != self.generation;
        if is_asked {
            self.catch_up();
        }
        is_asked
    }

    /// The publisher retired segments: unmaps them, and tells so.
    #[cold]
    fn catch_up(&mut self) {
        let generation = self.ring.get().generation();
        if self.read_socket() {
            self.generation = generation;
            fault!("retire.caught_up");
            self.link.lease().set_generation(generation);
            fault!("retire.acknowledged");
        }
    }

    /// Reads the socket, and does what the publisher sent, up to a limit; `true` when that is all.
    pub fn read_socket(&mut self) -> bool {
        for _ in 0..AT_ONCE {
            let is_all = self.link.channel.pump();
            if !self.read_news() {
                return false;
            }
            if is_all {
                return true;
            }
        }
        false
    }

    /// Does what the publisher sent, as far as the socket was read; `false`: this process is short of descriptors for the rest.
    pub fn read_news(&mut self) -> bool {
        loop {
            let said = match self.link.channel.take() {
                Ok(Said::Packet(packet, fd)) => self.hear(handshake::decode(&packet), fd),
                Ok(Said::Ring) => {
                    self.took_wake = true;
                    Ok(())
                }
                Ok(Said::Died) => {
                    self.died();
                    Ok(())
                }
                Ok(Said::Nothing) => return true,
                Ok(Said::OutOfDescriptors) => {
                    self.short_of = Some(io::Error::from_raw_os_error(libc::EMFILE));
                    return false;
                }
                Ok(Said::HungUp) => {
                    self.end();
                    return true;
                }
                Err(error) => Err(error.to_string()),
            };
            if let Err(how) = said {
                self.broke_the_rules(&how);
                self.end();
                return true;
            }
        }
    }

    fn hear(&mut self, packet: Option<ToSubscriber>, fd: Option<OwnedFd>) -> Result<(), String> {
        match (packet, fd) {
            (Some(ToSubscriber::Wake), _) => self.took_wake = true,
            (Some(ToSubscriber::Segment { id: GLOSSARY }), Some(fd)) => {
                if self.link.glossary.is_there() || self.unmapped.iter().any(|(id, _)| *id == GLOSSARY) {
                    return Err("a glossary twice".into());
                }
                self.map_segment(GLOSSARY, fd)?;
            }
            (Some(ToSubscriber::Segment { id }), Some(fd)) => {
                // A publisher numbers its segments, and sends each once.
                if id < self.next_segment {
                    return Err("a segment twice".into());
                }
                if (self.segments.len() + self.unmapped.len()) as u64 >= MOST_SEGMENTS.min(most_descriptors() / 4) {
                    return Err("more segments than a quarter of this process's descriptors (see `ulimit -n`)".into());
                }
                if self.segments.iter().map(|segment| segment.len()).sum::<u64>() > MOST_MAPPED_OF_ALL {
                    return Err("more memory than any publisher may have".into());
                }
                self.next_segment = id + 1;
                self.map_segment(id, fd)?;
            }
            (Some(ToSubscriber::Retire { id }), _) => {
                fault!("retire.read");
                self.segments.retain(|segment| segment.id != id);
                self.unmapped.retain(|(unmapped, _)| *unmapped != id);
            }
            (Some(ToSubscriber::Evicted { why }), _) => {
                self.evicted = Some(why);
                self.segments.clear(); // Nothing more is taken from it; what is held keeps its own.
            }
            _ => return Err("a packet that makes no sense".into()),
        }
        Ok(())
    }

    /// A segment that cannot be mapped now is tried again when a record names it.
    fn map_segment(&mut self, id: u32, fd: OwnedFd) -> Result<(), &'static str> {
        fault!("segment.received");
        match PeerSegment::new(fd, (id == GLOSSARY).then_some(glossary::LEN)) {
            Ok(memory) if id == GLOSSARY => self.link.glossary.set(memory),
            Ok(memory) => self.segments.push(Arc::new(Segment::new(id, memory, Arc::clone(&self.link)))),
            Err((error, _)) if error.kind() == io::ErrorKind::InvalidData => {
                log::error!("byref: topic '{}': {error}", self.link.info.topic);
                return Err("a segment that is none");
            }
            Err((error, fd)) => {
                self.unmapped.push((id, fd));
                self.short_of = Some(error);
            }
        }
        Ok(())
    }

    /// Has the eviction told again: what was taken before it comes first.
    pub fn postpone_eviction(&mut self, why: String) {
        self.evicted = Some(why);
    }

    /// The publisher's process died (a forked child may still keep the socket open). What it sent stays readable.
    pub fn died(&mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.ended = true;
        self.link.end();
        self.ring.end();
    }

    /// Gives up the cursor, and all memory that no message holds. Messages keep the link.
    pub fn leave(mut self) {
        fault!("close.subscriber_begun");
        self.link.lease().set_row(self.expected); // How far it came: the cursor tells no more.
        self.link.lease().set_cursor(CLOSED);
        fault!("close.subscriber_left");
        // Descriptors keep memory, too. None are kept after this.
        self.link.channel.stop_receiving();
        self.block = None;
        self.segments.clear();
        self.unmapped.clear();
        self.link.lease().set_generation(u64::MAX);
        self.link.channel.ring();
        fault!("close.subscriber_rang");
    }
}
