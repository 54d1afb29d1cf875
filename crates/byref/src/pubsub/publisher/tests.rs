//! Tests that need both ends, or look inside.

use super::*;
use crate::link::channel::joined;
use crate::link::handshake::ToPublisher;
use crate::link::inbox::Said;
use crate::memory::pool::{Fate, Pool};
use crate::protocol::lease::{COUNTS, Lease};
use crate::protocol::wake::WAKE_WORD;
use crate::protocol::wake::note;
use crate::reader::bells::MOST_BROKEN;
use crate::sys::memory::OwnedSegment;
use crate::sys::socket::shortage;
use crate::writer::duties;
use crate::writer::line::MANY;
use crate::writer::store::PATIENCE;
use crate::writer::waker::Waker;
use crate::{Single, Subscriber};
use rustix::fd::AsFd;
use std::cell::Cell;
use std::time::Instant;

const SOON: Option<Duration> = Some(Duration::from_secs(20));

fn pair(capacity: u64) -> (Publisher, Subscriber) {
    let publisher = Publisher::builder("t").capacity(capacity).build().unwrap();
    let subscriber = Subscriber::builder("t").build().unwrap();
    publisher.wait_for_subscribers(1, SOON).unwrap();
    subscriber.wait_for_publishers(1, SOON).unwrap();
    (publisher, subscriber)
}

#[test]
fn a_wake_up_that_the_system_has_no_memory_for_is_repeated() {
    let _meeting = crate::link::meeting::meet_in_private();
    let (publisher, subscriber) = pair(16);
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| subscriber.recv_timeout(SOON.unwrap()).unwrap().len());
        while subscriber.stats().unwrap().sleeps == 0 {
            std::thread::yield_now();
        }
        shortage::of(1);
        publisher.send(b"hello").unwrap();
        assert_eq!(receiver.join().unwrap(), 5);
    });
}

/// A subscriber that does nothing by itself.
struct Puppet {
    channel: Channel,
    theirs: Cell<Option<Channel>>,
    lease: OwnedSegment,
}

impl Puppet {
    fn new() -> Self {
        let (channel, theirs) = joined();
        Puppet { channel, theirs: Some(theirs).into(), lease: OwnedSegment::new("test", LEASE_LEN).unwrap() }
    }

    /// Says hello; gives its number, if it was taken in.
    fn greet(&self, publisher: &Publisher, topic: &str) -> Option<u64> {
        self.greet_as(publisher, topic, Policy::Latest, None)
    }

    fn greet_as(&self, publisher: &Publisher, topic: &str, policy: Policy, depth: Option<u64>) -> Option<u64> {
        let topic = topic.to_owned();
        let hello = Hello { topic, policy, depth, history: 0, name: None, membarrier: false };
        let lease = self.lease.shared().try_clone_to_owned().unwrap();
        let theirs = self.theirs.take().expect("it has said nothing yet");
        publisher.shared.attach(theirs, hello, Some(lease)).ok().flatten()
    }

    /// The packets that it was sent.
    fn told(&self) -> Vec<ToSubscriber> {
        self.channel.pump();
        let next = || match self.channel.take() {
            Ok(Said::Packet(packet, _)) => Some(handshake::decode(&packet)),
            _ => None,
        };
        std::iter::from_fn(next).flatten().collect()
    }
}

/// As of a thread that somebody keeps from running.
#[test]
fn a_request_that_nobody_takes_is_served_by_its_sender() {
    let _meeting = crate::link::meeting::meet_in_private();
    let publisher = Publisher::builder("t").capacity(16).build().unwrap();
    let subscribers: Vec<_> = (0..MANY).map(|_| Subscriber::builder("t").build().unwrap()).collect();
    publisher.wait_for_subscribers(MANY, SOON).unwrap();
    for subscriber in &subscribers {
        subscriber.wait_for_publishers(1, SOON).unwrap();
    }
    publisher.shared.open.lock().as_mut().unwrap().line.waker = Some(Waker::idle());
    let raised = || {
        let guard = publisher.shared.open.lock();
        note(&guard.as_ref().unwrap().line.ring.map().counts(WAKE_WORD)[0])
    };
    let send = || {
        subscribers.iter().for_each(|subscriber| subscriber.announce_sleep().unwrap());
        publisher.send(b"x").unwrap();
    };
    send();
    assert_eq!(raised(), 0, "another thread is to do it");
    for number in 1..4 {
        std::thread::sleep(Duration::from_millis(2));
        send();
        assert_eq!(raised(), number, "it is late");
    }
    publisher.close();
    assert_eq!(subscribers[0].recv_timeout(SOON.unwrap()).unwrap().len(), 1);
}

