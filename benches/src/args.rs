//! The command line.
//!
//! For names, defaults, ranges and help. Not for what a subcommand does. Invariant: what
//! [`Cli::parse_checked`] returns is in range, each value by itself and together.

mod device;
mod host;
mod meeting;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::ArgPredicate;
use clap::error::ErrorKind;
use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand, ValueEnum, value_parser};
use thiserror::Error;
use transport_tcp::SameHost;

use crate::model::{Dtype, GeometryOptions, MAX_PAGE_TOKENS, Split};
use crate::raw::args::RawArgs;
use crate::sweep::args::SweepArgs;

pub use self::device::{DeviceArgs, DevicePath, GpuArgs, Memory};
pub use self::host::{HostPort, HostPortError};
pub use self::meeting::{DecodeMeeting, PrefillMeeting, Routing};

/// Moves real-sized KV caches from a prefill process to a decode process, and proves every byte
#[derive(Debug, Parser)]
#[command(name = "kvperf", version, max_term_width = 100, after_help = EXIT_STATUS)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the shell is told.
const EXIT_STATUS: &str = "Exit status: 0 when all went well, 1 when a byte was wrong or a request \
    failed, 2 when nothing could be run: an argument, a file or the other side is not what it should be.";

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a prefill and a decode process on this machine and replay requests between them
    Loopback(LoopbackArgs),
    /// Be the decode side: wait for a prefill side (ten minutes at most), dial it, or find it
    /// through a directory
    Decode(DecodeArgs),
    /// Be the prefill side of a decode side elsewhere, which may take ten minutes to come. Give both
    /// the same model, ranks and workload
    Prefill(PrefillArgs),
    /// Serve the directory of a prefill instance, as SGLang's nodes and this transport's look it up
    Bootstrap(BootstrapArgs),
    /// Show how large the KV cache of a model is; of all shipped models, without --model
    Geometry(GeometryArgs),
    /// List RDMA devices and GPUs, why each can or cannot be used, and which NIC each GPU should use
    Devices,
    /// Check what a GPU copies for the transport, and measure it beside the GPU's plain copies
    Gpu(GpuArgs),
    /// Measure fixed workloads between two processes, to be set beside other transports
    Raw(RawArgs),
    /// Measure how rates change with pages, lanes, rooms and peers, beside what the machine allows,
    /// and write a report
    Sweep(SweepArgs),
    /// A node of `loopback --chaos`, which starts it
    #[command(hide = true)]
    ChaosNode(ChaosNodeArgs),
}

/// Arguments of `loopback`.
#[derive(Args, Clone, Debug)]
pub struct LoopbackArgs {
    /// Instead of a workload: for so many seconds kill, stop and restart two prefill and two decode
    /// nodes, at random by --seed, while small requests go between them, and check that no byte is
    /// wrong, no page lost and no room without an end. Without --stall-seconds, 2
    #[arg(long, value_name = "SECONDS", value_parser = value_parser!(u32).range(1..=86_400),
        conflicts_with_all = NOT_IN_CHAOS)]
    pub chaos: Option<u32>,
    /// Let the two find each other through a directory, which the prefill side serves, instead of
    /// telling one where the other waits
    #[arg(long)]
    pub bootstrap: bool,
    /// The rest.
    #[command(flatten)]
    pub run: RunArgs,
}

/// Options that `--chaos` has its own idea of.
const NOT_IN_CHAOS: [&str; 24] = [
    "bootstrap",
    "model",
    "page_tokens",
    "dtype",
    "prefill_dp",
    "dp_policy",
    "prefill_tp",
    "prefill_pp",
    "prefill_cp",
    "decode_tp",
    "decode_pp",
    "trace",
    "requests",
    "speed",
    "concurrency",
    "pages",
    "chunk_tokens",
    "lanes",
    "rdma_ports",
    "memory",
    "device_path",
    "gpu",
    "key_file",
    "verify",
];

