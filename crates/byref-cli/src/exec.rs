//! `byref exec`: the command line of it. What it does is Python's, and lies in the Python package (`byref.integrations`).

use clap::Args;
use std::ffi::OsString;

/// Run a program, and all Python processes that it starts, with messages of other libraries carried by byref.
///
/// Without --zmq, --ezmsg or --dora: for all of these libraries that are installed.
#[derive(Args)]
#[command(override_usage = "byref exec [--zmq] [--ezmsg] [--dora] [--quiet] -- python app.py ...")]
pub struct Exec {
    /// Sockets of pyzmq: PYZMQ_BACKEND=byref.zmq
    #[arg(long)]
    pub zmq: bool,
    /// Publishers and subscribers of ezmsg: byref.integrations.ezmsg.install()
    #[arg(long)]
    pub ezmsg: bool,
    /// Nodes of dora: import byref.integrations.dora as dora
    #[arg(long)]
    pub dora: bool,
    /// Do not say on the standard error what was put in place
    #[arg(long)]
    pub quiet: bool,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true)]
    pub program: Vec<OsString>,
}

impl Exec {
    /// The adapters that were named.
    pub fn adapters(&self) -> Vec<&'static str> {
        [(self.zmq, "zmq"), (self.ezmsg, "ezmsg"), (self.dora, "dora")]
            .into_iter()
            .filter_map(|(named, name)| named.then_some(name))
            .collect()
    }
}

/// What the command says that was built without Python.
pub fn without_python() -> u8 {
    eprintln!(
        "byref: exec puts adapters into Python programs, and needs the Python package: install it (pip install byref), then run \
         `python -m byref exec ...`"
    );
    crate::FAILED
}
