//! What peers of staged device memory send: chunks and regions, several behind each other, as the
//! golden vectors do not show them.

use crate::vectors::vectors;

use super::Made;

const GRANT: u64 = 9 << 32 | 3;
const TAG: u64 = 0x0123_4567_89ab_cdef;

pub(super) fn seeds() -> Vec<Made> {
    let halves =
        [chunk(0, (0, 3), (0, 384, 200), 0), chunk(1, (0, 3), (200, 384, 184), 0)].concat();
    // Two buffers of an item are 96 and 32 bytes.
    let buffer = {
        let mut one = chunk(0, (1, 2), (0, 64, 64), 0);
        one[36..40].copy_from_slice(&[1, 0, 2, 0]);
        one
    };
    let nothing = chunk(0, (3, 0), (0, 0, 0), 0);
    let beyond = chunk(0, (2, 2), (0, 256, 256), 0);
    let runs =
        [chunk(0, (0, 3), (0, 384, 384), 2), piece(0, (0, 48, 500, 7)), piece(1, (1, 48, 48, 1))];
    let all = [chunk(0, (0, 3), (0, 384, 384), 1), piece(0, (3712, 384, 384, 1))];
    let outside = [chunk(0, (0, 3), (0, 384, 384), 1), piece(0, (3713, 384, 384, 1))];
    let unlike = [chunk(0, (0, 3), (0, 384, 384), 1), piece(1, (0, 50, 50, 2))];
    let mixed = [runs.concat(), halves.clone(), all.concat()].concat();
    let two = [shown(3, 0, &[100, 4096]), shown(3, 2, &[1])].concat();
    vec![
        ("gpu_chunks", "halves", halves),
        ("gpu_chunks", "one-buffer", buffer),
        ("gpu_chunks", "nothing", nothing),
        ("gpu_chunks", "beyond-the-grant", beyond),
        ("gpu_chunks", "pulled-runs", runs.concat()),
        ("gpu_chunks", "pulled-to-the-end", all.concat()),
        ("gpu_chunks", "pulled-from-outside", outside.concat()),
        ("gpu_chunks", "pulled-too-little", unlike.concat()),
        ("gpu_chunks", "mixed", mixed),
        ("gpu_regions", "in-two-messages", two.clone()),
        ("gpu_regions", "too-many", [two, shown(3, 3, &[1])].concat()),
        ("gpu_regions", "out-of-order", [shown(3, 0, &[1]), shown(3, 2, &[1])].concat()),
        ("gpu_regions", "none", shown(0, 0, &[])),
        ("gpu_regions", "cannot-be-opened", [shown(2, 0, &[64]), shown(2, 1, &[1 << 40])].concat()),
        ("gpu_regions", "as-shown", framed(vector("gpu-regions"))),
    ]
}

/// A header: serial; first position and items; offset, total and length; pieces.
fn chunk(
    serial: u64,
    (first, items): (u32, u32),
    (offset, total, len): (u64, u64, u64),
    pieces: u64,
) -> Vec<u8> {
    let mut bytes = [&b"KVSC"[..], &[0; 4]].concat();
    [GRANT, TAG].iter().for_each(|word| bytes.extend(word.to_le_bytes()));
    [0, first, items].iter().for_each(|word| bytes.extend(word.to_le_bytes()));
    [0u16, 2].iter().for_each(|buffer| bytes.extend(buffer.to_le_bytes()));
    let place = [serial, offset, total, len, pieces];
    place.iter().for_each(|word| bytes.extend(word.to_le_bytes()));
    bytes.resize(128, 0);
    bytes
}

/// Bytes of a region: offset, bytes of a run, stride, runs.
fn piece(region: u64, (offset, run, stride, runs): (u64, u64, u64, u64)) -> Vec<u8> {
    [region, offset, run, stride, runs].into_iter().flat_map(u64::to_le_bytes).collect()
}

/// A message of regions of these lengths, so many in all, from a number on; behind its length.
fn shown(total: u64, first: u64, lens: &[u64]) -> Vec<u8> {
    let head = [0, 0, 4, 2, 0, 0, total, first].into_iter().flat_map(u64::to_le_bytes);
    let region = |len: &u64| [&[7; 64][..], &[0; 8], &len.to_le_bytes()].concat();
    framed(head.chain(lens.iter().flat_map(region)).collect())
}

fn framed(message: Vec<u8>) -> Vec<u8> {
    [&(message.len() as u16).to_le_bytes()[..], &message].concat()
}

fn vector(name: &str) -> Vec<u8> {
    let found = vectors("gpu-vectors").into_iter().find(|(of, _)| *of == name);
    found.expect("PROTOCOL.md shows it").1
}
