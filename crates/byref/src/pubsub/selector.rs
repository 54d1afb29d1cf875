//! Receiving from many subscribers on one thread: takes turns among those that may have something, and sleeps for all.
//!
//! # How it sleeps
//!
//! A subscriber is *awake*, that is looked at in turns, or *armed*: its publishers know that it sleeps and will send a byte,
//! so it is left alone until its own epoll descriptor, which the selector's contains, is readable. The selector sleeps when
//! all are armed; an armed one that received nothing meanwhile needs no arming for the next sleep.
//!
//! Those that are awake are armed together: all of them store the number of their sleep, then comes *one* heavy fence, then
//! each is looked at once more. For each publisher that is Dekker's pattern of [`wake`](crate::protocol::wake): the fence lies between
//! the store for it and the look at its ring, whatever is done for others in between. One whose descriptor was readable is
//! awake again, also when no message is found: its publisher has rung for this sleep and will not ring again.
//!
//! Model: `no_lost_wake_up_of_many`.

use crate::error::{Error, Result};
use crate::pubsub::batch::Batch;
use crate::pubsub::event::Event;
use crate::pubsub::message::Message;
use crate::pubsub::subscriber::{Readiness, Subscriber};
use crate::sync::heavy_fence;
use crate::sync::spin::{DEFAULT_MOST, Sight, Spin, Spun};
use crate::sync::wait::Wait;
use crate::sys::epoll::{Door, Interest, Woken};
use crate::sys::fork::ForkId;
use crate::sys::membarrier;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Messages taken from one subscriber before the next one's turn.
const TURN: u32 = 64;
/// While some are busy, the selector looks after this time whether an armed one was woken.
const LOOK_EVERY: Duration = Duration::from_micros(50);
/// A subscriber that could not receive (the system refused memory, perhaps) is tried again after this time.
const REST: Duration = Duration::from_millis(100);
/// What a selector's own errors name as the topic.
const LABEL: &str = "*";

/// Receives from many subscribers on one thread.
///
/// Each subscriber comes with a value of the caller's, by which the caller knows it again. Messages of one publisher come in
/// order; turns among subscribers are fair. A subscriber that is closed is forgotten; the caller may do that at any time and
/// on any thread, but must not receive from it otherwise.
///
/// ```no_run
/// # fn main() -> Result<(), byref::Error> {
/// use byref::{Ended, Selector, Subscriber, Wait};
/// use std::sync::Arc;
///
/// let mut selector = Selector::new()?;
/// for topic in ["orders", "ticks"] {
///     selector.add(Arc::new(Subscriber::builder(topic).build()?), topic)?;
/// }
/// while let Ended::Messages = selector.wait(&mut Wait::up_to(None))? {
///     while let Some(mut turn) = selector.turn()? {
///         while let Some(item) = turn.next() {
///             println!("{}: {:?}", turn.value(), item?);
///         }
///     }
/// }
/// # Ok(())
/// # }
/// ```
pub struct Selector<T> {
    /// A closed subscriber's place is free for the next one.
    entries: Vec<Option<Entry<T>>>,
    /// How many there are.
    count: usize,
    /// The places of those to look at in turns, and which of them is next.
    awake: Vec<usize>,
    next: usize,
    /// What was found, and begins the next turn.
    caught: Option<(usize, Result<Item>)>,
    spin: Spin,
    looked: Instant,
    called: bool,
    door: Arc<Door>,
}

/// What a subscriber in a selector gave.
#[derive(Debug)]
pub enum Item {
    /// A message.
    Message(Message),
    /// Several at once, for one that was [added](Selector::add_batched) like that.
    Batch(Box<Batch>),
    /// What happened to a publisher, from a subscriber with [events](crate::SubscriberBuilder::events).
    Event(Box<Event>),
}

