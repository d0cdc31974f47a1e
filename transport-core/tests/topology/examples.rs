//! Pairs of engines with figures worked out by hand.

use transport_core::disagg::topology::{
    Axes, Component, CopySegment, Cut, Layout, Place, Rank, Sharded, Side, Stretch, Topology,
    blocks,
};
use transport_core::disagg::{DType, KvLayout};
use transport_core::memory::BufferShape;
use transport_core::transfer::Part;

use crate::world::{NONE, Request, check};

/// 8 layers, 8 heads of 128 elements of 2 bytes, pages of 16 tokens, one rank.
pub(crate) fn engine(layout: KvLayout) -> Layout {
    Layout {
        dtype: DType::BFloat16,
        dp: 1,
        tp: 1,
        cp: 1,
        stages: vec![8],
        kv: Component::kv(layout, 16, 8, 256, 8),
        state: vec![],
    }
}

pub(crate) fn rank(tp: u32, pp: u32) -> Rank {
    Rank { dp: 0, tp, pp, cp: 0 }
}

pub(crate) fn with_tp(layout: &Layout, tp: u32) -> Layout {
    Layout { tp, ..layout.clone() }
}

/// tp ranks of the writers of a decode tp rank, in one stage.
fn writers(topology: &Topology, decode: u32) -> Vec<u32> {
    let writers = topology.writers(rank(decode, 0), 0).unwrap();
    assert_eq!(writers.aux, writers.ranks[0]);
    writers.ranks.iter().map(|rank| rank.tp).collect()
}

fn segments(topology: &Topology, prefill: Rank, decode: Rank) -> Vec<CopySegment> {
    topology.route(prefill, decode).unwrap().segments
}

/// Carries out a small request, byte by byte, over a copy of the layouts with heads of few bytes.
fn check_small(mut prefill: Layout, mut decode: Layout) {
    for layout in [&mut prefill, &mut decode] {
        layout.kv.tensors.iter_mut().flatten().for_each(|heads| heads.unit_bytes = 2);
    }
    let topology = Topology::new(prefill, decode).unwrap();
    check(&topology, (0, 0), &Request::of_pages(&topology, 5), &NONE).unwrap();
}

#[test]
fn p1_tp4_to_tp2_fills_each_token_from_two_ranks() {
    let engine = engine(KvLayout::Nhd);
    let topology = Topology::new(with_tp(&engine, 4), with_tp(&engine, 2)).unwrap();
    assert_eq!(writers(&topology, 0), [0, 1]);
    assert_eq!(writers(&topology, 1), [2, 3]);
    // Rank 3 has heads 6 and 7, 512 bytes per token; they are the second half of the 1024 that
    // decode rank 1 has per token.
    let source = Place { offset: 0, stride: 512, blocks: 1, step: 8192, item_bytes: 8192 };
    let target = Place { offset: 512, stride: 1024, blocks: 1, step: 16384, item_bytes: 16384 };
    let cut = Cut { run: 512, count: 16, source, target };
    let keys = CopySegment { part: Part::Kv, source_buffer: 0, target_buffer: 0, buffers: 8, cut };
    let values = CopySegment { source_buffer: 8, target_buffer: 8, ..keys };
    assert_eq!(segments(&topology, rank(3, 0), rank(1, 0)), [keys, values]);
    assert_eq!(segments(&topology, rank(3, 0), rank(0, 0)), []);
    check_small(with_tp(&engine, 4), with_tp(&engine, 2));
}

#[test]
fn p1_tp2_to_tp4_takes_half_of_each_token() {
    let engine = engine(KvLayout::Nhd);
    let topology = Topology::new(with_tp(&engine, 2), with_tp(&engine, 4)).unwrap();
    assert_eq!((0..4).map(|d| writers(&topology, d)).collect::<Vec<_>>(), [[0], [0], [1], [1]]);
    assert_eq!(topology.readers(rank(1, 0), 0).unwrap(), [rank(2, 0), rank(3, 0)]);
    let cut = segments(&topology, rank(1, 0), rank(3, 0))[0].cut;
    assert_eq!((cut.run, cut.count), (512, 16));
    assert_eq!((cut.source.offset, cut.source.stride), (512, 1024));
    assert_eq!((cut.target.offset, cut.target.stride), (0, 512));
    check_small(with_tp(&engine, 2), with_tp(&engine, 4));
}

#[test]
fn p1_in_hnd_pages_a_share_of_the_heads_is_one_run() {
    let engine = engine(KvLayout::Hnd);
    let topology = Topology::new(with_tp(&engine, 4), with_tp(&engine, 2)).unwrap();
    let cut = segments(&topology, rank(3, 0), rank(1, 0))[0].cut;
    assert_eq!((cut.run, cut.count), (8192, 1));
    assert_eq!((cut.source.offset, cut.target.offset), (0, 8192));
    check_small(with_tp(&engine, 4), with_tp(&engine, 2));
}

