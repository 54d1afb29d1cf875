//! A received message: the bytes, and the lease that keeps them.
#![allow(unsafe_code)]

use crate::attributes::{Attributes, MAX_ATTRIBUTES};
use crate::copies::{self, Cause};
use crate::direct::identity::Identity;
use crate::error::{Error, Result};
use crate::link::channel::Channel;
use crate::memory::glossary::{Entry, PeerGlossary};
use crate::memory::pool::Pin;
use crate::protocol::lease::{COUNTS, Lease, RING_WORD};
use crate::protocol::note;
use crate::protocol::ring::{DATA_WORDS, Descriptor, Head, InlineData, second_flag_word};
use crate::protocol::wake;
use crate::reader::receipts::{self, Receipt};
use crate::reader::sender::PublisherInfo;
use crate::sync::AtomicU64;
use crate::sys::fork::ForkId;
use crate::sys::futex;
use crate::sys::memory::{Mapping, PeerSegment, View};
use std::cell::Cell;
use std::io;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Below this size a private copy is cheaper than a mapping (measured: see `docs/copies.md`).
const MAP_FROM: usize = 256 << 10;
/// The most private mappings at a time; the system's limit is 65,530 of all kinds. Beyond it, copies serve.
const MOST_MAPPINGS: usize = 1 << 14;

/// The connection to one publisher, kept until the last view onto its messages is gone.
pub(crate) struct Link {
    pub info: Arc<PublisherInfo>,
    lease: Mapping,
    pub channel: Arc<Channel>,
    pub glossary: PeerGlossary,
    /// The flags of the publisher's ring, for who looks at them without receiving.
    pub flags: Option<Mapping>,
    /// The publisher's process died, or hung up.
    ended: AtomicBool,
    made_in: ForkId,
}

impl Link {
    pub fn new(info: PublisherInfo, lease: Mapping, channel: Arc<Channel>, flags: Option<Mapping>) -> Self {
        let (glossary, made_in) = (PeerGlossary::default(), ForkId::current());
        Link { info: Arc::new(info), lease, channel, glossary, flags, ended: AtomicBool::new(false), made_in }
    }

    /// Whether the publisher has set that flag, or nobody is left who could.
    pub fn is_flagged(&self, flag: usize) -> bool {
        self.ended.load(Ordering::Relaxed) || self.has_flag(flag / 64, flag)
    }

    /// The same for its second bit, which nothing but its owner sets.
    pub fn has_second_flag(&self, flag: usize) -> bool {
        self.has_flag(second_flag_word(flag), flag)
    }

    #[inline]
    fn has_flag(&self, word: usize, flag: usize) -> bool {
        let is_set = |flags: &Mapping| flags.words()[word].load(Ordering::Acquire) >> (flag % 64) & 1 == 1;
        self.flags.as_ref().is_some_and(is_set)
    }

    pub fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    #[inline]
    pub fn lease(&self) -> Lease<'_> {
        Lease::new(self.lease.words(), self.lease.counts(COUNTS))
    }

    /// All words of the lease; not mapped in a forked child.
    pub fn lease_words(&self) -> &[AtomicU64] {
        self.lease.words()
    }

    /// Whether this process made it, rather than one that forked it.
    #[inline]
    pub fn is_here(&self) -> bool {
        self.made_in.is_current()
    }

    /// Wakes a publisher that waits for room.
    pub fn ring_for_room(&self) {
        let word = &self.lease.counts(RING_WORD)[0];
        wake::raise(word);
        if !futex::wake_all(word) {
            self.channel.ring();
        }
    }

    /// Tells the publisher where message `sequence`, which is in `slot`, was received.
    fn note(&self, slot: u32, sequence: u64, place: &str) {
        if self.made_in.is_current() {
            note::write(note::of_slot(&self.lease, slot), sequence, place);
            self.lease().set_notes();
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if self.made_in.is_current() {
            self.channel.hang_up();
            fault!("close.link_hung_up");
        }
    }
}

