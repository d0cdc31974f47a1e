//! Breaks what arrives, once, as a broken fabric would.
//!
//! Only faults that the fabric above must not have and the receiver must notice: wrong bytes, and
//! arrivals that never come. It sits at the target, where the grants are.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;

use super::{Decorated, Decorator, Event};
use crate::fabric::{FabricEvent, PeerId};
use crate::link::Endpoint;
use crate::memory::{CacheTables, PagedTable};
use crate::transfer::{Grant, GrantId, Part};

/// What goes wrong, at the first opportunity and then no more.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Fault {
    /// One byte of one KV page is wrong: flipped when all KV of a grant has landed, before the last
    /// of it is reported (earlier, a later write could repair it).
    FlipByte,
    /// An aux record is never reported.
    DropAux,
    /// A state component is never reported.
    DropState,
    /// A chunk of KV pages is never reported.
    DropChunk,
}

/// An endpoint with one fault in what it receives.
pub type Faulty<E> = Decorated<E, Injector>;

/// The decorator of [`Faulty`].
#[derive(Debug)]
pub struct Injector {
    fault: Fault,
    injected: u32,
    kv: Option<Arc<PagedTable>>,
    grants: BTreeMap<GrantId, Landing>,
}

/// A grant in force, and how many bytes of its KV have landed.
#[derive(Debug)]
struct Landing {
    peer: PeerId,
    grant: Arc<Grant>,
    /// What its pages are pages of: of what the peer writes, when others write the rest.
    kv: Option<Arc<PagedTable>>,
    landed: u64,
}

impl<E: Endpoint> Faulty<E> {
    /// Injects `fault` into what `endpoint` receives, once.
    pub fn new(endpoint: E, fault: Fault) -> Self {
        let (injected, kv, grants) = (0, None, BTreeMap::new());
        Self::with(endpoint, Injector { fault, injected, kv, grants })
    }

    /// Faults injected so far: 0 as long as there was no opportunity.
    pub fn injected(&self) -> u32 {
        self.decorator().injected
    }
}

impl Decorator for Injector {
    fn see(&mut self, event: &Event<'_>) {
        match event {
            Event::Bind(tables) => self.kv = CacheTables::table(tables, Part::Kv).cloned(),
            Event::Grant { peer, grant, view } => {
                let viewed = view.map(|view| view.table(Part::Kv).cloned());
                let kv = viewed.unwrap_or_else(|| self.kv.clone());
                let landing = Landing { peer: *peer, grant: Arc::clone(grant), kv, landed: 0 };
                self.grants.insert(grant.id, landing);
            }
            Event::Revoke { grant, .. } => drop(self.grants.remove(grant)),
            Event::Fabric(FabricEvent::PathDown { peer, .. }) => {
                self.grants.retain(|_, landing| landing.peer != *peer);
            }
            _ => {}
        }
    }

    fn passes(&mut self, event: &FabricEvent) -> bool {
        let FabricEvent::Arrived { grant, part, bytes, .. } = event else { return true };
        if self.injected > 0 {
            return true;
        }
        let (dropped, injected) = match (self.fault, part) {
            (Fault::FlipByte, Part::Kv) => (false, self.flip(*grant, *bytes)),
            (Fault::DropAux, Part::Aux)
            | (Fault::DropState, Part::State(_))
            | (Fault::DropChunk, Part::Kv) => (true, true),
            _ => (false, false),
        };
        self.injected += u32::from(injected);
        !dropped
    }
}

impl Injector {
    /// `bytes` more of a grant's KV have landed: flips a byte if that is all of it.
    fn flip(&mut self, grant: GrantId, bytes: u64) -> bool {
        let Some(landing) = self.grants.get_mut(&grant) else { return false };
        let Some(kv) = &landing.kv else { return false };
        landing.landed += bytes;
        let pages = &landing.grant.kv;
        let all = landing.landed >= pages.len() as u64 * kv.item_bytes();
        pages.get(pages.len() / 2).is_some_and(|page| all && flip_byte(kv, *page))
    }
}

/// Flips the byte in the middle of a page, in the first buffer.
fn flip_byte(kv: &PagedTable, page: u32) -> bool {
    let (shape, region) = (kv.shapes()[0], kv.region(0));
    let offset = shape.position(page, shape.item_bytes / 2).0 as usize;
    let mut byte = [0];
    let read = region.read(offset, &mut byte);
    read.and_then(|()| region.write(offset, &[!byte[0]])).is_ok()
}
