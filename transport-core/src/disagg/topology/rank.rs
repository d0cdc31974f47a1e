//! Who a rank is, and its number.

use core::fmt;

/// One engine process: its place on the four axes of parallelism.
///
/// Ordered as its number is: see [`Rank::number`].
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Rank {
    /// Data-parallel group: holds requests of its own.
    pub dp: u32,
    /// Tensor-parallel rank: holds some heads of its stage's layers.
    pub tp: u32,
    /// Pipeline stage: holds some layers.
    pub pp: u32,
    /// Context-parallel rank: holds some pages of each request.
    pub cp: u32,
}

impl Rank {
    /// The rank's number among all of its engine: `dp` outermost, then `tp`, `pp` and `cp`. Within
    /// a dp group that is the number that SGLang's status messages carry.
    ///
    /// ```
    /// use transport_core::disagg::topology::{Rank, RankSizes};
    ///
    /// let sizes = RankSizes { dp: 1, tp: 4, pp: 2, cp: 1 };
    /// let rank = Rank { dp: 0, tp: 3, pp: 1, cp: 0 };
    /// assert_eq!(rank.number(sizes), 7);
    /// assert_eq!(Rank::of_number(7, sizes), Some(rank));
    /// assert_eq!(Rank::of_number(8, sizes), None);
    /// ```
    pub const fn number(self, sizes: RankSizes) -> u32 {
        ((self.dp * sizes.tp + self.tp) * sizes.pp + self.pp) * sizes.cp + self.cp
    }

    /// The rank of that number, if the engine has one.
    pub fn of_number(number: u32, sizes: RankSizes) -> Option<Self> {
        if u64::from(number) >= sizes.total() {
            return None;
        }
        let (rest, cp) = (number / sizes.cp, number % sizes.cp);
        let (rest, pp) = (rest / sizes.pp, rest % sizes.pp);
        Some(Self { dp: rest / sizes.tp, tp: rest % sizes.tp, pp, cp })
    }
}

impl fmt::Display for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "(dp {}, tp {}, pp {}, cp {})", self.dp, self.tp, self.pp, self.cp)
    }
}

/// How many ranks an engine has on each axis.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct RankSizes {
    /// Data-parallel groups.
    pub dp: u32,
    /// Tensor-parallel ranks.
    pub tp: u32,
    /// Pipeline stages.
    pub pp: u32,
    /// Context-parallel ranks.
    pub cp: u32,
}

impl RankSizes {
    /// All ranks of the engine; saturates.
    pub fn total(self) -> u64 {
        let sizes = [self.dp, self.tp, self.pp, self.cp];
        sizes.into_iter().fold(1, |total: u64, size| total.saturating_mul(size.into()))
    }

    /// Ranks in a dp group: a rank's place in its group is its number modulo this. Saturates.
    pub fn group_ranks(self) -> u32 {
        self.tp.saturating_mul(self.pp).saturating_mul(self.cp)
    }

    /// Whether the engine has that rank.
    pub const fn contains(self, rank: Rank) -> bool {
        rank.dp < self.dp && rank.tp < self.tp && rank.pp < self.pp && rank.cp < self.cp
    }

    /// The ranks of one dp group, in the order of their numbers.
    pub fn group(self, dp: u32) -> impl Iterator<Item = Rank> {
        let stage = move |tp, pp| (0..self.cp).map(move |cp| Rank { dp, tp, pp, cp });
        (0..self.tp).flat_map(move |tp| (0..self.pp).flat_map(move |pp| stage(tp, pp)))
    }
}

impl fmt::Display for RankSizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dp {}, tp {}, pp {}, cp {}", self.dp, self.tp, self.pp, self.cp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn numbers_and_ranks_are_one_to_one_and_in_order() {
        let sizes = RankSizes { dp: 2, tp: 3, pp: 4, cp: 2 };
        let ranks: Vec<Rank> = (0..sizes.dp).flat_map(|dp| sizes.group(dp)).collect();
        assert_eq!(ranks.len() as u64, sizes.total());
        for (number, rank) in (0u32..).zip(&ranks) {
            assert_eq!(rank.number(sizes), number);
            assert_eq!(Rank::of_number(number, sizes), Some(*rank));
            assert!(sizes.contains(*rank));
        }
        assert!(ranks.is_sorted());
        assert_eq!(Rank::of_number(48, sizes), None);
    }
}
