//! The pusher: a store, a line to each puller, and a table of jobs.
//!
//! # How pushers and pullers meet
//!
//! A pusher is announced as a publisher of a topic that no publisher can have. A puller watches the directory for names of that topic, as
//! a subscriber does, and says hello with [`Wish::Pull`] and its lease, which has room for [answers](crate::protocol::answers). The pusher
//! makes a line for it. Neither looks for the other again.
//!
//! # Who takes turns
//!
//! A *turn* collects answers and gives jobs. Each call of the user takes one, so a busy pusher needs nobody else, and pullers that answer
//! make no system call. Where jobs wait for room, or a thread for jobs to be over, somebody has to take turns when no call does. While
//! calls keep coming, a task of the service thread looks once in a while whether they still do ([`watch`](super::watch)). When they have
//! stopped, or a call is about to sleep, pullers are asked to ring after so many answers, and the service thread, which hears them, takes
//! the turns.

use crate::copies::{self, Cause, Endpoint};
use crate::direct::identity::Identity;
use crate::error::{Error, PUSHER, Result};
use crate::link::acceptor::Host;
use crate::link::announcement::Announcement;
use crate::link::channel::Channel;
use crate::link::handshake::{self, Hello, ToSubscriber, Wish};
use crate::link::lookout::Lookout;
use crate::link::names;
use crate::link::rendezvous::{self, Announced};
use crate::link::service::{self, Handle};
use crate::memory::glossary::Entry;
use crate::protocol::answers::{PULLER_LEASE_LEN, WINDOW};
use crate::protocol::claim::Policy;
use crate::sync::biased::{Biased, BiasedGuard};
use crate::sync::changes::{Changes, Ended};
use crate::sync::locks::Mutex;
use crate::sync::wait::Wait;
use crate::sys::fork::ForkId;
use crate::sys::memory::PeerSegment;
use crate::sys::socket;
use crate::topic;
use crate::work::body::Rejected;
use crate::work::open::{Awaited, Open, Presence, PusherStats, Seat};
use crate::work::table::Terms;
use crate::writer::errands::Errands;
use crate::writer::line::{Limits, Line, Plan};
use crate::writer::owner::Owner;
use crate::writer::readers::{Introduction, Newcomer};
use crate::writer::store::{self, Store};
use rustix::fd::OwnedFd;
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Jobs that may be unfinished, by default.
const DEFAULT_PENDING: usize = 1000;
/// The fewest records of a ring.
const LEAST_CAPACITY: u64 = 16;

/// Settings of a [`Pusher`]; see [`Pusher::builder`].
#[derive(Clone, Debug)]
pub struct PusherBuilder {
    queue: String,
    max_pending: usize,
    redeliver: bool,
    max_attempts: Option<u32>,
    max_time: Option<Duration>,
    max_memory: Option<u64>,
    name: Option<String>,
}

impl PusherBuilder {
    /// How many jobs may be unfinished (default: 1000). A send beyond that waits.
    pub fn max_pending(mut self, jobs: usize) -> Self {
        self.max_pending = jobs;
        self
    }

    /// Whether a job whose puller ended, or gave it up, after it had taken it is given to another one (default: yes). It may be done
    /// twice then; otherwise not at all.
    pub fn redeliver(mut self, wanted: bool) -> Self {
        self.redeliver = wanted;
        self
    }

