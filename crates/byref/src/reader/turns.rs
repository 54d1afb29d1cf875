//! Many connections, read in turns. Where they come from is their endpoint's business.

use crate::error::{Error, Result};
use crate::link::service::Handle;
use crate::protocol::claim::{Policy, retention_limit};
use crate::protocol::lease::AWAKE;
use crate::protocol::wake::Heard;
use crate::reader::batch::Batch;
use crate::reader::bells::Bells;
use crate::reader::connection::{Connection, LOSSLESS, Stop};
use crate::reader::errands::Errands;
use crate::reader::event::{Event, EventKind, Incoming};
use crate::reader::job::{Job, Tag};
use crate::reader::message::{Link, Message, Taken};
use crate::reader::sender::PublisherInfo;
use crate::sync::heavy_fence;
use crate::sync::spin::Spin;
use crate::sys::door::Door;
use crate::sys::futex;
use crate::sys::text::printable;
use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Messages taken from one publisher before the next one's turn.
const TURN: u32 = 8;
/// So many are remembered after their end, which may be noticed twice: as that of a sender, and as that of a reader.
const MOST_ENDED: usize = 1024;
/// The most events that wait for a subscriber that receives nothing; the oldest go.
const MOST_EVENTS: usize = 1 << 16;

/// What a reader wants kept for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keep {
    pub policy: Policy,
    pub depth: Option<u64>,
}

impl Keep {
    /// How many messages of a publisher whose ring holds `capacity` it wants at most when it falls behind.
    #[inline]
    pub fn most(&self, capacity: u64) -> u64 {
        match self.policy {
            Policy::Block => LOSSLESS,
            Policy::Latest => 1,
            Policy::DropOldest => self.depth.unwrap_or(u64::MAX).min(retention_limit(capacity)),
        }
    }
}

/// What a thread without a message sleeps at.
pub(crate) enum SleepsAt {
    /// The sockets of its publishers, for good: somebody polls them, they are too many, or there is no other way here.
    Sockets,
    /// The wake words of its publishers, and the gong.
    Words,
}

/// Connections, whose turn it is, and whether it sleeps.
pub(crate) struct Reader {
    /// What errors are about.
    pub topic: Arc<str>,
    pub keep: Keep,
    /// Whether somebody wants to hear what happens to publishers.
    pub tells_events: bool,
    /// In the order of their numbers.
    pub connections: Vec<Connection>,
    /// Whose turn it is, and for how many more messages.
    turn: usize,
    turn_left: u32,
    /// Whose record was taken last; valid until the next look.
    taken_from: usize,
    last_id: u64,
    /// The number of the last sleep, and what it was announced as.
    pub epoch: u64,
    pub announced: u64,
    /// Publishers were told that this subscriber sleeps.
    pub armed: bool,
    /// A thread sleeps, or is about to: events are its business, and so are the wake-ups.
    pub asleep: bool,
    /// Somebody polls the descriptor.
    pub polled: bool,
    pub at: SleepsAt,
    /// What it heard of the gong.
    pub heard: Heard,
    pub spin: Spin,
    /// When the last message was sent, and how long after the one before.
    sent_ns: u64,
    pub apart_ns: u64,
    pub stats: SubscriberStats,
    /// Found while connecting in the background, reported by the next receive that finds no message.
    pub trouble: Option<Error>,
    /// What happened and was not told yet.
    events: VecDeque<Event>,
    /// Whose end was told last.
    ended: VecDeque<u128>,
    pub door: Arc<Door>,
    pub bells: Bells,
    pub service: Arc<Handle>,
    pub errands: Weak<dyn Errands>,
}

/// Counters of a subscriber.
#[derive(Clone, Debug, Default)]
pub struct SubscriberStats {
    /// Messages received.
    pub received: u64,
    /// Their payload bytes.
    pub bytes: u64,
    /// Payload bytes copied on the way (small messages, out of the ring).
    pub copied_bytes: u64,
    /// Messages lost by this subscriber's policy.
    pub lost: u64,
    /// How often it went to sleep.
    pub sleeps: u64,
}

/// What waits for a subscriber.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Messages that were sent and not taken yet.
    pub messages: u64,
    /// When the oldest of them was sent: nanoseconds of `CLOCK_REALTIME`, or what its sender gave.
    pub oldest_ns: Option<u64>,
}

