//! Queues between the threads that want something and the thread that does it.
//!
//! For: [`pair()`], through which handles reach a node and nodes reach a fabric, and [`ring()`], its
//! building block for one thread each. Not for: queues of one thread, or unbounded ones.
//!
//! Nothing here locks or blocks, and nothing allocates after it was made.

mod completions;
mod pair;
mod port;
#[allow(unsafe_code, reason = "slots that two threads hand over")]
mod ring;
#[allow(unsafe_code, reason = "slots that threads hand over")]
mod submission;

pub use completions::Completions;
pub use pair::{SubmitError, Submitter, WorkRequest, pair};
pub use port::{Batch, Port, Ticket};
pub use ring::{Consumer, Producer, ring};
