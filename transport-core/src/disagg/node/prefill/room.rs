//! A prefill room as its scheduler sees it: all its readers together.

use alloc::collections::VecDeque;
use alloc::sync::Arc;

use smallvec::SmallVec;

use super::chunks::{Chunks, OutChunk};
use super::leg::Leg;
use crate::Instant;
use crate::disagg::node::context::Context;
use crate::disagg::node::handle::RoomCell;
use crate::disagg::node::pairing::Pairing;
use crate::disagg::node::request::{Completion, Request};
use crate::disagg::node::slab::{Legs, Slab};
use crate::disagg::node::timers::Armed;
use crate::disagg::room::{RoomState, Together};
use crate::disagg::{Cause, Failure, RoomId};
use crate::fabric::PeerId;
use crate::link::Endpoint;
use crate::queue::Ticket;
use crate::transfer::GrantId;

/// A request that is being sent.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) id: RoomId,
    pub(super) ticket: Ticket<Request>,
    pub(super) chunks: Chunks,
    /// One for each reader whose grant is there and that has not ended, in the order of the readers'
    /// cp ranks.
    pub(super) legs: Legs,
    /// Who the readers are: engine and dp group, known from the first grant.
    pub(super) group: Option<(u64, u32)>,
    /// Whether the grant of every reader is there; or the first reason why the room fails, and
    /// whose.
    pub(super) together: Together<(Cause, Option<PeerId>)>,
    /// Ranks whose grants have come.
    pub(super) met: SmallVec<[u32; 2]>,
    pub(super) opened: Instant,
    /// Whether the room stands in [`super::PrefillSide::waiting`].
    pub(super) queued: bool,
    pub(super) prefix_pages: u32,
    pub(super) cell: Arc<RoomCell>,
    pub(super) armed: Armed,
}

impl Room {
    pub(super) fn new(
        id: RoomId,
        ticket: Ticket<Request>,
        cell: Arc<RoomCell>,
        opened: Instant,
        chunks: Chunks,
    ) -> Self {
        let (legs, group, met) = (Legs::new(), None, SmallVec::new());
        let (together, queued, prefix_pages, armed) = (Together::new(1), false, 0, Armed::NOT);
        Self {
            id,
            ticket,
            chunks,
            legs,
            group,
            together,
            met,
            opened,
            queued,
            prefix_pages,
            cell,
            armed,
        }
    }

    /// Whether it waits for the grant of a reader that is `pairing`.
    pub(super) fn waits_for(&self, pairing: &Pairing) -> bool {
        let group = self.group.unwrap_or_else(|| group(pairing));
        let known = group == self::group(pairing);
        known && self.together.waits() && !self.met.contains(&pairing.rank)
    }

    /// Takes a reader to the others of its cp rank.
    pub(super) fn join(&mut self, legs: &mut Slab<Leg>, joining: GrantId) {
        let mut cp = |leg: &GrantId| legs.get_mut(*leg).map(|leg| leg.cp);
        let rank = cp(&joining);
        let place = self.legs.partition_point(|leg| cp(leg) <= rank);
        self.legs.insert(place, joining);
    }

    /// Whether all readers' grants are there and none has ended.
    pub(super) fn may_send(&self, legs: &mut Slab<Leg>) -> bool {
        let all = self.together.is_complete() && !self.legs.is_empty();
        let mut may = |leg: &GrantId| legs.get_mut(*leg).is_some_and(|leg| leg.machine.may_send());
        all && self.legs.iter().all(&mut may)
    }

    /// Granted KV items of all decode cp ranks, and the items in a page here and there; `None` when
    /// nobody gets KV from us.
    pub(super) fn granted(&self, legs: &mut Slab<Leg>) -> Option<(u32, (u32, u32))> {
        let (mut granted, mut blocks, mut seen) = (0u32, None, None);
        for leg in &self.legs {
            let Some(leg) = legs.get_mut(*leg) else { continue };
            let Some(of_page) = leg.page_blocks() else { continue };
            blocks = Some(of_page);
            // Ranks of one cp rank hold the same pages, and stand next to each other here; the
            // others hold others.
            if seen.replace(leg.cp) != Some(leg.cp) {
                granted = granted.saturating_add(leg.granted());
            }
        }
        blocks.map(|blocks| (granted, blocks))
    }

    /// Why the pages handed over do not fit those [granted](Self::granted), if they do not. A last
    /// page may be used in part where the sides' pages differ in size.
    pub(super) fn misfit(&self, granted: u32, (ours, theirs): (u32, u32)) -> Option<Cause> {
        let (pages, all) = self.chunks.pages();
        let (sent, granted) = (u64::from(pages) * u64::from(ours), u64::from(granted));
        let page = u64::from(ours.max(theirs));
        let too_many = sent >= granted + page;
        let too_few = all && sent + page <= granted;
        (too_many || too_few).then_some(Cause::PagesMismatch { sent, granted })
    }

    /// Shows handles what the room has come to.
    pub(super) fn show(&self, legs: &mut Slab<Leg>) {
        let state = match (self.together.failed(), self.together.awaited()) {
            (Some(_), _) => RoomState::Failed,
            (None, 1..) => RoomState::Bootstrapping,
            (None, 0) => self.slowest(legs),
        };
        self.cell.store(state, self.prefix_pages);
    }

    /// The state of the slowest leg, or of one that fails.
    fn slowest(&self, legs: &mut Slab<Leg>) -> RoomState {
        // Over is what `finish` says.
        let mut least = RoomState::Transferring;
        for leg in &self.legs {
            match legs.get_mut(*leg).map(|leg| leg.machine.state()) {
                Some(RoomState::Failed) => return RoomState::Failed,
                Some(state) => least = least.min(state),
                None => {}
            }
        }
        least
    }

    pub(super) fn failure(&self) -> Option<Failure> {
        let &(cause, peer) = self.together.failed()?;
        Some(Failure { room: self.id, peer, cause })
    }

    /// All legs have ended: completes what is left of the chunks, and the request. The chunks' queue
    /// comes back empty.
    pub(super) fn finish<E: Endpoint>(self, ctx: &mut Context<E>) -> VecDeque<OutChunk> {
        let result = self.failure().map_or(Ok(()), Err);
        let state = if result.is_ok() { RoomState::Success } else { RoomState::Failed };
        ctx.count_end(result.is_ok());
        self.cell.store(state, self.prefix_pages);
        let queue = self.chunks.end(ctx, self.id, result);
        ctx.port.complete(self.ticket, Completion::Closed { room: self.id, result });
        queue
    }
}

/// Engine and dp group of a peer.
pub(super) fn group(pairing: &Pairing) -> (u64, u32) {
    (pairing.engine, pairing.place.dp)
}
