//! The asking side of a service.

use crate::attributes::Encoded;
use crate::direct::identity::Identity;
use crate::direct::mailbox::{Observer, Plan, Shared};
use crate::direct::undelivered::{Body, Undelivered};
use crate::error::{Error, Result};
use crate::link::role::Role;
use crate::link::service::{self, Next};
use crate::memory::glossary::Entry;
use crate::memory::pool::Chunk;
use crate::protocol::ring::Descriptor;
use crate::pubsub::loan::{Lender, Loan};
use crate::pubsub::subscriber::Readiness;
use crate::reader::event::{EventKind, Incoming};
use crate::reader::message::{Message, PublisherInfo};
use crate::reader::take::{Source, Take};
use crate::rpc::failure::Failure;
use crate::rpc::pending::PendingReply;
use crate::rpc::table::{Choice, End, JobId, Reply, Table, Target};
use crate::rpc::tag::{Answered, Asked, Kind, Moment};
use crate::sync::biased::Biased;
use crate::sync::changes::Ended;
use crate::sync::locks::Mutex;
use crate::sync::wait::Wait;
use crate::sys::door::Door;
use crate::sys::epoll::Interest;
use crate::writer::append::{self, Filled, fits_inline_tagged};
use crate::writer::attempt::Attempt;
use crate::writer::owner::Owner;
use crate::writer::store;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::Waker;
use std::time::{Duration, Instant};

/// The time for a reply, unless the caller gives another one.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// Servers that are there have this time to answer a new client before it says that there are none.
const TIME_TO_MEET: Duration = Duration::from_secs(1);
/// Time between two looks of the service thread, while requests wait for room, or not all is known about a server that has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// The same, while nothing changes.
const LOOK_AT_LAST: Duration = Duration::from_millis(32);

/// Settings of a [`Client`]; see [`Client::builder`].
#[derive(Clone, Debug)]
pub struct ClientBuilder {
    service: String,
    max_memory: Option<u64>,
}

impl ClientBuilder {
    /// The most bytes of payload memory for all requests together (default: as for a [`Publisher`](crate::Publisher)).
    pub fn max_memory(mut self, bytes: u64) -> Self {
        self.max_memory = Some(bytes);
        self
    }

    /// Makes the client, which looks for servers from now on.
    pub fn build(self) -> Result<Client> {
        super::validate(&self.service, "")?;
        let max_memory = store::check_max_memory(self.max_memory)?;
        Client::new(self.service, max_memory)
    }
}

/// How a request is made.
#[derive(Clone, Debug)]
pub struct Ask {
    timeout: Option<Duration>,
    come: Duration,
    target: Target,
    is_repeatable: bool,
    timestamp_ns: Option<u64>,
}

impl Default for Ask {
    fn default() -> Self {
        let (timeout, come) = (Some(DEFAULT_TIMEOUT), Duration::ZERO);
        Ask { timeout, come, target: Target::Any, is_repeatable: false, timestamp_ns: None }
    }
}

impl Ask {
    /// The time for the reply (default: 30 s); `None`: no limit.
    pub fn timeout(mut self, time: Option<Duration>) -> Self {
        self.timeout = time;
        self
    }

    /// Lets a server come, for so long, if nobody serves (default: not at all).
    pub fn come_within(mut self, time: Duration) -> Self {
        self.come = time;
        self
    }

    /// To this server and no other one.
    pub fn to(mut self, server: &Identity) -> Self {
        self.target = Target::Server(server.clone());
        self
    }

    /// To the servers of this group.
    pub fn to_group(mut self, group: &str) -> Self {
        self.target = Target::Group(group.into());
        self
    }

    /// It may be repeated: when a server that has taken it ends without a reply, another one gets it.
    pub fn repeatable(mut self) -> Self {
        self.is_repeatable = true;
        self
    }

    /// The timestamp of the request (nanoseconds; default: `CLOCK_REALTIME`).
    pub fn timestamp_ns(mut self, timestamp_ns: Option<u64>) -> Self {
        self.timestamp_ns = timestamp_ns;
        self
    }
}

/// Counters of a client.
#[derive(Clone, Debug, Default)]
pub struct ClientStats {
    /// Requests sent, those that were sent again included.
    pub sent: u64,
    /// Payload bytes that were copied into shared memory.
    pub copied_bytes: u64,
    /// Replies received, in parts where they were streamed.
    pub received: u64,
    /// Replies that came when nobody wanted them any more.
    pub late: u64,
    /// Replies of servers that had not been asked for them.
    pub unasked: u64,
    /// Requests that were sent to another server after the first one had ended.
    pub resent: u64,
    /// Requests that servers have not answered, and those that wait for a server.
    pub under_way: u64,
    /// See `under_way`.
    pub waiting: u64,
    /// Servers that it is connected to.
    pub servers: u64,
    /// Bytes of payload memory in use.
    pub pool_used: u64,
}

