//! Containers of scalars as one run of bytes: the fast path for values that have few arrays, or none.
//!
//! A value is one byte that says its kind, then its content. Numbers are little-endian; lengths are LEB128. A list or tuple whose
//! elements are all floats, truth values, or integers of 64 bits is packed: one kind, one length, the elements side by side. A
//! string is numbered where it stands, from 0, and starts again at 0 after [`NUMBERS`]; the same string later is its number. What
//! is no scalar and no container of these stands beside the stream, in order; the stream says where ([`Writer::other`]). A dict's
//! key is a scalar, or stands beside the stream.
//!
//! [`Writer`] makes such a stream. [`read`] checks one, which may come from a stranger, and tells a [`Builder`] what it contains:
//! it never reads beyond the stream, never nests deeper than [`MOST_LEVELS`], and allocates in proportion to what it has read,
//! never to what is announced.

use crate::bounds::{MOST_LEVELS, MOST_TOKENS};
use std::cell::Cell;

/// Strings that the last ones can refer to.
const NUMBERS: usize = 256;
/// The longest stream, in bytes.
pub const MOST_BYTES: usize = 1 << 30;

/// What a value's first byte says.
mod kind {
    pub const OTHER: u8 = 0;
    pub const NONE: u8 = 1;
    pub const FALSE: u8 = 2;
    pub const TRUE: u8 = 3;
    pub const INT_8: u8 = 4;
    pub const INT_16: u8 = 5;
    pub const INT_32: u8 = 6;
    pub const INT_64: u8 = 7;
    /// An integer from 2^63 up to 2^64 - 1.
    pub const UNSIGNED: u8 = 8;
    /// Any other integer, in hexadecimal.
    pub const LONG: u8 = 9;
    pub const FLOAT: u8 = 10;
    pub const COMPLEX: u8 = 11;
    pub const STR: u8 = 12;
    /// The number of a string before.
    pub const SAME: u8 = 13;
    pub const LIST: u8 = 14;
    pub const TUPLE: u8 = 15;
    pub const DICT: u8 = 16;
    /// Like `LIST` and `TUPLE`, but the kind of all elements comes first: an integer, `FLOAT`, or `TRUE` for truth values.
    pub const PACKED_LIST: u8 = 17;
    pub const PACKED_TUPLE: u8 = 18;
}

#[cfg(test)]
pub(crate) use kind::{LIST, OTHER};

/// What elements stand in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sequence {
    /// A list.
    List,
    /// A tuple.
    Tuple,
}

/// Writes one value.
#[derive(Default)]
pub struct Writer {
    bytes: Vec<u8>,
    strings: Strings,
}

impl Writer {
    /// The stream.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }

    /// The bytes so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing is written yet.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Here belongs the next of the values beside the stream. (It cannot be all there is.)
    pub fn other(&mut self) {
        self.bytes.push(kind::OTHER);
    }

    /// Nothing.
    pub fn none(&mut self) {
        self.bytes.push(kind::NONE);
    }

    /// A truth value.
    pub fn truth(&mut self, flag: bool) {
        self.bytes.push(if flag { kind::TRUE } else { kind::FALSE });
    }

    /// An integer of 64 bits.
    #[inline]
    pub fn int(&mut self, number: i64) {
        if let Ok(number) = i8::try_from(number) {
            self.scalar(kind::INT_8, number.to_le_bytes());
        } else if let Ok(number) = i16::try_from(number) {
            self.scalar(kind::INT_16, number.to_le_bytes());
        } else if let Ok(number) = i32::try_from(number) {
            self.scalar(kind::INT_32, number.to_le_bytes());
        } else {
            self.scalar(kind::INT_64, number.to_le_bytes());
        }
    }

    /// An unsigned integer of 64 bits.
    pub fn unsigned(&mut self, number: u64) {
        self.scalar(kind::UNSIGNED, number.to_le_bytes());
    }

    /// An integer of any size: hexadecimal digits, perhaps after a minus sign.
    pub fn long(&mut self, digits: &str) {
        self.bytes.push(kind::LONG);
        self.text_content(digits);
    }

    /// A float.
    #[inline]
    pub fn float(&mut self, number: f64) {
        self.scalar(kind::FLOAT, number.to_bits().to_le_bytes());
    }

    /// Real and imaginary part.
    pub fn complex(&mut self, real: f64, imaginary: f64) {
        self.scalar(kind::COMPLEX, real.to_bits().to_le_bytes());
        self.bytes.extend_from_slice(&imaginary.to_bits().to_le_bytes());
    }

