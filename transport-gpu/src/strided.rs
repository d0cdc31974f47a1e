//! Scattered device memory as a few strided pieces, and pieces as tiles that a kernel's blocks copy.
//!
//! A piece is `runs` runs of `run_bytes` bytes, `stride` apart: the heads that a rank of another
//! size takes of every token, or pages at even distances. On the pinned side its bytes lie one
//! behind the other. A layout slice by slice so costs one pass over its bytes and one descriptor.
//!
//! The kernel (`kernels/copy.cu`) and everything on the host place bytes by one rule,
//! [`Tile::place`]; the kernel's copy of it is compared with this one word by word in its source.

use transport_core::memory::{Span, Spans};

/// Most bytes that one block of the kernel copies: about what keeps 256 threads busy with 16-byte
/// accesses while blocks of other tiles fill the device.
pub const TILE_BYTES: u64 = 16 << 10;

/// Evenly spaced runs of one buffer. See the module.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Piece {
    /// Which buffer of the table.
    pub buffer: usize,
    /// First byte, from the start of the buffer's region.
    pub offset: u64,
    /// Bytes of a run; not 0.
    pub run_bytes: u64,
    /// Bytes from one run to the next.
    pub stride: u64,
    /// Runs; not 0.
    pub runs: u64,
    /// First byte on the pinned side, from the batch's first.
    pub host: u64,
}

/// Contiguous bytes on both sides.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Run {
    /// First byte, from the start of the device's region.
    pub device: u64,
    /// First byte on the pinned side, from the batch's first.
    pub host: u64,
    /// Bytes.
    pub len: u64,
}

/// Turns a stream into pieces: spans of one length at even distances become one.
pub(crate) fn coalesce(stream: Spans<'_>) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    let mut host = 0;
    for span in stream {
        let joined = pieces.last_mut().is_some_and(|last| last.join(&span));
        if !joined {
            let Span { buffer, offset, len } = span;
            let piece = Piece { buffer, offset, run_bytes: len, stride: len, runs: 1, host };
            pieces.push(piece);
        }
        host += span.len;
    }
    pieces
}

impl Piece {
    /// Bytes of the piece.
    pub fn bytes(&self) -> u64 {
        self.run_bytes * self.runs
    }

    /// Takes the span in as the next run, if it is one.
    fn join(&mut self, span: &Span) -> bool {
        let next = match self.runs {
            // Two runs decide the stride. Spans that touch were merged before, and those that go
            // back, or lie so far ahead that a tile could not say so, begin a piece of their own.
            1 => span
                .offset
                .checked_sub(self.offset)
                .filter(|s| *s >= self.run_bytes && u32::try_from(*s).is_ok()),
            runs => Some(self.stride).filter(|s| self.offset + s * runs == span.offset),
        };
        let alike = span.buffer == self.buffer && span.len == self.run_bytes;
        let small = self.run_bytes <= TILE_BYTES;
        match next.filter(|_| alike && small) {
            Some(stride) => {
                (self.stride, self.runs) = (stride, self.runs + 1);
                true
            }
            None => false,
        }
    }

    /// Its runs, none longer than `most`.
    pub fn runs(&self, most: u64) -> impl Iterator<Item = Run> + use<> {
        let Self { offset, run_bytes, stride, host, runs, .. } = *self;
        let most = most.max(1);
        (0..runs).flat_map(move |run| {
            (0..run_bytes.div_ceil(most)).map(move |part| {
                let (at, len) = (part * most, most.min(run_bytes - part * most));
                Run { device: offset + run * stride + at, host: host + run * run_bytes + at, len }
            })
        })
    }

    /// The piece as tiles of at most [`TILE_BYTES`].
    pub fn tiles(&self) -> impl Iterator<Item = Tile> + use<> {
        let piece = *self;
        let whole = (TILE_BYTES / piece.run_bytes).clamp(1, u64::from(u32::MAX));
        let sets = piece.runs.div_ceil(whole);
        let parts = piece.run_bytes.div_ceil(TILE_BYTES);
        (0..sets).flat_map(move |set| {
            (0..parts).map(move |part| {
                let (run, at) = (set * whole, part * TILE_BYTES);
                let run_bytes = TILE_BYTES.min(piece.run_bytes - at);
                Tile {
                    device: piece.offset + run * piece.stride + at,
                    host: piece.host + run * piece.run_bytes + at,
                    run_bytes: run_bytes as u32,
                    stride: piece.stride as u32,
                    runs: whole.min(piece.runs - run) as u32,
                    unit: 1,
                }
                .widened()
            })
        })
    }

    /// How many tiles [`Piece::tiles`] gives.
    pub fn tile_count(&self) -> u64 {
        let whole = (TILE_BYTES / self.run_bytes).clamp(1, u64::from(u32::MAX));
        self.runs.div_ceil(whole) * self.run_bytes.div_ceil(TILE_BYTES)
    }
}

/// What one block of the kernel copies: the layout of the kernel's `Tile`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Tile {
    /// First byte on the device's side: an offset here, an address for the kernel.
    pub device: u64,
    /// First byte on the pinned side: an offset here, an address for the kernel.
    pub host: u64,
    /// Bytes of a run.
    pub run_bytes: u32,
    /// Bytes from one run to the next on the device's side. Means nothing when there is one run.
    pub stride: u32,
    /// Runs.
    pub runs: u32,
    /// Bytes that one thread moves at a time: 16, 8, 4 or 1. Divides everything above.
    pub unit: u32,
}

impl Tile {
    /// Units in the tile.
    pub fn units(&self) -> u32 {
        self.run_bytes / self.unit * self.runs
    }

