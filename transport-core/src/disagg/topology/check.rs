//! Whether a layout can be, and whether two can exchange caches.

use super::error::{Fact, Flaw, Side, TopologyError};
use super::layout::{Axes, Component, Layout, Sharded};
use crate::transfer::{MAX_COMPONENTS, Part};

/// Most ranks of one engine: whoever sends us its layout cannot make us walk for ever.
pub const MAX_RANKS: u64 = 1 << 13;

/// The first reason why nothing can be copied from `prefill` to `decode`.
pub(super) fn check(prefill: &Layout, decode: &Layout) -> Result<(), TopologyError> {
    let flaw = |side| move |flaw| TopologyError::Impossible { side, flaw };
    check_layout(prefill).map_err(flaw(Side::Prefill))?;
    check_layout(decode).map_err(flaw(Side::Decode))?;
    equal(Fact::DType, prefill.dtype as u64, decode.dtype as u64)?;
    equal(Fact::Layers, prefill.layers(), decode.layers())?;
    equal(Fact::StateComponents, prefill.state.len() as u64, decode.state.len() as u64)?;
    for ((part, from), (_, to)) in prefill.components().zip(decode.components()) {
        check_component(part, from, to)?;
        check_units(part, from, prefill.tp, decode.tp)?;
    }
    Ok(())
}

fn check_layout(layout: &Layout) -> Result<(), Flaw> {
    let ranks = layout.sizes();
    if !(1..=MAX_RANKS).contains(&ranks.total()) {
        return Err(Flaw::Ranks(ranks));
    }
    if layout.state.len() > MAX_COMPONENTS {
        return Err(Flaw::Components(layout.state.len()));
    }
    layout.components().try_for_each(|(part, component)| {
        check_layers(part, component, layout.layers())?;
        check_item(component).ok_or(Flaw::Item(part))
    })
}

fn check_layers(part: Part, component: &Component, layers: u64) -> Result<(), Flaw> {
    let mut next = 0u64;
    for layer in &component.layers {
        let number = u64::from(*layer);
        if number < next || number >= layers {
            return Err(Flaw::LayerNumbers { part, layer: *layer, layers });
        }
        next = number + 1;
    }
    Ok(())
}

/// That every size is at least 1, and that even an item of the unsharded model fits 64 bits: then
/// no sum or product made of a rank's share overflows.
fn check_item(component: &Component) -> Option<()> {
    let bytes = |s: &Sharded| u64::from(s.units) * u64::from(s.unit_bytes);
    let tokens = u64::from(component.tokens);
    let slot = component.axes != Axes::Units || tokens == 1;
    let tensor = |tensor: &[Sharded]| {
        let row = tensor.iter().try_fold(0u64, |sum, s| sum.checked_add(bytes(s)))?;
        let empty = tensor.iter().any(|s| bytes(s) == 0);
        row.checked_mul(tokens).filter(|bytes| *bytes > 0 && !empty)
    };
    (slot && tokens > 0 && component.tensors.iter().all(|t| tensor(t).is_some())).then_some(())
}

fn check_component(part: Part, from: &Component, to: &Component) -> Result<(), TopologyError> {
    equal(Fact::Axes(part), from.axes as u64, to.axes as u64)?;
    equal(Fact::CachedLayers(part), from.layers.len() as u64, to.layers.len() as u64)?;
    let mut layers = from.layers.iter().zip(&to.layers);
    layers.try_for_each(|(a, b)| equal(Fact::LayerNumber(part), (*a).into(), (*b).into()))?;
    equal(Fact::Tensors(part), from.tensors.len() as u64, to.tensors.len() as u64)?;
    for (from, to) in from.tensors.iter().zip(&to.tensors) {
        equal(Fact::Sharded(part), from.len() as u64, to.len() as u64)?;
        from.iter().zip(to).try_for_each(|(from, to)| check_sharded(part, *from, *to))?;
    }
    let (a, b) = (from.tokens, to.tokens);
    if divides(a, b) { Ok(()) } else { Err(TopologyError::Pages { part, prefill: a, decode: b }) }
}

fn check_sharded(part: Part, from: Sharded, to: Sharded) -> Result<(), TopologyError> {
    equal(Fact::Units(part), from.units.into(), to.units.into())?;
    equal(Fact::UnitBytes(part), from.unit_bytes.into(), to.unit_bytes.into())
}

/// That on each side the units are dealt out evenly, or each is held by equally many ranks.
fn check_units(
    part: Part,
    component: &Component,
    prefill_tp: u32,
    decode_tp: u32,
) -> Result<(), TopologyError> {
    let even = |s: &&Sharded| divides(s.units, prefill_tp) && divides(s.units, decode_tp);
    match component.tensors.iter().flatten().find(|sharded| !even(sharded)) {
        Some(s) => Err(TopologyError::Indivisible { part, units: s.units, prefill_tp, decode_tp }),
        None => Ok(()),
    }
}

fn equal(fact: Fact, prefill: u64, decode: u64) -> Result<(), TopologyError> {
    if prefill == decode {
        return Ok(());
    }
    Err(TopologyError::Differs { fact, prefill, decode })
}

/// Whether one of two numbers, neither of them 0, divides the other.
const fn divides(a: u32, b: u32) -> bool {
    a % b == 0 || b % a == 0
}
