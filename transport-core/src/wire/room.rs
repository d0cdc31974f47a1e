//! The bodies of the messages about a room. All of them begin with the room and the grant.

use super::codec::{Reader, Writer};
use super::items::{self, ItemCount};
use super::{GrantOffer, Stated, WireError, WireField, hello};
use crate::disagg::RoomId;
use crate::transfer::{Grant, GrantId, MAX_DELIVERIES, Manifest, StateMask};

pub(super) fn write_ids(writer: &mut Writer<'_>, room: RoomId, grant: GrantId) {
    writer.u64(room.0);
    writer.u64(grant.to_bits());
}

pub(super) fn read_ids(reader: &mut Reader<'_>) -> Result<(RoomId, GrantId), WireError> {
    Ok((RoomId(reader.u64()?), GrantId::from_bits(reader.u64()?)))
}

pub(super) fn write_grant(writer: &mut Writer<'_>, offer: &GrantOffer) -> Result<(), WireError> {
    let grant = &offer.grant;
    write_ids(writer, offer.room, grant.id);
    writer.u64(grant.tag);
    writer.u32(offer.prefix_pages);
    writer.limited(WireField::Deliveries, offer.deliveries.into(), MAX_DELIVERIES)?;
    writer.u32(offer.deadline_ms);
    writer.u32(grant.aux[0]);
    writer.u8(hello::component_count(grant.state.len(), writer.at())?);
    let mut count = ItemCount::default();
    items::write(writer, &grant.kv, &mut count)?;
    grant.state.iter().try_for_each(|list| items::write(writer, list, &mut count))
}

pub(super) fn read_grant(reader: &mut Reader<'_>) -> Result<GrantOffer, WireError> {
    let (room, id) = read_ids(reader)?;
    let (tag, prefix_pages) = (reader.u64()?, reader.u32()?);
    let deliveries = reader.limited(WireField::Deliveries, MAX_DELIVERIES)?;
    let (deadline_ms, aux, at) = (reader.u32()?, [reader.u32()?], reader.at());
    let components = hello::component_count(reader.u8()?.into(), at)?;
    let mut count = ItemCount::default();
    let kv = items::read(reader, &mut count)?;
    let lists = (0..components).map(|_| items::read(reader, &mut count));
    let state = lists.collect::<Result<_, _>>()?;
    let grant = Grant { id, tag, kv, aux, state };
    Ok(GrantOffer { room, grant, prefix_pages, deliveries, deadline_ms })
}

pub(super) fn write_manifest(writer: &mut Writer<'_>, stated: &Stated) -> Result<(), WireError> {
    write_ids(writer, stated.room, stated.grant);
    writer.u32(stated.rank);
    writer.limited(WireField::Deliveries, stated.manifest.kv.into(), MAX_DELIVERIES)?;
    writer.u16(stated.manifest.state.bits());
    writer.u8(stated.manifest.aux.into());
    Ok(())
}

pub(super) fn read_manifest(reader: &mut Reader<'_>) -> Result<Stated, WireError> {
    let (room, grant) = read_ids(reader)?;
    let rank = reader.u32()?;
    let kv = reader.limited(WireField::Deliveries, MAX_DELIVERIES)?;
    let state = StateMask::from_bits(reader.u16()?);
    let aux = reader.bool()?;
    Ok(Stated { room, grant, rank, manifest: Manifest { kv, aux, state } })
}
