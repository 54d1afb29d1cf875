//! How a message of several parts describes them: a flat list, each container followed by what it contains.

use crate::arrow::{Chunk, Class};
use crate::plan::Part;
use serde::{Deserialize, Serialize};

/// The deepest nesting of containers.
pub const MOST_LEVELS: usize = 64;

/// One thing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Token {
    /// Nothing.
    None,
    /// A truth value.
    Bool(bool),
    /// An integer of 64 bits.
    Int(i64),
    /// One beyond 64 bits, in hexadecimal.
    Long(String),
    /// A float of 64 bits.
    Float(f64),
    /// Real and imaginary part.
    Complex(f64, f64),
    /// Text.
    Str(String),
    /// Plain bytes.
    Bytes(Part),
    /// An array.
    Array {
        /// The element type, in the words of the language binding.
        kind: Vec<u8>,
        /// The extent of each dimension.
        shape: Vec<u64>,
        /// The elements, in C order.
        at: Part,
        /// Not the array, but its only element.
        scalar: bool,
    },
    /// Arrow data.
    Arrow {
        /// What they are.
        class: Class,
        /// Their type.
        schema: Words,
        /// Their arrays.
        chunks: Vec<Chunk>,
    },
    /// So many follow.
    List(u64),
    /// So many follow.
    Tuple(u64),
    /// So many keys follow, each with its value.
    Dict(u64),
    /// A pickle.
    Pickle {
        /// Its stream.
        stream: Part,
        /// The buffers beside it, in order.
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

/// The form in which they travel.
pub fn encode(tokens: &[Token]) -> Vec<u8> {
    postcard::to_stdvec(tokens).expect("plain data always encodes")
}

/// From what `encode` made; anything else, from a faulty peer, is an error.
pub fn decode(payload: &[u8], at: Part) -> Result<Vec<Token>, String> {
    let bytes = at.of(payload).ok_or("its description lies outside of it")?;
    postcard::from_bytes(bytes).map_err(|error| format!("its description cannot be read ({error})"))
}
