//! Two engines in miniature. Every byte of a cache is its coordinate; every route between all ranks
//! of two groups is carried out byte by byte; then every byte of every decode rank is looked at.
//!
//! What a rank holds is worked out here a second time, from the words of the layout and byte by
//! byte, so that nothing agrees with the planner because it is the planner.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use transport_core::disagg::topology::{
    Axes, BlockSpans, Component, CopySegment, Items, Layout, Rank, Route, Side, Stretch,
    StridedCopy, Topology, page_owner,
};
use transport_core::memory::{BufferShape, Span};
use transport_core::transfer::Part;

/// What a byte is, in the whole model: not where it lies.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Coordinate {
    part: Part,
    layer: u32,
    tensor: usize,
    sharded: usize,
    unit: u32,
    /// Token of the request; for slots, the number of the slot.
    token: u64,
    byte: u32,
}

/// A byte of a decode rank: who wrote it, and what.
type Written = Option<(Rank, Coordinate)>;

/// One rank's table of one component, and the request's items in it.
struct Table<B> {
    shapes: Vec<BufferShape>,
    items: Vec<u32>,
    memory: Vec<Vec<B>>,
}

impl<B: Clone> Table<B> {
    fn side(&self) -> Items<'_> {
        Items { shapes: &self.shapes, items: &self.items }
    }

    fn of_items(&self, items: Range<usize>) -> Items<'_> {
        Items { shapes: &self.shapes, items: &self.items[items] }
    }
}

/// A request: how long it is, and how it is cut and placed.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// Prefill pages of each chunk.
    pub(crate) chunks: Vec<u32>,
    /// Decode pages, over all cp ranks.
    pub(crate) pages: u32,
    /// Items of each state component, on the decode side.
    pub(crate) state: Vec<u32>,
    /// Free bytes between items, and where item numbers jump.
    pub(crate) gap: u64,
    pub(crate) scatter: u32,
}

impl Request {
    /// A request that fills `pages` pages of the prefill side exactly, in one chunk.
    pub(crate) fn of_pages(topology: &Topology, pages: u32) -> Self {
        let (from, to) = (topology.layout(Side::Prefill), topology.layout(Side::Decode));
        let target = (pages * from.kv.tokens).div_ceil(to.kv.tokens);
        let state = vec![2; to.state.len()];
        Self { chunks: vec![pages], pages: target, state, gap: 0, scatter: 1 }
    }
}

/// Something done to routes and stretches before they are carried out: nothing, or a mistake.
pub(crate) struct Mistake {
    pub(crate) route: fn(&Topology, Rank, Rank, &mut Route),
    pub(crate) stretch: fn(&mut Stretch, &Range<u32>),
}

pub(crate) const NONE: Mistake = Mistake { route: |_, _, _, _| {}, stretch: |_, _| {} };

/// Carries out a request from a prefill group to a decode group, and says what is wrong about it.
pub(crate) fn check(
    topology: &Topology,
    groups: (u32, u32),
    request: &Request,
    mistake: &Mistake,
) -> Result<(), String> {
    let decode = topology.layout(Side::Decode);
    for rank in decode.sizes().group(groups.1) {
        check_decode(topology, groups.0, rank, request, mistake)
            .map_err(|what| format!("decode {rank}: {what}"))?;
    }
    Ok(())
}

fn check_decode(
    topology: &Topology,
    dp: u32,
    decode: Rank,
    request: &Request,
    mistake: &Mistake,
) -> Result<(), String> {
    let writers = topology.writers(decode, dp).unwrap();
    let mut tables = target_tables(topology.layout(Side::Decode), decode, request);
    let (mut wrote, mut has_segments, mut aux) = (BTreeSet::new(), BTreeSet::new(), vec![]);
    for prefill in topology.layout(Side::Prefill).sizes().group(dp) {
        let mut route = topology.route(prefill, decode).unwrap();
        (mistake.route)(topology, prefill, decode, &mut route);
        let bytes = carry_out(topology, prefill, &route, request, &mut tables, mistake)?;
        wrote.extend((bytes > 0).then_some(prefill));
        has_segments.extend((!route.segments.is_empty()).then_some(prefill));
        aux.extend(route.aux.then_some(prefill));
    }
    check_bytes(topology, decode, request, &tables)?;
    check_writers(topology, &writers.ranks, wrote, has_segments, request)?;
    (aux == [writers.aux]).then_some(()).ok_or(format!("aux from {aux:?}"))?;
    let known = writers.ranks.contains(&writers.aux);
    known.then_some(()).ok_or("the aux writer is not a writer".into())
}

