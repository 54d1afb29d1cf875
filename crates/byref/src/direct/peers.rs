//! Who is there: the mailboxes that a pattern matches, and waiting for one to come.

use crate::direct::asking::{Answer, Connected, Question};
use crate::direct::identity::Identity;
use crate::direct::mailbox::{CANNOT_ASK, Mailbox, Shared};
use crate::error::{Error, Result};
use crate::link::handshake::Wish;
use crate::link::names;
use crate::link::rendezvous;
use crate::sync::changes::Ended;
use crate::sync::wait::Wait;
use crate::topic;
use std::time::{Duration, Instant};

/// Time for the answer of a mailbox that is asked who it is.
const TIME_TO_ANSWER: Duration = Duration::from_millis(200);
/// The same where a message depends on it: what is sent to all passes by a mailbox that does not answer. One that was silent for so long
/// has [`TIME_TO_ANSWER`] from then on, until it answers.
const TIME_TO_ANSWER_A_SENDER: Duration = Duration::from_secs(5);
/// Who waits asks all again after so many looks at the directory: one may have been too busy to answer.
const LOOK_ANYWAY: u32 = 50;
/// The most mailboxes that are asked at a time.
const ASKED_AT_ONCE: usize = 64;

/// A mailbox that has not said yet who it is.
struct Asked {
    name: String,
    /// Absent where it could not be put.
    question: Option<Question>,
    since: Instant,
}

/// Finding out who is behind the names that a pattern may match, while what is sent goes to those who are known.
pub(super) struct Inquiry<'a> {
    shared: &'a Shared,
    pattern: &'a str,
    /// Not asked yet.
    left: Vec<String>,
    asked: Vec<Asked>,
}

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
            let mut asked = Vec::new();
            for name in names {
                asked.extend(self.ask(name.clone())?);
            }
            self.hear(&mut asked, TIME_TO_ANSWER, &mut found)?;
        }
        let own = self.identity.incarnation();
        found.retain(|peer| topic::matches(pattern, peer.address()) && peer.incarnation() != own);
        Ok(found)
    }

    /// The names of other mailboxes whose addresses a pattern may match.
    fn names_like(&self, pattern: &str) -> Result<Vec<String>> {
        let own = names::mailbox_name(self.address());
        if !topic::is_pattern(pattern) {
            let name = names::mailbox_name(pattern);
            return Ok(if name == own { Vec::new() } else { vec![name] });
        }
        let directory = self.lookout.directory();
        let names =
            directory.mailboxes().map_err(Error::meeting(self.address(), directory.path(), rendezvous::CANNOT_LIST))?;
        let roster = self.roster.lock();
        let may_match =
            |name: &String| roster.addresses.get(name).is_none_or(|address| topic::matches(pattern, address));
        Ok(names.into_iter().filter(|name| *name != own && may_match(name)).collect())
    }

    /// The addresses of other mailboxes that a pattern matches, as far as they are known, and an inquiry for the others. Some of them may
    /// have ended.
    pub(super) fn addresses_like<'a>(&'a self, pattern: &'a str) -> Result<(Vec<String>, Inquiry<'a>)> {
        let mut inquiry = Inquiry { shared: self, pattern, left: Vec::new(), asked: Vec::new() };
        if !topic::is_pattern(pattern) {
            let addresses = if pattern == self.address() { Vec::new() } else { vec![pattern.to_owned()] };
            return Ok((addresses, inquiry));
        }
        let names = self.names_like(pattern)?;
        let mut addresses = Vec::new();
        let roster = self.roster.lock();
        for name in names {
            match roster.addresses.get(&name) {
                Some(address) => addresses.push(address.to_string()),
                None => inquiry.left.push(name),
            }
        }
        drop(roster);
        Ok((addresses, inquiry))
    }

    /// Asks whoever has this name; `None`: there is nobody.
    fn ask(&self, name: String) -> Result<Option<Asked>> {
        let mut asked = Asked { name, question: None, since: Instant::now() };
        Ok(self.put(&mut asked)?.then_some(asked))
    }

    /// Puts the question; `false`: there is nobody.
    fn put(&self, to: &mut Asked) -> Result<bool> {
        let failed = || Error::system(self.address(), CANNOT_ASK);
        let Some(connected) = Connected::to(&self.lookout.directory(), &to.name).map_err(failed())? else {
            return Ok(false);
        };
        to.question = connected.ask(Wish::Who).map_err(failed())?;
        Ok(true)
    }

    /// Takes out those who answer within this time, and remembers their addresses.
    fn hear(&self, asked: &mut Vec<Asked>, time: Duration, found: &mut Vec<Identity>) -> Result<()> {
        let began = Instant::now();
        let mut failure = None;
        asked.retain(|one| {
            let Some(question) = &one.question else { return true };
            match question.answer(time.saturating_sub(began.elapsed())) {
                Ok(None) => return true,
                Ok(Some(Answer::Here(peer))) if names::mailbox_name(peer.address()) == one.name => {
                    let mut roster = self.roster.lock();
                    roster.addresses.insert(one.name.clone(), peer.address().into());
                    roster.silent.remove(&one.name);
                    found.push(peer);
                }
                Ok(Some(_)) => {}
                Err(error) => failure = Some(error),
            }
            false
        });
        failure.map_or(Ok(()), |error| Err(Error::system(self.address(), CANNOT_ASK)(error)))
    }
}

impl Inquiry<'_> {
    /// Asks those who can be asked by now; gives the addresses that match of those who have answered.
    pub fn step(&mut self) -> Result<Vec<String>> {
        let shared = self.shared;
        let mut index = 0;
        while index < self.asked.len() {
            let is_there = self.asked[index].question.is_some() || shared.put(&mut self.asked[index])?;
            if is_there {
                index += 1;
            } else {
                self.asked.swap_remove(index);
            }
        }
        while self.asked.len() < ASKED_AT_ONCE
            && let Some(name) = self.left.pop()
        {
            self.asked.extend(shared.ask(name)?);
        }
        let mut found = Vec::new();
        shared.hear(&mut self.asked, Duration::ZERO, &mut found)?;
        let mut roster = shared.roster.lock();
        self.asked.retain(|one| {
            let is_silent = roster.silent.contains(&one.name);
            let time = if is_silent { TIME_TO_ANSWER } else { TIME_TO_ANSWER_A_SENDER };
            let is_late = one.since.elapsed() >= time;
            if is_late && !is_silent {
                roster.silent.insert(one.name.clone());
            }
            !is_late
        });
        let addresses = found.iter().map(Identity::address).filter(|address| topic::matches(self.pattern, address));
        Ok(addresses.map(str::to_owned).collect())
    }

    /// Whether nobody is left to be asked, or to answer.
    pub fn is_over(&self) -> bool {
        self.left.is_empty() && self.asked.is_empty()
    }
}
