//! The `byref` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(byref_cli::run(std::env::args_os()))
}
