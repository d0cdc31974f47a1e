//! What the parent of a chaos run and its nodes tell each other: lines of JSON over pipes.
//!
//! A node that is killed takes with it only what it had not said yet. One that is stopped does not
//! read: the parent never has more than a few requests at it that have not ended, so a pipe is never
//! full.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// What the parent wants of a node.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Order {
    /// Take part in a request.
    Request(Asked),
    /// End at once, whatever is under way, and account for all of it.
    Leave,
    /// End when all requests have.
    Finish,
}

/// A request, as its two nodes are told of it.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Asked {
    /// No other of the run has it: says what the request is, and what its bytes are.
    pub(super) number: u64,
    /// Its room; those of requests that have ended come again.
    pub(super) room: u64,
    /// The node of the other side.
    pub(super) peer: u8,
}

/// What a node says.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Said {
    /// A decode node waits here.
    Listening(SocketAddr),
    /// A request is over here, and everything that went into it is back: its bytes, or why it
    /// failed.
    Ended {
        /// Which.
        number: u64,
        /// How.
        result: Result<u64, String>,
    },
    /// A request is not over here, though its deadlines are.
    Endless {
        /// Which.
        number: u64,
        /// Milliseconds since it began.
        after_ms: u64,
    },
    /// A byte is not what it must be.
    Wrong(String),
    /// The node ends.
    Leaving(Balance),
}

/// What a node has when all its requests are over.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Balance {
    /// Pages and state items that never came back.
    pub(super) lost: u64,
    /// Requests to the transport that were never completed.
    pub(super) unanswered: u64,
}