    /// Writes the string again that was written with that identity. False if that is not known any more: then write it with
    /// [`Writer::text`].
    #[inline]
    pub fn same(&mut self, identity: usize) -> bool {
        let known = self.strings.find(identity);
        if let Some(number) = known {
            self.scalar(kind::SAME, [number]);
        }
        known.is_some()
    }

    /// Text. No other text may have the same identity.
    #[inline]
    pub fn text(&mut self, identity: usize, text: &str) {
        self.bytes.push(kind::STR);
        self.text_content(text);
        self.strings.add(identity);
    }

    /// A list or tuple of so many values, which follow.
    pub fn sequence(&mut self, sequence: Sequence, len: usize) {
        self.bytes.push(match sequence {
            Sequence::List => kind::LIST,
            Sequence::Tuple => kind::TUPLE,
        });
        self.number(len as u64);
    }

    /// A dict of so many entries, which follow: each a key, then its value.
    pub fn dict(&mut self, len: usize) {
        self.bytes.push(kind::DICT);
        self.number(len as u64);
    }

    /// A sequence of `len` floats. If one of them is `None`, nothing is written, and it returns false.
    pub fn floats(&mut self, sequence: Sequence, len: usize, mut each: impl FnMut(usize) -> Option<f64>) -> bool {
        let start = self.packed(sequence, kind::FLOAT, len);
        self.bytes.reserve(len * 8);
        for index in 0..len {
            let Some(number) = each(index) else { return self.undo(start) };
            self.bytes.extend_from_slice(&number.to_bits().to_le_bytes());
        }
        true
    }

    /// The same of truth values.
    pub fn truths(&mut self, sequence: Sequence, len: usize, mut each: impl FnMut(usize) -> Option<bool>) -> bool {
        let start = self.packed(sequence, kind::TRUE, len);
        self.bytes.reserve(len);
        for index in 0..len {
            let Some(flag) = each(index) else { return self.undo(start) };
            self.bytes.push(u8::from(flag));
        }
        true
    }

    /// The same of integers of 64 bits.
    pub fn ints(&mut self, sequence: Sequence, len: usize, mut each: impl FnMut(usize) -> Option<i64>) -> bool {
        let start = self.packed(sequence, kind::INT_64, len);
        let content = self.bytes.len();
        self.bytes.reserve(len * 8);
        // Bits that differ from the sign: what the widest of them needs.
        let mut bits = 0;
        for index in 0..len {
            let Some(number) = each(index) else { return self.undo(start) };
            bits |= number ^ (number >> 63);
            self.bytes.extend_from_slice(&number.to_le_bytes());
        }
        let (kind, width) = match bits {
            0..0x80 => (kind::INT_8, 1),
            0x80..0x8000 => (kind::INT_16, 2),
            0x8000..0x8000_0000 => (kind::INT_32, 4),
            _ => return true,
        };
        self.bytes[start + 1] = kind;
        let content = &mut self.bytes[content..];
        match width {
            1 => narrow::<1>(content),
            2 => narrow::<2>(content),
            _ => narrow::<4>(content),
        }
        self.bytes.truncate(self.bytes.len() - len * (8 - width));
        true
    }

    /// The head of a packed sequence; gives its place.
    fn packed(&mut self, sequence: Sequence, kind: u8, len: usize) -> usize {
        let start = self.bytes.len();
        self.bytes.push(match sequence {
            Sequence::List => kind::PACKED_LIST,
            Sequence::Tuple => kind::PACKED_TUPLE,
        });
        self.bytes.push(kind);
        self.number(len as u64);
        start
    }

    #[cold]
    fn undo(&mut self, start: usize) -> bool {
        self.bytes.truncate(start);
        false
    }

    #[inline]
    fn scalar<const N: usize>(&mut self, kind: u8, content: [u8; N]) {
        self.bytes.push(kind);
        self.bytes.extend_from_slice(&content);
    }

    #[inline]
    fn text_content(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.bytes.extend_from_slice(text.as_bytes());
    }

    #[inline]
    fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.bytes.push(number as u8);
    }
}

/// Moves the low `WIDTH` bytes of each 8 together, to the front.
fn narrow<const WIDTH: usize>(content: &mut [u8]) {
    for index in 0..content.len() / 8 {
        let mut low = [0; WIDTH];
        low.copy_from_slice(&content[index * 8..][..WIDTH]);
        content[index * WIDTH..][..WIDTH].copy_from_slice(&low);
    }
}

