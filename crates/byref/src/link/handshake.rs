//! What two processes say to each other over their socket, and a subscriber and a publisher over their channel of it.
//!
//! A process connects and sends a [`Greeting`]; for a pair the other one answers [`Paired`]. A subscriber opens a channel with a
//! [`Call`] for the publisher's name: a [`Hello`], with the descriptor of its lease. The publisher answers with
//! [`ToSubscriber::Welcome`] and the descriptor of its ring, then [`ToSubscriber::Segment`] with a descriptor for each
//! segment of its pool, and later for each new one, and for its glossary. A subscriber has little to say ([`ToPublisher`]).

use crate::protocol::claim::Policy;
use crate::topic;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The version of this protocol and of the memory layouts behind it.
pub(crate) const VERSION: u32 = 8;
const MAGIC: u32 = 0x6279_7265; // "byre"

/// The first packet of whoever connects to a process.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Greeting {
    /// To be a [pair](crate::link::pair) with it.
    Pair,
    /// To ask one question, and no more.
    Ask(Call),
}

/// The answer to [`Greeting::Pair`].
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Paired {}

/// What a channel is opened with, or a question.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Call {
    /// Whom it is for: a name of the process's socket in the rendezvous directory.
    pub name: String,
    pub wish: Wish,
}

/// What is wanted of whoever has a name. `Subscribe` and `Collect` open a channel, and the descriptor of the lease comes along; the
/// others are questions.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Wish {
    /// To subscribe.
    Subscribe(Hello),
    /// To see the numbers of an event queue, or a publisher.
    Look,
    /// To know which mailbox this is; the answer is [`ToSubscriber::Here`].
    Who,
    /// A mailbox has messages for the one of this address, or for this incarnation of it alone: it shall collect them at the name
    /// `from`. The answer is [`ToSubscriber::Here`] from one that will.
    Knock { address: String, incarnation: Option<u128>, from: String },
    /// A mailbox collects what the called one has for it, as a subscriber.
    Collect { hello: Hello, incarnation: u128 },
    /// Somebody claims the address: its holder is to give it up. The answer is [`ToSubscriber::Here`] from one that has.
    TakeOver { address: String },
    /// A puller wants jobs of the queue `hello.topic`: so many at a time.
    Pull { hello: Hello, prefetch: u64 },
}

/// What a subscriber says of itself.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Hello {
    /// A topic, or a pattern.
    pub topic: String,
    pub policy: Policy,
    /// `None`: as many as the ring holds.
    pub depth: Option<u64>,
    pub history: u64,
    pub name: Option<String>,
    /// Whether the subscriber registered for `membarrier` and can issue it.
    pub membarrier: bool,
}

/// The publisher's first packet.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Welcome {
    pub publisher: u128,
    pub topic: String,
    pub name: Option<String>,
    /// The first position that is this subscriber's, and the number of its first message (within a block, perhaps; later, if
    /// the history has fewer messages than it may ask for).
    pub start: u64,
    pub first: u64,
    /// The most records of the ring. How it is divided follows from that ([`Shape`](crate::protocol::regions::Shape)).
    pub capacity: u64,
    /// Whether the publisher registered for `membarrier` and can issue it.
    pub membarrier: bool,
}

/// What a publisher sends.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum ToSubscriber {
    /// Look at the ring.
    Wake,
    Welcome(Welcome),
    /// Another topic: one of the same hash, or one that the pattern does not match.
    NotThisTopic,
    /// Nobody in this process has the name that was called.
    NotThisProcess,
    /// A segment of the pool, or the glossary; its descriptor comes along.
    Segment {
        id: u32,
    },
    /// A segment that no record will name again.
    Retire {
        id: u32,
    },
    /// The publisher sends this subscriber nothing any more, and says why.
    Evicted {
        why: String,
    },
    /// Which mailbox answers.
    Here(Whereabouts),
}

/// What a mailbox says of itself.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Whereabouts {
    pub address: String,
    pub incarnation: u128,
}

