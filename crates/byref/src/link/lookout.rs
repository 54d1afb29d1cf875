//! Where the endpoints of a process meet others: the rendezvous directory, and what happens in it. All endpoints of a process with
//! the same settings share it, with its descriptor and its watch.
//!
//! Subscribers are told which publishers come and go: by inotify, or where that cannot be had by listing the directory whenever
//! its time stamp changes, several times a second.
//!
//! A directory can be removed and made anew (by a logout, or by who cleans up temporary files), moved, or hidden by a mount; and the
//! settings may lead elsewhere, once `/run/user/UID` is there. Open descriptors keep a removed directory in being without a word
//! from inotify. So once a second the service thread looks whether newcomers still find the directory that it knows. When they
//! find another one, subscribers go on there, and what listens is announced there anew. Connections stay. A missing directory is
//! not made here: whoever comes next does, and may as well never come.

use crate::link::acceptor::Acceptors;
use crate::link::announcement::Announcement;
use crate::link::location::Location;
use crate::link::rendezvous::{CANNOT_LIST, Directory, News, Stamp, Told, Watch};
use crate::link::service::{Handle, Next, Token};
use crate::pubsub::subscriber::TIDY;
use crate::sync::locks::Mutex;
use crate::sys::epoll::Interest;
use crate::topic;
use std::collections::HashSet;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Time between two looks at whether the directory is where newcomers meet, and has the names of what listens.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Time between two looks at the directory's time stamp, where no watch can be had.
const POLL_EVERY: Duration = Duration::from_millis(200);
const CANNOT_WATCH: &str = "cannot watch the rendezvous directory";

/// Whoever wants to know which names come and go.
pub(crate) trait Listener: Send + Sync {
    /// Perhaps not for the first time.
    fn appeared(self: Arc<Self>, name: &str);
    fn vanished(&self, name: &str);
    /// Does what is to be done now and then.
    fn tidy(&self);
    /// Lists the directory: it is new to the listener, or something was missed.
    fn look_around(self: Arc<Self>, directory: &Arc<Directory>) -> io::Result<()>;
}

/// The place, as it is now.
pub(crate) struct Lookout {
    location: Location,
    directory: Mutex<Arc<Directory>>,
    listeners: Mutex<Vec<Weak<dyn Listener>>>,
    announcements: Mutex<Vec<Weak<Announcement>>>,
    acceptors: Acceptors,
    service: Weak<Handle>,
    /// Held while the directory is looked at, and listeners are told of more than names.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Somebody wants to know which names come and go.
    is_wanted: bool,
    /// The task of the watch.
    watch: Option<Token>,
    /// A task looks at the time stamp instead.
    is_polling: bool,
    /// The time stamp at the last listing, if all that was found then has been done.
    seen: Option<Stamp>,
    /// No names came or went between the last two looks at the time stamp.
    is_settled: bool,
    /// What was logged about a directory that cannot be used; once each.
    told: Option<String>,
}

impl Lookout {
    /// The place that `location` names, shared with the process's other endpoints. `directory`: what stands there at this moment.
    pub fn over(location: Location, directory: Arc<Directory>, service: &Arc<Handle>) -> Arc<Lookout> {
        let mut lookouts = service.lookouts.lock();
        lookouts.retain(|lookout| lookout.strong_count() > 0);
        let is_same =
            |known: &Arc<Lookout>| known.location == location && known.directory().access() == directory.access();
        if let Some(known) = lookouts.iter().filter_map(Weak::upgrade).find(is_same) {
            drop(lookouts);
            let mut state = known.state.lock();
            // It may have been replaced since it was opened.
            if !known.directory().is(&directory) && directory.is_at(&known.location) {
                known.move_to(&mut state, directory);
            }
            drop(state);
            return known;
        }
        let lookout = Arc::new(Lookout {
            location,
            directory: Mutex::new(directory),
            listeners: Mutex::default(),
            announcements: Mutex::default(),
            acceptors: Acceptors::default(),
            service: Arc::downgrade(service),
            state: Mutex::default(),
        });
        lookouts.push(Arc::downgrade(&lookout));
        let looking = Arc::downgrade(&lookout);
        service.after(LOOK_EVERY, move |_, _, _| {
            let Some(lookout) = looking.upgrade() else { return Next::Done };
            lookout.look();
            Next::After(LOOK_EVERY)
        });
        let tidying = Arc::downgrade(&lookout);
        service.after(TIDY, move |_, _, _| {
            let Some(lookout) = tidying.upgrade() else { return Next::Done };
            lookout.listeners().iter().for_each(|listener| listener.tidy());
            Next::After(TIDY)
        });
        lookout
    }

