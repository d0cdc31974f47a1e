//! How peers' grants ended, for what comes late of them (R7).
//!
//! A peer uses a slot for one grant after another, with generations that follow each other. So of
//! those that succeeded the last of each slot is all that need be remembered: what came before it is
//! over. Not so of failures: anything can be named in a message that makes no sense, and must not be
//! taken for the last of its slot. Nothing succeeds by one such message.

use core::time::Duration;

use crate::Instant;
use crate::disagg::Cause;
use crate::disagg::node::remembered::Remembered;
use crate::fabric::PeerId;
use crate::transfer::GrantId;

#[derive(Debug)]
pub(super) struct Ended {
    failed: Remembered<PeerId, (PeerId, GrantId), Cause>,
    /// The last generation that succeeded, by peer and slot.
    succeeded: Remembered<PeerId, (PeerId, u32), u32>,
}

impl Ended {
    /// Remembers at most `limit` failures and as many slots, each for `keep`.
    pub(super) fn new(limit: usize, keep: Duration) -> Self {
        Self { failed: Remembered::new(limit, keep), succeeded: Remembered::new(limit, keep) }
    }

    /// A grant has ended: why it failed, or `None` if it did not.
    pub(super) fn insert(
        &mut self,
        now: Instant,
        peer: PeerId,
        grant: GrantId,
        failure: Option<Cause>,
    ) {
        if let Some(cause) = failure {
            self.failed.insert(now, peer, (peer, grant), cause);
        } else if !self.was_followed(peer, grant) {
            self.succeeded.insert(now, peer, (peer, grant.slot), grant.generation);
        }
    }

    /// Why a grant failed that is over, or `None` if it did not or that is not known any more.
    pub(super) fn find(&self, peer: PeerId, grant: GrantId) -> Option<Option<Cause>> {
        let failure = self.failed.find(&(peer, grant)).copied();
        (failure.is_some() || self.was_followed(peer, grant)).then_some(failure)
    }

    /// Whether the grant, or one of its slot after it, has succeeded.
    fn was_followed(&self, peer: PeerId, grant: GrantId) -> bool {
        let last = self.succeeded.find(&(peer, grant.slot));
        last.is_some_and(|last| last.wrapping_sub(grant.generation) as i32 >= 0)
    }

    /// Forgets all of a peer.
    pub(super) fn forget(&mut self, peer: PeerId) {
        self.failed.forget(peer);
        self.succeeded.forget(peer);
    }

    /// Forgets what is old.
    pub(super) fn expire(&mut self, now: Instant) {
        self.failed.expire(now);
        self.succeeded.expire(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: PeerId = PeerId(1);
    const FAILED: Option<Cause> = Some(Cause::Cancelled);

    fn grant(generation: u32) -> GrantId {
        GrantId { slot: 0, generation }
    }

    #[test]
    fn r7_what_a_success_followed_is_over() {
        let mut ended = Ended::new(10, Duration::from_secs(1));
        for (generation, failure) in [(u32::MAX - 1, FAILED), (1, None), (0, None), (3, FAILED)] {
            ended.insert(Instant::ZERO, PEER, grant(generation), failure);
        }
        let find = |generation| ended.find(PEER, grant(generation));
        assert_eq!([u32::MAX - 1, u32::MAX, 0, 1].map(find), [FAILED, None, None, None].map(Some));
        assert_eq!([2, 3, 4].map(find), [None, Some(FAILED), None]);
        assert_eq!(ended.find(PEER, GrantId { slot: 1, generation: 0 }), None);
        assert_eq!(ended.find(PeerId(2), grant(0)), None, "another peer's grant");
    }

    #[test]
    fn r2_a_failure_says_nothing_about_other_grants() {
        let mut ended = Ended::new(10, Duration::from_secs(1));
        ended.insert(Instant::ZERO, PEER, grant(1 << 30), FAILED);
        assert_eq!(ended.find(PEER, grant(1)), None);
    }
}
