//! Tests with whole endpoints.

use super::*;
use crate::Publisher;
use crate::link::service;
use std::time::Instant;

/// Notes what it is told.
#[derive(Default)]
struct Ear {
    hash: Option<u64>,
    at_first: Mutex<usize>,
    names: Mutex<HashSet<String>>,
    tidied: Mutex<u32>,
    wants_more: Mutex<bool>,
}

impl Listener for Ear {
    fn key(&self) -> Option<Key> {
        self.hash.map(Key::Topic)
    }

    fn appeared(self: Arc<Self>, name: &str) {
        self.names.lock().insert(name.to_owned());
    }

    fn vanished(&self, name: &str) {
        assert!(self.names.lock().remove(name), "it was told of {name} before");
    }

    fn tidy(&self) -> bool {
        *self.tidied.lock() += 1;
        *self.wants_more.lock()
    }

    fn look_around(self: Arc<Self>, _: &Arc<Directory>, names: &HashSet<&str>) {
        *self.at_first.lock() += names.len();
        self.names.lock().extend(names.iter().map(|name| (*name).to_owned()));
    }
}

fn listen(lookout: &Arc<Lookout>, topic: Option<&str>) -> (ListenerId, Arc<Ear>, Arc<Door>) {
    let ear = Arc::new(Ear { hash: topic.map(topic::hash), ..Ear::default() });
    let (id, door) = (lookout.new_listener(), Arc::new(Door::default()));
    lookout.register(id, &ear, &door).unwrap_or_else(|(what, error)| panic!("{what}: {error}"));
    (id, ear, door)
}

fn eventually(mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < Duration::from_secs(20), "not in time");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn each_is_told_what_concerns_it_and_newcomers_get_it_without_a_listing() {
    let _meeting = crate::link::meeting::meet_in_private();
    let (lookout, _service) = service::connect("t").unwrap();
    let publish = |topic: &str| Publisher::builder(topic).capacity(16).build().unwrap();
    let first = publish("a");
    let ears = [Some("a"), Some("b"), None].map(|topic| listen(&lookout, topic));
    let heard = |wanted: [usize; 3]| {
        eventually(|| ears.each_ref().map(|(_, ear, _)| ear.names.lock().len()) == wanted);
    };
    heard([1, 0, 1]);
    let others = ["a", "b", "c"].map(publish);
    heard([2, 1, 4]);
    others[2].close();
    heard([2, 1, 3]);

    others[0].close();
    heard([1, 1, 2]);
    let _last = publish("a");
    lookout.state.lock().names.as_mut().unwrap().insert(Key::Topic(topic::hash("a")), "not in the directory".into());
    let (_, newcomer, _door) = listen(&lookout, Some("a"));
    assert_eq!(*newcomer.at_first.lock(), 3, "the last one, too, whether the service thread has heard of it or not");
    assert!(newcomer.names.lock().contains("not in the directory"));

    first.close();
    heard([1, 1, 2]);
    for (id, ..) in &ears {
        lookout.unregister(*id);
    }
    let listeners = lookout.listeners.lock();
    assert_eq!((listeners.known.len(), listeners.by_key.len(), listeners.of_all.len()), (1, 1, 0));
}

#[test]
fn who_has_news_that_nobody_attends_to_is_looked_after() {
    let _meeting = crate::link::meeting::meet_in_private();
    let (lookout, _service) = service::connect("t").unwrap();
    let ears: [_; 4] = std::array::from_fn(|_| listen(&lookout, Some("t")));
    let tidied = || ears.each_ref().map(|(_, ear, _)| *ear.tidied.lock());
    ears[3].2.open().unwrap();
    for at in [0, 3] {
        ears[at].2.ring();
    }
    *ears[2].1.wants_more.lock() = true;
    lookout.remind(ears[2].0);
    eventually(|| [0, 2, 3].iter().all(|at| tidied()[*at] > 1));
    assert_eq!(tidied()[1], 0);
    for at in [0, 3] {
        ears[at].2.hear();
    }
    *ears[2].1.wants_more.lock() = false;
    std::thread::sleep(2 * TIDY_EVERY);
    let before = tidied();
    std::thread::sleep(4 * TIDY_EVERY);
    let after = tidied();
    assert!([0, 2, 3].iter().all(|at| after[*at] <= before[*at] + 1), "{before:?} {after:?}");
}

#[test]
fn what_has_just_come_is_not_unattended() {
    let mut unattended = Unattended::default();
    let mut told = |saying: &[ListenerId]| {
        let mut again = unattended.of_those(saying.iter().copied().collect());
        again.sort_unstable();
        again
    };
    assert_eq!(told(&[1, 2, 3]), []);
    assert_eq!(told(&[2, 3, 4]), [2, 3]);
    assert_eq!(told(&[]), []);
    assert_eq!(told(&[2]), []);
}
