//! `byref echo`.

use crate::output::{json, who};
use crate::rates::seconds;
use crate::show::{headers, line, payload, tree};
use crate::{Failure, Outcome};
use byref::{Message, Policy, Subscriber, Wait};
use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};
use std::io::{self, Write};
use std::time::Duration;

/// Print messages as they come; who publishes does not wait for it.
#[derive(Args)]
pub struct Echo {
    /// Which topics
    pattern: String,
    /// End after so many messages
    #[arg(long, short = 'n')]
    count: Option<u64>,
    /// What to print of each message
    #[arg(long, value_delimiter = ',', value_enum)]
    fields: Vec<Field>,
    /// Up to so many messages that were sent before, where publishers keep them
    #[arg(long, default_value = "0")]
    history: u64,
    /// Lose none: publishers wait until it has printed what they sent
    #[arg(long)]
    lossless: bool,
    /// Write the payloads alone, byte for byte
    #[arg(long, conflicts_with_all = ["json", "fields"])]
    raw: bool,
    /// One JSON object for each message
    #[arg(long)]
    json: bool,
    /// End when no message came for so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Field {
    Topic,
    Sequence,
    /// When it was sent, in nanoseconds since 1970
    Timestamp,
    Publisher,
    /// The bytes of its payload
    Size,
    Headers,
    Value,
}

impl Echo {
    pub fn run(self) -> Outcome {
        let builder = Subscriber::builder(&self.pattern).name("byref echo").history(self.history);
        let subscriber = builder.policy(if self.lossless { Policy::Block } else { Policy::DropOldest }).build()?;
        let mut lost = 0;
        let mut printed = 0;
        while self.count.is_none_or(|count| printed < count) {
            let message = match subscriber.recv_with(&mut Wait::up_to(self.timeout)) {
                Err(error @ byref::Error::Timeout { .. }) => return Err(Failure::Nothing(error.to_string())),
                received => received?,
            };
            let now_lost = subscriber.stats()?.lost;
            if now_lost > lost {
                eprintln!("byref: {} messages lost before the next one (--lossless loses none)", now_lost - lost);
                lost = now_lost;
            }
            self.print(&message)?;
            printed += 1;
        }
        Ok(())
    }

    fn print(&self, message: &Message) -> io::Result<()> {
        if self.raw {
            let mut out = io::stdout().lock();
            out.write_all(message)?;
            return out.flush();
        }
        let told = self.told(message);
        if self.json {
            return json(&Value::Object(told));
        }
        let mut out = io::stdout().lock();
        if self.fields.is_empty() {
            write!(out, "{} #{}", message.topic(), message.sequence())?;
            if told["headers"].as_object().is_some_and(|headers| !headers.is_empty()) {
                write!(out, " {}", told["headers"])?;
            }
            let value = tree(&told["value"]);
            let between = if value.contains('\n') { "\n" } else { " " };
            writeln!(out, ":{between}{value}")?;
        } else {
            let each: Vec<_> = told.values().map(line).collect();
            writeln!(out, "{}", each.join("  "))?;
        }
        out.flush()
    }

    fn told(&self, message: &Message) -> Map<String, Value> {
        const ALL: [Field; 7] = [
            Field::Topic,
            Field::Sequence,
            Field::Timestamp,
            Field::Publisher,
            Field::Size,
            Field::Headers,
            Field::Value,
        ];
        let wanted = if self.fields.is_empty() { &ALL[..] } else { &self.fields };
        let each = wanted.iter().map(|field| {
            let (name, value) = match field {
                Field::Topic => ("topic", message.topic().into()),
                Field::Sequence => ("sequence", message.sequence().into()),
                Field::Timestamp => ("timestamp_ns", message.timestamp_ns().into()),
                Field::Publisher if self.json => {
                    let publisher = message.publisher();
                    ("publisher", json!({ "pid": publisher.pid, "name": publisher.name }))
                }
                Field::Publisher => {
                    ("publisher", who(message.publisher().pid, message.publisher().name.as_deref()).into())
                }
                Field::Size => ("size", message.len().into()),
                Field::Headers => ("headers", headers(message)),
                Field::Value => ("value", payload(message)),
            };
            (name.to_owned(), value)
        });
        each.collect()
    }
}
