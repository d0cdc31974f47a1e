//! What asks mean for rooms: one whose asks have all come to nothing fails, and does not wait for
//! grants that will not come.

use super::PrefillSide;
use crate::Instant;
use crate::disagg::admission::Answer;
use crate::disagg::node::asks::{self, Lost};
use crate::disagg::node::context::Context;
use crate::disagg::node::peers::Peers;
use crate::disagg::node::request::{Ask, Request};
use crate::disagg::{Cause, RoomId};
use crate::fabric::{PathError, PeerId};
use crate::link::Endpoint;
use crate::queue::Ticket;
use crate::wire::Verdict;

impl PrefillSide {
    /// Asks under way.
    pub(in crate::disagg::node) fn asking(&self) -> usize {
        self.asks.len()
    }

    /// When [`PrefillSide::asks_due`] has something to do.
    pub(in crate::disagg::node) fn next_ask(&self) -> Instant {
        self.asks.next()
    }

    /// A scheduler wants to know whether there is space for a room.
    pub(in crate::disagg::node) fn ask<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        peers: &Peers,
        ask: Ask,
        ticket: Ticket<Request>,
    ) {
        let key = (ask.room, ask.peer);
        if peers.ready(ask.peer).is_none() {
            return asks::complete(ctx, key, ticket, Err(Cause::NoPeer { waited_ms: 0 }));
        }
        if self.has_grant(ask.room, ask.peer) {
            return asks::complete(ctx, key, ticket, Ok(Answer::Accepted));
        }
        // What an earlier ask came to is no concern of this one.
        if matches!(self.doomed.find(&ask.room), Some(Cause::AskExpired { .. })) {
            self.doomed.take(&ask.room);
        }
        self.asks.ask(ctx, ask, ticket);
    }

    /// A decode node answers an ask, or has news of one.
    pub(in crate::disagg::node) fn answered<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        about: (RoomId, PeerId),
        verdict: Verdict,
    ) {
        let lost = self.asks.answered(ctx, about, verdict);
        lost.into_iter().for_each(|lost| self.give_up_hope(ctx, lost));
    }

    /// Asks again what was not answered, and ends what took too long.
    pub(in crate::disagg::node) fn asks_due<E: Endpoint>(&mut self, ctx: &mut Context<E>) {
        while let Some(lost) = self.asks.pop_due(ctx) {
            self.give_up_hope(ctx, lost);
        }
    }

    /// A peer that was asked is gone.
    pub(in crate::disagg::node) fn asked_peer_down<E: Endpoint>(
        &mut self,
        ctx: &mut Context<E>,
        peer: PeerId,
        reason: PathError,
    ) {
        for lost in self.asks.peer_down(ctx, peer, reason) {
            self.give_up_hope(ctx, lost);
        }
    }

    /// Nobody is left who could grant the room: it fails, now or when it is opened.
    fn give_up_hope<E: Endpoint>(&mut self, ctx: &mut Context<E>, lost: Lost) {
        match self.by_id.get(&lost.room).copied() {
            Some(key) => {
                let room = self.rooms.get_mut(key);
                if room.is_some_and(|room| room.together.waits())
                    && !self.has_grant(lost.room, lost.peer)
                {
                    self.room_failed(ctx, key, (lost.cause, Some(lost.peer)));
                    self.settle(ctx);
                }
            }
            None => self.asks.remember(ctx.now, lost),
        }
    }

    /// Whether the peer has granted the room, which is open or not.
    fn has_grant(&mut self, id: RoomId, peer: PeerId) -> bool {
        let key = self.by_id.get(&id);
        let Some(room) = key.and_then(|key| self.rooms.get_mut(*key)) else {
            return self.early.find(id, peer).is_some();
        };
        let mut is_peers = |leg| self.legs.get_mut(leg).is_some_and(|leg| leg.peer == peer);
        room.legs.iter().any(|leg| is_peers(*leg))
    }
}
