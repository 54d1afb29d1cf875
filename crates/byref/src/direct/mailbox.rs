//! A mailbox: an address of one's own, messages to and from any number of other mailboxes.
//!
//! The receiving half is a [`Subscriber`] that looks for nobody: it collects from those that knock. The sending half is a
//! [`Store`](crate::writer::store::Store) with a [`Line`](crate::writer::line::Line) for each destination: a ring that one mailbox
//! reads.
//!
//! # How two mailboxes meet
//!
//! 1. The address is a claim (see [`claims`](crate::link::claims)), and a name in the rendezvous directory that follows from it.
//! 2. B sends to address A for the first time: it connects to that name and *knocks* ([`Wish::Knock`]), saying its own name.
//! 3. A connects to B by that name and *collects* ([`Wish::Collect`]), as a subscriber does: with its lease. B makes a line for it, and
//!    answers with the line's ring. From then on the two are publisher and subscriber.
//!
//! So a line is with one incarnation of an address, in the process that answered at A's name. B knocks again as long as somebody
//! waits for it: one that was lost, for want of descriptors perhaps, costs a second.

use crate::copies::{self, Cause, Endpoint};
use crate::direct::asking::{Answer, Connected};
use crate::direct::identity::{Identity, Successor};
use crate::direct::lines::{MailboxStats, Open};
use crate::direct::roster::Roster;
use crate::direct::undelivered::Undelivered;
use crate::error::{Conflict, Error, Result};
use crate::link::acceptor::Host;
use crate::link::announcement::Announcement;
use crate::link::channel::Channel;
use crate::link::claims::{Attempted, Claim};
use crate::link::handshake::{self, ToSubscriber, Whereabouts, Wish};
use crate::link::lookout::{Lookout, Neighbour};
use crate::link::names;
use crate::link::rendezvous::{self, Announced, Directory};
use crate::link::role::Role;
use crate::link::service::{self, Handle};
use crate::pubsub::publisher::MAX_CAPACITY;
use crate::pubsub::subscriber::{Subscriber, SubscriberBuilder};
use crate::reader::message::Message;
use crate::reader::take::Take;
use crate::sync::biased::{Biased, BiasedGuard};
use crate::sync::changes::Changes;
use crate::sync::locks::Mutex;
use crate::sync::wait::Wait;
use crate::sys::fork::ForkId;
use crate::sys::socket::{self, Connect};
use crate::topic;
use crate::writer::errands::Errands;
use crate::writer::line::{Limits, Line};
use crate::writer::owner::Owner;
use crate::writer::store::{self, Store};
use rustix::fd::OwnedFd;
use std::io;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

/// A holder that is to give its address up has this time for it.
const TIME_TO_GIVE_WAY: Duration = Duration::from_secs(5);
/// Pause between two attempts to claim an address that somebody is about to give up.
const CLAIM_AGAIN: Duration = Duration::from_millis(1);
/// Messages that may wait at a destination, by default.
const DEFAULT_DEPTH: u64 = 256;
/// What could not be done with the directory.
const CANNOT_CLAIM: &str = "cannot claim an address in the rendezvous directory";
pub(super) const CANNOT_ASK: &str = "cannot ask a mailbox";

/// Settings of a [`Mailbox`]; see [`Mailbox::builder`].
#[derive(Clone, Debug)]
pub struct MailboxBuilder {
    address: Option<String>,
    depth: u64,
    max_memory: Option<u64>,
    takeover: bool,
    events: bool,
}

impl MailboxBuilder {
    /// How many messages may wait at each destination (default: 256). A send beyond that waits.
    pub fn depth(mut self, messages: u64) -> Self {
        self.depth = messages;
        self
    }

    /// The most bytes of payload memory for all destinations together (default: as for a [`Publisher`](crate::Publisher)).
    pub fn max_memory(mut self, bytes: u64) -> Self {
        self.max_memory = Some(bytes);
        self
    }

    /// Whether to take the address from a mailbox that has it (default: no). That one is closed; its calls fail with
    /// [`Error::AddressInUse`].
    pub fn takeover(mut self, wanted: bool) -> Self {
        self.takeover = wanted;
        self
    }

