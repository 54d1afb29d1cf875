//! A thousand topics between two processes, and what a kill leaves.
//!
//! ```sh
//! cargo run --release --package byref --example thousand_topics
//! ```
//!
//! This program starts itself a second time. The child publishes on a thousand topics, `rig/0` to `rig/999`: readings, and now and then
//! a frame. The parent follows all of them with one subscriber, keeps the last frame of each, kills the child in the middle of it,
//! and shows what it has then: every message that was sent, the news that each publisher is lost, and the frames, whose memory lives as long
//! as somebody holds it.

use byref::{EventKind, Incoming, Message, One, Publisher, Subscriber, Told, Wait};
use std::collections::HashMap;
use std::error::Error;
use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};

const TOPICS: usize = 1000;
/// Rounds that the parent receives before it kills the child.
const ROUNDS: u64 = 20;
/// Every so many rounds each topic sends a frame beside its reading.
const FRAME_EVERY: u64 = 10;
const FRAME: usize = 64 << 10;
/// Nothing here takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let is_child = std::env::args().nth(1).as_deref() == Some("publish");
    match if is_child { publish() } else { follow() } {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

// ---- the child -------------------------------------------------------------------------------------------------------

/// Publishes on all topics until it is killed.
fn publish() -> Outcome<()> {
    let begin = Instant::now();
    let publishers = (0..TOPICS)
        .map(|number| Publisher::builder(format!("rig/{number}")).max_memory(4 << 20).build())
        .collect::<Result<Vec<_>, _>>()?;
    println!("publisher:  {TOPICS} publishers made in {:.0?}", begin.elapsed());
    for publisher in &publishers {
        publisher.wait_for_subscribers(1, Some(PATIENCE))?;
    }
    for round in 0.. {
        for (number, publisher) in publishers.iter().enumerate() {
            publisher.send(&reading(number, round))?;
            if round % FRAME_EVERY == 0 {
                // Filled in place: no copy is made of it, here or there.
                let mut frame = publisher.loan(FRAME)?;
                frame.fill(pixel(number, round));
                frame.send()?;
            }
        }
    }
    Ok(())
}

/// What topic `number` measures in a round: both numbers, so that the receiver can tell.
fn reading(number: usize, round: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&(number as u64).to_le_bytes());
    bytes[8..].copy_from_slice(&round.to_le_bytes());
    bytes
}

fn pixel(number: usize, round: u64) -> u8 {
    (number as u64 + round) as u8
}

// ---- the parent ------------------------------------------------------------------------------------------------------

/// What came of one topic.
#[derive(Default)]
struct Topic {
    readings: u64,
    frames: u64,
    last_frame: Option<Message>,
    is_lost: bool,
}

fn follow() -> Outcome<()> {
    let subscriber = Subscriber::builder("rig/*").events(true).build()?;
    let begin = Instant::now();
    let mut child = Victim(Command::new(std::env::current_exe()?).arg("publish").spawn()?);

    let mut topics: HashMap<String, Topic> = HashMap::new();
    let (mut first_round, mut killed) = (None, None);
    while topics.len() < TOPICS || topics.values().any(|topic| !topic.is_lost) {
        take(&subscriber, &mut topics)?;
        if first_round.is_none() && topics.len() == TOPICS && topics.values().all(|topic| topic.readings > 0) {
            first_round = Some(begin.elapsed());
        }
        if killed.is_none() && topics.len() == TOPICS && topics.values().all(|topic| topic.readings >= ROUNDS) {
            child.kill()?;
            killed = Some(Instant::now());
        }
    }
    let (first_round, killed) = (first_round.ok_or("no round was complete")?, killed.ok_or("it died by itself")?);

    let readings: u64 = topics.values().map(|topic| topic.readings).sum();
    let frames: u64 = topics.values().map(|topic| topic.frames).sum();
    println!("subscriber: a message of each topic {first_round:.0?} after the start of the other process");
    println!("            {readings} readings and {frames} frames, each checked; none is missing");
    println!("            killed; all {TOPICS} publishers reported as lost {:.0?} later", killed.elapsed());

    let held: Vec<&Message> = topics.values().filter_map(|topic| topic.last_frame.as_ref()).collect();
    let is_whole = |frame: &&Message| frame.len() == FRAME && frame.iter().all(|pixel| *pixel == frame[0]);
    if held.len() != TOPICS || !held.iter().all(is_whole) {
        return Err("a frame that is held was lost".into());
    }
    println!(
        "            {} frames of the dead process are held and whole: {} MiB",
        held.len(),
        (held.len() * FRAME) >> 20
    );
    Ok(())
}

/// Receives one message, or the news of a publisher, and checks it.
fn take(subscriber: &Subscriber, topics: &mut HashMap<String, Topic>) -> Outcome<()> {
    match subscriber.receive(Told(One), &mut Wait::up_to(Some(PATIENCE)))? {
        Incoming::Event(event) => match event.kind {
            EventKind::Joined => drop(topics.entry(event.publisher.topic.clone()).or_default()),
            EventKind::Lost => topics.entry(event.publisher.topic.clone()).or_default().is_lost = true,
            other => return Err(format!("{}: {other:?}", event.publisher.topic).into()),
        },
        Incoming::Message(message) => {
            let number: usize = message.topic().trim_start_matches("rig/").parse()?;
            let topic = topics.get_mut(message.topic()).ok_or("a message of nobody")?;
            if message.len() == FRAME {
                if message[0] != pixel(number, topic.frames * FRAME_EVERY) {
                    return Err(format!("{}: a wrong frame", message.topic()).into());
                }
                topic.frames += 1;
                topic.last_frame = Some(message); // The one before goes back to its publisher.
            } else {
                if message[..] != reading(number, topic.readings) {
                    return Err(format!("{}: a reading is missing", message.topic()).into());
                }
                topic.readings += 1;
            }
        }
    }
    Ok(())
}

/// A child that does not outlive this process's interest in it.
struct Victim(Child);

impl Victim {
    fn kill(&mut self) -> Outcome<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}
