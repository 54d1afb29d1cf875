//! Requests between two processes, beside a message there and one back: what a request costs more than these.
//!
//! `cargo run --release --package byref --example requests`

use byref::{Client, Publisher, Server, Subscriber};
use std::process::Command;
use std::time::{Duration, Instant};

const ROUNDS: usize = 100_000;
const PAYLOAD: [u8; 64] = [7; 64];

fn main() -> Result<(), byref::Error> {
    if std::env::args().nth(1).is_some() {
        return answer();
    }
    let mut other = Command::new(std::env::current_exe().expect("it runs")).arg("answer").spawn().expect("a process");
    let measured = ask();
    let _ = other.kill();
    let _ = other.wait();
    measured
}

/// Asks the other process.
fn ask() -> Result<(), byref::Error> {
    let (there, back) = (Publisher::builder("there").build()?, Subscriber::builder("back").build()?);
    there.wait_for_subscribers(1, None)?;
    back.wait_for_publishers(1, None)?;
    let plain = median(|| {
        there.send(&PAYLOAD)?;
        back.recv().map(|message| assert_eq!(message.len(), PAYLOAD.len()))
    })?;
    there.send(b"end")?;
    let client = Client::builder("echo").build()?;
    client.wait_for_server_with(None, &mut byref::Wait::up_to(None))?;
    let asked = median(|| client.request(&PAYLOAD).map(|reply| assert_eq!(reply.len(), PAYLOAD.len())))?;
    println!("there and back {plain:?}, request and reply {asked:?}: {:.2}", asked.as_secs_f64() / plain.as_secs_f64());
    Ok(())
}

/// The median of many rounds.
fn median(mut round: impl FnMut() -> Result<(), byref::Error>) -> Result<Duration, byref::Error> {
    let mut times = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let began = Instant::now();
        round()?;
        times.push(began.elapsed());
    }
    times.sort_unstable();
    Ok(times[ROUNDS / 2])
}

/// The other process: sends back what comes, then serves.
fn answer() -> Result<(), byref::Error> {
    let (there, back) = (Subscriber::builder("there").build()?, Publisher::builder("back").build()?);
    back.wait_for_subscribers(1, None)?;
    loop {
        let message = there.recv()?;
        if &message[..] == b"end" {
            break;
        }
        back.send(&message)?;
    }
    let server = Server::builder("echo").build()?;
    loop {
        let request = server.recv()?;
        request.reply(&request)?;
    }
}