    /// Whether [`Told`](crate::Told) also gives which mailboxes come and go (default: no).
    pub fn events(mut self, wanted: bool) -> Self {
        self.events = wanted;
        self
    }

    /// Claims the address.
    pub fn build(self) -> Result<Mailbox> {
        if let Some(address) = &self.address {
            validate(address)?;
        }
        let max_memory = store::check_max_memory(self.max_memory)?;
        if self.depth == 0 {
            return Err(Error::InvalidArgument("depth must be at least 1 message".into()));
        }
        if self.depth > MAX_CAPACITY {
            let most = MAX_CAPACITY;
            return Err(Error::InvalidArgument(format!("depth can be at most {most} messages")));
        }
        Mailbox::new(self, max_memory)
    }
}

/// Checks an address that is claimed, or sent to.
pub(super) fn validate(address: &str) -> Result<()> {
    if address.contains('*') {
        let reason = "'*' is a wildcard; a mailbox has, and is sent to by, one address (send_to_all takes a pattern)";
        return Err(topic::invalid(address, reason.into()));
    }
    topic::validate(address)
}

/// An address of one's own: receives what others send to it, and sends to theirs.
///
/// An address is unique in the rendezvous directory. Messages from one mailbox to another come in order; among several senders turns are
/// fair. It may be shared by threads: each message goes to exactly one caller.
///
/// ```no_run
/// # fn main() -> Result<(), byref::Error> {
/// use byref::Mailbox;
///
/// let scheduler = Mailbox::builder("scheduler").build()?;
/// let ready = scheduler.recv()?; // from a worker that has sent something to "scheduler"
/// scheduler.send(&ready.sender(), b"the work")?;
/// # Ok(())
/// # }
/// ```
///
/// Dropping it closes it: what was sent before still reaches every mailbox that lives, as long as it takes it.
pub struct Mailbox {
    pub(crate) shared: Arc<Shared>,
    /// Dropping it closes it.
    closes: bool,
}

/// What a mailbox, a client or a server is to be.
pub(crate) struct Plan {
    pub role: Role,
    pub address: String,
    pub incarnation: u128,
    /// Messages that may wait at each destination.
    pub depth: u64,
    /// Messages that may wait for it from each that sends to it, where it is the one who says so.
    pub own_depth: Option<u64>,
    pub max_memory: u64,
    pub events: bool,
}

/// Whom a client or a server has told of those that it exchanges messages with.
pub(crate) trait Observer: Send + Sync {
    /// There is a line to this one, at which so many messages may wait.
    fn joined(&self, peer: &Identity, line: u32, depth: u64);
    /// Whether not all is settled yet of a line that there was to it before.
    fn has_accounts_with(&self, _incarnation: u128) -> bool {
        false
    }
    /// It has ended, and has never taken these.
    fn parted(self: Arc<Self>, peer: &Identity, untaken: Vec<Undelivered>);
}

/// What a mailbox and its loans share; a client, and a server, too.
pub(crate) struct Shared {
    pub(super) role: Role,
    pub(crate) identity: Identity,
    pub(super) depth: u64,
    made_in: ForkId,
    pub(crate) inbox: Subscriber,
    open: Biased<Option<Open>>,
    /// Of a client or a server.
    observer: OnceLock<Weak<dyn Observer>>,
    /// Lines came or went.
    pub(crate) changed: Changes,
    pub(crate) lookout: Arc<Lookout>,
    pub(crate) service: Arc<Handle>,
    /// What the counters said at `close`.
    final_stats: Mutex<MailboxStats>,
    pub(super) max_memory: u64,
    pub(super) roster: Mutex<Roster>,
}

impl Mailbox {
    /// Settings for a mailbox with this address.
    pub fn builder(address: impl Into<String>) -> MailboxBuilder {
        MailboxBuilder { address: Some(address.into()), ..Self::anonymous() }
    }

    /// Settings for a mailbox with a random address, which others learn from its messages.
    pub fn anonymous() -> MailboxBuilder {
        MailboxBuilder { address: None, depth: DEFAULT_DEPTH, max_memory: None, takeover: false, events: false }
    }

