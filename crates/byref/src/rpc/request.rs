//! A request that a server has taken.

use crate::attributes::{Beside, Encoded};
use crate::direct::identity::Identity;
use crate::error::{Error, Result};
use crate::memory::glossary::Entry;
use crate::memory::pool::Chunk;
use crate::protocol::ring::NEVER;
use crate::pubsub::loan::{Lender, Loan};
use crate::reader::message::{Link, Message};
use crate::reader::sender::PublisherInfo;
use crate::rpc::STREAMED;
use crate::rpc::failure::{Code, Failure};
use crate::rpc::server::Inner;
use crate::rpc::tag::{Answered, Asked, Kind};
use crate::sync::wait::Wait;
use crate::writer::append::{self, Filled, fits_inline_tagged};
use crate::writer::attempt::{Attempt, Call, LEASE_POLL};
use crate::writer::line::Line;
use crate::writer::owner::Owner;
use crate::writer::room;
use crate::writer::store::Store;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A request. Dereferences to its payload.
///
/// It is to be answered once, by [`reply`](Self::reply) or [`fail`](Self::fail), from whichever thread. Dropping it unanswered is
/// [`NoReply`](Error::NoReply) for its client.
pub struct Request {
    message: Message,
    answering: Answering,
}

/// What it takes to answer a request, with or without its payload.
struct Answering {
    server: Arc<Inner>,
    /// To the client.
    link: Arc<Link>,
    number: u64,
    asked: Asked,
    is_answered: AtomicBool,
}

/// What a reply is sent as.
enum Payload<'a> {
    Inline(&'a [u8], &'a Encoded),
    Loan(&'a mut Loan, &'a Encoded),
}

/// What became of an attempt to reply.
enum Replied {
    Sent,
    /// Nobody wants it any more.
    Unwanted,
}

impl Request {
    #[inline]
    pub(super) fn new(server: &Arc<Inner>, message: Message, asked: Asked, link: Arc<Link>) -> Self {
        let (server, number) = (Arc::clone(server), message.sequence());
        Request { message, answering: Answering { server, link, number, asked, is_answered: AtomicBool::new(false) } }
    }

    /// Its payload, and all that a message has.
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// The client.
    pub fn client(&self) -> Identity {
        self.message.sender()
    }

    /// The service.
    pub fn service(&self) -> &str {
        &self.answering.server.service
    }

    /// When a reply has to be there, in microseconds of `CLOCK_MONOTONIC`; `None`: there is no limit.
    pub fn deadline_us(&self) -> Option<u64> {
        self.answering.asked.deadline.map(|deadline| deadline.micros())
    }

    /// The time that is left for a reply; `None`: there is no limit.
    pub fn time_left(&self) -> Option<Duration> {
        self.answering.asked.deadline.map(|deadline| deadline.left())
    }

    /// Whether nobody wants a reply any more: it was cancelled, its time is over, or its client has ended. Reads shared memory alone, and
    /// receives nothing.
    pub fn is_cancelled(&self) -> bool {
        self.answering.is_unwanted() || self.answering.asked.deadline.is_some_and(|deadline| deadline.is_over())
    }

    /// Whether nobody wanted it any more when it was taken.
    #[inline]
    pub(super) fn was_cancelled(&self) -> bool {
        self.answering.is_unwanted()
    }

    /// Whether it was answered.
    pub fn is_answered(&self) -> bool {
        self.answering.is_answered.load(Ordering::Relaxed)
    }

    /// Sends a copy of `payload` as the reply. `false`: nobody wants it any more, so it was dropped.
    pub fn reply(&self, payload: &[u8]) -> Result<bool> {
        self.reply_with(payload, &Encoded::default(), false, None, &mut Wait::up_to(None))
    }

    /// Sends a copy of `payload` as a part of the reply; more follow.
    pub fn stream(&self, payload: &[u8]) -> Result<bool> {
        self.reply_with(payload, &Encoded::default(), true, None, &mut Wait::up_to(None))
    }

