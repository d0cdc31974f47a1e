//! Peers that send nonsense, speak another version, or are of another model: none of them costs more
//! than its own room or link.

use std::sync::Arc;
use std::time::Duration;

use transport_core::disagg::node::{Node, NodeConfig, NodeError, NodeEvent};
use transport_core::disagg::{Cause, Field, ItemSizes, Mismatch, RoomId, StateKind};
use transport_core::fabric::{Fabric, FabricError, PathError};
use transport_core::link::Link;
use transport_core::rng::Rng;
use transport_core::sim::{SimConfig, SimNet};
use transport_core::transfer::{Grant, GrantId, Manifest, Part, StateMask};
use transport_core::wire::{GrantOffer, Hello, Message, Role, Stated, decode, encode};

use super::look::{SOON, chunks, closed, ready, received, say};
use super::world::{Side, World, config, tables};

#[test]
fn f14_a_bad_chunk_costs_its_room_and_the_next_are_served() {
    let mut world = World::new(14, SimConfig::checked());
    world.decode.receive(world.peer, 1, &[8], &[]);
    world.decode.receive(world.peer, 2, &[9], &[]);
    world.prefill.open(1);
    world.prefill.open(2);
    world.run_for(SOON);
    world.prefill.send_last(1, &[99], &[], b"");
    world.prefill.send(3, &[5]); // A room that nobody opened.
    world.prefill.send_last(2, &[4], &[], b"good");
    world.run_for(SOON);
    let bad = Cause::ItemOutOfRange { part: 0, item: 99 };
    assert_eq!(closed(&world.prefill.done, 1), Err(bad));
    assert_eq!(chunks(&world.prefill.done, 3), [(Err(Cause::UnknownRoom), vec![5])]);
    assert_eq!(received(&world.decode.done, 2), Ok(b"good".to_vec()));
    world.serves(1);
}

#[test]
fn f14_a_room_that_was_granted_has_deadlines_too() {
    let mut world = World::new(14, SimConfig::checked());
    world.decode.receive(world.peer, 1, &[8], &[]);
    world.prefill.open(1);
    world.run_for(SOON);
    world.prefill.send(1, &[2]);
    // The engine's worker is gone: no other chunk ever comes. Heartbeats go on.
    world.run_for(Duration::from_secs(22));
    let (decode, prefill) = (received(&world.decode.done, 1), closed(&world.prefill.done, 1));
    let Err(Cause::Incomplete(missing)) = prefill else { panic!("{prefill:?}") };
    assert_eq!(decode, Err(Cause::Incomplete(missing)), "the same on both sides");
    assert_eq!((missing.seen.kv, missing.seen.manifest), (1, None), "and what never came");
    world.serves(1);
}

/// A message of each kind about room 1.
fn messages() -> Vec<Message> {
    let (room, id) = (RoomId(1), GrantId { slot: 0, generation: 1 });
    let (kv, state) = (Arc::from([1, 2]), [Arc::from([])].into());
    let grant = Grant { id, tag: 3, kv, aux: [0], state };
    let offer = GrantOffer { room, grant, prefix_pages: 0, deliveries: 4, deadline_ms: 20_000 };
    let manifest = Manifest { kv: 0, aux: true, state: StateMask::EMPTY };
    vec![
        Message::Grant(offer),
        Message::Accept { room, grant: id },
        Message::Manifest(Stated { room, grant: id, rank: 0, manifest }),
        Message::Complete { room, grant: id },
        Message::Abort { room, grant: id, cause: Cause::Cancelled, drained: true },
        Message::Drained { room, grant: id },
    ]
}

fn bytes_of(message: &Message) -> Vec<u8> {
    let mut bytes = vec![];
    encode(message, &mut bytes).unwrap();
    bytes
}

#[test]
fn f15_no_bytes_and_no_message_end_more_than_their_own_link() {
    let mut world = World::new(15, SimConfig::checked());
    let mut rng = Rng::new(15);
    for round in 0..60 {
        let message = &messages()[round % 6];
        let mut bytes = bytes_of(message);
        match round / 6 % 3 {
            0 => {} // A message that nobody asked for.
            1 => bytes.truncate(rng.below(bytes.len() as u64) as usize), // Cut short.
            _ => bytes.iter_mut().skip(8).for_each(|byte| *byte = rng.next_u64() as u8),
        }
        world.decode.node.endpoint_mut().send(world.peer, &bytes).unwrap();
        world.run_for(SOON);
        if round % 6 == 5 {
            world.serves(round as u64);
        }
    }
    assert!(world.prefill.node.stats().malformed >= 20);
}

#[test]
fn f16_an_aux_slot_that_does_not_exist_or_was_not_granted_is_never_written() {
    let mut world = World::new(16, SimConfig::checked());
    // A live request has slot 0.
    world.decode.receive(world.peer, 1, &[8], &[]);
    world.run_for(SOON);
    let before = world.decode.read(Part::Aux, 0);
    for (generation, slot) in [(1, 0), (2, 999_999)] {
        let room = RoomId(5);
        let id = GrantId { slot: 77, generation };
        let grant = Grant { id, tag: 3, kv: Arc::from([8]), aux: [slot], state: [].into() };
        let offer = GrantOffer { room, grant, prefix_pages: 0, deliveries: 4, deadline_ms: 20_000 };
        let peer = world.peer;
        world.prefill.open(5);
        say(&mut world.decode, peer, &Message::Grant(offer));
        world.prefill.send_last(5, &[3], &[], b"foreign");
        world.run_for(SOON);
        assert_eq!(closed(&world.prefill.done, 5), Err(Cause::UnknownRoom), "slot {slot}");
        world.prefill.done.clear();
    }
    assert_eq!(world.decode.read(Part::Aux, 0), before);
    assert_eq!(world.decode.read(Part::Kv, 8), [0; 96]);
    world.prefill.open(1);
    world.prefill.send_last(1, &[2], &[], b"right");
    world.settle(1, 2);
    assert_eq!(received(&world.decode.done, 1), Ok(b"right".to_vec()));
}

