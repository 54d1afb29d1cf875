//! What is announced under a name in the rendezvous directory: a publisher, or an event queue. When its name vanishes, or newcomers meet in
//! another directory, it is announced anew under another name.

use crate::error::{Error, Result};
use crate::link::acceptor::{Host, Place};
use crate::link::lookout::Lookout;
use crate::link::rendezvous::{Announced, CANNOT_LISTEN, Directory};
use crate::link::service::Handle;
use crate::sync::locks::Mutex;
use std::collections::HashSet;
use std::sync::{Arc, Weak};

/// A publisher's or a queue's name.
pub(crate) struct Announcement {
    /// Keeps the place alive, which looks after the name.
    lookout: Arc<Lookout>,
    service: Weak<Handle>,
    host: Weak<dyn Host>,
    /// `None` once it is withdrawn.
    state: Mutex<Option<State>>,
}

struct State {
    place: Place,
    /// It could not be announced anew; that was logged.
    is_told: bool,
}

impl Announcement {
    /// Announces `host` where endpoints meet. `topic`: for errors.
    pub fn new(
        lookout: &Arc<Lookout>,
        service: &Arc<Handle>,
        topic: &str,
        who: Announced,
        host: Weak<dyn Host>,
    ) -> Result<Arc<Self>> {
        let directory = lookout.directory();
        let place = lookout.acceptors().announce(service, &directory, who, &host);
        let place = place.map_err(Error::meeting(topic, directory.path(), CANNOT_LISTEN))?;
        log::debug!("byref: topic '{topic}': announced as {} in {}", place.name, directory.path().display());
        let announcement = Arc::new(Announcement {
            lookout: Arc::clone(lookout),
            service: Arc::downgrade(service),
            host,
            state: Mutex::new(Some(State { place, is_told: false })),
        });
        lookout.enlist(&announcement);
        // The others may have moved before it was among them.
        announcement.renew_if(|place| !Arc::ptr_eq(place.directory(), &lookout.directory()), &lookout.directory());
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
            !Arc::ptr_eq(place.directory(), directory) || (!names.contains(&place.name) && !directory.has(&place.name))
        };
        self.renew_if(is_lost, directory)
    }

    fn renew_if(&self, is_lost: impl FnOnce(&Place) -> bool, directory: &Arc<Directory>) -> bool {
        let mut guard = self.state.lock();
        let (Some(state), Some(service)) = (guard.as_mut(), self.service.upgrade()) else { return true };
        if !is_lost(&state.place) {
            return true;
        }
        let acceptors = self.lookout.acceptors();
        let renewed = match acceptors.announce(&service, directory, state.place.who.clone().again(), &self.host) {
            Ok(renewed) => renewed,
            Err(error) => {
                if !std::mem::replace(&mut state.is_told, true) {
                    log::warn!("byref: {}: {CANNOT_LISTEN}, trying again: {error}", directory.path().display());
                }
                state.place.who = state.place.who.clone().again(); // That name may be somebody else's.
                return false;
            }
        };
        log::info!("byref: {} was gone; announced anew as {}", state.place.name, renewed.name);
        let former = std::mem::replace(state, State { place: renewed, is_told: false });
        drop(guard); // Accepting may end whoever listens, which takes this back.
        // Who is among those that wait there has found it.
        acceptors.answer_all(&former.place, &service);
        let guard = self.state.lock();
        acceptors.leave(&former.place, guard.as_ref().map(|state| &state.place), Some(&service));
        drop(guard);
        fault!("renew.former_left");
        true
    }

    /// Takes the name back: nobody can connect any more.
    pub fn withdraw(&self) {
        let Some(state) = self.state.lock().take() else { return };
        self.lookout.acceptors().leave(&state.place, None, self.service.upgrade().as_deref());
    }
}
