//! What a client knows of its requests and of the servers: a state machine without I/O.
//!
//! A *job* is a request as its caller sees it. It is at one server at a time, *under way* there by its number and its flag, or waits for
//! one that has room. A job that nobody wants any more leaves its place under way behind: it counts against the server's room, and
//! keeps its flag, until the server has answered or is gone. The head of [`rpc`](crate::rpc) has the states.

use crate::direct::identity::Identity;
use crate::link::role::Party;
use crate::protocol::ring::FLAGS;
use crate::rpc::STREAMED;
use crate::rpc::failure::Failure;
use crate::rpc::tag::{Answered, Kind, Moment};
use std::collections::{HashMap, VecDeque};
use std::task::Waker;

/// So many parts wait for the caller of one request: its server is told to send no more for now,
const ENOUGH_PARTS: usize = 64;
/// and to go on when so few are left.
const FEW_PARTS: usize = 32;
/// The most that wait. What was on its way when a server was told comes on top of what was enough; one that goes on is stopped.
const MOST_PARTS: usize = ENOUGH_PARTS + 2 * STREAMED as usize;

/// A request's number in the table.
pub(crate) type JobId = usize;

/// Who may serve a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Any,
    Group(Box<str>),
    Server(Identity),
}

/// Why no more replies come.
#[derive(Debug)]
pub(crate) enum End {
    /// The last one has come.
    Done,
    Failed(Identity, Failure),
    Dropped(Identity),
    Lost {
        peer: Identity,
        taken: bool,
    },
    Late,
    Cancelled,
    /// The server sent more parts than it may.
    Flooded(Identity),
}

/// A request as its caller sees it. `M` is a reply, `B` what it takes to send the request once more.
pub(crate) struct Job<M, B> {
    /// Of all jobs that there have been.
    serial: u64,
    pub target: Target,
    pub deadline: Option<Moment>,
    place: Place,
    /// What is to be sent while it waits; of one that may be repeated, always.
    body: Option<B>,
    /// It may be repeated although a server has taken it.
    pub is_repeatable: bool,
    pub replies: VecDeque<M>,
    /// Its server was told that enough parts wait.
    is_held_up: bool,
    pub end: Option<End>,
    waker: Option<Waker>,
}

impl<M, B> Job<M, B> {
    /// Whether its server was told that enough parts wait.
    pub fn is_held_up(&self) -> bool {
        self.is_held_up
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Nowhere,
    Waiting,
    At { server: u128, number: u64 },
}

/// A request that a server has not answered.
struct UnderWay {
    number: u64,
    flag: usize,
    /// Who wants the reply.
    job: Option<JobId>,
}

struct Server {
    peer: Identity,
    line: u32,
    /// The most requests under way.
    room: usize,
    under_way: VecDeque<UnderWay>,
    /// One bit for each flag in use.
    flags: [u64; FLAGS / 64],
    /// When it was chosen last.
    chosen: u64,
    /// It takes nothing at present, for all that it has answered: it is passed over until the next look.
    is_stuck: bool,
    /// It takes no more requests; what is under way it has taken.
    has_parted: bool,
    /// All of its replies were received.
    is_silent: bool,
}

impl Server {
    fn is_there(&self) -> bool {
        !self.has_parted && !self.is_silent
    }

    fn is_meant(&self, target: &Target) -> bool {
        match target {
            Target::Any => true,
            Target::Group(group) => Party::of(self.peer.address()).is_some_and(|party| *party.group == **group),
            Target::Server(peer) => peer.incarnation() == self.peer.incarnation(),
        }
    }

    fn free_flag(&mut self, flag: usize) {
        self.flags[flag / 64] &= !(1 << (flag % 64));
    }
}

/// Where a request can go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// To the server at this index.
    At(usize),
    /// All that are meant have as many as they may.
    Full,
    Nobody,
}

/// What a reply was.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    For(JobId),
    /// Nobody wants it any more.
    Late,
    /// The server was not asked for it.
    Unasked,
}

