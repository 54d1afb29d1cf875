//! What strangers may say: the targets of `make fuzz`, and of the test that replays its corpus. Not in ordinary builds.
//!
//! A target makes of any bytes what a peer could have written, lets the library read it, and checks what must hold. One more
//! target is a file here, a line in [`TARGETS`] and a folder in `fuzz/corpus`.

pub use crate::link::meeting::meet_in_private;
use arbitrary::{Arbitrary, Unstructured};

mod attributes;
mod handshake;
mod lease;
mod monitor;
mod names;
mod pair;
mod request;
mod ring;

/// Reads any bytes.
pub type Target = fn(&[u8]);

/// What is fuzzed, by name.
pub const TARGETS: &[(&str, Target)] = &[
    ("attributes", attributes::run),
    ("handshake", handshake::run),
    ("lease", lease::run),
    ("monitor", monitor::run),
    ("names", names::run),
    ("pair", pair::run),
    ("request", request::run),
    ("ring", ring::run),
];

/// As many values as the bytes are good for; `each` may say that it is enough.
fn each<'a, T: Arbitrary<'a>>(mut input: Unstructured<'a>, mut each: impl FnMut(T) -> bool) {
    while !input.is_empty() {
        let Ok(value) = T::arbitrary(&mut input) else { return };
        if !each(value) {
            return;
        }
    }
}

/// A number as a peer may give it: most are near one that means something.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Number {
    Small(u8),
    /// Near what an honest peer would say.
    Near(i8),
    /// Near the largest that can be counted to.
    Far(i8),
    /// Near the end of all numbers.
    Last(u8),
    Any(u64),
}

impl Number {
    fn of(self, honest: u64) -> u64 {
        match self {
            Number::Small(value) => value as u64,
            Number::Near(by) => honest.wrapping_add_signed(by as i64),
            Number::Far(by) => (1u64 << 62).wrapping_add_signed(by as i64),
            Number::Last(by) => u64::MAX - by as u64,
            Number::Any(value) => value,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_corpus_finds_nothing() {
        let _meeting = meet_in_private();
        for (name, run) in TARGETS {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(name);
            let mut inputs = 0;
            for entry in std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
                run(&std::fs::read(entry.unwrap().path()).unwrap());
                inputs += 1;
            }
            assert!(inputs > 0, "{name} has no corpus");
        }
    }
}
