//! The floor: what rooms have two nodes exchange, without any room.

use std::sync::Arc;

use transport_core::fabric::{Fabric, PeerId, Write, WriteId};
use transport_core::link::{Endpoint, Link};
use transport_core::memory::CacheTables;
use transport_core::sim::{SimConfig, SimEndpoint, SimNet};
use transport_core::transfer::{Grant, GrantId, Part};

use crate::tables::tables;

/// Two endpoints that exchange what a room exchanges, without knowing why.
pub(crate) struct Bare {
    net: SimNet,
    target: SimEndpoint,
    source: SimEndpoint,
    to_source: PeerId,
    to_target: PeerId,
    tables: CacheTables,
    message: Vec<u8>,
    /// The slot that rooms' grants have, and how many had it.
    slot: u32,
    rooms: u32,
}

impl Bare {
    pub(crate) fn new() -> Self {
        let net = SimNet::new(1, SimConfig::checked());
        let (mut source, mut target) = (net.endpoint(), net.endpoint());
        let to_source = target.dial(source.node());
        let tables = tables();
        source.bind(tables.clone()).expect("the first time");
        target.bind(tables.clone()).expect("the first time");
        let (to_target, message) = (PeerId(0), Vec::new());
        let (addresses, slot, rooms) = ((source.address(), target.address()), 0, 0);
        let mut bare =
            Self { net, target, source, to_source, to_target, tables, message, slot, rooms };
        (0..1000).for_each(|_| _ = bare.turn());
        bare.target.connect(to_source, &addresses.0, true).expect("a path");
        bare.source.connect(to_target, &addresses.1, false).expect("a path");
        (0..1000).for_each(|_| _ = bare.turn());
        bare
    }

    /// With this many other grants in force, in the slots that other rooms would have: the simulator
    /// looks through them too, and for longer the later a slot comes.
    pub(crate) fn with_others(count: u32) -> Self {
        let mut bare = Self { slot: count, ..Self::new() };
        for slot in 0..count {
            let (id, kv, state) = (GrantId { slot, generation: 0 }, Arc::from([3]), Box::new([]));
            let grant = Arc::new(Grant { id, tag: 1, kv, aux: [0], state });
            bare.target.grant(bare.to_source, grant, None).expect("a path");
        }
        bare
    }

    fn turn(&mut self) -> u32 {
        let (now, mut events) = (self.net.now(), 0);
        for endpoint in [&mut self.target, &mut self.source] {
            endpoint.progress(now);
            while endpoint.poll(now).is_some() {
                events += 1;
            }
            while endpoint.receive(&mut self.message).is_some() {
                events += 1;
            }
        }
        self.net.step();
        events
    }

    /// Grant, Manifest and Complete as so many bytes, and two writes.
    pub(crate) fn room(&mut self) {
        let (slot, generation) = (self.slot, self.rooms);
        self.rooms += 1;
        let (id, kv, state) = (GrantId { slot, generation }, Arc::from([7]), Box::new([]));
        let grant = Arc::new(Grant { id, tag: 1, kv, aux: [0], state });
        self.target.grant(self.to_source, grant.clone(), None).expect("a path");
        self.target.send(self.to_source, &[0; 66]).expect("room in the link");
        self.wait(1);
        for (part, sequence) in [(Part::Kv, 0), (Part::Aux, 0)] {
            let table = self.tables.table(part).expect("both are there").clone();
            let (id, peer) = (WriteId(u64::from(part.to_wire())), self.to_target);
            let (grant, items) = (grant.clone(), Arc::from([0]));
            let (first, buffers) = (0, 0..1);
            let write = Write { id, peer, grant, part, sequence, first, buffers, table, items };
            self.source.post(write).expect("room in the queue");
        }
        self.source.send(self.to_target, &[0; 35]).expect("room in the link");
        self.wait(5);
        self.target.revoke(id);
        self.target.send(self.to_source, &[0; 24]).expect("room in the link");
        self.wait(1);
    }

    fn wait(&mut self, events: u32) {
        let mut seen = 0;
        while seen < events {
            seen += self.turn();
        }
    }
}