struct Entry<T> {
    value: T,
    subscriber: Arc<Subscriber>,
    /// The most messages of a batch, for one that gives batches.
    most: Option<usize>,
    /// It gives nothing but messages.
    plain: bool,
    readiness: Readiness,
    awake: bool,
    /// It could not receive, and is left alone for a while.
    resting: Option<Instant>,
}

impl<T> Entry<T> {
    #[inline(always)]
    fn poll(&self) -> Result<Option<Item>> {
        if self.plain {
            return Ok(self.subscriber.poll()?.map(Item::Message));
        }
        self.subscriber.poll_incoming(self.most)
    }

    fn is_resting(&mut self) -> bool {
        if self.resting.is_some_and(|until| until <= Instant::now()) {
            self.resting = None;
        }
        self.resting.is_some()
    }
}

/// Why [`Selector::wait`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// There is a [`turn`](Selector::turn).
    Messages,
    /// [`Waker::wake`] was called.
    Woken,
    /// The time is over.
    TimedOut,
}

/// Ends a selector's wait, from any thread.
#[derive(Clone)]
pub struct Waker {
    door: Arc<Door>,
    made_in: ForkId,
}

impl Waker {
    /// Ends the wait that is going on, or else the next one. In a forked child it does nothing.
    pub fn wake(&self) {
        if self.is_here() {
            self.door.bell.ring();
        }
    }

    /// Whether this is the process that made the selector, and not a forked child of it.
    #[inline]
    pub fn is_here(&self) -> bool {
        self.made_in.is_current()
    }

    /// A descriptor that becomes readable when there is something to do after [`Selector::arm`] returned `false`. Only to be
    /// polled.
    pub fn readiness(&self) -> Readiness {
        Readiness(Arc::clone(&self.door))
    }
}

impl<T> Selector<T> {
    /// A selector without subscribers.
    pub fn new() -> Result<Self> {
        ForkId::prepare().map_err(Error::system(LABEL, "cannot tell processes apart"))?;
        let door = Door::new().map_err(Error::system(LABEL, "cannot make an epoll descriptor"))?;
        Ok(Selector {
            entries: Vec::new(),
            count: 0,
            awake: Vec::new(),
            next: 0,
            caught: None,
            spin: Spin::up_to(DEFAULT_MOST),
            looked: Instant::now(),
            called: false,
            door: Arc::new(door),
        })
    }

    /// Ends waits from other threads.
    pub fn waker(&self) -> Waker {
        Waker { door: Arc::clone(&self.door), made_in: ForkId::current() }
    }

    /// Receives from one more subscriber.
    pub fn add(&mut self, subscriber: Arc<Subscriber>, value: T) -> Result<()> {
        self.add_entry(subscriber, value, None)
    }

    /// Receives batches of up to `most` messages from one more subscriber.
    pub fn add_batched(&mut self, subscriber: Arc<Subscriber>, value: T, most: usize) -> Result<()> {
        self.add_entry(subscriber, value, Some(most.max(1)))
    }

    fn add_entry(&mut self, subscriber: Arc<Subscriber>, value: T, most: Option<usize>) -> Result<()> {
        let readiness = subscriber.readiness()?;
        let place = self.entries.iter().position(Option::is_none).unwrap_or(self.entries.len());
        let added = self.door.epoll.add(&readiness, place as u64, Interest::IN);
        added.map_err(Error::system(subscriber.topic(), "cannot wait for one more subscriber"))?;
        let plain = most.is_none() && !subscriber.has_events();
        let entry = Some(Entry { value, subscriber, most, plain, readiness, awake: true, resting: None });
        match self.entries.get_mut(place) {
            Some(free) => *free = entry,
            None => self.entries.push(entry),
        }
        self.count += 1;
        self.awake.push(place);
        Ok(())
    }

