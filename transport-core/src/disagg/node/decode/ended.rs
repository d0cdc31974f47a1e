//! How this node's grants ended, for who asks late (R7).
//!
//! The grants of a slot have generations that follow each other, and nearly all of them succeed. So
//! only failures are remembered, each by itself, and the others are known to have succeeded: a room
//! that succeeds leaves nothing behind. Invariant: from the first that `known_from` says, every
//! generation of a slot that is over has succeeded, or is among the failures.

use alloc::vec::Vec;
use core::time::Duration;

use crate::Instant;
use crate::disagg::Cause;
use crate::disagg::node::remembered::Remembered;
use crate::disagg::node::slab::Slab;
use crate::fabric::PeerId;
use crate::transfer::GrantId;

#[derive(Debug)]
pub(super) struct Ended {
    /// By whom they were for, if that was known.
    failed: Remembered<Option<PeerId>, GrantId, Cause>,
    /// By slot; 0 for those behind the last.
    known_from: Vec<u32>,
}

impl Ended {
    /// Remembers at most `limit` failures, each for `keep`.
    pub(super) fn new(limit: usize, keep: Duration) -> Self {
        Self { failed: Remembered::new(limit, keep), known_from: Vec::new() }
    }

    /// A grant has come to nothing; so it must be said of each that does. `slots` are those that grants
    /// are numbered by, here and below.
    pub(super) fn fail<T>(
        &mut self,
        slots: &Slab<T>,
        now: Instant,
        (peer, grant): (Option<PeerId>, GrantId),
        cause: Cause,
    ) {
        let forgotten = self.failed.insert(now, peer, grant, cause);
        forgotten.into_iter().for_each(|grant| self.forget(slots, grant));
    }

    /// How a grant ended, if that is known.
    pub(super) fn find<T>(&self, slots: &Slab<T>, grant: GrantId) -> Option<Result<(), Cause>> {
        if let Some(cause) = self.failed.find(&grant) {
            return Some(Err(*cause));
        }
        let current = slots.current(grant.slot)?.generation;
        let from = self.known_from.get(grant.slot as usize).copied().unwrap_or(0);
        let known = 1..=current.wrapping_sub(from);
        known.contains(&current.wrapping_sub(grant.generation)).then_some(Ok(()))
    }

    /// Forgets what is old.
    pub(super) fn expire<T>(&mut self, slots: &Slab<T>, now: Instant) {
        while let Some(grant) = self.failed.pop_expired(now) {
            self.forget(slots, grant);
        }
    }

    /// A failure is not known any more: it must not be taken for a success.
    fn forget<T>(&mut self, slots: &Slab<T>, GrantId { slot, generation }: GrantId) {
        let Some(current) = slots.current(slot) else { return };
        if self.known_from.len() <= slot as usize {
            self.known_from.resize(slot as usize + 1, 0);
        }
        let from = &mut self.known_from[slot as usize];
        // Generations wrap around, so they are compared by how long ago they were.
        let ago = |generation| current.generation.wrapping_sub(generation);
        let next = generation.wrapping_add(1);
        *from = if ago(next) < ago(*from) { next } else { *from };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const LOST: Option<Result<(), Cause>> = Some(Err(Cause::Cancelled));
    const DONE: Option<Result<(), Cause>> = Some(Ok(()));

    struct Bench {
        slots: Slab<()>,
        ended: Ended,
    }

    impl Bench {
        /// Two slots that were used `uses` times each.
        fn new(limit: usize, uses: u32) -> Self {
            let mut slots = Slab::new();
            for _ in 0..uses {
                let keys = [slots.insert(()), slots.insert(())];
                keys.into_iter().for_each(|key| slots.drop(key));
            }
            Self { slots, ended: Ended::new(limit, SECOND) }
        }

        fn fail(&mut self, slot: u32, generation: u32) {
            let named = (Some(PeerId(1)), GrantId { slot, generation });
            self.ended.fail(&self.slots, Instant::ZERO, named, Cause::Cancelled);
        }

        fn find<const N: usize>(
            &self,
            slot: u32,
            generations: [u32; N],
        ) -> [Option<Result<(), Cause>>; N] {
            let grant = |generation| GrantId { slot, generation };
            generations.map(|generation| self.ended.find(&self.slots, grant(generation)))
        }
    }

    #[test]
    fn r7_what_is_over_has_succeeded_unless_it_failed() {
        let mut bench = Bench::new(10, 6);
        bench.fail(0, 3);
        assert_eq!(bench.find(0, [0, 2, 3, 5]), [DONE, DONE, LOST, DONE]);
        assert_eq!(bench.find(0, [6, 7, u32::MAX]), [None; 3], "not over, or never was");
        assert_eq!(bench.find(9, [0]), [None]);
    }

    #[test]
    fn r7_a_failure_that_is_forgotten_is_not_taken_for_a_success() {
        let mut bench = Bench::new(2, 10);
        [(0, 1), (1, 5), (0, 8)].into_iter().for_each(|(s, g)| bench.fail(s, g));
        assert_eq!(bench.find(0, [0, 1, 2, 8]), [None, None, DONE, LOST]);
        assert_eq!(bench.find(1, [4, 5]), [DONE, LOST]);
        bench.ended.expire(&bench.slots, Instant::ZERO + SECOND);
        assert_eq!(bench.find(0, [2, 8, 9]), [None, None, DONE]);
        let mut nothing = Bench::new(0, 10);
        [8, 4].into_iter().for_each(|generation| nothing.fail(0, generation));
        assert_eq!(nothing.find(0, [4, 5, 8, 9]), [None, None, None, DONE]);
    }

    #[test]
    fn generations_wrap_around() {
        let mut bench = Bench::new(0, 2);
        [1 << 31, u32::MAX, 5].into_iter().for_each(|generation| {
            bench.slots.set_generation(0, generation.wrapping_add(2));
            bench.fail(0, generation);
            let (next, before) = (generation.wrapping_add(1), generation.wrapping_sub(1));
            assert_eq!(bench.find(0, [before, generation, next]), [None, None, DONE]);
        });
    }
}
