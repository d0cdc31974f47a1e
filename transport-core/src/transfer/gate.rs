//! The arrival gate: counts what has landed and says exactly once "all of it".
//!
//! Arrivals and manifests come in any order, on any thread, also before the receiver asks (G3).
//! Each named writer (G5) has a bit per KV delivery, a bit per state component, an aux bit, and one
//! counter of what is still missing:
//!
//! * it starts at [`UNKNOWN`], far above anything that can be due;
//! * the first arrival of a delivery takes 1 away; a duplicate finds its bit set and takes nothing;
//! * the manifest adds what is due and takes [`UNKNOWN`] away.
//!
//! So it reaches zero once, in the hands of one thread, after the manifest and as many distinct
//! deliveries as it states. That thread then looks whether they are *the stated ones*: all bits it
//! needs were set before the counter's updates it has seen. If not, the writer lied, and so it did
//! when there is less left than is to be taken away, for more came than it states: the gate is
//! poisoned (G4). The last writer to finish moves the gate from open to complete by one
//! compare-exchange, which poison competes for: complete is said once, and never after poison.

use alloc::boxed::Box;
use core::iter;

use super::{Part, StateMask};
use crate::fault::{Fault, ordering, seeded};
use crate::sync::{AtomicUsize, Ordering};

/// Most KV deliveries one writer may make in one room.
pub const MAX_DELIVERIES: u32 = 1 << 16;

/// The missing counter's start: more than [`MAX_DELIVERIES`] + aux + components can be.
const UNKNOWN: usize = 1 << 20;
const BITS: u32 = usize::BITS;

const AUX_BIT: usize = 1 << 16;
const MANIFEST_BIT: usize = 1 << 17;

const OPEN: usize = 0;
const COMPLETE: usize = 1;
const POISONED: usize = 2;

/// What one sender says it will have sent in total.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Manifest {
    /// KV deliveries, numbered from 0. May be none (a full prefix hit).
    pub kv: u32,
    /// Whether this sender writes the aux record; exactly one per room does (G6).
    pub aux: bool,
    /// State components it writes, one delivery each.
    pub state: StateMask,
}

impl Manifest {
    fn deliveries(&self) -> usize {
        self.kv as usize + usize::from(self.aux) + self.state.len() as usize
    }
}

/// What the gate says. Complete and poisoned are final.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum GateState {
    /// Something is missing still.
    Open,
    /// Every manifest is known and fulfilled.
    Complete,
    /// A sender failed or contradicted itself; nothing un-poisons the gate.
    Poisoned,
}

/// What became of one report to the gate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Report {
    /// Counted; more is missing.
    Counted,
    /// Counted, and it was the last: said exactly once per gate.
    Completed,
    /// Known already: changed nothing.
    Duplicate,
    /// From a writer that was not named when the gate was made: changed nothing.
    Stranger,
    /// The gate was final already: changed nothing.
    Late,
    /// It contradicts what the same writer reported before; the gate is poisoned now.
    Contradiction,
}

/// Counts one room's arrivals. See the module.
///
/// ```
/// use transport_core::transfer::{ArrivalGate, GateState, Manifest, Part, Report, StateMask};
///
/// let gate = ArrivalGate::new(&[7], 64); // one writer, rank 7, at most 64 KV deliveries
/// assert_eq!(gate.arrived(7, Part::Aux, 0), Report::Counted); // aux may overtake
/// let manifest = Manifest { kv: 1, aux: true, state: StateMask::EMPTY };
/// assert_eq!(gate.manifest(7, manifest), Report::Counted);
/// assert_eq!(gate.arrived(7, Part::Kv, 0), Report::Completed);
/// assert_eq!(gate.state(), GateState::Complete);
/// ```
#[derive(Debug)]
pub struct ArrivalGate {
    state: AtomicUsize,
    /// Writers not finished yet.
    unfinished: AtomicUsize,
    /// Most gates have one.
    writer: Option<Writer>,
    others: Box<[Writer]>,
}

#[derive(Debug)]
struct Writer {
    name: u32,
    /// Most KV deliveries; the last word below may have bits for more.
    limit: u32,
    /// What is still missing; see the module.
    missing: AtomicUsize,
    /// Bits 0..16 state components seen, then aux seen, then manifest seen.
    seen: AtomicUsize,
    /// A bit per KV delivery seen. Most rooms need no more than one word of them.
    kv: AtomicUsize,
    more_kv: Box<[AtomicUsize]>,
    /// The manifest, in two words, written before its bit in `missing` is taken away.
    manifest: [AtomicUsize; 2],
}

