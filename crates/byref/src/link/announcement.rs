//! What listens under a name in the rendezvous directory: a publisher, or an event queue. When its name vanishes, or newcomers meet in
//! another directory, it is announced anew under another name.

use crate::error::{Error, Result};
use crate::link::lookout::Lookout;
use crate::link::rendezvous::{Announced, CANNOT_LISTEN, Directory};
use crate::link::service::{Handle, Next, Service, Token};
use crate::sync::locks::Mutex;
use crate::sys::epoll::Interest;
use crate::sys::socket;
use rustix::fd::OwnedFd;
use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// The most connections that are accepted at once: the service thread has other tasks, too.
const ACCEPTED_AT_ONCE: usize = 32;
/// A process that could not accept, most likely for want of descriptors, tries again after this time. Who waits stays in the backlog.
const PAUSE: Duration = Duration::from_millis(10);

/// Whom others connect to.
pub(crate) trait Host: Send + Sync {
    /// Somebody has connected.
    fn receive(&self, service: &Arc<Service>, guest: OwnedFd);
    /// Nobody can be accepted at the moment.
    fn is_short_of(&self, error: &io::Error);
}

/// Accepts who waits at a socket of a directory.
fn accept(host: &dyn Host, service: &Arc<Service>, directory: &Directory, listening: &OwnedFd) -> Next {
    for _ in 0..ACCEPTED_AT_ONCE {
        fault!("accept.before");
        match directory.accept(listening) {
            Ok(Some(guest)) => {
                fault!("accept.accepted");
                host.receive(service, guest);
            }
            Ok(None) => break,
            Err(error) => {
                host.is_short_of(&error);
                return Next::Pause(PAUSE);
            }
        }
    }
    Next::Keep // Others may wait; the service's other tasks go first.
}

/// A listening socket, and its name.
pub(crate) struct Announcement {
    /// Keeps the place alive, which looks after the name.
    lookout: Arc<Lookout>,
    service: Weak<Handle>,
    host: Arc<dyn Host>,
    /// `None` once it is withdrawn.
    place: Mutex<Option<Place>>,
}

struct Place {
    who: Announced,
    name: String,
    directory: Arc<Directory>,
    socket: Arc<OwnedFd>,
    task: Token,
    /// It could not be announced anew; that was logged.
    is_told: bool,
}

impl Announcement {
    /// Listens in the place where endpoints meet. `topic`: for errors.
    pub fn new(
        lookout: &Arc<Lookout>,
        service: &Arc<Handle>,
        topic: &str,
        who: Announced,
        host: Arc<dyn Host>,
    ) -> Result<Arc<Self>> {
        let directory = lookout.directory();
        let place = Place::take(service, &directory, who, &host);
        let place = place.map_err(Error::meeting(topic, directory.path(), CANNOT_LISTEN))?;
        log::debug!("byref: topic '{topic}': announced as {} in {}", place.name, directory.path().display());
        let announcement = Arc::new(Announcement {
            lookout: Arc::clone(lookout),
            service: Arc::downgrade(service),
            host,
            place: Mutex::new(Some(place)),
        });
        lookout.enlist(&announcement);
        // The others may have moved before it was among them.
        announcement.renew_if(|place| !Arc::ptr_eq(&place.directory, &lookout.directory()), &lookout.directory());
        Ok(announcement)
    }

    /// The place where it is announced.
    pub fn lookout(&self) -> &Arc<Lookout> {
        &self.lookout
    }

    /// Takes another name in `directory`, unless its own is among those that are there. `false`: it has to be tried again.
    pub fn renew_unless_in(&self, directory: &Arc<Directory>, names: &HashSet<String>) -> bool {
        let is_lost = |place: &Place| {
            // It may have been announced here after the names were listed.
            !Arc::ptr_eq(&place.directory, directory) || (!names.contains(&place.name) && !directory.has(&place.name))
        };
        self.renew_if(is_lost, directory)
    }

    fn renew_if(&self, is_lost: impl FnOnce(&Place) -> bool, directory: &Arc<Directory>) -> bool {
        let mut guard = self.place.lock();
        let (Some(place), Some(service)) = (guard.as_mut(), self.service.upgrade()) else { return true };
        if !is_lost(place) {
            return true;
        }
        let renewed = match Place::take(&service, directory, place.who.clone().again(), &self.host) {
            Ok(renewed) => renewed,
            Err(error) => {
                if !std::mem::replace(&mut place.is_told, true) {
                    log::warn!("byref: {}: {CANNOT_LISTEN}, trying again: {error}", directory.path().display());
                }
                return false;
            }
        };
        log::info!("byref: {} was gone; announced anew as {}", place.name, renewed.name);
        let former = std::mem::replace(place, renewed);
        drop(guard); // Accepting may end whoever listens, which takes this back.
        service.cancel(former.task);
        // Who is among those that wait there has found it.
        let _ = accept(&*self.host, &service, &former.directory, &former.socket);
        former.leave();
        fault!("renew.former_left");
        true
    }

    /// Takes the name back: nobody can connect any more.
    pub fn withdraw(&self) {
        let Some(place) = self.place.lock().take() else { return };
        if let Some(service) = self.service.upgrade() {
            service.cancel(place.task);
        }
        place.leave();
    }
}

impl Place {
    fn take(service: &Handle, directory: &Arc<Directory>, who: Announced, host: &Arc<dyn Host>) -> io::Result<Self> {
        let (socket, name) = directory.listen(&who)?;
        let socket = Arc::new(socket);
        let (listening, meeting, host) = (Arc::clone(&socket), Arc::clone(directory), Arc::clone(host));
        let watched = service.watch(Arc::clone(&socket), Interest::IN, None, move |service, _, _| {
            accept(&*host, service, &meeting, &listening)
        });
        match watched {
            Ok(task) => Ok(Place { who, name, directory: Arc::clone(directory), socket, task, is_told: false }),
            Err(error) => {
                directory.remove(&name);
                Err(error)
            }
        }
    }

    fn leave(&self) {
        self.directory.remove(&self.name);
        fault!("close.publisher_unlinked");
        socket::hang_up(&self.socket); // A forked child may have it, and would never accept.
    }
}
