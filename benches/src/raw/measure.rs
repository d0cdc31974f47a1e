//! The requests of a workload, one after the other, and the clock around each.
//!
//! The clock starts in the sender, just before it builds the writes, and stops in the receiver when
//! the gate says that all has come; both read the machine's monotonic clock. Of a ping-pong the
//! sender measures both ends. In between nothing is said over the link.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use transport_core::transfer::{Grant, GrantId, Manifest, Part, StateMask};

use super::RawError;
use super::args::RawArgs;
use super::side::{Message, Side};
use super::work::Workload;
use crate::cpu;

/// Nanoseconds that the measured requests may take together; fewer are made if they would not.
const BUDGET: u64 = 12_000_000_000;
/// Fewest requests worth a median.
const FEWEST: u32 = 3;
/// The grants' tag. Any will do: the sender is told.
const TAG: u64 = 0x6b76;

/// What one side measured, after the warm-up.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(super) struct Measured {
    /// Nanoseconds: the start or the end of each request; of a ping-pong's sender, both.
    pub(super) stamps: Vec<u64>,
    /// CPU seconds of the process.
    pub(super) cpu: f64,
    /// Most memory that was resident.
    pub(super) rss_mb: u64,
    /// Whether every byte was as it must be, twice.
    pub(super) verified: bool,
    /// What the bytes went over, if a transport moved them.
    pub(super) over: Option<String>,
}

/// Deliveries read from these items.
struct Lists {
    chunks: Vec<(u32, Arc<[u32]>)>,
    aux: Option<Arc<[u32]>>,
}

/// Sends the workload to the process at `address`; what both have measured.
pub(super) fn sender(
    work: &Workload,
    args: &RawArgs,
    address: SocketAddr,
) -> Result<(Measured, Measured), RawError> {
    let mut side = Side::new(work, args, Some(address))?;
    side.pool.fill();
    side.connect()?;
    let measured = if work.is_ping_pong() {
        ping(&mut side, work, args)?
    } else {
        send_all(&mut side, work, args)?
    };
    let theirs = side.message(|message| match message {
        Message::Measured(measured) => Ok(measured),
        _ => Err(RawError::Version),
    })?;
    // Nobody listens any more if it fails.
    let _ = side.say(&Message::Bye);
    let over = Some(side.taken.to_string());
    Ok((Measured { over, ..measured }, theirs))
}

/// Receives the workload; `tell` is given the address to wait at.
pub(super) fn receiver(
    work: &Workload,
    args: &RawArgs,
    tell: impl FnOnce(SocketAddr) -> Result<(), RawError>,
) -> Result<(), RawError> {
    let mut side = Side::new(work, args, None)?;
    tell(side.endpoint.local_addr().expect("it listens"))?;
    side.connect()?;
    let mut measured =
        if work.is_ping_pong() { pong(&mut side, work)? } else { receive_all(&mut side, work)? };
    measured.verified &= side.pool.verify(work);
    side.say(&Message::Measured(measured))?;
    // The sender goes first, so that it hears all of it.
    let _ = side.message(|message| match message {
        Message::Bye => Ok(()),
        _ => Err(RawError::Version),
    });
    Ok(())
}

fn send_all(side: &mut Side, work: &Workload, args: &RawArgs) -> Result<Measured, RawError> {
    let lists = Lists::new(work);
    let (mut meter, mut stamps) = (Meter::start(), vec![]);
    let mut rounds = work.warm;
    let mut round = 0;
    while round < rounds {
        side.say(&Message::Open { kv: work.chunks, aux: work.aux })?;
        let grant = side.granted(work)?;
        stamps.push(cpu::monotonic());
        lists.post(side, &grant)?;
        side.until(|side| (side.in_flight == 0).then_some(()))?;
        round += 1;
        if round == work.warm {
            let iterations = meter.iterations(work, args);
            side.say(&Message::Iterations(iterations))?;
            rounds += iterations;
            meter = Meter::start();
        }
    }
    Ok(meter.stop(stamps.split_off(work.warm as usize), true))
}

fn receive_all(side: &mut Side, work: &Workload) -> Result<Measured, RawError> {
    let (mut meter, mut stamps, mut verified) = (Meter::start(), vec![], true);
    let mut rounds = work.warm;
    let mut round = 0;
    while round < rounds {
        let manifest = opened(side)?;
        side.admit(GrantId { slot: 0, generation: round }, TAG, work, manifest)?;
        stamps.push(side.until(|side| side.complete.take())?);
        side.withdraw();
        if round == 0 {
            verified = side.pool.verify(work);
            side.pool.clear();
        }
        round += 1;
        if round == work.warm {
            rounds += iterations(side)?;
            meter = Meter::start();
        }
    }
    Ok(meter.stop(stamps.split_off(work.warm as usize), verified))
}

