//! Peers: the handshake, the heartbeat, and who is ready.
//!
//! A link comes up; both sides say hello; each checks the other's role and geometry (W2) and builds
//! its fabric's path. A peer is ready when hello and path are there. Silence is answered by a ping,
//! more silence ends the path: then nothing of that peer can land any more, and its rooms fail.
//! Where there is a shared key, all of that begins when the peer has proven it ([`proof`]).
//!
//! A path may end later than its link. Invariant: until the fabric has said that it ended, the
//! peer's rooms do not end, and no other path to it is begun, whatever its link does (M2).
//!
//! And it may end sooner: a peer that leaves closes both, and the news of that travel apart. What it
//! said last is on the link, so rooms end with the link then, or a heartbeat later (R7).

mod proof;

use alloc::vec::Vec;

use hashbrown::HashMap;

use super::config::{NodeEvent, NodeStats};
use super::context::Context;
use super::pairing::{Pairing, Sibling};
use crate::Instant;
use crate::disagg::trust::Handshake;
use crate::disagg::{Cause, Geometry};
use crate::fabric::{FabricError, PathError, PeerId, WriteError};
use crate::link::Endpoint;
use crate::wire::{Hello, Message};

#[derive(Debug)]
pub(super) struct Peers {
    peers: HashMap<PeerId, Peer>,
    /// Paths that have not ended though their links have, and why those did.
    ending: HashMap<PeerId, PathError>,
    /// Peers that are ready, by engine and rank: of several links to one the newest.
    by_rank: HashMap<(u64, u32), PeerId>,
    hello: Hello,
}

#[derive(Debug)]
struct Peer {
    dialler: bool,
    /// Who it is to us, once it said hello and its path is begun.
    hello: Option<Pairing>,
    /// The same and its fabric's address, while the path before has not ended.
    waiting: Option<(Pairing, Vec<u8>)>,
    /// Or which rank of our own group it is. It has no path.
    sibling: Option<Sibling>,
    /// With a shared key: what it must prove, and has proven.
    trust: Option<Handshake>,
    path: bool,
    /// When it closed the path, if it did: its link is about to end, too.
    left: Option<Instant>,
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
    SiblingUp { peer: PeerId, rank: u32, place: u32, incarnation: u64 },
    SiblingDown { peer: PeerId, rank: u32, place: u32, reason: PathError },
}

/// What a peer that says something is to us.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Standing {
    /// It has not proven the shared key, and may say nothing else.
    Unproven,
    /// It has not said hello: what it says about rooms is not listened to.
    Stranger,
    /// A rank of the other side.
    Greeted,
    /// A rank of our own group, at this place.
    Sibling { place: u32 },
}

impl Peers {
    pub(super) fn new(hello: Hello) -> Self {
        let (peers, ending, by_rank) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { peers, ending, by_rank, hello }
    }

    /// Who a peer is to us that is ready.
    pub(super) fn ready(&self, peer: PeerId) -> Option<&Pairing> {
        self.peers.get(&peer).filter(|peer| peer.path)?.hello.as_ref()
    }

    /// Who a peer is to us that said hello.
    pub(super) fn pairing(&self, peer: PeerId) -> Option<&Pairing> {
        self.peers.get(&peer)?.hello.as_ref()
    }

    /// Whether a peer is a rank of our own group.
    pub(super) fn is_sibling(&self, peer: PeerId) -> bool {
        self.peers.get(&peer).is_some_and(|peer| peer.sibling.is_some())
    }

    /// Whether two peers are ranks of one group of the other side, which have their rooms together.
    pub(super) fn are_one_group(&self, one: PeerId, other: PeerId) -> bool {
        let group = |peer| self.pairing(peer).map(|pairing| (pairing.engine, pairing.place.dp));
        one == other || group(one).is_some_and(|named| group(other) == Some(named))
    }

    /// The peer of that engine and rank, if it is ready.
    pub(super) fn find(&self, writer: (u64, u32)) -> Option<(PeerId, &Pairing)> {
        let peer = *self.by_rank.get(&writer)?;
        Some((peer, self.ready(peer)?))
    }

