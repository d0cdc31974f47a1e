//! Peers: the handshake, the heartbeat, and who is ready.
//!
//! A link comes up; both sides say hello; each checks the other's role and geometry (W2) and builds
//! its fabric's path. A peer is ready when hello and path are there. Silence is answered by a ping,
//! more silence ends the path: then nothing of that peer can land any more, and its rooms fail.
//! Where there is a shared key, all of that begins when the peer has proven it ([`proof`]).

mod proof;

use hashbrown::HashMap;

use super::config::{NodeEvent, NodeStats};
use super::context::Context;
use crate::Instant;
use crate::disagg::trust::Handshake;
use crate::disagg::{Cause, Geometry};
use crate::fabric::{FabricError, PathError, PeerId};
use crate::link::Endpoint;
use crate::wire::{Hello, Message};

#[derive(Debug)]
pub(super) struct Peers {
    peers: HashMap<PeerId, Peer>,
    hello: Hello,
}

#[derive(Debug)]
struct Peer {
    dialler: bool,
    /// With a shared key: what it must prove, and has proven.
    trust: Option<Handshake>,
    /// Rank and incarnation, once it said hello.
    hello: Option<(u32, u64)>,
    path: bool,
    /// Why we took it down, if we did.
    why: Option<PathError>,
    up: Instant,
    heard: Instant,
    asked: Instant,
}

/// What a peer's message or event means for the rest of the node.
#[derive(Debug)]
pub(super) enum PeerChange {
    Ready { peer: PeerId, rank: u32, incarnation: u64 },
    Down { peer: PeerId, reason: PathError },
    Refused { peer: PeerId, cause: Cause },
}

impl Peers {
    pub(super) fn new(hello: Hello) -> Self {
        Self { peers: HashMap::new(), hello }
    }

    /// Rank and incarnation of a peer that is ready.
    pub(super) fn ready(&self, peer: PeerId) -> Option<(u32, u64)> {
        self.peers.get(&peer).filter(|peer| peer.path)?.hello
    }

    pub(super) fn link_up<E: Endpoint>(&mut self, ctx: &mut Context<E>, id: PeerId, dialler: bool) {
        let now = ctx.now;
        let (hello, path, why) = (None, false, None);
        let trust = self.begin_proof(ctx, id, dialler);
        let peer = Peer { dialler, trust, hello, path, why, up: now, heard: now, asked: now };
        self.peers.insert(id, peer);
    }

