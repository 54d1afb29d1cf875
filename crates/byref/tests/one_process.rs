//! The semantics between threads of one process; the same hold across processes (see the Python tests).

#![allow(unsafe_code)]

use byref::{Attributes, Encoded, Error, HeaderValue, Policy, Publisher, Subscriber, Wait};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const SOON: Option<Duration> = Some(Duration::from_secs(10));

/// A topic of its own for each test, in a directory of its own for this process.
fn topic() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    static DIRECTORY: std::sync::Once = std::sync::Once::new();
    DIRECTORY.call_once(|| {
        let directory = std::env::temp_dir().join(format!("byref-test-{}", std::process::id()));
        // SAFETY: called once, before any other code of these tests looks at the environment.
        unsafe { std::env::set_var("BYREF_DIR", directory) };
    });
    format!("test/{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

fn publisher(topic: &str) -> Publisher {
    Publisher::builder(topic).max_memory(64 << 20).build().unwrap()
}

fn subscriber(topic: &str) -> Subscriber {
    Subscriber::builder(topic).build().unwrap()
}

#[test]
fn every_size_arrives_as_it_was_sent() {
    let topic = topic();
    let (publisher, subscriber) = (publisher(&topic), subscriber(&topic));
    publisher.wait_for_subscribers(1, SOON).unwrap();
    for (sequence, len) in [0, 1, 7, 8, 9, 63, 64, 231, 232, 233, 4095, 4096, 1 << 20].into_iter().enumerate() {
        let payload: Vec<u8> = (0..len).map(|i| (i * 31 + sequence) as u8).collect();
        assert_eq!(publisher.send(&payload).unwrap(), sequence as u64);
        let message = subscriber.recv_timeout(SOON.unwrap()).unwrap();
        assert_eq!(&message[..], payload);
        assert_eq!(message.sequence(), sequence as u64);
        assert_eq!(message.is_inline(), len <= byref::INLINE_LIMIT);
    }
}

#[test]
fn attributes_travel_with_small_and_large_payloads() {
    let topic = topic();
    let (publisher, subscriber) = (publisher(&topic), subscriber(&topic));
    publisher.wait_for_subscribers(1, SOON).unwrap();
    let headers = vec![("exposure".to_owned(), HeaderValue::Float(0.25)), ("ok".to_owned(), HeaderValue::Bool(true))];
    let attributes = Attributes { layout: None, headers };
    let encoded = attributes.encode().unwrap();
    for len in [0, 3, 200, 232, 5000] {
        publisher.send_with(&vec![9; len], &encoded, Some(77), &mut Wait::up_to(SOON)).unwrap();
        let message = subscriber.recv_timeout(SOON.unwrap()).unwrap();
        assert_eq!((message.attributes(), message.timestamp_ns(), message.len()), (attributes.clone(), 77, len));
        let mut loan = publisher.loan(len).unwrap();
        loan.fill(8);
        loan.send_with(&encoded, None, &mut Wait::up_to(SOON)).unwrap();
        let message = subscriber.recv_timeout(SOON.unwrap()).unwrap();
        assert_eq!(message.attributes(), attributes);
        assert!(message.len() == len && message.iter().all(|byte| *byte == 8));
    }
}

#[test]
fn block_waits_and_loses_nothing() {
    let topic = topic();
    let publisher = publisher(&topic);
    let subscriber = Subscriber::builder(&topic).depth(4).build().unwrap();
    publisher.wait_for_subscribers(1, SOON).unwrap();
    for i in 0..4u64 {
        publisher.send(&i.to_le_bytes()).unwrap();
    }
    let mut brief = Wait::up_to(Some(Duration::from_millis(20)));
    let error = publisher.send_with(b"five", &Encoded::default(), None, &mut brief).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    assert!(error.to_string().contains("4 messages unread"), "{error}");
    std::thread::scope(|scope| {
        scope.spawn(|| (4..10_000u64).for_each(|i| assert_eq!(publisher.send(&i.to_le_bytes()).unwrap(), i)));
        for i in 0..10_000u64 {
            let message = subscriber.recv_timeout(SOON.unwrap()).unwrap();
            assert_eq!((&message[..], message.sequence()), (&i.to_le_bytes()[..], i));
        }
    });
    publisher.flush(SOON).unwrap();
    assert_eq!(subscriber.stats().unwrap().lost, 0);
}

#[test]
fn lossy_policies_keep_the_newest_and_count_the_rest() {
    let topic = topic();
    let publisher = publisher(&topic);
    let newest = Subscriber::builder(&topic).policy(Policy::DropOldest).depth(10).build().unwrap();
    let latest = Subscriber::builder(&topic).policy(Policy::Latest).build().unwrap();
    publisher.wait_for_subscribers(2, SOON).unwrap();
    for i in 0..100_000u64 {
        publisher.send(&i.to_le_bytes()).unwrap();
    }
    let kept: Vec<u64> = std::iter::from_fn(|| newest.try_recv().unwrap()).map(|message| message.sequence()).collect();
    assert_eq!(kept, (99_990..100_000).collect::<Vec<_>>());
    assert_eq!(newest.stats().unwrap().lost, 99_990);
    assert_eq!(latest.try_recv().unwrap().unwrap().sequence(), 99_999);
    assert!(latest.try_recv().unwrap().is_none());
    assert_eq!(latest.stats().unwrap().lost, 99_999);
}

#[test]
fn lossy_subscribers_give_way_when_memory_is_short() {
    let topic = topic();
    let publisher = Publisher::builder(&topic).max_memory(4 << 20).build().unwrap();
    let slow = Subscriber::builder(&topic).policy(Policy::DropOldest).depth(100).build().unwrap();
    publisher.wait_for_subscribers(1, SOON).unwrap();
    for i in 0..50u8 {
        publisher.send(&vec![i; 1 << 20]).unwrap();
    }
    let mut received = 0;
    while let Some(message) = slow.try_recv().unwrap() {
        assert!(message.iter().all(|byte| *byte as u64 == message.sequence()));
        received += 1;
    }
    assert!(received >= 1);
    assert_eq!(slow.stats().unwrap().lost + received, 50);
}

#[test]
fn history_reaches_a_late_subscriber_without_gap_or_repetition() {
    let topic = topic();
    let publisher = Publisher::builder(&topic).history(50).build().unwrap();
    for i in 0..200u64 {
        publisher.send(&vec![i as u8; 1000]).unwrap();
    }
    let late = Subscriber::builder(&topic).history(20).build().unwrap();
    let greedy = Subscriber::builder(&topic).history(1000).build().unwrap();
    let modest = subscriber(&topic);
    publisher.wait_for_subscribers(3, SOON).unwrap();
    publisher.send(b"next").unwrap();
    let sequences = |subscriber: &Subscriber| {
        std::iter::repeat_with(|| subscriber.recv_timeout(SOON.unwrap()).unwrap().sequence())
            .take_while(|sequence| *sequence < 200)
            .collect::<Vec<_>>()
    };
    assert_eq!(sequences(&late), (180..200).collect::<Vec<_>>());
    assert_eq!(sequences(&greedy), (150..200).collect::<Vec<_>>());
    assert_eq!(sequences(&modest), []);
}

#[test]
fn held_messages_stay_while_traffic_goes_on() {
    let topic = topic();
    let publisher = Publisher::builder(&topic).max_memory(32 << 20).build().unwrap();
    let subscriber = subscriber(&topic);
    publisher.wait_for_subscribers(1, SOON).unwrap();
    let mut held = Vec::new();
    for i in 0..1000u64 {
        publisher.send(&[i as u8; 16 << 10]).unwrap();
        held.push(subscriber.recv_timeout(SOON.unwrap()).unwrap());
    }
    for i in 0..5000u64 {
        publisher.send(&[i as u8; 4000]).unwrap();
        let message = subscriber.recv_timeout(SOON.unwrap()).unwrap();
        assert!(message.iter().all(|byte| *byte == i as u8));
    }
    for message in &held {
        assert!(message.iter().all(|byte| *byte == message.sequence() as u8));
    }
    let clone = held[7].clone();
    held.clear();
    publisher.close();
    subscriber.close();
    drop((publisher, subscriber));
    assert!(clone.iter().all(|byte| *byte == 7));
}

#[test]
fn a_full_pool_names_its_holder_and_recovers() {
    let topic = topic();
    let publisher = Publisher::builder(&topic).max_memory(4 << 20).build().unwrap();
    let subscriber = Subscriber::builder(&topic).name("hoarder").build().unwrap();
    publisher.wait_for_subscribers(1, SOON).unwrap();
    let error = publisher.send(&vec![0; 5 << 20]).unwrap_err();
    assert!(matches!(error, Error::PoolExhausted { requested: 0x500000, max_memory: 0x400000, .. }), "{error}");
    let held: Vec<_> = (0..4)
        .map(|_| {
            publisher.send(&vec![1; 1 << 20]).unwrap();
            subscriber.recv_timeout(SOON.unwrap()).unwrap()
        })
        .collect();
    let mut brief = Wait::up_to(Some(Duration::from_millis(20)));
    let error = publisher.send_with(&vec![2; 1 << 20], &Encoded::default(), None, &mut brief).unwrap_err();
    assert!(error.to_string().contains("('hoarder') has 0 messages unread and holds 4"), "{error}");
    let releaser = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(30));
        drop(held);
    });
    publisher.send(&vec![3; 1 << 20]).unwrap();
    releaser.join().unwrap();
    assert_eq!(subscriber.recv_timeout(SOON.unwrap()).unwrap()[0], 3);
    let loans: Vec<_> = (0..4).map(|_| publisher.loan((1 << 20) - 64).unwrap()).collect();
    assert!(matches!(publisher.loan(1 << 20), Err(Error::PoolExhausted { .. })));
    drop(loans);
    drop(publisher.loan(1 << 20).unwrap());
}

