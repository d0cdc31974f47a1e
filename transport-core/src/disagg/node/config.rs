//! A node's settings, its counters, and what it reports about peers.

use alloc::vec::Vec;
use core::task::Waker;
use core::time::Duration;

use thiserror::Error;

use crate::disagg::admission::{AdmissionConfig, Answer, BadWatermarks};
use crate::disagg::consensus::Attempt;
use crate::disagg::room::Deadlines;
use crate::disagg::topology::Layout;
use crate::disagg::trust::{Secret, SharedKey};
use crate::disagg::{
    Cause, DType, Geometry, ItemSizes, KvLayout, RoomId, StateGeometry, StateKind,
};
use crate::fabric::{FabricError, PathError, PeerId};
use crate::memory::CacheTables;
use crate::transfer::{MAX_DELIVERIES, Part};
use crate::wire::Role;

/// A node's settings. Fields are public; start from [`NodeConfig::new`]. Times may be a millisecond
/// to a year; a node is not made with what it cannot work with ([`NodeError`]).
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// What the node does.
    pub role: Role,
    /// Its engine: a number that all ranks of one engine have, and no other engine's ranks.
    pub engine: u64,
    /// How the engine spreads its cache over its ranks; `None`: it is one rank.
    pub layout: Option<Layout>,
    /// Its rank's number among its engine's processes:
    /// [`Rank::number`](crate::disagg::topology::Rank::number).
    pub rank: u32,
    /// A number that no earlier life of this node had (R6): random, or the start time.
    pub incarnation: u64,
    /// Randomness that grants' tags and the nonces of handshakes are made from. It must be random,
    /// and another one in every life: see [`Secret`].
    pub secret: Secret,
    /// Prefill: the engine's requests go to its data-parallel rank `room % dp` (the policy
    /// follow-bootstrap-room). A room that is opened at another rank fails at once, here and at the
    /// decode nodes, which look for it there (R4). The rank and how many there are, are the layout's.
    pub follow_room: bool,
    /// Decode nodes ask the directory where a request is, whatever the policy. Must be set on both sides
    /// or on none: no room is misrouted then.
    pub force_query: bool,
    /// What all nodes of the cluster share. With it a peer must prove that it has it before
    /// anything else (W3); without it, whoever reaches the node can take part, and
    /// [`NodeEvent::Unprotected`] says so.
    pub key: Option<SharedKey>,
    /// What the cache holds.
    pub model: Model,
    /// Decode: what prefill nodes that ask may be given (R5). Rooms then hold their pages until they
    /// fail or are [released](super::Client::release). `None`: whoever asks is accepted, up to
    /// `max_rooms`, and nothing is to be released.
    pub admission: Option<AdmissionConfig>,
    /// How long rooms may stay in each state.
    pub deadlines: Deadlines,
    /// A peer that sent nothing for this long is asked; after `missed` such times it is down.
    pub heartbeat: Duration,
    /// Heartbeats a peer may miss; at most 65536.
    pub missed: u32,
    /// How long a handshake may take.
    pub handshake: Duration,
    /// Most requests between submission and the taking of their completions; at most 2^24. Up to 1024
    /// of them may wait for the next turn.
    pub depth: usize,
    /// Most rooms at a time, 1 to 2^24, and most grants of one peer held for rooms that are not open yet:
    /// of all peers twice as many, and a peer with more than one may have as many as it leaves free.
    pub max_rooms: usize,
    /// Most pages and state items in such held grants, of all peers together; four bytes of memory
    /// each. A peer may have as many as it leaves free: half if it is alone.
    pub early_items: u64,
    /// Most KV deliveries per room that this node grants; 1 to [`MAX_DELIVERIES`].
    pub deliveries: u32,
    /// How many rooms that failed are remembered, and of how many of the peers' slots the last use that
    /// succeeded; the peers share them. In a group also how many of its decisions. 1 to 2^24.
    pub tombstones: usize,
    /// For how long: at least as long as any message may be late, and as the deadlines `drain` and
    /// `retry`.
    pub remember: Duration,
    /// Wakes the thread that drives the node, when a request is submitted.
    pub driver: Option<Waker>,
}