/// A segment of a publisher's pool.
pub(crate) struct Segment {
    pub id: u32,
    memory: PeerSegment,
    link: Arc<Link>,
}

impl Segment {
    pub fn new(id: u32, memory: PeerSegment, link: Arc<Link>) -> Self {
        Segment { id, memory, link }
    }

    /// Its bytes, with and without memory.
    pub fn len(&self) -> u64 {
        self.memory.map().len() as u64
    }

    /// Whether the payload and attributes that `at` names lie inside, are of a size that a publisher may send, and have
    /// memory; if not, what is wrong.
    #[inline]
    pub fn check(&self, at: &Descriptor) -> Result<(), &'static str> {
        let behind = at.len.checked_next_multiple_of(8).and_then(|len| len.checked_add(at.attributes_len as u64));
        let end = behind.and_then(|len| at.offset.checked_add(len));
        match end.filter(|end| *end <= self.len()) {
            Some(_) if at.attributes_len as usize > MAX_ATTRIBUTES => Err("a record whose attributes are too long"),
            Some(end) if !self.memory.has_memory(at.offset..end) => Err("a record that names a hole of its segment"),
            Some(_) => Ok(()),
            None => Err("a record that names memory outside of its segment"),
        }
    }
}

/// A hold on a chunk, for the part of it that a message is.
pub(crate) struct Hold {
    segment: Arc<Segment>,
    slot: u32,
    offset: u64,
    len: u64,
    attributes_at: u64,
    attributes_len: u32,
    /// The publisher wants to know when the last hold is gone.
    tracked: bool,
    tag: u64,
}

impl Hold {
    /// `segment` was asked to check `at`, whose slot is held for this.
    #[inline]
    pub fn of(segment: Arc<Segment>, at: Descriptor) -> Self {
        let Descriptor { slot, offset, len, attributes_len, tracked, tag, .. } = at;
        let attributes_at = offset + len.next_multiple_of(8);
        Hold { segment, slot, offset, len, attributes_at, attributes_len, tracked, tag }
    }

    #[inline]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    pub fn tag(&self) -> u64 {
        self.tag
    }

    /// Another hold, on `rows` of the packed rows of `row_len` bytes from number `first` on.
    #[inline]
    pub fn part(&self, first: usize, rows: usize, row_len: usize) -> Self {
        debug_assert!((first + rows) * row_len <= self.len());
        let mut part = self.clone();
        part.offset += (first * row_len) as u64;
        part.len = (rows * row_len) as u64;
        part
    }

    #[inline]
    pub fn payload(&self) -> &[u8] {
        self.bytes(self.offset, self.len as usize)
    }

    /// Tells the publisher where message `sequence`, which this holds, was received.
    pub fn note(&self, sequence: u64, place: &str) {
        self.segment.link.note(self.slot, sequence, place);
    }

    pub fn decode_attributes(&self) -> Attributes {
        // A copy first: what is checked must be what is used, whatever the publisher does meanwhile.
        let copy: Box<[u8]> = self.bytes(self.attributes_at, self.attributes_len as usize).into();
        Attributes::decode(&copy)
    }

    #[inline]
    fn bytes(&self, from: u64, len: usize) -> &[u8] {
        let start = self.segment.memory.map().as_ptr().wrapping_add(from as usize);
        // SAFETY: `Segment::check` was asked for payload and attributes before the first hold was made, parts lie inside
        // the payload, so `from` and `len` (those of the two methods above) do; the mapping lives as long as
        // `segment`, and the hold keeps the publisher from reusing the bytes. (A publisher that breaks its own promise and
        // changes a message while it is read changes values only; SAFETY.md, "hostile peers".)
        unsafe { std::slice::from_raw_parts(start, len) }
    }
}

