//! The options of `kvperf raw`.

use std::fmt;
use std::time::Duration;

use clap::{Args, ValueEnum, value_parser};
use transport_tcp::SameHost;

use crate::args::Fabric;

/// Arguments of `raw`.
#[derive(Args, Clone, Debug)]
pub struct RawArgs {
    /// What to move. Several are measured one after the other
    #[arg(long, value_enum, value_delimiter = ',', overrides_with = "workload", num_args = 1..,
        default_values_t = Name::ALL)]
    pub workload: Vec<Name>,
    /// How to move it
    #[arg(long, value_enum, default_value_t = FabricName::Auto)]
    pub fabric: FabricName,
    /// RDMA ports to use, like `mlx5_0:1,mlx5_1` [default: all that can be used]
    #[arg(long, value_name = "PORT", value_delimiter = ',')]
    pub rdma_ports: Vec<String>,
    /// Whose memory the sender's pages are
    #[arg(long, value_enum, default_value_t = Memory::Own)]
    pub memory: Memory,
    /// Requests to measure [default: as many as the comparison's other programs, 4 to 1000]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(3..=1_000_000))]
    pub iters: Option<u32>,
    /// TCP connections for data [default: one within a host]
    #[arg(long, value_name = "N",
        value_parser = value_parser!(u16).range(1..=i64::from(transport_tcp::MAX_LANES)))]
    pub lanes: Option<u16>,
    /// How long to poll for what comes next before sleeping, in microseconds
    #[arg(long, value_name = "US", default_value_t = 100,
        value_parser = value_parser!(u32).range(0..=1_000_000))]
    pub spin_us: u32,
    /// Set for the process that receives, which this one starts
    #[arg(long, hide = true)]
    pub child: bool,
}

impl RawArgs {
    /// How long to poll before sleeping.
    pub fn spin(&self) -> Duration {
        Duration::from_micros(self.spin_us.into())
    }
}

/// The workloads. See [`super::work`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Name {
    /// 1024 scattered pages of 64 KiB
    #[value(alias = "W1")]
    Pages,
    /// 4096 scattered pages of 4 KiB
    #[value(alias = "W2")]
    SmallPages,
    /// One page of 4 KiB, there and back
    #[value(alias = "W3")]
    Latency,
    /// 61 layers of 32 pages of 16 KiB in 8 chunks, then an aux record
    #[value(alias = "W4")]
    Layerwise,
    /// 256 MiB in one piece
    #[value(alias = "W5")]
    Big,
}

impl Name {
    /// All of them, in the order of their short names.
    pub const ALL: [Self; 5] =
        [Self::Pages, Self::SmallPages, Self::Latency, Self::Layerwise, Self::Big];

    /// The name in tables: `W1` to `W5`.
    pub const fn short(self) -> &'static str {
        match self {
            Self::Pages => "W1",
            Self::SmallPages => "W2",
            Self::Latency => "W3",
            Self::Layerwise => "W4",
            Self::Big => "W5",
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short())
    }
}

/// How bytes are moved.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum FabricName {
    /// Over shared memory; fails when the two processes cannot share it
    Local,
    /// As `local` where that is possible, else as `tcp`
    Auto,
    /// Over TCP, also within a host
    Tcp,
    /// Over RDMA
    Verbs,
}

impl FabricName {
    /// The name in tables.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Auto => "ours-auto",
            Self::Local => "ours-local",
            Self::Tcp => "ours-tcp",
            Self::Verbs => "ours-verbs",
        }
    }

    /// Whether another process reads what is sent, and must be shown it.
    pub const fn shows(self) -> bool {
        matches!(self, Self::Auto | Self::Local)
    }
}

impl From<FabricName> for Fabric {
    fn from(name: FabricName) -> Self {
        match name {
            FabricName::Verbs => Self::Verbs,
            FabricName::Auto | FabricName::Local | FabricName::Tcp => Self::Tcp,
        }
    }
}

impl From<FabricName> for SameHost {
    fn from(name: FabricName) -> Self {
        match name {
            FabricName::Auto => Self::Upgrade,
            FabricName::Local => Self::Require,
            FabricName::Tcp | FabricName::Verbs => Self::Never,
        }
    }
}

/// Whose memory pages are sent from.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Memory {
    /// The transport's: a file in memory that other processes can be shown
    Own,
    /// The engine's: what any allocator gives
    Foreign,
}
