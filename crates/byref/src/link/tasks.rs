//! The one background thread of a process: it accepts connections, shakes hands, watches the rendezvous directory, and
//! notices peers that hang up. It is never on the data path, receives no signals, and ends with the last endpoint.
//!
//! Work is a *task*: a descriptor to watch and a closure to run when it is ready, or when its deadline passes. A round costs in
//! proportion to the tasks that are ready or due: deadlines lie in their order.

use crate::sync::locks::{Mutex, MutexGuard};
use crate::sys::epoll::{Bell, Epoll, Interest};
use crate::sys::fork::ForkId;
use crate::sys::process::spawn_helper;
use rustix::fd::{AsFd, OwnedFd};
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Names a task.
pub(crate) type Token = u64;
/// The token of the thread's own bell.
const BELL: Token = 0;

/// What becomes of a task after it ran.
pub(crate) enum Next {
    Keep,
    /// Watch the descriptor for this from now on, without a deadline.
    Watch(Interest),
    /// Run again after this time.
    After(Duration),
    /// Leave the descriptor alone for this time, ready or not, and run again then.
    Pause(Duration),
    Done,
}

/// Why a task runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    Ready,
    /// Its deadline passed.
    Late,
}

type Handler = Box<dyn FnMut(&Arc<Service>, Token, Event) -> Next + Send>;

struct Task {
    fd: Option<Arc<OwnedFd>>,
    /// For what the descriptor is watched, also after a pause.
    interest: Interest,
    is_paused: bool,
    deadline: Option<Instant>,
    /// Absent while it runs.
    handler: Option<Handler>,
}

#[derive(Default)]
struct Tasks {
    by_token: HashMap<Token, Task>,
    /// Those of all tasks.
    deadlines: BTreeSet<(Instant, Token)>,
    last: Token,
    stopped: bool,
}

impl Tasks {
    fn add(&mut self, fd: Option<Arc<OwnedFd>>, interest: Interest, handler: Handler) -> Token {
        self.last += 1;
        let task = Task { fd, interest, is_paused: false, deadline: None, handler: Some(handler) };
        self.by_token.insert(self.last, task);
        self.last
    }

    fn set_deadline(&mut self, token: Token, deadline: Option<Instant>) {
        let Some(task) = self.by_token.get_mut(&token) else { return };
        if let Some(former) = std::mem::replace(&mut task.deadline, deadline) {
            self.deadlines.remove(&(former, token));
        }
        self.deadlines.extend(deadline.map(|at| (at, token)));
    }

    /// Whether this task has the next deadline of all.
    fn is_next(&self, token: Token) -> bool {
        self.deadlines.first().is_some_and(|(_, next)| *next == token)
    }

    fn remove(&mut self, token: Token) -> Option<Task> {
        self.set_deadline(token, None);
        self.by_token.remove(&token)
    }
}

/// The thread's state, shared by all endpoints of the process.
pub(crate) struct Service {
    epoll: Epoll,
    bell: Bell,
    tasks: Mutex<Tasks>,
    made_in: ForkId,
}

impl Service {
    fn new() -> io::Result<Self> {
        let service =
            Service { epoll: Epoll::new()?, bell: Bell::new()?, tasks: Mutex::default(), made_in: ForkId::current() };
        service.epoll.add(&service.bell, BELL, Interest::IN)?;
        Ok(service)
    }

    /// One with its thread.
    pub fn start() -> io::Result<Arc<Self>> {
        let service = Arc::new(Self::new()?);
        let thread = Arc::clone(&service);
        spawn_helper("byref", move || thread.run())?;
        Ok(service)
    }

    /// Ends the thread.
    pub fn stop(&self) {
        if self.made_in.is_current() {
            self.tasks.lock().stopped = true;
            self.bell.ring();
        }
    }

    /// A service without a thread.
    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub fn idle() -> Arc<Self> {
        ForkId::prepare().expect("a page");
        Arc::new(Service::new().expect("two descriptors"))
    }

    /// Runs `handler` whenever `fd` is ready, and once when `deadline` passes.
    pub fn watch(
        &self,
        fd: Arc<OwnedFd>,
        interest: Interest,
        deadline: Option<Duration>,
        handler: impl FnMut(&Arc<Service>, Token, Event) -> Next + Send + 'static,
    ) -> io::Result<Token> {
        let mut tasks = self.tasks.lock();
        let token = tasks.add(Some(Arc::clone(&fd)), interest, Box::new(handler));
        if let Err(error) = self.epoll.add(fd.as_fd(), token, interest) {
            tasks.remove(token);
            return Err(error);
        }
        tasks.set_deadline(token, deadline.map(|after| Instant::now() + after));
        self.tell_if_next(tasks, token);
        Ok(token)
    }