/// What is sent again, or later.
#[derive(Clone)]
pub(super) enum Stored {
    /// As it was sent before.
    Again(Undelivered),
    /// A loan that waits, with its attributes.
    Loan(Arc<Mutex<Loan>>, Encoded),
}

/// What is sent.
pub(super) enum Payload<'a> {
    Inline(&'a [u8], &'a Encoded),
    Loan(&'a mut Loan, &'a Encoded),
    Stored(Stored),
}

/// What those sleep at who poll for replies: the inbox, and a bell for what others have taken from that.
struct News {
    door: Arc<Door>,
    _inbox: Readiness,
    is_rung: AtomicBool,
}

/// What a client shares with its pending replies and loans.
pub(super) struct Inner {
    pub service: Box<str>,
    pub shared: Arc<Shared>,
    table: Biased<Table<Message, Stored>>,
    /// Threads that wait for replies.
    waiting: AtomicUsize,
    /// A task of the service thread receives for futures.
    reacts: AtomicBool,
    /// For who polls.
    news: OnceLock<News>,
}

/// Asks the servers of a service, and gets their replies.
///
/// It may be shared by threads. Requests go to the server with the fewest under way; see [`Server`](crate::Server).
///
/// ```no_run
/// # fn main() -> Result<(), byref::Error> {
/// use byref::Client;
///
/// let client = Client::builder("math/add").build()?;
/// let reply = client.request(b"1 2")?;
/// assert_eq!(&reply[..], b"3");
/// # Ok(())
/// # }
/// ```
///
/// Dropping it closes it: requests under way are cancelled.
pub struct Client {
    pub(super) inner: Arc<Inner>,
    closes: bool,
}

impl Client {
    /// Settings for a client of this service.
    pub fn builder(service: impl Into<String>) -> ClientBuilder {
        ClientBuilder { service: service.into(), max_memory: None }
    }

    fn new(service: String, max_memory: u64) -> Result<Self> {
        let incarnation = crate::link::rendezvous::new_id();
        let role = Role::Client;
        let address = role.address(&service, "", incarnation);
        let (lookout, handle) = service::connect(&service)?;
        let plan = Plan { role, address, incarnation, depth: 1, own_depth: None, max_memory, events: true };
        let inner = Arc::new(Inner {
            service: service.into(),
            shared: Shared::new(plan, (&lookout, &handle))?,
            table: Biased::new(Table::default()),
            waiting: AtomicUsize::new(0),
            reacts: AtomicBool::new(false),
            news: OnceLock::new(),
        });
        let observer: Weak<dyn Observer> = Arc::downgrade(&inner) as _;
        inner.shared.observe(observer);
        let client = Client { inner, closes: true };
        client.inner.shared.announce()?;
        Ok(client)
    }

    /// The service.
    pub fn service(&self) -> &str {
        &self.inner.service
    }

    /// Who it is, as servers see it.
    pub fn identity(&self) -> &Identity {
        &self.inner.shared.identity
    }

    /// A second handle to the same client. Dropping it closes nothing.
    pub fn handle(&self) -> Client {
        Client { inner: Arc::clone(&self.inner), closes: false }
    }

    // ---- asking ----

    /// Sends a copy of `payload` to a server, and waits for its reply, up to 30 seconds.
    pub fn request(&self, payload: &[u8]) -> Result<Message> {
        self.request_with(payload, &Encoded::default(), &Ask::default(), &mut Wait::up_to(None))
    }

    /// The same with attributes, as `ask` says, and with an interruptible wait. (How long it waits, `ask` says.)
    pub fn request_with(
        &self,
        payload: &[u8],
        attributes: &Encoded,
        ask: &Ask,
        wait: &mut Wait<'_>,
    ) -> Result<Message> {
        self.submit_with(payload, attributes, ask, wait)?.wait_with(wait)
    }

    /// Sends a copy of `payload` to a server; the reply is to come within 30 seconds.
    pub fn submit(&self, payload: &[u8]) -> Result<PendingReply> {
        self.submit_with(payload, &Encoded::default(), &Ask::default(), &mut Wait::up_to(None))
    }

    /// The same with attributes, and as `ask` says. Waits only for payload memory, and for servers to come.
    pub fn submit_with(
        &self,
        payload: &[u8],
        attributes: &Encoded,
        ask: &Ask,
        wait: &mut Wait<'_>,
    ) -> Result<PendingReply> {
        if fits_inline_tagged(payload.len(), attributes) {
            return self.inner.begin(Payload::Inline(payload, attributes), ask, wait);
        }
        let mut loan = self.loan_with(payload.len(), attributes.len(), wait)?;
        loan.write(0, payload);
        loan.count_copied(payload.len());
        self.submit_loan(&mut loan, attributes, ask, wait)
    }

    /// Lends `len` bytes, to be filled in place and sent with [`submit_loan`](Self::submit_loan).
    pub fn loan(&self, len: usize) -> Result<Loan> {
        self.loan_with(len, 0, &mut Wait::up_to(None))
    }