/// Arguments of `chaos-node`.
#[derive(Args, Clone, Debug)]
pub struct ChaosNodeArgs {
    /// Its number among the prefill, or the decode nodes
    #[arg(long)]
    pub index: u8,
    /// Which life of it this is, over all nodes of the run
    #[arg(long)]
    pub life: u32,
    /// A decode node: where it waits
    #[arg(long, required_unless_present = "connect")]
    pub listen: Option<SocketAddr>,
    /// A prefill node: where the decode nodes wait
    #[arg(long, value_delimiter = ',', conflicts_with = "listen")]
    pub connect: Vec<SocketAddr>,
    /// As of the run
    #[arg(long)]
    pub seed: u64,
    /// As of the run
    #[arg(long)]
    pub stall_seconds: u32,
    /// As of the run
    #[arg(long, value_enum)]
    pub fabric: Option<Fabric>,
    /// As of the run
    #[arg(long, value_enum)]
    pub fault: Option<Fault>,
}

/// Arguments of `decode`.
#[derive(Args, Debug)]
pub struct DecodeArgs {
    /// How it meets the prefill side.
    #[command(flatten)]
    pub meeting: DecodeMeeting,
    /// The rest.
    #[command(flatten)]
    pub run: RunArgs,
}

/// Arguments of `prefill`.
#[derive(Args, Debug)]
pub struct PrefillArgs {
    /// How it meets the decode side.
    #[command(flatten)]
    pub meeting: PrefillMeeting,
    /// The rest.
    #[command(flatten)]
    pub run: RunArgs,
}

/// Arguments of `bootstrap`.
#[derive(Args, Debug)]
pub struct BootstrapArgs {
    /// Address to serve at, like `0.0.0.0:8998` or `[::]:8998`
    #[arg(long, value_name = "ADDR")]
    pub listen: SocketAddr,
    /// File whose content, blanks at its ends left out, is a key that all nodes share. Only who
    /// proves it is answered; SGLang's nodes cannot
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
}

/// Arguments of `geometry`.
#[derive(Args, Debug)]
pub struct GeometryArgs {
    /// A shipped model, or the path of a Hugging Face config.json
    #[arg(long, value_name = "NAME|PATH")]
    pub model: Option<String>,
    /// How to lay the cache out.
    #[command(flatten)]
    pub layout: LayoutArgs,
    /// Print JSON instead, one line per model
    #[arg(long)]
    pub json: bool,
}

/// Arguments of everything that moves bytes.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// Whose cache is moved.
    #[command(flatten)]
    pub model: ModelArgs,
    /// How each side splits it.
    #[command(flatten)]
    pub ranks: RankArgs,
    /// Which requests.
    #[command(flatten)]
    pub load: LoadArgs,
    /// How they are moved.
    #[command(flatten)]
    pub transfer: TransferArgs,
    /// What is checked and shown.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Which model.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// A shipped model, or the path of a Hugging Face config.json. To drop state there must be
    /// some, so `--fault drop-state` alone takes a hybrid model
    #[arg(
        long,
        value_name = "NAME|PATH",
        default_value = "llama-3.1-8b",
        default_value_if("fault", "drop-state", "qwen3-next-80b-a3b")
    )]
    pub model: String,
    /// How to lay the cache out.
    #[command(flatten)]
    pub layout: LayoutArgs,
}

/// How a cache is laid out.
#[derive(Args, Clone, Debug)]
pub struct LayoutArgs {
    /// Tokens in a page
    #[arg(long, value_name = "N", default_value_t = 16,
        value_parser = value_parser!(u32).range(1..=i64::from(MAX_PAGE_TOKENS)))]
    pub page_tokens: u32,
    /// Element type of the cache instead of the model's own
    #[arg(long, value_enum, ignore_case = true)]
    pub dtype: Option<Dtype>,
}

