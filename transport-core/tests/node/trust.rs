//! A shared key (W3): nodes that have it serve each other; of all others nothing is taken but the
//! attempt to prove it, and they are told nothing but that they are refused.

use std::sync::Arc;
use std::time::Duration;

use transport_core::disagg::node::{Completion, NodeConfig, NodeEvent};
use transport_core::disagg::trust::{End, Handshake, SharedKey};
use transport_core::disagg::{Cause, RoomId};
use transport_core::fabric::{Fabric, FabricEvent, PathError, PeerId, Write, WriteId};
use transport_core::link::{Endpoint, Link, LinkEvent};
use transport_core::sim::{SimConfig, SimEndpoint, SimNet};
use transport_core::transfer::{Grant, GrantId, Manifest, Part, StateMask};
use transport_core::wire::{
    Challenge, GrantOffer, Hello, Message, Opening, Role, Stated, decode, encode,
};

use super::world::{Side, World, config, tables};

const ROOM: RoomId = RoomId(1);
const SOON: Duration = Duration::from_millis(100);
/// The attacker's, when it says hello.
const INCARNATION: u64 = 9;

fn key(fill: u8) -> SharedKey {
    SharedKey::new(&[fill; 16]).unwrap()
}

fn keyed(role: Role, incarnation: u64, key: Option<SharedKey>) -> NodeConfig {
    NodeConfig { key, ..config(role, incarnation) }
}

fn world(decode: Option<SharedKey>, prefill: Option<SharedKey>, seed: u64) -> World {
    let decode = keyed(Role::Decode, 1, decode);
    World::unmet(seed, SimConfig::checked(), decode, keyed(Role::Prefill, 2, prefill))
}

fn events(side: &Side) -> Vec<NodeEvent> {
    std::iter::from_fn(|| side.client.poll_event()).collect()
}

/// Causes of all refusals, and whether any peer was ready.
fn refusals(side: &Side) -> (Vec<Cause>, bool) {
    let events = events(side);
    let ready = events.iter().any(|event| matches!(event, NodeEvent::PeerReady { .. }));
    let causes = events.into_iter().filter_map(|event| match event {
        NodeEvent::PeerRefused { cause, .. } => Some(cause),
        _ => None,
    });
    (causes.collect(), ready)
}

#[test]
fn w3_nodes_with_the_same_key_serve_each_other() {
    for seed in 0..20 {
        let mut world = world(Some(key(1)), Some(key(1)), seed);
        world.prefill.fill(Part::Kv, 2, 7);
        world.decode.receive(world.peer, 1, &[8], &[]);
        world.prefill.open(1);
        world.prefill.send_last(1, &[2], &[], b"token");
        world.settle(1, 2);
        let [Completion::Received { result, .. }] = &world.decode.done[..] else { panic!() };
        assert_eq!(result.as_deref(), Ok(&b"token"[..]), "seed {seed}");
        assert_eq!(world.decode.read(Part::Kv, 8)[0], 7);
        for side in [&world.decode, &world.prefill] {
            assert_eq!(side.node.stats().unproven, 0);
            assert!(!events(side).contains(&NodeEvent::Unprotected));
        }
    }
}

#[test]
fn w3_a_node_without_a_key_says_so_once() {
    let mut world = World::new(1, SimConfig::checked());
    world.run_for(Duration::from_secs(10));
    for side in [&world.decode, &world.prefill] {
        let events = events(side);
        assert_eq!(events[0], NodeEvent::Unprotected);
        assert_eq!(events.iter().filter(|event| **event == NodeEvent::Unprotected).count(), 1);
    }
}