impl ArrivalGate {
    /// A gate for these writers (their rank numbers), each making at most `deliveries` KV
    /// deliveries (at most [`MAX_DELIVERIES`]). A name given twice is one writer. With no writers
    /// the gate never completes.
    pub fn new(writers: &[u32], deliveries: u32) -> Self {
        let limit = deliveries.min(MAX_DELIVERIES);
        let first = |(i, name): &(usize, &u32)| !writers[..*i].contains(name);
        let named = writers.iter().enumerate().filter(first);
        let mut writers = named.map(|(_, name)| Writer::new(*name, limit));
        let (writer, others) = (writers.next(), writers.collect::<Box<[_]>>());
        let unfinished = AtomicUsize::new(usize::from(writer.is_some()) + others.len());
        Self { state: AtomicUsize::new(OPEN), unfinished, writer, others }
    }

    /// What the gate says now: one atomic load.
    pub fn state(&self) -> GateState {
        match self.state.load(Ordering::Acquire) {
            OPEN => GateState::Open,
            COMPLETE => GateState::Complete,
            _ => GateState::Poisoned,
        }
    }

    /// A delivery of `writer` has landed.
    pub fn arrived(&self, writer: u32, part: Part, sequence: u32) -> Report {
        let Some(writer) = self.writer(writer) else { return Report::Stranger };
        let Some(first) = writer.mark(part, sequence) else { return self.contradiction() };
        if first { self.take(writer, 1) } else { Report::Duplicate }
    }

    /// `writer` says what it will have sent in total. One thread at a time reports the manifests of
    /// one writer (its link's owner); arrivals may come from any thread meanwhile.
    pub fn manifest(&self, writer: u32, manifest: Manifest) -> Report {
        let Some(writer) = self.writer(writer) else { return Report::Stranger };
        if manifest.kv > writer.limit {
            return self.contradiction();
        }
        if writer.seen.fetch_or(MANIFEST_BIT, Ordering::AcqRel) & MANIFEST_BIT != 0 {
            let same = writer.stated() == manifest;
            return if same { Report::Duplicate } else { self.contradiction() };
        }
        writer.state_manifest(manifest);
        self.take(writer, UNKNOWN.wrapping_sub(manifest.deliveries()))
    }

    /// A sender failed: the gate will not complete. True if this call poisoned it; false when it
    /// was final already (G4).
    pub fn poison(&self) -> bool {
        self.finish(POISONED)
    }

    /// How far `writer` has come, for a message that says what never came.
    pub fn progress(&self, writer: u32) -> Option<WriterProgress> {
        let writer = self.writer(writer)?;
        let seen = writer.seen.load(Ordering::Acquire);
        let manifest = (seen & MANIFEST_BIT != 0).then(|| writer.stated());
        let ones = |word: &AtomicUsize| word.load(Ordering::Acquire).count_ones();
        let state = StateMask::from_bits(seen as u16);
        let kv = writer.kv_words().map(ones).sum();
        Some(WriterProgress { kv, aux: seen & AUX_BIT != 0, state, manifest })
    }

    /// A gate that has counted the same. Only where nobody reports to this one meanwhile.
    pub(crate) fn copy(&self) -> Self {
        let writer = self.writer.as_ref().map(Writer::copy);
        let others = self.others.iter().map(Writer::copy).collect();
        Self { state: copy(&self.state), unfinished: copy(&self.unfinished), writer, others }
    }

    /// All that it has counted: gates of the same writers with the same words are the same.
    pub(crate) fn words(&self) -> impl Iterator<Item = usize> {
        let own = [&self.state, &self.unfinished];
        let counted = self.writers().flat_map(|writer| {
            let own = [&writer.missing, &writer.seen].into_iter();
            own.chain(writer.kv_words()).chain(&writer.manifest)
        });
        own.into_iter().chain(counted).map(|word| word.load(Ordering::Relaxed))
    }

    fn writer(&self, name: u32) -> Option<&Writer> {
        self.writers().find(|writer| writer.name == name)
    }

    fn writers(&self) -> impl Iterator<Item = &Writer> {
        self.writer.iter().chain(&self.others)
    }

    /// Takes `amount` from the missing counter; whoever brings it to zero finishes the writer. There
    /// is less than that when more came than the writer states.
    fn take(&self, writer: &Writer, amount: usize) -> Report {
        if self.state() != GateState::Open {
            return Report::Late;
        }
        // AcqRel: the one who brings it to zero sees all bits and bytes that were counted before.
        let order = ordering(Ordering::AcqRel, Fault::GateCount);
        let missing = writer.missing.fetch_sub(amount, order);
        if missing > amount {
            return Report::Counted;
        }
        if missing < amount || !writer.is_fulfilled() {
            return self.contradiction();
        }
        if self.unfinished.fetch_sub(1, Ordering::AcqRel) != 1 {
            return Report::Counted;
        }
        if self.finish(COMPLETE) { Report::Completed } else { Report::Late }
    }

