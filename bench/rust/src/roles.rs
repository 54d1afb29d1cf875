//! What the two processes of a trial do.

use std::time::Instant;

use crate::link::Link;
use crate::systems::{Receiver, Sender, System};
use crate::{Outcome, Result};

/// Messages or round trips that come first and are not measured.
const WARM_UP: u64 = 1000;

/// The two sides of a case, each to be called with a link to the other, a topic, and how many messages are measured.
pub struct Roles {
    pub measure: fn(&mut Link, &str, u64) -> Result<Outcome>,
    pub receive: fn(&mut Link, &str, u64) -> Result<()>,
}

impl Roles {
    pub fn of<S: System>(case: &str) -> Result<Self> {
        match case {
            "rate" => Ok(Self { measure: send_stream::<S>, receive: receive_stream::<S> }),
            "round-trip" => Ok(Self { measure: ping::<S>, receive: pong::<S> }),
            _ => Err(format!("no such case: {case}").into()),
        }
    }
}

/// Sends without a pause; measures millions of messages per second until the last has been received.
fn send_stream<S: System>(link: &mut Link, topic: &str, length: u64) -> Result<Outcome> {
    link.meet()?;
    let mut sender = S::sender(topic)?;
    for i in 0..WARM_UP {
        sender.send_number(i)?;
    }
    link.meet()?;
    let start = Instant::now();
    for i in 0..length {
        sender.send_number(i)?;
    }
    link.meet()?;
    let seconds = start.elapsed().as_secs_f64();
    Ok(Outcome { seconds, values: vec![length as f64 / seconds / 1e6] })
}

fn receive_stream<S: System>(link: &mut Link, topic: &str, length: u64) -> Result<()> {
    let mut receiver = S::receiver(topic)?;
    link.meet()?;
    for i in 0..WARM_UP {
        expect(i, &mut receiver)?;
    }
    link.meet()?;
    for i in 0..length {
        expect(i, &mut receiver)?;
    }
    link.meet()
}

/// Sends a message and waits for its echo, again and again; measures how long each took.
fn ping<S: System>(link: &mut Link, topic: &str, length: u64) -> Result<Outcome> {
    let mut receiver = S::receiver(&format!("{topic}-back"))?;
    link.meet()?;
    let mut sender = S::sender(&format!("{topic}-forth"))?;
    let mut times = Vec::with_capacity((WARM_UP + length) as usize);
    let mut start = Instant::now();
    for i in 0..WARM_UP + length {
        sender.send_number(i)?;
        expect(i, &mut receiver)?;
        let end = Instant::now();
        times.push((end - start).as_nanos() as u64);
        start = end;
    }
    link.meet()?;
    Ok(Outcome::of_round_trips(times.split_off(WARM_UP as usize)))
}

fn pong<S: System>(link: &mut Link, topic: &str, length: u64) -> Result<()> {
    let mut receiver = S::receiver(&format!("{topic}-forth"))?;
    link.meet()?;
    let mut sender = S::sender(&format!("{topic}-back"))?;
    for i in 0..WARM_UP + length {
        expect(i, &mut receiver)?;
        sender.send_number(i)?;
    }
    link.meet()
}

fn expect(number: u64, receiver: &mut impl Receiver) -> Result<()> {
    match receiver.receive_number()? {
        found if found == number => Ok(()),
        found => Err(format!("message {found} came in place of {number}").into()),
    }
}