const SETS: usize = 64;
const WAYS: usize = 4;

/// The numbers of the last strings, by identity. It forgets some when many have come.
struct Strings {
    /// Whose each number is; grows to [`NUMBERS`].
    identities: Vec<usize>,
    /// How many strings there were.
    count: usize,
    /// Numbers of strings by their hash: `WAYS` of each set, replaced in turn.
    sets: [[u8; WAYS]; SETS],
    turn: u8,
}

impl Default for Strings {
    fn default() -> Self {
        Strings { identities: Vec::new(), count: 0, sets: [[0; WAYS]; SETS], turn: 0 }
    }
}

impl Strings {
    #[inline]
    fn set(identity: usize) -> usize {
        (identity.wrapping_mul(0x9E37_79B9_7F4A_7C15_u64 as usize) >> (usize::BITS - SETS.ilog2())) % SETS
    }

    #[inline]
    fn find(&self, identity: usize) -> Option<u8> {
        let set = &self.sets[Self::set(identity)];
        set.iter().copied().find(|number| self.identities.get(usize::from(*number)) == Some(&identity))
    }

    #[inline]
    fn add(&mut self, identity: usize) {
        let number = self.count % NUMBERS;
        self.count += 1;
        match self.identities.get_mut(number) {
            Some(old) => *old = identity,
            None => self.identities.push(identity),
        }
        self.turn = self.turn.wrapping_add(1);
        self.sets[Self::set(identity)][usize::from(self.turn) % WAYS] = number as u8;
    }
}

/// Makes values of what [`read`] finds.
pub trait Builder {
    /// A value. Strings are cloned when they come again.
    type Value: Clone;
    /// Why there is no value.
    type Error;

    /// The error for a stream that is none.
    fn wrong(&mut self, why: &'static str) -> Self::Error;
    /// Nothing.
    fn none(&mut self) -> Self::Value;
    /// A truth value.
    fn truth(&mut self, flag: bool) -> Self::Value;
    /// An integer.
    fn int(&mut self, number: i64) -> Result<Self::Value, Self::Error>;
    /// An integer.
    fn unsigned(&mut self, number: u64) -> Result<Self::Value, Self::Error>;
    /// An integer: at least one hexadecimal digit, perhaps after a minus sign.
    fn long(&mut self, digits: &str) -> Result<Self::Value, Self::Error>;
    /// A float.
    fn float(&mut self, number: f64) -> Result<Self::Value, Self::Error>;
    /// Real and imaginary part.
    fn complex(&mut self, real: f64, imaginary: f64) -> Result<Self::Value, Self::Error>;
    /// Text, if these bytes are UTF-8; an error if not.
    fn text(&mut self, bytes: &[u8]) -> Result<Self::Value, Self::Error>;
    /// The next value beside the stream, which lies that deep.
    fn other(&mut self, level: usize) -> Result<Self::Value, Self::Error>;
    /// A list or tuple.
    fn sequence(
        &mut self,
        sequence: Sequence,
        values: std::vec::Drain<'_, Self::Value>,
    ) -> Result<Self::Value, Self::Error>;
    /// A list or tuple of floats.
    fn floats(
        &mut self,
        sequence: Sequence,
        numbers: impl ExactSizeIterator<Item = f64>,
    ) -> Result<Self::Value, Self::Error>;
    /// A list or tuple of integers.
    fn ints(
        &mut self,
        sequence: Sequence,
        numbers: impl ExactSizeIterator<Item = i64>,
    ) -> Result<Self::Value, Self::Error>;
    /// A list or tuple of truth values.
    fn truths(
        &mut self,
        sequence: Sequence,
        flags: impl ExactSizeIterator<Item = bool>,
    ) -> Result<Self::Value, Self::Error>;
    /// An empty dict.
    fn dict(&mut self) -> Result<Self::Value, Self::Error>;
    /// One more entry of a dict.
    fn entry(&mut self, dict: &mut Self::Value, key: Self::Value, value: Self::Value) -> Result<(), Self::Error>;
}

/// Builds the value of a stream that nobody changes meanwhile, and that lies `level` deep in a message. `containers` is how many
/// containers there may still be.
pub fn read<B: Builder>(
    bytes: &[u8],
    level: usize,
    containers: &Cell<usize>,
    builder: &mut B,
) -> Result<B::Value, B::Error> {
    let mut reader = Reader::new(bytes, level, containers, builder);
    let value = reader.value(level)?;
    if reader.rest.is_empty() { Ok(value) } else { Err(reader.wrong("more than one value")) }
}

/// The most containers of a message.
pub const MOST_CONTAINERS: usize = MOST_TOKENS;

struct Reader<'a, B: Builder> {
    rest: &'a [u8],
    root: usize,
    containers: &'a Cell<usize>,
    /// Strings by number.
    strings: Vec<B::Value>,
    /// How many there were.
    count: usize,
    /// The elements of sequences that are not complete.
    stack: Vec<B::Value>,
    builder: &'a mut B,
}

