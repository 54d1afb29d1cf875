//! Sending to one address: finding who has it, and the line to it.

use crate::attributes::{Beside, Encoded};
use crate::direct::asking::{Answer, Connected, Question};
use crate::direct::identity::Identity;
use crate::direct::mailbox::{CANNOT_ASK, Mailbox, Shared, validate};
use crate::direct::undelivered::{Body, Undelivered};
use crate::error::{Error, Result};
use crate::link::handshake::{self, Wish};
use crate::link::names;
use crate::memory::glossary::Entry;
use crate::memory::pool::Chunk;
use crate::protocol::ring::Descriptor;
use crate::pubsub::form::{self, Form, Single};
use crate::pubsub::loan::{Lender, Loan};
use crate::reader::sender::PublisherInfo;
use crate::sync::changes::Ended;
use crate::sync::wait::Wait;
use crate::writer::append::{self, Filled, fits_inline};
use crate::writer::attempt::{Attempt, Call};
use crate::writer::line::Line;
use crate::writer::owner::Owner;
use crate::writer::room;
use crate::writer::store::{self, Store};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A mailbox that was knocked at and has not collected is knocked at again after this time; each pause is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Whom to send to: an address, whoever has it by now, or one mailbox that had it once.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum To {
    /// Whoever has the address.
    Address(Box<str>),
    /// This mailbox and no later one with its address.
    Peer(Identity),
}

impl From<&str> for To {
    fn from(address: &str) -> Self {
        To::Address(address.into())
    }
}

impl From<String> for To {
    fn from(address: String) -> Self {
        To::Address(address.into())
    }
}

impl From<&String> for To {
    fn from(address: &String) -> Self {
        To::Address(address.as_str().into())
    }
}

impl From<Identity> for To {
    fn from(peer: Identity) -> Self {
        To::Peer(peer)
    }
}

impl From<&Identity> for To {
    fn from(peer: &Identity) -> Self {
        To::Peer(peer.clone())
    }
}

/// The same, borrowed.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// Whoever has the address.
    Address(&'a str),
    /// This mailbox and no later one with its address.
    Peer(&'a Identity),
}

impl<'a> From<&'a str> for Target<'a> {
    fn from(address: &'a str) -> Self {
        Target::Address(address)
    }
}

impl<'a> From<&'a String> for Target<'a> {
    fn from(address: &'a String) -> Self {
        Target::Address(address)
    }
}

impl<'a> From<&'a Identity> for Target<'a> {
    fn from(peer: &'a Identity) -> Self {
        Target::Peer(peer)
    }
}

impl<'a> From<&'a To> for Target<'a> {
    fn from(to: &'a To) -> Self {
        to.target()
    }
}

impl Target<'_> {
    fn address(&self) -> &str {
        match self {
            Target::Address(address) => address,
            Target::Peer(peer) => peer.address(),
        }
    }

    fn incarnation(&self) -> Option<u128> {
        match self {
            Target::Address(_) => None,
            Target::Peer(peer) => Some(peer.incarnation()),
        }
    }

    fn to_owned(self) -> To {
        match self {
            Target::Address(address) => To::from(address),
            Target::Peer(peer) => To::from(peer),
        }
    }
}

impl To {
    pub(super) fn target(&self) -> Target<'_> {
        match self {
            To::Address(address) => Target::Address(address),
            To::Peer(peer) => Target::Peer(peer),
        }
    }

    /// The address.
    pub fn address(&self) -> &str {
        match self {
            To::Address(address) => address,
            To::Peer(peer) => peer.address(),
        }
    }

    pub(super) fn incarnation(&self) -> Option<u128> {
        match self {
            To::Address(_) => None,
            To::Peer(peer) => Some(peer.incarnation()),
        }
    }
}

/// The way from a mailbox to another one: what [`Mailbox::to`] gives. It has the calls of a [`Publisher`](crate::Publisher) that send.
#[derive(Clone)]
pub struct Route(Arc<Way>);

/// What a route and its loans share.
pub(super) struct Way {
    shared: Arc<Shared>,
    to: To,
    /// How long to let the address come.
    come: Duration,
}

/// A message that was not sent, and why.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct SendError<T> {
    /// What was to be sent.
    pub message: T,
    /// Why it was not.
    #[source]
    pub reason: Error,
}

