//! What publishers tell of themselves to whoever asks: their own counters, read by their service threads. Nobody subscribes for
//! it, so looking at a topic disturbs neither its publisher nor its subscribers.

#[cfg(all(test, not(loom)))]
mod tests;

use crate::error::{Error, Result};
use crate::link::ask::{Answered, look_at};
use crate::link::handshake;
use crate::link::location::Location;
use crate::link::names::may_match;
use crate::link::rendezvous::{CANNOT_LIST, Directory};
use crate::protocol::claim::Policy;
use crate::sys::socket::{self, MAX_PACKET, Received};
use crate::sys::text::printable;
use crate::topic;
use rustix::fd::OwnedFd;
use serde::{Deserialize, Serialize};

/// Counters of a publisher.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PublisherStats {
    /// Messages sent.
    pub sent: u64,
    /// Their payload bytes.
    pub sent_bytes: u64,
    /// Payload bytes that were copied into shared memory (loans need no copy).
    pub copied_bytes: u64,
    /// How often a send had to wait for room.
    pub waits: u64,
    /// Connected subscribers.
    pub subscribers: u64,
    /// Bytes of payload memory in use: queued, held, or lent.
    pub pool_used: u64,
    /// Bytes of payload memory taken from the system.
    pub pool_allocated: u64,
}

/// A publisher, as it was when it answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PublisherReport {
    /// Its topic.
    pub topic: String,
    /// Its name, where it was given one.
    pub name: Option<String>,
    /// Its identity: no other publisher has it, not even one of the same process.
    pub id: u128,
    /// Its process (0 when it is out of sight).
    pub pid: i32,
    /// The most payload memory that it takes, in bytes.
    pub max_memory: u64,
    /// How many messages it keeps for late subscribers.
    pub history: u64,
    /// Records that its ring has at the most.
    pub capacity: u64,
    /// `CLOCK_REALTIME` when it answered, in nanoseconds.
    pub at_ns: u64,
    /// Its counters.
    pub stats: PublisherStats,
    /// Its connected subscribers. Where [`PublisherStats::subscribers`] is larger, not all of them could be told of.
    pub subscribers: Vec<SubscriberReport>,
}

/// A subscriber, as its publisher knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubscriberReport {
    /// Its process (0 when it is out of sight).
    pub pid: i32,
    /// Its name, where it gave one.
    pub name: Option<String>,
    /// What it wants done when it falls behind.
    pub policy: Policy,
    /// How many messages may wait for it.
    pub depth: u64,
    /// How many do wait.
    pub lag: u64,
    /// Messages that it has taken and not released, which lie in payload memory.
    pub held: u64,
    /// Their bytes.
    pub held_bytes: u64,
}

/// No more subscribers are read of one publisher.
const MOST_TOLD: usize = 1 << 16;

/// A packet to who looks. The first one has no subscribers.
#[derive(Serialize, Deserialize)]
enum Packet {
    Publisher(PublisherReport),
    Subscribers(Vec<SubscriberReport>),
}

/// Tells an onlooker. Whoever hangs up, or has no room for it, wants no more.
pub(crate) fn show(onlooker: &OwnedFd, mut report: PublisherReport) {
    let subscribers = std::mem::take(&mut report.subscribers);
    let send = |packet: &Packet| socket::send(onlooker, &handshake::encode_first(packet), None).unwrap_or(false);
    if !send(&Packet::Publisher(report)) {
        return;
    }
    // As many as fit, by halves: one fits always.
    let mut left = &subscribers[..];
    while !left.is_empty() {
        let mut count = left.len();
        let packet = loop {
            let packet = Packet::Subscribers(left[..count].to_vec());
            if count == 1 || handshake::encode_first(&packet).len() <= MAX_PACKET {
                break packet;
            }
            count = count.div_ceil(2);
        };
        if !send(&packet) {
            return;
        }
        left = &left[count..];
    }
}

/// The publishers of this user whose topics match a pattern, those of this process, too, by topic. Processes that do not answer
/// within a second (stopped ones, perhaps) are left out. Nobody is disturbed; a missing rendezvous directory is made.
pub fn publishers(pattern: &str) -> Result<Vec<PublisherReport>> {
    topic::validate_pattern(pattern)?;
    let directory = Directory::open(&Location::from_environment()?, pattern)?;
    let unreadable = Error::meeting(pattern, directory.path(), CANNOT_LIST);
    let mut names = directory.entries().map_err(unreadable)?;
    names.retain(|name| may_match(name, pattern));
    let mut reports: Vec<Option<PublisherReport>> = vec![None; names.len()];
    let asked = look_at(&directory, &names, |place, socket| read(socket, &mut reports[place]));
    asked.map_err(Error::system(pattern, "cannot ask publishers"))?;
    let mut found: Vec<_> = reports.into_iter().flatten().collect();
    found.retain(|report| topic::matches(pattern, &report.topic));
    found.sort_by(|one, other| (&one.topic, one.pid, one.id).cmp(&(&other.topic, other.pid, other.id)));
    Ok(found)
}

/// Reads a packet of an answer, whatever the peer made of it.
fn read(socket: &OwnedFd, report: &mut Option<PublisherReport>) -> Answered {
    let mut packet = [0u8; MAX_PACKET];
    let len = match socket::receive(socket, &mut packet) {
        Ok(Received::Packet(len, _)) => len,
        Ok(Received::Empty) => return Answered::More,
        Ok(Received::HungUp | Received::OutOfDescriptors) | Err(_) => return Answered::All,
    };
    match (handshake::decode_first(&packet[..len]), report.as_mut()) {
        (Ok(Packet::Publisher(mut told)), None) => {
            told.pid = socket::peer_pid(socket).map_or(0, |pid| pid.as_raw_nonzero().get());
            told.name = told.name.map(|name| printable(&name));
            told.subscribers.clear();
            if topic::validate(&told.topic).is_ok() {
                *report = Some(told);
            }
        }
        (Ok(Packet::Subscribers(more)), Some(report)) if report.subscribers.len() < MOST_TOLD => {
            let more = more.into_iter().map(|one| SubscriberReport { name: one.name.map(|it| printable(&it)), ..one });
            report.subscribers.extend(more);
        }
        _ => return Answered::All,
    }
    // The publisher hangs up when it has told all.
    Answered::More
}
