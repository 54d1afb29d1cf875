//! The asking side of a service.

use crate::attributes::{Beside, Encoded};
use crate::direct::identity::Identity;
use crate::direct::mailbox::{Observer, Plan, Shared};
use crate::direct::undelivered::Undelivered;
use crate::error::{Error, Result};
use crate::link::role::Role;
use crate::link::service;
use crate::memory::glossary::Entry;
use crate::memory::pool::Chunk;
use crate::pubsub::loan::{Lender, Loan};
use crate::pubsub::subscriber::Readiness;
use crate::reader::event::EventKind;
use crate::reader::message::Message;
use crate::reader::sender::PublisherInfo;
use crate::rpc::failure::Failure;
use crate::rpc::pending::PendingReply;
use crate::rpc::table::{End, Table, Target};
use crate::sync::biased::Biased;
use crate::sync::wait::Wait;
use crate::sys::door::Door;
use crate::sys::epoll::Interest;
use crate::writer::append::{Filled, fits_inline_tagged};
use crate::writer::owner::Owner;
use crate::writer::store;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, OnceLock, Weak};
use std::task::Waker;
use std::time::Duration;

mod ask;
mod receiving;
mod sending;

pub use ask::Ask;
pub(super) use sending::{Payload, Stored};

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

    fn next_sequence(&self) -> Result<u64> {
        Err(super::not_by_itself(&self.service, "request"))
    }

    fn commit_inline(&self, _: &[u8], _: Beside<'_>, _: &mut Wait<'_>) -> Result<u64> {
        Err(super::not_by_itself(&self.service, "request"))
    }

    fn commit(&self, _: &Filled<'_>, _: Option<u64>, _: &mut Wait<'_>) -> Result<Result<u64>> {
        Err(super::not_by_itself(&self.service, "request"))
    }
}
