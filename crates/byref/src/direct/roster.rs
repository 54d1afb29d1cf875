//! Who is there: the mailboxes that a pattern matches, and waiting for one to come.

use crate::direct::asking::{Answer, Connected, Question};
use crate::direct::identity::Identity;
use crate::direct::mailbox::{CANNOT_ASK, Mailbox, Shared};
use crate::error::{Error, Result};
use crate::link::handshake::Wish;
use crate::link::rendezvous;
use crate::sync::changes::Ended;
use crate::sync::wait::Wait;
use crate::topic;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Time for the answer of a mailbox that is asked who it is.
const TIME_TO_ANSWER: Duration = Duration::from_millis(200);
/// Who waits asks all again after so many looks at the directory: one may have been too busy to answer.
const LOOK_ANYWAY: u32 = 50;
/// The most mailboxes that are asked at a time.
const ASKED_AT_ONCE: usize = 64;

/// The addresses behind the names in the rendezvous directory: who has one changes, the address of a name does not.
#[derive(Default)]
pub(super) struct Roster(HashMap<String, Box<str>>);

impl Mailbox {
    /// The mailboxes that it is connected to: those that have sent to it, and those that it has sent to, as far as they live.
    pub fn peers(&self) -> Result<Vec<Identity>> {
        self.shared.look_for_ends(|_| true);
        let mut peers = self.shared.inbox.senders()?;
        let mut guard = self.shared.lock()?;
        for peer in self.shared.opened(&mut guard)?.readers() {
            if !peers.iter().any(|known| known.incarnation() == peer.incarnation()) {
                peers.push(peer.clone());
            }
        }
        Ok(peers)
    }

    /// Waits until there is another mailbox with an address that `pattern` is, or matches; gives one of them.
    pub fn wait_for_peer(&self, pattern: &str, timeout: Option<Duration>) -> Result<Identity> {
        self.wait_for_peer_with(pattern, &mut Wait::up_to(timeout))
    }

    /// [`wait_for_peer`](Self::wait_for_peer) with an interruptible wait.
    pub fn wait_for_peer_with(&self, pattern: &str, wait: &mut Wait<'_>) -> Result<Identity> {
        topic::validate_pattern(pattern)?;
        let shared = &*self.shared;
        let (mut found, mut seen, mut looks) = (None, None, 0u32);
        let ended = shared.changed.until(wait, || {
            shared.opened(&mut shared.lock()?)?;
            let directory = shared.lookout.directory();
            // Two changes within one tick of the clock have the same stamp: it looks once more after the last one.
            let stamp = directory.stamp().ok();
            looks += 1;
            let is_due = !topic::is_pattern(pattern) || looks.is_multiple_of(LOOK_ANYWAY);
            if is_due || seen != Some((stamp, true)) {
                seen = Some((stamp, seen == Some((stamp, false))));
                found = shared.who_matches(pattern)?.into_iter().next();
            }
            Ok(found.is_some())
        })?;
        match (ended, found) {
            (Ended::Done, Some(peer)) => Ok(peer),
            (Ended::Interrupted, _) => Err(Error::Interrupted { topic: shared.address().to_owned() }),
            _ => {
                let place = shared.lookout.directory().path().display().to_string();
                let hint = format!("; nobody with an address like '{pattern}' has come in {place}");
                let (what, topic) = ("mailbox wait_for_peer", shared.address().to_owned());
                Err(Error::Timeout { what, topic, waited: wait.given(), hint })
            }
        }
    }
}

impl Shared {
    /// The other mailboxes that a pattern matches, and that answer now.
    fn who_matches(&self, pattern: &str) -> Result<Vec<Identity>> {
        let names = self.names_like(pattern)?;
        let mut found = Vec::new();
        for names in names.chunks(ASKED_AT_ONCE) {
            found.extend(self.ask_who(names)?.into_iter().flatten().filter(|it| topic::matches(pattern, it.address())));
        }
        found.retain(|peer| peer.incarnation() != self.identity.incarnation());
        Ok(found)
    }

    /// The names of other mailboxes whose addresses a pattern may match.
    fn names_like(&self, pattern: &str) -> Result<Vec<String>> {
        let own = rendezvous::mailbox_name(self.address());
        if !topic::is_pattern(pattern) {
            let name = rendezvous::mailbox_name(pattern);
            return Ok(if name == own { Vec::new() } else { vec![name] });
        }
        let directory = self.lookout.directory();
        let names =
            directory.mailboxes().map_err(Error::meeting(self.address(), directory.path(), rendezvous::CANNOT_LIST))?;
        let roster = self.roster.lock();
        let may_match = |name: &String| roster.0.get(name).is_none_or(|address| topic::matches(pattern, address));
        Ok(names.into_iter().filter(|name| *name != own && may_match(name)).collect())
    }

    /// The addresses of other mailboxes that a pattern matches. Some of them may have ended.
    pub(super) fn addresses_like(&self, pattern: &str) -> Result<Vec<String>> {
        if !topic::is_pattern(pattern) {
            return Ok(if pattern == self.address() { Vec::new() } else { vec![pattern.to_owned()] });
        }
        let names = self.names_like(pattern)?;
        let unknown: Vec<_> = {
            let roster = self.roster.lock();
            names.iter().filter(|name| !roster.0.contains_key(*name)).cloned().collect()
        };
        for names in unknown.chunks(ASKED_AT_ONCE) {
            self.ask_who(names)?;
        }
        let roster = self.roster.lock();
        let addresses = names.iter().filter_map(|name| roster.0.get(name));
        Ok(addresses.filter(|address| topic::matches(pattern, address)).map(|address| address.to_string()).collect())
    }

    /// Asks those behind these names who they are, all at once.
    fn ask_who(&self, names: &[String]) -> Result<Vec<Option<Identity>>> {
        let failed = || Error::system(self.address(), CANNOT_ASK);
        let directory = self.lookout.directory();
        let mut questions: Vec<Option<Question>> = Vec::new();
        for name in names {
            let connected = Connected::to(&directory, name).map_err(failed())?;
            questions.push(connected.map_or(Ok(None), |connected| connected.ask(Wish::Who)).map_err(failed())?);
        }
        let began = Instant::now();
        let mut found = Vec::new();
        for (name, question) in names.iter().zip(questions) {
            let left = TIME_TO_ANSWER.saturating_sub(began.elapsed());
            let answer = question.map_or(Ok(None), |question| question.answer(left)).map_err(failed())?;
            found.push(match answer {
                Some(Answer::Here(peer)) if rendezvous::mailbox_name(peer.address()) == *name => {
                    self.roster.lock().0.insert(name.clone(), peer.address().into());
                    Some(peer)
                }
                _ => None,
            });
        }
        Ok(found)
    }
}
