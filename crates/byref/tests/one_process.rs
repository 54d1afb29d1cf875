//! The semantics between threads of one process; the same hold across processes (see the Python tests).

#![allow(unsafe_code)]

use byref::{
    Attributes, Batch, Beside, Encoded, Error, Event, EventKind, HeaderValue, Incoming, Kept, Layout, One, Policy,
    Publisher, Rows, Single, Subscriber, Told, Tracked, UpTo, Wait,
};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Nothing in these tests takes so long, on however busy a machine.
const SOON: Option<Duration> = Some(Duration::from_secs(60));

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
    for (sequence, len) in [0, 1, 7, 8, 9, 63, 64, 223, 224, 225, 4095, 4096, 1 << 20].into_iter().enumerate() {
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
    for len in [0, 3, 200, 224, 5000] {
        let beside = Beside { attributes: &encoded, timestamp_ns: Some(77), tag: 0 };
        publisher.send_as(Single, &vec![9; len], beside, &mut Wait::up_to(SOON)).unwrap();
        let message = subscriber.recv_timeout(SOON.unwrap()).unwrap();
        assert_eq!((message.attributes(), message.timestamp_ns(), message.len()), (attributes.clone(), 77, len));
        let mut loan = publisher.loan(len).unwrap();
        loan.fill(8);
        loan.send_as(Single, (&encoded).into(), &mut Wait::up_to(SOON)).unwrap();
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
    let error = publisher.send_as(Single, b"five", Beside::NOTHING, &mut brief).unwrap_err();
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
    let error = publisher.send_as(Single, &vec![2; 1 << 20], Beside::NOTHING, &mut brief).unwrap_err();
    assert!(error.to_string().contains("('hoarder') holds 4"), "{error}");
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
        let mut mine = a.writable().unwrap();
        let other = a.writable().unwrap();
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
    let begin = Instant::now();
    while !subscriber.publishers().unwrap().is_empty() {
        assert!(begin.elapsed() < SOON.unwrap(), "a publisher that was closed leaves");
        assert!(matches!(subscriber.recv_timeout(Duration::from_millis(5)), Err(Error::Timeout { .. })));
    }
}

#[test]
fn threads_share_a_subscriber_and_a_publisher() {
    let topic = topic();
    let (publisher, subscriber) = (publisher(&topic), subscriber(&topic));
    publisher.wait_for_subscribers(1, SOON).unwrap();
    let received = AtomicUsize::new(0);
    let mut seen: Vec<u64> = std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| (0..2000).for_each(|i| assert!(publisher.send(&vec![1; i % 600]).is_ok())));
        }
        let readers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut seen = Vec::new();
                    while let Ok(message) = subscriber.recv_timeout(SOON.unwrap()) {
                        seen.push(message.sequence());
                        if received.fetch_add(1, Ordering::Relaxed) + 1 == 6000 {
                            subscriber.close(); // The others wait in vain.
                        }
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
                if subscriber.recv_timeout(2 * SOON.unwrap()).is_err() {
                    break;
                }
                received.fetch_add(1, Ordering::Relaxed);
            }
        });
        let polling = scope.spawn(|| {
            while received.load(Ordering::Relaxed) < total {
                let taken = subscriber.try_recv().unwrap().is_some() as usize;
                received.fetch_add(taken, Ordering::Relaxed);
                subscriber.publishers().unwrap();
            }
        });
        for sent in 0..total {
            publisher.send(b"x").unwrap();
            let before = Instant::now();
            while received.load(Ordering::Relaxed) <= sent {
                assert!(before.elapsed() < SOON.unwrap(), "message {sent} was never received");
                std::thread::yield_now();
            }
            if sent % 3 == 0 {
                std::thread::sleep(Duration::from_micros(200)); // Long enough to fall asleep.
            }
        }
        polling.join().unwrap();
        subscriber.close(); // The other one waits in vain.
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
            let waiting = scope.spawn(|| subscriber.recv_timeout(SOON.unwrap()).map(|message| message.len()));
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

fn send_rows(publisher: &Publisher, rows: &[u8], count: usize) -> byref::Result<std::ops::Range<u64>> {
    publisher.send_as(Rows(count), rows, Beside::NOTHING, &mut Wait::up_to(SOON))
}

