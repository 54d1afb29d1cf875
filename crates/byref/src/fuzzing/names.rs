//! The names of files in the rendezvous directory, topics and patterns.

use crate::link::names::{is_final, is_queue, may_match};
use crate::topic;

pub fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let mut parts = text.splitn(3, '\n');
    let [name, pattern, topic] = std::array::from_fn(|_| parts.next().unwrap_or_default());
    assert!(!(is_final(name) && is_queue(name)), "nobody is two things");
    if may_match(name, pattern) {
        assert!(is_final(name) && name.len() == 49);
    }
    let valid = topic::validate(topic).is_ok();
    assert!(!valid || topic::validate_pattern(topic).is_ok(), "a topic is a pattern");
    assert!(!valid || (topic::matches(topic, topic) && topic::matches("**", topic)));
    let matched = topic::matches(pattern, topic);
    assert!(!matched || !valid || topic::is_pattern(pattern) || pattern == topic);
    let levels = |text: &str| text.split('/').count();
    if levels(pattern) + levels(topic) <= 16 {
        let [pattern, topic] = [pattern, topic].map(|text| text.split('/').collect::<Vec<_>>());
        assert_eq!(matched, topic::means(&pattern, &topic));
    }
}
