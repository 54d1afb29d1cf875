//! What happens to connections: publishers say something, or end.

use crate::error::{Error, Result};
use crate::protocol::claim::Policy;
use crate::reader::connection::Connection;
use crate::reader::event::EventKind;
use crate::reader::turns::Reader;
use crate::sys::door::Door;
use crate::sys::epoll::READY_AT_ONCE;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// A lossy subscriber keeps the last messages of so many publishers that are gone.
pub(crate) const MOST_GONE: usize = 64;

impl Reader {
    pub fn dismiss(&mut self, over: Connection) {
        fault!("over.noticed");
        let kind = if over.was_closed() { EventKind::Left } else { EventKind::Lost };
        let (topic, pid) = (&over.link.info.topic, over.link.info.pid);
        log::debug!("byref: topic '{topic}': the connection to the publisher in process {pid} is over: {kind:?}");
        self.happened(&over.link.info, kind);
        self.note_end(&over.link.info);
        if over.was_cut_off()
            && let Some(errands) = self.errands.upgrade()
        {
            // One that died refuses, and its name goes. One that lives may have lost the connection, for whatever reason.
            errands.was_cut_off(&self.service, over.candidate.clone());
        }
        self.part_from(over);
    }

    pub fn part_from(&mut self, over: Connection) {
        over.leave();
        if self.bells.len() > 0 {
            self.bells.keep_those_of(&self.connections, &self.door);
        }
    }

    /// Does what receiving does besides, for a subscriber that nobody receives from at the moment: notices ends, reads what
    /// publishers say, and parts from those that are gone and left no message. Whether anything happened, and whether this is to be
    /// done again also if the descriptors say nothing.
    pub fn tidy(&mut self) -> (bool, bool) {
        if self.asleep {
            return (false, true);
        }
        let mut happened = self.look_at_descriptors().unwrap_or(false);
        for connection in &mut self.connections {
            happened |= connection.tidy();
            connection.took_wake = false;
        }
        let (mut used_up, mut lost) = (Vec::new(), self.stats.lost);
        used_up.extend(self.connections.extract_if(.., |connection| connection.is_used_up(&mut lost)));
        self.stats.lost = lost;
        happened |= !used_up.is_empty();
        for over in used_up {
            self.dismiss(over);
        }
        if self.keep.policy != Policy::Block {
            self.forget_oldest();
        }
        self.pass_on(happened);
        (happened, self.connections.iter().any(|connection| !connection.is_live()))
    }

    /// What made the descriptor readable was taken from under the eyes of who polls it: they look again.
    pub fn pass_on(&self, happened: bool) {
        if happened && self.polled {
            self.door.ring();
        }
    }

    /// Who may lose messages loses those of publishers that are gone, beyond the last few of these.
    fn forget_oldest(&mut self) {
        let gone = self.connections.iter().filter(|connection| !connection.is_live()).count();
        for _ in MOST_GONE..gone {
            let Some(at) = self.connections.iter().position(|connection| !connection.is_live()) else { return };
            let mut over = self.connections.remove(at);
            if let Some((first, count)) = over.gap.take() {
                self.happened(&over.link.info, EventKind::Gap { first, count });
            }
            let (first, count) = over.give_up();
            if count > 0 {
                self.stats.lost = self.stats.lost.saturating_add(count);
                self.happened(&over.link.info, EventKind::Gap { first, count });
            }
            self.dismiss(over);
        }
    }

    /// Handles what has happened, without waiting; `true` when there was anything. While a thread sleeps it is left to that.
    pub fn handle_events(&mut self) -> Result<bool> {
        if self.asleep {
            return Ok(false);
        }
        self.look_at_descriptors().map_err(Error::system(&self.topic, "cannot look for events"))
    }

    /// Handles all that is ready now; `true` when anything was.
    pub fn look_at_descriptors(&mut self) -> io::Result<bool> {
        let door = Arc::clone(&self.door);
        let Some(sockets) = door.sockets() else { return Ok(door.hear()) };
        let mut ready = Vec::new();
        // A bell that is rung without end stays ready: no more looks than there are descriptors.
        for look in 0..=2 * self.bells.len() / READY_AT_ONCE {
            ready.clear();
            sockets.epoll.wait(Some(Duration::ZERO), &mut ready)?;
            self.handle(&ready);
            if ready.len() < READY_AT_ONCE {
                return Ok(look > 0 || !ready.is_empty());
            }
        }
        Ok(true)
    }

    /// Something was rung for.
    pub fn handle(&mut self, ready: &[u64]) {
        for &token in ready {
            match token {
                Door::BELL => drop(self.door.hear()),
                number => self.bells.silence(number, &mut self.connections, &self.door),
            }
        }
    }

    /// A publisher has said something, died, or hung up; `true`: it is gone.
    pub fn hear(&mut self, connection: u64) -> bool {
        let Some(connection) = self.connections.iter_mut().find(|found| found.id == connection) else { return false };
        connection.read_news();
        connection.tidy(); // Who receives nothing hears of retired memory here.
        connection.took_wake = false;
        let is_over = !connection.is_live();
        if let Some(error) = connection.short_of.take() {
            let topic = &connection.link.info.topic;
            self.trouble = Some(Error::system(topic, "cannot map a publisher's memory")(error));
        }
        if is_over {
            self.remind();
        }
        self.door.ring();
        is_over
    }

    fn remind(&self) {
        if let Some(errands) = self.errands.upgrade() {
            errands.remind();
        }
    }
}
