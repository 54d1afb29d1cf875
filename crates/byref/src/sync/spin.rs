//! How long to look again and again before going to sleep.

use crate::error::Result;
use crate::sys::processor;
use std::time::{Duration, Instant};

/// The longest time, unless somebody says otherwise, and the shortest. Waking a sleeping core takes 30 to 60 us on a virtual
/// machine. The most is two wake-ups and some: of two processes that answer each other, one that spins so long sees the
/// other wake, and then neither sleeps again.
pub(crate) const DEFAULT_MOST: Duration = Duration::from_micros(150);
const LEAST: Duration = Duration::from_micros(2);
/// After so many looks (some microseconds) a spinning thread lets others that are ready to run go first: the one it waits for
/// may be among them. The clock is asked once in so many.
const LOOKS_ALONE: u32 = 64;
const LOOKS_UNTIMED: u32 = 16;
/// A yield that took longer let somebody else run.
const YIELDED: Duration = Duration::from_nanos(1500);
/// After so many messages in a row that came during a yield this thread goes to another processor; again only after this time.
const CROWDED: u32 = 4;
const MOVE_AGAIN: Duration = Duration::from_millis(50);
/// Who spins so long looks around now and then: for signals, and for publishers that hung up.
const LONG: Duration = Duration::from_millis(5);
/// A sleep shorter than this was not worth it.
const WORTH: Duration = Duration::from_micros(200);
/// Who looks at each record of a stream the moment it is written takes its cache line from under the publisher's pen, and
/// both wait for every line; so one that has caught up with a stream lets it run ahead.
const STREAM_PAUSE: Duration = Duration::from_nanos(1000);

/// What a spinning thread is told with each look.
pub(crate) struct Look {
    /// It just made way for another thread.
    pub made_way: bool,
    /// It has spun for long since it looked around.
    pub long: bool,
}

/// What a look brings.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sight {
    Nothing,
    Found,
    /// Something that a sleep deals with.
    Sleep,
}

impl Sight {
    pub fn found(found: bool) -> Self {
        if found { Sight::Found } else { Sight::Nothing }
    }
}

/// A spinning time that adapts: long while messages come about as fast as a sleeping core wakes, short otherwise.
#[derive(Clone, Copy)]
pub(crate) struct Spin {
    most: Duration,
    time: Duration,
    /// Messages in a row that came from the same processor, it seems; and when that last made a thread leave it.
    crowded: u32,
    moved: Option<Instant>,
}

impl Spin {
    pub fn up_to(most: Duration) -> Self {
        Spin { most, time: most, crowded: 0, moved: None }
    }

    /// Asks `look` again and again until it finds something, no longer than `limit`.
    pub fn look(
        self,
        limit: Option<Duration>,
        is_stream: bool,
        mut look: impl FnMut(Look) -> Result<Sight>,
    ) -> Result<bool> {
        let time = limit.map_or(self.time, |limit| limit.min(self.time));
        let begin = Instant::now();
        if is_stream {
            while begin.elapsed() < STREAM_PAUSE.min(time) {
                std::hint::spin_loop();
            }
        }
        let mut spun = Duration::ZERO;
        let mut made_way = false;
        let mut looked_around = Duration::ZERO;
        for looks in 1u32.. {
            let long = spun > looked_around + LONG;
            if long {
                looked_around = spun;
            }
            match look(Look { made_way, long })? {
                Sight::Nothing => {}
                Sight::Found => return Ok(true),
                Sight::Sleep => break,
            }
            if looks < LOOKS_ALONE {
                std::hint::spin_loop();
                if looks.is_multiple_of(LOOKS_UNTIMED) {
                    spun = begin.elapsed();
                }
            } else {
                std::thread::yield_now();
                let now = begin.elapsed();
                made_way = now - spun > YIELDED;
                spun = now;
            }
            if spun >= time {
                break;
            }
        }
        Ok(false)
    }

    /// Something was found; what came while this thread made way was probably sent from the same processor.
    pub fn paid(&mut self, made_way: bool) {
        self.time = self.time.saturating_mul(2).min(self.most);
        self.crowded = if made_way { self.crowded + 1 } else { 0 };
        if self.crowded == CROWDED && self.moved.is_none_or(|moved| moved.elapsed() > MOVE_AGAIN) {
            self.moved = Some(Instant::now());
            processor::leave();
        }
    }

    /// Nothing was found, and the sleep that followed was so long.
    pub fn slept(&mut self, time: Duration) {
        self.time = if time < WORTH { self.most } else { (self.time / 2).max(LEAST.min(self.most)) };
    }
}
