//! What an endpoint has of the socket between two processes: a channel to one endpoint of the other one.

use crate::link::handshake;
use crate::link::inbox::Said;
use crate::link::pair::{Pair, Wire};
use rustix::fd::BorrowedFd;
use rustix::process::Pid;
use std::io;
use std::sync::Arc;

/// A channel, which dropping closes. In a forked child it does nothing.
pub(crate) struct Channel {
    pair: Arc<Pair>,
    wire: Arc<Wire>,
}

impl Channel {
    /// The channel of a call that the other side made.
    pub fn of(pair: &Arc<Pair>, wire: Arc<Wire>) -> Self {
        Channel { pair: Arc::clone(pair), wire }
    }

    /// Opens a channel, and says what is wanted; `None`: the socket is full.
    pub fn open(
        pair: &Arc<Pair>,
        wanted: &handshake::Call,
        passed: Option<BorrowedFd<'_>>,
    ) -> io::Result<Option<Self>> {
        let wire = pair.open(&handshake::encode_call(wanted), passed)?;
        Ok(wire.map(|wire| Channel::of(pair, wire)))
    }

    /// The process at the other end; `None`: it is out of sight.
    pub fn peer_pid(&self) -> Option<Pid> {
        self.pair.pid()
    }

    /// Sends a packet, with at most one descriptor. `Ok(false)`: not now; the socket is full, or the system is short of something.
    pub fn send(&self, packet: &[u8], passed: Option<BorrowedFd<'_>>) -> io::Result<bool> {
        self.pair.say(&self.wire, packet, passed)
    }

    /// Has the other side look at shared memory. It arrives whatever happens, unless the other side is gone.
    pub fn ring(&self) {
        self.pair.ring(&self.wire);
    }

    /// What came next, as far as the socket was read.
    pub fn take(&self) -> io::Result<Said> {
        self.wire.take()
    }

    /// Reads the socket, for who cannot wait until the service thread does, and takes out what came for this channel. `true`:
    /// there was no more.
    pub fn pump(&self) -> bool {
        self.pair.pump(&self.wire)
    }

    /// Has `listener` called, on the service thread and without any lock, when something came.
    pub fn listen(&self, listener: impl Fn() + Send + Sync + 'static) {
        self.pair.listen(&self.wire, Arc::new(listener));
    }

    /// What several channels of one pair have in common.
    pub fn pair(&self) -> &Arc<Pair> {
        &self.pair
    }

    /// Packets are not wanted any more, only the end.
    pub fn stop_receiving(&self) {
        self.wire.stop();
    }

    /// Whether the other side has closed it, or is gone. What it sent before may still be there.
    pub fn is_hung_up(&self) -> bool {
        self.wire.is_hung_up()
    }

    /// Whether the other side's process is dead, also when that was not noticed yet: a system call.
    pub fn has_died(&self) -> bool {
        self.pair.has_died()
    }

    /// Closes it, though messages or others may keep it.
    pub fn hang_up(&self) {
        self.pair.close(&self.wire);
    }
}

/// Both ends of a channel, for tests that play the other side: the end that opened it, and the other one. Only who needs what comes
/// reads their sockets.
#[cfg(all(any(test, fuzzing), not(loom)))]
pub(crate) fn joined() -> (Channel, Channel) {
    use crate::link::pair::Side;
    use crate::link::tasks::Service;
    use crate::sys::socket;

    let service = Service::idle();
    let (one, other) = socket::pair().expect("two sockets");
    let make =
        |socket, side| Pair::new(Arc::new(socket), side, None, Arc::new(Nobody), &service).expect("an empty socket");
    let ours = make(one, Side::Connected);
    let _ = socket::receive(&other, &mut [0; socket::MAX_PACKET]); // The greeting.
    let theirs = make(other, Side::Accepted);
    let wire = ours.open(b"", None).expect("a pair").expect("an empty socket");
    let opened = theirs.next_call().expect("a call");
    (Channel::of(&ours, wire), Channel::of(&theirs, opened))
}

