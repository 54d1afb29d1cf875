//! Mailboxes between threads of one process; the same across processes, and what their deaths leave, is in the Python tests.

#![allow(unsafe_code)]

use byref::{
    Attributes, Beside, Conflict, Error, EventKind, HeaderValue, Incoming, Mailbox, Message, One, Publisher, Rows,
    Single, Subscriber, To, Told, Tracked, Wait,
};
use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(20);

/// An address of its own for each use, in a directory of its own for this process.
fn address() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    static DIRECTORY: std::sync::Once = std::sync::Once::new();
    DIRECTORY.call_once(|| {
        let directory = std::env::temp_dir().join(format!("byref-test-{}", std::process::id()));
        // SAFETY: called once, before any other code of these tests looks at the environment.
        unsafe { std::env::set_var("BYREF_DIR", directory) };
    });
    format!("test/{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

fn mailbox(address: &str) -> Mailbox {
    Mailbox::builder(address).max_memory(64 << 20).build().unwrap()
}

fn receive(mailbox: &Mailbox) -> Message {
    mailbox.recv_timeout(SOON).unwrap()
}

/// An error of one that may not wait.
fn at_once(mailbox: &Mailbox, to: &str, payload: &[u8]) -> byref::Result<u64> {
    mailbox.send_as(Single, to, payload, Beside::NOTHING, &mut Wait::up_to(Some(Duration::ZERO)))
}

fn eventually(mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < SOON, "not in time");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn every_size_arrives_and_can_be_answered() {
    let (here, there) = (address(), address());
    let (one, other) = (mailbox(&here), mailbox(&there));
    for (number, len) in [0, 1, 63, 224, 225, 4096, 1 << 20].into_iter().enumerate() {
        let payload: Vec<u8> = (0..len).map(|i| (i * 31 + number) as u8).collect();
        assert_eq!(one.send(&there, &payload).unwrap(), number as u64);
        let message = receive(&other);
        assert_eq!((&message[..], message.sequence()), (&payload[..], number as u64));
        let sender = message.sender();
        assert_eq!((sender.address(), sender.process()), (&here[..], std::process::id() as i32));
        assert_eq!(sender, *one.identity());
        assert_eq!(other.send(&sender, b"thanks").unwrap(), number as u64);
        let answer = receive(&one);
        assert_eq!((&answer[..], answer.sender()), (&b"thanks"[..], other.identity().clone()));
    }
    assert_eq!(one.stats().unwrap().destinations, 1);
}

#[test]
fn attributes_timestamps_loans_and_blocks_travel() {
    let there = address();
    let (one, other) = (mailbox(&address()), mailbox(&there));
    let headers = vec![("n".to_owned(), HeaderValue::Int(7))];
    let attributes = Attributes { layout: None, headers };
    let encoded = attributes.encode().unwrap();
    let (to, wait) = (To::from(&there), &mut Wait::up_to(Some(SOON)));
    for len in [3, 200, 5000] {
        let beside = Beside { attributes: &encoded, timestamp_ns: Some(77), tag: 0 };
        one.send_as(Single, &to, &vec![9; len], beside, wait).unwrap();
        let message = receive(&other);
        assert_eq!((message.attributes(), message.timestamp_ns(), message.len()), (attributes.clone(), 77, len));
    }
    let route = one.to(&there);
    let mut loan = route.loan(1 << 20).unwrap();
    loan.fill(5);
    loan.send().unwrap();
    let message = receive(&other);
    assert!(message.len() == 1 << 20 && message.iter().all(|byte| *byte == 5) && !message.is_inline());
    assert_eq!(route.send_as(Rows(3), b"aabbcc", Beside::NOTHING, wait).unwrap(), 4..7);
    let rows: Vec<_> = (0..3).map(|_| receive(&other).to_vec()).collect();
    assert_eq!(rows, [b"aa", b"bb", b"cc"]);
    let ticket = route.send_as(Tracked, b"tracked", Beside::NOTHING, wait).unwrap();
    let message = receive(&other);
    assert!(!ticket.is_released().unwrap());
    drop(message);
    ticket.wait_released(Some(SOON)).unwrap();
}

#[test]
fn an_address_has_one_holder_at_a_time() {
    let shared = address();
    let first = mailbox(&shared);
    let Err(Error::AddressInUse { address, pid, conflict, .. }) = Mailbox::builder(&shared).build() else {
        panic!("it is in use")
    };
    assert_eq!((address, pid, conflict), (shared.clone(), std::process::id() as i32, Conflict::Held));
    let publisher = Publisher::builder(&shared).build().unwrap();
    let subscriber = Subscriber::builder(&shared).build().unwrap();
    publisher.wait_for_subscribers(1, Some(SOON)).unwrap();
    subscriber.wait_for_publishers(1, Some(SOON)).unwrap(); // Topics are others.
    first.close();
    let second = mailbox(&shared);
    assert_ne!(second.identity(), first.identity());
    let third = Mailbox::builder(&shared).takeover(true).build().unwrap();
    for error in [second.recv().unwrap_err(), second.send("x", b"").unwrap_err(), second.peers().unwrap_err()] {
        assert!(matches!(error, Error::AddressInUse { conflict: Conflict::TakenOver, .. }), "{error}");
        assert!(error.to_string().contains(&format!("process {} (", std::process::id())), "{error}");
    }
    assert!(second.is_closed().unwrap() && !third.is_closed().unwrap());
    drop(first); // It has nothing to give back any more.
    assert!(matches!(Mailbox::builder(&shared).build(), Err(Error::AddressInUse { .. })));
}

#[test]
fn of_two_that_claim_at_the_same_time_one_wins() {
    for takeover in [false, true] {
        for _ in 0..20 {
            let shared = address();
            let claim = || Mailbox::builder(&shared).takeover(takeover).build();
            let claimed: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(claim)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            let open = claimed.iter().flatten().filter(|it| !it.is_closed().unwrap()).count();
            assert_eq!(open, 1);
            for error in claimed.iter().filter_map(|claim| claim.as_ref().err()) {
                assert!(matches!(error, Error::AddressInUse { .. }) && !takeover, "{error}");
            }
        }
    }
}

#[test]
fn bad_addresses_and_settings_are_refused() {
    let own = mailbox(&address());
    for bad in ["", "a/*", "**", "a//b", "/a", &"x".repeat(1025), "a\nb"] {
        assert!(matches!(Mailbox::builder(bad).build(), Err(Error::InvalidTopic { .. })), "{bad:?}");
        assert!(matches!(own.send(bad, b""), Err(Error::InvalidTopic { .. })), "{bad:?}");
    }
    assert!(matches!(own.wait_for_peer("a*", None), Err(Error::InvalidTopic { .. })));
    assert!(matches!(Mailbox::builder("a").depth(0).build(), Err(Error::InvalidArgument(_))));
    assert!(matches!(Mailbox::builder("a").depth(1 << 40).build(), Err(Error::InvalidArgument(_))));
    assert!(matches!(Mailbox::builder("a").max_memory(0).build(), Err(Error::InvalidArgument(_))));
    let longest = "x".repeat(1024);
    let _long = mailbox(&longest);
    own.send(&longest, b"").unwrap();
}

#[test]
fn to_nobody_and_to_one_that_comes() {
    let (own, later) = (mailbox(&address()), address());
    let refused = own.send(&later, b"").unwrap_err();
    assert!(matches!(&refused, Error::Unroutable { address, .. } if *address == later), "{refused}");
    let refused = own.wait_for_peer(&later, Some(Duration::from_millis(30))).unwrap_err();
    assert!(matches!(refused, Error::Timeout { .. }));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| own.wait_for_peer("test/**", Some(SOON)).unwrap());
        let sending = scope.spawn(|| {
            let route = own.to(&later).come_within(SOON);
            route.send_as(Single, b"hello", Beside::NOTHING, &mut Wait::up_to(None))
        });
        std::thread::sleep(Duration::from_millis(50));
        let other = mailbox(&later);
        sending.join().unwrap().unwrap();
        assert_eq!(receive(&other)[..], *b"hello");
        waiting.join().unwrap();
        assert_eq!(own.wait_for_peer(&later, Some(SOON)).unwrap(), *other.identity());
    });
}

