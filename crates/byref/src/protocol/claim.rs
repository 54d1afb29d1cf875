//! Which positions a publisher must keep, and how far it may append: arithmetic only.

/// What a subscriber wants done when it falls behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub enum Policy {
    /// Lossless: the publisher waits.
    #[default]
    Block,
    /// Keep the newest `depth` messages.
    DropOldest,
    /// Keep the newest message only.
    Latest,
}

/// What one live subscriber claims.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    /// The first position it has not taken.
    pub cursor: u64,
    pub policy: Policy,
    /// How many messages may wait for it.
    pub depth: u64,
}

/// How far a publisher may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Horizon {
    /// Positions below may be reclaimed.
    pub reclaim: u64,
    /// Positions below may be appended.
    pub limit: u64,
    /// Where the cursor of the subscriber that sets `limit` has to come for one more append.
    pub needed: u64,
}

/// How much of a ring lossy subscribers and the history may keep back; the rest lets the mark move in large steps.
pub(crate) fn retention_limit(capacity: u64) -> u64 {
    capacity / 2
}

/// The horizon of a ring of `capacity` records whose next position is `tail`.
///
/// `keep_lossy`: whether what lossy subscribers and late joiners may still want is kept (it is given up first when memory
/// runs out). Lossless claims always are.
pub(crate) fn horizon(
    tail: u64,
    capacity: u64,
    history: u64,
    keep_lossy: bool,
    claims: impl Iterator<Item = Claim>,
) -> Horizon {
    let retained = |wanted: u64| tail.saturating_sub(wanted.min(retention_limit(capacity)));
    let mut horizon = Horizon { reclaim: tail, limit: u64::MAX, needed: 0 };
    if keep_lossy {
        horizon.reclaim = retained(history);
    }
    for claim in claims {
        match claim.policy {
            Policy::Block => {
                horizon.reclaim = horizon.reclaim.min(claim.cursor);
                let limit = claim.cursor.saturating_add(claim.depth.min(capacity));
                if limit < horizon.limit {
                    horizon.limit = limit;
                    horizon.needed = claim.cursor + limit.max(tail + 1) - limit;
                }
            }
            Policy::DropOldest | Policy::Latest if keep_lossy => {
                horizon.reclaim = horizon.reclaim.min(claim.cursor.max(retained(claim.depth)));
            }
            Policy::DropOldest | Policy::Latest => {}
        }
    }
    horizon.limit = horizon.limit.min(horizon.reclaim + capacity);
    horizon
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(cursor: u64, policy: Policy, depth: u64) -> Claim {
        Claim { cursor, policy, depth }
    }

    #[test]
    fn nobody_reads() {
        let free = horizon(100, 16, 0, true, std::iter::empty());
        assert_eq!((free.reclaim, free.limit), (100, 116));
    }

    #[test]
    fn a_lossless_reader_keeps_what_it_has_not_taken() {
        let h = horizon(100, 16, 0, true, [claim(90, Policy::Block, 1000)].into_iter());
        assert_eq!((h.reclaim, h.limit), (90, 106));
        let full = horizon(106, 16, 0, true, [claim(90, Policy::Block, 1000)].into_iter());
        assert_eq!((full.limit, full.needed), (106, 91));
    }

    #[test]
    fn depth_limits_a_lossless_queue() {
        let h = horizon(100, 16, 0, true, [claim(98, Policy::Block, 2)].into_iter());
        assert_eq!((h.limit, h.needed), (100, 99));
    }

    #[test]
    fn lossy_readers_and_history_keep_their_share_unless_memory_is_short() {
        let claims = || [claim(90, Policy::DropOldest, 4), claim(0, Policy::Latest, 1)].into_iter();
        assert_eq!(horizon(100, 16, 2, true, claims()).reclaim, 96);
        assert_eq!(horizon(100, 16, 6, true, claims()).reclaim, 94);
        assert_eq!(horizon(100, 16, 600, true, claims()).reclaim, 92);
        assert_eq!(horizon(100, 16, 6, false, claims()).reclaim, 100);
    }
}
