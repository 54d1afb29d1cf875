//! Notes: where a subscriber received a message, for the publisher to tell when that message is held for long.
//!
//! They lie in the lease, [`NOTE_LEN`] bytes for each slot, and only the subscriber writes them. A note begins with the
//! message's number plus one, so that one about an earlier message in the same slot is known as such; then comes text. All
//! words are relaxed: nothing depends on a note, and one that is read while it is written is mixed, but harmless. The
//! publisher takes it for what a stranger says.

use crate::protocol::lease::{NOTE_LEN, NOTES_START};
use crate::sync::{AtomicU64, Ordering};
use crate::sys::memory::Mapping;
use crate::sys::text::printable;
use std::ops::Range;

const WORDS: usize = NOTE_LEN / 8;
/// The most bytes of its text.
const ROOM: usize = NOTE_LEN - 8;

/// The note of `slot` in a mapped lease.
pub(crate) fn of_slot(lease: &Mapping, slot: u32) -> &[AtomicU64] {
    let start = NOTES_START / 8 + slot as usize * WORDS;
    &lease.words()[start..start + WORDS]
}

/// Notes where message `sequence` was received. Of a text that is too long the end stays: that is where the line is.
pub(crate) fn write(note: &[AtomicU64], sequence: u64, text: &str) {
    let from = (text.len().saturating_sub(ROOM)..=text.len()).find(|at| text.is_char_boundary(*at));
    let text = &text.as_bytes()[from.unwrap_or_default()..];
    let mut padded = [0u8; ROOM];
    padded[..text.len()].copy_from_slice(text);
    note[0].store(sequence.wrapping_add(1), Ordering::Relaxed);
    for (word, bytes) in note[1..].iter().zip(padded.chunks_exact(8)) {
        word.store(u64::from_ne_bytes(bytes.try_into().expect("eight bytes")), Ordering::Relaxed);
    }
}

/// The text of a note that is about one of the messages `sequences`, made printable.
pub(crate) fn read(note: &[AtomicU64], sequences: Range<u64>) -> Option<String> {
    if !sequences.contains(&note[0].load(Ordering::Relaxed).wrapping_sub(1)) {
        return None;
    }
    let bytes: Vec<u8> = note[1..].iter().flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes()).collect();
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    (!text.is_empty()).then(|| printable(&String::from_utf8_lossy(text)))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn note() -> [AtomicU64; WORDS] {
        [const { AtomicU64::new(0) }; WORDS]
    }

    #[test]
    fn what_is_written_is_read_for_that_message_only() {
        let note = note();
        assert_eq!(read(&note, 0..u64::MAX), None);
        write(&note, 7, "app.py:12");
        assert_eq!(read(&note, 7..8).as_deref(), Some("app.py:12"));
        assert_eq!(read(&note, 5..9).as_deref(), Some("app.py:12"));
        assert_eq!(read(&note, 8..9), None);
        write(&note, 8, "b.py:3");
        assert_eq!(read(&note, 8..9).as_deref(), Some("b.py:3"));
    }

    #[test]
    fn the_end_of_a_long_text_stays() {
        let note = note();
        let path = format!("/{}/module.py:1234", "directory/".repeat(20));
        write(&note, 0, &path);
        assert_eq!(read(&note, 0..1).as_deref(), Some(&path[path.len() - ROOM..]));
        // 3 bytes each: the room does not end between two of them.
        write(&note, 0, &"\u{2014}".repeat(30));
        assert_eq!(read(&note, 0..1), Some("\u{2014}".repeat(ROOM / 3)));
    }

    #[test]
    fn a_strangers_text_is_made_printable() {
        let note = note();
        write(&note, 0, "a\nb\u{1b}[2Jc");
        assert_eq!(read(&note, 0..1).as_deref(), Some("a\\nb\\u{1b}[2Jc"));
        for word in &note[1..] {
            word.store(u64::MAX, Ordering::Relaxed);
        }
        assert_eq!(read(&note, 0..1), Some("\u{fffd}".repeat(ROOM)));
        note[1].store(0, Ordering::Relaxed);
        assert_eq!(read(&note, 0..1), None);
    }
}
