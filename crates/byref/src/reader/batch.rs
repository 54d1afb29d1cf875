//! Several messages, received in one step.

use crate::attributes::{Attributes, Layout};
use crate::error::Result;
use crate::protocol::ring::{Head, InlineData};
use crate::reader::message::{Hold, Message};
use crate::reader::receipts;
use crate::reader::sender::PublisherInfo;
use std::ops::Range;
use std::sync::Arc;

/// Messages for which a batch has room before it is known how many there are.
pub(crate) const FEW: usize = 128;
/// And for which it makes room at once: how many there are is a peer's word.
const MANY: usize = 1 << 14;

/// Messages in the order in which they were taken. Small ones lie copied one behind the other; rows of a block are the
/// publisher's memory, and held as a whole.
#[derive(Default)]
pub struct Batch {
    /// Who sent the messages up to which index.
    publishers: Vec<(usize, Arc<PublisherInfo>)>,
    content: Content,
}

enum Content {
    Each(Each),
    Rows(Rows),
}

impl Default for Content {
    fn default() -> Self {
        Content::Each(Each::default())
    }
}

/// Messages that were sent one by one.
#[derive(Default)]
struct Each {
    sequences: Vec<u64>,
    timestamps_ns: Vec<u64>,
    /// How many there is to be room for, if it was not made yet.
    announced: usize,
    /// The payloads that were copied, and where each message's ends.
    bytes: Vec<u8>,
    ends: Vec<usize>,
    /// The length of all payloads as long as it is the same.
    equal: Option<usize>,
    /// Those that were too large for that, by index.
    held: Vec<(usize, Hold)>,
    /// Encoded attributes, and the index up to which messages have the same. (Those that are held count as having none.)
    attributes: Vec<(usize, Box<[u8]>)>,
    /// Up to the last one that is not 0.
    tags: Vec<u64>,
}

/// Rows of one block.
struct Rows {
    first: u64,
    count: usize,
    timestamp_ns: u64,
    hold: Hold,
}

impl Batch {
    #[inline]
    fn each(&mut self) -> &mut Each {
        match &mut self.content {
            Content::Each(each) => each,
            Content::Rows(_) => unreachable!("rows are all that their batch is"),
        }
    }

    /// About so many messages more will be pushed.
    pub(crate) fn announce(&mut self, count: usize) {
        self.each().announced = count.min(MANY);
    }

    #[inline]
    pub(crate) fn push_inline(&mut self, head: Head, data: &InlineData) {
        let each = self.each();
        let (len, attributes_len) = (head.payload_len(), head.attributes_len());
        let start = each.bytes.len();
        let end = start + len;
        each.bytes.resize(start + len.next_multiple_of(8), 0);
        let mut words = data.words();
        for (place, word) in each.bytes[start..].chunks_exact_mut(8).zip(&mut words) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        each.bytes.truncate(end);
        each.push(head, Some(len), end);
        each.note_tag(head.tag(data));
        if attributes_len > 0 || !each.attributes.is_empty() {
            let attributes: Vec<u8> =
                words.take(attributes_len.div_ceil(8)).flat_map(u64::to_ne_bytes).take(attributes_len).collect();
            each.note_attributes(&attributes);
        }
    }

    pub(crate) fn push_held(&mut self, head: Head, hold: Hold) {
        let each = self.each();
        let tag = hold.tag();
        each.held.push((each.sequences.len(), hold));
        each.push(head, None, each.bytes.len());
        each.note_tag(tag);
        if !each.attributes.is_empty() {
            each.note_attributes(&[]); // Its own are behind its payload.
        }
    }

    /// Takes the messages behind the first `len` out again.
    #[cold]
    pub(crate) fn truncate(&mut self, len: usize) {
        self.each().truncate(len);
    }

    pub(crate) fn set_rows(&mut self, first: u64, timestamp_ns: u64, count: usize, hold: Hold) {
        self.content = Content::Rows(Rows { first, count, timestamp_ns, hold });
    }

    /// The messages added since the last call are this publisher's.
    pub(crate) fn set_publisher(&mut self, publisher: &Arc<PublisherInfo>) {
        let len = self.len();
        match self.publishers.last_mut() {
            Some((end, _)) if *end == len => {}
            None if len == 0 => {}
            Some((end, last)) if Arc::ptr_eq(last, publisher) => *end = len,
            _ => self.publishers.push((len, Arc::clone(publisher))),
        }
    }

