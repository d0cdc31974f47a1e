//! P1 for random pairs of engines: equal or not on every axis.

use proptest::prelude::*;
use transport_core::disagg::topology::{Axes, Component, Layout, Rank, Sharded, Side, Topology};
use transport_core::disagg::{DType, KvLayout};
use transport_core::transfer::Part;

use crate::world::{NONE, Request, check};

/// What both engines cache.
#[derive(Clone, Debug)]
struct Model {
    layers: u32,
    kv: Component,
    state: Vec<Component>,
}

/// How one engine splits it: (dp, tp, cp), cuts between stages, and factors on page sizes.
#[derive(Clone, Debug)]
struct Split {
    sizes: (u32, u32, u32),
    cuts: Vec<u32>,
    pages: u32,
    state_pages: u32,
}

/// Numbers of units and tp sizes of which one always divides the other.
const FITTING: [(&[u32], &[u32]); 2] =
    [(&[1, 2, 4, 8], &[1, 2, 4, 8]), (&[1, 12], &[1, 2, 3, 4, 6])];

fn sharded(fitting: usize) -> impl Strategy<Value = Sharded> {
    (prop::sample::select(FITTING[fitting].0), 1u32..3)
        .prop_map(|(units, unit_bytes)| Sharded { units, unit_bytes })
}

fn some_layers(layers: u32) -> impl Strategy<Value = Vec<u32>> {
    prop::sample::subsequence((0..layers).collect::<Vec<_>>(), 0..=layers as usize)
}

/// Slots, or pages as of sliding-window layers.
fn state(layers: u32, fitting: usize) -> impl Strategy<Value = Component> {
    let axes = prop::sample::select(vec![Axes::Units, Axes::TokensUnits, Axes::UnitsTokens]);
    let tensor = prop::collection::vec(sharded(fitting), 1..4);
    let parts = (axes, some_layers(layers), prop::collection::vec(tensor, 1..3));
    parts.prop_map(|(axes, layers, tensors)| Component { axes, tokens: 1, layers, tensors })
}

fn model(fitting: usize) -> impl Strategy<Value = Model> {
    let kv_layout = prop::sample::select(vec![KvLayout::Nhd, KvLayout::Hnd, KvLayout::Mla]);
    (1u32..6, kv_layout, sharded(fitting), any::<bool>()).prop_flat_map(
        move |(layers, order, heads, hybrid)| {
            let units = if order == KvLayout::Mla { 1 } else { heads.units };
            let kv = Component::kv(order, 1, units, heads.unit_bytes, layers);
            let kv_layers =
                if hybrid { some_layers(layers).boxed() } else { Just(kv.layers.clone()).boxed() };
            let state = prop::collection::vec(state(layers, fitting), 0..3);
            (kv_layers, state).prop_map(move |(kv_layers, state)| Model {
                layers,
                kv: Component { layers: kv_layers, ..kv.clone() },
                state,
            })
        },
    )
}

fn split(layers: u32, fitting: usize) -> impl Strategy<Value = Split> {
    let tp = prop::sample::select(FITTING[fitting].1);
    let cp = prop_oneof![2 => Just(1u32), 1 => 2u32..4];
    let cuts = prop::collection::vec(0..=layers, 0..3);
    let pages = (1u32..4, 1u32..4);
    ((1u32..3, tp, cp), cuts, pages).prop_map(|(sizes, mut cuts, (pages, state_pages))| {
        cuts.sort_unstable();
        Split { sizes, cuts, pages, state_pages }
    })
}

fn layout(model: &Model, split: &Split, (base, state_base): (u32, u32)) -> Layout {
    let bounds = [&[0][..], &split.cuts, &[model.layers]].concat();
    let mut layout = Layout {
        dtype: DType::BFloat16,
        dp: split.sizes.0,
        tp: split.sizes.1,
        cp: split.sizes.2,
        stages: bounds.windows(2).map(|pair| pair[1] - pair[0]).collect(),
        kv: model.kv.clone(),
        state: model.state.clone(),
    };
    layout.kv.tokens = base * split.pages;
    let paged = layout.state.iter_mut().filter(|component| component.axes != Axes::Units);
    paged.for_each(|component| component.tokens = state_base * split.state_pages);
    layout
}

fn request(states: usize) -> impl Strategy<Value = Request> {
    let chunks = prop::collection::vec(0u32..5, 1..4);
    let state = prop::collection::vec(0u32..4, states);
    (chunks, any::<u32>(), state, 0u64..2, 1u32..6).prop_map(
        |(chunks, pages, state, gap, scatter)| Request { chunks, pages, state, gap, scatter },
    )
}