    /// A reply with attributes and a timestamp; `more`: further parts follow, and this one may wait for the client to take some.
    pub fn reply_with(
        &self,
        payload: &[u8],
        attributes: &Encoded,
        more: bool,
        timestamp_ns: Option<u64>,
        wait: &mut Wait<'_>,
    ) -> Result<bool> {
        let kind = if more { Kind::More } else { Kind::Last };
        if fits_inline_tagged(payload.len(), attributes) {
            return self.answering.send(kind, Payload::Inline(payload, attributes), timestamp_ns, wait);
        }
        self.answering.check()?;
        let mut loan = self.loan_with(payload.len(), attributes.len(), wait)?;
        loan.write(0, payload);
        loan.count_copied(payload.len());
        self.reply_loan(&mut loan, attributes, more, timestamp_ns, wait)
    }

    /// Lends `len` bytes, to be filled in place and sent with [`reply_loan`](Self::reply_loan).
    pub fn loan(&self, len: usize) -> Result<Loan> {
        self.loan_with(len, 0, &mut Wait::up_to(None))
    }

    /// [`loan`](Self::loan) with room for `attributes_len` bytes of encoded attributes beside the payload.
    pub fn loan_with(&self, len: usize, attributes_len: usize, wait: &mut Wait<'_>) -> Result<Loan> {
        let server = &self.answering.server;
        let lender = Arc::clone(server) as Arc<dyn Lender>;
        Loan::take_from(lender, len, attributes_len, wait).map_err(|error| server.explained(error))
    }

    /// Sends a loan of the server's as the reply, or a part of it. If that fails, the loan is as before.
    pub fn reply_loan(
        &self,
        loan: &mut Loan,
        attributes: &Encoded,
        more: bool,
        timestamp_ns: Option<u64>,
        wait: &mut Wait<'_>,
    ) -> Result<bool> {
        let server = &self.answering.server;
        let owner: Arc<dyn Owner> = Arc::clone(&server.shared) as _;
        if !loan.is_lent_by(&owner) {
            let service = &server.service;
            return Err(Error::InvalidArgument(format!(
                "service '{service}': this loan is another endpoint's; take it from the request, or its server"
            )));
        }
        loan.memory().map_err(|error| server.explained(error))?; // It is neither sent nor discarded.
        let kind = if more { Kind::More } else { Kind::Last };
        let payload = if fits_inline_tagged(loan.len(), attributes) {
            Payload::Inline(loan, attributes)
        } else {
            loan.prepare(attributes, wait).map_err(|error| server.explained(error))?;
            Payload::Loan(loan, attributes)
        };
        let sent = self.answering.send(kind, payload, timestamp_ns, wait)?;
        loan.discard(); // Unless it was sent as it is.
        Ok(sent)
    }

    /// Whether a part of a streamed reply would be sent at once; also if nobody wants it any more.
    pub fn has_room(&self) -> Result<bool> {
        self.answering.has_room().map_err(|error| self.answering.server.explained(error))
    }

    /// Ends a streamed reply.
    pub fn finish(&self) -> Result<bool> {
        self.answering.send(Kind::Over, Payload::Inline(&[], &Encoded::default()), None, &mut Wait::up_to(None))
    }

    /// Says that the service failed; the client gets [`Error::Remote`].
    pub fn fail(&self, code: impl Into<Code>, text: impl Into<String>) -> Result<bool> {
        let failure = Failure { code: code.into(), text: text.into(), traceback: String::new() };
        self.fail_with(&failure, &mut Wait::up_to(None))
    }

    /// The same with a traceback, and an interruptible wait.
    pub fn fail_with(&self, failure: &Failure, wait: &mut Wait<'_>) -> Result<bool> {
        let (payload, attributes) = (failure.encode(), Encoded::default());
        if fits_inline_tagged(payload.len(), &attributes) {
            return self.answering.send(Kind::Failed, Payload::Inline(&payload, &attributes), None, wait);
        }
        self.answering.check()?;
        let mut loan = self.loan_with(payload.len(), 0, wait)?;
        loan.write(0, &payload);
        loan.prepare(&attributes, wait)?;
        self.answering.send(Kind::Failed, Payload::Loan(&mut loan, &attributes), None, wait)
    }

