//! Small caches, byte by byte: each byte that a request fills is written once, and no other (P1).
//!
//! Counts writes; that they bring the right bytes is for `transport-core`'s own tests, which work
//! out what each rank holds.

use std::ops::Range;

use transport_core::disagg::topology::{
    Component, Rank, Route, Side, Topology, blocks, page_share,
};
use transport_core::memory::{BufferShape, Segment, Segments};
use transport_core::transfer::Part;

use crate::input::Input;

/// Most bytes of one rank's tables, and most ranks of a group, that are looked at.
const SMALL: u64 = 1 << 12;
const FEW: u64 = 12;

/// A request of a few pages in two chunks, and of a few state items.
struct Request {
    chunks: [Range<u32>; 2],
    pages: u32,
    state: u32,
}

/// Carries out a request from the first group of one engine to the first of the other.
pub(crate) fn check(topology: &Topology, input: &mut Input<'_>) {
    let (cut, sent) = (input.below(4).into(), u32::from(input.below(6)));
    let chunks = [0..sent.min(cut), sent.min(cut)..sent];
    let request = Request { chunks, pages: input.below(6).into(), state: input.below(3).into() };
    if !is_small(topology, &request) {
        return;
    }
    for decode in topology.layout(Side::Decode).sizes().group(0) {
        check_rank(topology, decode, &request);
    }
}

fn is_small(topology: &Topology, request: &Request) -> bool {
    let few = |side| {
        let sizes = topology.layout(side).sizes();
        sizes.total() / u64::from(sizes.dp) <= FEW
    };
    let small = |side| {
        topology.layout(side).components().all(|(part, component)| {
            let items = topology.layout(side).sizes().group(0);
            let bytes = items.map(|rank| table_bytes(topology, side, rank, part));
            component.tokens <= 16 && bytes.max().unwrap_or_default() * items_of(request) <= SMALL
        })
    };
    few(Side::Prefill) && few(Side::Decode) && small(Side::Prefill) && small(Side::Decode)
}

/// Bytes of one item in all buffers; what does not fit 64 bits is not small.
fn table_bytes(topology: &Topology, side: Side, rank: Rank, part: Part) -> u64 {
    let items = topology.item_bytes(side, rank, part).expect("a rank of the group");
    items.into_iter().fold(0, u64::saturating_add).min(1 << 40)
}

/// At least as many items as a list of the request has.
fn items_of(request: &Request) -> u64 {
    u64::from(request.chunks[1].end.max(request.pages).max(16 * request.state)).max(1)
}

fn check_rank(topology: &Topology, decode: Rank, request: &Request) {
    let to = topology.layout(Side::Decode);
    let table = |(part, component): (Part, &Component)| {
        let items = target_items(topology, decode, part, request);
        (part, Target::new(topology, decode, part, component.tokens, items))
    };
    let mut tables: Vec<(Part, Target)> = to.components().map(table).collect();
    for prefill in topology.layout(Side::Prefill).sizes().group(0) {
        let route = topology.route(prefill, decode).expect("ranks of the groups");
        for (part, target) in &mut tables {
            if route.segments_of(*part).next().is_some() {
                carry_out(topology, prefill, (&route, *part), request, target);
            }
        }
    }
    for ((part, component), (_, target)) in to.components().zip(&tables) {
        target.check(|item| filled(topology, decode, part, component, item, request));
    }
}

/// Items in the decode rank's own list.
fn target_items(topology: &Topology, decode: Rank, part: Part, request: &Request) -> u32 {
    match part {
        Part::Kv => held(topology, decode, request).len() as u32,
        _ => request.state,
    }
}

fn held(topology: &Topology, decode: Rank, request: &Request) -> Range<u32> {
    page_share(request.pages, topology.layout(Side::Decode).cp, decode.cp)
}

