//! How the two processes of a trial agree on when to go on.

use std::io::{BufRead, BufReader, Read, Write, stdin, stdout};
use std::process::{Child, Command, Stdio};

use crate::Result;

/// A connection to the other process of the trial.
pub struct Link {
    from: Box<dyn BufRead>,
    to: Box<dyn Write>,
}

impl Link {
    fn new(from: impl Read + 'static, to: impl Write + 'static) -> Self {
        Self { from: Box::new(BufReader::new(from)), to: Box::new(to) }
    }

    /// The link to the process that started this one.
    pub fn to_parent() -> Self {
        Self::new(stdin(), stdout())
    }

    /// Runs this program again, as the receiving process.
    pub fn start(arguments: &[&str]) -> Result<(Self, Child)> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let link = Self::new(child.stdout.take().ok_or("no pipe")?, child.stdin.take().ok_or("no pipe")?);
        Ok((link, child))
    }

    /// Returns once the other process has come to the same point.
    pub fn meet(&mut self) -> Result<()> {
        self.to.write_all(b"\n")?;
        self.to.flush()?;
        match self.from.read_line(&mut String::new())? {
            0 => Err("the other process ended early".into()),
            _ => Ok(()),
        }
    }
}
