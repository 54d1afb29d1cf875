//! The model of the lock that is biased towards one thread.

use super::explore;
use super::parties::Plain;
use crate::sync::Pairing;
use crate::sync::biased::Bias;
use loom::sync::{Condvar, Mutex};
use loom::thread;
use std::rc::Rc;

/// The threads' identities; the first is owner number 0, the other number 2.
const SPACING: u64 = 8;
const ONE: u64 = SPACING;
const OTHER: u64 = 2 * SPACING;

/// What the lock protects is a count of the visits.
struct Guarded {
    bias: Bias,
    slow: Mutex<()>,
    visits: Plain,
    /// How often somebody left by bias. Loom cannot explore a thread that looks again and again, so here it waits for that.
    left: Mutex<u32>,
    changed: Condvar,
}

impl Guarded {
    fn count(&self) {
        self.visits.write(self.visits.read() + 1);
    }

    fn leave(&self, owner: u64) {
        self.bias.leave(owner);
        self.tell();
    }

    fn tell(&self) {
        *self.left.lock().expect("nobody panics") += 1;
        self.changed.notify_all();
    }

    /// The steps of `Biased::lock`; who comes the slow way gets the bias if it `wants` it.
    fn visit(&self, me: u64, wants: bool) {
        if let Some(owner) = self.bias.enter(me) {
            self.count();
            self.leave(owner);
            return;
        }
        self.tell(); // Perhaps it was inside, and found itself owner no more.
        let slow = self.slow.lock().expect("nobody panics");
        let mut seen = 0;
        self.bias.revoke(|| {
            let mut left = self.left.lock().expect("nobody panics");
            while *left == seen {
                left = self.changed.wait(left).expect("nobody panics");
            }
            seen = *left;
        });
        if wants {
            let owner = if me == ONE { ONE } else { OTHER + 2 };
            self.bias.grant(owner);
            drop(slow);
            self.count();
            self.leave(owner);
        } else {
            self.count();
        }
    }
}

/// An owner, and another thread that takes the bias from it, for itself or not: no two of them are ever inside.
#[test]
fn one_inside() {
    for other_wants in [false, true] {
        explore(Some(3), move || {
            let guarded = Guarded {
                bias: Bias::new(Pairing::Fenced),
                slow: Mutex::new(()),
                visits: Plain::new(),
                left: Mutex::new(0),
                changed: Condvar::new(),
            };
            guarded.visits.write(0);
            guarded.bias.grant(ONE);
            guarded.bias.leave(ONE);
            let guarded = Rc::new(guarded);
            let other = {
                let guarded = Rc::clone(&guarded);
                thread::spawn(move || guarded.visit(OTHER, other_wants))
            };
            guarded.visit(ONE, false);
            guarded.visit(ONE, false);
            other.join().expect("the other thread ends");
            guarded.visit(ONE, false);
            assert_eq!(guarded.visits.read(), 4);
        });
    }
}
