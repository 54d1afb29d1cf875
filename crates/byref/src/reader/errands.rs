//! What the service thread does for a reading endpoint. A reader asks for it, and knows no more of its endpoint.

use crate::error::Result;
use crate::link::candidates::Candidate;
use crate::link::service::Handle;
use std::sync::Arc;

/// Asked for under the endpoint's lock, except for `look_for_missed` and `acknowledge`.
pub(crate) trait Errands: Send + Sync {
    /// A connection ended although its publisher may live: that is asked again, after a pause.
    fn was_cut_off(self: Arc<Self>, service: &Handle, candidate: Candidate);

    /// Has the service thread look at the endpoint, also if nobody receives and the descriptors say nothing.
    fn remind(&self);

    /// Looks for messages of which nobody told; see [`Reader::look_later`](super::turns::Reader::look_later).
    fn look_for_missed(&self);

    /// Messages of a connection are done with, of a subscriber that acknowledges by hand.
    fn acknowledge(&self, connection: u64, sequences: &mut dyn Iterator<Item = u64>) -> Result<()>;
}
