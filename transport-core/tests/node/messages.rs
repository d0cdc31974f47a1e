//! A node and peers that the test plays by hand, message by message: what is answered, what is
//! repeated, and what is nobody's business.

use std::sync::Arc;
use std::time::Duration;

use transport_core::disagg::node::{Completion, NodeConfig, NodeEvent};
use transport_core::disagg::room::RoomState;
use transport_core::disagg::{Cause, RoomId};
use transport_core::fabric::{Fabric, FabricEvent, PeerId, Write, WriteId};
use transport_core::link::{Endpoint, Link, LinkEvent};
use transport_core::memory::CacheTables;
use transport_core::sim::{SimConfig, SimEndpoint, SimNet};
use transport_core::transfer::{Grant, GrantId, Manifest, Part, StateMask};
use transport_core::wire::{AuxRecord, GrantOffer, Hello, Message, Role, Stated, decode, encode};

use super::world::{Side, config, tables};

const ROOM: RoomId = RoomId(1);
const INCARNATION: u64 = 9;
const RANK: u32 = 0;

/// A peer that does nothing by itself but shake hands.
struct Peer {
    endpoint: SimEndpoint,
    tables: CacheTables,
    role: Role,
    /// The node, as this peer knows it, and this peer, as the node does.
    node: PeerId,
    name: PeerId,
    heard: Vec<Message>,
}

struct Stage {
    net: SimNet,
    side: Side,
    peers: Vec<Peer>,
}

impl Stage {
    /// A prefill node, and a peer whose fabric has the grant of [`offer`] in force.
    fn granted() -> Self {
        let mut stage = Self::new(Role::Prefill, 1);
        let peer = &mut stage.peers[0];
        peer.endpoint.grant(peer.node, Arc::new(offer().grant), None).unwrap();
        stage
    }

    /// A node of that role, and as many peers of the other.
    fn new(role: Role, peers: usize) -> Self {
        Self::with(config(role, 1), peers)
    }

    fn with(config: NodeConfig, peers: usize) -> Self {
        let role = config.role;
        let net = SimNet::new(7, SimConfig::checked());
        let side = Side::new(net.endpoint(), config);
        let mut stage = Self { net, side, peers: vec![] };
        let other = if role == Role::Decode { Role::Prefill } else { Role::Decode };
        (0..peers).for_each(|_| stage.join(other));
        stage
    }

    fn join(&mut self, role: Role) {
        let mut endpoint = self.net.endpoint();
        let tables = tables();
        endpoint.bind(tables.clone()).unwrap();
        let node = endpoint.dial(self.side.address);
        let name = PeerId(u32::MAX);
        self.peers.push(Peer { endpoint, tables, role, node, name, heard: vec![] });
        self.run_for(Duration::from_millis(500));
        let ready = std::iter::from_fn(|| self.side.client.poll_event()).find_map(|event| {
            let NodeEvent::PeerReady { peer, .. } = event else { return None };
            Some(peer)
        });
        self.peers.last_mut().unwrap().name = ready.expect("a peer");
    }

    fn run_for(&mut self, time: Duration) {
        let end = self.net.now() + time;
        loop {
            let now = self.net.now();
            let (mut moved, wake) = self.side.turn(now);
            let geometry = self.side.node.geometry().clone();
            for peer in &mut self.peers {
                let (role, rank, incarnation) = (peer.role, RANK, INCARNATION);
                let address = peer.endpoint.address();
                let geometry = geometry.clone();
                moved |= peer.turn(
                    now,
                    Hello { incarnation, role, rank, geometry, address, engine: 0, layout: None },
                );
            }
            if moved {
                continue;
            }
            if now >= end {
                return;
            }
            let next = self.net.next_at().map_or(end, |next| next.min(end)).min(wake);
            self.net.advance_to(next.max(now));
            if next <= now && !self.net.step() {
                self.net.advance_to(now + Duration::from_micros(1));
            }
        }
    }

    /// What peer `index` hears in answer to this message.
    fn say(&mut self, index: usize, message: Message) -> Vec<Message> {
        self.peers[index].send(&message);
        self.hear(index, Duration::from_millis(50))
    }

    fn hear(&mut self, index: usize, time: Duration) -> Vec<Message> {
        self.peers[index].heard.clear();
        self.run_for(time);
        let heard = self.peers[index].heard.iter();
        heard.filter(|m| !matches!(m, Message::Ping(_) | Message::Pong(_))).cloned().collect()
    }

