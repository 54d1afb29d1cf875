//! Subscribers that say and write anything, beside one that is honest and must miss nothing.

use super::{Number, each};
use crate::link::candidates::Candidate;
use crate::link::channel::{Channel, joined};
use crate::link::handshake::{Call, Hello, ToSubscriber, Wish, decode_call, decode_first, encode_call};
use crate::link::inbox::Said;
use crate::protocol::claim::Policy;
use crate::protocol::lease::{COUNTS, LEASE_LEN, MAX_SLOTS};
use crate::pubsub::publisher::Publisher;
use crate::reader::connection::{Connection, LOSSLESS};
use crate::reader::message::Message;
use crate::reader::sender::{AckedAt, PublisherInfo};
use crate::sync::Ordering;
use crate::sys::memory::OwnedSegment;
use crate::writer::duties;
use crate::{Beside, Loan, Rows, Single, Wait};
use arbitrary::{Arbitrary, Unstructured};
use std::cell::Cell;
use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::Arc;

/// Where in a lease its words lie (see `lease.rs`).
const WORDS: [usize; 3] = [16, 17, 32];
const MAX_MEMORY: u64 = 1 << 17;
const MOST_STRANGERS: usize = 4;
/// Making endpoints takes most of the time. An input is to find the same again, so not more than a few share them.
const MOST_USES: u32 = 16;

#[derive(Arbitrary, Debug)]
enum Step<'a> {
    // What the publisher does.
    Send { len: u16 },
    SendMany { rows: u8, len: u8 },
    Lend { len: u16 },
    SendLoan,
    DropLoan,
    Ask,
    // What the honest subscriber does.
    Take,
    Drop,
    // What strangers do.
    Greet { policy: u8, depth: Option<Number>, history: Number, lease: u8 },
    SayAnything { content: &'a [u8], with_lease: bool },
    Write { who: u8, which: u8, value: Number },
    Hold { who: u8, slot: Number, count: u32 },
    Flood { who: u8, packets: u8 },
    Leave { who: u8 },
    Die { who: u8 },
}

/// A subscriber that keeps no promise.
struct Stranger {
    id: u64,
    channel: Channel,
    lease: OwnedSegment,
}

struct Stage {
    publisher: Publisher,
    honest: Connection,
    strangers: Vec<Stranger>,
    loans: Vec<Loan>,
    /// The length of each message that the honest one has not taken yet.
    sent: VecDeque<usize>,
    taken: u64,
    lost: u64,
    /// What it keeps.
    kept: VecDeque<(u64, Message)>,
    uses: u32,
}

pub fn run(input: &[u8]) {
    thread_local! {
        /// Keeps the service thread from being started and ended again and again.
        static IDLE: Publisher = Publisher::builder("idle").capacity(16).build().expect("a publisher");
        static STAGE: Cell<Option<Stage>> = const { Cell::new(None) };
    }
    IDLE.with(|_| ());
    let mut stage = STAGE.take().filter(|stage| stage.uses < MOST_USES).unwrap_or_else(Stage::set);
    each(Unstructured::new(input), |step| {
        stage.play(step);
        true
    });
    while !stage.sent.is_empty() {
        stage.take();
    }
    stage.kept.iter().for_each(|(number, message)| assert!(is_content(*number, message), "another message's bytes"));
    let strangers = stage.strangers.len();
    (0..strangers).for_each(|_| stage.part_with(0, true));
    stage.kept.clear();
    stage.loans.clear();
    // The last look frees what the honest one has given back.
    let everything = (MAX_MEMORY / 2) as usize;
    assert!(stage.publisher.loan_with(everything, 0, &mut Wait::never()).is_ok(), "memory that nobody holds is free");
    stage.uses += 1;
    STAGE.set(Some(stage));
}

