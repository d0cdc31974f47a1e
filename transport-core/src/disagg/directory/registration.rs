//! What a rank says of itself and of its instance, and whether two ranks say the same.

use alloc::string::String;
use core::fmt;
use core::time::Duration;

use super::{Conflict, Field, Invalid, Problem, Value};

/// A rank's place in its instance. Each number counts from 0.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Rank {
    /// Data parallel.
    pub dp: u32,
    /// Context parallel.
    pub cp: u32,
    /// Tensor parallel.
    pub tp: u32,
    /// Pipeline stage.
    pub pp: u32,
}

impl fmt::Display for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dp {} cp {} tp {} pp {}", self.dp, self.cp, self.tp, self.pp)
    }
}

/// How many ranks an instance has along each axis; their product in all.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Shape {
    /// Data parallel.
    pub dp: u32,
    /// Context parallel.
    pub cp: u32,
    /// Tensor parallel.
    pub tp: u32,
    /// Pipeline stages.
    pub pp: u32,
}

impl Shape {
    /// Ranks in all.
    pub fn ranks(&self) -> u64 {
        let all = [self.cp, self.tp, self.pp].into_iter().map(u64::from);
        all.fold(self.dp.into(), u64::saturating_mul)
    }

    /// Whether `rank` is within.
    pub fn check(&self, rank: Rank) -> Result<(), Invalid> {
        let below = |field: Field, value: u32, size: u32| {
            let most = u64::from(size.checked_sub(1).ok_or(field.invalid(Problem::Zero))?);
            at_most(field, value.into(), most)
        };
        below(Field::DpRank, rank.dp, self.dp)?;
        below(Field::CpRank, rank.cp, self.cp)?;
        below(Field::TpRank, rank.tp, self.tp)?;
        below(Field::PpRank, rank.pp, self.pp)
    }
}

/// Where a rank listens.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Endpoint {
    /// An address or a name, as the rank gave it.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// What all ranks of an instance say of it, with one voice.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Prefill {
    /// Its ranks.
    pub shape: Shape,
    /// Tokens in a page.
    pub page_tokens: u32,
    /// Element type of the cache, in the engine's words. `None`: not said.
    pub kv_dtype: Option<String>,
    /// Layout of the cache, in the engine's words. `None`: not said.
    pub kv_layout: Option<String>,
    /// Requests go to data-parallel rank `room % dp` (R4).
    pub follow_room: bool,
    /// Context-parallel ranks hold different layers of the sparse-attention cache.
    pub layer_split: bool,
    /// Ranks hold different pages of the cache.
    pub kv_sharding: bool,
    /// When the decode side allocates, in the engine's words; `early` unless it says otherwise.
    pub allocation: String,
    /// Layout of a speculative decoder, as JSON: opaque, must be equal.
    pub spec_layout: Option<String>,
    /// Port of the engine's own API. Ranks may differ; the first word counts.
    pub http_port: Option<u16>,
}

impl Prefill {
    /// An instance of this shape that has nothing special.
    pub fn new(shape: Shape, page_tokens: u32) -> Self {
        Self {
            shape,
            page_tokens,
            kv_dtype: None,
            kv_layout: None,
            follow_room: true,
            layer_split: false,
            kv_sharding: false,
            allocation: "early".into(),
            spec_layout: None,
            http_port: None,
        }
    }

    /// Whether `offered` says the same as `self`, which is registered: the first difference, if
    /// not.
    pub fn check(&self, offered: &Self) -> Result<(), Conflict> {
        same(Field::DpSize, self.shape.dp, offered.shape.dp)?;
        same(Field::CpSize, self.shape.cp, offered.shape.cp)?;
        same(Field::TpSize, self.shape.tp, offered.shape.tp)?;
        same(Field::PpSize, self.shape.pp, offered.shape.pp)?;
        same(Field::PageSize, self.page_tokens, offered.page_tokens)?;
        same_if_said(Field::KvDtype, &self.kv_dtype, &offered.kv_dtype)?;
        same_if_said(Field::KvLayout, &self.kv_layout, &offered.kv_layout)?;
        same(Field::LoadBalance, self.policy(), offered.policy())?;
        same(Field::LayerSplit, self.layer_split, offered.layer_split)?;
        same(Field::KvSharding, self.kv_sharding, offered.kv_sharding)?;
        same(Field::Allocation, &*self.allocation, &*offered.allocation)?;
        same(Field::SpecLayout, self.spec_layout.as_deref(), offered.spec_layout.as_deref())
    }