#[test]
fn an_old_incarnation_is_lost_though_the_address_is_not() {
    let there = address();
    let own = mailbox(&address());
    let other = mailbox(&there);
    own.send(&there, b"first").unwrap();
    let old = other.identity().clone();
    receive(&other);
    other.close();
    let again = mailbox(&there);
    let lost = own.send(&old, b"").unwrap_err();
    assert!(
        matches!(&lost, Error::PeerLost { peer, undelivered, .. } if *peer == old && undelivered.is_empty()),
        "{lost}"
    );
    assert_eq!(own.send(&there, b"second").unwrap(), 0);
    let message = receive(&again);
    assert_eq!((&message[..], message.sequence()), (&b"second"[..], 0));
}

#[test]
fn what_was_never_taken_is_the_senders_again_and_goes_on_without_a_copy() {
    let [here, there, elsewhere] = std::array::from_fn(|_| address());
    let (own, other, third) = (mailbox(&here), mailbox(&there), mailbox(&elsewhere));
    let wait = &mut Wait::up_to(Some(SOON));
    let headers = Attributes { layout: None, headers: vec![("k".to_owned(), HeaderValue::Bool(true))] };
    for number in 0..6u8 {
        let payload = vec![number; if number % 2 == 0 { 10 } else { 100_000 }];
        let encoded = headers.encode().unwrap();
        let beside = Beside { attributes: &encoded, timestamp_ns: Some(number as u64), tag: 0 };
        own.send_as(Single, &there, &payload, beside, wait).unwrap();
    }
    own.to(&there).send_as(Rows(3), &[7; 9000], Beside { timestamp_ns: Some(6), ..Beside::NOTHING }, wait).unwrap();
    let kept: Vec<_> = (0..3).map(|_| receive(&other)).collect(); // Its holds outlive the mailbox.
    assert_eq!(own.undelivered(&there).unwrap().len(), 0, "it lives");
    other.close();
    let copied = own.stats().unwrap().copied_bytes;
    let messages = own.undelivered(&there).unwrap();
    assert_eq!(messages.iter().map(|it| it.sequence()).collect::<Vec<_>>(), [3, 4, 5, 6, 7, 8]);
    assert!(own.undelivered(&there).unwrap().is_empty(), "they are given once");
    for (message, number) in messages.iter().zip(3u8..) {
        assert_eq!(message.peer(), other.identity());
        assert_eq!(message.timestamp_ns(), (number as u64).min(6));
        assert!(message.iter().all(|byte| *byte == if number < 6 { number } else { 7 }), "{message:?}");
        assert_eq!(message.attributes(), if number < 6 { headers.clone() } else { Attributes::default() });
    }
    let before = messages.iter().filter(|it| it.len() > 100).count();
    assert_eq!(before, 5);
    for message in messages {
        own.send_undelivered(&elsewhere, message).unwrap();
    }
    // Small ones are copied into the ring once more.
    assert_eq!(own.stats().unwrap().copied_bytes - copied, 10);
    let lens: Vec<_> = (0..6).map(|_| receive(&third)).map(|it| (it.len(), it[0], it.timestamp_ns())).collect();
    assert_eq!(lens, [(100_000, 3, 3), (10, 4, 4), (100_000, 5, 5), (3000, 7, 6), (3000, 7, 6), (3000, 7, 6)]);
    assert_eq!(kept.iter().map(|it| it[0]).collect::<Vec<_>>(), [0, 1, 2]);
    drop(kept);
    third.close();
    eventually(|| own.stats().unwrap().destinations == 0);
    // All the memory comes back.
    let mut loan = own.to(own.address()).loan(60 << 20).unwrap();
    loan.discard();
    assert!(own.stats().unwrap().pool_used == 0, "{:?}", own.stats());
}

