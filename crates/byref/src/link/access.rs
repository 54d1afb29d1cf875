//! Who may connect: processes of the same user, and those whom `$BYREF_ALLOW` names: `user:NAME` and `group:NAME` (or
//! numbers), separated by commas.
//!
//! The permissions of the rendezvous directory keep everybody else out. Beside that, both sides ask the kernel who is at the other
//! end of each connection.

use crate::error::{Error, Result};
use crate::sys::{socket, users};
use rustix::fd::AsFd;
use rustix::fs::Stat;

/// Whom this process talks to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    own: u32,
    users: Vec<u32>,
    groups: Vec<u32>,
}

impl Access {
    /// What the environment says.
    pub fn from_environment() -> Result<Self> {
        let allowed = std::env::var("BYREF_ALLOW").unwrap_or_default();
        Self::parse(rustix::process::geteuid().as_raw(), &allowed)
    }

    fn parse(own: u32, allowed: &str) -> Result<Self> {
        let mut access = Access { own, users: Vec::new(), groups: Vec::new() };
        for entry in allowed.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            let number = match entry.split_once(':') {
                Some(("user", name)) => users::user(name).map(|user| access.users.push(user)),
                Some(("group", name)) => users::group(name).map(|group| access.groups.push(group)),
                _ => None,
            };
            if number.is_none() {
                let text = format!(
                    "BYREF_ALLOW: '{}' is no user or group of this system; write user:NAME or group:NAME, separated by commas",
                    entry.escape_debug()
                );
                return Err(Error::InvalidArgument(text));
            }
        }
        Ok(access)
    }

    /// The group for which a directory is made; `None`: for nobody else.
    pub fn group(&self) -> Option<u32> {
        self.groups.first().copied()
    }

    /// Whether anybody else may connect.
    pub fn is_shared(&self) -> bool {
        !self.users.is_empty() || !self.groups.is_empty()
    }

    /// Whether endpoints may meet in a directory: nobody may look into it who may not connect. Otherwise, why not. `told`: how users
    /// are called; to ask for a name may take long.
    pub fn check_directory(&self, stat: &Stat, told: fn(u32) -> String) -> Result<(), String> {
        let mode = stat.st_mode & 0o7777;
        let group_is_allowed = self.groups.contains(&stat.st_gid);
        if stat.st_uid != self.own && !self.users.contains(&stat.st_uid) && !group_is_allowed {
            return Err(format!(
                "it belongs to user {}, this process runs as user {} (mode {mode:04o}); set BYREF_DIR to a directory of your own, or, \
                 to meet that user's processes, BYREF_ALLOW=user:{} here and BYREF_ALLOW=user:{} there",
                told(stat.st_uid),
                told(self.own),
                stat.st_uid,
                self.own
            ));
        }
        // The bits of a group are also those of an access control list, which a directory for single users needs.
        let open_to_group = group_is_allowed || !self.users.is_empty();
        // Without the sticky bit, who may write could remove what belongs to others.
        let is_safe = mode & 0o020 == 0 || mode & 0o1000 != 0;
        if mode & 0o007 != 0 || mode & 0o700 != 0o700 || (mode & 0o070 != 0 && !open_to_group) || !is_safe {
            let (wanted, command) = if self.is_shared() { ("3770", "3770") } else { ("0700", "700") };
            return Err(format!(
                "its mode is {mode:04o}, owner user {}; it must be {wanted}: run `chmod {command}` on it",
                told(stat.st_uid)
            ));
        }
        Ok(())
    }

    /// Whether to talk to the process at the other end. Otherwise, why not.
    pub fn check_peer(&self, socket: impl AsFd) -> Result<(), String> {
        let Some(peer) = socket::peer_credentials(&socket) else { return Err("nobody knows who it is".into()) };
        let in_group = || {
            let groups = socket::peer_groups(&socket);
            self.groups.iter().any(|allowed| *allowed == peer.gid || groups.contains(allowed))
        };
        if peer.uid == self.own || self.users.contains(&peer.uid) || in_group() {
            return Ok(());
        }
        Err(format!("process {} runs as user {}; see BYREF_ALLOW", peer.pid, peer.uid))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_allowed() {
        let access = Access::parse(7, " user:root, group:12,user:5,").unwrap();
        assert_eq!(access, Access { own: 7, users: vec![0, 5], groups: vec![12] });
        assert!(!Access::parse(7, "").unwrap().is_shared());
        for wrong in ["root", "user:", "user:nobody at all", "group:-1", "everybody:x", "user:1;user:2"] {
            let refused = Access::parse(7, wrong).unwrap_err().to_string();
            assert!(refused.contains("BYREF_ALLOW") && refused.contains("user:NAME"), "{refused}");
        }
    }

    #[test]
    fn whom_to_talk_to() {
        let (own, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let (end, _other) = socket::pair().unwrap(); // Both are this process's.
        let check = |user, allowed: &str| Access::parse(user, allowed).unwrap().check_peer(&end);
        let another = own + 1;
        assert!(check(own, "").is_ok());
        assert!(check(another, "").unwrap_err().contains("BYREF_ALLOW"));
        assert!(check(another, &format!("user:{own}")).is_ok() && check(another, &format!("group:{group}")).is_ok());
        assert!(check(another, "user:4000000000,group:4000000000").is_err());
    }

    #[test]
    fn directories_for_one_user_and_for_several() {
        let check = |allowed: &str, uid: u32, gid: u32, mode: u32| {
            let mut stat = rustix::fs::stat("/").unwrap();
            (stat.st_uid, stat.st_gid, stat.st_mode) = (uid, gid, mode);
            Access::parse(7, allowed).unwrap().check_directory(&stat, |user| user.to_string()).is_ok()
        };
        assert!(check("", 7, 1, 0o40700));
        assert!(!check("", 8, 1, 0o40700) && !check("", 7, 1, 0o40750) && !check("", 7, 1, 0o40701));
        assert!(
            check("group:12", 7, 12, 0o43770)
                && check("group:12", 8, 12, 0o43770)
                && !check("group:12", 8, 12, 0o42770)
        );
        assert!(!check("group:12", 7, 13, 0o43770) && !check("group:12", 8, 13, 0o40700));
        assert!(check("user:8", 8, 1, 0o41770) && check("user:8", 7, 1, 0o41770));
        assert!(
            !check("user:8", 9, 1, 0o41770) && !check("user:8", 8, 1, 0o41775) && !check("group:12", 7, 12, 0o41774)
        );
    }
}
