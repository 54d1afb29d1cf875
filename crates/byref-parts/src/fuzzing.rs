//! What strangers may say of a payload: the targets of `make fuzz`, and of the test that replays its corpus. Not in ordinary
//! builds.

use crate::arrow::abi::Array;
use crate::arrow::{Chunk, Field, gather, show};
use crate::bounds::MOST_LEVELS;
use crate::packed::{self, Builder, MOST_CONTAINERS, Sequence, Writer};
use crate::plan::{Part, Plan, Source};
use crate::tokens::{self, Token};
use arbitrary::{Arbitrary, Unstructured};
use std::cell::Cell;
use std::sync::Arc;
use std::vec::Drain;

/// Reads any bytes.
pub type Target = fn(&[u8]);

/// What is fuzzed, by name.
pub const TARGETS: &[(&str, Target)] =
    &[("arrow", arrow), ("arrow-types", types), ("packed", packed), ("tokens", descriptions)];

/// Descriptions of messages of several parts.
fn descriptions(input: &[u8]) {
    if let Ok(mut tokens) = tokens::decode(input, Part { at: 0, len: input.len() as u64 }) {
        assert!(tokens::levels(&tokens).is_ok());
        let encoded = tokens::encode(&tokens);
        let mut payload = encoded.clone();
        payload.resize(input.len().max(encoded.len()), 0);
        let again = tokens::decode(&payload, Part { at: 0, len: encoded.len() as u64 }).expect("it was read before");
        assert_eq!(tokens::encode(&again), encoded, "compared as bytes: not every float equals itself");
        for token in &tokens {
            if let Token::Packed { at, .. } = token
                && let Some(stream) = at.of(input)
            {
                packed(stream);
            }
        }
        if let Ok((levels, containers)) = tokens::depth(&tokens, input) {
            assert!(levels <= MOST_LEVELS && containers <= input.len());
        }
        let _ = tokens.iter_mut().try_for_each(|token| token.relocate(input, 1 << 40));
    }
}

/// Packed values. What is read can be written and read again, and takes no more memory than its stream justifies.
fn packed(input: &[u8]) {
    let head = packed::head(input);
    let mut built = 0;
    let containers = Cell::new(MOST_CONTAINERS);
    let found = packed::read(input, 0, &containers, &mut Values { built: &mut built });
    assert!(built <= input.len(), "{built} values of {} bytes", input.len());
    assert_eq!(found.is_ok(), packed::check(input).is_ok());
    let Ok(value) = found else { return };
    let len = match &value {
        Value::Sequence(_, values) => Some(values.len()),
        Value::Dict(entries) => Some(entries.len()),
        _ => None,
    };
    assert_eq!(head.map(|(_, len)| len), len);
    let mut writer = Writer::default();
    value.write(&mut writer);
    let again = writer.finish();
    let read = packed::read(&again, 0, &Cell::new(MOST_CONTAINERS), &mut Values { built: &mut 0 });
    assert_eq!(read.expect("an honest stream"), value);
}

/// What a stream contains. Floats are their bits: not every float equals itself.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    None,
    Truth(bool),
    Int(i64),
    Unsigned(u64),
    Long(String),
    Float(u64),
    Complex(u64, u64),
    Text(String),
    Other,
    Sequence(Sequence, Vec<Value>),
    Dict(Vec<(Value, Value)>),
}

