//! Pushing: what the user gives becomes a job, and goes to a puller at once if one has room.

use crate::attributes::{Beside, Encoded};
use crate::direct::undelivered::{Pooled, Undelivered};
use crate::error::{Error, Result};
use crate::memory::pool::Chunk;
use crate::protocol::ring::Descriptor;
use crate::pubsub::loan::{Lender, Loan};
use crate::reader::sender::PublisherInfo;
use crate::sync::wait::Wait;
use crate::work::body::{Body, Content, Small, fits_inline};
use crate::work::open::{Awaited, Open};
use crate::work::pusher::{Pusher, Shared};
use crate::writer::append::{self, Filled};
use crate::writer::attempt::Attempt;
use crate::writer::owner::Owner;
use crate::writer::store;
use std::ops::Range;
use std::sync::Arc;

impl Pusher {
    /// Pushes a copy of `payload` as a job; returns its number. Waits while as many jobs are pending as there may be.
    ///
    /// A call that fails pushed nothing.
    pub fn send(&self, payload: &[u8]) -> Result<u64> {
        self.send_with(payload, &Encoded::default(), None, &mut Wait::up_to(None))
    }

    /// The same with attributes and a timestamp (nanoseconds; default: `CLOCK_REALTIME`).
    pub fn send_with(
        &self,
        payload: &[u8],
        attributes: &Encoded,
        timestamp_ns: Option<u64>,
        wait: &mut Wait<'_>,
    ) -> Result<u64> {
        self.shared.push_copy(payload, attributes, timestamp_ns, wait)
    }

    /// Pushes each row of `row_len` bytes as a job of its own, all or none; returns their numbers. Waits for room for all of them.
    ///
    /// More rows than [`max_pending`](crate::PusherBuilder::max_pending) are an error. A call that fails pushed nothing.
    pub fn send_many(
        &self,
        rows: &[u8],
        row_len: usize,
        attributes: &Encoded,
        timestamp_ns: Option<u64>,
        wait: &mut Wait<'_>,
    ) -> Result<Range<u64>> {
        if row_len == 0 || !rows.len().is_multiple_of(row_len) {
            let (queue, len) = (self.queue(), rows.len());
            return Err(Error::InvalidArgument(format!(
                "queue '{queue}': {len} bytes are not rows of {row_len} bytes"
            )));
        }
        self.shared.push_rows(rows, row_len, attributes, timestamp_ns, wait)
    }

    /// Lends `len` bytes, to be filled in place and sent as a job without a copy.
    pub fn loan(&self, len: usize) -> Result<Loan> {
        self.loan_with(len, 0, &mut Wait::up_to(None))
    }

    /// [`loan`](Self::loan) with room for `attributes_len` bytes of encoded attributes beside the payload.
    pub fn loan_with(&self, len: usize, attributes_len: usize, wait: &mut Wait<'_>) -> Result<Loan> {
        Loan::take_from(Arc::new(Arc::clone(&self.shared)) as _, len, attributes_len, wait)
    }
}

impl Shared {
    fn push_copy(
        self: &Arc<Self>,
        payload: &[u8],
        attributes: &Encoded,
        timestamp_ns: Option<u64>,
        wait: &mut Wait<'_>,
    ) -> Result<u64> {
        if fits_inline(payload.len(), attributes.len()) && !attributes.is_pooled() {
            return self.push(payload.len(), payload.len(), wait, |open| Body {
                timestamp_ns: timestamp_ns.unwrap_or_else(|| open.clock.now()),
                content: Content::Inline(Small::new(payload, attributes)),
            });
        }
        let behind = payload.len().next_multiple_of(8);
        let chunk = self.allocate((behind + attributes.len()) as u64, payload.len() as u64, wait)?;
        let segment = chunk.pin.segment();
        segment.write(chunk.offset, payload);
        segment.write(chunk.offset + behind as u64, attributes);
        let (len, copied) = (payload.len(), payload.len());
        let filled = Filled { chunk: &chunk, count: 1, len, copied, attributes, tracked: None, tag: 0 };
        let pushed = self.push_filled(&filled, timestamp_ns, wait);
        self.discard_unless(pushed.is_ok(), chunk);
        pushed
    }

