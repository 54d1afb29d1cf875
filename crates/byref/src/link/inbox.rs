//! What came for one channel of a pair and was not taken yet. No system call.
//!
//! Whichever thread reads the pair's socket puts in what it finds, for every channel; who has the channel takes it out. A peer that
//! sends more than can be taken in good faith loses this channel, and no other.

use rustix::fd::OwnedFd;
use std::collections::VecDeque;
use std::io;

/// The most packets that wait.
pub(crate) const MOST: usize = 512;
/// From so many on, only the service thread goes on reading the socket: it has them taken out.
pub(crate) const MANY: usize = MOST / 2;

/// Why nothing more comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The other side closed the channel, or its process is gone.
    HungUp,
    /// The other side broke the rules.
    Broken(&'static str),
}

/// What is taken out.
#[derive(Debug)]
pub(crate) enum Said {
    Packet(Box<[u8]>, Option<OwnedFd>),
    /// The other side rang, once or several times.
    Ring,
    /// A packet for this channel has a descriptor, for which this process has no room. It is still to come.
    OutOfDescriptors,
    Nothing,
    HungUp,
}

#[derive(Default)]
pub(crate) struct Inbox {
    packets: VecDeque<(Box<[u8]>, Option<OwnedFd>)>,
    is_rung: bool,
    is_short: bool,
    end: Option<End>,
    /// Packets are not wanted any more; the end is.
    is_deaf: bool,
    /// It is among those whose owner is to be told of news.
    pub is_listed: bool,
}

impl Inbox {
    pub fn put(&mut self, packet: &[u8], passed: Option<OwnedFd>) {
        if self.is_deaf || self.end.is_some() {
            return;
        }
        if self.packets.len() == MOST {
            self.end(End::Broken("more packets than are read"));
            return;
        }
        self.packets.push_back((packet.into(), passed));
        self.is_short = false;
    }

    pub fn ring(&mut self) {
        self.is_rung = true;
    }

    pub fn is_short_of_descriptors(&mut self) {
        self.is_short = !self.is_deaf;
    }

    /// The first end is the one that is told, but a channel that broke the rules can still be closed.
    pub fn end(&mut self, end: End) {
        if self.end.is_none() || end == End::HungUp {
            self.end = Some(end);
        }
        if matches!(end, End::Broken(_)) {
            self.packets.clear();
        }
    }

    /// No packets are wanted any more.
    pub fn stop(&mut self) {
        self.is_deaf = true;
        self.is_short = false;
        self.packets.clear();
    }

    pub fn has_many(&self) -> bool {
        self.packets.len() >= MANY
    }

    pub fn has_news(&self) -> bool {
        !self.packets.is_empty() || self.is_rung || self.is_short || self.end.is_some()
    }

    pub fn is_hung_up(&self) -> bool {
        self.end == Some(End::HungUp)
    }

    /// Packets in the order in which they came. Rings come after them: they say to look at shared memory, which is best done when all
    /// packets are read.
    pub fn take(&mut self) -> io::Result<Said> {
        if let Some((packet, passed)) = self.packets.pop_front() {
            return Ok(Said::Packet(packet, passed));
        }
        if std::mem::take(&mut self.is_rung) {
            return Ok(Said::Ring);
        }
        if std::mem::take(&mut self.is_short) {
            return Ok(Said::OutOfDescriptors);
        }
        match self.end {
            None => Ok(Said::Nothing),
            Some(End::HungUp) => Ok(Said::HungUp),
            Some(End::Broken(how)) => Err(io::Error::new(io::ErrorKind::InvalidData, how)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(inbox: &mut Inbox) -> String {
        match inbox.take() {
            Ok(Said::Packet(packet, _)) => String::from_utf8(packet.into()).unwrap(),
            Ok(said) => format!("{said:?}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn packets_come_in_order_and_before_the_end() {
        let mut inbox = Inbox::default();
        assert!(!inbox.has_news());
        inbox.put(b"one", None);
        inbox.ring();
        inbox.ring();
        inbox.put(b"two", None);
        inbox.end(End::HungUp);
        inbox.put(b"late", None);
        assert!(inbox.has_news() && inbox.is_hung_up());
        let all: Vec<_> = std::iter::repeat_with(|| taken(&mut inbox)).take(5).collect();
        assert_eq!(all, ["one", "two", "Ring", "HungUp", "HungUp"]);
    }

    #[test]
    fn a_flood_ends_the_channel_and_leaves_nothing() {
        let mut inbox = Inbox::default();
        (0..MOST).for_each(|_| inbox.put(b"x", None));
        assert!(inbox.has_many());
        assert_eq!(taken(&mut inbox), "x");
        inbox.put(b"x", None);
        inbox.put(b"x", None);
        assert_eq!(taken(&mut inbox), "more packets than are read");
        inbox.put(b"x", None);
        assert_eq!(taken(&mut inbox), "more packets than are read");
        assert!(!inbox.is_hung_up(), "it still has what it holds");
        inbox.end(End::HungUp);
        assert_eq!(taken(&mut inbox), "HungUp");
    }

    #[test]
    fn who_wants_no_packets_hears_of_the_end() {
        let mut inbox = Inbox::default();
        inbox.put(b"x", None);
        inbox.stop();
        inbox.put(b"y", None);
        inbox.is_short_of_descriptors();
        assert_eq!(taken(&mut inbox), "Nothing");
        inbox.end(End::HungUp);
        assert_eq!(taken(&mut inbox), "HungUp");
    }

    #[test]
    fn a_want_of_descriptors_is_told_once_until_it_is_over() {
        let mut inbox = Inbox::default();
        inbox.is_short_of_descriptors();
        assert_eq!(taken(&mut inbox), "OutOfDescriptors");
        assert_eq!(taken(&mut inbox), "Nothing");
        inbox.is_short_of_descriptors();
        inbox.put(b"x", None);
        assert_eq!([taken(&mut inbox), taken(&mut inbox)], ["x", "Nothing"]);
    }
}
