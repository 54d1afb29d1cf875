//! How a message that is more than bytes or an array says so: by the kind and the shape of its layout.

use crate::plan::Part;
use crate::tokens::Token;

/// The kind. (No element type has such a name.)
pub const KIND: &[u8] = b"parts";

/// What such a message says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Tokens describe it, which lie there.
    Described(Part),
    /// It lies in one piece, without tokens.
    Whole(Whole),
}

/// What lies in one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whole {
    /// One packed value.
    Packed,
    /// One pickle, with no buffers beside it.
    Pickle,
}

impl Place {
    /// What a layout says; `None`: the message is bytes, or an array.
    pub fn of(kind: &[u8], shape: &[u64]) -> Option<Place> {
        match *shape {
            _ if kind != KIND => None,
            [at, len] => Some(Place::Described(Part { at, len })),
            [] => Some(Place::Whole(Whole::Packed)),
            [0] => Some(Place::Whole(Whole::Pickle)),
            _ => None,
        }
    }

    /// The shape that says so.
    pub fn shape(self) -> Vec<u64> {
        match self {
            Place::Described(Part { at, len }) => vec![at, len],
            Place::Whole(Whole::Packed) => Vec::new(),
            Place::Whole(Whole::Pickle) => vec![0],
        }
    }
}

impl Whole {
    /// The token for a payload of so many bytes.
    pub fn token(self, len: usize) -> Token {
        let at = Part { at: 0, len: len as u64 };
        match self {
            Whole::Packed => Token::Packed { at, others: 0 },
            Whole::Pickle => Token::Pickle { stream: at, buffers: Vec::new() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_is_read_as_it_was_written() {
        for place in
            [Place::Described(Part { at: 64, len: 7 }), Place::Whole(Whole::Packed), Place::Whole(Whole::Pickle)]
        {
            assert_eq!(Place::of(KIND, &place.shape()), Some(place));
            assert_eq!(Place::of(b"<f8", &place.shape()), None);
        }
        assert_eq!(Place::of(KIND, &[1]), None);
        assert_eq!(Place::of(KIND, &[1, 2, 3]), None);
    }
}
