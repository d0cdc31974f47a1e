//! Same host: device memory of another process, and copies from it straight into ours.
//!
//! The source exports its regions once ([`Device::export`](crate::Device::export), CUDA IPC), the
//! target opens them, and from then on a chunk on a staged path brings not bytes but a list of where
//! they are; the target checks the list and pulls them with one device-to-device
//! copy. Grants, order, arrival and fences are those of every staged chunk: no writable mapping of
//! the target's memory ever leaves it.
//!
//! What is different is whose memory is read: the source's pages must not change under the copy. The
//! source holds them until its write is over; when it gives a path up, the target may be copying
//! still. So the target reports nothing until the source has said, after the copy, that the path was
//! still there ([`crate::staged`]): as a seqlock's reader looks again.

use std::sync::Arc;

use transport_core::memory::{MemoryRegion, PagedTable, Spans};

use crate::strided::{Piece, TILE_BYTES, Tile};

/// An exported region, as another process opens it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Handle {
    /// The driver's name of the allocation.
    pub bytes: [u8; 64],
    /// Where the region begins in the allocation.
    pub offset: u64,
    /// Bytes of the region.
    pub len: u64,
}

/// Which machine this is, since it was started: what is exported can be opened only there. `None`
/// where the system does not say.
pub(crate) fn machine() -> Option<[u64; 2]> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let digits: String = id.chars().filter(char::is_ascii_hexdigit).collect();
    let half = |range| u64::from_str_radix(digits.get(range)?, 16).ok();
    Some([half(0..16)?, half(16..32)?])
}

/// Most bytes that one chunk has pulled, and most runs that it names: what the target makes of them
/// stays small, whatever the peer says.
pub(crate) const MAX_PULL: u64 = 8 << 20;
pub(crate) const MAX_RUNS: u64 = 1 << 16;

/// Bytes of a piece in a chunk.
pub(crate) const PIECE_BYTES: usize = 40;

/// Evenly spaced runs in an exported region: what a chunk says of bytes to be pulled.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct ForeignPiece {
    /// Index among the exported regions.
    pub(crate) region: u64,
    pub(crate) offset: u64,
    pub(crate) run_bytes: u64,
    pub(crate) stride: u64,
    pub(crate) runs: u64,
}

impl ForeignPiece {
    pub(crate) fn new(region: u64, piece: &Piece) -> Self {
        let Piece { offset, run_bytes, stride, runs, .. } = *piece;
        Self { region, offset, run_bytes, stride, runs }
    }

    pub(crate) fn encode(&self) -> [u8; PIECE_BYTES] {
        let words = [self.region, self.offset, self.run_bytes, self.stride, self.runs];
        let mut bytes = [0; PIECE_BYTES];
        for (word, to) in words.iter().zip(bytes.chunks_exact_mut(8)) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; PIECE_BYTES]) -> Self {
        let word = |at: usize| {
            let bytes = bytes[at * 8..at * 8 + 8].first_chunk();
            u64::from_le_bytes(*bytes.expect("eight bytes of forty"))
        };
        Self {
            region: word(0),
            offset: word(1),
            run_bytes: word(2),
            stride: word(3),
            runs: word(4),
        }
    }

    /// The first pieces of a list, at most `most` of them, and how many bytes they are.
    pub(crate) fn fitting(pieces: Vec<Self>, most: usize) -> (Vec<Self>, u64) {
        let (mut runs, mut bytes, mut chosen) = (MAX_RUNS, 0, Vec::new());
        for piece in pieces.into_iter().take(most) {
            let part = Self { runs: piece.runs.min(runs), ..piece };
            if part.runs > 0 {
                chosen.push(part);
            }
            (runs, bytes) = (runs - part.runs, bytes + part.run_bytes * part.runs);
        }
        (chosen, bytes)
    }

    /// Bytes of it, if all of them lie in a region of `len` bytes.
    fn bytes_within(&self, len: u64) -> Option<u64> {
        let bytes = self.run_bytes.checked_mul(self.runs).filter(|bytes| *bytes > 0)?;
        let last = self.stride.checked_mul(self.runs - 1)?.checked_add(self.offset)?;
        let end = last.checked_add(self.run_bytes)?;
        (end <= len).then_some(bytes)
    }
}

