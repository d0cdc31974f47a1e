//! What each rank of a small engine holds, worked out from the words of the layout, byte by byte.

use std::collections::BTreeMap;

use transport_core::disagg::topology::{Axes, Component, Layout, Rank, Side, Topology, page_owner};
use transport_core::memory::BufferShape;
use transport_core::transfer::Part;

use crate::world::Request;

/// What a byte is, in the whole model: not where it lies.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Coordinate {
    part: Part,
    layer: u32,
    tensor: usize,
    sharded: usize,
    unit: u32,
    /// Token of the request; for slots, the number of the slot.
    pub(crate) token: u64,
    byte: u32,
}

/// A byte of a decode rank: who wrote it, and what.
pub(crate) type Written = Option<(Rank, Coordinate)>;

/// One rank's table of one component, and the request's items in it.
pub(crate) struct Table<B> {
    pub(crate) shapes: Vec<BufferShape>,
    pub(crate) items: Vec<u32>,
    pub(crate) memory: Vec<Vec<B>>,
}

pub(crate) fn tokens(items: u32, component: &Component) -> u64 {
    u64::from(items) * u64::from(component.tokens)
}

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
        let shape = BufferShape::new(3, item_bytes + request.gap, item_bytes);
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

pub(crate) fn source_tables(
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

pub(crate) fn target_tables(
    layout: &Layout,
    rank: Rank,
    request: &Request,
) -> BTreeMap<Part, Table<Written>> {
    let tables = layout.components().map(|(part, component)| {
        let firsts = target_firsts(layout, rank, part, component, request);
        let content = content(layout, rank, part, component, &firsts);
        (part, table(&content, request, firsts.len(), None, |_| None))
    });
    tables.collect()
}

/// What a decode rank's memory must hold in the end.
pub(crate) fn expected(
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