impl Mailbox {
    /// The way to another mailbox, for everything that can be sent: to whoever has an address, or to an [`Identity`].
    pub fn to(&self, to: impl Into<To>) -> Route {
        Route(Arc::new(Way { shared: Arc::clone(&self.shared), to: to.into(), come: Duration::ZERO }))
    }

    /// Sends a copy of `payload`; returns its number among the messages from here to there. Waits for room without limit.
    ///
    /// A call that fails sent nothing.
    pub fn send(&self, to: impl Into<To>, payload: &[u8]) -> Result<u64> {
        self.send_as(Single, &to.into(), payload, Beside::NOTHING, &mut Wait::up_to(None))
    }

    /// Sends a copy of `payload` in that form, with what is to be beside it. Of [`Rows`](crate::Rows) a block counts as one message
    /// against `depth`.
    #[inline]
    pub fn send_as<'a, F: Form>(
        &self,
        form: F,
        to: impl Into<Target<'a>>,
        payload: &[u8],
        beside: Beside<'_>,
        wait: &mut Wait<'_>,
    ) -> Result<F::Sent> {
        let target = to.into();
        if form.count() == 1 && !form.is_pooled() && fits_inline(payload.len(), beside) {
            // Most messages, without a route to be made.
            let beside = form.stamped(beside);
            let sequence = self.shared.append_inline(target, Duration::ZERO, payload, beside, wait)?;
            return Ok(form.of_inline(self.shared.identity.info(), sequence, payload, beside));
        }
        self.to(target.to_owned()).send_as(form, payload, beside, wait)
    }

    /// Sends a message that another mailbox never took, with what was beside it; its payload is not copied if it was sent from
    /// this mailbox. (Rows of a block with headers are.)
    pub fn send_undelivered(&self, to: impl Into<To>, message: Undelivered) -> Result<u64, SendError<Undelivered>> {
        self.send_undelivered_with(&to.into(), message, &mut Wait::up_to(None))
    }

    /// [`send_undelivered`](Self::send_undelivered) with an interruptible wait.
    pub fn send_undelivered_with(
        &self,
        to: &To,
        message: Undelivered,
        wait: &mut Wait<'_>,
    ) -> Result<u64, SendError<Undelivered>> {
        let sent = self.shared.append_undelivered(to, Duration::ZERO, &message, wait);
        sent.map_err(|reason| SendError { message, reason })
    }

    /// Gives the messages that a mailbox which has ended never took, once: from whoever had the address, or from that one. What it had
    /// taken may have been processed.
    pub fn undelivered(&self, peer: impl Into<To>) -> Result<Vec<Undelivered>> {
        let peer = peer.into();
        self.shared.look_for_ends(|known| known.peer.address() == peer.address());
        let mut guard = self.shared.lock()?;
        Ok(self.shared.opened(&mut guard)?.take_undelivered(peer.address(), peer.incarnation()))
    }
}

impl Route {
    /// Lets the address come, for so long, if nobody has it (default: not at all).
    pub fn come_within(self, time: Duration) -> Self {
        let Way { shared, to, .. } = &*self.0;
        Route(Arc::new(Way { shared: Arc::clone(shared), to: to.clone(), come: time }))
    }

    /// Whom it leads to.
    pub fn destination(&self) -> &To {
        &self.0.to
    }

    /// The address of the mailbox that sends.
    pub fn sender(&self) -> &str {
        self.0.shared.address()
    }

    /// [`Publisher::send_as`](crate::Publisher::send_as). Of [`Rows`](crate::Rows) a block counts as one message against `depth`.
    pub fn send_as<F: Form>(
        &self,
        form: F,
        payload: &[u8],
        beside: Beside<'_>,
        wait: &mut Wait<'_>,
    ) -> Result<F::Sent> {
        form::send(&self.0, form, payload, beside, wait)
    }

    /// Sends a message that another mailbox never took; see [`Mailbox::send_undelivered`].
    pub fn send_undelivered(&self, message: &Undelivered, wait: &mut Wait<'_>) -> Result<u64> {
        let Way { shared, to, come } = &*self.0;
        shared.append_undelivered(to, *come, message, wait)
    }

    /// Lends `len` bytes, to be filled in place and sent there without a copy.
    pub fn loan(&self, len: usize) -> Result<Loan> {
        self.loan_with(len, 0, &mut Wait::up_to(None))
    }

    /// [`loan`](Self::loan) with room for `attributes_len` bytes of encoded attributes beside the payload.
    pub fn loan_with(&self, len: usize, attributes_len: usize, wait: &mut Wait<'_>) -> Result<Loan> {
        Loan::take_from(Arc::clone(&self.0) as _, len, attributes_len, wait)
    }

