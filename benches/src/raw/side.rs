//! One process's endpoint, driven by its only thread: everything that waits, turns it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use transport_core::Instant;
use transport_core::fabric::{Fabric, FabricEvent, PathError, PeerId, Write, WriteId};
use transport_core::link::{Endpoint, Link, LinkEvent};
use transport_core::transfer::{ArrivalGate, Grant, GrantId, Manifest, Part, Report};
use transport_tcp::{Park, TcpConfig};

use super::RawError;
use super::args::{FabricName, Memory, RawArgs};
use super::measure::Measured;
use super::pool::Pool;
use super::work::Workload;
use crate::args::Fabric as Choice;
use crate::cpu;
use crate::endpoint::AnyEndpoint;
use crate::taken::Taken;

/// Longest sleep; whatever ends it earlier rings.
const PAUSE: Duration = Duration::from_secs(1);
/// The only sender's name at the gate.
const WRITER: u32 = 0;

/// What the processes tell each other over the link, outside the clock.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) enum Message {
    /// The fabric's address.
    Address(Vec<u8>),
    /// A request: how many KV deliveries there will be, and whether aux.
    Open { kv: u32, aux: bool },
    /// The request's grant: send.
    Go { slot: u32, generation: u32, tag: u64 },
    /// The warm-up is over; so many requests follow.
    Iterations(u32),
    /// What the receiver measured.
    Measured(Measured),
    /// All is said.
    Bye,
}

/// One side.
pub(super) struct Side {
    pub(super) endpoint: AnyEndpoint,
    pub(super) pool: Pool,
    /// What the bytes go over.
    pub(super) taken: Taken,
    peer: PeerId,
    inbox: VecDeque<Message>,
    /// Counts what arrives under the grant that is in force.
    gate: Option<(GrantId, ArrivalGate)>,
    /// Arrivals that the gate has counted.
    pub(super) arrived: u32,
    /// When the gate said that all has come.
    pub(super) complete: Option<u64>,
    /// Writes that are not acknowledged.
    pub(super) in_flight: u32,
    is_up: bool,
    buffer: Vec<u8>,
    writes: u64,
}

impl Side {
    /// The side that waits, if it dials nobody.
    pub(super) fn new(
        work: &Workload,
        args: &RawArgs,
        dial: Option<SocketAddr>,
    ) -> Result<Self, RawError> {
        let listen = dial.is_none().then(|| SocketAddr::from(([127, 0, 0, 1], 0)));
        let lanes = args.lanes.unwrap_or(0);
        let config = TcpConfig {
            listen,
            lanes,
            spin: args.spin(),
            same_host: args.fabric.same_host(),
            ..TcpConfig::default()
        };
        let (choice, taken) = (endpoint_of(args.fabric), Taken::default());
        let mut endpoint = AnyEndpoint::new(choice, config, &args.rdma_ports, &taken)?;
        let sends = dial.is_some() || work.is_ping_pong();
        let shown = sends && args.memory == Memory::Own && args.fabric.shows();
        let pool = Pool::new(work, shown)?;
        endpoint.bind(pool.tables.clone())?;
        let peer = dial.map(|address| endpoint.dial(address)).transpose();
        let peer = peer.map_err(RawError::io("dialling"))?.unwrap_or(PeerId(u32::MAX));
        Ok(Self {
            endpoint,
            pool,
            taken,
            peer,
            inbox: VecDeque::new(),
            gate: None,
            arrived: 0,
            complete: None,
            in_flight: 0,
            is_up: false,
            buffer: vec![],
            writes: 0,
        })
    }

    /// Exchanges addresses and waits for the path.
    pub(super) fn connect(&mut self) -> Result<(), RawError> {
        let address = self.message(|message| match message {
            Message::Address(address) => Ok(address),
            _ => Err(RawError::Version),
        })?;
        let dialler = self.endpoint.local_addr().is_none();
        self.endpoint.connect(self.peer, &address, dialler)?;
        self.until(|side| side.is_up.then_some(()))
    }

    /// Turns until `look` finds something.
    pub(super) fn until<T>(
        &mut self,
        mut look: impl FnMut(&mut Self) -> Option<T>,
    ) -> Result<T, RawError> {
        loop {
            if let Some(found) = look(self) {
                return Ok(found);
            }
            if !self.turn()? {
                self.endpoint.park(PAUSE);
            }
        }
    }

    /// The next message.
    pub(super) fn message<T>(
        &mut self,
        read: impl Fn(Message) -> Result<T, RawError>,
    ) -> Result<T, RawError> {
        let message = self.until(|side| side.inbox.pop_front())?;
        read(message)
    }