impl Clone for Hold {
    fn clone(&self) -> Self {
        // In a forked child the lease is not mapped; there a view is sure only while the parent has one.
        if self.segment.link.made_in.is_current() {
            self.segment.link.lease().hold_again(self.slot);
        }
        Hold { segment: Arc::clone(&self.segment), ..*self }
    }
}

impl Drop for Hold {
    #[inline]
    fn drop(&mut self) {
        let link = &self.segment.link;
        if link.made_in.is_current() && link.lease().release(self.slot) && self.tracked {
            link.channel.ring();
        }
    }
}

/// A record that was taken from a ring. The data of an inline one is in the reader's [`InlineData`].
pub(crate) struct Taken {
    pub sequence: u64,
    pub head: Head,
    pub hold: Option<Hold>,
}

impl Taken {
    #[inline]
    pub fn payload_len(&self) -> usize {
        self.hold.as_ref().map_or(self.head.payload_len(), Hold::len)
    }
}

/// What every message has.
#[derive(Clone)]
struct About {
    publisher: Arc<PublisherInfo>,
    sequence: u64,
    timestamp_ns: u64,
}

/// A payload that was copied out of the ring.
#[derive(Clone)]
struct Copied {
    about: About,
    tag: u64,
    len: u16,
    attributes_len: u16,
    /// The payload, then the attributes, each in full words: so many are initialised.
    words: [MaybeUninit<u64>; DATA_WORDS],
}

/// A message with such a payload. Its memory outlives it: the next one of this thread is made there, without an allocation,
/// and, if it is the same publisher's, without counting one more reference to that.
struct Inline(ManuallyDrop<Box<Copied>>);

thread_local! {
    /// What the last message of this thread that went left behind.
    static SPARE: Cell<Option<Box<Copied>>> = const { Cell::new(None) };
}

impl Inline {
    /// `words` are the payload's and the attributes'.
    #[inline(always)]
    fn new(
        publisher: &Arc<PublisherInfo>,
        (sequence, timestamp_ns, tag): (u64, u64, u64),
        len: usize,
        attributes_len: usize,
        words: impl Iterator<Item = u64>,
    ) -> Self {
        let used = len.div_ceil(8) + attributes_len.div_ceil(8);
        // A thread that is ending has no spare any more.
        let mut copied = SPARE.try_with(Cell::take).ok().flatten().unwrap_or_else(|| Copied::of(publisher));
        if !Arc::ptr_eq(&copied.about.publisher, publisher) {
            copied.about.publisher = Arc::clone(publisher);
        }
        (copied.about.sequence, copied.about.timestamp_ns, copied.tag) = (sequence, timestamp_ns, tag);
        (copied.len, copied.attributes_len) = (len as u16, attributes_len as u16);
        let mut written = 0;
        for (to, word) in copied.words.iter_mut().take(used).zip(words) {
            to.write(word);
            written += 1;
        }
        assert!(written == used, "a record that is shorter than it says");
        Inline(ManuallyDrop::new(copied))
    }
}

impl Drop for Inline {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: it is not used again.
        let copied = unsafe { ManuallyDrop::take(&mut self.0) };
        let _ = SPARE.try_with(|spare| spare.set(Some(copied)));
    }
}

impl Clone for Inline {
    fn clone(&self) -> Self {
        Inline(self.0.clone())
    }
}

impl Copied {
    /// Nothing yet.
    #[cold]
    fn of(publisher: &Arc<PublisherInfo>) -> Box<Self> {
        let about = About { publisher: Arc::clone(publisher), sequence: 0, timestamp_ns: 0 };
        Box::new(Copied { about, tag: 0, len: 0, attributes_len: 0, words: [MaybeUninit::uninit(); _] })
    }

    #[inline]
    fn bytes(&self, from: usize, len: u16) -> &[u8] {
        debug_assert!(from + len as usize <= size_of_val(&self.words));
        let start = self.words.as_ptr().cast::<u8>().wrapping_add(from);
        // SAFETY: `from` and `len` are those of the two methods below, which lie in the words that `Inline::new` has written.
        unsafe { std::slice::from_raw_parts(start, len as usize) }
    }

