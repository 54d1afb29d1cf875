use crate::error::Error;
use crate::sync::wait::Wait;
use crate::work::Reason;
use crate::{Beside, Job, Policy, Publisher, Puller, Pusher, Rows, Subscriber};
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

mod corners;

const SOON: Duration = Duration::from_secs(20);

fn puller(prefetch: u64) -> Puller {
    Puller::builder("jobs").prefetch(prefetch).build().unwrap()
}

fn pusher() -> Pusher {
    Pusher::builder("jobs").build().unwrap()
}

fn until(mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < SOON, "it never came");
        thread::sleep(Duration::from_millis(1));
    }
}

fn recv(puller: &Puller) -> Job {
    puller.recv_timeout(SOON).unwrap()
}

#[test]
fn each_job_goes_to_one_puller_and_is_done_once() {
    let _meeting = crate::fuzzing::meet_in_private();
    let pusher = Pusher::builder("jobs").max_pending(100).build().unwrap();
    let seen: Vec<_> = (0..20_000).map(|_| AtomicU32::new(0)).collect();
    thread::scope(|scope| {
        for prefetch in [1, 1, 16, 200] {
            let (seen, puller) = (&seen, puller(prefetch));
            scope.spawn(move || {
                while let Ok(job) = puller.recv_timeout(SOON) {
                    let number = u32::from_ne_bytes(job[..4].try_into().unwrap());
                    if number == u32::MAX {
                        job.done().unwrap();
                        return;
                    }
                    assert_eq!((job.number(), job.attempt()), (u64::from(number), 1));
                    let is_right = |(at, byte): (usize, &u8)| at < 4 || *byte == number as u8;
                    assert!(job.iter().enumerate().all(is_right), "job {number} has another one's bytes");
                    seen[number as usize].fetch_add(1, Ordering::Relaxed);
                    job.done().unwrap();
                }
            });
        }
        pusher.wait_for_pullers(4, Some(SOON)).unwrap();
        for number in 0..seen.len() as u32 {
            let mut payload = vec![number as u8; [4, 60, 216, 217, 224, 225, 5000][number as usize % 7]];
            payload[..4].copy_from_slice(&number.to_ne_bytes());
            assert_eq!(pusher.send(&payload).unwrap(), u64::from(number));
            assert!(pusher.pending().unwrap() <= 100);
        }
        pusher.join(Some(SOON)).unwrap();
        assert!(seen.iter().all(|times| times.load(Ordering::Relaxed) == 1));
        let stats = pusher.stats().unwrap();
        assert_eq!((stats.pushed, stats.done, stats.pending, stats.failed), (20_000, 20_000, 0, 0));
        (0..4).for_each(|_| _ = pusher.send(&u32::MAX.to_ne_bytes()).unwrap());
    });
}

