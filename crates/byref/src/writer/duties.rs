//! What an endpoint does when a subscriber sends something or ends, and when the service thread comes to what a line asked for.

use crate::link::channel::Channel;
use crate::link::handshake::{self, ToPublisher};
use crate::link::inbox::Said;
use crate::sys::socket;
use crate::writer::errands::Errands;
use crate::writer::line::Line;
use crate::writer::owner::Owner;
use crate::writer::rings::Rings;
use crate::writer::store::Store;
use crate::writer::waker::Waker;
use rustix::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

/// The most bells that one subscriber passes. An honest one passes another one if somebody broke the first.
const MOST_BELLS: usize = 16;

/// Reads what a subscriber sent: rings, as a rule, or the end.
pub(crate) fn answer(owner: &dyn Owner, line: u32, peer: u64, channel: &Channel, rings: &Rings) {
    let mut is_rung = false;
    let mut bells = 0;
    let mut bell = None;
    loop {
        match channel.take() {
            Ok(Said::Ring) => is_rung = true,
            Ok(Said::Nothing | Said::OutOfDescriptors) => break, // It does without a bell until there is room for one.
            Ok(Said::Died) => lose(owner, line, peer, false),
            Ok(Said::HungUp) => return lose(owner, line, peer, true),
            Ok(Said::Packet(packet, passed)) => match bell_in(&packet, passed) {
                Some(passed) => {
                    bells += 1;
                    bell = Some(passed);
                }
                None => return turn_away(owner, line, peer, channel),
            },
            Err(_) => return turn_away(owner, line, peer, channel),
        }
    }
    // The last one counts: a flood of them takes the endpoint's lock once in a while.
    if let Some((number, passed)) = bell
        && !take_bell(owner, line, peer, bells, channel.pair().bell(number, passed))
    {
        return turn_away(owner, line, peer, channel);
    }
    if is_rung {
        rings.room.strike();
        fence(Ordering::SeqCst); // Pairs with the one of who begins to wait for a release.
        if rings.awaits.load(Ordering::Relaxed) {
            owner.at_line(line, |_, line| line.look_for_releases());
        }
        owner.rung(line);
    }
}

/// What a subscriber wants to be woken by, and its number; `None`: it says something else.
fn bell_in(packet: &[u8], passed: Option<OwnedFd>) -> Option<(u64, OwnedFd)> {
    let ToPublisher::Bell { number } = handshake::decode_to_publisher(packet)?;
    Some((number, passed.filter(|passed| socket::is_bell(passed))?))
}

/// A subscriber has passed so many more bells, and this one last, if it can be kept; `false`: those are too many.
fn take_bell(owner: &dyn Owner, line: u32, peer: u64, bells: usize, bell: Option<Arc<OwnedFd>>) -> bool {
    let take = |line: &mut Line| {
        let Some(index) = line.position_of(peer) else { return true };
        let peer = &mut line.peers[index];
        (peer.bell, peer.bells) = (bell, peer.bells + bells);
        peer.bells <= MOST_BELLS
    };
    owner.at_line(line, |_, line| take(line)).unwrap_or(true)
}

/// The same for what nobody has read from the socket yet.
#[cfg(all(any(test, fuzzing), not(loom)))]
pub(crate) fn answer_now(owner: &dyn Owner, line: u32, peer: u64) {
    let found = |line: &mut Line| {
        line.position_of(peer).map(|index| (Arc::clone(&line.peers[index].channel), Arc::clone(&line.rings)))
    };
    if let Some((channel, rings)) = owner.at_line(line, |_, line| found(line)).flatten() {
        channel.pump();
        answer(owner, line, peer, &channel, &rings);
    }
}

/// Disconnects a subscriber that broke the rules. Its holds are its own until it hangs up.
fn turn_away(owner: &dyn Owner, line: u32, peer: u64, channel: &Channel) {
    channel.stop_receiving();
    let turn_away = |line: &mut Line| {
        if let Some(index) = line.position_of(peer).filter(|index| !line.peers[*index].evicted) {
            line.evict(index, "sent what no subscriber sends");
        }
    };
    owner.at_line(line, |_, line| turn_away(line));
    owner.changed();
}

/// A subscriber's process died, or (`hung_up`) its connection was seen to have ended: nobody is left who could look at what
/// it holds.
pub(crate) fn lose(owner: &dyn Owner, line: u32, peer: u64, hung_up: bool) {
    let Some(rest) = owner.at_line(line, |_, line| line.lose(peer, hung_up)).flatten() else { return };
    owner.changed();
    rest();
}

impl<T: Owner> Errands for T {
    fn flush_outboxes(&self, line: u32) -> Option<Duration> {
        (self as &dyn Owner).at_line(line, |_, line| line.flush_late_outboxes()).flatten()
    }

    fn hear(&self, line: u32, peer: u64, channel: &Channel, rings: &Rings) {
        answer(self, line, peer, channel, rings);
    }

    fn look_at_awaited(&self, line: u32) -> bool {
        (self as &dyn Owner).at_line(line, |_, line| line.look_once_more()).unwrap_or(false)
    }

    fn give_waker(&self, line: u32, waker: Option<Arc<Waker>>) {
        (self as &dyn Owner).at_line(line, |_, line| line.take_waker(waker));
    }

    fn shrink(&self) -> bool {
        (self as &dyn Owner).within(Store::shrink).unwrap_or(false)
    }

    fn settle_retired(&self) -> bool {
        (self as &dyn Owner).within(Store::settle_late).unwrap_or(false)
    }

    fn readers_changed(&self) {
        Owner::changed(self);
    }
}
