//! What an endpoint does when a subscriber sends something or ends, and when the service thread comes to what a line asked for.

use crate::link::channel::Channel;
use crate::link::handshake::{self, ToPublisher};
use crate::link::inbox::Said;
use crate::sys::socket;
use crate::writer::errands::Errands;
use crate::writer::line::{Line, Rings};
use crate::writer::owner::Owner;
use crate::writer::store::Store;
use crate::writer::waker::Waker;
use rustix::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

/// Reads what a subscriber sent: rings, as a rule, or the end.
pub(crate) fn answer(owner: &dyn Owner, line: u32, peer: u64, channel: &Channel, rings: &Rings) {
    let mut is_rung = false;
    loop {
        match channel.take() {
            Ok(Said::Ring) => is_rung = true,
            Ok(Said::Nothing | Said::OutOfDescriptors) => break, // It does without a bell until there is room for one.
            Ok(Said::HungUp) => return lose(owner, line, peer, true),
            Ok(Said::Packet(packet, passed)) => {
                if !take_bell(owner, line, peer, channel, &packet, passed) {
                    return turn_away(owner, line, peer, channel);
                }
            }
            Err(_) => return turn_away(owner, line, peer, channel),
        }
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

/// A subscriber has passed what it wants to be woken by; `false`: it is something else.
fn take_bell(
    owner: &dyn Owner,
    line: u32,
    peer: u64,
    channel: &Channel,
    packet: &[u8],
    passed: Option<OwnedFd>,
) -> bool {
    let Some(ToPublisher::Bell { number }) = handshake::decode_to_publisher(packet) else { return false };
    let Some(passed) = passed.filter(|passed| socket::is_bell(passed)) else { return false };
    let bell = channel.pair().bell(number, passed);
    owner.at_line(line, |_, line| {
        if let Some(index) = line.position_of(peer) {
            line.peers[index].bell = Some(bell);
        }
    });
    true
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

    fn lose(&self, line: u32, peer: u64, hung_up: bool) {
        lose(self, line, peer, hung_up);
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
}
