//! Many subscribers on one thread: fair turns, wake-ups, comings and goings.

#![allow(unsafe_code)]

use byref::{Beside, Ended, Item, Publisher, Selector, Single, Subscriber, Wait};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

const SOON: Option<Duration> = Some(Duration::from_secs(20));

/// A topic of its own for each test, in a directory of its own for this process.
fn topic() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    static DIRECTORY: std::sync::Once = std::sync::Once::new();
    DIRECTORY.call_once(|| {
        let directory = std::env::temp_dir().join(format!("byref-test-selector-{}", std::process::id()));
        // SAFETY: called once, before any other code of these tests looks at the environment.
        unsafe { std::env::set_var("BYREF_DIR", directory) };
    });
    format!("test/{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

fn publisher(topic: &str) -> Publisher {
    Publisher::builder(topic).max_memory(64 << 20).build().unwrap()
}

/// A selector with so many subscribers, whose values are their numbers, and a publisher connected to each.
fn connected(count: usize) -> (Selector<usize>, Vec<Publisher>) {
    let mut selector = Selector::new().unwrap();
    let mut publishers = Vec::new();
    for number in 0..count {
        let topic = topic();
        let subscriber = Arc::new(Subscriber::builder(&topic).build().unwrap());
        let publisher = publisher(&topic);
        publisher.wait_for_subscribers(1, SOON).unwrap();
        subscriber.wait_for_publishers(1, SOON).unwrap();
        selector.add(subscriber, number).unwrap();
        publishers.push(publisher);
    }
    (selector, publishers)
}

/// Takes everything that is there: whose, and which.
fn drain(selector: &mut Selector<usize>) -> Vec<(usize, u64)> {
    let mut taken = Vec::new();
    while let Some(mut turn) = selector.turn().unwrap() {
        while let Some(item) = turn.next() {
            let Item::Message(message) = item.unwrap() else { panic!("only messages were asked for") };
            taken.push((*turn.value(), message.sequence()));
        }
    }
    taken
}

#[test]
fn every_message_of_many_publishers_wakes_the_sleeper() {
    let (mut selector, publishers) = connected(20);
    let senders: Vec<_> = publishers
        .into_iter()
        .map(|publisher| {
            thread::spawn(move || {
                for round in 0..200u64 {
                    publisher.send(b"x").unwrap();
                    if round % 8 == 0 {
                        thread::sleep(Duration::from_micros(round * 7 % 500));
                    }
                }
                publisher.flush(SOON).unwrap();
            })
        })
        .collect();
    let mut next = HashMap::new();
    while next.values().sum::<u64>() < 200 * senders.len() as u64 {
        assert_eq!(selector.wait(&mut Wait::up_to(SOON)).unwrap(), Ended::Messages, "{next:?}");
        for (whose, sequence) in drain(&mut selector) {
            let expected = next.entry(whose).or_default();
            assert_eq!(sequence, *expected, "in order");
            *expected += 1;
        }
    }
    senders.into_iter().for_each(|sender| sender.join().unwrap());
}

#[test]
fn turns_are_fair() {
    let (mut selector, publishers) = connected(2);
    for publisher in &publishers {
        for _ in 0..1000 {
            publisher.send(b"x").unwrap();
        }
    }
    let order = drain(&mut selector);
    assert_eq!(order.len(), 2000);
    let turns: Vec<_> = order.chunk_by(|one, next| one.0 == next.0).map(<[_]>::len).collect();
    assert!(turns.iter().all(|turn| *turn <= 64), "{turns:?}");
    assert!(turns.len() >= 30);
}

#[test]
fn the_descriptor_is_readable_when_something_came_after_arming() {
    use rustix::event::{PollFd, PollFlags, poll};
    let (mut selector, publishers) = connected(2);
    let readiness = selector.waker().readiness();
    let readable = |tv_sec| {
        let within = rustix::event::Timespec { tv_sec, tv_nsec: 0 };
        poll(&mut [PollFd::new(&readiness, PollFlags::IN)], Some(&within)).unwrap() == 1
    };
    for round in 0..10 {
        loop {
            selector.refresh().unwrap();
            if !selector.arm() && !readable(0) {
                break; // The bells that rang for the new publishers are silent.
            }
            assert_eq!(drain(&mut selector), []);
        }
        publishers[round % 2].send(b"x").unwrap();
        let mut received = Vec::new();
        while received.is_empty() {
            assert!(readable(20), "it is rung for, at once or by way of the service thread");
            selector.refresh().unwrap();
            received = drain(&mut selector);
            if received.is_empty() && selector.arm() {
                received = drain(&mut selector);
            }
        }
        assert_eq!(received, [(round % 2, round as u64 / 2)]);
    }
}

#[test]
fn a_waker_ends_the_wait_that_is_or_comes() {
    let (mut selector, _publishers) = connected(1);
    let waker = selector.waker();
    waker.wake();
    assert_eq!(selector.wait(&mut Wait::up_to(SOON)).unwrap(), Ended::Woken);
    let other = thread::spawn(move || {
        thread::sleep(Duration::from_millis(30));
        waker.wake();
    });
    assert_eq!(selector.wait(&mut Wait::up_to(SOON)).unwrap(), Ended::Woken);
    assert_eq!(selector.wait(&mut Wait::up_to(Some(Duration::from_millis(20)))).unwrap(), Ended::TimedOut);
    other.join().unwrap();
}

#[test]
fn a_closed_subscriber_is_forgotten_wherever_it_stands() {
    let topics: Vec<_> = (0..3).map(|_| topic()).collect();
    let publishers: Vec<_> = topics.iter().map(|topic| publisher(topic)).collect();
    let mut selector = Selector::new().unwrap();
    let value = Arc::new(());
    for armed in [false, true] {
        let subscribers: Vec<_> =
            topics.iter().map(|topic| Arc::new(Subscriber::builder(topic).build().unwrap())).collect();
        for (subscriber, publisher) in subscribers.iter().zip(&publishers) {
            publisher.wait_for_subscribers(1, SOON).unwrap();
            subscriber.wait_for_publishers(1, SOON).unwrap();
            selector.add(Arc::clone(subscriber), Arc::clone(&value)).unwrap();
        }
        if armed {
            assert!(!selector.arm());
        }
        for publisher in &publishers {
            publisher.send(b"x").unwrap();
        }
        selector.refresh().unwrap();
        subscribers[0].close();
        let mut turns = 0;
        while turns == 0 {
            // Who is armed may hear of its message by way of the service thread.
            assert_ne!(selector.wait(&mut Wait::up_to(SOON)).unwrap(), Ended::TimedOut, "both that were open had one");
            while let Some(mut turn) = selector.turn().unwrap() {
                assert!(turn.next().unwrap().is_ok());
                subscribers[1].close(); // One of the two is in its turn now.
                turns += 1;
                assert!(turns < 10);
            }
        }
        subscribers[2].close();
        // The service thread may have rung for what was closed meanwhile.
        let mut wait = || selector.wait(&mut Wait::up_to(Some(Duration::from_millis(50)))).unwrap();
        let ended = (0..100).map(|_| wait()).find(|ended| *ended != Ended::Woken);
        assert_eq!(ended, Some(Ended::TimedOut));
        assert_eq!(Arc::strong_count(&value), 1, "armed: {armed}");
    }
}

#[test]
fn the_backlog_counts_what_waits() {
    let topic = topic();
    let subscriber = Subscriber::builder(&topic).build().unwrap();
    let publishers = [publisher(&topic), publisher(&topic)];
    publishers.iter().for_each(|publisher| publisher.wait_for_subscribers(1, SOON).unwrap());
    subscriber.wait_for_publishers(2, SOON).unwrap();
    assert_eq!(subscriber.backlog().unwrap().messages, 0);
    assert_eq!(subscriber.backlog().unwrap().oldest_ns, None);
    let encoded = byref::Attributes::default().encode().unwrap();
    for timestamp in [500, 600, 700] {
        for (publisher, offset) in publishers.iter().zip([0, 50]) {
            let beside = Beside { attributes: &encoded, timestamp_ns: Some(timestamp - offset), tag: 0 };
            publisher.send_as(Single, b"x", beside, &mut Wait::up_to(SOON)).unwrap();
        }
    }
    let backlog = subscriber.backlog().unwrap();
    assert_eq!((backlog.messages, backlog.oldest_ns), (6, Some(450)));
    (0..6).for_each(|_| drop(subscriber.recv().unwrap()));
    assert_eq!(subscriber.backlog().unwrap(), byref::Backlog::default());
}
