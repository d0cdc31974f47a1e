//! Pairs that cannot be, ranks that there are not, tables that are not the layout's.

use transport_core::disagg::topology::{
    Axes, Component, Layout, Misfit, Rank, Sharded, Side, Topology, TopologyError,
};
use transport_core::disagg::{DType, KvLayout};
use transport_core::memory::BufferShape;
use transport_core::transfer::Part;

use crate::examples::{engine, rank, with_tp};

fn refusal(prefill: Layout, decode: Layout) -> String {
    Topology::new(prefill, decode).unwrap_err().to_string()
}

#[test]
fn p1_heads_that_no_one_can_deal_out_name_both_sides() {
    let engine = engine(KvLayout::Nhd);
    let error = refusal(with_tp(&engine, 3), with_tp(&engine, 2));
    assert_eq!(error, "8 units of Kv over prefill tp 3 and decode tp 2");
    let error = refusal(with_tp(&engine, 4), with_tp(&engine, 12));
    assert_eq!(error, "8 units of Kv over prefill tp 4 and decode tp 12");
}

#[test]
fn p1_what_must_be_equal_names_both_values() {
    type Change = fn(&mut Layout);
    let changes: [(&str, Change); 10] = [
        ("dtype: prefill has 1, decode has 4", |e| e.dtype = DType::Float8E4M3),
        ("layers: prefill has 8, decode has 9", |e| e.stages = vec![4, 5]),
        ("layers with Kv: prefill has 8, decode has 7", |e| e.kv.layers.truncate(7)),
        ("number of a layer with Kv: prefill has 7, decode has 8", |e| {
            e.stages = vec![9];
            e.kv.layers[7] = 8;
        }),
        ("units of Kv: prefill has 8, decode has 4", |e| e.kv.tensors[1][0].units = 4),
        ("bytes of a unit of Kv: prefill has 256, decode has 128", |e| {
            e.kv.tensors[0][0].unit_bytes = 128;
        }),
        ("tensors per layer of Kv: prefill has 2, decode has 1", |e| e.kv.tensors.truncate(1)),
        ("sharded runs of a tensor of Kv: prefill has 1, decode has 2", |e| {
            e.kv.tensors[0].push(Sharded::replicated(4));
        }),
        ("order of axes of Kv: prefill has 1, decode has 2", |e| e.kv.axes = Axes::UnitsTokens),
        ("state components: prefill has 0, decode has 1", |e| {
            e.state.push(Component::slots(vec![0], vec![vec![Sharded::replicated(8)]]));
        }),
    ];
    for (message, change) in changes {
        let (mut prefill, mut decode) = (engine(KvLayout::Nhd), engine(KvLayout::Nhd));
        change(&mut decode);
        if message.starts_with("number") {
            prefill.stages = vec![9];
        }
        assert_eq!(refusal(prefill, decode), message);
    }
}

#[test]
fn p1_pages_of_no_tokens_are_impossible_even_where_nothing_is_in_them() {
    let mut prefill = engine(KvLayout::Nhd);
    (prefill.kv.tokens, prefill.kv.tensors) = (0, vec![]);
    let error = refusal(prefill.clone(), prefill);
    assert!(error.starts_with("the prefill layout is impossible: items of Kv"), "{error}");
}

#[test]
fn p1_pages_must_divide() {
    let (prefill, mut decode) = (engine(KvLayout::Nhd), engine(KvLayout::Nhd));
    decode.kv.tokens = 24;
    let error = refusal(prefill, decode);
    assert_eq!(error, "pages of Kv: prefill has 16 tokens, decode has 24");
}

const MOST: (u32, u32, u32) = (u32::MAX, u32::MAX, u32::MAX);

#[test]
fn impossible_layouts_say_whose_and_why() {
    type Change = fn(&mut Layout);
    let sizes = "items of Kv have a size of 0, or one too large, or slots have tokens";
    let changes: [(&str, Change); 11] = [
        ("dp 1, tp 0, pp 1, cp 1; 1 to 8192 ranks are possible", |e| e.tp = 0),
        ("dp 9, tp 4096, pp 1, cp 2; 1 to 8192 ranks are possible", |e| {
            (e.dp, e.tp, e.cp) = (9, 4096, 2);
        }),
        ("dp 1, tp 1, pp 0, cp 1; 1 to 8192 ranks are possible", |e| e.stages.clear()),
        ("17 state components", |e| e.state = vec![Component::slots(vec![], vec![]); 17]),
        ("layers of Kv: 8 is out of order or beyond 8 layers", |e| e.kv.layers[7] = 8),
        ("layers of Kv: 1 is out of order or beyond 8 layers", |e| e.kv.layers[2] = 1),
        (sizes, |e| e.kv.tensors[1][0].unit_bytes = 0),
        (sizes, |e| e.kv.tensors[0].push(Sharded::replicated(0))),
        (sizes, |e| e.kv.tensors[0].clear()),
        (sizes, |e| e.kv.axes = Axes::Units),
        (sizes, |e| (e.kv.tokens, e.kv.tensors[0][0].units, e.kv.tensors[0][0].unit_bytes) = MOST),
    ];
    for (flaw, change) in changes {
        let mut bad = engine(KvLayout::Nhd);
        change(&mut bad);
        let good = engine(KvLayout::Nhd);
        let expected = format!("the decode layout is impossible: {flaw}");
        assert_eq!(refusal(good.clone(), bad.clone()), expected);
        assert!(refusal(bad, good).starts_with("the prefill layout is impossible"));
    }
}

#[test]
fn ranks_that_there_are_not_are_errors() {
    let engine = engine(KvLayout::Nhd);
    let topology = Topology::new(with_tp(&engine, 4), engine).unwrap();
    let error = topology.writers(rank(1, 0), 0).unwrap_err();
    let (side, sizes) = (Side::Decode, topology.layout(Side::Decode).sizes());
    assert_eq!(error, TopologyError::NoSuchRank { side, rank: rank(1, 0), sizes });
    let error = topology.route(rank(4, 0), rank(0, 0)).unwrap_err().to_string();
    let expected =
        "the prefill engine of dp 1, tp 4, pp 1, cp 1 has no rank (dp 0, tp 4, pp 0, cp 0)";
    assert_eq!(error, expected);
    assert!(topology.writers(rank(0, 0), 1).is_err());
    assert!(topology.readers(Rank { dp: 1, ..rank(0, 0) }, 0).is_err());
}

#[test]
fn tables_and_lists_that_are_not_the_layouts_are_refused() {
    let engine = engine(KvLayout::Nhd);
    let topology = Topology::new(engine.clone(), engine).unwrap();
    let route = topology.route(rank(0, 0), rank(0, 0)).unwrap();
    let shapes = [BufferShape::dense(0, 32768); 16];
    let view = |shapes: &[BufferShape]| route.view(Side::Decode, Part::Kv, shapes);
    assert_eq!(view(&shapes).unwrap(), (0..).zip(shapes).collect::<Vec<_>>());
    let misfit = Misfit::Buffers { buffers: 15, needed: 16 };
    assert_eq!(view(&shapes[..15]), Err(misfit));
    let mut other = shapes;
    other[15].item_bytes = 32;
    assert_eq!(view(&other), Err(Misfit::ItemBytes { bytes: 32, expected: 32768 }));
    assert_eq!(route.common_blocks(Part::Kv, 3, 3), Ok(3));
    let lists = route.common_blocks(Part::Kv, 3, 4);
    assert_eq!(lists, Err(Misfit::Lists { prefill: 3, decode: 4 }));
}
