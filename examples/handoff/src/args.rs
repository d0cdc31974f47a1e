//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use transport_core::decorate;
use transport_core::wire::Role;
use transport_tcp::{SameHost, TcpConfig};

use crate::embed::Settings;
use crate::engine::Size;

/// Computes prompts in one process and writes the answers in another; the same text as one process does both.
#[derive(Debug, Parser)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) what: What,
}

#[derive(Debug, Subcommand)]
pub(crate) enum What {
    /// Start the others, compare what they say, and measure.
    Run(RunArgs),
    /// Both in one process: the reference.
    Single(SizeArgs),
    /// Compute prompts.
    Prefill(SideArgs),
    /// Write answers.
    Decode(SideArgs),
}

#[derive(Args, Clone, Debug)]
pub(crate) struct RunArgs {
    /// The language model's file, of GGUF format. None: the hybrid model alone.
    #[arg(long)]
    pub(crate) gguf: Option<PathBuf>,
    /// Most prompts; the last of all is the one of more than 2,000 tokens.
    #[arg(long, default_value_t = usize::MAX, hide_default_value = true)]
    pub(crate) prompts: usize,
    /// Most tokens of an answer.
    #[arg(long, default_value_t = 32)]
    pub(crate) tokens: usize,
    /// Compare answers only: nothing is aborted, killed or crowded.
    #[arg(long)]
    pub(crate) brief: bool,
    /// What goes wrong on the way, once.
    #[arg(long)]
    pub(crate) fault: Option<Fault>,
    /// What the bytes cross.
    #[arg(long, value_enum, default_value_t = Path::Auto)]
    pub(crate) path: Path,
    /// Where to draw the timeline.
    #[arg(long)]
    pub(crate) svg: Option<PathBuf>,
}

/// How large a process is.
#[derive(Args, Clone, Debug)]
pub(crate) struct SizeArgs {
    #[arg(long)]
    gguf: Option<PathBuf>,
    /// Pages of the cache.
    #[arg(long, default_value_t = 320)]
    pages: u32,
    /// Requests at a time.
    #[arg(long, default_value_t = 8)]
    rooms: u32,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct SideArgs {
    #[command(flatten)]
    size: SizeArgs,
    /// The other side; without it this one waits at a free port, which it says.
    #[arg(long)]
    connect: Option<SocketAddr>,
    #[arg(long, value_enum, default_value_t = Path::Auto)]
    path: Path,
    #[arg(long)]
    fault: Option<Fault>,
    /// How long nothing may move before a room fails.
    #[arg(long, default_value_t = 30.0)]
    stall_seconds: f64,
    /// Pages that are kept for what is generated, for each room.
    #[arg(long, default_value_t = 4)]
    reserve: u32,
}

/// What the bytes cross, between processes of one machine.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Path {
    /// Shared memory, which the transport finds by itself.
    Auto,
    /// TCP, as between machines.
    Tcp,
}

/// Faults in what arrives.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Fault {
    /// A chunk's pages are never reported.
    Withhold,
    /// A byte of a page is another.
    Corrupt,
    /// A component of the recurrent state is never reported.
    WithholdState,
}

impl SizeArgs {
    pub(crate) fn size(&self) -> Size {
        Size { gguf: self.gguf.clone(), pages: self.pages, slots: self.rooms }
    }
}

impl SideArgs {
    pub(crate) fn size(&self) -> Size {
        self.size.size()
    }

    /// Pages that rooms may take: all but those that answers will.
    pub(crate) fn for_rooms(&self) -> u32 {
        self.size.pages.saturating_sub(self.size.rooms.saturating_mul(self.reserve))
    }

    pub(crate) fn fault(&self) -> Option<decorate::Fault> {
        self.fault.map(|fault| match fault {
            Fault::Withhold => decorate::Fault::DropChunk,
            Fault::Corrupt => decorate::Fault::FlipByte,
            Fault::WithholdState => decorate::Fault::DropState,
        })
    }

    pub(crate) fn settings(&self, role: Role) -> Settings {
        let same_host = match self.path {
            Path::Auto => SameHost::Upgrade,
            Path::Tcp => SameHost::Never,
        };
        let listen = self.connect.is_none().then(|| ([127, 0, 0, 1], 0).into());
        Settings {
            role,
            tcp: TcpConfig { listen, same_host, ..TcpConfig::default() },
            dial: self.connect,
            stall: Duration::from_secs_f64(self.stall_seconds.max(0.001)),
            capacity: None,
        }
    }
}