#[test]
fn only_hellos_for_the_topic_with_a_lease_are_welcome() {
    let _meeting = crate::link::meeting::meet_in_private();
    let publisher = Publisher::builder("a/b").capacity(16).build().unwrap();
    for (topic, is_taken) in [("a/b", true), ("a/*", true), ("a/c", false), ("b/*", false), ("", false)] {
        let puppet = Puppet::new();
        assert_eq!(puppet.greet(&publisher, topic).is_some(), is_taken, "{topic}");
    }
    let short = Puppet { lease: OwnedSegment::new("test", LEASE_LEN / 2).unwrap(), ..Puppet::new() };
    assert_eq!(short.greet(&publisher, "a/b"), None, "its lease is too short");
}

#[test]
fn a_cursor_stays_within_what_the_subscriber_may_read() {
    let _meeting = crate::link::meeting::meet_in_private();
    let publisher = Publisher::builder("t").capacity(16).build().unwrap();
    for _ in 0..5 {
        publisher.send(b"").unwrap();
    }
    let puppet = Puppet::new();
    puppet.greet(&publisher, "t").unwrap();
    for _ in 0..3 {
        publisher.send(b"").unwrap();
    }
    let lease = Lease::new(puppet.lease.map().words(), puppet.lease.map().counts(COUNTS));
    let guard = publisher.shared.open.lock();
    let open = guard.as_ref().unwrap();
    for (said, taken_for) in [(0, 5), (4, 5), (5, 5), (7, 7), (8, 8), (9, 8), (u64::MAX - 1, 8)] {
        lease.set_cursor(said);
        assert_eq!(open.line.peers[0].cursor(open.line.log.tail()), taken_for);
    }
}

#[test]
fn a_depth_is_one_that_the_ring_has() {
    let _meeting = crate::link::meeting::meet_in_private();
    let publisher = Publisher::builder("t").capacity(16).build().unwrap();
    for (policy, said, taken_for) in [
        (Policy::Block, Some(0), 1),
        (Policy::Block, Some(u64::MAX), 16),
        (Policy::Block, None, 16),
        (Policy::DropOldest, Some(0), 1),
        (Policy::DropOldest, Some(100), 8),
        (Policy::Latest, Some(100), 1),
    ] {
        Puppet::new().greet_as(&publisher, "t", policy, said).unwrap();
        let guard = publisher.shared.open.lock();
        assert_eq!(guard.as_ref().unwrap().line.peers.last().unwrap().depth, taken_for, "{policy:?} {said:?}");
    }
}

#[test]
fn only_a_hang_up_takes_holds_away() {
    let _meeting = crate::link::meeting::meet_in_private();
    let publisher = Publisher::builder("t").capacity(16).max_memory(1 << 20).build().unwrap();
    for packet in [&[][..], &[0; 100]] {
        let puppet = Puppet::new();
        let peer = puppet.greet(&publisher, "t").unwrap();
        let lease = Lease::new(puppet.lease.map().words(), puppet.lease.map().counts(COUNTS));
        publisher.send(&[1; 700_000]).unwrap();
        let slot = publisher.shared.open.lock().as_ref().unwrap().line.pending_slots().next_back().unwrap();
        lease.hold_again(slot);
        assert!(puppet.channel.send(packet, None).unwrap());
        duties::answer_now(&*publisher.shared, LINE, peer);
        assert!(publisher.subscribers().unwrap().is_empty(), "it is turned away");
        assert_eq!(publisher.outstanding().unwrap().messages, 1, "and keeps what it holds");
        let refused = publisher.send_as(Single, &[2; 700_000], Beside::NOTHING, &mut Wait::never());
        assert!(matches!(refused, Err(Error::PoolExhausted { .. })));
        drop(puppet);
        duties::answer_now(&*publisher.shared, LINE, peer);
        assert_eq!(publisher.outstanding().unwrap().messages, 0);
    }
}

#[test]
fn a_publisher_whose_connection_is_cut_is_asked_again() {
    let _meeting = crate::link::meeting::meet_in_private();
    let (publisher, subscriber) = pair(16);
    for round in 0..3u8 {
        {
            let guard = publisher.shared.open.lock();
            guard.as_ref().unwrap().line.peers[0].channel.pair().cut();
        }
        let first = |open: &Open| open.line.peers.first().map(|peer| peer.id);
        let before = publisher.shared.open.lock().as_ref().and_then(first);
        let begin = Instant::now();
        while publisher.shared.open.lock().as_ref().is_none_or(|open| first(open).is_none_or(|id| Some(id) == before)) {
            assert!(begin.elapsed() < SOON.unwrap(), "it did not come again");
            let _ = subscriber.try_recv().unwrap();
            std::thread::sleep(Duration::from_millis(5));
        }
        publisher.send(&[round]).unwrap();
        assert_eq!(subscriber.recv_timeout(SOON.unwrap()).unwrap()[..], [round]);
    }
}

