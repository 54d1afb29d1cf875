use super::*;
use std::collections::{BTreeMap, HashMap, HashSet};

fn table(terms: Terms) -> Table<u64> {
    Table::new(Terms { redeliver: true, ..terms })
}

/// Gives all that can be given; who got what.
fn give_all(table: &mut Table<u64>, now: u64) -> Vec<(u32, u64)> {
    let mut given = Vec::new();
    while let Some((puller, key)) = table.offer() {
        given.push((puller, table.job(key).body));
        table.given(puller, now);
    }
    given
}

/// Answers the jobs at these places.
fn answer(table: &mut Table<u64>, puller: u32, now: u64, verdicts: &[(u64, Verdict)]) -> Vec<(u64, Option<Reason>)> {
    let verdicts: HashMap<_, _> = verdicts.iter().cloned().collect();
    let mut over = Vec::new();
    table.collect(puller, now, verdicts.len() as u64, |place| verdicts.get(&place).cloned(), &mut over);
    over.into_iter().map(|(job, reason)| (job.body, reason)).collect()
}

fn bodies(over: Vec<Over<u64>>) -> Vec<(u64, Option<Reason>)> {
    over.into_iter().map(|(job, reason)| (job.body, reason)).collect()
}

#[test]
fn the_longest_idle_is_served_first() {
    let mut table = table(Terms::default());
    for puller in 1..=3 {
        table.join(puller, 1, 0);
    }
    for body in 0..4 {
        table.add(body);
    }
    assert_eq!(give_all(&mut table, 0), [(1, 0), (2, 1), (3, 2)], "one each; the fourth waits");
    answer(&mut table, 2, 1, &[(0, Verdict::Done)]);
    assert_eq!(give_all(&mut table, 1), [(2, 3)]);
    for puller in [3, 2, 1] {
        assert_eq!(answer(&mut table, puller, 2, &[(u64::from(puller == 2), Verdict::Done)]).len(), 1);
    }
    (4..7).for_each(|body| _ = table.add(body));
    assert_eq!(give_all(&mut table, 2), [(3, 4), (2, 5), (1, 6)], "in the order in which they became idle");
}

#[test]
fn who_has_nothing_comes_before_who_has_room() {
    let mut table = table(Terms::default());
    table.join(1, 3, 0);
    table.join(2, 2, 0);
    (0..9).for_each(|body| _ = table.add(body));
    assert_eq!(give_all(&mut table, 0), [(1, 0), (2, 1), (1, 2), (2, 3), (1, 4)]);
    answer(&mut table, 1, 1, &[(0, Verdict::Done)]);
    answer(&mut table, 2, 1, &[(0, Verdict::Done), (1, Verdict::Done)]);
    assert_eq!(give_all(&mut table, 1), [(2, 5), (1, 6), (2, 7)], "2 had nothing");
    assert_eq!((table.pending(), table.waiting()), (6, 1));
}

#[test]
fn answers_may_come_in_any_order() {
    let mut table = table(Terms::default());
    table.join(1, 4, 0);
    (0..4).for_each(|body| _ = table.add(body));
    give_all(&mut table, 0);
    assert_eq!(answer(&mut table, 1, 0, &[(2, Verdict::Done)]), [(2, None)]);
    assert_eq!(answer(&mut table, 1, 0, &[(3, Verdict::Done), (0, Verdict::Done)]), [(0, None), (3, None)]);
    assert_eq!(answer(&mut table, 1, 0, &[(0, Verdict::Done)]), [], "once");
    assert_eq!(table.pending(), 1);
}

#[test]
fn a_job_that_fails_too_often_is_rejected() {
    let mut table = table(Terms { max_attempts: Some(3), ..Terms::default() });
    table.join(1, 1, 0);
    table.add(7);
    for (place, verdict) in [(0, Verdict::Retry(0)), (1, Verdict::Failed)] {
        let (_, key) = table.offer().unwrap();
        assert_eq!(u64::from(table.job(key).attempt()), place + 1);
        table.given(1, 0);
        assert_eq!(answer(&mut table, 1, 0, &[(place, verdict)]), []);
    }
    give_all(&mut table, 0);
    assert_eq!(answer(&mut table, 1, 0, &[(2, Verdict::Retry(9))]), [(7, Some(Reason::Failed))]);
    assert_eq!((table.pending(), table.next_due()), (0, None));
    table.add(8);
    give_all(&mut table, 0);
    let why = Verdict::Reject("no".into());
    assert_eq!(answer(&mut table, 1, 0, &[(3, why)]), [(8, Some(Reason::Rejected("no".into())))]);
}