/// A stranger's end of a socket, and the pair at the other one, which nobody reads but who is told to.
#[cfg(all(any(test, fuzzing), not(loom)))]
pub(crate) fn beside_stranger() -> (rustix::fd::OwnedFd, Arc<Pair>) {
    use crate::link::pair::Side;
    use crate::link::tasks::Service;
    use crate::sys::socket;

    let (stranger, own) = socket::pair().expect("two sockets");
    let pair = Pair::new(Arc::new(own), Side::Accepted, None, Arc::new(Nobody), &Service::idle());
    (stranger, pair.expect("an empty socket"))
}

/// Answers no calls.
#[cfg(all(any(test, fuzzing), not(loom)))]
struct Nobody;

#[cfg(all(any(test, fuzzing), not(loom)))]
impl crate::link::pair::Answers for Nobody {
    fn called(&self, _: &Arc<Pair>, _: Arc<Wire>, _: &[u8], _: io::Result<Option<rustix::fd::OwnedFd>>) {}
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.hang_up();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::link::handshake::{Call, Hello, Wish};
    use crate::link::inbox::{self, MOST};
    use crate::link::meeting::{Meeting, meet_in_private};
    use crate::link::pair::{Answers, MOST_CHANNELS, Side};
    use crate::link::service::{self, Handle};
    use crate::link::tasks;
    use crate::protocol::claim::Policy;
    use crate::sync::locks::Mutex;
    use crate::sys::memory::OwnedSegment;
    use crate::sys::socket::{self, MAX_PACKET, Received};
    use rustix::fd::OwnedFd;
    use std::cell::Cell;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    /// Keeps the channels that the other side opens, by the names that it asked for.
    #[derive(Default)]
    struct Called(Mutex<Vec<OneCall>>);

    type OneCall = (String, Channel, io::Result<Option<OwnedFd>>);

    impl Answers for Called {
        fn called(&self, pair: &Arc<Pair>, wire: Arc<Wire>, wanted: &[u8], passed: io::Result<Option<OwnedFd>>) {
            let call = handshake::decode_call(wanted).expect("a call");
            self.0.lock().push((call.name, Channel::of(pair, wire), passed));
        }
    }

    impl Called {
        fn take(&self, name: &str) -> (Channel, Option<OwnedFd>) {
            until(|| {
                let mut all = self.0.lock();
                let at = all.iter().position(|(called, ..)| called == name)?;
                let (_, channel, passed) = all.remove(at);
                Some((channel, passed.expect("there is room")))
            })
        }
    }

    fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
        let begin = Instant::now();
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(begin.elapsed() < Duration::from_secs(20), "it does not come");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Both sides, in one process.
    struct Both {
        ours: Arc<Pair>,
        theirs: Arc<Pair>,
        called_here: Arc<Called>,
        called_there: Arc<Called>,
        sockets: [Arc<OwnedFd>; 2],
        /// The pair does not end before the first channel.
        is_new: Cell<bool>,
        _handle: Arc<Handle>,
        _meeting: Meeting,
    }

    impl Both {
        /// The other side reads from the beginning, or when it is told to.
        fn new(they_read: bool) -> Self {
            let meeting = meet_in_private();
            let (_, handle) = service::connect("t").unwrap();
            let (one, other) = socket::pair().unwrap();
            let sockets = [one, other].map(Arc::new);
            let called: [Arc<Called>; 2] = Default::default();
            let make = |at: usize, side| {
                let answers = Arc::clone(&called[at]) as _;
                Pair::new(Arc::clone(&sockets[at]), side, None, answers, &handle).unwrap()
            };
            let (ours, theirs) = (make(0, Side::Connected), make(1, Side::Accepted));
            let mut greeting = [0; MAX_PACKET];
            assert!(matches!(socket::receive(&sockets[1], &mut greeting), Ok(Received::Packet(..))));
            assert!(ours.visit());
            ours.attend().unwrap();
            if they_read {
                theirs.attend().unwrap();
            }
            let [called_here, called_there] = called;
            let (is_new, _handle, _meeting) = (Cell::new(true), handle, meeting);
            Both { ours, theirs, called_here, called_there, sockets, is_new, _handle, _meeting }
        }

        fn open(&self, name: &str) -> Channel {
            self.open_with(name, None)
        }

        fn open_with(&self, name: &str, passed: Option<BorrowedFd<'_>>) -> Channel {
            let channel = Channel::open(&self.ours, &call(name), passed).unwrap().expect("there is room");
            if self.is_new.take() {
                self.ours.leave();
            }
            channel
        }
    }