/// Who has read its socket before the generation changed, which it looks at to acknowledge, may sleep again, or receive nothing
/// more.
#[test]
fn all_are_woken_after_the_news_of_retired_memory() {
    let _meeting = crate::link::meeting::meet_in_private();
    let publisher = Publisher::builder("t").capacity(16).max_memory(1 << 20).build().unwrap();
    let puppets = [true, false].map(|sleeps| {
        let puppet = Puppet::new();
        puppet.greet(&publisher, "t").unwrap();
        if sleeps {
            Lease::new(puppet.lease.map().words(), puppet.lease.map().counts(COUNTS)).set_sleeping(1);
        }
        puppet
    });
    drop(publisher.loan(64).unwrap());
    {
        let mut guard = publisher.shared.open.lock();
        let open = guard.as_mut().unwrap();
        open.store.retire(std::slice::from_mut(&mut open.line), Pool::retire_empty);
    }
    for puppet in puppets {
        let told = puppet.told();
        let retired = told.iter().position(|packet| matches!(packet, ToSubscriber::Retire { .. }));
        let after = &told[retired.expect("it had the segment")..];
        assert!(matches!(after, [_, ToSubscriber::Wake, ..]), "{told:?}");
    }
}

#[test]
fn what_was_kept_from_a_lossy_subscriber_is_counted_as_lost() {
    let _meeting = crate::link::meeting::meet_in_private();
    let publisher = Publisher::builder("t").capacity(16).build().unwrap();
    let subscriber = Subscriber::builder("t").policy(Policy::DropOldest).build().unwrap();
    subscriber.wait_for_publishers(1, SOON).unwrap();
    {
        // It keeps retired memory, and acknowledges nothing.
        let mut guard = publisher.shared.open.lock();
        let peer = &mut guard.as_mut().unwrap().line.peers[0];
        (peer.written_off, peer.owes) = (true, u64::MAX);
    }
    publisher.send(&[1; 10_000]).unwrap();
    publisher.send(b"behind").unwrap();
    publisher.close();
    assert_eq!(subscriber.recv_timeout(SOON.unwrap()).unwrap()[..], *b"behind");
    assert_eq!(subscriber.stats().unwrap().lost, 1);
}

/// One that has yet to unmap what was retired: it is waited for according to what it may lose.
#[test]
fn who_may_lose_messages_delays_a_send_only_so_long() {
    let _meeting = crate::link::meeting::meet_in_private();
    const MAX: u64 = 96 << 20;
    for (policy, is_waited_for) in [(Policy::Latest, false), (Policy::DropOldest, false), (Policy::Block, true)] {
        let publisher = Publisher::builder("t").capacity(64).max_memory(MAX).build().unwrap();
        let frozen = Puppet::new();
        frozen.greet_as(&publisher, "t", policy, None).unwrap();
        let small: Vec<_> = std::iter::from_fn(|| publisher.loan(1 << 20).ok()).take(64).collect();
        drop(small);
        let allocated = || publisher.stats().unwrap().pool_allocated;
        let mut soon = Wait::up_to(Some(3 * PATIENCE));
        let huge = publisher.loan_with(80 << 20, 0, &mut soon);
        if is_waited_for {
            assert!(
                matches!(huge, Err(Error::Timeout { ref hint, .. }) if hint.contains("yet to unmap")),
                "{policy:?}"
            );
            assert!(allocated() <= MAX);
            assert!(publisher.loan(1 << 20).is_ok(), "what it keeps mapped serves meanwhile");
            continue;
        }
        assert!(allocated() > MAX, "what it keeps counts: {policy:?}");
        huge.unwrap().send().unwrap();
        let guard = publisher.shared.open.lock();
        let peer = &guard.as_ref().unwrap().line.peers[0];
        assert!(peer.written_off && peer.outbox.iter().any(|(_, segment)| segment.is_some()), "it gets no more");
        drop(guard);
        let lease = Lease::new(frozen.lease.map().words(), frozen.lease.map().counts(COUNTS));
        lease.set_generation(u64::MAX);
        let begin = Instant::now();
        while allocated() > MAX || !publisher.shared.open.lock().as_ref().unwrap().line.peers[0].outbox.is_empty() {
            assert!(begin.elapsed() < SOON.unwrap(), "it has given back what it kept");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn a_subscriber_that_never_reads_costs_no_more_and_more() {
    let _meeting = crate::link::meeting::meet_in_private();
    let publisher = Publisher::builder("t").capacity(16).max_memory(1 << 20).build().unwrap();
    let lazy = Puppet::new();
    lazy.greet(&publisher, "t").unwrap();
    let mut guard = publisher.shared.open.lock();
    let open = guard.as_mut().unwrap();
    let lines = std::slice::from_mut(&mut open.line);
    for _ in 0..1000 {
        let chunk = open.store.try_allocate(lines, 64).unwrap();
        open.store.pool.free(chunk.slot);
        open.store.retire(lines, Pool::retire_empty);
        open.store.pool.settle_retired(|_, _, _| Fate::Unmapped);
    }
    let [peer] = &open.line.peers[..] else { panic!("one subscriber") };
    assert!((1..10).contains(&peer.outbox.len()), "{} packets wait", peer.outbox.len());
}

#[test]
fn a_publisher_that_is_not_rung_looks_by_itself() {
    let _meeting = crate::link::meeting::meet_in_private();
    let (publisher, subscriber) = pair(16);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            publisher.send(b"").unwrap();
        }
        let send = || publisher.send_as(Single, b"one more", Beside::NOTHING, &mut Wait::up_to(SOON)).unwrap();
        let sender = scope.spawn(send);
        while publisher.stats().unwrap().waits == 0 {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_millis(20)); // It stops looking by itself every now and then.
        shortage::of(u32::MAX);
        subscriber.recv_timeout(SOON.unwrap()).unwrap();
        assert_eq!(sender.join().unwrap(), 16);
        shortage::of(0);
    });
}

