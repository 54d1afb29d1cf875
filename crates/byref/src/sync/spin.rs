//! How long to look again and again before going to sleep.
//!
//! # Honest
//!
//! A thread that spins takes a processor, so it spins only where that pays and where nobody else wants the processor.
//!
//! - *Whether it pays*: the time doubles with each message that was found by spinning, and halves with each sleep that was
//!   long. When a spin of the full time fails and a short sleep follows, then the one that it waits for is slower than any
//!   spin, or shares its processor and cannot run before this thread sleeps. So it does not spin before the next short
//!   sleeps: before 16, 128, 1,024 of them, the more the more often that happened in a row. Each spin that paid makes up for
//!   one in vain, up to four. Where the sleeps follow each other closely, the thread moves to another processor.
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
/// Spins that paid, as many as make up for others in vain.
const MOST_CREDIT: u32 = 4;
/// Short sleeps without a spin, after a spin in vain; the factor for each further one in a row; the most of them.
const FIRST_SKIPS: u32 = 16;
const MORE_SKIPS: u32 = 8;
const MOST_SKIPS: u32 = 1024;
/// Spins in vain in a row after which a thread moves to another processor, if short sleeps come so close to each other. For
/// messages at 1 kHz that is no gain: waking somebody on another processor takes longer than all this saves.
const CROWDED: u32 = 2;
const CLOSE: Duration = Duration::from_micros(300);
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
    /// Spins that paid, and nothing was lost since.
    credit: u32,
    /// Spins of the full time that found nothing before a short sleep, in a row and without credit.
    in_vain: u32,
    /// When the last of them was, and how many short sleeps without a spin were to follow; how many are left.
    vain_at: Option<Instant>,
    skips: u32,
    skips_left: u32,
    /// What it did about the last one was to move.
    moved: bool,
    /// No spinning before that.
    rests_until: Option<Instant>,
    rest: Duration,
}

impl Spin {
    pub fn up_to(most: Duration) -> Self {
        Spin {
            most,
            time: most,
            credit: 0,
            in_vain: 0,
            vain_at: None,
            skips: 0,
            skips_left: 0,
            moved: false,
            rests_until: None,
            rest: Duration::ZERO,
        }
    }

    /// Asks `look` again and again until it finds something, no longer than `limit`. It is told whether it is time to look around.
    pub fn look(
        self,
        limit: Option<Duration>,
        is_stream: bool,
        mut look: impl FnMut(bool) -> Result<Sight>,
    ) -> Result<Spun> {
        let begin = Instant::now();
        let time = match self.time {
            _ if self.skips_left > 0 => Duration::ZERO,
            time if self.rests_at(begin) => time.min(LEAST),
            time => time,
        };
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
        self.time = self.time.max(LEAST).saturating_mul(2).min(self.most);
        self.credit = (self.credit + 1).min(MOST_CREDIT);
        (self.in_vain, self.skips_left, self.moved) = (0, 0, false);
    }

    #[cfg(all(test, not(loom)))]
    pub fn time(&self) -> Duration {
        self.time
    }

    /// The spin found nothing, and what followed is over: a sleep, however many pieces it had. If none `began`, something was
    /// found just before it, as a longer spin would have.
    pub fn slept_since(&mut self, began: Option<Instant>, spun: Spun) {
        match began {
            Some(began) => self.slept(spun, began.elapsed()),
            None if spun == Spun::InVain => self.paid(),
            None => {}
        }
    }

    /// The sleep was so long.
    fn slept(&mut self, spun: Spun, time: Duration) {
        let now = Instant::now();
        if spun == Spun::Interrupted {
            return self.rest(now);
        }
        if time >= WORTH {
            self.time = if self.time > LEAST { self.time / 2 } else { Duration::ZERO };
        } else if self.skips_left > 0 {
            self.skips_left -= 1;
        } else if self.time < self.most {
            self.time = self.most;
        } else if self.most > LEAST && !self.rests_at(now) {
            self.spun_in_vain(now);
        }
    }