    /// [`Publisher::explain`](crate::Publisher::explain), for all mailboxes that are sent to.
    pub fn explain(&self, bytes: &[u8]) -> Result<Option<Entry>> {
        self.0.shared.explain(bytes)
    }
}

impl Lender for Way {
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
        self.shared.allocate(Some((&self.to, self.come)), bytes, payload, wait)
    }

    fn discard(&self, slot: u32) {
        self.shared.discard(slot);
    }

    /// Sequence numbers are each destination's own; here it only matters whether the mailbox is closed.
    fn next_sequence(&self) -> Result<u64> {
        self.shared.opened(&mut self.shared.lock()?).map(|_| 0)
    }

    fn commit_inline(&self, payload: &[u8], beside: Beside<'_>, wait: &mut Wait<'_>) -> Result<u64> {
        self.shared.append_inline(self.to.target(), self.come, payload, beside, wait)
    }

    fn commit(&self, filled: &Filled<'_>, timestamp_ns: Option<u64>, wait: &mut Wait<'_>) -> Result<Result<u64>> {
        let append = |store: &mut Store, line: &mut Line| append::pooled(store, line, filled, timestamp_ns);
        self.shared.until(self.to.target(), self.come, wait, append).map(Ok)
    }
}

impl Shared {
    #[inline]
    fn append_inline(
        &self,
        to: Target<'_>,
        come: Duration,
        payload: &[u8],
        beside: Beside<'_>,
        wait: &mut Wait<'_>,
    ) -> Result<u64> {
        self.until(to, come, wait, |_, line| append::inline(line, payload, beside))
    }

    fn append_undelivered(
        self: &Arc<Self>,
        to: &To,
        come: Duration,
        message: &Undelivered,
        wait: &mut Wait<'_>,
    ) -> Result<u64> {
        let (timestamp_ns, tag) = (Some(message.timestamp_ns()), message.tag());
        match message.body() {
            Body::Inline(payload, attributes) => self.until(to.target(), come, wait, |_, line| {
                append::inline_tagged(line, payload, attributes, tag, timestamp_ns)
            }),
            Body::Pooled(pooled)
                if message.sender() == self.identity.incarnation()
                    && (pooled.is_whole() || pooled.at.attributes_len == 0) =>
            {
                let (offset, len) = pooled.part;
                let at = Descriptor { offset: pooled.at.offset + offset, len, ..pooled.at };
                fault!("resend.begun");
                self.until(to.target(), come, wait, |store, line| append::again(store, line, at, timestamp_ns))
            }
            Body::Pooled(_) if message.refers() && message.sender() != self.identity.incarnation() => {
                let (own, peer) = (self.address(), message.peer());
                Err(Error::InvalidArgument(format!(
                    "mailbox '{own}': what another mailbox sent to '{}' refers to Arrow types that it alone has told; send it from there",
                    peer.address()
                )))
            }
            Body::Pooled(_) => {
                let attributes = Encoded::copied(message.encoded_attributes(), message.refers());
                let way = Way { shared: Arc::clone(self), to: to.clone(), come };
                form::send(&Arc::new(way), Single, message, Beside { attributes: &attributes, timestamp_ns, tag }, wait)
            }
        }
    }

    /// Makes attempts on the line to an address until one is conclusive; makes that line first if there is none.
    #[inline]
    pub(super) fn until<T>(
        &self,
        to: Target<'_>,
        come: Duration,
        wait: &mut Wait<'_>,
        mut attempt: impl FnMut(&mut Store, &mut Line) -> Attempt<T>,
    ) -> Result<T> {
        loop {
            let mut guard = self.lock()?;
            let open = self.opened(&mut guard)?;
            let Some(index) = open.line_to(to.address(), to.incarnation()) else {
                drop(guard);
                self.open_line(to, come, wait)?;
                continue;
            };
            let line = &mut open.lines[index];
            let number = line.number;
            return match attempt(&mut open.store, line) {
                Attempt::Done(value) => Ok(value),
                Attempt::Fail(error) => Err(error),
                Attempt::Wait { at, poll } => {
                    let peer = open.destinations[index].peer.clone();
                    drop(guard);
                    self.wait_for_room(&peer, number, wait, (at, poll), &mut attempt)
                }
            };
        }
    }

