//! Corners: what is woken by what, what is counted, what is kept, when not all goes as it usually does.

use super::*;
use crate::protocol::answers::{Answers, WINDOW};
use crate::work::body::{Body, Content, Small};
use crate::work::open::Open;

/// What the pusher's lock guards.
fn within<T>(pusher: &Pusher, look: impl FnOnce(&mut Open) -> T) -> T {
    look(pusher.shared.lock().unwrap().as_mut().unwrap())
}

/// One answer is room for one more job, whatever else its puller has.
#[test]
fn one_answer_of_many_jobs_wakes_who_waits_for_room() {
    let _meeting = crate::fuzzing::meet_in_private();
    let pusher = Pusher::builder("jobs").max_pending(8).build().unwrap();
    let puller = puller(8);
    pusher.wait_for_pullers(1, Some(SOON)).unwrap();
    (0..8u8).for_each(|number| _ = pusher.send(&[number]).unwrap());
    let jobs: Vec<_> = (0..8).map(|_| recv(&puller)).collect();
    thread::scope(|scope| {
        let sending = scope.spawn(|| block_on(pusher.send_async(b"one more")).unwrap());
        thread::sleep(Duration::from_millis(50));
        assert!(!sending.is_finished(), "there is no room yet");
        jobs[3].done().unwrap();
        assert_eq!(sending.join().unwrap(), 8);
    });
    assert_eq!(&recv(&puller)[..], b"one more");
}

/// The next job comes when one of several is answered, though its pusher does nothing more and the others are not.
#[test]
fn one_answer_of_many_jobs_brings_the_next_one() {
    let _meeting = crate::fuzzing::meet_in_private();
    let (pusher, puller) = (pusher(), puller(6));
    (0..9u8).for_each(|number| _ = pusher.send(&[number]).unwrap());
    let mut jobs: Vec<_> = (0..6).map(|_| recv(&puller)).collect();
    thread::sleep(Duration::from_millis(30));
    for next in 6..9 {
        jobs[5].done().unwrap();
        jobs[5] = recv(&puller);
        assert_eq!(jobs[5].number(), next);
    }
}

/// Dropping a message tells nobody: who waits for its memory looks again.
#[test]
fn memory_that_comes_back_wakes_who_waits_for_it() {
    let _meeting = crate::fuzzing::meet_in_private();
    let pusher = Pusher::builder("jobs").max_memory(1 << 20).build().unwrap();
    let puller = puller(1);
    pusher.send(&[1; 900_000]).unwrap();
    let job = recv(&puller);
    let kept = job.message().clone();
    job.done().unwrap();
    drop(job);
    pusher.join(Some(SOON)).unwrap();
    thread::scope(|scope| {
        let sending = scope.spawn(|| block_on(pusher.send_async(&[2; 300_000])).unwrap());
        thread::sleep(Duration::from_millis(50));
        assert!(!sending.is_finished(), "it is kept");
        drop(kept);
        assert_eq!(sending.join().unwrap(), 1);
    });
    recv(&puller).done().unwrap();
}

/// What each pusher is told of the jobs of the others is right in the end, whichever threads take and answer them.
#[test]
fn nobody_is_busy_for_ever() {
    let _meeting = crate::fuzzing::meet_in_private();
    let pushers = [pusher(), pusher(), pusher()];
    let puller = puller(8);
    puller.wait_for_pushers(3, Some(SOON)).unwrap();
    for _round in 0..100 {
        let over = AtomicU32::new(0);
        thread::scope(|scope| {
            for pusher in &pushers {
                scope.spawn(|| {
                    (0..300u32).for_each(|number| _ = pusher.send(&number.to_ne_bytes()).unwrap());
                    pusher.join(Some(SOON)).unwrap();
                    over.fetch_add(1, Ordering::Relaxed);
                });
            }
            for _ in 0..4 {
                scope.spawn(|| {
                    while over.load(Ordering::Relaxed) < 3 {
                        if let Ok(job) = puller.recv_timeout(Duration::from_millis(2)) {
                            job.done().unwrap();
                        }
                    }
                });
            }
        });
        assert_eq!(puller.unanswered(), 0);
        for pusher in &pushers {
            let told = within(pusher, |open| Answers::new(open.seats[0].lease.words()).elsewhere());
            assert_eq!(told, 0, "it has no job of anybody");
        }
    }
}

/// However often a job comes back, and from whom: its chunk's account has one record for each line.
#[test]
fn what_is_known_of_a_job_does_not_grow() {
    let _meeting = crate::fuzzing::meet_in_private();
    let pusher = pusher();
    let records = || within(&pusher, |open| open.store.pool.sent(0).iter().count());
    pusher.send(&[7; 5000]).unwrap();
    {
        let puller = puller(1);
        for attempt in 1..200 {
            let job = recv(&puller);
            assert_eq!(job.attempt(), attempt);
            job.retry(Duration::ZERO).unwrap();
        }
        let most = records();
        assert!((1..=2).contains(&most), "{most} records");
    }
    for _life in 0..20 {
        let puller = puller(1);
        recv(&puller).retry(Duration::ZERO).unwrap();
    }
    until(|| within(&pusher, |open| open.lines.is_empty()));
    let most = records();
    assert!(most <= 2, "{most} records, of lines that are gone");
    let last = puller(1);
    let job = recv(&last);
    assert_eq!((job.attempt(), job[4999]), (220, 7));
    job.done().unwrap();
    drop(job);
    pusher.join(Some(SOON)).unwrap();
    within(&pusher, |open| open.store.collect(&mut open.lines, usize::MAX));
    assert_eq!(pusher.stats().unwrap().pool_used, 0, "it is free again");
}

