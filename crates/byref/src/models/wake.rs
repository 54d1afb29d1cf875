//! Models of the wake-ups. A wake-up that is lost leaves a thread asleep for ever: loom reports a deadlock.

use super::parties::{
    Memory, Publisher, Reader, Selector, Shape, Sockets, Subscriber, Taken, Waker, recv, recv_at_word,
};
use super::{EXHAUSTIVE, explore};
use crate::protocol::claim::Policy;
use crate::protocol::ring::NEVER;
use crate::sync::Pairing;
use loom::sync::Mutex;
use loom::thread;
use std::cell::RefCell;
use std::rc::Rc;

const POLICY: Policy = Policy::Block;

/// A publisher of `memory`, and a subscriber to each of its readers, that wake each other.
fn connected(memory: &Rc<Memory>, readers: usize) -> (Publisher, Vec<RefCell<Subscriber>>) {
    let mut publisher = Publisher::new(memory, Pairing::Fenced, &vec![POLICY; readers]);
    let subscribers = (0..readers)
        .map(|number| {
            let mut reader = Reader::new(memory, Pairing::Fenced, number, POLICY);
            reader.door = Rc::clone(&publisher.door);
            let subscriber = Subscriber::new([reader]);
            publisher.peers[number].door = Rc::clone(&subscriber.door);
            RefCell::new(subscriber)
        })
        .collect();
    (publisher, subscribers)
}

fn recv_all(subscriber: &RefCell<Subscriber>, messages: u64) {
    for position in 0..messages {
        assert_eq!(recv(|| subscriber.borrow_mut()).position, position);
    }
}

/// A subscriber that sleeps when it finds nothing receives every message, and is rung no more than once for each sleep.
#[test]
fn no_lost_wake_up() {
    explore(EXHAUSTIVE, || {
        let memory = Memory::new(Shape { capacity: 2, first: None, readers: 1, chunks: 0 });
        let (mut publisher, mut subscribers) = connected(&memory, 1);
        let subscriber = subscribers.remove(0);
        let receiving = thread::spawn(move || {
            recv_all(&subscriber, 2);
            subscriber.into_inner().epoch()
        });
        for _ in 0..2 {
            publisher.send_inline().expect("there is room");
        }
        let sleeps = receiving.join().expect("the subscriber ends");
        assert!(publisher.peers[0].door.wakes.get() <= sleeps);
    });
}

/// Those who sleep at the publisher's wake word receive every message, whether the sender wakes them or another thread does.
fn no_lost_wake_up_by_word_of(
    readers: usize,
    messages: u64,
    interruptions: u32,
    has_waker: bool,
    bound: Option<usize>,
) {
    explore(bound, move || {
        let memory = Memory::with_alarm(Shape { capacity: 2, first: None, readers, chunks: 0 });
        let (mut publisher, subscribers) = connected(&memory, readers);
        let receiving: Vec<_> = subscribers
            .into_iter()
            .map(|subscriber| {
                thread::spawn(move || {
                    let mut subscriber = subscriber.into_inner();
                    for position in 0..messages {
                        assert_eq!(recv_at_word(&mut subscriber, interruptions).position, position);
                    }
                })
            })
            .collect();
        let waking = has_waker.then(|| {
            let (waker, memory) = (Waker::new(), Rc::clone(&memory));
            publisher.waker = Some(Rc::clone(&waker));
            (Rc::clone(&waker), thread::spawn(move || waker.run(memory.alarm())))
        });
        for _ in 0..messages {
            publisher.send_inline().expect("there is room");
        }
        for receiving in receiving {
            receiving.join().expect("the subscriber ends");
        }
        if let Some((waker, thread)) = waking {
            waker.stop();
            thread.join().expect("it ends");
        }
    });
}

#[test]
fn no_lost_wake_up_by_word() {
    no_lost_wake_up_by_word_of(1, 2, 0, false, EXHAUSTIVE);
}

#[test]
fn no_lost_wake_up_by_word_of_two() {
    no_lost_wake_up_by_word_of(2, 1, 0, false, Some(3));
}

#[test]
fn no_lost_wake_up_by_another_thread() {
    no_lost_wake_up_by_word_of(1, 2, 0, true, Some(3));
}

/// Nor by one whose sleep ends early, and who goes on sleeping without announcing it anew.
#[test]
fn no_lost_wake_up_of_a_sleep_in_pieces() {
    no_lost_wake_up_by_word_of(1, 2, 1, false, Some(4));
}