    pub(super) fn say(&mut self, message: &Message) -> Result<(), RawError> {
        let text = serde_json::to_vec(message).expect("numbers and strings");
        let sent = self.endpoint.send(self.peer, &text);
        sent.map_err(|_| RawError::Gone(PathError::ClosedByPeer))
    }

    /// Lets the peer write what the workload names, `deliveries` times, and counts what comes.
    pub(super) fn admit(
        &mut self,
        id: GrantId,
        tag: u64,
        work: &Workload,
        manifest: Manifest,
    ) -> Result<(), RawError> {
        let gate = ArrivalGate::new(&[WRITER], manifest.kv);
        gate.manifest(WRITER, manifest);
        (self.arrived, self.complete) = (0, None);
        self.endpoint.grant(self.peer, grant(id, tag, work), None)?;
        self.gate = Some((id, gate));
        self.say(&Message::Go { slot: id.slot, generation: id.generation, tag })
    }

    /// Withdraws what [`Self::admit`] allowed.
    pub(super) fn withdraw(&mut self) {
        if let Some((id, _)) = self.gate.take() {
            self.endpoint.revoke(id);
        }
    }

    /// Waits for the peer's grant.
    pub(super) fn granted(&mut self, work: &Workload) -> Result<Arc<Grant>, RawError> {
        let (id, tag) = self.message(|message| match message {
            Message::Go { slot, generation, tag } => Ok((GrantId { slot, generation }, tag)),
            _ => Err(RawError::Version),
        })?;
        Ok(grant(id, tag, work))
    }

    /// Posts a delivery of `items`, to the granted positions from `first` on.
    pub(super) fn post(
        &mut self,
        grant: &Arc<Grant>,
        (part, sequence): (Part, u32),
        first: u32,
        items: &Arc<[u32]>,
    ) -> Result<(), RawError> {
        let table = Arc::clone(self.pool.tables.table(part).expect("KV or aux"));
        self.writes += 1;
        self.in_flight += 1;
        let write = Write {
            id: WriteId(self.writes),
            peer: self.peer,
            grant: Arc::clone(grant),
            part,
            sequence,
            first,
            buffers: 0..table.shapes().len() as u16,
            table,
            items: Arc::clone(items),
        };
        self.endpoint.post(write).map_err(|error| RawError::Post(error.to_string()))
    }

    /// One turn of the endpoint, and what it brought. True when something moved.
    fn turn(&mut self) -> Result<bool, RawError> {
        let now = Instant::from_nanos(cpu::monotonic());
        let mut moved = self.endpoint.progress(now);
        while let Some(event) = self.endpoint.poll(now) {
            moved = true;
            self.handle(event)?;
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        while let Some(event) = self.endpoint.receive(&mut buffer) {
            moved = true;
            self.hear(event, &buffer)?;
        }
        self.buffer = buffer;
        Ok(moved)
    }

    fn handle(&mut self, event: FabricEvent) -> Result<(), RawError> {
        match event {
            FabricEvent::Arrived { grant, part, sequence, .. } => {
                let Some((id, gate)) = &self.gate else { return Ok(()) };
                if *id != grant {
                    return Ok(());
                }
                self.arrived += 1;
                if gate.arrived(WRITER, part, sequence) == Report::Completed {
                    self.complete = Some(cpu::monotonic());
                }
            }
            FabricEvent::Completed { result, .. } => {
                result?;
                self.in_flight -= 1;
            }
            FabricEvent::PathUp { .. } => self.is_up = true,
            FabricEvent::PathDown { reason, .. } => return Err(RawError::Gone(reason)),
            _ => {}
        }
        Ok(())
    }

    fn hear(&mut self, event: LinkEvent, bytes: &[u8]) -> Result<(), RawError> {
        match event {
            LinkEvent::Up { peer, .. } => {
                self.peer = peer;
                let address = self.endpoint.address();
                self.say(&Message::Address(address))
            }
            LinkEvent::Message { .. } => {
                let message = serde_json::from_slice(bytes).map_err(|_| RawError::Version)?;
                self.inbox.push_back(message);
                Ok(())
            }
            LinkEvent::Down { reason, .. } => Err(RawError::Gone(reason)),
        }
    }
}

/// What carries messages and bytes.
fn endpoint_of(fabric: FabricName) -> Option<Choice> {
    (fabric == FabricName::Verbs).then_some(Choice::Verbs)
}

/// Both sides know the lists, so only the grant's name and tag are sent.
fn grant(id: GrantId, tag: u64, work: &Workload) -> Arc<Grant> {
    Arc::new(Grant { id, tag, kv: Arc::from(&work.to[..]), aux: [0], state: Box::new([]) })
}