/// See the head of this file.
pub(crate) struct Table<M, B> {
    servers: Vec<Server>,
    jobs: Vec<Option<Job<M, B>>>,
    free: Vec<JobId>,
    waiting: VecDeque<JobId>,
    choices: u64,
    serial: u64,
    /// No deadline passes before this one.
    next_deadline: Option<Moment>,
    /// To be woken once no lock is held.
    pub to_wake: Vec<Waker>,
    /// Requests whose servers are to be told, once no lock is held, that nobody wants them any more.
    pub unwanted: Vec<(u32, usize)>,
    /// A task of the service thread looks again as long as requests wait, or not all is known about servers that have ended.
    pub is_looked_after: bool,
    /// Servers whose replies were all received, and of which it is to be found out what they have taken.
    pub to_look_at: Vec<Identity>,
    /// Replies that came too late, and those that nobody had asked for.
    pub late: u64,
    pub unasked: u64,
    /// Requests that were sent to another server after the first one had ended.
    pub resent: u64,
}

impl<M, B> Default for Table<M, B> {
    fn default() -> Self {
        Table {
            servers: Vec::new(),
            jobs: Vec::new(),
            free: Vec::new(),
            waiting: VecDeque::new(),
            choices: 0,
            serial: 0,
            next_deadline: None,
            to_wake: Vec::new(),
            unwanted: Vec::new(),
            is_looked_after: false,
            to_look_at: Vec::new(),
            late: 0,
            unasked: 0,
            resent: 0,
        }
    }
}

impl<M, B: Clone> Table<M, B> {
    // ---- servers ----

    /// A server can be sent so many requests, on that line.
    pub fn join(&mut self, peer: &Identity, line: u32, room: usize) {
        self.servers.push(Server {
            peer: peer.clone(),
            line,
            room: room.clamp(1, FLAGS),
            under_way: VecDeque::new(),
            flags: [0; _],
            chosen: 0,
            is_stuck: false,
            has_parted: false,
            is_silent: false,
        });
    }

    fn position(&self, server: u128) -> Option<usize> {
        self.servers.iter().position(|known| known.peer.incarnation() == server)
    }

    /// Whether not all is known yet of what was sent to it. Its requests on another line would have the same numbers.
    pub fn knows(&self, server: u128) -> bool {
        self.position(server).is_some()
    }

    /// Whether nobody wants the reply to the request that has this flag on that line.
    pub fn is_unwanted(&self, line: u32, flag: usize) -> bool {
        let under_way = self.servers.iter().filter(|server| server.line == line).flat_map(|server| &server.under_way);
        under_way.into_iter().any(|it| it.flag == flag && it.job.is_none())
    }

    /// Those that can be sent something.
    pub fn present(&self) -> impl Iterator<Item = &Identity> {
        self.servers.iter().filter(|server| server.is_there()).map(|server| &server.peer)
    }

    pub fn line_at(&self, index: usize) -> u32 {
        self.servers[index].line
    }

    pub fn peer_at(&self, index: usize) -> &Identity {
        &self.servers[index].peer
    }

    /// The server for the next request: of those that are meant and have room the one with the fewest under way, and of several such the
    /// one that was chosen longest ago.
    #[inline]
    pub fn choose(&self, target: &Target) -> Choice {
        let meant =
            || self.servers.iter().enumerate().filter(|(_, server)| server.is_there() && server.is_meant(target));
        let free = meant().filter(|(_, server)| !server.is_stuck && server.under_way.len() < server.room);
        match free.min_by_key(|(_, server)| (server.under_way.len(), server.chosen)) {
            Some((index, _)) => Choice::At(index),
            None if meant().next().is_some() => Choice::Full,
            None => Choice::Nobody,
        }
    }

    /// There was no room for a request on that server's line.
    pub fn note_stuck(&mut self, index: usize) {
        self.servers[index].is_stuck = true;
    }

    /// Servers that were stuck are tried again.
    pub fn try_again(&mut self) {
        self.servers.iter_mut().for_each(|server| server.is_stuck = false);
    }

    /// A flag of that server's line for one more request.
    #[inline]
    pub fn take_flag(&mut self, index: usize) -> usize {
        let flags = &mut self.servers[index].flags;
        let word = flags.iter().position(|word| *word != u64::MAX).expect("there is one for each request in its room");
        let bit = flags[word].trailing_ones() as usize;
        flags[word] |= 1 << bit;
        word * 64 + bit
    }