    /// [`loan`](Self::loan) with room for `attributes_len` bytes of encoded attributes beside the payload.
    pub fn loan_with(&self, len: usize, attributes_len: usize, wait: &mut Wait<'_>) -> Result<Loan> {
        Loan::take_from(Arc::clone(&self.inner) as _, len, attributes_len, wait)
            .map_err(|error| self.inner.explained(error))
    }

    /// Sends a loan of this client's as a request. If that fails, the loan is as before.
    pub fn submit_loan(
        &self,
        loan: &mut Loan,
        attributes: &Encoded,
        ask: &Ask,
        wait: &mut Wait<'_>,
    ) -> Result<PendingReply> {
        let owner: Arc<dyn Owner> = Arc::clone(&self.inner.shared) as _;
        if !loan.is_lent_by(&owner) {
            let service = self.service();
            return Err(Error::InvalidArgument(format!(
                "service '{service}': this loan is another endpoint's; take it from the client that sends it"
            )));
        }
        loan.memory().map_err(|error| self.inner.explained(error))?; // It is neither sent nor discarded.
        if fits_inline_tagged(loan.len(), attributes) {
            let pending = self.inner.begin(Payload::Inline(loan, attributes), ask, wait)?;
            loan.discard();
            return Ok(pending);
        }
        loan.prepare(attributes, wait).map_err(|error| self.inner.explained(error))?;
        self.inner.begin(Payload::Loan(loan, attributes), ask, wait)
    }

    /// The servers of the service that it is connected to.
    pub fn servers(&self) -> Result<Vec<Identity>> {
        self.inner.check()?;
        self.inner.progress();
        let table = self.inner.table.lock();
        Ok(table.present().cloned().collect())
    }

    /// Waits until there is a server, of that group if one is given.
    pub fn wait_for_server_with(&self, group: Option<&str>, wait: &mut Wait<'_>) -> Result<()> {
        let target = group.map_or(Target::Any, |group| Target::Group(group.into()));
        let given = wait.given();
        match self.inner.wait_for(&target, Duration::MAX, wait) {
            Ok(true) => Ok(()),
            Ok(false) => {
                let hint = format!("; no server has come in {}", self.inner.place());
                Err(Error::Timeout { what: "serving", topic: self.service().to_owned(), waited: given, hint })
            }
            Err(error) => Err(error),
        }
    }

    /// Waits until there is a server that `ask` is meant for; an error if there is none.
    pub fn wait_for_some(&self, ask: &Ask, wait: &mut Wait<'_>) -> Result<()> {
        self.inner.wait_for_some(ask, wait)
    }

    /// Those that `ask` is meant for.
    pub fn servers_for(&self, ask: &Ask) -> Result<Vec<Identity>> {
        let mut servers = self.servers()?;
        servers.retain(|server| match &ask.target {
            Target::Any => true,
            Target::Group(group) => super::group_of(server.address()) == Some(group),
            Target::Server(peer) => peer == server,
        });
        Ok(servers)
    }

    /// Asks every server that is there the same; each gets a copy of its own.
    pub fn survey_with(
        &self,
        payload: &[u8],
        attributes: &Encoded,
        ask: &Ask,
        wait: &mut Wait<'_>,
    ) -> Result<Vec<PendingReply>> {
        self.wait_for_some(ask, wait)?;
        let mut pending = Vec::new();
        for server in self.servers_for(ask)? {
            match self.submit_with(payload, attributes, &ask.clone().to(&server), wait) {
                Ok(reply) => pending.push(reply),
                Err(Error::NoServer { .. } | Error::ServerLost { .. }) => {} // It has gone meanwhile.
                Err(error) => return Err(error),
            }
        }
        Ok(pending)
    }

    /// [`Publisher::explain`](crate::Publisher::explain), for all servers.
    pub fn explain(&self, bytes: &[u8]) -> Result<Option<Entry>> {
        self.inner.shared.explain(bytes)
    }

    // ---- waiting for many, closing ----

    /// A descriptor that becomes readable when there may be something for a reply whose [`is_ready`](PendingReply::is_ready) was
    /// `false`.
    pub fn readiness(&self) -> Result<Readiness> {
        let inner = &self.inner;
        if inner.news.get().is_none() {
            let inbox = inner.shared.inbox.readiness().map_err(|error| inner.explained(error))?;
            let make = || {
                let door = Door::opened()?;
                door.epoll().add(&inbox, 0, Interest::IN)?;
                io::Result::Ok(door)
            };
            let door = make().map_err(Error::system(self.service(), "cannot make an epoll descriptor"))?;
            let news = News { door: Arc::new(door), _inbox: inbox, is_rung: AtomicBool::new(false) };
            let _ = inner.news.set(news);
            inner.tell_pollers(); // What came before.
        }
        Ok(Readiness(Arc::clone(&inner.news.get().expect("set above").door)))
    }

