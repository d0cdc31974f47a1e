//! All tables of one engine rank: where its KV pages, aux slots and state slots lie.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::PagedTable;
use crate::transfer::{Grant, MAX_COMPONENTS, Part};

/// The memory of one engine rank's cache, table by table. Clones share it.
#[derive(Clone, Debug)]
pub struct CacheTables(Arc<Tables>);

#[derive(Debug)]
struct Tables {
    kv: Arc<PagedTable>,
    aux: Arc<PagedTable>,
    state: Box<[Arc<PagedTable>]>,
}

impl CacheTables {
    /// KV pages, aux slots, and the items of each state component. Components beyond
    /// [`MAX_COMPONENTS`] make it `None`, as does an aux table of more than one buffer.
    pub fn new(kv: PagedTable, aux: PagedTable, state: Vec<PagedTable>) -> Option<Self> {
        Self::of(Arc::new(kv), Arc::new(aux), state.into_iter().map(Arc::new).collect())
    }

    /// As `new`, of tables that others may have too.
    pub(crate) fn of(
        kv: Arc<PagedTable>,
        aux: Arc<PagedTable>,
        state: Box<[Arc<PagedTable>]>,
    ) -> Option<Self> {
        let possible = state.len() <= MAX_COMPONENTS && aux.shapes().len() == 1;
        possible.then(|| Self(Arc::new(Tables { kv, aux, state })))
    }

    /// The table of a part; `None` for a component that the model does not have.
    pub fn table(&self, part: Part) -> Option<&Arc<PagedTable>> {
        match part {
            Part::Kv => Some(&self.0.kv),
            Part::Aux => Some(&self.0.aux),
            Part::State(component) => self.0.state.get(usize::from(component)),
        }
    }

    /// Every part that has a table.
    pub fn parts(&self) -> impl Iterator<Item = Part> {
        let state = (0..self.0.state.len() as u8).map(Part::State);
        [Part::Kv, Part::Aux].into_iter().chain(state)
    }

    /// Whether the processor can reach every table ([`PagedTable::is_host`]).
    pub fn is_host(&self) -> bool {
        self.parts().all(|part| self.table(part).is_some_and(|table| table.is_host()))
    }

    /// The first item of `grant` that these tables do not have.
    pub fn first_out_of_range(&self, grant: &Grant) -> Option<(Part, u32)> {
        let named = (0..grant.state.len().max(self.0.state.len()) as u8).map(Part::State);
        let mut parts = [Part::Kv, Part::Aux].into_iter().chain(named);
        parts.find_map(|part| Some((part, self.outsider(part, grant.items(part))?)))
    }

    /// The first of `items` that the part's table does not have.
    pub fn outsider(&self, part: Part, items: &[u32]) -> Option<u32> {
        match self.table(part) {
            Some(table) => table.first_out_of_range(items),
            None => items.first().copied(),
        }
    }
}
