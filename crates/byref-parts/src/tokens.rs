//! How a message of several parts describes them: a flat list, each packed container followed by what belongs into it.

use crate::arrow::{Chunk, Class};
use crate::bounds::{MOST_LEVELS, MOST_TOKENS};
use crate::packed;
use crate::plan::Part;
use serde::{Deserialize, Serialize};

/// The longest description, in bytes.
const MOST_DESCRIPTION: usize = 64 << 20;
/// One thing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Token {
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
    /// A pickle.
    Pickle {
        /// Its stream.
        stream: Part,
        /// The buffers beside it, in order.
        buffers: Vec<Part>,
    },
    /// A container and the scalars and containers within it, as [`packed`] has them.
    Packed {
        /// The stream.
        at: Part,
        /// So many values follow that belong into it.
        others: u64,
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
    fn each_part(&self, each: &mut impl FnMut(&Part)) {
        match self {
            Token::Bytes(at) | Token::Array { at, .. } | Token::Packed { at, .. } => each(at),
            Token::Arrow { schema, chunks, .. } => {
                if let Words::Here(at) = schema {
                    each(at);
                }
                chunks.iter().flat_map(|chunk| &chunk.buffers).flatten().for_each(each);
            }
            Token::Pickle { stream, buffers } => {
                each(stream);
                buffers.iter().for_each(each);
            }
        }
    }

    /// Moves the parts of `payload` that it names by `distance`; `None` when one is none.
    pub fn relocate(&mut self, payload: &[u8], distance: u64) -> Option<()> {
        let shift = |part: &mut Part| part.of(payload).map(|_| part.at += distance);
        match self {
            Token::Bytes(at) | Token::Array { at, .. } | Token::Packed { at, .. } => shift(at),
            Token::Arrow { schema, chunks, .. } => {
                if let Words::Here(at) = schema {
                    shift(at)?;
                }
                chunks.iter_mut().flat_map(|chunk| &mut chunk.buffers).flatten().try_for_each(shift)
            }
            Token::Pickle { stream, buffers } => {
                shift(stream)?;
                buffers.iter_mut().try_for_each(shift)
            }
        }
    }
}

/// The form in which they travel.
pub fn encode(tokens: &[Token]) -> Vec<u8> {
    postcard::to_stdvec(tokens).expect("plain data always encodes")
}

/// From what `encode` made of one value; anything else, from a faulty peer, is an error.
pub fn decode(payload: &[u8], at: Part) -> Result<Vec<Token>, String> {
    // A copy, since its sender may change it meanwhile.
    let bytes = at.of(payload).ok_or("its description lies outside of it")?;
    if bytes.len() > MOST_DESCRIPTION {
        return Err(format!("its description has {} bytes", bytes.len()));
    }
    let bytes = bytes.to_vec();
    let unreadable = |error| format!("its description cannot be read ({error})");
    let (count, _) = postcard::take_from_bytes::<u64>(&bytes).map_err(unreadable)?;
    if count > MOST_TOKENS as u64 {
        return Err(format!("{count} parts"));
    }
    let (tokens, rest) = postcard::take_from_bytes::<Vec<Token>>(&bytes).map_err(unreadable)?;
    if !rest.is_empty() {
        return Err("more than its description".into());
    }
    levels(&tokens)?;
    // Honest parts do not overlap. If they could, a small message would be much work.
    let mut named = 0u64;
    for token in &tokens {
        token.each_part(&mut |part| named = named.saturating_add(part.len));
    }
    if named > payload.len() as u64 { Err("parts that overlap".into()) } else { Ok(tokens) }
}

/// How deep the one value is that `tokens` describe: 0 for a scalar. An error if they are no value, or one too deep. What is packed
/// is not looked at: [`depth`] does so.
pub fn levels(tokens: &[Token]) -> Result<usize, String> {
    // Of each container that is not complete: how many are missing.
    let mut missing = vec![1u64];
    let mut deepest = 0;
    for token in tokens {
        let left = missing.last_mut().ok_or("more parts than one value has")?;
        *left -= 1;
        deepest = deepest.max(missing.len() - 1);
        if let Token::Packed { others, .. } = token {
            missing.push(*others);
        }
        while missing.last() == Some(&0) {
            missing.pop();
        }
        if missing.len() > MOST_LEVELS + 1 {
            return Err("containers nested too deep".into());
        }
    }
    if missing.is_empty() { Ok(deepest) } else { Err("fewer parts than announced".into()) }
}