#[test]
fn f31_memory_that_cannot_be_registered_stops_the_node_before_it_starts() {
    let mut endpoint = SimNet::new(31, SimConfig::checked()).endpoint();
    endpoint.bind(tables()).unwrap();
    let made = Node::new(endpoint, tables(), config(Role::Prefill, 1)).map(drop);
    assert_eq!(made.unwrap_err(), NodeError::Fabric(FabricError::OutOfOrder));
}

/// What both nodes and a request say when the prefill node's configuration is changed.
fn meeting(change: impl FnOnce(&mut NodeConfig)) -> [Cause; 3] {
    let mut theirs = config(Role::Prefill, 2);
    change(&mut theirs);
    let mut world = World::unmet(32, SimConfig::checked(), config(Role::Decode, 1), theirs);
    world.decode.receive(world.peer, 1, &[8], &[]);
    world.run_for(SOON);
    let refused = |side: &Side| {
        let mut events = std::iter::from_fn(|| side.client.poll_event());
        let found = events.find_map(|event| match event {
            NodeEvent::PeerRefused { cause, .. } => Some(cause),
            _ => None,
        });
        found.expect("a refusal")
    };
    let request = received(&world.decode.done, 1).unwrap_err();
    [request, refused(&world.decode), refused(&world.prefill)]
}

#[test]
fn f32_a_kind_of_state_that_the_other_side_does_not_have_is_refused_at_the_handshake() {
    let ours = StateKind::Recurrent;
    let theirs = StateKind::SlidingWindow;
    let said = meeting(|config| config.model.state = vec![theirs]);
    let (ours, theirs) = (ours as u64, theirs as u64);
    let mismatch = Mismatch { field: Field::StateKind, ours, theirs };
    assert_eq!(said, [mismatch, mismatch, mismatch.swapped()].map(Cause::Layout));
}

#[test]
fn f33_settings_that_differ_fail_requests_at_once_with_both_values() {
    type Change = fn(&mut NodeConfig);
    let changes: [(Mismatch, Change); 3] = [
        (Mismatch { field: Field::PageTokens, ours: 4, theirs: 64 }, |config| {
            config.model.page_tokens = 64;
        }),
        (Mismatch { field: Field::Layers, ours: 1, theirs: 2 }, |config| config.model.layers = 2),
        // The engines' own: context length, quantisation, revision.
        (Mismatch { field: Field::Compat, ours: 0, theirs: 8192 }, |config| {
            config.model.compat = 8192;
        }),
    ];
    for (mismatch, change) in changes {
        let said = meeting(change);
        assert_eq!(said, [mismatch, mismatch, mismatch.swapped()].map(Cause::Layout));
    }
}

#[test]
fn f35_items_of_more_than_4_gib_are_stated_in_full() {
    let world = World::new(35, SimConfig::checked());
    let mut geometry = world.decode.node.geometry().clone();
    let small = geometry.clone();
    geometry.state[0].sizes = ItemSizes(vec![(2, (5 << 32) + 20)]);
    let role = Role::Decode;
    let (address, layout) = (vec![], None);
    let hello = Hello {
        incarnation: 1,
        role,
        rank: 0,
        geometry: geometry.clone(),
        address,
        engine: 0,
        layout,
    };
    let bytes = bytes_of(&Message::Hello(hello.into()));
    let Ok(Message::Hello(read)) = decode(&bytes) else { panic!("a hello") };
    assert_eq!(read.geometry, geometry);
    // They differ in the upper half only.
    let (ours, theirs) = (20, (5 << 32) + 20);
    let mismatch = Mismatch { field: Field::StateItemBytes, ours, theirs };
    assert_eq!(small.check(&read.geometry), Err(mismatch));
}

#[test]
fn f40_another_version_is_named_and_a_cause_from_the_future_still_ends_its_room() {
    let mut world = World::new(40, SimConfig::checked());
    ready(&world.prefill);
    let mut bytes = bytes_of(&Message::Ping(1));
    bytes[4] += 1;
    world.decode.node.endpoint_mut().send(world.peer, &bytes).unwrap();
    world.run_for(SOON);
    let down = world.prefill.client.poll_event();
    let Some(NodeEvent::PeerDown { reason, .. }) = down else { panic!("{down:?}") };
    assert_eq!(reason, PathError::Protocol("another version of the protocol"));
    world.serves(1);

    let (room, grant) = (RoomId(1), GrantId { slot: 77, generation: 9 });
    let cause = Cause::Unknown(60_000);
    let message = Message::Abort { room, grant, cause, drained: true };
    let peer = world.peer;
    world.prefill.open(1);
    say(&mut world.decode, peer, &message);
    world.run_for(SOON);
    assert_eq!(closed(&world.prefill.done, 1), Err(cause));
}
