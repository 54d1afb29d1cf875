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

/// How far a channel has come towards its end. It only goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    #[default]
    Open,
    /// Packets are not wanted here any more, only the end.
    Deaf,
    /// The other side broke the rules. It can still close the channel, and what it holds is its own until then.
    Broken(&'static str),
    /// The other side closed it, or is gone.
    HungUp,
    /// This side closed it.
    Closed,
}

/// What is taken out.
#[derive(Debug)]
pub(crate) enum Said {
    Packet(Box<[u8]>, Option<OwnedFd>),
    /// The other side rang, once or several times.
    Ring,
    /// A packet for this channel has a descriptor, for which this process has no room. It is still to come.
    OutOfDescriptors,
    /// The other process died. A forked child of it may keep the channel open: the end is told besides.
    Died,
    Nothing,
    HungUp,
}

#[derive(Default)]
pub(crate) struct Inbox {
    packets: VecDeque<(Box<[u8]>, Option<OwnedFd>)>,
    is_rung: bool,
    is_short: bool,
    /// The death of the other process is still to be told.
    has_died: bool,
    phase: Phase,
    /// It is among those whose owner is to be told of news.
    pub is_listed: bool,
}

impl Inbox {
    pub fn put(&mut self, packet: &[u8], passed: Option<OwnedFd>) {
        if !self.wants_packets() {
            return;
        }
        if self.packets.len() == MOST {
            self.reach(Phase::Broken("more packets than are read"));
            return;
        }
        self.packets.push_back((packet.into(), passed));
        self.is_short = false;
    }

    pub fn ring(&mut self) {
        self.is_rung = true;
    }

    pub fn is_short_of_descriptors(&mut self) {
        self.is_short = self.wants_packets();
    }

    pub fn die(&mut self) {
        self.has_died = true;
    }

    /// Goes on to `phase`; gives the one before. What was first is what is told: of a channel that broke the rules, how it did so.
    pub fn reach(&mut self, phase: Phase) -> Phase {
        let before = self.phase;
        let is_told_already = matches!((before, phase), (Phase::Broken(_), Phase::Broken(_)));
        if !is_told_already {
            self.phase = before.max(phase);
        }
        // What came before a hang-up can still be taken.
        if !matches!(phase, Phase::Open | Phase::HungUp) {
            self.is_short = false;
            self.packets.clear();
        }
        before
    }

    /// Whether packets that come are kept.
    pub fn wants_packets(&self) -> bool {
        self.phase == Phase::Open
    }

    pub fn has_many(&self) -> bool {
        self.packets.len() >= MANY
    }

    pub fn has_news(&self) -> bool {
        let has_end = matches!(self.phase, Phase::Broken(_) | Phase::HungUp);
        !self.packets.is_empty() || self.is_rung || self.is_short || self.has_died || has_end
    }

    pub fn is_hung_up(&self) -> bool {
        self.phase >= Phase::HungUp
    }

    pub fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
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
        if std::mem::take(&mut self.has_died) {
            return Ok(Said::Died);
        }
        match self.phase {
            Phase::Open | Phase::Deaf => Ok(Said::Nothing),
            Phase::HungUp | Phase::Closed => Ok(Said::HungUp),
            Phase::Broken(how) => Err(io::Error::new(io::ErrorKind::InvalidData, how)),
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
        inbox.reach(Phase::HungUp);
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
        inbox.reach(Phase::HungUp);
        assert_eq!(taken(&mut inbox), "HungUp");
    }

    #[test]
    fn who_wants_no_packets_hears_of_the_end() {
        let mut inbox = Inbox::default();
        inbox.put(b"x", None);
        inbox.reach(Phase::Deaf);
        inbox.put(b"y", None);
        inbox.is_short_of_descriptors();
        assert_eq!(taken(&mut inbox), "Nothing");
        inbox.reach(Phase::HungUp);
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

    #[test]
    fn what_is_over_stays_over() {
        let mut inbox = Inbox::default();
        inbox.put(b"x", None);
        assert_eq!(inbox.reach(Phase::Broken("one")), Phase::Open);
        inbox.reach(Phase::Broken("two"));
        inbox.reach(Phase::Deaf);
        inbox.put(b"y", None);
        assert_eq!([taken(&mut inbox), taken(&mut inbox)], ["one", "one"]);
        inbox.reach(Phase::HungUp);
        inbox.reach(Phase::Broken("three"));
        assert_eq!(taken(&mut inbox), "HungUp");
        assert!(!inbox.is_closed() && inbox.is_hung_up());
        assert_eq!(inbox.reach(Phase::Closed), Phase::HungUp);
        assert!(inbox.is_closed() && !inbox.has_news());
    }

    #[test]
    fn a_death_is_told_once_and_behind_what_came_before() {
        let mut inbox = Inbox::default();
        inbox.put(b"x", None);
        inbox.die();
        inbox.put(b"y", None);
        let all: Vec<_> = std::iter::repeat_with(|| taken(&mut inbox)).take(4).collect();
        assert_eq!(all, ["x", "y", "Died", "Nothing"]);
        inbox.die();
        inbox.reach(Phase::HungUp);
        assert_eq!([taken(&mut inbox), taken(&mut inbox)], ["Died", "HungUp"]);
    }
}