#[test]
fn a_writable_view_is_private() {
    let topic = topic();
    let (publisher, a, b) = (publisher(&topic), subscriber(&topic), subscriber(&topic));
    publisher.wait_for_subscribers(2, SOON).unwrap();
    for len in [100, 10_000, 1 << 20] {
        publisher.send(&vec![5; len]).unwrap();
        let (a, b) = (a.recv_timeout(SOON.unwrap()).unwrap(), b.recv_timeout(SOON.unwrap()).unwrap());
        let mut mine = a.writable();
        let other = a.writable();
        mine[len / 2] = 6;
        assert!(a.iter().chain(b.iter()).chain(other.iter()).all(|byte| *byte == 5));
        drop((a, b));
        assert_eq!(mine.iter().filter(|byte| **byte == 6).count(), 1);
    }
}

#[test]
fn several_publishers_are_served_fairly() {
    let topic = topic();
    let publishers: Vec<_> = (0..4).map(|_| publisher(&topic)).collect();
    let subscriber = subscriber(&topic);
    subscriber.wait_for_publishers(4, SOON).unwrap();
    for publisher in &publishers {
        for _ in 0..1000 {
            publisher.send(b"x").unwrap();
        }
    }
    let mut counts = std::collections::HashMap::new();
    for _ in 0..400 {
        *counts.entry(subscriber.recv_timeout(SOON.unwrap()).unwrap().publisher().id).or_insert(0) += 1;
    }
    assert!(counts.len() == 4 && counts.values().all(|count| (80..=120).contains(count)), "{counts:?}");
}

