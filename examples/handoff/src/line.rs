//! What the processes say to each other beside the transport: lines of JSON on their standard input and output.
//!
//! The one that started the others is their router: it gives a request, under one room, to both sides. In a cluster
//! that is an HTTP call; nothing of the cache passes here.

use std::io::Write;
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// From the router.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) enum Command {
    /// Answer this prompt, with at most so many tokens.
    Serve { room: u64, prompt: String, tokens: usize },
    /// Nobody waits for the answer any more.
    Abort { room: u64 },
}

/// To the router.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) enum Line {
    /// The process has read its model, and can be dialled there if it listens.
    Up { address: Option<SocketAddr>, page_bytes: u64 },
    /// The other side is there, or is gone and why.
    Peer { gone: Option<String> },
    /// Something happened to a request.
    Of { room: u64, step: Step },
    /// The process ends, with so many free pages of all.
    Rests { free: usize, pages: usize },
}

/// What happened to a request. Times are microseconds since 1970.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) enum Step {
    /// Prefill: decode has no space yet. Said once.
    Waits,
    /// A chunk of the prompt was computed.
    Computed { tokens: usize, from: u64, to: u64 },
    /// Prefill: so many pages have landed, or never will.
    Sent { pages: usize, at: u64 },
    /// Prefill: the room is over and its pages are back; and why it failed if it did.
    Closed { reason: Option<String> },
    /// Decode: everything is there.
    Received { at: u64 },
    /// Decode: there will be no answer.
    Failed { reason: String },
    /// The answer.
    Answered { answer: Said },
}

/// Why a request is not served at all.
pub(crate) const TOO_LONG: &str = "the cache has fewer pages than that";

/// Said of two answers that are one.
pub(crate) const IDENTICAL: &str = "identical";

/// An answer, and what it takes to compare it bit by bit.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Said {
    pub(crate) text: String,
    pub(crate) tokens: Vec<u32>,
    /// The bits of the first token's log probability.
    pub(crate) logprob: u32,
    /// Hash of the logits of all steps.
    pub(crate) logits: String,
    pub(crate) prompt_tokens: usize,
    /// When this process had its first token.
    pub(crate) first: u64,
    pub(crate) last: u64,
}

impl Said {
    /// Whether both are the same answer, to the bit. When they were given does not matter.
    pub(crate) fn same(&self, other: &Self) -> bool {
        self.beside(other) == IDENTICAL
    }

    /// [`IDENTICAL`], or in what they differ.
    pub(crate) fn beside(&self, other: &Self) -> &'static str {
        if self.tokens != other.tokens || self.text != other.text {
            "DIFFERENT"
        } else if self.logits != other.logits || self.logprob != other.logprob {
            "DIFFERENT: the words are the same, the logits are not"
        } else {
            IDENTICAL
        }
    }
}

/// Says it. Who cannot be heard any more goes on: the other side of the transport may still be there.
pub(crate) fn say(line: &Line) {
    if let Ok(json) = serde_json::to_string(line) {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{json}").and_then(|()| out.flush());
    }
}

/// Says what happened to a request.
pub(crate) fn step(room: u64, step: Step) {
    say(&Line::Of { room, step });
}

/// Now.
pub(crate) fn micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