    /// How many messages there are.
    pub fn len(&self) -> usize {
        match &self.content {
            Content::Each(each) => each.sequences.len(),
            Content::Rows(rows) => rows.count,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether they are rows of one block.
    pub(crate) fn is_rows(&self) -> bool {
        matches!(self.content, Content::Rows(_))
    }

    /// The payload bytes of all messages together.
    pub fn payload_len(&self) -> usize {
        match &self.content {
            Content::Each(each) => each.bytes.len() + each.held.iter().map(|(_, hold)| hold.len()).sum::<usize>(),
            Content::Rows(rows) => rows.hold.len(),
        }
    }

    /// How many of them were copied.
    pub(crate) fn copied_len(&self) -> usize {
        match &self.content {
            Content::Each(each) => each.bytes.len(),
            Content::Rows(_) => 0,
        }
    }

    /// Of message `index`, in the order in which it was sent; `None` beyond the last.
    pub fn get(&self, index: usize) -> Option<Message> {
        if index >= self.len() {
            return None;
        }
        let publisher = Arc::clone(self.publisher(index)?);
        Some(match &self.content {
            Content::Each(each) => each.message(publisher, index),
            Content::Rows(rows) => {
                let row_len = rows.hold.len() / rows.count;
                let hold = rows.hold.part(index, 1, row_len);
                Message::held(publisher, rows.first + index as u64, rows.timestamp_ns, hold)
            }
        })
    }

    /// The messages one by one.
    pub fn iter(&self) -> impl Iterator<Item = Message> {
        (0..self.len()).filter_map(|index| self.get(index))
    }

    /// Who sent message `index`.
    pub fn publisher(&self, index: usize) -> Option<&Arc<PublisherInfo>> {
        let found = self.publishers.partition_point(|(end, _)| *end <= index);
        self.publishers.get(found).map(|(_, publisher)| publisher)
    }

    /// Who sent the messages, and the ranges of their indices.
    pub fn publishers(&self) -> impl Iterator<Item = (Range<usize>, &Arc<PublisherInfo>)> {
        let starts = std::iter::once(0).chain(self.publishers.iter().map(|(end, _)| *end));
        starts.zip(&self.publishers).map(|(start, (end, publisher))| (start..*end, publisher))
    }

    /// [`Message::note_received_at`] for all of them.
    pub fn note_received_at(&self, place: &str) {
        match &self.content {
            Content::Each(each) => each.held.iter().for_each(|(index, hold)| hold.note(each.sequences[*index], place)),
            Content::Rows(rows) => rows.hold.note(rows.first, place),
        }
    }

    /// [`Message::ack`] for all of them.
    pub fn ack(&self) -> Result<()> {
        self.publishers().try_for_each(|(range, publisher)| {
            let sequences: &mut dyn Iterator<Item = u64> = match &self.content {
                Content::Each(each) => &mut each.sequences[range].iter().copied(),
                Content::Rows(rows) => &mut (rows.first..rows.first + rows.count as u64),
            };
            receipts::acknowledge(publisher, sequences)
        })
    }

    /// Whether it holds memory of its publishers: some of its messages did not travel inside the ring.
    pub fn is_holding(&self) -> bool {
        match &self.content {
            Content::Each(each) => !each.held.is_empty(),
            Content::Rows(_) => true,
        }
    }

    /// The sequence number of each message.
    pub fn sequences(&self) -> Vec<u64> {
        match &self.content {
            Content::Each(each) => each.sequences.clone(),
            Content::Rows(rows) => (rows.first..).take(rows.count).collect(),
        }
    }

    /// When each message was sent: nanoseconds of `CLOCK_REALTIME`, or what the sender gave.
    pub fn timestamps_ns(&self) -> Vec<u64> {
        match &self.content {
            Content::Each(each) => each.timestamps_ns.clone(),
            Content::Rows(rows) => vec![rows.timestamp_ns; rows.count],
        }
    }

    /// The tag of each message.
    pub fn tags(&self) -> Vec<u64> {
        match &self.content {
            Content::Each(each) => {
                let mut tags = each.tags.clone();
                tags.resize(self.len(), 0);
                tags
            }
            Content::Rows(rows) => vec![rows.hold.tag(); rows.count],
        }
    }

    /// The payloads, one behind the other without room in between, if they lie like that and have the same length: that
    /// length comes first.
    pub fn packed(&self) -> Option<(usize, &[u8])> {
        match &self.content {
            Content::Each(each) if each.held.is_empty() => each.equal.map(|len| (len, &*each.bytes)),
            // One large message is packed by itself.
            Content::Each(Each { held, sequences, .. }) => match &held[..] {
                [(_, hold)] if sequences.len() == 1 => Some((hold.len(), hold.payload())),
                _ => None,
            },
            Content::Rows(rows) => Some((rows.hold.len() / rows.count, rows.hold.payload())),
        }
    }

    /// How the payloads are to be understood, if that is the same for all; otherwise the index of the first that differs from
    /// those before.
    pub fn layout(&self) -> Result<Option<Layout>, usize> {
        match &self.content {
            Content::Each(each) => each.layout(),
            Content::Rows(rows) => Ok(rows.hold.decode_attributes().layout),
        }
    }
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Batch {{ len: {}, payload_len: {} }}", self.len(), self.payload_len())
    }
}

impl Each {
    /// `len`: that of a payload that was copied, and ends at `end`.
    #[inline]
    fn push(&mut self, head: Head, len: Option<usize>, end: usize) {
        if self.announced > 0 {
            self.make_room(len.unwrap_or(0));
        }
        self.equal = if self.sequences.is_empty() { len } else { self.equal.filter(|equal| Some(*equal) == len) };
        self.sequences.push(head.sequence);
        self.timestamps_ns.push(head.timestamp_ns);
        self.ends.push(end);
    }

