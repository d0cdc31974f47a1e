//! The control messages between nodes (W1): little-endian, versioned, bounded.
//!
//! PROTOCOL.md gives the bytes; golden vectors pin them. [`decode`] takes any byte string and gives
//! a message or an error: it never panics, and allocates no more than the message's own length or
//! [`MAX_ITEMS`] justifies. Every message is idempotent: sending it twice, or late, changes nothing
//! more.
//!
//! * [`Message`]: the messages, as values; [`encode`] and [`decode`]: their bytes; [`decode_opening`]:
//!   those of a stranger.
//! * [`WireError`]: why bytes are no message, or a message has no bytes.
//! * [`AuxRecord`]: the header that names the writer of an aux slot (G6).
//!
//! It does not frame: a link gives whole messages. It does not compare layouts, look items up in
//! tables or know what a room expects: that is [`crate::disagg`]'s.
#![forbid(unsafe_code)]

mod admission;
pub mod aux_record;
mod cause;
mod codec;
mod consensus;
mod envelope;
mod error;
mod hello;
mod items;
mod layout;
mod message;
mod room;

pub use aux_record::{AuxError, AuxRecord, HEADER_BYTES as AUX_HEADER_BYTES};
pub use envelope::{MAGIC, VERSION, decode, decode_opening, encode};
pub use error::{WireError, WireField};
pub use items::MAX_ITEMS;
pub use message::{Challenge, GrantOffer, Hello, Message, Opening, Role, Stated, Verdict};
