//! Who reads the lines of a mailbox: taking readers in, and parting from them.

use crate::direct::identity::Identity;
use crate::direct::lines::{Destination, Parted, Route};
use crate::direct::mailbox::Shared;
use crate::link::channel::Channel;
use crate::link::handshake::{self, Hello, ToSubscriber};
use crate::link::role::{Party, Role};
use crate::protocol::claim::Policy;
use crate::protocol::lease::LEASE_LEN;
use crate::protocol::ring::FLAGS;
use crate::pubsub::publisher::MAX_CAPACITY;
use crate::sys::memory::PeerSegment;
use crate::writer::errands::Errands;
use crate::writer::line::{Limits, Line, Plan};
use crate::writer::readers::{Introduction, Newcomer};
use rustix::fd::OwnedFd;
use std::io;
use std::sync::{Arc, Weak};

/// The fewest records of a ring.
const LEAST_CAPACITY: u64 = 16;

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