    /// Where this process listens.
    pub fn acceptors(&self) -> &Acceptors {
        &self.acceptors
    }

    /// The directory in which endpoints meet now.
    pub fn directory(&self) -> Arc<Directory> {
        Arc::clone(&self.directory.lock())
    }

    /// Where publishers of `pattern` are looked for, as the end of an error's text; and whether one is somewhere else, if there is
    /// time to find that out.
    pub fn tell_publishers_place(&self, pattern: &str, has_time: bool) -> String {
        let elsewhere = if has_time { self.elsewhere(pattern) } else { None };
        let elsewhere = elsewhere.map_or_else(String::new, |path| {
            let kind =
                if topic::is_pattern(pattern) { "publishers listen" } else { "a publisher of this topic listens" };
            format!("; {kind} in {}: give both processes the same BYREF_DIR", path.display())
        });
        format!("; no publisher is connected: they are looked for in {}{elsewhere}", self.tell_place())
    }

    /// Where subscribers have to look for a publisher of this process, as the end of an error's text.
    pub fn tell_subscribers_place(&self, has_time: bool) -> String {
        let elsewhere = if has_time { self.elsewhere("**") } else { None };
        let elsewhere = elsewhere.map_or_else(String::new, |path| {
            format!("; other publishers listen in {}: give both processes the same BYREF_DIR", path.display())
        });
        format!("; subscribers find it in {}{elsewhere}", self.tell_place())
    }

    fn tell_place(&self) -> String {
        let directory = self.directory();
        let gone = if directory.is_at(&self.location) { "" } else { ", which is gone" };
        format!("{}{gone}", directory.path().display())
    }

    /// Another likely directory in which a publisher listens that subscribers to `pattern` ask.
    fn elsewhere(&self, pattern: &str) -> Option<PathBuf> {
        let own = self.directory();
        let likely =
            self.location.others().into_iter().filter_map(|path| Directory::glance(path, own.access().clone()));
        likely
            .filter(|other| !other.is(&own))
            .find(|other| other.has_publishers(pattern))
            .map(|it| it.path().to_owned())
    }

    /// Tells `listener` of every publisher that is there, and from now on of every new one (perhaps twice). An error says what could
    /// not be done.
    pub fn register(
        self: &Arc<Self>,
        listener: &Arc<impl Listener + 'static>,
    ) -> Result<(), (&'static str, io::Error)> {
        let mut state = self.state.lock();
        state.is_wanted = true;
        if state.watch.is_none() && !state.is_polling {
            self.watch(&mut state).map_err(|error| (CANNOT_WATCH, error))?;
        }
        log::debug!("byref: publishers are looked for in {}", self.directory().path().display());
        let weak: Weak<dyn Listener> = Arc::downgrade(listener) as _;
        self.listeners.lock().push(weak);
        Arc::clone(listener).look_around(&self.directory()).map_err(|error| (CANNOT_LIST, error))
    }

