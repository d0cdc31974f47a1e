//! How much a room takes of everything, counted together.

use crate::memory::CacheTables;
use crate::transfer::{MAX_COMPONENTS, Part};

/// An amount of each kind of thing that a room takes.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Amounts {
    /// KV pages.
    pub pages: u64,
    /// Aux slots.
    pub aux: u64,
    /// Slots of each state component.
    pub state: [u64; MAX_COMPONENTS],
}

impl Amounts {
    /// That many pages and aux slots, and no state.
    pub const fn new(pages: u64, aux: u64) -> Self {
        Self { pages, aux, state: [0; MAX_COMPONENTS] }
    }

    /// All that tables have: the capacity of a node whose cache is there for rooms alone.
    pub fn of_tables(tables: &CacheTables) -> Self {
        let mut all = Self::default();
        for part in tables.parts() {
            let items = tables.table(part).map_or(0, |table| u64::from(table.items()));
            match part {
                Part::Kv => all.pages = items,
                Part::Aux => all.aux = items,
                Part::State(component) => all.state[usize::from(component)] = items,
            }
        }
        all
    }

    /// Each kind with its amount.
    pub fn parts(&self) -> impl Iterator<Item = (Part, u64)> {
        let state = (0..).map(Part::State).zip(self.state);
        [(Part::Kv, self.pages), (Part::Aux, self.aux)].into_iter().chain(state)
    }

    /// The first kind of which there is more here than in `limit`, with both amounts.
    pub(super) fn exceeds(&self, limit: &Self) -> Option<(Part, u64, u64)> {
        self.compared(limit).find(|(_, ours, theirs)| ours > theirs)
    }

    /// The sum of all kinds.
    pub(in crate::disagg) fn total(&self) -> u64 {
        self.parts().fold(0, |sum, (_, amount)| sum.saturating_add(amount))
    }

    /// The first kind whose amounts differ, with both.
    pub(in crate::disagg) fn differs(&self, other: &Self) -> Option<(Part, u64, u64)> {
        self.compared(other).find(|(_, ours, theirs)| ours != theirs)
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.each(other, u64::saturating_add);
    }

    pub(super) fn subtract(&mut self, other: &Self) {
        self.each(other, u64::saturating_sub);
    }

    fn compared(&self, other: &Self) -> impl Iterator<Item = (Part, u64, u64)> {
        self.parts().zip(other.parts()).map(|((part, ours), (_, theirs))| (part, ours, theirs))
    }

    fn each(&mut self, other: &Self, op: impl Fn(u64, u64) -> u64) {
        (self.pages, self.aux) = (op(self.pages, other.pages), op(self.aux, other.aux));
        let state = self.state.iter_mut().zip(other.state);
        state.for_each(|(ours, theirs)| *ours = op(*ours, theirs));
    }
}