#[test]
fn a_row_that_was_taken_is_not_undelivered() {
    let there = address();
    let (own, other) = (mailbox(&address()), mailbox(&there));
    own.to(&there).send_as(Rows(6), b"abcdef", Beside::NOTHING, &mut Wait::up_to(Some(SOON))).unwrap();
    let taken: Vec<u8> = (0..4).map(|_| receive(&other)[0]).collect();
    assert_eq!(taken, *b"abcd");
    other.close();
    let left: Vec<u8> = own.undelivered(&there).unwrap().iter().map(|it| it[0]).collect();
    assert_eq!(left, *b"ef");
}

#[test]
fn what_nobody_asks_for_is_dropped_with_its_mailbox() {
    let there = address();
    let (own, other) = (mailbox(&address()), mailbox(&there));
    own.send(&there, &[3; 5000]).unwrap();
    other.close();
    let [message] = &own.undelivered(other.identity()).unwrap()[..] else { panic!("one message") };
    own.close();
    assert!(message.len() == 5000 && message.iter().all(|byte| *byte == 3), "it keeps its memory");
    let lost = mailbox(&address()).send_undelivered("nobody", message.clone()).unwrap_err();
    assert!(matches!(lost.reason, Error::Unroutable { .. }) && lost.message.len() == 5000);
    let third = address();
    let (new, receiver) = (mailbox(&address()), mailbox(&third));
    new.send_undelivered(&third, message.clone()).unwrap();
    assert_eq!(receive(&receiver).len(), 5000, "by way of another mailbox it is copied");
}

