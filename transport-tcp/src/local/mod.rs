//! The path between two endpoints of one machine: no socket carries their bytes, the *target* copies
//! them.
//!
//! Each side shows the other, read-only, a few words of memory (the rings) and the memory files that
//! its regions are in. The source writes into its ring what to copy from where; the target checks
//! the grant, copies with its own hands into its own pages, announces, and answers in a ring of its
//! own. What follows from that:
//!
//! * No peer can ever write to our memory, so a grant is checked where it counts, and withdrawing one
//!   is immediate (M3). A stopped peer that goes on later does nothing to us (M2).
//! * No ring and no memory file makes anybody wait, longer than it takes to bring in what was swapped:
//!   a peer that is stopped or dead leaves rings that nothing comes out of, and its socket tells of its
//!   death. Memory in no file is another matter.
//! * A source that gives up withdraws what it submitted before it uses the pages again; a target
//!   looks for that after it has copied, and throws such a copy away.
//!
//! Memory in no file of ours is read through the kernel, many pieces in a call. The call waits for the
//! peer's address space and for its pages, so a peer that delays them stops our thread with all its
//! paths. Who cannot trust its neighbours so far does not read theirs
//! ([`foreign_memory`](crate::TcpConfig::foreign_memory)).
//!
//! * [`words`], [`ring`], [`channel`]: what is shared, and the rules of sharing; modelled by loom.
//! * [`entry`]: what stands in the rings.
//! * [`source`], [`target`]: the two halves.
//! * [`regions`]: the memory that they name.
//! * [`socket`], [`message`], [`greeting`]: how two endpoints find out that they are on one machine.
//! * [`path`]: all of it.
//!
//! Not for control messages: the link stays what it is. Everything read from a ring, a socket or a
//! page is a hostile peer's until it was copied and checked.
#![forbid(unsafe_code)]

pub(crate) mod channel;
pub(crate) mod entry;
pub(crate) mod greeting;
pub(crate) mod message;
pub(crate) mod path;
pub(crate) mod regions;
pub(crate) mod ring;
pub(crate) mod socket;
pub(crate) mod source;
pub(crate) mod target;
#[cfg(all(test, not(transport_loom)))]
mod tests;
pub(crate) mod words;