    /// [`Publisher::explain`](crate::Publisher::explain), for all clients.
    pub fn explain(&self, bytes: &[u8]) -> Result<Option<Entry>> {
        self.answering.server.shared.explain(bytes)
    }

    /// Nobody wanted it when it was taken.
    pub(super) fn skip(self) {
        self.answering.end(Kind::Dropped);
    }
}

impl Deref for Request {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.message
    }
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (service, len) = (&self.answering.server.service, self.message.len());
        write!(f, "Request({service:?}, number {}, {len} bytes)", self.answering.number)
    }
}

impl Answering {
    /// Whether nobody wants a reply, as far as that can be told at once: a client drops what is late by some milliseconds.
    #[inline]
    fn is_unwanted(&self) -> bool {
        self.link.is_flagged(self.asked.flag) || self.asked.deadline.is_some_and(|deadline| deadline.was_over())
    }

    /// An error if it was answered.
    fn check(&self) -> Result<()> {
        if !self.is_answered.load(Ordering::Relaxed) {
            return Ok(());
        }
        let service = &self.server.service;
        Err(Error::InvalidArgument(format!(
            "service '{service}': this request was answered before; a request has one reply"
        )))
    }

    /// Sends what there is to say; `false`: nobody wants it any more.
    fn send(
        &self,
        kind: Kind,
        mut payload: Payload<'_>,
        timestamp_ns: Option<u64>,
        wait: &mut Wait<'_>,
    ) -> Result<bool> {
        self.check()?;
        if kind.is_last() && self.is_answered.swap(true, Ordering::Relaxed) {
            return self.check().map(|()| false);
        }
        match self.try_send(kind, &mut payload, timestamp_ns, wait) {
            Ok(Replied::Sent) => {
                self.server.replied.fetch_add(1, Ordering::Relaxed);
                Ok(true)
            }
            Ok(Replied::Unwanted) => {
                self.server.late.fetch_add(1, Ordering::Relaxed);
                if kind.is_last() {
                    self.end(Kind::Dropped);
                }
                Ok(false)
            }
            Err(error) => {
                if kind.is_last() {
                    self.is_answered.store(false, Ordering::Relaxed); // It can be answered in another way.
                }
                Err(self.server.explained(error))
            }
        }
    }

    fn try_send(
        &self,
        kind: Kind,
        payload: &mut Payload<'_>,
        timestamp_ns: Option<u64>,
        wait: &mut Wait<'_>,
    ) -> Result<Replied> {
        fault!("reply.before");
        let shared = &*self.server.shared;
        let mut guard = shared.lock()?;
        let open = shared.opened(&mut guard)?;
        if self.is_unwanted() {
            return Ok(Replied::Unwanted);
        }
        let Some(index) = open.line_of(self.link.info.id) else { return Ok(Replied::Unwanted) };
        let line = &mut open.lines[index];
        let number = line.number;
        let (at, poll) = match self.attempt(kind, payload, timestamp_ns, &mut open.store, line) {
            Attempt::Done(_) => {
                fault!("reply.after");
                if let Payload::Loan(loan, _) = payload {
                    loan.was_sent();
                }
                return Ok(Replied::Sent);
            }
            Attempt::Fail(error) => return Err(error),
            Attempt::Wait { at, .. } if kind.is_last() && at != NEVER => {
                // Room for this one is kept for a client that asks for no more than it may.
                line.evict(0, "takes no replies, and asks for more");
                drop(guard);
                shared.changed();
                return Ok(Replied::Unwanted);
            }
            Attempt::Wait { at, poll } => (at, poll),
        };
        drop(guard);
        let mut is_gone = false;
        let mut again = |store: &mut Store, lines: &mut [Line]| match Line::find_mut(lines, number) {
            Some(line) if line.is_read() && !line.has_departed() && !self.is_unwanted() => {
                self.attempt(kind, payload, timestamp_ns, store, line)
            }
            _ => {
                is_gone = true;
                Attempt::Fail(shared.closed())
            }
        };
        let poll = poll.or(Some(LEASE_POLL)); // It looks whether somebody still wants it, too.
        match room::wait(shared, number, wait, Call::Send, (at, poll), &mut again) {
            Err(_) if is_gone => Ok(Replied::Unwanted),
            Err(error) => Err(error),
            Ok(_) => {
                if let Payload::Loan(loan, _) = payload {
                    loan.was_sent();
                }
                Ok(Replied::Sent)
            }
        }
    }

