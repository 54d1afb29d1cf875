//! How many payload bytes this process copied, and why.
//!
//! Publishers and subscribers count under their own locks; whoever asks adds them up.

use crate::sync::locks::Mutex;
use crate::sys::fork::PerProcess;
use std::ops::Index;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// Why payload bytes were copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Into shared memory, by a publisher. (What a loan is filled with is not seen.)
    Send,
    /// Out of the ring, by a subscriber: payloads up to the inline limit.
    Receive,
    /// For a private writable view that is too small to be mapped.
    Private,
    /// Because the program asked for a copy, or for an array over messages that do not lie side by side.
    Asked,
}

impl Cause {
    /// All of them.
    pub const ALL: [Cause; 4] = [Cause::Send, Cause::Receive, Cause::Private, Cause::Asked];
}

/// Bytes by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied([u64; Cause::ALL.len()]);

impl Index<Cause> for Copied {
    type Output = u64;

    fn index(&self, cause: Cause) -> &u64 {
        &self.0[cause as usize]
    }
}

/// A publisher, or a subscriber, that may be closed.
pub(crate) trait Endpoint: Send + Sync {
    /// What it copied so far; nothing once it is closed.
    fn copied(&self) -> u64;
}

/// What is counted here, and who counts for itself.
#[derive(Default)]
struct Counted {
    settled: Copied,
    live: Vec<(Cause, Weak<dyn Endpoint>)>,
}

static COUNTED: PerProcess<Mutex<Counted>> = PerProcess::new(Mutex::default);

/// What no endpoint counts.
static PLAIN: PerProcess<[AtomicU64; Cause::ALL.len()]> = PerProcess::new(Default::default);

/// What this process has copied since it began to use this library.
pub fn copied_bytes() -> Copied {
    // The endpoints are dropped after the lock, which their ends take.
    let mut alive = Vec::new();
    let counted = COUNTED.get().lock();
    let mut sum = counted.settled;
    for (sum, plain) in sum.0.iter_mut().zip(PLAIN.get()) {
        *sum += plain.load(Ordering::Relaxed);
    }
    for (cause, endpoint) in &counted.live {
        if let Some(endpoint) = endpoint.upgrade() {
            sum.0[*cause as usize] += endpoint.copied();
            alive.push(endpoint);
        }
    }
    drop(counted);
    sum
}

/// Counts bytes that no endpoint counts.
pub fn count(cause: Cause, bytes: usize) {
    PLAIN.get()[cause as usize].fetch_add(bytes as u64, Ordering::Relaxed);
}

/// Asks this endpoint, too, from now on.
pub(crate) fn register(cause: Cause, endpoint: &Arc<impl Endpoint + 'static>) {
    let mut counted = COUNTED.get().lock();
    if counted.live.len() == counted.live.capacity() {
        counted.live.retain(|(_, endpoint)| endpoint.strong_count() > 0);
        let left = counted.live.len();
        counted.live.reserve(left + 1); // So that the next look through all is as far away as it takes long.
    }
    let endpoint: Arc<dyn Endpoint> = Arc::clone(endpoint) as _;
    counted.live.push((cause, Arc::downgrade(&endpoint)));
}

/// Closes an endpoint in such a way that its count is at no moment lost, nor there twice.
pub(crate) fn settle<T>(cause: Cause, close: impl FnOnce() -> Option<T>, copied: impl FnOnce(&T) -> u64) -> Option<T> {
    let mut counted = COUNTED.get().lock();
    let closed = close()?;
    counted.settled.0[cause as usize] += copied(&closed);
    Some(closed)
}