    /// Receives what is there for all pending replies, without waiting.
    pub fn receive(&self) -> Result<()> {
        self.inner.check()?;
        self.inner.progress();
        Ok(())
    }

    /// Counters.
    pub fn stats(&self) -> Result<ClientStats> {
        let received = self.inner.shared.inbox.stats().map_err(|error| self.inner.explained(error))?;
        let sent = self.inner.shared.stats()?;
        let table = self.inner.table.lock();
        let (under_way, waiting) = table.counts();
        Ok(ClientStats {
            sent: sent.sent,
            copied_bytes: sent.copied_bytes,
            received: received.received,
            late: table.late,
            unasked: table.unasked,
            resent: table.resent,
            under_way,
            waiting,
            servers: table.present().count() as u64,
            pool_used: sent.pool_used,
        })
    }

    /// Whether it was closed.
    pub fn is_closed(&self) -> Result<bool> {
        self.inner.check_fork()?;
        Ok(self.inner.check().is_err())
    }

    /// Closes the client. Calls that wait for replies end with [`Error::Closed`]; servers see that nobody wants these any more.
    /// Calling it again has no effect.
    pub fn close(&self) {
        if self.inner.check_fork().is_err() {
            return;
        }
        self.inner.shared.close(None);
        self.inner.wake_all();
        let woken = self.inner.with_table(|table| {
            table.wake_everybody();
            std::mem::take(&mut table.to_wake)
        });
        woken.into_iter().for_each(Waker::wake);
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if self.closes {
            self.close();
        }
    }
}

/// The most messages that are taken in one step, so that a flood leaves a call its time,
const MOST_IN_A_STEP: usize = 64;
/// and steps in a call that does not wait.
const MOST_STEPS: usize = 16;

/// What ends a wait for a reply.
enum Step {
    /// There is something for the caller.
    Ready,
    /// There is something to do without locks.
    Chores,
    /// There may be more to take.
    More,
}

/// Receives, until there is something for one job, or nothing more.
#[derive(Clone, Copy)]
struct Progress<'a> {
    inner: &'a Inner,
    job: Option<JobId>,
}

impl Take for Progress<'_> {
    type Taken = Step;

    fn check(&self, _: &str) -> Result<()> {
        Ok(())
    }

    #[inline]
    fn take(&self, from: &mut Source<'_>) -> Result<Option<Step>> {
        self.take_up_to_event(from)
    }

    #[inline]
    fn take_up_to_event(&self, from: &mut Source<'_>) -> Result<Option<Step>> {
        let inner = self.inner;
        for _ in 0..MOST_IN_A_STEP {
            if let Some(job) = self.job
                && inner.table.lock().is_ready(job)
            {
                return Ok(Some(Step::Ready));
            }
            let give = |message: Message, tag: u64, _: &Arc<_>| (message, tag);
            let Some(incoming) = from.0.take_incoming(|reader| reader.take_with(give))? else { return Ok(None) };
            let has_chores = match incoming {
                Incoming::Message((message, tag)) => inner.hear(message, tag, self.job),
                Incoming::Event(event) => inner.hear_of_end(event.publisher.id, event.kind),
            };
            if has_chores {
                return Ok(Some(Step::Chores));
            }
        }
        Ok(Some(Step::More))
    }
}

impl Inner {
    /// An error, said of the service.
    pub fn explained(&self, error: Error) -> Error {
        super::explained(Role::Client, &self.service, error)
    }

    /// An error if it is closed.
    pub fn check(&self) -> Result<()> {
        let check = || self.shared.opened(&mut self.shared.lock()?).map(drop);
        check().map_err(|error| self.explained(error))
    }

    /// An error in a forked child, where no lock is to be taken.
    pub fn check_fork(&self) -> Result<()> {
        self.shared.check_fork().map_err(|error| self.explained(error))
    }

    fn place(&self) -> String {
        self.shared.lookout.directory().path().display().to_string()
    }

    // ---- sending ----

    /// Begins a request.
    pub fn begin(self: &Arc<Self>, mut payload: Payload<'_>, ask: &Ask, wait: &mut Wait<'_>) -> Result<PendingReply> {
        self.check_fork()?;
        loop {
            let mut table = self.table.lock();
            let mut choice = table.choose(&ask.target);
            if choice == Choice::Nobody {
                drop(table);
                self.wait_for_some(ask, wait)?;
                continue;
            }
            let deadline = ask.timeout.and_then(Moment::after);
            let id = table.add(ask.target.clone(), deadline, ask.is_repeatable);
            let pending = PendingReply::new(self, id, ask.timeout);
            let mut sent = self.shared.lock().and_then(|mut open| self.shared.opened(&mut open).map(|_| false));
            // The order of those that wait is kept. A server without room is passed over.
            while let (Choice::At(index), false, Ok(false)) = (choice, table.has_waiting(), &sent) {
                sent = self.send(&mut table, index, id, &mut payload, ask.timestamp_ns);
                choice = table.choose(&ask.target);
            }
            match sent {
                Ok(true) => {}
                Ok(false) => {
                    let stored = match payload {
                        Payload::Inline(payload, attributes) => {
                            let incarnation = self.shared.identity.incarnation();
                            let kept = Undelivered::of_inline(&self.shared.identity, incarnation, payload, attributes);
                            Stored::Again(kept)
                        }
                        Payload::Loan(loan, attributes) => {
                            Stored::Loan(Arc::new(Mutex::new(loan.take())), attributes.clone())
                        }
                        Payload::Stored(stored) => stored,
                    };
                    table.let_wait(id, stored);
                    self.pump(&mut table);
                    self.look_later(&mut table);
                }
                Err(error) => {
                    drop(table); // Dropping what is pending takes it.
                    return Err(self.explained(error));
                }
            }
            return Ok(pending);
        }
    }