/// With payloads that leave a tag just enough room in the record, and just not enough.
#[test]
fn tags_travel_beside_payloads_of_every_size() {
    let topic = topic();
    let (publisher, subscriber) = (publisher(&topic), subscriber(&topic));
    publisher.wait_for_subscribers(1, SOON).unwrap();
    let wait = &mut Wait::up_to(SOON);
    let tagged = |tag| Beside { tag, ..Beside::NOTHING };
    let sizes = [0, 1, 31, 32, 33, 39, 40, 41, 5000];
    for (number, len) in sizes.into_iter().enumerate() {
        for tag in [0, 1 + number as u64, u64::MAX] {
            let payload = vec![number as u8; len];
            publisher.send_as(Single, &payload, tagged(tag), wait).unwrap();
            publisher.send_as(Tracked, &payload, tagged(tag), wait).unwrap();
            let kept = publisher.send_as(Kept, &payload, tagged(tag), wait).unwrap();
            assert_eq!((kept.tag(), &kept[..]), (tag, &payload[..]));
            let mut loan = publisher.loan(len).unwrap();
            loan.copy_from_slice(&payload);
            loan.send_as(Single, tagged(tag), wait).unwrap();
            for _ in 0..4 {
                let message = subscriber.recv().unwrap();
                assert_eq!((message.tag(), &message[..]), (tag, &payload[..]));
            }
        }
    }
    for len in sizes {
        publisher.send_as(Single, &vec![7; len], tagged(if len % 2 == 1 { len as u64 } else { 0 }), wait).unwrap();
    }
    publisher.send_as(Rows(4), &[0; 4000], tagged(9), wait).unwrap();
    publisher.send(b"without").unwrap();
    let batch = subscriber.receive(UpTo(sizes.len()), wait).unwrap();
    let tags = sizes.map(|len| if len % 2 == 1 { len as u64 } else { 0 });
    assert_eq!(batch.tags(), tags);
    assert_eq!(batch.iter().map(|message| message.tag()).collect::<Vec<_>>(), tags);
    assert_eq!(subscriber.recv().unwrap().tag(), 9);
    let rows = subscriber.receive(UpTo(9), wait).unwrap();
    assert_eq!((rows.tags(), rows.get(2).unwrap().tag()), (vec![9; 3], 9));
    assert_eq!(subscriber.recv().unwrap().tag(), 0);
}

#[test]
fn rows_are_messages_and_batches() {
    let topic = topic();
    let (publisher, subscriber) = (publisher(&topic), subscriber(&topic));
    publisher.wait_for_subscribers(1, SOON).unwrap();
    let rows: Vec<u8> = (0..60).collect();
    assert_eq!(send_rows(&publisher, &rows, 5).unwrap(), 0..5);
    assert_eq!(send_rows(&publisher, &rows[..12], 1).unwrap(), 5..6);
    assert_eq!(send_rows(&publisher, &[], 0).unwrap(), 6..6);
    for count in [0, 7, 61] {
        assert!(matches!(send_rows(&publisher, &rows, count), Err(Error::InvalidArgument(_))));
    }
    assert_eq!(&subscriber.recv().unwrap()[..], &rows[..12]);
    let batch = subscriber.receive(UpTo(3), &mut Wait::up_to(None)).unwrap();
    assert_eq!(batch.packed(), Some((12, &rows[12..48])));
    assert_eq!(batch.sequences(), [1, 2, 3]);
    let row = batch.get(2).unwrap();
    drop(batch);
    assert_eq!((&row[..], row.sequence()), (&rows[36..48], 3));
    assert_eq!(subscriber.receive(UpTo(9), &mut Wait::up_to(None)).unwrap().packed(), Some((12, &rows[48..])));
    assert_eq!(subscriber.receive(UpTo(9), &mut Wait::up_to(None)).unwrap().packed(), Some((12, &rows[..12])));
    assert!(subscriber.try_receive(UpTo(9)).unwrap().is_none());
    assert!(matches!(subscriber.receive(UpTo(0), &mut Wait::up_to(None)), Err(Error::InvalidArgument(_))));
}

#[test]
fn each_row_holds_its_block() {
    let topic = topic();
    let (publisher, subscriber) = (publisher(&topic), subscriber(&topic));
    publisher.wait_for_subscribers(1, SOON).unwrap();
    subscriber.wait_for_publishers(1, SOON).unwrap();
    send_rows(&publisher, &[7; 60], 5).unwrap();
    let mut rows: Vec<_> = std::iter::from_fn(|| subscriber.try_recv().unwrap()).collect();
    let last = rows.swap_remove(2);
    assert_eq!(rows.len(), 4);
    drop(rows);
    assert_eq!(publisher.outstanding().unwrap().messages, 5);
    drop(last);
    assert_eq!(publisher.outstanding().unwrap().messages, 0);
}