    /// Keeps the subscribers that `keep` says; forgets the others now.
    pub fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        for place in 0..self.entries.len() {
            if self.entries[place].as_ref().is_some_and(|entry| !keep(&entry.value)) {
                self.remove(place);
            }
        }
    }

    /// The turn of a subscriber that has a message, or an error to report; `None` when nobody that is awake has one.
    pub fn turn(&mut self) -> Result<Option<Turn<'_, T>>> {
        if self.awake.len() < self.count && self.looked.elapsed() > LOOK_EVERY {
            self.look(Some(Duration::ZERO))?;
        }
        if self.caught.is_none() {
            self.find();
        }
        let Some(place) = self.caught.as_ref().map(|(place, _)| *place) else { return Ok(None) };
        Ok(Some(Turn { selector: self, place, left: TURN }))
    }

    /// How many messages wait for all subscribers.
    pub fn backlog(&self) -> u64 {
        let waiting = self.entries.iter().flatten().filter_map(|entry| entry.subscriber.backlog().ok());
        let caught = match &self.caught {
            Some((_, Ok(Item::Batch(batch)))) => batch.len() as u64,
            Some((_, Ok(Item::Event(_)))) | None => 0,
            Some(_) => 1,
        };
        waiting.map(|backlog| backlog.messages).sum::<u64>() + caught
    }

    /// Waits for a turn. The caller takes all turns first: messages that were there before may wait otherwise.
    pub fn wait(&mut self, wait: &mut Wait<'_>) -> Result<Ended> {
        let Some(limit) = wait.remaining() else { return Ok(Ended::TimedOut) };
        let mut spun = Spun::InVain;
        if !self.awake.is_empty() {
            let spin = self.spin;
            spun = spin.look(limit, false, |_| {
                if self.awake.len() < self.count {
                    self.look(Some(Duration::ZERO))?;
                }
                let found = self.find();
                if found {
                    self.spin.paid();
                }
                Ok(Sight::found(found))
            })?;
            if spun == Spun::Found {
                return Ok(Ended::Messages);
            }
        }
        let mut look_for_signals = true;
        loop {
            if std::mem::take(&mut self.called) {
                return Ok(Ended::Woken);
            }
            let Some(left) = wait.remaining() else { return Ok(Ended::TimedOut) };
            if look_for_signals && wait.is_interrupted() {
                return Err(Error::Interrupted { topic: LABEL.to_owned() });
            }
            if self.arm() {
                return Ok(Ended::Messages);
            }
            let slice = membarrier::slice(wait.slice(left).into_iter().chain(self.rest()).min());
            let slept = Instant::now();
            fault!("sleep.selector_before");
            let woken = self.look(slice)?;
            fault!("sleep.selector_after");
            self.spin.slept(spun, slept.elapsed());
            look_for_signals = woken != Woken::Ready;
            if self.find() {
                return Ok(Ended::Messages);
            }
        }
    }

    /// Tells all publishers that this thread goes to sleep; `true`: stay awake, there is a turn. After `false` the
    /// [descriptor](Waker::readiness) becomes readable when something comes.
    pub fn arm(&mut self) -> bool {
        if self.caught.is_some() {
            return true;
        }
        if self.awake.is_empty() {
            return false;
        }
        for &place in &self.awake {
            // One that was closed is found out below.
            let _ = entry(&mut self.entries, place).subscriber.announce_sleep();
        }
        heavy_fence(); // Pairs with the light fences after each append, of all publishers.
        let mut at = 0;
        while let Some(&place) = self.awake.get(at) {
            let entry = entry(&mut self.entries, place);
            if entry.is_resting() {
                at += 1;
                continue;
            }
            match entry.poll() {
                Ok(None) => {
                    entry.awake = false;
                    self.awake.swap_remove(at);
                }
                Err(Error::Closed { .. }) => self.remove(place),
                Ok(Some(item)) => return self.catch(place, Ok(item)), // The rest stays awake.
                Err(error) => return self.catch(place, Err(error)),
            }
        }
        false
    }

    /// Looks for what happened to those that are armed, without waiting.
    pub fn refresh(&mut self) -> Result<()> {
        self.look(Some(Duration::ZERO)).map(drop)
    }

    /// Waits for events, and handles them.
    fn look(&mut self, timeout: Option<Duration>) -> Result<Woken> {
        let mut ready = Vec::new();
        let woken = self.door.epoll.wait(timeout, &mut ready);
        let woken = woken.map_err(Error::system(LABEL, "cannot wait for messages"))?;
        self.looked = Instant::now();
        for token in ready {
            if token == Door::BELL {
                self.door.bell.silence();
                self.called = true;
                continue;
            }
            let place = token as usize;
            let Some(entry) = &mut self.entries[place] else { continue };
            match entry.subscriber.handle_events() {
                Err(Error::Closed { .. }) => self.remove(place),
                Err(error) => return Err(error),
                Ok(()) if entry.awake => {}
                Ok(()) => {
                    entry.awake = true;
                    self.awake.push(place);
                }
            }
        }
        Ok(woken)
    }

    /// Whether somebody who is awake has something: that is the next turn.
    fn find(&mut self) -> bool {
        for _ in 0..self.awake.len() {
            if self.next >= self.awake.len() {
                self.next = 0;
            }
            let place = self.awake[self.next];
            let entry = entry(&mut self.entries, place);
            self.next += 1;
            if entry.is_resting() {
                continue;
            }
            match entry.poll() {
                Ok(None) => {}
                Ok(Some(item)) => return self.catch(place, Ok(item)),
                Err(Error::Closed { .. }) => {
                    self.next -= 1;
                    self.remove(place);
                }
                Err(error) => return self.catch(place, Err(error)),
            }
        }
        false
    }

    fn catch(&mut self, place: usize, found: Result<Item>) -> bool {
        self.caught = Some((place, found));
        true
    }

    /// How long until somebody has rested.
    fn rest(&self) -> Option<Duration> {
        let resting = self.awake.iter().filter_map(|place| self.entries[*place].as_ref()?.resting);
        resting.min().map(|until| until.saturating_duration_since(Instant::now()))
    }

    /// Forgets a subscriber that is closed. The others keep their order.
    fn remove(&mut self, place: usize) {
        let Some(closed) = self.entries[place].take() else { return };
        self.door.epoll.remove(&closed.readiness);
        self.count -= 1;
        self.caught.take_if(|(caught, _)| *caught == place);
        self.awake.retain(|awake| *awake != place);
    }
}

