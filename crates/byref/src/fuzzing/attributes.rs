//! Layout and headers of a message.

use crate::attributes::Attributes;

pub fn run(input: &[u8]) {
    let attributes = Attributes::decode(input);
    let Ok(encoded) = attributes.encode() else { return };
    assert!(encoded.len() <= input.len().max(1) * 2, "what is decoded is not longer than what it was decoded from");
    // Compared as bytes: not every float equals itself.
    assert_eq!(*Attributes::decode(&encoded).encode().expect("it was short enough before"), *encoded);
}
