//! A router that sends a request to another data-parallel rank than its room implies: both sides know
//! at once, and why.

use std::time::Duration;

use transport_core::disagg::directory::Misrouted;
use transport_core::disagg::node::{Lease, NodeConfig, Open, Receive};
use transport_core::disagg::room::RoomState;
use transport_core::disagg::topology::{Component, Layout, Rank, Side as Of, Topology};
use transport_core::disagg::{Cause, DType, KvLayout, RoomId};
use transport_core::fabric::PeerId;
use transport_core::sim::{SimConfig, SimNet};
use transport_core::wire::{Message, Role};

use super::group::{rank_config, rank_tables};
use super::hall::{Hall, SOON, closes, ready, say};
use super::look::received;
use super::world::Side;

/// The room's rank is 1; it is routed to rank 0.
const ROOM: u64 = 5;
const MISROUTED: Cause = Cause::Misrouted { routed: 0, implied: 1 };

fn engine(dp: u32) -> Layout {
    let kv = Component::kv(KvLayout::Nhd, 4, 2, 8, 1);
    Layout { dtype: DType::Int8, dp, tp: 1, cp: 1, stages: vec![1], kv, state: vec![] }
}

/// Two data-parallel ranks of a prefill engine that follows rooms, and one decode rank.
fn world(change: impl Fn(&mut NodeConfig)) -> Hall {
    let (prefill, decode) = (engine(2), engine(1));
    let topology = Topology::new(prefill.clone(), decode.clone()).unwrap();
    let net = SimNet::new(2, SimConfig::checked());
    let side = |endpoint, role, of, layout: &Layout, dp| {
        let rank = Rank { dp, tp: 0, pp: 0, cp: 0 };
        let mut config = rank_config(role, layout, rank);
        config.follow_room = role == Role::Prefill;
        change(&mut config);
        Side::over(endpoint, config, rank_tables(&topology, of, rank))
    };
    let sender = |dp| side(net.endpoint(), Role::Prefill, Of::Prefill, &prefill, dp);
    let senders = vec![sender(0), sender(1)];
    let mut endpoint = net.endpoint();
    let peers = senders.iter().map(|side| endpoint.dial(side.address)).collect();
    let receiver = side(endpoint, Role::Decode, Of::Decode, &decode, 0);
    let mut hall =
        Hall { net, decode: receiver, others: vec![], prefill: senders, peers, target: vec![] };
    hall.run_for(SOON);
    hall
}

fn receive(hall: &mut Hall, from: PeerId, room: u64) {
    let (room, pages) = (RoomId(room), Lease::new([3]));
    let receive = Receive { room, peer: from, pages, state: vec![], prefix_pages: 0, attempt: 0 };
    hall.decode.client.receive(receive).unwrap();
}

/// Hands `room` over from where it is to where it is looked for.
#[track_caller]
fn serves(hall: &mut Hall, room: u64) {
    let by = (room % 2) as usize;
    hall.decode.done.clear();
    receive(hall, hall.peers[by], room);
    hall.prefill[by].open(room);
    hall.prefill[by].send_last(room, &[4], &[], b"served");
    hall.run_for(SOON);
    assert_eq!(received(&hall.decode.done, room), Ok(b"served".to_vec()));
}

#[test]
fn s2_both_sides_know_at_once_that_a_request_is_at_another_rank_than_its_room_implies() {
    let mut hall = world(|_| {});
    let from = hall.peers[1];
    receive(&mut hall, from, ROOM);
    hall.run_for(SOON);
    assert!(hall.decode.done.is_empty());
    // The rank that it was routed to opens it.
    let start = hall.net.now();
    hall.prefill[0].open(ROOM);
    let end = start + SOON;
    assert!(hall.run_until(end, |hall| !hall.decode.done.is_empty()), "decode waits on");
    let took = hall.net.now() - start;
    assert!(took < Duration::from_millis(1), "{took:?}");
    assert_eq!(closes(&hall.prefill[0], ROOM), [Err(MISROUTED)]);
    assert_eq!(received(&hall.decode.done, ROOM), Err(MISROUTED));
    let said = MISROUTED.to_string();
    assert!(said.contains("rank 0") && said.contains("rank 1"), "{said}");
    hall.run_for(SOON);
    (6..8).for_each(|room| serves(&mut hall, room));
}

