//! What strangers may say of a payload: the targets of `make fuzz`, and of the test that replays its corpus. Not in ordinary
//! builds.

use crate::arrow::abi::Array;
use crate::arrow::{Chunk, Field, gather, show};
use crate::plan::{Part, Plan, Source};
use crate::tokens;
use arbitrary::{Arbitrary, Unstructured};
use std::sync::Arc;

/// Reads any bytes.
pub type Target = fn(&[u8]);

/// What is fuzzed, by name.
pub const TARGETS: &[(&str, Target)] = &[("arrow", arrow), ("arrow-types", types), ("tokens", descriptions)];

/// Descriptions of messages of several parts.
fn descriptions(input: &[u8]) {
    if let Ok(mut tokens) = tokens::decode(input, Part { at: 0, len: input.len() as u64 }) {
        assert!(tokens::levels(&tokens).is_ok());
        let encoded = tokens::encode(&tokens);
        let mut payload = encoded.clone();
        payload.resize(input.len().max(encoded.len()), 0);
        let again = tokens::decode(&payload, Part { at: 0, len: encoded.len() as u64 }).expect("it was read before");
        assert_eq!(tokens::encode(&again), encoded, "compared as bytes: not every float equals itself");
        let _ = tokens.iter_mut().try_for_each(|token| token.relocate(input, 1 << 40));
    }
}

/// Arrow types.
fn types(input: &[u8]) {
    if let Ok(field) = Field::decode(input) {
        let encoded = field.encode();
        assert_eq!(Field::decode(&encoded).expect("it was read before").encode(), encoded);
        let exported = crate::arrow::export_schema(&Arc::new(field));
        assert_eq!(Field::import(&exported).expect("it was read before").encode(), encoded);
    }
}

/// The format strings that differ in what they mean for memory, those with children last.
const FORMATS: [&str; 27] = [
    "n",
    "b",
    "c",
    "S",
    "i",
    "L",
    "g",
    "tin",
    "d:9,2,256",
    "w:0",
    "w:3",
    "z",
    "Z",
    "u",
    "U",
    "vz",
    "vu",
    "C",
    "s",
    "+l",
    "+L",
    "+vl",
    "+vL",
    "+w:2",
    "+w:0",
    "+s",
    "+r",
];
/// The first of those with children, and how deep types go here.
const NESTED: usize = 19;
const DEPTH: usize = 4;
/// The largest payload that is made, in bytes.
const MOST_COPIED: usize = 1 << 20;

/// A message of Arrow data, as a stranger declares it.
#[derive(Arbitrary, Debug)]
struct Declared<'a> {
    /// Of each field: its format, how many children or whether it has a dictionary.
    fields: Vec<(u8, u8)>,
    lengths: Vec<Number>,
    buffers: Vec<Option<(u8, Number)>>,
    payload: &'a [u8],
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Number {
    Small(u8),
    Any(u64),
}

impl Number {
    fn get(self) -> u64 {
        match self {
            Number::Small(number) => u64::from(number),
            Number::Any(number) => number,
        }
    }
}

fn field(choices: &mut impl Iterator<Item = (u8, u8)>, depth: usize) -> Option<Field> {
    let (format, more) = choices.next().unwrap_or((2, 0));
    let most = if depth == 0 { NESTED } else { FORMATS.len() + 2 };
    let children = |count: usize, choices: &mut _| (0..count).map(|_| field(choices, depth - 1)).collect::<Option<_>>();
    match format as usize % most {
        leaf if leaf < NESTED => {
            let field = Field::new(FORMATS[leaf], Vec::new()).ok()?;
            let is_index = matches!(FORMATS[leaf], "c" | "S" | "i" | "L" | "C" | "s");
            if depth > 0 && is_index && more % 2 == 1 {
                return Some(field.with_dictionary(self::field(choices, depth - 1)?));
            }
            Some(field)
        }
        at if at < FORMATS.len() => {
            let count = match FORMATS[at] {
                "+s" => more as usize % 4,
                "+r" => 2,
                _ => 1,
            };
            Field::new(FORMATS[at], children(count, choices)?).ok()
        }
        union => {
            let format = if union == FORMATS.len() { "+ud:5,-3" } else { "+us:5,-3" };
            Field::new(format, children(2, choices)?).ok()
        }
    }
}

/// The array in a payload of its own, if that is not too large.
fn gathered(field: &Field, array: &Array) -> Option<(Chunk, Vec<u8>)> {
    let mut plan: Plan<'_, ()> = Plan::default();
    let chunk = gather(field, array, &mut plan).expect("what was checked can be read");
    let size = usize::try_from(plan.size).ok().filter(|size| *size <= MOST_COPIED)?;
    let mut copy = vec![0; size];
    for (part, source) in plan.parts {
        let place = &mut copy[part.at as usize..(part.at + part.len) as usize];
        match source {
            Source::Copy(bytes) => place.copy_from_slice(bytes),
            Source::Make(write) => write(place),
            Source::Own(()) => unreachable!("nobody else writes"),
        }
    }
    Some((chunk, copy))
}

/// Arrow data. What is shown can be gathered again, as a consumer would read it, and be shown once more.
fn arrow(input: &[u8]) {
    let Ok(declared) = Declared::arbitrary_take_rest(Unstructured::new(input)) else { return };
    let Some(field) = field(&mut declared.fields.into_iter(), DEPTH) else { return };
    let chunk = Chunk {
        lengths: declared.lengths.into_iter().map(Number::get).collect(),
        buffers: declared
            .buffers
            .into_iter()
            .map(|part| part.map(|(at, len)| Part { at: u64::from(at) * 32, len: len.get() }))
            .collect(),
    };
    let payload = Arc::new(declared.payload.to_vec());
    let Ok(array) = show(&field, &chunk, &payload) else { return };
    let Some((gathered, copy)) = gathered(&field, &array) else { return };
    let again = show(&field, &gathered, &Arc::new(copy)).expect("what was gathered can be shown");
    assert_eq!((again.length, again.null_count), (array.length, array.null_count));
    drop(array);
    assert_eq!(Arc::strong_count(&payload), 1, "the release gives everything back");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_corpus_finds_nothing() {
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
