//! Connections to a process that have said nothing yet. Each has a descriptor, so there are only so many of them.

use crate::link::service::Token;
use crate::sync::locks::Mutex;
use std::collections::VecDeque;
use std::io;
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

/// Who stands there, by the task that listens to each; the oldest first.
#[derive(Default)]
pub(crate) struct Doorstep {
    crowd: Mutex<Crowd>,
}

#[derive(Default)]
struct Crowd {
    waiting: VecDeque<Token>,
    /// Whether it was logged that there are too many, since there were few.
    told: bool,
}

impl Doorstep {
    /// One more comes, and `listen` begins to listen to it. Gives the one that has to go for it, which has had the most time to
    /// say something.
    pub fn enter(&self, listen: impl FnOnce() -> io::Result<Token>) -> io::Result<Option<Token>> {
        let mut crowd = self.crowd.lock(); // Before it can say something, and leave.
        crowd.waiting.push_back(listen()?);
        if crowd.waiting.len() <= MOST {
            return Ok(None);
        }
        if !std::mem::replace(&mut crowd.told, true) {
            log::warn!("byref: more than {MOST} connections say nothing; the oldest ones are closed");
        }
        Ok(crowd.waiting.pop_front())
    }

    /// It said something, or is closed.
    pub fn leave(&self, task: Token) {
        let mut crowd = self.crowd.lock();
        crowd.waiting.retain(|waiting| *waiting != task);
        crowd.told &= crowd.waiting.len() > MOST / 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_for_the_newest() {
        let doorstep = Doorstep::default();
        let enter = |task| doorstep.enter(|| Ok(task)).unwrap();
        let most = MOST as Token;
        assert!((1..=most).all(|task| enter(task).is_none()));
        assert_eq!(enter(most + 1), Some(1));
        doorstep.leave(2);
        assert_eq!(enter(most + 2), None);
        assert_eq!(enter(most + 3), Some(3));
        assert_eq!(doorstep.crowd.lock().waiting.len(), MOST);
    }
}
