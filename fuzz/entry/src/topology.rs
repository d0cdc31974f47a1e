//! Two engines' layouts, made of any bytes (P1).

use transport_core::disagg::topology::{
    Axes, Component, Layout, Place, Rank, Sharded, Side, Topology, TopologyError,
};
use transport_core::disagg::{DType, KvLayout};

use crate::input::Input;
use crate::one_writer;

/// A prefill layout, and a decode layout of its own or one that is split differently. If one can be
/// copied to the other, then writers, readers and routes agree and stay within the ranks' items;
/// and where the caches are small, every byte has exactly one writer.
pub fn topology(data: &[u8]) {
    let mut input = Input(data);
    let Ok(topology) = engines(&mut input) else { return };
    for _ in 0..3 {
        check_pair(&topology, &mut input);
    }
    one_writer::check(&topology, &mut input);
}

fn engines(input: &mut Input<'_>) -> Result<Topology, TopologyError> {
    let unlike = input.below(8) == 1;
    let prefill = layout(input);
    let decode = if unlike { layout(input) } else { split(&prefill, input) };
    Topology::new(prefill, decode)
}

fn layout(input: &mut Input<'_>) -> Layout {
    let dtype = DType::from_wire(input.below(4)).unwrap_or(DType::from_wire(1).expect("the first"));
    let [dp, tp, cp] = std::array::from_fn(|_| input.number());
    let stages: Vec<u32> = (0..input.below(5)).map(|_| input.number()).collect();
    let kv = component(input);
    let state = (0..input.below(20).saturating_sub(1)).map(|_| component(input)).collect();
    Layout { dtype, dp, tp, cp, stages, kv, state }
}

/// The same model as `layout`'s, over other ranks and with other pages.
fn split(layout: &Layout, input: &mut Input<'_>) -> Layout {
    let [dp, tp, cp] = std::array::from_fn(|_| input.number());
    let mut other = Layout { dp, tp, cp, ..layout.clone() };
    if input.below(2) == 1 {
        other.stages = (0..input.below(5)).map(|_| input.number()).collect();
    }
    let pages = input.below(4);
    other.kv.tokens = match pages {
        0 => other.kv.tokens,
        1 => other.kv.tokens.saturating_mul(input.number()),
        2 => other.kv.tokens / u32::from(input.below(8) + 1),
        _ => input.number(),
    };
    other
}

fn component(input: &mut Input<'_>) -> Component {
    let (shape, tokens) = (input.below(8), input.number());
    if shape < 4 {
        let layout = [KvLayout::Nhd, KvLayout::Hnd, KvLayout::Mla][usize::from(shape) % 3];
        let (heads, bytes) = (input.number(), input.number());
        return Component::kv(layout, tokens, heads, bytes, input.below(64).into());
    }
    let axes = [Axes::TokensUnits, Axes::UnitsTokens, Axes::Units][usize::from(shape) % 3];
    let layers = (0..input.below(8)).map(|_| input.number()).collect();
    let sharded = |input: &mut Input<'_>| {
        let (units, unit_bytes) = (input.number(), input.number());
        Sharded { units, unit_bytes }
    };
    let tensors =
        (0..input.below(4)).map(|_| (0..input.below(4)).map(|_| sharded(input)).collect());
    let tensors = tensors.collect();
    Component { axes, tokens, layers, tensors }
}

/// A rank of each side, and what is said of the two.
fn check_pair(topology: &Topology, input: &mut Input<'_>) {
    let (prefill, decode) =
        (any_rank(topology, Side::Prefill, input), any_rank(topology, Side::Decode, input));
    let writers = topology.writers(decode, prefill.dp).expect("ranks that there are");
    let readers = topology.readers(prefill, decode.dp).expect("ranks that there are");
    let route = topology.route(prefill, decode).expect("ranks that there are");
    assert!(writers.ranks.contains(&writers.aux), "the aux writer is no writer");
    assert!(writers.ranks.is_sorted_by(|a, b| a < b), "writers are not in order");
    let writes = writers.ranks.contains(&prefill);
    assert_eq!(writes, !route.is_empty(), "a writer has something to write");
    assert_eq!(writes, readers.contains(&decode), "readers are writers read backwards");

    for segment in &route.segments {
        let items = |side, rank| topology.item_bytes(side, rank, segment.part).expect("as above");
        let (from, to) = (items(Side::Prefill, prefill), items(Side::Decode, decode));
        assert_eq!(segment.source_buffers().len(), segment.target_buffers().len());
        let (run, count) = (segment.cut.run, segment.cut.count);
        check_place(&segment.cut.source, run, count, &from[segment.source_buffers()]);
        check_place(&segment.cut.target, run, count, &to[segment.target_buffers()]);
    }
    let (start, end, pages) = (input.number(), input.number(), input.number());
    let stretch = route.stretch(start..end, pages);
    assert!(stretch.blocks.start <= stretch.blocks.end, "{stretch:?}");
    check_strangers(topology, prefill, decode);
}

fn any_rank(topology: &Topology, side: Side, input: &mut Input<'_>) -> Rank {
    let sizes = topology.layout(side).sizes();
    let number = u64::from(input.number()) % sizes.total();
    let rank = Rank::of_number(number as u32, sizes).expect("below the total");
    assert_eq!(u64::from(rank.number(sizes)), number);
    rank
}

/// All runs of all blocks lie within an item, and items are as large as the rank's table has them.
fn check_place(place: &Place, run: u64, count: u64, items: &[u64]) {
    assert!(items.iter().all(|bytes| *bytes == place.item_bytes), "{place:?} of {items:?}");
    let last = |number: u64, bytes: u64| u128::from(number - 1) * u128::from(bytes);
    let blocks = last(place.blocks.into(), place.step) + last(count, place.stride);
    let end = u128::from(place.offset) + blocks + u128::from(run);
    assert!(run > 0 && end <= u128::from(place.item_bytes), "{place:?}: {count} runs of {run}");
}

/// Ranks beyond the engines are errors.
fn check_strangers(topology: &Topology, prefill: Rank, decode: Rank) {
    let beyond = |side| Rank { tp: topology.layout(side).tp, dp: 0, pp: 0, cp: 0 };
    assert!(topology.route(beyond(Side::Prefill), decode).is_err());
    assert!(topology.route(prefill, beyond(Side::Decode)).is_err());
    assert!(topology.writers(decode, topology.layout(Side::Prefill).dp).is_err());
    assert!(topology.readers(prefill, topology.layout(Side::Decode).dp).is_err());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{corpus, seeds};

    /// A corpus of layouts that are all refused would find nothing.
    #[test]
    fn engines_of_the_corpus_are_possible_unless_their_names_say_otherwise() {
        const REFUSED: [&str; 4] = ["huge", "indivisible", "no-tensors", "unlike"];
        for seed in seeds::all().iter().filter(|seed| seed.target == "topology") {
            let outcome = engines(&mut Input(&seed.bytes));
            assert_eq!(
                outcome.is_err(),
                REFUSED.contains(&&*seed.name),
                "{}: {outcome:?}",
                seed.name
            );
        }
        assert!(corpus::read("topology").unwrap().len() > REFUSED.len());
    }
}
