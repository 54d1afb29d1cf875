//! Sleeping for many connections at once, at their publishers' wake words or at their sockets.

use crate::error::{Error, Result};
use crate::link::tasks::Next;
use crate::protocol::lease::AWAKE;
use crate::protocol::wake::BY_WORD;
use crate::reader::connection::Connection;
use crate::reader::turns::{Reader, SleepsAt};
use crate::sync::heavy_fence;
use crate::sync::locks::Turn;
use crate::sync::spin::{Sight, Spun};
use crate::sync::wait::Wait;
use crate::sys::epoll::Woken;
use crate::sys::futex::{MOST_WORDS, Words};
use crate::sys::membarrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Messages sent so close to each other come in a stream.
const STREAMING_NS: u64 = 250;
/// How long a thread that waits for its turn to sleep does so before it looks for signals.
const FOLLOWER_SLICE: Duration = Duration::from_millis(100);
/// The longest sleep at words of memory. Whoever has a publisher's ring mapped can move those who sleep at its word to another
/// one, where no wake-up reaches them; and some signals do not end such a sleep.
const MOST_AT_WORDS: Duration = Duration::from_secs(1);

/// An endpoint with a reader behind its lock.
pub(crate) trait Owner {
    /// What errors are about.
    fn topic(&self) -> &str;

    /// Calls `act` with the reader, under the lock; an error if the endpoint is closed, or its process forked this one.
    fn enter<T>(&self, act: impl FnOnce(&mut Reader) -> T) -> Result<T>;

    fn rest(&self) -> &Rest;

    /// The error of a call whose time is over.
    fn timed_out(&self, wait: &Wait<'_>, what: &'static str) -> Error;
}

/// Who sleeps, for those who have not the lock.
#[derive(Default)]
pub(crate) struct Rest {
    /// Held by the one thread that sleeps for a publisher's ring; others look again now and then.
    sleeping: Turn,
    /// A thread sleeps in a call: it looks at all that happens.
    attended: AtomicBool,
}

impl Rest {
    /// Has those who wait for their turn look again.
    pub fn nudge(&self) {
        self.sleeping.nudge();
    }

    pub fn is_attended(&self) -> bool {
        self.attended.load(Ordering::Relaxed)
    }
}

/// What a look before a sleep gave.
enum Look {
    Taken,
    Sleep(Place),
}

/// What to sleep at.
#[derive(Clone, Copy)]
pub(crate) enum Place {
    Sockets,
    /// Unless the gong was struck more often.
    Words(u32),
    /// The gong alone: sockets cannot be had now. The service thread strikes it when a publisher rings on its channel.
    Gong(u32),
}

/// The next thing that `take` takes, once a first look was in vain.
#[cold]
pub(crate) fn receive<R>(
    owner: &impl Owner,
    wait: &mut Wait<'_>,
    mut take: impl FnMut(&mut Reader) -> Result<Option<R>>,
) -> Result<R> {
    if !wait.is_allowed() {
        return Err(Error::WouldBlock { topic: owner.topic().to_owned() });
    }
    let mut taken = None;
    wait_until(owner, wait, &mut |reader| {
        taken = take(reader)?;
        Ok(taken.is_some())
    })?;
    Ok(taken.expect("the wait ends when something was taken"))
}

/// Waits until `take` says that it has taken something. It is called with the lock held.
fn wait_until(
    owner: &impl Owner,
    wait: &mut Wait<'_>,
    take: &mut dyn FnMut(&mut Reader) -> Result<bool>,
) -> Result<()> {
    let mut took_wake_ups = false;
    let outcome = sleep_until(owner, wait, take, &mut took_wake_ups);
    if took_wake_ups {
        let _ = owner.enter(|reader| reader.pass_on(true));
    }
    outcome
}

