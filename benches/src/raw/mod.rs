//! `kvperf raw`: fixed workloads between two processes, for setting beside other transports.
//!
//! The layer is the fabric: real endpoints, each with a link and a path to the other. That is where
//! what it is compared with stands, too: registered memory, scattered writes, a notification. Rooms
//! add a conversation before the first byte which those leave to their callers, outside the clock.
//! Nothing else is left out: every write is checked against a grant in force and the request's gate
//! counts it; a request begins when the sender starts to build its writes and is over when the
//! receiver's gate says so; the sender reuses its pages when the target has acknowledged; and what
//! has landed, and that nothing else was touched, is verified after the first request and the last.
//!
//! * [`args`]: the options.
//! * [`work`]: what the workloads are.
//! * `bare`: the limits, without a transport.
//! * `pool`: a side's memory, and what must be in it.
//! * `side`: one endpoint, driven by its process's only thread.
//! * `measure`: the requests, and the clock.
//! * `report`: the line of JSON.
//!
//! Not for what whole rooms cost (the criterion bench `rooms`), and not for model-shaped traffic
//! ([`crate::run`]).

pub mod args;
mod bare;
mod measure;
mod pool;
pub mod report;
mod side;
pub mod work;

use std::env;
use std::io::{self, BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitCode, Stdio};

use thiserror::Error;
use transport_core::fabric::{FabricError, PathError, WriteError};
use transport_core::memory::TableError;

use args::{FabricName, RawArgs};
use measure::Measured;
use report::Line;
use work::Workload;

use crate::endpoint::NoEndpoint;

/// Why a measurement could not be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RawError {
    /// Memory, socket, process or pipe trouble.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// There is no RDMA here, or none in this program.
    #[error("RDMA: {0}")]
    NoRdma(String),
    /// The endpoint did not serve a call.
    #[error("fabric: {0}")]
    Fabric(#[from] FabricError),
    /// The pool cannot be laid out.
    #[error("tables: {0}")]
    Table(#[from] TableError),
    /// A write was not taken.
    #[error("a write was not taken: {0}")]
    Post(String),
    /// A write did not land.
    #[error("a write failed: {0}")]
    Write(#[from] WriteError),
    /// Path or link to the other process ended.
    #[error("the other process is gone: {0}")]
    Gone(PathError),
    /// The other process said what this version does not know.
    #[error("the other process is of another version")]
    Version,
}

impl From<NoEndpoint> for RawError {
    fn from(why: NoEndpoint) -> Self {
        match why {
            NoEndpoint::Port(source) => Self::io("opening the port")(source),
            NoEndpoint::NoRdma(why) => Self::NoRdma(why),
        }
    }
}

impl RawError {
    fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

/// Measures each workload between this process, which sends, and a child, which receives. The exit
/// status is 1 when a byte was wrong.
pub fn run(args: &RawArgs) -> Result<ExitCode, RawError> {
    if args.child {
        return receive(args).map(|()| ExitCode::SUCCESS);
    }
    let mut good = true;
    for work in works(args) {
        let line = send(&work, args)?;
        good &= line.verified;
        let text = serde_json::to_string(&line).expect("numbers and strings");
        writeln!(io::stdout(), "{text}").map_err(RawError::io("standard output"))?;
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What to measure, one after the other.
fn works(args: &RawArgs) -> Vec<Workload> {
    match args.pages {
        Some(pages) => vec![Workload::pages_of(pages)],
        None => args.workload.iter().copied().map(Workload::of).collect(),
    }
}

fn send(work: &Workload, args: &RawArgs) -> Result<Line, RawError> {
    if args.fabric == FabricName::Memcpy {
        let (sent, received) = bare::copier(work, args)?;
        return Ok(Line::new(args, work, &sent, &received));
    }
    let mut receiver = Receiver::spawn(work.name)?;
    let address = receiver.address()?;
    let (sent, received) = match args.fabric {
        FabricName::BareTcp => bare::sender(work, args, address)?,
        _ => measure::sender(work, args, address)?,
    };
    Ok(Line::new(args, work, &sent, &received))
}

/// The child's part: says where it waits, and receives one workload.
fn receive(args: &RawArgs) -> Result<(), RawError> {
    let works = works(args);
    let work = works.first().expect("at least one, says clap");
    let tell = |address: SocketAddr| {
        println!("{address}");
        io::stdout().flush().map_err(RawError::io("standard output"))
    };
    match args.fabric {
        FabricName::BareTcp => bare::receiver(work, args, tell),
        _ => measure::receiver(work, args, tell),
    }
}

/// The receiving process; killed when dropped.
struct Receiver(Child);

impl Receiver {
    fn spawn(name: args::Name) -> Result<Self, RawError> {
        let this = env::current_exe().map_err(RawError::io("finding this program"))?;
        // The child takes the very options of this process. The workload that is given last wins.
        let mut command = Command::new(this);
        command.args(env::args_os().skip(1)).args(["--child", "--workload", name.short()]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        child.map(Self).map_err(RawError::io("starting a process"))
    }

    fn address(&mut self) -> Result<SocketAddr, RawError> {
        let out = self.0.stdout.take().expect("its output is a pipe");
        let mut line = String::new();
        let read = BufReader::new(out).read_line(&mut line);
        read.map_err(RawError::io("the child's output"))?;
        let parsed = line.trim().parse();
        parsed.map_err(|_| RawError::Gone(PathError::ClosedByPeer))
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
