//! This crate's decoders as functions of bytes, for fuzzing: each takes any bytes, and panics when a
//! decoder breaks a promise. Bytes that are refused are no broken promise.
//!
//! No interface: it is hidden, comes with the feature `fuzzing` alone, and changes as the decoders
//! do.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::{Arc, LazyLock};

use transport_core::fabric::PeerId;
use transport_core::link::MAX_MESSAGE;
use transport_core::memory::{CacheTables, MemoryRegion, PagedTable, Span};
use transport_core::transfer::{Grant, GrantId, Part};
use transport_core::wire;

use crate::assembly::Assemblies;
use crate::frame::{Frame, HEADER, Piece};
use crate::grants::{Grants, Landing};
use crate::preface::{PREFACE, Preface, PrefaceReader};
use crate::{address, link};

mod nearby;

pub use crate::bootstrap::fuzzing::{bodies, etcd, proof, query, requests};
pub use nearby::nearby;

/// The start of a connection: decoded at once, and as it comes in, however it is cut.
pub fn preface(data: &[u8]) {
    let whole = data.first_chunk::<PREFACE>().and_then(|bytes| {
        let preface = Preface::decode(bytes).ok()?;
        assert_eq!(&preface.encode(), bytes, "what decodes is what is sent");
        Some(preface)
    });
    for step in [1, 7, PREFACE, usize::MAX] {
        let mut stream = Trickle { rest: data, step };
        let read = PrefaceReader::default().read(&mut stream);
        assert_eq!(read.ok().flatten(), whole, "{step} bytes at a time");
        assert!(data.len() - stream.rest.len() <= PREFACE, "bytes behind the preface were taken");
    }
}

/// Bytes that come `step` at a time.
struct Trickle<'a> {
    rest: &'a [u8],
    step: usize,
}

impl Read for Trickle<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = into.len().min(self.step);
        self.rest.read(&mut into[..most])
    }
}

/// A fabric's address, as it is in a Hello.
pub fn address(data: &[u8]) {
    let Some(whole) = address::Address::decode(data) else { return };
    assert!(data.starts_with(&whole.encode()), "what decodes is what is sent");
    let wanted = whole.lanes;
    for (ours, local) in (0..=address::MAX_LANES).flat_map(|n| [(n, false), (n, true)]) {
        let lanes = address::lanes(ours, wanted, local);
        assert!((1..=address::MAX_LANES).contains(&lanes), "{lanes} lanes");
        assert_eq!(lanes, address::lanes(wanted, ours, local), "both sides compute the same");
    }
}

/// What comes on a link, up to the first frame that is not whole: each message is decoded.
pub fn link(data: &[u8]) {
    let mut rest = data;
    while let Ok(Some(length)) = link::message_length(rest) {
        assert!(length <= MAX_MESSAGE, "{length} bytes would be waited for");
        let (header, behind) = rest.split_at(link::header(0).len());
        assert_eq!(link::header(length), header, "what decodes is what is sent");
        let Some((message, next)) = behind.split_at_checked(length) else { return };
        let _ = wire::decode(message);
        rest = next;
    }
}

/// Headers that come on two lanes of one path, in turn: decoded, held against the grants, and
/// assembled. A piece lands when the next one has come, as pieces on two lanes overlap.
pub fn lane(data: &[u8]) {
    let (mut path, mut coming) = (Path::default(), None);
    for header in data.as_chunks::<HEADER>().0 {
        let Ok(frame) = Frame::decode(header) else { continue };
        match frame {
            Frame::Acks(acks) => assert_eq!(&acks.encode(), header, "what decodes is what is sent"),
            Frame::Piece(piece) => {
                assert_eq!(&piece.encode(), header, "what decodes is what is sent");
                if path.accepts(&piece)
                    && let Some(before) = coming.replace(piece)
                {
                    path.land(&before);
                }
            }
        }
    }
    coming.iter().for_each(|piece| path.land(piece));
}

const PEER: PeerId = PeerId(3);

/// Two buffers of KV, aux, and a state component of three buffers; items of 16 bytes, all of them
/// dense. One grant is in force, the one that PROTOCOL.md has as its example.
static GRANTS: LazyLock<(Grants, Arc<Grant>)> = LazyLock::new(|| {
    let tables = CacheTables::new(table(2, 8), table(1, 2), vec![table(3, 4)]);
    let id = GrantId { slot: 3, generation: 9 };
    let state: Box<[Arc<[u32]>]> = [Arc::from([3, 0])].into();
    let (tag, kv) = (0x0123_4567_89ab_cdef, Arc::from([7, 1, 2, 5]));
    let grant = Arc::new(Grant { id, tag, kv, aux: [1], state });
    let mut grants = Grants::default();
    grants.bind(tables.expect("one buffer of aux")).expect("nothing was bound");
    grants.insert(PEER, Arc::clone(&grant), None).expect("items of the tables");
    (grants, grant)
});

const ITEM: u64 = 16;

fn table(buffers: usize, items: u32) -> PagedTable {
    let bytes = vec![ITEM; buffers];
    let region = MemoryRegion::allocate(buffers * items as usize * ITEM as usize);
    PagedTable::packed(&region.expect("a few bytes"), &bytes, items).expect("they fit")
}

/// The target's side of a path, and what it should know.
#[derive(Default)]
struct Path {
    assemblies: Assemblies,
    /// Bytes landed of deliveries that lack some.
    landed: HashMap<u64, u64>,
}

impl Path {
    fn accepts(&mut self, piece: &Piece) -> bool {
        let Ok(landing) = GRANTS.0.check(PEER, piece) else { return false };
        check_landing(&landing, piece);
        self.assemblies.begin(piece).is_ok()
    }

    /// A delivery is announced when all of its bytes have landed, and not before.
    fn land(&mut self, piece: &Piece) {
        let whole = self.assemblies.land(piece);
        if u64::from(piece.length) == piece.total {
            return assert!(whole, "a delivery in one piece");
        }
        let landed = self.landed.entry(piece.cookie).or_default();
        *landed += u64::from(piece.length);
        assert!(*landed <= piece.total, "{landed} bytes of {}", piece.total);
        assert_eq!(whole, *landed == piece.total, "{landed} bytes of {}", piece.total);
        if whole {
            self.landed.remove(&piece.cookie);
        }
    }
}

/// A piece lands in granted items of the buffers that it names, and nowhere else (M3).
fn check_landing(landing: &Landing, piece: &Piece) {
    let stream = landing.stream(piece).expect("an accepted piece");
    let spans: Vec<Span> = stream.range(piece.offset, piece.length.into()).collect();
    let bytes: u64 = spans.iter().map(|span| span.len).sum();
    assert_eq!(bytes, u64::from(piece.length), "each byte has a place");
    let granted = |part: Part, item: u64| {
        GRANTS.1.items(part).iter().any(|granted| u64::from(*granted) == item)
    };
    for Span { buffer, offset, len } in spans {
        assert!(piece.buffers.contains(&(buffer as u16)), "buffer {buffer}");
        let start = landing.table().shapes()[buffer].offset;
        let items = (offset - start) / ITEM..(offset - start + len).div_ceil(ITEM);
        for item in items {
            assert!(granted(piece.part, item), "item {item} of buffer {buffer}");
        }
    }
}