    #[inline]
    fn payload(&self) -> &[u8] {
        self.bytes(0, self.len)
    }

    fn attributes(&self) -> &[u8] {
        self.bytes((self.len as usize).next_multiple_of(8), self.attributes_len)
    }
}

/// A message whose payload lies in the publisher's memory.
#[derive(Clone)]
struct Held {
    about: About,
    hold: Hold,
}

/// A message. Dereferences to its payload, which stays valid and unchanged as long as the message, or a clone of it, lives:
/// beyond the subscriber's `close`, and beyond the publisher's death.
#[derive(Clone)]
pub struct Message(Body);

/// Boxed: a message is filled where it stays, and passed on in registers.
#[derive(Clone)]
enum Body {
    Inline(Inline),
    Held(Box<Held>),
    Kept(Box<Kept>),
}

/// A message of this process's own.
#[derive(Clone)]
struct Kept {
    about: About,
    tag: u64,
    own: Arc<Own>,
}

/// What a publisher keeps of a message of its own: its chunk is not used for anything else meanwhile.
pub(crate) struct Own {
    pub view: View,
    pub attributes: Box<[u8]>,
    pub _pin: Arc<Pin>,
}

impl Own {
    #[inline]
    fn payload(&self) -> &[u8] {
        // SAFETY: the message is sent, so its publisher writes it no more, and the pin keeps its memory from being used for another.
        // (A program that writes through an array of the loan, against its documentation, changes values only.)
        unsafe { self.view.bytes() }
    }
}

impl Message {
    pub(crate) fn new(publisher: &Arc<PublisherInfo>, taken: Taken, data: &InlineData) -> Self {
        match taken.hold {
            Some(hold) => Self::held(Arc::clone(publisher), taken.sequence, taken.head.timestamp_ns, hold),
            None => Self::inline(publisher, taken.head, data),
        }
    }

    #[inline(always)]
    pub(crate) fn inline(publisher: &Arc<PublisherInfo>, head: Head, data: &InlineData) -> Self {
        let place = (head.sequence, head.timestamp_ns, head.tag(data));
        Message(Body::Inline(Inline::new(publisher, place, head.payload_len(), head.attributes_len(), data.words())))
    }

    pub(crate) fn held(publisher: Arc<PublisherInfo>, sequence: u64, timestamp_ns: u64, hold: Hold) -> Self {
        Message(Body::Held(Box::new(Held { about: About { publisher, sequence, timestamp_ns }, hold })))
    }

