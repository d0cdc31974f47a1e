//! The body of [`Hello`]: who a node is and the shape of its cache.

use alloc::vec::Vec;

use super::codec::{Reader, Writer, check_limit};
use super::{Hello, Role, WireError, WireField, layout};
use crate::disagg::{DType, Geometry, ItemSizes, KvLayout, StateGeometry, StateKind};
use crate::fabric::MAX_ADDRESS;
use crate::link::MAX_MESSAGE;
use crate::memory::MAX_BUFFERS;
use crate::transfer::MAX_COMPONENTS;

// Whatever a node's tables and layout are, its hello can be sent: the fixed fields and the address;
// for KV and each state component, a kind, a count and one run per buffer; and the layout's stages
// and each component's layers and tensors.
const _: () = {
    let sizes = (1 + MAX_COMPONENTS) * (1 + 4 + MAX_BUFFERS * 12);
    let tensors = layout::MAX_TENSORS as usize * (4 + layout::MAX_SHARDED as usize * 8);
    let component = 1 + 4 + 4 + layout::MAX_LAYERS as usize * 4 + 4 + tensors;
    let stages = 4 + layout::MAX_STAGES as usize * 4;
    let layout = 8 + 1 + 1 + 12 + stages + 1 + (1 + MAX_COMPONENTS) * component;
    let longest = 56 + MAX_ADDRESS + sizes + layout;
    assert!(longest <= MAX_MESSAGE, "the longest hello does not fit a message");
};

pub(super) fn write(writer: &mut Writer<'_>, hello: &Hello) -> Result<(), WireError> {
    writer.u64(hello.incarnation);
    writer.u32(hello.rank);
    writer.u8(hello.role as u8);
    write_geometry(writer, &hello.geometry)?;
    let limit = MAX_ADDRESS as u32;
    writer.limited(WireField::AddressBytes, hello.address.len() as u64, limit)?;
    writer.bytes(&hello.address);
    writer.u64(hello.engine);
    layout::write(writer, hello.layout.as_ref())
}

pub(super) fn read(reader: &mut Reader<'_>) -> Result<Hello, WireError> {
    let (incarnation, rank) = (reader.u64()?, reader.u32()?);
    let role = reader.numbered(WireField::Role, Role::from_wire)?;
    let geometry = read_geometry(reader)?;
    let len = reader.limited(WireField::AddressBytes, MAX_ADDRESS as u32)?;
    let address = reader.bytes(len as usize)?.to_vec();
    let (engine, layout) = (reader.u64()?, layout::read(reader)?);
    Ok(Hello { incarnation, role, rank, geometry, address, engine, layout })
}

fn write_geometry(writer: &mut Writer<'_>, geometry: &Geometry) -> Result<(), WireError> {
    writer.u8(geometry.dtype as u8);
    writer.u8(geometry.kv_layout as u8);
    writer.u8(component_count(geometry.state.len(), writer.at())?);
    writer.u64(geometry.aux_bytes);
    writer.u64(geometry.compat);
    writer.u32(geometry.page_tokens);
    writer.u32(geometry.layers);
    writer.u32(geometry.kv_heads);
    write_sizes(writer, &geometry.kv)?;
    geometry.state.iter().try_for_each(|state| {
        writer.u8(state.kind as u8);
        write_sizes(writer, &state.sizes)
    })
}

fn read_geometry(reader: &mut Reader<'_>) -> Result<Geometry, WireError> {
    let dtype = reader.numbered(WireField::DType, DType::from_wire)?;
    let kv_layout = reader.numbered(WireField::KvLayout, KvLayout::from_wire)?;
    let at = reader.at();
    let components = component_count(reader.u8()?.into(), at)?;
    let (aux_bytes, compat) = (reader.u64()?, reader.u64()?);
    let (page_tokens, layers, kv_heads) = (reader.u32()?, reader.u32()?, reader.u32()?);
    let kv = read_sizes(reader)?;
    let state = (0..components).map(|_| read_state(reader)).collect::<Result<_, _>>()?;
    Ok(Geometry { dtype, kv_layout, page_tokens, layers, kv_heads, kv, aux_bytes, state, compat })
}

fn read_state(reader: &mut Reader<'_>) -> Result<StateGeometry, WireError> {
    let kind = reader.numbered(WireField::StateKind, StateKind::from_wire)?;
    Ok(StateGeometry { kind, sizes: read_sizes(reader)? })
}

/// A number of state components, checked and as a byte.
pub(super) fn component_count(count: usize, at: usize) -> Result<u8, WireError> {
    let limit = MAX_COMPONENTS as u32;
    check_limit(WireField::StateComponents, count as u64, limit, at).map(|count| count as u8)
}

fn write_sizes(writer: &mut Writer<'_>, sizes: &ItemSizes) -> Result<(), WireError> {
    // Every run has a buffer, so a list of more runs than this breaks the buffers' limit.
    writer.limited(WireField::Buffers, sizes.0.len() as u64, MAX_BUFFERS as u32)?;
    let mut total = 0;
    sizes.0.iter().try_for_each(|(buffers, bytes)| {
        total = add_buffers(total, *buffers, writer.at())?;
        writer.u32(*buffers);
        writer.u64(*bytes);
        Ok(())
    })
}

fn read_sizes(reader: &mut Reader<'_>) -> Result<ItemSizes, WireError> {
    let entries = reader.limited(WireField::Buffers, MAX_BUFFERS as u32)?;
    let (mut runs, mut total) = (Vec::new(), 0);
    for _ in 0..entries {
        let (at, buffers, bytes) = (reader.at(), reader.u32()?, reader.u64()?);
        total = add_buffers(total, buffers, at)?;
        runs.push((buffers, bytes));
    }
    Ok(ItemSizes(runs))
}

/// Buffers of the table after a run of `more`. Comparing geometries walks every buffer of a run, so
/// the sum must be bounded and not only the number of runs.
fn add_buffers(total: u32, more: u32, at: usize) -> Result<u32, WireError> {
    if more == 0 {
        return Err(WireError::EmptyRun { at });
    }
    let total = u64::from(total) + u64::from(more);
    check_limit(WireField::Buffers, total, MAX_BUFFERS as u32, at)
}
