//! The serving side of a service.

use crate::direct::identity::Identity;
use crate::direct::mailbox::{Observer, Plan, Shared};
use crate::direct::undelivered::Undelivered;
use crate::error::{Error, Result};
use crate::link::role::Role;
use crate::link::service;
use crate::pubsub::subscriber::{Readiness, Subscriber};
use crate::reader::event::Incoming;
use crate::reader::item::{Item, Taker};
use crate::reader::take::{Source, Take};
use crate::rpc::request::Request;
use crate::rpc::tag::Asked;
use crate::rpc::{MOST_PREFETCHED, STREAMED};
use crate::sync::wait::Wait;
use crate::writer::store;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Settings of a [`Server`]; see [`Server::builder`].
#[derive(Clone, Debug)]
pub struct ServerBuilder {
    service: String,
    group: String,
    pub(super) prefetch: u64,
    max_memory: Option<u64>,
}

impl ServerBuilder {
    /// A name by which clients choose some of the servers (default: none).
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.group = group.into();
        self
    }

    /// The most requests of each client that it has and has not answered (default: 1, at most 1,024). That is what its death or slowness
    /// can delay; further requests go to other servers, or wait at the client.
    pub fn prefetch(mut self, requests: u64) -> Self {
        self.prefetch = requests;
        self
    }

    /// The most bytes of payload memory for all replies together (default: as for a [`Publisher`](crate::Publisher)).
    pub fn max_memory(mut self, bytes: u64) -> Self {
        self.max_memory = Some(bytes);
        self
    }

    /// Makes the server. Clients find it from now on.
    pub fn build(self) -> Result<Server> {
        super::validate(&self.service, &self.group)?;
        if self.prefetch == 0 || self.prefetch > MOST_PREFETCHED {
            let most = MOST_PREFETCHED;
            return Err(Error::InvalidArgument(format!("prefetch must be 1 to {most} requests")));
        }
        let max_memory = store::check_max_memory(self.max_memory)?;
        Server::new(self, max_memory)
    }
}

/// Counters of a server.
#[derive(Clone, Debug, Default)]
pub struct ServerStats {
    /// Requests taken.
    pub received: u64,
    /// Their payload bytes.
    pub received_bytes: u64,
    /// Requests that nobody wanted any more when they were taken: they are not given out.
    pub skipped: u64,
    /// Replies sent, in parts where they were streamed, and failures.
    pub replied: u64,
    /// Replies that were not sent, since nobody wanted them any more.
    pub late: u64,
    /// Requests that were dropped without a reply.
    pub dropped: u64,
    /// Payload bytes that were copied into shared memory.
    pub copied_bytes: u64,
    /// Clients that it is connected to.
    pub clients: u64,
    /// Bytes of payload memory in use.
    pub pool_used: u64,
}

/// What a server shares with its requests.
pub(super) struct Inner {
    pub service: Box<str>,
    pub shared: Arc<Shared>,
    skipped: AtomicU64,
    pub replied: AtomicU64,
    pub late: AtomicU64,
    pub dropped: AtomicU64,
}

impl Inner {
    /// An error, said of the service.
    pub fn explained(&self, error: Error) -> Error {
        super::explained(Role::Server, &self.service, error)
    }
}

/// Serves a service: takes requests, and replies to them.
///
/// It may be shared by threads: each request goes to exactly one caller. Any number of servers may serve the same service.
///
/// ```no_run
/// # fn main() -> Result<(), byref::Error> {
/// use byref::Server;
///
/// let server = Server::builder("math/add").build()?;
/// loop {
///     let request = server.recv()?;
///     let numbers = std::str::from_utf8(&request).unwrap_or_default().split(' ');
///     let sum: i64 = numbers.filter_map(|number| number.parse::<i64>().ok()).sum();
///     request.reply(sum.to_string().as_bytes())?;
/// }
/// # }
/// ```
///
/// Dropping it closes it.
pub struct Server {
    pub(super) inner: Arc<Inner>,
    closes: bool,
}

impl Server {
    /// Settings for a server of this service.
    pub fn builder(service: impl Into<String>) -> ServerBuilder {
        ServerBuilder { service: service.into(), group: String::new(), prefetch: 1, max_memory: None }
    }

    pub(super) fn new(options: ServerBuilder, max_memory: u64) -> Result<Self> {
        let ServerBuilder { service, group, prefetch, .. } = options;
        let incarnation = crate::link::rendezvous::new_id();
        let role = Role::Server;
        let address = role.address(&service, &group, incarnation);
        let (lookout, handle) = service::connect(&service)?;
        let (depth, own_depth) = (prefetch + STREAMED, Some(prefetch));
        let plan = Plan { role, address, incarnation, depth, own_depth, max_memory, events: true };
        let inner = Arc::new(Inner {
            service: service.into(),
            shared: Shared::new(plan, (&lookout, &handle))?,
            skipped: AtomicU64::new(0),
            replied: AtomicU64::new(0),
            late: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        });
        let observer: Weak<dyn Observer> = Arc::downgrade(&inner) as _;
        inner.shared.observe(observer);
        let server = Server { inner, closes: true };
        server.inner.shared.announce()?;
        Ok(server)
    }

