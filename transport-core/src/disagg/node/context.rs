//! What both sides of a node share: the endpoint, the tables, aux slots, timers, messages out.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use super::address::Address;
use super::config::{NodeConfig, NodeEvent, NodeStats};
use super::events::Events;
use super::farewell::Farewells;
use super::request::{Lease, Request, lists};
use super::timers::Timers;
use crate::Instant;
use crate::disagg::Cause;
use crate::disagg::room::{Deadlines, Note};
use crate::disagg::topology::Rank;
use crate::disagg::trust::{End, Handshake, Mint};
use crate::fabric::PeerId;
use crate::link::{Endpoint, MAX_MESSAGE};
use crate::memory::{CacheTables, PagedTable};
use crate::queue::Port;
use crate::transfer::{Grant, MAX_COMPONENTS, Part};
use crate::wire::{self, AuxRecord, GrantOffer, Message, Stated, WireError};

#[derive(Debug)]
pub(super) struct Context<E> {
    pub(super) endpoint: E,
    pub(super) tables: CacheTables,
    pub(super) config: NodeConfig,
    pub(super) port: Port<Request>,
    pub(super) timers: Timers,
    pub(super) farewells: Farewells,
    pub(super) stats: NodeStats,
    events: Arc<Events>,
    pub(super) now: Instant,
    /// Parts that no layer of this rank has, by their wire numbers: nobody writes their tables.
    absent: u32,
    mint: Mint,
    /// Aux slots nobody uses.
    free_aux: Vec<u32>,
    /// Those of them that were in use as lists of one, to be so again without an allocation.
    free_aux_lists: Vec<Arc<[u32]>>,
    /// Reused for every message and aux record.
    bytes: Vec<u8>,
}

impl<E: Endpoint> Context<E> {
    pub(super) fn new(
        endpoint: E,
        tables: CacheTables,
        config: NodeConfig,
        port: Port<Request>,
        events: Arc<Events>,
    ) -> Self {
        let absent = absent_parts(&config);
        let mint = Mint::new(config.secret, config.incarnation);
        let slots = tables.table(Part::Aux).map_or(0, |table| table.items());
        Self {
            endpoint,
            tables,
            config,
            port,
            timers: Timers::new(),
            farewells: Farewells::default(),
            stats: NodeStats::default(),
            events,
            now: Instant::ZERO,
            absent,
            mint,
            free_aux: (0..slots).rev().collect(),
            free_aux_lists: Vec::new(),
            bytes: Vec::new(),
        }
    }

    pub(super) fn deadlines(&self) -> Deadlines {
        self.config.deadlines
    }

    /// Tells the scheduler what it did not ask for.
    pub(super) fn report(&self, event: NodeEvent) {
        self.events.report(event);
    }

    /// Queues a message. One that the link cannot take now is as good as lost on the way: rooms
    /// repeat what matters until it is answered.
    pub(super) fn send(&mut self, peer: PeerId, message: &Message) {
        self.bytes.clear();
        if wire::encode(message, &mut self.bytes).is_ok() {
            let _ = self.endpoint.send(peer, &self.bytes);
        }
    }

    /// Sends what a room has to say.
    pub(super) fn send_note(&mut self, to: Address, note: Note) {
        let Address { peer, room, grant } = to;
        let rank = self.config.rank;
        let message = match note {
            Note::Accept => Message::Accept { room, grant },
            Note::Manifest(manifest) => Message::Manifest(Stated { room, grant, rank, manifest }),
            Note::Complete => Message::Complete { room, grant },
            Note::Abort { cause, drained } => Message::Abort { room, grant, cause, drained },
            Note::Drained => Message::Drained { room, grant },
            // Only decode rooms say it, and they know more than the address.
            Note::Grant { .. } => return,
        };
        self.send(peer, &message);
    }

    /// Tells the other side of a grant that nothing comes of it, until it has heard.
    pub(super) fn bid_farewell(&mut self, to: Address, cause: Cause) {
        let Deadlines { retry, drain, .. } = self.deadlines();
        self.farewells.insert(self.now + retry, self.now + drain, to, cause);
        self.send_note(to, Note::Abort { cause, drained: true });
    }

    /// Says again what was not heard yet.
    pub(super) fn repeat_farewells(&mut self) {
        while let Some((to, cause)) = self.farewells.pop(self.now, self.config.deadlines.retry) {
            self.send_note(to, Note::Abort { cause, drained: true });
        }
    }

    /// Sends a grant. One that no message can carry would be repeated in vain: its room must fail.
    pub(super) fn send_offer(&mut self, peer: PeerId, offer: GrantOffer) -> Result<(), Cause> {
        let message = Message::Grant(offer);
        self.bytes.clear();
        match (wire::encode(&message, &mut self.bytes), message) {
            (Err(error), Message::Grant(offer)) => Err(unsendable(&offer.grant, error)),
            _ => {
                let _ = self.endpoint.send(peer, &self.bytes);
                Ok(())
            }
        }
    }

    pub(super) fn take_aux_slot(&mut self) -> Option<u32> {
        self.free_aux.pop()
    }