#[test]
fn w3_nodes_without_a_common_key_refuse_each_other_and_both_say_why() {
    let pairs = [
        (Some(key(1)), Some(key(2)), Cause::Unproven),
        (Some(key(1)), None, Cause::KeyOnOneSide),
        (None, Some(key(1)), Cause::KeyOnOneSide),
    ];
    for ((decode, prefill, cause), seed) in
        pairs.into_iter().flat_map(|p| (0..10).map(move |s| (p.clone(), s)))
    {
        let mut world = world(decode, prefill, seed);
        world.decode.receive(world.peer, 1, &[8], &[]);
        world.prefill.open(1);
        world.settle(1, 0);
        world.run_for(SOON);
        let [Completion::Received { result, .. }] = &world.decode.done[..] else { panic!() };
        let failure = result.as_ref().unwrap_err();
        assert_eq!((failure.cause, failure.may_retry()), (cause, false));
        for side in [&world.decode, &world.prefill] {
            let (causes, ready) = refusals(side);
            assert!(!ready && !causes.is_empty(), "seed {seed}");
            assert!(causes.iter().all(|said| *said == cause), "seed {seed}: {causes:?}");
            assert!(side.node.stats().unproven > 0);
        }
        // No grant was kept, so none came.
        assert_eq!(world.prefill.node.stats().foreign + world.decode.node.stats().foreign, 0);
        assert!(world.prefill.done.is_empty());
    }
}

/// An endpoint that says and hears what the test wants, and a node with a key.
struct Stage {
    net: SimNet,
    side: Side,
    attacker: SimEndpoint,
    /// The node, as the attacker knows it.
    node: Option<PeerId>,
    heard: Vec<Message>,
    up: bool,
}

impl Stage {
    /// The attacker dials the node.
    fn dialling(role: Role) -> Self {
        let net = SimNet::new(7, SimConfig::checked());
        let side = Side::new(net.endpoint(), keyed(role, 1, Some(key(1))));
        let mut attacker = net.endpoint();
        attacker.bind(tables()).unwrap();
        attacker.dial(side.address);
        Self::run(net, side, attacker)
    }

    /// The node dials the attacker.
    fn dialled(role: Role) -> Self {
        let net = SimNet::new(7, SimConfig::checked());
        let mut attacker = net.endpoint();
        attacker.bind(tables()).unwrap();
        let mut endpoint = net.endpoint();
        endpoint.dial(attacker.node());
        let side = Side::new(endpoint, keyed(role, 1, Some(key(1))));
        Self::run(net, side, attacker)
    }

    fn run(net: SimNet, side: Side, attacker: SimEndpoint) -> Self {
        let mut stage = Self { net, side, attacker, node: None, heard: vec![], up: false };
        stage.run_for(Duration::from_millis(20));
        stage
    }

    fn run_for(&mut self, time: Duration) {
        let end = self.net.now() + time;
        while self.net.now() < end {
            let now = self.net.now();
            let moved = self.side.turn(now).0 | self.turn();
            if !moved && !self.net.step() {
                self.net.advance_to(now + Duration::from_micros(100));
            }
        }
    }

    fn turn(&mut self) -> bool {
        let mut moved = self.attacker.progress(self.net.now());
        let mut bytes = vec![];
        while let Some(event) = self.attacker.receive(&mut bytes) {
            moved = true;
            match event {
                LinkEvent::Up { peer, .. } => {
                    (self.node, self.up) = (Some(peer), true);
                    self.heard.clear();
                }
                LinkEvent::Message { .. } => self.heard.push(decode(&bytes).unwrap()),
                LinkEvent::Down { .. } => self.up = false,
            }
        }
        moved
    }

    /// Says this on the link that is up; all that is heard on it, from its start to its end.
    fn say(&mut self, words: &[Message]) -> Vec<Message> {
        for word in words {
            let mut bytes = vec![];
            encode(word, &mut bytes).unwrap();
            // The node may have ended the link meanwhile.
            let _ = self.attacker.send(self.node.unwrap(), &bytes);
        }
        // All of it is there before the node looks.
        self.net.advance_to(self.net.now() + Duration::from_millis(20));
        self.run_until_down();
        self.heard.clone()
    }

    fn run_until_down(&mut self) {
        for _ in 0..1_000_000 {
            if !self.up {
                return;
            }
            let now = self.net.now();
            let moved = self.side.turn(now).0 | self.turn();
            if !moved && !self.net.step() {
                self.net.advance_to(now + Duration::from_micros(100));
            }
        }
        panic!("the link stays up; heard {:?}", self.heard);
    }

    fn hello(&self, role: Role) -> Message {
        let geometry = self.side.node.geometry().clone();
        let address = self.attacker.address();
        let (engine, layout) = (0, None);
        let hello =
            Hello { incarnation: INCARNATION, role, rank: 0, geometry, address, engine, layout };
        Message::Hello(hello.into())
    }
}

