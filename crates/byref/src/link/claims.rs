//! Claims on addresses: of all mailboxes in a rendezvous directory, one at a time has an address.
//!
//! A claim is a lock on one byte of the file `addresses` in the directory, at a place that follows from the address. The kernel decides
//! between two who claim at the same time, and gives the byte back when its process dies, whatever it was doing, also while a forked
//! child lives on. Whoever has the claim may put its socket in the place of what a dead holder left under the address's name; nobody
//! else touches that name.
//!
//! These locks are a process's own, and go when it closes any descriptor of the file. So a process opens the file once, keeps it open
//! as long as it has a claim there, and remembers which bytes are its own: the kernel would give them to it again.

use crate::link::rendezvous::{Announced, Directory};
use crate::sync::locks::Mutex;
use crate::sys::fork::{ForkId, PerProcess};
use crate::sys::ranges;
use crate::topic;
use rustix::fd::OwnedFd;
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Weak};

/// The files of the directories that this process has claims in, by device and inode.
static FILES: PerProcess<Mutex<Files>> = PerProcess::new(Mutex::default);

type Files = HashMap<(u64, u64), Arc<Addresses>>;

/// The file of one directory.
struct Addresses {
    fd: OwnedFd,
    /// By byte: whose it is. (Whoever looks must not keep a claim alive: to let go of the last one takes these locks.)
    own: Mutex<HashMap<u64, (u128, Weak<Claim>)>>,
}

/// An address is this process's, for whoever has the number `owner`.
pub(crate) struct Claim {
    byte: u64,
    identity: (u64, u64),
    /// Until it is dropped.
    file: Option<Arc<Addresses>>,
    made_in: ForkId,
}

/// What became of an attempt.
pub(crate) enum Attempted {
    Taken(Arc<Claim>),
    /// It is another one's, in the process of this number (0: out of sight).
    Held(i32),
}

/// The byte for an address whose hash is this.
fn byte_of(hash: u128) -> u64 {
    (hash as u64) >> 2 // Offsets have a sign, and end before the last one.
}

impl Claim {
    /// Takes the claim that a name needs, if it needs one.
    pub fn for_name(who: &Announced, directory: &Directory) -> io::Result<Option<Arc<Self>>> {
        let Announced::Mailbox { address, id } = who else { return Ok(None) };
        match Claim::attempt(directory, topic::wide_hash(address), *id)? {
            Attempted::Taken(claim) => Ok(Some(claim)),
            Attempted::Held(pid) => {
                Err(io::Error::new(io::ErrorKind::AddrInUse, format!("process {pid} has the address '{address}'")))
            }
        }
    }

    /// Claims the address of that hash in `directory`. What `owner` has already it gets again.
    pub fn attempt(directory: &Directory, hash: u128, owner: u128) -> io::Result<Attempted> {
        let mut files = FILES.get().lock();
        // Only one that is not open yet is opened.
        let known =
            directory.identity_of_addresses().and_then(|identity| Some((identity, files.get(&identity)?.clone())));
        let (identity, file) = match known {
            Some(known) => known,
            None => {
                let (fd, identity) = directory.open_addresses()?;
                let file = Arc::new(Addresses { fd, own: Mutex::default() });
                files.insert(identity, Arc::clone(&file));
                (identity, file)
            }
        };
        let byte = byte_of(hash);
        let mut own = file.own.lock();
        match own.get(&byte) {
            Some((owned_by, claim)) if *owned_by == owner => {
                if let Some(claim) = claim.upgrade() {
                    return Ok(Attempted::Taken(claim));
                }
            }
            Some((_, claim)) if claim.strong_count() > 0 => return Ok(Attempted::Held(own_pid())),
            _ => {}
        }
        let is_taken = ranges::try_lock(&file.fd, byte);
        fault!("claim.locked");
        match is_taken {
            Ok(true) => {
                let claim =
                    Arc::new(Claim { byte, identity, file: Some(Arc::clone(&file)), made_in: ForkId::current() });
                own.insert(byte, (owner, Arc::downgrade(&claim)));
                drop(own);
                Ok(Attempted::Taken(claim))
            }
            failed => {
                let holder = ranges::holder(&file.fd, byte).unwrap_or(0);
                drop(own);
                forget_unused(&mut files, identity);
                failed.map(|_| Attempted::Held(holder))
            }
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.made_in.is_current() {
            return; // The parent has it.
        }
        fault!("claim.unlocking");
        let mut files = FILES.get().lock();
        let Some(file) = self.file.take() else { return };
        {
            let mut own = file.own.lock();
            // Somebody of this process may have asked since nobody had this one any more, and have got the byte.
            if own.get(&self.byte).is_none_or(|(_, claim)| claim.strong_count() == 0) {
                own.remove(&self.byte);
                ranges::unlock(&file.fd, self.byte);
            }
        }
        forget_unused(&mut files, self.identity);
        // Closed before anybody can open it anew: closing it gives back all locks of the process.
        drop(file);
        drop(files);
    }
}

/// Closes the file, unless there are claims in it.
fn forget_unused(files: &mut Files, identity: (u64, u64)) {
    if files.get(&identity).is_some_and(|file| file.own.lock().is_empty()) {
        files.remove(&identity);
    }
}

fn own_pid() -> i32 {
    std::process::id() as i32
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::link::location::Location;

    fn directory() -> Directory {
        Directory::open(&Location::from_environment().unwrap(), "t").unwrap()
    }

    fn is_taken(attempted: io::Result<Attempted>) -> Option<Arc<Claim>> {
        match attempted.unwrap() {
            Attempted::Taken(claim) => Some(claim),
            Attempted::Held(pid) => {
                assert_eq!(pid, own_pid());
                None
            }
        }
    }

    #[test]
    fn an_address_has_one_owner_at_a_time() {
        let _meeting = crate::fuzzing::meet_in_private();
        let (first, second) = (directory(), directory());
        let claim = is_taken(Claim::attempt(&first, 5 << 2, 1)).expect("it is free");
        assert!(is_taken(Claim::attempt(&second, 5 << 2, 2)).is_none());
        assert!(is_taken(Claim::attempt(&second, 5 << 2, 1)).is_some(), "its owner");
        let other = is_taken(Claim::attempt(&second, 6 << 2, 2)).expect("another address");
        drop(claim);
        let claim = is_taken(Claim::attempt(&first, 5 << 2, 2)).expect("it is free again");
        drop((claim, other));
        let identity = first.identity_of_addresses().unwrap();
        assert!(!FILES.get().lock().contains_key(&identity), "nobody needs the file");
    }
}
