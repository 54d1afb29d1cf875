//! The segment of another process's event queue.

use super::each;
use crate::pubsub::monitor::{MAX_LISTED, SEGMENT_LEN, read_segment};
use crate::sync::Ordering;
use crate::sys::memory::OwnedSegment;
use arbitrary::{Arbitrary, Unstructured};

/// Words written one after the other.
#[derive(Arbitrary, Debug)]
struct Words<'a> {
    at: u16,
    repeat: u8,
    content: &'a [u8],
}

pub fn run(input: &[u8]) {
    thread_local! {
        static SEGMENT: OwnedSegment = OwnedSegment::new("fuzz", SEGMENT_LEN).expect("some memory");
    }
    SEGMENT.with(|segment| {
        let words = segment.map().words();
        let mut written = Vec::new();
        each(Unstructured::new(input), |run: Words<'_>| {
            let values = run.content.chunks(8).map(|chunk| {
                let mut word = [0; 8];
                word[..chunk.len()].copy_from_slice(chunk);
                u64::from_ne_bytes(word)
            });
            let values: Vec<_> = values.collect();
            for (index, value) in values.repeat(run.repeat as usize + 1).into_iter().enumerate() {
                let index = (run.at as usize + index) % words.len();
                words[index].store(value, Ordering::Relaxed);
                written.push(index);
            }
            true
        });
        let report = read_segment(segment.map(), "fuzz".into(), 1);
        assert!(report.receivers.len() + report.timers.len() <= MAX_LISTED);
        for receiver in report.receivers.iter().chain(&report.timers) {
            // A byte that is no text becomes a sign of three bytes, and one that is a control character an escape of up to six.
            assert!(receiver.topic.len() <= 6 * 256 && receiver.name.len() <= 6 * 192);
        }
        written.into_iter().for_each(|index| words[index].store(0, Ordering::Relaxed));
    });
}
