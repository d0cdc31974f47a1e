//! What is sent and how its arrival is counted.
//!
//! * [`Part`]: the three kinds of bytes of a room: KV, aux, state components.
//! * [`parts_due`]: the one function, used by both sides, that says which parts go with a chunk.
//! * [`Grant`]: the decode side's permission to write named items, for one room, once.
//! * [`Manifest`]: what a sender says it will have sent in total.
//! * [`ArrivalGate`]: counts what has landed, in any order, and says exactly once "all of it".

mod gate;
mod grant;
mod part;

pub use gate::{ArrivalGate, GateState, MAX_DELIVERIES, Manifest, Report, WriterProgress};
pub use grant::{Grant, GrantId};
pub use part::{MAX_COMPONENTS, Part, PartsDue, StateMask, parts_due};
