//! What the service thread does for a reading endpoint. A reader asks for it, and knows no more of its endpoint.

use crate::link::candidates::Candidate;
use crate::link::service::Handle;
use std::sync::Arc;

/// Asked for under the endpoint's lock, except for `look_for_missed`.
pub(crate) trait Errands: Send + Sync {
    /// A connection ended although its publisher may live: that is asked again, after a pause.
    fn was_cut_off(self: Arc<Self>, service: &Handle, candidate: Candidate);

    /// Has the service thread look at the endpoint, also if nobody receives and the descriptors say nothing.
    fn remind(&self);

    /// Looks for messages of which nobody told; see [`Reader::look_later`](super::turns::Reader::look_later).
    fn look_for_missed(&self);
}