/// The stated writers are those with segments, and those that wrote, if the request had a page for
/// each of them. When nobody has anything to write there is still one, for aux.
fn check_writers(
    topology: &Topology,
    stated: &[Rank],
    wrote: BTreeSet<Rank>,
    has_segments: BTreeSet<Rank>,
    request: &Request,
) -> Result<(), String> {
    let stated: BTreeSet<Rank> = stated.iter().copied().collect();
    if has_segments.is_empty() && stated.len() == 1 {
        return Ok(());
    }
    let (from, to) = (topology.layout(Side::Prefill), topology.layout(Side::Decode));
    let enough = request.chunks.iter().any(|pages| *pages >= from.cp) && to.cp == 1;
    let enough = enough && request.state.iter().all(|items| *items > 0);
    let agree = stated == has_segments && (wrote == stated || !enough && wrote.is_subset(&stated));
    agree.then_some(()).ok_or(format!("{stated:?} stated, {has_segments:?} can, {wrote:?} wrote"))
}

/// Every byte that the request fills was written once (a second time is refused at the write) and
/// with the right content; no other byte was written at all.
fn check_bytes(
    topology: &Topology,
    decode: Rank,
    request: &Request,
    tables: &BTreeMap<Part, Table<Written>>,
) -> Result<(), String> {
    let (from, to) = (topology.layout(Side::Prefill), topology.layout(Side::Decode));
    let sent = request.chunks.iter().map(|pages| u64::from(*pages)).sum::<u64>();
    let tokens = (sent * u64::from(from.kv.tokens)).min(tokens(request.pages, &to.kv));
    for (part, component) in to.components() {
        let limit = if part == Part::Kv { tokens } else { u64::MAX };
        let table = &tables[&part];
        let mut expected = expected(to, decode, part, component, table, request);
        for bytes in expected.iter_mut().flatten() {
            bytes.take_if(|coordinate| coordinate.token >= limit);
        }
        let written =
            table.memory.iter().map(|bytes| bytes.iter().map(|w| w.map(|w| w.1)).collect());
        let written: Vec<Vec<Option<Coordinate>>> = written.collect();
        if written != expected {
            return Err(difference(part, &written, &expected));
        }
    }
    Ok(())
}

fn difference(
    part: Part,
    written: &[Vec<Option<Coordinate>>],
    expected: &[Vec<Option<Coordinate>>],
) -> String {
    for (buffer, (is, should)) in written.iter().zip(expected).enumerate() {
        if let Some(byte) = (0..is.len()).find(|byte| is[*byte] != should[*byte]) {
            let (is, should) = (is[byte], should[byte]);
            return format!("{part:?} buffer {buffer} byte {byte}: {is:?}, should be {should:?}");
        }
    }
    format!("{part:?}: {} buffers, should be {}", written.len(), expected.len())
}

fn tokens(items: u32, component: &Component) -> u64 {
    u64::from(items) * u64::from(component.tokens)
}

/// Carries out one route, all chunks and then state. The bytes written.
fn carry_out(
    topology: &Topology,
    prefill: Rank,
    route: &Route,
    request: &Request,
    targets: &mut BTreeMap<Part, Table<Written>>,
    mistake: &Mistake,
) -> Result<u64, String> {
    let sources = source_tables(topology, prefill, request);
    let mut copy = Copy { prefill, bytes: 0 };
    for segment in &route.segments {
        let (source, target) = (&sources[&segment.part], targets.get_mut(&segment.part).unwrap());
        if segment.part != Part::Kv {
            let lists = (source.items.len(), target.items.len());
            let stretch =
                Stretch::of_lists(segment, lists.0, lists.1).map_err(|e| e.to_string())?;
            copy.segment(segment, &stretch, source, source.side(), target)?;
            continue;
        }
        let mut first = 0;
        for pages in &request.chunks {
            let chunk = first..first + pages;
            let mut stretch = route.stretch(chunk.clone(), request.pages);
            (mistake.stretch)(&mut stretch, &chunk);
            let items = source.of_items(first as usize..chunk.end as usize);
            copy.segment(segment, &stretch, source, items, target)?;
            first = chunk.end;
        }
    }
    Ok(copy.bytes)
}

struct Copy {
    prefill: Rank,
    bytes: u64,
}

impl Copy {
    /// Both ways of walking a segment, which must name the same bytes; then writes them.
    fn segment(
        &mut self,
        segment: &CopySegment,
        stretch: &Stretch,
        source: &Table<Coordinate>,
        items: Items<'_>,
        target: &mut Table<Written>,
    ) -> Result<(), String> {
        let misfit = |e: transport_core::disagg::topology::Misfit| e.to_string();
        let copies = segment.copies(stretch, items, target.side()).map_err(misfit)?;
        let pairs: Vec<_> = copies.flat_map(|copy| bytes_of_copy(&copy)).collect();
        let from = segment.source_spans(stretch, items).map_err(misfit)?;
        let to = segment.target_spans(stretch, target.side()).map_err(misfit)?;
        check_streams(&pairs, &from, &to)?;
        pairs.into_iter().try_for_each(|(from, to)| self.byte(source, from, target, to))
    }