    /// Decode: a receive of no pages from the first peer, and its grant.
    fn receive(&mut self) -> Arc<Grant> {
        self.side.receive(self.peers[0].name, ROOM.0, &[], &[]);
        let heard = self.hear(0, Duration::from_millis(50));
        let [Message::Grant(offer)] = &heard[..] else { panic!("{heard:?}") };
        let (room, grant) = (ROOM, offer.grant.id);
        self.say(0, Message::Accept { room, grant });
        Arc::new(offer.grant.clone())
    }

    /// Prefill: an open room with a grant of the first peer.
    fn open(&mut self) -> Message {
        self.side.open(ROOM.0);
        let offer = Message::Grant(offer());
        let grant = offer_id();
        let accept = Message::Accept { room: ROOM, grant };
        assert_eq!(self.say(0, offer.clone()), [accept]);
        offer
    }
}

impl Peer {
    fn turn(&mut self, now: transport_core::Instant, hello: Hello) -> bool {
        let mut moved = self.endpoint.progress(now);
        let mut bytes = vec![];
        while let Some(event) = self.endpoint.receive(&mut bytes) {
            moved = true;
            match event {
                LinkEvent::Up { .. } => self.send(&Message::Hello(hello.clone().into())),
                LinkEvent::Message { .. } => self.hear(decode(&bytes).unwrap()),
                LinkEvent::Down { reason, .. } => panic!("{reason}"),
            }
        }
        while let Some(event) = self.endpoint.poll(now) {
            moved = true;
            assert!(!matches!(event, FabricEvent::PathDown { .. }));
        }
        moved
    }

    fn hear(&mut self, message: Message) {
        match &message {
            Message::Hello(hello) => {
                self.endpoint.connect(self.node, &hello.address, true).unwrap();
            }
            Message::Ping(number) => self.send(&Message::Pong(*number)),
            _ => {}
        }
        self.heard.push(message);
    }

    fn send(&mut self, message: &Message) {
        let mut bytes = vec![];
        encode(message, &mut bytes).unwrap();
        self.endpoint.send(self.node, &bytes).unwrap();
    }

    /// Writes an aux record under a grant.
    fn write_aux(&mut self, grant: &Arc<Grant>, record: AuxRecord, payload: &[u8]) {
        let table = self.tables.table(Part::Aux).unwrap().clone();
        let mut bytes = vec![];
        record.encode(payload, &mut bytes).unwrap();
        table.region(0).write(0, &bytes).unwrap();
        let write = Write {
            id: WriteId(0),
            peer: self.node,
            grant: grant.clone(),
            part: Part::Aux,
            sequence: 0,
            first: 0,
            buffers: 0..1,
            table,
            items: Arc::from([0]),
        };
        self.endpoint.post(write).unwrap();
    }
}

fn offer_id() -> GrantId {
    GrantId { slot: 5, generation: 2 }
}

fn offer() -> GrantOffer {
    let state = [Arc::from([])].into();
    let grant = Grant { id: offer_id(), tag: 3, kv: Arc::from([1, 2]), aux: [0], state };
    GrantOffer { room: ROOM, grant, prefix_pages: 0, deliveries: 4, deadline_ms: 20_000 }
}

fn dry(grant: GrantId) -> Message {
    let manifest = Manifest { kv: 0, aux: true, state: StateMask::EMPTY };
    Message::Manifest(Stated { room: ROOM, grant, rank: RANK, manifest })
}

fn abort(room: RoomId, grant: GrantId, cause: Cause) -> Message {
    Message::Abort { room, grant, cause, drained: true }
}

#[test]
fn r7_a_message_about_an_ended_decode_room_is_answered_with_its_end() {
    let mut stage = Stage::new(Role::Decode, 1);
    let grant = stage.receive();
    let record = AuxRecord { room: ROOM, grant: grant.id, incarnation: INCARNATION };
    stage.peers[0].write_aux(&grant, record, b"token");
    let complete = Message::Complete { room: ROOM, grant: grant.id };
    assert_eq!(stage.say(0, dry(grant.id)), std::slice::from_ref(&complete));
    assert_eq!(stage.say(0, dry(grant.id)), [complete]);

    let grant = stage.receive();
    stage.side.client.cancel(ROOM).unwrap();
    stage.run_for(Duration::from_millis(50));
    stage.say(0, Message::Drained { room: ROOM, grant: grant.id });
    let cancelled = abort(ROOM, grant.id, Cause::Cancelled);
    assert_eq!(stage.say(0, dry(grant.id)), [cancelled]);
    let drained = Message::Drained { room: ROOM, grant: grant.id };
    assert_eq!(stage.say(0, abort(ROOM, grant.id, Cause::AfterLast)), [drained]);
}

