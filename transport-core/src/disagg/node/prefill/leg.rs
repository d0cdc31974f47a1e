//! What a prefill room has with one of the decode ranks it writes to: its grant, the machine that
//! watches over it, and the writes on their way.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::chunks::Started;
use crate::Instant;
use crate::disagg::node::address::Address;
use crate::disagg::node::context::Context;
use crate::disagg::node::pairing::{Pairing, Split, items_of};
use crate::disagg::node::request::Lease;
use crate::disagg::node::timers::Armed;
use crate::disagg::room::{Action, ChunkShape, Note, PrefillRoom};
use crate::disagg::{Cause, RoomId};
use crate::fabric::{PeerId, PostError, Refusal, Write, WriteError, WriteId};
use crate::link::Endpoint;
use crate::transfer::{GrantId, Part};
use crate::wire::AuxRecord;

/// One reader of a room.
#[derive(Debug)]
pub(super) struct Leg {
    /// The room's name, and where it is kept.
    pub(super) id: RoomId,
    pub(super) room: GrantId,
    pub(super) peer: PeerId,
    /// The decode cp rank that the reader is.
    pub(super) cp: u32,
    pub(super) grant: GrantId,
    pub(super) machine: PrefillRoom,
    /// What of our tables goes to it, if not all.
    split: Option<Arc<Split>>,
    /// Whether its aux record is ours to write.
    aux: bool,
    /// The slot that the record is in, as a list of one.
    aux_slot: Option<Arc<[u32]>>,
    /// The chunk being started, as this reader gets it.
    at_hand: AtHand,
    /// Writes that the fabric had no room for yet, in order.
    pub(super) unposted: VecDeque<Write>,
    /// Whether it stands in its peer's line.
    pub(super) queued: bool,
    /// Whether its grant was taken and the reader was not told.
    owes_accept: bool,
    pub(super) armed: Armed,
}

#[derive(Debug, Default)]
struct AtHand {
    number: u32,
    kv: Arc<[u32]>,
    /// First granted position of its KV items.
    first: u32,
    is_last: bool,
    state: Vec<Arc<[u32]>>,
}

impl Leg {
    pub(super) fn new(
        (id, room): (RoomId, GrantId),
        (peer, pairing): (PeerId, &Pairing),
        grant: GrantId,
        machine: PrefillRoom,
        unposted: VecDeque<Write>,
    ) -> Self {
        let (split, aux) = (pairing.split.clone(), pairing.has_aux());
        Self {
            id,
            room,
            peer,
            cp: pairing.place.cp,
            grant,
            machine,
            split,
            aux,
            aux_slot: None,
            at_hand: AtHand::default(),
            unposted,
            queued: false,
            owes_accept: false,
            armed: Armed::NOT,
        }
    }

    pub(super) fn address(&self) -> Address {
        Address { peer: self.peer, room: self.id, grant: self.grant }
    }

    /// Sends what the machine has to say, but an Accept: where the whole request is there already, its
    /// manifest goes out in the same turn and says as much.
    pub(super) fn say<E: Endpoint>(&mut self, ctx: &mut Context<E>, note: Note) {
        self.owes_accept = note == Note::Accept;
        if !self.owes_accept {
            ctx.send_note(self.address(), note);
        }
    }

    /// Sends an Accept that nothing has made needless.
    pub(super) fn accept<E: Endpoint>(&mut self, ctx: &mut Context<E>) {
        if core::mem::take(&mut self.owes_accept) {
            ctx.send_note(self.address(), Note::Accept);
        }
    }

    pub(super) fn has_unposted(&self) -> bool {
        !self.unposted.is_empty()
    }

    /// Granted KV items.
    pub(super) fn granted(&self) -> u32 {
        self.machine.grant().map_or(0, |grant| grant.kv.len() as u32)
    }

    /// Items in a page, at our side and at the reader's; `None` when it gets no KV from us.
    pub(super) fn page_blocks(&self) -> Option<(u32, u32)> {
        match self.split.as_ref().map(|split| split.view()) {
            Some(view) => view.has(Part::Kv).then(|| view.page_blocks()),
            None => Some((1, 1)),
        }
    }