    /// The link is gone: the path goes with it.
    pub(super) fn link_down<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        id: PeerId,
        reason: PathError,
    ) -> Option<PeerChange> {
        ctx.endpoint.disconnect(id);
        let peer = self.peers.get_mut(&id)?;
        peer.why.get_or_insert(reason);
        // With a path, its own end is what frees pages; without one there is nothing to wait for.
        let waits = peer.hello.is_some();
        if waits { None } else { self.forget(id, reason) }
    }

    /// The path is gone: nothing of the peer can land. The link follows.
    pub(super) fn path_down<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        id: PeerId,
        reason: PathError,
    ) -> Option<PeerChange> {
        ctx.endpoint.close(id);
        self.forget(id, reason)
    }

    fn forget(&mut self, id: PeerId, reason: PathError) -> Option<PeerChange> {
        let peer = self.peers.remove(&id)?;
        Some(PeerChange::Down { peer: id, reason: peer.why.unwrap_or(reason) })
    }

    pub(super) fn path_up(&mut self, id: PeerId) -> Option<PeerChange> {
        self.peers.get_mut(&id)?.path = true;
        self.ready_now(id)
    }

    fn ready_now(&self, id: PeerId) -> Option<PeerChange> {
        let peer = self.peers.get(&id).filter(|peer| peer.path)?;
        let (rank, incarnation) = peer.hello?;
        Some(PeerChange::Ready { peer: id, rank, incarnation })
    }

    /// Ends the link to a peer that sent what it must not; the end is reported with the reason.
    pub(super) fn broke<E: Endpoint>(&mut self, ctx: &mut Context<E>, id: PeerId, why: PathError) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.why.get_or_insert(why);
        }
        ctx.endpoint.close(id);
    }

    /// The peer said something. False when it is not a peer (any more): what came behind bad bytes,
    /// before their link had ended, is not listened to.
    pub(super) fn heard(&mut self, id: PeerId, now: Instant) -> bool {
        let peer = self.peers.get_mut(&id).filter(|peer| peer.why.is_none());
        peer.map(|peer| (peer.heard, peer.asked) = (now, now)).is_some()
    }

    /// Whether room messages of this peer may be listened to: it must have said hello.
    pub(super) fn greeted(&self, id: PeerId) -> bool {
        self.peers.get(&id).is_some_and(|peer| peer.hello.is_some())
    }

    pub(super) fn hello<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        id: PeerId,
        theirs: &Hello,
    ) -> Option<PeerChange> {
        let peer = self.peers.get_mut(&id)?;
        if peer.hello.is_some() {
            return None;
        }
        if !peer.is_life(theirs.incarnation) {
            return Some(self.unproven(ctx, id, Cause::Unproven));
        }
        if let Err(cause) = agree(&self.hello, theirs) {
            ctx.send(id, &Message::Refuse(cause));
            return Some(self.refused(ctx, id, cause));
        }
        if let Err(error) = ctx.endpoint.connect(id, &theirs.address, peer.dialler) {
            self.broke(ctx, id, no_path(error));
            return None;
        }
        peer.hello = Some((theirs.rank, theirs.incarnation));
        self.ready_now(id)
    }

    /// The handshake failed, here or there.
    pub(super) fn refused<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        id: PeerId,
        cause: Cause,
    ) -> PeerChange {
        ctx.endpoint.close(id);
        PeerChange::Refused { peer: id, cause }
    }

    /// Ends what is silent, asks what is quiet. Returns when to look again.
    pub(super) fn tick<E: Endpoint>(&mut self, ctx: &mut Context<E>) -> Instant {
        let (now, heartbeat) = (ctx.now, ctx.config.heartbeat);
        let silence = heartbeat * (ctx.config.missed + 1);
        for (id, peer) in &mut self.peers {
            let late = peer.hello.is_none() && now >= peer.up + ctx.config.handshake;
            if late || now >= peer.heard + silence {
                ctx.stats.unproven += u64::from(peer.why.is_none() && !peer.is_proven());
                peer.why.get_or_insert(PathError::Timeout);
                ctx.endpoint.disconnect(*id);
                ctx.endpoint.close(*id);
            } else if peer.is_proven() && now >= peer.asked + heartbeat {
                peer.asked = now;
                ctx.send(*id, &Message::Ping(now.as_nanos()));
            }
        }
        now + heartbeat / 4
    }

    pub(super) fn geometry(&self) -> &Geometry {
        &self.hello.geometry
    }
}

fn agree(ours: &Hello, theirs: &Hello) -> Result<(), Cause> {
    if ours.role == theirs.role {
        return Err(Cause::SameRole);
    }
    ours.geometry.check(&theirs.geometry).map_err(Cause::Layout)
}

/// Why a link ends whose path cannot even be begun.
fn no_path(error: FabricError) -> PathError {
    match error {
        FabricError::BadAddress => PathError::Protocol("a malformed fabric address"),
        FabricError::Device(status) => PathError::Device(status),
        _ => PathError::ClosedHere,
    }
}

/// A cause that the other side stated, as we see it.
pub(super) fn mirrored(cause: Cause) -> Cause {
    match cause {
        Cause::Layout(mismatch) => Cause::Layout(mismatch.swapped()),
        same => same,
    }
}

impl From<PeerChange> for NodeEvent {
    fn from(change: PeerChange) -> Self {
        match change {
            PeerChange::Ready { peer, rank, incarnation } => {
                Self::PeerReady { peer, rank, incarnation }
            }
            PeerChange::Down { peer, reason } => Self::PeerDown { peer, reason },
            PeerChange::Refused { peer, cause } => Self::PeerRefused { peer, cause },
        }
    }
}

impl NodeStats {
    pub(super) fn note_foreign(&mut self) {
        self.foreign += 1;
    }
}
