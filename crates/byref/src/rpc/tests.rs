//! Clients and servers of one process: what they promise, and what happens when one of them ends.

use crate::error::Error;
use crate::rpc::client::{Ask, Client};
use crate::rpc::failure::Code;
use crate::rpc::server::{Server, ServerBuilder};
use crate::rpc::tag::{Answered, Asked, Kind};
use crate::writer::append;
use crate::writer::attempt::Attempt;
use crate::{Encoded, Wait};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(20);

fn serve(
    server: ServerBuilder,
    handle: impl Fn(&crate::Request) + Send + 'static,
) -> (Server, std::thread::JoinHandle<()>) {
    let server = server.build().unwrap();
    let serving = server.handle();
    let thread = std::thread::spawn(move || {
        while let Ok(request) = serving.recv() {
            handle(&request);
        }
    });
    (server, thread)
}

fn echo(request: &crate::Request) {
    request.reply(request).unwrap();
}

fn at_most(time: Duration) -> Wait<'static> {
    Wait::up_to(Some(time))
}

/// Of some size, so many bytes that differ.
fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7) as u8).collect()
}

#[test]
fn a_request_has_its_reply_of_whatever_size() {
    let _meeting = crate::fuzzing::meet_in_private();
    let (server, thread) = serve(Server::builder("echo"), echo);
    let client = Client::builder("echo").build().unwrap();
    for len in [0, 1, 8, 64, 200, 208, 209, 216, 217, 224, 225, 5000, 1 << 20] {
        assert_eq!(&client.request(&bytes(len)).unwrap()[..], bytes(len), "{len}");
    }
    for number in 0..2000u32 {
        assert_eq!(&client.request(&number.to_ne_bytes()).unwrap()[..], number.to_ne_bytes());
    }
    let mut loan = client.loan(1 << 20).unwrap();
    loan.fill(7);
    let pending = client.submit_loan(&mut loan, &Encoded::default(), &Ask::default(), &mut at_most(LONG)).unwrap();
    assert!(!loan.is_open() && pending.wait().unwrap().iter().all(|byte| *byte == 7));
    let stats = client.stats().unwrap();
    assert_eq!((stats.under_way, stats.late, stats.unasked, stats.servers), (0, 0, 0, 1));
    drop(server);
    thread.join().unwrap();
    assert!(matches!(client.request(b""), Err(Error::NoServer { .. } | Error::ServerLost { taken: false, .. })));
}

#[test]
fn nobody_serves() {
    let _meeting = crate::fuzzing::meet_in_private();
    let client = Client::builder("s").build().unwrap();
    let error = client.request(b"x").unwrap_err();
    assert!(matches!(&error, Error::NoServer { .. }), "{error}");
    assert!(error.to_string().contains("service 's': nobody serves it"), "{error}");
    let (answered, is_answered) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let client = &client;
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            let (server, thread) = serve(Server::builder("s").group("g"), echo);
            let ask = Ask::default().come_within(LONG);
            assert_eq!(&client.request_with(b"x", &Encoded::default(), &ask, &mut at_most(LONG)).unwrap()[..], b"x");
            let to = |group| Ask::default().to_group(group);
            let ask = |ask: Ask| client.request_with(b"x", &Encoded::default(), &ask, &mut at_most(LONG));
            assert!(ask(to("g")).is_ok());
            assert!(matches!(ask(to("h")), Err(Error::NoServer { .. })));
            let _ = is_answered.recv(); // Whatever has become of it.
            drop(server);
            thread.join().unwrap();
        });
        let ask = Ask::default().come_within(LONG);
        assert_eq!(&client.request_with(b"x", &Encoded::default(), &ask, &mut at_most(LONG)).unwrap()[..], b"x");
        drop(answered);
    });
}

