//! Topic names: `/`-separated levels, as in Zenoh's key expressions.

use crate::error::{Error, Result};

/// The longest topic, in bytes.
pub const MAX_TOPIC: usize = 1024;

/// Checks a topic that is to be published on or subscribed to.
pub(crate) fn validate(topic: &str) -> Result<()> {
    let reason = if topic.is_empty() {
        "it is empty; give a name like 'camera/front'"
    } else if topic.len() > MAX_TOPIC {
        "it is longer than 1024 bytes"
    } else if topic.contains('\0') {
        "it contains a NUL byte"
    } else if topic.contains('*') {
        "'*' is a wildcard; name one topic"
    } else if topic.split('/').any(str::is_empty) {
        "it has an empty level; write 'a/b', without a leading, trailing or double '/'"
    } else {
        return Ok(());
    };
    let mut shown: String = topic.chars().take(80).collect();
    if shown.len() < topic.len() {
        shown.push('…');
    }
    Err(Error::InvalidTopic { topic: shown, reason })
}

/// The part of a socket's name that tells topics apart: FNV-1a, 64 bits. Two topics that share it cost a handshake, no more.
pub(crate) fn hash(topic: &str) -> u64 {
    topic.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ byte as u64).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "camera/front", "ticks/EUR-USD/bid", "ünï/code", &"x".repeat(MAX_TOPIC)] {
            assert!(validate(good).is_ok(), "{good}");
        }
        for bad in ["", "/a", "a/", "a//b", "a*", "**", "a/*/b", "a\0b", &"x".repeat(MAX_TOPIC + 1)] {
            assert!(matches!(validate(bad), Err(Error::InvalidTopic { .. })), "{bad}");
        }
    }

    #[test]
    fn the_published_test_vectors_of_fnv_1a() {
        assert_eq!(hash(""), 0xcbf29ce484222325);
        assert_eq!(hash("a"), 0xaf63dc4c8601ec8c);
        assert_eq!(hash("foobar"), 0x85944171f73967e8);
    }
}