/// `took_wake_ups`: there is somebody who polls the descriptor, and may have missed what made it readable.
fn sleep_until(
    owner: &impl Owner,
    wait: &mut Wait<'_>,
    take: &mut dyn FnMut(&mut Reader) -> Result<bool>,
    took_wake_ups: &mut bool,
) -> Result<()> {
    let interrupted = || Error::Interrupted { topic: owner.topic().to_owned() };
    let (door, spin, is_stream) =
        owner.enter(|reader| (Arc::clone(&reader.door), reader.spin, reader.apart_ns < STREAMING_NS))?;
    let rest = owner.rest();
    let mut nudges = rest.sleeping.nudges();
    let limit = wait.remaining().ok_or_else(|| owner.timed_out(wait, "recv"))?;
    let spun = spin.look(limit, is_stream, |is_long| {
        if is_long && wait.is_interrupted() {
            return Err(interrupted());
        }
        owner.enter(|reader| {
            if take(reader)? {
                reader.spin.paid();
                return Ok(Sight::Found);
            }
            let happened = is_long && reader.handle_events()?;
            *took_wake_ups |= happened && reader.polled;
            Ok(if happened { Sight::Sleep } else { Sight::Nothing })
        })?
    });
    let spun = spun?;
    if spun == Spun::Found {
        return Ok(());
    }
    let mut leader = None;
    let mut look_for_signals = true;
    let mut still_armed = false;
    let mut words = Words::new();
    let mut first_slept = None;
    loop {
        let Some(left) = wait.remaining() else {
            if first_slept.is_some() {
                let _ = owner.enter(|reader| reader.spin.slept_since(first_slept, spun));
            }
            return Err(owner.timed_out(wait, "recv"));
        };
        if look_for_signals && wait.may_be_interrupted() {
            // What runs now may receive from here, too, and would wait for the right that its own thread has.
            (leader, still_armed) = (None, false);
            if wait.is_interrupted() {
                return Err(interrupted());
            }
        }
        let slice = wait.slice(left);
        if leader.is_none() {
            // Whoever sleeps takes one message and lets the next one sleep.
            let most = slice.unwrap_or(FOLLOWER_SLICE).min(FOLLOWER_SLICE);
            leader = rest.sleeping.take_unless_nudged(most, nudges);
            look_for_signals = leader.is_none();
            if leader.is_none() {
                nudges = rest.sleeping.nudges(); // Before the look.
                // The one whose turn it is may have got what this one waits for.
                if owner.enter(|reader| take(reader))?? {
                    return Ok(());
                }
                continue;
            }
        }
        let look = owner.enter(|reader| {
            let place = reader.hear_gong(took_wake_ups)?;
            if take(reader)? {
                reader.spin.slept_since(first_slept, spun);
                return Ok(Look::Taken);
            }
            if !(still_armed && reader.armed) {
                reader.note_words(&mut words);
                reader.arm();
                if take(reader)? {
                    reader.spin.slept_since(first_slept, spun);
                    return Ok(Look::Taken);
                }
            }
            if let Some(trouble) = reader.trouble.take() {
                return Err(trouble);
            }
            reader.asleep = true;
            reader.stats.sleeps += 1;
            Ok(Look::Sleep(place))
        })?;
        let Look::Sleep(place) = look? else { return Ok(()) };
        first_slept.get_or_insert_with(Instant::now);
        let mut ready = Vec::new();
        fault!("sleep.subscriber_before");
        rest.attended.store(true, Ordering::Relaxed);
        let slice = membarrier::slice(slice);
        let mut is_refused = false;
        let most = slice.unwrap_or(MOST_AT_WORDS).min(MOST_AT_WORDS);
        let woken = match place {
            Place::Sockets => door.epoll().wait(slice, &mut ready),
            Place::Words(strikes) => {
                let slept = words.wait(&door.gong, strikes, most);
                is_refused = slept.is_err();
                slept.or(Ok(Woken::Ready))
            }
            Place::Gong(strikes) => {
                door.gong.wait(strikes, Some(most));
                Ok(if door.gong.strikes() == strikes { Woken::TimedOut } else { Woken::Ready })
            }
        };
        rest.attended.store(false, Ordering::Relaxed);
        fault!("sleep.subscriber_after");
        owner.enter(|reader| {
            reader.asleep = false;
            if is_refused {
                reader.sleep_at_sockets(); // The process has gone into a sandbox, perhaps.
            }
            let woken = woken.map_err(Error::system(owner.topic(), "cannot wait for messages"))?;
            look_for_signals = woken != Woken::Ready;
            still_armed = woken != Woken::Ready;
            *took_wake_ups |= !ready.is_empty() && reader.polled;
            reader.handle(&ready);
            Ok::<_, Error>(())
        })??;
    }
}