#[test]
fn a_delayed_job_waits_for_its_time() {
    let mut table = table(Terms::default());
    table.join(1, 1, 0);
    (0..2).for_each(|body| _ = table.add(body));
    give_all(&mut table, 0);
    answer(&mut table, 1, 100, &[(0, Verdict::Retry(50))]);
    assert_eq!(give_all(&mut table, 100), [(1, 1)]);
    answer(&mut table, 1, 100, &[(1, Verdict::Done)]);
    assert_eq!((table.next_due(), table.pending(), table.waiting()), (Some(150), 1, 0));
    table.wake_delayed(149);
    assert_eq!(give_all(&mut table, 149), []);
    table.wake_delayed(150);
    assert_eq!(give_all(&mut table, 150), [(1, 0)]);
}

#[test]
fn what_the_dead_had_comes_first_and_what_it_took_has_failed() {
    let mut table = table(Terms { max_attempts: Some(2), ..Terms::default() });
    table.join(1, 3, 0);
    (0..5).for_each(|body| _ = table.add(body));
    give_all(&mut table, 0);
    let mut over = Vec::new();
    table.leave(1, 2, &mut over);
    assert_eq!((bodies(over), table.pending()), (Vec::new(), 5));
    table.join(2, 3, 0);
    let (_, key) = table.offer().unwrap();
    assert_eq!((table.job(key).body, table.job(key).attempt()), (0, 2), "it had been taken");
    assert_eq!(give_all(&mut table, 0), [(2, 0), (2, 1), (2, 2)]);
    assert_eq!(table.tally, Tally { pushed: 5, failed: 2, returned: 1, ..Tally::default() });
    let mut over = Vec::new();
    table.leave(2, 3, &mut over);
    let failed = Some(Reason::Failed);
    assert_eq!(bodies(over), [(0, failed.clone()), (1, failed)], "twice is too often; the third was taken once");
    table.join(3, 9, 0);
    assert_eq!(give_all(&mut table, 0), [(3, 2), (3, 3), (3, 4)]);
}

#[test]
fn at_most_once_means_that_what_was_taken_is_not_given_again() {
    let mut table = Table::new(Terms { redeliver: false, ..Terms::default() });
    table.join(1, 4, 0);
    (0..4).for_each(|body| _ = table.add(body));
    give_all(&mut table, 0);
    assert_eq!(answer(&mut table, 1, 0, &[(0, Verdict::Failed)]), [(0, Some(Reason::Unknown))]);
    assert_eq!(answer(&mut table, 1, 0, &[(1, Verdict::Retry(0))]), [], "it says itself that it may be given again");
    let mut over = Vec::new();
    table.leave(1, 3, &mut over);
    assert_eq!(bodies(over), [(2, Some(Reason::Unknown))]);
    table.join(2, 4, 0);
    assert_eq!(give_all(&mut table, 0), [(2, 3), (2, 1)], "what was never taken comes first");
}

#[test]
fn one_that_is_closed_may_still_answer() {
    let mut table = table(Terms::default());
    table.join(1, 3, 0);
    (0..3).for_each(|body| _ = table.add(body));
    give_all(&mut table, 0);
    table.close(1, 1);
    assert_eq!((give_all(&mut table, 0), table.waiting()), (Vec::new(), 2));
    assert_eq!(answer(&mut table, 1, 0, &[(0, Verdict::Done)]), [(0, None)]);
    table.leave(1, 1, &mut Vec::new());
    assert_eq!((table.pending(), table.tally.returned, table.tally.failed), (2, 2, 0));
}

#[test]
fn a_silent_puller_loses_its_jobs_until_it_stirs() {
    let mut table = table(Terms { max_time: Some(100), ..Terms::default() });
    table.join(1, 4, 0);
    (0..3).for_each(|body| _ = table.add(body));
    give_all(&mut table, 10);
    assert_eq!((table.silent(109), table.next_due()), (vec![], Some(110)));
    answer(&mut table, 1, 60, &[(0, Verdict::Done)]);
    assert_eq!((table.silent(159), table.silent(160)), (vec![], vec![1]), "since its last answer");
    table.freeze(1, 2, 2, &mut Vec::new());
    assert_eq!((table.silent(500), table.next_due(), table.frozen().any(|id| id == 1)), (vec![], None, true));
    assert_eq!((table.flights(1), table.tally.failed, table.tally.returned), (1, 1, 1));
    table.add(3);
    assert_eq!(give_all(&mut table, 160), [], "it gets nothing");
    table.join(2, 1, 160);
    assert_eq!(give_all(&mut table, 160), [(2, 1)]);
    assert_eq!(answer(&mut table, 1, 200, &[(1, Verdict::Done)]), [], "that is late");
    assert_eq!((table.tally.late, table.frozen().any(|id| id == 1)), (1, false));
    assert_eq!(give_all(&mut table, 200), [(1, 2), (1, 3)]);
}