#[test]
fn the_newest_rows_of_a_block_are_kept() {
    let topic = topic();
    let publisher = publisher(&topic);
    let lossy = Subscriber::builder(&topic).policy(Policy::DropOldest).depth(3).build().unwrap();
    publisher.wait_for_subscribers(1, SOON).unwrap();
    lossy.wait_for_publishers(1, SOON).unwrap();
    send_rows(&publisher, &[7; 60], 10).unwrap();
    let rows = std::iter::from_fn(|| lossy.try_recv().unwrap());
    assert_eq!(rows.map(|row| row.sequence()).collect::<Vec<_>>(), [7, 8, 9]);
    assert_eq!(lossy.stats().unwrap().lost, 7);
}

#[test]
fn a_loan_is_sent_as_rows() {
    let topic = topic();
    let (publisher, subscriber) = (publisher(&topic), subscriber(&topic));
    publisher.wait_for_subscribers(1, SOON).unwrap();
    let layout = Some(Layout { kind: b"kind".into(), shape: vec![1, 2] });
    // Some fit behind the payload, some need a larger chunk.
    for text in ["", "more than was left behind the payload when it was lent"] {
        let headers = vec![("text".to_owned(), HeaderValue::Str(text.to_owned()))];
        let attributes = Attributes { layout: layout.clone(), headers };
        let encoded = attributes.encode().unwrap();
        let mut loan = publisher.loan(4096).unwrap();
        loan.iter_mut().enumerate().for_each(|(index, byte)| *byte = (index / 1024) as u8);
        let wait = &mut Wait::up_to(SOON);
        for count in [0, 3, 5000, usize::MAX] {
            assert!(matches!(loan.send_as(Rows(count), (&encoded).into(), wait), Err(Error::InvalidArgument(_))));
        }
        let beside = Beside { attributes: &encoded, timestamp_ns: Some(9), tag: 0 };
        let first = loan.send_as(Rows(4), beside, wait).unwrap().start;
        assert!(!loan.is_open());
        let batch = subscriber.receive(UpTo(10), &mut Wait::up_to(None)).unwrap();
        assert_eq!((batch.len(), batch.layout()), (4, Ok(layout.clone())));
        for (index, message) in batch.iter().enumerate() {
            assert!(message.len() == 1024 && message.iter().all(|byte| *byte == index as u8));
            assert_eq!((message.sequence(), message.timestamp_ns()), (first + index as u64, 9));
            assert_eq!(message.attributes(), attributes);
        }
    }
}

#[test]
fn a_batch_ends_although_its_publisher_goes_on() {
    let topic = topic();
    let publisher = Publisher::builder(&topic).capacity(16).build().unwrap();
    let subscriber = Subscriber::builder(&topic).policy(Policy::DropOldest).build().unwrap();
    publisher.wait_for_subscribers(1, SOON).unwrap();
    let over = AtomicBool::new(false);
    let longest = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                publisher.send(b"x").unwrap();
            }
        });
        let longest =
            (0..2000).map(|_| subscriber.receive(UpTo(usize::MAX), &mut Wait::up_to(None)).unwrap().len()).max();
        over.store(true, Ordering::Relaxed);
        longest
    });
    assert!(longest <= Some(32), "{longest:?}");
    while subscriber.try_recv().unwrap().is_some() {}
    send_rows(&publisher, &[1; 1000], 1000).unwrap();
    assert_eq!(
        subscriber.receive(UpTo(usize::MAX), &mut Wait::up_to(None)).unwrap().len(),
        8,
        "the newest half of a ring of 16"
    );
}

