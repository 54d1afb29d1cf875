//! A rendezvous directory of one's own, for tests and fuzzers.
#![allow(unsafe_code)]

use crate::sync::locks::{Mutex, MutexGuard};
use std::path::PathBuf;

/// The directory in which the publishers and subscribers of this process meet.
pub struct Meeting {
    directory: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

/// Makes a private one, for one test at a time; it goes with the result.
pub fn meet_in_private() -> Meeting {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock();
    let directory = std::env::temp_dir().join(format!("byref-test-{}", std::process::id()));
    // SAFETY: of the tests in this process, which do not call C code that looks at the environment, the one that has the lock
    // writes it before it makes an endpoint.
    unsafe { std::env::set_var("BYREF_DIR", &directory) };
    Meeting { directory, _alone: alone }
}

impl Drop for Meeting {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
