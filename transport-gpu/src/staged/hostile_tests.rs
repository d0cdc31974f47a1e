//! A peer that speaks the protocol by hand and says what no correct peer says: the path ends, with a
//! reason, and no byte of the device changes.

use std::sync::Arc;

use transport_core::Instant;
use transport_core::conformance::Harness;
use transport_core::fabric::{Fabric, FabricEvent, PathError, PeerId, Write, WriteId};
use transport_core::link::{Endpoint, Link, LinkEvent};
use transport_core::memory::{CacheTables, MemoryRegion, PagedTable};
use transport_core::sim::{SimConfig, SimEndpoint, SimHarness};
use transport_core::transfer::{Grant, GrantId, Part};

use super::pool::{BLOCK, granted};
use super::wire::{Address, Control, Greeting, HEADER, Header, Nonce};
use super::*;
use crate::{MockConfig, MockDevice};

const NONCE: Nonce = [0x5a; 16];
const PATH: u64 = 77;
const PAGE: u64 = 100;

/// A staged target, and a peer that is not.
struct Scene {
    harness: SimHarness,
    now: Instant,
    target: Staged<SimEndpoint, MockDevice>,
    region: MemoryRegion,
    peer: SimEndpoint,
    /// What it writes from.
    block: MemoryRegion,
    table: Arc<PagedTable>,
    /// Each other's numbers: the target's of the peer, and the peer's of the target.
    numbers: (PeerId, PeerId),
    /// The target's nonce, and what it told us.
    nonce: Nonce,
    heard: Vec<Control>,
    events: Vec<FabricEvent>,
    writes: u64,
}

const NOBODY: PeerId = PeerId(u32::MAX);

impl Scene {
    /// With a path, over which the target has given a window; and a grant of pages 3 and 4.
    fn new() -> (Self, Greeting) {
        let mut scene = Self::linked();
        scene.until(|scene| scene.numbers.0 != NOBODY && scene.numbers.1 != NOBODY);
        let theirs = scene.target.address();
        let theirs = Address::decode(&theirs).unwrap();
        scene.nonce = theirs.nonce;
        scene.peer.connect(scene.numbers.1, theirs.inner, true).unwrap();
        let ours = Address { nonce: NONCE, inner: &scene.peer.address() }.encode();
        scene.target.connect(scene.numbers.0, &ours, false).unwrap();
        scene.say(&Control::Hello { path: PATH });
        let mut window = None;
        scene.until(|scene| {
            window = scene.heard.iter().find_map(|control| match control {
                Control::Greeting { path: PATH, greeting } => Some(*greeting),
                _ => None,
            });
            window.is_some()
        });
        let (kv, state) = (Arc::from([3, 4]), Box::new([]));
        let id = GrantId { slot: 9, generation: 1 };
        let grant = Arc::new(Grant { id, tag: 5, kv, aux: [0], state });
        scene.target.grant(scene.numbers.0, grant, None).unwrap();
        (scene, window.unwrap())
    }

    fn linked() -> Self {
        let mut harness = SimHarness::new(3, SimConfig::checked());
        let [inner, mut peer] = <[_; 2]>::try_from(harness.start(2)).unwrap();
        let device = MockDevice::new(1, MockConfig::default());
        let region = device.allocate(8 * PAGE as usize).unwrap();
        let kv = PagedTable::packed(&region, &[PAGE], 8).unwrap();
        let aux = || PagedTable::packed(&MemoryRegion::allocate(64).unwrap(), &[64], 1).unwrap();
        let config = StagingConfig { chunk: 1000, window: 2, ..StagingConfig::default() };
        let mut target = Staged::new(inner, device, config).unwrap();
        target.bind(CacheTables::new(kv, aux(), vec![]).unwrap()).unwrap();
        let block = MemoryRegion::allocate(BLOCK as usize).unwrap();
        let blocks = || PagedTable::packed(&block, &[BLOCK], 1).unwrap();
        let table = Arc::new(blocks());
        peer.bind(CacheTables::new(blocks(), aux(), vec![]).unwrap()).unwrap();
        let (now, numbers, nonce) = (Instant::ZERO, (NOBODY, NOBODY), [0; 16]);
        let (heard, events) = Default::default();
        Self {
            harness,
            now,
            target,
            region,
            peer,
            block,
            table,
            numbers,
            nonce,
            heard,
            events,
            writes: 0,
        }
    }

