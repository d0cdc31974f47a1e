//! Who copies which bytes to whom, when a prefill engine and a decode engine split the same cache
//! in different ways (P1).
//!
//! A pure function of two [`Layout`]s. It moves nothing and knows no rooms: which dp group serves a
//! request is decided elsewhere, and whether two ranks have a path is the node's affair.
//!
//! ```text
//! Topology::new(prefill, decode)          can they at all? the error names both values
//!   .writers(decode rank, prefill dp)     whom a decode rank hears from, and who sends aux
//!   .readers(prefill rank, decode dp)     the same, read backwards
//!   .route(prefill rank, decode rank)     segments, once per pair of ranks
//!     .view(side, part, shapes)           the same as shapes of each side's table, once per pair
//!     .stretch(chunk, pages)              what of a chunk this pair copies
//! ```
//!
//! Invariant: over all routes to a decode rank, every byte of its pages that the request fills, and
//! of its state items, is written exactly once. The rules that make it so:
//!
//! | axis | who holds what | who sends |
//! | --- | --- | --- |
//! | pp | a stage its layers, uneven or not | whoever shares layers |
//! | tp, units >= ranks | `units / tp` neighbouring units | whoever shares units; tp sizes need not divide each other |
//! | tp, units < ranks | `tp / units` neighbouring ranks hold the same unit | for target replica `j` of `m`: source replica `j * n / m` of `n` |
//! | cp, KV | a decode rank its [`page_share`] of the request; a prefill rank all pages | each prefill rank its [`page_share`] of every chunk |
//! | cp, state | every rank all of it | the first |
//! | dp | a group its own requests | ranks of the chosen group |
//!
//! Units are heads or channels; MLA is one unit. Pages may differ in size when one is a whole number
//! of the other. The order of axes may not differ: turning NHD into HND is a copy per token.

mod check;
mod cut;
mod error;
mod layout;
mod plan;
mod rank;
mod share;
mod view;

pub use check::MAX_RANKS;
pub use cut::{Cut, Place};
pub use error::{Fact, Flaw, Side, TopologyError};
pub use layout::{Axes, Component, Layout, Sharded};
pub use plan::{CopySegment, Route, Topology, Writers};
pub use rank::{Rank, RankSizes};
pub use share::{page_owner, page_share};
pub use view::{Misfit, Stretch, blocks};
