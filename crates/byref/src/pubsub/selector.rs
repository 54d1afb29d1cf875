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
//! # How much it looks at
//!
//! A round costs in proportion to who is busy. A subscriber that was looked at in vain [`PATIENCE`] times while others had
//! messages is armed beside them, by the same steps; what it has is found in the selector's descriptor, which is asked now and
//! then. So an idle subscriber costs nothing, and its publisher rings once for as many looks as cost about the same.
//!
//! Models: `no_lost_wake_up_of_many`, `no_lost_wake_up_beside_a_busy_one`.

use crate::error::{Error, Result};
use crate::pubsub::subscriber::{Readiness, Subscriber};
use crate::reader::item::Item;
use crate::sync::heavy_fence;
use crate::sync::spin::{DEFAULT_MOST, Sight, Spin, Spun};
use crate::sync::wait::Wait;
use crate::sys::door::Door;
use crate::sys::epoll::{Alarm, Interest, READY_AT_ONCE, Woken};
use crate::sys::fork::ForkId;
use crate::sys::membarrier;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Messages taken from one subscriber before the next one's turn.
const TURN: u32 = 64;
/// Looks in vain at a subscriber, while others have messages, before it is armed. A wake-up costs both sides some
/// microseconds, a look some 50 nanoseconds.
const PATIENCE: u32 = 64;
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
    free: Vec<usize>,
    /// How many there are.
    count: usize,
    /// The places of those to look at in turns, and which of them is next.
    awake: Vec<usize>,
    next: usize,
    /// Some of these were looked at in vain for long.
    some_are_idle: bool,
    /// What was found, and begins the next turn.
    caught: Option<(usize, Result<Item>)>,
    spin: Spin,
    looked: Instant,
    called: bool,
    alarm: Option<Alarm>,
    door: Arc<Door>,
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
    /// Looks in vain in a row.
    in_vain: u32,
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
    /// [`Waker::wake`] was called, or the time of an [alarm](Selector::set_alarm) has come.
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
            self.door.bell().ring();
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
        let door = Door::opened().map_err(Error::system(LABEL, "cannot make an epoll descriptor"))?;
        Ok(Selector {
            entries: Vec::new(),
            free: Vec::new(),
            count: 0,
            awake: Vec::new(),
            next: 0,
            some_are_idle: false,
            caught: None,
            spin: Spin::up_to(DEFAULT_MOST),
            looked: Instant::now(),
            called: false,
            alarm: None,
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
        let place = self.free.last().copied().unwrap_or(self.entries.len());
        let added = self.door.epoll().add(&readiness, place as u64, Interest::IN);
        added.map_err(Error::system(subscriber.topic(), "cannot wait for one more subscriber"))?;
        let plain = most.is_none() && subscriber.is_plain();
        let entry = Some(Entry { value, subscriber, most, plain, readiness, awake: true, in_vain: 0, resting: None });
        match self.free.pop() {
            Some(free) => self.entries[free] = entry,
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
        if self.caught.is_none() && self.some_are_idle {
            self.arm_idle();
        }
        if self.caught.is_none() {
            self.find(true);
        }
        let Some(place) = self.caught.as_ref().map(|(place, _)| *place) else { return Ok(None) };
        Ok(Some(Turn { selector: self, place, left: TURN }))
    }

    /// How many messages wait for all subscribers, as far as the last [`refresh`](Self::refresh) has seen who has any.
    pub fn backlog(&self) -> u64 {
        // Who is armed had nothing then.
        let awake = self.awake.iter().filter_map(|place| self.entries[*place].as_ref());
        let waiting = awake.filter_map(|entry| entry.subscriber.backlog().ok());
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
                let found = self.find(false);
                if found {
                    self.spin.paid();
                }
                Ok(Sight::found(found))
            })?;
            if spun == Spun::Found {
                return Ok(Ended::Messages);
            }
        }
        let mut first_slept = None;
        let ended = self.sleep(wait, &mut first_slept);
        if first_slept.is_some() || matches!(ended, Ok(Ended::Messages)) {
            self.spin.slept_since(first_slept, spun);
        }
        ended
    }

    /// Notes when it first slept.
    fn sleep(&mut self, wait: &mut Wait<'_>, first_slept: &mut Option<Instant>) -> Result<Ended> {
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
            first_slept.get_or_insert_with(Instant::now);
            fault!("sleep.selector_before");
            let woken = self.look(slice)?;
            fault!("sleep.selector_after");
            look_for_signals = woken != Woken::Ready;
            if self.find(false) {
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
        self.arm_those(|_| true)
    }

    /// Arms those that have had nothing for long, while others have messages.
    #[cold]
    fn arm_idle(&mut self) {
        self.some_are_idle = false;
        self.arm_those(|entry| entry.in_vain >= PATIENCE);
    }

    /// Arms those of the awake that are meant, up to the first one that has something: that is the next turn then.
    fn arm_those(&mut self, is_meant: impl Fn(&Entry<T>) -> bool) -> bool {
        for &place in &self.awake {
            let entry = entry(&mut self.entries, place);
            if is_meant(entry) {
                // One that was closed is found out below.
                let _ = entry.subscriber.announce_sleep();
            }
        }
        // Pairs with the light fences after each append, of all publishers.
        if !heavy_fence() {
            for place in &self.awake {
                let entry = entry(&mut self.entries, *place);
                if is_meant(entry) {
                    entry.subscriber.look_later();
                }
            }
        }
        let (mut kept, mut next, mut closed) = (0, self.next, Vec::new());
        for at in 0..self.awake.len() {
            let place = self.awake[at];
            let entry = entry(&mut self.entries, place);
            if self.caught.is_none() && is_meant(entry) && !entry.is_resting() {
                match entry.poll() {
                    Ok(None) => {
                        entry.awake = false;
                        next -= usize::from(at < self.next);
                        continue;
                    }
                    Err(Error::Closed { .. }) => closed.push(place),
                    Ok(Some(item)) => self.caught = Some((place, Ok(item))), // The rest stays awake.
                    Err(error) => self.caught = Some((place, Err(error))),
                }
            }
            self.awake[kept] = place;
            kept += 1;
        }
        self.awake.truncate(kept);
        self.next = next;
        closed.into_iter().for_each(|place| self.remove(place));
        self.caught.is_some()
    }

    /// Sets the time, in nanoseconds of `CLOCK_MONOTONIC`, at which the [descriptor](Waker::readiness) becomes readable although
    /// no message came, and stays so until another time is set; `None`: never. It is for who polls: a
    /// [`wait`](Self::wait) can have a limit.
    pub fn set_alarm(&mut self, at: Option<u64>) -> Result<()> {
        let failed = || Error::system(LABEL, "cannot set an alarm");
        let alarm = match &mut self.alarm {
            Some(alarm) => alarm,
            None if at.is_none() => return Ok(()),
            none => {
                let alarm = Alarm::new().map_err(failed())?;
                self.door.epoll().add(&alarm, Door::ALARM, Interest::IN).map_err(failed())?;
                none.insert(alarm)
            }
        };
        alarm.set(at).map_err(failed())
    }

    /// Looks for what happened to those that are armed, without waiting.
    pub fn refresh(&mut self) -> Result<()> {
        self.look(Some(Duration::ZERO)).map(drop)
    }

    /// Waits for events, and handles all that there are.
    fn look(&mut self, mut timeout: Option<Duration>) -> Result<Woken> {
        let mut ready = Vec::new();
        let mut outcome = None;
        // A descriptor may stay ready without end: no more looks than it takes to hear of each.
        for _ in 0..=self.count / READY_AT_ONCE {
            ready.clear();
            let woken = self.door.epoll().wait(timeout, &mut ready);
            let woken = woken.map_err(Error::system(LABEL, "cannot wait for messages"))?;
            outcome.get_or_insert(woken);
            timeout = Some(Duration::ZERO);
            for &token in &ready {
                self.handle(token)?;
            }
            if ready.len() < READY_AT_ONCE {
                break;
            }
        }
        self.looked = Instant::now();
        Ok(outcome.expect("there was a look"))
    }

    /// Handles one descriptor's readiness.
    fn handle(&mut self, token: u64) -> Result<()> {
        if token == Door::BELL {
            self.door.bell().silence();
            self.called = true;
            return Ok(());
        }
        if token == Door::ALARM {
            self.called = true; // It rings until whoever set it sets it anew.
            return Ok(());
        }
        let place = token as usize;
        let Some(entry) = &mut self.entries[place] else { return Ok(()) };
        match entry.subscriber.handle_events() {
            Err(Error::Closed { .. }) => self.remove(place),
            // That is for who receives from it.
            Ok(()) | Err(Error::AddressInUse { .. }) => {
                entry.in_vain = 0;
                if !std::mem::replace(&mut entry.awake, true) {
                    self.awake.push(place);
                }
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Whether somebody who is awake has something: that is the next turn. `is_busy`: there is no time to look in vain.
    fn find(&mut self, is_busy: bool) -> bool {
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
                Ok(None) => {
                    entry.in_vain += u32::from(is_busy);
                    self.some_are_idle |= entry.in_vain >= PATIENCE;
                }
                Err(Error::Closed { .. }) => self.remove(place),
                found => {
                    entry.in_vain = 0;
                    self.caught = found.transpose().map(|found| (place, found));
                    return true;
                }
            }
        }
        false
    }

    /// How long until somebody has rested.
    fn rest(&self) -> Option<Duration> {
        let resting = self.awake.iter().filter_map(|place| self.entries[*place].as_ref()?.resting);
        resting.min().map(|until| until.saturating_duration_since(Instant::now()))
    }

    /// Forgets a subscriber that is closed. The others keep their order.
    fn remove(&mut self, place: usize) {
        let Some(closed) = self.entries[place].take() else { return };
        self.door.epoll().remove(&closed.readiness);
        self.free.push(place);
        self.count -= 1;
        self.caught.take_if(|(caught, _)| *caught == place);
        if let Some(at) = self.awake.iter().position(|awake| *awake == place) {
            self.awake.remove(at);
            self.next -= usize::from(at < self.next);
        }
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

    /// Forgets the subscriber, with the message that made this turn.
    pub fn give_up(self) {
        self.selector.remove(self.place);
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

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::Publisher;

    const SOON: Option<Duration> = Some(Duration::from_secs(20));

    fn take_all(selector: &mut Selector<usize>) -> Vec<usize> {
        let mut whose = Vec::new();
        while let Some(mut turn) = selector.turn().unwrap() {
            while let Some(item) = turn.next() {
                item.unwrap();
                whose.push(*turn.value());
            }
        }
        whose
    }

    /// Beside one that is busy all the time, without a sleep.
    #[test]
    fn who_is_idle_is_not_looked_at() {
        const MANY: usize = 150; // More than one look at the descriptors tells of.
        let _meeting = crate::link::meeting::meet_in_private();
        let mut selector = Selector::new().unwrap();
        let publishers: Vec<_> = (0..MANY)
            .map(|number| {
                let topic = format!("t/{number}");
                let subscriber = Arc::new(Subscriber::builder(&topic).build().unwrap());
                let publisher = Publisher::builder(&topic).capacity(64).build().unwrap();
                publisher.wait_for_subscribers(1, SOON).unwrap();
                subscriber.wait_for_publishers(1, SOON).unwrap();
                selector.add(subscriber, number).unwrap();
                publisher
            })
            .collect();
        let mut send_to_first = |times: u32| {
            for _ in 0..times {
                publishers[0].send(b"x").unwrap();
                selector.refresh().unwrap();
                let mut turn = selector.turn().unwrap().expect("it has a message");
                while let Some(item) = turn.next() {
                    item.unwrap();
                }
            }
            selector.awake.clone()
        };
        send_to_first(PATIENCE / 2);
        assert_eq!(send_to_first(2 * PATIENCE).len(), 1, "the others are armed");

        // Each of these has rung, and is found beside the busy one.
        for publisher in &publishers {
            publisher.send(b"x").unwrap();
        }
        let begin = Instant::now();
        while selector.awake.len() < MANY {
            // The last to come may be woken by the service thread, as long as its bell has not arrived.
            assert!(begin.elapsed() < SOON.unwrap(), "all that is ready is heard of");
            selector.refresh().unwrap();
        }
        assert_eq!(selector.backlog(), MANY as u64);
        let mut whose = take_all(&mut selector);
        whose.sort_unstable();
        assert!(whose.into_iter().eq(0..MANY));
    }

    /// Those that come and go, and are armed, while a turn goes round leave nobody out.
    #[test]
    fn turns_go_on_where_they_were() {
        let _meeting = crate::link::meeting::meet_in_private();
        let mut selector = Selector::new().unwrap();
        let subscribers: Vec<_> = (0..6)
            .map(|number| {
                let subscriber = Arc::new(Subscriber::builder(format!("t/{number}")).build().unwrap());
                selector.add(Arc::clone(&subscriber), number).unwrap();
                subscriber
            })
            .collect();
        selector.next = 4;
        subscribers[1].close();
        subscribers[5].close();
        for idle in [0, 3] {
            entry(&mut selector.entries, idle).in_vain = PATIENCE;
        }
        selector.arm_idle();
        assert_eq!((selector.awake.clone(), selector.next), (vec![1, 2, 4, 5], 2));
        selector.find(false);
        assert_eq!(selector.awake, [2, 4]);
        assert_eq!(selector.free.len(), 2);
    }
}