impl<'a, B: Builder> Reader<'a, B> {
    fn new(rest: &'a [u8], root: usize, containers: &'a Cell<usize>, builder: &'a mut B) -> Self {
        Reader { rest, root, containers, strings: Vec::new(), count: 0, stack: Vec::new(), builder }
    }

    #[cold]
    fn wrong(&mut self, why: &'static str) -> B::Error {
        self.builder.wrong(why)
    }

    #[inline]
    fn take(&mut self, len: usize) -> Result<&'a [u8], B::Error> {
        match self.rest.split_at_checked(len) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => Err(self.wrong("values that end too early")),
        }
    }

    #[inline]
    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], B::Error> {
        match self.rest.split_first_chunk() {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(*taken)
            }
            None => Err(self.wrong("values that end too early")),
        }
    }

    #[inline]
    fn byte(&mut self) -> Result<u8, B::Error> {
        Ok(self.fixed::<1>()?[0])
    }

    #[inline]
    fn float(&mut self) -> Result<f64, B::Error> {
        Ok(f64::from_bits(u64::from_le_bytes(self.fixed()?)))
    }

    #[inline]
    fn number(&mut self) -> Result<usize, B::Error> {
        let first = self.byte()?;
        if first < 0x80 { Ok(usize::from(first)) } else { self.long_number(first) }
    }

    fn long_number(&mut self, first: u8) -> Result<usize, B::Error> {
        let (mut number, mut last) = (u64::from(first & 0x7f), first);
        for shift in (7..63).step_by(7) {
            last = self.byte()?;
            number |= u64::from(last & 0x7f) << shift;
            if last < 0x80 {
                break;
            }
        }
        match usize::try_from(number) {
            Ok(number) if last < 0x80 => Ok(number),
            _ => Err(self.wrong("a length beyond 63 bits")),
        }
    }

    /// One container more, with content that lies one level deeper than `level`.
    #[inline]
    fn enter(&mut self, level: usize, is_empty: bool) -> Result<(), B::Error> {
        if level >= MOST_LEVELS && !is_empty {
            return Err(self.wrong("containers nested too deep"));
        }
        match self.containers.get().checked_sub(1) {
            Some(left) => self.containers.set(left),
            None => return Err(self.wrong("too many containers")),
        }
        Ok(())
    }

    fn value(&mut self, level: usize) -> Result<B::Value, B::Error> {
        match self.byte()? {
            kind::LIST => self.sequence(Sequence::List, level),
            kind::TUPLE => self.sequence(Sequence::Tuple, level),
            kind::DICT => self.dict(level),
            kind::PACKED_LIST => self.packed(Sequence::List, level),
            kind::PACKED_TUPLE => self.packed(Sequence::Tuple, level),
            // Each stream has a container, so streams within streams are no deeper than containers.
            kind::OTHER if level > self.root => self.builder.other(level),
            kind => self.scalar(kind),
        }
    }

    #[inline]
    fn scalar(&mut self, kind: u8) -> Result<B::Value, B::Error> {
        match kind {
            kind::STR => {
                let len = self.number()?;
                let bytes = self.take(len)?;
                let value = self.builder.text(bytes)?;
                let number = self.count % NUMBERS;
                self.count += 1;
                match self.strings.get_mut(number) {
                    Some(old) => *old = value.clone(),
                    None => self.strings.push(value.clone()),
                }
                Ok(value)
            }
            kind::SAME => {
                let number = self.byte()?;
                match self.strings.get(usize::from(number)) {
                    Some(value) => Ok(value.clone()),
                    None => Err(self.wrong("a string that was never told")),
                }
            }
            kind::NONE => Ok(self.builder.none()),
            kind::FALSE => Ok(self.builder.truth(false)),
            kind::TRUE => Ok(self.builder.truth(true)),
            kind::FLOAT => {
                let number = self.float()?;
                self.builder.float(number)
            }
            kind::INT_8 => {
                let number = i8::from_le_bytes(self.fixed()?);
                self.builder.int(number.into())
            }
            kind::INT_16 => {
                let number = i16::from_le_bytes(self.fixed()?);
                self.builder.int(number.into())
            }
            kind::INT_32 => {
                let number = i32::from_le_bytes(self.fixed()?);
                self.builder.int(number.into())
            }
            kind::INT_64 => {
                let number = i64::from_le_bytes(self.fixed()?);
                self.builder.int(number)
            }
            kind::UNSIGNED => {
                let number = u64::from_le_bytes(self.fixed()?);
                self.builder.unsigned(number)
            }
            kind::LONG => {
                let len = self.number()?;
                let text = self.take(len)?;
                let digits = text.strip_prefix(b"-").unwrap_or(text);
                match std::str::from_utf8(text) {
                    Ok(text) if !digits.is_empty() && digits.iter().all(u8::is_ascii_hexdigit) => {
                        self.builder.long(text)
                    }
                    _ => Err(self.wrong("an integer that is none")),
                }
            }
            kind::COMPLEX => {
                let (real, imaginary) = (self.float()?, self.float()?);
                self.builder.complex(real, imaginary)
            }
            _ => Err(self.wrong("a value of an unknown kind")),
        }
    }

    fn sequence(&mut self, sequence: Sequence, level: usize) -> Result<B::Value, B::Error> {
        let len = self.number()?;
        self.enter(level, len == 0)?;
        let start = self.stack.len();
        for _ in 0..len {
            let value = self.value(level + 1)?;
            self.stack.push(value);
        }
        self.builder.sequence(sequence, self.stack.drain(start..))
    }

    fn dict(&mut self, level: usize) -> Result<B::Value, B::Error> {
        let len = self.number()?;
        self.enter(level, len == 0)?;
        let mut dict = self.builder.dict()?;
        for _ in 0..len {
            let key = match self.byte()? {
                kind::OTHER => self.builder.other(level + 1)?,
                kind => self.scalar(kind)?,
            };
            let value = self.value(level + 1)?;
            self.builder.entry(&mut dict, key, value)?;
        }
        Ok(dict)
    }

    fn packed(&mut self, sequence: Sequence, level: usize) -> Result<B::Value, B::Error> {
        let kind = self.byte()?;
        let len = self.number()?;
        self.enter(level, len == 0)?;
        match kind {
            kind::INT_8 => {
                let numbers = self.elements(len)?;
                self.builder.ints(sequence, numbers.iter().map(|bytes| i8::from_le_bytes(*bytes).into()))
            }
            kind::INT_16 => {
                let numbers = self.elements(len)?;
                self.builder.ints(sequence, numbers.iter().map(|bytes| i16::from_le_bytes(*bytes).into()))
            }
            kind::INT_32 => {
                let numbers = self.elements(len)?;
                self.builder.ints(sequence, numbers.iter().map(|bytes| i32::from_le_bytes(*bytes).into()))
            }
            kind::INT_64 => {
                let numbers = self.elements(len)?;
                self.builder.ints(sequence, numbers.iter().map(|bytes| i64::from_le_bytes(*bytes)))
            }
            kind::FLOAT => {
                let numbers = self.elements(len)?;
                let numbers = numbers.iter().map(|bytes| f64::from_bits(u64::from_le_bytes(*bytes)));
                self.builder.floats(sequence, numbers)
            }
            kind::TRUE => {
                let flags = self.elements::<1>(len)?;
                self.builder.truths(sequence, flags.iter().map(|[byte]| *byte != 0))
            }
            _ => Err(self.wrong("a packed sequence of an unknown kind")),
        }
    }

    fn elements<const WIDTH: usize>(&mut self, len: usize) -> Result<&'a [[u8; WIDTH]], B::Error> {
        let Some(size) = len.checked_mul(WIDTH) else { return Err(self.wrong("values that end too early")) };
        Ok(self.take(size)?.as_chunks().0)
    }
}