    fn call(name: &str) -> Call {
        let hello =
            Hello { topic: "t".into(), policy: Policy::Block, depth: None, history: 0, name: None, membarrier: true };
        Call { name: name.into(), wish: Wish::Subscribe(hello) }
    }

    fn open(pair: &Arc<Pair>, name: &str) -> Channel {
        Channel::open(pair, &call(name), None).unwrap().expect("there is room")
    }

    fn text(said: io::Result<Said>) -> Option<String> {
        match said {
            Ok(Said::Nothing) => None,
            Ok(Said::Packet(packet, passed)) => {
                let with = if passed.is_some() { " with a descriptor" } else { "" };
                Some(String::from_utf8(packet.into()).unwrap() + with)
            }
            Ok(said) => Some(format!("{said:?}")),
            Err(error) => Some(error.to_string()),
        }
    }

    fn next(channel: &Channel) -> String {
        until(|| text(channel.take()))
    }

    #[test]
    fn both_sides_open_channels_and_each_has_its_own_packets() {
        let both = Both::new(true);
        let memory = OwnedSegment::new("test", 4096).unwrap();
        let mine = both.open_with("a", Some(memory.shared()));
        let (its, passed) = both.called_there.take("a");
        assert!(passed.is_some());
        let second = both.open("b");
        let reverse = open(&both.theirs, "c");
        let (at_second, _) = both.called_there.take("b");
        let (at_reverse, _) = both.called_here.take("c");
        for (from, to) in [(&mine, &its), (&its, &mine), (&reverse, &at_reverse), (&at_second, &second)] {
            assert!(from.send(b"one", None).unwrap() && from.send(b"two", Some(memory.shared())).unwrap());
            from.ring();
            assert_eq!([next(to), next(to), next(to)], ["one", "two with a descriptor", "Ring"]);
        }
        drop(mine);
        assert_eq!(next(&its), "HungUp");
        assert!(its.is_hung_up() && !at_second.is_hung_up());
        assert!(its.send(b"late", None).is_ok(), "they may not know yet");
        its.hang_up();
        assert!(its.send(b"too late", None).is_err());
        at_second.ring();
        assert_eq!(next(&second), "Ring", "the others go on");
        drop((second, reverse));
        assert_eq!(next(&at_reverse), "HungUp");
        assert!(both.ours.is_usable());
        drop(at_reverse);
        until(|| (!both.theirs.is_usable()).then_some(()));
        assert!(socket::is_hung_up(&both.sockets[1]), "with the last channel the pair ends");
        assert!(Channel::open(&both.ours, &call("d"), None).is_err());
        assert!(Channel::open(&both.theirs, &call("d"), None).is_err());
        drop(at_second);
    }

    #[test]
    fn owners_are_told_of_what_is_there_and_of_what_comes() {
        let both = Both::new(true);
        let mine = both.open("a");
        let (its, _) = both.called_there.take("a");
        assert!(its.send(b"early", None).unwrap());
        until(|| mine.wire.has_news().then_some(()));
        let told = Arc::new(AtomicUsize::new(0));
        let counting = Arc::clone(&told);
        mine.listen(move || {
            counting.fetch_add(1, Ordering::Relaxed);
        });
        until(|| (told.load(Ordering::Relaxed) == 1).then_some(()));
        assert_eq!(next(&mine), "early");
        its.ring();
        until(|| (told.load(Ordering::Relaxed) == 2).then_some(()));
        drop(its);
        until(|| (told.load(Ordering::Relaxed) == 3).then_some(()));
        assert_eq!([next(&mine), next(&mine)], ["Ring", "HungUp"]);
    }

