//! What a process of the same machine may say, and put into its ring.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, LazyLock};

use transport_core::transfer::Part;

use super::{GRANTS, ITEM, PEER};
use crate::local::channel::{Channel, FIRST_SLOT, SUBMISSIONS, WORDS};
use crate::local::message;
use crate::local::regions::{Notice, PeerRegions};
use crate::local::target::{Context, Target};
use crate::local::words::{Ordering, Words, WordsMut};

/// Bytes of the source's only region.
const REGION: u64 = 4096;

/// A message of the greeting, and slots as they come: decoded, held against the grants, copied.
/// Nothing lands beside granted items (M3).
pub fn nearby(data: &[u8]) {
    let _ = message::decode(data, vec![]);
    let (here, there) = HEAPS.with(Clone::clone);
    [&here, &there].into_iter().for_each(Heap::clear);
    let mut source = Channel::new(here.clone(), there.clone());
    let mut target = Channel::new(there, here);
    let slots = data.as_chunks::<8>().0.chunks_exact(2).take(SUBMISSIONS as usize);
    for slot in slots {
        source.submit([u64::from_le_bytes(slot[0]), u64::from_le_bytes(slot[1])]);
    }
    source.flush();
    take(&mut target);
    assert!(!is_spilled(), "bytes beside the granted items");
}

fn take(channel: &mut Channel<Heap, Heap>) {
    let mut regions = PeerRegions::default();
    let notice = Notice { len: REGION, base: 0, shared: true };
    let file = SOURCE.try_clone().expect("a descriptor");
    regions.add(notice, Some(file)).expect("a file of ours");
    let (mut events, grants) = (VecDeque::new(), &GRANTS.0);
    let mut place =
        Context { peer: PEER, grants, regions: &regions, events: &mut events, turn: u64::MAX };
    let mut half = Target::default();
    while let Ok(taken) = half.turn(channel, &mut place) {
        channel.flush();
        if taken.bytes + taken.landed + taken.refused == 0 {
            break;
        }
    }
}

/// The source's bytes are all ones.
static SOURCE: LazyLock<OwnedFd> = LazyLock::new(|| {
    let (words, file) = crate::sys::OwnWords::new(REGION as usize / 8).expect("a page");
    (0..REGION as usize / 8).for_each(|at| words.store(at, u64::MAX, Ordering::Relaxed));
    file
});

/// Whether an item that is not granted holds something.
fn is_spilled() -> bool {
    let (grants, grant) = &*GRANTS;
    [Part::Kv, Part::Aux, Part::State(0)].into_iter().any(|part| {
        let table = grants.table(part).expect("bound");
        let mut bytes = vec![0; table.region(0).len()];
        table.region(0).read(0, &mut bytes).expect("all of it");
        let items = bytes.chunks(ITEM as usize).zip((0..table.items()).cycle());
        items.filter(|(_, item)| !grant.items(part).contains(item)).any(|(b, _)| b != [0; 16])
    })
}

thread_local! {
    /// Made once: they are large, and inputs are many.
    static HEAPS: (Heap, Heap) = (Heap::new(), Heap::new());
}

/// Words that no kernel has to map.
#[derive(Clone, Debug)]
struct Heap(Arc<Vec<AtomicU64>>);

impl Heap {
    fn new() -> Self {
        Self(Arc::new((0..WORDS).map(|_| AtomicU64::new(0)).collect()))
    }

    fn clear(&self) {
        (0..FIRST_SLOT).for_each(|at| self.store(at, 0, Ordering::Relaxed));
    }
}

impl Words for Heap {
    fn load(&self, at: usize, order: Ordering) -> u64 {
        self.0[at].load(order)
    }
}

impl WordsMut for Heap {
    fn store(&self, at: usize, value: u64, order: Ordering) {
        self.0[at].store(value, order);
    }
}
