//! Rows of decisions, as `topology` and `directory` take them.

use super::Made;

pub(super) fn seeds() -> Vec<Made> {
    vec![
        ("topology", "equal", pair(&mha(2, &[2]), &[1, 2, 1, 0, 0])),
        ("topology", "gather", pair(&mha(4, &[3]), &[1, 2, 1, 0, 0])),
        ("topology", "scatter-stages", pair(&mha(1, &[1, 2]), &[2, 4, 1, 1, 3, 1, 1, 1, 0])),
        ("topology", "replicas", pair(&gqa(8), &[1, 4, 1, 0, 1, 2])),
        ("topology", "hnd-smaller-pages", pair(&hnd(), &[1, 2, 1, 0, 2, 1])),
        ("topology", "context-parallel", pair(&mla(2), &[1, 1, 3, 0, 0])),
        ("topology", "hybrid", pair(&hybrid(), &[1, 2, 1, 0, 0])),
        ("topology", "indivisible", pair(&mha(2, &[2]), &[1, 3, 1, 0, 0])),
        ("topology", "unlike", [&[1][..], &mha(2, &[2]), &mla(1), &REQUEST].concat()),
        ("topology", "huge", pair(&huge(), &[1, 2, 1, 0, 0])),
        ("topology", "no-tensors", pair(&no_tensors(), &[1, 1, 1, 0, 0])),
        (
            "directory",
            "one-rank",
            calls(&[register(0, ONE, 1, 0), register(0, ONE, 1, 0), place(3, 0), complete(3)]),
        ),
        ("directory", "two-ranks", calls(&[register(0, TWO, 1, 0), register(4, TWO, 1, 5)])),
        (
            "directory",
            "restart",
            calls(&[register(0, ONE, 1, 0), register(0, ONE, 2, 0), register(0, ONE, 1, 0)]),
        ),
        (
            "directory",
            "lapse",
            calls(&[register(0, TWO, 1, 5), register(4, TWO, 1, 9), wait(6), wait(6)]),
        ),
        ("directory", "contradiction", calls(&[register(0, TWO, 1, 0), register(4, ONE, 1, 0)])),
        ("directory", "leave", calls(&[register(0, ONE, 1, 0), leave(0, 2), leave(0, 1)])),
        ("directory", "full", calls(&[0, 1, 2, 3, 4, 0].map(|room| place(room, 0)))),
        ("directory", "reshaped", calls(&[register(0, ONE, 1, 0), register(0, TWO, 2, 0)])),
    ]
}

/// Three pairs of ranks and stretches, and a request: what follows two layouts.
const REQUEST: [u8; 19] = [0, 0, 0, 4, 4, 1, 1, 1, 3, 2, 3, 2, 0, 9, 1, 2, 4, 5, 2];

/// A prefill layout, and how the decode engine splits the same model.
fn pair(prefill: &[u8], split: &[u8]) -> Vec<u8> {
    [&[0], prefill, split, &REQUEST].concat()
}

/// dtype, dp, tp, cp, stages, KV, number of state components and one more.
fn engine(tp: u8, cp: u8, stages: &[u8], kv: &[u8], state: &[&[u8]]) -> Vec<u8> {
    let head = [1, 1, tp, cp, stages.len() as u8];
    [&head, stages, kv, &[state.len() as u8 + 1], &state.concat()].concat()
}

/// Page layout, tokens, heads, bytes of a head, layers.
fn mha(tp: u8, stages: &[u8]) -> Vec<u8> {
    engine(tp, 1, stages, &[0, 4, 4, 2, stages.iter().sum()], &[])
}

fn gqa(tp: u8) -> Vec<u8> {
    engine(tp, 1, &[1], &[0, 2, 2, 3, 1], &[])
}

fn hnd() -> Vec<u8> {
    engine(1, 1, &[2], &[1, 4, 4, 2, 2], &[])
}

fn mla(cp: u8) -> Vec<u8> {
    engine(2, cp, &[2], &[2, 2, 1, 5, 2], &[])
}

/// Attention in two of three layers; in the other a state of two tensors, one of them joined of
/// three.
fn hybrid() -> Vec<u8> {
    let attention = [4, 3, 2, 0, 2, 1, 1, 4, 2];
    let recurrent = [5, 1, 1, 1, 2, 3, 4, 1, 4, 1, 2, 3, 1, 4, 2];
    engine(4, 1, &[3], &attention, &[&recurrent])
}

/// Numbers as large as they can be.
fn huge() -> Vec<u8> {
    let [a, b, c, d] = u32::MAX.to_le_bytes();
    engine(4, 2, &[240, a, b, c, d], &[6, 240, a, b, c, d, 1, 9, 1, 1, 4, 240, a, b, c, d], &[])
}

/// KV of no tensors, and pages of no tokens.
fn no_tensors() -> Vec<u8> {
    engine(1, 1, &[2], &[6, 0, 0, 0], &[])
}

/// Sizes less nothing: two bits each for dp, tp, cp and pp.
const ONE: u8 = 0b01_01_01_01;
const TWO: u8 = 0b01_01_10_01;

type Call = [u8; 8];

fn calls(calls: &[Call]) -> Vec<u8> {
    calls.concat()
}

fn register(rank: u8, shape: u8, life: u8, lease: u8) -> Call {
    [0, rank, shape, 0x41, life, lease, 0x10, 0]
}

fn leave(rank: u8, life: u8) -> Call {
    [4, rank, 0, 0, life, 0, 0, 0]
}

fn place(room: u8, dp_rank: u8) -> Call {
    [5, room | dp_rank << 3, 0, 0, 0, 0, 0, 1]
}

fn complete(room: u8) -> Call {
    [7, room, 0, 0, 0, 0, 0, 1]
}

/// Completes a room that nobody placed, so many seconds later.
fn wait(seconds: u8) -> Call {
    [7, 7, 0, 0, 0, 0, 0, seconds]
}