/// Over how many ranks each side splits the model. Each rank is a node of its side's process.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Ranks")]
pub struct RankArgs {
    /// Data-parallel groups of the prefill side. Each is a process, with all ranks of the other axes
    #[arg(long, value_name = "N", value_parser = axis())]
    pub prefill_dp: Option<u32>,
    /// Tensor-parallel ranks of the prefill side. Of all its axes: [default: 1, or what the directory
    /// says]
    #[arg(long, value_name = "N", value_parser = axis())]
    pub prefill_tp: Option<u32>,
    /// Pipeline stages of the prefill side
    #[arg(long, value_name = "N", value_parser = axis())]
    pub prefill_pp: Option<u32>,
    /// Context-parallel ranks of the prefill side
    #[arg(long, value_name = "N", value_parser = axis())]
    pub prefill_cp: Option<u32>,
    /// Which data-parallel group gets a request. The prefill side decides, a decode side that asks
    /// the directory is told
    #[arg(long, value_enum, default_value_t = Routing::Follow)]
    pub dp_policy: Routing,
    /// Tensor-parallel ranks of the decode side
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = axis())]
    pub decode_tp: u32,
    /// Pipeline stages of the decode side
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = axis())]
    pub decode_pp: u32,
}

/// Ranks on one axis.
fn axis() -> clap::builder::RangedI64ValueParser<u32> {
    value_parser!(u32).range(1..=64)
}

/// Most ranks of a side: each is a thread of this machine.
const MOST_RANKS: u32 = 64;

impl RankArgs {
    /// How the prefill side splits the model.
    pub const fn prefill(&self) -> Split {
        const fn or_one(told: Option<u32>) -> u32 {
            match told {
                Some(ranks) => ranks,
                None => 1,
            }
        }
        let (dp, tp) = (or_one(self.prefill_dp), or_one(self.prefill_tp));
        Split { dp, tp, pp: or_one(self.prefill_pp), cp: or_one(self.prefill_cp) }
    }

    /// How the decode side does.
    pub const fn decode(&self) -> Split {
        Split { tp: self.decode_tp, pp: self.decode_pp, ..Split::WHOLE }
    }
}

/// Which requests, how many and how fast.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Workload")]
pub struct LoadArgs {
    /// Trace to replay: a line of JSON for each request, like {"timestamp": 0, "input_length": 700,
    /// "output_length": 20, "hash_ids": [7, 8]}, with an id for each 512 tokens begun, equal for equal
    /// beginnings [default: a small built-in mix]
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Replay only so many requests [default: the whole trace; 24 of the built-in mix]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=1_000_000))]
    pub requests: Option<u32>,
    /// Replay at so many times real time [default: as fast as the decode side admits]
    #[arg(long, value_name = "TIMES", value_parser = speed)]
    pub speed: Option<f64>,
    /// Requests in flight at most
    #[arg(long, value_name = "N", default_value_t = 4,
        value_parser = value_parser!(u32).range(1..=256))]
    pub concurrency: u32,
    /// Pages in the decode side's pool [default: what the longest request needs, or 2.5 GB]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=1 << 30))]
    pub pages: Option<u32>,
    /// Seed of the built-in mix and of the order in which pages are scattered
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
}

/// How requests are moved.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Transfer")]
pub struct TransferArgs {
    /// Tokens of one chunk of a chunked prefill; a multiple of --page-tokens
    #[arg(long, value_name = "N", default_value_t = 2048,
        value_parser = value_parser!(u32).range(1..=1 << 20))]
    pub chunk_tokens: u32,
    /// What moves the bytes. Both sides must choose the same [default: shared memory within a host,
    /// TCP between hosts]
    #[arg(long, value_enum)]
    pub fabric: Option<Fabric>,
    /// Where the pages lie.
    #[command(flatten)]
    pub device: DeviceArgs,
    /// RDMA ports to use, like `mlx5_0:1,mlx5_1` [default: all that can be used]
    #[arg(long, value_name = "PORT", value_delimiter = ',')]
    pub rdma_ports: Vec<String>,
    /// TCP connections for data to a peer [default: one within a host, four between hosts]
    #[arg(long, value_name = "N",
        value_parser = value_parser!(u16).range(1..=i64::from(transport_tcp::MAX_LANES)))]
    pub lanes: Option<u16>,
    /// Fail a request after so many seconds without progress
    #[arg(long, value_name = "N", default_value_t = 30, default_value_if("chaos", ArgPredicate::IsPresent, "2"),
        value_parser = value_parser!(u32).range(1..=3600))]
    pub stall_seconds: u32,
    /// File whose content, blanks at its ends left out, is a key that both sides share: each proves
    /// it before anything else [default: none, and whoever reaches the port can take part]
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Break something on the way, to see it found
    #[arg(long, value_enum)]
    pub fault: Option<Fault>,
}