impl NodeConfig {
    /// The defaults of everything but who the node is: no key, no admission, heartbeat 5 s, 2 may be missed,
    /// handshake 10 s, depth 1024, 65536 rooms, 2^24 items in early grants, 4096 deliveries, 65536
    /// tombstones for 600 s. `secret` must be random ([`Secret`]).
    pub fn new(role: Role, incarnation: u64, secret: u128, model: Model) -> Self {
        Self {
            role,
            engine: 0,
            layout: None,
            rank: 0,
            incarnation,
            follow_room: false,
            force_query: false,
            secret: Secret(secret),
            key: None,
            model,
            admission: None,
            deadlines: Deadlines::default(),
            heartbeat: Duration::from_secs(5),
            missed: 2,
            handshake: Duration::from_secs(10),
            depth: 1024,
            max_rooms: 1 << 16,
            early_items: 1 << 24,
            deliveries: 4096.min(MAX_DELIVERIES),
            tombstones: 1 << 16,
            remember: Duration::from_secs(600),
            driver: None,
        }
    }
}

/// Shortest time that a deadline or a heartbeat may be set to: what comes due at once, again and
/// again, would keep its node turning for ever.
const SHORTEST: Duration = Duration::from_millis(1);
/// Longest one: sums and products of settings stay far inside what a [`Duration`] holds.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);
/// Most heartbeats a peer may miss.
const MOST_MISSED: u32 = 1 << 16;
/// Most requests in a queue, rooms at a time, and endings that are remembered.
const MOST_KEPT: u64 = 1 << 24;

impl NodeConfig {
    /// Whether every setting is one that a node can work with; the first that is not.
    pub(super) fn check(&self, tables: &CacheTables) -> Result<(), NodeError> {
        self.check_capacity(tables)?;
        let due = &self.deadlines;
        check_time("deadlines.bootstrap", due.bootstrap)?;
        check_time("deadlines.waiting", due.waiting)?;
        check_time("deadlines.stall", due.stall)?;
        check_time("deadlines.drain", due.drain)?;
        check_time("deadlines.retry", due.retry)?;
        check_time("heartbeat", self.heartbeat)?;
        check_time("handshake", self.handshake)?;
        check_number("missed", self.missed.into(), 0, MOST_MISSED.into())?;
        check_number("deliveries", self.deliveries.into(), 1, MAX_DELIVERIES.into())?;
        check_number("depth", self.depth as u64, 1, MOST_KEPT)?;
        check_number("max_rooms", self.max_rooms as u64, 1, MOST_KEPT)?;
        self.check_memory()
    }

    /// Whether endings are remembered while others may ask for them: a rank whose coordinator has
    /// forgotten a success, or a peer that repeats itself while it drains, would be told a failure.
    fn check_memory(&self) -> Result<(), NodeError> {
        check_number("tombstones", self.tombstones as u64, 1, MOST_KEPT)?;
        let least = self.deadlines.drain.max(self.deadlines.retry);
        check_time_from(least, "remember", self.remember)
    }

    /// Whether the tables have what may be given away.
    fn check_capacity(&self, tables: &CacheTables) -> Result<(), NodeError> {
        let given = self.admission.iter().flat_map(|admission| admission.capacity.parts());
        for (part, capacity) in given.collect::<Vec<_>>() {
            let items = tables.table(part).map_or(0, |table| table.items().into());
            if capacity > items {
                return Err(NodeError::Capacity { part: part.to_wire(), capacity, items });
            }
        }
        Ok(())
    }
}

fn check_time(field: &'static str, value: Duration) -> Result<(), NodeError> {
    check_time_from(SHORTEST, field, value)
}

fn check_time_from(least: Duration, field: &'static str, value: Duration) -> Result<(), NodeError> {
    let most = LONGEST;
    let fits = (least..=most).contains(&value);
    if fits { Ok(()) } else { Err(NodeError::Time { field, value, least, most }) }
}

