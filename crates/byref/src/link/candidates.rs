//! The publishers' sockets that concern a subscriber: each is asked once, and only a few at a time. A pattern has to
//! ask every publisher there is, and each question takes descriptors until it is answered.

use crate::link::names::same_publisher;
use std::collections::{HashSet, VecDeque};
use std::time::Duration;

/// The most questions under way at a time.
const AT_ONCE: usize = 32;
/// Who cannot be asked is tried again after this time, at first and at the most.
pub(crate) const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A socket that is to be asked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Candidate {
    pub name: String,
    /// When to try again, should it be in vain.
    pub pause: Duration,
    /// It was asked over a connection that leads to somebody else, perhaps.
    pub was_misled: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Candidates {
    /// All that were met and are still in the directory, asked or not.
    pub known: HashSet<String>,
    waiting: VecDeque<Candidate>,
    under_way: usize,
    /// Further names of publishers that are connected.
    spare: Vec<String>,
}

impl Candidate {
    pub fn new(name: &str) -> Self {
        Candidate { name: name.to_owned(), pause: FIRST_PAUSE, was_misled: false }
    }
}

impl Candidates {
    /// A name in the directory.
    pub fn meet(&mut self, name: &str) {
        if !self.known.contains(name) {
            self.known.insert(name.to_owned());
            self.waiting.push_back(Candidate::new(name));
        }
    }

    /// A name whose owner calls; once more, if it was asked before. It is not one of those that are in the directory.
    pub fn call_at(&mut self, name: &str) {
        if !self.waiting.iter().any(|waiting| waiting.name == name) {
            self.waiting.push_back(Candidate::new(name));
        }
    }

    /// All the names in the directory; others are gone.
    pub fn meet_all(&mut self, names: &HashSet<&str>) {
        self.known.retain(|name| names.contains(&**name));
        self.spare.retain(|name| names.contains(&**name));
        names.iter().for_each(|name| self.meet(name));
    }

    /// A name is gone, and will not come again.
    pub fn forget(&mut self, name: &str) {
        self.known.remove(name);
        self.spare.retain(|spare| spare != name);
    }

    /// One that was to be asked is another name of a publisher that is connected: it is not asked as long as it is.
    pub fn keep(&mut self, name: &str) {
        self.spare.push(name.to_owned());
    }

    /// Whether the publisher of this name has one in the directory.
    pub fn has_name_of(&self, name: &str) -> bool {
        self.known.contains(name) || self.spare.iter().any(|spare| same_publisher(spare, name))
    }

    /// Nobody listens under this name any more. If the publisher has other names, they are asked.
    pub fn is_gone(&mut self, name: &str) {
        let (others, rest) = std::mem::take(&mut self.spare).into_iter().partition(|spare| same_publisher(spare, name));
        self.spare = rest;
        let ask = |name: String| Candidate::new(&name);
        self.waiting.extend(Vec::into_iter(others).map(ask));
    }

    /// Whom to ask next, if it is time. [`finished`](Self::finished) tells the end of it.
    pub fn next(&mut self) -> Option<Candidate> {
        if self.under_way == AT_ONCE {
            return None;
        }
        let next = self.waiting.pop_front()?;
        self.under_way += 1;
        Some(next)
    }

    /// One question was answered, was in vain, or takes so long that others must not wait for it.
    pub fn finished(&mut self) {
        self.under_way -= 1;
    }

    /// One is to be asked again, its pause being over.
    pub fn again(&mut self, candidate: Candidate) {
        let pause = (candidate.pause * 2).min(LONGEST_PAUSE);
        self.waiting.push_back(Candidate { pause, ..candidate });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_asked_once() {
        let mut candidates = Candidates::default();
        for name in ["a", "b", "a"] {
            candidates.meet(name);
        }
        let names: Vec<_> = std::iter::from_fn(|| candidates.next()).map(|next| next.name).collect();
        assert_eq!(names, ["a", "b"]);
        candidates.meet("a");
        assert_eq!(candidates.next(), None);
    }

    #[test]
    fn another_name_of_a_publisher_is_asked_when_the_first_is_gone() {
        let [first, second, other] = ["0000000000000007", "0000000000000008", "0000000100000007"]
            .map(|id| format!("0123456789abcdef-{id:0>32}"));
        let mut candidates = Candidates::default();
        for name in [&second, &other] {
            candidates.meet(name);
            candidates.next().unwrap();
            candidates.finished();
            candidates.keep(name);
        }
        assert_eq!(candidates.next(), None);
        assert!(candidates.has_name_of(&first) && candidates.has_name_of(&other));
        candidates.is_gone(&first);
        assert_eq!(candidates.next().map(|next| next.name), Some(second));
        assert_eq!(candidates.next(), None);
    }

    #[test]
    fn few_at_a_time() {
        let mut candidates = Candidates::default();
        (0..1000).for_each(|number| candidates.meet(&number.to_string()));
        let asked = std::iter::from_fn(|| candidates.next()).count();
        assert_eq!(asked, AT_ONCE);
        candidates.finished();
        assert_eq!(candidates.next().map(|next| next.name), Some(AT_ONCE.to_string()));
        assert_eq!(candidates.next(), None);
    }

    #[test]
    fn pauses_grow() {
        let mut candidates = Candidates::default();
        candidates.meet("a");
        let mut pauses = Vec::new();
        for _ in 0..12 {
            let candidate = candidates.next().unwrap();
            pauses.push(candidate.pause);
            candidates.finished();
            candidates.again(candidate);
        }
        assert_eq!(pauses[..3], [FIRST_PAUSE, FIRST_PAUSE * 2, FIRST_PAUSE * 4]);
        assert_eq!(pauses.last(), Some(&LONGEST_PAUSE));
    }

    #[test]
    fn only_what_is_there_is_remembered() {
        let mut candidates = Candidates::default();
        candidates.meet("a");
        candidates.forget("a");
        candidates.meet("b");
        candidates.meet_all(&["c", "d"].into());
        assert_eq!(candidates.known, ["c".to_owned(), "d".to_owned()].into());
    }
}