    /// A job that has failed so often is [rejected](Pusher::rejected) (default: never).
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = Some(attempts);
        self
    }

    /// A puller that has jobs and answers none of them for so long loses them (default: no limit).
    pub fn max_time(mut self, time: Duration) -> Self {
        self.max_time = Some(time);
        self
    }

    /// The most bytes of payload memory (default: as for a [`Publisher`](crate::Publisher)).
    pub fn max_memory(mut self, bytes: u64) -> Self {
        self.max_memory = Some(bytes);
        self
    }

    /// A name for people, shown to pullers.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Makes the pusher.
    pub fn build(self) -> Result<Pusher> {
        topic::validate(&self.queue)?;
        let max_memory = store::check_max_memory(self.max_memory)?;
        let invalid = |text: &str| Err(Error::InvalidArgument(text.into()));
        if self.max_pending == 0 {
            return invalid("max_pending must be at least 1 job");
        }
        if self.max_attempts == Some(0) {
            return invalid("max_attempts must be at least 1");
        }
        if self.max_time == Some(Duration::ZERO) {
            return invalid("max_time must be more than 0 seconds");
        }
        if self.name.as_ref().is_some_and(|name| name.len() > topic::MAX_TOPIC) {
            return invalid("a name can be at most 1024 bytes long");
        }
        Pusher::new(self, max_memory)
    }
}

/// Gives jobs to the [`Puller`](crate::Puller)s of a queue: each to exactly one that has room, the longest idle first.
///
/// A job is kept, in this pusher's memory, until a puller says that it is done. One that a puller had when it ended is given to another
/// one, without a copy. Jobs live as long as their pusher. It may be shared by threads.
///
/// ```no_run
/// # fn main() -> Result<(), byref::Error> {
/// let pusher = byref::Pusher::builder("jobs").max_pending(100).build()?;
/// for number in 0..1000u32 {
///     pusher.send(&number.to_ne_bytes())?; // waits while 100 are unfinished
/// }
/// pusher.join(None)?;
/// # Ok(())
/// # }
/// ```
///
/// Dropping it closes it.
pub struct Pusher {
    pub(super) shared: Arc<Shared>,
    /// Dropping it closes it.
    closes: bool,
}

pub(super) struct Shared {
    pub(super) identity: Identity,
    name: Option<String>,
    pub max_pending: usize,
    pub max_memory: u64,
    made_in: ForkId,
    open: Biased<Option<Open>>,
    /// Jobs are over, or pullers came or went.
    pub changed: Changes,
    _lookout: Arc<Lookout>,
    pub service: Arc<Handle>,
    /// For tasks of the service thread.
    pub me: Weak<Shared>,
    final_stats: Mutex<PusherStats>,
    /// What was rejected, and not asked for before the end.
    final_rejected: Mutex<Vec<Rejected>>,
}

impl Pusher {
    /// Settings for a pusher to a queue.
    pub fn builder(queue: impl Into<String>) -> PusherBuilder {
        PusherBuilder {
            queue: queue.into(),
            max_pending: DEFAULT_PENDING,
            redeliver: true,
            max_attempts: None,
            max_time: None,
            max_memory: None,
            name: None,
        }
    }

    fn new(options: PusherBuilder, max_memory: u64) -> Result<Self> {
        let queue = options.queue;
        let (lookout, service) = service::connect(&queue)?;
        let id = rendezvous::new_id();
        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let terms = Terms {
            max_attempts: options.max_attempts,
            redeliver: options.redeliver,
            max_time: options.max_time.map(nanoseconds),
        };
        let identity = Identity::new(queue.clone(), id, std::process::id() as i32);
        let shared = Arc::new_cyclic(|shared: &Weak<Shared>| {
            let errands: Weak<dyn Errands> = shared.clone();
            let store = Store::new(max_memory, Limits::default(), &service, errands);
            Shared {
                name: options.name,
                max_pending: options.max_pending,
                max_memory,
                made_in: ForkId::current(),
                open: Biased::new(Some(Open::new(store, terms, identity.clone()))),
                identity,
                changed: Changes::default(),
                _lookout: Arc::clone(&lookout),
                service: Arc::clone(&service),
                me: Weak::clone(shared),
                final_stats: Mutex::default(),
                final_rejected: Mutex::default(),
            }
        });
        let pusher = Pusher { shared, closes: true };
        let host: Weak<dyn Host> = Arc::downgrade(&pusher.shared) as _;
        let who = Announced::Publisher { topic: names::topic_of_pushers(&queue), id, times: 0 };
        let announcement = Announcement::new(&lookout, &service, &queue, who, host)?;
        if let Some(open) = pusher.shared.open.lock().as_mut() {
            open.announcement = Some(announcement);
        }
        copies::register(Cause::Send, &pusher.shared);
        Ok(pusher)
    }