    #[cold]
    fn wait_for_room<T>(
        &self,
        peer: &Identity,
        number: u32,
        wait: &mut Wait<'_>,
        first: (u64, Option<Duration>),
        attempt: &mut dyn FnMut(&mut Store, &mut Line) -> Attempt<T>,
    ) -> Result<T> {
        if peer.incarnation() == self.identity.incarnation() && first.1.is_none() {
            return Err(Error::InvalidArgument(format!(
                "mailbox '{}' is full: {} messages to itself wait in it, and it does not wait for itself; receive first, or make it with \
                 a larger depth",
                self.address(),
                self.depth
            )));
        }
        let mut is_gone = false;
        let mut again = |store: &mut Store, lines: &mut [Line]| match Line::find_mut(lines, number) {
            // What its reader never took may be collected already.
            Some(line) if line.is_read() && !line.has_departed() => attempt(store, line),
            _ => {
                is_gone = true;
                Attempt::Fail(self.closed())
            }
        };
        let outcome = room::wait(self, number, wait, Call::Send, first, &mut again);
        match outcome {
            Err(_) if is_gone => Err(self.lost(peer)),
            outcome => outcome.map_err(|error| self.on_the_way_to(peer.address(), error)),
        }
    }

    /// The error for a mailbox that has ended.
    fn lost(&self, peer: &Identity) -> Error {
        self.look_for_ends(|known| known.peer.incarnation() == peer.incarnation());
        let undelivered = |this: &Self| Ok::<_, Error>(this.opened(&mut this.lock()?)?.undelivered_to(peer));
        match undelivered(self) {
            Ok(undelivered) => Error::PeerLost { from: self.address().to_owned(), peer: peer.clone(), undelivered },
            Err(closed) => closed,
        }
    }

    /// Says whom an error is about.
    fn on_the_way_to(&self, address: &str, error: Error) -> Error {
        match error {
            Error::Timeout { what: "send", topic, waited, hint } => {
                Error::Timeout { what: "mailbox send", topic, waited, hint: format!("; it was to '{address}'{hint}") }
            }
            error => error,
        }
    }

    /// Takes a chunk of `bytes`, for a payload of `payload` bytes; for a destination, if there is one.
    pub(crate) fn allocate(
        &self,
        to: Option<(&To, Duration)>,
        bytes: u64,
        payload: u64,
        wait: &mut Wait<'_>,
    ) -> Result<Chunk> {
        store::check_size(self.address(), bytes, payload, self.max_memory)?;
        let line = match to {
            Some((to, come)) => self.until(to.target(), come, wait, |_, line| Attempt::Done(line.number))?,
            None => 0,
        };
        let mut theirs = 0;
        let mut attempt = |store: &mut Store, lines: &mut [Line]| {
            store.attempt(lines, line, (bytes, payload), &mut theirs, self.address())
        };
        let first = (self as &dyn Owner).within(|store, lines| attempt(store, lines))?;
        let chunk = match first {
            Attempt::Done(chunk) => chunk,
            Attempt::Fail(error) => return Err(error),
            Attempt::Wait { at, poll } => room::wait(self, line, wait, Call::Send, (at, poll), &mut attempt)
                .map_err(|error| self.on_the_way_to(to.map_or("all", |(to, _)| to.address()), error))?,
        };
        store::populate(chunk, self.address(), wait).map_err(|(error, slot)| {
            self.discard(slot);
            error
        })
    }

    /// Gives back a chunk that was never sent.
    pub(crate) fn discard(&self, slot: u32) {
        let _ = (self as &dyn Owner).within(|store, lines| store.free_unless_held(lines, slot));
    }

    pub(crate) fn explain(&self, bytes: &[u8]) -> Result<Option<Entry>> {
        let explained = (self as &dyn Owner).within(|store, lines| store.explain(lines, bytes))?;
        explained.map_err(Error::system(self.address(), "cannot take memory for the glossary"))
    }

    /// Makes a line to an address.
    #[cold]
    fn open_line(&self, to: Target<'_>, come: Duration, wait: &mut Wait<'_>) -> Result<()> {
        if let Target::Address(address) = to {
            validate(address)?;
        }
        if !wait.is_allowed() {
            return Err(Error::WouldBlock { topic: self.address().to_owned() });
        }
        let mut opening = Opening::new(self, to.to_owned(), come);
        let ended = self.changed.until(wait, || opening.step())?;
        match ended {
            Ended::Done => Ok(()),
            Ended::TimedOut => Err(opening.timed_out(wait.given())),
            Ended::Interrupted => Err(Error::Interrupted { topic: self.address().to_owned() }),
        }
    }
}

