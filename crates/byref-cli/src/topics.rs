//! `byref topics` and `byref info`.

use crate::output::{bytes, json, number, table, who};
use crate::rates::{self, Rate};
use crate::{Failure, Outcome};
use byref::{Policy, PublisherReport, SubscriberReport, publishers};
use clap::Args;
use serde_json::{Value, json};
use std::time::Duration;

/// Who publishes, who subscribes, how much was sent.
#[derive(Args)]
pub struct Topics {
    /// Which topics
    #[arg(default_value = "**")]
    pattern: String,
    /// One JSON object for each publisher
    #[arg(long)]
    json: bool,
    /// For how many seconds rates are measured; 0: not at all
    #[arg(long, value_name = "SECONDS", default_value = "0.5", value_parser = rates::seconds)]
    over: Duration,
}

/// All that the publishers of one topic tell of themselves.
#[derive(Args)]
pub struct Info {
    /// The topic, or a pattern
    topic: String,
    /// One JSON object for each publisher
    #[arg(long)]
    json: bool,
    /// For how many seconds rates are measured; 0: not at all
    #[arg(long, value_name = "SECONDS", default_value = "0.5", value_parser = rates::seconds)]
    over: Duration,
}

pub fn policy(policy: Policy) -> &'static str {
    match policy {
        Policy::Block => "block",
        Policy::DropOldest => "drop_oldest",
        Policy::Latest => "latest",
    }
}

/// What the publishers of some topics tell, and how fast they send.
fn measured(pattern: &str, over: Duration) -> Result<Vec<(PublisherReport, Option<Rate>)>, Failure> {
    let before = publishers(pattern)?;
    if over.is_zero() || before.is_empty() {
        return Ok(before.into_iter().map(|report| (report, None)).collect());
    }
    std::thread::sleep(over);
    let after = publishers(pattern)?;
    Ok(after.into_iter().map(|report| (Rate::between(&before, &report), report)).map(|(rate, it)| (it, rate)).collect())
}

fn nobody(pattern: &str) -> Failure {
    Failure::Nothing(format!("nobody publishes '{pattern}'"))
}

impl Topics {
    pub fn run(self) -> Outcome {
        let found = measured(&self.pattern, self.over)?;
        if self.json {
            for (report, rate) in &found {
                json(&object(report, *rate))?;
            }
        }
        if found.is_empty() {
            return Err(nobody(&self.pattern));
        }
        if self.json {
            return Ok(());
        }
        let head = ["TOPIC", "PUBLISHER", "SENT", "MSG/S", "BYTES/S", "SUBSCRIBERS"].map(str::to_owned).to_vec();
        let rows = found.iter().map(|(report, rate)| {
            let rates = match rate {
                Some(rate) => [number(rate.messages), bytes(rate.bytes)],
                None => ["-".to_owned(), "-".to_owned()],
            };
            let subscribers: Vec<_> = report.subscribers.iter().map(subscriber).collect();
            let [messages, volume] = rates;
            let publisher = who(report.pid, report.name.as_deref());
            vec![
                report.topic.clone(),
                publisher,
                report.stats.sent.to_string(),
                messages,
                volume,
                subscribers.join(", "),
            ]
        });
        Ok(table(&std::iter::once(head).chain(rows).collect::<Vec<_>>(), &[2, 3, 4])?)
    }
}

/// A subscriber in a few words.
fn subscriber(report: &SubscriberReport) -> String {
    let lag = if report.lag > 0 { format!(", {} behind", report.lag) } else { String::new() };
    format!("{} ({}{lag})", who(report.pid, report.name.as_deref()), policy(report.policy))
}

impl Info {
    pub fn run(self) -> Outcome {
        let found = measured(&self.topic, self.over)?;
        if found.is_empty() {
            return Err(nobody(&self.topic));
        }
        for (index, (report, rate)) in found.iter().enumerate() {
            if self.json {
                json(&object(report, *rate))?;
                continue;
            }
            if index > 0 {
                println!();
            }
            print(report, *rate)?;
        }
        Ok(())
    }
}

fn print(report: &PublisherReport, rate: Option<Rate>) -> Outcome {
    let stats = &report.stats;
    let mut rows = vec![
        vec!["topic".to_owned(), report.topic.clone()],
        vec!["publisher".to_owned(), who(report.pid, report.name.as_deref())],
        vec!["identity".to_owned(), format!("{:032x}", report.id)],
        vec!["sent".to_owned(), format!("{} messages, {}", stats.sent, bytes(stats.sent_bytes as f64))],
    ];
    if let Some(rate) = rate {
        rows.push(vec!["rate".to_owned(), format!("{} msg/s, {}/s", number(rate.messages), bytes(rate.bytes))]);
    }
    rows.extend([
        vec!["copied".to_owned(), format!("{} into shared memory", bytes(stats.copied_bytes as f64))],
        vec!["waits".to_owned(), format!("{} sends had to wait for room", stats.waits)],
        vec![
            "memory".to_owned(),
            format!(
                "{} in use, {} taken, {} at the most",
                bytes(stats.pool_used as f64),
                bytes(stats.pool_allocated as f64),
                bytes(report.max_memory as f64)
            ),
        ],
        vec![
            "ring".to_owned(),
            format!("{} messages at the most, {} for late subscribers", report.capacity, report.history),
        ],
    ]);
    table(&rows, &[])?;
    let head = ["SUBSCRIBER", "POLICY", "DEPTH", "BEHIND", "HOLDS"].map(str::to_owned).to_vec();
    let each = report.subscribers.iter().map(|one| {
        let holds = match one.held {
            0 => "-".to_owned(),
            held => format!("{held} ({})", bytes(one.held_bytes as f64)),
        };
        vec![
            who(one.pid, one.name.as_deref()),
            policy(one.policy).to_owned(),
            one.depth.to_string(),
            one.lag.to_string(),
            holds,
        ]
    });
    match report.subscribers.len() as u64 {
        0 => println!("no subscribers"),
        told => {
            table(&std::iter::once(head).chain(each).collect::<Vec<_>>(), &[2, 3])?;
            if stats.subscribers > told {
                println!("and {} more", stats.subscribers - told);
            }
        }
    }
    Ok(())
}

fn object(report: &PublisherReport, rate: Option<Rate>) -> Value {
    let stats = &report.stats;
    let each = report.subscribers.iter().map(|one| {
        json!({
            "pid": one.pid,
            "name": one.name,
            "policy": policy(one.policy),
            "depth": one.depth,
            "lag": one.lag,
            "held": one.held,
            "held_bytes": one.held_bytes,
        })
    });
    json!({
        "topic": report.topic,
        "pid": report.pid,
        "name": report.name,
        "id": format!("{:032x}", report.id),
        "sent": stats.sent,
        "sent_bytes": stats.sent_bytes,
        "messages_per_second": rate.map(|rate| rate.messages),
        "bytes_per_second": rate.map(|rate| rate.bytes),
        "copied_bytes": stats.copied_bytes,
        "waits": stats.waits,
        "pool_used": stats.pool_used,
        "pool_allocated": stats.pool_allocated,
        "max_memory": report.max_memory,
        "history": report.history,
        "capacity": report.capacity,
        "subscriber_count": stats.subscribers,
        "subscribers": each.collect::<Vec<_>>(),
    })
}
