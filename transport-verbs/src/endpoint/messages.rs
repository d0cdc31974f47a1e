//! What comes over links, for the owner and for the fabric; and what the fabric sends.

use transport_core::fabric::{PathError, PeerId};
use transport_core::link::{Link, LinkEvent, SendError};

use super::{Peer, VerbsEndpoint};
use crate::control::{Control, kind};
use crate::path::{Context, Path};

impl VerbsEndpoint {
    /// Takes what links bring until there is something for the owner. True when something came.
    pub(super) fn pull(&mut self) -> bool {
        let mut moved = false;
        if !self.unread {
            return false;
        }
        let mut message = std::mem::take(&mut self.message);
        while self.held.is_none() {
            let event = self.links.receive(&mut message);
            self.unread = event.is_some();
            let Some(event) = event else { break };
            moved = true;
            self.link_event(event, &message);
        }
        self.message = message;
        moved
    }

    fn link_event(&mut self, event: LinkEvent, message: &[u8]) {
        match event {
            LinkEvent::Up { peer, .. } => {
                self.peers.insert(peer, Peer::default());
                self.held = Some((event, Vec::new()));
            }
            LinkEvent::Down { peer, reason } => {
                self.with_path(peer, |path, ctx| path.end(reason, ctx));
                self.held = Some((event, Vec::new()));
            }
            LinkEvent::Message { peer } => {
                let known = self.sort(peer, message);
                if !known {
                    // No correct peer sends that: it is not of this fabric.
                    self.links.close(peer);
                    self.unread = true;
                }
            }
        }
    }

    /// Sees what a message is. False when it is nothing.
    fn sort(&mut self, peer: PeerId, message: &[u8]) -> bool {
        let Some((kind, body)) = message.split_first() else { return false };
        let Some(known) = self.peers.get_mut(&peer) else { return true };
        let whole = match (*kind, known.head.take()) {
            (kind::WHOLE, None) => body.to_vec(),
            (kind::TAIL, Some(head)) => [&head, body].concat(),
            (kind::HEAD, None) => {
                known.head = Some(body.to_vec());
                return true;
            }
            (kind::FABRIC, head) => {
                known.head = head;
                return Control::decode(body).is_some_and(|control| self.control(peer, control));
            }
            _ => return false,
        };
        self.held = Some((LinkEvent::Message { peer }, whole));
        true
    }

    /// Does what the peer's fabric says. False when no correct peer says it.
    pub(super) fn control(&mut self, peer: PeerId, control: Control<'_>) -> bool {
        match control {
            Control::Open { epoch, heard } => self.peer_opened(peer, epoch, heard),
            Control::Close { epoch } => self.peer_closed(peer, epoch),
            Control::Rail { epoch, rail, life, pair, psn } => {
                self.on(peer, epoch, |path, ctx| path.heard_rail(rail, life, (pair, psn), ctx));
            }
            Control::Ready { epoch, rail, life } => {
                self.on(peer, epoch, |path, ctx| path.heard_ready(rail, life, ctx));
            }
            Control::Gone { epoch, rail, life, taken } => {
                self.on(peer, epoch, |path, ctx| path.heard_gone(rail, (life, taken), ctx));
            }
            Control::Tables { epoch, id, body } => {
                self.on(peer, epoch, |path, _| path.heard_tables(id, body));
            }
            Control::Grant { epoch, id, tag, place, tables } => {
                self.on(peer, epoch, |path, _| path.heard_grant(id, tag, place, tables));
            }
            Control::Revoke { epoch, id } | Control::Unknown { epoch, id } => {
                self.on(peer, epoch, |path, _| {
                    path.heard_refusal(id);
                    Ok(())
                });
            }
            Control::Ask { epoch, id } => {
                self.on(peer, epoch, |path, ctx| {
                    path.heard_ask(id, ctx);
                    Ok(())
                });
            }
        }
        true
    }

    /// Acts on the path that the peer means, if that is the present one.
    fn on(
        &mut self,
        peer: PeerId,
        epoch: u32,
        act: impl FnOnce(&mut Path, &mut Context<'_>) -> Result<(), PathError>,
    ) {
        self.with_path(peer, |path, ctx| {
            if path.theirs == Some(epoch)
                && !path.is_ending()
                && let Err(reason) = act(path, ctx)
            {
                path.end(reason, ctx);
            }
        });
    }

    /// The peer has connected.
    fn peer_opened(&mut self, peer: PeerId, epoch: u32, heard: u32) {
        let Some(known) = self.peers.get_mut(&peer) else { return };
        // It does not know yet that our path has ended: what it opened is for that one. It will
        // hear, and open again.
        if heard < known.must_have_heard() {
            return;
        }
        known.early = Some(epoch);
        self.pair_up(peer);
    }

    /// Joins our path with the peer's, when both are there.
    pub(super) fn pair_up(&mut self, peer: PeerId) {
        let Some(known) = self.peers.get_mut(&peer) else { return };
        let waits = |path: &Path| path.theirs.is_none() && !path.is_ending();
        if !known.path.as_ref().is_some_and(waits) {
            return;
        }
        let Some(theirs) = known.early.take() else { return };
        self.with_path(peer, |path, ctx| path.heard_open(theirs, ctx));
    }

    /// The peer's path has ended.
    fn peer_closed(&mut self, peer: PeerId, epoch: u32) {
        let Some(known) = self.peers.get_mut(&peer) else { return };
        known.heard = known.heard.max(epoch);
        known.early = known.early.filter(|early| *early != epoch);
        let heard = known.heard;
        self.with_path(peer, |path, ctx| {
            if path.theirs == Some(epoch) {
                path.end(PathError::ClosedByPeer, ctx);
            } else if path.theirs.is_none() && !path.is_ending() {
                // It may have ignored our opening until we knew this. One that was not sent yet says
                // it as well.
                let open = Control::Open { epoch: path.epoch, heard }.encode();
                match ctx.out.iter_mut().rfind(|message| Control::opens(message)) {
                    Some(waiting) => *waiting = open,
                    None => ctx.out.push_back(open),
                }
            }
        });
    }

    /// Hands the fabric's messages to the links.
    pub(super) fn flush_all(&mut self) -> bool {
        let mut moved = false;
        self.unsaid = false;
        for (peer, known) in &mut self.peers {
            while let Some(message) = known.out.front() {
                match self.links.send(*peer, message) {
                    Ok(()) => moved = true,
                    Err(SendError::Busy) => break,
                    // There is nobody to hear it.
                    Err(_) => {}
                }
                known.out.pop_front();
            }
        }
        self.links_due |= moved;
        self.unread |= moved;
        moved
    }
}