    /// Sends a request to the server at `index`; `false`: it cannot be sent now.
    fn send(
        &self,
        table: &mut Table<Message, Stored>,
        index: usize,
        id: JobId,
        payload: &mut Payload<'_>,
        timestamp_ns: Option<u64>,
    ) -> Result<bool> {
        let (flag, number) = (table.take_flag(index), table.line_at(index));
        let (deadline, keeps) = (table.job(id).deadline, table.job(id).is_repeatable);
        let tag = Asked { flag, deadline }.encode();
        let mut guard = self.shared.lock()?;
        let open = self.shared.opened(&mut guard)?;
        let attempt = match open.line_numbered(number).filter(|at| !open.lines[*at].has_departed()) {
            None => Attempt::Wait { at: 0, poll: None },
            Some(at) => {
                let line = &mut open.lines[at];
                line.ring().set_flag(flag, false);
                line.ring().set_second_flag(flag, false);
                fault!("request.flag_cleared");
                let store = &mut open.store;
                match payload {
                    Payload::Inline(payload, attributes) => {
                        append::inline_tagged(line, payload, attributes, tag, timestamp_ns)
                    }
                    Payload::Loan(loan, attributes) => {
                        append::pooled(store, line, &loan.filled(attributes, tag)?, timestamp_ns)
                    }
                    Payload::Stored(Stored::Loan(loan, attributes)) => {
                        append::pooled(store, line, &loan.lock().filled(attributes, tag)?, timestamp_ns)
                    }
                    Payload::Stored(Stored::Again(kept)) => match kept.body() {
                        Body::Inline(payload, attributes) => {
                            append::inline_tagged(line, payload, attributes, tag, timestamp_ns)
                        }
                        Body::Pooled(pooled) => {
                            append::again(store, line, Descriptor { tag, ..pooled.at }, timestamp_ns)
                        }
                    },
                }
            }
        };
        let request = match attempt {
            Attempt::Done(request) => request,
            Attempt::Fail(error) => {
                table.give_flag_back(index, flag);
                return Err(error);
            }
            Attempt::Wait { .. } => {
                table.give_flag_back(index, flag);
                table.note_stuck(index);
                return Ok(false);
            }
        };
        fault!("request.sent");
        let (own, peer) = (self.shared.identity.incarnation(), table.peer_at(index).clone());
        let pinned = |at: Descriptor| Some(Undelivered::of_pooled(&peer, own, open.store.pool.pin(at.slot)?, at));
        let kept = match payload {
            Payload::Inline(payload, attributes) => {
                keeps.then(|| Stored::Again(Undelivered::of_inline(&peer, own, payload, attributes)))
            }
            Payload::Loan(loan, attributes) => {
                let kept = keeps.then(|| pinned(append::descriptor(&loan.filled(attributes, tag).ok()?))).flatten();
                loan.was_sent();
                kept.map(Stored::Again)
            }
            Payload::Stored(Stored::Loan(loan, attributes)) => {
                let mut loan = loan.lock();
                let kept = keeps.then(|| pinned(append::descriptor(&loan.filled(attributes, tag).ok()?))).flatten();
                loan.was_sent();
                kept.map(Stored::Again)
            }
            Payload::Stored(Stored::Again(kept)) => Some(Stored::Again(kept.clone())),
        };
        drop(guard);
        if let Some(kept) = kept {
            table.keep(id, kept);
        }
        table.sent(index, flag, request, id);
        Ok(true)
    }

    /// Sends what waits, as far as there is room for it.
    fn pump(&self, table: &mut Table<Message, Stored>) {
        while let Some((id, index, stored)) = table.next_to_send() {
            match self.send(table, index, id, &mut Payload::Stored(stored), None) {
                Ok(true) => {}
                Ok(false) => table.put_back(id), // That server is passed over.
                Err(_) => return table.put_back(id),
            }
        }
    }