impl Reader {
    /// Without a connection. It spins for so long at the most.
    pub fn new(
        topic: &str,
        keep: Keep,
        tells_events: bool,
        spin: Duration,
        service: &Arc<Handle>,
        errands: Weak<dyn Errands>,
    ) -> Self {
        Reader {
            topic: topic.into(),
            keep,
            tells_events,
            connections: Vec::new(),
            turn: 0,
            turn_left: TURN,
            taken_from: 0,
            last_id: 0,
            epoch: 0,
            announced: AWAKE,
            armed: false,
            asleep: false,
            polled: false,
            at: if futex::available() { SleepsAt::Words } else { SleepsAt::Sockets },
            heard: Heard::default(),
            spin: Spin::up_to(spin),
            sent_ns: 0,
            apart_ns: u64::MAX,
            stats: SubscriberStats::default(),
            trouble: None,
            events: VecDeque::new(),
            ended: VecDeque::new(),
            door: Arc::default(),
            bells: Bells::default(),
            service: Arc::clone(service),
            errands,
        }
    }

    /// A number for the next connection.
    pub fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// Reads from one more publisher.
    pub fn add(&mut self, connection: Connection) {
        fault!("connect.watched");
        match self.at {
            _ if !self.armed => {}
            SleepsAt::Sockets => {
                connection.link.lease().set_sleeping(self.announced);
                if !heavy_fence() && self.polled {
                    self.look_later();
                }
            }
            // The newcomer's word is not among those that were noted: who sleeps is woken below, and announces a new sleep.
            SleepsAt::Words => self.disarm(),
        }
        self.happened(&connection.link.info, EventKind::Joined);
        connection.link.lease().set_joined();
        connection.link.channel.ring(); // Somebody may wait for it to join.
        self.connections.push(connection);
        if let SleepsAt::Sockets = self.at {
            self.bells.hand_out(&mut self.connections, &self.door);
        }
        self.trouble.take_if(|trouble| matches!(trouble, Error::System { .. })); // If there still is any, it will show again.
    }

    /// The connection to the publisher that `is_same` knows, if that is alive.
    pub fn find_live(&mut self, is_same: impl Fn(&PublisherInfo) -> bool) -> Option<&mut Connection> {
        self.connections.iter_mut().find(|known| known.is_live() && is_same(&known.link.info))
    }

    /// Messages of a connection are done with; of one that is gone nobody waits for that.
    pub fn acknowledge(&mut self, connection: u64, sequences: &mut dyn Iterator<Item = u64>) {
        if let Some(connection) = self.connections.iter_mut().find(|it| it.id == connection) {
            connection.acknowledge(sequences);
        }
    }

    /// What waits to be received.
    pub fn backlog(&mut self) -> Backlog {
        let mut backlog = Backlog::default();
        for connection in &mut self.connections {
            let (messages, oldest) = connection.backlog(self.keep.most(connection.capacity()));
            backlog.messages += messages;
            backlog.oldest_ns = backlog.oldest_ns.into_iter().chain(oldest).min();
        }
        backlog
    }

    /// Something went wrong in the background.
    pub fn report(&mut self, trouble: Error) {
        self.trouble = Some(trouble);
        self.door.ring();
    }

    // ---- taking ----

    /// Takes the next message, up to the next event.
    #[inline(always)]
    pub fn take_one(&mut self) -> Result<Option<Message>> {
        self.take_with(|message, _| message)
    }

    /// What `give` makes of the next message, and whom it is from.
    #[inline(always)]
    pub fn take_with<R>(&mut self, give: impl FnOnce(Message, &Arc<Link>) -> R) -> Result<Option<R>> {
        if self.keep.policy == Policy::Block
            && let Some(connection) = self.connections.get_mut(self.turn)
            && let Some(head) = connection.take_inline()
        {
            let message = Message::inline(&connection.link.info, head, &connection.scratch);
            let given = give(message, &connection.link);
            let len = head.payload_len() as u64;
            self.stats.copied_bytes += len;
            self.took(len, head.timestamp_ns);
            return Ok(Some(given));
        }
        let Some(message) = self.take_unusual()? else { return Ok(None) };
        Ok(Some(give(message, &self.connections[self.taken_from].link)))
    }

    #[inline(never)]
    fn take_unusual(&mut self) -> Result<Option<Message>> {
        let Some(taken) = self.take_record()? else { return Ok(None) };
        let connection = &self.connections[self.taken_from];
        Ok(Some(Message::new(&connection.link.info, taken, &connection.scratch)))
    }

