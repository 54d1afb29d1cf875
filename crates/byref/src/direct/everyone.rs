//! Sending to every mailbox that a pattern matches: one copy in memory, one record for each.

use crate::attributes::Beside;
use crate::direct::identity::Identity;
use crate::direct::mailbox::{Mailbox, Shared};
use crate::direct::route::{Opening, To};
use crate::error::{Error, Result};
use crate::memory::glossary::Entry;
use crate::memory::pool::Chunk;
use crate::pubsub::form::{self, Single};
use crate::pubsub::loan::{Lender, Loan};
use crate::reader::sender::PublisherInfo;
use crate::sync::changes::Ended;
use crate::sync::locks::Mutex;
use crate::sync::wait::Wait;
use crate::topic;
use crate::writer::append::{self, Filled};
use crate::writer::attempt::Attempt;
use crate::writer::line::Line;
use crate::writer::owner::Owner;
use crate::writer::store::Store;
use std::sync::Arc;
use std::time::Duration;

/// Time between two looks for room at those that are full.
const LOOK_FOR_ROOM: Duration = Duration::from_millis(1);

/// All mailboxes that a pattern matches, when something is sent: what [`Mailbox::to_all`] gives.
#[derive(Clone)]
pub struct Everyone(Arc<All>);

/// What it shares with its loans.
struct All {
    shared: Arc<Shared>,
    pattern: Box<str>,
    /// To whom the last loan went.
    reached: Mutex<Vec<Identity>>,
}

impl Mailbox {
    /// All other mailboxes whose addresses match a pattern at the moment when something is sent.
    pub fn to_all(&self, pattern: &str) -> Result<Everyone> {
        topic::validate_pattern(pattern)?;
        let (shared, pattern) = (Arc::clone(&self.shared), pattern.into());
        Ok(Everyone(Arc::new(All { shared, pattern, reached: Mutex::default() })))
    }

    /// Sends a copy of `payload` to all other mailboxes whose addresses match a pattern; gives those that it was sent to. It waits
    /// without limit for those that are full, while the others have it already; one that ends meanwhile is not among them. Nor is one
    /// that does not say within 5 s which address it has; it is asked once.
    pub fn send_to_all(&self, pattern: &str, payload: &[u8]) -> Result<Vec<Identity>> {
        self.to_all(pattern)?.send_with(payload, Beside::NOTHING, &mut Wait::up_to(None))
    }
}

impl Everyone {
    /// [`Mailbox::send_to_all`] with what is to be beside the payload. Those that have no room in time are not among those that it gives.
    pub fn send_with(&self, payload: &[u8], beside: Beside<'_>, wait: &mut Wait<'_>) -> Result<Vec<Identity>> {
        // Several threads may be at it, each to be told whom its own message reached.
        let All { shared, pattern, .. } = &*self.0;
        let all = Arc::new(All { shared: Arc::clone(shared), pattern: pattern.clone(), reached: Mutex::default() });
        form::send(&all, Single, payload, beside, wait)?;
        Ok(std::mem::take(&mut *all.reached.lock()))
    }

    /// Lends `len` bytes with room for `attributes_len` bytes of encoded attributes, to be filled in place and sent to all.
    pub fn loan_with(&self, len: usize, attributes_len: usize, wait: &mut Wait<'_>) -> Result<Loan> {
        Loan::take_from(Arc::clone(&self.0) as _, len, attributes_len, wait)
    }

    /// To whom the last loan of this went.
    pub fn reached(&self) -> Vec<Identity> {
        self.0.reached.lock().clone()
    }

    /// The address of the mailbox that sends.
    pub fn sender(&self) -> &str {
        self.0.shared.address()
    }

    /// [`Publisher::explain`](crate::Publisher::explain), for all mailboxes that are sent to.
    pub fn explain(&self, bytes: &[u8]) -> Result<Option<Entry>> {
        self.0.shared.explain(bytes)
    }
}

/// One of those to send to.
struct One<'a> {
    to: To,
    /// Its line is not there yet.
    opening: Option<Opening<'a>>,
}

impl All {
    /// Has a record appended on the line to each. Gives whom it reached, also when it fails.
    fn send(
        &self,
        wait: &mut Wait<'_>,
        append: &mut dyn FnMut(&mut Store, &mut Line) -> Attempt<u64>,
    ) -> (Vec<Identity>, Result<()>) {
        let mut reached = Vec::new();
        let outcome = self.reach(wait, append, &mut reached);
        reached.sort_by(|one, other| one.address().cmp(other.address()));
        self.reached.lock().clone_from(&reached);
        (reached, outcome)
    }