    /// The service.
    pub fn service(&self) -> &str {
        &self.inner.service
    }

    /// The group; empty: none.
    pub fn group(&self) -> &str {
        super::group_of(self.inner.shared.address()).unwrap_or_default()
    }

    /// Who it is, as clients see it.
    pub fn identity(&self) -> &Identity {
        &self.inner.shared.identity
    }

    /// A second handle to the same server. Dropping it closes nothing.
    pub fn handle(&self) -> Server {
        Server { inner: Arc::clone(&self.inner), closes: false }
    }

    /// The next request; waits without limit.
    pub fn recv(&self) -> Result<Request> {
        self.recv_with(&mut Wait::up_to(None))
    }

    /// The next request; waits up to `timeout`.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Request> {
        self.recv_with(&mut Wait::up_to(Some(timeout)))
    }

    /// The next request, with an interruptible wait.
    #[inline]
    pub fn recv_with(&self, wait: &mut Wait<'_>) -> Result<Request> {
        self.inner.shared.inbox.receive(Next(&self.inner), wait).map_err(|error| self.inner.explained(error))
    }

    /// The next request; `None` when none is there.
    pub fn try_recv(&self) -> Result<Option<Request>> {
        self.inner.shared.inbox.try_receive(Next(&self.inner)).map_err(|error| self.inner.explained(error))
    }

    /// A descriptor that becomes readable when a request comes after [`try_recv`](Self::try_recv) returned `None`.
    pub fn readiness(&self) -> Result<Readiness> {
        self.inner.shared.inbox.readiness().map_err(|error| self.inner.explained(error))
    }

    /// The receiving half, for a [`Selector`](crate::Selector): it gives [`Item::Request`](crate::Item::Request).
    pub fn inbox(&self) -> Subscriber {
        self.inner.shared.inbox.with_taker(Arc::new(Requests(Arc::clone(&self.inner))))
    }

    /// Counters.
    pub fn stats(&self) -> Result<ServerStats> {
        let received = self.inner.shared.inbox.stats().map_err(|error| self.inner.explained(error))?;
        let sent = self.inner.shared.stats()?;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Ok(ServerStats {
            received: received.received,
            received_bytes: received.bytes,
            skipped: count(&self.inner.skipped),
            replied: count(&self.inner.replied),
            late: count(&self.inner.late),
            dropped: count(&self.inner.dropped),
            copied_bytes: sent.copied_bytes,
            clients: sent.destinations,
            pool_used: sent.pool_used,
        })
    }

    /// Whether it was closed.
    pub fn is_closed(&self) -> Result<bool> {
        self.inner.shared.inbox.is_closed().map_err(|error| self.inner.explained(error))
    }

    /// Closes the server. Requests that it has not taken go to other ones; to those that it has taken no reply can be sent any more.
    /// Calling it again has no effect.
    pub fn close(&self) {
        self.inner.shared.close(None);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.closes {
            self.close();
        }
    }
}

/// Takes the next request that somebody wants.
#[derive(Clone, Copy)]
struct Next<'a>(&'a Arc<Inner>);

impl Take for Next<'_> {
    type Taken = Request;

    fn check(&self, _: &str) -> Result<()> {
        Ok(())
    }

    #[inline]
    fn take(&self, from: &mut Source<'_>) -> Result<Option<Request>> {
        self.take_up_to_event(from)
    }

    #[inline]
    fn take_up_to_event(&self, from: &mut Source<'_>) -> Result<Option<Request>> {
        let inner = self.0;
        loop {
            let give = |message: crate::Message, link: &Arc<_>| {
                let asked = Asked::decode(message.tag())?;
                Some(Request::new(inner, message.untagged(), asked, Arc::clone(link)))
            };
            // What becomes of clients is seen in their requests.
            let request = match from.0.take_incoming(|reader| reader.take_with(give))? {
                None => return Ok(None),
                Some(Incoming::Event(_)) => continue,
                Some(Incoming::Message(request)) => request,
            };
            match request {
                None => log::warn!("byref: service '{}': a message that is no request", inner.service),
                Some(request) if request.was_cancelled() => {
                    inner.skipped.fetch_add(1, Ordering::Relaxed);
                    request.skip();
                }
                Some(request) => return Ok(Some(request)),
            }
        }
    }
}

/// What a selector takes from a server.
struct Requests(Arc<Inner>);

impl Taker for Requests {
    fn take(&self, from: &mut Source<'_>) -> Result<Option<Item>> {
        Ok(Next(&self.0).take_up_to_event(from)?.map(|request| Item::Request(Box::new(request))))
    }
}

impl Observer for Inner {
    fn joined(&self, _: &Identity, _: u32, _: u64) {}

    fn parted(self: Arc<Self>, _: &Identity, _: Vec<Undelivered>) {}
}