/// No call of the pusher's comes any more: rings have to do.
#[test]
fn a_backlog_is_given_when_its_pusher_does_nothing_any_more() {
    let _meeting = crate::fuzzing::meet_in_private();
    let (pusher, one, two) = (pusher(), puller(1), puller(3));
    pusher.wait_for_pullers(2, Some(SOON)).unwrap();
    (0..200u32).for_each(|number| _ = pusher.send(&number.to_ne_bytes()).unwrap());
    let (done, began) = (AtomicU32::new(0), Instant::now());
    thread::scope(|scope| {
        for puller in [&one, &two] {
            let done = &done;
            scope.spawn(move || {
                while done.load(Ordering::Relaxed) < 200 && began.elapsed() < SOON {
                    if let Ok(job) = puller.recv_timeout(Duration::from_millis(50)) {
                        job.done().unwrap();
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    assert_eq!(done.load(Ordering::Relaxed), 200);
    until(|| pusher.pending().unwrap() == 0);
}

#[test]
fn at_the_bound_a_send_waits() {
    let _meeting = crate::fuzzing::meet_in_private();
    let pusher = Pusher::builder("jobs").max_pending(3).build().unwrap();
    for _ in 0..3 {
        pusher.send(b"x").unwrap();
    }
    let error = pusher.send_with(b"x", &Default::default(), None, &mut Wait::up_to(Some(Duration::from_millis(50))));
    let text = error.unwrap_err().to_string();
    assert!(
        text.contains("queue 'jobs'") && text.contains("3 jobs are pending") && text.contains("0 pullers"),
        "{text}"
    );
    let never = pusher.send_with(b"x", &Default::default(), None, &mut Wait::never());
    assert!(matches!(never, Err(Error::WouldBlock { .. })));
    assert!(matches!(pusher.join(Some(Duration::from_millis(20))), Err(Error::Timeout { .. })));
    let puller = puller(1);
    thread::scope(|scope| {
        let sending = scope.spawn(|| pusher.send(b"y").unwrap());
        recv(&puller).done().unwrap();
        assert_eq!(sending.join().unwrap(), 3);
    });
    (0..3).for_each(|_| recv(&puller).done().unwrap());
    pusher.join(Some(SOON)).unwrap();
}

#[test]
fn answers_come_from_any_thread_in_any_order_and_once() {
    let _meeting = crate::fuzzing::meet_in_private();
    let (pusher, puller) = (pusher(), puller(3));
    (0..3u8).for_each(|number| _ = pusher.send(&[number]).unwrap());
    let jobs = [recv(&puller), recv(&puller), recv(&puller)];
    assert_eq!(puller.unanswered(), 3);
    thread::scope(|scope| drop(scope.spawn(|| jobs[2].done().unwrap())));
    until(|| pusher.pending().unwrap() == 2);
    jobs[0].done().unwrap();
    let text = jobs[0].retry(Duration::ZERO).unwrap_err().to_string();
    assert!(text.contains("job 0 was answered before"), "{text}");
    jobs[1].done().unwrap();
    pusher.join(Some(SOON)).unwrap();
    assert_eq!((puller.unanswered(), pusher.stats().unwrap().done), (0, 3));
}

#[test]
fn what_fails_is_tried_again_and_rejected_in_the_end() {
    let _meeting = crate::fuzzing::meet_in_private();
    let pusher = Pusher::builder("jobs").max_attempts(3).build().unwrap();
    let puller = puller(1);
    pusher.send(&[7; 5000]).unwrap();
    let addresses: Vec<_> = (1..=3)
        .map(|attempt| {
            let job = recv(&puller);
            assert_eq!((job.number(), job.attempt(), job[4999]), (0, attempt, 7));
            let address = job.as_ptr();
            match attempt {
                1 => job.retry(Duration::ZERO).unwrap(),
                2 => drop(job),
                _ => job.retry(Duration::from_secs(1000)).unwrap(),
            }
            address
        })
        .collect();
    assert!(addresses.iter().all(|address| *address == addresses[0]), "it was not copied");
    pusher.join(Some(SOON)).unwrap();
    pusher.send(b"small").unwrap();
    recv(&puller).reject(&"ß".repeat(1000)).unwrap();
    pusher.join(Some(SOON)).unwrap();
    let rejected = pusher.rejected().unwrap();
    assert_eq!((rejected.len(), &rejected[0][..], &rejected[1][..]), (2, &[7; 5000][..], &b"small"[..]));
    assert_eq!((rejected[0].reason(), rejected[0].attempts(), rejected[0].number()), (&Reason::Failed, 3, 0));
    assert_eq!(rejected[1].reason(), &Reason::Rejected("ß".repeat(128)));
    assert_eq!(pusher.take_rejected().unwrap().len(), 2);
    assert!(pusher.rejected().unwrap().is_empty());
}

#[test]
fn a_delay_is_kept() {
    let _meeting = crate::fuzzing::meet_in_private();
    let (pusher, puller) = (pusher(), puller(1));
    pusher.send(b"later").unwrap();
    recv(&puller).retry(Duration::from_millis(80)).unwrap();
    let began = Instant::now();
    pusher.stats().unwrap();
    let job = recv(&puller);
    assert!(began.elapsed() >= Duration::from_millis(75) && job.attempt() == 2);
    job.done().unwrap();
}

#[test]
fn what_a_puller_did_not_take_goes_to_another_one_when_it_closes() {
    let _meeting = crate::fuzzing::meet_in_private();
    let (pusher, one) = (pusher(), puller(4));
    pusher.wait_for_pullers(1, Some(SOON)).unwrap();
    (0..4u8).for_each(|number| _ = pusher.send(&vec![number; if number % 2 == 0 { 1 } else { 3000 }]).unwrap());
    let taken = [recv(&one), recv(&one)];
    let two = puller(4);
    one.close();
    let rest = [recv(&two), recv(&two)];
    assert_eq!(rest.each_ref().map(|job| (job.number(), job.attempt(), job[0])), [(2, 1, 2), (3, 1, 3)]);
    assert_eq!(taken[1][2999], 1, "it is still its own");
    taken[0].done().unwrap();
    until(|| pusher.pending().unwrap() == 3);
    drop((taken, one)); // One that was not answered.
    let again = recv(&two);
    assert_eq!((again.number(), again.attempt()), (1, 2));
    again.done().unwrap();
    rest.iter().for_each(|job| job.done().unwrap());
    pusher.join(Some(SOON)).unwrap();
    let stats = pusher.stats().unwrap();
    assert_eq!((stats.done, stats.failed, stats.returned, stats.pullers), (4, 1, 2, 1));
    until(|| pusher.shared.lock().unwrap().as_ref().unwrap().lines.len() == 1);
}

#[test]
fn memory_is_given_back_and_bounds_what_is_pending() {
    let _meeting = crate::fuzzing::meet_in_private();
    let pusher = Pusher::builder("jobs").max_memory(1 << 20).build().unwrap();
    let puller = puller(2);
    for round in 0..3 {
        thread::scope(|scope| {
            scope.spawn(|| (0..100).for_each(|_| recv(&puller).done().unwrap()));
            for _ in 0..100 {
                pusher.send(&[round; 100_000]).unwrap(); // Ten of them fit.
            }
        });
        pusher.join(Some(SOON)).unwrap();
    }
    let mut loan = pusher.loan(900_000).unwrap();
    loan.fill(1);
    loan.send().unwrap();
    let kept = recv(&puller).message().clone();
    pusher.join(Some(Duration::from_millis(20))).unwrap_err(); // It was dropped: it comes again.
    let error =
        pusher.send_with(&[0; 300_000], &Default::default(), None, &mut Wait::up_to(Some(Duration::from_millis(50))));
    assert!(matches!(error, Err(Error::Timeout { .. })), "{error:?}");
    recv(&puller).done().unwrap();
    assert_eq!(kept[899_999], 1);
    let used = pusher.stats().unwrap().pool_used;
    assert!(used >= 900_000, "a view keeps it");
    drop(kept);
    pusher.send(&[0; 300_000]).unwrap();
}

/// Several pushers; a puller with one job of one of them is busy for the others, too.
#[test]
fn who_works_for_another_pusher_is_busy() {
    let _meeting = crate::fuzzing::meet_in_private();
    let (first, second) = (pusher(), pusher());
    let one = puller(1);
    one.wait_for_pushers(2, Some(SOON)).unwrap();
    first.send(b"long").unwrap();
    let long = recv(&one);
    let two = puller(1);
    two.wait_for_pushers(2, Some(SOON)).unwrap();
    second.wait_for_pullers(2, Some(SOON)).unwrap();
    second.send(b"short").unwrap();
    let short = recv(&two);
    second.send(b"next").unwrap();
    thread::sleep(Duration::from_millis(20));
    assert_eq!(second.stats().unwrap().waiting, 1, "both are busy");
    long.done().unwrap();
    assert_eq!(&recv(&one)[..], b"next");
    short.done().unwrap();
}

#[test]
fn queues_are_no_topics() {
    let _meeting = crate::fuzzing::meet_in_private();
    let all = Subscriber::builder("**").build().unwrap();
    let same = Subscriber::builder("jobs").policy(Policy::DropOldest).build().unwrap();
    let publisher = Publisher::builder("jobs").build().unwrap();
    let (pusher, puller) = (pusher(), puller(1));
    publisher.wait_for_subscribers(2, Some(SOON)).unwrap();
    pusher.send(b"job").unwrap();
    publisher.send(b"message").unwrap();
    assert_eq!(&recv(&puller)[..], b"job");
    for subscriber in [&all, &same] {
        assert_eq!(&subscriber.recv_timeout(SOON).unwrap()[..], b"message");
        assert!(subscriber.recv_timeout(Duration::from_millis(20)).is_err());
        assert_eq!(subscriber.publishers().unwrap().len(), 1);
    }
    assert_eq!((publisher.subscribers().unwrap().len(), pusher.pullers().unwrap().len()), (2, 1));
    assert_eq!(crate::publishers("**").unwrap().len(), 1);
}

#[test]
fn what_cannot_be_is_refused() {
    let _meeting = crate::fuzzing::meet_in_private();
    for queue in ["", "jobs/*", "a//b"] {
        assert!(matches!(Pusher::builder(queue).build(), Err(Error::InvalidTopic { .. })), "{queue}");
        assert!(matches!(Puller::builder(queue).build(), Err(Error::InvalidTopic { .. })), "{queue}");
    }
    let invalid = |error: Error| assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
    invalid(Pusher::builder("jobs").max_pending(0).build().err().unwrap());
    invalid(Pusher::builder("jobs").max_attempts(0).build().err().unwrap());
    invalid(Pusher::builder("jobs").max_time(Duration::ZERO).build().err().unwrap());
    invalid(Puller::builder("jobs").prefetch(0).build().err().unwrap());
    invalid(Puller::builder("jobs").prefetch(100_000).build().err().unwrap());
    let (pusher, puller) = (pusher(), puller(1));
    let mut rows = pusher.loan(1000).unwrap();
    invalid(rows.send_as(Rows(3), Beside::NOTHING, &mut Wait::up_to(None)).unwrap_err());
    assert_eq!(rows.send_as(Rows(10), Beside::NOTHING, &mut Wait::up_to(None)).unwrap(), 0..10);
    drop(rows);
    (0..10).for_each(|_| recv(&puller).done().unwrap());
    pusher.join(Some(SOON)).unwrap();
    {
        let mut guard = pusher.shared.lock().unwrap();
        let open = guard.as_mut().unwrap();
        open.store.collect(&mut open.lines, usize::MAX);
        assert_eq!((open.stats().pushed, open.stats().pool_used), (10, 0));
    }
    pusher.close();
    puller.close();
    for error in [pusher.send(b"x").unwrap_err(), pusher.join(None).unwrap_err(), puller.recv().unwrap_err()] {
        assert!(error.to_string().contains("on queue 'jobs' is closed"), "{error}");
    }
}

/// A pusher that ends takes its jobs with it: nobody would hear what becomes of them.
#[test]
fn jobs_live_as_long_as_their_pusher() {
    let _meeting = crate::fuzzing::meet_in_private();
    let (first, puller) = (pusher(), puller(2));
    first.send(&[1; 4000]).unwrap();
    first.send(b"not taken").unwrap();
    let taken = recv(&puller);
    first.close();
    assert_eq!(first.stats().unwrap().pending, 2);
    let error = puller.recv_timeout(Duration::from_millis(50)).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    assert_eq!(taken[3999], 1);
    taken.done().unwrap();
    let second = pusher();
    second.send(b"new").unwrap();
    assert_eq!(&recv(&puller)[..], b"new");
}

/// Threads that push, pull, join, open and close at the same time; in the end everything is accounted for.
#[test]
fn everything_at_once() {
    let _meeting = crate::fuzzing::meet_in_private();
    let pusher = Pusher::builder("jobs").max_pending(50).max_attempts(1000).build().unwrap();
    let (done, begin) = (AtomicU32::new(0), Barrier::new(5));
    thread::scope(|scope| {
        let (done, begin, pusher) = (&done, &begin, &pusher);
        for number in 0..3u64 {
            scope.spawn(move || {
                begin.wait();
                for life in 0..40 {
                    let puller = puller(1 + (number * 7 + life) % 5);
                    let jobs = 1 + (life * 13 + number) % 60;
                    for turn in 0..jobs {
                        let Ok(job) = puller.recv_timeout(Duration::from_millis(100)) else { break };
                        match (turn + life) % 9 {
                            7 => job.retry(Duration::from_micros(300)).unwrap(),
                            8 => drop(job),
                            _ => {
                                done.fetch_add(1, Ordering::Relaxed);
                                job.done().unwrap();
                            }
                        }
                    }
                }
                // The rest.
                let puller = puller(3);
                while pusher.pending().unwrap() > 0 {
                    if let Ok(job) = puller.recv_timeout(Duration::from_millis(5)) {
                        done.fetch_add(1, Ordering::Relaxed);
                        job.done().unwrap();
                    }
                }
            });
        }
        for _ in 0..2 {
            scope.spawn(move || {
                begin.wait();
                for number in 0..1500u32 {
                    pusher.send(&vec![number as u8; if number % 3 == 0 { 700 } else { 20 }]).unwrap();
                }
                pusher.join(Some(SOON)).unwrap();
            });
        }
    });
    let stats = pusher.stats().unwrap();
    assert_eq!((stats.pushed, stats.done, stats.rejected, stats.pending), (3000, 3000, 0, 0));
    assert_eq!(done.load(Ordering::Relaxed), 3000, "each answer arrived");
}

/// Runs a future as a runtime would: polls it when it was woken, and only then.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let (waker, mut future) = (Waker::from(Arc::new(Unpark(thread::current()))), pin!(future));
    let began = Instant::now();
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return value;
        }
        thread::park_timeout(SOON);
        assert!(began.elapsed() < SOON, "nobody woke it");
    }
}

#[test]
fn futures_need_no_runtime() {
    let _meeting = crate::fuzzing::meet_in_private();
    let pusher = Pusher::builder("jobs").max_pending(2).build().unwrap();
    let puller = puller(1);
    thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..300 {
                let job = block_on(puller.next()).unwrap();
                assert_eq!(job.number(), number);
                if number % 50 == 0 {
                    thread::sleep(Duration::from_millis(3)); // The other side sleeps.
                }
                job.done().unwrap();
            }
        });
        for number in 0..300 {
            assert_eq!(block_on(pusher.send_async(&[0; 300])).unwrap(), number);
        }
        block_on(pusher.join_async()).unwrap();
        assert_eq!(pusher.pending().unwrap(), 0);
    });
    // Given up, it has taken nothing.
    {
        let mut next = pin!(puller.next());
        assert!(next.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    pusher.send(b"x").unwrap();
    block_on(puller.next()).unwrap().done().unwrap();
    pusher.close();
    assert!(block_on(pusher.join_async()).is_err());
    assert!(block_on(pusher.send_async(b"x")).is_err());
}