#[test]
fn a_deadline_passes_and_a_late_reply_is_dropped() {
    let _meeting = crate::fuzzing::meet_in_private();
    let server = Server::builder("s").build().unwrap();
    let client = Client::builder("s").build().unwrap();
    let brief = Duration::from_millis(1500); // In which the server takes it, also on a busy machine.
    let ask = Ask::default().timeout(Some(brief));
    let error = client.request_with(b"x", &Encoded::default(), &ask, &mut at_most(LONG)).unwrap_err();
    assert!(matches!(error, Error::DeadlineExceeded { .. }), "{error}");
    // One that is over when it is taken is not given out.
    assert!(server.try_recv().unwrap().is_none());
    assert_eq!(server.stats().unwrap().skipped, 1);
    client.receive().unwrap();
    let mut pending = client.submit_with(b"y", &Encoded::default(), &ask, &mut at_most(LONG)).unwrap();
    let request = server.recv_timeout(LONG).unwrap();
    assert!(request.time_left().is_some_and(|left| left <= brief) && !request.is_cancelled());
    assert!(matches!(pending.wait_with(&mut at_most(LONG)), Err(Error::DeadlineExceeded { .. })));
    assert!(request.is_cancelled());
    assert!(!request.reply(b"late").unwrap());
    assert_eq!((server.stats().unwrap().late, server.stats().unwrap().replied), (1, 0));
    drop(pending);
    client.receive().unwrap();
    assert_eq!((client.stats().unwrap().under_way, client.stats().unwrap().late), (0, 0));
}

#[test]
fn cancelling_reaches_a_request_that_is_worked_on() {
    let _meeting = crate::fuzzing::meet_in_private();
    let server = Server::builder("s").prefetch(3).build().unwrap();
    let client = Client::builder("s").build().unwrap();
    let mut first = client.submit(b"1").unwrap();
    let second = client.submit(b"2").unwrap();
    let [one, two] = [(); 2].map(|()| server.recv_timeout(LONG).unwrap());
    assert!(first.cancel() && !first.cancel());
    assert!(one.is_cancelled() && !two.is_cancelled());
    assert!(matches!(first.wait_with(&mut at_most(LONG)), Err(Error::Cancelled { .. })));
    // Its flag is another one's only when it is answered.
    let third = client.submit(b"3").unwrap();
    let three = server.recv_timeout(LONG).unwrap();
    assert!(one.is_cancelled() && !three.is_cancelled());
    assert!(!one.reply(b"x").unwrap());
    client.receive().unwrap();
    let fourth = client.submit(b"4").unwrap();
    let four = server.recv_timeout(LONG).unwrap();
    assert!(!four.is_cancelled());
    drop(second);
    assert!(two.is_cancelled());
    assert!(three.reply(b"3").unwrap() && four.reply(b"4").unwrap());
    assert_eq!((&third.wait().unwrap()[..], &fourth.wait().unwrap()[..]), (&b"3"[..], &b"4"[..]));
    drop(client);
    assert!(two.is_cancelled());
}

#[test]
fn what_a_server_does_not_answer() {
    let _meeting = crate::fuzzing::meet_in_private();
    let (server, thread) = serve(Server::builder("s"), |request| match &request[..] {
        b"drop" => {}
        b"fail" => assert!(request.fail("Broken", "it is broken").unwrap()),
        b"long" => assert!(request.fail(7, "x".repeat(5000)).unwrap()),
        _ => {
            echo(request);
            let error = request.reply(b"again").unwrap_err();
            assert!(error.to_string().contains("was answered before"), "{error}");
        }
    });
    let client = Client::builder("s").build().unwrap();
    assert!(matches!(client.request(b"drop"), Err(Error::NoReply { .. })));
    match client.request(b"fail").unwrap_err() {
        Error::Remote { failure, .. } => {
            assert_eq!((failure.code, &failure.text[..]), (Code::from("Broken"), "it is broken"));
        }
        error => panic!("{error}"),
    }
    match client.request(b"long").unwrap_err() {
        Error::Remote { failure, .. } => assert_eq!((failure.code, failure.text.len()), (Code::Number(7), 5000)),
        error => panic!("{error}"),
    }
    assert_eq!(&client.request(b"x").unwrap()[..], b"x");
    drop(server);
    thread.join().unwrap();
}