    fn truncate(&mut self, len: usize) {
        self.sequences.truncate(len);
        self.timestamps_ns.truncate(len);
        self.ends.truncate(len);
        self.bytes.truncate(self.ends.last().copied().unwrap_or(0));
        self.held.retain(|(index, _)| *index < len);
        let whole = self.attributes.partition_point(|(end, _)| *end <= len);
        let begun = whole < self.attributes.len() && whole.checked_sub(1).map_or(0, |at| self.attributes[at].0) < len;
        self.attributes.truncate(whole + usize::from(begun));
        if begun && let Some((end, _)) = self.attributes.last_mut() {
            *end = len;
        }
    }

    /// For messages like this one, as many as were announced.
    #[cold]
    fn make_room(&mut self, len: usize) {
        let count = std::mem::take(&mut self.announced);
        self.sequences.reserve(count);
        self.timestamps_ns.reserve(count);
        self.ends.reserve(count);
        self.bytes.reserve(count * len);
    }

    /// Of the message pushed last.
    #[inline]
    fn note_tag(&mut self, tag: u64) {
        if tag != 0 {
            self.tags.resize(self.sequences.len() - 1, 0);
            self.tags.push(tag);
        }
    }

    /// Of the message pushed last.
    #[cold]
    fn note_attributes(&mut self, attributes: &[u8]) {
        let len = self.sequences.len();
        if self.attributes.is_empty() && len > 1 {
            self.attributes.push((len - 1, Box::default()));
        }
        match self.attributes.last_mut() {
            Some((end, last)) if **last == *attributes => *end = len,
            _ => self.attributes.push((len, attributes.into())),
        }
    }

    fn held(&self, index: usize) -> Option<&Hold> {
        let found = self.held.binary_search_by_key(&index, |(index, _)| *index).ok()?;
        Some(&self.held[found].1)
    }

    fn encoded_attributes(&self, index: usize) -> &[u8] {
        let found = self.attributes.partition_point(|(end, _)| *end <= index);
        self.attributes.get(found).map_or(&[], |(_, attributes)| attributes)
    }

    fn layout(&self) -> Result<Option<Layout>, usize> {
        if self.held.is_empty() {
            // Each run starts where the one before ends.
            let rest = self.attributes.iter().map(|(end, _)| *end).filter(|start| *start < self.sequences.len());
            return self.layout_of_all(std::iter::once(0).chain(rest));
        }
        self.layout_of_all(0..self.sequences.len())
    }

    fn layout_of_all(&self, mut indices: impl Iterator<Item = usize>) -> Result<Option<Layout>, usize> {
        let layout_of = |index| match self.held(index) {
            Some(hold) => hold.decode_attributes().layout,
            None => Attributes::decode(self.encoded_attributes(index)).layout,
        };
        let first = indices.next().and_then(layout_of);
        match indices.find(|index| layout_of(*index) != first) {
            None => Ok(first),
            Some(other) => Err(other),
        }
    }

    fn message(&self, publisher: Arc<PublisherInfo>, index: usize) -> Message {
        let (sequence, timestamp_ns) = (self.sequences[index], self.timestamps_ns[index]);
        match self.held(index) {
            Some(hold) => Message::held(publisher, sequence, timestamp_ns, hold.clone()),
            None => {
                let start = if index == 0 { 0 } else { self.ends[index - 1] };
                let payload = &self.bytes[start..self.ends[index]];
                let tag = self.tags.get(index).copied().unwrap_or(0);
                Message::copied(&publisher, sequence, timestamp_ns, tag, payload, self.encoded_attributes(index))
            }
        }
    }
}