#[test]
fn depth_bounds_what_waits_and_nobody_else_waits_for_it() {
    let (slow, quick) = (address(), address());
    let own = Mailbox::builder(address()).depth(4).build().unwrap();
    let (slow_box, quick_box) = (mailbox(&slow), mailbox(&quick));
    for _ in 0..4 {
        own.send(&slow, b"x").unwrap();
    }
    let refused = at_once(&own, &slow, b"x").unwrap_err();
    assert!(matches!(refused, Error::Timeout { .. }), "{refused}");
    assert!(refused.to_string().contains(&format!("it was to '{slow}'")), "{refused}");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| own.send(&slow, b"last").unwrap());
        eventually(|| own.stats().unwrap().waits > 1);
        for number in 0..1000 {
            assert_eq!(own.send(&quick, b"y").unwrap(), number);
            receive(&quick_box);
        }
        assert!(!waiting.is_finished());
        for _ in 0..4 {
            assert_eq!(receive(&slow_box)[..], *b"x");
        }
        assert_eq!(waiting.join().unwrap(), 4);
    });
    assert_eq!(receive(&slow_box)[..], *b"last");
}

#[test]
fn who_waits_for_one_that_ends_hears_of_it() {
    let there = address();
    let own = Mailbox::builder(address()).depth(2).build().unwrap();
    let other = mailbox(&there);
    own.send(&there, b"0").unwrap();
    own.send(&there, b"1").unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| own.send(&there, b"2").unwrap_err());
        eventually(|| own.stats().unwrap().waits > 0);
        other.close();
        let lost = waiting.join().unwrap();
        assert!(matches!(&lost, Error::PeerLost { undelivered, .. } if undelivered.len() == 2), "{lost}");
    });
    assert_eq!(own.undelivered(&there).unwrap().len(), 2);
}

#[test]
fn a_mailbox_does_not_wait_for_itself() {
    let own_address = address();
    let own = Mailbox::builder(&own_address).depth(3).build().unwrap();
    for number in 0..3u8 {
        own.send(&own_address, &[number]).unwrap();
    }
    let refused = own.send(&own_address, b"").unwrap_err();
    assert!(refused.to_string().contains("does not wait for itself"), "{refused}");
    let got: Vec<_> = (0..3).map(|_| receive(&own)[0]).collect();
    assert_eq!(got, [0, 1, 2]);
    own.send(&own_address, b"").unwrap();
    assert_eq!(own.peers().unwrap(), [own.identity().clone()]);
}

#[test]
fn two_that_send_to_each_other_first_meet_once_each_way() {
    for _ in 0..20 {
        let addresses = [address(), address()];
        let boxes = [mailbox(&addresses[0]), mailbox(&addresses[1])];
        std::thread::scope(|scope| {
            scope.spawn(|| boxes[0].send(&addresses[1], b"to 1").unwrap());
            scope.spawn(|| boxes[1].send(&addresses[0], b"to 0").unwrap());
        });
        assert_eq!([receive(&boxes[0]), receive(&boxes[1])].map(|it| it.to_vec()), [b"to 0", b"to 1"]);
        assert_eq!(boxes.each_ref().map(|it| it.peers().unwrap().len()), [1, 1]);
    }
}

