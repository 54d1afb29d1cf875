//! What the threads that wait for an endpoint's peers sleep at.

use super::epoll::{Bell, Epoll, Interest, READY_AT_ONCE};
use super::futex::Gong;
use crate::sync::locks::Mutex;
use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// The gong, for who sleeps at words of memory. Only who polls a descriptor, or cannot sleep so, needs sockets: these are made then.
#[derive(Default)]
pub(crate) struct Door {
    pub gong: Gong,
    /// It was rung, and nobody has looked since.
    is_rung: AtomicBool,
    sockets: OnceLock<Sockets>,
    /// Where it is looked after, and under what number.
    doors: OnceLock<(Arc<Doors>, u64)>,
}

/// An epoll instance for the peers' sockets, and a bell of the process's own in it.
pub(crate) struct Sockets {
    pub epoll: Epoll,
    pub bell: Bell,
}

impl Sockets {
    fn new() -> io::Result<Self> {
        let sockets = Sockets { epoll: Epoll::new()?, bell: Bell::new()? };
        sockets.epoll.add(&sockets.bell, Door::BELL, Interest::IN)?;
        Ok(sockets)
    }
}

impl Door {
    /// The bell's token; peers count from zero.
    pub const BELL: u64 = u64::MAX;
    /// That of an alarm, where there is one.
    pub const ALARM: u64 = u64::MAX - 1;

    /// One that has sockets.
    pub fn opened() -> io::Result<Self> {
        let sockets = OnceLock::from(Sockets::new()?); // Nobody has rung before.
        Ok(Door { sockets, ..Door::default() })
    }

    /// Makes its sockets if it has none. By one thread at a time.
    pub fn open(&self) -> io::Result<&Sockets> {
        if let Some(sockets) = self.sockets.get() {
            return Ok(sockets);
        }
        let sockets = Sockets::new()?;
        sockets.bell.ring(); // It may have been rung before.
        if let Some((doors, number)) = self.doors.get() {
            doors.watch(&sockets.epoll, *number)?;
        }
        Ok(self.sockets.get_or_init(|| sockets))
    }

    pub fn sockets(&self) -> Option<&Sockets> {
        self.sockets.get()
    }

    /// Of one that was opened.
    pub fn epoll(&self) -> &Epoll {
        &self.sockets().expect("it was opened").epoll
    }

    /// The same.
    pub fn bell(&self) -> &Bell {
        &self.sockets().expect("it was opened").bell
    }

    /// Has `doors` look after it, under this number.
    pub fn enlist(&self, doors: &Arc<Doors>, number: u64) -> io::Result<()> {
        let _ = self.doors.set((Arc::clone(doors), number));
        if let Some(sockets) = self.sockets() {
            doors.watch(&sockets.epoll, number)?;
        }
        if self.is_rung() {
            doors.note(number);
        }
        Ok(())
    }

    /// Wakes who sleeps here, whatever at.
    pub fn ring(&self) {
        let was_rung = self.is_rung.swap(true, Ordering::AcqRel);
        match (self.sockets(), self.doors.get()) {
            (Some(sockets), _) => sockets.bell.ring(),
            (None, Some((doors, number))) if !was_rung => doors.note(*number),
            _ => {}
        }
        self.gong.strike();
    }

    pub fn is_rung(&self) -> bool {
        self.is_rung.load(Ordering::Relaxed)
    }

    /// Silences its bell; whether it was rung. What happened before a ring is seen afterwards.
    pub fn hear(&self) -> bool {
        if let Some(sockets) = self.sockets() {
            sockets.bell.silence();
        }
        self.is_rung.swap(false, Ordering::AcqRel)
    }
}

/// Many doors that are looked after together: which of them have something to say is known without a look at each.
#[derive(Default)]
pub(crate) struct Doors {
    /// Contains those that have sockets.
    epoll: Mutex<Option<Arc<Epoll>>>,
    /// Those of the others that were rung.
    rung: Mutex<HashSet<u64>>,
}

impl Doors {
    fn watch(&self, epoll: &Epoll, number: u64) -> io::Result<()> {
        let mut all = self.epoll.lock();
        let all = match &mut *all {
            Some(all) => all,
            none => none.insert(Arc::new(Epoll::new()?)),
        };
        all.add(epoll, number, Interest::IN)
    }

    fn note(&self, number: u64) {
        self.rung.lock().insert(number);
    }

    /// Looks after a door no more.
    pub fn remove(&self, door: &Door, number: u64) {
        self.rung.lock().remove(&number);
        let all = self.epoll.lock().clone();
        if let (Some(all), Some(sockets)) = (all, door.sockets()) {
            all.remove(&sockets.epoll);
        }
    }

    /// Forgets all of them.
    pub fn clear(&self) {
        *self.epoll.lock() = None;
        self.rung.lock().clear();
    }

    /// The numbers of those that have something to say, of `most` that have sockets. `is_rung` says whether another one still is.
    pub fn that_ring(&self, most: usize, is_rung: impl Fn(u64) -> bool) -> HashSet<u64> {
        let rung = std::mem::take(&mut *self.rung.lock());
        let mut ringing: HashSet<u64> = rung.into_iter().filter(|number| is_rung(*number)).collect();
        self.rung.lock().extend(&ringing);
        let Some(all) = self.epoll.lock().clone() else { return ringing };
        let mut ready = Vec::new();
        for _ in 0..=most / READY_AT_ONCE {
            ready.clear();
            let told = all.wait(Some(Duration::ZERO), &mut ready);
            ringing.extend(&ready);
            if told.is_err() || ready.len() < READY_AT_ONCE {
                break;
            }
        }
        ringing
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sys::epoll::Woken;

    #[test]
    fn a_ring_is_heard_whenever_sockets_are_made() {
        let door = Door::default();
        door.ring();
        assert_eq!(door.gong.strikes(), 1);
        door.open().unwrap();
        let is_readable = || door.epoll().wait(Some(Duration::ZERO), &mut Vec::new()).unwrap() == Woken::Ready;
        assert!(is_readable());
        assert!(door.hear() && !door.hear() && !is_readable());
        door.ring();
        assert!(is_readable() && door.hear() && !is_readable());
    }

    #[test]
    fn doors_with_and_without_sockets_are_looked_after() {
        let doors = Arc::<Doors>::default();
        let all: Vec<_> = (0..4).map(|_| Door::default()).collect();
        all[0].open().unwrap();
        all[2].ring();
        for (number, door) in (0..).zip(&all) {
            door.enlist(&doors, number).unwrap();
        }
        let ringing = || {
            let mut ringing: Vec<_> =
                doors.that_ring(all.len(), |number| all[number as usize].is_rung()).into_iter().collect();
            ringing.sort_unstable();
            ringing
        };
        all[0].hear();
        assert_eq!(ringing(), [2], "it was rung before");
        all[1].ring();
        assert_eq!([ringing(), ringing()], [[1, 2], [1, 2]], "as long as nobody looks");
        all[2].hear();
        all[0].ring();
        assert_eq!(ringing(), [0, 1]);
        all[3].open().unwrap();
        assert_eq!(ringing(), [0, 1, 3]);
        all[3].hear();
        all[3].ring();
        doors.remove(&all[0], 0);
        doors.remove(&all[1], 1);
        assert_eq!(ringing(), [3]);
        doors.clear();
        assert!(ringing().is_empty());
    }
}