#[test]
fn close_ends_waiting_calls_and_delivers_what_was_sent() {
    let topic = topic();
    let (publisher, subscriber) = (publisher(&topic), subscriber(&topic));
    publisher.wait_for_subscribers(1, SOON).unwrap();
    for i in 0..1000u64 {
        publisher.send(&[i as u8; 500]).unwrap();
    }
    publisher.close();
    publisher.close();
    assert!(matches!(publisher.send(b"x"), Err(Error::Closed { .. })));
    for i in 0..1000u64 {
        assert_eq!(subscriber.recv_timeout(SOON.unwrap()).unwrap().sequence(), i);
    }
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| subscriber.recv());
        std::thread::sleep(Duration::from_millis(50));
        subscriber.close();
        assert!(matches!(waiting.join().unwrap(), Err(Error::Closed { .. })));
    });
}

#[test]
fn a_restarted_publisher_is_found_again() {
    let topic = topic();
    let subscriber = subscriber(&topic);
    for generation in 0..3u8 {
        let publisher = publisher(&topic);
        publisher.wait_for_subscribers(1, SOON).unwrap();
        publisher.send(&[generation]).unwrap();
        assert_eq!(subscriber.recv_timeout(SOON.unwrap()).unwrap()[0], generation);
    }
    assert!(matches!(subscriber.recv_timeout(Duration::from_millis(5)), Err(Error::Timeout { .. })));
    assert!(subscriber.publishers().unwrap().is_empty());
}

#[test]
fn threads_share_a_subscriber_and_a_publisher() {
    let topic = topic();
    let (publisher, subscriber) = (publisher(&topic), subscriber(&topic));
    publisher.wait_for_subscribers(1, SOON).unwrap();
    let mut seen: Vec<u64> = std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| (0..2000).for_each(|i| assert!(publisher.send(&vec![1; i % 600]).is_ok())));
        }
        let readers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut seen = Vec::new();
                    while let Ok(message) = subscriber.recv_timeout(Duration::from_millis(500)) {
                        seen.push(message.sequence());
                    }
                    seen
                })
            })
            .collect();
        readers.into_iter().flat_map(|reader| reader.join().unwrap()).collect()
    });
    seen.sort();
    assert_eq!(seen, (0..6000).collect::<Vec<_>>());
}