/// How deep the one value is that `tokens`, which [`decode`] gave, describe in `payload`, and how many packed containers it has. An
/// error if it is too deep, or what is packed is none.
pub fn depth(tokens: &[Token], payload: &[u8]) -> Result<(usize, usize), String> {
    // Of each container that is not complete: how deep what is missing belongs, the next one last.
    let mut missing = vec![vec![0]];
    let (mut deepest, mut containers) = (0, 0);
    for token in tokens {
        let level = missing.last_mut().and_then(Vec::pop).ok_or("more parts than one value has")?;
        deepest = deepest.max(level);
        if let Token::Packed { at, others } = token {
            // A copy, since its sender may change it meanwhile.
            let stream = at.of(payload).ok_or("a part outside of it, or not aligned")?.to_vec();
            let summary = packed::check(&stream)?;
            if summary.others.len() as u64 != *others {
                return Err("packed values with others than announced".into());
            }
            containers += summary.containers;
            deepest = deepest.max(level + summary.levels);
            missing.push(summary.others.iter().rev().map(|below| level + below).collect());
        }
        if deepest > MOST_LEVELS {
            return Err("containers nested too deep".into());
        }
        while missing.last().is_some_and(Vec::is_empty) {
            missing.pop();
        }
    }
    Ok((deepest, containers))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOWHERE: Part = Part { at: 0, len: 0 };

    /// A packed container, as its description alone says.
    fn container(others: u64) -> Token {
        Token::Packed { at: NOWHERE, others }
    }

    #[test]
    fn values_and_what_is_none() {
        let one = bytes(0, 0);
        assert_eq!(levels(std::slice::from_ref(&one)), Ok(0));
        assert_eq!(levels(&[container(0)]), Ok(0));
        assert_eq!(levels(&[container(2), one.clone(), container(1), one.clone()]), Ok(2));
        assert_eq!(levels(&[container(2), one.clone(), container(1), container(0)]), Ok(2));
        for wrong in
            [vec![], vec![container(1)], vec![one.clone(), one.clone()], vec![container(u64::MAX), one.clone()]]
        {
            assert!(levels(&wrong).is_err(), "{wrong:?}");
        }
        let deep = |count| [vec![container(1); count], vec![one.clone()]].concat();
        assert_eq!(levels(&deep(MOST_LEVELS)), Ok(MOST_LEVELS));
        assert!(levels(&deep(MOST_LEVELS + 1)).is_err());
    }

    #[test]
    fn packed_values_count_with_what_is_in_them() {
        // Three lists, one in the other, and a value more in the innermost; then two lists, and two values.
        let streams = [
            vec![packed::LIST, 1, packed::LIST, 1, packed::LIST, 1, packed::OTHER],
            vec![packed::LIST, 2, packed::OTHER, packed::LIST, 1, packed::OTHER],
        ];
        let mut payload = streams[0].clone();
        payload.resize(64, 0);
        payload.extend(&streams[1]);
        let one = Token::Packed { at: Part { at: 0, len: streams[0].len() as u64 }, others: 1 };
        let two = |others| Token::Packed { at: Part { at: 64, len: streams[1].len() as u64 }, others };
        let leaf = bytes(0, 0);
        assert_eq!(depth(std::slice::from_ref(&leaf), &payload), Ok((0, 0)));
        assert_eq!(depth(&[one.clone(), leaf.clone()], &payload), Ok((3, 3)));
        assert_eq!(depth(&[two(2), one.clone(), leaf.clone(), leaf.clone()], &payload), Ok((4, 5)));
        assert_eq!(depth(&[two(2), leaf.clone(), one.clone(), leaf.clone()], &payload), Ok((5, 5)));
        assert!(depth(&[two(1), leaf.clone()], &payload).unwrap_err().contains("announced"));
        assert!(depth(&[Token::Packed { at: Part { at: 128, len: 1 }, others: 0 }], &payload).is_err());
        let deep = |count| [vec![one.clone(); count], vec![leaf.clone()]].concat();
        assert_eq!(depth(&deep(MOST_LEVELS / 3), &payload), Ok((63, 63)));
        assert!(depth(&deep(MOST_LEVELS / 3 + 1), &payload).is_err());
    }

    #[test]
    fn only_one_value_of_a_bearable_size_is_read() {
        let read = |bytes: &[u8]| decode(bytes, Part { at: 0, len: bytes.len() as u64 });
        let tokens = vec![container(1), bytes(0, 1)];
        assert_eq!(read(&encode(&tokens)), Ok(tokens));
        assert!(read(&encode(&[container(2), bytes(0, 0)])).is_err());
        assert!(read(&[encode(&[bytes(0, 0)]), vec![0]].concat()).unwrap_err().contains("more than"));
        let zeros = vec![0; 3 * MOST_TOKENS + 10];
        let many = [postcard::to_stdvec(&(MOST_TOKENS as u64 + 1)).unwrap(), zeros].concat();
        assert!(read(&many).unwrap_err().contains("parts"));
    }

    #[test]
    fn parts_that_overlap_are_refused() {
        let said = |count| encode(&[vec![container(count)], vec![bytes(0, 128); count as usize]].concat());
        for (count, is_possible) in [(1, true), (2, true), (3, false)] {
            let mut payload = said(count);
            let at = Part { at: 0, len: payload.len() as u64 };
            payload.resize(256, 0);
            assert_eq!(decode(&payload, at).is_ok(), is_possible, "{count} of half a payload");
        }
    }

    fn bytes(at: u64, len: u64) -> Token {
        Token::Bytes(Part { at, len })
    }

    #[test]
    fn only_parts_of_the_payload_move() {
        let payload = [0; 128];
        let mut inside = bytes(64, 64);
        assert_eq!(inside.relocate(&payload, 192), Some(()));
        assert_eq!(inside, bytes(256, 64));
        for (at, len) in [(64, 65), (1, 1), (u64::MAX - 63, 64), (128, 1)] {
            let stream = Part { at: 0, len: 128 };
            let mut lying = Token::Pickle { stream, buffers: vec![Part { at, len }] };
            assert_eq!(lying.relocate(&payload, 192), None);
        }
    }
}
