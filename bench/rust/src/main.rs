//! Makes one trial of one system and prints its outcome as JSON: `byref-bench CASE SYSTEM LENGTH`.
//!
//! A trial takes two processes: this one, which sends and measures, and another run of this program, which receives
//! (`byref-bench CASE SYSTEM LENGTH TOPIC receive`). Both check the number in every message they read. With `send` in place
//! of `receive`, this one sends and measures, and whoever started it receives.

mod cache_line;
mod link;
mod roles;
mod systems;

use std::process::ExitCode;

use link::Link;
use roles::Roles;
use systems::{Byref, Iceoryx2};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// What a trial measured.
struct Outcome {
    /// How long it took, without what comes before and after.
    seconds: f64,
    /// One for each metric of the case.
    values: Vec<f64>,
}

impl Outcome {
    /// The percentiles 50 and 99 of the times of round trips, in microseconds.
    fn of_round_trips(mut nanoseconds: Vec<u64>) -> Self {
        nanoseconds.sort_unstable();
        let percentile = |p: usize| nanoseconds[nanoseconds.len() * p / 100] as f64 / 1e3;
        Self { seconds: nanoseconds.iter().sum::<u64>() as f64 / 1e9, values: vec![percentile(50), percentile(99)] }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments.iter().map(String::as_str).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> Result<()> {
    match *arguments {
        ["round-trip", "cache line", length] => print(&cache_line::round_trips(length.parse()?)),
        [case, system, length] => {
            let topic = format!("byref-bench-rust-{}", std::process::id());
            let (mut link, mut receiver) = Link::start(&[case, system, length, &topic, "receive"])?;
            print(&(roles(case, system)?.measure)(&mut link, &topic, length.parse()?)?);
            receiver.wait()?;
        }
        [case, system, length, topic, "send"] => {
            print(&(roles(case, system)?.measure)(&mut Link::to_parent(), topic, length.parse()?)?);
        }
        [case, system, length, topic, "receive"] => {
            (roles(case, system)?.receive)(&mut Link::to_parent(), topic, length.parse()?)?;
        }
        _ => return Err("usage: byref-bench rate|round-trip byref|iceoryx2|'cache line' LENGTH".into()),
    }
    Ok(())
}

fn roles(case: &str, system: &str) -> Result<Roles> {
    match system {
        "byref" => Roles::of::<Byref>(case),
        "iceoryx2" => Roles::of::<Iceoryx2>(case),
        _ => Err(format!("no such system: {system}").into()),
    }
}

fn print(outcome: &Outcome) {
    println!(r#"{{"seconds": {}, "values": {:?}}}"#, outcome.seconds, outcome.values);
}