    /// Waits until there is a server that is meant; an error if there is none.
    pub fn wait_for_some(&self, ask: &Ask, wait: &mut Wait<'_>) -> Result<()> {
        if self.wait_for(&ask.target, ask.come, wait)? {
            return Ok(());
        }
        if let Target::Server(peer) = &ask.target {
            return Err(Error::ServerLost { service: self.service.to_string(), peer: peer.clone(), taken: false });
        }
        let group = match &ask.target {
            Target::Group(group) => format!(" in the group '{group}'"),
            _ => String::new(),
        };
        let place = self.place();
        let hint = format!("{group}; servers were looked for in {place}: start one first, or let it come with wait=");
        Err(Error::NoServer { service: self.service.to_string(), hint })
    }

    /// Waits until there is a server that is meant, so long if none is on its way here; whether there is one.
    fn wait_for(&self, target: &Target, come: Duration, wait: &mut Wait<'_>) -> Result<bool> {
        if !wait.is_allowed() {
            return Err(Error::WouldBlock { topic: self.service.to_string() });
        }
        let (began, mut found) = (Instant::now(), false);
        let ended = self.shared.changed.until(wait, || {
            self.check()?;
            self.progress();
            let table = self.table.lock();
            found = table.choose(target) != Choice::Nobody;
            let connected = table.present().count();
            drop(table);
            // In the directory: the watch may be late.
            let servers = || self.shared.lookout.directory().servers(&self.service).unwrap_or(0);
            let is_on_its_way = || began.elapsed() < TIME_TO_MEET && servers() > connected;
            Ok(found || (began.elapsed() >= come && !is_on_its_way()))
        })?;
        match ended {
            Ended::Interrupted => Err(Error::Interrupted { topic: self.service.to_string() }),
            Ended::Done | Ended::TimedOut => Ok(found),
        }
    }

    /// A job was ended by its caller: lets the server know, and who waits for it.
    pub fn after_end(&self, unwanted: Option<(u32, usize)>) {
        self.tell(unwanted);
        self.wake_all();
        let woken = self.with_table(|table| std::mem::take(&mut table.to_wake));
        woken.into_iter().for_each(Waker::wake);
    }

    /// A caller has taken a part: its server may go on, perhaps.
    pub fn took_part(&self, id: JobId) {
        let mut table = self.table.lock();
        if let Some((line, flag)) = table.go_on(id) {
            self.mark_held_up(line, flag, false);
        }
    }

    /// Tells a server whether enough parts wait here. Under the table's lock: the flag is that request's.
    fn mark_held_up(&self, line: u32, flag: usize, is_held_up: bool) {
        let Ok(mut guard) = self.shared.lock() else { return };
        let Ok(open) = self.shared.opened(&mut guard) else { return };
        if let Some(at) = open.line_numbered(line) {
            open.lines[at].ring().set_second_flag(flag, is_held_up);
            fault!("stream.held_up");
        }
    }

    /// Lets servers know whose replies nobody wants.
    pub fn tell(&self, unwanted: impl IntoIterator<Item = (u32, usize)>) {
        let mut unwanted = unwanted.into_iter().peekable();
        if unwanted.peek().is_none() {
            return;
        }
        // Under the table's lock: the server may have answered meanwhile, and another request have the flag.
        let table = self.table.lock();
        let Ok(mut guard) = self.shared.lock() else { return };
        let Ok(open) = self.shared.opened(&mut guard) else { return };
        for (line, flag) in unwanted.filter(|(line, flag)| table.is_unwanted(*line, *flag)) {
            if let Some(at) = open.line_numbered(line) {
                fault!("cancel.before");
                open.lines[at].ring().set_flag(flag, true);
                fault!("cancel.after");
            }
        }
    }

    // ---- receiving ----

    /// A server has said something; whether there is something to do without locks.
    #[inline]
    fn hear(&self, message: Message, tag: u64, own: Option<JobId>) -> bool {
        let server = message.publisher().id;
        let mut table = self.table.lock();
        let Some(answered) = Answered::decode(tag) else {
            table.unasked += 1;
            return false;
        };
        let reply = table.answer(server, answered, message, |message| Failure::decode(&message));
        if let Reply::For(id) = reply
            && answered.kind == Kind::More
            && let Some((line, flag)) = table.hold_up(id)
        {
            self.mark_held_up(line, flag, true);
        }
        if table.has_waiting() {
            self.pump(&mut table);
        }
        let has_chores = !table.to_wake.is_empty() || !table.unwanted.is_empty();
        let is_other = matches!(reply, Reply::For(id) if Some(id) != own);
        drop(table);
        if is_other {
            self.tell_pollers();
            if self.waiting.load(Ordering::Relaxed) > usize::from(own.is_some()) {
                self.shared.inbox.nudge();
            }
        }
        if reply == Reply::Unasked {
            log::warn!("byref: service '{}': a reply that was not asked for", self.service);
        }
        has_chores
    }