/// Of the record at the cursor nobody knows whether it is being taken.
#[test]
fn what_a_frozen_puller_may_be_taking_leaves_no_ghost() {
    let mut table = Table::new(Terms { redeliver: false, max_time: Some(1), ..Terms::default() });
    table.join(1, 2, 0);
    (0..2).for_each(|body| _ = table.add(body));
    give_all(&mut table, 0);
    let mut over = Vec::new();
    table.freeze(1, 0, 1, &mut over);
    assert_eq!(bodies(over), [(0, Some(Reason::Unknown))]);
    assert_eq!((table.flights(1), table.waiting()), (0, 1));
    table.has_stirred(1, 9);
    assert_eq!(give_all(&mut table, 9), [(1, 1)]);
}

#[test]
fn who_has_jobs_of_others_has_less_room() {
    let mut table = table(Terms::default());
    table.join(1, 2, 0);
    table.join(2, 2, 0);
    table.set_elsewhere(1, 1);
    (0..5).for_each(|body| _ = table.add(body));
    assert_eq!(give_all(&mut table, 0), [(2, 0), (1, 1), (2, 2)]);
    table.set_elsewhere(1, u64::MAX);
    assert_eq!(give_all(&mut table, 0), []);
    table.set_elsewhere(1, 0);
    assert_eq!(give_all(&mut table, 0), [(1, 3)]);
}

#[test]
fn who_is_stuck_is_passed_over_until_it_is_tried_again() {
    let mut table = table(Terms::default());
    table.join(1, 1, 0);
    table.join(2, 1, 0);
    (0..2).for_each(|body| _ = table.add(body));
    assert_eq!(table.offer().map(|(puller, _)| puller), Some(1));
    table.is_stuck(1);
    assert_eq!(give_all(&mut table, 0), [(2, 0)]);
    assert!(table.unstick() && !table.unstick());
    assert_eq!(give_all(&mut table, 0), [(1, 1)]);
}

/// The entry of an answer is used again only when it is free.
#[test]
fn an_old_job_keeps_its_entry_and_stops_nobody() {
    let mut table = table(Terms::default());
    table.join(1, 2, 0);
    table.add(0);
    give_all(&mut table, 0);
    for body in 1..WINDOW {
        table.add(body);
        assert_eq!(give_all(&mut table, 0), [(1, body)]);
        answer(&mut table, 1, 0, &[(body, Verdict::Done)]);
    }
    table.add(WINDOW);
    assert!(table.must_pass_over(1), "its entry would be that of job 0");
    table.passed_over(1);
    assert!(!table.must_pass_over(1));
    assert_eq!(give_all(&mut table, 0), [(1, WINDOW)]);
    assert_eq!(answer(&mut table, 1, 0, &[(WINDOW + 1, Verdict::Done)]), [(WINDOW, None)]);
    assert_eq!(answer(&mut table, 1, 0, &[(0, Verdict::Done)]), [(0, None)]);
    assert!(!table.must_pass_over(1));
}

/// What a job is in the reference.
#[derive(Clone, Debug, PartialEq)]
enum Is {
    Waiting,
    Delayed(u64),
    Given(u32, u64),
    Over(Option<Reason>),
}

/// The same as the table, as simple as can be: each question is answered by looking at everything.
struct Reference {
    terms: Terms,
    jobs: Vec<(Is, u32)>,
    /// Those that wait, the next one first.
    order: Vec<u64>,
    pullers: BTreeMap<u32, Known>,
    clock: u64,
}

struct Known {
    prefetch: u64,
    next: u64,
    ghosts: HashSet<u64>,
    is_frozen: bool,
    is_closed: bool,
    /// Since when it has nothing, or was served last, by a clock that never stands.
    since: u64,
    was_idle: Option<bool>,
}

impl Reference {
    fn load(&self, id: u32) -> u64 {
        let has = self.jobs.iter().filter(|(is, _)| matches!(is, Is::Given(puller, _) if *puller == id)).count();
        (has + self.pullers[&id].ghosts.len()) as u64
    }

