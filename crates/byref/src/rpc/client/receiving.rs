//! Receiving replies, for whoever waits: what a step is, who is woken, and what the service thread does besides.

use crate::error::{Error, Result};
use crate::link::tasks::{Next, Service};
use crate::reader::event::{EventKind, Incoming};
use crate::reader::message::Message;
use crate::reader::take::{Source, Take};
use crate::rpc::client::Inner;
use crate::rpc::client::sending::Stored;
use crate::rpc::failure::Failure;
use crate::rpc::table::{JobId, Reply, Table};
use crate::rpc::tag::{Answered, Kind, Moment};
use crate::sync::wait::Wait;
use crate::sys::epoll::Interest;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;
use std::time::Duration;

/// Time between two looks of the service thread, while requests wait for room, or not all is known about a server that has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// The same, while nothing changes.
const LOOK_AT_LAST: Duration = Duration::from_millis(32);
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
            let give = |message: Message, _: &Arc<_>| message;
            let Some(incoming) = from.0.take_incoming(|reader| reader.take_with(give))? else { return Ok(None) };
            let has_chores = match incoming {
                Incoming::Message(message) => inner.hear(message, self.job),
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
    /// A server has said something; whether there is something to do without locks.
    #[inline]
    pub fn hear(&self, message: Message, own: Option<JobId>) -> bool {
        let server = message.publisher().id;
        let mut table = self.table.lock();
        let Some(answered) = Answered::decode(message.tag()) else {
            table.unasked += 1;
            return false;
        };
        let reply = table.answer(server, answered, message.untagged(), |message| Failure::decode(&message));
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
    pub fn hear_of_end(&self, server: u128, kind: EventKind) -> bool {
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
    pub fn do_chores(&self) {
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
    pub fn tell_pollers(&self) {
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
    pub fn look_later(self: &Arc<Self>, table: &mut Table<Message, Stored>) {
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
            let task = move |_: &Arc<Service>, _, _| match inner.upgrade() {
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
}
