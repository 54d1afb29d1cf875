//! The end of a publisher that has sent something before anybody listened: it can wait for its first subscriber, which then gets
//! what is still there.

use super::{Publisher, Shared};
use crate::error::{Error, Result};
use crate::sync::changes::Ended;
use crate::sync::wait::Wait;
use std::time::Duration;

impl Publisher {
    /// Closes the publisher after what it sent has been taken, or after `time` at the latest.
    ///
    /// If there has been no subscriber so far, it waits for the first one, and gives it all messages that are still there: the
    /// last `history` ones; of small ones those of the first two seconds, up to 8,192, or later at least the last 31; of large ones
    /// those whose memory was not used again. It does not wait for a second one. It never waits if nothing was sent.
    pub fn close_within(&self, time: Duration) -> Result<()> {
        self.close_within_with(&mut Wait::up_to(Some(time)))
    }

    /// [`close_within`](Self::close_within) with an interruptible wait. The publisher is closed also if that is interrupted.
    pub fn close_within_with(&self, wait: &mut Wait<'_>) -> Result<()> {
        let waited = self.wait_for_takers(wait);
        self.close();
        match waited {
            Err(error @ (Error::Interrupted { .. } | Error::Forked { .. })) => Err(error),
            // What is connected gets everything after the end, too; another thread may have closed it.
            _ => Ok(()),
        }
    }

    fn wait_for_takers(&self, wait: &mut Wait<'_>) -> Result<()> {
        let shared = &*self.shared;
        {
            let mut guard = shared.lock()?;
            let open = shared.opened(&mut guard)?;
            if open.line.sent == 0 {
                return Ok(());
            }
            open.line.lingers = true;
        }
        fault!("close.publisher_lingers");
        let ended = shared.changed.until(wait, || {
            let mut guard = shared.lock()?;
            Ok(shared.opened(&mut guard)?.line.had_readers)
        });
        match ended? {
            Ended::Done => self.flush_with(wait),
            Ended::TimedOut => Ok(()),
            Ended::Interrupted => Err(Error::Interrupted { topic: shared.info.topic.clone() }),
        }
    }
}

impl super::Open {
    /// The publisher is closed. Says so if all of it was in vain.
    pub(super) fn tell_if_unheard(&self, shared: &Shared) {
        if self.line.sent == 0 || self.line.had_readers {
            return;
        }
        log::warn!(
            "byref: topic '{}': a publisher is closed whose {} messages reached nobody: no subscriber has been connected to it; call \
             wait_for_subscribers before the first send, or close(linger=seconds){}",
            shared.info.topic,
            self.line.sent,
            self.announcement.lookout().tell_subscribers_place(false)
        );
    }
}
