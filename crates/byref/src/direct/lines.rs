//! The lines of a mailbox: one to each mailbox that it has sent to. How they come, and how they end.

use crate::direct::identity::Identity;
use crate::direct::mailbox::Shared;
use crate::direct::undelivered::{Pooled, Undelivered};
use crate::link::announcement::Announcement;
use crate::link::channel::Channel;
use crate::link::handshake::{self, Hello, ToSubscriber};
use crate::link::role::{Party, Role};
use crate::protocol::claim::Policy;
use crate::protocol::lease::LEASE_LEN;
use crate::protocol::ring::{Descriptor, FLAGS, InlineData, Look};
use crate::pubsub::publisher::MAX_CAPACITY;
use crate::reader::event::EventKind;
use crate::sys::memory::PeerSegment;
use crate::writer::errands::Errands;
use crate::writer::line::{Limits, Line, Plan};
use crate::writer::readers::{Introduction, Newcomer};
use crate::writer::store::Store;
use rustix::fd::OwnedFd;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Weak};

/// The most mailboxes that have ended whose messages are kept to be asked for; those of the first ones go.
const MOST_LOST: usize = 1024;
/// The fewest records of a ring.
const LEAST_CAPACITY: u64 = 16;

/// Everything of the sending half that closing gives back.
pub(crate) struct Open {
    pub store: Store,
    /// In the order of their numbers.
    pub lines: Vec<Line>,
    /// Whom they are to, in the same order.
    pub destinations: Vec<Destination>,
    last_line: u32,
    /// The line to each address.
    routes: HashMap<Box<str>, Route>,
    /// And to each incarnation, of those that read.
    by_incarnation: HashMap<u128, u32>,
    /// Who was knocked at and may collect.
    expected: Vec<(String, i32)>,
    lost: VecDeque<Lost>,
    pub announcement: Option<Arc<Announcement>>,
    /// What lines that are gone have counted.
    former: MailboxStats,
}

/// The reader of a line.
pub(crate) struct Destination {
    pub peer: Identity,
    /// In the rendezvous directory.
    name: String,
    /// It has ended, and its messages are undelivered. The line stays as long as it may hold others.
    is_over: bool,
}

/// One who has ended, and what it never took, unless that is kept to be asked for.
struct Parted {
    peer: Identity,
    kind: EventKind,
    untaken: Vec<Undelivered>,
}