impl Value {
    fn write(&self, writer: &mut Writer) {
        match self {
            Value::None => writer.none(),
            Value::Truth(flag) => writer.truth(*flag),
            Value::Int(number) => writer.int(*number),
            Value::Unsigned(number) => writer.unsigned(*number),
            Value::Long(digits) => writer.long(digits),
            Value::Float(bits) => writer.float(f64::from_bits(*bits)),
            Value::Complex(real, imaginary) => writer.complex(f64::from_bits(*real), f64::from_bits(*imaginary)),
            Value::Text(text) => {
                // Equal short texts are one object here, as interned strings are.
                let mut identity = [0; 8];
                match identity.get_mut(..text.len()) {
                    Some(start) if text.len() < 8 => {
                        start.copy_from_slice(text.as_bytes());
                        identity[7] = text.len() as u8;
                    }
                    _ => identity = [0xff; 8],
                }
                let identity = u64::from_le_bytes(identity) as usize;
                if identity == usize::MAX || !writer.same(identity) {
                    writer.text(identity, text);
                }
            }
            Value::Other => writer.other(),
            Value::Sequence(sequence, values) => {
                let all = |index: usize| &values[index];
                let is_packed = !values.is_empty()
                    && (writer.ints(*sequence, values.len(), |index| match all(index) {
                        Value::Int(number) => Some(*number),
                        _ => None,
                    }) || writer.floats(*sequence, values.len(), |index| match all(index) {
                        Value::Float(bits) => Some(f64::from_bits(*bits)),
                        _ => None,
                    }) || writer.truths(*sequence, values.len(), |index| match all(index) {
                        Value::Truth(flag) => Some(*flag),
                        _ => None,
                    }));
                if !is_packed {
                    writer.sequence(*sequence, values.len());
                    values.iter().for_each(|value| value.write(writer));
                }
            }
            Value::Dict(entries) => {
                writer.dict(entries.len());
                for (key, value) in entries {
                    key.write(writer);
                    value.write(writer);
                }
            }
        }
    }
}

/// Builds values, and counts them.
struct Values<'a> {
    built: &'a mut usize,
}

impl Values<'_> {
    fn built(&mut self, value: Value) -> Result<Value, String> {
        *self.built += 1;
        Ok(value)
    }

    fn all(&mut self, sequence: Sequence, values: impl ExactSizeIterator<Item = Value>) -> Result<Value, String> {
        *self.built += values.len();
        self.built(Value::Sequence(sequence, values.collect()))
    }
}

impl Builder for Values<'_> {
    type Value = Value;
    type Error = String;

    fn wrong(&mut self, why: &'static str) -> String {
        why.to_owned()
    }
    fn none(&mut self) -> Value {
        Value::None
    }
    fn truth(&mut self, flag: bool) -> Value {
        Value::Truth(flag)
    }
    fn int(&mut self, number: i64) -> Result<Value, String> {
        self.built(Value::Int(number))
    }
    fn unsigned(&mut self, number: u64) -> Result<Value, String> {
        self.built(Value::Unsigned(number))
    }
    fn long(&mut self, digits: &str) -> Result<Value, String> {
        self.built(Value::Long(digits.to_owned()))
    }
    fn float(&mut self, number: f64) -> Result<Value, String> {
        self.built(Value::Float(number.to_bits()))
    }
    fn complex(&mut self, real: f64, imaginary: f64) -> Result<Value, String> {
        self.built(Value::Complex(real.to_bits(), imaginary.to_bits()))
    }
    fn text(&mut self, bytes: &[u8]) -> Result<Value, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "text that is not UTF-8")?;
        self.built(Value::Text(text.to_owned()))
    }
    fn other(&mut self, level: usize) -> Result<Value, String> {
        assert!(0 < level && level <= MOST_LEVELS);
        self.built(Value::Other)
    }
    fn sequence(&mut self, sequence: Sequence, values: Drain<'_, Value>) -> Result<Value, String> {
        self.built(Value::Sequence(sequence, values.collect()))
    }
    fn floats(&mut self, sequence: Sequence, numbers: impl ExactSizeIterator<Item = f64>) -> Result<Value, String> {
        self.all(sequence, numbers.map(|number| Value::Float(number.to_bits())))
    }
    fn ints(&mut self, sequence: Sequence, numbers: impl ExactSizeIterator<Item = i64>) -> Result<Value, String> {
        self.all(sequence, numbers.map(Value::Int))
    }
    fn truths(&mut self, sequence: Sequence, flags: impl ExactSizeIterator<Item = bool>) -> Result<Value, String> {
        self.all(sequence, flags.map(Value::Truth))
    }
    fn dict(&mut self) -> Result<Value, String> {
        self.built(Value::Dict(Vec::new()))
    }
    fn entry(&mut self, dict: &mut Value, key: Value, value: Value) -> Result<(), String> {
        let Value::Dict(entries) = dict else { unreachable!("made by `dict`") };
        entries.push((key, value));
        Ok(())
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