#[test]
fn r7_a_late_grant_of_an_ended_prefill_room_is_answered_with_its_end() {
    let mut stage = Stage::new(Role::Prefill, 1);
    let offer = stage.open();
    stage.side.client.cancel(ROOM).unwrap();
    stage.run_for(Duration::from_millis(50));
    stage.say(0, Message::Drained { room: ROOM, grant: offer_id() });
    let cancelled = abort(ROOM, offer_id(), Cause::Cancelled);
    assert_eq!(stage.say(0, offer), [cancelled]);
}

#[test]
fn every_grant_that_is_taken_is_accepted_by_a_message_of_its_own_or_by_the_manifest() {
    let accept = || Message::Accept { room: ROOM, grant: offer_id() };
    let mut chunked = Stage::granted();
    chunked.side.open(ROOM.0);
    chunked.side.send(ROOM.0, &[3]);
    assert_eq!(chunked.say(0, Message::Grant(offer())), [accept()]);
    let mut whole = Stage::granted();
    whole.side.open(ROOM.0);
    whole.side.send_last(ROOM.0, &[3, 4], &[], b"");
    let said = whole.say(0, Message::Grant(offer()));
    assert!(matches!(said[..], [Message::Manifest(_)]), "{said:?}");
    // A grant that comes again has not met the answer.
    for mut stage in [chunked, whole] {
        assert_eq!(stage.say(0, Message::Grant(offer())), [accept()]);
    }
}

#[test]
fn r7_a_late_grant_of_a_room_that_succeeded_needs_no_answer() {
    let mut stage = Stage::granted();
    let offer = stage.open();
    stage.side.send_last(ROOM.0, &[3, 4], &[], b"");
    stage.run_for(Duration::from_millis(50));
    stage.say(0, Message::Complete { room: ROOM, grant: offer_id() });
    assert_eq!(stage.side.done.len(), 2, "{:?}", stage.side.done);
    // The decode node sent Complete: it knows.
    assert_eq!(stage.say(0, offer), []);
}

#[test]
fn r7_a_prefill_room_repeats_its_abort_until_it_is_answered() {
    let mut stage = Stage::new(Role::Prefill, 1);
    stage.open();
    stage.side.client.cancel(ROOM).unwrap();
    let cancelled = abort(ROOM, offer_id(), Cause::Cancelled);
    let heard = stage.hear(0, Duration::from_millis(350));
    assert_eq!(heard, [(); 4].map(|()| cancelled.clone()), "at once, and every 100 ms");
    stage.say(0, Message::Drained { room: ROOM, grant: offer_id() });
    assert_eq!(stage.hear(0, Duration::from_millis(350)), []);
}

#[test]
fn g6_an_aux_record_that_is_not_the_rooms_fails_it() {
    for (room, incarnation) in [(RoomId(2), INCARNATION), (ROOM, INCARNATION - 1)] {
        let mut stage = Stage::new(Role::Decode, 1);
        let grant = stage.receive();
        let record = AuxRecord { room, grant: grant.id, incarnation };
        stage.peers[0].write_aux(&grant, record, b"token");
        stage.say(0, dry(grant.id));
        let [Completion::Received { result, .. }] = &stage.side.done[..] else {
            panic!("received")
        };
        assert_eq!(result.as_ref().map_err(|failure| failure.cause), Err(Cause::AuxCorrupt));
    }
}

#[test]
fn g5_only_a_rooms_own_peer_naming_the_room_can_end_it() {
    let mut stage = Stage::new(Role::Decode, 2);
    let grant = stage.receive().id;
    stage.say(1, abort(ROOM, grant, Cause::Cancelled));
    stage.say(1, dry(grant));
    stage.say(0, abort(RoomId(2), grant, Cause::Cancelled));
    assert!(stage.side.done.is_empty(), "{:?}", stage.side.done);

    let mut stage = Stage::new(Role::Prefill, 2);
    stage.open();
    stage.say(1, abort(ROOM, offer_id(), Cause::Cancelled));
    stage.say(0, abort(RoomId(2), offer_id(), Cause::Cancelled));
    assert!(stage.side.done.is_empty(), "{:?}", stage.side.done);
}

#[test]
fn r7_an_abort_that_overtakes_its_grant_is_answered_and_refuses_the_grant() {
    let mut stage = Stage::new(Role::Prefill, 1);
    let drained = Message::Drained { room: ROOM, grant: offer_id() };
    let stalled = abort(ROOM, offer_id(), Cause::Stalled { silent_ms: 1 });
    assert_eq!(stage.say(0, stalled.clone()), [drained]);
    assert_eq!(stage.say(0, Message::Grant(offer())), [stalled]);
}