fn challenge(fill: u8) -> Message {
    Message::Challenge(Challenge { nonce: [fill; 32], incarnation: INCARNATION })
}

fn grant(tag: u64) -> Grant {
    let id = GrantId { slot: 0, generation: 0 };
    Grant { id, tag, kv: Arc::from([0]), aux: [0], state: [Arc::from([])].into() }
}

/// All that a peer may say, once it has proven the key.
fn words(stage: &Stage) -> Vec<Message> {
    let (room, grant_id) = (ROOM, GrantId { slot: 0, generation: 0 });
    let manifest = Manifest { kv: 0, aux: true, state: StateMask::EMPTY };
    let (prefix_pages, deliveries, deadline_ms) = (0, 4, 20_000);
    vec![
        stage.hello(Role::Prefill),
        stage.hello(Role::Decode),
        Message::Ping(7),
        Message::Pong(7),
        Message::Refuse(Cause::SameRole),
        Message::Grant(GrantOffer { room, grant: grant(3), prefix_pages, deliveries, deadline_ms }),
        Message::Accept { room, grant: grant_id },
        Message::Manifest(Stated { room, grant: grant_id, rank: 0, manifest }),
        Message::Complete { room, grant: grant_id },
        Message::Abort { room, grant: grant_id, cause: Cause::Cancelled, drained: true },
        Message::Drained { room, grant: grant_id },
        Message::Proof([0; 32]),
    ]
}

#[test]
fn w3_before_the_proof_nothing_is_taken_and_nothing_is_answered() {
    for (role, dialled) in
        [Role::Decode, Role::Prefill].into_iter().flat_map(|r| [(r, false), (r, true)])
    {
        let fresh = || if dialled { Stage::dialled(role) } else { Stage::dialling(role) };
        for word in words(&fresh()) {
            for before in [vec![], vec![challenge(3)]] {
                let mut stage = fresh();
                let first_hello = before.is_empty() && matches!(word, Message::Hello(_));
                let cause = if first_hello { Cause::KeyOnOneSide } else { Cause::Unproven };
                // Whatever follows is not heard at all.
                let said = [&before[..], &[word.clone(), Message::Ping(1), word.clone()]].concat();
                let heard = stage.say(&said);
                let told = heard.iter().filter(|message| !matches!(message, Message::Challenge(_)));
                let told: Vec<_> = told.cloned().collect();
                // The one seal that is made for a stranger is for whom the node itself has dialled.
                let proof = usize::from(dialled && !before.is_empty());
                assert!(told[..proof].iter().all(|told| matches!(told, Message::Proof(_))));
                // Who refuses is not told so in turn.
                let refused = matches!(word, Message::Refuse(_));
                let expected = (!refused).then_some(Message::Refuse(cause));
                let expected: Vec<_> = expected.into_iter().collect();
                assert_eq!(told[proof..], expected, "{word:?} to {role:?}");
                assert_eq!(refusals(&stage.side), (vec![cause], false));
                let stats = stage.side.node.stats();
                assert_eq!((stats.unproven, stats.foreign, stats.malformed), (1, 0, 0));
            }
        }
    }
}

#[test]
fn w3_a_stranger_that_says_nothing_is_not_asked_and_ends_at_the_handshakes_deadline() {
    let net = SimNet::new(7, SimConfig::checked());
    let patient = Duration::from_secs(2);
    let config = NodeConfig { handshake: patient, ..keyed(Role::Decode, 1, Some(key(1))) };
    let side = Side::new(net.endpoint(), config);
    let mut attacker = net.endpoint();
    attacker.dial(side.address);
    let mut stage = Stage::run(net, side, attacker);
    let heard = stage.say(&[challenge(3)]);
    assert!(matches!(heard[..], [Message::Challenge(_)]), "{heard:?}");
    assert!(stage.net.now() >= transport_core::Instant::ZERO + patient);
    let downs = events(&stage.side);
    let down =
        |event: &NodeEvent| matches!(event, NodeEvent::PeerDown { reason: PathError::Timeout, .. });
    assert!(downs.iter().any(down), "{downs:?}");
    assert_eq!(stage.side.node.stats().unproven, 1);
}

