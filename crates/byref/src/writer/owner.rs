//! The endpoint that a store and its lines belong to.

use crate::error::{Error, Result};
use crate::writer::line::Line;
use crate::writer::store::Store;

/// An endpoint with one store and its lines, all behind one lock.
pub(crate) trait Owner: Send + Sync + 'static {
    /// What errors and log lines are about.
    fn topic(&self) -> &str;

    /// Calls `act` once, under the lock, with the store and all its lines, by number; an error if the endpoint is closed, or its
    /// process forked this one.
    fn enter(&self, act: &mut dyn FnMut(&mut Store, &mut [Line])) -> Result<()>;

    /// The error of what is closed.
    fn closed(&self) -> Error;

    /// Subscribers came or went.
    fn changed(&self);

    /// The reader of a line has rung. The service thread calls it without a lock.
    fn rung(&self, _line: u32) {}
}

impl dyn Owner {
    /// [`enter`](Self::enter), with a result.
    pub fn within<T>(&self, act: impl FnOnce(&mut Store, &mut [Line]) -> T) -> Result<T> {
        let (mut act, mut result) = (Some(act), None);
        self.enter(&mut |store, lines| result = act.take().map(|act| act(store, lines)))?;
        Ok(result.expect("it is called once"))
    }

    /// The same for one line; `None`: it is no longer there.
    pub fn at_line<T>(&self, line: u32, act: impl FnOnce(&mut Store, &mut Line) -> T) -> Option<T> {
        self.within(|store, lines| Line::find_mut(lines, line).map(|line| act(store, line))).ok().flatten()
    }
}
