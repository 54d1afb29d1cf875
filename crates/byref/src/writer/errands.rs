//! What the service thread does for a writing endpoint. Lines and stores ask for it, and know no more of their endpoint.

use crate::link::channel::Channel;
use crate::writer::rings::Rings;
use crate::writer::waker::Waker;
use std::sync::Arc;
use std::time::Duration;

/// Tasks of the service thread, each for the line of that number. Those of an endpoint that is closed do nothing.
pub(crate) trait Errands: Send + Sync {
    /// Sends what full sockets did not take before; gives the time to try again, unless that was all.
    fn flush_outboxes(&self, line: u32) -> Option<Duration>;

    /// Reads what a subscriber sent.
    fn hear(&self, line: u32, peer: u64, channel: &Channel, rings: &Rings);

    /// Looks at the tickets that are waited for; `false`: there is no need to look again.
    fn look_at_awaited(&self, line: u32) -> bool;

    /// Gives the line the thread that wakes many sleepers, or tells that there is none.
    fn give_waker(&self, line: u32, waker: Option<Arc<Waker>>);

    /// Gives segments back that are not used any more; `true`: there may be more later.
    fn shrink(&self) -> bool;

    /// Gives retired memory back that nobody has mapped any more; `true`: some of it is still mapped.
    fn settle_retired(&self) -> bool;

    /// Subscribers came or went; tells whoever waits for that.
    fn readers_changed(&self);
}