    /// Its queue.
    pub fn queue(&self) -> &str {
        self.shared.queue()
    }

    /// A second handle to the same pusher. Dropping it closes nothing.
    pub fn handle(&self) -> Pusher {
        Pusher { shared: Arc::clone(&self.shared), closes: false }
    }

    /// Jobs that are neither done nor rejected.
    pub fn pending(&self) -> Result<usize> {
        self.shared.within_turn(|open| open.table.pending())
    }

    /// Waits until no job is pending.
    pub fn join(&self, timeout: Option<Duration>) -> Result<()> {
        self.join_with(&mut Wait::up_to(timeout))
    }

    /// [`join`](Self::join) with an interruptible wait.
    pub fn join_with(&self, wait: &mut Wait<'_>) -> Result<()> {
        self.shared.wait_until(wait, Awaited::End, |open| (open.table.pending() == 0).then_some(Ok(())))
    }

    /// The jobs that will not be given again, since a puller rejected them, or they failed too often, or nobody knows what became of them
    /// and this pusher does not [redeliver](PusherBuilder::redeliver). The last 1024 are kept until they are [taken](Self::take_rejected).
    pub fn rejected(&self) -> Result<Vec<Rejected>> {
        self.shared.rejected(|rejected| rejected.iter().cloned().collect(), |rejected| rejected.clone())
    }

    /// Gives the same, and forgets them.
    pub fn take_rejected(&self) -> Result<Vec<Rejected>> {
        self.shared.rejected(|rejected| rejected.drain(..).collect(), std::mem::take)
    }

    /// The processes of the pullers that take jobs, and their names.
    pub fn pullers(&self) -> Result<Vec<(i32, Option<String>)>> {
        self.shared.within_turn(|open| {
            open.look_for_ends();
            open.present().map(|seat| (seat.pid, seat.name.clone())).collect()
        })
    }

    /// Waits until at least `n` pullers are connected.
    pub fn wait_for_pullers(&self, n: usize, timeout: Option<Duration>) -> Result<()> {
        self.wait_for_pullers_with(n, &mut Wait::up_to(timeout))
    }

    /// [`wait_for_pullers`](Self::wait_for_pullers) with an interruptible wait.
    pub fn wait_for_pullers_with(&self, n: usize, wait: &mut Wait<'_>) -> Result<()> {
        let shared = &*self.shared;
        let ended = shared.changed.until(wait, || shared.within_turn(|open| open.present().count() >= n))?;
        shared.ended(ended, wait, "waiting for pullers")
    }

    /// Counters; after `close`, the last ones.
    pub fn stats(&self) -> Result<PusherStats> {
        let mut guard = self.shared.lock()?;
        Ok(match guard.as_mut() {
            None => self.shared.final_stats.lock().clone(),
            Some(open) => {
                open.turn();
                self.shared.see_to(open);
                open.stats()
            }
        })
    }

    /// [`Publisher::explain`](crate::Publisher::explain).
    pub fn explain(&self, bytes: &[u8]) -> Result<Option<Entry>> {
        let explained = (&*self.shared as &dyn Owner).within(|store, lines| store.explain(lines, bytes))?;
        explained.map_err(Error::system(self.queue(), "cannot take memory for the glossary"))
    }

    /// Whether it was closed.
    pub fn is_closed(&self) -> Result<bool> {
        Ok(self.shared.lock()?.is_none())
    }

    /// Closes it. What is pending is not given any more, and nobody hears what becomes of what pullers have. Calling it again has no
    /// effect.
    pub fn close(&self) {
        self.shared.close();
    }
}

impl Drop for Pusher {
    fn drop(&mut self) {
        if self.closes {
            self.shared.close();
        }
    }
}