    fn reach(
        &self,
        wait: &mut Wait<'_>,
        append: &mut dyn FnMut(&mut Store, &mut Line) -> Attempt<u64>,
        reached: &mut Vec<Identity>,
    ) -> Result<()> {
        let shared = &*self.shared;
        shared.opened(&mut shared.lock()?)?;
        if !wait.is_allowed() {
            return Err(Error::WouldBlock { topic: shared.address().to_owned() }); // Who is there has to be found out.
        }
        let one = |address| One { to: To::from(address), opening: None };
        let (known, mut inquiry) = shared.addresses_like(&self.pattern)?;
        let mut left: Vec<_> = known.into_iter().map(one).collect();
        let ended = shared.changed.until_or_every(LOOK_FOR_ROOM, wait, || {
            left.extend(inquiry.step()?.into_iter().map(one));
            let mut failure = None;
            left.retain_mut(|one| match self.try_one(one, append) {
                Ok(None) => true,
                Ok(Some(peer)) => {
                    reached.push(peer);
                    false
                }
                Err(Error::Unroutable { .. } | Error::PeerLost { .. }) => false,
                Err(error) => {
                    failure.get_or_insert(error);
                    false
                }
            });
            failure.map_or(Ok(left.is_empty() && inquiry.is_over()), Err)
        })?;
        match ended {
            Ended::Interrupted => Err(Error::Interrupted { topic: shared.address().to_owned() }),
            Ended::Done | Ended::TimedOut => Ok(()),
        }
    }

    /// Sends to one if there is room; `None`: it has to be tried again.
    fn try_one<'a>(
        &'a self,
        one: &mut One<'a>,
        append: &mut dyn FnMut(&mut Store, &mut Line) -> Attempt<u64>,
    ) -> Result<Option<Identity>> {
        let shared = &*self.shared;
        {
            let mut guard = shared.lock()?;
            let open = shared.opened(&mut guard)?;
            if let Some(index) = open.line_to(one.to.address(), None) {
                let line = &mut open.lines[index];
                return match append(&mut open.store, line) {
                    Attempt::Done(_) => Ok(Some(open.destinations[index].peer.clone())),
                    Attempt::Fail(error) => Err(error),
                    Attempt::Wait { .. } if line.is_read() => Ok(None),
                    Attempt::Wait { .. } => {
                        line.look_at_reader();
                        drop(guard);
                        shared.part_from_departed();
                        Ok(None) // There may be another one by now.
                    }
                };
            }
        }
        let opening = one.opening.get_or_insert_with(|| Opening::new(shared, one.to.clone(), Duration::ZERO));
        if opening.step()? {
            one.opening = None;
            return self.try_one(one, append);
        }
        Ok(None)
    }
}

impl Lender for All {
    fn info(&self) -> &Arc<PublisherInfo> {
        self.shared.identity.info()
    }

    fn check_fork(&self) -> Result<()> {
        self.shared.check_fork()
    }

    fn owner(self: Arc<Self>) -> Arc<dyn Owner> {
        Arc::clone(&self.shared) as _
    }

    fn allocate(&self, bytes: u64, payload: u64, wait: &mut Wait<'_>) -> Result<Chunk> {
        self.shared.allocate(None, bytes, payload, wait)
    }

    fn discard(&self, slot: u32) {
        self.shared.discard(slot);
    }

    fn next_sequence(&self) -> Result<u64> {
        self.shared.opened(&mut self.shared.lock()?).map(|_| 0)
    }

    fn commit_inline(&self, payload: &[u8], beside: Beside<'_>, wait: &mut Wait<'_>) -> Result<u64> {
        let (reached, outcome) = self.send(wait, &mut |_, line| append::inline(line, payload, beside));
        outcome.map(|()| reached.len() as u64)
    }

    fn commit(&self, filled: &Filled<'_>, timestamp_ns: Option<u64>, wait: &mut Wait<'_>) -> Result<Result<u64>> {
        let append = &mut |store: &mut Store, line: &mut Line| append::pooled(store, line, filled, timestamp_ns);
        let (reached, outcome) = self.send(wait, append);
        if reached.is_empty() {
            outcome?;
            self.shared.discard(filled.chunk.slot); // It was sent to nobody; the loan takes it for sent.
            return Ok(Ok(0));
        }
        Ok(outcome.map(|()| reached.len() as u64))
    }
}
