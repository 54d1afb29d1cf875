//! A loan: pool memory to be filled in place and sent without a copy.
#![allow(unsafe_code)]

use crate::attributes::{Beside, Encoded};
use crate::error::{Error, Result};
use crate::memory::pool::{Chunk, Pin};
use crate::reader::message::Own;
use crate::reader::sender::PublisherInfo;
use crate::sync::wait::Wait;
use crate::sys::transfer;
use crate::writer::append::{Filled, fits_inline};
use crate::writer::owner::Owner;
use crate::writer::release::Tracked;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// Who lends memory, and sends it when it is filled.
pub(crate) trait Lender: Send + Sync {
    /// Whom its messages come from.
    fn info(&self) -> &Arc<PublisherInfo>;
    /// What errors are about.
    fn topic(&self) -> &str {
        &self.info().topic
    }
    fn check_fork(&self) -> Result<()>;
    /// The endpoint that it belongs to.
    fn owner(self: Arc<Self>) -> Arc<dyn Owner>;
    /// Takes a chunk of `bytes` from the pool, for a payload of `payload` bytes.
    fn allocate(&self, bytes: u64, payload: u64, wait: &mut Wait<'_>) -> Result<Chunk>;
    /// Takes back a chunk that was never sent.
    fn discard(&self, slot: u32);
    /// The number of the message that would be next; an error if the endpoint is closed.
    fn next_sequence(&self) -> Result<u64>;
    /// Sends `payload` inside the record, where it fits.
    fn commit_inline(&self, payload: &[u8], beside: Beside<'_>, wait: &mut Wait<'_>) -> Result<u64>;
    /// Whether `payload` bytes travel inside the record.
    fn fits_inline(&self, payload: usize, beside: Beside<'_>) -> bool {
        fits_inline(payload, beside)
    }
    /// Sends a filled chunk. An error says that nobody received it; one inside of it, that somebody did: then the chunk is sent.
    fn commit(&self, filled: &Filled<'_>, timestamp_ns: Option<u64>, wait: &mut Wait<'_>) -> Result<Result<u64>>;
}

/// Memory lent by a [`Publisher`](crate::Publisher), or by a [`Route`](crate::Route). Dereferences to the bytes, which are arbitrary at first.
///
/// Dropping it without sending gives it back. It takes its sequence number when it is sent.
pub struct Loan {
    lender: Arc<dyn Lender>,
    /// `None` once it was sent or discarded.
    chunk: Option<Chunk>,
    len: usize,
    /// Bytes that a library which fills it says it copied.
    copied: usize,
}

/// Keeps the memory of a [`Loan`] from being used for anything else, for arrays made from it that outlive it.
#[derive(Clone)]
pub struct LoanMemory(Arc<Pin>);

impl LoanMemory {
    /// The first byte. Writing through it after the loan was sent changes one's own message.
    pub fn as_ptr(&self) -> *mut u8 {
        self.0.as_ptr()
    }
}

impl Loan {
    fn new(lender: Arc<dyn Lender>, chunk: Chunk, len: usize) -> Self {
        Loan { lender, chunk: Some(chunk), len, copied: 0 }
    }

    /// Takes `len` bytes of payload, and `attributes_len` of attributes.
    pub(crate) fn take_from(
        lender: Arc<dyn Lender>,
        len: usize,
        attributes_len: usize,
        wait: &mut Wait<'_>,
    ) -> Result<Loan> {
        let padded = (len as u64).checked_next_multiple_of(8).unwrap_or(u64::MAX);
        let chunk = lender.allocate(padded.saturating_add(attributes_len as u64), len as u64, wait)?;
        fault!("loan.taken");
        Ok(Loan::new(lender, chunk, len))
    }

    /// The chunk; in a forked child, where the memory is not mapped, an error.
    pub(super) fn chunk(&self) -> Result<&Chunk> {
        self.lender.check_fork()?;
        let over = || Error::Closed { what: "loan", topic: self.lender.topic().to_owned() };
        self.chunk.as_ref().ok_or_else(over)
    }

    /// The memory, to be kept beyond the loan.
    pub fn memory(&self) -> Result<LoanMemory> {
        Ok(LoanMemory(Arc::clone(&self.chunk()?.pin)))
    }

    /// The loan itself, for who has it by reference; what is left behind is over.
    pub fn take(&mut self) -> Loan {
        Loan { lender: Arc::clone(&self.lender), chunk: self.chunk.take(), len: self.len, copied: self.copied }
    }

    /// Counts `bytes` of the payload as copied to here, for libraries that fill loans with what their callers give them.
    pub fn count_copied(&mut self, bytes: usize) {
        self.copied += bytes;
    }

    /// Copies `bytes` to the payload's bytes from `at` on, as fast as the machine can: a payload larger than a quarter of the
    /// processor's last cache does not go through the caches.
    ///
    /// # Panics
    /// When they reach beyond the payload's end.
    pub fn write(&mut self, at: usize, bytes: &[u8]) {
        let is_large = transfer::is_large(self.len);
        let to = &mut self[at..at + bytes.len()];
        if is_large { transfer::stream(to, bytes) } else { to.copy_from_slice(bytes) }
    }

    /// Whether it was neither sent nor discarded.
    pub fn is_open(&self) -> bool {
        self.chunk.is_some()
    }

    /// Shortens the payload to `len` bytes; a larger `len` is an error.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        self.chunk()?;
        if len > self.len {
            let text =
                format!("topic '{}': cannot truncate a loan of {} bytes to {len}", self.lender.topic(), self.len);
            return Err(Error::InvalidArgument(text));
        }
        self.len = len;
        Ok(())
    }

    /// Who lent it.
    pub(crate) fn lender(&self) -> &Arc<dyn Lender> {
        &self.lender
    }

