//! The `byref` command, for its own binary and for `python -m byref`.
//!
//! It asks publishers for their own counters ([`byref::publishers`]), so looking at a topic disturbs nobody. What it writes for programs
//! (`--json`) is one JSON object in each line.
//!
//! Exit codes: 0 all went well; 1 it failed; 2 the command line is none; 3 nothing was found, or nothing came in time.

mod doctor;
mod echo;
mod exec;
mod output;
mod rates;
mod send;
mod show;
mod top;
mod topics;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
pub use exec::Exec;
use std::ffi::OsString;
use std::io;

/// Exit codes.
const FAILED: u8 = 1;
const USAGE: u8 = 2;
const NOTHING: u8 = 3;

/// Looks at, and takes part in, what byref's publishers and subscribers exchange on this host.
///
/// Publishers and subscribers meet in a directory that BYREF_DIR names. A PATTERN is a topic in which `*` stands for one level, and
/// `**` for any number of them.
#[derive(Parser)]
#[command(name = "byref", version, max_term_width = 100, disable_help_subcommand = true)]
#[command(after_help = "Exit codes: 0 success, 1 failure, 2 wrong usage, 3 nothing found, or nothing in time.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Who publishes, who subscribes, how much was sent
    Topics(topics::Topics),
    /// All that the publishers of one topic tell of themselves
    Info(topics::Info),
    /// Messages per second
    Hz(rates::Rates),
    /// Bytes per second
    Bw(rates::Rates),
    /// All topics in a terminal, as they are from second to second
    Top(top::Top),
    /// Print messages as they come; who publishes does not wait for it
    Echo(echo::Echo),
    /// Send what stands in a file, or each line of the standard input
    Pub(send::Send),
    /// Look for what keeps byref from working, or from working well, on this host
    Doctor(doctor::Doctor),
    /// Run a program with pyzmq's, ezmsg's or dora's messages carried by byref
    Exec(Exec),
    /// Write what a shell needs to complete this command
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// Why a command ended otherwise than well.
enum Failure {
    /// Nothing was found, or nothing came in time; what to say of it.
    Nothing(String),
    Byref(byref::Error),
    Io(io::Error),
}

impl From<byref::Error> for Failure {
    fn from(error: byref::Error) -> Self {
        Failure::Byref(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Io(error)
    }
}

type Outcome = Result<(), Failure>;

/// Runs the command of these arguments, the first of which is its name; gives the exit code.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    run_within(arguments, |_| exec::without_python())
}

/// Runs the command as [`run`] does, within something that can put adapters into Python programs; `exec` gives its exit code.
pub fn run_within(arguments: impl IntoIterator<Item = OsString>, exec: impl FnOnce(Exec) -> u8) -> u8 {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(problem) => {
            let _ = problem.print(); // To nobody, perhaps.
            return if problem.use_stderr() { USAGE } else { 0 };
        }
    };
    let outcome = match arguments.command {
        Command::Topics(topics) => topics.run(),
        Command::Info(info) => info.run(),
        Command::Hz(rates) => rates.run(rates::Unit::Messages),
        Command::Bw(rates) => rates.run(rates::Unit::Bytes),
        Command::Top(top) => top.run(),
        Command::Echo(echo) => echo.run(),
        Command::Pub(send) => send.run(),
        Command::Doctor(doctor) => doctor.run(),
        Command::Exec(asked) => return exec(asked),
        Command::Completions { shell } => complete(shell),
    };
    match outcome {
        Ok(()) => 0,
        Err(Failure::Nothing(what)) => {
            eprintln!("byref: {what}");
            NOTHING
        }
        Err(Failure::Byref(problem)) => {
            eprintln!("byref: {problem}");
            FAILED
        }
        // Whoever read the output has had enough.
        Err(Failure::Io(problem)) if problem.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(Failure::Io(problem)) => {
            eprintln!("byref: {problem}");
            FAILED
        }
    }
}

fn complete(shell: Shell) -> Outcome {
    // Written in one piece: the generator panics where its output breaks.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "byref", &mut script);
    Ok(io::Write::write_all(&mut io::stdout(), &script)?)
}
