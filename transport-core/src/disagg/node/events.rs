//! What a node tells its scheduler unasked: from the node's thread to whoever polls.
//!
//! Both queues are bounded, and the oldest make room. News of peers and asks can be missed: strangers
//! alone can cause more of them than anybody takes. That a rank is lost must be acted on, so it has a
//! queue of its own, which nothing else can fill.

use super::config::NodeEvent;
use crate::sync::ArrayQueue;

/// Most news kept, and most ranks lost.
const MAX_NEWS: usize = 1024;
const MAX_LOST: usize = 256;

#[derive(Debug)]
pub(super) struct Events {
    lost: ArrayQueue<NodeEvent>,
    news: ArrayQueue<NodeEvent>,
}

impl Events {
    pub(super) fn new() -> Self {
        Self { lost: ArrayQueue::new(MAX_LOST), news: ArrayQueue::new(MAX_NEWS) }
    }

    /// Called by one thread, the node's.
    pub(super) fn report(&self, event: NodeEvent) {
        let queue = match event {
            NodeEvent::RankLost { .. } => &self.lost,
            _ => &self.news,
        };
        if let Err(event) = queue.push(event) {
            let _oldest = queue.pop();
            let _full_again = queue.push(event);
        }
    }

    /// The next event, for one of any number of callers.
    pub(super) fn poll(&self) -> Option<NodeEvent> {
        self.lost.pop().or_else(|| self.news.pop())
    }
}

#[cfg(all(test, not(transport_loom)))]
mod tests {
    use alloc::vec::Vec;

    use super::*;
    use crate::disagg::consensus::Attempt;
    use crate::disagg::{Cause, RoomId};
    use crate::fabric::{PathError, PeerId};

    #[test]
    fn r3_a_lost_rank_is_told_however_many_strangers_come_and_go() {
        let events = Events::new();
        let attempt = Attempt { room: RoomId(7), number: 0 };
        let lost = NodeEvent::RankLost { attempt, rank: 1, cause: Cause::Cancelled };
        let strangers = 0..3 * MAX_NEWS as u32;
        let gone = |peer| NodeEvent::PeerDown { peer: PeerId(peer), reason: PathError::Timeout };
        events.report(lost.clone());
        strangers.clone().for_each(|peer| events.report(gone(peer)));
        let told: Vec<NodeEvent> = core::iter::from_fn(|| events.poll()).collect();
        let newest = strangers.skip(2 * MAX_NEWS).map(gone);
        assert_eq!(told, core::iter::once(lost).chain(newest).collect::<Vec<_>>());
    }
}