    fn push_rows(
        self: &Arc<Self>,
        rows: &[u8],
        row_len: usize,
        attributes: &Encoded,
        timestamp_ns: Option<u64>,
        wait: &mut Wait<'_>,
    ) -> Result<Range<u64>> {
        let count = rows.len() / row_len;
        if count > self.max_pending {
            let (queue, most) = (self.queue(), self.max_pending);
            return Err(Error::InvalidArgument(format!(
                "queue '{queue}': {count} jobs at once are more than max_pending={most}; send fewer, or raise that"
            )));
        }
        let row = |index: usize| &rows[index * row_len..][..row_len];
        if count == 0 || fits_inline(row_len, attributes.len()) && !attributes.is_pooled() {
            let content = |index| Content::Inline(Small::new(row(index), attributes));
            return self.push_all(count, row_len, timestamp_ns, wait, content);
        }
        // Each row has its attributes behind it, and begins at a cache line.
        let behind = row_len.next_multiple_of(8);
        let stride = (behind + attributes.len()).next_multiple_of(64);
        let chunk = self.allocate((count * stride) as u64, rows.len() as u64, wait)?;
        let at = |index: usize| chunk.offset + (index * stride) as u64;
        for index in 0..count {
            let segment = chunk.pin.segment();
            segment.write(at(index), row(index));
            segment.write(at(index) + behind as u64, attributes);
        }
        let filled =
            Filled { chunk: &chunk, count: 1, len: row_len, copied: row_len, attributes, tracked: None, tag: 0 };
        let whole = append::descriptor(&filled);
        let content = |index| Content::Pooled(Arc::clone(&chunk.pin), Descriptor { offset: at(index), ..whole });
        let pushed = self.push_all(count, row_len, timestamp_ns, wait, content);
        self.discard_unless(pushed.is_ok(), chunk);
        pushed
    }

    /// Makes jobs of what `content` gives, when there may be so many more.
    fn push_all(
        self: &Arc<Self>,
        count: usize,
        row_len: usize,
        timestamp_ns: Option<u64>,
        wait: &mut Wait<'_>,
        content: impl Fn(usize) -> Content,
    ) -> Result<Range<u64>> {
        self.wait_until(wait, Awaited::Room, |open| {
            if open.table.pending() + count > self.max_pending {
                return None;
            }
            let timestamp_ns = timestamp_ns.unwrap_or_else(|| open.clock.now());
            let first = open.table.tally.pushed;
            for index in 0..count {
                open.table.add(Body { timestamp_ns, content: content(index) });
            }
            open.payload_bytes += (count * row_len) as u64;
            open.copied_bytes += (count * row_len) as u64;
            fault!("work.added");
            open.give();
            Some(Ok(first..first + count as u64))
        })
    }

    fn push_filled(
        self: &Arc<Self>,
        filled: &Filled<'_>,
        timestamp_ns: Option<u64>,
        wait: &mut Wait<'_>,
    ) -> Result<u64> {
        let &Filled { chunk, count, len, copied, .. } = filled;
        if count != 1 {
            // Each is kept for as long as it takes, by itself.
            let at = append::descriptor(filled);
            let pooled = Pooled { pin: Arc::clone(&chunk.pin), at, part: (0, at.len) };
            let rows = Undelivered::pooled(&self.identity, self.identity.incarnation(), 0, 0, pooled);
            let pushed = self.push_rows(&rows, len / count as usize, filled.attributes, timestamp_ns, wait)?;
            self.discard(chunk.slot); // When the loan lets go of it.
            return Ok(pushed.start);
        }
        let at = Descriptor { tracked: false, ..append::descriptor(filled) }; // Each attempt has a tag of its own.
        let content = || Content::Pooled(Arc::clone(&chunk.pin), at);
        let timestamp = |open: &mut Open| timestamp_ns.unwrap_or_else(|| open.clock.now());
        self.push(len, copied, wait, |open| Body { timestamp_ns: timestamp(open), content: content() })
    }

