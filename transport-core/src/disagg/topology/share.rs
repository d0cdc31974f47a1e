//! Who holds what, and who sends it: units over tp ranks, pages over cp ranks.

use core::ops::Range;

/// Pages that cp rank `rank` of `ranks` has of `pages` pages: contiguous shares in the order of
/// the ranks, as equal as can be, the longer ones first. `ranks` is not 0.
///
/// ```
/// use transport_core::disagg::topology::page_share;
///
/// let shares: Vec<_> = (0..4).map(|rank| page_share(10, 4, rank)).collect();
/// assert_eq!(shares, [0..3, 3..6, 6..8, 8..10]);
/// ```
pub fn page_share(pages: u32, ranks: u32, rank: u32) -> Range<u32> {
    let (base, longer) = (pages / ranks, pages % ranks);
    let start = rank * base + rank.min(longer);
    start..start + base + u32::from(rank < longer)
}

/// The cp rank whose [`page_share`] page `page` of `pages` is in: the same rule, read backwards.
pub fn page_owner(page: u32, pages: u32, ranks: u32) -> u32 {
    let (base, longer) = (pages / ranks, pages % ranks);
    let in_longer = longer * (base + 1);
    if page < in_longer { page / (base + 1) } else { longer + (page - in_longer) / base.max(1) }
}

/// Units that a tp rank holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Holding {
    pub(super) first: u32,
    pub(super) len: u32,
    /// Which of the ranks that hold the same units it is.
    replica: u32,
    /// How many those are.
    replicas: u32,
}

impl Holding {
    /// What rank `rank` of `tp` holds of `units`. One number divides the other.
    pub(super) const fn of(units: u32, tp: u32, rank: u32) -> Self {
        if tp <= units {
            let len = units / tp;
            return Self { first: rank * len, len, replica: 0, replicas: 1 };
        }
        let replicas = tp / units;
        Self { first: rank / replicas, len: 1, replica: rank % replicas, replicas }
    }

    /// The units that `self` sends to `target`: those both hold, if of all source replicas it is
    /// the target's. Target replica `j` of `m` has source replica `j * n / m` of `n`: one writer
    /// for each byte, and neighbouring targets spread evenly over the sources.
    pub(super) fn sends(self, target: Self) -> Range<u32> {
        let (n, m) = (u64::from(self.replicas), u64::from(target.replicas));
        if u64::from(target.replica) * n / m != u64::from(self.replica) {
            return 0..0;
        }
        let start = self.first.max(target.first);
        start..start.max((self.first + self.len).min(target.first + target.len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn sources(units: u32, prefill_tp: u32, decode_tp: u32, decode: u32) -> Vec<(u32, Range<u32>)> {
        let target = Holding::of(units, decode_tp, decode);
        let sends = |rank| (rank, Holding::of(units, prefill_tp, rank).sends(target));
        (0..prefill_tp).map(sends).filter(|(_, units)| !units.is_empty()).collect()
    }

    #[test]
    fn p1_two_heads_from_four_ranks_to_eight_use_every_source_twice() {
        let all: Vec<_> = (0..8).map(|rank| sources(2, 4, 8, rank)).collect();
        let expected = [0, 0, 1, 1, 2, 2, 3, 3];
        for (rank, from) in (0u32..).zip(expected) {
            assert_eq!(all[rank as usize], [(from, rank / 4..rank / 4 + 1)]);
        }
    }

    #[test]
    fn p1_fewer_target_replicas_than_sources_take_them_far_apart() {
        assert_eq!(sources(1, 4, 2, 0), [(0, 0..1)]);
        assert_eq!(sources(1, 4, 2, 1), [(2, 0..1)]);
        // Both heads of the only target, each from the first of its two holders.
        assert_eq!(sources(2, 4, 1, 0), [(0, 0..1), (2, 1..2)]);
    }

    #[test]
    fn p1_tensor_sizes_need_not_divide_each_other() {
        assert_eq!(sources(6, 3, 2, 0), [(0, 0..2), (1, 2..3)]);
        assert_eq!(sources(6, 3, 2, 1), [(1, 3..4), (2, 4..6)]);
    }

    proptest! {
        #[test]
        fn p1_every_page_is_in_its_owners_share_and_no_other(
            pages in 0u32..50, ranks in 1u32..9,
        ) {
            let holds = |page, rank| page_share(pages, ranks, rank).contains(&page);
            for page in 0..pages {
                let owner = page_owner(page, pages, ranks);
                prop_assert!((0..ranks).all(|rank| holds(page, rank) == (rank == owner)));
            }
            let lens = (0..ranks).map(|rank| page_share(pages, ranks, rank).len());
            prop_assert!(lens.clone().max().unwrap() - lens.min().unwrap() <= 1);
        }
    }
}
