//! The checks of `world` can fail: every mistake that a planner could make, made on purpose.

use transport_core::disagg::KvLayout;
use transport_core::disagg::topology::{Component, Layout, Rank, Route, Stretch, Topology};

use crate::examples::{engine, with_tp};
use crate::world::{Mistake, NONE, Request, check};

fn small(heads: u32, layout: KvLayout) -> Layout {
    Layout { kv: Component::kv(layout, 2, heads, 2, 2), stages: vec![2], ..engine(layout) }
}

/// The complaint about a request that is carried out with a mistake, and is not without.
fn complaint(prefill: Layout, decode: Layout, mistake: &Mistake) -> String {
    let topology = Topology::new(prefill, decode).unwrap();
    let request = Request { chunks: vec![4, 4], ..Request::of_pages(&topology, 8) };
    check(&topology, (0, 0), &request, &NONE).unwrap();
    check(&topology, (0, 0), &request, mistake).unwrap_err()
}

fn with_route(route: fn(&Topology, Rank, Rank, &mut Route)) -> Mistake {
    Mistake { route, ..NONE }
}

#[test]
fn a_head_share_that_is_off_by_one_is_caught() {
    let (four, two) = (with_tp(&small(8, KvLayout::Nhd), 4), with_tp(&small(8, KvLayout::Nhd), 2));
    let wrong_head_read = with_route(|_, prefill, _, route| {
        let cuts = route.segments.iter_mut().filter(|_| prefill.tp == 1);
        cuts.for_each(|segment| (segment.cut.source.offset, segment.cut.run) = (2, 2));
    });
    let complaint = |mistake| complaint(four.clone(), two.clone(), mistake);
    assert!(complaint(&wrong_head_read).contains("should be"));
    let wrong_head_written = with_route(|_, prefill, _, route| {
        let cuts = route.segments.iter_mut().filter(|_| prefill.tp == 1);
        cuts.for_each(|segment| segment.cut.target.offset -= 2);
    });
    assert!(complaint(&wrong_head_written).contains("written by"));
    let one_token_short = with_route(|_, _, _, route| {
        route.segments.iter_mut().for_each(|segment| segment.cut.count -= 1);
    });
    assert!(complaint(&one_token_short).contains("None, should be Some"));
}

#[test]
fn a_stride_or_step_of_the_other_side_is_caught() {
    let mut large = with_tp(&small(4, KvLayout::Nhd), 2);
    large.kv.tokens = 4;
    let swapped_strides = with_route(|_, _, _, route| {
        route.segments.iter_mut().for_each(|s| s.cut.source.stride = s.cut.target.stride);
    });
    complaint(with_tp(&small(4, KvLayout::Nhd), 1), large.clone(), &swapped_strides);
    let no_step = with_route(|_, _, _, route| {
        route.segments.iter_mut().for_each(|segment| segment.cut.target.step = 0);
    });
    complaint(with_tp(&small(4, KvLayout::Nhd), 2), large, &no_step);
}

#[test]
fn a_layer_of_another_number_is_caught() {
    let stages = Layout { stages: vec![1, 1], ..small(2, KvLayout::Nhd) };
    let first_layer = with_route(|_, _, _, route| {
        route.segments.iter_mut().for_each(|segment| segment.target_buffer &= !1);
    });
    let complaint = complaint(stages, small(2, KvLayout::Nhd), &first_layer);
    assert!(complaint.contains("written by"));
}

/// SGLang sends from every tp rank when prefill has more of them, also those with copies.
#[test]
fn replicas_that_all_write_are_caught() {
    let mla = small(1, KvLayout::Mla);
    let everyone = with_route(|topology, prefill, decode, route| {
        let first = Rank { tp: 0, ..prefill };
        *route = topology.route(first, decode).unwrap();
        route.aux &= prefill.tp == 0;
    });
    let complaint = complaint(with_tp(&mla, 2), mla, &everyone);
    assert!(complaint.contains("written by"));
}

#[test]
fn an_idle_replica_that_should_have_written_is_caught() {
    let mla = small(1, KvLayout::Mla);
    let nobody = with_route(|_, _, decode, route| {
        if decode.tp == 1 {
            route.segments.clear();
        }
    });
    let complaint = complaint(with_tp(&mla, 4), with_tp(&mla, 2), &nobody);
    assert!(complaint.contains("None, should be Some"));
}

#[test]
fn cp_ranks_that_send_all_pages_or_forget_one_are_caught() {
    let sharded = Layout { cp: 2, ..small(2, KvLayout::Nhd) };
    let all = |stretch: &mut Stretch, chunk: &std::ops::Range<u32>| {
        stretch.blocks = chunk.start.into()..chunk.end.into();
    };
    let all =
        complaint(sharded.clone(), small(2, KvLayout::Nhd), &Mistake { stretch: all, ..NONE });
    assert!(all.contains("written by"));
    let forget = Mistake { stretch: |stretch, _| stretch.blocks.start += 1, ..NONE };
    let forget = complaint(sharded, small(2, KvLayout::Nhd), &forget);
    assert!(forget.contains("None, should be Some"));
}

#[test]
fn aux_from_two_ranks_or_from_none_is_caught() {
    let two = with_tp(&small(2, KvLayout::Nhd), 2);
    let one = small(2, KvLayout::Nhd);
    for all in [with_route(|_, _, _, r| r.aux = true), with_route(|_, _, _, r| r.aux = false)] {
        assert!(complaint(two.clone(), one.clone(), &all).contains("aux from"));
    }
}

#[test]
fn a_writer_that_is_not_stated_is_caught() {
    // The other rank's copy of the same bytes: right in content, from a rank that nobody waits for.
    let two = with_tp(&small(1, KvLayout::Mla), 2);
    let swapped = with_route(|topology, prefill, decode, route| {
        let other = Rank { tp: 1 - prefill.tp, ..prefill };
        let aux = route.aux;
        *route = topology.route(other, decode).unwrap();
        route.aux = aux;
    });
    assert!(complaint(two.clone(), two, &swapped).contains("stated"));
}
