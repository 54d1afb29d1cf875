//! Tells subscribers which publishers appear. One watch per directory serves all subscribers of a process.

use crate::locks::Mutex;
use crate::rendezvous::{Directory, News, Watch};
use crate::service::{Handle, Next, Token};
use crate::subscriber::TIDY;
use crate::sys::epoll::Interest;
use std::io;
use std::sync::{Arc, Weak};

/// Whoever wants to know which names come and go.
pub(crate) trait Listener: Send + Sync {
    /// Perhaps not for the first time.
    fn appeared(self: Arc<Self>, name: &str);
    fn vanished(&self, name: &str);
    /// Does what is to be done now and then.
    fn tidy(&self);
    /// Lists the directory: it is new to the listener, or something was missed.
    fn look_around(self: Arc<Self>) -> io::Result<()>;
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
            match watch.news() {
                Some(news) => news.iter().for_each(|news| lookout.tell(news)),
                None => lookout.start_over(),
            }
            Next::Keep
        })?;
        *lookout.task.lock() = Some(task);
        let tidying = Arc::downgrade(&lookout);
        service.after(TIDY, move |_, _, _| {
            let Some(lookout) = tidying.upgrade() else { return Next::Done };
            lookout.listeners().iter().for_each(|listener| listener.tidy());
            Next::After(TIDY)
        });
        lookouts.push(Arc::downgrade(&lookout));
        Ok(lookout)
    }

    /// Tells `listener` of every publisher that is there, and from now on of every new one (perhaps twice).
    pub fn register(&self, listener: &Arc<impl Listener + 'static>) -> io::Result<()> {
        let weak: Weak<dyn Listener> = Arc::downgrade(listener) as _;
        self.listeners.lock().push(weak);
        Arc::clone(listener).look_around()
    }

    fn listeners(&self) -> Vec<Arc<dyn Listener>> {
        let mut listeners = self.listeners.lock();
        listeners.retain(|listener| listener.strong_count() > 0);
        listeners.iter().filter_map(Weak::upgrade).collect()
    }

    fn tell(&self, news: &News) {
        for listener in self.listeners() {
            match news {
                News::Appeared(name) => listener.appeared(name),
                News::Vanished(name) => listener.vanished(name),
            }
        }
    }

    fn start_over(&self) {
        for listener in self.listeners() {
            if let Err(error) = listener.look_around() {
                log::error!("byref: cannot list {}: {error}", self.directory.path().display());
            }
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