impl Shared {
    pub fn queue(&self) -> &str {
        self.identity.address()
    }

    /// The lock, unless a forked child asks: there it may be taken for ever.
    #[inline]
    pub fn lock(&self) -> Result<BiasedGuard<'_, Option<Open>>> {
        self.check_that_it_is_here()?;
        Ok(self.open.lock())
    }

    #[inline]
    pub fn check_that_it_is_here(&self) -> Result<()> {
        if self.made_in.is_current() {
            return Ok(());
        }
        Err(Error::Forked { what: PUSHER, topic: self.queue().to_owned() })
    }

    #[inline]
    pub fn opened<'a>(&self, guard: &'a mut BiasedGuard<'_, Option<Open>>) -> Result<&'a mut Open> {
        guard.as_mut().ok_or_else(|| self.closed())
    }

    /// Takes a turn, and looks.
    pub fn within_turn<T>(&self, look: impl FnOnce(&mut Open) -> T) -> Result<T> {
        let mut guard = self.lock()?;
        let open = self.opened(&mut guard)?;
        open.turn();
        let looked = look(open);
        self.see_to(open);
        Ok(looked)
    }

    fn rejected(
        &self,
        of_open: impl FnOnce(&mut std::collections::VecDeque<Rejected>) -> Vec<Rejected>,
        of_closed: impl FnOnce(&mut Vec<Rejected>) -> Vec<Rejected>,
    ) -> Result<Vec<Rejected>> {
        let mut guard = self.lock()?;
        let Some(open) = guard.as_mut() else { return Ok(of_closed(&mut self.final_rejected.lock())) };
        open.turn();
        self.see_to(open);
        Ok(of_open(&mut open.rejected))
    }

    /// The outcome of a wait.
    pub fn ended(&self, ended: Ended, wait: &Wait<'_>, what: &'static str) -> Result<()> {
        let topic = self.queue().to_owned();
        match ended {
            Ended::Done => Ok(()),
            Ended::Interrupted => Err(Error::Interrupted { topic }),
            Ended::TimedOut => {
                let told = self.within_turn(|open| {
                    let (pending, waiting, pullers) =
                        (open.table.pending(), open.table.waiting(), open.present().count());
                    format!("; {pending} jobs are pending, {waiting} of them without a puller; {pullers} pullers are connected")
                });
                Err(Error::Timeout { what, topic, waited: wait.given(), hint: told.unwrap_or_default() })
            }
        }
    }

    fn close(&self) {
        if !self.made_in.is_current() {
            return;
        }
        let close = || {
            let mut guard = self.open.lock();
            guard.as_mut()?.turn(); // What was answered by now counts.
            guard.take()
        };
        let Some(mut open) = copies::settle(Cause::Send, close, |open| open.copied_bytes) else { return };
        let stats = open.stats();
        if stats.pending > 0 {
            log::warn!(
                "byref: queue '{}': closed with {} pending jobs, which are lost; wait for them with join()",
                self.queue(),
                stats.pending
            );
        }
        *self.final_stats.lock() = stats;
        *self.final_rejected.lock() = open.rejected.drain(..).collect();
        for line in &open.lines {
            line.say_closed();
            line.hang_up();
            fault!("work.closing");
        }
        if let Some(announcement) = &open.announcement {
            announcement.withdraw();
        }
        self.changed.notify();
    }

    /// Makes a line for a puller.
    fn admit(
        self: &Arc<Self>,
        channel: Channel,
        hello: Hello,
        prefetch: u64,
        lease: Option<OwnedFd>,
    ) -> io::Result<()> {
        let lease = lease.ok_or_else(|| io::Error::other("it sent no lease"))?;
        let lease = PeerSegment::new(lease, Some(PULLER_LEASE_LEN)).map_err(|(error, _)| error)?.into_map();
        fault!("work.lease_mapped");
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        let (name, prefetch) = (hello.name.as_deref().map(crate::sys::text::printable), prefetch.clamp(1, WINDOW / 2));
        let mut guard = self.lock().map_err(|_| gone())?;
        let open = self.opened(&mut guard).map_err(|_| gone())?;
        let errands: Weak<dyn Errands> = Arc::downgrade(self) as _;
        let plan = Plan {
            number: open.last_line + 1,
            topic: self.queue(),
            capacity: (2 * prefetch).max(LEAST_CAPACITY).next_power_of_two(),
            history: 0,
            limits: Limits::default(),
            generation: open.store.generation,
            keeps_untaken: true,
        };
        let mut line = Line::new(plan, &self.service, errands)?;
        let hello = Hello { policy: Policy::Block, depth: None, history: 0, ..hello };
        let newcomer = Newcomer { hello, lease, channel };
        let introduction =
            Introduction { publisher: self.identity.incarnation(), topic: self.queue(), name: self.name.as_deref() };
        line.admit(&mut open.store, newcomer, &introduction)?;
        fault!("work.admitted");
        open.last_line = line.number;
        let peer = &line.peers[0];
        open.seats.push(Seat::new(peer.pid, name, Arc::clone(&peer.lease)));
        let now = open.now();
        open.table.join(line.number, prefetch, now);
        open.lines.push(line);
        open.give();
        self.see_to(open);
        drop(guard);
        self.changed.notify();
        Ok(())
    }
}

