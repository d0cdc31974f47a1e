//! The hex that PROTOCOL.md shows for RDMA, held against the code (W1): what is shown decodes to what
//! stands here, and what stands here encodes to what is shown. A change of either alone fails.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use transport_core::transfer::{GrantId, Part};

use crate::address::{self, PortAddress};
use crate::control::{Control, Writer};
use crate::news::{Place, RECORD, Record, Short};
use crate::remote::RemoteTables;

/// Names of vectors, and what their bytes mean; `None` if nothing.
type Meanings<T> = Vec<(&'static str, Option<T>)>;

const GRANT: GrantId = GrantId { slot: 3, generation: 9 };
const TAG: u64 = 0x0123_4567_89ab_cdef;
const PLACE: Place = Place { slot: 5, turn: 2 };

fn addresses() -> Meanings<Vec<PortAddress>> {
    let ip = std::net::Ipv4Addr::new(10, 9, 0, 1).to_ipv6_mapped().octets();
    let roce = PortAddress { gid: ip, lid: 0, ethernet: true, kind: 2, mtu: 5 };
    let gid = 0xfe80_0000_0000_0000_a0a1_a2a3_a4a5_a6a7_u128.to_be_bytes();
    let infiniband = PortAddress { gid, lid: 7, ethernet: false, kind: 0, mtu: 4 };
    vec![
        ("rdma-address", Some(vec![roce, infiniband])),
        ("also-rdma-address-longer", Some(vec![roce])),
        ("bad-rdma-address-magic", None),
        ("bad-rdma-address-version", None),
        ("bad-rdma-address-ports", None),
        ("bad-rdma-address-short", None),
        ("bad-rdma-address-mtu", None),
    ]
}

fn messages(tables: &[u8]) -> Meanings<Control<'_>> {
    let (epoch, rail, life) = (2, 1, 3);
    let (id, tag, place) = (GRANT, TAG, PLACE);
    vec![
        ("rdma-open", Some(Control::Open { epoch, heard: 1 })),
        ("rdma-close", Some(Control::Close { epoch })),
        ("rdma-rail", Some(Control::Rail { epoch, rail, life, pair: 17, psn: 0x12_3456 })),
        ("rdma-ready", Some(Control::Ready { epoch, rail, life })),
        ("rdma-gone", Some(Control::Gone { epoch, rail, life, taken: 7 })),
        ("rdma-tables", Some(Control::Tables { epoch, id: 0, body: tables })),
        ("rdma-grant", Some(Control::Grant { epoch, id, tag, place, tables: 0 })),
        ("rdma-revoke", Some(Control::Revoke { epoch, id })),
        ("rdma-ask", Some(Control::Ask { epoch, id })),
        ("rdma-unknown", Some(Control::Unknown { epoch, id })),
        ("bad-rdma-kind", None),
        ("bad-rdma-kind-0", None),
        ("bad-rdma-short", None),
        ("bad-rdma-long", None),
    ]
}

/// Messages whose bodies are no tables.
const BAD_TABLES: [&str; 4] = [
    "bad-rdma-tables-piece",
    "bad-rdma-tables-keys",
    "bad-rdma-tables-range",
    "bad-rdma-tables-split",
];

fn shorts() -> Meanings<Short> {
    vec![
        ("rdma-short", Some(Short { place: PLACE, part: Part::Aux, sequence: 9 })),
        ("bad-rdma-short-reserved", None),
        ("bad-rdma-short-part", None),
    ]
}

fn records() -> Meanings<Record> {
    let (grant, tag, total, part) = (GRANT, TAG, (8 << 30) + 4096, Part::Kv);
    let record = Record { grant, tag, total, sequence: 7, part, share: 1, shares: 2 };
    vec![
        ("rdma-record", Some(record)),
        ("bad-rdma-record-part", None),
        ("bad-rdma-record-share", None),
        ("bad-rdma-record-shares", None),
        ("bad-rdma-record-reserved", None),
    ]
}