    fn new(options: MailboxBuilder, max_memory: u64) -> Result<Self> {
        let incarnation = rendezvous::new_id();
        let address = options.address.unwrap_or_else(|| format!("anonymous/{:032x}", rendezvous::new_id()));
        let (lookout, service) = service::connect(&address)?;
        let _claim = claim(&lookout.directory(), &address, incarnation, options.takeover)?;
        fault!("claim.taken");
        let (depth, events, role) = (options.depth, options.events, Role::Mailbox);
        let plan = Plan { role, address, incarnation, depth, own_depth: None, max_memory, events };
        let mailbox = Mailbox { shared: Shared::new(plan, (&lookout, &service))?, closes: true };
        mailbox.shared.announce()?;
        Ok(mailbox)
    }

    // ---- who it is ----

    /// Its address.
    pub fn address(&self) -> &str {
        self.shared.identity.address()
    }

    /// Its address and the claim on it, for others to send to.
    pub fn identity(&self) -> &Identity {
        &self.shared.identity
    }

    // ---- receiving ----

    /// The next message; waits without limit.
    pub fn recv(&self) -> Result<Message> {
        self.shared.inbox.recv()
    }

    /// The next message; waits up to `timeout`.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Message> {
        self.shared.inbox.recv_timeout(timeout)
    }

    /// The next message, with an interruptible wait.
    pub fn recv_with(&self, wait: &mut Wait<'_>) -> Result<Message> {
        self.shared.inbox.recv_with(wait)
    }

    /// See [`Subscriber::receive`].
    pub fn receive<T: Take>(&self, what: T, wait: &mut Wait<'_>) -> Result<T::Taken> {
        self.shared.inbox.receive(what, wait)
    }

    /// The next message; `None` when none is there.
    pub fn try_recv(&self) -> Result<Option<Message>> {
        self.shared.inbox.try_recv()
    }

    /// The receiving half, for who waits for it and others, or receives with [events](MailboxBuilder::events): a subscriber with all
    /// its calls. Dropping it closes nothing.
    pub fn inbox(&self) -> Subscriber {
        self.shared.inbox.handle()
    }

    /// A second handle to the same mailbox. Dropping it closes nothing.
    pub fn handle(&self) -> Mailbox {
        Mailbox { shared: Arc::clone(&self.shared), closes: false }
    }

    // ---- closing ----

    /// Whether it was closed.
    pub fn is_closed(&self) -> Result<bool> {
        Ok(self.shared.lock()?.is_none())
    }

    /// Counters; after `close`, the last ones.
    pub fn stats(&self) -> Result<MailboxStats> {
        let received = self.shared.inbox.stats()?;
        let mut stats = self.shared.stats()?;
        (stats.received, stats.received_bytes) = (received.received, received.bytes);
        Ok(stats)
    }

    /// Closes the mailbox: its address is free, and calls that wait in other threads end with [`Error::Closed`]. Messages that it
    /// did not take are their senders' again. Calling it again has no effect.
    pub fn close(&self) {
        self.shared.close(None);
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        if self.closes {
            self.shared.close(None);
        }
    }
}

/// Claims an address.
fn claim(directory: &Directory, address: &str, incarnation: u128, takeover: bool) -> Result<Arc<Claim>> {
    let name = names::mailbox_name(address);
    let failed = |error| Error::meeting(address, directory.path(), CANNOT_CLAIM)(error);
    let began = Instant::now();
    loop {
        let pid = match Claim::attempt(directory, topic::wide_hash(address), incarnation).map_err(failed)? {
            // Somebody may have removed the file with the claims, while who had one then lives on.
            Attempted::Taken(claim) => match directory.connect(&name).map_err(failed)? {
                Connect::Refused | Connect::Absent => return Ok(claim),
                Connect::Connected(socket) => socket::peer_pid(&socket).map_or(0, |pid| pid.as_raw_nonzero().get()),
                Connect::Busy => 0,
            },
            Attempted::Held(pid) => pid,
        };
        let in_use = |conflict| {
            let Successor { pid, name } = Successor::in_process(pid);
            Error::AddressInUse { address: address.to_owned(), pid, name, conflict }
        };
        if !takeover {
            return Err(in_use(Conflict::Held));
        }
        if began.elapsed() >= TIME_TO_GIVE_WAY {
            return Err(in_use(Conflict::Silent));
        }
        fault!("takeover.asking");
        let wish = Wish::TakeOver { address: address.to_owned() };
        let connected = Connected::to(directory, &name).map_err(failed)?;
        if let Some(question) = connected.map_or(Ok(None), |connected| connected.ask(wish)).map_err(failed)? {
            let left = TIME_TO_GIVE_WAY.saturating_sub(began.elapsed());
            if let Some(Answer::Version(theirs)) = question.answer(left).map_err(failed)? {
                let (topic, pid, ours) = (address.to_owned(), question.pid, handshake::VERSION);
                return Err(Error::VersionMismatch { topic, pid, theirs, ours });
            }
        }
        std::thread::sleep(CLAIM_AGAIN);
    }
}