    fn turn(&mut self) {
        let (now, mut message) = (self.now, vec![]);
        self.target.progress(now);
        while let Some(event) = self.target.poll(now) {
            self.events.push(event);
        }
        while let Some(event) = self.target.receive(&mut message) {
            if let LinkEvent::Up { peer, .. } = event {
                self.numbers.0 = peer;
            }
        }
        self.peer.progress(now);
        while self.peer.poll(now).is_some() {}
        while let Some(event) = self.peer.receive(&mut message) {
            match event {
                LinkEvent::Up { peer, .. } => self.numbers.1 = peer,
                LinkEvent::Message { .. } => self.heard.extend(Control::decode(&message)),
                LinkEvent::Down { .. } => {}
            }
        }
        self.now = self.harness.step(false);
    }

    #[track_caller]
    fn until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        for _ in 0..100_000 {
            if done(self) {
                return;
            }
            self.turn();
        }
        panic!("waited in vain: {:?} {:?}", self.events, self.heard);
    }

    fn say(&mut self, control: &Control) {
        self.peer.send(self.numbers.1, &control.encode(&self.nonce)).unwrap();
    }

    /// Puts bytes into the window as chunk `serial`.
    fn put(&mut self, window: &Greeting, serial: u64, bytes: &[u8]) {
        self.block.write(0, bytes).unwrap();
        self.writes += 1;
        let write = Write {
            id: WriteId(self.writes),
            peer: self.numbers.1,
            grant: Arc::new(granted(window, 64).unwrap()),
            part: Part::Kv,
            sequence: serial as u32,
            first: (serial % window.slots * window.slot_blocks) as u32,
            buffers: 0..1,
            table: Arc::clone(&self.table),
            items: Arc::from([0]),
        };
        self.peer.post(write).unwrap();
    }

    #[track_caller]
    fn ends(&mut self, why: &'static str) {
        let down = |event: &FabricEvent| match event {
            FabricEvent::PathDown { reason, .. } => Some(*reason),
            _ => None,
        };
        let mut reason = None;
        self.until(|scene| {
            reason = scene.events.iter().find_map(down);
            reason.is_some()
        });
        assert_eq!(reason, Some(PathError::Protocol(why)));
        let arrived = |event: &FabricEvent| matches!(event, FabricEvent::Arrived { .. });
        assert!(!self.events.iter().any(arrived));
        assert!(self.bytes().iter().all(|byte| *byte == 0), "the device's memory has changed");
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.region.len()];
        self.region.read(0, &mut bytes).unwrap();
        bytes
    }
}

/// The first page of two, as a correct peer sends it.
fn header() -> Header {
    Header {
        grant: GrantId { slot: 9, generation: 1 },
        tag: 5,
        part: Part::Kv,
        sequence: 0,
        first: 0,
        items: 2,
        buffers: 0..1,
        serial: 0,
        offset: 0,
        total: 2 * PAGE,
        len: PAGE,
        pieces: 0,
    }
}

fn chunk(header: &Header) -> Vec<u8> {
    [&header.encode()[..], &[7; PAGE as usize]].concat()
}

#[test]
fn what_a_correct_peer_says_by_hand_lands() {
    let (mut scene, window) = Scene::new();
    scene.put(&window, 0, &chunk(&header()));
    (0..50).for_each(|_| scene.turn());
    scene.put(&window, 1, &chunk(&Header { serial: 1, offset: PAGE, ..header() }));
    scene.until(|scene| {
        scene.events.iter().any(|event| matches!(event, FabricEvent::Arrived { bytes: 200, .. }))
    });
    assert!(scene.bytes()[300..500].iter().all(|byte| *byte == 7));
    let note = Control::Note { path: PATH, retired: 2, refusals: vec![] };
    scene.until(|scene| scene.heard.contains(&note));
}