/// Bytes of a peer's regions, and the granted bytes that they go to.
#[derive(Debug)]
pub struct Pull {
    /// Keeps the target's regions.
    table: Arc<PagedTable>,
    /// Keeps what of the peer was opened.
    sources: Arc<[MemoryRegion]>,
    /// From where to where: `host` is the source's address.
    tiles: Vec<Tile>,
    taken: usize,
}

impl Pull {
    /// Pulls the pieces, in order, into the bytes of `stream`, which must be one of `table`'s. `None`
    /// when a piece leaves its region, or they are not as many bytes as the stream.
    pub(crate) fn new(
        table: &Arc<PagedTable>,
        stream: Spans<'_>,
        sources: &Arc<[MemoryRegion]>,
        pieces: &[ForeignPiece],
    ) -> Option<Self> {
        let (mut bytes, mut runs) = (0u64, 0u64);
        for piece in pieces {
            runs = runs.checked_add(piece.runs).filter(|runs| *runs <= MAX_RUNS)?;
            let region = sources.get(usize::try_from(piece.region).ok()?)?;
            bytes = bytes.checked_add(piece.bytes_within(region.len() as u64)?)?;
        }
        (bytes == stream.remaining()).then_some(())?;
        let from = pieces.iter().flat_map(|piece| {
            let base = sources[piece.region as usize].as_ptr() as u64 + piece.offset;
            (0..piece.runs).map(move |run| (base + run * piece.stride, piece.run_bytes))
        });
        let to = stream.map(|span| {
            let base = table.region(span.buffer).as_ptr() as u64;
            (base + span.offset, span.len)
        });
        let tiles = pair(from, to);
        Some(Self { table: Arc::clone(table), sources: Arc::clone(sources), tiles, taken: 0 })
    }

    /// All tiles, at the device's addresses.
    pub fn tiles(&self) -> &[Tile] {
        &self.tiles
    }

    /// Tiles that were taken so far.
    pub fn taken(&self) -> usize {
        self.taken
    }

    /// For queues: `count` more tiles were taken.
    pub fn take(&mut self, count: usize) {
        self.taken = self.tiles.len().min(self.taken + count);
    }

    /// What must be kept while the copies run.
    pub fn keep(&self) -> (Arc<PagedTable>, Arc<[MemoryRegion]>) {
        (Arc::clone(&self.table), Arc::clone(&self.sources))
    }
}

/// Two lists of contiguous bytes, equally long in total, as tiles: neighbours at even distances on
/// the target's side and without gaps on the source's become one.
fn pair(
    from: impl Iterator<Item = (u64, u64)>,
    mut to: impl Iterator<Item = (u64, u64)>,
) -> Vec<Tile> {
    let mut tiles: Vec<Tile> = Vec::new();
    let (mut target, mut room) = (0, 0);
    for (mut source, mut left) in from {
        while left > 0 {
            if room == 0 {
                let Some(next) = to.next() else { return tiles };
                (target, room) = next;
            }
            let len = left.min(room).min(TILE_BYTES);
            push(&mut tiles, source, target, len as u32);
            (source, left) = (source + len, left - len);
            (target, room) = (target + len, room - len);
        }
    }
    tiles.iter_mut().for_each(|tile| *tile = tile.at(tile.device, tile.host));
    tiles
}

