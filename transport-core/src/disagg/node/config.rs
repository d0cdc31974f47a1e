//! A node's settings, its counters, and what it reports about peers.

use alloc::vec::Vec;
use core::task::Waker;
use core::time::Duration;

use thiserror::Error;

use crate::disagg::room::Deadlines;
use crate::disagg::trust::{Secret, SharedKey};
use crate::disagg::{Cause, DType, Geometry, ItemSizes, KvLayout, StateGeometry, StateKind};
use crate::fabric::{FabricError, PathError, PeerId};
use crate::memory::CacheTables;
use crate::transfer::{MAX_DELIVERIES, Part};
use crate::wire::Role;

/// A node's settings. Fields are public; start from [`NodeConfig::new`].
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// What the node does.
    pub role: Role,
    /// Its rank among its engine's processes.
    pub rank: u32,
    /// A number that no earlier life of this node had (R6): random, or the start time.
    pub incarnation: u64,
    /// Randomness that grants' tags and the nonces of handshakes are made from. It must be random,
    /// and another one in every life: see [`Secret`].
    pub secret: Secret,
    /// What all nodes of the cluster share. With it a peer must prove that it has it before
    /// anything else (W3); without it, whoever reaches the node can take part, and
    /// [`NodeEvent::Unprotected`] says so.
    pub key: Option<SharedKey>,
    /// What the cache holds.
    pub model: Model,
    /// How long rooms may stay in each state.
    pub deadlines: Deadlines,
    /// A peer that sent nothing for this long is asked; after `missed` such times it is down.
    pub heartbeat: Duration,
    /// Heartbeats a peer may miss.
    pub missed: u32,
    /// How long a handshake may take.
    pub handshake: Duration,
    /// Most requests between submission and the taking of their completions.
    pub depth: usize,
    /// Most rooms at a time, and most grants held for rooms that are not open yet.
    pub max_rooms: usize,
    /// Most KV deliveries per room that this node grants; at most [`MAX_DELIVERIES`].
    pub deliveries: u32,
    /// How many ended rooms are remembered.
    pub tombstones: usize,
    /// For how long: at least as long as any message may be late.
    pub remember: Duration,
    /// Wakes the thread that drives the node, when a request is submitted.
    pub driver: Option<Waker>,
}

impl NodeConfig {
    /// The defaults of everything but who the node is: no key, heartbeat 5 s, 2 may be missed,
    /// handshake 10 s, depth 1024, 65536 rooms, 4096 deliveries, 65536 tombstones for 600 s.
    /// `secret` must be random ([`Secret`]).
    pub fn new(role: Role, incarnation: u64, secret: u128, model: Model) -> Self {
        Self {
            role,
            rank: 0,
            incarnation,
            secret: Secret(secret),
            key: None,
            model,
            deadlines: Deadlines::default(),
            heartbeat: Duration::from_secs(5),
            missed: 2,
            handshake: Duration::from_secs(10),
            depth: 1024,
            max_rooms: 1 << 16,
            deliveries: 4096.min(MAX_DELIVERIES),
            tombstones: 1 << 16,
            remember: Duration::from_secs(600),
            driver: None,
        }
    }
}

/// What the tables hold: the part of a [`crate::disagg::Geometry`] that tables cannot tell.
#[derive(Clone, Debug)]
pub struct Model {
    /// Element type.
    pub dtype: DType,
    /// Axes of a page.
    pub kv_layout: KvLayout,
    /// Tokens in a page.
    pub page_tokens: u32,
    /// Layers whose KV the tables hold.
    pub layers: u32,
    /// KV heads; 1 for MLA.
    pub kv_heads: u32,
    /// Kind of each state component, in the order of the state tables.
    pub state: Vec<StateKind>,
    /// The engine's own tag (model, revision, quantisation), equal on both sides.
    pub compat: u64,
}

impl Model {
    /// The geometry of these tables: sizes are taken from what is there, not stated beside it.
    pub fn geometry(&self, tables: &CacheTables) -> Geometry {
        let sizes = |part| tables.table(part).map(|t| ItemSizes::of(t)).unwrap_or_default();
        let numbered = (0..=u8::MAX).zip(&self.state);
        let state =
            numbered.map(|(k, kind)| StateGeometry { kind: *kind, sizes: sizes(Part::State(k)) });
        Geometry {
            dtype: self.dtype,
            kv_layout: self.kv_layout,
            page_tokens: self.page_tokens,
            layers: self.layers,
            kv_heads: self.kv_heads,
            kv: sizes(Part::Kv),
            aux_bytes: tables.table(Part::Aux).map_or(0, |table| table.item_bytes()),
            state: state.collect(),
            compat: self.compat,
        }
    }
}

/// What happened to a peer. For logs and for choosing whom to ask; rooms learn it by themselves.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum NodeEvent {
    /// The peer can be named in requests.
    PeerReady {
        /// The peer.
        peer: PeerId,
        /// Its rank.
        rank: u32,
        /// Its life.
        incarnation: u64,
    },
    /// The peer is gone; its rooms have failed.
    PeerDown {
        /// The peer.
        peer: PeerId,
        /// Why.
        reason: PathError,
    },
    /// The handshake failed, here or there. A dialled peer is tried again.
    PeerRefused {
        /// The peer.
        peer: PeerId,
        /// Why.
        cause: Cause,
    },
    /// The node has no shared key: whoever reaches it can take part. Once, when it is made. Warn,
    /// and set [`NodeConfig::key`] where strangers can reach the node.
    Unprotected,
}

/// Counters since the node was made.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct NodeStats {
    /// Rooms open now, on the decode side.
    pub receiving: u64,
    /// Rooms open now, on the prefill side.
    pub sending: u64,
    /// Rooms that succeeded.
    pub succeeded: u64,
    /// Rooms that failed.
    pub failed: u64,
    /// Writes posted.
    pub writes: u64,
    /// Bytes of writes posted.
    pub bytes: u64,
    /// Messages for rooms that the node does not have, or from a peer that is not the room's.
    pub foreign: u64,
    /// Messages that were not messages; each ended its link.
    pub malformed: u64,
    /// Arrivals under no grant in force.
    pub strays: u64,
    /// Links that ended because no common key was proven, or not in time.
    pub unproven: u64,
}

/// A node that cannot be made.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum NodeError {
    /// The aux table's slots cannot hold a record's header.
    #[error("an aux slot of {bytes} bytes is too small for a record")]
    AuxSlot {
        /// Bytes of a slot.
        bytes: u64,
    },
    /// The fabric refused the tables.
    #[error("the fabric refused the tables: {0}")]
    Fabric(#[from] FabricError),
    /// The model names another number of state components than there are tables.
    #[error("the model has {kinds} state components, the tables {tables}")]
    StateKinds {
        /// Kinds in the model.
        kinds: usize,
        /// State tables.
        tables: usize,
    },
}
