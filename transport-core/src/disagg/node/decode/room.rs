//! A decode room as its scheduler sees it: all its writers together.

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::disagg::node::context::Context;
use crate::disagg::node::desk::Desk;
use crate::disagg::node::handle::RoomCell;
use crate::disagg::node::request::{Completion, Lease, Request};
use crate::disagg::node::slab::Legs;
use crate::disagg::room::{RoomState, Together};
use crate::disagg::{Cause, Failure, RoomId};
use crate::fabric::PeerId;
use crate::link::Endpoint;
use crate::queue::Ticket;
use crate::transfer::{GrantId, Part};

/// A request that is being received.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) id: RoomId,
    /// Which use of that name it is.
    pub(super) attempt: u32,
    /// Where the ranks of our engine agree on it, if there are others.
    pub(super) vote: Option<GrantId>,
    /// The prefill rank that the scheduler named: it, or others of its group, are the writers.
    pub(super) peer: PeerId,
    /// Whether the writers are known.
    pub(super) met: bool,
    /// One for each writer that has not ended.
    pub(super) legs: Legs,
    /// Whether everything of every writer is there; or the first reason why the room fails, and
    /// whose.
    pub(super) together: Together<(Cause, Option<PeerId>)>,
    /// Bytes of the granted pages and state items, and those that landed.
    pub(super) granted: u64,
    pub(super) landed: u64,
    /// Whether the last page may be filled in part: the other side's pages are smaller.
    pub(super) partial: bool,
    pub(super) ticket: Ticket<Request>,
    pub(super) pages: Lease,
    pub(super) state: Vec<Lease>,
    pub(super) aux_slot: Option<u32>,
    /// Aux payload, once its writer is done.
    pub(super) aux: Vec<u8>,
    pub(super) prefix_pages: u32,
    /// Whether the scheduler has said that the pages are not used any more once it has ended.
    pub(super) released: bool,
    pub(super) cell: Arc<RoomCell>,
}

impl Room {
    /// Why what has landed is not what was granted, if it is not.
    pub(super) fn shortage<E: Endpoint>(&self, ctx: &Context<E>) -> Option<Cause> {
        let (landed, granted) = (self.landed, self.granted);
        let slack = if self.partial { ctx.item_bytes(Part::Kv) } else { 1 };
        let whole = landed <= granted && granted - landed < slack;
        (!whole).then_some(Cause::ShortDelivery { landed, granted })
    }

    /// Shows handles what the room has come to; `least` is the state of its slowest leg.
    pub(super) fn show(&self, least: RoomState) {
        let state = if self.together.failed().is_some() { RoomState::Failed } else { least };
        self.cell.store(state, self.prefix_pages);
    }

    /// All legs have ended: completes the request and gives everything back.
    pub(super) fn finish<E: Endpoint>(self, ctx: &mut Context<E>, desk: &mut Desk) {
        let succeeded = self.together.failed().is_none();
        ctx.return_aux_slot(self.aux_slot);
        ctx.count_end(succeeded);
        match succeeded && !self.released {
            true => desk.succeeded(ctx, self.id, &self.pages, &self.state),
            false => desk.ended(ctx, self.id),
        }
        self.show(RoomState::Success);
        let (room, pages, state) = (self.id, self.pages, self.state);
        let result = match self.together.failed() {
            Some(&(cause, peer)) => Err(Failure { room, peer, cause }),
            None => Ok(self.aux),
        };
        ctx.port.complete(self.ticket, Completion::Received { room, result, pages, state });
    }
}
