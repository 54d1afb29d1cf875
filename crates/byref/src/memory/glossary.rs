//! The glossary: what many messages refer to is told once.
//!
//! A segment of its own, to which the publisher only appends: an entry's bytes never change and never go while anybody maps
//! it. Its descriptor travels like that of a pool's segment, under the number [`GLOSSARY`], before the first record that
//! refers to it; such a record says so ([`Descriptor::refers`](crate::protocol::ring::Descriptor)), and a reader maps the glossary
//! before it hands the message out. So late joiners, and subscribers that lose messages, know every entry that they meet.

use crate::sync::locks::Mutex;
use crate::sys::memory::{OwnedSegment, PeerSegment};
use std::any::Any;
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, OnceLock};

/// The number of the glossary among a publisher's segments.
pub(crate) const GLOSSARY: u32 = u32::MAX;
/// The length of its segment in bytes; sparse.
pub(crate) const LEN: u64 = 16 << 20;
/// The longest entry.
const MOST_OF_ONE: u64 = 1 << 20;
/// Memory is taken from the system in steps of this size.
const STEP: u64 = 64 << 10;
/// Entries start at multiples of this.
const ALIGNMENT: u64 = 8;
/// The most entries of one publisher whose meaning is remembered.
const MOST_REMEMBERED: usize = 1 << 14;

/// Where a glossary explains something: see [`Publisher::explain`](crate::Publisher::explain). To be sent within a message,
/// as its two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// The place of its first byte.
    pub offset: u64,
    /// How many bytes it has.
    pub len: u64,
}

/// The publisher's side.
pub(crate) struct Glossary {
    memory: Arc<OwnedSegment>,
    used: u64,
    populated: u64,
    known: HashMap<Box<[u8]>, Entry>,
}

impl Glossary {
    pub fn new() -> io::Result<Self> {
        let memory = Arc::new(OwnedSegment::new("byref-glossary", LEN)?);
        Ok(Glossary { memory, used: 0, populated: 0, known: HashMap::new() })
    }

    pub fn memory(&self) -> &Arc<OwnedSegment> {
        &self.memory
    }

    /// The entry with these bytes; a new one, if need be. `None`: there is no room for it.
    pub fn explain(&mut self, bytes: &[u8]) -> io::Result<Option<Entry>> {
        if let Some(entry) = self.known.get(bytes) {
            return Ok(Some(*entry));
        }
        let entry = Entry { offset: self.used, len: bytes.len() as u64 };
        let end = entry.offset + entry.len;
        if end > LEN || entry.len > MOST_OF_ONE {
            return Ok(None);
        }
        if end > self.populated {
            let to = end.next_multiple_of(STEP).min(LEN);
            self.memory.populate(self.populated..to)?;
            self.populated = to;
        }
        self.memory.write(entry.offset, bytes);
        self.used = end.next_multiple_of(ALIGNMENT);
        self.known.insert(bytes.into(), entry);
        Ok(Some(entry))
    }
}

/// A reader's side: a peer's glossary, and what became of the entries that were looked up.
#[derive(Default)]
pub(crate) struct PeerGlossary {
    memory: OnceLock<PeerSegment>,
    understood: Mutex<HashMap<Entry, Arc<dyn Any + Send + Sync>>>,
}

impl PeerGlossary {
    /// The glossary was sent. (A publisher has one; what a faulty one sends later is ignored.)
    pub fn set(&self, memory: PeerSegment) {
        let _ = self.memory.set(memory);
    }

    pub fn is_there(&self) -> bool {
        self.memory.get().is_some()
    }

    /// What `understand` makes of an entry's bytes, remembered. `None`: there is no such entry.
    pub fn look_up<T: Send + Sync + 'static, E>(
        &self,
        entry: Entry,
        understand: impl FnOnce(Vec<u8>) -> Result<T, E>,
    ) -> Option<Result<Arc<T>, E>> {
        if let Some(found) = self.understood.lock().get(&entry).cloned()
            && let Ok(found) = found.downcast()
        {
            return Some(Ok(found));
        }
        if entry.len > MOST_OF_ONE {
            return None;
        }
        let range = entry.offset..entry.offset.checked_add(entry.len)?;
        let understood = match understand(self.memory.get()?.read(range)?) {
            Ok(understood) => Arc::new(understood),
            Err(error) => return Some(Err(error)),
        };
        let mut known = self.understood.lock();
        // Honest entries do not overlap.
        if known.len() < MOST_REMEMBERED && known.keys().map(|entry| entry.len).sum::<u64>() + entry.len <= LEN {
            known.insert(entry, Arc::clone(&understood) as _);
        }
        Some(Ok(understood))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn as_read(glossary: &Glossary) -> PeerGlossary {
        let shared = glossary.memory().shared().try_clone_to_owned().unwrap();
        let read = PeerGlossary::default();
        read.set(PeerSegment::new(shared, Some(LEN)).map_err(|(error, _)| error).unwrap());
        read
    }

    fn look_up(glossary: &PeerGlossary, offset: u64, len: u64) -> Option<Vec<u8>> {
        let found = glossary.look_up(Entry { offset, len }, Ok::<_, ()>)?;
        Some(found.unwrap().to_vec())
    }

    #[test]
    fn only_entries_that_can_be_are_read() {
        let mut glossary = Glossary::new().unwrap();
        glossary.explain(b"schema").unwrap();
        glossary.memory().populate(0..2 * MOST_OF_ONE).unwrap();
        assert_eq!(look_up(&PeerGlossary::default(), 0, 6), None, "no glossary was sent");
        let read = as_read(&glossary);
        assert_eq!(look_up(&read, 0, 6).as_deref(), Some(&b"schema"[..]));
        assert!(look_up(&read, 8, MOST_OF_ONE).is_some());
        for (offset, len) in [(0, MOST_OF_ONE + 1), (2 * MOST_OF_ONE, 1), (LEN - 1, 2), (u64::MAX, 2)] {
            assert_eq!(look_up(&read, offset, len), None, "too long, a hole, and outside");
        }
    }

    #[test]
    fn a_peers_entries_are_remembered_up_to_a_number_and_a_length() {
        let glossary = Glossary::new().unwrap();
        glossary.memory().populate(0..2 * MOST_OF_ONE).unwrap();
        for (len, most) in [(1, MOST_REMEMBERED), (MOST_OF_ONE, (LEN / MOST_OF_ONE) as usize)] {
            let read = as_read(&glossary);
            for offset in 0..most as u64 + 10 {
                assert!(look_up(&read, offset, len).is_some());
            }
            assert_eq!(read.understood.lock().len(), most);
        }
    }

    #[test]
    fn what_is_known_is_not_told_again_and_room_ends() {
        let mut glossary = Glossary::new().unwrap();
        let first = glossary.explain(b"schema").unwrap().unwrap();
        assert_eq!(glossary.explain(b"schema").unwrap(), Some(first));
        let second = glossary.explain(b"another").unwrap().unwrap();
        assert!(second.offset >= first.offset + first.len && second.offset.is_multiple_of(ALIGNMENT));
        assert_eq!(glossary.explain(&vec![1; LEN as usize]).unwrap(), None);
        for number in 0..LEN / MOST_OF_ONE {
            let long = vec![number as u8; MOST_OF_ONE.min(LEN - glossary.used) as usize];
            assert!(glossary.explain(&long).unwrap().is_some());
        }
        assert_eq!(glossary.explain(b"too late").unwrap(), None);
        assert_eq!(glossary.explain(b"schema").unwrap(), Some(first));
    }
}