    /// Runs `handler` once after `delay` (again, as long as it answers [`Next::After`]).
    pub fn after(&self, delay: Duration, handler: impl FnMut(&Arc<Service>, Token, Event) -> Next + Send + 'static) {
        let mut tasks = self.tasks.lock();
        let token = tasks.add(None, Interest::empty(), Box::new(handler));
        tasks.set_deadline(token, Some(Instant::now() + delay));
        self.tell_if_next(tasks, token);
    }

    /// The thread may sleep past a deadline that is new.
    fn tell_if_next(&self, tasks: MutexGuard<'_, Tasks>, token: Token) {
        let is_next = tasks.is_next(token);
        drop(tasks);
        if is_next {
            self.bell.ring();
        }
    }

    /// Runs a task soon, as one that is late, whatever its deadline was.
    pub fn hasten(&self, token: Token) {
        let mut tasks = self.tasks.lock();
        tasks.set_deadline(token, Some(Instant::now()));
        self.tell_if_next(tasks, token);
    }

    /// Takes a task's deadline away, if it is not due yet.
    pub fn relax(&self, token: Token) {
        let mut tasks = self.tasks.lock();
        let is_due = |task: &Task| task.deadline.is_some_and(|at| at <= Instant::now());
        if !tasks.by_token.get(&token).is_some_and(is_due) {
            tasks.set_deadline(token, None);
        }
    }

    /// Forgets a task. One that runs at this moment finishes.
    pub fn cancel(&self, token: Token) {
        if !self.made_in.is_current() {
            return; // A forked child shares the parent's epoll, and the lock may be taken there for ever.
        }
        let task = self.tasks.lock().remove(token);
        if let Some(fd) = task.and_then(|task| task.fd) {
            self.epoll.remove(fd.as_fd());
        }
    }

    fn run(self: Arc<Self>) {
        let mut ready = Vec::new();
        while self.round(&mut ready) {}
        // They may keep this, and what they keep ends with them.
        let left = std::mem::take(&mut self.tasks.lock().by_token);
        drop(left);
    }

    /// Sleeps until there is something to do, and does all of it, each task once; `false`: the thread is to end.
    fn round(self: &Arc<Self>, ready: &mut Vec<Token>) -> bool {
        let timeout = {
            let tasks = self.tasks.lock();
            if tasks.stopped {
                return false;
            }
            tasks.deadlines.first().map(|(next, _)| next.saturating_duration_since(Instant::now()))
        };
        ready.clear();
        if let Err(error) = self.epoll.wait(timeout, ready) {
            log::error!("byref: the service thread cannot wait for events: {error}");
            std::thread::sleep(Duration::from_millis(100));
        }
        self.bell.silence();
        fault!("service.woken");
        let now = Instant::now();
        {
            // A task that is both ready and late runs once, as late: what made it ready may be gone after its first run, and a
            // second one would take that for news.
            let tasks = self.tasks.lock();
            let is_late = |task: &Task| task.deadline.is_some_and(|at| at <= now);
            ready.retain(|token| tasks.by_token.get(token).is_some_and(|task| !is_late(task)));
            ready.extend(tasks.deadlines.iter().take_while(|(at, _)| *at <= now).map(|(_, token)| *token));
        }
        for &token in &*ready {
            self.run_task(token, now);
        }
        true
    }

