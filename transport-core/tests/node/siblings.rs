//! The ranks of one decode engine end each room the same way, whatever becomes of one of them.

use std::time::Duration;

use transport_core::disagg::consensus::{Attempt, Decision, Report};
use transport_core::disagg::directory::Misrouted;
use transport_core::disagg::node::{Completion, Lease, NodeEvent, Receive};
use transport_core::disagg::room::RoomState;
use transport_core::disagg::topology::{Component, Layout, Rank, Side, Topology};
use transport_core::disagg::{Cause, DType, KvLayout, RoomId};
use transport_core::fabric::PeerId;
use transport_core::link::Link;
use transport_core::rng::Rng;
use transport_core::sim::{Faults, SimConfig};
use transport_core::wire::{Hello, Message, Role, encode};

use super::group::{AUX, Member, World, rank_config, rank_tables};
use super::scripted::Stage;

const SOON: Duration = Duration::from_millis(500);
const ROOM: RoomId = RoomId(7);
const FIRST: Attempt = Attempt { room: ROOM, number: 0 };

/// An engine of so many ranks.
fn tensor_parallel(tp: u32) -> Layout {
    let kv = Component::kv(KvLayout::Nhd, 4, 6, 6, 4);
    let (dtype, stages, state) = (DType::BFloat16, vec![4], vec![]);
    Layout { dtype, dp: 1, tp, cp: 1, stages, kv, state }
}

/// Engines of so many ranks, each with one counterpart: rank `n` of the one writes to rank `n` of
/// the other, and to nobody else.
fn pairs(ranks: u32) -> World {
    let layout = tensor_parallel(ranks);
    World::new(&layout, &layout, SimConfig::checked())
}

/// How the room ended at each decode rank; `None` where it has not.
fn ends(world: &World) -> Vec<Option<Result<(), Cause>>> {
    let end = |member: &Member| {
        let mut ends = member.done.iter().filter_map(|completion| match completion {
            Completion::Received { result: Ok(aux), .. } if aux == AUX => Some(Ok(())),
            Completion::Received { result: Err(failure), .. } => Some(Err(failure.cause)),
            _ => None,
        });
        let first = ends.next();
        assert_eq!(ends.next(), None, "{} ended twice", member.rank);
        first
    };
    world.decode.iter().map(end).collect()
}

fn hand_over(world: &World) {
    world.receive(ROOM.0, &[3]);
    world.open(ROOM.0);
    world.send(ROOM.0, 0, &[5], true);
}

/// The event that the scheduler of a decode rank is told and `wanted` holds for.
fn event(member: &Member, wanted: impl Fn(&NodeEvent) -> bool) -> Option<NodeEvent> {
    std::iter::from_fn(|| member.client.poll_event()).find(wanted)
}

/// Says something past a rank's node, as one gone wrong would. A decode rank's dialled peers are
/// numbered in order: the prefill ranks, then its coordinator.
fn say(member: &mut Member, peer: usize, message: &Message) {
    let mut bytes = vec![];
    encode(message, &mut bytes).unwrap();
    member.node.endpoint_mut().send(PeerId(peer as u32), &bytes).unwrap();
}

#[test]
fn r3_a_rank_that_has_everything_waits_for_one_that_lags() {
    let mut world = pairs(3);
    world.receive(ROOM.0, &[3]);
    world.open(ROOM.0);
    world.run_for(SOON);
    let slow = world.prefill[2].address;
    world.net.stop(slow);
    world.send(ROOM.0, 0, &[5], true);
    world.run_for(SOON);
    assert_eq!(ends(&world), [None; 3]);
    world.net.resume(slow);
    world.run_for(SOON);
    assert_eq!(ends(&world), [Some(Ok(())); 3]);
    world.check(ROOM.0, &[3], 4);
}

#[test]
fn r3_a_rank_that_never_hears_of_the_request_is_named_by_all_others() {
    for absent in [0, 1] {
        let mut world = pairs(2);
        world.receive_at(1 - absent, ROOM.0, &[3], 0);
        world.open(ROOM.0);
        world.send(ROOM.0, 0, &[5], true);
        world.run_for(Duration::from_secs(60));
        let cause = Some(Err(Cause::NotReady { rank: absent as u32, waited_ms: 40_000 }));
        assert_eq!(ends(&world)[1 - absent], cause, "rank {absent} is absent");
    }
}

