//! The workloads: which pages go where, in how many deliveries.
//!
//! | name | pages | deliveries |
//! | --- | --- | --- |
//! | W1 pages | 1024 of 64 KiB, scattered over a pool of 2048 | 1 |
//! | W2 small pages | 4096 of 4 KiB, scattered over 8192 | 1 |
//! | W3 latency | 1 of 4 KiB | 1, there and back |
//! | W4 layer by layer | 32 of 16 KiB in each of 61 layers of 64 | 8 chunks, and 256 bytes of aux |
//! | W5 big | 256 MiB in one piece | 1 |
//!
//! Sources and destinations are different permutations, the same in both processes.

use std::ops::Range;

use transport_core::rng::Rng;

use super::args::{Name, Pages};

/// Bytes of the aux record.
pub const AUX_BYTES: u64 = 256;
/// Seed of the permutations; any would do.
const SEED: u64 = 7;

/// One workload.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Which.
    pub name: Name,
    /// Bytes of a page.
    pub page_bytes: u64,
    /// Buffers that every item has a page in.
    pub layers: u32,
    /// Items of the pool.
    pub items: u32,
    /// Items read, one for each in `to`.
    pub from: Vec<u32>,
    /// Items written.
    pub to: Vec<u32>,
    /// KV deliveries of a request.
    pub chunks: u32,
    /// Whether an aux record follows.
    pub aux: bool,
    /// Requests before the clock starts.
    pub warm: u32,
    /// Requests measured unless told otherwise.
    pub iterations: u32,
}

impl Workload {
    /// The workload of that name.
    pub fn of(name: Name) -> Self {
        match name {
            Name::Pages => Self::scattered(name, 64 << 10, 1024, (3, 10)),
            Name::SmallPages => Self::scattered(name, 4 << 10, 4096, (3, 10)),
            Name::Latency => Self::scattered(name, 4 << 10, 1, (50, 1000)),
            Name::Layerwise => {
                let chunked = Self::scattered(name, 16 << 10, 32, (3, 10));
                Self { layers: 61, chunks: 8, aux: true, ..chunked }
            }
            Name::Big => {
                let one = Self::scattered(name, 256 << 20, 1, (2, 4));
                Self { items: 1, from: vec![0], to: vec![0], ..one }
            }
        }
    }

    /// Scattered pages in one delivery, as W1, but of any number and size.
    pub fn pages_of(Pages { count, bytes }: Pages) -> Self {
        Self::scattered(Name::Pages, bytes, count, (3, 10))
    }

    fn scattered(name: Name, page_bytes: u64, count: u32, requests: (u32, u32)) -> Self {
        let mut random = Rng::new(SEED);
        let mut half = || some_of(&mut random, 2 * count, count);
        let (from, to) = (half(), half());
        let (warm, iterations) = requests;
        let (layers, chunks, aux, items) = (1, 1, false, 2 * count);
        Self { name, page_bytes, layers, items, from, to, chunks, aux, warm, iterations }
    }

    /// Whether every request is answered by one of the same size.
    pub fn is_ping_pong(&self) -> bool {
        self.name == Name::Latency
    }

    /// Positions of the item lists that a chunk covers.
    pub fn chunk(&self, chunk: u32) -> Range<usize> {
        let share = self.from.len() / self.chunks as usize;
        let start = chunk as usize * share;
        start..start + share
    }

    /// Bytes of the pages of the whole pool.
    pub fn pages_bytes(&self) -> u64 {
        self.page_bytes * u64::from(self.items) * u64::from(self.layers)
    }

    /// Where in the pool the pages of these items lie, in the order in which they are delivered; then
    /// the aux record.
    pub fn spans(&self, items: &[u32]) -> Vec<Range<usize>> {
        let page = self.page_bytes as usize;
        let layer = page * self.items as usize;
        let span = move |start: usize| start..start + page;
        let of_chunk = |chunk| {
            let of_layer = move |at: usize| {
                items[self.chunk(chunk)]
                    .iter()
                    .map(move |item| span(at * layer + *item as usize * page))
            };
            (0..self.layers as usize).flat_map(of_layer)
        };
        let aux = self.pages_bytes() as usize;
        let aux = self.aux.then_some(aux..aux + AUX_BYTES as usize);
        (0..self.chunks).flat_map(of_chunk).chain(aux).collect()
    }

    /// Pages of a request.
    pub fn pages(&self) -> u64 {
        self.from.len() as u64 * u64::from(self.layers)
    }

    /// Bytes of a request.
    pub fn bytes(&self) -> u64 {
        self.pages() * self.page_bytes + if self.aux { AUX_BYTES } else { 0 }
    }
}

/// `count` of the numbers below `all`, in any order.
fn some_of(random: &mut Rng, all: u32, count: u32) -> Vec<u32> {
    let mut numbers: Vec<u32> = (0..all).collect();
    for i in 0..count as usize {
        let rest = (numbers.len() - i) as u64;
        numbers.swap(i, i + (random.next_u64() % rest) as usize);
    }
    numbers.truncate(count as usize);
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads_are_of_the_sizes_they_are_known_by() {
        let sizes = Name::ALL.map(|name| (Workload::of(name).pages(), Workload::of(name).bytes()));
        let (w1, w2, w4) = (64 << 20, 16 << 20, 1952 * (16 << 10) + 256);
        assert_eq!(sizes, [(1024, w1), (4096, w2), (1, 4096), (1952, w4), (1, 256 << 20)]);
    }

    #[test]
    fn chunks_cover_all_positions_and_items_are_different_ones_of_the_pool() {
        for name in Name::ALL {
            let work = Workload::of(name);
            let covered: Vec<usize> = (0..work.chunks).flat_map(|c| work.chunk(c)).collect();
            assert_eq!(covered, (0..work.from.len()).collect::<Vec<_>>());
            for list in [&work.from, &work.to] {
                let mut sorted = list.clone();
                sorted.sort_unstable();
                sorted.dedup();
                assert_eq!(sorted.len(), list.len());
                assert!(sorted.last().is_some_and(|last| *last < work.items));
            }
        }
        let work = Workload::of(Name::Pages);
        assert_ne!(work.from, work.to);
    }

    #[test]
    fn spans_are_all_that_is_delivered_and_do_not_overlap() {
        for name in Name::ALL {
            let work = Workload::of(name);
            let mut spans = work.spans(&work.to);
            assert_eq!(spans.iter().map(|span| span.len() as u64).sum::<u64>(), work.bytes());
            spans.sort_by_key(|span| span.start);
            assert!(spans.is_sorted_by(|one, next| one.end <= next.start));
        }
    }
}