    /// Where unit `index` lies on both sides: the rule that the kernel follows too.
    pub fn place(&self, index: u32) -> (u64, u64) {
        let per_run = self.run_bytes / self.unit;
        let (run, within) = (index / per_run, index % per_run);
        let device = u64::from(run) * u64::from(self.stride) + u64::from(within * self.unit);
        (self.device + device, self.host + u64::from(index) * u64::from(self.unit))
    }

    /// The same tile at other addresses, in units that suit them.
    pub fn at(self, device: u64, host: u64) -> Self {
        Self { device, host, ..self }.widened()
    }

    /// The widest unit that all of the tile is a multiple of.
    fn widened(self) -> Self {
        let stride = if self.runs > 1 { self.stride } else { 0 };
        let all = self.device | self.host | u64::from(self.run_bytes) | u64::from(stride);
        let unit =
            [16, 8, 4].into_iter().find(|unit| all.is_multiple_of(u64::from(*unit))).unwrap_or(1);
        Self { unit, stride, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use transport_core::memory::BufferShape;

    /// What the pieces copy, byte by byte.
    fn bytes_of(spans: impl Iterator<Item = Span>) -> Vec<(usize, u64)> {
        spans.flat_map(|s| (s.offset..s.offset + s.len).map(move |b| (s.buffer, b))).collect()
    }

    fn shapes() -> impl Strategy<Value = Vec<BufferShape>> {
        let one = (0u64..64, 1u64..48, 0u64..9, 1u64..5, 0u64..9);
        let shape = one.prop_map(|(offset, bytes, gap, runs, more)| {
            BufferShape::new(offset, (bytes + gap) * runs + more, 1).sliced(
                bytes,
                bytes + gap,
                runs,
            )
        });
        prop::collection::vec(shape, 1..4)
    }

    /// Shapes whose runs are longer than a tile, too.
    fn long() -> impl Strategy<Value = BufferShape> {
        (1u64..40_000, 0u64..40, 1u64..4).prop_map(|(n, gap, runs)| {
            BufferShape::new(3, (n + gap) * 4, 1).sliced(n, n + gap, runs)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn pieces_and_runs_are_the_stream_byte_for_byte(
            shapes in shapes(), items in prop::collection::vec(0u32..8, 0..12),
            start in 0u64..200, len in 0u64..300, most in 1u64..20,
        ) {
            let stream = Spans::new(&shapes, 0..shapes.len(), &items).range(start, len);
            let expected = bytes_of(stream.clone());
            let mut placed = vec![None; expected.len()];
            for piece in coalesce(stream) {
                for run in piece.runs(most) {
                    prop_assert!(run.len <= most);
                    for at in 0..run.len {
                        let slot = &mut placed[(run.host + at) as usize];
                        prop_assert!(slot.replace((piece.buffer, run.device + at)).is_none());
                    }
                }
            }
            prop_assert_eq!(placed.into_iter().collect::<Option<Vec<_>>>().unwrap(), expected);
        }

        #[test]
        fn tiles_place_every_byte_of_a_piece_once_and_in_whole_units(
            shape in long(), items in prop::collection::vec(0u32..6, 1..4), host in 0u64..40,
        ) {
            let shapes = [shape];
            for piece in coalesce(Spans::new(&shapes, 0..1, &items)) {
                let piece = Piece { host: piece.host + host, ..piece };
                let mut placed = vec![None; piece.bytes() as usize];
                let mut tiles = 0;
                for tile in piece.tiles() {
                    tiles += 1;
                    prop_assert!(u64::from(tile.run_bytes) * u64::from(tile.runs) <= TILE_BYTES);
                    for index in 0..tile.units() {
                        let (device, at) = tile.place(index);
                        prop_assert_eq!((device | at) % u64::from(tile.unit), 0, "aligned");
                        for byte in 0..u64::from(tile.unit) {
                            let slot = &mut placed[(at + byte - piece.host) as usize];
                            prop_assert!(slot.replace(device + byte).is_none());
                        }
                    }
                }
                prop_assert_eq!(tiles, piece.tile_count());
                for run in piece.runs(u64::MAX) {
                    for at in 0..run.len {
                        let slot = placed[(run.host + at - piece.host) as usize];
                        prop_assert_eq!(slot, Some(run.device + at));
                    }
                }
            }
        }
    }

    #[test]
    fn heads_of_every_token_are_one_piece_and_whole_pages_at_even_distances_too() {
        let heads = [BufferShape::new(256, 16 << 10, 1).sliced(256, 1024, 16)];
        let pieces = coalesce(Spans::new(&heads, 0..1, &[3]));
        assert_eq!(pieces.len(), 1);
        assert_eq!((pieces[0].runs, pieces[0].stride, pieces[0].run_bytes), (16, 1024, 256));
        let pages = [BufferShape::dense(0, 4096)];
        assert_eq!(coalesce(Spans::new(&pages, 0..1, &[1, 3, 5, 7])).len(), 1);
        assert_eq!(
            coalesce(Spans::new(&pages, 0..1, &[7, 3, 5, 1])).len(),
            3,
            "7, then 3 and 5, 1"
        );
    }

    #[test]
    fn aligned_tiles_move_sixteen_bytes_at_a_time() {
        let tile = Tile { device: 64, host: 32, run_bytes: 128, stride: 512, runs: 4, unit: 1 };
        assert_eq!(tile.widened().unit, 16);
        assert_eq!(tile.at(64, 36).unit, 4);
        assert_eq!(tile.at(65, 32).unit, 1);
        assert_eq!(Tile { runs: 1, stride: 3, ..tile }.widened().unit, 16, "one run has no stride");
    }
}
