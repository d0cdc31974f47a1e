//! A shared key: who may be a peer at all (W3).
//!
//! * [`SharedKey`]: what the nodes of a cluster have in common, and the seals made with it.
//! * [`Handshake`]: how the two ends of a link prove to each other that they have it, before
//!   anything else is said.
//! * [`Secret`]: what a node has for itself, and draws nonces and grants' tags from.
//!
//! For telling members of a cluster from strangers. Not for secrecy: nothing is encrypted. Nor
//! against whoever sits between two nodes and can change what they say: it may pass both proofs on
//! and speak in their place afterwards, for later messages carry none.
//!
//! Invariants: seals are compared in constant time, and no debug output shows a key or a secret.

mod handshake;
#[cfg(test)]
mod handshake_tests;
mod key;
mod mint;

pub use handshake::{End, Handshake};
pub use key::{KeyTooShort, SEAL_BYTES, Seal, SharedKey};
pub(crate) use mint::Mint;
pub use mint::Secret;