#[test]
fn a_server_that_is_closed_gives_back_what_it_has_not_taken() {
    let _meeting = crate::fuzzing::meet_in_private();
    let first = Server::builder("s").prefetch(4).build().unwrap();
    let client = Client::builder("s").build().unwrap();
    let ask = Ask::default();
    let submit =
        |payload: &[u8], ask: &Ask| client.submit_with(payload, &Encoded::default(), ask, &mut at_most(LONG)).unwrap();
    let taken = submit(b"taken", &ask);
    let repeated = submit(b"repeated", &ask.clone().repeatable());
    let large = bytes(10_000);
    let untaken = [submit(b"untaken", &ask), submit(&large, &ask)];
    let kept: Vec<_> = (0..2).map(|_| first.recv_timeout(LONG).unwrap()).collect();
    let (second, thread) = serve(Server::builder("s"), echo);
    client.wait_for_server_with(None, &mut at_most(LONG)).unwrap();
    while client.servers().unwrap().len() < 2 {
        std::thread::sleep(Duration::from_millis(1));
    }
    first.close();
    assert!(matches!(taken.wait(), Err(Error::ServerLost { taken: true, .. })));
    assert_eq!(&repeated.wait().unwrap()[..], b"repeated");
    let [inline, pooled] = untaken;
    assert_eq!(&inline.wait().unwrap()[..], b"untaken");
    assert_eq!(&pooled.wait().unwrap()[..], large);
    assert!(matches!(kept[0].reply(b""), Err(Error::Closed { what: "server", .. })));
    assert_eq!(client.stats().unwrap().resent, 3);
    drop(second);
    thread.join().unwrap();
}

#[test]
fn a_reply_that_was_sent_is_received_although_its_server_has_gone() {
    let _meeting = crate::fuzzing::meet_in_private();
    let server = Server::builder("s").build().unwrap();
    let client = Client::builder("s").build().unwrap();
    let pending = client.submit(b"x").unwrap();
    server.recv_timeout(LONG).unwrap().reply(&bytes(5000)).unwrap();
    server.close();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(&pending.wait().unwrap()[..], bytes(5000));
}

#[test]
fn a_streamed_reply_comes_in_order_and_waits_for_its_client() {
    let _meeting = crate::fuzzing::meet_in_private();
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&sent);
    let (server, thread) = serve(Server::builder("s"), move |request| {
        for part in 0..200u64 {
            match request.stream(&part.to_ne_bytes()) {
                Ok(true) => {}
                Ok(false) | Err(Error::Closed { .. }) => return, // It was cancelled, or the test is over.
                Err(error) => panic!("{error}"),
            }
            counter.fetch_add(1, Ordering::Relaxed);
        }
        request.finish().unwrap();
    });
    let client = Client::builder("s").build().unwrap();
    let mut pending = client.submit(b"x").unwrap();
    while sent.load(Ordering::Relaxed) < super::STREAMED as usize {
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(sent.load(Ordering::Relaxed), super::STREAMED as usize, "it waits");
    let mut parts = Vec::new();
    while let Some(part) = pending.next_with(&mut at_most(LONG)).unwrap() {
        parts.push(u64::from_ne_bytes(part[..].try_into().unwrap()));
    }
    assert_eq!(parts, (0..200).collect::<Vec<_>>());
    assert!(pending.next_with(&mut at_most(LONG)).unwrap().is_none());
    assert_eq!(&client.submit(b"y").unwrap().wait().unwrap()[..], 199u64.to_ne_bytes(), "the last part alone");
    // Who cancels ends the stream.
    sent.store(0, Ordering::Relaxed);
    let mut pending = client.submit(b"z").unwrap();
    assert!(pending.next_with(&mut at_most(LONG)).unwrap().is_some());
    pending.cancel();
    drop(server);
    thread.join().unwrap();
}

#[test]
fn a_survey_asks_each() {
    let _meeting = crate::fuzzing::meet_in_private();
    let servers: Vec<_> =
        (0..3).map(|_| serve(Server::builder("s"), |request| assert!(request.reply(b"here").unwrap()))).collect();
    let client = Client::builder("s").build().unwrap();
    while client.servers().unwrap().len() < 3 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let pending = client.survey_with(b"?", &Encoded::default(), &Ask::default(), &mut at_most(LONG)).unwrap();
    let mut from: Vec<_> = pending.into_iter().map(|it| it.wait().unwrap().sender().incarnation()).collect();
    from.sort_unstable();
    let mut all: Vec<_> = servers.iter().map(|(server, _)| server.identity().incarnation()).collect();
    all.sort_unstable();
    assert_eq!(from, all);
    for (server, thread) in servers {
        drop(server);
        thread.join().unwrap();
    }
}

