//! Which pages, or slots, are free. In no order that means anything, as after hours of serving: whoever got neighbours by
//! accident would not notice a page table that is wrong.

use transport_core::rng::Rng;

/// A free list of numbers.
#[derive(Debug)]
pub(crate) struct Pool {
    free: Vec<u32>,
}

impl Pool {
    /// All of `0..items`, shuffled by `seed`.
    pub(crate) fn new(items: u32, seed: u64) -> Self {
        let mut free: Vec<u32> = (0..items).collect();
        let mut rng = Rng::new(seed);
        for place in (1..free.len()).rev() {
            free.swap(place, rng.below(place as u64 + 1) as usize);
        }
        Self { free }
    }

    /// That many, or none at all.
    pub(crate) fn take(&mut self, items: usize) -> Option<Vec<u32>> {
        let rest = self.free.len().checked_sub(items)?;
        Some(self.free.split_off(rest))
    }

    /// How many there are.
    pub(crate) fn free(&self) -> usize {
        self.free.len()
    }

    pub(crate) fn give(&mut self, items: impl IntoIterator<Item = u32>) {
        self.free.extend(items);
    }
}
