//! What subscribers hold, who they are, and the warnings about what they hold too long.

use crate::link::service::Handle;
use crate::link::tasks::Next;
use crate::sys::process::realtime_ns;
use crate::writer::line::Line;
use crate::writer::owner::Owner;
use crate::writer::peer::Peer;
use crate::writer::sent::Sent;
use crate::writer::store::{Store, once_each};
use std::collections::HashMap;
use std::sync::Weak;
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
/// Messages that were sent together ([`Rows`](crate::Rows)) lie in one piece of memory, so they
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

/// All subscribers, with their lines.
fn readers(lines: &[Line]) -> impl Iterator<Item = (&Line, &Peer)> {
    lines.iter().flat_map(|line| line.peers.iter().map(move |peer| (line, peer)))
}

impl Store {
    /// The chunks that were sent and are not free again, each once.
    fn chunks<'a>(&'a self, lines: &'a [Line]) -> impl Iterator<Item = u32> + 'a {
        let slots = lines.iter().flat_map(Line::pending_slots).chain(self.held.iter().copied());
        once_each(lines, slots)
    }

    /// The records of one line whose chunks are not free again.
    pub fn sent_on<'a>(&'a self, line: &'a Line) -> impl Iterator<Item = (u32, &'a Sent)> + 'a {
        let on_line = |slot: u32| self.pool.sent(slot).on(line.number).map(|sent| (slot, sent));
        // What is held may be pending as well, on another line or, if it has passed that first, on this one.
        let passed = self.held.iter().copied().filter_map(on_line).filter(|(_, sent)| !line.is_pending(sent.position));
        line.pending_slots().filter_map(on_line).chain(passed)
    }

    fn held_by<'a>(&'a self, line: &'a Line, peer: &'a Peer) -> impl Iterator<Item = (u32, &'a Sent)> + 'a {
        self.sent_on(line).filter(|(slot, _)| peer.lease().is_held(*slot))
    }

    fn holding(&self, line: &Line, peer: &Peer) -> Option<Holding> {
        let (mut messages, mut bytes) = (0, 0);
        let each = self.held_by(line, peer).inspect(|(_, sent)| {
            messages += u64::from(sent.count);
            bytes += sent.len;
        });
        let (oldest, _) = each.min_by_key(|(_, sent)| sent.sequence)?;
        Some(Holding { messages, bytes, oldest })
    }

    /// How many messages a peer holds, and their payload bytes.
    pub fn held(&self, line: &Line, peer: &Peer) -> (u64, u64) {
        let add = |(messages, bytes), (_, sent): (u32, &Sent)| (messages + u64::from(sent.count), bytes + sent.len);
        self.held_by(line, peer).fold((0, 0), add)
    }

    /// The payload bytes that a peer holds.
    pub fn held_bytes(&self, line: &Line, peer: &Peer) -> u64 {
        self.held_by(line, peer).map(|(_, sent)| sent.len).sum()
    }

    /// What the subscribers of all lines hold.
    pub fn outstanding(&self, lines: &[Line]) -> Outstanding {
        let mut outstanding = Outstanding::default();
        for slot in self.chunks(lines).filter(|slot| self.is_held(*slot, lines)) {
            if let Some(sent) = self.pool.sent(slot).iter().next() {
                outstanding.messages += u64::from(sent.count);
                outstanding.bytes += sent.len;
            }
        }
        for (line, peer) in readers(lines) {
            if let Some(Holding { messages, bytes, oldest }) = self.holding(line, peer) {
                let sent = self.sent(line, oldest);
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

    /// The record of a chunk that a subscriber holds.
    fn sent(&self, line: &Line, slot: u32) -> &Sent {
        self.pool.sent(slot).on(line.number).expect("it is held")
    }

    /// Who has yet to read, and who keeps memory, as the end of an error text. When a payload finds no room (`in_pool`), only
    /// messages in the pool are worth naming.
    pub fn describe_obstacles(&self, lines: &[Line], in_pool: bool) -> String {
        let described = readers(lines).filter_map(|(line, peer)| self.describe_peer(line, peer, in_pool));
        let mut obstacles: Vec<_> = described.collect();
        let held = readers(lines).filter_map(|(line, peer)| self.holding(line, peer)).any(|_| true);
        if in_pool && !held && self.unread(lines) == 0 && self.pool.used() > 0 {
            obstacles.push(format!("this process has lent or keeps {} bytes", self.pool.used()));
        }
        obstacles.join("; ")
    }

    /// What a subscriber has yet to read, holds, and keeps; `None`: nothing.
    fn describe_peer(&self, line: &Line, peer: &Peer, in_pool: bool) -> Option<String> {
        let mut does = Vec::new();
        let unread = match peer.may_delay() {
            true if in_pool => self.unread_in_pool(line, peer),
            true => line.lag(peer),
            false => 0,
        };
        if unread > 0 {
            does.push(format!("has {} unread", messages(unread)));
        }
        if let Some(Holding { messages: number, bytes, oldest }) = self.holding(line, peer) {
            let sent = self.sent(line, oldest);
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
    fn unread_in_pool(&self, line: &Line, peer: &Peer) -> u64 {
        let unread = line.pending_from(peer.cursor(line.log.tail()));
        unread.filter_map(|slot| self.pool.sent(slot).on(line.number)).map(|sent| u64::from(sent.count)).sum()
    }

    /// Who holds the message in `slot`, since when it may be, and where it was received.
    pub fn describe_hold(&self, line: &Line, peer: &Peer, slot: u32) -> String {
        let sent = self.sent(line, slot);
        let place = peer.received_at(slot, sent).map(|place| format!(", which received it at {place}"));
        format!("{}{}", peer.who(), place.unwrap_or_default())
    }

    /// The subscriber that holds the oldest message, and that message's slot.
    fn oldest_hold<'a>(&self, lines: &'a [Line]) -> Option<(&'a Line, &'a Peer, u32)> {
        let holds = readers(lines)
            .filter_map(|(line, peer)| self.holding(line, peer).map(|holding| (line, peer, holding.oldest)));
        holds.min_by_key(|(line, _, slot)| (self.sent(line, *slot).at, self.sent(line, *slot).sequence))
    }

    fn warn_of(&self, line: &Line, peer: &Peer, slot: u32, why: &str) {
        let (topic, sent) = (&line.topic, self.sent(line, slot));
        let (sequence, age) = (sent.sequence, seconds(age(sent)));
        let holder = self.describe_hold(line, peer, slot);
        log::warn!(
            "byref: topic '{topic}': {why}: message {sequence}, sent {age} ago, is still held by {holder}; it should release \
             messages sooner, or keep copies"
        );
    }

    /// Warns, now and then, that a send finds no memory because messages are held.
    #[cold]
    pub fn warn_of_blocked_send(&mut self, lines: &[Line]) {
        if self.warned.is_some_and(|warned| warned.elapsed() < WARN_AGAIN) {
            return;
        }
        if let Some((line, peer, slot)) = self.oldest_hold(lines) {
            self.warn_of(line, peer, slot, "a send finds no memory");
            self.warned = Some(Instant::now());
        }
    }

    /// Brings `holds` up to date, and warns once of each that lasts longer than `limit`.
    fn warn_of_long_holds(&self, lines: &[Line], limit: Duration, holds: &mut Holds) {
        let now = Instant::now();
        let mut current = Holds::new();
        for (line, peer) in readers(lines) {
            for (slot, sent) in self.held_by(line, peer) {
                let place = (peer.id, slot);
                let known = holds.remove(&place).filter(|hold| hold.position == sent.position);
                let mut hold = known.unwrap_or(Hold { position: sent.position, since: now, told: false });
                if !hold.told && now.duration_since(hold.since) >= limit {
                    hold.told = true;
                    let why = format!("held for more than {}", seconds(limit));
                    self.warn_of(line, peer, slot, &why);
                }
                current.insert(place, hold);
            }
        }
        *holds = current;
    }
}

/// Has the service thread look for messages that are held longer than `limit`.
pub(crate) fn warn_after(service: &Handle, owner: Weak<dyn Owner>, limit: Duration) {
    let mut holds = Holds::new();
    let pause = (limit / LOOKS).max(LEAST_PAUSE);
    service.after(pause, move |_, _, _| {
        let Some(owner) = owner.upgrade() else { return Next::Done };
        let began = Instant::now();
        match owner.within(|store, lines| store.warn_of_long_holds(lines, limit, &mut holds)) {
            Ok(()) => Next::After(pause.max(began.elapsed() * PAUSE_FACTOR)),
            Err(_) => Next::Done,
        }
    });
}
