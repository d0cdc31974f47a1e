//! A side's memory: pages, an aux slot behind them, and what must be in both.
//!
//! The sender's bytes are random and none of them is zero; the receiver's are zero until they are
//! written. Each side can make the sender's bytes again, so whatever lands can be checked without
//! being sent twice.

use transport_core::memory::{BufferShape, CacheTables, LayerBuffer, MemoryRegion, PagedTable};
use transport_core::rng::Rng;
use transport_tcp::HostMemory;

use super::RawError;
use super::work::{AUX_BYTES, Workload};

/// Seed of the sender's bytes.
const SEED: u64 = 99;
/// Bytes made or compared at a time.
const BLOCK: usize = 1 << 20;
/// Bytes behind the pages.
const TAIL: u64 = 4096;

/// Memory of one side.
pub(super) struct Pool {
    region: MemoryRegion,
    pub(super) tables: CacheTables,
}

impl Pool {
    /// `shown` if it is read from by another process: then it is in a file, which has no huge pages
    /// on most systems. Where bytes only land, huge pages are the better choice, and TCP reads
    /// either.
    pub(super) fn new(work: &Workload, shown: bool) -> Result<Self, RawError> {
        let len = len(work);
        let memory = HostMemory::default().huge_pages().populate();
        let region = if shown { memory.map_shared(len) } else { memory.map(len) };
        let region = region.map_err(RawError::io("memory for the pool"))?;
        let layer_bytes = work.page_bytes * u64::from(work.items);
        let layer = |layer: u32| LayerBuffer {
            region: region.clone(),
            shape: BufferShape::dense(u64::from(layer) * layer_bytes, work.page_bytes),
        };
        let kv = PagedTable::new((0..work.layers).map(layer).collect(), work.items)?;
        let shape = BufferShape::dense(work.pages_bytes(), AUX_BYTES);
        let aux = PagedTable::new(vec![LayerBuffer { region: region.clone(), shape }], 1)?;
        let tables = CacheTables::new(kv, aux, vec![]).expect("one aux buffer, no state");
        Ok(Self { region, tables })
    }

    /// The sender's bytes.
    pub(super) fn fill(&self) {
        let mut random = Rng::new(SEED);
        self.each_block(|words| words.fill_with(|| random_word(&mut random)));
    }

    /// As before anything landed.
    pub(super) fn clear(&self) {
        self.each_block(|words| words.fill([0; 8]));
    }

    /// Whether what the request names has landed, and nothing else was touched.
    pub(super) fn verify(&self, work: &Workload) -> bool {
        let mut bytes = vec![0; BLOCK];
        expected(work).chunks(BLOCK / 8).enumerate().all(|(block, words)| {
            let bytes = &mut bytes[..words.len() * 8];
            self.region.read(block * BLOCK, bytes).expect("a block of the region");
            are_words(bytes, words)
        })
    }

    /// The same of a pool that is plain memory.
    pub(super) fn is_as_expected(work: &Workload, bytes: &[u8]) -> bool {
        are_words(bytes, &expected(work))
    }

    fn each_block(&self, mut make: impl FnMut(&mut [[u8; 8]])) {
        let mut block = vec![[0; 8]; BLOCK / 8];
        for at in (0..self.region.len()).step_by(BLOCK) {
            let words = BLOCK.min(self.region.len() - at) / 8;
            make(&mut block[..words]);
            self.region.write(at, block[..words].as_flattened()).expect("a block of the region");
        }
    }
}

/// Bytes of a side's memory.
pub(super) fn len(work: &Workload) -> usize {
    (work.pages_bytes() + TAIL) as usize
}

/// The sender's bytes, into plain memory.
pub(super) fn fill(bytes: &mut [u8]) {
    let words = source_words(bytes.len() / 8);
    bytes
        .chunks_exact_mut(8)
        .zip(words)
        .for_each(|(to, word)| to.copy_from_slice(&word.to_ne_bytes()));
}

/// What the receiver's pool must hold: what was sent where it belongs, zeroes elsewhere.
fn expected(work: &Workload) -> Vec<u64> {
    let mut expected = vec![0u64; len(work) / 8];
    let source = source_words(expected.len());
    for (from, to) in work.spans(&work.from).into_iter().zip(work.spans(&work.to)) {
        expected[to.start / 8..to.end / 8].copy_from_slice(&source[from.start / 8..from.end / 8]);
    }
    expected
}

fn are_words(bytes: &[u8], words: &[u64]) -> bool {
    bytes.chunks_exact(8).zip(words).all(|(found, word)| found == word.to_ne_bytes())
}

fn source_words(count: usize) -> Vec<u64> {
    let mut random = Rng::new(SEED);
    (0..count).map(|_| u64::from_ne_bytes(random_word(&mut random))).collect()
}

/// Eight random bytes, none of them zero.
fn random_word(random: &mut Rng) -> [u8; 8] {
    (random.next_u64() | 0x0101_0101_0101_0101).to_ne_bytes()
}