#[test]
fn r3_a_rank_that_cannot_even_open_the_room_fails_it_everywhere_at_once() {
    let mut world = pairs(2);
    // Four pages; the pool has 24.
    world.receive_at(1, ROOM.0, &[3, 24], 0);
    world.receive_at(0, ROOM.0, &[3, 4], 0);
    world.run_for(SOON);
    let cause = Cause::ItemOutOfRange { part: 0, item: 24 };
    assert_eq!(ends(&world), [Some(Err(cause)); 2]);
}

#[test]
fn r3_a_rank_that_opens_late_is_told_what_was_decided_before() {
    let mut world = pairs(3);
    world.open(ROOM.0);
    world.receive_at(1, ROOM.0, &[3], 0);
    world.run_for(SOON);
    world.decode[1].client.cancel(ROOM).unwrap();
    world.run_for(SOON);
    world.receive_at(0, ROOM.0, &[3], 0);
    world.receive_at(2, ROOM.0, &[3], 0);
    world.run_for(SOON);
    assert_eq!(ends(&world), [Some(Err(Cause::Cancelled)); 3]);
    // Under its next number the same room is another.
    world.decode.iter_mut().for_each(|member| member.done.clear());
    (0..3).for_each(|rank| world.receive_at(rank, ROOM.0, &[3], 1));
    world.open(ROOM.0);
    world.send(ROOM.0, 0, &[5], true);
    world.run_for(SOON);
    assert_eq!(ends(&world), [Some(Ok(())); 3]);
    world.check(ROOM.0, &[3], 4);
}

#[test]
fn r3_a_rank_that_dies_fails_what_it_took_part_in_at_every_other_in_time() {
    for dead in [0, 2] {
        let mut world = pairs(3);
        world.receive(ROOM.0, &[3]);
        world.run_for(SOON);
        world.net.crash(world.decode[dead].address);
        world.decode.remove(dead);
        world.run_for(Duration::from_secs(20));
        for end in ends(&world) {
            assert!(matches!(end, Some(Err(Cause::PeerDown(_)))), "{end:?}, {dead} died");
        }
    }
}

#[test]
fn r3_ranks_end_alike_under_loss_repetition_and_cancels() {
    for seed in 0..40 {
        let mut world = pairs(3);
        let mut rng = Rng::new(seed);
        let rates = [100_000, 200_000, 300_000].map(|most| rng.below(most) as u32);
        let [drop_message, duplicate_message, reorder_message] = rates;
        let faults =
            Faults { drop_message, duplicate_message, reorder_message, ..Faults::default() };
        world.net.set_faults(faults);
        hand_over(&world);
        world.run_for(Duration::from_micros(rng.below(3000)));
        if rng.chance(500_000) {
            world.decode[rng.index(3)].client.cancel(ROOM).unwrap();
        }
        world.run_for(Duration::from_secs(120));
        let ends = ends(&world);
        let succeeded =
            |end: &Option<Result<(), Cause>>| end.expect("a room without an end").is_ok();
        let count = ends.iter().filter(|end| succeeded(end)).count();
        assert!(count == 0 || count == 3, "seed {seed}: {ends:?}");
    }
}

#[test]
fn r3_a_rank_that_fails_after_the_group_succeeded_is_reported_to_the_scheduler() {
    let mut world = pairs(2);
    hand_over(&world);
    world.run_for(SOON);
    assert_eq!(ends(&world), [Some(Ok(())); 2]);
    let cause = Cause::Undecided { waited_ms: 9 };
    let failed = Message::Report { attempt: FIRST, report: Report::Failed(cause) };
    say(&mut world.decode[1], 2, &failed);
    world.run_for(SOON);
    let is_lost = |event: &NodeEvent| matches!(event, NodeEvent::RankLost { .. });
    let lost = NodeEvent::RankLost { attempt: FIRST, rank: 1, cause };
    assert_eq!(event(&world.decode[0], is_lost), Some(lost));
}

