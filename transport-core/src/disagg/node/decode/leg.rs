//! What a decode room has with one of its writers: the writer's grant, and the machine that watches
//! over it.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::disagg::node::address::Address;
use crate::disagg::node::context::Context;
use crate::disagg::node::pairing::{Pairing, Split, items_of};
use crate::disagg::node::request::Lease;
use crate::disagg::node::timers::Armed;
use crate::disagg::room::{Action, DecodeRoom, Note};
use crate::disagg::{Cause, RoomId};
use crate::fabric::{FabricError, PeerId, Revoked};
use crate::link::Endpoint;
use crate::transfer::{Grant, GrantId, Part};
use crate::wire::{AuxRecord, GrantOffer};

/// One writer of a room.
#[derive(Debug)]
pub(super) struct Leg {
    /// The room's name, and where it is kept.
    pub(super) id: RoomId,
    pub(super) room: GrantId,
    /// The writer: its engine and rank, once the topology has told.
    pub(super) writer: Option<(u64, u32)>,
    /// How it is reached, once that is known.
    pub(super) peer: Option<PeerId>,
    /// The writer's life: its aux record must carry it (G6).
    incarnation: u64,
    pub(super) machine: DecodeRoom,
    /// What of our tables it writes, if not all.
    split: Option<Arc<Split>>,
    /// Aux payload, once it was checked.
    pub(super) aux: Vec<u8>,
    prefix_pages: u32,
    pub(super) armed: Armed,
}

/// What a room grants.
#[derive(Clone, Copy, Debug)]
pub(super) struct Granted<'a> {
    pub(super) pages: &'a Lease,
    pub(super) state: &'a [Lease],
    pub(super) aux_slot: u32,
}

impl Leg {
    pub(super) fn new(
        (id, room): (RoomId, GrantId),
        peer: Option<PeerId>,
        machine: DecodeRoom,
        prefix_pages: u32,
    ) -> Self {
        let (writer, incarnation, split) = (None, 0, None);
        let (aux, armed) = (Vec::new(), Armed::NOT);
        Self { id, room, writer, peer, incarnation, machine, split, aux, prefix_pages, armed }
    }

    /// Where messages about it go, if there is anybody to tell.
    pub(super) fn address(&self, key: GrantId) -> Option<Address> {
        Some(Address { peer: self.peer?, room: self.id, grant: key })
    }

    /// The writer is there: its part of what the room grants.
    pub(super) fn meet<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        key: GrantId,
        (peer, pairing): (PeerId, &Pairing),
        granted: Granted<'_>,
    ) -> Arc<Grant> {
        self.peer = Some(peer);
        self.incarnation = pairing.incarnation;
        self.split.clone_from(&pairing.split);
        let list = |part: Part, lease: &Lease| items_of(pairing.view(), part, lease);
        let state = (0..=u8::MAX).zip(granted.state);
        let state: Box<[Arc<[u32]>]> = state.map(|(k, l)| list(Part::State(k), l)).collect();
        let (tag, aux) = (ctx.tag(), [granted.aux_slot]);
        Arc::new(Grant { id: key, tag, kv: list(Part::Kv, granted.pages), aux, state })
    }

    /// Carries out what concerns this leg alone. False for what concerns the room.
    pub(super) fn carry_out<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        key: GrantId,
        action: Action,
        out: &mut Vec<Action>,
    ) -> bool {
        match action {
            Action::Arm => self.arm(ctx, out),
            Action::Revoke => {
                if ctx.endpoint.revoke(key) == Revoked::Fenced {
                    self.machine.handle_fenced(ctx.now, out);
                }
            }
            Action::CheckAux => self.check_aux(ctx, out),
            Action::Send(Note::Grant { deadline_ms }) => self.offer(ctx, deadline_ms, out),
            Action::Send(note) => {
                self.address(key).into_iter().for_each(|to| ctx.send_note(to, note));
            }
            Action::TearDown => self.peer.into_iter().for_each(|p| ctx.endpoint.disconnect(p)),
            Action::Ready | Action::Doubt(_) | Action::End(_) | Action::Retire => {
                return false;
            }
            Action::Post { .. } | Action::CancelWrites => {}
        }
        true
    }

    fn arm<E: Endpoint>(&mut self, ctx: &mut Context<E>, out: &mut Vec<Action>) {
        let (Some(peer), Some(grant)) = (self.peer, self.machine.grant().cloned()) else { return };
        let view = self.split.as_ref().map(|split| split.view());
        if let Err(error) = ctx.endpoint.grant(peer, grant, view.map(|view| &view.tables)) {
            let status = match error {
                FabricError::Device(status) => status,
                _ => 0,
            };
            self.machine.handle_failure(ctx.now, Cause::Fabric { status }, out);
        }
    }

    fn offer<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        deadline_ms: u32,
        out: &mut Vec<Action>,
    ) {
        let (Some(peer), Some(grant)) = (self.peer, self.machine.grant()) else { return };
        let (room, prefix_pages, grant) = (self.id, self.prefix_pages, Grant::clone(grant));
        let deliveries = self.machine.deliveries();
        let offer = GrantOffer { room, grant, prefix_pages, deliveries, deadline_ms };
        if let Err(cause) = ctx.send_offer(peer, offer) {
            self.machine.handle_failure(ctx.now, cause, out);
        }
    }

    fn check_aux<E: Endpoint>(&mut self, ctx: &mut Context<E>, out: &mut Vec<Action>) {
        let Some(grant) = self.machine.grant() else { return };
        let incarnation = self.incarnation;
        let expected = AuxRecord { room: self.id, grant: grant.id, incarnation };
        let payload = ctx.read_aux(grant.aux[0], &expected);
        let valid = payload.is_some();
        self.aux = payload.unwrap_or_default();
        self.machine.handle_aux(ctx.now, valid, out);
    }
}