impl Reader {
    /// Tells every publisher that this subscriber goes to sleep. Afterwards it has to look once more.
    pub fn arm(&mut self) {
        self.announce();
        // Pairs with the light fence after each append.
        if !heavy_fence() && self.polled {
            self.look_later(); // Nobody knows when who polls would look without being told.
        }
    }

    /// The heavy fence was refused: looks again when that can matter no more, and makes the descriptor readable if there is anything.
    #[cold]
    pub fn look_later(&self) {
        let errands = Weak::clone(&self.errands);
        self.service.after(membarrier::SETTLED, move |_, _, _| {
            if let Some(errands) = errands.upgrade() {
                errands.look_for_missed();
            }
            Next::Done
        });
    }

    /// Wakes who polls if there is a message, of which nobody told.
    pub fn look_for_missed(&mut self) {
        let keep = self.keep;
        let mut backlogs = self.connections.iter_mut().map(|it| it.backlog(keep.most(it.capacity())));
        if self.armed && backlogs.any(|(messages, _)| messages > 0) {
            self.door.ring();
        }
    }

    /// The first half of [`arm`](Self::arm); the heavy fence has to follow.
    pub fn announce(&mut self) {
        if let SleepsAt::Sockets = self.at {
            self.bells.hand_out(&mut self.connections, &self.door);
        }
        self.epoch += 1;
        self.armed = true;
        self.announced = self.epoch | if matches!(self.at, SleepsAt::Words) { BY_WORD } else { 0 };
        for connection in &self.connections {
            connection.link.lease().set_sleeping(self.announced);
        }
        fault!("sleep.subscriber_announced");
    }

    pub fn disarm(&mut self) {
        self.armed = false;
        for connection in &self.connections {
            connection.link.lease().set_sleeping(AWAKE);
        }
    }

    /// From now on. Without descriptors for that, until there are some, at the gong.
    pub fn sleep_at_sockets(&mut self) {
        let _ = self.door.open();
        let SleepsAt::Words = std::mem::replace(&mut self.at, SleepsAt::Sockets) else { return };
        self.bells.hand_out(&mut self.connections, &self.door);
        if self.armed {
            // A thread that sleeps at words announces its sleep anew.
            self.disarm();
            self.door.ring();
        }
    }

    /// Before a sleep at words: does what the sockets ask for. Gives what to sleep at.
    pub fn hear_gong(&mut self, took_wake_ups: &mut bool) -> Result<Place> {
        if self.connections.len() > MOST_WORDS {
            self.sleep_at_sockets();
        }
        let is_at_words = matches!(self.at, SleepsAt::Words);
        if !is_at_words && self.door.open().is_ok() {
            return Ok(Place::Sockets);
        }
        let mut strikes = self.door.gong.strikes();
        if self.heard.is_news(strikes) {
            let happened = self.look_at_descriptors().map_err(Error::system(&self.topic, "cannot look for events"))?;
            if happened {
                *took_wake_ups |= self.polled;
                strikes = self.heard.look_again();
            }
        }
        Ok(if is_at_words { Place::Words(strikes) } else { Place::Gong(strikes) })
    }

    /// Notes the values of the wake words that the next announcement is about.
    pub fn note_words(&self, words: &mut Words) {
        words.note(self.connections.iter().map(Connection::wake_word));
    }
}