#[test]
fn a_welcome_that_finds_the_socket_full_comes_later_and_first() {
    let _meeting = crate::link::meeting::meet_in_private();
    let publisher = Publisher::builder("t").capacity(16).build().unwrap();
    let puppets = [Puppet::new(), Puppet::new()];
    for (puppet, is_evicted) in puppets.iter().zip([false, true]) {
        shortage::of(8);
        let id = puppet.greet(&publisher, "t").expect("it is taken in all the same");
        if is_evicted {
            assert!(publisher.shared.evict(id).unwrap());
        }
        shortage::of(0);
        let begin = Instant::now();
        let mut packets = Vec::new();
        while packets.len() < 1 + usize::from(is_evicted) {
            puppet.channel.pump();
            if let Ok(Said::Packet(packet, passed)) = puppet.channel.take() {
                packets.push((packet, passed));
            }
            assert!(begin.elapsed() < SOON.unwrap());
        }
        let welcome = handshake::decode_first(&packets[0].0);
        assert!(matches!(welcome, Ok(ToSubscriber::Welcome(_))) && packets[0].1.is_some());
        if let Some((packet, _)) = packets.get(1) {
            assert!(matches!(handshake::decode(packet), Some(ToSubscriber::Evicted { .. })));
        }
    }
}

#[test]
fn a_bell_that_was_broken_is_replaced_some_times() {
    let _meeting = crate::link::meeting::meet_in_private();
    let (publisher, subscriber) = pair(16);
    let readiness = subscriber.readiness().unwrap();
    let bell = || {
        let guard = publisher.shared.open.lock();
        guard.as_ref().unwrap().line.peers[0].bell.clone()
    };
    let eventually = |done: &dyn Fn() -> bool| {
        let begin = Instant::now();
        while !done() {
            assert!(begin.elapsed() < SOON.unwrap());
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    let wakes = || {
        eventually(&|| subscriber.try_recv().unwrap().is_none());
        publisher.send(b"x").unwrap();
        readiness.0.epoll().wait(SOON, &mut Vec::new()).unwrap();
        eventually(&|| subscriber.try_recv().unwrap().is_some());
    };
    for _ in 0..MOST_BROKEN {
        eventually(&|| bell().is_some());
        let broken = bell().unwrap();
        socket::hang_up(&*broken);
        eventually(&|| {
            assert!(subscriber.try_recv().unwrap().is_none());
            bell().is_some_and(|bell| !Arc::ptr_eq(&bell, &broken))
        });
        wakes();
        assert!(bell().is_some(), "it works");
    }
    socket::hang_up(&*bell().unwrap());
    assert!(subscriber.try_recv().unwrap().is_none());
    wakes();
    wakes();
    assert!(bell().is_none(), "it was broken too often, and others pass the wake-ups on");
}

#[test]
fn who_passes_bells_without_end_is_turned_away() {
    let _meeting = crate::link::meeting::meet_in_private();
    let publisher = Publisher::builder("t").capacity(16).build().unwrap();
    let puppet = Puppet::new();
    let id = puppet.greet(&publisher, "t").unwrap();
    let (_own, theirs) = socket::bell().unwrap();
    let pass = |number| {
        let packet = handshake::encode_to_publisher(&ToPublisher::Bell { number });
        assert!(puppet.channel.send(&packet, Some(theirs.as_fd())).unwrap());
        duties::answer_now(&*publisher.shared, LINE, id);
    };
    (0..16).for_each(pass);
    assert_eq!(publisher.subscribers().unwrap().len(), 1);
    pass(16);
    assert!(publisher.subscribers().unwrap().is_empty());
}
