//! Tells subscribers which publishers appear. One watch per directory serves all subscribers of a process.

use crate::rendezvous::{Directory, Watch};
use crate::service::{Handle, Next, Token};
use crate::sys::epoll::Interest;
use parking_lot::Mutex;
use std::io;
use std::sync::{Arc, Weak};

/// Whoever wants to know of new names.
pub(crate) trait Listener: Send + Sync {
    fn appeared(self: Arc<Self>, name: &str);
}

/// The watch on one directory.
pub(crate) struct Lookout {
    directory: Arc<Directory>,
    listeners: Mutex<Vec<Weak<dyn Listener>>>,
    service: Weak<Handle>,
    task: Mutex<Option<Token>>,
}

impl Lookout {
    /// The lookout over `directory`, shared with the process's other subscribers.
    pub fn over(directory: &Arc<Directory>, service: &Arc<Handle>) -> io::Result<Arc<Lookout>> {
        let mut lookouts = service.lookouts.lock();
        lookouts.retain(|lookout| lookout.strong_count() > 0);
        let known = lookouts.iter().filter_map(Weak::upgrade).find(|known| known.directory.is(directory));
        if let Some(known) = known {
            return Ok(known);
        }
        let watch = Watch::new(directory)?;
        let lookout = Arc::new(Lookout {
            directory: Arc::clone(directory),
            listeners: Mutex::default(),
            service: Arc::downgrade(service),
            task: Mutex::new(None),
        });
        let watching = Arc::downgrade(&lookout);
        let task = service.watch(watch.fd(), Interest::IN, None, move |_, _, _| {
            let Some(lookout) = watching.upgrade() else { return Next::Done };
            match watch.names() {
                Some(names) => names.iter().for_each(|name| lookout.tell(name)),
                None => lookout.tell_all(),
            }
            Next::Keep
        })?;
        *lookout.task.lock() = Some(task);
        lookouts.push(Arc::downgrade(&lookout));
        Ok(lookout)
    }

    /// Tells `listener` of every publisher that is there, and from now on of every new one (perhaps twice).
    pub fn register(&self, listener: &Arc<impl Listener + 'static>) -> io::Result<()> {
        let weak: Weak<dyn Listener> = Arc::downgrade(listener) as _;
        self.listeners.lock().push(weak);
        for name in self.directory.names()? {
            Arc::clone(listener).appeared(&name);
        }
        Ok(())
    }

    fn tell(&self, name: &str) {
        let listeners: Vec<_> = {
            let mut listeners = self.listeners.lock();
            listeners.retain(|listener| listener.strong_count() > 0);
            listeners.iter().filter_map(Weak::upgrade).collect()
        };
        for listener in listeners {
            listener.appeared(name);
        }
    }

    fn tell_all(&self) {
        match self.directory.names() {
            Ok(names) => names.iter().for_each(|name| self.tell(name)),
            Err(error) => log::error!("byref: cannot list {}: {error}", self.directory.path().display()),
        }
    }
}

impl Drop for Lookout {
    fn drop(&mut self) {
        if let (Some(service), Some(task)) = (self.service.upgrade(), self.task.lock().take()) {
            service.cancel(task);
        }
    }
}
