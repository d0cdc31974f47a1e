//! Requests: what a workload asks for, read from a trace or made up.
//!
//! For lengths, arrival times and shared prefixes. Not for which pages a request gets. Invariants:
//! a request has at least one token, one hash id per begun block of [`BLOCK_TOKENS`] tokens, and no
//! hash id twice.

mod built_in;
mod read;

pub use self::built_in::built_in;
pub use self::read::{LineProblem, TraceError, TraceReader, read_file};

/// Tokens that one hash id stands for.
pub const BLOCK_TOKENS: u32 = 512;

/// Longest prompt, tokens: more than any model takes, and small enough that pages, tokens and
/// bytes of a request fit their types.
pub const MAX_INPUT_TOKENS: u32 = 1 << 24;

/// One request of a workload.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Request {
    /// When it arrives, milliseconds from the workload's start.
    pub timestamp_ms: u64,
    /// Tokens of the prompt, 1 to [`MAX_INPUT_TOKENS`].
    pub input_length: u32,
    /// Tokens that were generated.
    pub output_length: u32,
    /// One id per block of [`BLOCK_TOKENS`] tokens, the last one of which may be begun only. Equal
    /// ids at the same place mean equal prompts up to the end of that block.
    pub hash_ids: Vec<u64>,
}

impl Request {
    /// The ids of the blocks that are full: those that other requests may share.
    pub fn full_blocks(&self) -> &[u64] {
        &self.hash_ids[..(self.input_length / BLOCK_TOKENS) as usize]
    }
}

/// Whole pages in the first `blocks` full blocks. A page belongs to the block that holds its last
/// token, so pages and blocks need not divide each other.
///
/// ```
/// use kvperf::trace::pages_in_blocks;
/// assert_eq!(pages_in_blocks(2, 16), 64);
/// assert_eq!(pages_in_blocks(1, 100), 5, "the sixth page ends in the second block");
/// ```
pub fn pages_in_blocks(blocks: u32, page_tokens: u32) -> u32 {
    let tokens = u64::from(blocks) * u64::from(BLOCK_TOKENS);
    u32::try_from(tokens / u64::from(page_tokens)).unwrap_or(u32::MAX)
}
