//! Topic names and patterns: `/`-separated levels, as in Zenoh's key expressions.
//!
//! In a pattern `*` stands for exactly one level, and `**` for any number of them, none too. Both are whole levels:
//! Zenoh's `$*`, for a part of one, is refused. Zenoh wants patterns in a canonical form (`**` for `**/**`); here every
//! form has its meaning. No other character has one. But `+` and `#` alone in a level are refused: who writes them means the
//! wildcards of MQTT, and would wait for ever.
//!
//! Topics are compared byte by byte. Two spellings of one text in Unicode, such as `é` and `e` with an accent, would never meet, so only
//! the composed one (normal form C) is a topic.

use crate::error::{Error, Result};
use std::borrow::Cow;
use unicode_normalization::{UnicodeNormalization, is_nfc};

/// The longest topic or pattern, in bytes.
pub const MAX_TOPIC: usize = 1024;

/// Checks a topic that is to be published on.
pub(crate) fn validate(topic: &str) -> Result<()> {
    if topic.contains('*') {
        return Err(invalid(topic, "'*' is a wildcard, for subscribers only; a publisher names one topic".into()));
    }
    validate_pattern(topic)
}

/// Checks a topic, or a pattern of topics, that is to be subscribed to.
pub(crate) fn validate_pattern(pattern: &str) -> Result<()> {
    let reason = if pattern.is_empty() {
        "it is empty; give a name like 'camera/front'"
    } else if pattern.len() > MAX_TOPIC {
        "it is longer than 1024 bytes"
    } else if pattern.chars().any(char::is_control) {
        "it contains a control character, such as a NUL byte or a line break"
    } else if pattern.split('/').any(str::is_empty) {
        "it has an empty level; write 'a/b', without a leading, trailing or double '/'"
    } else if pattern.split('/').any(|level| level.contains('*') && !matches!(level, "*" | "**")) {
        "a wildcard is a whole level, '*' (exactly one) or '**' (any number): write 'a/*/b', not 'a*' or 'a$*'"
    } else if pattern.split('/').any(|level| matches!(level, "+" | "#")) {
        let ours = pattern.split('/').map(|level| match level {
            "+" => "*",
            "#" => "**",
            level => level,
        });
        let ours = ours.collect::<Vec<_>>().join("/");
        let text = format!(
            "'+' and '#' are MQTT's wildcards; here '*' is exactly one level and '**' any number, for subscribers: '{}'",
            shortened(&ours)
        );
        return Err(invalid(pattern, text.into()));
    } else if !is_nfc(pattern) {
        let composed: String = pattern.nfc().collect();
        // The first that differs is the one, unless only what follows it makes it so: `e`, and an accent.
        let same = pattern.chars().zip(composed.chars()).take_while(|(letter, normal)| letter == normal).count();
        let mut differs = pattern.chars().skip(same);
        let first = differs.next();
        let odd = first.filter(|letter| !is_nfc(letter.encode_utf8(&mut [0; 4]))).or(differs.next()).or(first);
        let odd = odd.map_or(0, u32::from);
        let text = format!(
            "it contains U+{odd:04X}, which Unicode's normal form C (NFC) writes otherwise; both look the same and would never meet: write \
             '{}' (in Python: unicodedata.normalize('NFC', topic))",
            shortened(&composed)
        );
        return Err(invalid(pattern, text.into()));
    } else {
        return Ok(());
    };
    Err(invalid(pattern, reason.into()))
}

pub(crate) fn invalid(topic: &str, reason: Cow<'static, str>) -> Error {
    Error::InvalidTopic { topic: shortened(topic), reason }
}

fn shortened(topic: &str) -> String {
    let mut shown: String = topic.chars().take(80).collect();
    if shown.len() < topic.len() {
        shown.push('…');
    }
    shown
}

/// Whether it has wildcards; otherwise it is the name of one topic.
pub(crate) fn is_pattern(pattern: &str) -> bool {
    pattern.contains('*')
}