#[test]
fn w4_chunks_that_contradict_themselves_end_the_path() {
    let first = "a chunk without a header";
    let cases: [(Vec<u8>, &str); 6] = [
        (vec![0; HEADER], first),
        (chunk(&Header { serial: 1, ..header() }), first),
        (chunk(&Header { len: 300, ..header() }), first),
        (chunk(&Header { len: 1 << 40, total: 1 << 41, ..header() }), first),
        (chunk(&Header { offset: PAGE, ..header() }), "a chunk that continues no write"),
        (chunk(&Header { pieces: 2, ..header() }), "no pieces of its regions"),
    ];
    for (bytes, why) in cases {
        let (mut scene, window) = Scene::new();
        scene.put(&window, 0, &bytes);
        scene.ends(why);
    }
}

#[test]
fn w4_serials_beyond_the_window_and_repeated_ones_end_the_path() {
    let (mut scene, window) = Scene::new();
    scene.put(&window, 2, &chunk(&Header { serial: 2, ..header() }));
    scene.ends("a chunk outside its window");
    let (mut scene, window) = Scene::new();
    // A slot whose chunk waits for the one before it.
    scene.put(&window, 1, &chunk(&Header { serial: 1, ..header() }));
    (0..50).for_each(|_| scene.turn());
    scene.put(&window, 1, &chunk(&Header { serial: 1, ..header() }));
    (0..200).for_each(|_| scene.turn());
    assert!(scene.bytes().iter().all(|byte| *byte == 0));
}

#[test]
fn w4_messages_that_no_peer_sends_end_the_path() {
    let nothing = "a note of chunks that were not sent";
    let refusals = vec![];
    let cases = [
        (Control::Pulled { path: 0, upto: 5 }, "it pulled what was not sent"),
        (Control::Still { path: 0, upto: 5 }, "an answer to what was not asked"),
        (Control::Note { path: 0, retired: 3, refusals }, nothing),
    ];
    for (control, why) in cases {
        let (mut scene, _) = Scene::new();
        // The target's own number of the path, which it says when it greets.
        let mut number = None;
        scene.until(|scene| {
            number = scene.heard.iter().find_map(|control| match control {
                Control::Hello { path } => Some(*path),
                _ => None,
            });
            number.is_some()
        });
        let path = number.unwrap();
        let said = match control {
            Control::Pulled { upto, .. } => Control::Pulled { path, upto },
            Control::Still { upto, .. } => Control::Still { path, upto },
            Control::Note { retired, refusals, .. } => Control::Note { path, retired, refusals },
            other => other,
        };
        scene.say(&said);
        scene.ends(why);
    }
}

#[test]
fn m3_refused_chunks_land_nowhere_and_say_why() {
    use transport_core::fabric::Refusal;
    let cases = [
        (Header { tag: 6, ..header() }, Refusal::WrongTag),
        (Header { items: 3, total: 3 * PAGE, ..header() }, Refusal::OutOfGrant),
        (Header { total: PAGE, ..header() }, Refusal::OutOfGrant),
        (Header { buffers: 0..2, ..header() }, Refusal::OutOfGrant),
        (Header { grant: GrantId { slot: 9, generation: 2 }, ..header() }, Refusal::NoGrant),
    ];
    for (header, why) in cases {
        let (mut scene, window) = Scene::new();
        scene.put(&window, 0, &chunk(&header));
        let note = Control::Note { path: PATH, retired: 1, refusals: vec![(0, why)] };
        scene.until(|scene| scene.heard.contains(&note));
        assert!(scene.bytes().iter().all(|byte| *byte == 0));
    }
}
