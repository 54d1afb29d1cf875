//! What may become of a request.

use super::*;
use crate::link::role::Role;

type Requests = Table<&'static str, u64>;

fn peer(id: u128, group: &str) -> Identity {
    Identity::new(Role::Server.address("s", group, id), id, 1)
}

fn failure(_: &'static str) -> Failure {
    Failure { code: 7.into(), text: String::new(), traceback: String::new() }
}

/// Sends a job's request to whom it may go, and gives to whom that was.
fn send(table: &mut Requests, id: JobId, number: u64) -> Option<u128> {
    let target = table.job(id).target.clone();
    let Choice::At(index) = table.choose(&target) else { return None };
    let flag = table.take_flag(index);
    table.sent(index, flag, number, id);
    Some(table.peer_at(index).incarnation())
}

#[test]
fn the_one_with_the_fewest_under_way_is_next_and_none_has_more_than_its_room() {
    let mut table = Requests::default();
    let jobs: Vec<_> = (0..7).map(|_| table.add(Target::Any, None, false)).collect();
    assert_eq!(send(&mut table, jobs[0], 0), None);
    assert_eq!(table.choose(&Target::Any), Choice::Nobody);
    table.join(&peer(1, ""), 1, 2);
    table.join(&peer(2, ""), 2, 3);
    let order: Vec<_> = (0..5).map(|n| send(&mut table, jobs[n], n as u64).unwrap()).collect();
    assert_eq!(order, [1, 2, 1, 2, 2]);
    assert_eq!(table.choose(&Target::Any), Choice::Full);
    assert_eq!(table.answer(1, Answered { kind: Kind::Last, number: 2 }, "x", failure), Reply::For(jobs[2]));
    assert_eq!(send(&mut table, jobs[5], 5), Some(1));
    // Those that are meant alone.
    table.join(&peer(3, "gpu"), 3, 1);
    assert_eq!(table.choose(&Target::Server(peer(1, ""))), Choice::Full);
    assert_eq!(table.choose(&Target::Group("gpu".into())), Choice::At(2));
    assert_eq!(table.choose(&Target::Group("cpu".into())), Choice::Nobody);
}

/// Each way that the life of one request can take, up to some length: exactly one end, and all is given back.
#[test]
fn whatever_happens_a_request_has_one_end() {
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Answer(Kind),
        Part { untaken: bool },
        Silent,
        Cancel,
        Late,
        Resend,
    }
    let steps = [
        Step::Answer(Kind::Last),
        Step::Answer(Kind::More),
        Step::Answer(Kind::Failed),
        Step::Answer(Kind::Dropped),
        Step::Answer(Kind::Over),
        Step::Part { untaken: true },
        Step::Part { untaken: false },
        Step::Silent,
        Step::Cancel,
        Step::Late,
        Step::Resend,
    ];
    const LEN: u32 = 5;
    for repeatable in [false, true] {
        for path in 0..steps.len().pow(LEN) {
            let path: Vec<_> = (0..LEN).map(|at| steps[path / steps.len().pow(at) % steps.len()]).collect();
            let mut table = Requests::default();
            table.join(&peer(1, ""), 1, 1);
            let id = table.add(Target::Any, None, repeatable);
            assert_eq!(send(&mut table, id, 0), Some(1));
            if repeatable {
                table.keep(id, 7);
            }
            table.join(&peer(2, ""), 2, 1);
            let (mut at, mut ended, mut replies, mut told) = (1, false, 0, false);
            for step in &path {
                match *step {
                    Step::Answer(kind) => {
                        let reply = table.answer(at, Answered { kind, number: 0 }, "x", failure);
                        assert!(!(ended && matches!(reply, Reply::For(_))), "{path:?}");
                        replies += u32::from(reply == Reply::For(id) && matches!(kind, Kind::More | Kind::Last));
                    }
                    Step::Part { untaken } => table.part(at, untaken.then_some((0, 7)).into_iter()),
                    Step::Silent => table.fall_silent(at),
                    Step::Cancel => told |= table.end(id, End::Cancelled).is_some(),
                    Step::Late => told |= table.end(id, End::Late).is_some(),
                    Step::Resend => {
                        if let Some((job, index, body)) = table.next_to_send() {
                            assert_eq!((job, body, at), (id, 7, 1), "{path:?}");
                            let flag = table.take_flag(index);
                            table.sent(index, flag, 0, id);
                            at = 2;
                        }
                    }
                }
                let has_end = table.job(id).end.is_some();
                assert!(has_end || !ended, "it has begun anew: {path:?}");
                assert!(!(has_end && table.is_waiting(id)), "{path:?}");
                ended = has_end;
            }
            assert_eq!(table.job(id).replies.len() as u32, replies, "{path:?}");
            // Whatever it was, the end of both servers leaves nothing.
            for server in [1, 2] {
                table.part(server, std::iter::empty());
                table.fall_silent(server);
            }
            let is_over = table.job(id).end.is_some() || table.is_waiting(id);
            assert!(is_over && table.servers.is_empty(), "{path:?} {told}");
            table.remove(id);
            assert!(!table.has_waiting() && table.counts() == (0, 0), "{path:?}");
        }
    }
}

