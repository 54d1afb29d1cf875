//! How a service fails: what a server says instead of a reply.

use crate::sys::text::printable;
use serde::{Deserialize, Serialize};

/// The most bytes of each text; the rest of a longer one is cut off.
const MOST: usize = 1 << 16;

/// What a failure is told by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Code {
    /// A number of the service's own.
    Number(i64),
    /// A name, such as that of an exception's class.
    Name(String),
}

impl From<i64> for Code {
    fn from(number: i64) -> Self {
        Code::Number(number)
    }
}

impl From<&str> for Code {
    fn from(name: &str) -> Self {
        Code::Name(name.to_owned())
    }
}

/// Why a request failed at the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// For programs.
    pub code: Code,
    /// For people.
    pub text: String,
    /// Where it happened, as the server's language tells it; may be empty.
    pub traceback: String,
}

impl Failure {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut failure = self.clone();
        failure.shorten();
        postcard::to_stdvec(&failure).expect("plain data always encodes")
    }

    /// What a server said, in which nothing controls a terminal.
    pub(crate) fn decode(bytes: &[u8]) -> Self {
        // As long as three texts can be.
        let bytes = &bytes[..bytes.len().min(4 * MOST)];
        let mut failure = postcard::from_bytes(bytes).unwrap_or_else(|_| Failure {
            code: Code::Name("unknown".into()),
            text: "the server said nothing that can be read".into(),
            traceback: String::new(),
        });
        failure.shorten();
        if let Code::Name(name) = &mut failure.code {
            *name = printable(name);
        }
        failure.text = lines(&failure.text);
        failure.traceback = lines(&failure.traceback);
        failure
    }

    fn shorten(&mut self) {
        let name = match &mut self.code {
            Code::Name(name) => Some(name),
            Code::Number(_) => None,
        };
        for text in [&mut self.text, &mut self.traceback].into_iter().chain(name) {
            let end = (0..=MOST.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
            text.truncate(end.unwrap_or(0));
        }
    }
}

/// Text of several lines.
fn lines(text: &str) -> String {
    text.split('\n')
        .map(|line| line.split('\t').map(printable).collect::<Vec<_>>().join("\t"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_heard_without_what_controls_a_terminal() {
        let said = Failure { code: Code::Number(7), text: "a\n\tb\u{1b}[2J".into(), traceback: "x".repeat(2 * MOST) };
        let heard = Failure::decode(&said.encode());
        assert_eq!((heard.code, &heard.text[..]), (Code::Number(7), "a\n\tb\\u{1b}[2J"));
        assert_eq!(heard.traceback.len(), MOST);
        for nonsense in [&b""[..], &[0xff; 40], &said.encode()[..3]] {
            assert_eq!(Failure::decode(nonsense).code, Code::Name("unknown".into()));
        }
        let long = Failure { code: Code::Name("ä".repeat(MOST)), text: "ä".repeat(MOST), traceback: String::new() };
        assert!(Failure::decode(&long.encode()).text.len() <= MOST);
    }
}