    /// A message whose payload and encoded attributes were copied; they fit into a record.
    pub(crate) fn copied(
        publisher: &Arc<PublisherInfo>,
        sequence: u64,
        timestamp_ns: u64,
        tag: u64,
        payload: &[u8],
        attributes: &[u8],
    ) -> Self {
        let words = payload.chunks(8).chain(attributes.chunks(8)).map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_ne_bytes(word)
        });
        let place = (sequence, timestamp_ns, tag);
        Message(Body::Inline(Inline::new(publisher, place, payload.len(), attributes.len(), words)))
    }

    /// One that its publisher keeps.
    pub(crate) fn own(publisher: Arc<PublisherInfo>, sequence: u64, timestamp_ns: u64, tag: u64, own: Own) -> Self {
        let about = About { publisher, sequence, timestamp_ns };
        Message(Body::Kept(Box::new(Kept { about, tag, own: Arc::new(own) })))
    }

    /// The same without its tag, which was the library's own.
    pub(crate) fn untagged(mut self) -> Self {
        match &mut self.0 {
            Body::Inline(inline) => inline.0.tag = 0,
            Body::Held(held) => held.hold.tag = 0,
            Body::Kept(kept) => kept.tag = 0,
        }
        self
    }

    #[inline]
    fn about(&self) -> &About {
        match &self.0 {
            Body::Inline(inline) => &inline.0.about,
            Body::Held(held) => &held.about,
            Body::Kept(kept) => &kept.about,
        }
    }

    /// Who sent it.
    pub fn publisher(&self) -> &Arc<PublisherInfo> {
        &self.about().publisher
    }

    /// The mailbox that sent it, for a message that a [`Mailbox`](crate::Mailbox) received.
    pub fn sender(&self) -> Identity {
        Identity::of(self.publisher())
    }

    /// The topic of its publisher.
    pub fn topic(&self) -> &str {
        &self.about().publisher.topic
    }

    /// Its number among the publisher's messages, from 0.
    pub fn sequence(&self) -> u64 {
        self.about().sequence
    }

    /// When it was sent: nanoseconds of `CLOCK_REALTIME`, or what the sender gave.
    pub fn timestamp_ns(&self) -> u64 {
        self.about().timestamp_ns
    }

    /// The number that its sender gave it beside the payload; 0: none.
    pub fn tag(&self) -> u64 {
        match &self.0 {
            Body::Inline(inline) => inline.0.tag,
            Body::Held(held) => held.hold.tag,
            Body::Kept(kept) => kept.tag,
        }
    }

    /// Tells the publisher that the message is done with, whatever views of it are kept: it counts against the subscriber's depth until
    /// then, and a flush waits for it. Only for a subscriber that [acknowledges by hand](crate::SubscriberBuilder::manual_ack). Doing so
    /// twice is fine.
    pub fn ack(&self) -> Result<()> {
        receipts::acknowledge(self.publisher(), &mut std::iter::once(self.sequence()))
    }

    /// What is needed to acknowledge it without keeping it.
    pub fn receipt(&self) -> Receipt {
        Receipt::of(self.publisher(), self.sequence())
    }

    /// Whether its subscriber acknowledges by hand.
    pub fn is_acked_by_hand(&self) -> bool {
        self.publisher().acked_at.place().is_some()
    }

    /// Layout and headers, decoded anew on each call.
    pub fn attributes(&self) -> Attributes {
        match &self.0 {
            Body::Inline(inline) => Attributes::decode(inline.0.attributes()),
            Body::Held(held) => held.hold.decode_attributes(),
            Body::Kept(kept) => Attributes::decode(&kept.own.attributes),
        }
    }

    /// Whether there are attributes at all.
    #[inline]
    pub fn has_attributes(&self) -> bool {
        match &self.0 {
            Body::Inline(inline) => inline.0.attributes_len > 0,
            Body::Held(held) => held.hold.attributes_len > 0,
            Body::Kept(kept) => !kept.own.attributes.is_empty(),
        }
    }

    /// What `understand` makes of a glossary entry to which the message refers; done once for all messages of this
    /// connection. `None`: there is no such entry.
    pub fn explained<T: Send + Sync + 'static, E>(
        &self,
        entry: Entry,
        understand: impl FnOnce(Vec<u8>) -> std::result::Result<T, E>,
    ) -> Option<std::result::Result<Arc<T>, E>> {
        match &self.0 {
            Body::Inline(_) | Body::Kept(_) => None,
            Body::Held(held) => held.hold.segment.link.glossary.look_up(entry, understand),
        }
    }

    /// Whether the payload was small enough to travel inside the ring, and was copied out of it.
    pub fn is_inline(&self) -> bool {
        matches!(self.0, Body::Inline(_))
    }

    /// Tells the publisher, for its [`outstanding`](crate::Publisher::outstanding) and its warnings, where this message was
    /// received: usually a file and a line. Of a longer text the end is kept. Nothing happens for a message that travelled
    /// inside the ring, since it holds no memory of the publisher.
    pub fn note_received_at(&self, place: &str) {
        if let Body::Held(held) = &self.0 {
            held.hold.note(held.about.sequence, place);
        }
    }

    /// Whether its payload and attributes lie in the memory that is mapped for them (or in the message itself).
    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(crate) fn lies_inside(&self) -> bool {
        let Body::Held(held) = &self.0 else { return true };
        let hold = &held.hold;
        let map = hold.segment.memory.map();
        let all = map.as_ptr() as usize..=map.as_ptr() as usize + map.len();
        let attributes = hold.bytes(hold.attributes_at, hold.attributes_len as usize);
        [&**self, attributes].iter().map(|bytes| bytes.as_ptr_range()).all(|part| {
            part.start <= part.end && all.contains(&(part.start as usize)) && all.contains(&(part.end as usize))
        })
    }

    /// A private writable view: changes stay with it. A large payload is mapped copy-on-write, so that only the pages that
    /// are written cost memory and time; a small one is copied. [`Error::System`] when there is neither address space for the
    /// one nor memory for the other.
    pub fn writable(&self) -> Result<Writable> {
        if let Body::Held(held) = &self.0
            && let hold = &held.hold
            && self.len() >= MAP_FROM
            && let Some(place) = Place::take()
            // Out of mappings or address space: a copy serves as well.
            && let Ok((map, start)) = hold.segment.memory.map_private(hold.offset..hold.offset + hold.len)
        {
            fault!("hold.mapped_privately");
            let start = map.as_ptr().wrapping_add(start);
            return Ok(Writable {
                start,
                len: self.len(),
                keep: Keep::Mapped { _map: map, _hold: hold.clone(), _place: place },
            });
        }
        let mut words = Vec::<u128>::new();
        let Ok(()) = words.try_reserve_exact(self.len().div_ceil(16)) else {
            let error = io::Error::from_raw_os_error(libc::ENOMEM);
            return Err(Error::system(self.topic(), "cannot make a private view")(error));
        };
        let start = words.as_mut_ptr().cast::<u8>();
        // SAFETY: the new allocation has room for so many bytes, and nobody else knows it.
        unsafe { std::ptr::copy_nonoverlapping(self.as_ptr(), start, self.len()) };
        copies::count(Cause::Private, self.len());
        Ok(Writable { start, len: self.len(), keep: Keep::Copied { _words: words } })
    }
}