#[test]
fn s2_a_decode_engine_that_is_told_before_its_scheduler_remembers_it_once() {
    let mut hall = world(|_| {});
    hall.prefill[0].open(ROOM);
    hall.run_for(SOON);
    let from = hall.peers[1];
    receive(&mut hall, from, ROOM);
    hall.run_for(SOON);
    assert_eq!(received(&hall.decode.done, ROOM), Err(MISROUTED));
    // The router has learnt: the rank that is right may have heard that decode gave up, once.
    hall.prefill[1].open(ROOM);
    hall.run_for(SOON);
    serves(&mut hall, ROOM);
}

#[test]
fn s2_a_request_received_from_the_rank_it_was_routed_to_fails_there_as_well() {
    let mut hall = world(|_| {});
    let from = hall.peers[0];
    receive(&mut hall, from, ROOM);
    hall.run_for(SOON);
    hall.prefill[0].open(ROOM);
    hall.run_for(SOON);
    assert_eq!(closes(&hall.prefill[0], ROOM), [Err(MISROUTED)]);
    assert_eq!(received(&hall.decode.done, ROOM), Err(MISROUTED));
}

#[test]
fn s2_a_rank_that_the_router_named_wins_over_the_room() {
    let mut hall = world(|_| {});
    let open = || Open { room: RoomId(ROOM) };
    let from = hall.peers[0];
    receive(&mut hall, from, ROOM);
    hall.prefill[0].client.open_routed(open(), 0).unwrap();
    hall.prefill[0].send_last(ROOM, &[4], &[], b"named");
    hall.run_for(SOON);
    assert_eq!(received(&hall.decode.done, ROOM), Ok(b"named".to_vec()));
    // Named, and sent elsewhere all the same.
    hall.prefill[0].client.open_routed(Open { room: RoomId(8) }, 1).unwrap();
    hall.run_for(SOON);
    assert_eq!(closes(&hall.prefill[0], 8), [Err(MISROUTED)]);
}

#[test]
fn s2_force_query_on_both_sides_lets_any_rank_serve() {
    let mut hall = world(|config| config.force_query = true);
    let from = hall.peers[0];
    receive(&mut hall, from, ROOM);
    hall.prefill[0].open(ROOM);
    hall.prefill[0].send_last(ROOM, &[4], &[], b"asked");
    hall.run_for(SOON);
    assert_eq!(received(&hall.decode.done, ROOM), Ok(b"asked".to_vec()));
}

#[test]
fn s2_a_decode_engine_that_asks_the_directory_does_not_listen_to_ranks_that_do_not() {
    let mut hall = world(|config| config.force_query = config.role == Role::Decode);
    let from = hall.peers[1];
    receive(&mut hall, from, ROOM);
    hall.prefill[0].open(ROOM);
    hall.run_for(SOON);
    assert_eq!(closes(&hall.prefill[0], ROOM), [Err(MISROUTED)]);
    assert!(hall.decode.done.is_empty() && hall.decode.node.stats().foreign == 1);
    let handle = hall.prefill[1].open(ROOM);
    hall.run_for(SOON);
    assert_eq!(handle.poll(), RoomState::WaitingForInput);
}

#[test]
fn s2_a_rank_speaks_for_itself_and_not_for_another_nor_for_another_engine() {
    let mut hall = world(|config| config.engine += u64::from(config.rank) * 100);
    let target = ready(&hall.prefill[0]);
    let from = hall.peers[1];
    receive(&mut hall, from, ROOM);
    hall.run_for(SOON);
    for (routed, implied) in [(1, 0), (u32::MAX, 1)] {
        let word = Misrouted { room: RoomId(ROOM), routed, implied };
        say(&mut hall.prefill[0], target, &Message::Misrouted(word));
    }
    hall.run_for(SOON);
    assert_eq!(hall.decode.node.stats().foreign, 2);
    // A room of the same number in an engine of its own is no concern of this one.
    hall.prefill[0].open(ROOM);
    hall.run_for(SOON);
    assert_eq!(closes(&hall.prefill[0], ROOM), [Err(MISROUTED)]);
    assert!(hall.decode.done.is_empty());
}
