//! Connections to a process that have said nothing yet. Each has a descriptor, so there are only so many of them.

use crate::link::pair::Pair;
use crate::link::tasks::Token;
use crate::sync::locks::Mutex;
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// A connection that says nothing for so long is closed. A build with fault points can shorten it.
pub(crate) fn handshake_time() -> Duration {
    #[cfg(feature = "faults")]
    if let Some(shorter) = crate::faults::enabled::handshake_time() {
        return shorter;
    }
    Duration::from_secs(10)
}

/// The most that wait at a time. A subscriber says its hello with its first breath: it is soon gone from here.
const MOST: usize = 64;

/// A connection that has opened no channel yet.
#[derive(Default)]
pub(crate) struct Guest(Mutex<State>);

#[derive(Default)]
enum State {
    #[default]
    Silent,
    /// It said that it is a pair, on which this side may open channels.
    Pair(Weak<Pair>),
    /// It had to go.
    Gone,
}

impl Guest {
    /// It said that it is a pair; `false`: too late, it had to go.
    pub fn is_pair(&self, pair: &Arc<Pair>) -> bool {
        let mut state = self.0.lock();
        let is_there = !matches!(*state, State::Gone);
        if is_there {
            *state = State::Pair(Arc::downgrade(pair));
        }
        is_there
    }

    /// Sends it away; `false`: it is wanted.
    pub fn send_away(&self) -> bool {
        let mut state = self.0.lock();
        let pair = match &*state {
            State::Silent | State::Gone => None,
            State::Pair(pair) => pair.upgrade(),
        };
        let may_go = pair.is_none_or(|pair| pair.end_unless_wanted());
        if may_go {
            *state = State::Gone;
        }
        may_go
    }
}

/// Who stands there, by the task that listens to each; the oldest first.
#[derive(Default)]
pub(crate) struct Doorstep {
    crowd: Mutex<Crowd>,
}

#[derive(Default)]
struct Crowd {
    waiting: VecDeque<(Token, Arc<Guest>)>,
    /// Whether it was logged that there are too many, since there were few.
    told: bool,
}

impl Doorstep {
    /// One more comes, and `listen` begins to listen to it. Gives the one that has to go for it, which has had the most time to
    /// say something. Those that are wanted here by now stand there no more.
    pub fn enter(&self, guest: Arc<Guest>, listen: impl FnOnce() -> io::Result<Token>) -> io::Result<Option<Token>> {
        let mut crowd = self.crowd.lock(); // Before it can say something, and leave.
        crowd.waiting.push_back((listen()?, guest));
        while crowd.waiting.len() > MOST {
            let Some((task, oldest)) = crowd.waiting.pop_front() else { break };
            if oldest.send_away() {
                if !std::mem::replace(&mut crowd.told, true) {
                    log::warn!("byref: more than {MOST} connections say nothing; the oldest ones are closed");
                }
                return Ok(Some(task));
            }
        }
        Ok(None)
    }

    /// It said something, or is closed.
    pub fn leave(&self, task: Token) {
        let mut crowd = self.crowd.lock();
        crowd.waiting.retain(|(waiting, _)| *waiting != task);
        crowd.told &= crowd.waiting.len() > MOST / 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_for_the_newest() {
        let doorstep = Doorstep::default();
        let enter = |task| doorstep.enter(Arc::default(), || Ok(task)).unwrap();
        let most = MOST as Token;
        assert!((1..=most).all(|task| enter(task).is_none()));
        assert_eq!(enter(most + 1), Some(1));
        doorstep.leave(2);
        assert_eq!(enter(most + 2), None);
        assert_eq!(enter(most + 3), Some(3));
        assert_eq!(doorstep.crowd.lock().waiting.len(), MOST);
    }

    /// This side opens a channel on a connection that waits there: it stays, and those that came after it go instead.
    #[cfg(not(loom))]
    #[test]
    fn who_is_wanted_does_not_have_to_go() {
        use crate::link::channel::beside_stranger;

        let doorstep = Doorstep::default();
        let guests: Vec<_> = (0..3).map(|_| Arc::new(Guest::default())).collect();
        let pairs: Vec<_> = guests.iter().map(|_| beside_stranger()).collect();
        for (guest, (_, pair)) in guests.iter().zip(&pairs) {
            assert!(guest.is_pair(pair));
        }
        assert!(pairs[0].1.visit());
        let mut tasks = (0..3).chain(100..);
        for guest in guests.iter().cloned().chain(std::iter::repeat_with(Arc::default)).take(MOST) {
            assert_eq!(doorstep.enter(guest, || Ok(tasks.next().unwrap())).unwrap(), None);
        }
        let enter = |task| doorstep.enter(Arc::default(), || Ok(task)).unwrap();
        assert_eq!([enter(1000), enter(1001), enter(1002)], [None, Some(1), Some(2)]);
        assert!(pairs[0].1.is_usable() && !pairs[1].1.is_usable());
        assert!(!guests[1].is_pair(&pairs[1].1), "it was sent away");
        assert!(pairs[0].1.open(b"", None).unwrap().is_some());
        pairs[0].1.leave();
        assert!(!guests[0].send_away());
    }
}