/// What kind of container a stream says that it is, in Python's word, and of how many elements.
pub fn head(stream: &[u8]) -> Option<(&'static str, usize)> {
    // A copy, since its sender may change it meanwhile: the kinds, and the longest length.
    let start: Vec<u8> = stream.iter().copied().take(11).collect();
    let left = Cell::new(0);
    let mut builder = Texts;
    let mut reader = Reader::new(&start, 0, &left, &mut builder);
    let kind = reader.byte().ok()?;
    if matches!(kind, kind::PACKED_LIST | kind::PACKED_TUPLE) {
        reader.byte().ok()?;
    }
    let name = match kind {
        kind::LIST | kind::PACKED_LIST => "list",
        kind::TUPLE | kind::PACKED_TUPLE => "tuple",
        kind::DICT => "dict",
        _ => return None,
    };
    Some((name, reader.number().ok()?))
}

/// Where in an honest stream the value of that number beside it belongs, or what follows the end of a stream that is not complete:
/// indices and keys from the outside to the inside, as Python writes them. `key` writes a key that stands beside the stream, by its
/// number.
pub fn place(stream: &[u8], other: usize, key: impl Fn(usize) -> String) -> Vec<String> {
    struct Open {
        left: usize,
        next: usize,
        is_dict: bool,
        /// Of a dict: the key that was read, until its value is.
        key: Option<String>,
    }
    let left = Cell::new(0);
    let mut builder = Texts;
    let mut reader = Reader::new(stream, 0, &left, &mut builder);
    let mut open: Vec<Open> = Vec::new();
    let mut beside = 0;
    while let Ok(kind) = reader.byte() {
        let mut text = None;
        match kind {
            kind::LIST | kind::TUPLE | kind::DICT => {
                let Ok(left) = reader.number() else { break };
                open.push(Open { left, next: 0, is_dict: kind == kind::DICT, key: None });
                if left > 0 {
                    continue;
                }
                open.pop();
            }
            kind::PACKED_LIST | kind::PACKED_TUPLE => {
                let Ok(width) = reader.byte().map(width) else { break };
                let Ok(len) = reader.number() else { break };
                if reader.take(len.saturating_mul(width)).is_err() {
                    break;
                }
            }
            kind::OTHER if beside == other => break,
            kind::OTHER => {
                if open.last().is_some_and(|last| last.is_dict && last.key.is_none()) {
                    text = Some(key(beside));
                }
                beside += 1;
            }
            scalar => match reader.scalar(scalar) {
                Ok(found) => text = Some(found),
                Err(()) => break,
            },
        }
        while let Some(last) = open.last_mut() {
            if last.is_dict && last.key.is_none() {
                last.key = text.take();
                break;
            }
            last.key = None;
            last.next += 1;
            last.left -= 1;
            if last.left > 0 {
                break;
            }
            open.pop();
        }
    }
    let step = |open: Open| if open.is_dict { open.key } else { Some(open.next.to_string()) };
    open.into_iter().filter_map(step).collect()
}

