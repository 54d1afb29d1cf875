//! In which form a payload is sent, and what its sender gets.

use crate::attributes::Beside;
use crate::error::{Error, Result};
use crate::pubsub::loan::{Lender, Loan};
use crate::reader::message::Message;
use crate::reader::sender::PublisherInfo;
use crate::sync::wait::Wait;
use crate::sys::process::realtime_ns;
use crate::writer::release::Tracked as Release;
use crate::writer::ticket::Ticket;
use std::ops::Range;
use std::sync::Arc;

/// In which form a payload is sent: [`Single`], [`Tracked`], [`Kept`] or [`Rows`].
pub trait Form: Copy {
    /// What the sender gets.
    type Sent;

    /// How many messages it makes of the payload.
    #[doc(hidden)]
    #[inline(always)]
    fn count(self) -> usize {
        1
    }

    /// Whether the payload travels in the pool, however small it is.
    #[doc(hidden)]
    #[inline(always)]
    fn is_pooled(self) -> bool {
        false
    }

    /// With what has to be known before it is sent.
    #[doc(hidden)]
    #[inline(always)]
    fn stamped(self, beside: Beside<'_>) -> Beside<'_> {
        beside
    }

    /// What comes of a payload that was sent inside of a record.
    #[doc(hidden)]
    fn of_inline(self, info: &Arc<PublisherInfo>, sequence: u64, payload: &[u8], beside: Beside<'_>) -> Self::Sent;

    /// Sends a loan that travels in the pool.
    #[doc(hidden)]
    fn send_pooled(self, loan: &mut Loan, beside: Beside<'_>, wait: &mut Wait<'_>) -> Result<Self::Sent>;
}

/// One message; gives its sequence number.
#[derive(Clone, Copy, Debug, Default)]
pub struct Single;

impl Form for Single {
    type Sent = u64;

    #[inline(always)]
    fn of_inline(self, _: &Arc<PublisherInfo>, sequence: u64, _: &[u8], _: Beside<'_>) -> u64 {
        sequence
    }

    fn send_pooled(self, loan: &mut Loan, beside: Beside<'_>, wait: &mut Wait<'_>) -> Result<u64> {
        Ok(loan.commit(1, None, beside, wait, |_| Ok(()))?.0)
    }
}

/// One message; gives a [`Ticket`] that tells when it is released. It travels in the pool, also when it is small.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tracked;

impl Form for Tracked {
    type Sent = Ticket;

    fn is_pooled(self) -> bool {
        true
    }

    fn of_inline(self, _: &Arc<PublisherInfo>, _: u64, _: &[u8], _: Beside<'_>) -> Ticket {
        unreachable!("it travels in the pool")
    }

    fn send_pooled(self, loan: &mut Loan, beside: Beside<'_>, wait: &mut Wait<'_>) -> Result<Ticket> {
        let release = Release::new();
        let (sequence, ()) = loan.commit(1, Some(&release), beside, wait, |_| Ok(()))?;
        Ok(Ticket::new(Arc::clone(loan.lender()).owner(), release, sequence))
    }
}

/// One message; gives the message itself, as a subscriber would have it: its memory is not used for anything else as long as that lives.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kept;

impl Form for Kept {
    type Sent = Message;

    fn stamped(self, beside: Beside<'_>) -> Beside<'_> {
        Beside { timestamp_ns: Some(beside.timestamp_ns.unwrap_or_else(realtime_ns)), ..beside }
    }

    fn of_inline(self, info: &Arc<PublisherInfo>, sequence: u64, payload: &[u8], beside: Beside<'_>) -> Message {
        Message::copied(info, sequence, beside.timestamp_ns.unwrap_or_default(), beside.tag, payload, beside.attributes)
    }

    fn send_pooled(self, loan: &mut Loan, beside: Beside<'_>, wait: &mut Wait<'_>) -> Result<Message> {
        let info = Arc::clone(loan.lender().info());
        // The view before it is sent: afterwards nothing may fail.
        let (sequence, own) = loan.commit(1, None, beside, wait, |loan| loan.view(beside.attributes))?;
        Ok(Message::own(info, sequence, beside.timestamp_ns.unwrap_or_default(), beside.tag, own))
    }
}

/// So many messages of equal length, which lie packed, for receivers, too; gives their sequence numbers. They share attributes,
/// timestamp and tag. A subscriber's `depth` counts them as one while it blocks the publisher, and one by one when the oldest are
/// dropped.
#[derive(Clone, Copy, Debug)]
pub struct Rows(pub usize);

impl Form for Rows {
    type Sent = Range<u64>;

    fn count(self) -> usize {
        self.0
    }

    fn of_inline(self, _: &Arc<PublisherInfo>, sequence: u64, _: &[u8], _: Beside<'_>) -> Range<u64> {
        sequence..sequence + self.0 as u64
    }

    fn send_pooled(self, loan: &mut Loan, beside: Beside<'_>, wait: &mut Wait<'_>) -> Result<Range<u64>> {
        let (first, ()) = loan.commit(self.0, None, beside, wait, |_| Ok(()))?;
        Ok(first..first + self.0 as u64)
    }
}

/// Sends a copy of `payload` by way of `lender`.
#[inline]
pub(crate) fn send<L: Lender + 'static, F: Form>(
    lender: &Arc<L>,
    form: F,
    payload: &[u8],
    beside: Beside<'_>,
    wait: &mut Wait<'_>,
) -> Result<F::Sent> {
    if form.count() == 1 && !form.is_pooled() && lender.fits_inline(payload.len(), beside) {
        let beside = form.stamped(beside);
        let sequence = lender.commit_inline(payload, beside, wait)?;
        return Ok(form.of_inline(lender.info(), sequence, payload, beside));
    }
    if form.count() == 0 && payload.is_empty() {
        return Ok(form.of_inline(lender.info(), lender.next_sequence()?, payload, beside));
    }
    check(lender.topic(), payload.len(), form.count())?;
    let mut loan = Loan::take_from(Arc::clone(lender) as _, payload.len(), beside.attributes.len(), wait)?;
    loan.write(0, payload);
    loan.count_copied(payload.len());
    form.send_pooled(&mut loan, form.stamped(beside), wait)
}

/// Whether `len` bytes are so many messages of equal length, which several have to have.
fn check(topic: &str, len: usize, count: usize) -> Result<()> {
    if count == 1 || count > 1 && len > 0 && len.is_multiple_of(count) {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!("topic '{topic}': {len} bytes are not {count} messages of equal length")))
}

impl Loan {
    /// Sends the payload; returns its sequence number. Waits for lossless subscribers without limit.
    pub fn send(mut self) -> Result<u64> {
        self.send_as(Single, Beside::NOTHING, &mut Wait::up_to(None))
    }

    /// Sends the payload in that form. When it fails, nobody received anything and the loan is as before.
    pub fn send_as<F: Form>(&mut self, form: F, beside: Beside<'_>, wait: &mut Wait<'_>) -> Result<F::Sent> {
        self.chunk()?; // An error if it is over.
        check(self.lender().topic(), self.len(), form.count())?;
        let beside = form.stamped(beside);
        if form.count() > 1 || form.is_pooled() || !self.lender().fits_inline(self.len(), beside) {
            return form.send_pooled(self, beside, wait);
        }
        let sequence = self.lender().commit_inline(self, beside, wait)?;
        let sent = form.of_inline(self.lender().info(), sequence, self, beside);
        self.discard();
        Ok(sent)
    }
}
