//! `byref hz` and `byref bw`: how fast publishers send, by their own counters.

use crate::output::{bytes, json, number, who};
use crate::{Failure, Outcome};
use byref::{PublisherReport, publishers};
use clap::Args;
use serde_json::json;
use std::io::{self, Write};
use std::time::Duration;

/// Messages, or bytes, per second.
#[derive(Args)]
pub struct Rates {
    /// Which topics
    pattern: String,
    /// How many lines for each publisher; without it, until it is stopped
    #[arg(long, short = 'n')]
    count: Option<u64>,
    /// The seconds that one line is measured over
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = positive_seconds)]
    over: Duration,
    /// One JSON object in each line
    #[arg(long)]
    json: bool,
}

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Messages,
    Bytes,
}

/// How fast one publisher sends, per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    pub messages: f64,
    pub bytes: f64,
}

impl Rate {
    /// Since the last look. One that was not there then has no rate.
    pub fn between(before: &[PublisherReport], after: &PublisherReport) -> Option<Rate> {
        let before = before.iter().find(|before| before.id == after.id)?;
        let seconds =
            Duration::from_nanos(after.at_ns.checked_sub(before.at_ns).filter(|time| *time > 0)?).as_secs_f64();
        let per_second = |after: u64, before: u64| after.wrapping_sub(before) as f64 / seconds;
        Some(Rate {
            messages: per_second(after.stats.sent, before.stats.sent),
            bytes: per_second(after.stats.sent_bytes, before.stats.sent_bytes),
        })
    }
}

/// A time in seconds, as an argument.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.parse::<f64>().map_err(|_| format!("'{text}' is no number of seconds"))?;
    Duration::try_from_secs_f64(number).map_err(|_| format!("'{text}' is no number of seconds that one can wait"))
}

/// The same, more than 0.
pub fn positive_seconds(text: &str) -> Result<Duration, String> {
    seconds(text).and_then(|time| if time.is_zero() { Err("more than 0 seconds".into()) } else { Ok(time) })
}

impl Rates {
    pub fn run(self, unit: Unit) -> Outcome {
        let mut before = publishers(&self.pattern)?;
        if before.is_empty() {
            return Err(Failure::Nothing(format!("nobody publishes '{}'", self.pattern)));
        }
        let mut lines = 0;
        while self.count.is_none_or(|count| lines < count) {
            std::thread::sleep(self.over);
            let after = publishers(&self.pattern)?;
            for report in &after {
                if let Some(rate) = Rate::between(&before, report) {
                    self.print(report, rate, unit)?;
                }
            }
            before = after;
            lines += 1;
        }
        Ok(())
    }

    fn print(&self, report: &PublisherReport, rate: Rate, unit: Unit) -> io::Result<()> {
        if self.json {
            return json(&json!({
                "topic": report.topic,
                "pid": report.pid,
                "name": report.name,
                "messages_per_second": rate.messages,
                "bytes_per_second": rate.bytes,
            }));
        }
        let told = match unit {
            Unit::Messages => format!("{} msg/s", number(rate.messages)),
            Unit::Bytes if rate.messages > 0.0 => {
                format!("{}/s in messages of {}", bytes(rate.bytes), bytes((rate.bytes / rate.messages).round()))
            }
            Unit::Bytes => format!("{}/s", bytes(rate.bytes)),
        };
        writeln!(io::stdout().lock(), "{}  {}  {told}", report.topic, who(report.pid, report.name.as_deref()))
    }
}