/// The bytes of an element of a packed sequence.
fn width(kind: u8) -> usize {
    match kind {
        kind::INT_8 | kind::TRUE => 1,
        kind::INT_16 => 2,
        kind::INT_32 => 4,
        _ => 8,
    }
}

/// Scalars as Python writes them.
struct Texts;

impl Builder for Texts {
    type Value = String;
    type Error = ();

    fn wrong(&mut self, _: &'static str) {}
    fn none(&mut self) -> String {
        "None".into()
    }
    fn truth(&mut self, flag: bool) -> String {
        if flag { "True" } else { "False" }.into()
    }
    fn int(&mut self, number: i64) -> Result<String, ()> {
        Ok(number.to_string())
    }
    fn unsigned(&mut self, number: u64) -> Result<String, ()> {
        Ok(number.to_string())
    }
    fn long(&mut self, digits: &str) -> Result<String, ()> {
        Ok(match digits.strip_prefix('-') {
            Some(digits) => format!("-0x{digits}"),
            None => format!("0x{digits}"),
        })
    }
    fn float(&mut self, number: f64) -> Result<String, ()> {
        Ok(format!("{number:?}"))
    }
    fn complex(&mut self, real: f64, imaginary: f64) -> Result<String, ()> {
        Ok(format!("complex({real:?}, {imaginary:?})"))
    }
    fn text(&mut self, bytes: &[u8]) -> Result<String, ()> {
        Ok(format!("'{}'", String::from_utf8_lossy(bytes).escape_debug()))
    }
    fn other(&mut self, _: usize) -> Result<String, ()> {
        Err(())
    }
    fn sequence(&mut self, _: Sequence, _: std::vec::Drain<'_, String>) -> Result<String, ()> {
        Err(())
    }
    fn floats(&mut self, _: Sequence, _: impl ExactSizeIterator<Item = f64>) -> Result<String, ()> {
        Err(())
    }
    fn ints(&mut self, _: Sequence, _: impl ExactSizeIterator<Item = i64>) -> Result<String, ()> {
        Err(())
    }
    fn truths(&mut self, _: Sequence, _: impl ExactSizeIterator<Item = bool>) -> Result<String, ()> {
        Err(())
    }
    fn dict(&mut self) -> Result<String, ()> {
        Err(())
    }
    fn entry(&mut self, _: &mut String, _: String, _: String) -> Result<(), ()> {
        Err(())
    }
}

/// What a stream contains, without building it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// How deep its deepest value is, below the stream.
    pub levels: usize,
    /// How deep each value beside the stream belongs.
    pub others: Vec<usize>,
    /// How many containers it has.
    pub containers: usize,
}

