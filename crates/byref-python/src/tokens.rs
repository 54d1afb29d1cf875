//! How a message of several parts describes them: a flat list, each container followed by what it contains.

use crate::arrow::{Chunk, Class};
use crate::plan::Part;
use byref::{Entry, Layout};
use serde::{Deserialize, Serialize};

/// `Layout::kind` of a message that is described by tokens. (No NumPy type has such a name.)
const KIND: &[u8] = b"parts";
/// The deepest nesting of containers.
pub const MOST_LEVELS: usize = 64;

/// One thing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Token {
    None,
    Bool(bool),
    Int(i64),
    /// One beyond 64 bits, in hexadecimal.
    Long(String),
    Float(f64),
    Complex(f64, f64),
    Str(String),
    Bytes(Part),
    /// An array of the element type `kind`; `scalar`: its only element.
    Array {
        kind: Vec<u8>,
        shape: Vec<u64>,
        at: Part,
        scalar: bool,
    },
    Arrow {
        class: Class,
        schema: Words,
        chunks: Vec<Chunk>,
    },
    /// So many follow.
    List(u64),
    Tuple(u64),
    /// So many keys follow, each with its value.
    Dict(u64),
    /// The stream, and the buffers beside it.
    Pickle {
        stream: Part,
        buffers: Vec<Part>,
    },
}

/// Where an Arrow type is described.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Words {
    /// In the publisher's glossary: offset, length.
    Explained(u64, u64),
    /// In the message, since the glossary is full.
    Here(Part),
}

impl Words {
    pub fn explained(entry: Entry) -> Self {
        Words::Explained(entry.offset, entry.len)
    }
}

impl Token {
    /// Moves the parts it names by `distance`.
    pub fn relocate(&mut self, distance: u64) {
        let shift = |part: &mut Part| part.at += distance;
        match self {
            Token::Bytes(at) | Token::Array { at, .. } => shift(at),
            Token::Arrow { schema, chunks, .. } => {
                if let Words::Here(at) = schema {
                    shift(at);
                }
                chunks.iter_mut().flat_map(|chunk| &mut chunk.buffers).flatten().for_each(shift);
            }
            Token::Pickle { stream, buffers } => {
                shift(stream);
                buffers.iter_mut().for_each(shift);
            }
            _ => {}
        }
    }
}

/// The layout of a message whose tokens are these bytes of its payload.
pub fn layout(at: Part) -> Layout {
    Layout { kind: KIND.to_vec(), shape: vec![at.at, at.len] }
}

/// Where the tokens of a message of that layout lie; `None`: it has none.
pub fn place(layout: &Layout) -> Option<Part> {
    match layout.shape[..] {
        [at, len] if layout.kind == KIND => Some(Part { at, len }),
        _ => None,
    }
}

pub fn encode(tokens: &[Token]) -> Vec<u8> {
    postcard::to_stdvec(tokens).expect("plain data always encodes")
}

/// From what `encode` made; anything else, from a faulty peer, is an error.
pub fn decode(payload: &[u8], at: Part) -> Result<Vec<Token>, String> {
    let bytes = at.of(payload).ok_or("its description lies outside of it")?;
    postcard::from_bytes(bytes).map_err(|error| format!("its description cannot be read ({error})"))
}