    /// Makes a job of what `body` gives, when there may be one more.
    #[inline]
    fn push(
        self: &Arc<Self>,
        len: usize,
        copied: usize,
        wait: &mut Wait<'_>,
        body: impl Fn(&mut Open) -> Body,
    ) -> Result<u64> {
        {
            let mut guard = self.lock()?;
            let open = self.opened(&mut guard)?;
            open.calls += 1;
            if open.waiters == 0 {
                open.disarm();
            }
            if open.table.pending() >= self.max_pending || !open.table.has_room() {
                open.turn();
            }
            if open.table.pending() < self.max_pending {
                return Ok(self.add(open, len, copied, &body));
            }
        }
        self.wait_until(wait, Awaited::Room, |open| {
            (open.table.pending() < self.max_pending).then(|| Ok(self.add(open, len, copied, &body)))
        })
    }

    #[inline]
    fn add(self: &Arc<Self>, open: &mut Open, len: usize, copied: usize, body: &impl Fn(&mut Open) -> Body) -> u64 {
        let body = body(open);
        let number = open.table.add(body);
        open.payload_bytes += len as u64;
        open.copied_bytes += copied as u64;
        fault!("work.added");
        open.give();
        self.see_to(open);
        number
    }
}

impl Lender for Arc<Shared> {
    fn info(&self) -> &Arc<PublisherInfo> {
        self.identity.info()
    }

    fn check_fork(&self) -> Result<()> {
        self.check_that_it_is_here()
    }

    fn owner(self: Arc<Self>) -> Arc<dyn Owner> {
        Arc::clone(&*self) as _
    }

    fn allocate(&self, bytes: u64, payload: u64, wait: &mut Wait<'_>) -> Result<Chunk> {
        Shared::allocate(self, bytes, payload, wait)
    }

    fn discard(&self, slot: u32) {
        Shared::discard(self, slot);
    }

    fn next_sequence(&self) -> Result<u64> {
        self.opened(&mut self.lock()?).map(|_| 0) // No rows are no job.
    }

    fn commit_inline(&self, payload: &[u8], beside: Beside<'_>, wait: &mut Wait<'_>) -> Result<u64> {
        self.push_copy(payload, beside.attributes, beside.timestamp_ns, wait)
    }

    fn commit(&self, filled: &Filled<'_>, timestamp_ns: Option<u64>, wait: &mut Wait<'_>) -> Result<Result<u64>> {
        self.push_filled(filled, timestamp_ns, wait).map(Ok)
    }
}

impl Shared {
    /// Takes a chunk. When memory is short, because of jobs that are pending, it waits for these.
    fn allocate(self: &Arc<Self>, bytes: u64, payload: u64, wait: &mut Wait<'_>) -> Result<Chunk> {
        store::check_size(self.queue(), bytes, payload, self.max_memory)?;
        let mut theirs = 0;
        let mut attempt = |open: &mut Open| {
            match open.store.attempt(&mut open.lines, 0, (bytes, payload), &mut theirs, self.queue()) {
                Attempt::Done(chunk) => Some(Ok(chunk)),
                // What is pending, or held, may be given back.
                Attempt::Wait { .. } => {
                    open.wants_memory = true;
                    None
                }
                Attempt::Fail(Error::PoolExhausted { .. }) if open.table.pending() > 0 => None,
                Attempt::Fail(error) => Some(Err(error)),
            }
        };
        let first = attempt(self.opened(&mut self.lock()?)?);
        let chunk = match first {
            Some(outcome) => outcome?,
            None => self.wait_until(wait, Awaited::Room, attempt)?,
        };
        store::populate(chunk, self.queue(), wait).map_err(|(error, slot)| {
            self.discard(slot);
            error
        })
    }

    /// Gives a chunk back, unless it was pushed.
    fn discard_unless(&self, is_pushed: bool, chunk: Chunk) {
        if !is_pushed {
            let slot = chunk.slot;
            drop(chunk); // The pool sees then that nobody uses it.
            self.discard(slot);
        }
    }

    /// Gives back a chunk that was never sent.
    fn discard(&self, slot: u32) {
        let _ = (self as &dyn Owner).within(|store, lines| store.free_unless_held(lines, slot));
    }
}
