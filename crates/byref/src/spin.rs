//! How long to look again and again before going to sleep.

use crate::error::Result;
use std::time::{Duration, Instant};

/// The longest and the shortest time. Waking a sleeping core takes 30 to 60 us on a virtual machine. The most is two
/// wake-ups and some: of two processes that answer each other, one that spins so long sees the other wake, and then neither
/// sleeps again.
const MOST: Duration = Duration::from_micros(150);
const LEAST: Duration = Duration::from_micros(2);
/// After this time a spinning thread lets others that are ready to run go first: the one it waits for may be among them.
const ALONE: Duration = Duration::from_micros(2);
/// A sleep shorter than this was not worth it.
const WORTH: Duration = Duration::from_micros(200);

/// A spinning time that adapts: long while messages come about as fast as a sleeping core wakes, short otherwise.
#[derive(Clone, Copy)]
pub(crate) struct Spin(Duration);

impl Default for Spin {
    fn default() -> Self {
        Spin(MOST)
    }
}

impl Spin {
    /// Asks `look` again and again until it finds something, no longer than `limit`.
    pub fn look<T>(self, limit: Option<Duration>, mut look: impl FnMut() -> Result<Option<T>>) -> Result<Option<T>> {
        let time = limit.map_or(self.0, |limit| limit.min(self.0));
        let begin = Instant::now();
        let mut spun = Duration::ZERO;
        while spun < time {
            if spun < ALONE {
                for _ in 0..8 {
                    std::hint::spin_loop();
                }
            } else {
                std::thread::yield_now();
            }
            spun = begin.elapsed();
            let found = look()?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Something was found.
    pub fn paid(&mut self) {
        self.0 = (self.0 * 2).min(MOST);
    }

    /// Nothing was found, and the sleep that followed was so long.
    pub fn slept(&mut self, time: Duration) {
        self.0 = if time < WORTH { MOST } else { (self.0 / 2).max(LEAST) };
    }
}