impl Shared {
    /// Nobody can call it yet.
    pub fn new(plan: Plan, (lookout, service): (&Arc<Lookout>, &Arc<Handle>)) -> Result<Arc<Self>> {
        let Plan { role, address, incarnation, max_memory, .. } = plan;
        let inbox = Subscriber::builder(address.clone()).of_direct(role, incarnation).events(plan.events);
        let inbox = plan.own_depth.into_iter().fold(inbox, SubscriberBuilder::depth).build()?;
        Ok(Arc::new_cyclic(|shared: &Weak<Shared>| {
            let errands: Weak<dyn Errands> = shared.clone();
            let store = Store::new(max_memory, Limits::default(), service, errands);
            Shared {
                role,
                identity: Identity::new(address, incarnation, std::process::id() as i32),
                depth: plan.depth,
                made_in: ForkId::current(),
                inbox,
                open: Biased::new(Some(Open::new(store))),
                observer: OnceLock::new(),
                changed: Changes::default(),
                lookout: Arc::clone(lookout),
                service: Arc::clone(service),
                final_stats: Mutex::default(),
                max_memory,
                roster: Mutex::default(),
            }
        }))
    }

    /// It is called from now on.
    pub fn announce(self: &Arc<Self>) -> Result<()> {
        let host: Weak<dyn Host> = Arc::downgrade(self) as _;
        let (address, id) = (self.address().to_owned(), self.identity.incarnation());
        let who = match self.role {
            Role::Mailbox => Announced::Mailbox { address, id },
            role => Announced::Party { role, address },
        };
        let announcement = Announcement::new(&self.lookout, &self.service, self.address(), who, host)?;
        match self.open.lock().as_mut() {
            Some(open) => open.announcement = Some(announcement),
            None => announcement.withdraw(), // Somebody has taken it over already.
        }
        let neighbour: Weak<dyn Neighbour> = Arc::downgrade(self) as _;
        self.lookout.add_neighbour(neighbour);
        copies::register(Cause::Send, self);
        self.inbox.look_for_partners()
    }

    /// Tells that one of those that it exchanges messages with.
    pub fn observe(&self, observer: Weak<dyn Observer>) {
        let _ = self.observer.set(observer);
    }

    pub(super) fn observer(&self) -> Option<Arc<dyn Observer>> {
        self.observer.get().and_then(Weak::upgrade)
    }

    pub(crate) fn address(&self) -> &str {
        self.identity.address()
    }

    /// The lock, unless a forked child asks: there it may be taken for ever.
    #[inline]
    pub(crate) fn lock(&self) -> Result<BiasedGuard<'_, Option<Open>>> {
        self.check_fork()?;
        Ok(self.open.lock())
    }

    #[inline]
    pub(crate) fn check_fork(&self) -> Result<()> {
        if self.made_in.is_current() {
            return Ok(());
        }
        Err(Error::Forked { what: self.role.what(), topic: self.address().to_owned() })
    }

    #[inline]
    pub(crate) fn opened<'a>(&self, guard: &'a mut BiasedGuard<'_, Option<Open>>) -> Result<&'a mut Open> {
        guard.as_mut().ok_or_else(|| self.inbox.closed())
    }

    /// Counters of the sending half; after `close`, the last ones.
    pub fn stats(&self) -> Result<MailboxStats> {
        let guard = self.lock()?;
        Ok(guard.as_ref().map_or_else(|| self.final_stats.lock().clone(), Open::stats))
    }

    /// Closes it; `successor`: for whom.
    pub(crate) fn close(&self, successor: Option<Successor>) {
        if !self.made_in.is_current() {
            return;
        }
        // Nobody calls any more. The claim goes last: who has it next finds nothing of this one.
        let announcement = self.open.lock().as_mut().and_then(|open| open.announcement.take());
        match successor {
            Some(successor) => self.inbox.give_way_to(successor),
            None => self.inbox.close(), // First: who sees the end of what is sent from here finds what was taken.
        }
        fault!("close.mailbox_inbox");
        let close = || {
            let mut guard = self.open.lock();
            let open = guard.take()?;
            open.store.end_tickets(&open.lines); // Under the lock: afterwards everybody finds them over.
            Some(open)
        };
        let closed = copies::settle(Cause::Send, close, Open::copied_bytes);
        if let Some(open) = closed {
            *self.final_stats.lock() = open.stats();
            for line in &open.lines {
                line.say_closed();
                line.hang_up();
                fault!("close.mailbox_line");
            }
        }
        if let Some(announcement) = announcement {
            announcement.withdraw();
        }
        self.changed.notify();
    }
}

