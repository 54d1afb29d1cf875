//! Tests that need both ends, or look inside.

use super::*;
use crate::Publisher;
use crate::protocol::lease::AWAKE;
use crate::reader::ends::MOST_GONE;
use crate::reader::turns::SleepsAt;
use crate::sys::epoll::Woken;
use std::time::Instant;

/// Without a call to it: what may wait is kept, all of it for one that loses nothing.
#[test]
fn publishers_that_are_gone_leave_nothing_but_messages() {
    let _meeting = crate::link::meeting::meet_in_private();
    let policies = [Policy::Block, Policy::DropOldest];
    let build = |policy| Subscriber::builder("a/*").policy(policy).build().unwrap();
    let subscribers = policies.map(build);
    let come_and_go = |count: usize, is_sending: bool| {
        for number in 0..count {
            let publisher = Publisher::builder(format!("a/{number}")).capacity(16).build().unwrap();
            publisher.wait_for_subscribers(2, Some(Duration::from_secs(20))).unwrap();
            if is_sending {
                publisher.send(b"x").unwrap();
            }
        }
    };
    let eventually = |wanted: [usize; 2]| {
        let begin = Instant::now();
        let kept =
            || subscribers.each_ref().map(|each| each.shared.update(|open| open.reader.connections.len()).unwrap());
        while kept() != wanted {
            assert!(begin.elapsed() < Duration::from_secs(20), "{:?} instead of {wanted:?}", kept());
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    come_and_go(100, false);
    eventually([0, 0]);
    come_and_go(100, true);
    eventually([100, MOST_GONE]);
    let lost = subscribers.each_ref().map(|each| each.stats().unwrap().lost);
    assert_eq!(lost, [0, 100 - MOST_GONE as u64]);
    for (subscriber, count) in subscribers.iter().zip([100, MOST_GONE]) {
        assert_eq!(std::iter::from_fn(|| subscriber.try_recv().unwrap()).count(), count);
    }
    eventually([0, 0]);
}

/// The system refused the heavy fence, and so the publisher and the sleeper missed each other.
#[test]
fn who_polls_hears_later_of_a_message_that_was_missed() {
    let _meeting = crate::link::meeting::meet_in_private();
    let publisher = Publisher::builder("t").capacity(16).build().unwrap();
    let subscriber = Subscriber::builder("t").build().unwrap();
    publisher.wait_for_subscribers(1, Some(Duration::from_secs(20))).unwrap();
    let readiness = subscriber.readiness().unwrap();
    while subscriber.publishers().unwrap().is_empty() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let wait = |time| readiness.0.epoll().wait(Some(time), &mut Vec::new()).unwrap();
    while wait(Duration::ZERO) == Woken::Ready {
        assert!(subscriber.try_recv().unwrap().is_none());
    }
    subscriber.shared.update(|open| open.reader.disarm());
    publisher.send(b"x").unwrap();
    subscriber.announce_sleep().unwrap();
    assert_eq!(wait(Duration::from_millis(10)), Woken::TimedOut, "nobody tells");
    subscriber.look_later();
    assert_eq!(wait(Duration::from_secs(20)), Woken::Ready);
    assert!(subscriber.try_recv().unwrap().is_some());
}

/// It notes the words that there are, and would sleep over what the newcomer sends.
#[test]
fn who_sleeps_again_at_words_announces_it_to_a_newcomer() {
    let _meeting = crate::link::meeting::meet_in_private();
    let subscriber = Subscriber::builder("t/*").build().unwrap();
    let is_by_word = subscriber.shared.update(|open| matches!(open.reader.at, SleepsAt::Words)).unwrap();
    let first = Publisher::builder("t/a").capacity(16).build().unwrap();
    subscriber.wait_for_publishers(1, Some(Duration::from_secs(20))).unwrap();
    subscriber.announce_sleep().unwrap();
    let second = Publisher::builder("t/b").capacity(16).build().unwrap();
    subscriber.wait_for_publishers(2, Some(Duration::from_secs(20))).unwrap();
    let sleeps = |open: &mut Open| {
        let said = open.reader.connections.iter().map(|it| it.link.lease().sleeping() != AWAKE);
        (open.reader.armed, said.collect::<Vec<_>>())
    };
    let wanted = !is_by_word; // Who sleeps at sockets has the newcomer's among them.
    assert_eq!(subscriber.shared.update(sleeps).unwrap(), (wanted, vec![wanted; 2]));
    drop((first, second));
}

#[test]
fn a_sleep_in_pieces_is_one_sleep() {
    let _meeting = crate::link::meeting::meet_in_private();
    let mut sleep = |_| {
        let subscriber = Subscriber::builder("t").build().unwrap();
        let mut looks = 0;
        let mut look = || {
            looks += 1;
            false
        };
        let brief = Duration::from_millis(1);
        let mut wait = Wait::up_to(Some(20 * brief)).interruptible(&mut look).at_least_every(brief);
        subscriber.recv_with(&mut wait).unwrap_err();
        (looks > 4).then(|| subscriber.shared.update(|open| open.reader.spin.time()).unwrap())
    };
    // Others may keep this thread from running for long.
    let time = (0..100).find_map(&mut sleep).expect("it sleeps in pieces");
    assert!(time >= DEFAULT_MOST / 2, "{time:?}: one long sleep halves it once");
}

#[test]
fn publishers_that_are_gone_are_forgotten() {
    let _meeting = crate::link::meeting::meet_in_private();
    let subscribers = ["a/*", "b"].map(|topic| Subscriber::builder(topic).build().unwrap());
    let known = || subscribers.each_ref().map(|each| each.shared.update(|open| open.candidates.known.len()).unwrap());
    let publish = |topic: &str| Publisher::builder(topic).capacity(16).build().unwrap();
    let eventually = |wanted: [usize; 2]| {
        let begin = Instant::now();
        while known() != wanted {
            assert!(begin.elapsed() < Duration::from_secs(20), "{:?} instead of {wanted:?}", known());
            std::thread::sleep(Duration::from_millis(5));
        }
    };

    let publishers = ["a/1", "b", "b", "c", "c/d/e"].map(publish);
    eventually([5, 2]);
    let (matching, others) = publishers.split_at(3);
    others.iter().for_each(Publisher::close);
    eventually([3, 2]);
    matching.iter().for_each(Publisher::close);
    eventually([0, 0]);

    // News that were missed.
    let live = publish("a/2");
    eventually([1, 0]);
    for each in &subscribers {
        each.shared.update(|open| open.candidates.meet("gone"));
        let lookout = each.shared.update(|open| Arc::clone(&open.lookout)).unwrap();
        lookout.miss_something();
    }
    eventually([1, 0]);
    drop((live, subscribers));
}