    fn spun_in_vain(&mut self, now: Instant) {
        if self.credit > 0 {
            self.credit -= 1;
            return;
        }
        let is_close = self.vain_at.is_some_and(|last| now < last + CLOSE * (self.skips + 1));
        self.vain_at = Some(now);
        self.in_vain = self.in_vain.saturating_add(1);
        self.moved = is_close && self.in_vain >= CROWDED && !self.moved;
        let skips = FIRST_SKIPS.saturating_mul(MORE_SKIPS.saturating_pow(self.in_vain - 1)).min(MOST_SKIPS);
        self.skips = if self.moved { 0 } else { skips };
        self.skips_left = self.skips;
        if self.moved {
            processor::leave();
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
    const LONG_REST: Duration = Duration::from_secs(3600);

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
            let before = Instant::now();
            spin.slept(Spun::Interrupted, BRIEF);
            assert!(spin.rests_until >= Some(before + spin.rest));
            spin.rests_until = Some(before + LONG_REST); // Others may keep this thread from running for longer than a rest.
            let spins = (0..100).map(|_| in_vain(spin, Duration::ZERO).0);
            assert!(spins.into_iter().any(|spun| spun == Spun::InVain), "it spins for a moment only");
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

    /// Short sleeps until it spins for the full time again, and does so in vain.
    fn sleeps_until_in_vain(spin: &mut Spin) -> u32 {
        let mut sleeps = 0;
        while spin.skips_left > 0 || spin.time < spin.most {
            spin.slept(Spun::InVain, BRIEF);
            sleeps += 1;
        }
        spin.slept(Spun::InVain, BRIEF);
        sleeps
    }

    #[test]
    fn spins_in_vain_become_rare_until_one_pays() {
        let mut spin = Spin::up_to(DEFAULT_MOST);
        let sleeps: Vec<_> = (0..5)
            .map(|_| {
                spin.vain_at = None; // That of messages at a slow pace.
                sleeps_until_in_vain(&mut spin)
            })
            .collect();
        assert_eq!(sleeps, [0, 16, 128, 1024, 1024]);
        assert!((0..100).any(|_| in_vain(spin, Duration::ZERO).1 < DEFAULT_MOST / 2), "it looks once");
        spin.paid();
        spin.paid();
        let sleeps: Vec<_> = (0..4).map(|_| sleeps_until_in_vain(&mut spin)).collect();
        assert_eq!(sleeps, [0, 0, 0, 16], "two of them are made up for");
    }

    #[test]
    fn who_spins_in_vain_and_sleeps_again_and_again_moves_and_tries_anew() {
        let mut spin = Spin::up_to(DEFAULT_MOST);
        let (mut moves, mut sleeps) = (Vec::new(), Vec::new());
        for _ in 0..4 {
            sleeps.push(sleeps_until_in_vain(&mut spin));
            moves.push(spin.moved);
            spin.vain_at = Some(Instant::now() + LONG_REST); // Others may keep this thread from running for long.
        }
        assert_eq!((moves, sleeps), (vec![false, true, false, true], vec![0, 16, 0, 1024]));
    }

    #[test]
    fn who_sleeps_long_does_not_spin() {
        let mut spin = Spin::up_to(DEFAULT_MOST);
        spin.slept(Spun::InVain, WORTH);
        assert_eq!(spin.time, DEFAULT_MOST / 2);
        (0..8).for_each(|_| spin.slept(Spun::InVain, WORTH));
        assert_eq!(spin.time, Duration::ZERO);
        spin.slept_since(None, Spun::InVain);
        assert_eq!(spin.time, 2 * LEAST, "a spin would have found what came before the sleep");
        spin.slept(Spun::InVain, BRIEF);
        assert_eq!(spin.time, DEFAULT_MOST);
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