#[test]
fn w3_a_node_is_not_fooled_with_its_own_words() {
    let mut stage = Stage::dialled(Role::Decode);
    let [challenge] = &stage.heard[..] else { panic!("{:?}", stage.heard) };
    let challenge = challenge.clone();
    let mut bytes = vec![];
    encode(&challenge, &mut bytes).unwrap();
    stage.attacker.send(stage.node.unwrap(), &bytes).unwrap();
    stage.run_for(Duration::from_millis(20));
    let proof = stage.heard.last().unwrap().clone();
    assert!(matches!(proof, Message::Proof(_)), "{proof:?}");
    let heard = stage.say(&[proof.clone(), stage.hello(Role::Prefill)]);
    assert_eq!(heard, [challenge, proof, Message::Refuse(Cause::Unproven)]);
}

/// The messages of a handshake in which the test has the key and dials.
fn honest(stage: &Stage, incarnation: u64) -> [Message; 2] {
    let Some(Message::Challenge(theirs)) = stage.heard.first().cloned() else { panic!() };
    let mut handshake = Handshake::new(key(1), End::Dialler, [5; 32], incarnation);
    let proof = handshake.take(Opening::Challenge(theirs)).unwrap().unwrap();
    [handshake.opening(), proof]
}

#[test]
fn w3_words_of_an_earlier_link_prove_nothing_on_the_next() {
    let mut stage = Stage::dialling(Role::Decode);
    let good = honest(&stage, INCARNATION);
    // Proven, and then refused: both are of one role.
    let heard = stage.say(&[&good[..], &[stage.hello(Role::Decode)]].concat());
    assert!(heard.iter().any(|heard| matches!(heard, Message::Hello(_))), "{heard:?}");
    assert_eq!(heard.last(), Some(&Message::Refuse(Cause::SameRole)));
    // The sim dials again by itself.
    while !stage.up {
        stage.run_for(Duration::from_millis(20));
    }
    let heard = stage.say(&[&good[..], &[stage.hello(Role::Prefill)]].concat());
    assert_eq!(heard[1..], [Message::Refuse(Cause::Unproven)]);
}

#[test]
fn w3_a_hello_is_of_the_life_that_was_proven() {
    let mut stage = Stage::dialling(Role::Decode);
    let good = honest(&stage, INCARNATION + 1);
    let heard = stage.say(&[&good[..], &[stage.hello(Role::Prefill)]].concat());
    assert_eq!(heard.last(), Some(&Message::Refuse(Cause::Unproven)));
    assert_eq!(refusals(&stage.side), (vec![Cause::Unproven], false));
}

#[test]
fn w3_an_unproven_peer_has_no_path_to_write_on() {
    let mut stage = Stage::dialling(Role::Decode);
    let node = stage.node.unwrap();
    // What a peer would learn from the node's hello. It has one life so far.
    let address = [&b"sim\0"[..], &stage.side.address.0.to_le_bytes(), &[0; 4]].concat();
    stage.attacker.connect(node, &address, true).unwrap();
    let table = tables().table(Part::Kv).unwrap().clone();
    let write = Write {
        id: WriteId(0),
        peer: node,
        grant: Arc::new(grant(3)),
        part: Part::Kv,
        sequence: 0,
        first: 0,
        buffers: 0..1,
        table,
        items: Arc::from([0]),
    };
    let _ = stage.attacker.post(write);
    stage.say(&[stage.hello(Role::Prefill)]);
    let mut seen = vec![];
    for _ in 0..50 {
        stage.run_for(SOON);
        seen.extend(std::iter::from_fn(|| stage.attacker.poll(stage.net.now())));
    }
    assert!(!seen.iter().any(|event| matches!(event, FabricEvent::PathUp { .. })), "{seen:?}");
    assert_eq!(stage.side.node.stats().strays, 0);
    assert!(!refusals(&stage.side).1);
}

#[test]
fn w3_no_debug_output_shows_a_key_or_a_secret() {
    let mut config = keyed(Role::Decode, 1, Some(SharedKey::new(b"0123456789abcdef").unwrap()));
    config.secret.0 = 0x1234_5678;
    let shown = format!("{config:?}");
    let side = Side::new(SimNet::new(1, SimConfig::checked()).endpoint(), config);
    for shown in [shown, format!("{:?}", side.node)] {
        for secret in ["0123456789abcdef", "48, 49, 50", "305419896", "12345678"] {
            assert!(!shown.contains(secret), "{secret}");
        }
    }
}