    /// The request was not sent after all.
    pub fn give_flag_back(&mut self, index: usize, flag: usize) {
        self.servers[index].free_flag(flag);
    }

    // ---- jobs ----

    #[inline]
    pub fn add(&mut self, target: Target, deadline: Option<Moment>, is_repeatable: bool) -> JobId {
        self.next_deadline = self.next_deadline.into_iter().chain(deadline).min();
        let (replies, place) = (VecDeque::new(), Place::Nowhere);
        self.serial += 1;
        let serial = self.serial;
        let job = Job {
            serial,
            target,
            deadline,
            place,
            body: None,
            is_repeatable,
            replies,
            is_held_up: false,
            end: None,
            waker: None,
        };
        match self.free.pop() {
            Some(id) => {
                self.jobs[id] = Some(job);
                id
            }
            None => {
                self.jobs.push(Some(job));
                self.jobs.len() - 1
            }
        }
    }

    #[inline]
    pub fn job(&mut self, id: JobId) -> &mut Job<M, B> {
        self.jobs[id].as_mut().expect("its owner has not removed it")
    }

    /// What tells the job of that number from those that have it later.
    pub fn serial_of(&mut self, id: JobId) -> u64 {
        self.job(id).serial
    }

    /// Whether it is still that job, and has not ended.
    pub fn is_open(&self, id: JobId, serial: u64) -> bool {
        let job = self.jobs.get(id).and_then(Option::as_ref);
        job.is_some_and(|job| job.serial == serial && job.end.is_none())
    }

    /// How many requests were sent.
    pub fn choices(&self) -> u64 {
        self.choices
    }

    /// Whether there is something for its caller.
    #[inline]
    pub fn is_ready(&mut self, id: JobId) -> bool {
        let job = self.job(id);
        !job.replies.is_empty() || job.end.is_some()
    }

    /// Whether it was not ended yet, and is not at a server that could still answer.
    #[cfg(all(test, not(loom)))]
    fn is_waiting(&mut self, id: JobId) -> bool {
        self.job(id).place == Place::Waiting
    }

    /// The job's request is under way.
    #[inline]
    pub fn sent(&mut self, index: usize, flag: usize, number: u64, id: JobId) {
        self.choices += 1;
        let (choices, server) = (self.choices, &mut self.servers[index]);
        server.chosen = choices;
        server.under_way.push_back(UnderWay { number, flag, job: Some(id) });
        let place = Place::At { server: server.peer.incarnation(), number };
        let job = self.job(id);
        job.place = place;
        if !job.is_repeatable {
            job.body = None;
        }
    }

    /// What to send again should its server end.
    pub fn keep(&mut self, id: JobId, body: B) {
        self.job(id).body = Some(body);
    }

    /// Lets the job wait for a server.
    pub fn let_wait(&mut self, id: JobId, body: B) {
        let job = self.job(id);
        (job.body, job.place) = (Some(body), Place::Waiting);
        self.waiting.push_back(id);
    }

    /// The next waiting job that can be sent, to the server at this index, and what to send.
    pub fn next_to_send(&mut self) -> Option<(JobId, usize, B)> {
        for at in 0..self.waiting.len() {
            let id = self.waiting[at];
            let job = self.jobs[id].as_ref().expect("waiting jobs are there");
            if let Choice::At(index) = self.choose(&job.target)
                && let Some(body) = job.body.clone()
            {
                self.waiting.remove(at);
                return Some((id, index, body));
            }
        }
        None
    }

    /// It could not be sent now. (So it comes before those that were behind it.)
    pub fn put_back(&mut self, id: JobId) {
        self.job(id).place = Place::Waiting;
        self.waiting.push_front(id);
    }

    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Wakes that one when there is something for the job's caller.
    pub fn wake_with(&mut self, id: JobId, waker: &Waker) {
        let known = &mut self.job(id).waker;
        if known.as_ref().is_none_or(|known| !known.will_wake(waker)) {
            *known = Some(waker.clone());
        }
    }

    /// Has all wakers woken: the client was closed.
    pub fn wake_everybody(&mut self) {
        let wakers = self.jobs.iter_mut().flatten().filter_map(|job| job.waker.take());
        self.to_wake.extend(wakers);
    }

