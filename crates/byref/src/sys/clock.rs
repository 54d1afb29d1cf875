//! The system's clocks for a hot path.
//!
//! Asking the kernel takes 27 to 40 ns on a virtual machine, most of it in the fences around the processor's counter, and is
//! the largest part of sending a small message. Where the kernel itself keeps time by that counter, it is read without
//! fences (11 ns) and the time since the last question to the kernel is added up, for a millisecond at most. The result
//! differs from the kernel's by well under a microsecond; a clock that is set, or a machine that moves, shows within that
//! millisecond.
#![allow(unsafe_code)]

use super::process::{monotonic_ns, realtime_ns};
use std::cell::RefCell;

/// How long the kernel is not asked again.
const WINDOW_NS: u64 = 1_000_000;
/// Two questions this far apart tell how fast the counter runs.
const LEAST_NS: u64 = 200_000;
const MOST_NS: u64 = 10_000_000_000;
/// Ticks between the reads before and after a question, beyond which something came in between.
const MOST_TICKS: u64 = 4096;
const ATTEMPTS: usize = 3;

/// `CLOCK_MONOTONIC` in nanoseconds, by a clock of this thread.
#[inline]
pub(crate) fn monotonic() -> u64 {
    thread_local! {
        static CLOCK: RefCell<Clock> = RefCell::new(Clock::of(monotonic_ns));
    }
    CLOCK.with_borrow_mut(Clock::now)
}

/// Tells the time, and remembers how the counter and one of the kernel's clocks compare.
pub(crate) struct Clock {
    kernels: fn() -> u64,
    /// Ticks and nanoseconds of the last question; no window until the speed is known.
    ticks: u64,
    ns: u64,
    window: u64,
    /// Nanoseconds per tick, times 2^32.
    speed: u64,
    last: u64,
}

impl Clock {
    /// `CLOCK_REALTIME`.
    pub fn realtime() -> Self {
        Self::of(realtime_ns)
    }

    fn of(kernels: fn() -> u64) -> Self {
        let mut clock = Clock { kernels, ticks: 0, ns: 0, window: 0, speed: 0, last: 0 };
        clock.ask();
        clock
    }

    /// Nanoseconds; never less than before, unless the clock was set back.
    #[inline]
    pub fn now(&mut self) -> u64 {
        let passed = counter::read().wrapping_sub(self.ticks);
        if passed >= self.window {
            return self.ask();
        }
        // The product fits: a window has fewer than 2^32 ticks, and `speed` is below 2^32 (a counter of 1 GHz or more).
        self.last = self.last.max(self.ns + ((passed * self.speed) >> 32));
        self.last
    }

    #[cold]
    fn ask(&mut self) -> u64 {
        let Some((ticks, ns)) = ask(self.kernels) else {
            self.window = 0;
            self.last = (self.kernels)();
            return self.last;
        };
        let (ticks_passed, ns_passed) = (ticks.wrapping_sub(self.ticks), ns.wrapping_sub(self.ns));
        if ns_passed >= LEAST_NS {
            let speed = ((ns_passed as u128) << 32) / (ticks_passed.max(1) as u128);
            let plausible = ns_passed <= MOST_NS && (1 << 28..1 << 32).contains(&speed);
            (self.speed, self.window) =
                if plausible { (speed as u64, (WINDOW_NS << 32) / speed as u64) } else { (0, 0) };
            (self.ticks, self.ns) = (ticks, ns);
        }
        // Small steps back are the error of the sum; a large one is an operator's.
        self.last = if ns + WINDOW_NS < self.last { ns } else { self.last.max(ns) };
        self.last
    }
}

/// The counter and the kernel's clock at one time, as far as nothing came in between.
fn ask(kernels: fn() -> u64) -> Option<(u64, u64)> {
    if !counter::is_the_kernels() {
        return None;
    }
    (0..ATTEMPTS).find_map(|_| {
        let before = counter::read();
        let ns = kernels();
        let took = counter::read().wrapping_sub(before);
        (took < MOST_TICKS).then_some((before + took / 2, ns))
    })
}

/// Microseconds of `CLOCK_MONOTONIC`, which is the same in all processes of the host (and of a time namespace).
#[inline]
pub(crate) fn monotonic_us() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000
}

/// Finds out which clock serves.
pub(super) fn prepare() {
    counter::is_the_kernels();
}

#[cfg(target_arch = "x86_64")]
mod counter {
    use std::sync::OnceLock;

    #[inline]
    pub fn read() -> u64 {
        // SAFETY: every x86-64 processor has the instruction, and Linux lets user programs use it unless told otherwise
        // (PR_SET_TSC), in which case the kernel's clock does not work either.
        unsafe { core::arch::x86_64::_rdtsc() }
    }

    /// Whether the kernel keeps time by it, so found it steady and the same on all processors.
    pub fn is_the_kernels() -> bool {
        static SOURCE: OnceLock<bool> = OnceLock::new();
        *SOURCE.get_or_init(|| {
            std::fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource")
                .is_ok_and(|name| name.trim() == "tsc")
        })
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod counter {
    /// Always outside of the window: the kernel is asked each time.
    #[inline]
    pub fn read() -> u64 {
        u64::MAX
    }

    pub fn is_the_kernels() -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::{Clock, realtime_ns};

    /// Between two questions to the kernel lies what the clock says in between, whichever way it found out.
    #[test]
    fn agrees_with_the_kernel() {
        let mut clock = Clock::realtime();
        let slack = 100_000; // A processor may be taken away at any place; a wrong speed shows in far more.
        let mut last = 0;
        for _ in 0..200_000 {
            let before = realtime_ns();
            let now = clock.now();
            let after = realtime_ns();
            assert!(before <= now + slack && now <= after + slack, "{before} {now} {after}");
            assert!(now >= last);
            last = now;
        }
    }
}