/// Whether `topic` is what `pattern` names, or one of many. Any two strings may be given: they may come from a peer.
///
/// Of several `**` only the last one that was met has to be tried with more levels: what an earlier one could give up,
/// the later one can take. So the work is at most the product of the two lengths.
pub(crate) fn matches(pattern: &str, topic: &str) -> bool {
    let (mut pattern, mut topic) = (pattern.split('/'), topic.split('/'));
    // What stands behind the last `**`, and the levels that it has not taken.
    let mut resume = None;
    loop {
        let (wanted, level) = (pattern.next(), topic.clone().next());
        if wanted == Some("**") {
            resume = Some((pattern.clone(), topic.clone()));
        } else if wanted.is_none() && level.is_none() {
            return true;
        } else if wanted.is_some() && level.is_some() && (wanted == Some("*") || wanted == level) {
            topic.next();
        } else {
            let Some((behind, rest)) = &mut resume else { return false };
            if rest.next().is_none() {
                return false;
            }
            (pattern, topic) = (behind.clone(), rest.clone());
        }
    }
}

/// The meaning of [`matches`], in as few words as possible.
#[cfg(any(test, fuzzing))]
pub(crate) fn means(pattern: &[&str], topic: &[&str]) -> bool {
    match (pattern, topic) {
        ([], []) => true,
        (["**", rest @ ..], _) => (0..=topic.len()).any(|taken| means(rest, &topic[taken..])),
        (["*", pattern @ ..], [_, topic @ ..]) => means(pattern, topic),
        ([wanted, pattern @ ..], [level, topic @ ..]) => wanted == level && means(pattern, topic),
        _ => false,
    }
}

/// The part of a socket's name that tells topics apart: FNV-1a, 64 bits. Two topics that share it cost a handshake, no more.
pub(crate) fn hash(topic: &str) -> u64 {
    topic.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ byte as u64).wrapping_mul(0x100_0000_01b3))
}

