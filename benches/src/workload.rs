//! A workload, ready to run: the model's geometry, the requests, and how many pages the decode side
//! has for them.
//!
//! For turning arguments into something that is known to fit. Not for running it. Invariant: each
//! request fits into the pool by itself, so admitting them in order never gets stuck.

use std::iter;

use thiserror::Error;

use crate::args::{Fault, RankArgs, RunArgs};
use crate::model::{Geometry, GeometryOptions, ModelError};
use crate::trace::{self, Request, TraceError};
use transport_core::disagg::topology::{Side, Topology, TopologyError};
use transport_core::rng::{GOLDEN, mix64};
use transport_core::transfer::Part;

/// Requests of the built-in mix, unless told otherwise.
pub const BUILT_IN_REQUESTS: u32 = 24;

/// KV bytes the pool has at least, unless told otherwise: several requests at once, and prefixes
/// that stay for a while, within what any machine has.
const USUAL_POOL_BYTES: u64 = 2_500_000_000;

/// What to run.
#[derive(Clone, Debug)]
pub struct Workload {
    /// The model's cache.
    pub geometry: Geometry,
    /// How both sides split it.
    pub topology: Topology,
    /// In order of arrival. A request's place in the list is its room.
    pub requests: Vec<Request>,
    /// Pages in the decode side's pool.
    pub pool_pages: u32,
}

/// Why there is nothing to run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum WorkloadError {
    /// The model has no geometry.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// There is no state to drop: choose a hybrid model.
    #[error("--fault drop-state: {model} has no state components")]
    NoState {
        /// The model.
        model: String,
    },
    /// More pipeline stages than layers.
    #[error("{stages} pipeline stages, but the model has {layers} layers")]
    Stages {
        /// Stages of the side that has more.
        stages: u32,
        /// Layers of the model.
        layers: u32,
    },
    /// Nothing can be copied between ranks that split the model so.
    #[error("these ranks cannot exchange caches: {0}")]
    Topology(#[from] TopologyError),
    /// The trace cannot be used.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// One request alone needs more than the pool. Give it more `--pages`.
    #[error("--pages {pages}: request {room} of {tokens} tokens needs {needed}")]
    PoolTooSmall {
        /// Pages in the pool.
        pages: u32,
        /// The first request that needs more.
        room: usize,
        /// Its prompt's length.
        tokens: u32,
        /// Pages it needs.
        needed: u32,
    },
}

impl Workload {
    /// The workload that arguments ask for. Reads the model's and the trace's file, if they are.
    ///
    /// # Errors
    ///
    /// [`WorkloadError`] says which argument or which line of which file is at fault.
    pub fn load(args: &RunArgs) -> Result<Self, WorkloadError> {
        let options = GeometryOptions::from(&args.model.layout);
        let geometry = Geometry::of(&args.model.model, &options)?;
        if args.transfer.fault == Some(Fault::DropState) && geometry.states.is_empty() {
            return Err(WorkloadError::NoState { model: geometry.name });
        }
        let topology = topology(&geometry, &args.ranks)?;
        let requests = requests(args)?;
        let pool_pages = pool_pages(&geometry, &requests, args.load.pages)?;
        Ok(Self { geometry, topology, requests, pool_pages })
    }

    /// A number that differs when the requests do, or what either side takes for the ranks of both.
    /// Both sides work out content from their own list, and whom to wait for from their own
    /// arguments, so they compare this before any room opens, as the compatibility tag of their
    /// [geometry](Geometry).
    pub fn fingerprint(&self) -> u64 {
        let sizes = [Side::Prefill, Side::Decode].map(|side| self.topology.layout(side).sizes());
        let ranks = sizes.into_iter().flat_map(|s| [s.dp, s.tp, s.pp, s.cp]).map(u64::from);
        let words = self.requests.iter().flat_map(|request| {
            let lengths = u64::from(request.input_length) << 32 | request.hash_ids.len() as u64;
            iter::once(lengths).chain(request.hash_ids.iter().copied())
        });
        words
            .chain(ranks)
            .fold(self.requests.len() as u64, |hash, word| mix64(hash.wrapping_add(GOLDEN) ^ word))
    }

    /// Data-parallel groups of the prefill side.
    pub fn groups(&self) -> u32 {
        self.topology.layout(Side::Prefill).dp
    }

    /// Bytes that the decode side's ranks receive of a prompt of `tokens` tokens, of which `pages` KV
    /// pages are moved: what several ranks hold counts as often.
    pub fn moved_bytes(&self, pages: u64, tokens: u32) -> u64 {
        let geometry = &self.geometry;
        let state = (0u8..).zip(&geometry.states).map(|(k, state)| {
            let items = state.items.count(tokens, geometry.page_tokens);
            self.received_bytes(Part::State(k)) * u64::from(items)
        });
        let aux = self.topology.layout(Side::Decode).sizes().total() * geometry.aux_bytes;
        self.received_bytes(Part::Kv) * pages + state.sum::<u64>() + aux
    }

    /// Bytes of one item at all ranks of the decode side.
    fn received_bytes(&self, part: Part) -> u64 {
        let ranks = self.topology.layout(Side::Decode).sizes().group(0);
        let bytes = |rank| self.topology.item_bytes(Side::Decode, rank, part).unwrap_or_default();
        ranks.flat_map(bytes).sum()
    }

