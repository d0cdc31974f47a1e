//! A workload, ready to run: the model's geometry, the requests, and how many pages the decode side
//! has for them.
//!
//! For turning arguments into something that is known to fit. Not for running it. Invariant: each
//! request fits into the pool by itself, so admitting them in order never gets stuck.

use std::iter;

use thiserror::Error;

use crate::args::{Fault, RunArgs};
use crate::model::{Geometry, GeometryOptions, ModelError};
use crate::rng::{GOLDEN, mix64};
use crate::trace::{self, Request, TraceError};

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
        let requests = requests(args)?;
        let pool_pages = pool_pages(&geometry, &requests, args.load.pages)?;
        Ok(Self { geometry, requests, pool_pages })
    }

    /// A number that differs when the requests do. Both sides work out content from their own list,
    /// so they compare this before any room opens, as the compatibility tag of their
    /// [geometry](Geometry).
    pub fn fingerprint(&self) -> u64 {
        let words = self.requests.iter().flat_map(|request| {
            let lengths = u64::from(request.input_length) << 32 | request.hash_ids.len() as u64;
            iter::once(lengths).chain(request.hash_ids.iter().copied())
        });
        words.fold(self.requests.len() as u64, |hash, word| mix64(hash.wrapping_add(GOLDEN) ^ word))
    }

    /// KV bytes of the decode side's pool.
    pub fn pool_bytes(&self) -> u64 {
        u64::from(self.pool_pages) * self.geometry.bytes_per_page()
    }
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
        let different = ["", "--seed 5", "--requests 23", "--requests 25"].map(of);
        for (place, one) in different.iter().enumerate() {
            assert!(!different[place + 1..].contains(one), "{place}");
        }
    }

    #[test]
    fn what_is_wrong_with_model_or_trace_comes_through() {
        assert!(matches!(load("--model none"), Err(WorkloadError::Model(_))));
        assert!(matches!(load("--trace no/such.jsonl"), Err(WorkloadError::Trace(_))));
        let nothing_to_drop = load("--model llama-3.1-8b --fault drop-state");
        assert!(matches!(nothing_to_drop, Err(WorkloadError::NoState { .. })));
    }
}