    pub(super) fn link_up<E: Endpoint>(&mut self, ctx: &mut Context<E>, id: PeerId, dialler: bool) {
        let now = ctx.now;
        let peer = Peer {
            dialler,
            hello: None,
            waiting: None,
            sibling: None,
            trust: self.begin_proof(ctx, id, dialler),
            path: false,
            left: None,
            why: None,
            up: now,
            heard: now,
            asked: now,
        };
        self.peers.insert(id, peer);
    }

    /// The link is gone: the path goes with it. Its own end is what frees pages; without one there
    /// is nothing to wait for.
    pub(super) fn link_down<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        id: PeerId,
        reason: PathError,
    ) -> Option<PeerChange> {
        ctx.endpoint.disconnect(id);
        let peer = self.remove(id)?;
        let left = peer.left.map(|_| PathError::ClosedByPeer);
        let reason = peer.why.or(left).unwrap_or(reason);
        if let Some(Sibling { rank, place, .. }) = peer.sibling {
            return Some(PeerChange::SiblingDown { peer: id, rank, place, reason });
        }
        if peer.hello.is_some() && left.is_none() {
            self.ending.insert(id, reason);
        }
        let waits = self.ending.contains_key(&id);
        (!waits).then_some(PeerChange::Down { peer: id, reason })
    }

    /// Why a peer's link ended whose path has not.
    pub(super) fn ending(&self, id: PeerId) -> Option<PathError> {
        self.ending.get(&id).copied()
    }

    /// The path is gone: nothing of the peer can land. The link follows, unless it is the next one. If
    /// it was the peer who closed the path it does the same with the link, and is heard out until then.
    pub(super) fn path_down<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        id: PeerId,
        reason: PathError,
    ) -> Option<PeerChange> {
        if let Some(reason) = self.ending.remove(&id) {
            return Some(PeerChange::Down { peer: id, reason });
        }
        let stays = |peer: &&mut Peer| peer.why.is_none() && reason == PathError::ClosedByPeer;
        if let Some(peer) = self.peers.get_mut(&id).filter(stays) {
            (peer.path, peer.left) = (false, Some(ctx.now));
            let named = peer.named();
            self.reach_anew(named, id);
            return None;
        }
        ctx.endpoint.close(id);
        let peer = self.remove(id)?;
        Some(PeerChange::Down { peer: id, reason: peer.why.unwrap_or(reason) })
    }

    /// A write's error, with the reason why we took its path down, if we did: the fabric cannot know
    /// that one.
    pub(super) fn explain(&self, id: PeerId, error: WriteError) -> WriteError {
        let why = || self.peers.get(&id).and_then(|peer| peer.why);
        match error {
            WriteError::Path(PathError::ClosedHere) => {
                let why = self.ending(id).or_else(why);
                WriteError::Path(why.unwrap_or(PathError::ClosedHere))
            }
            other => other,
        }
    }

    fn remove(&mut self, id: PeerId) -> Option<Peer> {
        let peer = self.peers.remove(&id)?;
        self.reach_anew(peer.named(), id);
        Some(peer)
    }

    /// A rank is not reached by `id` any more: by the newest of its other links, if it has one.
    fn reach_anew(&mut self, named: Option<(u64, u32)>, id: PeerId) {
        let named = named.filter(|named| self.by_rank.get(named) == Some(&id));
        let Some(rank) = named else { return };
        let others = self.peers.iter().filter(|(_, peer)| peer.path && peer.named() == named);
        match others.max_by_key(|(other, peer)| (peer.up, **other)) {
            Some((other, _)) => self.by_rank.insert(rank, *other),
            None => self.by_rank.remove(&rank),
        };
    }

    pub(super) fn path_up(&mut self, id: PeerId) -> Option<PeerChange> {
        if self.ending.contains_key(&id) {
            return None;
        }
        self.peers.get_mut(&id)?.path = true;
        self.ready_now(id)
    }

    fn ready_now(&mut self, id: PeerId) -> Option<PeerChange> {
        let peer = self.peers.get(&id).filter(|peer| peer.path)?;
        let Pairing { rank, incarnation, engine, .. } = *peer.hello.as_ref()?;
        self.by_rank.insert((engine, rank), id);
        Some(PeerChange::Ready { peer: id, rank, incarnation })
    }

    /// Ends the link to a peer that sent what it must not; the end is reported with the reason.
    pub(super) fn broke<E: Endpoint>(&mut self, ctx: &mut Context<E>, id: PeerId, why: PathError) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.why.get_or_insert(why);
        }
        ctx.endpoint.close(id);
    }

    /// The peer said something: who it is, or `None` when it is not a peer (any more). What came
    /// behind bad bytes, before their link had ended, is not listened to.
    pub(super) fn heard(&mut self, id: PeerId, now: Instant) -> Option<Standing> {
        let peer = self.peers.get_mut(&id).filter(|peer| peer.why.is_none())?;
        (peer.heard, peer.asked) = (now, now);
        Some(match peer.sibling {
            _ if !peer.is_proven() => Standing::Unproven,
            Some(Sibling { place, .. }) => Standing::Sibling { place },
            None if peer.hello.is_some() => Standing::Greeted,
            None => Standing::Stranger,
        })
    }

    /// All that have said hello, in order.
    pub(super) fn all_greeted(&self) -> Vec<PeerId> {
        let greeted = self.peers.iter().filter(|(_, peer)| peer.hello.is_some());
        let mut ids: Vec<PeerId> = greeted.map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids
    }

    pub(super) fn hello<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        id: PeerId,
        theirs: Hello,
    ) -> Option<PeerChange> {
        let peer = self.peers.get_mut(&id)?;
        if peer.has_greeted() {
            return None;
        }
        if !peer.is_life(theirs.incarnation) {
            return Some(self.unproven(ctx, id, Cause::Unproven));
        }
        if let Some(sibling) = Sibling::of(&self.hello, &theirs) {
            peer.sibling = Some(sibling);
            let Sibling { rank, place, incarnation } = sibling;
            return Some(PeerChange::SiblingUp { peer: id, rank, place, incarnation });
        }
        match Pairing::new(&self.hello, &theirs, &ctx.tables) {
            Ok(pairing) => peer.waiting = Some((pairing, theirs.address)),
            Err(cause) => {
                ctx.send(id, &Message::Refuse(cause));
                return Some(self.refused(ctx, id, cause));
            }
        }
        self.connect(ctx, id)
    }

    /// Begins the path to a peer that said hello, once the one before has ended.
    pub(super) fn connect<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        id: PeerId,
    ) -> Option<PeerChange> {
        if self.ending.contains_key(&id) {
            return None;
        }
        let peer = self.peers.get_mut(&id)?;
        let (pairing, address) = peer.waiting.take()?;
        if let Err(error) = ctx.endpoint.connect(id, &address, peer.dialler) {
            self.broke(ctx, id, no_path(error));
            return None;
        }
        peer.hello = Some(pairing);
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
            let late = !peer.has_greeted() && now >= peer.up + ctx.config.handshake;
            let left = peer.left.is_some_and(|left| now >= left + heartbeat);
            if late || left || now >= peer.heard + silence {
                ctx.stats.unproven += u64::from(peer.why.is_none() && !peer.is_proven());
                let why = if left { PathError::ClosedByPeer } else { PathError::Timeout };
                peer.why.get_or_insert(why);
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

impl Peer {
    /// Its engine and rank, once it said hello.
    fn named(&self) -> Option<(u64, u32)> {
        self.hello.as_ref().map(|pairing| (pairing.engine, pairing.rank))
    }

    fn has_greeted(&self) -> bool {
        self.hello.is_some() || self.waiting.is_some() || self.sibling.is_some()
    }
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
            PeerChange::SiblingUp { peer, rank, incarnation, .. } => {
                Self::SiblingUp { peer, rank, incarnation }
            }
            PeerChange::SiblingDown { peer, rank, reason, .. } => {
                Self::SiblingDown { peer, rank, reason }
            }
        }
    }
}

impl NodeStats {
    pub(super) fn note_foreign(&mut self) {
        self.foreign += 1;
    }
}
