//! The numbers of users and groups.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};

/// Room for the texts of an entry; the system says if it needs more.
const ROOM: usize = 1 << 10;
const MOST_ROOM: usize = 1 << 20;

/// The number of a user, given by name or number.
pub(crate) fn user(name: &str) -> Option<u32> {
    number(name).or_else(|| {
        look_up(name, |name, entry: *mut libc::passwd, texts, found| {
            // SAFETY: all pointers are valid for the call, and `texts` is as long as it says.
            unsafe { libc::getpwnam_r(name, entry, texts.as_mut_ptr(), texts.len(), found) }
        })
        .map(|entry| entry.pw_uid)
    })
}

/// The number of a group, given by name or number.
pub(crate) fn group(name: &str) -> Option<u32> {
    number(name).or_else(|| {
        look_up(name, |name, entry: *mut libc::group, texts, found| {
            // SAFETY: as above.
            unsafe { libc::getgrnam_r(name, entry, texts.as_mut_ptr(), texts.len(), found) }
        })
        .map(|entry| entry.gr_gid)
    })
}

/// How a user is told to people: by name, where the system knows one, and number.
pub(crate) fn told(user: u32) -> String {
    let mut room = ROOM;
    loop {
        let mut texts: Vec<libc::c_char> = vec![0; room];
        let mut entry = std::mem::MaybeUninit::uninit();
        let mut found = std::ptr::null_mut();
        // SAFETY: all pointers are valid for the call, and `texts` is as long as it says.
        match unsafe { libc::getpwuid_r(user, entry.as_mut_ptr(), texts.as_mut_ptr(), texts.len(), &mut found) } {
            libc::ERANGE if room < MOST_ROOM => room *= 2,
            0 if !found.is_null() => {
                // SAFETY: the system found the user, and so filled the entry in.
                let entry = unsafe { entry.assume_init() };
                // SAFETY: the entry's name is a text within `texts`, which ends with a NUL.
                let name = unsafe { CStr::from_ptr(entry.pw_name) };
                return format!("'{}' ({user})", name.to_string_lossy().escape_debug());
            }
            _ => return user.to_string(),
        }
    }
}

/// A number that is one: the last of all means "none" to the system.
fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|number| *number != u32::MAX)
}

/// The entry of that name; its texts are not kept.
fn look_up<T: Copy>(
    name: &str,
    ask: impl Fn(*const libc::c_char, *mut T, &mut [libc::c_char], *mut *mut T) -> libc::c_int,
) -> Option<T> {
    let name = CString::new(name).ok()?;
    let mut room = ROOM;
    loop {
        let mut texts: Vec<libc::c_char> = vec![0; room];
        let mut entry = std::mem::MaybeUninit::uninit();
        let mut found = std::ptr::null_mut();
        match ask(name.as_ptr(), entry.as_mut_ptr(), &mut texts, &mut found) {
            libc::ERANGE if room < MOST_ROOM => room *= 2,
            // SAFETY: the system found the name, and so filled the entry in.
            0 if !found.is_null() => return Some(unsafe { entry.assume_init() }),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_told_by_name() {
        assert_eq!((told(0), told(4_000_000_000)), ("'root' (0)".into(), "4000000000".into()));
    }

    #[test]
    fn names_and_numbers() {
        assert_eq!((user("root"), group("root"), user("1234"), group("99")), (Some(0), Some(0), Some(1234), Some(99)));
        assert_eq!(
            (user("no such user"), group("no\0group"), user("-1"), group("4294967295")),
            (None, None, None, None)
        );
    }
}