/// Who sleeps at words sees to every packet that comes to its sockets, though it reads one at a time.
#[test]
fn no_lost_news() {
    explore(EXHAUSTIVE, || {
        let sockets = Sockets::new();
        let service = {
            let sockets = Rc::clone(&sockets);
            thread::spawn(move || [true, false].into_iter().for_each(|is_first| sockets.receive(is_first)))
        };
        sockets.hear(2);
        service.join().expect("it ends");
    });
}

/// A subscriber of two publishers sleeps only when it has looked at both rings again.
#[test]
fn no_lost_wake_up_of_two() {
    explore(Some(4), || {
        let mut publishers = [0, 1].map(|_| {
            let memory = Memory::new(Shape { capacity: 2, first: None, readers: 1, chunks: 0 });
            (Publisher::new(&memory, Pairing::Fenced, &[POLICY]), memory)
        });
        let readers = publishers.each_ref().map(|(_, memory)| Reader::new(memory, Pairing::Fenced, 0, POLICY));
        let subscriber = Subscriber::new(readers);
        for (publisher, _) in &mut publishers {
            publisher.peers[0].door = Rc::clone(&subscriber.door);
        }
        let sending =
            publishers.map(|(mut publisher, _)| thread::spawn(move || publisher.send_inline().expect("there is room")));
        let subscriber = RefCell::new(subscriber);
        for _ in 0..2 {
            assert_eq!(recv(|| subscriber.borrow_mut()).position, 0);
        }
        for sending in sending {
            sending.join().expect("the publisher ends");
        }
    });
}

/// A selector of two subscribers, to each of which a publisher sends one message; `receive` takes both.
fn selected(receive: impl Fn(&mut Selector) -> [(usize, Taken); 2] + Send + Sync + 'static) {
    explore(Some(4), move || {
        let mut publishers = [0, 1].map(|_| {
            let memory = Memory::new(Shape { capacity: 2, first: None, readers: 1, chunks: 0 });
            (Publisher::new(&memory, Pairing::Fenced, &[POLICY]), memory)
        });
        let subscribers =
            publishers.each_ref().map(|(_, memory)| Subscriber::new([Reader::new(memory, Pairing::Fenced, 0, POLICY)]));
        for (publisher, _) in &mut publishers {
            publisher.peers[0].door = Rc::clone(&subscribers[0].door);
        }
        let sending =
            publishers.map(|(mut publisher, _)| thread::spawn(move || publisher.send_inline().expect("there is room")));
        let mut taken = receive(&mut Selector::new(subscribers.into()));
        taken.sort_by_key(|(whose, _)| *whose);
        assert_eq!(taken.map(|(whose, taken)| (whose, taken.position)), [(0, 0), (1, 0)]);
        for sending in sending {
            sending.join().expect("the publisher ends");
        }
    });
}

/// A selector of two subscribers arms both with one fence, and sleeps only when it has looked at both again.
#[test]
fn no_lost_wake_up_of_many() {
    selected(|selector| [selector.recv(), selector.recv()]);
}

/// It arms one that was idle while the other is busy, looks at the other alone, and sleeps later, when it has armed that, too.
#[test]
fn no_lost_wake_up_beside_a_busy_one() {
    selected(|selector| {
        let idle = selector.arm_idle(1);
        let first = idle.or_else(|| selector.try_recv(0)).unwrap_or_else(|| selector.recv());
        [first, selector.recv()]
    });
}

/// A publisher that sleeps because its ring is full, and readers that sleep because it is empty, wake each other: every
/// message arrives. Nobody is rung more than once for each sleep.
#[test]
fn no_lost_room() {
    for (readers, messages, bound) in [(1, 3, 3), (2, 2, 2)] {
        explore(Some(bound), move || {
            let memory = Memory::new(Shape { capacity: 1, first: None, readers, chunks: 0 });
            let (mut publisher, subscribers) = connected(&memory, readers);
            let receiving: Vec<_> = subscribers
                .into_iter()
                .map(|subscriber| thread::spawn(move || recv_all(&subscriber, messages)))
                .collect();
            for _ in 0..messages {
                publisher.send_inline_waiting();
            }
            for receiving in receiving {
                receiving.join().expect("the subscriber ends");
            }
            assert!(publisher.door.wakes.get() <= publisher.waits * readers as u64);
        });
    }
}