impl Owner for Shared {
    fn topic(&self) -> &str {
        self.queue()
    }

    fn enter(&self, act: &mut dyn FnMut(&mut Store, &mut [Line])) -> Result<()> {
        let mut guard = self.lock()?;
        let open = self.opened(&mut guard)?;
        act(&mut open.store, &mut open.lines);
        Ok(())
    }

    fn closed(&self) -> Error {
        Error::Closed { what: PUSHER, topic: self.queue().to_owned() }
    }

    /// A puller has ended, or was turned away.
    fn changed(&self) {
        {
            let Ok(mut guard) = self.lock() else { return };
            let Ok(open) = self.opened(&mut guard) else { return };
            open.part_from_departed();
            self.see_to(open);
        }
        self.changed.notify();
    }

    /// A puller has answered, or was closed.
    fn rung(&self, line: u32) {
        {
            let Ok(mut guard) = self.lock() else { return };
            let Ok(open) = self.opened(&mut guard) else { return };
            open.turn();
            if let Ok(index) = open.lines.binary_search_by_key(&line, |line| line.number)
                && open.seats[index].state == Presence::Here
                && !open.lines[index].is_read()
            {
                open.look_for_ends();
            }
            if open.is_awaited() {
                open.arm();
                open.turn();
            } else {
                open.disarm(); // What was asked for is used up: who is to wait next asks anew.
            }
            self.see_to(open);
        }
        self.changed.notify();
    }
}

impl Endpoint for Shared {
    fn copied(&self) -> u64 {
        self.lock().ok().and_then(|open| open.as_ref().map(|open| open.copied_bytes)).unwrap_or(0)
    }
}

impl Host for Shared {
    fn take_call(self: Arc<Self>, channel: Channel, wish: Wish, lease: Option<OwnedFd>) -> io::Result<()> {
        match wish {
            Wish::Pull { hello, prefetch } if hello.topic == self.queue() => {
                self.admit(channel, hello, prefetch, lease)
            }
            _ => channel.send(&handshake::encode_first(&ToSubscriber::NotThisTopic), None).map(drop),
        }
    }

    fn answer(self: Arc<Self>, socket: &OwnedFd, _wish: Wish) -> io::Result<()> {
        socket::send(socket, &handshake::encode_first(&ToSubscriber::NotThisTopic), None).map(drop)
    }

    fn is_short_of(&self, error: &io::Error) {
        log::warn!("byref: queue '{}': a puller cannot be taken in, trying again: {error}", self.queue());
    }

    fn topic(&self) -> &str {
        self.queue()
    }
}
