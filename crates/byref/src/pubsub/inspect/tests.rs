//! Tests that need both ends, or look inside.

use super::*;
use crate::{Publisher, Subscriber};
use std::time::Duration;

const SOON: Option<Duration> = Some(Duration::from_secs(20));

fn report(name: &str) -> SubscriberReport {
    let name = Some(name.to_owned());
    SubscriberReport { pid: 1, name, policy: Policy::Block, depth: 2, lag: 3, held: 4, held_bytes: 5 }
}

/// Everything that an onlooker is told, and no more of it than was announced.
#[test]
fn more_subscribers_than_a_packet_has_room_for_are_all_told() {
    let long = "x".repeat(1024);
    let names: Vec<_> = (0..40).map(|number| if number % 3 == 0 { long.clone() } else { number.to_string() }).collect();
    let told = PublisherReport {
        topic: "a/b".into(),
        name: Some("with\u{7}bell".into()),
        id: 7,
        pid: 0,
        max_memory: 1,
        history: 2,
        capacity: 3,
        at_ns: 4,
        stats: PublisherStats { sent: 5, ..PublisherStats::default() },
        subscribers: names.iter().map(|name| report(name)).collect(),
    };
    let (ours, theirs) = socket::pair().unwrap();
    show(&theirs, told.clone());
    drop(theirs);
    let mut found = None;
    while let Answered::More = read(&ours, &mut found) {}
    let found = found.unwrap();
    assert_eq!(found.subscribers, told.subscribers);
    assert_eq!((found.topic.as_str(), found.name.as_deref(), found.stats.sent), ("a/b", Some("with\\u{7}bell"), 5));
    assert_eq!(found.pid, std::process::id() as i32, "the system says so");
}

#[test]
fn publishers_tell_of_themselves_and_their_subscribers() {
    let _meeting = crate::link::meeting::meet_in_private();
    let near = Publisher::builder("near/one").name("first").history(3).build().unwrap();
    let _far = Publisher::builder("far").build().unwrap();
    let late = Subscriber::builder("near/*").name("late").depth(9).build().unwrap();
    near.wait_for_subscribers(1, SOON).unwrap();
    for _ in 0..3 {
        near.send(&[1; 5000]).unwrap();
    }
    let _held = late.recv().unwrap();
    let topics = |pattern| publishers(pattern).unwrap().into_iter().map(|one| one.topic).collect::<Vec<_>>();
    assert_eq!(topics("**"), ["far", "near/one"]);
    assert_eq!(topics("far"), ["far"]);
    assert!(topics("near").is_empty());
    let [found] = &publishers("near/**").unwrap()[..] else { panic!("one") };
    assert_eq!((found.name.as_deref(), found.history, found.stats.sent), (Some("first"), 3, 3));
    assert_eq!(found.id, near.id());
    let [subscriber] = &found.subscribers[..] else { panic!("one") };
    assert_eq!((subscriber.name.as_deref(), subscriber.depth, subscriber.lag), (Some("late"), 9, 2));
    assert_eq!((subscriber.held, subscriber.held_bytes), (1, 5000));
    near.close();
    assert_eq!(topics("**"), ["far"]);
    assert!(publishers("a//b").is_err());
}

#[test]
fn answers_that_are_none_are_left_out() {
    let (ours, theirs) = socket::pair().unwrap();
    let mut found = None;
    assert!(socket::send(&theirs, &handshake::encode_first(&Packet::Subscribers(vec![report("x")])), None).unwrap());
    assert!(matches!(read(&ours, &mut found), Answered::All), "subscribers of nobody");
    assert!(socket::send(&theirs, b"nonsense", None).unwrap());
    assert!(matches!(read(&ours, &mut found), Answered::All));
    assert!(found.is_none());
}