/// A line by its number, and where it was found last.
struct Route {
    line: u32,
    index: usize,
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
    fn part_from_departed(&mut self, sender: u128, keeps: bool) -> Vec<Parted> {
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

impl Shared {
    /// Makes a line for a mailbox that was knocked at, and comes to collect.
    pub(super) fn admit(
        self: &Arc<Self>,
        channel: Channel,
        hello: Hello,
        incarnation: u128,
        lease: OwnedFd,
    ) -> io::Result<()> {
        let (address, pid) = (hello.topic.clone(), channel.peer_pid());
        let process = pid.map_or(0, |pid| pid.as_raw_nonzero().get());
        let lease = PeerSegment::new(lease, Some(LEASE_LEN)).map_err(|(error, _)| error)?.into_map();
        fault!("collect.lease_mapped");
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        let name = self.role.partner().name(&address);
        let is_of_service = name.is_some()
            && Party::of(&address).map(|it| it.service) == Party::of(self.address()).map(|it| it.service);
        let peer = Identity::new(address.clone(), incarnation, process);
        if self.role == Role::Client && !(Party::has_id(&address, incarnation) && self.inbox.reads_from(&peer)) {
            return Err(io::Error::other("it is no server that this client reads from")); // It asks again.
        }
        // Before the lock, which comes after the observer's.
        let has_accounts = self.observer().is_some_and(|observer| observer.has_accounts_with(incarnation));
        let mut guard = self.lock().map_err(|_| gone())?;
        let open = self.opened(&mut guard).map_err(|_| gone())?;
        let is_expected = match self.role {
            Role::Mailbox => open.expected.iter().any(|(known, pid)| *known == address && *pid == process),
            _ => is_of_service,
        };
        if !is_expected || open.has_line_to_incarnation(&address, incarnation) {
            return channel.send(&handshake::encode_first(&ToSubscriber::NotThisTopic), None).map(drop);
        }
        if has_accounts {
            return Err(io::Error::other("it has yet to answer what it was asked before")); // As above.
        }
        let errands: Weak<dyn Errands> = Arc::downgrade(self) as _;
        // A server says how much of a client's may wait there, which is bounded: each request has a flag.
        let depth =
            if self.role == Role::Client { hello.depth.unwrap_or(1).clamp(1, FLAGS as u64) } else { self.depth };
        let plan = Plan {
            number: open.last_line + 1,
            topic: self.address(),
            capacity: depth.clamp(LEAST_CAPACITY, MAX_CAPACITY).next_power_of_two(),
            history: 0,
            limits: Limits::default(),
            generation: open.store.generation,
            keeps_untaken: true,
        };
        let mut line = Line::new(plan, &self.service, errands)?;
        let hello = Hello { policy: Policy::Block, depth: Some(depth), history: 0, ..hello };
        let newcomer = Newcomer { hello, lease, channel };
        let introduction = Introduction { publisher: self.identity.incarnation(), topic: self.address(), name: None };
        line.admit(&mut open.store, newcomer, &introduction)?;
        fault!("collect.admitted");
        let line_number = line.number;
        open.last_line = line_number;
        open.routes.insert(address.clone().into(), Route { line: line.number, index: open.lines.len() });
        open.lines.push(line);
        let name = name.unwrap_or_default();
        open.destinations.push(Destination { peer: peer.clone(), name: name.clone(), is_over: false });
        open.by_incarnation.insert(incarnation, line_number);
        drop(guard);
        if let Some(observer) = self.observer() {
            observer.joined(&peer, line_number, depth);
        }
        if self.role == Role::Server {
            self.inbox.collect_at(&name); // What the client has for it.
        }
        self.changed.notify();
        Ok(())
    }

    /// A name vanished: its mailbox may have been closed, and keep messages, which keep the connection.
    pub(super) fn look_at_reader(&self, name: &str) {
        self.look_for_ends(|destination| destination.name == name);
    }

    /// Looks whether some of the readers have left.
    pub(crate) fn look_for_ends(&self, which: impl Fn(&Destination) -> bool) {
        {
            let Ok(mut guard) = self.lock() else { return };
            let Ok(open) = self.opened(&mut guard) else { return };
            for (line, destination) in open.lines.iter_mut().zip(&open.destinations) {
                if !destination.is_over && which(destination) {
                    line.look_at_reader();
                }
            }
        }
        self.part_from_departed();
    }

    /// Parts from one that reads, however far it has come, for this reason.
    pub(crate) fn give_up(&self, peer: &Identity, why: &str) {
        {
            let Ok(mut guard) = self.lock() else { return };
            let Ok(open) = self.opened(&mut guard) else { return };
            if let Some(index) = open.line_of(peer.incarnation()) {
                open.lines[index].give_reader_up(why);
            }
        }
        self.part_from_departed();
    }

    /// Parts from readers that are known to have ended, and tells.
    pub(super) fn part_from_departed(&self) {
        let told = {
            let Ok(mut guard) = self.lock() else { return };
            let Ok(open) = self.opened(&mut guard) else { return };
            open.part_from_departed(self.identity.incarnation(), self.role == Role::Mailbox)
        };
        for Parted { peer, kind, untaken } in told {
            match self.observer() {
                Some(observer) => observer.parted(&peer, untaken),
                None => self.inbox.tell_end_of(&peer, kind),
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::link::channel::joined;
    use crate::link::inbox::Said;
    use crate::reader::take::UpTo;
    use crate::{Beside, Mailbox, Rows, Wait};
    use std::time::Duration;

    /// Somebody looks for room, or for memory, before its end was noticed.
    #[test]
    fn what_one_that_has_just_left_never_took_is_kept() {
        let _meeting = crate::fuzzing::meet_in_private();
        let [own, other] = ["a", "b"].map(|address| Mailbox::builder(address).build().unwrap());
        for number in 0..20u8 {
            own.send("b", &vec![number; if number % 2 == 0 { 8 } else { 5000 }]).unwrap();
        }
        let taken = other.recv_timeout(Duration::from_secs(20)).unwrap(); // It keeps the connection.
        {
            let mut guard = own.shared.lock().unwrap();
            let open = own.shared.opened(&mut guard).unwrap();
            other.close();
            open.store.shrink(&mut open.lines);
            assert!(open.lines[0].must_wait().is_none(), "there is room");
        }
        let left: Vec<_> = own.undelivered("b").unwrap().iter().map(|it| (it.sequence(), it[0])).collect();
        assert_eq!(left, (1..20).map(|number| (number as u64, number)).collect::<Vec<_>>());
        drop(taken);
    }

    /// One that lives is given up in the moment in which it takes something: either it has shown that, or gets nothing.
    #[test]
    fn what_goes_elsewhere_is_not_given_out() {
        let _meeting = crate::fuzzing::meet_in_private();
        let [own, other, third] = ["a", "b", "c"].map(|address| Mailbox::builder(address).build().unwrap());
        let inbox = other.inbox();
        let send = |from: &Mailbox, number: u8| assert!(from.send("b", &[number; 24]).is_ok());
        (0..3).for_each(|number| send(&own, number));
        (3..5).for_each(|number| send(&third, number));
        let rows = own.to("b").send_as(Rows(8), &[7; 64], Beside::NOTHING, &mut Wait::up_to(None));
        assert_eq!(rows.unwrap(), 3..11);
        let revoke = || own.shared.opened(&mut own.shared.lock().unwrap()).unwrap().lines[0].ring().revoke();
        assert_eq!(&other.recv_timeout(Duration::from_secs(20)).unwrap()[..], [0; 24]);
        revoke();
        let batch = inbox.receive(UpTo(100), &mut Wait::up_to(Some(Duration::from_secs(20)))).unwrap();
        assert_eq!(batch.iter().map(|it| (it.len(), it[0])).collect::<Vec<_>>(), [(24, 3), (24, 4)]);
        assert!(batch.packed().is_some_and(|(len, bytes)| len == 24 && bytes.len() == 48));
        assert!(other.try_recv().unwrap().is_none() && inbox.try_receive(UpTo(100)).unwrap().is_none());
        other.close();
        let left: Vec<_> = own.undelivered("b").unwrap().iter().map(|it| (it.sequence(), it.len())).collect();
        assert_eq!(left, (1..3).map(|number| (number, 24)).chain((3..11).map(|row| (row, 8))).collect::<Vec<_>>());
    }

    /// Somebody clears the directory. The name is the same again, and leads to the mailbox.
    #[test]
    fn one_that_is_announced_anew_is_reached() {
        let _meeting = crate::fuzzing::meet_in_private();
        let [own, other] = ["a", "b"].map(|address| Mailbox::builder(address).build().unwrap());
        for entry in std::fs::read_dir(std::env::var_os("BYREF_DIR").unwrap()).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
        let began = std::time::Instant::now();
        while let Err(error) = own.send("b", b"x") {
            assert!(began.elapsed() < Duration::from_secs(20), "{error}");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(&other.recv_timeout(Duration::from_secs(20)).unwrap()[..], b"x");
    }

    #[test]
    fn only_who_was_knocked_at_may_collect_and_once() {
        let _meeting = crate::fuzzing::meet_in_private();
        let own = Mailbox::builder("a").build().unwrap();
        let hello = || Hello {
            topic: "b".into(),
            policy: Policy::Block,
            depth: None,
            history: 0,
            name: None,
            membarrier: false,
        };
        // Whether it was welcome; it keeps its end.
        let mut kept = Vec::new();
        let mut collect = |incarnation, len| {
            let lease = crate::sys::memory::OwnedSegment::new("test", len).unwrap();
            let lease = rustix::io::dup(lease.shared()).unwrap();
            let (ours, theirs) = joined();
            own.shared.admit(theirs, hello(), incarnation, lease)?;
            ours.pump();
            let Said::Packet(packet, _) = ours.take()? else { panic!("it has an answer") };
            kept.push(ours);
            io::Result::Ok(matches!(handshake::decode_first(&packet), Ok(ToSubscriber::Welcome(_))))
        };
        assert!(!collect(1, LEASE_LEN).unwrap(), "nobody has knocked");
        let pid = std::process::id() as i32;
        let expect = |pid| own.shared.opened(&mut own.shared.lock().unwrap()).unwrap().expect("b", pid);
        expect(pid + 1);
        assert!(!collect(1, LEASE_LEN).unwrap(), "another process");
        expect(pid);
        assert!(collect(1, LEASE_LEN / 2).is_err(), "no lease");
        assert!(collect(1, LEASE_LEN).unwrap());
        assert!(!collect(1, LEASE_LEN).unwrap(), "it has a line");
    }
}
