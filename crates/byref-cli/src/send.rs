//! `byref pub`.

use crate::rates::seconds;
use crate::{Failure, Outcome};
use byref::Publisher;
use clap::Args;
use std::fs;
use std::io::{self, BufRead};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

/// Send what stands in a file, or each line of the standard input.
#[derive(Args)]
pub struct Send {
    /// The topic
    topic: String,
    /// Send this text
    #[arg(long, conflicts_with = "file")]
    text: Option<String>,
    /// Send the content of this file
    #[arg(long)]
    file: Option<PathBuf>,
    /// Send a text or a file so often; 0: until it is stopped
    #[arg(long, short = 'n', default_value = "1")]
    count: u64,
    /// Messages per second at the most
    #[arg(long)]
    rate: Option<f64>,
    /// Begin when so many subscribers are connected
    #[arg(long, value_name = "SUBSCRIBERS", default_value = "1")]
    wait: usize,
    /// Wait so many seconds for them at the most
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,
    /// The publisher's name
    #[arg(long)]
    name: Option<String>,
}

impl Send {
    pub fn run(self) -> Outcome {
        let pause = match self.rate {
            None => Duration::ZERO,
            Some(rate) => Duration::try_from_secs_f64(1.0 / rate).map_err(|_| {
                Failure::Io(io::Error::other(format!("--rate must be more than 0 messages per second, not {rate}")))
            })?,
        };
        let content =
            match (&self.text, &self.file) {
                (Some(text), _) => Some(text.clone().into_bytes()),
                (None, Some(path)) => Some(fs::read(path).map_err(|error| {
                    io::Error::new(error.kind(), format!("cannot read {}: {error}", path.display()))
                })?),
                (None, None) => None,
            };
        let builder = Publisher::builder(&self.topic);
        let publisher = match &self.name {
            Some(name) => builder.name(name),
            None => builder,
        }
        .build()?;
        match publisher.wait_for_subscribers(self.wait, self.timeout) {
            Err(error @ byref::Error::Timeout { .. }) => return Err(Failure::Nothing(error.to_string())),
            waited => waited?,
        }
        let mut pace = Pace { pause, next: Instant::now() };
        match content {
            Some(content) => {
                let mut sent = 0;
                while self.count == 0 || sent < self.count {
                    pace.wait();
                    publisher.send(&content)?;
                    sent += 1;
                }
            }
            None => {
                for line in io::stdin().lock().split(b'\n') {
                    pace.wait();
                    publisher.send(&line?)?;
                }
            }
        }
        publisher.close(); // What was sent stays for those who are connected.
        Ok(())
    }
}

/// So many messages per second.
struct Pace {
    pause: Duration,
    next: Instant,
}

impl Pace {
    fn wait(&mut self) {
        if !self.pause.is_zero() {
            thread::sleep(self.next.saturating_duration_since(Instant::now()));
            self.next = (self.next + self.pause).max(Instant::now());
        }
    }
}