    fn contradiction(&self) -> Report {
        if self.poison() { Report::Contradiction } else { Report::Late }
    }

    fn finish(&self, state: usize) -> bool {
        if seeded(Fault::GatePoison) {
            return self.state.swap(state, Ordering::AcqRel) == OPEN;
        }
        self.state.compare_exchange(OPEN, state, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

impl Writer {
    fn new(name: u32, limit: u32) -> Self {
        let more = limit.div_ceil(BITS).saturating_sub(1) as usize;
        let more_kv = iter::repeat_with(|| AtomicUsize::new(0)).take(more).collect();
        let kv = AtomicUsize::new(0);
        let manifest = [AtomicUsize::new(0), AtomicUsize::new(0)];
        let (missing, seen) = (AtomicUsize::new(UNKNOWN), AtomicUsize::new(0));
        Self { name, limit, missing, seen, kv, more_kv, manifest }
    }

    fn copy(&self) -> Self {
        let (name, limit) = (self.name, self.limit);
        let manifest = self.manifest.each_ref().map(copy);
        let (missing, seen) = (copy(&self.missing), copy(&self.seen));
        let (kv, more_kv) = (copy(&self.kv), self.more_kv.iter().map(copy).collect());
        Self { name, limit, missing, seen, kv, more_kv, manifest }
    }

    fn kv_words(&self) -> impl Iterator<Item = &AtomicUsize> {
        iter::once(&self.kv).chain(&self.more_kv)
    }

    fn kv_word(&self, index: u32) -> Option<&AtomicUsize> {
        match index.checked_sub(1) {
            None => Some(&self.kv),
            Some(index) => self.more_kv.get(index as usize),
        }
    }

    /// Sets the delivery's bit: whether it is the first, or `None` when there is no such bit.
    fn mark(&self, part: Part, sequence: u32) -> Option<bool> {
        let (word, bit) = match part {
            Part::Kv if sequence >= self.limit => return None,
            Part::Kv => (self.kv_word(sequence / BITS)?, 1usize << (sequence % BITS)),
            Part::Aux => (&self.seen, AUX_BIT),
            Part::State(component) => (&self.seen, StateMask::from_iter([component]).bits().into()),
        };
        let forgotten = seeded(Fault::GateDuplicate);
        (bit != 0).then(|| word.fetch_or(bit, Ordering::AcqRel) & bit == 0 || forgotten)
    }

    fn state_manifest(&self, manifest: Manifest) {
        let rest = usize::from(manifest.state.bits()) | (usize::from(manifest.aux) * AUX_BIT);
        self.manifest[0].store(manifest.kv as usize, Ordering::Relaxed);
        // Release: a repeated manifest is compared with what this thread stored.
        self.manifest[1].store(rest, Ordering::Release);
    }

    fn stated(&self) -> Manifest {
        let rest = self.manifest[1].load(Ordering::Acquire);
        let kv = self.manifest[0].load(Ordering::Relaxed) as u32;
        Manifest { kv, aux: rest & AUX_BIT != 0, state: StateMask::from_bits(rest as u16) }
    }

    /// Whether exactly the stated deliveries were seen. Only asked by the thread that brought
    /// `missing` to zero: its updates form one chain of read-modify-writes, so all bits that were
    /// counted are visible here.
    fn is_fulfilled(&self) -> bool {
        let manifest = self.stated();
        let parts = usize::from(manifest.state.bits()) | (usize::from(manifest.aux) * AUX_BIT);
        let seen = self.seen.load(Ordering::Acquire) & (AUX_BIT | usize::from(u16::MAX));
        let mut words = self.kv_words().zip(0u32..);
        let expected = |index: u32| low_bits(manifest.kv.saturating_sub(index * BITS));
        let exact = |(word, i): (&AtomicUsize, u32)| word.load(Ordering::Acquire) == expected(i);
        seen == parts && words.all(exact)
    }
}

fn copy(word: &AtomicUsize) -> AtomicUsize {
    AtomicUsize::new(word.load(Ordering::Relaxed))
}

/// A word whose lowest `n` bits are set.
fn low_bits(n: u32) -> usize {
    if n >= BITS { usize::MAX } else { (1 << n) - 1 }
}

/// What a gate has seen of one writer.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct WriterProgress {
    /// Distinct KV deliveries.
    pub kv: u32,
    /// Whether the aux record came.
    pub aux: bool,
    /// State components that came.
    pub state: StateMask,
    /// What the writer stated, if it has.
    pub manifest: Option<Manifest>,
}

#[cfg(test)]
#[path = "gate_models.rs"]
#[allow(unsafe_code, reason = "pages that a model fills without a lock, for loom to watch")]
mod models;
#[cfg(all(test, not(transport_loom)))]
#[path = "gate_tests.rs"]
mod tests;