#[test]
fn p1_tp3_to_tp2_with_six_heads_needs_no_divisible_sizes() {
    let mut engine = engine(KvLayout::Nhd);
    engine.kv = Component::kv(KvLayout::Nhd, 16, 6, 256, 8);
    let topology = Topology::new(with_tp(&engine, 3), with_tp(&engine, 2)).unwrap();
    assert_eq!(writers(&topology, 0), [0, 1]);
    assert_eq!(writers(&topology, 1), [1, 2]);
    check_small(with_tp(&engine, 3), with_tp(&engine, 2));
}

#[test]
fn p1_pp2_to_pp1_puts_each_stage_into_its_own_layers() {
    let engine = engine(KvLayout::Nhd);
    let prefill = Layout { stages: vec![3, 5], ..engine.clone() };
    let topology = Topology::new(prefill.clone(), engine.clone()).unwrap();
    let writers = topology.writers(rank(0, 0), 0).unwrap();
    assert_eq!(writers.ranks, [rank(0, 0), rank(0, 1)]);
    assert_eq!(writers.aux, rank(0, 1), "the last stage samples");
    // Stage 1: K of layers 3 to 7 in its buffers 0 to 4, V in 5 to 9.
    let segments = segments(&topology, rank(0, 1), rank(0, 0));
    let buffers: Vec<_> =
        segments.iter().map(|s| (s.source_buffers(), s.target_buffers())).collect();
    assert_eq!(buffers, [(0..5, 3..8), (5..10, 11..16)]);
    assert!(segments.iter().all(|segment| segment.cut.is_whole_items()));
    check_small(prefill, engine);
}

#[test]
fn p1_mla_tp4_to_tp2_is_written_once_by_every_other_rank() {
    let mut engine = engine(KvLayout::Mla);
    engine.kv = Component::kv(KvLayout::Mla, 64, 1, 1152, 8);
    let topology = Topology::new(with_tp(&engine, 4), with_tp(&engine, 2)).unwrap();
    assert_eq!(writers(&topology, 0), [0]);
    assert_eq!(writers(&topology, 1), [2]);
    assert_eq!(topology.readers(rank(1, 0), 0).unwrap(), [], "needs no connection");
    let segments = segments(&topology, rank(2, 0), rank(1, 0));
    assert_eq!(segments.len(), 1);
    assert_eq!((segments[0].cut.run, segments[0].buffers), (64 * 1152, 8));
    assert!(segments[0].cut.is_whole_items());
    check_small(with_tp(&engine, 4), with_tp(&engine, 2));
}

#[test]
fn p1_two_heads_tp4_to_tp8_use_both_replicas_of_each_head() {
    let mut engine = engine(KvLayout::Nhd);
    engine.kv = Component::kv(KvLayout::Nhd, 16, 2, 256, 8);
    let topology = Topology::new(with_tp(&engine, 4), with_tp(&engine, 8)).unwrap();
    let from: Vec<_> = (0..8).flat_map(|decode| writers(&topology, decode)).collect();
    assert_eq!(from, [0, 0, 1, 1, 2, 2, 3, 3]);
    // Each rank has one head: whole pages, whoever sends.
    assert!(segments(&topology, rank(3, 0), rank(7, 0))[0].cut.is_whole_items());
    check_small(with_tp(&engine, 4), with_tp(&engine, 8));
}

#[test]
fn p1_pages_of_16_go_into_quarters_of_pages_of_64() {
    let engine = engine(KvLayout::Nhd);
    let mut decode = engine.clone();
    decode.kv.tokens = 64;
    let topology = Topology::new(engine.clone(), decode.clone()).unwrap();
    let route = topology.route(rank(0, 0), rank(0, 0)).unwrap();
    let cut = route.segments[0].cut;
    assert_eq!((cut.run, cut.count), (32768, 1));
    assert_eq!((cut.source.blocks, cut.target.blocks, cut.target.step), (1, 4, 32768));
    // The second chunk, source pages 5 to 7: the last three quarters of the second granted page.
    let stretch = route.stretch(5..8, 2);
    let expected = Stretch { blocks: 5..8, source_first: 5, target_first: 0 };
    assert_eq!(stretch, expected);
    assert_eq!((stretch.source(), stretch.target()), (0..3, 5..8));
    let shapes = [BufferShape::dense(0, 131_072); 16];
    let view = route.view(Side::Decode, Part::Kv, &shapes).unwrap();
    // Quarters of a page, evenly spaced: plain items again, so that neighbours merge.
    assert_eq!(view[15], (15, BufferShape::dense(0, 32768)));
    assert_eq!(route.blocks(Side::Decode, Part::Kv), 4);
    let items: Vec<u32> = blocks(&[20, 30], 4, stretch.target()).collect();
    assert_eq!(items, [121, 122, 123]);
    assert_eq!(route.common_blocks(Part::Kv, 7, 2), Ok(7));
    assert!(route.common_blocks(Part::Kv, 4, 2).is_err(), "a page too many");
    check_small(engine.clone(), decode.clone());
    check_small(decode, engine);
}

