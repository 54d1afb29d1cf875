//! Telling the program that a publisher's last subscriber is gone.

use crate::sync::locks::Mutex;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

/// What is called then.
#[derive(Clone)]
pub(crate) struct OnIdle(pub Arc<dyn Fn() + Send + Sync>);

impl fmt::Debug for OnIdle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnIdle")
    }
}

/// Calls it, on a thread that lives as long as there is something to call.
pub(crate) struct Idle {
    on_idle: OnIdle,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// There were subscribers at the last look.
    was_read: bool,
    /// They are gone, and nobody was told yet.
    is_due: bool,
    is_running: bool,
}

impl Idle {
    pub fn new(on_idle: OnIdle) -> Arc<Self> {
        Arc::new(Idle { on_idle, state: Mutex::default() })
    }

    /// There are subscribers now, or none. The caller has the publisher's lock, so that looks come in order.
    pub fn look(self: &Arc<Self>, is_read: bool) {
        let mut state = self.state.lock();
        if is_read {
            (state.was_read, state.is_due) = (true, false);
            return;
        }
        if !std::mem::replace(&mut state.was_read, false) {
            return;
        }
        state.is_due = true;
        if state.is_running {
            return;
        }
        let this = Arc::clone(self);
        match thread::Builder::new().name("byref-idle".into()).spawn(move || this.run()) {
            Ok(_) => state.is_running = true,
            Err(error) => {
                log::warn!(
                    "byref: cannot start the thread that calls on_idle, trying again at the next change: {error}"
                );
                state.was_read = true;
            }
        }
    }

    fn run(&self) {
        loop {
            {
                let mut state = self.state.lock();
                if !std::mem::replace(&mut state.is_due, false) {
                    state.is_running = false;
                    return;
                }
            }
            if catch_unwind(AssertUnwindSafe(|| (self.on_idle.0)())).is_err() {
                log::error!("byref: on_idle panicked");
            }
        }
    }
}
