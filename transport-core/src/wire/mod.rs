//! The control messages between nodes (W1): little-endian, versioned, bounded.
//!
//! PROTOCOL.md gives the bytes; golden vectors pin them. [`decode`] takes any byte string and gives
//! a message or an error: it never panics and allocates no more than the message's own length
//! justifies. Every message is idempotent: sending it twice, or late, changes nothing more.

mod message;

pub use message::{GrantOffer, Hello, Message, Role, Stated};