impl Stage {
    fn set() -> Self {
        let publisher = Publisher::builder("t").capacity(16).history(4).max_memory(MAX_MEMORY).build();
        let publisher = publisher.expect("a publisher");
        let lease = OwnedSegment::new("fuzz-lease", LEASE_LEN).expect("some memory");
        let hello = encode_call(&call(Policy::Block, None, 0));
        let (_, channel) = knock(&publisher, &hello, Some(&lease)).expect("the honest one is welcome");
        channel.pump();
        let Ok(Said::Packet(packet, Some(ring))) = channel.take() else { panic!("no answer") };
        let Ok(ToSubscriber::Welcome(welcome)) = decode_first(&packet) else { panic!("no welcome") };
        let info = PublisherInfo {
            id: welcome.publisher,
            pid: 0,
            name: None,
            topic: welcome.topic.clone(),
            acked_at: AckedAt::default(),
        };
        let channel = Arc::new(channel);
        let honest =
            Connection::new(1, info, &welcome, ring, lease.into_map(), channel, Candidate::new(""), false, true);
        Stage {
            publisher,
            honest: honest.expect("the publisher is honest"),
            strangers: Vec::new(),
            loans: Vec::new(),
            sent: VecDeque::new(),
            taken: 0,
            lost: 0,
            kept: VecDeque::new(),
            uses: 0,
        }
    }

    fn play(&mut self, step: Step<'_>) {
        match step {
            Step::Send { len } => {
                let number = self.number();
                let payload = content(number, len as usize);
                let sent = self.publisher.send_as(Single, &payload, Beside::NOTHING, &mut soon());
                self.note(sent, number, [len as usize]);
            }
            Step::SendMany { rows, len } => {
                let (number, len) = (self.number(), len as usize + 1);
                let rows = (0..rows as u64).map(|row| content(number + row, len)).collect::<Vec<_>>().concat();
                let sent = self.publisher.send_as(Rows(rows.len() / len), &rows, Beside::NOTHING, &mut soon());
                self.note(sent.map(|range| range.start), number, vec![len; rows.len() / len]);
            }
            Step::Lend { len } if self.loans.len() < 8 => {
                self.loans.extend(self.publisher.loan_with(len as usize, 0, &mut soon()));
            }
            Step::Lend { .. } => {}
            Step::SendLoan => {
                if let Some(mut loan) = self.loans.pop() {
                    let (number, len) = (self.number(), loan.len());
                    loan.copy_from_slice(&content(number, len));
                    let sent = loan.send_as(Single, Beside::NOTHING, &mut soon());
                    self.note(sent, number, [len]);
                }
            }
            Step::DropLoan => drop(self.loans.pop()),
            Step::Ask => {
                let subscribers = self.publisher.subscribers().expect("it is open");
                let unread = self.number();
                assert!(subscribers.iter().all(|subscriber| subscriber.lag <= unread));
                black_box(
                    (self.publisher.stats().expect("it is open"), self.publisher.flush_with(&mut soon())).1.is_ok(),
                );
            }
            Step::Take => self.take(),
            Step::Drop => {
                if let Some((number, message)) = self.kept.pop_front() {
                    assert!(is_content(number, &message), "another message's bytes");
                }
            }
            Step::Greet { policy, depth, history, lease } => {
                let policy = [Policy::Block, Policy::DropOldest, Policy::Latest][policy as usize % 3];
                let hello = encode_call(&call(policy, depth.map(|depth| depth.of(16)), history.of(4)));
                let len = if lease == u8::MAX { LEASE_LEN / 2 } else { LEASE_LEN };
                self.come(&hello, Some(OwnedSegment::new("fuzz-lease", len).expect("some memory")));
            }
            Step::SayAnything { content, with_lease } => {
                let lease = with_lease.then(|| OwnedSegment::new("fuzz-lease", LEASE_LEN).expect("some memory"));
                self.come(content, lease);
            }
            Step::Write { who, which, value } => {
                let tail = self.number();
                if let Some(stranger) = self.stranger(who) {
                    let word = &stranger.lease.map().words()[WORDS[which as usize % WORDS.len()]];
                    word.store(value.of(tail), Ordering::Release);
                }
            }
            Step::Hold { who, slot, count } => {
                if let Some(stranger) = self.stranger(who) {
                    let slot = slot.of(0) as usize % MAX_SLOTS as usize;
                    stranger.lease.map().counts(COUNTS)[slot].store(count, Ordering::Release);
                }
            }
            Step::Flood { who, packets } => {
                if let Some(stranger) = self.stranger(who) {
                    for number in 0..packets {
                        stranger.channel.ring();
                        if number > 250 {
                            let _ = stranger.channel.send(&[1; 3], None);
                        }
                    }
                    let id = stranger.id;
                    duties::answer_now(&*self.publisher.shared, 0, id);
                }
            }
            Step::Leave { who } => self.part_with(who, true),
            Step::Die { who } => self.part_with(who, false),
        }
    }