    fn byte(
        &mut self,
        source: &Table<Coordinate>,
        (buffer, byte): (usize, u64),
        target: &mut Table<Written>,
        (to_buffer, to_byte): (usize, u64),
    ) -> Result<(), String> {
        let outside = || format!("{} reads or writes outside", self.prefill);
        let read = source.memory.get(buffer).and_then(|bytes| bytes.get(byte as usize));
        let read = *read.ok_or_else(outside)?;
        let slot =
            target.memory.get_mut(to_buffer).and_then(|bytes| bytes.get_mut(to_byte as usize));
        match slot.ok_or_else(outside)?.replace((self.prefill, read)) {
            Some(before) => Err(format!("written by {} and by {}", before.0, self.prefill)),
            None => {
                self.bytes += 1;
                Ok(())
            }
        }
    }
}

type Byte = (usize, u64);

fn bytes_of_copy(copy: &StridedCopy) -> Vec<(Byte, Byte)> {
    let runs = (0..copy.count).flat_map(|r| (0..copy.run).map(move |byte| (r, byte)));
    let pair = |(r, byte)| {
        let source = copy.source + r * copy.source_stride + byte;
        let target = copy.target + r * copy.target_stride + byte;
        ((copy.source_buffer, source), (copy.target_buffer, target))
    };
    runs.map(pair).collect()
}

/// The two sides' streams must be the copies, whole and in any two pieces.
fn check_streams(
    pairs: &[(Byte, Byte)],
    from: &BlockSpans<'_>,
    to: &BlockSpans<'_>,
) -> Result<(), String> {
    let all = pairs.len() as u64;
    if (from.remaining(), to.remaining()) != (all, all) {
        return Err("streams of another length than the copies".into());
    }
    for split in [0, all / 3, all / 2 + 1, all, all + 1] {
        let pieces = |spans: &BlockSpans<'_>| {
            let (head, tail) = (spans.clone().range(0, split), spans.clone().range(split, all));
            bytes_of_spans(head.chain(tail)).collect::<Vec<_>>()
        };
        if !pieces(from).into_iter().zip(pieces(to)).eq(pairs.iter().copied()) {
            return Err(format!("the two sides' streams, cut at {split}, are not the copies"));
        }
    }
    Ok(())
}

fn bytes_of_spans(spans: impl Iterator<Item = Span>) -> impl Iterator<Item = Byte> {
    spans.flat_map(|span| (span.offset..span.offset + span.len).map(move |b| (span.buffer, b)))
}

// What a rank holds, worked out from the layout's words.

/// Whether tp rank `rank` holds unit `unit`.
fn holds(unit: u32, units: u32, tp: u32, rank: u32) -> bool {
    if tp <= units { unit * tp / units == rank } else { rank * units / tp == unit }
}

/// One item of one buffer, byte by byte. `first` is its first token.
fn item(
    component: &Component,
    (tp, rank): (u32, u32),
    (part, layer, tensor): (Part, u32, usize),
    first: u64,
) -> Vec<Coordinate> {
    let mut bytes = vec![];
    let mut unit_of_token = |token: u64, sharded: usize, unit: u32| {
        let len = component.tensors[tensor][sharded].unit_bytes;
        let token = first + token;
        bytes.extend((0..len).map(|byte| Coordinate {
            part,
            layer,
            tensor,
            sharded,
            unit,
            token,
            byte,
        }));
    };
    let tensor = &component.tensors[tensor];
    let held = |sharded: usize| {
        let units = tensor[sharded].units;
        (0..units).filter(move |unit| holds(*unit, units, tp, rank))
    };
    let tokens = 0..u64::from(component.tokens);
    match component.axes {
        Axes::TokensUnits | Axes::Units => tokens.for_each(|token| {
            (0..tensor.len()).for_each(|s| held(s).for_each(|u| unit_of_token(token, s, u)));
        }),
        Axes::UnitsTokens => (0..tensor.len()).for_each(|s| {
            held(s).for_each(|u| tokens.clone().for_each(|token| unit_of_token(token, s, u)));
        }),
    }
    bytes
}

/// Layers of a stage that have the component.
fn layers_of(layout: &Layout, component: &Component, pp: u32) -> Vec<u32> {
    let start: u32 = layout.stages[..pp as usize].iter().sum();
    let stage = start..start + layout.stages[pp as usize];
    component.layers.iter().copied().filter(|layer| stage.contains(layer)).collect()
}