    /// Something has happened to a server; whether there is something to do without locks.
    fn hear_of_end(&self, server: u128, kind: EventKind) -> bool {
        if !matches!(kind, EventKind::Left | EventKind::Lost | EventKind::Evicted) {
            return false;
        }
        let mut table = self.table.lock();
        table.fall_silent(server);
        self.pump(&mut table);
        drop(table);
        self.tell_pollers();
        true
    }

    /// Does what is to be done without locks.
    fn do_chores(&self) {
        let (to_wake, to_look_at, unwanted) = {
            let table = &mut *self.table.lock();
            let (to_wake, to_look_at) = (std::mem::take(&mut table.to_wake), std::mem::take(&mut table.to_look_at));
            (to_wake, to_look_at, std::mem::take(&mut table.unwanted))
        };
        self.tell(unwanted);
        for peer in to_look_at {
            self.shared.look_for_ends(|known| known.peer.incarnation() == peer.incarnation());
            // All that it will ever say was received, whatever else it does.
            self.shared.give_up(&peer, "gives no replies any more");
        }
        self.wake_all();
        to_wake.into_iter().for_each(Waker::wake);
    }

    /// Who polls for a reply looks again: another one has taken it in, or ended it.
    fn tell_pollers(&self) {
        if let Some(news) = self.news.get()
            && !news.is_rung.swap(true, Ordering::AcqRel)
        {
            news.door.bell().ring();
        }
    }

    /// Who polls looks now: it is told of what happens from here on.
    pub fn poll_begins(&self) {
        if let Some(news) = self.news.get()
            && news.is_rung.load(Ordering::Acquire)
        {
            news.door.bell().silence();
            news.is_rung.store(false, Ordering::Release);
        }
    }

    /// Has all threads that wait look again.
    pub fn wake_all(&self) {
        self.tell_pollers();
        if self.waiting.load(Ordering::Relaxed) > 0 {
            self.shared.inbox.nudge();
            self.shared.inbox.stir();
        }
    }

    /// Receives what is there, without waiting.
    pub fn progress(&self) {
        self.progress_for(None);
    }

    /// The same, for who waits for one job; up to something for it.
    pub fn progress_for(&self, job: Option<JobId>) {
        let what = Progress { inner: self, job };
        for step in 0.. {
            if step == MOST_STEPS {
                self.shared.inbox.stir(); // Whoever looks next goes on with the rest.
                self.tell_pollers();
                break;
            }
            let Ok(Some(step)) = self.shared.inbox.try_receive(what) else { break };
            self.do_chores();
            if matches!(step, Step::Ready) {
                break;
            }
        }
        let (late, chores) = {
            let mut table = self.table.lock();
            table.try_again();
            (table.end_late(), !table.to_wake.is_empty() || !table.to_look_at.is_empty())
        };
        if late.is_some() {
            self.wake_all();
        }
        self.tell(late.into_iter().flatten());
        if chores {
            self.do_chores();
        }
    }