    /// Has what listens announced again whenever that is needed.
    pub fn enlist(&self, announcement: &Arc<Announcement>) {
        let mut announcements = self.announcements.lock();
        announcements.retain(|known| known.strong_count() > 0);
        announcements.push(Arc::downgrade(announcement));
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

    /// Has all listeners list the directory.
    fn start_over(&self) {
        let directory = self.directory();
        for listener in self.listeners() {
            if let Err(error) = listener.look_around(&directory) {
                log::error!("byref: cannot list {}: {error}", directory.path().display());
            }
        }
    }

    /// Looks whether newcomers meet somewhere else by now, and whether they find what listens here.
    fn look(self: &Arc<Self>) {
        let mut state = self.state.lock();
        let directory = self.directory();
        if directory.is_at(&self.location) {
            state.told = None;
        } else {
            match directory.successor(&self.location) {
                Ok(Some(successor)) => return self.move_to(&mut state, Arc::new(successor)),
                Ok(None) => state.tell_once(
                    log::Level::Info,
                    format!(
                        "byref: the rendezvous directory {} is gone; endpoints go on where the next one makes it",
                        directory.path().display()
                    ),
                ),
                Err(error) => state.tell_once(
                    log::Level::Warn,
                    format!("byref: the rendezvous directory was replaced: {error}; trying again"),
                ),
            }
            return;
        }
        if state.is_wanted && self.listeners().is_empty() {
            (state.is_wanted, state.is_polling) = (false, false);
            self.unwatch(&mut state);
        } else if state.is_wanted && state.watch.is_none() {
            match self.watch(&mut state) {
                Ok(()) if state.watch.is_some() => self.start_over(), // First watch, then list.
                Ok(()) => {}
                Err(error) => log::debug!("byref: {CANNOT_WATCH}, trying again: {error}"),
            }
        }
        self.look_at_names(&mut state);
    }

    /// Goes on in another directory.
    fn move_to(self: &Arc<Self>, state: &mut State, directory: Arc<Directory>) {
        let path = directory.path().display();
        log::info!("byref: endpoints of this process go on in a new rendezvous directory, {path}");
        *self.directory.lock() = Arc::clone(&directory);
        state.forget();
        fault!("meet.moved");
        self.unwatch(state);
        if state.is_wanted
            && let Err(error) = self.watch(state)
        {
            log::debug!("byref: {CANNOT_WATCH}, trying again: {error}");
        }
        self.look_at_names(state);
        self.start_over();
        fault!("meet.told");
    }

    /// Whether names came or went since the last look; if so, does what has to be done about it.
    fn look_at_names(&self, state: &mut State) {
        let directory = self.directory();
        let Ok(stamp) = directory.stamp() else { return };
        if state.seen == Some(stamp) && state.is_settled {
            return;
        }
        // Once more after the last change: the next one may have had the same time stamp.
        state.is_settled = state.seen == Some(stamp);
        state.seen = Some(stamp);
        let announcements = {
            let announcements = self.announcements.lock();
            announcements.iter().filter_map(Weak::upgrade).collect::<Vec<_>>()
        };
        if !announcements.is_empty() {
            let names: Option<HashSet<String>> = directory.entries().ok().map(|names| names.into_iter().collect());
            let mut is_done = names.is_some();
            for announcement in &announcements {
                is_done &= names.as_ref().is_none_or(|names| announcement.renew_unless_in(&directory, names));
            }
            if !is_done {
                state.forget();
            }
        }
        if state.is_polling {
            self.start_over();
        }
    }

    /// Watches the directory, or looks at it often where no watch can be had.
    fn watch(self: &Arc<Self>, state: &mut State) -> io::Result<()> {
        let Some(service) = self.service.upgrade() else { return Ok(()) };
        let directory = self.directory();
        let watch = match Watch::new(&directory) {
            Ok(watch) => watch,
            Err(why) if directory.can_do_without_watch(&why) => {
                if !std::mem::replace(&mut state.is_polling, true) {
                    self.poll(&service, &why);
                }
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let watching = Arc::downgrade(self);
        let task = service.watch(watch.fd(), Interest::IN, None, move |_, _, _| {
            let Some(lookout) = watching.upgrade() else { return Next::Done };
            match watch.told() {
                Told::News(news) => news.iter().for_each(|news| lookout.tell(news)),
                Told::Missed => lookout.start_over(),
                Told::Gone => {
                    lookout.unwatch(&mut lookout.state.lock());
                    lookout.look();
                }
            }
            Next::Keep
        })?;
        state.watch = Some(task);
        if std::mem::replace(&mut state.is_polling, false) {
            log::info!("byref: {} is watched again", directory.path().display());
        }
        Ok(())
    }

    fn unwatch(&self, state: &mut State) {
        if let (Some(service), Some(task)) = (self.service.upgrade(), state.watch.take()) {
            service.cancel(task);
        }
    }

    /// Looks at the time stamp often, as long as there is no watch.
    fn poll(self: &Arc<Self>, service: &Handle, why: &io::Error) {
        log::info!(
            "byref: {} cannot be watched ({why}): it is looked at every {POLL_EVERY:?} instead, so publishers are found that much later; \
             fs.inotify.max_user_instances and max_user_watches are the limits for each user",
            self.directory().path().display()
        );
        let polling = Arc::downgrade(self);
        service.after(POLL_EVERY, move |_, _, _| {
            let Some(lookout) = polling.upgrade() else { return Next::Done };
            let mut state = lookout.state.lock();
            if !state.is_polling {
                return Next::Done;
            }
            lookout.look_at_names(&mut state);
            Next::After(POLL_EVERY)
        });
    }
}

impl State {
    /// Has the next look list the directory.
    fn forget(&mut self) {
        (self.seen, self.is_settled) = (None, false);
    }

    fn tell_once(&mut self, level: log::Level, what: String) {
        if self.told.as_ref() != Some(&what) {
            log::log!(level, "{what}");
            self.told = Some(what);
        }
    }
}

impl Drop for Lookout {
    fn drop(&mut self) {
        if let (Some(service), Some(task)) = (self.service.upgrade(), self.state.lock().watch.take()) {
            service.cancel(task);
        }
    }
}
