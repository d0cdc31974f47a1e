//! What a decorator sees.

use alloc::sync::Arc;

use crate::fabric::{FabricEvent, PeerId, PostError, Revoked, Write, WriteId};
use crate::link::{LinkEvent, SendError};
use crate::memory::CacheTables;
use crate::transfer::{Grant, GrantId};

/// A call to an endpoint, or something it reported.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Memory is bound.
    Bind(&'a CacheTables),
    /// A path is to be built.
    Connect {
        /// To whom.
        peer: PeerId,
        /// Whether we dialled the link.
        dialler: bool,
    },
    /// A path is to be torn down.
    Disconnect {
        /// To whom.
        peer: PeerId,
    },
    /// A grant has come into force.
    Grant {
        /// For whom.
        peer: PeerId,
        /// The grant.
        grant: &'a Arc<Grant>,
        /// The tables whose items it names, if not those that are bound.
        view: Option<&'a CacheTables>,
    },
    /// A grant was withdrawn.
    Revoke {
        /// Which.
        grant: GrantId,
        /// With what effect.
        revoked: Revoked,
    },
    /// A write is posted.
    Post(&'a Write),
    /// The write just posted was not taken.
    NotPosted(&'a PostError),
    /// A write is to be cancelled.
    Cancel(WriteId),
    /// The fabric reported something.
    Fabric(&'a FabricEvent),
    /// A message was sent, or was not.
    Send {
        /// To whom.
        peer: PeerId,
        /// Its bytes.
        message: &'a [u8],
        /// Whether the link took it.
        result: Result<(), SendError>,
    },
    /// The link reported something.
    Link {
        /// What.
        event: LinkEvent,
        /// The message's bytes, if it was a message.
        message: &'a [u8],
    },
    /// A link is to be closed.
    Close {
        /// To whom.
        peer: PeerId,
    },
}