fn ping(side: &mut Side, work: &Workload, args: &RawArgs) -> Result<Measured, RawError> {
    let iterations = args.iters.unwrap_or(work.iterations);
    let rounds = work.warm + iterations;
    side.say(&Message::Iterations(iterations))?;
    side.admit(GrantId { slot: 0, generation: 0 }, TAG, work, all(rounds))?;
    let grant = side.granted(work)?;
    let lists = Lists::new(work);
    let (mut meter, mut stamps) = (Meter::start(), Vec::with_capacity(2 * iterations as usize));
    for round in 0..rounds {
        if round == work.warm {
            meter = Meter::start();
            stamps.clear();
        }
        stamps.push(cpu::monotonic());
        lists.post_as(side, &grant, round)?;
        side.until(|side| (side.arrived > round).then_some(()))?;
        stamps.push(cpu::monotonic());
    }
    Ok(meter.stop(stamps, true))
}

fn pong(side: &mut Side, work: &Workload) -> Result<Measured, RawError> {
    let rounds = work.warm + iterations(side)?;
    let grant = side.granted(work)?;
    side.admit(GrantId { slot: 0, generation: 0 }, TAG, work, all(rounds))?;
    let (lists, mut meter, mut verified) = (Lists::new(work), Meter::start(), true);
    for round in 0..rounds {
        if round == work.warm {
            meter = Meter::start();
        }
        side.until(|side| (side.arrived > round).then_some(()))?;
        if round == 0 {
            verified = side.pool.verify(work);
        }
        lists.post_as(side, &grant, round)?;
    }
    let complete = side.complete.is_some();
    side.until(|side| (side.in_flight == 0).then_some(()))?;
    Ok(meter.stop(vec![], verified && complete))
}

fn all(deliveries: u32) -> Manifest {
    Manifest { kv: deliveries, aux: false, state: StateMask::EMPTY }
}

fn opened(side: &mut Side) -> Result<Manifest, RawError> {
    side.message(|message| match message {
        Message::Open { kv, aux } => Ok(Manifest { kv, aux, state: StateMask::EMPTY }),
        _ => Err(RawError::Version),
    })
}

fn iterations(side: &mut Side) -> Result<u32, RawError> {
    side.message(|message| match message {
        Message::Iterations(iterations) => Ok(iterations),
        _ => Err(RawError::Version),
    })
}

impl Lists {
    fn new(work: &Workload) -> Self {
        let chunk = |chunk| {
            let positions = work.chunk(chunk);
            (positions.start as u32, Arc::from(&work.from[positions]))
        };
        let aux = work.aux.then(|| Arc::from([0]));
        Self { chunks: (0..work.chunks).map(chunk).collect(), aux }
    }

    /// Posts a whole request.
    fn post(&self, side: &mut Side, grant: &Arc<Grant>) -> Result<(), RawError> {
        for (sequence, (first, items)) in (0..).zip(&self.chunks) {
            side.post(grant, (Part::Kv, sequence), *first, items)?;
        }
        let aux = self.aux.as_ref().map(|items| side.post(grant, (Part::Aux, 0), 0, items));
        aux.unwrap_or(Ok(()))
    }

    /// Posts the only chunk as delivery `sequence`.
    fn post_as(&self, side: &mut Side, grant: &Arc<Grant>, sequence: u32) -> Result<(), RawError> {
        let (first, items) = &self.chunks[0];
        side.post(grant, (Part::Kv, sequence), *first, items)
    }
}

/// What a process uses.
pub(super) struct Meter {
    cpu: f64,
    wall: u64,
}

impl Meter {
    pub(super) fn start() -> Self {
        // Forgets the most that was resident until now; without it the figure is only larger.
        let _ = fs::write("/proc/self/clear_refs", "5");
        Self { cpu: cpu::process().as_secs_f64(), wall: cpu::monotonic() }
    }

    /// How many requests to measure, from how long the warm-up took.
    fn iterations(&self, work: &Workload, args: &RawArgs) -> u32 {
        let wanted = args.iters.unwrap_or(work.iterations);
        let each = (cpu::monotonic() - self.wall) / u64::from(work.warm);
        let fit = u32::try_from(BUDGET / each.max(1)).unwrap_or(u32::MAX);
        wanted.min(fit).max(FEWEST)
    }

    pub(super) fn stop(self, stamps: Vec<u64>, verified: bool) -> Measured {
        let cpu = cpu::process().as_secs_f64() - self.cpu;
        Measured { stamps, cpu, rss_mb: resident_mb(), verified, over: None }
    }
}

/// Most memory that was resident, in MB; 0 where the system does not say.
fn resident_mb() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) >> 10
}