#[test]
fn events_are_told_to_those_who_ask() {
    let topic = topic();
    let builder = Subscriber::builder(&topic).policy(Policy::DropOldest).depth(3).events(true);
    let [told, batches, deaf] = [(); 3].map(|()| builder.clone().build().unwrap());
    let publisher = publisher(&topic);
    publisher.wait_for_subscribers(3, SOON).unwrap();
    for count in [10, 2] {
        send_rows(&publisher, &vec![0; count], count).unwrap();
    }
    publisher.close();
    let event = |kind| Some(format!("{kind:?}"));
    let described = |incoming: Incoming<Vec<u64>>| match incoming {
        Incoming::Message(sequences) => Some(format!("{sequences:?}")),
        Incoming::Event(Event { publisher, kind }) => {
            assert_eq!(publisher.topic, topic);
            event(kind)
        }
    };
    let numbers = |batch: Incoming<Batch>| match batch {
        Incoming::Message(batch) => Incoming::Message(batch.sequences()),
        Incoming::Event(event) => Incoming::Event(event),
    };
    let gap = EventKind::Gap { first: 0, count: 9 };
    let wait = &mut Wait::up_to(SOON);
    assert_eq!(described(numbers(batches.receive(Told(UpTo(9)), wait).unwrap())), event(EventKind::Joined));
    assert_eq!(described(numbers(batches.receive(Told(UpTo(9)), wait).unwrap())), event(gap));
    assert_eq!(described(numbers(batches.receive(Told(UpTo(9)), wait).unwrap())), Some("[9]".to_owned()));
    assert_eq!(described(numbers(batches.receive(Told(UpTo(9)), wait).unwrap())), Some("[10, 11]".to_owned()));
    assert_eq!(described(numbers(batches.receive(Told(UpTo(9)), wait).unwrap())), event(EventKind::Left));
    assert!(batches.try_receive(Told(UpTo(9))).unwrap().is_none());
    let mut next = || match told.receive(Told(One), wait).unwrap() {
        Incoming::Message(message) => described(Incoming::Message(vec![message.sequence()])),
        Incoming::Event(event) => described(Incoming::Event(event)),
    };
    assert_eq!([next(), next(), next()], [event(EventKind::Joined), event(gap), Some("[9]".to_owned())]);
    assert_eq!([next(), next()], [Some("[10]".to_owned()), Some("[11]".to_owned())]);
    assert_eq!(next(), event(EventKind::Left));
    assert!(told.try_receive(Told(One)).unwrap().is_none());
    // Who asks for messages is told of nothing else.
    assert_eq!(deaf.recv_timeout(SOON.unwrap()).unwrap().sequence(), 9);
    assert_eq!(deaf.receive(UpTo(9), wait).unwrap().sequences(), [10, 11]);
    assert!(deaf.try_recv().unwrap().is_none());
    assert_eq!(deaf.stats().unwrap().lost, 9);
}

#[test]
fn the_glossary_explains_to_early_and_late_subscribers() {
    let topic = topic();
    let publisher = Publisher::builder(&topic).max_memory(64 << 20).history(4).build().unwrap();
    let early = subscriber(&topic);
    publisher.wait_for_subscribers(1, SOON).unwrap();
    let [schema, other] = [b"a schema".as_slice(), b"another"].map(|text| publisher.explain(text).unwrap().unwrap());
    assert_eq!(publisher.explain(b"a schema").unwrap(), Some(schema));
    let refers = Encoded::default().with_glossary();
    for _ in 0..2 {
        publisher.send_as(Single, b"tiny", (&refers).into(), &mut Wait::up_to(SOON)).unwrap();
    }
    let late = Subscriber::builder(&topic).policy(Policy::DropOldest).history(4).build().unwrap();
    for subscriber in [early, late] {
        let messages = [(); 2].map(|()| subscriber.recv_timeout(SOON.unwrap()).unwrap());
        drop(subscriber);
        let mut understood = 0;
        for message in &messages {
            assert!(!message.is_inline());
            let mut text = |entry| {
                message.explained(entry, |bytes| {
                    understood += 1;
                    String::from_utf8(bytes)
                })
            };
            assert_eq!(*text(schema).unwrap().unwrap(), "a schema");
            assert_eq!(*text(other).unwrap().unwrap(), "another");
            let [far, vast] =
                [(1 << 40, 5), (8, u64::MAX)].map(|(offset, len)| text(byref::Entry { offset, len }).is_none());
            assert!(far && vast);
        }
        assert_eq!(understood, 2);
    }
}

/// The service thread reads what a subscriber sends while somebody waits for a ticket, and so does a sender that waits for
/// room: a byte that one of them peeks at and the other takes is not the end of the connection.
#[test]
fn two_readers_of_a_subscribers_socket_lose_nobody() {
    const TRACKED: u32 = 30_000;
    const UNTRACKED: u32 = 200_000;
    let topic = topic();
    let publisher = Publisher::builder(&topic).max_memory(256 << 10).capacity(16).build().unwrap();
    let subscriber = Subscriber::builder(&topic).events(true).build().unwrap();
    publisher.wait_for_subscribers(1, SOON).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..TRACKED {
                publisher
                    .send_as(Tracked, b"tracked", Beside::NOTHING, &mut Wait::up_to(None))
                    .unwrap()
                    .wait_released(SOON)
                    .unwrap();
            }
        });
        scope.spawn(|| {
            for _ in 0..UNTRACKED {
                publisher.send(&[2; 2000]).unwrap();
            }
        });
        let mut received = 0;
        while received < TRACKED + UNTRACKED {
            match subscriber.receive(Told(One), &mut Wait::up_to(SOON)).unwrap() {
                Incoming::Message(_) => received += 1,
                Incoming::Event(Event { kind: EventKind::Joined, .. }) => {}
                Incoming::Event(event) => panic!("{event:?} after {received} messages"),
            }
            if received % 64 == 0 {
                std::thread::yield_now(); // The senders wait for room.
            }
        }
    });
}
