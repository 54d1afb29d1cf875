//! What a server or a client is told beside a payload: tags, and failures.

use crate::rpc::failure::{Code, Failure};
use crate::rpc::tag::{Answered, Asked};

pub fn run(input: &[u8]) {
    for word in input.chunks_exact(8) {
        let tag = u64::from_ne_bytes(word.try_into().expect("eight bytes"));
        let (asked, answered) = (Asked::decode(tag), Answered::decode(tag));
        assert!(asked.is_none() || answered.is_none(), "nothing is both");
        // What was understood means the same again.
        assert!(asked.is_none_or(|asked| Asked::decode(asked.encode()) == Some(asked)));
        assert!(answered.is_none_or(|answered| Answered::decode(answered.encode()) == Some(answered)));
    }
    let heard = Failure::decode(input);
    let is_printable = |text: &str| !text.chars().any(|letter| letter.is_control() && !matches!(letter, '\n' | '\t'));
    assert!(is_printable(&heard.text) && is_printable(&heard.traceback));
    assert!(!matches!(&heard.code, Code::Name(name) if name.chars().any(char::is_control)));
}
