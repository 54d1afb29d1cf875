//! What this host has for byref, and what it lacks.

use crate::error::Result;
use crate::link::ask::{Answered, look_at};
use crate::link::location::Location;
use crate::link::names::is_final;
use crate::link::rendezvous::Directory;
use crate::sys::memory::{OwnedSegment, PeerSegment};
use crate::sys::socket::Connect;
use crate::sys::{cgroup, futex, limits, membarrier};
use rustix::process::{Resource, getrlimit};
use std::fs;

/// What was found out about one thing.
#[derive(Clone, Debug)]
pub struct Check {
    /// The thing.
    pub what: &'static str,
    /// How it is.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do.
    pub advice: Option<String>,
}

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// As it should be.
    Good,
    /// byref works, with less comfort or speed.
    Poor,
    /// byref does not work.
    Bad,
}

/// Control groups of the first version write their having no limit as a number beyond this one.
const MORE_THAN_THERE_IS: u64 = 1 << 50;
/// So many descriptors are enough for most programs.
const ENOUGH_DESCRIPTORS: u64 = 4096;

/// Looks at the kernel, the limits of this process, the rendezvous directory, and who is there. It takes up to a second.
pub fn checks() -> Vec<Check> {
    let mut checks =
        vec![kernel(), sealed_memory(), barrier(), waking(), descriptors(), watches(), mappings(), memory()];
    match Location::from_environment().and_then(|location| Directory::open(&location, "*")) {
        Ok(directory) => {
            checks.push(good("directory", directory.path().display().to_string()));
            checks
                .extend(neighbours(&directory).unwrap_or_else(|error| vec![bad("neighbours", error.to_string(), "")]));
        }
        Err(error) => checks.push(bad("directory", error.to_string(), "")),
    }
    checks
}

fn good(what: &'static str, found: impl Into<String>) -> Check {
    Check { what, state: State::Good, found: found.into(), advice: None }
}

fn poor(what: &'static str, found: impl Into<String>, advice: &str) -> Check {
    Check {
        what,
        state: State::Poor,
        found: found.into(),
        advice: Some(advice.into()).filter(|it: &String| !it.is_empty()),
    }
}

fn bad(what: &'static str, found: impl Into<String>, advice: &str) -> Check {
    Check { state: State::Bad, ..poor(what, found, advice) }
}

fn kernel() -> Check {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy().into_owned();
    let found = format!("Linux {release}");
    match version(&release) {
        Some(version) if version < (5, 1) => bad("kernel", found, "byref needs Linux 5.1 or later"),
        Some(version) if version < (5, 16) => {
            poor("kernel", found, "with Linux 5.16 or later many subscribers are woken by one system call")
        }
        _ => good("kernel", found),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(['.', '-']).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// A segment as publishers make them, and as subscribers check them.
fn sealed_memory() -> Check {
    let made = OwnedSegment::new("byref-doctor", 4096)
        .and_then(|segment| segment.shared().try_clone_to_owned())
        .and_then(|shared| PeerSegment::new(shared, Some(4096)).map_err(|(error, _)| error));
    match made {
        Ok(_) => good("sealed memory", "works"),
        Err(error) => {
            let advice = format!("memfd_create or a seal is refused{}", limits::sandbox(&error));
            bad("sealed memory", error.to_string(), &advice)
        }
    }
}

fn barrier() -> Check {
    if membarrier::works() {
        return good("membarrier", "works");
    }
    poor("membarrier", "is refused", "each send has a fence of its own; let the sandbox allow membarrier(2)")
}

fn waking() -> Check {
    if futex::available() {
        return good("futex_waitv", "works");
    }
    let advice = "publishers wake subscribers one by one; Linux 5.16 has it, unless a sandbox refuses it";
    poor("futex_waitv", "is missing", advice)
}

fn descriptors() -> Check {
    let limit = getrlimit(Resource::Nofile);
    let tell = |limit: Option<u64>| limit.map_or_else(|| "any number".to_owned(), |limit| limit.to_string());
    let found = format!("{} per process, {} at the most", tell(limit.current), tell(limit.maximum));
    if limit.maximum.is_some_and(|most| most < ENOUGH_DESCRIPTORS) {
        return poor(
            "descriptors",
            found,
            "programs with hundreds of topics need more: raise the hard limit (ulimit -Hn)",
        );
    }
    good("descriptors", found)
}

fn watches() -> Check {
    let most = fs::read_to_string("/proc/sys/fs/inotify/max_user_instances").unwrap_or_default();
    let made = rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::CLOEXEC);
    match made {
        Ok(_) => good("watches", format!("inotify works, for {} processes of a user", most.trim())),
        Err(error) => {
            let advice =
                "subscribers look for new publishers five times a second instead; raise fs.inotify.max_user_instances";
            poor("watches", format!("inotify: {}", std::io::Error::from(error)), advice)
        }
    }
}

fn mappings() -> Check {
    let most = fs::read_to_string("/proc/sys/vm/max_map_count").unwrap_or_default();
    good("mappings", format!("{} per process", most.trim()))
}

fn memory() -> Check {
    match cgroup::memory_limit().filter(|limit| *limit < MORE_THAN_THERE_IS) {
        Some(limit) => good("memory", format!("a control group limits it to {} MiB", limit >> 20)),
        None => good("memory", "no control group limits it"),
    }
}

/// Who listens in the directory, and who does not any more.
fn neighbours(directory: &Directory) -> Result<Vec<Check>> {
    let unreadable = || crate::Error::system("*", "cannot look at the rendezvous directory");
    let names: Vec<_> = directory.entries().map_err(unreadable())?.into_iter().filter(|name| is_final(name)).collect();
    let is_stale = |name: &&String| matches!(directory.connect(name), Ok(Connect::Refused));
    let stale = names.iter().filter(is_stale).count();
    let mut answered = vec![false; names.len()];
    look_at(directory, &names, |place, _| {
        answered[place] = true;
        Answered::All
    })
    .map_err(unreadable())?;
    let silent = answered.iter().filter(|it| !**it).count() - stale;
    let mut checks = vec![match silent {
        0 => good("publishers", format!("{} answer", names.len() - stale)),
        silent => poor(
            "publishers",
            format!("{silent} of {} do not answer", names.len() - stale),
            "their processes are stopped, or starved of the processor",
        ),
    }];
    if stale > 0 {
        checks.push(poor(
            "stale sockets",
            format!("{stale} of processes that were killed"),
            "nothing: they go when the next program looks around",
        ));
    }
    Ok(checks)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn versions_of_kernels() {
        for (release, expected) in
            [("6.18.0-azure", Some((6, 18))), ("5.4.0", Some((5, 4))), ("4.19-rc1", Some((4, 19))), ("odd", None)]
        {
            assert_eq!(version(release), expected);
        }
    }

    #[test]
    fn this_host_is_fit() {
        let _meeting = crate::link::meeting::meet_in_private();
        let publisher = crate::Publisher::builder("t").build().unwrap();
        let checks = checks();
        assert!(checks.iter().all(|check| check.state != State::Bad), "{checks:?}");
        let publishers = checks.iter().find(|check| check.what == "publishers").unwrap();
        assert_eq!(publishers.found, "1 answer");
        drop(publisher);
    }
}
