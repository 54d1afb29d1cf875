//! Where the endpoints of a process meet others: the rendezvous directory, and what happens in it. All endpoints of a process with
//! the same settings share it, with its descriptor and its watch.
//!
//! Subscribers are told which publishers come and go: by inotify, or where that cannot be had by listing the directory whenever
//! its time stamp changes, several times a second. The directory is listed once for all of them: the watch keeps the names that it
//! has, from which a new subscriber gets its own, and a name that comes or goes is told to those alone whom it concerns.
//!
//! The service thread also looks after subscribers that nobody receives from at the moment. It does so for those whose descriptors
//! have something, which it learns of all at once, and for those that asked for it.
//!
//! A directory can be removed and made anew (by a logout, or by who cleans up temporary files), moved, or hidden by a mount; and the
//! settings may lead elsewhere, once `/run/user/UID` is there. Open descriptors keep a removed directory in being without a word
//! from inotify. So once a second the service thread looks whether newcomers still find the directory that it knows. When they
//! find another one, subscribers go on there, and what listens is announced there anew. Connections stay. A missing directory is
//! not made here: whoever comes next does, and may as well never come.

#[cfg(all(test, not(loom)))]
mod tests;

use crate::link::acceptor::Acceptors;
use crate::link::access::Access;
use crate::link::announcement::Announcement;
use crate::link::location::Location;
use crate::link::names::{self, Key};
use crate::link::rendezvous::{CANNOT_LIST, Directory, News, Stamp, Told, Watch};
use crate::link::service::Handle;
use crate::link::tasks::{Next, Token};
use crate::sync::locks::Mutex;
use crate::sys::door::{Door, Doors};
use crate::sys::epoll::Interest;
use crate::topic;
use std::collections::{HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Time between two looks at whether the directory is where newcomers meet, and has the names of what listens.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Time between two looks at the listeners' doors. What these say is dealt with at the second one: who polls, or does something
/// else, learns of ends and gives memory back within a quarter of a second all the same.
const TIDY_EVERY: Duration = Duration::from_millis(125);
/// Time between two looks at the directory's time stamp, where no watch can be had.
const POLL_EVERY: Duration = Duration::from_millis(200);
const CANNOT_WATCH: &str = "cannot watch the rendezvous directory";

/// Whoever wants to know which names come and go.
pub(crate) trait Listener: Send + Sync {
    /// The key of the names that concern it; `None`: those of all topics do.
    fn key(&self) -> Option<Key>;
    /// Perhaps not for the first time.
    fn appeared(self: Arc<Self>, name: &str);
    fn vanished(&self, name: &str);
    /// Does what is to be done while nobody receives; `true`: again soon, whether its descriptors say something or not.
    fn tidy(&self) -> bool;
    /// The names that concern it, all of them: the directory is new to it, or something was missed.
    fn look_around(self: Arc<Self>, directory: &Arc<Directory>, names: &HashSet<&str>);
}

/// A mailbox, which wants to know what happens to the names of others.
pub(crate) trait Neighbour: Send + Sync {
    /// Some other one is there.
    fn appeared(&self);
    /// A name is gone, or has been for a while.
    fn vanished(&self, name: &str);
    /// Names may have come and gone.
    fn missed_something(&self);
}

/// Tells listeners apart.
pub(crate) type ListenerId = u64;

#[derive(Default)]
struct Listeners {
    last: ListenerId,
    known: HashMap<ListenerId, Known>,
    by_key: HashMap<Key, Vec<ListenerId>>,
    of_all: Vec<ListenerId>,
}

struct Known {
    listener: Weak<dyn Listener>,
    key: Option<Key>,
    door: Weak<Door>,
}

impl Listeners {
    fn add(&mut self, id: ListenerId, known: Known) {
        let listed = known.key.map_or(&mut self.of_all, |key| self.by_key.entry(key).or_default());
        listed.push(id);
        self.known.insert(id, known);
    }

    fn remove(&mut self, id: ListenerId) -> Option<Known> {
        let known = self.known.remove(&id)?;
        match known.key {
            None => self.of_all.retain(|listed| *listed != id),
            Some(key) => {
                if let Some(listed) = self.by_key.get_mut(&key) {
                    listed.retain(|listed| *listed != id);
                    if listed.is_empty() {
                        self.by_key.remove(&key);
                    }
                }
            }
        }
        Some(known)
    }

    /// Those whom a name with this key concerns.
    fn concerned(&self, key: Key) -> Vec<Arc<dyn Listener>> {
        let of_all = matches!(key, Key::Topic(_)).then_some(&self.of_all);
        let ids = self.by_key.get(&key).into_iter().chain(of_all).flatten();
        ids.filter_map(|id| self.known.get(id)?.listener.upgrade()).collect()
    }
}

/// Tells news that nobody attends to from those that just came.
#[derive(Default)]
struct Unattended(HashSet<ListenerId>);

impl Unattended {
    /// Those that had something to say the last time, too.
    fn of_those(&mut self, saying: HashSet<ListenerId>) -> Vec<ListenerId> {
        let before = std::mem::replace(&mut self.0, saying);
        self.0.intersection(&before).copied().collect()
    }
}

/// The names in a directory of sockets that somebody may look for: of publishers, and of servers.
#[derive(Default)]
struct Names(HashMap<Key, HashSet<String>>);

impl Names {
    fn in_directory(directory: &Directory) -> io::Result<Self> {
        let mut names = Names::default();
        for name in directory.entries()? {
            if let Some(key) = names::key_in(&name) {
                names.insert(key, name);
            }
        }
        Ok(names)
    }

    fn insert(&mut self, key: Key, name: String) {
        self.0.entry(key).or_default().insert(name);
    }

    fn remove(&mut self, key: Key, name: &str) {
        if let Some(names) = self.0.get_mut(&key) {
            names.remove(name);
            if names.is_empty() {
                self.0.remove(&key);
            }
        }
    }

    /// Those with one key, or of all topics.
    fn of(&self, key: Option<Key>) -> HashSet<&str> {
        let of_topics = || self.0.iter().filter(|(key, _)| matches!(key, Key::Topic(_))).flat_map(|(_, names)| names);
        match key {
            Some(key) => self.0.get(&key).into_iter().flatten().map(String::as_str).collect(),
            None => of_topics().map(String::as_str).collect(),
        }
    }
}

/// Adds to a list from which those that are gone are taken when it is full.
fn push_weak<T: ?Sized>(list: &mut Vec<Weak<T>>, weak: Weak<T>) {
    if list.len() == list.capacity() {
        list.retain(|known| known.strong_count() > 0);
        let left = list.len();
        list.reserve(left + 1); // So that the next look through all is as far away as it takes long.
    }
    list.push(weak);
}

/// The place, as it is now.
pub(crate) struct Lookout {
    location: Location,
    directory: Mutex<Arc<Directory>>,
    listeners: Mutex<Listeners>,
    /// Those of all listeners, as long as there are any.
    doors: Arc<Doors>,
    /// Those to be looked after, also if their doors say nothing.
    reminded: Mutex<HashSet<ListenerId>>,
    /// Those whose doors said something at the last look.
    unattended: Mutex<Unattended>,
    announcements: Mutex<Vec<Weak<Announcement>>>,
    neighbours: Mutex<Vec<Weak<dyn Neighbour>>>,
    acceptors: Acceptors,
    service: Weak<Handle>,
    /// Held while the directory is looked at, and listeners are told of more than names.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Somebody wants to know which names come and go.
    is_wanted: bool,
    /// The watch and its task.
    watch: Option<(Watch, Token)>,
    /// What the directory has, as the watch tells; `None`: it has to be listed.
    names: Option<Names>,
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
    /// The place that `location` names, if this process knows it and nothing has changed there.
    pub fn known(location: &Location, access: &Access, service: &Handle) -> Option<Arc<Lookout>> {
        let lookouts = service.lookouts.lock();
        let mut known = lookouts.iter().filter_map(Weak::upgrade);
        let known = known.find(|known| known.location == *location && known.directory().access() == access)?;
        drop(lookouts);
        known.directory().is_in_order_at(location).then_some(known)
    }

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
            doors: Arc::default(),
            reminded: Mutex::default(),
            unattended: Mutex::default(),
            announcements: Mutex::default(),
            neighbours: Mutex::default(),
            acceptors: Acceptors::default(),
            service: Arc::downgrade(service),
            state: Mutex::default(),
        });
        lookouts.push(Arc::downgrade(&lookout));
        let looking = Arc::downgrade(&lookout);
        service.after(LOOK_EVERY, move |_, _, _| {
            let Some(lookout) = looking.upgrade() else { return Next::Done };
            lookout.look(&mut lookout.state.lock());
            Next::After(LOOK_EVERY)
        });
        let tidying = Arc::downgrade(&lookout);
        service.after(TIDY_EVERY, move |_, _, _| {
            let Some(lookout) = tidying.upgrade() else { return Next::Done };
            lookout.tidy();
            Next::After(TIDY_EVERY)
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

    /// A name for a listener that is to be registered.
    pub fn new_listener(&self) -> ListenerId {
        let mut listeners = self.listeners.lock();
        listeners.last += 1;
        listeners.last
    }

    /// Tells `listener` of every publisher that is there, and from now on of every new one (perhaps twice). An error says what could
    /// not be done.
    pub fn register(
        self: &Arc<Self>,
        id: ListenerId,
        listener: &Arc<impl Listener + 'static>,
        door: &Arc<Door>,
    ) -> Result<(), (&'static str, io::Error)> {
        let mut state = self.state.lock();
        door.enlist(&self.doors, id).map_err(|error| ("cannot watch its descriptors", error))?;
        state.is_wanted = true;
        if state.watch.is_none() && !state.is_polling {
            self.watch(&mut state).map_err(|error| (CANNOT_WATCH, error))?;
        }
        self.hear(&mut state); // What has happened by now is in the names.
        let directory = self.directory();
        log::debug!("byref: publishers are looked for in {}", directory.path().display());
        if state.names.is_none() {
            state.names = Some(Names::in_directory(&directory).map_err(|error| (CANNOT_LIST, error))?);
        }
        let (weak, key): (Weak<dyn Listener>, _) = (Arc::downgrade(listener) as _, listener.key());
        self.listeners.lock().add(id, Known { listener: weak, key, door: Arc::downgrade(door) });
        let names = state.names.as_ref().map(|names| names.of(key)).unwrap_or_default();
        Arc::clone(listener).look_around(&directory, &names);
        drop(names);
        if state.watch.is_none() {
            state.names = None; // Nothing keeps them up to date.
        }
        Ok(())
    }

    /// A listener is closed.
    pub fn unregister(&self, id: ListenerId) {
        let known = self.listeners.lock().remove(id);
        self.reminded.lock().remove(&id);
        if let Some(door) = known.and_then(|known| known.door.upgrade()) {
            self.doors.remove(&door, id);
        }
    }

    /// Has a listener looked after soon, also if its descriptors say nothing.
    pub fn remind(&self, id: ListenerId) {
        self.reminded.lock().insert(id);
    }

    /// Looks after the listeners that need it: those that asked for it, and those whose doors say something for the second time in a
    /// row. A thread that receives, or polls, has most likely heard of the rest by itself, and would have to wait for this one.
    fn tidy(&self) {
        let saying = {
            let listeners = self.listeners.lock();
            let door = |id| listeners.known.get(&id).and_then(|known| known.door.upgrade());
            self.doors.that_ring(listeners.known.len(), |id| door(id).is_some_and(|door| door.is_rung()))
        };
        let mut due = std::mem::take(&mut *self.reminded.lock());
        due.extend(self.unattended.lock().of_those(saying));
        for id in due {
            let listener = self.listeners.lock().known.get(&id).and_then(|known| known.listener.upgrade());
            if listener.is_some_and(|listener| listener.tidy()) {
                self.remind(id);
            }
        }
    }

    /// Has what listens announced again whenever that is needed.
    pub fn enlist(&self, announcement: &Arc<Announcement>) {
        push_weak(&mut self.announcements.lock(), Arc::downgrade(announcement));
    }

    /// Tells a mailbox, which has a listener, too, what happens to the names of others.
    pub fn add_neighbour(&self, neighbour: Weak<dyn Neighbour>) {
        push_weak(&mut self.neighbours.lock(), neighbour);
    }

    fn tell_neighbours(&self, tell: impl Fn(&dyn Neighbour)) {
        let neighbours: Vec<_> = self.neighbours.lock().iter().filter_map(Weak::upgrade).collect();
        neighbours.iter().for_each(|neighbour| tell(&**neighbour)); // Without the lock: they log.
    }

    fn listeners(&self) -> Vec<Arc<dyn Listener>> {
        self.listeners.lock().known.values().filter_map(|known| known.listener.upgrade()).collect()
    }

    fn has_listeners(&self) -> bool {
        self.listeners.lock().known.values().any(|known| known.listener.strong_count() > 0)
    }

    /// Hears what the watch has to tell, and tells those whom it concerns.
    fn hear(self: &Arc<Self>, state: &mut State) {
        let Some((watch, _)) = &state.watch else { return };
        match watch.told() {
            Told::News(news) => {
                for news in news {
                    self.tell(state, news);
                }
            }
            Told::Missed => self.start_over(state),
            Told::Gone => {
                self.unwatch(state);
                self.look(state);
            }
        }
    }

    fn tell(&self, state: &mut State, news: News) {
        let (News::Appeared(name) | News::Vanished(name)) = &news;
        if names::is_mailbox(name) || names::is_party(name) {
            self.tell_neighbours(|neighbour| match &news {
                News::Appeared(_) => neighbour.appeared(),
                News::Vanished(name) => neighbour.vanished(name),
            });
        }
        let Some(key) = names::key_in(name) else { return };
        let concerned = self.listeners.lock().concerned(key); // Without the lock: they connect, and log.
        for listener in concerned {
            match &news {
                News::Appeared(name) => listener.appeared(name),
                News::Vanished(name) => listener.vanished(name),
            }
        }
        let Some(names) = &mut state.names else { return };
        match news {
            News::Appeared(name) => names.insert(key, name),
            News::Vanished(name) => names.remove(key, &name),
        }
    }

    /// As when the watch could not keep up.
    #[cfg(all(test, not(loom)))]
    pub fn miss_something(&self) {
        self.start_over(&mut self.state.lock());
    }

    /// Lists the directory anew, for all listeners.
    fn start_over(&self, state: &mut State) {
        let directory = self.directory();
        let names = match Names::in_directory(&directory) {
            Ok(names) => names,
            Err(error) => {
                log::error!("byref: cannot list {}, trying again: {error}", directory.path().display());
                return state.forget();
            }
        };
        for listener in self.listeners() {
            let concerned = names.of(listener.key());
            listener.look_around(&directory, &concerned);
        }
        state.names = state.watch.is_some().then_some(names);
        self.tell_neighbours(|neighbour| neighbour.missed_something());
    }

    /// Looks whether newcomers meet somewhere else by now, and whether they find what listens here.
    fn look(self: &Arc<Self>, state: &mut State) {
        let directory = self.directory();
        if directory.is_at(&self.location) {
            state.told = None;
        } else {
            match directory.successor(&self.location) {
                Ok(Some(successor)) => return self.move_to(state, Arc::new(successor)),
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
        if state.is_wanted && !self.has_listeners() {
            (state.is_wanted, state.is_polling) = (false, false);
            self.unwatch(state);
            self.doors.clear();
        } else if state.is_wanted && state.watch.is_none() {
            match self.watch(state) {
                Ok(()) if state.watch.is_some() => self.start_over(state), // First watch, then list.
                Ok(()) => {}
                Err(error) => log::debug!("byref: {CANNOT_WATCH}, trying again: {error}"),
            }
        } else if state.is_wanted && state.watch.is_some() && state.names.is_none() {
            self.start_over(state);
        }
        self.look_at_names(state);
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
        self.start_over(state);
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
            self.start_over(state);
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
            lookout.hear(&mut lookout.state.lock());
            Next::Keep
        })?;
        state.watch = Some((watch, task));
        if std::mem::replace(&mut state.is_polling, false) {
            log::info!("byref: {} is watched again", directory.path().display());
        }
        Ok(())
    }

    fn unwatch(&self, state: &mut State) {
        state.names = None;
        if let (Some(service), Some((_, task))) = (self.service.upgrade(), state.watch.take()) {
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
        if let (Some(service), Some((_, task))) = (self.service.upgrade(), self.state.lock().watch.take()) {
            service.cancel(task);
        }
    }
}