    fn tell(&mut self, id: JobId, end: Option<End>) {
        let job = self.job(id);
        if job.end.is_none() {
            job.end = end;
        }
        let waker = job.waker.take();
        self.to_wake.extend(waker);
    }

    /// Nobody wants a reply any more, for this reason; gives the line and the flag by which to tell the server.
    pub fn end(&mut self, id: JobId, why: End) -> Option<(u32, usize)> {
        let job = self.job(id);
        if job.end.is_some() {
            return None;
        }
        let place = std::mem::replace(&mut job.place, Place::Nowhere);
        job.body = None;
        self.tell(id, Some(why));
        match place {
            Place::Nowhere => None,
            Place::Waiting => {
                self.waiting.retain(|waiting| *waiting != id);
                None
            }
            Place::At { server, number } => {
                let index = self.position(server)?;
                let server = &mut self.servers[index];
                let under_way = server.under_way.iter_mut().find(|it| it.number == number)?;
                under_way.job = None;
                Some((server.line, under_way.flag))
            }
        }
    }

    /// Its caller is gone; see [`end`](Self::end).
    pub fn remove(&mut self, id: JobId) -> Option<(u32, usize)> {
        let told = self.end(id, End::Cancelled);
        self.jobs[id] = None;
        self.free.push(id);
        told
    }

    /// Ends those whose time is over; gives how to tell the servers, if there are any.
    pub fn end_late(&mut self) -> Option<Vec<(u32, usize)>> {
        let now = Moment::now();
        if self.next_deadline.is_none_or(|next| next > now) {
            return None;
        }
        let is_late = |job: &Job<M, B>| job.end.is_none() && job.deadline.is_some_and(|deadline| deadline <= now);
        let late: Vec<_> = (0..self.jobs.len()).filter(|id| self.jobs[*id].as_ref().is_some_and(is_late)).collect();
        let told = late.iter().filter_map(|id| self.end(*id, End::Late)).collect();
        let open = self.jobs.iter().flatten().filter(|job| job.end.is_none());
        self.next_deadline = open.filter_map(|job| job.deadline).min();
        (!late.is_empty()).then_some(told)
    }

    // ---- streams ----

    /// By which line and flag to tell the server that enough parts wait for the job's caller, if that is due.
    pub fn hold_up(&mut self, id: JobId) -> Option<(u32, usize)> {
        let job = self.job(id);
        if job.replies.len() < ENOUGH_PARTS || std::mem::replace(&mut job.is_held_up, true) {
            return None;
        }
        self.where_under_way(id)
    }

    /// The same for telling that it may go on.
    #[inline]
    pub fn go_on(&mut self, id: JobId) -> Option<(u32, usize)> {
        let job = self.job(id);
        if !job.is_held_up || job.replies.len() > FEW_PARTS {
            return None;
        }
        job.is_held_up = false;
        self.where_under_way(id)
    }

    fn where_under_way(&self, id: JobId) -> Option<(u32, usize)> {
        let Place::At { server, number } = self.jobs[id].as_ref()?.place else { return None };
        let server = &self.servers[self.position(server)?];
        let under_way = server.under_way.iter().find(|it| it.number == number)?;
        Some((server.line, under_way.flag))
    }

    // ---- replies ----

    /// A server has replied.
    #[inline]
    pub fn answer(
        &mut self,
        server: u128,
        Answered { kind, number }: Answered,
        reply: M,
        failure: impl FnOnce(M) -> Failure,
    ) -> Reply {
        let found = self.position(server).and_then(|index| {
            let at = self.servers[index].under_way.iter().position(|it| it.number == number)?;
            Some((index, at))
        });
        let Some((index, at)) = found else {
            self.unasked += 1;
            return Reply::Unasked;
        };
        let server = &mut self.servers[index];
        let (job, peer) = (server.under_way[at].job, server.peer.clone());
        if kind.is_last()
            && let Some(over) = server.under_way.remove(at)
        {
            server.free_flag(over.flag);
            server.is_stuck = false;
            self.settle(index);
        }
        let Some(id) = job else {
            self.late += u64::from(!matches!(kind, Kind::Dropped | Kind::Over));
            return Reply::Late;
        };
        if kind.is_last() {
            let job = self.job(id);
            (job.place, job.body) = (Place::Nowhere, None);
        }
        let (part, end) = match kind {
            Kind::More if self.job(id).replies.len() >= MOST_PARTS => {
                let told = self.end(id, End::Flooded(peer));
                self.unwanted.extend(told);
                return Reply::For(id);
            }
            Kind::More => (Some(reply), None),
            Kind::Last => (Some(reply), Some(End::Done)),
            Kind::Over => (None, Some(End::Done)),
            Kind::Failed => (None, Some(End::Failed(peer, failure(reply)))),
            // The server may see first that it is too late.
            Kind::Dropped if self.job(id).deadline.is_some_and(Moment::is_over) => (None, Some(End::Late)),
            Kind::Dropped => (None, Some(End::Dropped(peer))),
        };
        self.job(id).replies.extend(part);
        self.tell(id, end);
        Reply::For(id)
    }

