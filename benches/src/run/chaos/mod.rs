//! Nodes that are killed, stopped and restarted while requests go between them.
//!
//! For proving, with real processes over shared memory or TCP, that whatever happens to a node, no byte is wrong, no
//! page is lost and no room is without an end for those that live, and that they serve on by
//! themselves. Not for speed. Everything is drawn from a seed, but processes take their own time: a
//! run is alike, and never the same, when it is repeated.
//!
//! The parent is the router: it tells a prefill and a decode node of each request, and hears from
//! each how it ended. Between the nodes there is nothing but the transport. A node that is killed
//! takes only its own report with it.

mod child;
mod decode;
mod faults;
mod plan;
mod prefill;
mod process;
mod report;
mod station;
mod storm;
mod tally;
mod wire;

use super::RunError;
use crate::args::RunArgs;

pub use self::child::run_node;
pub use self::report::ChaosReport;

/// Nodes of each side.
const PEERS: u8 = 2;

/// Requests at a time between a prefill and a decode node.
const AT_A_PAIR: usize = 8;

/// Requests at a time at a node.
const AT_A_NODE: usize = AT_A_PAIR * PEERS as usize;

/// Harms nodes for so many seconds, lets them recover, and reports.
///
/// # Errors
///
/// When a node cannot be started. What goes wrong after that is in the report.
pub fn run(seconds: u32, args: &RunArgs) -> Result<ChaosReport, RunError> {
    eprintln!(
        "{PEERS} prefill and {PEERS} decode nodes, seed {}, {seconds} s of faults",
        args.load.seed
    );
    storm::Storm::start(args)?.run(seconds)
}
