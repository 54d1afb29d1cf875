//! Where the parts of a message go, before there is memory for them.

use serde::{Deserialize, Serialize};

/// Parts start at multiples of this many bytes, as chunks of the pool do: what Arrow and SIMD code wish for.
pub const ALIGNMENT: u64 = 64;

/// The bytes of one part of a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// The place of the first one.
    pub at: u64,
    /// How many there are.
    pub len: u64,
}

impl Part {
    /// These bytes of `payload`; `None` when they are not inside, or not aligned.
    pub fn of(self, payload: &[u8]) -> Option<&[u8]> {
        let end = self.at.checked_add(self.len)?;
        if !self.at.is_multiple_of(ALIGNMENT) {
            return None;
        }
        payload.get(usize::try_from(self.at).ok()?..usize::try_from(end).ok()?)
    }
}

type Write<'a> = Box<dyn FnOnce(&mut [u8]) + Send + 'a>;

/// What a part is made from. `E` is what the planner's user writes by itself.
pub enum Source<'a, E> {
    /// Copied.
    Copy(&'a [u8]),
    /// Written by a function, which gets all of the part's bytes.
    Make(Write<'a>),
    /// Left to the user.
    Own(E),
}

/// The parts of a message so far.
pub struct Plan<'a, E> {
    /// In order, without overlap.
    pub parts: Vec<(Part, Source<'a, E>)>,
    /// The end of the last one.
    pub size: u64,
}

impl<E> Default for Plan<'_, E> {
    fn default() -> Self {
        Plan { parts: Vec::new(), size: 0 }
    }
}

impl<'a, E> Plan<'a, E> {
    /// One more part, of `len` bytes.
    pub fn add(&mut self, len: usize, source: Source<'a, E>) -> Part {
        let part = Part { at: self.size.next_multiple_of(ALIGNMENT), len: len as u64 };
        self.size = part.at + part.len;
        self.parts.push((part, source));
        part
    }

    /// One more part, copied.
    pub fn copy(&mut self, bytes: &'a [u8]) -> Part {
        self.add(bytes.len(), Source::Copy(bytes))
    }

    /// One more part of `len` bytes, which `write` fills.
    pub fn make(&mut self, len: usize, write: impl FnOnce(&mut [u8]) + Send + 'a) -> Part {
        self.add(len, Source::Make(Box::new(write)))
    }
}