    /// Sends the payload from its chunk, as `count` messages of equal length; `prepare` is called before, with what will be sent.
    pub(super) fn commit<T>(
        &mut self,
        count: usize,
        tracked: Option<&Arc<Tracked>>,
        beside: Beside<'_>,
        wait: &mut Wait<'_>,
        prepare: impl FnOnce(&Loan) -> Result<T>,
    ) -> Result<(u64, T)> {
        let mut larger = self.larger_for(beside.attributes, wait)?;
        let sent = larger.as_mut().unwrap_or(self);
        let prepared = prepare(sent)?;
        let sequence = sent.publish(count, tracked, beside, wait);
        if larger.is_some_and(|larger| !larger.is_open()) {
            self.discard();
        }
        Ok((sequence?, prepared))
    }

    /// Headers that came after the loan may not fit beside it: a larger chunk is sent then, and this loan stays until that is done.
    fn larger_for(&self, attributes: &Encoded, wait: &mut Wait<'_>) -> Result<Option<Loan>> {
        let needed = (self.len.next_multiple_of(8) + attributes.len()) as u64;
        if needed <= self.chunk()?.bytes {
            return Ok(None);
        }
        let chunk = self.lender.allocate(needed, self.len as u64, wait)?;
        let mut larger = Loan::new(Arc::clone(&self.lender), chunk, self.len);
        larger.write(0, self);
        larger.count_copied(self.copied + self.len);
        Ok(Some(larger))
    }

    /// Writes the attributes behind the payload, if the chunk has room for them.
    fn write_attributes(&mut self, attributes: &Encoded) -> Result<()> {
        let at = self.len.next_multiple_of(8);
        let chunk = self.chunk()?;
        assert!((at + attributes.len()) as u64 <= chunk.bytes);
        // SAFETY: `at + attributes.len()` is within the chunk.
        let behind = unsafe { chunk.pin.as_ptr().add(at) };
        // SAFETY: as above, and the chunk is not published yet, so nobody else reads or writes it.
        unsafe { std::ptr::copy_nonoverlapping(attributes.as_ptr(), behind, attributes.len()) };
        Ok(())
    }

    /// Makes it ready to be sent by somebody else than its lender: with these attributes behind the payload, in a larger chunk if
    /// they need one.
    pub(crate) fn prepare(&mut self, attributes: &Encoded, wait: &mut Wait<'_>) -> Result<()> {
        if let Some(larger) = self.larger_for(attributes, wait)? {
            *self = larger;
        }
        self.write_attributes(attributes)
    }

    /// What is to be sent, once it was prepared for these attributes.
    pub(crate) fn filled<'a>(&'a self, attributes: &'a Encoded, tag: u64) -> Result<Filled<'a>> {
        let (chunk, copied) = (self.chunk()?, self.copied.min(self.len));
        Ok(Filled { chunk, count: 1, len: self.len, copied, attributes, tracked: None, tag })
    }

    /// The chunk was sent.
    pub(crate) fn was_sent(&mut self) {
        self.chunk = None;
    }

    /// Who lent it.
    pub(crate) fn is_lent_by(&self, owner: &Arc<dyn Owner>) -> bool {
        std::ptr::addr_eq(Arc::as_ptr(&Arc::clone(&self.lender).owner()), Arc::as_ptr(owner))
    }

    /// Publishes the chunk, which has room for the attributes.
    fn publish(
        &mut self,
        count: usize,
        tracked: Option<&Arc<Tracked>>,
        beside: Beside<'_>,
        wait: &mut Wait<'_>,
    ) -> Result<u64> {
        let Beside { attributes, timestamp_ns, tag } = beside;
        self.write_attributes(attributes)?;
        let chunk = self.chunk()?;
        let count = u32::try_from(count).map_err(|_| {
            Error::InvalidArgument(format!("topic '{}': {count} rows at once are too many", self.lender.topic()))
        })?;
        fault!("loan.filled");
        let filled = Filled { chunk, count, len: self.len, copied: self.copied, attributes, tracked, tag };
        let sequence = self.lender.commit(&filled, timestamp_ns, wait)?;
        fault!("loan.sent");
        self.chunk = None;
        sequence
    }

    /// A view of what it holds, for who keeps its message.
    pub(super) fn view(&self, attributes: &Encoded) -> Result<Own> {
        let pin = &self.chunk()?.pin;
        let view = pin.view(self.len);
        let view = view.map_err(Error::system(self.lender.topic(), "cannot map a message of one's own"))?;
        Ok(Own { view, attributes: attributes[..].into(), _pin: Arc::clone(pin) })
    }

    /// Gives the memory back without sending. Doing so twice is fine.
    pub fn discard(&mut self) {
        if let Some(chunk) = self.chunk.take() {
            let slot = chunk.slot;
            drop(chunk); // The pool sees then whether arrays made from it still live.
            fault!("loan.discarding");
            self.lender.discard(slot);
        }
    }
}

impl Deref for Loan {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let Ok(chunk) = self.chunk() else { return &[] };
        // SAFETY: the chunk is this loan's alone and has at least `len` bytes, mapped as long as its pin lives; memory of
        // a shared mapping is always initialised. Only the owner of a `LoanMemory` could write it, with `unsafe`.
        unsafe { std::slice::from_raw_parts(chunk.pin.as_ptr(), self.len) }
    }
}

impl DerefMut for Loan {
    fn deref_mut(&mut self) -> &mut [u8] {
        let Ok(chunk) = self.chunk() else { return &mut [] };
        // SAFETY: as in `deref`, and `&mut self` makes this the only slice.
        unsafe { std::slice::from_raw_parts_mut(chunk.pin.as_ptr(), self.len) }
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.discard();
    }
}
