//! Engines of several ranks: whatever their shapes, what arrives is right to the byte at every rank;
//! and a room ends alike on all of them.

use std::time::Duration;

use transport_core::disagg::node::{Completion, NodeError, NodeEvent, Open};
use transport_core::disagg::room::RoomState;
use transport_core::disagg::topology::{Component, Layout, Rank, Sharded, Side, Topology};
use transport_core::disagg::{Cause, DType, Field, KvLayout, Mismatch, RoomId};
use transport_core::link::Link;
use transport_core::sim::{SimConfig, SimNet};
use transport_core::wire::Role;

use super::group::{AUX, World, rank_config, rank_tables};
use super::world::next_event;

const MINUTE: Duration = Duration::from_secs(60);

/// 4 layers of 4 heads, pages of 4 tokens, and a recurrent state in two of the layers.
fn engine(layout: KvLayout) -> Layout {
    let heads = if layout == KvLayout::Mla { 1 } else { 4 };
    let joined = [4, 8].map(|units| Sharded { units, unit_bytes: 3 }).to_vec();
    let state = Component::slots(vec![1, 2], vec![joined, vec![Sharded::replicated(5)]]);
    let kv = Component::kv(layout, 4, heads, 6, 4);
    Layout { dtype: DType::BFloat16, dp: 1, tp: 1, cp: 1, stages: vec![4], kv, state: vec![state] }
}

fn split(layout: &Layout, tp: u32, stages: &[u32]) -> Layout {
    Layout { tp, stages: stages.to_vec(), ..layout.clone() }
}

fn is_success(completion: &Completion) -> bool {
    match completion {
        Completion::Received { result, .. } => result.as_ref().is_ok_and(|aux| aux == AUX),
        Completion::Closed { result, .. } | Completion::ChunkSent { result, .. } => result.is_ok(),
        _ => false,
    }
}

/// A request of so many tokens, on its way through two engines.
struct Request {
    world: World,
    tokens: u32,
    granted: Vec<u32>,
    sent: Vec<u32>,
}

impl Request {
    fn new((prefill, decode): (&Layout, &Layout), sim: SimConfig, tokens: u32) -> Self {
        let pages = |layout: &Layout| 0..tokens.div_ceil(layout.kv.tokens);
        let granted = pages(decode).map(|page| (page * 7 + 3) % 24).collect();
        let sent = pages(prefill).map(|page| (page * 5 + 1) % 24).collect();
        Self { world: World::new(prefill, decode, sim), tokens, granted, sent }
    }

    /// All decode ranks receive it before it is opened.
    fn begin(&mut self) {
        self.world.receive(9, &self.granted);
        self.world.open(9);
    }

    /// Decode ranks receive it one after another, while it is open already.
    fn begin_in_order(&mut self, ranks: impl IntoIterator<Item = usize>) {
        self.world.open(9);
        for rank in ranks {
            self.world.receive_at(rank, 9, &self.granted, 0);
            self.world.run_for(Duration::from_millis(1));
        }
    }

    /// Sends it in chunks of so many pages, and looks at every byte.
    fn finish(mut self, chunks: &[usize]) {
        let (mut from, tokens) = (0, self.world.page_tokens(Side::Prefill));
        for pages in chunks {
            let (chunk, to) = (from..from + pages, from + pages);
            let first = from as u64 * tokens;
            self.world.send(9, first, &self.sent[chunk], to == self.sent.len());
            self.world.run_for(Duration::from_millis(5));
            from = to;
        }
        let (senders, end) = (self.world.sending(), self.world.net.now() + MINUTE);
        let all = |w: &World| {
            let sent: usize = w.prefill.iter().map(|m| m.done.len()).sum();
            w.decode.iter().all(|m| m.done.len() == 1) && sent == senders * (chunks.len() + 1)
        };
        let ended = self.world.run_until(end, all);
        for member in self.world.prefill.iter().chain(&self.world.decode) {
            let (rank, done) = (member.rank, &member.done);
            assert!(ended && done.iter().all(is_success), "{rank}, {chunks:?}: {done:?}");
        }
        self.world.check(9, &self.granted, self.tokens.into());
    }
}

/// Hands over a request of 12 tokens in two chunks, and looks at every byte.
fn hand_over(prefill: &Layout, decode: &Layout, sim: SimConfig) {
    let mut request = Request::new((prefill, decode), sim, 12);
    let (pages, first) = (request.sent.len(), request.sent.len().div_ceil(2));
    request.begin();
    let chunks = [first, pages - first];
    request.finish(if pages > 1 { &chunks } else { &chunks[..1] });
}