/// Checks a stream.
pub fn check(bytes: &[u8]) -> Result<Summary, String> {
    let left = Cell::new(MOST_CONTAINERS);
    let mut others = Vec::new();
    let levels = read(bytes, 0, &left, &mut Checker(&mut others))?;
    Ok(Summary { levels, others, containers: MOST_CONTAINERS - left.get() })
}

/// A value is the number of levels below it, at least 0.
struct Checker<'a>(&'a mut Vec<usize>);

impl Builder for Checker<'_> {
    type Value = usize;
    type Error = String;

    fn wrong(&mut self, why: &'static str) -> String {
        why.to_owned()
    }
    fn none(&mut self) -> usize {
        0
    }
    fn truth(&mut self, _: bool) -> usize {
        0
    }
    fn int(&mut self, _: i64) -> Result<usize, String> {
        Ok(0)
    }
    fn unsigned(&mut self, _: u64) -> Result<usize, String> {
        Ok(0)
    }
    fn long(&mut self, _: &str) -> Result<usize, String> {
        Ok(0)
    }
    fn float(&mut self, _: f64) -> Result<usize, String> {
        Ok(0)
    }
    fn complex(&mut self, _: f64, _: f64) -> Result<usize, String> {
        Ok(0)
    }
    fn text(&mut self, bytes: &[u8]) -> Result<usize, String> {
        std::str::from_utf8(bytes).map(|_| 0).map_err(|_| "text that is not UTF-8".into())
    }
    fn other(&mut self, level: usize) -> Result<usize, String> {
        self.0.push(level);
        Ok(0)
    }
    fn sequence(&mut self, _: Sequence, values: std::vec::Drain<'_, usize>) -> Result<usize, String> {
        Ok(values.max().map_or(0, |levels| levels + 1))
    }
    fn floats(&mut self, _: Sequence, numbers: impl ExactSizeIterator<Item = f64>) -> Result<usize, String> {
        Ok(usize::from(numbers.len() > 0))
    }
    fn ints(&mut self, _: Sequence, numbers: impl ExactSizeIterator<Item = i64>) -> Result<usize, String> {
        Ok(usize::from(numbers.len() > 0))
    }
    fn truths(&mut self, _: Sequence, flags: impl ExactSizeIterator<Item = bool>) -> Result<usize, String> {
        Ok(usize::from(flags.len() > 0))
    }
    fn dict(&mut self) -> Result<usize, String> {
        Ok(0)
    }
    fn entry(&mut self, dict: &mut usize, _: usize, value: usize) -> Result<(), String> {
        *dict = (*dict).max(value + 1);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut writer = Writer::default();
        write(&mut writer);
        writer.finish()
    }

    fn nested(levels: usize) -> Vec<u8> {
        written(|writer| {
            (0..levels).for_each(|_| writer.sequence(Sequence::List, 1));
            writer.none();
        })
    }

    #[test]
    fn depth_and_content_are_told() {
        let stream = written(|writer| {
            writer.dict(2);
            writer.text(1, "a");
            writer.other();
            writer.text(2, "b");
            writer.sequence(Sequence::Tuple, 2);
            assert!(writer.same(1));
            writer.other();
        });
        assert_eq!(check(&stream), Ok(Summary { levels: 2, others: vec![1, 2], containers: 2 }));
        assert_eq!(check(&nested(MOST_LEVELS)).unwrap().levels, MOST_LEVELS);
    }

    #[test]
    fn heads_are_told() {
        assert_eq!(head(&written(|writer| writer.dict(300))), Some(("dict", 300)));
        assert_eq!(head(&written(|writer| writer.sequence(Sequence::List, 0))), Some(("list", 0)));
        let packed = written(|writer| assert!(writer.truths(Sequence::Tuple, 200, |_| Some(true))));
        assert_eq!(head(&packed), Some(("tuple", 200)));
        for wrong in [&[][..], &[kind::LIST], &[kind::NONE], &[kind::PACKED_LIST, 7], &[kind::DICT, 0xff]] {
            assert_eq!(head(wrong), None);
        }
    }

    #[test]
    fn places_are_told() {
        let stream = written(|writer| {
            writer.dict(3);
            writer.text(1, "a");
            writer.sequence(Sequence::List, 4);
            assert!(writer.ints(Sequence::List, 2, |index| Some(index as i64 + 300)));
            writer.dict(0);
            writer.text(2, "it's");
            writer.other();
            writer.other();
            writer.other();
            writer.int(7);
            writer.dict(1);
            assert!(writer.same(1));
            writer.sequence(Sequence::Tuple, 1);
            writer.other();
        });
        let found: Vec<_> = (0..5).map(|other| place(&stream, other, |key| format!("key {key}")).join(" ")).collect();
        assert_eq!(found, ["'a' 3", "", "key 1", "7 'a' 0", ""]);
        let cut = written(|writer| {
            writer.sequence(Sequence::List, 3);
            writer.none();
            writer.dict(2);
            writer.text(1, "key");
        });
        assert_eq!(place(&cut, usize::MAX, |_| unreachable!()), ["1", "'key'"]);
    }

    #[test]
    fn what_is_no_value_is_refused() {
        let lies: [(&[u8], &str); 16] = [
            (&[], "too early"),
            (&[kind::OTHER], "unknown kind"),
            (&[99], "unknown kind"),
            (&[kind::NONE, kind::NONE], "more than one"),
            (&[kind::LIST, 2, kind::NONE], "too early"),
            (&[kind::INT_64, 0], "too early"),
            (&[kind::STR, 5, b'a'], "too early"),
            (&[kind::STR, 1, 0xff], "UTF-8"),
            (&[kind::STR, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1], "63 bits"),
            (&[kind::SAME, 0], "never told"),
            (&[kind::LONG, 1, b'-'], "integer"),
            (&[kind::LONG, 3, b'0', b'_', b'1'], "integer"),
            (&[kind::DICT, 1, kind::LIST, 0, kind::NONE], "unknown kind"),
            (&[kind::DICT, 1, kind::TUPLE, 0, kind::NONE], "unknown kind"),
            (&[kind::PACKED_LIST, kind::STR, 1, 0], "unknown kind"),
            (&[kind::PACKED_LIST, kind::INT_64, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f], "too early"),
        ];
        for (lie, why) in lies {
            let found = check(lie).expect_err("a lie");
            assert!(found.contains(why), "{lie:?}: {found}");
        }
    }

    #[test]
    fn nesting_and_containers_have_limits() {
        assert!(check(&nested(MOST_LEVELS + 1)).unwrap_err().contains("too deep"));
        assert!(read(&nested(2), MOST_LEVELS - 1, &Cell::new(9), &mut Checker(&mut Vec::new())).is_err());
        let empty = |count| {
            written(|writer| {
                writer.sequence(Sequence::List, count);
                (0..count).for_each(|_| writer.dict(0));
            })
        };
        assert!(check(&empty(MOST_CONTAINERS - 1)).is_ok());
        assert!(check(&empty(MOST_CONTAINERS)).unwrap_err().contains("too many"));
    }

    #[test]
    fn strings_are_found_as_long_as_their_numbers_last() {
        let mut strings = Strings::default();
        for identity in 0..2000 {
            assert_eq!(strings.find(identity), None);
            strings.add(identity);
            assert_eq!(strings.find(identity), Some((identity % NUMBERS) as u8));
            let old = identity.wrapping_sub(NUMBERS);
            assert_eq!(strings.find(old), None, "its number belongs to another");
        }
    }

    #[test]
    fn integers_take_no_more_than_the_widest_needs() {
        for (widest, width) in
            [(127, 1), (-128, 1), (128, 2), (-129, 2), (1 << 15, 4), (-(1 << 31), 4), (1 << 31, 8), (i64::MIN, 8)]
        {
            let numbers = [0, widest, -1];
            let stream = written(|writer| assert!(writer.ints(Sequence::List, 3, |index| Some(numbers[index]))));
            assert_eq!(stream.len(), 3 + 3 * width, "{widest}");
        }
        let stream = written(|writer| {
            assert!(!writer.ints(Sequence::List, 3, |index| (index < 2).then_some(0)));
            writer.none();
        });
        assert_eq!(stream, [kind::NONE], "nothing is left of what was not packed");
    }
}