fn entry<T>(entries: &mut [Option<Entry<T>>], place: usize) -> &mut Entry<T> {
    entries[place].as_mut().expect("who is awake has an entry")
}

/// A subscriber's turn: some messages in a row.
pub struct Turn<'a, T> {
    selector: &'a mut Selector<T>,
    place: usize,
    left: u32,
}

impl<T> Turn<'_, T> {
    fn entry(&mut self) -> &mut Entry<T> {
        entry(&mut self.selector.entries, self.place)
    }

    /// What the subscriber came with.
    pub fn value(&self) -> &T {
        &self.selector.entries[self.place].as_ref().expect("whose turn it is has an entry").value
    }

    /// The next message; `None` when there is none, or when it is the next one's turn.
    #[inline]
    #[expect(clippy::should_implement_trait, reason = "`value` is asked between two messages")]
    pub fn next(&mut self) -> Option<Result<Item>> {
        let found = match self.selector.caught.take() {
            Some((_, first)) => first.map(Some), // It made this turn.
            None if self.left == 0 => Ok(None),
            None => self.entry().poll(),
        };
        self.left = self.left.saturating_sub(1);
        match found {
            Ok(Some(item)) => Some(Ok(item)),
            Ok(None) | Err(Error::Closed { .. }) => None,
            Err(error) => {
                self.left = 0;
                self.entry().resting = Some(Instant::now() + REST);
                Some(Err(error))
            }
        }
    }
}