#[test]
fn threads_that_share_a_client_each_get_their_own() {
    let _meeting = crate::fuzzing::meet_in_private();
    let servers: Vec<_> = (0..2).map(|_| serve(Server::builder("s").prefetch(2), echo)).collect();
    let client = Client::builder("s").build().unwrap();
    std::thread::scope(|scope| {
        for thread in 0..6u64 {
            let client = &client;
            scope.spawn(move || {
                for number in 0..300u64 {
                    let payload = [thread, number].map(u64::to_ne_bytes).concat();
                    assert_eq!(&client.request(&payload).unwrap()[..], payload);
                }
            });
        }
    });
    for (server, thread) in servers {
        drop(server);
        thread.join().unwrap();
    }
}

/// A waker that says that it was woken.
struct Flag(AtomicBool, std::thread::Thread);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
        self.1.unpark();
    }
}

/// Runs a future on this thread.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let flag = Arc::new(Flag(AtomicBool::new(true), std::thread::current()));
    let waker = Arc::clone(&flag).into();
    loop {
        while !flag.0.swap(false, Ordering::Acquire) {
            std::thread::park_timeout(LONG);
        }
        if let Poll::Ready(outcome) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return outcome;
        }
    }
}

#[test]
fn a_pending_reply_is_a_future() {
    let _meeting = crate::fuzzing::meet_in_private();
    let (server, thread) = serve(Server::builder("s").prefetch(8), |request| match &request[..] {
        b"slow" => {
            std::thread::sleep(Duration::from_millis(20));
            echo(request);
        }
        b"never" => {
            while !request.is_cancelled() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        _ => echo(request),
    });
    let client = Client::builder("s").build().unwrap();
    for _ in 0..50 {
        assert_eq!(&block_on(client.submit(b"x").unwrap()).unwrap()[..], b"x");
    }
    assert_eq!(&block_on(client.submit(b"slow").unwrap()).unwrap()[..], b"slow");
    let ask = Ask::default().timeout(Some(Duration::from_millis(30)));
    let never = client.submit_with(b"never", &Encoded::default(), &ask, &mut at_most(LONG)).unwrap();
    assert!(matches!(block_on(never), Err(Error::DeadlineExceeded { .. })));
    drop(server);
    thread.join().unwrap();
    let server = Server::builder("s").build().unwrap();
    let ask = Ask::default().come_within(LONG);
    let lost = client.submit_with(b"x", &Encoded::default(), &ask, &mut at_most(LONG)).unwrap();
    let request = server.recv_timeout(LONG).unwrap();
    server.close();
    assert!(matches!(block_on(lost), Err(Error::ServerLost { taken: true, .. })));
    drop(request);
}

#[test]
fn names_that_cannot_be() {
    let _meeting = crate::fuzzing::meet_in_private();
    for service in ["", "a*/*", "a//b", &"x".repeat(2000)] {
        assert!(Client::builder(service).build().is_err(), "{service}");
        assert!(Server::builder(service).build().is_err(), "{service}");
    }
    for group in ["a/b", "@", "*", &"x".repeat(1000)] {
        assert!(Server::builder("s").group(group).build().is_err(), "{group}");
    }
    for prefetch in [0, 1025] {
        assert!(Server::builder("s").prefetch(prefetch).build().is_err());
    }
    // Neither is found by the other's name, or by who looks for publishers and mailboxes.
    let server = Server::builder("s").build().unwrap();
    let mailbox = crate::Mailbox::builder("t").build().unwrap();
    assert!(mailbox.send("s", b"x").is_err() && mailbox.send(server.identity(), b"x").is_err());
    assert!(matches!(Client::builder("t").build().unwrap().request(b"x"), Err(Error::NoServer { .. })));
}

/// A server says something of itself.
fn say(server: &Server, client: &Client, tag: u64) {
    let mut guard = server.inner.shared.lock().unwrap();
    let open = server.inner.shared.opened(&mut guard).unwrap();
    let index = open.line_of(client.identity().incarnation()).unwrap();
    assert!(matches!(append::inline_tagged(&mut open.lines[index], b"?", &[], tag, None), Attempt::Done(_)));
}

#[test]
fn replies_that_nobody_asked_for_are_counted_and_dropped() {
    let _meeting = crate::fuzzing::meet_in_private();
    let [honest, hostile] = [(); 2].map(|()| Server::builder("s").build().unwrap());
    let client = Client::builder("s").build().unwrap();
    while client.servers().unwrap().len() < 2 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let to = |server: &Server| Ask::default().to(server.identity());
    let pending = client.submit_with(b"x", &Encoded::default(), &to(&honest), &mut at_most(LONG)).unwrap();
    let own = client.submit_with(b"y", &Encoded::default(), &to(&hostile), &mut at_most(LONG)).unwrap();
    let request = honest.recv_timeout(LONG).unwrap();
    // To a request of the honest one's that has the same number, to none, and what is no reply at all.
    let answer = |number| Answered { kind: Kind::Last, number }.encode();
    hostile.recv_timeout(LONG).unwrap().reply(b"its own").unwrap();
    for tag in [answer(0), answer(1), answer((1 << 60) - 1), Asked { flag: 3, deadline: None }.encode(), 15 << 60] {
        say(&hostile, &client, tag);
    }
    assert_eq!(&own.wait().unwrap()[..], b"its own");
    client.receive().unwrap();
    assert_eq!(client.stats().unwrap().unasked, 5);
    assert!(request.reply(b"honest").unwrap());
    assert_eq!(&pending.wait().unwrap()[..], b"honest");
}

#[test]
fn a_client_that_takes_no_replies_and_asks_for_more_is_disconnected() {
    let _meeting = crate::fuzzing::meet_in_private();
    let server = Server::builder("s").build().unwrap();
    let [honest, hostile] = [(); 2].map(|()| Client::builder("s").build().unwrap());
    for client in [&honest, &hostile] {
        client.wait_for_server_with(None, &mut at_most(LONG)).unwrap();
    }
    let ask = || {
        let mut guard = hostile.inner.shared.lock().unwrap();
        let open = hostile.inner.shared.opened(&mut guard).unwrap();
        let tag = Asked { flag: 0, deadline: None }.encode();
        append::inline_tagged(&mut open.lines[0], b"?", &[], tag, None)
    };
    let mut answered = 0;
    loop {
        assert!(matches!(ask(), Attempt::Done(_)));
        if !server.recv_timeout(LONG).unwrap().reply(b"x").unwrap() {
            break;
        }
        answered += 1;
        assert!(answered < 1000);
    }
    assert!(answered > super::STREAMED, "what is reserved for it it gets");
    let pending = honest.submit(b"x").unwrap();
    assert!(server.recv_timeout(LONG).unwrap().reply(b"y").unwrap());
    assert_eq!(&pending.wait().unwrap()[..], b"y");
}

/// One that answers what it does not take always has the fewest under way, and no room.
#[test]
fn a_server_that_takes_nothing_keeps_nobody_from_the_others() {
    let _meeting = crate::fuzzing::meet_in_private();
    let hostile = Server::builder("s").build().unwrap();
    let client = Client::builder("s").build().unwrap();
    client.wait_for_server_with(None, &mut at_most(LONG)).unwrap();
    let first = client.submit(b"x").unwrap();
    say(&hostile, &client, Answered { kind: Kind::Last, number: 0 }.encode());
    assert_eq!(&first.wait().unwrap()[..], b"?");
    let (honest, thread) = serve(Server::builder("s").prefetch(2), echo);
    while client.servers().unwrap().len() < 2 {
        std::thread::sleep(Duration::from_millis(1));
    }
    // Alone, and behind one that waits for the hostile one.
    assert_eq!(&client.request(b"y").unwrap()[..], b"y");
    let to_hostile = Ask::default().to(hostile.identity());
    let stuck = client.submit_with(b"stuck", &Encoded::default(), &to_hostile, &mut at_most(LONG)).unwrap();
    let rest: Vec<_> = (0..20).map(|number: u8| (number, client.submit(&[number]).unwrap())).collect();
    for (number, reply) in rest {
        assert_eq!(&reply.wait().unwrap()[..], [number]);
    }
    // It begins to take something.
    assert_eq!(&hostile.recv_timeout(LONG).unwrap()[..], b"x");
    let request = hostile.recv_timeout(LONG).unwrap();
    assert_eq!(&request[..], b"stuck");
    request.reply(b"late").unwrap();
    assert_eq!(&stuck.wait().unwrap()[..], b"late");
    drop(honest);
    thread.join().unwrap();
}

/// A ring for what a server says that it wants is as long as there are flags.
#[test]
fn a_server_that_wants_too_much_gets_no_more_than_others_may() {
    let _meeting = crate::fuzzing::meet_in_private();
    let mut options = Server::builder("s");
    options.prefetch = 1 << 19;
    let server = Server::new(options, 1 << 30).unwrap();
    let client = Client::builder("s").build().unwrap();
    client.wait_for_server_with(None, &mut at_most(LONG)).unwrap();
    {
        let mut guard = client.inner.shared.lock().unwrap();
        let line = &client.inner.shared.opened(&mut guard).unwrap().lines[0];
        assert_eq!(line.log.capacity(), super::MOST_PREFETCHED);
    }
    // None of them is answered.
    let pending: Vec<_> = (0..1100).map(|_| client.submit(b"x").unwrap()).collect();
    let stats = client.stats().unwrap();
    assert_eq!((stats.under_way, stats.waiting), (1024, 76));
    drop((pending, server));
}

/// Parts for who does not take them, while somebody else takes what comes from the same server.
#[test]
fn parts_that_are_not_taken_keep_the_server_from_sending_more_of_them_and_nothing_else() {
    let _meeting = crate::fuzzing::meet_in_private();
    const PARTS: u32 = 2000;
    let sent = Arc::new(AtomicUsize::new(0));
    let server = Server::builder("s").prefetch(4).build().unwrap();
    let client = Client::builder("s").build().unwrap();
    client.wait_for_server_with(None, &mut at_most(LONG)).unwrap();
    let mut streamed = client.submit(b"stream").unwrap();
    let request = server.recv_timeout(LONG).unwrap();
    let counter = Arc::clone(&sent);
    let streaming = std::thread::spawn(move || {
        for part in 0..PARTS {
            assert!(request.stream(&part.to_ne_bytes()).unwrap());
            counter.fetch_add(1, Ordering::Relaxed);
        }
        request.finish().unwrap();
    });
    let serving = server.handle();
    let echoing = std::thread::spawn(move || {
        while let Ok(request) = serving.recv() {
            echo(&request);
        }
    });
    while sent.load(Ordering::Relaxed) == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    for number in 0..2000u32 {
        if number % 20 == 0 {
            std::thread::sleep(Duration::from_millis(2)); // In which the other thread sees that it has room.
        }
        assert_eq!(&client.request(&number.to_ne_bytes()).unwrap()[..], number.to_ne_bytes());
    }
    let before = sent.load(Ordering::Relaxed);
    assert!(before <= 200, "{before} parts wait for who takes none");
    for part in 0..PARTS {
        assert_eq!(&streamed.next_with(&mut at_most(LONG)).unwrap().unwrap()[..], part.to_ne_bytes());
    }
    assert!(streamed.next_with(&mut at_most(LONG)).unwrap().is_none());
    streaming.join().unwrap();
    drop(server);
    echoing.join().unwrap();
}

#[test]
fn a_server_that_streams_more_than_it_may_is_stopped() {
    let _meeting = crate::fuzzing::meet_in_private();
    let server = Server::builder("s").build().unwrap();
    let client = Client::builder("s").build().unwrap();
    client.wait_for_server_with(None, &mut at_most(LONG)).unwrap();
    let mut streamed = client.submit(b"stream").unwrap();
    let request = server.recv_timeout(LONG).unwrap();
    let mut said = 0;
    while !request.is_cancelled() {
        say(&server, &client, Answered { kind: Kind::More, number: 0 }.encode());
        client.receive().unwrap();
        said += 1;
        assert!(said < 1000, "it may go on for ever");
    }
    let mut parts = 0;
    let error = loop {
        match streamed.next_with(&mut at_most(LONG)) {
            Ok(Some(_)) => parts += 1,
            Ok(None) => panic!("it ends as if all had come"),
            Err(error) => break error,
        }
    };
    assert!(parts < said && error.to_string().contains("more parts than it may"), "{error}");
}

/// Something comes without end: a call takes so much of it, and returns; who polls is told that there is more.
#[test]
fn a_flood_keeps_no_call_from_returning() {
    let _meeting = crate::fuzzing::meet_in_private();
    let servers = [(); 3].map(|()| Server::builder("s").prefetch(1024).build().unwrap());
    let client = Client::builder("s").build().unwrap();
    while client.servers().unwrap().len() < 3 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let descriptor = client.readiness().unwrap();
    let mut said = 0;
    for server in &servers {
        for _ in 0..1024 {
            say(server, &client, Answered { kind: Kind::More, number: 77 }.encode());
            said += 1;
        }
    }
    let mut calls = 0;
    loop {
        client.receive().unwrap();
        calls += 1;
        let taken = client.stats().unwrap().unasked;
        if taken == said {
            break;
        }
        assert!(taken >= 1000 * calls, "{taken} after {calls}");
        let mut watched = [rustix::event::PollFd::new(&descriptor, rustix::event::PollFlags::IN)];
        assert_eq!(rustix::event::poll(&mut watched, None).unwrap(), 1, "it is told of the rest");
    }
    assert!(calls > 1, "all of it in one call");
}

/// A server that lives is given up: what it has not shown as taken goes to another one, so it does not get it.
#[test]
fn what_goes_to_another_server_is_not_given_out() {
    let _meeting = crate::fuzzing::meet_in_private();
    for len in [8, 5000] {
        let server = Server::builder("s").prefetch(8).build().unwrap();
        let client = Client::builder("s").build().unwrap();
        client.wait_for_server_with(None, &mut at_most(LONG)).unwrap();
        let pending = [0; 3].map(|_| client.submit(&bytes(len)).unwrap());
        let first = server.recv_timeout(LONG).unwrap();
        {
            let mut guard = client.inner.shared.lock().unwrap();
            client.inner.shared.opened(&mut guard).unwrap().lines[0].ring().revoke();
        }
        assert!(server.try_recv().unwrap().is_none());
        client.inner.shared.give_up(server.identity(), "is given up by a test");
        drop(first);
        // The second one may have been taken, for all that the cursor says, and its server may still answer.
        let [taken, _unsure, untaken] = pending;
        assert!(matches!(taken.wait(), Err(Error::NoReply { .. })));
        assert!(matches!(untaken.wait(), Err(Error::ServerLost { taken: false, .. })));
        // To the server that is an end like others.
        assert!(matches!(server.recv_timeout(Duration::from_millis(50)), Err(Error::Timeout { .. })));
    }
}

/// What is no request, from a client that is none, is nothing to a server.
#[test]
fn messages_that_are_no_requests_are_passed_over() {
    let _meeting = crate::fuzzing::meet_in_private();
    let server = Server::builder("s").prefetch(8).build().unwrap();
    let client = Client::builder("s").build().unwrap();
    client.wait_for_server_with(None, &mut at_most(LONG)).unwrap();
    for tag in [0, Answered { kind: Kind::Last, number: 0 }.encode(), u64::MAX] {
        let mut guard = client.inner.shared.lock().unwrap();
        let open = client.inner.shared.opened(&mut guard).unwrap();
        assert!(matches!(append::inline_tagged(&mut open.lines[0], b"?", &[], tag, None), Attempt::Done(_)));
    }
    let pending = client.submit(b"x").unwrap();
    let request = server.recv_timeout(LONG).unwrap();
    assert_eq!(&request[..], b"x");
    request.reply(b"y").unwrap();
    assert_eq!(&pending.wait().unwrap()[..], b"y");
}