/// One buffer of a rank's table: bytes of an item, and those of every item of the request's list.
struct Buffer {
    item_bytes: u64,
    items: Vec<Vec<Coordinate>>,
}

fn content(
    layout: &Layout,
    rank: Rank,
    part: Part,
    component: &Component,
    firsts: &[u64],
) -> Vec<Buffer> {
    let layers = layers_of(layout, component, rank.pp);
    let buffers = (0..component.tensors.len()).flat_map(|t| layers.iter().map(move |l| (t, *l)));
    let bytes = |(tensor, layer)| {
        let of = |first: u64| item(component, (layout.tp, rank.tp), (part, layer, tensor), first);
        let items = firsts.iter().map(|first| of(*first)).collect();
        Buffer { item_bytes: of(0).len() as u64, items }
    };
    buffers.map(bytes).collect()
}

/// Item numbers of a list: in order, with jumps, or backwards.
fn item_numbers(items: usize, scatter: u32) -> Vec<u32> {
    let forward = (0..items as u32).map(|i| i + i / scatter);
    if scatter == 5 { forward.rev().collect() } else { forward.collect() }
}

fn table<B: Clone>(
    content: &[Buffer],
    request: &Request,
    items: usize,
    empty: B,
    fill: impl Fn(Coordinate) -> B,
) -> Table<B> {
    let numbers = item_numbers(items, request.scatter);
    let (mut shapes, mut memory) = (vec![], vec![]);
    for buffer in content {
        let item_bytes = buffer.item_bytes;
        let shape = BufferShape { offset: 3, stride: item_bytes + request.gap, item_bytes };
        let end = 3 + shape.stride * (2 * items as u64 + 1);
        let mut bytes = vec![empty.clone(); end as usize];
        for (number, item) in numbers.iter().zip(&buffer.items) {
            let start = (shape.offset + u64::from(*number) * shape.stride) as usize;
            let filled = item.iter().map(|coordinate| fill(*coordinate));
            bytes.splice(start..start + item.len(), filled);
        }
        shapes.push(shape);
        memory.push(bytes);
    }
    Table { shapes, items: numbers, memory }
}

fn source_tables(
    topology: &Topology,
    rank: Rank,
    request: &Request,
) -> BTreeMap<Part, Table<Coordinate>> {
    let (from, to) = (topology.layout(Side::Prefill), topology.layout(Side::Decode));
    let stranger =
        Coordinate { part: Part::Aux, layer: 0, tensor: 0, sharded: 0, unit: 0, token: 0, byte: 0 };
    let tables = from.components().map(|(part, component)| {
        let items = match part {
            Part::State(k) => {
                let there = tokens(request.state[usize::from(k)], &to.state[usize::from(k)]);
                there.div_ceil(component.tokens.into()) as u32
            }
            _ => request.chunks.iter().sum(),
        };
        let firsts: Vec<u64> = (0..items).map(|item| tokens(item, component)).collect();
        let content = content(from, rank, part, component, &firsts);
        (part, table(&content, request, firsts.len(), stranger, |coordinate| coordinate))
    });
    tables.collect()
}

/// First tokens of the items in a decode rank's list.
fn target_firsts(
    layout: &Layout,
    rank: Rank,
    part: Part,
    component: &Component,
    request: &Request,
) -> Vec<u64> {
    let items: Vec<u32> = match part {
        Part::State(k) => (0..request.state[usize::from(k)]).collect(),
        _ => {
            let held = |page: &u32| page_owner(*page, request.pages, layout.cp) == rank.cp;
            (0..request.pages).filter(held).collect()
        }
    };
    items.into_iter().map(|item| tokens(item, component)).collect()
}

fn target_tables(layout: &Layout, rank: Rank, request: &Request) -> BTreeMap<Part, Table<Written>> {
    let tables = layout.components().map(|(part, component)| {
        let firsts = target_firsts(layout, rank, part, component, request);
        let content = content(layout, rank, part, component, &firsts);
        (part, table(&content, request, firsts.len(), None, |_| None))
    });
    tables.collect()
}

/// What a decode rank's memory must hold in the end.
fn expected(
    layout: &Layout,
    rank: Rank,
    part: Part,
    component: &Component,
    like: &Table<Written>,
    request: &Request,
) -> Vec<Vec<Option<Coordinate>>> {
    let firsts = target_firsts(layout, rank, part, component, request);
    let content = content(layout, rank, part, component, &firsts);
    let filled = table(&content, request, like.items.len(), None, Some);
    filled.memory
}