/// The body of the tables that are shown: 300 items of 4096 bytes in a region of 3 MiB.
fn tables() -> Vec<u8> {
    let mut to = Writer(vec![]);
    to.u8(21).u8(1).u16(1).u64(1 << 20).u64(3 << 20).u32(70).u32(71);
    to.u8(1).u8(0).u32(300).u16(1);
    to.u16(0).u64(64).u64(4096).u64(4096).u64(4096).u64(4096).u32(1).u64(4096);
    to.0
}

#[test]
fn w1_addresses_are_as_shown() {
    for (name, meaning) in addresses() {
        assert_eq!(address::decode(&shown(name)), meaning, "{name}");
        if let Some(ports) = meaning
            && !name.starts_with("also-")
        {
            assert_eq!(address::encode(&ports), shown(name), "{name}");
        }
    }
}

#[test]
fn w1_messages_of_the_fabric_are_as_shown() {
    for (name, meaning) in messages(&tables()) {
        let shown = shown(name);
        assert_eq!(shown[0], crate::control::kind::FABRIC, "{name}");
        assert_eq!(Control::decode(&shown[1..]), meaning, "{name}");
        if let Some(message) = meaning {
            assert_eq!(message.encode(), shown, "{name}");
        }
    }
}

#[test]
fn w1_tables_are_as_shown() {
    let known = RemoteTables::decode(&tables(), 1).unwrap();
    let target = known.target(Part::Kv, 0).unwrap();
    assert!(target.has(&[299]) && !target.has(&[300]));
    // Behind 2 MiB of the region begins the piece of the second key.
    let [shape] = target.shapes() else { panic!("one buffer") };
    let (item, piece) = (shape.item(299), 2 << 20);
    assert_eq!(target.reach(0, item), Some((1 << 20, 70, 0..piece)));
    assert_eq!(target.reach(0, piece), Some((1 << 20, 71, piece..3 << 20)));
    for name in BAD_TABLES {
        let shown = shown(name);
        let Some(Control::Tables { body, .. }) = Control::decode(&shown[1..]) else {
            panic!("{name} is a message")
        };
        assert!(RemoteTables::decode(body, 1).is_none(), "{name}");
    }
}

#[test]
fn w1_news_are_as_shown() {
    for (name, meaning) in shorts() {
        let bits = u32::from_le_bytes(shown(name).try_into().unwrap());
        assert_eq!(Short::decode(bits), meaning, "{name}");
        if let Some(short) = meaning {
            assert_eq!(short.encode(), Some(bits), "{name}");
        }
    }
    for (name, meaning) in records() {
        let bytes: [u8; RECORD] = shown(name).try_into().unwrap();
        assert_eq!(Record::decode(&bytes), meaning, "{name}");
        if let Some(record) = meaning {
            assert_eq!(record.encode(), bytes, "{name}");
        }
    }
}

#[test]
fn every_kind_has_a_vector_and_every_vector_is_checked() {
    fn names<T>(meanings: &Meanings<T>) -> Vec<&'static str> {
        meanings.iter().map(|(name, _)| *name).collect()
    }
    let body = tables();
    let messages = messages(&body);
    let kinds = messages.iter().filter(|(_, m)| m.is_some()).map(|(name, _)| shown(name)[1]);
    assert!(kinds.eq(1..=10));
    let news = [names(&shorts()), names(&records())].concat();
    let checked = [names(&addresses()), names(&messages), BAD_TABLES.to_vec(), news].concat();
    assert!(vectors().into_keys().eq(BTreeSet::from_iter(checked)));
}

/// The bytes of a vector in the document.
fn shown(name: &str) -> Vec<u8> {
    vectors().remove(name).unwrap_or_else(|| panic!("{name} is not shown"))
}

fn vectors() -> BTreeMap<&'static str, Vec<u8>> {
    transport_core::conformance::vectors(include_str!("../../PROTOCOL.md"), "verbs-vectors")
}