    /// Takes the next job, of a puller.
    pub fn take_job(&mut self) -> Result<Option<Job>> {
        while let Some(taken) = self.take_record()? {
            let connection = &self.connections[self.taken_from];
            let place = taken.sequence;
            let message = Message::new(&connection.link.info, taken, &connection.scratch);
            if message.tag() == Tag::NO_JOB {
                self.stats.received -= 1;
                continue;
            }
            return Ok(connection.desk.as_ref().map(|desk| Job::new(message, place, desk)));
        }
        Ok(None)
    }

    #[cold]
    pub fn take_past_events<R>(&mut self, mut take: impl FnMut(&mut Self) -> Result<Option<R>>) -> Result<Option<R>> {
        loop {
            match self.take_incoming(&mut take)? {
                None => return Ok(None),
                Some(Incoming::Message(message)) => return Ok(Some(message)),
                Some(Incoming::Event(_)) => {}
            }
        }
    }

    /// Takes the next event or what `take` gives, which stops where an event is due.
    #[inline]
    pub fn take_incoming<R>(
        &mut self,
        mut take: impl FnMut(&mut Self) -> Result<Option<R>>,
    ) -> Result<Option<Incoming<R>>> {
        if self.events.is_empty()
            && let Some(message) = take(self)?
        {
            return Ok(Some(Incoming::Message(message)));
        }
        Ok(self.events.pop_front().map(Incoming::Event))
    }

    /// Somebody with whom it may have a connection has ended. The end of that comes behind its messages.
    pub fn tell_end_of(&mut self, peer: &Arc<PublisherInfo>, kind: EventKind) {
        let has_connection = self.connections.iter().any(|it| it.link.info.id == peer.id);
        if !has_connection && !self.ended.contains(&peer.id) {
            self.happened(peer, kind);
            self.door.ring();
        }
    }

    /// Notes that the end of one was told.
    pub fn note_end(&mut self, peer: &PublisherInfo) {
        if self.tells_events {
            self.ended.truncate(MOST_ENDED - 1);
            self.ended.push_front(peer.id);
        }
    }

    pub fn happened(&mut self, publisher: &Arc<PublisherInfo>, kind: EventKind) {
        if self.tells_events {
            if self.events.len() == MOST_EVENTS {
                self.events.pop_front();
            }
            self.events.push_back(Event { publisher: Arc::clone(publisher), kind });
        }
    }

    /// Goes to the connection whose turn it is.
    #[inline(always)]
    fn at_turn(&mut self) -> &mut Connection {
        if self.turn >= self.connections.len() {
            self.turn = 0;
        }
        &mut self.connections[self.turn]
    }

    /// Takes the next record, in turns among the publishers; notes from whom.
    fn take_record(&mut self) -> Result<Option<Taken>> {
        for _ in 0..self.connections.len() {
            let (keep, mut lost) = (self.keep, self.stats.lost);
            let connection = self.at_turn();
            let taken = connection.take(keep.most(connection.capacity()), &mut lost);
            self.stats.lost = lost;
            self.pass_wake_on();
            match taken {
                Ok(taken) => {
                    self.taken_from = self.turn;
                    if taken.hold.is_none() {
                        self.stats.copied_bytes += taken.payload_len() as u64;
                    }
                    self.took(taken.payload_len() as u64, taken.head.timestamp_ns);
                    return Ok(Some(taken));
                }
                Err(stop) => {
                    if self.is_event_due_after(stop)? {
                        return Ok(None);
                    }
                }
            }
        }
        Ok(None)
    }