#[test]
fn r7_a_refused_grant_stays_refused() {
    let mut stage = Stage::new(Role::Prefill, 1);
    stage.side.client.cancel(ROOM).unwrap();
    for _ in 0..2 {
        let cancelled = abort(ROOM, offer_id(), Cause::Cancelled);
        assert_eq!(stage.say(0, Message::Grant(offer())), [cancelled]);
    }
}

#[test]
fn r7_an_early_grant_that_is_given_up_is_told_until_it_is_heard() {
    let mut stage = Stage::new(Role::Prefill, 1);
    let accept = Message::Accept { room: ROOM, grant: offer_id() };
    assert_eq!(stage.say(0, Message::Grant(offer())), [accept]);
    stage.side.client.cancel(ROOM).unwrap();
    let cancelled = abort(ROOM, offer_id(), Cause::Cancelled);
    let heard = stage.hear(0, Duration::from_millis(350));
    assert_eq!(heard, [(); 4].map(|()| cancelled.clone()), "at once, and every 100 ms");
    stage.say(0, Message::Drained { room: ROOM, grant: offer_id() });
    assert_eq!(stage.hear(0, Duration::from_millis(350)), []);
}

#[test]
fn r7_an_early_grant_that_expires_is_told_until_the_other_side_gives_up_too() {
    let mut stage = Stage::new(Role::Prefill, 1);
    stage.say(0, Message::Grant(GrantOffer { deadline_ms: 1000, ..offer() }));
    let heard = stage.hear(0, Duration::from_millis(1500));
    let told = |message: &Message| {
        let cause = |cause: &Cause| matches!(cause, Cause::NeverOpened { .. });
        matches!(message, Message::Abort { cause: c, drained: true, .. } if cause(c))
    };
    assert!(heard.len() > 2 && heard.iter().all(told), "{heard:?}");
    let drained = Message::Drained { room: ROOM, grant: offer_id() };
    let theirs = abort(ROOM, offer_id(), Cause::Cancelled);
    assert_eq!(stage.say(0, theirs), [drained]);
    assert_eq!(stage.hear(0, Duration::from_millis(350)), []);
}

#[test]
fn r7_a_receive_too_many_is_told_until_it_is_heard_under_a_grant_of_its_own() {
    let mut stage = Stage::with(NodeConfig { max_rooms: 1, ..config(Role::Decode, 1) }, 1);
    let first = stage.receive().id;
    stage.side.receive(stage.peers[0].name, 2, &[], &[]);
    let heard = stage.hear(0, Duration::from_millis(350));
    let [Message::Abort { room: RoomId(2), grant, cause, drained: true }, ..] = heard[..] else {
        panic!("{heard:?}")
    };
    assert_eq!(cause, Cause::TooMany { limit: 1 });
    assert_ne!(grant, first);
    let again = abort(RoomId(2), grant, cause);
    assert_eq!(heard, [(); 4].map(|()| again.clone()), "at once, and every 100 ms");
    stage.say(0, Message::Drained { room: RoomId(2), grant });
    assert_eq!(stage.hear(0, Duration::from_millis(350)), []);
    // Nobody uses that grant later.
    stage.side.client.cancel(ROOM).unwrap();
    stage.run_for(Duration::from_millis(50));
    stage.say(0, Message::Drained { room: ROOM, grant: first });
    assert!(![first, grant].contains(&stage.receive().id));
}

#[test]
fn r7_what_nobody_hears_is_told_for_the_time_of_a_drain() {
    let mut stage = Stage::with(NodeConfig { max_rooms: 1, ..config(Role::Decode, 1) }, 1);
    stage.receive();
    stage.side.receive(stage.peers[0].name, 2, &[], &[]);
    let heard = stage.hear(0, Duration::from_secs(3));
    assert_eq!(heard.len(), 30, "every 100 ms for 3 s");
    assert_eq!(stage.hear(0, Duration::from_secs(1)), []);
}

/// An offer of that room, with so many pages.
fn offer_of(room: u64, pages: u32) -> GrantOffer {
    let mut offer = offer();
    (offer.room, offer.grant.id.slot) = (RoomId(room), room as u32);
    offer.grant.kv = (0..pages).collect();
    offer
}

fn accepts(heard: &[Message]) -> bool {
    matches!(heard, [Message::Accept { .. }])
}