    /// The name of what chooses a request's data-parallel rank.
    pub fn policy(&self) -> &'static str {
        if self.follow_room { "follow_bootstrap_room" } else { "round_robin" }
    }

    /// Learns what was not said so far.
    pub(super) fn complete_from(&mut self, offered: &Self) {
        fill(&mut self.kv_dtype, &offered.kv_dtype);
        fill(&mut self.kv_layout, &offered.kv_layout);
        fill(&mut self.http_port, &offered.http_port);
    }
}

fn same<T: Into<Value> + PartialEq>(
    field: Field,
    registered: T,
    offered: T,
) -> Result<(), Conflict> {
    if registered == offered {
        return Ok(());
    }
    Err(Conflict { field, registered: registered.into(), offered: offered.into() })
}

fn same_if_said(
    field: Field,
    registered: &Option<String>,
    offered: &Option<String>,
) -> Result<(), Conflict> {
    match (registered, offered) {
        (Some(registered), Some(offered)) => same(field, &**registered, &**offered),
        _ => Ok(()),
    }
}

fn fill<T: Clone>(known: &mut Option<T>, offered: &Option<T>) {
    if known.is_none() {
        known.clone_from(offered);
    }
}

/// A rank says: I am here.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Registration {
    /// Its place.
    pub rank: Rank,
    /// Where it listens.
    pub endpoint: Endpoint,
    /// A number that no earlier life of this rank had (R6). `None` from nodes that have none: those
    /// begin a new life when they listen elsewhere.
    pub incarnation: Option<u64>,
    /// It registers again within this time, or is gone. `None`: it stays until it is replaced.
    pub lease: Option<Duration>,
    /// What it says of its instance.
    pub prefill: Prefill,
}

impl Registration {
    /// Whether it is within the limits and the rank within the shape.
    pub fn check(&self, limits: &Limits) -> Result<(), Invalid> {
        let (shape, prefill) = (&self.prefill.shape, &self.prefill);
        let sizes = [
            (Field::DpSize, shape.dp),
            (Field::CpSize, shape.cp),
            (Field::TpSize, shape.tp),
            (Field::PpSize, shape.pp),
            (Field::PageSize, prefill.page_tokens),
        ];
        sizes.into_iter().try_for_each(|(field, size)| at_least_one(field, size))?;
        at_most(Field::TpSize, shape.ranks(), limits.ranks)?;
        shape.check(self.rank)?;
        let text = |field, text: Option<&str>| not_longer(field, text, limits.text);
        text(Field::RankIp, Some(&self.endpoint.host))?;
        text(Field::KvDtype, prefill.kv_dtype.as_deref())?;
        text(Field::KvLayout, prefill.kv_layout.as_deref())?;
        text(Field::Allocation, Some(&prefill.allocation))?;
        not_longer(Field::SpecLayout, prefill.spec_layout.as_deref(), limits.spec_layout)
    }
}

fn at_least_one(field: Field, size: u32) -> Result<(), Invalid> {
    if size == 0 { Err(field.invalid(Problem::Zero)) } else { Ok(()) }
}

fn at_most(field: Field, value: u64, most: u64) -> Result<(), Invalid> {
    let problem = Problem::TooLarge { value, most };
    if value > most { Err(field.invalid(problem)) } else { Ok(()) }
}

fn not_longer(field: Field, text: Option<&str>, most: usize) -> Result<(), Invalid> {
    let bytes = text.map_or(0, str::len);
    let problem = Problem::TooLong { bytes: bytes as u64, most: most as u64 };
    if bytes > most { Err(field.invalid(problem)) } else { Ok(()) }
}

/// How much a directory holds, and for how long.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Most ranks of an instance. Default 16384.
    pub ranks: u64,
    /// Most rooms at a time. Default 262144: 430 new requests each second, all waiting as long as
    /// they may.
    pub rooms: usize,
    /// How long a placed room is kept: as long as any request may wait. Default 600 s.
    pub keep_rooms: Duration,
    /// Longest text of a registration, in bytes. Default 256.
    pub text: usize,
    /// Longest layout of a speculative decoder, in bytes. Default 16 KiB.
    pub spec_layout: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            ranks: 1 << 14,
            rooms: 1 << 18,
            keep_rooms: Duration::from_secs(600),
            text: 256,
            spec_layout: 1 << 14,
        }
    }
}