/// Two threads share a subscriber: one sleeps; the other meanwhile reads the sockets, takes at most one message, and does
/// not come back. The sleeper still wakes for the next message.
#[test]
fn threads_share_a_sleep() {
    explore(Some(4), || {
        let memory = Memory::new(Shape { capacity: 2, first: None, readers: 1, chunks: 0 });
        let (mut publisher, mut subscribers) = connected(&memory, 1);
        let subscriber = Rc::new(Mutex::new(subscribers.remove(0).into_inner()));
        let sleeping = {
            let subscriber = Rc::clone(&subscriber);
            thread::spawn(move || recv(|| subscriber.lock().expect("not poisoned")))
        };
        let passing = thread::spawn(move || subscriber.lock().expect("not poisoned").try_recv());
        for _ in 0..2 {
            publisher.send_inline().expect("there is room");
        }
        let taken = [Some(sleeping.join().expect("it receives")), passing.join().expect("it ends")];
        assert_ne!(taken[0], taken[1]);
    });
}

/// A subscriber is rung once for each sleep, however many messages come, and not at all while it is awake.
#[test]
fn one_wake_per_epoch() {
    explore(EXHAUSTIVE, || {
        let memory = Memory::new(Shape { capacity: 4, first: None, readers: 1, chunks: 0 });
        let (mut publisher, mut subscribers) = connected(&memory, 1);
        let mut subscriber = subscribers.remove(0).into_inner();
        publisher.send_inline().expect("there is room");
        assert_eq!(publisher.peers[0].door.wakes.get(), 0);
        let arming = thread::spawn(move || {
            subscriber.arm();
            subscriber.arm();
        });
        for _ in 0..2 {
            publisher.send_inline().expect("there is room");
        }
        arming.join().expect("it ends");
        publisher.send_inline().expect("there is room");
        assert!((1..=2).contains(&publisher.peers[0].door.wakes.get()));
    });
}

/// A publisher is rung once by each reader for each cursor that it waits for, however far they go.
#[test]
fn one_wake_per_wait() {
    explore(EXHAUSTIVE, || {
        let memory = Memory::new(Shape { capacity: 4, first: None, readers: 1, chunks: 0 });
        let (publisher, mut subscribers) = connected(&memory, 1);
        let mut reader = subscribers.remove(0).into_inner().readers.remove(0);
        let reading = thread::spawn(move || {
            for cursor in 1..=3 {
                reader.advance(cursor);
            }
        });
        memory.ring().set_wake_at(1);
        memory.ring().set_wake_at(2);
        memory.ring().set_wake_at(NEVER);
        reading.join().expect("the reader ends");
        assert!(publisher.door.wakes.get() <= 2);
    });
}

/// Who waits for a release is woken by the last of several holds, and sees none then.
#[test]
fn no_lost_release() {
    explore(EXHAUSTIVE, || {
        let memory = Memory::new(Shape { capacity: 2, first: None, readers: 1, chunks: 1 });
        let mut publisher = Publisher::new(&memory, Pairing::Fenced, &[POLICY]);
        let mut reader = Reader::new(&memory, Pairing::Fenced, 0, POLICY);
        reader.door = Rc::clone(&publisher.door);
        let sent = publisher.send_tracked();
        let reading = thread::spawn(move || {
            let message = reader.take().expect("it was sent before");
            reader.lease().hold_again(0);
            let clone = message;
            reader.release(message);
            reader.read(clone);
            reader.release(clone);
        });
        publisher.wait_released(sent);
        memory.chunks[0].write(u64::MAX); // Nobody reads it any more.
        reading.join().expect("the reader ends");
        assert!(publisher.door.wakes.get() <= 1);
    });
}

/// Who waits for the release of a message that a lossy reader skips, or takes, is woken either way.
#[test]
fn no_lost_release_of_what_is_skipped() {
    explore(EXHAUSTIVE, || {
        let memory = Memory::new(Shape { capacity: 2, first: None, readers: 1, chunks: 1 });
        let mut publisher = Publisher::new(&memory, Pairing::Fenced, &[Policy::Latest]);
        let mut reader = Reader::new(&memory, Pairing::Fenced, 0, Policy::Latest);
        reader.door = Rc::clone(&publisher.door);
        let sent = publisher.send_tracked();
        publisher.send_inline().expect("there is room");
        let reading = thread::spawn(move || {
            reader.drain();
        });
        publisher.wait_released(sent);
        reading.join().expect("the reader ends");
    });
}