#[test]
fn a_flag_and_a_place_stay_taken_until_the_server_answers() {
    let mut table = Requests::default();
    table.join(&peer(1, ""), 9, 1);
    let id = table.add(Target::Any, None, false);
    send(&mut table, id, 4);
    assert_eq!(table.remove(id), Some((9, 0)));
    assert_eq!(table.choose(&Target::Any), Choice::Full);
    assert_eq!(table.answer(1, Answered { kind: Kind::More, number: 4 }, "x", failure), Reply::Late);
    assert_eq!(table.answer(1, Answered { kind: Kind::Dropped, number: 4 }, "", failure), Reply::Late);
    assert_eq!((table.late, table.unasked), (1, 0));
    assert_eq!(table.answer(1, Answered { kind: Kind::Last, number: 4 }, "x", failure), Reply::Unasked);
    assert_eq!(table.answer(2, Answered { kind: Kind::Last, number: 4 }, "x", failure), Reply::Unasked);
    assert_eq!((table.choose(&Target::Any), table.take_flag(0)), (Choice::At(0), 0));
}

#[test]
fn what_was_not_taken_goes_to_another_and_what_was_only_if_it_may_be_repeated() {
    for (repeatable, target, others) in [
        (false, Target::Any, true),
        (true, Target::Any, true),
        (false, Target::Any, false),
        (true, Target::Server(peer(1, "")), true),
    ] {
        let mut table = Requests::default();
        table.join(&peer(1, ""), 1, 4);
        let jobs: Vec<_> = (0..2).map(|_| table.add(target.clone(), None, repeatable)).collect();
        for (number, id) in jobs.iter().enumerate() {
            assert_eq!(send(&mut table, *id, number as u64), Some(1));
            if repeatable {
                table.keep(*id, 40 + number as u64);
            }
        }
        if others {
            table.join(&peer(2, ""), 2, 4);
        }
        table.part(1, [(1, 41)].into_iter()); // The first one was taken.
        assert!(!table.is_ready(jobs[0]), "its reply may still come");
        table.fall_silent(1);
        let is_free = others && target == Target::Any;
        let sent: Vec<_> = std::iter::from_fn(|| table.next_to_send())
            .map(|(id, index, body)| {
                assert_eq!(index, 0);
                (id, body)
            })
            .collect();
        let mut expected = Vec::new();
        for (number, id) in jobs.iter().enumerate() {
            match &table.job(*id).end {
                None => expected.push((*id, 40 + number as u64)),
                Some(End::Lost { taken, .. }) => assert_eq!(*taken, number == 0),
                end => panic!("{end:?}"),
            }
        }
        assert_eq!(sent, expected);
        assert_eq!(sent.len(), if is_free { 1 + usize::from(repeatable) } else { 0 });
    }
}

/// A request that waits for room, or that was to go to a server in the moment in which that ended.
#[test]
fn what_waits_for_the_last_server_ends_with_it() {
    let mut table = Requests::default();
    table.join(&peer(1, ""), 1, 1);
    table.join(&peer(2, "gpu"), 2, 1);
    let targets = [Target::Any, Target::Group("gpu".into()), Target::Server(peer(1, ""))];
    let waiting = targets.map(|target| {
        let id = table.add(target, None, false);
        table.let_wait(id, 7);
        id
    });
    let mut leave = |server| {
        table.part(server, std::iter::empty());
        waiting.map(|id| matches!(&table.job(id).end, Some(End::Lost { taken: false, .. })))
    };
    assert_eq!(leave(1), [false, false, true]);
    assert_eq!(leave(2), [true, true, true]);
    assert!(!table.has_waiting());
}

/// One that takes no more, but answers what it has taken, is known until then: on another line its numbers would be the same.
#[test]
fn who_takes_no_more_is_known_until_all_is_answered() {
    let mut table = Requests::default();
    table.join(&peer(1, ""), 1, 4);
    let jobs = [0, 1, 2].map(|number| {
        let id = table.add(Target::Any, None, false);
        assert_eq!(send(&mut table, id, number), Some(1));
        id
    });
    table.part(1, [(2, 42)].into_iter());
    assert!(matches!(&table.job(jobs[2]).end, Some(End::Lost { taken: false, .. })), "there is nobody else");
    assert_eq!(table.choose(&Target::Any), Choice::Nobody);
    assert_eq!(table.answer(1, Answered { kind: Kind::Last, number: 2 }, "x", failure), Reply::Unasked);
    for number in [1, 0] {
        assert!(table.knows(1));
        let reply = table.answer(1, Answered { kind: Kind::Last, number }, "x", failure);
        assert_eq!(reply, Reply::For(jobs[number as usize]));
    }
    assert!(!table.knows(1));
    table.join(&peer(1, ""), 2, 4);
    assert_eq!(table.choose(&Target::Any), Choice::At(0));
}

#[test]
fn a_flag_that_another_request_has_by_now_is_left_alone() {
    let mut table = Requests::default();
    table.join(&peer(1, ""), 9, 1);
    let id = table.add(Target::Any, None, false);
    send(&mut table, id, 0);
    assert_eq!(table.end(id, End::Late), Some((9, 0)));
    assert!(table.is_unwanted(9, 0));
    table.answer(1, Answered { kind: Kind::Last, number: 0 }, "x", failure);
    let next = table.add(Target::Any, None, false);
    send(&mut table, next, 1);
    assert!(!table.is_unwanted(9, 0), "the flag is the next one's");
}