    /// Takes up to `most` messages, a fair share of them from each publisher; or rows of a block of one.
    pub fn take_batch(&mut self, most: usize) -> Result<Option<Batch>> {
        let mut batch = Batch::default();
        let share = most.div_ceil(self.connections.len().max(1)).max(TURN as usize);
        // More than that may come while it looks, without end.
        let full = self.connections.iter().map(|connection| connection.capacity() as usize).sum::<usize>().min(most);
        let mut in_vain = 0; // So many looks in a row found nothing.
        while in_vain < self.connections.len() && batch.len() < full && !batch.is_rows() {
            let before = batch.len();
            let (keep, mut lost) = (self.keep, self.stats.lost);
            let connection = self.at_turn();
            let depth = keep.most(connection.capacity());
            let outcome = connection.take_many(depth, &mut lost, share.min(most - before), &mut batch);
            batch.set_publisher(&connection.link.info);
            self.stats.lost = lost;
            self.pass_wake_on();
            in_vain = if batch.len() > before { 0 } else { in_vain + 1 };
            match outcome {
                Ok(()) => self.next_turn(),
                Err(Stop::Refused(_)) if !batch.is_empty() => break, // It will be refused again.
                Err(Stop::Evicted(why)) if !batch.is_empty() => {
                    self.at_turn().postpone_eviction(why);
                    break;
                }
                Err(stop) => {
                    if self.is_event_due_after(stop)? {
                        break;
                    }
                }
            }
        }
        if batch.is_empty() {
            return Ok(None);
        }
        self.apart_ns = if batch.len() > 1 { 0 } else { u64::MAX };
        self.stats.received += batch.len() as u64;
        self.stats.bytes += batch.payload_len() as u64;
        self.stats.copied_bytes += batch.copied_len() as u64;
        self.stay_awake();
        Ok(Some(batch))
    }

    /// Deals with why the connection at turn gave nothing (more). The others keep their order, so that each is looked at once.
    #[inline(always)]
    fn is_event_due_after(&mut self, stop: Stop) -> Result<bool> {
        if let Stop::Nothing = stop {
            self.next_turn();
            return Ok(false);
        }
        self.is_event_due_after_all(stop)
    }

    #[cold]
    fn is_event_due_after_all(&mut self, stop: Stop) -> Result<bool> {
        match stop {
            Stop::Nothing => Ok(false),
            Stop::Over => {
                let over = self.connections.remove(self.turn);
                self.dismiss(over);
                Ok(false)
            }
            Stop::Evicted(why) => {
                let evicted = self.connections.remove(self.turn);
                let publisher = Arc::clone(&evicted.link.info);
                self.part_from(evicted);
                if self.tells_events {
                    self.happened(&publisher, EventKind::Evicted);
                    return Ok(true);
                }
                let (topic, pid) = (publisher.topic.clone(), publisher.pid);
                Err(Error::Evicted { topic, pid, why: printable(&why) })
            }
            Stop::Refused(error) => {
                let topic = &self.connections[self.turn].link.info.topic;
                let error = Error::system(topic, "cannot map a publisher's memory")(error);
                self.next_turn();
                Err(error)
            }
            Stop::Gap => {
                let connection = &mut self.connections[self.turn];
                let publisher = Arc::clone(&connection.link.info);
                if let Some((first, count)) = connection.gap.take() {
                    self.happened(&publisher, EventKind::Gap { first, count });
                }
                Ok(true)
            }
        }
    }

    /// A wake-up that was read from the socket of the connection at turn was meant for the thread that sleeps, if one does.
    #[inline(always)]
    fn pass_wake_on(&mut self) {
        let connection = &mut self.connections[self.turn];
        if (self.asleep || self.polled) && std::mem::take(&mut connection.took_wake) {
            self.door.ring();
        }
    }

    #[inline]
    fn next_turn(&mut self) {
        self.turn = if self.turn + 1 < self.connections.len() { self.turn + 1 } else { 0 };
        self.turn_left = TURN;
    }

    /// Accounts for a message of `len` bytes that the publisher at turn sent.
    #[inline(always)]
    fn took(&mut self, len: u64, sent_ns: u64) {
        self.turn_left -= 1;
        if self.turn_left == 0 {
            self.next_turn();
        }
        self.apart_ns = sent_ns.abs_diff(self.sent_ns);
        self.sent_ns = sent_ns;
        self.stats.received += 1;
        self.stats.bytes += len;
        self.stay_awake();
    }

    /// Who receives messages need not be woken.
    #[inline(always)]
    fn stay_awake(&mut self) {
        // Whoever polls the descriptor besides has to be woken for the next one.
        if self.armed && !self.asleep && !self.polled {
            self.disarm();
        }
    }

    /// The rest of a [`Subscriber::try_recv`](crate::Subscriber::try_recv) that found nothing at first.
    pub fn found_nothing<R>(&mut self, mut take: impl FnMut(&mut Self) -> Result<Option<R>>) -> Result<Option<R>> {
        if self.polled {
            let handled = self.handle_events()?;
            if handled || !self.armed {
                self.arm();
                let taken = take(self)?;
                if taken.is_some() {
                    self.pass_on(handled);
                    return Ok(taken);
                }
            }
        }
        self.trouble.take().map_or(Ok(None), Err)
    }
}