#[test]
fn turns_among_senders_are_fair_and_each_one_s_messages_in_order() {
    let there = address();
    let other = mailbox(&there);
    let senders: Vec<_> = (0..4).map(|_| mailbox(&address())).collect();
    for number in 0..100u32 {
        for sender in &senders {
            sender.send(&there, &number.to_ne_bytes()).unwrap();
        }
    }
    eventually(|| other.peers().unwrap().len() == senders.len());
    let mut next = vec![0; senders.len()];
    for taken in 0..400 {
        let message = receive(&other);
        let from = senders.iter().position(|sender| *sender.identity() == message.sender()).unwrap();
        assert_eq!(u32::from_ne_bytes(message[..].try_into().unwrap()), next[from]);
        next[from] += 1;
        let (least, most) = (next.iter().min().unwrap(), next.iter().max().unwrap());
        assert!(taken > 300 || most - least <= 16, "{next:?}");
    }
}

#[test]
fn all_that_a_pattern_matches_get_one_copy() {
    let base = address();
    let own = mailbox(&address());
    let others: Vec<_> = (0..16).map(|number| mailbox(&format!("{base}/worker/{number}"))).collect();
    let stranger = mailbox(&format!("{base}/other"));
    let pattern = format!("{base}/worker/*");
    for len in [10, 1 << 20] {
        let copied = own.stats().unwrap().copied_bytes;
        let reached: HashSet<_> = own.send_to_all(&pattern, &vec![7; len]).unwrap().into_iter().collect();
        assert_eq!(reached, others.iter().map(|it| it.identity().clone()).collect());
        let messages: Vec<_> = others.iter().map(receive).collect();
        assert!(messages.iter().all(|it| it.len() == len && it.iter().all(|byte| *byte == 7)));
        let copied = own.stats().unwrap().copied_bytes - copied;
        assert!(len < 1000 || copied <= 16 * len as u64, "{copied}");
        if len > 1000 {
            let used = own.stats().unwrap().pool_used;
            assert!(used < 2 << 20, "one copy, {used} bytes");
        }
    }
    assert!(stranger.try_recv().unwrap().is_none());
    assert!(own.send_to_all("nobody/*", b"").unwrap().is_empty());
    let mut loan = own.to_all("nobody/*").unwrap().loan_with(5000, 0, &mut Wait::up_to(Some(SOON))).unwrap();
    assert_eq!(loan.send_as(Single, Beside::NOTHING, &mut Wait::up_to(Some(SOON))).unwrap(), 0);
}

#[test]
fn one_that_is_full_or_gone_keeps_nothing_from_the_others() {
    let base = address();
    let own = Mailbox::builder(address()).depth(2).build().unwrap();
    let others: Vec<_> = (0..3).map(|number| mailbox(&format!("{base}/{number}"))).collect();
    let full = others[0].address();
    own.send(full, b"").unwrap();
    own.send(full, b"").unwrap();
    for other in &others[1..] {
        own.send(other.address(), b"").unwrap();
        receive(other);
    }
    others[1].close();
    let brief = &mut Wait::up_to(Some(Duration::from_secs(3))); // In which the others say who they are.
    let everyone = own.to_all(&format!("{base}/**")).unwrap();
    let reached = everyone.send_with(b"all", Beside::NOTHING, brief).unwrap();
    assert_eq!(reached, [others[2].identity().clone()]);
    assert_eq!(receive(&others[2])[..], *b"all");
}

