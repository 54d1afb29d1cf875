//! Copying payloads that are larger than the processor's caches.
//!
//! An ordinary store first fetches the cache line that it overwrites: of what is copied, a third of the traffic with memory
//! is for nothing. Streaming stores write whole lines without fetching them, and leave the caches to others; what is smaller
//! is better left in the caches, where its reader finds it. The C library's `memcpy` makes the same distinction, at a size
//! that it computes from all caches of all processors together, which on many machines nothing ever reaches.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
use super::prefetch;
use std::sync::OnceLock;

/// The last cache's size where the system does not tell it.
const USUAL_CACHE: usize = 32 << 20;
/// Never large.
const SMALL: usize = 1 << 20;

/// Whether so many bytes are better copied past the caches: more than a quarter of the last one, which has to hold the source
/// as well, and the copies that readers still have.
pub(crate) fn is_large(len: usize) -> bool {
    static LARGE: OnceLock<usize> = OnceLock::new();
    len > SMALL && len > *LARGE.get_or_init(|| last_cache().unwrap_or(USUAL_CACHE) / 4)
}

/// The size of the last cache in bytes.
fn last_cache() -> Option<usize> {
    let sizes = (0..8).map_while(|index| {
        std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size")).ok()
    });
    sizes.filter_map(|size| Some(size.trim().strip_suffix('K')?.parse::<usize>().ok()? << 10)).max()
}

/// Copies past the caches. All of it is in memory before whatever the thread stores next.
///
/// # Panics
/// When the lengths differ.
pub(crate) fn stream(to: &mut [u8], from: &[u8]) {
    assert_eq!(to.len(), from.len());
    #[cfg(target_arch = "x86_64")]
    {
        let head = to.as_ptr().align_offset(LINE).min(to.len());
        let (to_head, to) = to.split_at_mut(head);
        let (from_head, from) = from.split_at(head);
        to_head.copy_from_slice(from_head);
        let (to_lines, to_rest) = to.as_chunks_mut::<LINE>();
        let (from_lines, from_rest) = from.as_chunks::<LINE>();
        for (index, (to, from)) in to_lines.iter_mut().zip(from_lines).enumerate() {
            if let Some(later) = from_lines.get(index + AHEAD) {
                prefetch::for_reading_once(later);
            }
            stream_line(to, from);
        }
        // Streaming stores are ordered by nothing else: not by a release store, through which others learn of them.
        // SAFETY: every x86-64 processor has the instruction.
        unsafe { std::arch::x86_64::_mm_sfence() };
        to_rest.copy_from_slice(from_rest);
    }
    #[cfg(not(target_arch = "x86_64"))]
    to.copy_from_slice(from);
}

#[cfg(target_arch = "x86_64")]
const LINE: usize = 64;
/// How many lines ahead the source is asked for; measured from 4 to 32.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 12;

/// Copies a cache line; `to` starts at one.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn stream_line(to: &mut [u8; LINE], from: &[u8; LINE]) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};
    const PIECE: usize = size_of::<__m128i>();
    for (to, from) in to.as_chunks_mut::<PIECE>().0.iter_mut().zip(from.as_chunks::<PIECE>().0) {
        // SAFETY: a reference to as many bytes; any alignment will do.
        let bytes = unsafe { _mm_loadu_si128(from.as_ptr().cast()) };
        let to = to.as_mut_ptr().cast::<__m128i>();
        debug_assert!(to.is_aligned());
        // SAFETY: made from a unique reference to as many bytes, and aligned as pieces of a line are. `stream` makes the fence
        // that such stores need.
        unsafe { _mm_stream_si128(to, bytes) };
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sys::memory::OwnedSegment;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::{Duration, Instant};

    #[test]
    fn streams_copy_every_byte_and_no_other() {
        let source: Vec<u8> = (0..1000u32).map(|index| (index * 7 % 251) as u8).collect();
        for (at, from, len) in
            (0..70).flat_map(|at| [0, 1, 63].map(|from| (at, from, 900 - at))).chain([(3, 5, 20), (0, 0, 0)])
        {
            let mut target = vec![255; 1000];
            stream(&mut target[at..at + len], &source[from..from + len]);
            assert_eq!(target[at..at + len], source[from..from + len]);
            assert!(target[..at].iter().chain(&target[at + len..]).all(|byte| *byte == 255), "{at}, {from}, {len}");
        }
    }

    /// One thread streams and then says so, as a publisher does; the other one looks at once.
    #[test]
    fn what_was_streamed_is_there_before_what_is_stored_next() {
        const ROUNDS: u64 = 100_000;
        // Fewer where two threads seldom run at the same time, and a round costs a time slice or two.
        const LONGEST: Duration = Duration::from_secs(10);
        const OVER: u64 = u64::MAX;
        const LEN: usize = 16 * LINE;
        let memory = OwnedSegment::new("test", LEN as u64).unwrap();
        memory.populate(0..LEN as u64).unwrap();
        let (sent, received) = (AtomicU64::new(0), AtomicU64::new(0));
        let wait_for = |word: &AtomicU64, round| {
            let mut looks = 0u32;
            while word.load(Ordering::Acquire) < round {
                looks += 1;
                if looks.is_multiple_of(1 << 10) { std::thread::yield_now() } else { std::hint::spin_loop() }
            }
        };
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut missing = 0;
                for round in 1.. {
                    wait_for(&sent, round);
                    if sent.load(Ordering::Relaxed) == OVER {
                        break;
                    }
                    let words = memory.map().words()[..LEN / 8].iter().rev();
                    missing += words.filter(|word| word.load(Ordering::Relaxed) != round).count();
                    received.store(round, Ordering::Release);
                }
                missing
            });
            let began = Instant::now();
            for round in 1.. {
                if round > ROUNDS || began.elapsed() > LONGEST {
                    sent.store(OVER, Ordering::Release);
                    break;
                }
                let content = round.to_ne_bytes().repeat(LEN / 8);
                // SAFETY: the mapping has so many bytes, which the other thread reads only between `sent` and `received`.
                let to = unsafe { std::slice::from_raw_parts_mut(memory.map().as_ptr(), LEN) };
                stream(to, &content);
                sent.store(round, Ordering::Release);
                wait_for(&received, round);
            }
            assert_eq!(reader.join().unwrap(), 0, "words that came late");
        });
    }

    #[test]
    fn large_is_more_than_a_cache() {
        assert!(!is_large(256 << 10));
        assert!(is_large(8 << 30));
    }
}
