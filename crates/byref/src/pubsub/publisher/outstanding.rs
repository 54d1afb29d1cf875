//! What subscribers hold, who they are, and the warnings about what they hold too long.

use super::{Open, Shared};
use crate::error::Result;
use crate::link::service::Next;
use crate::memory::pool::Sent;
use crate::sys::process::realtime_ns;
use crate::writer::peer::Peer;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// A publisher warns of a send that is blocked by held memory once in this time.
const WARN_AGAIN: Duration = Duration::from_secs(1);
/// Looks for messages that are held too long: so many in the time that counts as too long, with at least so much time between
/// them, and so many times as much as a look takes.
const LOOKS: u32 = 4;
const LEAST_PAUSE: Duration = Duration::from_millis(5);
const PAUSE_FACTOR: u32 = 50;

/// What subscribers hold of a publisher's messages: taken, and not released yet. What is still unread is not held. Messages that
/// travel inside the ring (see [`INLINE_LIMIT`](crate::INLINE_LIMIT)) are copied by whoever takes them, so they are never held.
///
/// Messages that were sent together ([`Publisher::send_many`](crate::Publisher::send_many)) lie in one piece of memory, so they
/// are held together: all of them, as long as one of them is.
#[derive(Clone, Debug, Default)]
pub struct Outstanding {
    /// Messages that somebody holds.
    pub messages: u64,
    /// Their payload bytes.
    pub bytes: u64,
    /// Who holds them: each connection of a subscriber that holds any.
    pub holders: Vec<Holder>,
}

impl Outstanding {
    /// Who holds the oldest message.
    pub fn oldest(&self) -> Option<&Holder> {
        self.holders.iter().min_by_key(|holder| holder.oldest_sequence)
    }
}

/// What one subscriber holds of a publisher's messages.
#[derive(Clone, Debug)]
pub struct Holder {
    /// Its process (0 when it is out of sight).
    pub pid: i32,
    /// Its name, where it gave one.
    pub name: Option<String>,
    /// Messages that it holds.
    pub messages: u64,
    /// Their payload bytes.
    pub bytes: u64,
    /// The number of the oldest of them.
    pub oldest_sequence: u64,
    /// How long ago that one was sent.
    pub oldest_age: Duration,
    /// Where it was received, where the subscriber noted that.
    pub received_at: Option<String>,
}

/// What a peer holds, all in all.
struct Holding {
    messages: u64,
    bytes: u64,
    oldest: u32,
}

/// A message that a subscriber holds: since when, as far as it was seen, and whether that was told.
struct Hold {
    position: u64,
    since: Instant,
    told: bool,
}

/// Who holds what: the subscriber's number and the slot.
type Holds = HashMap<(u64, u32), Hold>;

/// How long ago a message was sent.
fn age(sent: &Sent) -> Duration {
    Duration::from_nanos(realtime_ns().saturating_sub(sent.at))
}

/// A number of messages, for people.
fn messages(number: u64) -> String {
    if number == 1 { "1 message".to_owned() } else { format!("{number} messages") }
}

/// A time for people.
fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

impl Open {
    /// The chunks that were sent and are not free again.
    pub(super) fn sent(&self) -> impl Iterator<Item = (u32, &Sent)> {
        let slots = self.pending.iter().map(|(_, slot)| slot).chain(&self.held);
        slots.filter_map(|slot| self.pool.sent(*slot).map(|sent| (*slot, sent)))
    }

