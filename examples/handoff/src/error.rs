//! What can go wrong in this program. All of it ends the process that it happens in; a request that fails does not, and
//! is no [`HandoffError`].

use std::io;

use thiserror::Error;
use transport_core::disagg::node::NodeError;
use transport_core::memory::{OutOfRange, TableError};

/// Why a process ends.
#[derive(Debug, Error)]
pub(crate) enum HandoffError {
    #[error("the prefill or decode process ended: {0}")]
    Child(&'static str),
    #[error(transparent)]
    Command(#[from] serde_json::Error),
    #[error("{0}: {1}")]
    Io(&'static str, io::Error),
    #[error("the model: {0}")]
    Model(#[from] candle_core::Error),
    #[error("the model's file says nothing, or nothing of use, of {0}")]
    ModelFile(&'static str),
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error("outside the cache: {0}")]
    OutOfRange(#[from] OutOfRange),
    #[error("the node's queue is full, or the node is gone")]
    Queue,
    #[error("one process, which does both, does not answer: {0}")]
    Reference(String),
    #[error("the model has more state than a room can have")]
    State,
    #[error("the cache: {0}")]
    Table(#[from] TableError),
    #[error("waited {0} s for {1}")]
    Waited(u64, &'static str),
}

impl HandoffError {
    /// For `map_err`: an I/O error, and what it was about.
    pub(crate) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Io(what, error)
    }
}

/// What functions of this program return.
pub(crate) type Result<T> = std::result::Result<T, HandoffError>;
