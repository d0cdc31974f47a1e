//! How the two ends of a link prove to each other that they have the key. No I/O, no clock.
//!
//! ```text
//!  dialler                                        listener
//!    |-- Challenge (nonce, incarnation) ------------>|
//!    |<----------- Challenge (nonce, incarnation) ---|  both at once
//!    |-- Proof (seal of the dialler) --------------->|  checks it
//!    |<------------------ Proof (seal of listener) --|  and only then says more: Hello ...
//! ```
//!
//! A proof is a seal ([`SharedKey::seal`]) over the label `kv-link dialler` or `kv-link listener`,
//! after whose end of the link it comes from, and these fields: the protocol's version, the
//! dialler's nonce, the listener's nonce, the dialler's incarnation, the listener's incarnation.
//!
//! Why this holds:
//!
//! * *Replay, parallel links.* Each proof is over a nonce that the one who checks it drew for this
//!   link alone, so a proof is good on one link, once. A proof for one link is none for another.
//! * *Reflection.* The label says which end proves: what an end sent is never what it waits for,
//!   also when the other sends its own challenge back to it.
//! * *Oracles.* The dialler proves first. Strangers can reach the listener, which makes no seal for
//!   anybody who has not proven the key; nobody learns so much as a pair to try keys against. The
//!   dialler makes one seal for whom it chose to dial, and that over a nonce of its own, so no other
//!   link has a use for it.
//! * *Order.* A challenge that changes, a proof before the challenge, and everything else that comes
//!   before the proof end the link.
//!
//! What it does not hold against is in the module's parent: whoever passes on all of it.

use super::{SEAL_BYTES, Seal, SharedKey};
use crate::disagg::Cause;
use crate::wire::{Challenge, Message, Opening, VERSION};

/// One side of a link.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum End {
    /// The side that dialled.
    Dialler,
    /// The side that was dialled.
    Listener,
}

impl End {
    const fn other(self) -> Self {
        match self {
            Self::Dialler => Self::Listener,
            Self::Listener => Self::Dialler,
        }
    }

    const fn label(self) -> &'static str {
        match self {
            Self::Dialler => "kv-link dialler",
            Self::Listener => "kv-link listener",
        }
    }
}

/// One end's part of the handshake of one link.
///
/// Send [`Handshake::opening`], then give it what comes until [`Handshake::is_proven`]. After an
/// error the link must end, and the handshake is not used any more.
#[derive(Clone, Debug)]
pub struct Handshake {
    key: SharedKey,
    end: End,
    ours: Challenge,
    theirs: Option<Challenge>,
    proven: bool,
}

impl Handshake {
    /// A handshake that has not begun. `nonce` must be one that nobody could foresee and that was
    /// never used; `incarnation` is the one that this node will state in its Hello.
    pub fn new(key: SharedKey, end: End, nonce: [u8; 32], incarnation: u64) -> Self {
        let ours = Challenge { nonce, incarnation };
        Self { key, end, ours, theirs: None, proven: false }
    }

    /// What to send when the link is up.
    pub fn opening(&self) -> Message {
        Message::Challenge(self.ours)
    }

    /// Whether the other end has proven that it has the key.
    pub fn is_proven(&self) -> bool {
        self.proven
    }

    /// The life that the other end has proven to be.
    pub fn peer_incarnation(&self) -> Option<u64> {
        self.theirs.filter(|_| self.proven).map(|theirs| theirs.incarnation)
    }

    /// Takes what the other end said; what to send for it. A message that comes twice changes
    /// nothing.
    ///
    /// # Errors
    ///
    /// [`Cause::KeyOnOneSide`] when the other end has no key, [`Cause::Unproven`] for all else that
    /// who has the key would not say. End the link.
    pub fn take(&mut self, said: Opening) -> Result<Option<Message>, Cause> {
        match said {
            Opening::Challenge(theirs) => self.challenged(theirs),
            Opening::Proof(seal) => self.check(&seal),
            Opening::Hello if self.theirs.is_none() => Err(Cause::KeyOnOneSide),
            // Who has proven nothing is believed this much: that it will not have us.
            Opening::Refuse(cause @ (Cause::KeyOnOneSide | Cause::Unproven)) => Err(cause),
            Opening::Hello | Opening::Refuse(_) | Opening::Other => Err(Cause::Unproven),
        }
    }

    fn challenged(&mut self, theirs: Challenge) -> Result<Option<Message>, Cause> {
        match self.theirs {
            Some(before) if before == theirs => Ok(None),
            Some(_) => Err(Cause::Unproven),
            None => {
                self.theirs = Some(theirs);
                Ok((self.end == End::Dialler).then(|| self.proof(&theirs)))
            }
        }
    }

    fn check(&mut self, seal: &[u8; SEAL_BYTES]) -> Result<Option<Message>, Cause> {
        let theirs = self.theirs.ok_or(Cause::Unproven)?;
        if !self.seal(self.end.other(), &theirs).is(seal) {
            return Err(Cause::Unproven);
        }
        let first = !core::mem::replace(&mut self.proven, true);
        Ok((first && self.end == End::Listener).then(|| self.proof(&theirs)))
    }

    pub(super) fn proof(&self, theirs: &Challenge) -> Message {
        Message::Proof(self.seal(self.end, theirs).finish())
    }

    /// What `end` must show.
    fn seal(&self, end: End, theirs: &Challenge) -> Seal {
        let (dialler, listener) = match self.end {
            End::Dialler => (&self.ours, theirs),
            End::Listener => (theirs, &self.ours),
        };
        self.key
            .seal(end.label())
            .with(&VERSION.to_le_bytes())
            .with(&dialler.nonce)
            .with(&listener.nonce)
            .with(&dialler.incarnation.to_le_bytes())
            .with(&listener.incarnation.to_le_bytes())
    }
}