/// A puller that has closed keeps what it took, and nothing else.
#[test]
fn one_that_is_closed_keeps_nothing_that_it_never_took() {
    let _meeting = crate::fuzzing::meet_in_private();
    let pusher = Pusher::builder("jobs").max_memory(1 << 20).build().unwrap();
    let first = puller(4);
    pusher.wait_for_pullers(1, Some(SOON)).unwrap();
    (0..4u8).for_each(|number| _ = pusher.send(&[number; 200_000]).unwrap());
    let job = recv(&first);
    let kept = job.message().clone();
    job.done().unwrap();
    drop(job);
    first.close();
    let second = puller(4);
    (0..3).for_each(|_| recv(&second).done().unwrap());
    pusher.join(Some(SOON)).unwrap();
    pusher.send_with(&[9; 700_000], &Default::default(), None, &mut Wait::up_to(Some(Duration::ZERO))).unwrap();
    assert_eq!(kept[199_999], 0);
}

/// One that closes just before it would be given up for its silence has not taken what it did not take.
#[test]
fn one_that_has_closed_is_not_frozen_with_all_jobs() {
    let _meeting = crate::fuzzing::meet_in_private();
    let pusher = Pusher::builder("jobs").max_time(Duration::from_millis(30)).redeliver(false).build().unwrap();
    let puller = puller(3);
    pusher.wait_for_pullers(1, Some(SOON)).unwrap();
    let job = {
        let mut guard = pusher.shared.lock().unwrap();
        let open = guard.as_mut().unwrap();
        for _ in 0..3 {
            open.table.add(Body { timestamp_ns: 0, content: Content::Inline(Small::new(b"job", &[])) });
        }
        open.give();
        let job = recv(&puller);
        puller.close(); // Nobody hears it as long as the lock is held.
        thread::sleep(Duration::from_millis(40));
        open.look_at_clock();
        assert_eq!((open.table.tally.returned, open.table.tally.failed, open.table.tally.rejected), (2, 1, 1));
        job
    };
    drop(job);
    let heir = super::puller(3);
    assert_eq!([recv(&heir).number(), recv(&heir).number()], [1, 2]);
}

/// A job that takes long delays none of those that come after it, however many these are.
#[test]
fn a_very_old_job_stops_nobody() {
    let _meeting = crate::fuzzing::meet_in_private();
    for prefetch in [2, 16, 500] {
        let (pusher, puller) = (pusher(), puller(prefetch));
        pusher.send(b"long").unwrap();
        let long = recv(&puller);
        for round in 1..3 * WINDOW {
            assert_eq!(pusher.send(&round.to_ne_bytes()).unwrap(), round);
            let job = recv(&puller);
            assert_eq!((job.number(), job.attempt(), &job[..]), (round, 1, &round.to_ne_bytes()[..]));
            job.done().unwrap();
        }
        assert_eq!((puller.unanswered(), pusher.pending().unwrap()), (1, 1));
        long.done().unwrap();
        pusher.join(Some(SOON)).unwrap();
        assert_eq!(puller.stats().unwrap().received, 3 * WINDOW, "nothing else was received");
        let stats = pusher.stats().unwrap();
        assert_eq!((stats.done, stats.failed, stats.late), (3 * WINDOW, 0, 0));
    }
}

/// All or none, small and large.
#[test]
fn rows_are_jobs_of_their_own() {
    let _meeting = crate::fuzzing::meet_in_private();
    let pusher = Pusher::builder("jobs").max_pending(10).max_memory(1 << 20).build().unwrap();
    let puller = puller(4);
    let send = |rows: &[u8], len, wait: &mut Wait<'_>| pusher.send_many(rows, len, &Default::default(), None, wait);
    let mut number = 0;
    for len in [1, 8, 216, 217, 5000] {
        let rows: Vec<_> = (0..7u8).flat_map(|row| vec![row; len]).collect();
        assert_eq!(send(&rows, len, &mut Wait::up_to(Some(SOON))).unwrap(), number..number + 7);
        assert!(
            matches!(send(&rows, len, &mut Wait::never()), Err(Error::WouldBlock { .. })),
            "seven and seven are more"
        );
        for row in 0..7u8 {
            let job = recv(&puller);
            assert_eq!((job.number(), &job[..]), (number, &vec![row; len][..]));
            job.done().unwrap();
            number += 1;
        }
        pusher.join(Some(SOON)).unwrap();
    }
    assert_eq!(send(&[], 8, &mut Wait::never()).unwrap(), 35..35);
    for (rows, len) in [(&[0; 11][..], 1), (&[0; 11], 2), (&[0; 8], 0)] {
        assert!(matches!(send(rows, len, &mut Wait::never()), Err(Error::InvalidArgument(_))));
    }
    within(&pusher, |open| open.store.collect(&mut open.lines, usize::MAX));
    let stats = pusher.stats().unwrap();
    assert_eq!((stats.pushed, stats.done, stats.pool_used), (35, 35, 0));
}

/// Many old ones in a row, and those after them.
#[test]
fn many_old_jobs_stop_nobody() {
    let _meeting = crate::fuzzing::meet_in_private();
    let (pusher, puller) = (pusher(), puller(300));
    (0..299u32).for_each(|number| _ = pusher.send(&vec![1; if number % 2 == 0 { 8 } else { 600 }]).unwrap());
    let old: Vec<_> = (0..299).map(|_| recv(&puller)).collect();
    for _ in 0..3 * WINDOW {
        pusher.send(b"short").unwrap();
        let job = recv(&puller);
        assert_eq!(&job[..], b"short");
        job.done().unwrap();
    }
    old.iter().rev().for_each(|job| job.done().unwrap());
    pusher.join(Some(SOON)).unwrap();
    assert_eq!(pusher.stats().unwrap().failed, 0);
}