impl TransferArgs {
    /// How long a request may make no progress.
    pub fn stall(&self) -> Duration {
        Duration::from_secs(self.stall_seconds.into())
    }
}

/// What is checked and how results are shown.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// Check every byte. The decode side does, where they arrive
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set)]
    pub verify: bool,
    /// Print the results as one line of JSON, last on stdout
    #[arg(long)]
    pub json: bool,
    /// Set by `loopback` for the processes it starts: they report to it, line by line
    #[arg(long, hide = true)]
    pub child: bool,
}

/// What moves the bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Fabric {
    /// RDMA if there is any here, else shared memory within a host and TCP between hosts; says which
    Auto,
    /// TCP, also within a host
    Tcp,
    /// Shared memory; fails when the two sides cannot share it
    Local,
    /// RDMA
    Verbs,
}

impl Fabric {
    /// What it is called on the command line.
    pub fn name(self) -> String {
        let value = self.to_possible_value().expect("no fabric is left out");
        value.get_name().to_owned()
    }

    /// What becomes of TCP within a host.
    pub const fn same_host(choice: Option<Self>) -> SameHost {
        match choice {
            Some(Self::Tcp) => SameHost::Never,
            Some(Self::Local) => SameHost::Require,
            Some(Self::Auto | Self::Verbs) | None => SameHost::Upgrade,
        }
    }
}

/// What is broken on purpose, once.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Fault {
    /// Flip one byte of one page in flight
    FlipByte,
    /// Never deliver an aux record
    DropAux,
    /// Never deliver a state component
    DropState,
    /// Never deliver a chunk
    DropChunk,
    /// Give the first request to another data-parallel group than its room says
    Misroute,
    /// With --chaos: write to a page that is granted to nobody
    LateWrite,
    /// With --chaos: forget a page that came back
    LosePage,
    /// With --chaos: forget a request
    EndlessRoom,
}

impl Cli {
    /// Parses the process's arguments. On a bad one, or for `--help`, prints and exits.
    pub fn parse_checked() -> Self {
        Self::from_checked(std::env::args_os()).unwrap_or_else(|error| error.exit())
    }

    /// Parses `arguments`, the first of which is the command's own name.
    ///
    /// # Errors
    ///
    /// What is wrong, for printing by [`clap::Error::exit`]; also `--help` and `--version`.
    pub fn from_checked<I, T>(arguments: I) -> Result<Self, clap::Error>
    where
        I: IntoIterator<Item = T>,
        T: Into<std::ffi::OsString> + Clone,
    {
        let cli = Self::try_parse_from(arguments)?;
        match cli.command.check() {
            Err(problem) => Err(Self::command().error(ErrorKind::ValueValidation, problem)),
            Ok(()) => Ok(cli),
        }
    }
}

impl Command {
    /// The arguments that everything which moves bytes has.
    pub fn run_args(&self) -> Option<&RunArgs> {
        match self {
            Self::Loopback(loopback) => Some(&loopback.run),
            Self::Decode(decode) => Some(&decode.run),
            Self::Prefill(prefill) => Some(&prefill.run),
            Self::Bootstrap(_)
            | Self::ChaosNode(_)
            | Self::Devices
            | Self::Geometry(_)
            | Self::Gpu(_)
            | Self::Raw(_)
            | Self::Sweep(_) => None,
        }
    }
}

impl Command {
    fn check(&self) -> Result<(), CombinationError> {
        self.run_args().map_or(Ok(()), RunArgs::check)?;
        match self {
            Self::Loopback(LoopbackArgs { bootstrap, run, .. }) => run.check_groups(*bootstrap)?,
            Self::Prefill(prefill) => prefill.meeting.check(&prefill.run)?,
            _ => {}
        }
        let transfer = self.run_args().map(|run| &run.transfer);
        let (fault, fabric) = (transfer.and_then(|t| t.fault), transfer.and_then(|t| t.fabric));
        let chaos = matches!(self, Self::Loopback(LoopbackArgs { chaos: Some(_), .. }));
        match (fault, fabric) {
            (Some(fault), _) if fault.needs_chaos() && !chaos => {
                Err(CombinationError::NeedsChaos { fault })
            }
            (Some(fault), _) if self.is_by_itself() && !fault.is_at(self) => {
                Err(CombinationError::OtherSide { fault })
            }
            (_, Some(Fabric::Verbs | Fabric::Auto)) if chaos => Err(CombinationError::ChaosFabric),
            _ => Ok(()),
        }
    }