    fn run_task(self: &Arc<Self>, token: Token, now: Instant) {
        let taken = {
            let mut tasks = self.tasks.lock();
            let late = tasks.by_token.get(&token).is_some_and(|task| task.deadline.is_some_and(|at| at <= now));
            if late {
                tasks.set_deadline(token, None);
            }
            let handler = tasks.by_token.get_mut(&token).and_then(|task| task.handler.take());
            handler.map(|handler| (handler, if late { Event::Late } else { Event::Ready }))
        };
        let Some((mut handler, event)) = taken else { return };
        let next = handler(self, token, event); // Without the lock: it may add and cancel tasks, this one too.
        if let Next::Done = next {
            return self.cancel(token);
        }
        let mut tasks = self.tasks.lock();
        let Some(task) = tasks.by_token.get_mut(&token) else { return };
        task.handler = Some(handler);
        let was_paused = std::mem::replace(&mut task.is_paused, matches!(next, Next::Pause(_)));
        if let Next::Watch(interest) = next {
            task.interest = interest;
        }
        if let Some(fd) = &task.fd
            && (was_paused != task.is_paused || matches!(next, Next::Watch(_)))
        {
            let interest = if task.is_paused { Interest::empty() } else { task.interest };
            if let Err(error) = self.epoll.modify(fd.as_fd(), token, interest) {
                log::error!("byref: cannot watch a peer: {error}");
            }
        }
        // Who hastened it meanwhile has news that this run has not seen.
        let now = Instant::now();
        let is_hastened = tasks.by_token.get(&token).is_some_and(|task| task.deadline.is_some_and(|at| at <= now));
        match next {
            _ if is_hastened => {}
            Next::After(delay) | Next::Pause(delay) => tasks.set_deadline(token, Some(now + delay)),
            Next::Watch(_) => tasks.set_deadline(token, None),
            Next::Keep | Next::Done => {}
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// As after a stop of the whole process, in which a deadline passed and something came.
    #[test]
    fn a_task_that_is_ready_and_late_runs_once() {
        let service = Service::idle();
        let (reader, writer) = std::io::pipe().unwrap();
        std::io::Write::write_all(&mut &writer, b"x").unwrap();
        let runs = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&runs);
        let next = move |_: &Arc<Service>, _, event: Event| {
            seen.lock().push(event == Event::Late);
            Next::Watch(Interest::RDHUP)
        };
        service.watch(Arc::new(OwnedFd::from(reader)), Interest::IN, Some(Duration::ZERO), next).unwrap();
        assert!(service.round(&mut Vec::new()));
        assert_eq!(*runs.lock(), [true]);
    }

    #[test]
    fn a_paused_task_is_left_alone_while_others_run() {
        let service = Service::idle();
        let (reader, writer) = std::io::pipe().unwrap();
        std::io::Write::write_all(&mut &writer, b"x").unwrap();
        let runs = Arc::new(Mutex::new(Vec::new()));
        let pause = Duration::from_millis(50);
        let seen = Arc::clone(&runs);
        let accept = move |_: &Arc<Service>, _, event: Event| {
            seen.lock().push((event == Event::Late, Instant::now()));
            if seen.lock().len() < 3 { Next::Pause(pause) } else { Next::Keep }
        };
        service.watch(Arc::new(OwnedFd::from(reader)), Interest::IN, None, accept).unwrap();
        let ticks = Arc::new(Mutex::new(0));
        let ticking = Arc::clone(&ticks);
        service.after(Duration::ZERO, move |_, _, _| {
            *ticking.lock() += 1;
            Next::After(Duration::ZERO)
        });
        while runs.lock().len() < 5 {
            assert!(service.round(&mut Vec::new()));
        }
        let runs = runs.lock();
        assert_eq!(runs.iter().map(|(late, _)| *late).collect::<Vec<_>>(), [false, true, true, false, false]);
        assert!(runs[1].1 - runs[0].1 >= pause && runs[2].1 - runs[1].1 >= pause);
        assert!(*ticks.lock() > 2, "others run meanwhile");
    }

    #[test]
    fn deadlines_pass_in_their_order() {
        let service = Service::idle();
        let runs = Arc::new(Mutex::new(Vec::new()));
        let mut tokens = Vec::new();
        for delay in [4_000_000, 0, 20, 0, 10_000_000] {
            let seen = Arc::clone(&runs);
            service.after(Duration::from_millis(delay), move |_, _, _| {
                seen.lock().push(delay);
                if delay == 20 && seen.lock().len() < 5 { Next::After(Duration::ZERO) } else { Next::Done }
            });
            tokens.push(service.tasks.lock().last);
        }
        assert!(service.tasks.lock().is_next(tokens[1]) && !service.tasks.lock().is_next(tokens[3]));
        service.cancel(tokens[3]);
        while service.tasks.lock().deadlines.len() > 2 {
            assert!(service.round(&mut Vec::new()));
        }
        assert_eq!(*runs.lock(), [0, 20, 20, 20, 20]);
        assert!(service.tasks.lock().is_next(tokens[0]));
        service.hasten(tokens[0]);
        assert!(service.round(&mut Vec::new()));
        assert_eq!(runs.lock()[5..], [4_000_000]);
        assert_eq!(service.tasks.lock().by_token.len(), 1);
    }

    #[test]
    fn a_deadline_ends_with_the_watch_that_had_it() {
        let service = Service::idle();
        let runs = Arc::new(Mutex::new(Vec::new()));
        let (reader, writer) = std::io::pipe().unwrap();
        let seen = Arc::clone(&runs);
        let next = move |_: &Arc<Service>, _, event| {
            seen.lock().push(event == Event::Late);
            Next::Watch(Interest::RDHUP)
        };
        std::io::Write::write_all(&mut &writer, b"x").unwrap();
        let far = Some(Duration::from_secs(10_000));
        let token = service.watch(Arc::new(OwnedFd::from(reader)), Interest::IN, far, next).unwrap();
        assert!(service.tasks.lock().is_next(token));
        assert!(service.round(&mut Vec::new()));
        assert_eq!(*runs.lock(), [false], "it was ready");
        assert!(service.tasks.lock().deadlines.is_empty(), "the deadline has no meaning any more");
    }
}
