//! Sending requests: to whom they go, what waits, and what servers are told of them.

use crate::attributes::Encoded;
use crate::direct::undelivered::{Body, Undelivered};
use crate::error::{Error, Result};
use crate::protocol::ring::Descriptor;
use crate::pubsub::loan::Loan;
use crate::reader::message::Message;
use crate::rpc::client::{Ask, Inner};
use crate::rpc::pending::PendingReply;
use crate::rpc::table::{Choice, JobId, Table, Target};
use crate::rpc::tag::{Asked, Moment};
use crate::sync::changes::Ended;
use crate::sync::locks::Mutex;
use crate::sync::wait::Wait;
use crate::writer::append;
use crate::writer::attempt::Attempt;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

/// Servers that are there have this time to answer a new client before it says that there are none.
const TIME_TO_MEET: Duration = Duration::from_secs(1);

/// What is sent again, or later.
#[derive(Clone)]
pub(crate) enum Stored {
    /// As it was sent before.
    Again(Undelivered),
    /// A loan that waits, with its attributes.
    Loan(Arc<Mutex<Loan>>, Encoded),
}

/// What is sent.
pub(crate) enum Payload<'a> {
    Inline(&'a [u8], &'a Encoded),
    Loan(&'a mut Loan, &'a Encoded),
    Stored(Stored),
}

impl Inner {
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
    pub fn send(
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
    pub fn pump(&self, table: &mut Table<Message, Stored>) {
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
    pub fn wait_for(&self, target: &Target, come: Duration, wait: &mut Wait<'_>) -> Result<bool> {
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
    pub fn mark_held_up(&self, line: u32, flag: usize, is_held_up: bool) {
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
}