    /// Notes since when pullers are idle, or have room.
    fn settle(&mut self, served: Option<u32>) {
        let ids: Vec<_> = self.pullers.keys().copied().collect();
        for id in ids {
            let load = self.load(id);
            let known = self.pullers.get_mut(&id).unwrap();
            let is_out = known.is_frozen || known.is_closed || load >= known.prefetch;
            let idle = (!is_out).then_some(load == 0);
            if idle != known.was_idle || served == Some(id) {
                self.clock += 1;
                (known.was_idle, known.since) = (idle, self.clock);
            }
        }
    }

    fn next(&self) -> Option<(u32, u64)> {
        let job = *self.order.first()?;
        let best = self.pullers.iter().filter_map(|(id, known)| Some((!known.was_idle?, known.since, *id))).min()?;
        Some((best.2, job))
    }

    fn fail(&mut self, job: u64, is_unknown: bool) -> bool {
        self.jobs[job as usize].1 += 1;
        let reason = if is_unknown && !self.terms.redeliver {
            Reason::Unknown
        } else if self.terms.max_attempts == Some(self.jobs[job as usize].1) {
            Reason::Failed
        } else {
            return true;
        };
        self.jobs[job as usize].0 = Is::Over(Some(reason));
        false
    }

    fn given_to(&self, id: u32) -> Vec<(u64, u64)> {
        let mut given: Vec<_> = (0u64..)
            .zip(&self.jobs)
            .filter_map(|(job, (is, _))| match is {
                Is::Given(puller, place) if *puller == id => Some((*place, job)),
                _ => None,
            })
            .collect();
        given.sort_unstable();
        given
    }

    /// Puts jobs before all others, in the order of their numbers.
    fn front(&mut self, mut jobs: Vec<u64>) {
        jobs.sort_unstable();
        jobs.iter().for_each(|job| self.jobs[*job as usize].0 = Is::Waiting);
        self.order.splice(0..0, jobs);
    }

    fn end(&mut self, id: u32, untaken_from: u64) {
        let (taken, untaken): (Vec<_>, Vec<_>) = self.given_to(id).into_iter().partition(|it| it.0 < untaken_from);
        self.front(untaken.into_iter().map(|(_, job)| job).collect());
        let again = taken.into_iter().map(|(_, job)| job).filter(|job| self.fail(*job, true)).collect();
        self.front(again);
    }
}