/// Tokens of an item that the request fills.
fn filled(
    topology: &Topology,
    decode: Rank,
    part: Part,
    component: &Component,
    item: u32,
    request: &Request,
) -> u64 {
    let tokens = u64::from(component.tokens);
    if part != Part::Kv {
        return tokens;
    }
    let page = u64::from(held(topology, decode, request).start + item);
    let from = u64::from(topology.layout(Side::Prefill).kv.tokens);
    let sent = u64::from(request.chunks[1].end) * from;
    sent.saturating_sub(page * tokens).min(tokens)
}

/// How often each byte of a decode rank's table was written.
struct Target {
    shapes: Vec<BufferShape>,
    items: Vec<u32>,
    tokens: u64,
    writes: Vec<Vec<u8>>,
}

impl Target {
    fn new(topology: &Topology, decode: Rank, part: Part, tokens: u32, items: u32) -> Self {
        let bytes = topology.item_bytes(Side::Decode, decode, part).expect("a rank of the group");
        let writes = bytes.iter().map(|bytes| vec![0; (bytes * u64::from(items)) as usize]);
        let (shapes, writes) = (dense(&bytes), writes.collect());
        Self { shapes, items: (0..items).collect(), tokens: tokens.into(), writes }
    }

    fn write(&mut self, buffer: usize, segment: &Segment) {
        let start = segment.remote as usize;
        for writes in &mut self.writes[buffer][start..start + segment.len as usize] {
            *writes += 1;
            assert_eq!(*writes, 1, "a byte is written twice");
        }
    }

    /// Each item has as many written bytes as its filled tokens take.
    fn check(&self, filled: impl Fn(u32) -> u64) {
        for (shape, writes) in self.shapes.iter().zip(&self.writes) {
            for (item, writes) in (0..).zip(writes.chunks(shape.item_bytes as usize)) {
                let written = writes.iter().filter(|writes| **writes > 0).count() as u64;
                assert_eq!(written * self.tokens, filled(item) * shape.item_bytes, "item {item}");
            }
        }
    }
}

fn dense(item_bytes: &[u64]) -> Vec<BufferShape> {
    item_bytes.iter().map(|bytes| BufferShape::dense(0, *bytes)).collect()
}

fn carry_out(
    topology: &Topology,
    prefill: Rank,
    (route, part): (&Route, Part),
    request: &Request,
    target: &mut Target,
) {
    let bytes = topology.item_bytes(Side::Prefill, prefill, part).expect("a rank");
    let here = route.view(Side::Prefill, part, &dense(&bytes)).expect("tables of the layouts");
    let there = route.view(Side::Decode, part, &target.shapes).expect("tables of the layouts");
    let (from, to): (Vec<_>, Vec<_>) = (shapes(&here), shapes(&there));
    let per_item = |side| route.blocks(side, part);
    let mut copy = |items: &[u32], read: Range<usize>, written: Range<usize>| {
        let read: Vec<u32> = blocks(items, per_item(Side::Prefill), read).collect();
        let written = blocks(&target.items, per_item(Side::Decode), written);
        let written: Vec<u32> = written.collect();
        let segments = Segments::new(0..from.len(), (&from, &read), (&to, &written));
        let segments: Vec<Segment> = segments.expect("views that match").collect();
        segments.iter().for_each(|segment| target.write(there[segment.buffer].0, segment));
    };
    if part == Part::Kv {
        for chunk in &request.chunks {
            let items: Vec<u32> = chunk.clone().collect();
            let stretch = route.stretch(chunk.clone(), request.pages);
            copy(&items, stretch.source(), stretch.target());
        }
        return;
    }
    let written = request.state * per_item(Side::Decode);
    let items: Vec<u32> = (0..written.div_ceil(per_item(Side::Prefill))).collect();
    let common = route.common_blocks(part, items.len(), request.state as usize);
    let common = common.expect("lists of the same length") as usize;
    copy(&items, 0..common, 0..common);
}

fn shapes(view: &[(usize, BufferShape)]) -> Vec<BufferShape> {
    view.iter().map(|(_, shape)| *shape).collect()
}