    #[test]
    fn a_flood_or_nonsense_in_one_channel_is_nothing_to_the_others() {
        let both = Both::new(true);
        let channels = ["flood", "nonsense", "good"].map(|name| both.open(name));
        let [flood, nonsense, good] = ["flood", "nonsense", "good"].map(|name| both.called_there.take(name).0);
        for _ in 0..=MOST {
            until(|| flood.send(b"x", None).unwrap().then_some(()));
        }
        let number = 2u32.to_le_bytes();
        let packet = [&[77], &number[..]].concat();
        assert!(socket::send(&both.sockets[1], &packet, None).unwrap());
        assert!(good.send(b"good", None).unwrap());
        assert_eq!(next(&channels[2]), "good");
        assert_eq!(next(&channels[0]), "more packets than are read");
        assert_eq!(next(&channels[1]), "a packet that makes no sense");
        let [flooded, confused, fine] = channels;
        drop((flooded, confused));
        assert_eq!([next(&flood), next(&nonsense)], ["HungUp", "HungUp"]);
        fine.ring();
        assert_eq!(next(&good), "Ring");
    }

    #[test]
    fn what_belongs_to_no_channel_ends_the_pair() {
        let longest = [0; MAX_PACKET + 1];
        let unopened = [&[1], &8u32.to_le_bytes()[..]].concat();
        let twice = [&[0], &0u32.to_le_bytes()[..]].concat();
        for packet in [&[][..], &[1, 0, 0], &longest, &unopened, &twice] {
            let both = Both::new(true);
            let mine = both.open("a");
            let (its, _) = both.called_there.take("a");
            assert!(socket::send(&both.sockets[0], packet, None).unwrap());
            let told = next(&its);
            assert!(told.contains("packet") || told.contains("channel"), "{told}");
            assert!(!its.is_hung_up(), "what it holds stays its own until it hangs up");
            assert!(!both.theirs.is_usable());
            drop(mine);
            until(|| its.is_hung_up().then_some(()));
            assert_eq!(next(&its), "HungUp");
        }
    }

    #[test]
    fn a_full_socket_keeps_rings_and_closings() {
        let both = Both::new(false);
        let [first, second, third] = ["a", "b", "c"].map(|name| both.open(name));
        let block = [0; MAX_PACKET / 2];
        while first.send(&block, None).unwrap() {}
        second.ring();
        third.hang_up();
        assert!(Channel::open(&both.ours, &call("d"), None).unwrap().is_none());
        assert!(third.send(b"", None).is_err());
        both.theirs.attend().unwrap();
        let [full, rung, closed] = ["a", "b", "c"].map(|name| both.called_there.take(name).0);
        assert_eq!(next(&rung), "Ring");
        assert_eq!(next(&closed), "HungUp");
        assert!(!full.is_hung_up());
        drop((first, second));
        until(|| (!both.theirs.is_usable()).then_some(()));
    }

    #[test]
    fn who_needs_a_packet_at_once_leaves_those_of_others_to_them() {
        let both = Both::new(false);
        let [first, second] = ["a", "b"].map(|name| both.open(name));
        both.theirs.attend().unwrap();
        let [its_first, its_second] = ["a", "b"].map(|name| both.called_there.take(name).0);
        let told = Arc::new(AtomicUsize::new(0));
        let counting = Arc::clone(&told);
        second.listen(move || {
            counting.fetch_add(1, Ordering::Relaxed);
        });
        for _ in 0..100 {
            assert!(its_second.send(b"other", None).unwrap() && its_first.send(b"own", None).unwrap());
            until(|| {
                first.pump();
                text(first.take())
            });
        }
        until(|| (told.load(Ordering::Relaxed) > 0).then_some(()));
        assert_eq!((0..100).map(|_| next(&second)).filter(|said| said == "other").count(), 100);
    }

    #[test]
    fn packets_for_a_channel_that_was_closed_here_are_dropped() {
        let both = Both::new(true);
        let [first, second] = ["a", "b"].map(|name| both.open(name));
        let [its_first, its_second] = ["a", "b"].map(|name| both.called_there.take(name).0);
        drop(first);
        let memory = OwnedSegment::new("test", 4096).unwrap();
        assert!(its_first.send(b"late", Some(memory.shared())).unwrap());
        its_first.ring();
        assert!(its_second.send(b"fine", None).unwrap());
        assert_eq!(next(&second), "fine");
        assert!(both.ours.is_usable());
    }