    /// Whether it is one side that a person started, and not `loopback`, which hands both the same
    /// options.
    fn is_by_itself(&self) -> bool {
        let side = matches!(self, Self::Decode(_) | Self::Prefill(_));
        side && self.run_args().is_some_and(|run| !run.output.child)
    }
}

impl Fault {
    /// What it is called on the command line.
    pub fn name(self) -> String {
        let value = self.to_possible_value().expect("no fault is left out");
        value.get_name().to_owned()
    }

    /// Whether that side is where it is injected.
    const fn is_at(self, side: &Command) -> bool {
        let misroutes = matches!(self, Self::Misroute);
        matches!(side, Command::Prefill(_)) == misroutes
    }

    /// Whether it is one of an engine, and not of the fabric.
    pub const fn needs_chaos(self) -> bool {
        matches!(self, Self::LateWrite | Self::LosePage | Self::EndlessRoom)
    }
}

impl RunArgs {
    /// How long the other side may take to come.
    pub fn patience(&self) -> Duration {
        self.transfer.stall().max(Duration::from_secs(600))
    }

    /// What no single value shows.
    fn check(&self) -> Result<(), CombinationError> {
        let chunk_tokens = self.transfer.chunk_tokens;
        let page_tokens = self.model.layout.page_tokens;
        if !chunk_tokens.is_multiple_of(page_tokens) {
            return Err(CombinationError::ChunkTokens { chunk_tokens, page_tokens });
        }
        for (side, split) in [("prefill", self.ranks.prefill()), ("decode", self.ranks.decode())] {
            let ranks = split.ranks();
            if ranks > MOST_RANKS {
                return Err(CombinationError::Ranks { side, ranks });
            }
        }
        Ok(())
    }
}

impl From<&LayoutArgs> for GeometryOptions {
    fn from(layout: &LayoutArgs) -> Self {
        Self { page_tokens: layout.page_tokens, dtype: layout.dtype }
    }
}

/// Values that do not go together.
#[derive(Clone, Copy, Debug, Error)]
enum CombinationError {
    #[error(
        "--chunk-tokens {chunk_tokens} is not a multiple of --page-tokens {page_tokens}: a chunk is whole pages"
    )]
    ChunkTokens { chunk_tokens: u32, page_tokens: u32 },
    #[error("--advertise is missing: {listen} is no address that a decode side could dial")]
    Advertise { listen: SocketAddr },
    #[error(
        "--fault misroute needs --bootstrap, several groups (--prefill-dp) and --dp-policy follow: \
         else there is nothing to contradict, or nobody to say so"
    )]
    Misroute,
    #[error("--dp-policy directory needs a directory: --bootstrap, or prefill --bootstrap-listen")]
    NoDirectory,
    #[error("--dp-rank {rank}, but --prefill-dp {groups}: groups are counted from 0")]
    NoSuchGroup { rank: u32, groups: u32 },
    #[error("--fault {} is found with --chaos only", fault.name())]
    NeedsChaos { fault: Fault },
    #[error("--fault {} is the other side's: give it there, or to loopback", fault.name())]
    OtherSide { fault: Fault },
    #[error("--chaos goes over --fabric tcp or local")]
    ChaosFabric,
    #[error("the {side} side has {ranks} ranks, but at most {MOST_RANKS} are supported")]
    Ranks { side: &'static str, ranks: u32 },
}

fn speed(text: &str) -> Result<f64, String> {
    let times = text.parse::<f64>().map_err(|error| error.to_string())?;
    // A NaN is in no range.
    let sensible = (1e-3..=1e6).contains(&times);
    sensible.then_some(times).ok_or_else(|| format!("{times} is not within 0.001..=1000000"))
}