    pub(super) fn return_aux_slot(&mut self, slot: Option<u32>) {
        self.free_aux.extend(slot);
    }

    /// An aux slot as a write names it.
    pub(super) fn take_aux_list(&mut self) -> Option<Arc<[u32]>> {
        let unlisted = || Some(Arc::from([self.free_aux.pop()?]));
        self.free_aux_lists.pop().or_else(unlisted)
    }

    pub(super) fn return_aux_list(&mut self, slot: Arc<[u32]>) {
        self.free_aux_lists.push(slot);
    }

    pub(super) fn aux_slots(&self) -> u64 {
        self.tables.table(Part::Aux).map_or(0, |table| u64::from(table.items()))
    }

    /// Bytes of one item of a part, in all its buffers.
    pub(super) fn item_bytes(&self, part: Part) -> u64 {
        let bit = 1u32.checked_shl(part.to_wire().into()).unwrap_or(0);
        if self.absent & bit != 0 {
            return 0;
        }
        self.tables.table(part).map_or(0, |table| table.item_bytes())
    }

    /// Why a request with these items must fail, if one of them is not in the tables.
    pub(super) fn outsider(&self, pages: &Lease, state: &[Lease]) -> Option<Cause> {
        lists(pages, state).find_map(|(part, lease)| {
            let item = self.tables.outsider(part, lease.items())?;
            Some(Cause::ItemOutOfRange { part: part.to_wire(), item })
        })
    }

    /// Bytes of payload that fit an aux slot.
    pub(super) fn aux_room(&self) -> u64 {
        let slot = self.tables.table(Part::Aux).map_or(0, |table| table.item_bytes());
        slot.saturating_sub(wire::AUX_HEADER_BYTES as u64)
    }

    /// Writes a record into one of our own slots, to be sent from there.
    pub(super) fn write_aux(&mut self, slot: u32, record: &AuxRecord, payload: &[u8]) -> bool {
        self.bytes.clear();
        let fits = record.encode(payload, &mut self.bytes).is_ok();
        let Some((table, offset)) = self.aux_at(slot).filter(|_| fits) else { return false };
        table.region(0).write(offset, &self.bytes).is_ok()
    }

    /// Copies a received record out and checks it as a unit (G6): its payload, if it is `expected`.
    pub(super) fn read_aux(&mut self, slot: u32, expected: &AuxRecord) -> Option<Vec<u8>> {
        let (table, offset) = self.aux_at(slot)?;
        let len = table.item_bytes() as usize;
        self.bytes.clear();
        self.bytes.resize(len, 0);
        table.region(0).read(offset, &mut self.bytes).ok()?;
        expected.check(&self.bytes).ok().map(Vec::from)
    }

    fn aux_at(&self, slot: u32) -> Option<(Arc<PagedTable>, usize)> {
        let table = self.tables.table(Part::Aux)?;
        let shape = table.shapes().first()?;
        let offset = shape.offset + u64::from(slot) * shape.stride;
        (slot < table.items()).then(|| (table.clone(), offset as usize))
    }

    /// A tag that nobody can foresee.
    pub(super) fn tag(&mut self) -> u64 {
        self.mint.tag()
    }

    /// The handshake of a new link, if there is a shared key to prove.
    pub(super) fn handshake(&mut self, end: End) -> Option<Handshake> {
        let key = self.config.key.clone()?;
        Some(Handshake::new(key, end, self.mint.nonce(), self.config.incarnation))
    }

    pub(super) fn count_write(&mut self, bytes: u64) {
        self.stats.writes += 1;
        self.stats.bytes += bytes;
    }

    pub(super) fn count_end(&mut self, success: bool) {
        let counter = if success { &mut self.stats.succeeded } else { &mut self.stats.failed };
        *counter += 1;
    }
}

/// Milliseconds as a message carries them.
pub(super) fn wire_millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

/// A bit for each part that no layer of the rank has.
fn absent_parts(config: &NodeConfig) -> u32 {
    let Some(layout) = &config.layout else { return 0 };
    let Some(rank) = Rank::of_number(config.rank, layout.sizes()) else { return 0 };
    let absent = layout.components().filter(|(part, _)| !layout.has(*part, rank.pp));
    absent.fold(0, |bits, (part, _)| bits | 1 << part.to_wire())
}

/// What is wrong with a grant that breaks a limit of the protocol.
fn unsendable(grant: &Grant, error: WireError) -> Cause {
    match error {
        WireError::RepeatedItem { item, .. } => {
            let twice = |list: &[u32]| list.iter().filter(|other| **other == item).count() > 1;
            let state = (0..MAX_COMPONENTS as u8).map(Part::State);
            let part = state.into_iter().find(|part| twice(grant.items(*part)));
            Cause::ItemOutOfRange { part: part.unwrap_or(Part::Kv).to_wire(), item }
        }
        WireError::OverLimit { limit, .. } => Cause::TooMany { limit },
        _ => Cause::TooMany { limit: MAX_MESSAGE as u64 },
    }
}