/// Decode pages for all tokens sent, or for only some of the last prefill page's.
fn fit(request: Request, prefill: &Layout, decode: &Layout) -> Request {
    let sent: u32 = request.chunks.iter().sum();
    let most = (sent * prefill.kv.tokens).div_ceil(decode.kv.tokens);
    let least = (sent.saturating_sub(1) * prefill.kv.tokens) / decode.kv.tokens;
    let fewer = request.pages % 2 * (request.pages / 2 % (most - least).max(1));
    Request { pages: most - fewer, ..request }
}

fn models() -> impl Strategy<Value = (usize, Model)> {
    (0..FITTING.len()).prop_flat_map(|fitting| (Just(fitting), model(fitting)))
}

fn cases() -> impl Strategy<Value = (Topology, Request)> {
    models().prop_flat_map(|(fitting, model)| {
        let splits = (split(model.layers, fitting), split(model.layers, fitting));
        let divides = |a: u32, b: u32| a % b == 0 || b % a == 0;
        let fits = move |(from, to): &(Split, Split)| {
            divides(from.pages, to.pages) && divides(from.state_pages, to.state_pages)
        };
        let splits = splits.prop_filter("page sizes that divide", fits);
        let all = (splits, (1u32..3, 1u32..3), request(model.state.len()));
        all.prop_map(move |((from, to), bases, request)| {
            let (prefill, decode) = (layout(&model, &from, bases), layout(&model, &to, bases));
            let request = fit(request, &prefill, &decode);
            (Topology::new(prefill, decode).unwrap(), request)
        })
    })
}

proptest! {
    #[test]
    fn p1_every_byte_is_written_once_by_a_stated_writer_with_the_right_content(
        (topology, request) in cases(),
    ) {
        let dp = |side| topology.layout(side).dp - 1;
        let groups = (dp(Side::Prefill), dp(Side::Decode));
        prop_assert_eq!(check(&topology, groups, &request, &NONE), Ok(()));
    }

    #[test]
    fn p1_readers_are_the_writers_read_backwards((topology, _) in cases()) {
        for prefill in topology.layout(Side::Prefill).sizes().group(0) {
            let readers = topology.readers(prefill, 0).unwrap();
            for decode in topology.layout(Side::Decode).sizes().group(0) {
                let writes = topology.writers(decode, 0).unwrap().ranks.contains(&prefill);
                prop_assert_eq!(readers.contains(&decode), writes);
                let route = topology.route(prefill, decode).unwrap();
                prop_assert_eq!(!route.is_empty(), writes);
            }
        }
    }

    #[test]
    fn p1_equal_engines_copy_whole_items_from_rank_to_like_rank(
        (model, split, bases) in models().prop_flat_map(|(fitting, model)| {
            let split = split(model.layers, fitting);
            (Just(model), split, (1u32..3, 1u32..3))
        }),
    ) {
        let mut engine = layout(&model, &split, bases);
        engine.cp = 1;
        let topology = Topology::new(engine.clone(), engine.clone()).unwrap();
        for rank in engine.sizes().group(0) {
            let segments = topology.route(rank, rank).unwrap().segments;
            // A stage without any cached layer hears of aux from the last stage.
            if !segments.is_empty() {
                prop_assert_eq!(topology.writers(rank, 0).unwrap().ranks, [rank]);
            }
            for segment in segments {
                prop_assert!(segment.cut.is_whole_items(), "{:?}", segment);
                prop_assert_eq!(segment.source_buffer, segment.target_buffer);
            }
        }
    }

    #[test]
    fn p1_any_layouts_give_a_topology_or_an_error(
        (tp, stages, heads, bytes) in (
            any::<[u32; 3]>(), prop::collection::vec(any::<u32>(), 0..3), any::<[u32; 2]>(),
            any::<[u32; 2]>(),
        ),
    ) {
        let wild = |i: usize| Layout {
            dtype: DType::Int8,
            dp: tp[i] % 3,
            tp: tp[1 - i],
            cp: tp[2] % 4,
            stages: stages.clone(),
            kv: Component::kv(KvLayout::Hnd, bytes[i], heads[0], heads[1], 2),
            state: vec![Component::slots(vec![tp[2] % 3], vec![vec![], vec![Sharded::replicated(heads[i])]])],
        };
        if let Ok(topology) = Topology::new(wild(0), wild(1)) {
            for part in [Part::Kv, Part::State(0), Part::State(1), Part::Aux] {
                let rank = Rank { dp: 0, tp: 0, pp: 0, cp: 0 };
                let _ = topology.item_bytes(Side::Decode, rank, part);
                let _ = topology.route(rank, rank);
            }
        }
    }
}