#[test]
fn r3_a_rank_that_is_bound_does_not_fail_for_what_another_rank_of_the_prefill_side_says() {
    let mut world = pairs(2);
    let is_rank = |event: &NodeEvent| matches!(event, NodeEvent::PeerReady { rank: 1, .. });
    let to = match event(&world.prefill[1], is_rank) {
        Some(NodeEvent::PeerReady { peer, .. }) => peer,
        other => panic!("{other:?}"),
    };
    world.receive(ROOM.0, &[3]);
    world.open(ROOM.0);
    world.run_for(SOON);
    // All is there at rank 1, which says so; its coordinator hears it late, and then cannot be heard.
    world.net.stop(world.decode[0].address);
    world.send(ROOM.0, 0, &[5], true);
    world.run_for(SOON);
    world.net.set_faults(Faults { drop_message: 1_000_000, ..Faults::default() });
    world.net.resume(world.decode[0].address);
    let end = world.net.now() + SOON;
    assert!(world.run_until(end, |world| ends(world)[0].is_some()));
    assert_eq!(ends(&world), [Some(Ok(())), None]);
    world.net.set_faults(Faults::default());
    let misrouted = Misrouted { room: ROOM, routed: 0, implied: 1 };
    say(&mut world.prefill[1], to.0 as usize, &Message::Misrouted(misrouted));
    world.run_for(SOON);
    assert_eq!(ends(&world), [Some(Ok(())); 2]);
}

/// Any thread may look at any time: here when the node says something in the middle of a turn.
#[test]
fn r3_a_room_that_fails_before_it_was_granted_is_never_seen_transferring() {
    let (layout, rank) = (tensor_parallel(2), Rank { dp: 0, pp: 0, cp: 0, tp: 1 });
    let topology = Topology::new(layout.clone(), layout.clone()).unwrap();
    let config = rank_config(Role::Decode, &layout, rank);
    let engine = config.engine;
    let mut stage = Stage::with(rank_tables(&topology, Side::Decode, rank), config, None);
    let (coordinator, nobody, role) = (PeerId(0), PeerId(1), Role::Decode);
    let (geometry, address, layout) = (stage.node.geometry().clone(), vec![], Some(layout));
    let hello = Hello { incarnation: 9, role, rank: 0, geometry, address, engine, layout };
    stage.link_up(coordinator);
    stage.say(coordinator, &Message::Hello(hello.into()));
    assert!(matches!(stage.events()[..], [NodeEvent::SiblingUp { rank: 0, .. }]));

    let (state, pages) = (vec![], Lease::new([3]));
    let receive = Receive { room: ROOM, peer: nobody, pages, state, prefix_pages: 0, attempt: 0 };
    let handle = stage.client.receive(receive).unwrap();
    stage.script.borrow_mut().watched = Some(handle.clone());
    stage.turn();
    stage.client.cancel(ROOM).unwrap();
    stage.turn();
    assert_eq!(handle.poll(), RoomState::Failed);
    let shown = &stage.script.borrow().shown;
    assert!(shown.len() > 1, "the coordinator is told when it opens, and when it fails");
    assert!(shown.iter().all(|state| *state != RoomState::Transferring), "{shown:?}");
}

#[test]
fn r2_what_a_group_has_no_use_for_is_counted_and_changes_nothing() {
    let mut world = pairs(2);
    hand_over(&world);
    world.run_for(Duration::from_micros(1));
    let foreign = |member: &Member| member.node.stats().foreign;
    let before = [foreign(&world.decode[0]), foreign(&world.prefill[0])];
    let success = Message::Decision { attempt: FIRST, decision: Decision::Success };
    let ready = Message::Report { attempt: FIRST, report: Report::Ready };
    // A decision to the coordinator, a message about a room to a sibling, and both to the other side.
    say(&mut world.decode[1], 2, &success);
    say(&mut world.decode[1], 2, &Message::Pong(1));
    let stray =
        Message::Complete { room: ROOM, grant: transport_core::transfer::GrantId::from_bits(1) };
    say(&mut world.decode[1], 2, &stray);
    say(&mut world.decode[0], 0, &ready);
    say(&mut world.decode[0], 0, &success);
    world.run_for(SOON);
    let after = [foreign(&world.decode[0]), foreign(&world.prefill[0])];
    assert_eq!([after[0] - before[0], after[1] - before[1]], [2, 2]);
    assert_eq!(ends(&world), [Some(Ok(())); 2]);
}