    /// Waits until there is something for a job. An error leaves it as it is, unless it is late.
    pub fn wait_for_job(&self, id: JobId, wait: &mut Wait<'_>) -> Result<()> {
        struct Waiting<'a>(&'a AtomicUsize);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        let what = Progress { inner: self, job: Some(id) };
        loop {
            match self.shared.inbox.receive(what, wait) {
                Ok(Step::Ready) => return Ok(()),
                Ok(Step::Chores) => self.do_chores(),
                Ok(Step::More) => {
                    self.do_chores();
                    if wait.remaining().is_none() {
                        let (topic, waited) = (self.service.to_string(), wait.given());
                        return Err(Error::Timeout { what: "request", topic, waited, hint: String::new() });
                    }
                    if wait.may_be_interrupted() && wait.is_interrupted() {
                        return Err(Error::Interrupted { topic: self.service.to_string() });
                    }
                }
                Err(error) => return Err(self.explained(error)),
            }
        }
    }

    /// Does something with the table.
    pub fn with_table<T>(&self, act: impl FnOnce(&mut Table<Message, Stored>) -> T) -> T {
        act(&mut self.table.lock())
    }

    /// Has the service thread receive as long as requests wait, or not all is known about servers that have ended: no other thread may
    /// do so.
    fn look_later(self: &Arc<Self>, table: &mut Table<Message, Stored>) {
        if std::mem::replace(&mut table.is_looked_after, true) {
            return;
        }
        let inner = Arc::downgrade(self);
        let (mut pause, mut sent) = (LOOK_AGAIN, 0);
        self.shared.service.after(LOOK_AGAIN, move |_, _, _| {
            let Some(inner) = inner.upgrade() else { return Next::Done };
            inner.progress();
            let choices = {
                let mut table = inner.table.lock();
                inner.pump(&mut table); // Those that were stuck may have room.
                let is_over = table.is_settled() && !table.has_waiting();
                // Under the lock: who lets a request wait from here on has this looked after anew.
                table.is_looked_after = !is_over && inner.check().is_ok();
                if !table.is_looked_after {
                    return Next::Done;
                }
                table.choices()
            };
            pause = if choices != sent { LOOK_AGAIN } else { (2 * pause).min(LOOK_AT_LAST) };
            sent = choices;
            Next::After(pause)
        });
    }

    /// Has the service thread receive for those who are woken, and end what is late.
    pub fn react(self: &Arc<Self>, deadline: Option<Moment>) -> Result<()> {
        if let Some(deadline) = deadline {
            let inner = Arc::downgrade(self);
            self.shared.service.after(deadline.left(), move |_, _, _| {
                if let Some(inner) = inner.upgrade() {
                    inner.progress();
                }
                Next::Done
            });
        }
        if self.reacts.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let watch = || {
            use rustix::fd::AsFd;
            let readiness = self.shared.inbox.readiness()?;
            let failed = || Error::system(&self.service, "cannot watch for replies");
            let fd = Arc::new(readiness.as_fd().try_clone_to_owned().map_err(failed())?);
            let inner = Arc::downgrade(self);
            let task = move |_: &Arc<service::Service>, _, _| match inner.upgrade() {
                Some(inner) if inner.check().is_ok() => {
                    inner.progress();
                    Next::Keep
                }
                _ => Next::Done,
            };
            self.shared.service.watch(fd, Interest::IN, None, task).map_err(failed())?;
            self.progress(); // From here on it is told of what comes.
            Ok(())
        };
        watch().map_err(|error| {
            self.reacts.store(false, Ordering::Relaxed);
            self.explained(error)
        })
    }

    /// What an end is to the caller; `None`: the last reply has come.
    pub fn error_of(&self, end: &End, timeout: Option<Duration>) -> Option<Error> {
        let service = self.service.to_string();
        Some(match end {
            End::Done => return None,
            End::Failed(peer, failure) => Error::Remote { service, peer: peer.clone(), failure: failure.clone() },
            End::Dropped(peer) => Error::NoReply { service, peer: peer.clone() },
            End::Lost { peer, taken } => Error::ServerLost { service, peer: peer.clone(), taken: *taken },
            End::Late => Error::DeadlineExceeded {
                service,
                waited: timeout.unwrap_or_default(),
                hint: "; the server sees that it is over",
            },
            End::Cancelled => Error::Cancelled { service },
            End::Flooded(peer) => {
                let text = "the server sent more parts than it may while nobody took them, and was stopped".to_owned();
                let failure = Failure { code: "TooManyParts".into(), text, traceback: String::new() };
                Error::Remote { service, peer: peer.clone(), failure }
            }
        })
    }
}

impl Observer for Inner {
    fn joined(&self, peer: &Identity, line: u32, depth: u64) {
        let mut table = self.table.lock();
        table.join(peer, line, depth as usize);
        // It may have ended before anybody could be told.
        let reads = self.shared.lock().is_ok_and(|mut guard| {
            self.shared.opened(&mut guard).is_ok_and(|open| open.line_of(peer.incarnation()).is_some())
        });
        if !reads {
            table.part(peer.incarnation(), std::iter::empty());
        }
        self.pump(&mut table);
        drop(table);
        if !self.shared.inbox.reads_from(peer) {
            self.hear_of_end(peer.incarnation(), EventKind::Lost);
            self.do_chores();
        }
    }

    fn has_accounts_with(&self, incarnation: u128) -> bool {
        self.table.lock().knows(incarnation)
    }

    fn parted(self: Arc<Self>, peer: &Identity, untaken: Vec<Undelivered>) {
        let mut table = self.table.lock();
        table.part(peer.incarnation(), untaken.into_iter().map(|it| (it.sequence(), Stored::Again(it))));
        self.pump(&mut table);
        if !table.is_settled() || table.has_waiting() {
            self.look_later(&mut table);
        }
        drop(table);
        self.do_chores();
    }
}

impl Lender for Inner {
    fn info(&self) -> &Arc<PublisherInfo> {
        self.shared.identity.info()
    }

    fn topic(&self) -> &str {
        &self.service
    }

    fn check_fork(&self) -> Result<()> {
        Inner::check_fork(self)
    }

    fn owner(self: Arc<Self>) -> Arc<dyn Owner> {
        Arc::clone(&self.shared) as _
    }

    fn allocate(&self, bytes: u64, payload: u64, wait: &mut Wait<'_>) -> Result<Chunk> {
        self.shared.allocate(None, bytes, payload, wait)
    }

    fn discard(&self, slot: u32) {
        self.shared.discard(slot);
    }

    fn commit_inline(&self, _: &[u8], _: &Encoded, _: Option<u64>, _: &mut Wait<'_>) -> Result<u64> {
        Err(super::not_by_itself(&self.service, "request"))
    }

    fn commit(&self, _: &Filled<'_>, _: Option<u64>, _: &mut Wait<'_>) -> Result<Result<u64>> {
        Err(super::not_by_itself(&self.service, "request"))
    }
}