#[test]
fn memory_comes_back_segment_by_segment() {
    let topic = topic();
    let publisher = Publisher::builder(&topic).max_memory(200 << 20).build().unwrap();
    let subscriber = subscriber(&topic);
    publisher.wait_for_subscribers(1, SOON).unwrap();
    // Neither of the larger payloads fits beside the segments that the one before left.
    for len in [100 << 20, 150 << 20, 200 << 20, 1000] {
        let mut loan = publisher.loan(len).unwrap();
        loan[len - 1] = 9;
        loan.send().unwrap();
        assert_eq!(subscriber.recv_timeout(SOON.unwrap()).unwrap()[len - 1], 9);
    }
}

#[test]
fn memory_pressure_costs_a_lossy_subscriber_no_more_than_needed() {
    let topic = topic();
    let publisher = Publisher::builder(&topic).max_memory(16 << 20).build().unwrap();
    let lossy = Subscriber::builder(&topic).policy(Policy::DropOldest).build().unwrap();
    publisher.wait_for_subscribers(1, SOON).unwrap();
    for i in 0..17u8 {
        publisher.send(&vec![i; 1 << 20]).unwrap();
    }
    publisher.send(b"small").unwrap();
    let kept: Vec<u64> = std::iter::from_fn(|| lossy.try_recv().unwrap()).map(|message| message.sequence()).collect();
    assert_eq!(kept, (1..18).collect::<Vec<_>>());
    assert_eq!(lossy.stats().unwrap().lost, 1);
}

#[test]
fn a_paused_lossy_subscriber_does_not_defeat_max_memory() {
    let topic = topic();
    let publisher = Publisher::builder(&topic).max_memory(32 << 20).build().unwrap();
    let paused = Subscriber::builder(&topic).policy(Policy::DropOldest).build().unwrap();
    publisher.wait_for_subscribers(1, SOON).unwrap();
    for i in 0..2000usize {
        publisher.send(&vec![i as u8; 1 << 20]).unwrap();
    }
    assert!(publisher.stats().unwrap().pool_allocated <= 32 << 20);
    let segments = std::fs::read_to_string("/proc/self/maps").unwrap().matches("memfd:byref-pool").count();
    assert!(segments < 10, "{segments} segments are mapped");
    assert_eq!(paused.recv_timeout(SOON.unwrap()).unwrap().len(), 1 << 20);
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    let topic = topic();
    let publisher = publisher(&topic);
    for len in [usize::MAX, usize::MAX - 7, isize::MAX as usize, 1 << 40] {
        assert!(matches!(publisher.loan(len), Err(Error::PoolExhausted { .. })));
    }
    let subscriber = subscriber(&topic);
    publisher.wait_for_subscribers(1, SOON).unwrap();
    publisher.send(b"x").unwrap();
    assert_eq!(&subscriber.recv_timeout(Duration::MAX).unwrap()[..], b"x");
}

/// One thread sleeps in `recv` while others take messages, read events, and so could take its wake-ups.
#[test]
fn nobody_takes_the_sleepers_wake_up() {
    let topic = topic();
    let (publisher, subscriber) = (publisher(&topic), subscriber(&topic));
    publisher.wait_for_subscribers(1, SOON).unwrap();
    let received = AtomicUsize::new(0);
    let total = 3000;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while received.load(Ordering::Relaxed) < total {
                if subscriber.recv_timeout(Duration::from_secs(5)).is_err() {
                    break;
                }
                received.fetch_add(1, Ordering::Relaxed);
            }
        });
        scope.spawn(|| {
            while received.load(Ordering::Relaxed) < total {
                let taken = subscriber.try_recv().unwrap().is_some() as usize;
                received.fetch_add(taken, Ordering::Relaxed);
                subscriber.publishers().unwrap();
            }
        });
        for sent in 0..total {
            publisher.send(b"x").unwrap();
            let before = std::time::Instant::now();
            while received.load(Ordering::Relaxed) <= sent {
                assert!(before.elapsed() < Duration::from_secs(4), "message {sent} was never received");
                std::thread::yield_now();
            }
            if sent % 3 == 0 {
                std::thread::sleep(Duration::from_micros(200)); // Long enough to fall asleep.
            }
        }
        publisher.close();
    });
}

#[test]
fn a_publisher_that_dies_hides_nobody() {
    let topic = topic();
    let subscriber = subscriber(&topic);
    for _ in 0..50 {
        let first = publisher(&topic);
        let others = [publisher(&topic), publisher(&topic)];
        subscriber.wait_for_publishers(3, SOON).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| subscriber.recv_timeout(Duration::from_secs(5)).map(|message| message.len()));
            std::thread::sleep(Duration::from_millis(2));
            others[0].send(b"one").unwrap();
            first.close();
            assert_eq!(waiting.join().unwrap().unwrap(), 3);
        });
        drop((first, others));
        while !subscriber.publishers().unwrap().is_empty() {
            assert!(subscriber.try_recv().unwrap().is_none());
        }
    }
}
