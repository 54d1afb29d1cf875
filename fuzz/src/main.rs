//! Feeds one target, named by `BYREF_FUZZ`, with what libFuzzer makes up.
#![no_main]

use byref::fuzzing::{TARGETS, Target, meet_in_private};
use byref_parts::fuzzing::TARGETS as OF_PARTS;
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let all = || TARGETS.iter().chain(OF_PARTS);
    let names = || all().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let wanted = std::env::var("BYREF_FUZZ").unwrap_or_default();
    let found = all().find(|(name, _)| *name == wanted);
    // For the whole of the run; libFuzzer ends it without ceremony.
    std::mem::forget(meet_in_private());
    found.unwrap_or_else(|| panic!("BYREF_FUZZ has to name a target: {}", names())).1
});

fuzz_target!(|input: &[u8]| TARGET(input));