    #[test]
    fn the_answer_of_another_version_reaches_all_who_asked() {
        let meeting = meet_in_private();
        let (_, handle) = service::connect("t").unwrap();
        let (one, other) = socket::pair().unwrap();
        let pair = Pair::new(Arc::new(one), Side::Connected, None, Arc::<Called>::default(), &handle);
        let pair = pair.unwrap();
        assert!(pair.visit());
        pair.attend().unwrap();
        let channels = ["a", "b"].map(|name| open(&pair, name));
        assert!(socket::send(&other, b"another version", None).unwrap());
        for channel in &channels {
            assert_eq!([next(channel), next(channel)], ["another version", "HungUp"]);
        }
        assert!(!pair.is_usable());
        drop((channels, meeting));
    }

    /// A process that closes its last endpoint keeps messages, and their channels, but nobody reads any more.
    #[test]
    fn what_nobody_will_read_is_not_kept() {
        let both = Both::new(true);
        let (one, other) = socket::pair().unwrap();
        let (theirs, called) = (Arc::new(other), Arc::<Called>::default());
        let make = |socket, side, answers: &Arc<Called>| {
            Pair::new(socket, side, None, Arc::clone(answers) as _, &both._handle).unwrap()
        };
        let ours = make(Arc::new(one), Side::Connected, &Arc::default());
        let attendant = ours.adopt(u64::MAX);
        assert!(matches!(socket::receive(&theirs, &mut [0; MAX_PACKET]), Ok(Received::Packet(..))));
        let theirs = make(theirs, Side::Accepted, &called);
        theirs.attend().unwrap();
        let (mine, (its, _)) = (open(&ours, "a"), called.take("a"));
        mine.stop_receiving();
        drop(attendant);
        until(|| its.send(b"x", None).is_err().then_some(()));
        assert!(!theirs.is_usable() && !ours.is_usable(), "no new channels are opened on it");
        assert!(!its.is_hung_up());
        drop(mine);
        assert_eq!(next(&its), "HungUp", "but the end is heard");
    }

    /// A stranger's end, and what it may say of the channel of that number.
    struct Stranger(OwnedFd);

    impl Stranger {
        fn says(&self, kind: u8, number: usize, passed: Option<BorrowedFd<'_>>) -> bool {
            let packet = [&[kind], &(number as u32).to_le_bytes()[..]].concat();
            socket::send(&self.0, &packet, passed).unwrap()
        }

        fn opens(&self, number: usize) -> bool {
            self.says(0, number, None)
        }

        /// The number of a channel whose end it is told next.
        fn hears_end(&self) -> Option<usize> {
            let mut packet = [0; MAX_PACKET];
            match socket::receive(&self.0, &mut packet).unwrap() {
                Received::Packet(5, None) if packet[0] == 3 => {
                    Some(u32::from_le_bytes(packet[1..5].try_into().unwrap()) as usize)
                }
                _ => None,
            }
        }
    }

    fn stranger() -> (Stranger, Arc<Pair>) {
        let (end, pair) = beside_stranger();
        assert!(matches!(socket::receive(&end, &mut [0; MAX_PACKET]), Ok(Received::Packet(..))));
        (Stranger(end), pair)
    }

    #[test]
    fn a_peer_that_opens_too_many_channels_gets_no_more() {
        let (stranger, pair) = stranger();
        let mut kept: Vec<_> = (0..MOST_CHANNELS)
            .map(|number| {
                assert!(stranger.opens(2 * number));
                Channel::of(&pair, pair.next_call().expect("there is room"))
            })
            .collect();
        assert!(stranger.opens(2 * MOST_CHANNELS));
        assert!(pair.next_call().is_none());
        assert_eq!(stranger.hears_end(), Some(2 * MOST_CHANNELS));
        assert!(stranger.says(2, 2 * MOST_CHANNELS, None), "it may not know yet");
        kept.remove(0);
        assert_eq!(stranger.hears_end(), Some(0));
        assert!(stranger.opens(2 * MOST_CHANNELS + 2));
        kept.push(Channel::of(&pair, pair.next_call().expect("there is room again")));
        assert!(pair.is_usable());
        // It goes on, and does not read the answers.
        let mut number = MOST_CHANNELS + 2;
        while pair.is_usable() {
            stranger.opens(2 * number);
            assert!(pair.next_call().is_none());
            number += 1;
            assert!(number < 2 * MOST_CHANNELS, "without end");
        }
    }

