//! Two engines in miniature. Every byte of a cache is its coordinate; every route between all ranks
//! of two groups is carried out byte by byte; then every byte of every decode rank is looked at.
//!
//! What a rank holds is worked out a second time, in `holdings`, so that nothing agrees with the
//! planner because it is the planner.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use transport_core::disagg::topology::{Misfit, Rank, Route, Side, Stretch, Topology, blocks};
use transport_core::memory::{BufferShape, Segment, Segments, Span, Spans};
use transport_core::transfer::Part;

use crate::holdings::{Coordinate, Table, Written, expected, source_tables, target_tables, tokens};

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
    for (part, source) in &sources {
        if route.segments_of(*part).next().is_none() {
            continue;
        }
        let target = targets.get_mut(part).unwrap();
        let whole = |items: &[u32]| items.to_vec();
        if *part != Part::Kv {
            let (from, to) = (whole(&source.items), whole(&target.items));
            let common = route.common_blocks(*part, from.len(), to.len());
            let common = common.map_err(|e| e.to_string())? as usize;
            copy.part(route, *part, source, (&from, 0..common), target, (&to, 0..common))?;
            continue;
        }
        let mut first = 0;
        for pages in &request.chunks {
            let chunk = first..first + pages;
            let mut stretch = route.stretch(chunk.clone(), request.pages);
            (mistake.stretch)(&mut stretch, &chunk);
            let from = &source.items[first as usize..chunk.end as usize];
            let to = whole(&target.items);
            let (here, there) = (stretch.source(), stretch.target());
            copy.part(route, *part, source, (from, here), target, (&to, there))?;
            first = chunk.end;
        }
    }
    Ok(copy.bytes)
}

struct Copy {
    prefill: Rank,
    bytes: u64,
}

/// A list of items, and which of its blocks are copied.
type Blocks<'a> = (&'a [u32], Range<usize>);

impl Copy {
    /// Both ways of walking a part, which must name the same bytes; then writes them.
    fn part(
        &mut self,
        route: &Route,
        part: Part,
        source: &Table<Coordinate>,
        from: Blocks<'_>,
        target: &mut Table<Written>,
        to: Blocks<'_>,
    ) -> Result<(), String> {
        let misfit = |e: Misfit| e.to_string();
        let here = route.view(Side::Prefill, part, &source.shapes).map_err(misfit)?;
        let there = route.view(Side::Decode, part, &target.shapes).map_err(misfit)?;
        let (from, to) = (
            blocks(from.0, route.blocks(Side::Prefill, part), from.1).collect::<Vec<_>>(),
            blocks(to.0, route.blocks(Side::Decode, part), to.1).collect::<Vec<_>>(),
        );
        if from.len() != to.len() {
            return Err(format!("{} blocks to {}", from.len(), to.len()));
        }
        let (here, there) = (View::new(here), View::new(there));
        let local = (&here.shapes[..], &from[..]);
        let remote = (&there.shapes[..], &to[..]);
        let segments = Segments::new(0..here.shapes.len(), local, remote);
        let segments = segments.ok_or("views that do not match")?;
        let pairs: Vec<_> =
            segments.flat_map(|s| bytes_of_segment(&s, &here.buffers, &there.buffers)).collect();
        check_streams(&pairs, (&here, &from), (&there, &to))?;
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

/// A view's buffers, as they are numbered in the table, and their shapes.
struct View {
    buffers: Vec<usize>,
    shapes: Vec<BufferShape>,
}

impl View {
    fn new(parts: Vec<(usize, BufferShape)>) -> Self {
        let (buffers, shapes) = parts.into_iter().unzip();
        Self { buffers, shapes }
    }
}

fn bytes_of_segment(segment: &Segment, here: &[usize], there: &[usize]) -> Vec<(Byte, Byte)> {
    let (source, target) = (here[segment.buffer], there[segment.buffer]);
    let pair = |byte| ((source, segment.local + byte), (target, segment.remote + byte));
    (0..segment.len).map(pair).collect()
}

/// The two sides' streams must be the pairs, whole and in any two pieces.
fn check_streams(
    pairs: &[(Byte, Byte)],
    from: (&View, &[u32]),
    to: (&View, &[u32]),
) -> Result<(), String> {
    let all = pairs.len() as u64;
    for split in [0, all / 3, all / 2 + 1, all, all + 1] {
        let pieces = |(view, items): (&View, &[u32])| {
            let spans = Spans::new(&view.shapes, 0..view.shapes.len(), items);
            let (head, tail) = (spans.clone().range(0, split), spans.range(split, all));
            let spans: Vec<Span> = head.chain(tail).collect();
            spans.into_iter().flat_map(|s| bytes_of_span(s, &view.buffers)).collect::<Vec<_>>()
        };
        if !pieces(from).into_iter().zip(pieces(to)).eq(pairs.iter().copied()) {
            return Err(format!("the two sides' streams, cut at {split}, are not the copies"));
        }
    }
    Ok(())
}

fn bytes_of_span(span: Span, buffers: &[usize]) -> Vec<Byte> {
    (span.offset..span.offset + span.len).map(|byte| (buffers[span.buffer], byte)).collect()
}
