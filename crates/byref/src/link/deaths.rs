//! Who wants to know of the death of a process: one descriptor and one task of the service thread for each process, however many
//! endpoints of this one are connected to it.

use crate::link::tasks::{Next, Service, Token};
use crate::sync::locks::Mutex;
use crate::sys::epoll::Interest;
use crate::sys::fork::ForkId;
use crate::sys::process::{self, Process};
use rustix::process::Pid;
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, OnceLock, Weak};

type Told = Box<dyn FnOnce() + Send>;

/// The processes that are watched.
#[derive(Default)]
pub(crate) struct Deaths(Mutex<HashMap<Pid, Weak<Watched>>>);

/// A process.
struct Watched {
    pid: Pid,
    fd: Arc<rustix::fd::OwnedFd>,
    service: Arc<Service>,
    task: OnceLock<Token>,
    vigils: Mutex<Vigils>,
}

#[derive(Default)]
struct Vigils {
    told: HashMap<u64, Told>,
    last: u64,
    /// It died, and all who were there were told.
    is_over: bool,
}

/// What is known of a process. As long as it is kept, somebody is told of the death of one that lived.
#[derive(Default)]
pub(crate) struct Liveness {
    /// It was dead already. (Of one that cannot be watched, see [`Process::Unknown`], hang-up of the socket is the only sign.)
    pub is_dead: bool,
    vigil: Option<Vigil>,
}

/// Somebody's wish to be told; dropping it withdraws that.
struct Vigil {
    watched: Arc<Watched>,
    number: u64,
    made_in: ForkId,
}

impl Liveness {
    /// Whether it is dead by now, before anybody was told. (Of one that cannot be watched, no.)
    pub fn has_died(&self) -> bool {
        self.is_dead || self.vigil.as_ref().is_some_and(|vigil| process::is_dead(&vigil.watched.fd))
    }
}

impl Deaths {
    /// Has `told` called on the service thread when the process dies. An error says that this process is short of something.
    pub fn watch(
        &self,
        service: &Arc<Service>,
        pid: Option<Pid>,
        told: impl FnOnce() + Send + 'static,
    ) -> io::Result<Liveness> {
        let dead = || Ok(Liveness { is_dead: true, vigil: None });
        let alive = |vigil| Ok(Liveness { is_dead: false, vigil: Some(vigil) });
        let Some(pid) = pid else { return Ok(Liveness::default()) };
        let mut all = self.0.lock();
        let known = all.get(&pid).and_then(Weak::upgrade);
        // One that is dead already may have had the number before.
        let known = known.filter(|watched| !process::is_dead(&watched.fd));
        let mut told: Told = Box::new(told);
        if let Some(known) = known {
            match known.keep_vigil(told) {
                Ok(vigil) => return alive(vigil),
                Err(back) => told = back,
            }
        }
        let fd = match Process::find(Some(pid))? {
            Process::Alive(fd) => Arc::new(fd),
            Process::Dead => return dead(),
            Process::Unknown => return Ok(Liveness::default()),
        };
        let (task, vigils) = (OnceLock::new(), Mutex::default());
        let watched = Arc::new(Watched { pid, fd, service: Arc::clone(service), task, vigils });
        let dying = Arc::downgrade(&watched);
        let task = service.watch(Arc::clone(&watched.fd), Interest::IN, None, move |_, _, _| {
            if let Some(watched) = dying.upgrade() {
                watched.died();
            }
            Next::Done
        })?;
        let _ = watched.task.set(task);
        all.retain(|_, known| known.strong_count() > 0);
        all.insert(pid, Arc::downgrade(&watched));
        match watched.keep_vigil(told) {
            Ok(vigil) => alive(vigil),
            Err(_) => dead(), // Just now.
        }
    }
}

impl Watched {
    /// Gives `told` back if it is too late.
    fn keep_vigil(self: Arc<Self>, told: Told) -> Result<Vigil, Told> {
        let mut vigils = self.vigils.lock();
        if vigils.is_over {
            return Err(told);
        }
        vigils.last += 1;
        let number = vigils.last;
        vigils.told.insert(number, told);
        drop(vigils);
        Ok(Vigil { watched: self, number, made_in: ForkId::current() })
    }

    fn died(&self) {
        let told = {
            let mut vigils = self.vigils.lock();
            vigils.is_over = true;
            std::mem::take(&mut vigils.told)
        };
        log::debug!("byref: process {} died; {} connections to it end", self.pid.as_raw_nonzero(), told.len());
        told.into_values().for_each(|told| told());
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(task) = self.task.get() {
            self.service.cancel(*task);
        }
    }
}

impl Drop for Vigil {
    fn drop(&mut self) {
        if self.made_in.is_current() {
            let told = self.watched.vigils.lock().told.remove(&self.number);
            drop(told); // Without the lock.
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::link::service;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::{Duration, Instant};

    #[test]
    fn all_who_keep_vigil_are_told_once_and_nobody_else() {
        let _meeting = crate::link::meeting::meet_in_private();
        let (_, handle) = service::connect("t").unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_child(&child);
        let told = Arc::new(AtomicU32::new(0));
        let watch = || {
            let told = Arc::clone(&told);
            let count = move || {
                told.fetch_add(1, Ordering::Relaxed);
            };
            handle.deaths.watch(&handle, Some(pid), count).unwrap()
        };
        let vigils = [watch(), watch(), watch()];
        let watched = vigils.each_ref().map(|it| Arc::as_ptr(&it.vigil.as_ref().expect("it lives").watched));
        assert!(watched.iter().all(|it| *it == watched[0]), "one descriptor for all");
        drop(watch());
        assert!(!vigils[0].has_died());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(vigils[0].has_died(), "whether or not anybody was told");
        let begin = Instant::now();
        while told.load(Ordering::Relaxed) < 3 {
            assert!(begin.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(watch().is_dead);
        assert_eq!(told.load(Ordering::Relaxed), 3);
    }
}