/// A random life of many jobs and pullers, in which table and reference have to agree at each step; in the end every job is over once.
#[test]
fn table_and_reference_agree() {
    let mut random = 11u64;
    let mut next = |most: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % most
    };
    for round in 0..200u64 {
        let terms = Terms {
            max_attempts: [None, Some(1 + next(4) as u32)][next(2) as usize],
            redeliver: next(3) > 0,
            max_time: None,
        };
        let mut table = Table::new(terms);
        let pullers = BTreeMap::new();
        let mut reference = Reference { terms, jobs: Vec::new(), order: Vec::new(), pullers, clock: 0 };
        let (mut last_puller, mut now) = (0, 0);
        let mut over_by_table: BTreeMap<u64, Option<Reason>> = BTreeMap::new();
        for _ in 0..400 {
            now += next(20);
            let mut over = Vec::new();
            let ids: Vec<_> = reference.pullers.keys().copied().collect();
            let some = (!ids.is_empty()).then(|| ids[next(ids.len().max(1) as u64) as usize]);
            match (next(12), some) {
                (0..4, _) => {
                    let number = table.add(reference.jobs.len() as u64);
                    reference.order.push(number);
                    reference.jobs.push((Is::Waiting, 0));
                }
                (4, _) if ids.len() < 6 => {
                    last_puller += 1;
                    let prefetch = 1 + next(4);
                    table.join(last_puller, prefetch, now);
                    let (ghosts, is_frozen, is_closed) = (HashSet::new(), false, false);
                    let known = Known { prefetch, next: 0, ghosts, is_frozen, is_closed, since: 0, was_idle: None };
                    reference.pullers.insert(last_puller, known);
                }
                (5..9, Some(id)) => {
                    // It answers some of what it has, ghosts among that.
                    let mut has: Vec<(u64, Option<u64>)> =
                        reference.given_to(id).into_iter().map(|(place, job)| (place, Some(job))).collect();
                    has.extend(reference.pullers[&id].ghosts.iter().map(|place| (*place, None)));
                    has.sort_unstable();
                    has.retain(|_| next(2) == 0);
                    let verdicts = [
                        Verdict::Done,
                        Verdict::Retry(0),
                        Verdict::Retry(30),
                        Verdict::Failed,
                        Verdict::Reject("r".into()),
                    ];
                    let said: HashMap<u64, Verdict> =
                        has.iter().map(|(place, _)| (*place, verdicts[next(5) as usize].clone())).collect();
                    let found = table.collect(id, now, has.len() as u64, |place| said.get(&place).cloned(), &mut over);
                    assert_eq!(found, has.len() as u64);
                    for (place, job) in &has {
                        let Some(job) = *job else {
                            reference.pullers.get_mut(&id).unwrap().ghosts.remove(place);
                            continue;
                        };
                        let is = match &said[place] {
                            Verdict::Done => Is::Over(None),
                            Verdict::Reject(why) => Is::Over(Some(Reason::Rejected(why.clone()))),
                            verdict => {
                                if !reference.fail(job, *verdict == Verdict::Failed) {
                                    continue;
                                }
                                match verdict {
                                    Verdict::Retry(delay @ 1..) => Is::Delayed(now + delay),
                                    _ => {
                                        reference.order.push(job);
                                        Is::Waiting
                                    }
                                }
                            }
                        };
                        reference.jobs[job as usize].0 = is;
                    }
                    if !has.is_empty() {
                        reference.pullers.get_mut(&id).unwrap().is_frozen = false;
                    }
                }
                (9, Some(id)) => {
                    let untaken_from = next(reference.pullers[&id].next + 1);
                    table.leave(id, untaken_from, &mut over);
                    reference.end(id, untaken_from);
                    reference.pullers.remove(&id);
                }
                (10, Some(id)) if !reference.pullers[&id].is_closed => {
                    let taken_below = next(reference.pullers[&id].next + 1);
                    let untaken_from = taken_below + next(2);
                    table.freeze(id, taken_below, untaken_from, &mut over);
                    let taken: Vec<_> = reference.given_to(id).into_iter().map(|(place, _)| place).collect();
                    reference.end(id, untaken_from);
                    let known = reference.pullers.get_mut(&id).unwrap();
                    known.ghosts.extend(taken.into_iter().filter(|place| *place < taken_below.min(untaken_from)));
                    known.ghosts.retain(|place| *place < taken_below);
                    known.is_frozen = true;
                }
                (11, Some(id)) if next(3) == 0 => {
                    let untaken_from = next(reference.pullers[&id].next + 1);
                    let ghosts = reference.pullers[&id].ghosts.clone();
                    table.close(id, untaken_from);
                    let untaken =
                        reference.given_to(id).into_iter().filter(|it| it.0 >= untaken_from).map(|it| it.1).collect();
                    reference.front(untaken);
                    let known = reference.pullers.get_mut(&id).unwrap();
                    known.ghosts = ghosts.into_iter().filter(|place| *place < untaken_from).collect();
                    known.is_closed = true;
                }
                _ => {}
            }
            table.wake_delayed(now);
            let mut due: Vec<_> = (0u64..)
                .zip(&reference.jobs)
                .filter_map(|(job, (is, _))| match is {
                    Is::Delayed(at) if *at <= now => Some((*at, job)),
                    _ => None,
                })
                .collect();
            // Those of one moment come in whatever order.
            due.sort_unstable_by_key(|(at, job)| {
                (*at, table.waiting.iter().position(|key| table.job(*key).number == *job))
            });
            for (_, job) in due {
                reference.jobs[job as usize].0 = Is::Waiting;
                reference.order.push(job);
            }
            reference.settle(None);
            for (job, reason) in over {
                assert_eq!(job.number, job.body);
                assert!(over_by_table.insert(job.number, reason).is_none(), "a job is over once");
            }
            while let Some((puller, key)) = table.offer() {
                let job = table.job(key);
                assert_eq!(reference.next(), Some((puller, job.number)), "round {round}");
                assert_eq!(job.failures, reference.jobs[job.number as usize].1);
                let known = reference.pullers.get_mut(&puller).unwrap();
                reference.jobs[job.number as usize].0 = Is::Given(puller, known.next);
                known.next += 1;
                reference.order.remove(0);
                table.given(puller, now);
                reference.settle(Some(puller));
            }
            assert_eq!(reference.next(), None, "round {round}");
            let is_over = |is: &Is| matches!(is, Is::Over(_));
            let pending = reference.jobs.iter().filter(|(is, _)| !is_over(is)).count();
            assert_eq!((table.pending(), table.waiting()), (pending, reference.order.len()));
            for (job, (is, _)) in (0u64..).zip(&reference.jobs) {
                let known = over_by_table.get(&job);
                assert_eq!(
                    matches!(is, Is::Over(reason) if known == Some(reason)),
                    known.is_some(),
                    "job {job}: {is:?}"
                );
            }
        }
    }
}
