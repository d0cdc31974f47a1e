//! The nodes of one side, running: what they complete, and whom they lose.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use transport_core::disagg::RoomId;
use transport_core::disagg::node::{Client, Completion, NodeEvent, Request};
use transport_core::fabric::{PathError, PeerId};
use transport_core::queue::Completions;
use transport_tcp::Driver;
use transport_tcp::bootstrap::Finding;

use super::gather::{Done, Gather, Gathered};
use crate::taken::Taken;

/// One side's nodes, running.
pub(super) struct Side {
    pub(super) ranks: Vec<RankNode>,
    gather: Gather,
    /// Goes on looking where the other side is.
    finding: Option<Finding>,
    taken: Taken,
}

/// One rank's node.
pub(super) struct RankNode {
    pub(super) client: Client,
    pub(super) completions: Completions<Request>,
    /// The ranks of the other side that it exchanges bytes with, and the group of each; some of
    /// every group.
    pub(super) peers: BTreeMap<PeerId, u32>,
    /// Stops the driver thread when dropped.
    #[expect(dead_code, reason = "it is there to be dropped")]
    pub(super) driver: Driver,
}

impl RankNode {
    /// A rank of that group of the other side, any of those that it exchanges bytes with.
    pub(super) fn peer(&self, group: u32) -> Option<PeerId> {
        self.peers.iter().find(|(_, of)| **of == group).map(|(peer, _)| *peer)
    }
}

impl Side {
    /// Of nodes that have met their peers.
    pub(super) fn new(ranks: Vec<RankNode>, finding: Option<Finding>, taken: Taken) -> Self {
        Self { gather: Gather::new(ranks.len()), ranks, finding, taken }
    }

    /// What its bytes go over.
    pub(super) fn over(&self) -> String {
        self.taken.to_string()
    }

    /// What is over on all ranks next, or nothing for at most `patience`.
    pub(super) fn wait(&mut self, patience: Duration) -> Option<Done> {
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut context = Context::from_waker(&waker);
        self.poll(&mut context).or_else(|| {
            thread::park_timeout(patience);
            self.poll(&mut context)
        })
    }

    /// Of which group of the other side a rank is gone, and why, if one is. That others come and go
    /// is nothing to the run.
    pub(super) fn poll_loss(&self) -> Option<(u32, PathError)> {
        let lost = self.ranks.iter().find_map(|rank| match rank.client.poll_event()? {
            NodeEvent::PeerDown { peer, reason } => Some((*rank.peers.get(&peer)?, reason)),
            _ => None,
        });
        lost.inspect(|_| self.finding.iter().for_each(Finding::hurry))
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Option<Done> {
        for rank in 0..self.ranks.len() {
            while let Poll::Ready(Some(completion)) = self.ranks[rank].completions.poll_pop(context)
            {
                if let Some(done) = self.gather(completion) {
                    return Some(done);
                }
            }
        }
        None
    }

    fn gather(&mut self, completion: Completion) -> Option<Done> {
        match self.gather.add(completion) {
            Gathered::Nothing => None,
            Gathered::Done(done) => Some(done),
            Gathered::Failing(room) => {
                self.cancel(room);
                None
            }
        }
    }

    /// Gives a room up on all ranks, as an engine does: what has failed on one is of no use on the
    /// others.
    pub(super) fn cancel(&self, room: RoomId) {
        for rank in &self.ranks {
            // A node that takes no cancel ends its rooms by itself.
            let _ = rank.client.cancel(room);
        }
    }
}

/// Wakes a thread that is parked, as [`Side::wait`]'s.
pub(super) struct Unpark(pub(super) Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