#[test]
fn early_grants_of_one_peer_leave_room_for_those_of_another() {
    let bounded = |config, pages, limit| {
        let mut stage = Stage::with(config, 2);
        let mut takes =
            |peer, room| accepts(&stage.say(peer, Message::Grant(offer_of(room, pages))));
        assert_eq!((0..100).filter(|room| takes(0, *room)).count(), 5, "half of all");
        assert!(takes(1, 200));
        let offer = offer_of(7, pages);
        let refused = abort(offer.room, offer.grant.id, Cause::TooMany { limit });
        assert_eq!(stage.say(0, Message::Grant(offer)), [refused]);
    };
    let base = config(Role::Prefill, 1);
    bounded(NodeConfig { early_items: 1000, ..base.clone() }, 100, 1000);
    bounded(NodeConfig { max_rooms: 5, ..base }, 0, 5);
}

#[test]
fn a_room_whose_early_grant_was_one_too_many_fails_when_it_is_opened() {
    let mut stage = Stage::with(NodeConfig { max_rooms: 5, ..config(Role::Prefill, 1) }, 1);
    (0..6).for_each(|room| _ = stage.say(0, Message::Grant(offer_of(room, 1))));
    stage.side.open(5);
    stage.run_for(Duration::from_millis(50));
    let [Completion::Closed { room: RoomId(5), result, .. }] = &stage.side.done[..] else {
        panic!("{:?}", stage.side.done)
    };
    let cause = result.map_err(|failure| failure.cause);
    assert_eq!(cause, Err(Cause::TooMany { limit: 5 }));
    // One for which there is a place later is as good as any.
    stage.side.client.cancel(RoomId(0)).unwrap();
    stage.run_for(Duration::from_millis(50));
    let mut again = offer_of(5, 1);
    again.grant.id.generation += 1;
    assert!(accepts(&stage.say(0, Message::Grant(again))));
    let handle = stage.side.open(5);
    stage.run_for(Duration::from_millis(50));
    assert_eq!(handle.poll(), RoomState::WaitingForInput);
}

/// A prefill node that remembers little, and the tests' two peers: the second will abort a lot.
fn flooded(rooms: std::ops::Range<u64>, before: impl FnOnce(&mut Stage)) -> Stage {
    let mut stage = Stage::with(NodeConfig { tombstones: 8, ..config(Role::Prefill, 1) }, 2);
    before(&mut stage);
    for room in rooms {
        let grant = GrantId { slot: room as u32, generation: 77 };
        stage.say(1, abort(RoomId(room), grant, Cause::Cancelled));
    }
    stage
}

#[test]
fn r7_a_peer_that_floods_with_aborts_makes_nobody_else_forgotten() {
    let stalled = abort(ROOM, offer_id(), Cause::Stalled { silent_ms: 1 });
    let mut stage = flooded(100..200, |stage| _ = stage.say(0, stalled.clone()));
    assert_eq!(stage.say(0, Message::Grant(offer())), [stalled]);

    let mut stage = flooded(100..200, |stage| stage.side.client.cancel(ROOM).unwrap());
    stage.side.open(ROOM.0);
    stage.run_for(Duration::from_millis(50));
    let failure = stage.side.done.iter().find_map(|done| match done {
        Completion::Closed { result, .. } => result.err(),
        _ => None,
    });
    assert_eq!(failure.map(|failure| failure.cause), Some(Cause::Cancelled));
}

#[test]
fn r7_an_abort_of_another_peer_does_not_doom_a_room_whose_grant_is_here() {
    let mut stage = flooded(ROOM.0..ROOM.0 + 1, |stage| {
        stage.say(0, Message::Grant(offer()));
    });
    let handle = stage.side.open(ROOM.0);
    stage.run_for(Duration::from_millis(50));
    assert!(stage.side.done.is_empty(), "{:?}", stage.side.done);
    assert_eq!(handle.poll(), RoomState::WaitingForInput);
}

#[test]
fn rooms_and_early_grants_are_bounded() {
    let small = |role| NodeConfig { max_rooms: 1, ..config(role, 1) };
    let mut stage = Stage::with(small(Role::Prefill), 1);
    let full = Cause::TooMany { limit: 1 };
    stage.say(0, Message::Grant(offer()));
    let mut second = offer();
    (second.room, second.grant.id.slot) = (RoomId(2), 6);
    let refused = abort(second.room, second.grant.id, full);
    assert_eq!(stage.say(0, Message::Grant(second)), [refused]);

    let mut stage = Stage::with(small(Role::Decode), 1);
    stage.receive();
    stage.side.receive(stage.peers[0].name, 2, &[], &[]);
    stage.run_for(Duration::from_millis(50));
    let [Completion::Received { room: RoomId(2), result, .. }] = &stage.side.done[..] else {
        panic!("{:?}", stage.side.done)
    };
    assert_eq!(result.as_ref().map_err(|failure| failure.cause), Err(full));
}