/// A line that is being made.
pub(super) struct Opening<'a> {
    shared: &'a Shared,
    to: To,
    began: Instant,
    come: Duration,
    /// What was asked, until it is answered.
    question: Option<Question>,
    /// In which process somebody is expected to collect.
    expected: Option<i32>,
    /// When to knock again, and the pause after that.
    next: Instant,
    pause: Duration,
    /// Who answered.
    peer: Option<Identity>,
}

impl<'a> Opening<'a> {
    pub fn new(shared: &'a Shared, to: To, come: Duration) -> Self {
        let (began, pause) = (Instant::now(), FIRST_PAUSE);
        Opening { shared, to, began, come, question: None, expected: None, next: began, pause, peer: None }
    }

    /// Does what is to be done by now; `true`: the line is there.
    pub fn step(&mut self) -> Result<bool> {
        let (shared, to) = (self.shared, &self.to);
        if shared.opened(&mut shared.lock()?)?.line_to(to.address(), to.incarnation()).is_some() {
            return Ok(true);
        }
        if let Some(question) = &self.question {
            let answer = question.answer(Duration::ZERO).map_err(Error::system(shared.address(), CANNOT_ASK))?;
            match answer {
                None => {}
                Some(Answer::Here(peer)) => (self.question, self.peer) = (None, Some(peer)),
                Some(Answer::No) => {
                    self.question = None;
                    return self.found_nobody();
                }
                Some(Answer::Version(theirs)) => {
                    let (topic, pid, ours) = (shared.address().to_owned(), question.pid, handshake::VERSION);
                    return Err(Error::VersionMismatch { topic, pid, theirs, ours });
                }
            }
        }
        if Instant::now() >= self.next { self.knock() } else { Ok(false) }
    }

    fn knock(&mut self) -> Result<bool> {
        let (shared, address) = (self.shared, self.to.address().to_owned());
        let failed = || Error::system(shared.address(), CANNOT_ASK);
        let name = names::mailbox_name(&address);
        let Some(connected) = Connected::to(&shared.lookout.directory(), &name).map_err(failed())? else {
            return self.found_nobody();
        };
        {
            // First: the answer may come before this thread goes on, and that to an earlier knock will do.
            let mut guard = shared.lock()?;
            let open = shared.opened(&mut guard)?;
            open.expect(&address, connected.pid());
            if let Some(former) = self.expected.replace(connected.pid()) {
                open.expect_no_more(&address, former);
            }
        }
        fault!("knock.expecting");
        let (incarnation, from) = (self.to.incarnation(), names::mailbox_name(shared.address()));
        let wish = Wish::Knock { address, incarnation, from };
        self.question = connected.ask(wish).map_err(failed())?;
        self.next = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(false)
    }

    /// Nobody has the address at the moment, or not the one who is meant.
    fn found_nobody(&mut self) -> Result<bool> {
        self.expect_no_more();
        let meant = match &self.to {
            To::Peer(peer) => Some(peer),
            To::Address(_) => self.peer.as_ref(),
        };
        if let Some(peer) = meant {
            return Err(self.shared.lost(peer));
        }
        if self.began.elapsed() < self.come {
            self.next = Instant::now(); // At the next look, which is soon.
            return Ok(false);
        }
        let place = self.shared.lookout.directory().path().display().to_string();
        let hint = format!("; it was looked for in {place}: start its owner first, or let it come with wait=");
        let (from, address) = (self.shared.address().to_owned(), self.to.address().to_owned());
        Err(Error::Unroutable { from, address, hint })
    }

    fn timed_out(&self, waited: Duration) -> Error {
        let address = self.to.address();
        let hint = match self.expected {
            Some(pid) => format!("; the mailbox '{address}' of process {pid} does not answer"),
            None => format!("; nobody has come to have the address '{address}'"),
        };
        Error::Timeout { what: "mailbox send", topic: self.shared.address().to_owned(), waited, hint }
    }

    fn expect_no_more(&mut self) {
        if let Some(pid) = self.expected.take()
            && let Ok(mut guard) = self.shared.lock()
            && let Some(open) = guard.as_mut()
        {
            open.expect_no_more(self.to.address(), pid);
        }
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.expect_no_more();
    }
}