    /// Works out what of a chunk goes to this reader; with the last one writes the aux record.
    /// `granted` are the granted KV items of all decode cp ranks.
    pub(super) fn take_up<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        started: &Started<'_>,
        granted: u32,
    ) -> Result<(), Cause> {
        let (pages, view) = (&started.chunk.pages, self.split.as_ref().map(|split| split.view()));
        let (kv, first) = match view {
            Some(view) => view.share(pages.items(), started.first, granted),
            None => (pages.shared().clone(), started.first),
        };
        let list = |(k, lease): (u8, &Lease)| items_of(view, Part::State(k), lease);
        let last = started.chunk.last.as_ref();
        let state = last.map_or(&[][..], |last| &last.state);
        self.at_hand.state.clear();
        self.at_hand.state.extend((0..=u8::MAX).zip(state).map(list));
        if let Some(last) = last.filter(|_| self.aux) {
            let (room, grant, incarnation) = (self.id, self.grant, ctx.config.incarnation);
            let record = AuxRecord { room, grant, incarnation };
            self.aux_slot = Some(write_aux(ctx, &record, &last.aux)?);
        }
        (self.at_hand.number, self.at_hand.first) = (started.number, first);
        (self.at_hand.kv, self.at_hand.is_last) = (kv, last.is_some());
        Ok(())
    }

    /// Feeds the chunk at hand to the machine: whether that took it.
    pub(super) fn feed(&mut self, now: Instant, out: &mut Vec<Action>) -> bool {
        let AtHand { first, is_last, .. } = self.at_hand;
        let (pages, aux, state) = (self.at_hand.kv.len() as u32, self.aux, &self.at_hand.state);
        self.machine.handle_chunk(now, ChunkShape { first, pages, is_last, aux, state }, out);
        self.machine.may_send()
    }

    /// Makes a write of the chunk at hand: its chunk's number.
    pub(super) fn prepare<E: Endpoint>(
        &mut self,
        ctx: &Context<E>,
        slot: u32,
        (part, sequence, first): (Part, u32, u32),
    ) -> Option<u32> {
        let (peer, grant) = (self.peer, self.machine.grant()?.clone());
        let view = self.split.as_ref().map(|split| &split.view().tables);
        let table = view.unwrap_or(&ctx.tables).table(part)?.clone();
        let items = match part {
            Part::Kv => self.at_hand.kv.clone(),
            Part::Aux => self.aux_slot.clone().unwrap_or_default(),
            Part::State(k) => self.at_hand.state.get(usize::from(k)).cloned().unwrap_or_default(),
        };
        let number = self.at_hand.number;
        let id = write_id(slot, number, part);
        let buffers = 0..table.shapes().len() as u16;
        let write = Write { id, peer, grant, part, sequence, first, buffers, table, items };
        self.unposted.push_back(write);
        Some(number)
    }

    /// Posts what the fabric takes. What it will never take comes back with the reason.
    pub(super) fn post<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
    ) -> Option<(WriteId, WriteError)> {
        while let Some(write) = self.unposted.pop_front() {
            let bytes = write.bytes();
            match ctx.endpoint.post(write) {
                Ok(()) => ctx.count_write(bytes),
                // The grant may come before our end of the path is up. If the path is down instead,
                // the news of that are on their way and fail the room.
                Err(PostError::Busy(write) | PostError::NoPath(write)) => {
                    self.unposted.push_front(write);
                    break;
                }
                Err(PostError::Misfit(write)) => {
                    return Some((write.id, WriteError::Refused(Refusal::OutOfGrant)));
                }
            }
        }
        None
    }

    /// Drops what was not posted, and asks the fabric not to begin the rest, of the chunks
    /// `in_flight`. The writes dropped: they are over; the others complete by themselves.
    pub(super) fn cancel<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        slot: u32,
        in_flight: impl Iterator<Item = u32>,
    ) -> VecDeque<Write> {
        for number in in_flight {
            let parts = ctx.tables.parts();
            parts.for_each(|part| ctx.endpoint.cancel(write_id(slot, number, part)));
        }
        core::mem::take(&mut self.unposted)
    }

    /// No source is read any more.
    pub(super) fn end<E: Endpoint>(&mut self, ctx: &mut Context<E>) {
        self.aux_slot.take().into_iter().for_each(|slot| ctx.return_aux_list(slot));
    }
}

/// A write's id: the leg's slot in the low half; above it the part, above that the chunk's number.
fn write_id(slot: u32, number: u32, part: Part) -> WriteId {
    let high = u64::from(number) << 8 | u64::from(part.to_wire());
    WriteId(high << 32 | u64::from(slot))
}

/// Slot and chunk number of a write.
pub(super) fn named(write: WriteId) -> (u32, u32) {
    (write.0 as u32, (write.0 >> 40) as u32)
}

/// Puts the record into an aux slot, which it takes.
fn write_aux<E: Endpoint>(
    ctx: &mut Context<E>,
    record: &AuxRecord,
    payload: &[u8],
) -> Result<Arc<[u32]>, Cause> {
    let (bytes, room) = (payload.len() as u64, ctx.aux_room());
    if bytes > room {
        return Err(Cause::AuxTooLong { bytes, room });
    }
    let full = Cause::TooMany { limit: ctx.aux_slots() };
    let slot = ctx.take_aux_list().ok_or(full)?;
    if !ctx.write_aux(slot[0], record, payload) {
        ctx.return_aux_list(slot);
        return Err(Cause::SourceFailed);
    }
    Ok(slot)
}

/// Why a write that did not land fails its room.
pub(super) fn cause_of(error: WriteError) -> Cause {
    match error {
        WriteError::Cancelled => Cause::Cancelled,
        WriteError::Path(reason) => Cause::PeerDown(reason),
        WriteError::Refused(refusal) => Cause::Refused(refusal),
    }
}
