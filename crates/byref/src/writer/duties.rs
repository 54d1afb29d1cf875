//! What an endpoint does when a subscriber sends something or ends, and when the service thread comes to what a line asked for.

use crate::sys::socket::{self, MAX_PACKET, Received};
use crate::writer::errands::Errands;
use crate::writer::line::Line;
use crate::writer::owner::Owner;
use crate::writer::store::Store;
use crate::writer::waker::Waker;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Reads what a subscriber sent: rings, or the end.
pub(crate) fn answer(owner: &dyn Owner, line: u32, peer: u64) {
    let socket = |line: &Line| line.position_of(peer).map(|index| Arc::clone(&line.peers[index].socket));
    let Some(socket) = owner.at_line(line, |_, line| socket(line)).flatten() else { return };
    let mut packet = [0u8; MAX_PACKET];
    // As many as a subscriber can have sent in good faith; a flood is looked at again later.
    for _ in 0..16 {
        match socket::receive(&socket, &mut packet) {
            Ok(Received::Packet(..)) => {}
            Ok(Received::HungUp) if socket::is_hung_up(&socket) => return lose(owner, line, peer, true),
            Err(error) if error.kind() != io::ErrorKind::InvalidData => break, // The system's own trouble.
            Ok(Received::Empty | Received::OutOfDescriptors) => break,
            // An empty packet, or one that is too long. Its holds are its own until it hangs up.
            Ok(Received::HungUp) | Err(_) => return turn_away(owner, line, peer, "sent what no subscriber sends"),
        }
    }
    owner.at_line(line, |_, line| line.look_at_awaited()); // After the reading: it may have been about them.
}

/// Disconnects a subscriber that broke the rules.
fn turn_away(owner: &dyn Owner, line: u32, peer: u64, why: &str) {
    let turn_away = |line: &mut Line| {
        if let Some(index) = line.position_of(peer).filter(|index| !line.peers[*index].evicted) {
            line.evict(index, why);
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

    fn hear(&self, line: u32, peer: u64) {
        answer(self, line, peer);
        (self as &dyn Owner).at_line(line, |_, line| line.was_heard());
    }

    fn look_at_awaited(&self, line: u32) -> bool {
        let look = |line: &mut Line| {
            if line.is_listening() {
                line.look_at_awaited();
            }
            line.is_listening()
        };
        (self as &dyn Owner).at_line(line, |_, line| look(line)).unwrap_or(false)
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
