//! An engine's [`Layout`] at the end of [`Hello`](super::Hello): how it spreads its cache over its
//! ranks. A node without one is an engine of one rank.

use alloc::vec::Vec;

use super::codec::{Reader, Writer, check_limit};
use super::hello::component_count;
use super::{WireError, WireField};
use crate::disagg::DType;
use crate::disagg::topology::{Axes, Component, Layout, Sharded};

/// Most pipeline stages of a layout.
pub(super) const MAX_STAGES: u32 = 1 << 10;
/// Most layers that have one component.
pub(super) const MAX_LAYERS: u32 = 1 << 9;
/// Most tensors of a component.
pub(super) const MAX_TENSORS: u32 = 1 << 4;
/// Most sharded runs of a tensor.
pub(super) const MAX_SHARDED: u32 = 1 << 5;

pub(super) fn write(writer: &mut Writer<'_>, layout: Option<&Layout>) -> Result<(), WireError> {
    writer.u8(layout.is_some().into());
    let Some(layout) = layout else { return Ok(()) };
    writer.u8(layout.dtype as u8);
    [layout.dp, layout.tp, layout.cp].into_iter().for_each(|size| writer.u32(size));
    write_numbers(writer, WireField::Stages, &layout.stages, MAX_STAGES)?;
    write_component(writer, &layout.kv)?;
    writer.u8(component_count(layout.state.len(), writer.at())?);
    layout.state.iter().try_for_each(|component| write_component(writer, component))
}

pub(super) fn read(reader: &mut Reader<'_>) -> Result<Option<Layout>, WireError> {
    if !reader.bool()? {
        return Ok(None);
    }
    let dtype = reader.numbered(WireField::DType, DType::from_wire)?;
    let (dp, tp, cp) = (reader.u32()?, reader.u32()?, reader.u32()?);
    let stages = read_numbers(reader, WireField::Stages, MAX_STAGES)?;
    let (kv, at) = (read_component(reader)?, reader.at());
    let components = component_count(reader.u8()?.into(), at)?;
    let state = (0..components).map(|_| read_component(reader)).collect::<Result<_, _>>()?;
    Ok(Some(Layout { dtype, dp, tp, cp, stages, kv, state }))
}

fn write_component(writer: &mut Writer<'_>, component: &Component) -> Result<(), WireError> {
    writer.u8(component.axes as u8);
    writer.u32(component.tokens);
    write_numbers(writer, WireField::LayerNumbers, &component.layers, MAX_LAYERS)?;
    writer.limited(WireField::Tensors, component.tensors.len() as u64, MAX_TENSORS)?;
    component.tensors.iter().try_for_each(|tensor| {
        writer.limited(WireField::ShardedRuns, tensor.len() as u64, MAX_SHARDED)?;
        for sharded in tensor {
            writer.u32(sharded.units);
            writer.u32(sharded.unit_bytes);
        }
        Ok(())
    })
}

fn read_component(reader: &mut Reader<'_>) -> Result<Component, WireError> {
    let axes = reader.numbered(WireField::Axes, Axes::from_wire)?;
    let tokens = reader.u32()?;
    let layers = read_numbers(reader, WireField::LayerNumbers, MAX_LAYERS)?;
    let tensors = reader.limited(WireField::Tensors, MAX_TENSORS)?;
    let tensors = (0..tensors).map(|_| read_tensor(reader)).collect::<Result<_, _>>()?;
    Ok(Component { axes, tokens, layers, tensors })
}

fn read_tensor(reader: &mut Reader<'_>) -> Result<Vec<Sharded>, WireError> {
    let sharded = reader.limited(WireField::ShardedRuns, MAX_SHARDED)?;
    (0..sharded).map(|_| Ok(Sharded { units: reader.u32()?, unit_bytes: reader.u32()? })).collect()
}

/// How many numbers, then each.
fn write_numbers(
    writer: &mut Writer<'_>,
    field: WireField,
    numbers: &[u32],
    limit: u32,
) -> Result<(), WireError> {
    check_limit(field, numbers.len() as u64, limit, writer.at())?;
    writer.u32(numbers.len() as u32);
    numbers.iter().for_each(|number| writer.u32(*number));
    Ok(())
}

fn read_numbers(
    reader: &mut Reader<'_>,
    field: WireField,
    limit: u32,
) -> Result<Vec<u32>, WireError> {
    let count = reader.limited(field, limit)?;
    (0..count).map(|_| reader.u32()).collect()
}