impl Owner for Shared {
    fn topic(&self) -> &str {
        self.address()
    }

    fn enter(&self, act: &mut dyn FnMut(&mut Store, &mut [Line])) -> Result<()> {
        let mut guard = self.lock()?;
        let open = self.opened(&mut guard)?;
        act(&mut open.store, &mut open.lines);
        Ok(())
    }

    fn closed(&self) -> Error {
        self.inbox.closed()
    }

    fn changed(&self) {
        self.part_from_departed();
        self.changed.notify();
    }
}

impl Endpoint for Shared {
    fn copied(&self) -> u64 {
        self.lock().ok().and_then(|open| open.as_ref().map(Open::copied_bytes)).unwrap_or(0)
    }
}

impl Host for Shared {
    fn take_call(self: Arc<Self>, channel: Channel, wish: Wish, lease: Option<OwnedFd>) -> io::Result<()> {
        let Wish::Collect { hello, incarnation } = wish else {
            return channel.send(&handshake::encode_first(&ToSubscriber::NotThisTopic), None).map(drop);
        };
        let lease = lease.ok_or_else(|| io::Error::other("it sent no lease"))?;
        self.admit(channel, hello, incarnation, lease)
    }

    fn answer(self: Arc<Self>, socket: &OwnedFd, wish: Wish) -> io::Result<()> {
        let (own, own_incarnation) = (self.address(), self.identity.incarnation());
        let is_here = match wish {
            Wish::Knock { .. } | Wish::TakeOver { .. } if self.role != Role::Mailbox => false,
            Wish::Who => true,
            Wish::Knock { address, incarnation, from } => {
                let is_meant = address == own && incarnation.is_none_or(|meant| meant == own_incarnation);
                if is_meant && names::is_mailbox(&from) {
                    fault!("knock.heard");
                    self.inbox.collect_at(&from);
                }
                is_meant
            }
            // Who has given up, while this process was stopped, has no use for it.
            Wish::TakeOver { address } if address == own && !socket::is_hung_up(socket) => {
                let pid = socket::peer_pid(socket).map_or(0, |pid| pid.as_raw_nonzero().get());
                log::info!("byref: mailbox '{own}': process {pid} takes the address over");
                fault!("takeover.heard");
                self.close(Some(Successor::in_process(pid)));
                fault!("takeover.given_way");
                true
            }
            _ => false,
        };
        let here = || ToSubscriber::Here(Whereabouts { address: own.to_owned(), incarnation: own_incarnation });
        let answer = if is_here { here() } else { ToSubscriber::NotThisTopic };
        socket::send(socket, &handshake::encode_first(&answer), None).map(drop)
    }

    fn is_short_of(&self, error: &io::Error) {
        log::warn!("byref: mailbox '{}': a mailbox cannot be taken in, trying again: {error}", self.address());
    }

    fn topic(&self) -> &str {
        self.address()
    }
}

impl Neighbour for Shared {
    fn appeared(&self) {
        self.changed.notify();
    }

    fn vanished(&self, name: &str) {
        self.look_at_reader(name);
        self.changed.notify();
    }

    fn missed_something(&self) {
        self.look_for_ends(|_| true);
        self.changed.notify();
    }
}