fn both_ways(one: &Layout, other: &Layout) {
    for sim in [SimConfig::checked(), SimConfig::rdma()] {
        hand_over(one, other, sim.clone());
        hand_over(other, one, sim);
    }
}

#[test]
fn p1_equal_ranks_each_have_one_counterpart() {
    let engine = engine(KvLayout::Nhd);
    both_ways(&split(&engine, 2, &[4]), &split(&engine, 2, &[4]));
}

#[test]
fn p1_more_tensor_parallel_ranks_on_one_side() {
    for layout in [KvLayout::Nhd, KvLayout::Hnd, KvLayout::Mla] {
        let engine = engine(layout);
        both_ways(&split(&engine, 4, &[4]), &split(&engine, 2, &[4]));
        both_ways(&engine, &split(&engine, 4, &[4]));
    }
}

#[test]
fn p1_pipeline_stages_cut_differently() {
    let engine = engine(KvLayout::Nhd);
    both_ways(&split(&engine, 1, &[1, 3]), &engine);
    both_ways(&split(&engine, 2, &[2, 2]), &split(&engine, 4, &[1, 1, 2]));
}

#[test]
fn p1_context_parallel_ranks_send_shares_of_every_chunk() {
    let engine = engine(KvLayout::Nhd);
    let prefill = Layout { cp: 2, ..split(&engine, 2, &[4]) };
    hand_over(&prefill, &engine, SimConfig::checked());
    hand_over(&prefill, &engine, SimConfig::rdma());
}

/// 40 tokens are 10 pages here and there, of which each decode rank has 5.
#[test]
fn p1_context_parallel_ranks_hold_shares_of_the_request_whoever_grants_first() {
    let engine = engine(KvLayout::Nhd);
    let decode = Layout { cp: 2, ..engine.clone() };
    for order in [[0, 1], [1, 0]] {
        let mut request = Request::new((&engine, &decode), SimConfig::checked(), 40);
        request.begin_in_order(order);
        request.finish(&[5, 5]);
    }
}

/// Chunks that begin behind all that one of two decode ranks holds, and chunks too short for all of
/// two prefill ranks.
#[test]
fn p1_a_rank_to_which_nothing_of_a_chunk_goes_is_none_the_worse() {
    let engine = engine(KvLayout::Nhd);
    let two = Layout { cp: 2, ..engine.clone() };
    for prefill in [&engine, &two] {
        let mut request = Request::new((prefill, &two), SimConfig::checked(), 40);
        request.begin();
        request.finish(&[4, 4, 2]);
    }
    let mut large = two;
    large.kv.tokens = 8;
    hand_over(&large, &engine, SimConfig::checked());
}

#[test]
fn p1_pages_of_other_sizes() {
    for layout in [KvLayout::Nhd, KvLayout::Hnd] {
        let engine = engine(layout);
        let mut large = split(&engine, 2, &[4]);
        large.kv.tokens = 8;
        both_ways(&engine, &large);
    }
}

/// Runs until all ranks have ended the room: their causes.
fn causes(world: &mut World) -> Vec<Cause> {
    let (senders, end) = (world.sending(), world.net.now() + Duration::from_secs(90));
    let closed = |w: &World| {
        let ends = |m: &&super::group::Member| m.done.iter().any(is_end);
        w.prefill.iter().chain(&w.decode).filter(ends).count() == senders + w.decode.len()
    };
    assert!(world.run_until(end, closed), "a room without an end");
    let members = world.prefill.iter().chain(&world.decode);
    members.flat_map(|member| member.done.iter().filter_map(cause)).collect()
}

fn is_end(completion: &Completion) -> bool {
    matches!(completion, Completion::Received { .. } | Completion::Closed { .. })
}

fn cause(completion: &Completion) -> Option<Cause> {
    match completion {
        Completion::Received { result, .. } => result.as_ref().err().map(|failure| failure.cause),
        Completion::Closed { result, .. } => result.as_ref().err().map(|failure| failure.cause),
        _ => None,
    }
}

#[test]
fn r3_a_cancel_at_one_rank_ends_the_room_on_every_rank() {
    let engine = engine(KvLayout::Nhd);
    for (prefill, decode) in [(4, 2), (1, 4), (4, 1)] {
        for at_prefill in [false, true] {
            let (from, to) = (split(&engine, prefill, &[4]), split(&engine, decode, &[2, 2]));
            let mut world = World::new(&from, &to, SimConfig::checked());
            world.receive(3, &[1, 2, 3]);
            world.open(3);
            world.send(3, 0, &[4], false);
            world.run_for(Duration::from_millis(20));
            let side = if at_prefill { &world.prefill } else { &world.decode };
            side[0].client.cancel(RoomId(3)).unwrap();
            let causes = causes(&mut world);
            let all = world.sending() + world.decode.len();
            assert_eq!(causes, vec![Cause::Cancelled; all]);
        }
    }
}