    #[inline]
    fn attempt(
        &self,
        kind: Kind,
        payload: &mut Payload<'_>,
        timestamp_ns: Option<u64>,
        store: &mut Store,
        line: &mut Line,
    ) -> Attempt<u64> {
        let tag = Answered { kind, number: self.number }.encode();
        if kind == Kind::More
            && let Some(at) = self.waits_for_client(line)
        {
            return Attempt::Wait { at, poll: Some(LEASE_POLL) };
        }
        match payload {
            Payload::Inline(payload, attributes) => append::inline_tagged(line, payload, attributes, tag, timestamp_ns),
            Payload::Loan(loan, attributes) => match loan.filled(attributes, tag) {
                Ok(filled) => append::pooled(store, line, &filled, timestamp_ns),
                Err(error) => Attempt::Fail(error),
            },
        }
    }

    fn has_room(&self) -> Result<bool> {
        let shared = &*self.server.shared;
        let mut guard = shared.lock()?;
        let open = shared.opened(&mut guard)?;
        let Some(index) = open.line_of(self.link.info.id).filter(|_| !self.is_unwanted()) else { return Ok(true) };
        let line = &mut open.lines[index];
        Ok(self.waits_for_client(line).is_none() && line.must_wait().is_none())
    }

    /// What a part has to wait for, at which cursor.
    fn waits_for_client(&self, line: &Line) -> Option<u64> {
        if self.link.has_second_flag(self.asked.flag) {
            return Some(NEVER); // Enough wait there already.
        }
        // The rest of the room is for last replies.
        let unread = line.log.tail() - line.unread_from();
        (unread >= STREAMED).then(|| line.log.tail() - STREAMED + 1)
    }

    /// Says that there will be no reply, if that can be said.
    fn end(&self, kind: Kind) {
        self.is_answered.store(true, Ordering::Relaxed);
        let tag = Answered { kind, number: self.number }.encode();
        let shared = &*self.server.shared;
        let Ok(mut guard) = shared.lock() else { return };
        let Ok(open) = shared.opened(&mut guard) else { return };
        if let Some(index) = open.line_of(self.link.info.id) {
            fault!("reply.dropping");
            if let Attempt::Wait { .. } = append::inline_tagged(&mut open.lines[index], &[], &[], tag, None) {
                log::debug!("byref: service '{}': no room to say that a request was dropped", self.server.service);
            }
        }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        if !*self.is_answered.get_mut() {
            self.server.dropped.fetch_add(1, Ordering::Relaxed);
            self.end(Kind::Dropped);
        }
    }
}

impl Lender for Inner {
    fn info(&self) -> &Arc<PublisherInfo> {
        self.shared.identity.info()
    }

    fn topic(&self) -> &str {
        &self.service
    }

    fn check_fork(&self) -> Result<()> {
        self.shared.check_fork().map_err(|error| self.explained(error))
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
        Err(super::not_by_itself(&self.service, "reply"))
    }

    fn commit_inline(&self, _: &[u8], _: Beside<'_>, _: &mut Wait<'_>) -> Result<u64> {
        Err(super::not_by_itself(&self.service, "reply"))
    }

    fn commit(&self, _: &Filled<'_>, _: Option<u64>, _: &mut Wait<'_>) -> Result<Result<u64>> {
        Err(super::not_by_itself(&self.service, "reply"))
    }
}