    /// The number of the next message.
    fn number(&self) -> u64 {
        self.taken + self.sent.len() as u64
    }

    /// What was sent, if it was; strangers may delay it.
    fn note(&mut self, sent: crate::Result<u64>, number: u64, lens: impl IntoIterator<Item = usize>) {
        if let Ok(given) = sent {
            assert_eq!(given, number);
            self.sent.extend(lens);
        }
    }

    /// The honest one takes a message, and keeps some.
    fn take(&mut self) {
        let Some(len) = self.sent.pop_front() else { return };
        let Ok(taken) = self.honest.take(LOSSLESS, &mut self.lost) else { panic!("a message is missing") };
        let message = Message::new(&self.honest.link.info, taken, &self.honest.scratch);
        assert_eq!((message.sequence(), message.len(), self.lost), (self.taken, len, 0));
        assert!(is_content(self.taken, &message), "wrong bytes");
        self.kept.push_back((self.taken, message));
        self.taken += 1;
        if self.kept.len() > 4 {
            self.kept.pop_front();
        }
    }

    fn come(&mut self, hello: &[u8], lease: Option<OwnedSegment>) {
        if self.strangers.len() < MOST_STRANGERS
            && let Some((id, channel)) = knock(&self.publisher, hello, lease.as_ref())
        {
            let lease = lease.expect("nobody is taken in without one");
            self.strangers.push(Stranger { id, channel, lease });
        }
    }

    fn stranger(&self, who: u8) -> Option<&Stranger> {
        self.strangers.get(who as usize % self.strangers.len().max(1))
    }

    /// One hangs up, or its process dies while a child of it lives.
    fn part_with(&mut self, who: u8, hang_up: bool) {
        if let Some(id) = self.stranger(who).map(|stranger| stranger.id) {
            duties::lose(&*self.publisher.shared, 0, id, hang_up);
            if hang_up {
                self.strangers.retain(|stranger| stranger.id != id);
            }
        }
    }
}

fn call(policy: Policy, depth: Option<u64>, history: u64) -> Call {
    let hello = Hello { topic: "t".into(), policy, depth, history, name: None, membarrier: true };
    Call { name: String::new(), wish: Wish::Subscribe(hello) }
}

/// Says hello to the publisher; gives the number that it has there, and the channel.
fn knock(publisher: &Publisher, hello: &[u8], lease: Option<&OwnedSegment>) -> Option<(u64, Channel)> {
    let Call { wish: Wish::Subscribe(hello), .. } = decode_call(hello)? else { return None };
    let (ours, theirs) = joined();
    let lease = lease.map(|lease| lease.shared().try_clone_to_owned().expect("a descriptor more"));
    let id = publisher.shared.attach(theirs, hello, lease).ok()??;
    Some((id, ours))
}

/// Whoever cannot do it at once does not do it.
fn soon() -> Wait<'static> {
    Wait::never()
}

/// Counts up, twice.
const PATTERN: [u8; 512] = {
    let mut pattern = [0; 512];
    let mut at = 0;
    while at < pattern.len() {
        pattern[at] = at as u8;
        at += 1;
    }
    pattern
};

/// What message `number` consists of, again and again. (In pieces: instrumented code is slow at single bytes.)
fn piece(number: u64) -> &'static [u8] {
    let start = number.wrapping_mul(31) as u8 as usize;
    &PATTERN[start..start + 256]
}

/// What message `number` contains.
fn content(number: u64, len: usize) -> Vec<u8> {
    let mut content = piece(number).repeat(len.div_ceil(256));
    content.truncate(len);
    content
}

fn is_content(number: u64, message: &Message) -> bool {
    message.chunks(256).all(|bytes| bytes == &piece(number)[..bytes.len()])
}
