//! The service of this process, and what all its endpoints share: the places where they meet others, and the processes that they are
//! connected with.

use crate::error::{Error, Result};
use crate::link::access::Access;
use crate::link::deaths::Deaths;
use crate::link::location::Location;
use crate::link::lookout::Lookout;
use crate::link::rendezvous::Directory;
use crate::link::sweep;
use crate::link::tasks::{Next, Service};
use crate::sync::locks::Mutex;
use crate::sys::fork::{ForkId, PerProcess};
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Keeps the service running; every endpoint has one.
pub(crate) struct Handle {
    service: Arc<Service>,
    /// The places where this process's endpoints meet others.
    pub lookouts: Mutex<Vec<Weak<Lookout>>>,
    /// The processes with which they are connected.
    pub deaths: Deaths,
}

/// The running service of this process, if any.
static RUNNING: PerProcess<Mutex<Weak<Handle>>> = PerProcess::new(Mutex::default);

impl Handle {
    fn running() -> Option<Arc<Handle>> {
        RUNNING.get().lock().upgrade()
    }

    /// The service of this process, started when there is none. The first start also clears `directory` of what dead
    /// publishers left there.
    pub fn get(directory: &Arc<Directory>) -> io::Result<Arc<Handle>> {
        let mut running = RUNNING.get().lock();
        if let Some(handle) = running.upgrade() {
            return Ok(handle);
        }
        let service = Service::start()?;
        let directory = Arc::clone(directory);
        service.after(Duration::ZERO, move |_, _, _| {
            sweep::sweep(&directory);
            Next::Done
        });
        let handle = Arc::new(Handle { service, lookouts: Mutex::default(), deaths: Deaths::default() });
        *running = Arc::downgrade(&handle);
        Ok(handle)
    }
}

impl std::ops::Deref for Handle {
    type Target = Arc<Service>;

    fn deref(&self) -> &Arc<Service> {
        &self.service
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.service.stop();
    }
}

/// The place where endpoints meet, and the service, as an endpoint on `topic` needs them.
pub(crate) fn connect(topic: &str) -> Result<(Arc<Lookout>, Arc<Handle>)> {
    let (location, access) = (Location::from_environment()?, Access::from_environment()?);
    let cannot_start = || Error::system(topic, "cannot start the service thread");
    ForkId::prepare().map_err(cannot_start())?;
    if let Some(handle) = Handle::running()
        && let Some(lookout) = Lookout::known(&location, &access, &handle)
    {
        return Ok((lookout, handle));
    }
    let directory = Arc::new(Directory::open_for(access, &location, topic)?);
    let handle = Handle::get(&directory).map_err(cannot_start())?;
    Ok((Lookout::over(location, directory, &handle), handle))
}