fn push(tiles: &mut Vec<Tile>, source: u64, target: u64, len: u32) {
    if let Some(last) = tiles.last_mut() {
        let runs = u64::from(last.runs);
        let follows = last.host + runs * u64::from(last.run_bytes) == source;
        let apart = target.checked_sub(last.device).and_then(|all| {
            let stride = all / runs;
            (all % runs == 0 && stride >= len.into()).then(|| u32::try_from(stride).ok())?
        });
        let even = apart.filter(|stride| runs == 1 || *stride == last.stride);
        let small = (runs + 1) * u64::from(len) <= TILE_BYTES;
        if let Some(stride) = even.filter(|_| follows && small && last.run_bytes == len) {
            (last.stride, last.runs) = (stride, last.runs + 1);
            return;
        }
    }
    tiles.push(Tile {
        device: target,
        host: source,
        run_bytes: len,
        stride: len,
        runs: 1,
        unit: 1,
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn w1_pieces_outside_their_region_are_none() {
        let good = ForeignPiece { region: 0, offset: 10, run_bytes: 20, stride: 30, runs: 3 };
        assert_eq!(ForeignPiece::decode(&good.encode()), good);
        assert_eq!(good.bytes_within(90), Some(60));
        assert_eq!(good.bytes_within(89), None);
        for bad in [
            ForeignPiece { runs: 0, ..good },
            ForeignPiece { run_bytes: 0, ..good },
            ForeignPiece { runs: u64::MAX, ..good },
            ForeignPiece { stride: u64::MAX, ..good },
            ForeignPiece { offset: u64::MAX, ..good },
        ] {
            assert_eq!(bad.bytes_within(u64::MAX - 5), None, "{bad:?}");
        }
    }

    #[test]
    fn a_pull_is_as_long_as_its_stream() {
        let region = MemoryRegion::allocate(100).unwrap();
        let table = Arc::new(PagedTable::packed(&region, &[10], 10).unwrap());
        let sources: Arc<[MemoryRegion]> = Arc::new([region]);
        let stream = || Spans::new(table.shapes(), 0..1, &[3, 5]);
        let piece = ForeignPiece { region: 0, offset: 0, run_bytes: 20, stride: 20, runs: 1 };
        let pull = |piece| Pull::new(&table, stream(), &sources, &[piece]);
        assert_eq!(pull(piece).unwrap().tiles().len(), 1);
        assert!(pull(ForeignPiece { run_bytes: 19, ..piece }).is_none());
        assert!(pull(ForeignPiece { region: 1, ..piece }).is_none());
        assert!(pull(ForeignPiece { offset: 81, ..piece }).is_none());
    }

    fn runs(lens: &[u16], gaps: &[u16]) -> Vec<(u64, u64)> {
        let mut at = 0;
        let place = |(len, gap): (&u16, &u16)| {
            let run = (at, u64::from(*len));
            at += u64::from(*len) + u64::from(*gap);
            run
        };
        lens.iter().zip(gaps.iter().cycle()).map(place).collect()
    }

    proptest! {
        #[test]
        fn pairs_place_every_byte_once(
            lens in prop::collection::vec(1u16..900, 1..20), other in 1u64..500,
            gaps in prop::collection::vec(0u16..9, 1..4), even in any::<bool>(),
        ) {
            let from = runs(&lens, &[3]);
            let total: u64 = from.iter().map(|run| run.1).sum();
            let gaps = if even { vec![7] } else { gaps };
            let cut: Vec<u16> = (0..total.div_ceil(other))
                .map(|i| other.min(total - i * other) as u16).collect();
            let to = runs(&cut, &gaps);
            let bytes = |runs: &[(u64, u64)]| -> Vec<u64> {
                runs.iter().flat_map(|(at, len)| *at..*at + *len).collect()
            };
            let expected: Vec<_> = bytes(&from).into_iter().zip(bytes(&to)).collect();
            let mut placed = vec![];
            for tile in pair(from.iter().copied(), to.iter().copied()) {
                for index in 0..tile.units() {
                    let (device, host) = tile.place(index);
                    placed.extend((0..u64::from(tile.unit)).map(|b| (host + b, device + b)));
                }
            }
            prop_assert_eq!(placed, expected);
        }
    }
}