/// The same with 128 bits, for addresses, each of which has a name of its own.
pub(crate) fn wide_hash(address: &str) -> u128 {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = (1 << 88) | 0x13b;
    address.bytes().fold(OFFSET, |hash, byte| (hash ^ byte as u128).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_fnv_1a() {
        assert_eq!(hash("foobar"), 0x8594_4171_f739_67e8);
        assert_eq!(wide_hash("foobar"), 0x343e_1662_793c_64bf_6f0d_3597_ba44_6f18);
    }

    #[test]
    fn names() {
        for good in [
            "a",
            "camera/front",
            "ticks/EUR-USD/bid",
            "ünï/code",
            "$SPX/#1/a?",
            "c++/a+b/##",
            "각/ガ",
            &"x".repeat(MAX_TOPIC),
        ] {
            assert!(validate(good).is_ok(), "{good}");
            assert!(validate_pattern(good).is_ok() && !is_pattern(good), "{good}");
        }
        for bad in ["", "/a", "a/", "a//b", "a\0b", "#", "+", "a/#", "a/+/b", "cafe\u{301}", &"x".repeat(MAX_TOPIC + 1)]
        {
            assert!(matches!(validate(bad), Err(Error::InvalidTopic { .. })), "{bad}");
            assert!(matches!(validate_pattern(bad), Err(Error::InvalidTopic { .. })), "{bad}");
        }
    }

    #[test]
    fn patterns() {
        for good in ["*", "**", "a/*", "*/a", "a/*/b", "**/a/**", "**/**", "**/*", "*/$", &["*"; 512].join("/")] {
            assert!(validate_pattern(good).is_ok() && is_pattern(good), "{good}");
            assert!(matches!(validate(good), Err(Error::InvalidTopic { .. })), "{good}");
        }
        for bad in ["a*", "*a", "a/b*c/d", "***", "a/***", "$*", "a$*/b", "/*", "*/", "*//*", "*\0", &"*/".repeat(513)]
        {
            assert!(matches!(validate_pattern(bad), Err(Error::InvalidTopic { .. })), "{bad}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let reason = |result: Result<()>| result.expect_err("a bad topic").to_string();
        assert!(reason(validate("camera/*")).contains("a publisher names one topic"));
        assert!(reason(validate_pattern("camera/a*")).contains("whole level"));
        assert!(reason(validate_pattern(&"x/".repeat(600))).contains("1024"));
        assert!(reason(validate_pattern("sensors/+/#")).contains("'sensors/*/**'"));
        assert!(reason(validate("a/#")).contains("'a/**'"));
        for (topic, odd) in [
            ("cafe\u{301}", "U+0301"),
            ("x\u{301}e\u{301}", "U+0301"),
            ("\u{212b}", "U+212B"),
            ("a/\u{1112}\u{1161}", "U+1161"),
        ] {
            let told = reason(validate(topic));
            assert!(told.contains(&format!("contains {odd},")), "{told}");
        }
        for check in [validate, validate_pattern] {
            let told = reason(check("kitchen/cafe\u{301}/1"));
            assert!(told.contains("write 'kitchen/café/1'") && told.contains("contains U+0301,"), "{told}");
        }
    }

    #[test]
    fn examples_of_matches() {
        for (pattern, topic) in [
            ("camera/*", "camera/front"),
            ("*/front", "camera/front"),
            ("ticks/**", "ticks"),
            ("ticks/**", "ticks/a/b/c"),
            ("**", "a"),
            ("**/bid", "bid"),
            ("a/**/z", "a/z"),
            ("a/**/z", "a/z/z"),
            ("**/**", "a"),
            ("ü/*", "ü/ö"),
        ] {
            assert!(matches(pattern, topic), "{pattern} {topic}");
        }
        for (pattern, topic) in [
            ("camera/*", "camera"),
            ("camera/*", "camera/front/left"),
            ("camera/*", "cameras/front"),
            ("*", "a/b"),
            ("a/**/z", "a/z/y"),
            ("a/b", "a/b/c"),
            ("a/b/c", "a/b"),
        ] {
            assert!(!matches(pattern, topic), "{pattern} {topic}");
        }
    }

    /// All sequences of 1 to `most` of these levels.
    fn all_of(levels: &[&'static str], most: usize) -> Vec<Vec<&'static str>> {
        let mut found: Vec<Vec<&str>> = vec![vec![]];
        let mut from = 0;
        for _ in 0..most {
            let until = found.len();
            for shorter in from..until {
                found.extend(levels.iter().map(|level| [&found[shorter][..], &[*level]].concat()).collect::<Vec<_>>());
            }
            from = until;
        }
        found.split_off(1)
    }

    #[test]
    fn every_short_pattern_matches_what_it_means() {
        let topics: Vec<_> = all_of(&["a", "b"], 5).into_iter().map(|topic| (topic.join("/"), topic)).collect();
        let patterns = all_of(&["a", "b", "*", "**"], 6);
        assert_eq!((topics.len(), patterns.len()), (62, 5460));
        for pattern in patterns {
            let joined = pattern.join("/");
            for (name, topic) in &topics {
                assert_eq!(matches(&joined, name), means(&pattern, topic), "{joined} {name}");
            }
        }
    }

    /// With a choice at each `**`, tried one by one, this would not end.
    #[test]
    fn many_wildcards_cost_no_more_than_the_product_of_the_lengths() {
        let topic = ["a"; 500].join("/");
        assert!(!matches(&format!("{}/b", ["**/a"; 200].join("/")), &topic));
        assert!(matches(&format!("{}/**/a", ["**/a/*"; 100].join("/")), &topic));
    }

    #[test]
    fn the_published_test_vectors_of_fnv_1a() {
        assert_eq!(hash(""), 0xcbf29ce484222325);
        assert_eq!(hash("a"), 0xaf63dc4c8601ec8c);
        assert_eq!(hash("foobar"), 0x85944171f73967e8);
    }
}