#[test]
fn r1_a_writer_that_never_comes_fails_the_room_in_time_everywhere() {
    let engine = engine(KvLayout::Nhd);
    let mut world = World::new(&split(&engine, 2, &[4]), &engine, SimConfig::checked());
    world.receive(3, &[1, 2, 3]);
    world.open(3);
    world.net.crash(world.prefill[1].address);
    world.prefill.truncate(1);
    let causes = causes(&mut world);
    assert_eq!(causes.len(), 2, "{causes:?}");
}

#[test]
fn r6_a_writer_with_two_links_is_reached_by_the_one_that_is_left() {
    let engine = engine(KvLayout::Nhd);
    let mut world = World::new(&split(&engine, 2, &[4]), &engine, SimConfig::checked());
    // The writer that the scheduler does not name, and is found by its rank.
    let address = world.prefill[1].address;
    let newer = world.decode[0].node.endpoint_mut().dial(address);
    world.run_for(Duration::from_secs(1));
    world.decode[0].node.endpoint_mut().close(newer);
    // Sooner than it is dialled again.
    world.run_for(Duration::from_millis(4));
    world.receive(3, &[1, 2, 3]);
    let granted = world.prefill[1].client.open(Open { room: RoomId(3) }).unwrap();
    world.run_for(Duration::from_millis(4));
    assert_eq!(granted.poll(), RoomState::WaitingForInput);
}

#[test]
fn w2_engines_that_cannot_be_mapped_refuse_each_other_with_both_values() {
    let engine = engine(KvLayout::Nhd);
    let (three, two) = (split(&engine, 3, &[4]), split(&engine, 2, &[4]));
    let net = SimNet::new(1, SimConfig::checked());
    let mut heads = engine.clone();
    heads.kv = Component::kv(KvLayout::Nhd, 4, 6, 6, 4);
    heads.state.clear();
    // Ranks whose tables are right for themselves: six heads over three ranks, and four over two.
    let three = Layout { kv: heads.kv.clone(), state: vec![], ..three };
    let two = Layout { state: vec![], ..two };
    let node = |role, layout: &Layout, peer: Option<transport_core::sim::NodeId>| {
        let itself = Topology::new(layout.clone(), layout.clone()).unwrap();
        let mut endpoint = net.endpoint();
        peer.into_iter().for_each(|peer| _ = endpoint.dial(peer));
        let rank = Rank { dp: 0, tp: 0, pp: 0, cp: 0 };
        let (address, tables) = (endpoint.node(), rank_tables(&itself, Side::Decode, rank));
        let config = rank_config(role, layout, rank);
        let made = transport_core::disagg::node::Node::new(endpoint, tables, config);
        (made.unwrap(), address)
    };
    let ((mut prefill, prefills, _), address) = node(Role::Prefill, &three, None);
    let ((mut decode, decodes, _), _) = node(Role::Decode, &two, Some(address));
    let mut events = (None, None);
    for _ in 0..10_000 {
        let now = net.now();
        decode.progress(now);
        prefill.progress(now);
        events.0 = events.0.or(next_event(&decodes));
        events.1 = events.1.or(next_event(&prefills));
        if events.0.is_some() && events.1.is_some() {
            break;
        }
        net.advance_to(now + Duration::from_micros(10));
    }
    let mismatch = Mismatch { field: Field::Units, ours: 4, theirs: 6 };
    let is = |event: Option<NodeEvent>, expected: Mismatch| match event {
        Some(NodeEvent::PeerRefused { cause, .. }) => cause == Cause::Layout(expected),
        _ => false,
    };
    assert!(is(events.0, mismatch) && is(events.1, mismatch.swapped()));
}

#[test]
fn tables_that_are_not_the_ranks_are_refused_before_anybody_is_met() {
    let engine = split(&engine(KvLayout::Nhd), 2, &[4]);
    let itself = Topology::new(engine.clone(), engine.clone()).unwrap();
    let rank = Rank { dp: 0, tp: 1, pp: 0, cp: 0 };
    let tables = rank_tables(&itself, Side::Decode, rank);
    let node = |layout: &Layout, rank| {
        let endpoint = SimNet::new(1, SimConfig::checked()).endpoint();
        let config = rank_config(Role::Decode, layout, rank);
        transport_core::disagg::node::Node::new(endpoint, tables.clone(), config).map(drop)
    };
    assert!(node(&engine, rank).is_ok());
    let whole = split(&engine, 1, &[4]);
    let first = Rank { tp: 0, ..rank };
    assert_eq!(node(&whole, first).unwrap_err(), NodeError::Layout { rank: 0, part: 0 });
}
