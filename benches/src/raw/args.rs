//! The options of `kvperf raw`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum, value_parser};
use thiserror::Error;
use transport_tcp::SameHost;

/// Arguments of `raw`.
#[derive(Args, Clone, Debug)]
pub struct RawArgs {
    /// What to move. Several are measured one after the other
    #[arg(long, value_enum, value_delimiter = ',', overrides_with = "workload", num_args = 1..,
        default_values_t = Name::ALL)]
    pub workload: Vec<Name>,
    /// Instead of what --workload says: so many scattered pages of so many bytes in one request, like
    /// 1024x64KiB
    #[arg(long, value_name = "COUNTxBYTES")]
    pub pages: Option<Pages>,
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

/// Pages of a request, and how large they are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Pages {
    /// How many.
    pub count: u32,
    /// Bytes of each.
    pub bytes: u64,
}

/// Most bytes of the pages of a request: each side has a pool of twice as many.
const MOST_BYTES: u64 = 1 << 32;

/// `--pages` is not a number of pages and a size.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum PagesError {
    /// It looks different.
    #[error("like 1024x64KiB: a number of pages, and bytes, KiB or MiB of each")]
    Form,
    /// Nothing at all, not whole words, or more than fits.
    #[error("1 page or more, of a multiple of 8 bytes each, 4 GiB together at most")]
    Range,
}

impl FromStr for Pages {
    type Err = PagesError;

    fn from_str(text: &str) -> Result<Self, PagesError> {
        let (count, size) = text.split_once('x').ok_or(PagesError::Form)?;
        let units = [("MiB", 1 << 20), ("KiB", 1 << 10), ("", 1)];
        let sized =
            units.into_iter().find_map(|(unit, bytes)| Some((size.strip_suffix(unit)?, bytes)));
        let (size, unit) = sized.ok_or(PagesError::Form)?;
        let count = count.parse().map_err(|_| PagesError::Form)?;
        let bytes = size.parse::<u64>().map_err(|_| PagesError::Form)?;
        let bytes = bytes.checked_mul(unit).ok_or(PagesError::Range)?;
        let whole = bytes.checked_mul(u64::from(count)).ok_or(PagesError::Range)?;
        let fits = bytes % 8 == 0 && (1..=MOST_BYTES).contains(&whole);
        fits.then_some(Self { count, bytes }).ok_or(PagesError::Range)
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
    /// No transport: bare sockets between the two processes, `writev` from the pages and `readv` into
    /// them. A limit to set others beside
    BareTcp,
    /// No transport: one process copies the pages to their places. A limit to set others beside
    Memcpy,
}

impl FabricName {
    /// The name in tables.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Auto => "ours-auto",
            Self::Local => "ours-local",
            Self::Tcp => "ours-tcp",
            Self::Verbs => "ours-verbs",
            Self::BareTcp => "bare-tcp",
            Self::Memcpy => "memcpy",
        }
    }

    /// What a TCP endpoint does within a host.
    pub const fn same_host(self) -> SameHost {
        match self {
            Self::Auto => SameHost::Upgrade,
            Self::Local => SameHost::Require,
            _ => SameHost::Never,
        }
    }

    /// Whether another process reads what is sent, and must be shown it.
    pub const fn shows(self) -> bool {
        matches!(self, Self::Auto | Self::Local)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_a_number_and_a_size() {
        let of = |text: &str| text.parse::<Pages>();
        assert_eq!(of("1024x64KiB"), Ok(Pages { count: 1024, bytes: 64 << 10 }));
        assert_eq!(of("1x4096"), Ok(Pages { count: 1, bytes: 4096 }));
        assert_eq!(of("2x2MiB"), Ok(Pages { count: 2, bytes: 2 << 20 }));
        assert_eq!(of("4096"), Err(PagesError::Form));
        assert_eq!(of("1x4GB"), Err(PagesError::Form));
        for wrong in ["0x4096", "1x0", "1x12", "4097x1MiB", "1x18446744073709551615MiB"] {
            assert_eq!(of(wrong), Err(PagesError::Range), "{wrong}");
        }
    }
}