    fn held_by<'a>(&'a self, peer: &'a Peer) -> impl Iterator<Item = (u32, &'a Sent)> {
        self.sent().filter(|(slot, _)| peer.lease().is_held(*slot))
    }

    fn holding(&self, peer: &Peer) -> Option<Holding> {
        let (mut messages, mut bytes) = (0, 0);
        let each = self.held_by(peer).inspect(|(_, sent)| {
            messages += u64::from(sent.count);
            bytes += sent.len;
        });
        let (oldest, _) = each.min_by_key(|(_, sent)| sent.sequence)?;
        Some(Holding { messages, bytes, oldest })
    }

    /// The payload bytes that a peer holds.
    pub(super) fn held_bytes(&self, peer: &Peer) -> u64 {
        self.held_by(peer).map(|(_, sent)| sent.len).sum()
    }

    fn outstanding(&self) -> Outstanding {
        let mut outstanding = Outstanding::default();
        for (slot, sent) in self.sent() {
            if self.peers.iter().any(|peer| peer.lease().is_held(slot)) {
                outstanding.messages += u64::from(sent.count);
                outstanding.bytes += sent.len;
            }
        }
        for peer in &self.peers {
            if let Some(Holding { messages, bytes, oldest }) = self.holding(peer) {
                let sent = self.pool.sent(oldest).expect("it is held");
                outstanding.holders.push(Holder {
                    pid: peer.pid,
                    name: peer.name.clone(),
                    messages,
                    bytes,
                    oldest_sequence: sent.sequence,
                    oldest_age: age(sent),
                    received_at: peer.received_at(oldest, sent),
                });
            }
        }
        outstanding
    }

    /// Who has yet to read, and who keeps memory, as the end of an error text. When a payload finds no room (`in_pool`), only
    /// messages in the pool are worth naming.
    pub(super) fn describe_obstacles(&self, in_pool: bool) -> String {
        let mut obstacles: Vec<_> = self.peers.iter().filter_map(|peer| self.describe_peer(peer, in_pool)).collect();
        let held = self.peers.iter().filter_map(|peer| self.holding(peer)).any(|_| true);
        if in_pool && !held && self.unread() == 0 && self.pool.used() > 0 {
            obstacles.push(format!("this process has lent or keeps {} bytes", self.pool.used()));
        }
        obstacles.join("; ")
    }

    /// What a subscriber has yet to read, holds, and keeps; `None`: nothing.
    fn describe_peer(&self, peer: &Peer, in_pool: bool) -> Option<String> {
        let mut does = Vec::new();
        let unread = match peer.may_delay() {
            true if in_pool => self.unread_in_pool(peer),
            true => self.lag(peer),
            false => 0,
        };
        if unread > 0 {
            does.push(format!("has {} unread", messages(unread)));
        }
        if let Some(Holding { messages: number, bytes, oldest }) = self.holding(peer) {
            let sent = self.pool.sent(oldest).expect("it is held");
            let place =
                peer.received_at(oldest, sent).map(|place| format!(", received at {place}")).unwrap_or_default();
            let oldest = format!("the oldest is message {}, sent {} ago{place}", sent.sequence, seconds(age(sent)));
            does.push(format!("holds {} ({bytes} bytes; {oldest})", messages(number)));
        }
        let kept = self.pool.retired_with(|generation| peer.keeps(generation));
        if kept > 0 {
            does.push(format!(
                "has yet to unmap {kept} bytes that were taken back, as it does soon unless it is stopped"
            ));
        }
        (!does.is_empty()).then(|| format!("{} {}", peer.who(), does.join(" and ")))
    }

    /// Messages in the pool that a subscriber has not taken yet.
    fn unread_in_pool(&self, peer: &Peer) -> u64 {
        let cursor = peer.cursor(self.log.tail());
        let unread = self.pending.iter().rev().take_while(|(position, _)| *position >= cursor);
        unread.filter_map(|(_, slot)| self.pool.sent(*slot)).map(|sent| u64::from(sent.count)).sum()
    }

    /// Who holds the message in `slot`, since when it may be, and where it was received.
    pub(super) fn describe_hold(&self, peer: &Peer, slot: u32) -> String {
        let sent = self.pool.sent(slot).expect("it is held");
        let place = peer.received_at(slot, sent).map(|place| format!(", which received it at {place}"));
        format!("{}{}", peer.who(), place.unwrap_or_default())
    }

    /// The subscriber that holds the oldest message, and that message's slot.
    fn oldest_hold(&self) -> Option<(&Peer, u32)> {
        let holds = self.peers.iter().filter_map(|peer| self.holding(peer).map(|holding| (peer, holding.oldest)));
        holds.min_by_key(|(_, slot)| self.pool.sent(*slot).map(|sent| sent.sequence))
    }

    fn warn_of(&self, topic: &str, peer: &Peer, slot: u32, why: &str) {
        let sent = self.pool.sent(slot).expect("it is held");
        let (sequence, age) = (sent.sequence, seconds(age(sent)));
        let holder = self.describe_hold(peer, slot);
        log::warn!(
            "byref: topic '{topic}': {why}: message {sequence}, sent {age} ago, is still held by {holder}; it should release \
             messages sooner, or keep copies"
        );
    }

    /// Warns, now and then, that a send finds no memory because messages are held.
    #[cold]
    pub(super) fn warn_of_blocked_send(&mut self, topic: &str) {
        if self.warned.is_some_and(|warned| warned.elapsed() < WARN_AGAIN) {
            return;
        }
        if let Some((peer, slot)) = self.oldest_hold() {
            self.warn_of(topic, peer, slot, "a send finds no memory");
            self.warned = Some(Instant::now());
        }
    }

    /// Brings `holds` up to date, and warns once of each that lasts longer than `limit`.
    fn warn_of_long_holds(&self, topic: &str, limit: Duration, holds: &mut Holds) {
        let now = Instant::now();
        let mut current = Holds::new();
        for peer in &self.peers {
            for (slot, sent) in self.held_by(peer) {
                let place = (peer.id, slot);
                let known = holds.remove(&place).filter(|hold| hold.position == sent.position);
                let mut hold = known.unwrap_or(Hold { position: sent.position, since: now, told: false });
                if !hold.told && now.duration_since(hold.since) >= limit {
                    hold.told = true;
                    let why = format!("held for more than {}", seconds(limit));
                    self.warn_of(topic, peer, slot, &why);
                }
                current.insert(place, hold);
            }
        }
        *holds = current;
    }
}

impl Shared {
    pub(super) fn outstanding(&self) -> Result<Outstanding> {
        Ok(self.opened(&mut self.lock()?)?.outstanding())
    }

    /// Has the service thread look for messages that are held longer than `limit`.
    pub(super) fn warn_after(self: &Arc<Self>, open: &Open, limit: Duration) {
        let shared: Weak<Self> = Arc::downgrade(self);
        let mut holds = Holds::new();
        let pause = (limit / LOOKS).max(LEAST_PAUSE);
        open.service.after(pause, move |_, _, _| {
            let Some(shared) = shared.upgrade() else { return Next::Done };
            let began = Instant::now();
            let guard = shared.open.lock();
            let Some(open) = guard.as_ref() else { return Next::Done };
            open.warn_of_long_holds(&shared.topic, limit, &mut holds);
            drop(guard);
            Next::After(pause.max(began.elapsed() * PAUSE_FACTOR))
        });
    }
}
