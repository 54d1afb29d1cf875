//! How long to look again and again before going to sleep.
//!
//! # Honest
//!
//! A thread that spins takes a processor, so it spins only where that pays and where nobody else wants the processor.
//!
//! - *Whether it pays*: the time doubles with each message that was found by spinning, and halves with each sleep that was
//!   long. When spins of the full time fail and short sleeps follow, again and again, then the one that it waits for is
//!   slower than any spin, or shares its processor: it moves to another processor, and spins no more for a while.
//! - *Whether nobody else wants it*: a look takes well under a microsecond. One that took much longer was interrupted by
//!   another thread. The spin ends there, and the next ones do not begin for a while: a millisecond at first, twice as long
//!   each time that it happens again soon.
//!
//! It never yields. On schedulers that share time by deadlines (EEVDF, Linux 6.6 and later) a thread that yields beside busy ones
//! gives up its turn of some milliseconds, and so is late for the next message, too. One that sleeps is not.

use crate::error::Result;
use crate::sys::processor;
use std::time::{Duration, Instant};

/// The longest time, unless somebody says otherwise, and the shortest. Waking a sleeping core takes 30 to 60 us on a virtual
/// machine. The most is two wake-ups and some: of two processes that answer each other, one that spins so long sees the
/// other wake, and then neither sleeps again.
pub(crate) const DEFAULT_MOST: Duration = Duration::from_micros(150);
const LEAST: Duration = Duration::from_micros(2);
/// Looks between two readings of the clock; fewer if they take longer than this time.
const LOOKS_UNTIMED: u32 = 16;
const UNTIMED: Duration = Duration::from_micros(2);
/// A thread that does not get on for so long was interrupted by another one. (Interrupts take less.)
const INTERRUPTED: Duration = Duration::from_micros(100);
/// How long a thread that was interrupted does not spin: at first, and at most.
const FIRST_REST: Duration = Duration::from_millis(1);
const LONGEST_REST: Duration = Duration::from_millis(256);
/// A rest that begins within so many times the last one after that is twice as long.
const SOON: u32 = 8;
/// Spins in vain in a row, each of the full time and before a short sleep, after which a thread goes to another processor.
const IN_VAIN: u32 = 4;
/// Who spins so long looks around now and then: for signals, and for publishers that hung up.
const LONG: Duration = Duration::from_millis(5);
/// A sleep shorter than this was not worth it.
const WORTH: Duration = Duration::from_micros(200);
/// Who looks at each record of a stream the moment it is written takes its cache line from under the publisher's pen, and
/// both wait for every line; so one that has caught up with a stream lets it run ahead.
const STREAM_PAUSE: Duration = Duration::from_nanos(1000);

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

/// How a spin ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spun {
    Found,
    /// It is time to sleep.
    InVain,
    /// It is time to sleep: another thread ran on this processor meanwhile.
    Interrupted,
}

/// A spinning time that adapts: long while messages come about as fast as a sleeping core wakes, short otherwise.
#[derive(Clone, Copy)]
pub(crate) struct Spin {
    most: Duration,
    time: Duration,
    /// Spins of the full time in a row that found nothing before a short sleep.
    in_vain: u32,
    /// No spinning before that.
    rests_until: Option<Instant>,
    rest: Duration,
}

impl Spin {
    pub fn up_to(most: Duration) -> Self {
        Spin { most, time: most, in_vain: 0, rests_until: None, rest: Duration::ZERO }
    }

    /// Asks `look` again and again until it finds something, no longer than `limit`. It is told whether it is time to look around.
    pub fn look(
        self,
        limit: Option<Duration>,
        is_stream: bool,
        mut look: impl FnMut(bool) -> Result<Sight>,
    ) -> Result<Spun> {
        let begin = Instant::now();
        let time = if self.rests_until.is_some_and(|until| begin < until) { LEAST.min(self.most) } else { self.time };
        let time = limit.map_or(time, |limit| limit.min(time));
        if is_stream {
            while begin.elapsed() < STREAM_PAUSE.min(time) {
                std::hint::spin_loop();
            }
        }
        let mut spun = Duration::ZERO;
        let mut looked_around = Duration::ZERO;
        let (mut untimed, mut left) = (LOOKS_UNTIMED, LOOKS_UNTIMED);
        loop {
            let long = spun > looked_around + LONG;
            if long {
                looked_around = spun;
            }
            match look(long)? {
                Sight::Nothing => {}
                Sight::Found => return Ok(Spun::Found),
                Sight::Sleep => return Ok(Spun::InVain),
            }
            left -= 1;
            if left > 0 && !time.is_zero() {
                std::hint::spin_loop();
                continue;
            }
            let now = begin.elapsed();
            let took = now - spun;
            spun = now;
            // Among many looks at many subscribers, the clock tells of one at a time.
            if took > UNTIMED && untimed > 1 {
                untimed = 1;
            } else if took > INTERRUPTED {
                return Ok(Spun::Interrupted);
            }
            left = untimed;
            if spun >= time {
                return Ok(Spun::InVain);
            }
        }
    }

