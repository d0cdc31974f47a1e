//! This crate's decoders as functions of bytes, for fuzzing: each takes any bytes, and panics when a
//! decoder breaks a promise. Bytes that are refused are no broken promise. No device is needed.
//!
//! No interface: it is hidden, comes with the feature `fuzzing` alone, and changes as the decoders
//! do.
#![forbid(unsafe_code)]

use std::sync::Arc;

use transport_core::fabric::FabricEvent;
use transport_core::transfer::{Grant, GrantId, Part};

use crate::address::{self, MAX_PORTS};
use crate::control::Control;
use crate::grants::{Grants, Meaning};
use crate::news::{RECORD, Record, Short};
use crate::remote::{RemoteTables, Target};

/// Most items of a table that are looked at.
const LOOKS: u32 = 64;

/// A fabric's address, as it is in a Hello, joined with itself and with one port of it.
pub fn verbs_address(data: &[u8]) {
    let Some(ports) = address::decode(data) else { return };
    assert!((1..=MAX_PORTS).contains(&ports.len()), "{} ports", ports.len());
    assert_eq!(address::decode(&address::encode(&ports)).as_ref(), Some(&ports));
    for other in [&ports[..], &ports[..1]] {
        let (rails, _) = address::plan(&ports, other);
        let (most, least) = (ports.len().max(other.len()), usize::from(!rails.is_empty()));
        assert!((least..=most).contains(&rails.len()), "{} rails", rails.len());
        for rail in rails {
            let ends = (ports[usize::from(rail.dialler)], other[usize::from(rail.acceptor)]);
            assert_eq!(rail.mtu, ends.0.mtu.min(ends.1.mtu), "a rail's mtu");
        }
    }
}

/// A message of the fabric, behind the byte that says it is one.
pub fn verbs_control(data: &[u8]) {
    if let Some(message) = Control::decode(data) {
        assert_eq!(&message.encode()[1..], data, "what decodes is what is sent");
    }
}

/// The tables of a peer with as many ports as they say: nothing in them leads out of a region.
pub fn verbs_tables(data: &[u8]) {
    let ports = data.get(1).copied().map_or(1, usize::from);
    let Some(tables) = RemoteTables::decode(data, ports) else { return };
    let parts = (0..=u8::MAX).filter_map(Part::from_wire);
    for target in parts.filter_map(|part| tables.target(part, 0)) {
        for buffer in 0..target.shapes().len() {
            reach_items(&target, buffer);
        }
    }
}

/// Every run of some items lies in the region, byte for byte, however many keys it needs.
fn reach_items(target: &Target<'_>, buffer: usize) {
    let shape = target.shapes()[buffer];
    for item in (0..LOOKS).filter(|item| target.has(&[*item])) {
        let (first, last) = (shape.item(item), shape.item_bytes / shape.run_bytes - 1);
        for run in [0, last] {
            let (mut at, end) = (first + run * shape.run_stride, shape.run_bytes);
            let end = at + end;
            for _ in 0..LOOKS {
                if at == end {
                    break;
                }
                // No port, no key.
                let Some((_, _, good)) = target.reach(buffer, at) else { return };
                assert!(good.contains(&at), "a key that is good for others");
                at = end.min(good.end);
            }
        }
    }
}

/// News of writes, one after the other, to a target with one grant: each delivery arrives once.
pub fn verbs_news(data: &[u8]) {
    let id = GrantId { slot: 3, generation: 9 };
    let grant = Grant { id, tag: TAG, kv: Arc::new([1]), aux: [0], state: Box::new([]) };
    let mut grants = Grants::default();
    grants.insert(Arc::new(grant));
    let mut arrived = std::collections::HashSet::new();
    let mut hear = |meaning| match meaning {
        Ok(Meaning::Arrived(FabricEvent::Arrived { part, sequence, .. })) => {
            assert!(arrived.insert((part, sequence)), "{part:?} {sequence} arrived twice");
            true
        }
        other => other.is_ok(),
    };
    let (records, rest) = data.as_chunks::<RECORD>();
    for bytes in records {
        let Some(record) = Record::decode(bytes) else { continue };
        assert_eq!(&record.encode(), bytes, "what decodes is what is sent");
        if !hear(grants.record(&record)) {
            return;
        }
    }
    for bytes in rest.as_chunks::<4>().0 {
        let Some(short) = Short::decode(u32::from_le_bytes(*bytes)) else { continue };
        assert_eq!(
            short.encode(),
            Some(u32::from_le_bytes(*bytes)),
            "what decodes is what is sent"
        );
        if !hear(grants.short(short, 1)) {
            return;
        }
    }
}

/// The tag of the grant that PROTOCOL.md has as its example.
const TAG: u64 = 0x0123_4567_89ab_cdef;