fn check_number(field: &'static str, value: u64, least: u64, most: u64) -> Result<(), NodeError> {
    let fits = (least..=most).contains(&value);
    if fits { Ok(()) } else { Err(NodeError::Number { field, value, least, most }) }
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
    /// One layer of one KV head, 16 tokens a page, no state: all that most tests of nodes need.
    #[cfg(any(feature = "sim", feature = "conformance"))]
    pub fn smallest() -> Self {
        Self {
            dtype: DType::BFloat16,
            kv_layout: KvLayout::Nhd,
            page_tokens: 16,
            layers: 1,
            kv_heads: 1,
            state: Vec::new(),
            compat: 0,
        }
    }

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

/// What happened to a peer, or to an ask. For logs and for choosing whom to ask; rooms learn it by themselves.
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
    /// A rank of our own group can be told how rooms end.
    SiblingUp {
        /// The peer. It cannot be named in requests.
        peer: PeerId,
        /// Its rank.
        rank: u32,
        /// Its life.
        incarnation: u64,
    },
    /// A rank of our own group is gone: what it took part in has failed.
    SiblingDown {
        /// The peer.
        peer: PeerId,
        /// Its rank.
        rank: u32,
        /// Why.
        reason: PathError,
    },
    /// A room succeeded in this group, of which this node is the coordinator, and a rank of it failed
    /// after it had been counted: cancel the request on all ranks. It may come more than once. It comes
    /// before other news, and no number of those makes it forgotten.
    RankLost {
        /// The room.
        attempt: Attempt,
        /// The rank's place in the group.
        rank: u32,
        /// Why it failed.
        cause: Cause,
    },
    /// Prefill: what became of an [`Ask`](super::Ask) after its first answer.
    Answered {
        /// The room.
        room: RoomId,
        /// Who was asked.
        peer: PeerId,
        /// [`Answer::Accepted`] after it was queued; or why it has come to nothing.
        result: Result<Answer, Cause>,
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
    /// Asks under way now, on the prefill side: unanswered, or let in or queued and without a grant.
    pub asking: u64,
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
    /// More may be given to rooms that are asked for than the tables have.
    #[error("part {part}: {capacity} may be given to rooms, but the table has {items}")]
    Capacity {
        /// Wire number of the part.
        part: u8,
        /// In [`AdmissionConfig::capacity`].
        capacity: u64,
        /// Items of the table.
        items: u64,
    },
    /// The fabric refused the tables.
    #[error("the fabric refused the tables: {0}")]
    Fabric(#[from] FabricError),
    /// A number in the configuration is out of range.
    #[error("{field} is {value}, but must be {least} to {most}")]
    Number {
        /// The field of [`NodeConfig`].
        field: &'static str,
        /// Its value.
        value: u64,
        /// The least that it may be.
        least: u64,
        /// The most that it may be.
        most: u64,
    },
    /// A time in the configuration is out of range.
    #[error("{field} is {value:?}, but must be {least:?} to {most:?}")]
    Time {
        /// The field of [`NodeConfig`].
        field: &'static str,
        /// Its value.
        value: Duration,
        /// The least that it may be.
        least: Duration,
        /// The most that it may be.
        most: Duration,
    },
    /// The tables are not those of the rank that the layout describes, or it has no such rank.
    #[error("part {part}: the tables are not those of rank {rank} of the layout")]
    Layout {
        /// The rank's number.
        rank: u32,
        /// Wire number of the first part that differs.
        part: u8,
    },
    /// The watermarks of the node's admission cannot be.
    #[error(transparent)]
    Watermarks(#[from] BadWatermarks),
    /// The model names another number of state components than there are tables.
    #[error("the model has {kinds} state components, the tables {tables}")]
    StateKinds {
        /// Kinds in the model.
        kinds: usize,
        /// State tables.
        tables: usize,
    },
}