impl Deref for Message {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match &self.0 {
            Body::Inline(inline) => inline.0.payload(),
            Body::Held(held) => held.hold.payload(),
            Body::Kept(kept) => kept.own.payload(),
        }
    }
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (topic, sequence, len) = (self.topic(), self.sequence(), self.len());
        write!(f, "Message {{ topic: {topic:?}, sequence: {sequence}, len: {len} }}")
    }
}

/// One of the private mappings that a process may have.
struct Place;

static PLACES_TAKEN: AtomicUsize = AtomicUsize::new(0);

impl Place {
    fn take() -> Option<Self> {
        let place = Place;
        (PLACES_TAKEN.fetch_add(1, Ordering::Relaxed) < MOST_MAPPINGS).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        PLACES_TAKEN.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A private writable view of a message. Dereferences to the bytes.
pub struct Writable {
    start: *mut u8,
    len: usize,
    keep: Keep,
}

/// What the bytes lie in.
enum Keep {
    /// Untouched pages still show the chunk, so the mapping holds it.
    Mapped { _map: Mapping, _hold: Hold, _place: Place },
    /// It counts no elements: the bytes behind the payload were never written.
    Copied { _words: Vec<u128> },
}

// SAFETY: `start` points into memory that `keep` owns; nothing is tied to a thread.
unsafe impl Send for Writable {}
// SAFETY: through `&Writable` the bytes are only read.
unsafe impl Sync for Writable {}

impl Writable {
    /// How many payload bytes were copied to make it.
    pub fn copied_bytes(&self) -> usize {
        if matches!(self.keep, Keep::Mapped { .. }) { 0 } else { self.len }
    }

    /// The first byte; valid for reads and writes as long as this lives.
    pub fn as_ptr(&self) -> *mut u8 {
        self.start
    }
}

impl Deref for Writable {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `keep` owns `len` initialised bytes from `start` on.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

impl DerefMut for Writable {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; the bytes are writable, and `&mut self` makes this the only slice.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::link::channel::joined;
    use crate::protocol::lease::LEASE_LEN;
    use crate::reader::sender::AckedAt;
    use crate::sys::memory::OwnedSegment;

    #[test]
    fn messages_that_follow_each_other_in_the_same_memory_have_nothing_in_common() {
        let info =
            |id| Arc::new(PublisherInfo { id, pid: 0, name: None, topic: "t".into(), acked_at: AckedAt::default() });
        let publishers = [info(0), info(1)];
        let mut kept = Vec::new();
        for round in 0..64 {
            let publisher = &publishers[round % 3 % 2];
            let (payload, attributes) = (vec![round as u8; round], vec![!round as u8; round / 2]);
            let message = Message::copied(publisher, round as u64, !round as u64, 3, &payload, &attributes);
            if round % 5 == 0 {
                kept.push((message.clone(), round));
            }
            let Body::Inline(inline) = &message.0 else { panic!("it is inline") };
            assert_eq!((&message[..], inline.0.attributes()), (&payload[..], &attributes[..]));
            assert_eq!((message.sequence(), message.timestamp_ns()), (round as u64, !round as u64));
            assert_eq!(message.publisher().id, publisher.id);
        }
        for (message, round) in kept {
            assert_eq!((&message[..], message.sequence()), (&vec![round as u8; round][..], round as u64));
        }
        let weak = publishers.each_ref().map(Arc::downgrade);
        drop(publishers);
        // One that outlives its thread, and that thread's spare.
        drop(std::thread::spawn(move || Message::copied(&info(2), 0, 0, 0, b"", b"")).join());
        let left = weak.iter().filter(|publisher| publisher.strong_count() > 0).count();
        assert!(left <= 1, "the spare refers to one publisher at most");
    }

    #[test]
    fn a_record_names_memory_that_is_there() {
        let page = rustix::param::page_size() as u64;
        let most = MAX_ATTRIBUTES as u64;
        let owned = OwnedSegment::new("test", 4 * most).unwrap();
        owned.populate(0..2 * most).unwrap();
        let shared = owned.shared().try_clone_to_owned().unwrap();
        let memory = PeerSegment::new(shared, None).map_err(|(error, _)| error).unwrap();
        let info = PublisherInfo { id: 0, pid: 0, name: None, topic: "t".into(), acked_at: AckedAt::default() };
        let lease = OwnedSegment::new("test", LEASE_LEN).unwrap().into_map();
        let link = Link::new(info, lease, Arc::new(joined().0), None);
        let segment = Segment::new(0, memory, Arc::new(link));
        let end = segment.len();
        let check = |offset, len, attributes_len| {
            let at =
                Descriptor { segment: 0, slot: 0, offset, len, attributes_len, refers: false, tracked: false, tag: 0 };
            segment.check(&at)
        };
        assert_eq!(check(64, page, 0), Ok(()));
        assert_eq!(check(page, most - page, MAX_ATTRIBUTES as u32), Ok(()));
        assert!(check(0, 64, MAX_ATTRIBUTES as u32 + 1).unwrap_err().contains("attributes"));
        assert!(check(2 * most - 64, 65, 0).unwrap_err().contains("hole"));
        let outside = [(end, 1, 0), (end - 8, 1, 1), (u64::MAX - 63, 64, 0), (u64::MAX, 2, 0), (0, u64::MAX, 0)];
        for (offset, len, attributes_len) in outside.into_iter().chain([(64, u64::MAX - 7, 64)]) {
            let found = check(offset, len, attributes_len);
            assert!(found.unwrap_err().contains("outside"), "{offset} {len} {attributes_len}");
        }
    }
}