    #[test]
    fn a_peer_that_reads_no_closings_is_owed_only_so_many() {
        let (stranger, pair) = stranger();
        let mut number = 0;
        while pair.is_usable() {
            stranger.opens(2 * number);
            if let Some(wire) = pair.next_call() {
                drop(Channel::of(&pair, wire));
            }
            number += 1;
            assert!(number < 2 * MOST_CHANNELS, "without end");
        }
        assert!(number > MOST_CHANNELS);
    }

    #[test]
    fn want_of_descriptors_holds_up_only_those_who_want_the_packet() {
        let (stranger, pair) = stranger();
        let memory = OwnedSegment::new("test", 4096).unwrap();
        let channels = [0, 2, 4].map(|number| {
            stranger.opens(number);
            Channel::of(&pair, pair.next_call().expect("a call"))
        });
        let [closed, deaf, other] = channels;
        drop(closed);
        deaf.stop_receiving();
        socket::shortage::of_descriptors(true);
        for number in [0, 2] {
            assert!(stranger.says(1, number, Some(memory.shared())));
        }
        assert!(stranger.says(2, 4, Some(memory.shared())), "nobody passes a descriptor with a ring");
        assert!(other.pump());
        assert_eq!(text(other.take()).as_deref(), Some("Ring"));
        assert!(stranger.says(1, 4, Some(memory.shared())));
        assert!(!other.pump());
        assert_eq!(text(other.take()).as_deref(), Some("OutOfDescriptors"));
        socket::shortage::of_descriptors(false);
        assert!(other.pump());
        assert_eq!(text(other.take()).as_deref(), Some(" with a descriptor"));
        assert!(pair.is_usable());
    }

    #[test]
    fn who_is_called_hears_that_there_is_no_descriptor_for_it() {
        let both = Both::new(false);
        let memory = OwnedSegment::new("test", 4096).unwrap();
        let first = both.open_with("a", Some(memory.shared()));
        socket::shortage::of_descriptors(true);
        let _ = both.theirs.run(tasks::Event::Ready);
        socket::shortage::of_descriptors(false);
        let (name, its, passed) = both.called_there.0.lock().pop().expect("a call");
        assert_eq!((&*name, passed.unwrap_err().raw_os_error()), ("a", Some(libc::EMFILE)));
        drop(its);
        assert_eq!(next(&first), "HungUp", "it can try again");
        both.theirs.attend().unwrap();
        let second = both.open_with("b", Some(memory.shared()));
        assert!(both.called_there.take("b").1.is_some());
        drop((first, second));
    }

    /// The service thread is slow with one channel, while another thread reads the socket for a second one.
    #[test]
    fn a_channel_whose_owner_is_about_to_be_told_does_not_overflow() {
        let (stranger, pair) = stranger();
        let [slow, told, own] = [0, 2, 4].map(|number| {
            stranger.opens(number);
            Arc::new(Channel::of(&pair, pair.next_call().expect("a call")))
        });
        let stranger = Arc::new(stranger);
        let (sent, taken): (Arc<AtomicUsize>, Arc<AtomicUsize>) = Default::default();
        let (says, pumps, counting) = (Arc::clone(&stranger), Arc::downgrade(&own), Arc::clone(&sent));
        slow.listen(move || {
            let Some(own) = pumps.upgrade() else { return };
            // Until that thread leaves the rest in the socket.
            while counting.load(Ordering::Relaxed) < 2 * MOST && says.says(1, 2, None) {
                counting.fetch_add(1, Ordering::Relaxed);
                own.pump();
            }
        });
        let (counting, takes) = (Arc::clone(&taken), Arc::downgrade(&told));
        told.listen(move || {
            while let Some(Ok(Said::Packet(..))) = takes.upgrade().map(|told| told.take()) {
                counting.fetch_add(1, Ordering::Relaxed);
            }
        });
        assert!(stranger.says(2, 0, None) && stranger.says(2, 2, None));
        for _ in 0..2 * MOST {
            let _ = pair.run(tasks::Event::Ready);
        }
        assert_eq!(text(told.take()), None, "it is as it was");
        assert_eq!(taken.load(Ordering::Relaxed), sent.load(Ordering::Relaxed));
        assert!(sent.load(Ordering::Relaxed) > inbox::MANY);
        drop(slow);
    }
}
