//! The proof of the shared key, before anything else (W3).
//!
//! Invariant: where there is a key, nothing of a peer that has not proven it is taken but what
//! belongs to the handshake, and it is told nothing but our challenge, our proof when we dialled
//! it, and that it is refused. It has no hello, so it has no path, no grant and no room.

use super::{PeerChange, Peers};
use crate::disagg::Cause;
use crate::disagg::node::context::Context;
use crate::disagg::trust::{End, Handshake};
use crate::fabric::{PathError, PeerId};
use crate::link::Endpoint;
use crate::wire::{Message, Opening};

impl super::Peer {
    /// Whether it may say more than a handshake: it has proven the key, or there is none.
    pub(super) fn is_proven(&self) -> bool {
        self.trust.as_ref().is_none_or(Handshake::is_proven)
    }

    /// Whether it is the life that it has proven to be, if there is a key.
    pub(super) fn is_life(&self, incarnation: u64) -> bool {
        let proven = self.trust.as_ref().map(Handshake::peer_incarnation);
        proven.is_none_or(|proven| proven == Some(incarnation))
    }
}

impl Peers {
    /// Says the first word on a link: a challenge where there is a key, else hello.
    pub(super) fn begin_proof<E: Endpoint>(
        &self,
        ctx: &mut Context<E>,
        id: PeerId,
        dialler: bool,
    ) -> Option<Handshake> {
        let trust = ctx.handshake(if dialler { End::Dialler } else { End::Listener });
        match &trust {
            Some(handshake) => ctx.send(id, &handshake.opening()),
            None => ctx.send(id, &Message::Hello(self.hello.clone().into())),
        }
        trust
    }

    /// The peer said something before it has proven the key. When that proves it, hello follows.
    pub(in crate::disagg::node) fn prove<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        id: PeerId,
        said: Opening,
    ) -> Option<PeerChange> {
        let trust = self.peers.get_mut(&id)?.trust.as_mut()?;
        let answer = match trust.take(said) {
            Ok(answer) => answer,
            // A refusal is not answered with another.
            Err(cause) if matches!(said, Opening::Refuse(_)) => {
                return Some(self.end_unproven(ctx, id, cause));
            }
            Err(cause) => return Some(self.unproven(ctx, id, cause)),
        };
        let proven = trust.is_proven();
        if let Some(answer) = answer {
            ctx.send(id, &answer);
        }
        if proven {
            ctx.send(id, &Message::Hello(self.hello.clone().into()));
        }
        None
    }

    /// Ends the link to a peer with which there is no common key. It learns why, so that whoever
    /// forgot to configure a key can find out.
    pub(in crate::disagg::node) fn unproven<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        id: PeerId,
        cause: Cause,
    ) -> PeerChange {
        ctx.send(id, &Message::Refuse(cause));
        self.end_unproven(ctx, id, cause)
    }

    fn end_unproven<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        id: PeerId,
        cause: Cause,
    ) -> PeerChange {
        ctx.stats.unproven += 1;
        if let Some(peer) = self.peers.get_mut(&id) {
            // What it sent behind that is not listened to.
            peer.why.get_or_insert(PathError::Protocol("no common key was proven"));
        }
        self.refused(ctx, id, cause)
    }
}
