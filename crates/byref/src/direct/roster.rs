//! Which mailboxes are known by their names in the rendezvous directory.

use std::collections::{HashMap, HashSet};

/// What is known of the names in the rendezvous directory.
#[derive(Default)]
pub(super) struct Roster {
    /// The addresses behind them: who has one changes, the address of a name does not.
    pub addresses: HashMap<String, Box<str>>,
    /// Those behind which nobody answered in time.
    pub silent: HashSet<String>,
}