    /// Something was found.
    pub fn paid(&mut self) {
        self.time = self.time.saturating_mul(2).min(self.most);
        self.in_vain = 0;
    }

    #[cfg(all(test, not(loom)))]
    pub fn time(&self) -> Duration {
        self.time
    }

    /// Nothing was found, and what followed is over: a sleep, however many pieces it had, if it `began` at all.
    pub fn slept_since(&mut self, began: Option<Instant>, spun: Spun) {
        if let Some(began) = began {
            self.slept(spun, began.elapsed());
        }
    }

    /// The sleep was so long.
    fn slept(&mut self, spun: Spun, time: Duration) {
        let now = Instant::now();
        if spun == Spun::Interrupted {
            return self.rest(now);
        }
        if time >= WORTH {
            self.time = (self.time / 2).max(LEAST.min(self.most));
            self.in_vain = 0;
        } else if self.time < self.most {
            self.time = self.most;
        } else if self.most > LEAST && !self.rests_at(now) {
            self.in_vain += 1;
            if self.in_vain == IN_VAIN {
                self.in_vain = 0;
                self.rest(now);
                processor::leave();
            }
        }
    }

    fn rests_at(&self, now: Instant) -> bool {
        self.rests_until.is_some_and(|until| now < until)
    }

    fn rest(&mut self, now: Instant) {
        let is_soon = self.rests_until.is_some_and(|until| now < until + self.rest * SOON);
        self.rest = if is_soon { (self.rest * 2).min(LONGEST_REST) } else { FIRST_REST };
        self.rests_until = Some(now + self.rest);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const BRIEF: Duration = Duration::from_micros(20);

    /// A spin whose looks find nothing, and last so long each.
    fn in_vain(spin: Spin, each: Duration) -> (Spun, Duration) {
        let begin = Instant::now();
        let look = |_| {
            let begin = Instant::now();
            while begin.elapsed() < each {}
            Ok(Sight::Nothing)
        };
        let spun = spin.look(None, false, look).unwrap();
        (spun, begin.elapsed())
    }

    #[test]
    fn a_thread_that_was_interrupted_sleeps_and_does_not_spin_for_a_while() {
        let mut spin = Spin::up_to(Duration::from_secs(3600));
        assert_eq!(in_vain(spin, 3 * INTERRUPTED).0, Spun::Interrupted);
        let mut rests = Vec::new();
        for _ in 0..4 {
            spin.slept(Spun::Interrupted, BRIEF);
            assert_eq!(in_vain(spin, Duration::ZERO).0, Spun::InVain, "it spins for a moment only");
            rests.push(spin.rest.as_millis());
        }
        assert_eq!(rests, [1, 2, 4, 8]);
        spin.rests_until = Some(Instant::now() - spin.rest * SOON);
        spin.slept(Spun::Interrupted, BRIEF);
        assert_eq!(spin.rest, FIRST_REST, "the last time was long ago");
    }

    #[test]
    fn many_slow_looks_are_no_interruption() {
        // Sixteen of them take longer than an interruption. Others may really interrupt some.
        let spin = Spin::up_to(20 * INTERRUPTED);
        assert!((0..100).any(|_| in_vain(spin, INTERRUPTED / 4).0 == Spun::InVain));
    }

    #[test]
    fn spins_in_vain_end() {
        let mut spin = Spin::up_to(DEFAULT_MOST);
        spin.slept(Spun::InVain, WORTH);
        assert_eq!(spin.time, DEFAULT_MOST / 2);
        for number in 0..=IN_VAIN {
            assert_eq!(spin.rests_until, None, "after {number}");
            spin.slept(Spun::InVain, BRIEF);
        }
        assert_eq!(spin.time, DEFAULT_MOST);
        assert_eq!(spin.rest, FIRST_REST);
    }

    #[test]
    fn who_must_not_spin_looks_once() {
        let mut looks = 0;
        let look = |_| {
            looks += 1;
            Ok(Sight::Nothing)
        };
        assert_eq!(Spin::up_to(Duration::ZERO).look(None, false, look).unwrap(), Spun::InVain);
        assert_eq!(looks, 1);
    }
}