#[test]
fn r6_a_group_whose_links_ended_and_came_back_serves_on() {
    let mut world = pairs(2);
    let [first, second] = [0, 1].map(|rank| world.decode[rank].address);
    world.net.break_links(first, second);
    world.run_for(Duration::from_secs(10));
    hand_over(&world);
    world.run_for(SOON);
    assert_eq!(ends(&world), [Some(Ok(())); 2]);
    let down = event(&world.decode[1], |e| matches!(e, NodeEvent::SiblingDown { rank: 0, .. }));
    let up = event(&world.decode[1], |e| matches!(e, NodeEvent::SiblingUp { rank: 0, .. }));
    assert!(down.is_some() && up.is_some());
}

#[test]
fn r3_a_room_received_while_a_rank_is_gone_fails_when_that_has_not_come_back_in_time() {
    for dead in [0, 1] {
        let mut world = pairs(2);
        world.net.crash(world.decode[dead].address);
        world.decode.remove(dead);
        world.run_for(Duration::from_secs(20));
        // Everything of this rank lands; only the other is waited for.
        let bootstrap = Duration::from_secs(20);
        let (received, end) = (world.net.now(), world.net.now() + bootstrap + SOON * 2);
        hand_over(&world);
        assert!(world.run_until(end, |world| ends(world)[0].is_some()), "{dead} is dead");
        assert!(world.net.now() >= received + bootstrap, "{dead} might have come back");
        let cause = ends(&world)[0].unwrap().unwrap_err();
        assert!(matches!(cause, Cause::NoPeer { waited_ms: 20_000.. }), "{cause:?}, {dead} died");
    }
}

#[test]
fn r6_of_two_links_between_ranks_either_may_end() {
    for newer in [false, true] {
        let mut world = pairs(2);
        let (first, second) = (PeerId(2), world.decode[0].address);
        let again = world.decode[1].node.endpoint_mut().dial(second);
        world.run_for(SOON);
        world.receive(ROOM.0, &[3]);
        world.open(ROOM.0);
        world.run_for(SOON);
        let ending = if newer { again } else { first };
        world.decode[1].node.endpoint_mut().close(ending);
        let is_down = |event: &NodeEvent| matches!(event, NodeEvent::SiblingDown { .. });
        world.run_for(Duration::from_millis(5));
        assert!(world.decode.iter().all(|member| event(member, is_down).is_some()));
        world.send(ROOM.0, 0, &[5], true);
        world.run_for(SOON);
        assert_eq!(ends(&world), [Some(Ok(())); 2], "newer: {newer}");
    }
}

#[test]
fn r2_a_scheduler_that_repeats_an_attempt_or_names_a_sibling_is_told_at_once() {
    let mut world = pairs(2);
    let coordinator = world.decode[0].address;
    // The failure cannot be told: it is repeated still when the attempt is made again.
    world.net.stop(coordinator);
    (0..2).for_each(|_| {
        world.receive_at(1, ROOM.0, &[3], 0);
        world.run_for(Duration::from_millis(50));
        world.decode[1].client.cancel(ROOM).unwrap();
        world.run_for(Duration::from_millis(50));
    });
    let failed = |completion: &Completion| match completion {
        Completion::Received { result: Err(failure), .. } => Some(failure.cause),
        _ => None,
    };
    let causes: Vec<Cause> = world.decode[1].done.iter().filter_map(failed).collect();
    assert_eq!(causes, [Cause::Cancelled, Cause::DuplicateRoom]);
    world.net.resume(coordinator);
    world.run_for(SOON);

    let sibling = PeerId(2);
    let (room, pages) = (RoomId(8), Lease::new([3]));
    let receive =
        Receive { room, peer: sibling, pages, state: vec![], prefix_pages: 0, attempt: 0 };
    world.decode[1].client.receive(receive).unwrap();
    world.run_for(SOON);
    assert_eq!(world.decode[1].done.iter().filter_map(failed).next_back(), Some(Cause::SameRole));
}
