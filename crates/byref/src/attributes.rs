//! What travels beside a payload: its layout and the user's headers.

use serde::{Deserialize, Serialize};

/// The most bytes that layout and headers of one message may take together when encoded.
pub const MAX_ATTRIBUTES: usize = 1 << 20;

/// A header's value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum HeaderValue {
    /// Text.
    Str(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// A signed 64-bit integer.
    Int(i64),
    /// A 64-bit float.
    Float(f64),
    /// A truth value.
    Bool(bool),
}

/// How the bytes of a payload are to be understood by the receiver. The core carries it and does not look inside.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// The element type, in the words of the language binding; empty for plain bytes.
    pub kind: Vec<u8>,
    /// The extent of each dimension, in elements.
    pub shape: Vec<u64>,
}

/// Layout and headers of one message.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Attributes {
    /// The layout, where it is more than "so many bytes".
    pub layout: Option<Layout>,
    /// The headers, in the order in which they were given.
    pub headers: Vec<(String, HeaderValue)>,
}

impl Attributes {
    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.layout.is_none() && self.headers.is_empty()
    }

    /// Makes them ready to send, as often as wanted.
    pub fn encode(&self) -> Result<Encoded, TooLong> {
        if self.is_empty() {
            return Ok(Encoded::default());
        }
        let encoded = postcard::to_stdvec(self).expect("plain data always encodes");
        if encoded.len() > MAX_ATTRIBUTES {
            return Err(TooLong(encoded.len()));
        }
        Ok(Encoded { bytes: encoded, pooled: false, refers: false })
    }

    /// Reads what `encode` wrote. Anything else (a faulty peer) reads as no attributes.
    pub(crate) fn decode(encoded: &[u8]) -> Self {
        if encoded.is_empty() {
            return Attributes::default();
        }
        postcard::from_bytes(encoded).unwrap_or_else(|error| {
            log::warn!("byref: a peer sent attributes that cannot be read: {error}");
            Attributes::default()
        })
    }
}

/// Headers and layout take so many bytes, more than [`MAX_ATTRIBUTES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("headers and layout take {0} bytes, more than {MAX_ATTRIBUTES}; put large data into the payload")]
pub struct TooLong(pub usize);

/// What travels beside a payload.
#[derive(Clone, Copy, Debug)]
pub struct Beside<'a> {
    /// Layout and headers (default: none).
    pub attributes: &'a Encoded,
    /// When it was sent, in nanoseconds (default: `CLOCK_REALTIME`).
    pub timestamp_ns: Option<u64>,
    /// A number of the sender's own, which costs 8 bytes of the record (default: 0, which costs nothing).
    pub tag: u64,
}

impl Beside<'static> {
    /// Nothing.
    pub const NOTHING: Self = Beside { attributes: &Encoded::EMPTY, timestamp_ns: None, tag: 0 };
}

impl Default for Beside<'_> {
    fn default() -> Self {
        Beside::NOTHING
    }
}

impl<'a> From<&'a Encoded> for Beside<'a> {
    fn from(attributes: &'a Encoded) -> Self {
        Beside { attributes, ..Beside::NOTHING }
    }
}

/// [`Attributes`] in the form in which they travel.
#[derive(Clone, Debug, Default)]
pub struct Encoded {
    bytes: Vec<u8>,
    pooled: bool,
    refers: bool,
}

impl Encoded {
    const EMPTY: Self = Encoded { bytes: Vec::new(), pooled: false, refers: false };

    /// For a message that travels in the pool, also when it is small: its payload is aligned to 64 bytes there.
    pub fn in_pool(self) -> Self {
        Encoded { pooled: true, ..self }
    }

    /// For a message that refers to entries of the publisher's glossary. It travels in the pool.
    pub fn with_glossary(self) -> Self {
        Encoded { refers: true, ..self.in_pool() }
    }

    /// What another message has, in the form in which it travelled.
    pub(crate) fn copied(bytes: &[u8], refers: bool) -> Self {
        Encoded { bytes: bytes.to_vec(), pooled: refers, refers }
    }

    pub(crate) fn is_pooled(&self) -> bool {
        self.pooled
    }

    pub(crate) fn refers(&self) -> bool {
        self.refers
    }
}

impl std::ops::Deref for Encoded {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}