/// What a subscriber says, besides ringing.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum ToPublisher {
    /// Ring here if I sleep at sockets: that is faster than the service thread. The bell comes along. A process has one for each
    /// number.
    Bell { number: u64 },
}

/// A first packet: magic and version in front, so that any version can tell any other.
pub(crate) fn encode_first<T: Serialize>(packet: &T) -> Vec<u8> {
    postcard::to_extend(packet, magic_and_version()).expect("plain data always encodes")
}

pub(crate) fn magic_and_version() -> Vec<u8> {
    [MAGIC.to_le_bytes(), VERSION.to_le_bytes()].concat()
}

/// A publisher's answer to a hello of another version, which every version understands: magic, version, and the topic
/// as it is, so that who asked for a pattern learns whether the publisher concerns it.
pub(crate) fn encode_for_other_version(topic: &str) -> Vec<u8> {
    [&magic_and_version(), topic.as_bytes()].concat()
}

/// The topic in an answer of another version, if there is one.
pub(crate) fn topic_of_other_version(packet: &[u8]) -> Option<&str> {
    let said = std::str::from_utf8(packet.get(8..)?).ok()?;
    topic::validate(said).is_ok().then_some(said)
}

/// Why a first packet was not understood.
#[derive(Debug, PartialEq)]
pub(crate) enum NotUnderstood {
    Version(u32),
    Garbage,
}

pub(crate) fn decode_first<T: DeserializeOwned>(packet: &[u8]) -> Result<T, NotUnderstood> {
    let word = |at: usize| packet.get(at..at + 4).map(|b| u32::from_le_bytes(b.try_into().expect("four bytes")));
    match (word(0), word(4)) {
        (Some(MAGIC), Some(VERSION)) => postcard::from_bytes(&packet[8..]).map_err(|_| NotUnderstood::Garbage),
        (Some(MAGIC), Some(other)) => Err(NotUnderstood::Version(other)),
        _ => Err(NotUnderstood::Garbage),
    }
}

pub(crate) fn encode_call(call: &Call) -> Vec<u8> {
    postcard::to_stdvec(call).expect("plain data always encodes")
}

pub(crate) fn decode_call(packet: &[u8]) -> Option<Call> {
    postcard::from_bytes(packet).ok()
}

pub(crate) fn encode_to_publisher(packet: &ToPublisher) -> Vec<u8> {
    postcard::to_stdvec(packet).expect("plain data always encodes")
}

pub(crate) fn decode_to_publisher(packet: &[u8]) -> Option<ToPublisher> {
    postcard::from_bytes(packet).ok()
}

pub(crate) fn encode(packet: &ToSubscriber) -> Vec<u8> {
    postcard::to_stdvec(packet).expect("plain data always encodes")
}

pub(crate) fn decode(packet: &[u8]) -> Option<ToSubscriber> {
    postcard::from_bytes(packet).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_versions_and_garbage_are_told_apart() {
        let mut packet = encode_first(&ToSubscriber::Retire { id: 7 });
        assert_eq!(decode_first(&packet), Ok(ToSubscriber::Retire { id: 7 }));
        packet[4] += 1;
        assert_eq!(decode_first::<ToSubscriber>(&packet), Err(NotUnderstood::Version(VERSION + 1)));
        packet[0] ^= 1;
        assert_eq!(decode_first::<ToSubscriber>(&packet), Err(NotUnderstood::Garbage));
        assert_eq!(decode_first::<ToSubscriber>(&[]), Err(NotUnderstood::Garbage));
    }

    #[test]
    fn another_version_tells_its_topic() {
        let mut packet = encode_for_other_version("camera/front");
        packet[4] += 1;
        assert_eq!(decode_first::<ToSubscriber>(&packet), Err(NotUnderstood::Version(VERSION + 1)));
        assert_eq!(topic_of_other_version(&packet), Some("camera/front"));
        for unclear in [&packet[..8], &packet[..5], &[0xff; 20], &[b'*'; 20]] {
            assert_eq!(topic_of_other_version(unclear), None);
        }
    }
}
