//! `byref doctor`.

use crate::output::json;
use crate::{Failure, Outcome};
use byref::{Check, State};
use clap::Args;
use serde_json::json;
use std::io::{self, Write};

/// Look for what keeps byref from working, or from working well, on this host.
#[derive(Args)]
pub struct Doctor {
    /// One JSON object for each check
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub fn run(self) -> Outcome {
        let checks = byref::checks();
        for check in &checks {
            self.print(check)?;
        }
        match checks.iter().filter(|check| check.state == State::Bad).count() {
            0 => Ok(()),
            bad => Err(Failure::Io(io::Error::other(format!("{bad} of {} checks failed", checks.len())))),
        }
    }

    fn print(&self, check: &Check) -> io::Result<()> {
        let state = match check.state {
            State::Good => "ok",
            State::Poor => "could be better",
            State::Bad => "does not work",
        };
        if self.json {
            return json(&json!({
                "check": check.what,
                "state": state,
                "found": check.found,
                "advice": check.advice,
            }));
        }
        let mut out = io::stdout().lock();
        writeln!(out, "{:<22} {state}: {}", check.what, check.found)?;
        if let Some(advice) = &check.advice {
            writeln!(out, "{:<22} -> {advice}", "")?;
        }
        Ok(())
    }
}