#[test]
fn p1_cp4_to_cp1_sends_contiguous_shares_of_every_chunk() {
    let engine = engine(KvLayout::Nhd);
    let prefill = Layout { cp: 4, ..engine.clone() };
    let topology = Topology::new(prefill.clone(), engine.clone()).unwrap();
    let share = |cp| {
        let prefill = Rank { cp, ..rank(0, 0) };
        topology.route(prefill, rank(0, 0)).unwrap().stretch(100..110, 200).blocks
    };
    assert_eq!([share(0), share(1), share(2), share(3)], [100..103, 103..106, 106..108, 108..110]);
    assert_eq!(topology.writers(rank(0, 0), 0).unwrap().aux, rank(0, 0));
    check_small(prefill, engine);
}

#[test]
fn p1_joined_channels_are_cut_one_by_one_and_copied_whole_when_equal() {
    // Convolution state of q, k and v: 16, 16 and 32 channels of 8 bytes, joined; then 32 heads.
    let joined = [16, 16, 32].map(|units| Sharded { units, unit_bytes: 8 }).to_vec();
    let heads = vec![Sharded { units: 32, unit_bytes: 4096 }];
    let mut engine = engine(KvLayout::Nhd);
    engine.state = vec![Component::slots(vec![1, 2, 3], vec![joined, heads])];
    assert_eq!(engine.state[0].axes, Axes::Units);
    let topology = Topology::new(with_tp(&engine, 2), engine.clone()).unwrap();
    let route = topology.route(rank(1, 0), rank(0, 0)).unwrap();
    let runs: Vec<_> = route
        .segments_of(Part::State(0))
        .map(|s| (s.source_buffer, s.cut.source.offset, s.cut.target.offset, s.cut.run))
        .collect();
    let half = 16 * 4096;
    let expected = [(0, 0, 64, 64), (0, 64, 192, 64), (0, 128, 384, 128), (3, 0, half, half)];
    assert_eq!(runs, expected);
    let same = Topology::new(with_tp(&engine, 2), with_tp(&engine, 2)).unwrap();
    let whole = segments(&same, rank(1, 0), rank(1, 0));
    assert_eq!(whole.len(), 4);
    assert!(whole.iter().all(|segment| segment.cut.is_whole_items()));
}

#[test]
fn a_share_of_the_heads_is_one_descriptor_for_all_tokens_of_a_page() {
    let engine = engine(KvLayout::Nhd);
    let topology = Topology::new(with_tp(&engine, 2), engine.clone()).unwrap();
    let route = topology.route(rank(1, 0), rank(0, 0)).unwrap();
    let shapes = [BufferShape::dense(0, 32768); 16];
    let view = route.view(Side::Decode, Part::Kv, &shapes).unwrap();
    let share = BufferShape::new(1024, 32768, 1).sliced(1024, 2048, 16);
    assert_eq!(view[3], (3, share));
    let shapes = [BufferShape::dense(0, 16384); 16];
    let view = route.view(Side::Prefill, Part::Kv, &shapes).unwrap();
    assert_eq!(view[3], (3, BufferShape::dense(0, 16384)), "the sender has no other heads");
}

#[test]
fn a_stage_without_cached_layers_still_has_an_aux_writer() {
    let mut engine = engine(KvLayout::Nhd);
    engine.kv.layers = vec![0, 1];
    let decode = Layout { tp: 2, stages: vec![4, 4], ..engine.clone() };
    let prefill = Layout { tp: 4, stages: vec![6, 2], ..engine };
    let topology = Topology::new(prefill, decode).unwrap();
    let writers = topology.writers(rank(1, 1), 0).unwrap();
    assert_eq!((writers.ranks, writers.aux), (vec![rank(2, 1)], rank(2, 1)));
    let route = topology.route(rank(2, 1), rank(1, 1)).unwrap();
    assert!(route.aux && route.segments.is_empty() && !route.is_empty());
}

#[test]
fn tables_are_as_large_as_the_layout_says() {
    let engine = engine(KvLayout::Nhd);
    let topology = Topology::new(with_tp(&engine, 4), engine).unwrap();
    let bytes = |side| topology.item_bytes(side, rank(0, 0), Part::Kv).unwrap();
    assert_eq!(bytes(Side::Prefill), [8192; 16]);
    assert_eq!(bytes(Side::Decode), [32768; 16]);
    assert_eq!(topology.item_bytes(Side::Decode, rank(0, 0), Part::Aux).unwrap(), []);
}