    /// KV bytes of the decode side's pool.
    pub fn pool_bytes(&self) -> u64 {
        u64::from(self.pool_pages) * self.geometry.bytes_per_page()
    }
}

fn topology(geometry: &Geometry, ranks: &RankArgs) -> Result<Topology, WorkloadError> {
    let (prefill, decode) = (ranks.prefill(), ranks.decode());
    let stages = prefill.pp.max(decode.pp);
    if stages > geometry.layers {
        return Err(WorkloadError::Stages { stages, layers: geometry.layers });
    }
    Ok(Topology::new(geometry.layout(prefill), geometry.layout(decode))?)
}

fn requests(args: &RunArgs) -> Result<Vec<Request>, TraceError> {
    let limit = args.load.requests;
    match &args.load.trace {
        Some(path) => trace::read_file(path, limit.map(|limit| limit as usize)),
        None => {
            let count = limit.unwrap_or(BUILT_IN_REQUESTS);
            Ok(trace::built_in(count as usize, args.load.seed))
        }
    }
}

/// As told; else what the longest request needs, or [`USUAL_POOL_BYTES`] if that is more, but not
/// more than all requests need together.
fn pool_pages(
    geometry: &Geometry,
    requests: &[Request],
    told: Option<u32>,
) -> Result<u32, WorkloadError> {
    let needed = |request: &Request| geometry.pages(request.input_length);
    let pages = told.unwrap_or_else(|| {
        let longest = requests.iter().map(needed).max().unwrap_or(1);
        let together = requests.iter().map(needed).fold(0, u32::saturating_add);
        let usual = USUAL_POOL_BYTES / geometry.bytes_per_page();
        u32::try_from(usual).unwrap_or(u32::MAX).clamp(longest, together.max(longest))
    });
    match requests.iter().enumerate().find(|(_, request)| needed(request) > pages) {
        None => Ok(pages),
        Some((room, request)) => {
            let (tokens, needed) = (request.input_length, needed(request));
            Err(WorkloadError::PoolTooSmall { pages, room, tokens, needed })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Cli;

    fn load(options: &str) -> Result<Workload, WorkloadError> {
        let line = format!("kvperf loopback {options}");
        let cli = Cli::from_checked(line.split_whitespace()).expect("good arguments");
        Workload::load(cli.command.run_args().expect("loopback has them"))
    }

    fn most_pages(workload: &Workload) -> u32 {
        let pages = |request: &Request| workload.geometry.pages(request.input_length);
        workload.requests.iter().map(pages).max().unwrap()
    }

    #[test]
    fn a_first_run_is_a_few_gigabytes_of_llama() {
        let workload = load("").unwrap();
        assert_eq!(workload.requests.len(), 24);
        assert!(workload.pool_bytes() <= USUAL_POOL_BYTES, "{}", workload.pool_bytes());
        assert!(most_pages(&workload) <= workload.pool_pages);
    }

    #[test]
    fn the_pool_is_never_larger_than_all_requests_need() {
        let workload = load("--requests 1").unwrap();
        assert_eq!(workload.pool_pages, most_pages(&workload));
    }

    #[test]
    fn the_pool_holds_the_longest_request_however_long() {
        let workload = load("--requests 500 --model llama-3.3-70b --dtype float32").unwrap();
        assert!(workload.pool_pages >= most_pages(&workload));
    }

    #[test]
    fn a_pool_that_a_request_does_not_fit_is_refused() {
        let needed = most_pages(&load("").unwrap());
        assert_eq!(load(&format!("--pages {needed}")).unwrap().pool_pages, needed);
        let error = load(&format!("--pages {}", needed - 1)).unwrap_err().to_string();
        assert!(error.contains(&format!("needs {needed}")), "{error}");
    }

    #[test]
    fn fingerprints_differ_when_requests_do() {
        let of = |options| load(options).unwrap().fingerprint();
        assert_eq!(of("--seed 5"), of("--seed 5 --chunk-tokens 4096 --lanes 2"));
        let different =
            ["", "--seed 5", "--requests 23", "--prefill-dp 2", "--prefill-tp 2", "--decode-tp 2"]
                .map(of);
        for (place, one) in different.iter().enumerate() {
            assert!(!different[place + 1..].contains(one), "{place}");
        }
    }

    #[test]
    fn ranks_that_cannot_be_mapped_are_refused_with_both_numbers() {
        let error = load("--prefill-tp 3 --decode-tp 2").unwrap_err().to_string();
        assert!(error.contains("prefill tp 3") && error.contains("decode tp 2"), "{error}");
    }

    #[test]
    fn what_is_wrong_with_model_or_trace_comes_through() {
        assert!(matches!(load("--model none"), Err(WorkloadError::Model(_))));
        assert!(matches!(load("--trace no/such.jsonl"), Err(WorkloadError::Trace(_))));
        let nothing_to_drop = load("--model llama-3.1-8b --fault drop-state");
        assert!(matches!(nothing_to_drop, Err(WorkloadError::NoState { .. })));
        let stages = load("--model llama-3.1-8b --decode-pp 33").unwrap_err().to_string();
        assert!(stages.contains("33") && stages.contains("32"), "{stages}");
    }
}