    // ---- the end of a server ----

    /// A server takes no more, and never took these: they go to others. What it has taken it may still answer.
    pub fn part(&mut self, server: u128, untaken: impl Iterator<Item = (u64, B)>) {
        let Some(index) = self.position(server).filter(|index| !self.servers[*index].has_parted) else { return };
        let mut untaken: HashMap<u64, B> = untaken.collect();
        let server = &mut self.servers[index];
        server.has_parted = true;
        let peer = server.peer.clone();
        let under_way = std::mem::take(&mut server.under_way);
        let (left, taken): (VecDeque<_>, VecDeque<_>) =
            under_way.into_iter().partition(|it| untaken.contains_key(&it.number));
        server.under_way = taken;
        for UnderWay { number, job, .. } in left.into_iter().rev() {
            if let Some(id) = job {
                let body = untaken.remove(&number);
                self.send_elsewhere(id, body, &peer, false);
            }
        }
        self.settle(index);
    }

    /// All of a server's replies were received; there will be no more.
    pub fn fall_silent(&mut self, server: u128) {
        if let Some(index) = self.position(server) {
            self.servers[index].is_silent = true;
            if !self.servers[index].has_parted {
                self.to_look_at.push(self.servers[index].peer.clone());
            }
            self.settle(index);
        }
    }

    /// Forgets a server that takes no more, once it can answer no more, or has nothing left to answer.
    fn settle(&mut self, index: usize) {
        let server = &self.servers[index];
        if !server.has_parted || !(server.is_silent || server.under_way.is_empty()) {
            return;
        }
        let server = self.servers.remove(index);
        let is_stranded = |job: &Job<M, B>| self.choose(&job.target) == Choice::Nobody;
        let stranded: Vec<_> =
            self.waiting.iter().copied().filter(|id| self.jobs[*id].as_ref().is_some_and(is_stranded)).collect();
        for id in stranded {
            self.end(id, End::Lost { peer: server.peer.clone(), taken: false });
        }
        for id in server.under_way.into_iter().rev().filter_map(|it| it.job) {
            let job = self.job(id);
            let body = job.body.take().filter(|_| job.is_repeatable);
            self.send_elsewhere(id, body, &server.peer, true);
        }
    }

    /// A job's server is gone: it waits for another one if it may, and there is one.
    fn send_elsewhere(&mut self, id: JobId, body: Option<B>, lost: &Identity, taken: bool) {
        let job = self.job(id);
        let (has_replies, target) = (!job.replies.is_empty(), job.target.clone());
        job.place = Place::Nowhere;
        match body {
            // Of a streamed reply some parts have come: it is not begun anew.
            Some(body) if !has_replies && self.choose(&target) != Choice::Nobody => {
                let job = self.job(id);
                (job.body, job.place) = (Some(body), Place::Waiting);
                self.waiting.push_front(id);
                self.resent += 1;
            }
            _ => self.tell(id, Some(End::Lost { peer: lost.clone(), taken })),
        }
    }

    /// Whether all is known about each server that has ended.
    pub fn is_settled(&self) -> bool {
        self.servers.iter().all(Server::is_there)
    }

    /// How many requests are under way, and wait.
    pub fn counts(&self) -> (u64, u64) {
        let under_way = self.servers.iter().map(|server| server.under_way.len() as u64).sum();
        (under_way, self.waiting.len() as u64)
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