#[test]
fn events_tell_who_comes_and_goes() {
    let there = address();
    let own = Mailbox::builder(&there).events(true).build().unwrap();
    let inbox = own.inbox();
    let next = || inbox.receive(Told(One), &mut Wait::up_to(Some(SOON))).unwrap();
    let other = mailbox(&address());
    other.send(&there, b"hello").unwrap();
    let Incoming::Event(event) = next() else { panic!("an event first") };
    assert_eq!((event.kind, &*event.publisher.topic), (EventKind::Joined, other.address()));
    assert!(matches!(next(), Incoming::Message(message) if message[..] == *b"hello"));
    own.send(other.address(), b"never taken").unwrap();
    other.close();
    let Incoming::Event(event) = next() else { panic!("it left") };
    assert_eq!((event.kind, event.publisher.id), (EventKind::Left, other.identity().incarnation()));
    assert_eq!(own.undelivered(other.identity()).unwrap().len(), 1);
    // One that never sent anything.
    let silent = mailbox(&address());
    own.send(silent.address(), b"never taken").unwrap();
    silent.close();
    let Incoming::Event(event) = next() else { panic!("it left") };
    assert_eq!((event.kind, event.publisher.id), (EventKind::Left, silent.identity().incarnation()));
    assert_eq!(own.undelivered(silent.identity()).unwrap().len(), 1);
}

#[test]
fn a_hundred_mailboxes_in_one_process() {
    let boxes: Vec<_> = (0..100).map(|_| mailbox(&address())).collect();
    let scheduler = mailbox(&address());
    for each in &boxes {
        scheduler.send(each.address(), b"work").unwrap();
    }
    for each in &boxes {
        let message = receive(each);
        each.send(message.sender(), each.address().as_bytes()).unwrap();
    }
    let answers: HashSet<_> = (0..100).map(|_| receive(&scheduler).sender()).collect();
    assert_eq!(answers, boxes.iter().map(|it| it.identity().clone()).collect());
    assert_eq!(scheduler.peers().unwrap().len(), 100);
    drop(boxes);
    eventually(|| scheduler.peers().unwrap().is_empty());
}

#[test]
fn anonymous_mailboxes_are_found_by_their_messages() {
    let there = address();
    let (named, nameless) = (mailbox(&there), Mailbox::anonymous().build().unwrap());
    nameless.send(&there, b"?").unwrap();
    let message = receive(&named);
    assert!(message.sender().address().starts_with("anonymous/"));
    named.send(message.sender(), b"!").unwrap();
    assert_eq!(receive(&nameless)[..], *b"!");
}

#[test]
fn a_mailbox_that_is_closed_says_so_and_what_it_sent_arrives() {
    let there = address();
    let (own, other) = (mailbox(&address()), mailbox(&there));
    own.send(&there, b"small").unwrap();
    own.send(&there, &[1; 50_000]).unwrap();
    own.close();
    own.close();
    assert!(matches!(own.send(&there, b""), Err(Error::Closed { what: "mailbox", .. })));
    assert!(matches!(own.recv(), Err(Error::Closed { what: "mailbox", .. })));
    assert!(matches!(own.undelivered(&there), Err(Error::Closed { .. })));
    assert!(own.send(&there, b"").unwrap_err().to_string().starts_with("the mailbox 'test/"));
    assert_eq!([receive(&other).len(), receive(&other).len()], [5, 50_000]);
    assert_eq!(own.stats().unwrap().sent, 2);
}

/// A mailbox that leaves in good order while its sender looks for room: what was sent was taken, or is undelivered.
#[test]
fn the_accounts_of_one_that_leaves_meanwhile_are_exact() {
    let sender = Mailbox::builder(address()).depth(2).build().unwrap();
    for round in 0..300 {
        let name = address();
        let reader = Mailbox::builder(name.clone()).build().unwrap();
        sender.send(name.as_str(), b"0").unwrap();
        let (sent, undelivered) = std::thread::scope(|scope| {
            let sending = scope.spawn(|| {
                let mut sent = 1u64;
                while let Ok(_sequence) = sender.send(name.as_str(), b"x") {
                    sent += 1;
                }
                sent
            });
            for _ in 0..20 + round % 7 {
                reader.recv_timeout(Duration::from_secs(20)).unwrap();
            }
            for _ in 0..round % 50 {
                std::hint::spin_loop();
            }
            reader.close();
            (sending.join().unwrap(), sender.undelivered(name.as_str()).unwrap().len() as u64)
        });
        assert_eq!(sent, reader.stats().unwrap().received + undelivered, "round {round}");
    }
}
