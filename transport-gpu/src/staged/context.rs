//! What all paths of a staged endpoint share, and what one of them sees during its turn.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use transport_core::fabric::{FabricEvent, PathError, PeerId, PostError, Write, WriteId};
use transport_core::link::Endpoint;
use transport_core::memory::CacheTables;
use transport_core::transfer::{Grant, GrantId};

use super::StagingConfig;
use super::grants::Grants;
use super::outlet::CHUNKS;
use super::pool::Pool;
use super::shown::Exports;
use super::wire::Nonce;
use crate::device::{CopyQueue, Device, Ticket};
use crate::{DeviceFault, GpuError, random};

/// See the module.
#[derive(Debug)]
pub(super) struct Shared<D: Device> {
    // First: dropping the queues waits for their copies, before the pool goes.
    pub(super) gathering: D::Queue,
    pub(super) scattering: D::Queue,
    _pinned: Arc<D::Pinned>,
    pub(super) device: D,
    pub(super) config: StagingConfig,
    pub(super) nonce: Nonce,
    pub(super) pool: Pool,
    pub(super) tables: Option<CacheTables>,
    pub(super) exports: Exports,
    pub(super) grants: Grants,
    pub(super) events: VecDeque<FabricEvent>,
    /// How far the two queues are.
    pub(super) gathered: Result<Ticket, DeviceFault>,
    pub(super) scattered: Result<Ticket, DeviceFault>,
    /// Inner writes that are not over: whose, and the slot that they read.
    pub(super) posted: HashMap<WriteId, (PeerId, u32)>,
    /// Inner writes so far.
    pub(super) posts: u64,
    /// Whose each window is.
    pub(super) windows: Vec<Option<PeerId>>,
    /// How often each slot of inner grants was used: two to a window, whose terms take turns.
    generations: Vec<u32>,
}

impl<D: Device> Shared<D> {
    pub(super) fn new(
        device: D,
        config: StagingConfig,
        pool: Pool,
        pinned: Arc<D::Pinned>,
    ) -> Result<Self, GpuError> {
        let (gathering, scattering) = (device.queue(&pinned)?, device.queue(&pinned)?);
        let nonce = random::bytes()?;
        let (tables, exports, grants, events, posted) = Default::default();
        let windows = vec![None; config.peers.into()];
        Ok(Self {
            gathering,
            scattering,
            _pinned: pinned,
            device,
            config,
            nonce,
            pool,
            tables,
            exports,
            grants,
            events,
            gathered: Ok(Ticket(0)),
            scattered: Ok(Ticket(0)),
            posted,
            posts: 0,
            windows,
            generations: vec![0; 2 * usize::from(config.peers)],
        })
    }

    /// Asks both queues how far they are. True when one got further.
    pub(super) fn look_at_queues(&mut self) -> bool {
        let before = (self.gathered, self.scattered);
        // A fault stays: what a queue says after one means nothing.
        self.gathered = self.gathered.and_then(|_| self.gathering.finished());
        self.scattered = self.scattered.and_then(|_| self.scattering.finished());
        before != (self.gathered, self.scattered)
    }

    /// Why no path can go on, if that is so.
    pub(super) fn fault(&self) -> Option<PathError> {
        let fault = self.gathered.err().or(self.scattered.err());
        fault.map(|fault| PathError::Device(fault.0))
    }

    /// The inner grant of a window for a term, of an id that none had before.
    pub(super) fn new_grant(&mut self, window: u32, term: u64) -> Result<Grant, GpuError> {
        let slot = window * 2 + u32::from(term % 2 == 1);
        let generation = self.generations.get_mut(slot as usize);
        let generation = generation.map_or(0, |uses| {
            *uses = uses.wrapping_add(1);
            *uses
        });
        Ok(self.pool.grant(window, GrantId { slot, generation }, random::number()?))
    }

    /// Whose window an inner grant is of.
    pub(super) fn holder(&self, grant: GrantId) -> Option<PeerId> {
        self.windows.get(grant.slot as usize / 2).copied().flatten()
    }
}

/// What a path sees during its turn.
#[derive(Debug)]
pub(super) struct Context<'a, E, D: Device> {
    pub(super) inner: &'a mut E,
    pub(super) shared: &'a mut Shared<D>,
    pub(super) peer: PeerId,
}

impl<E: Endpoint, D: Device> Context<'_, E, D> {
    /// Posts a slot's chunk of `len` bytes to the peer's window, from block `first` of it on. False
    /// when the inner fabric has no room now.
    pub(super) fn post(
        &mut self,
        grant: &Arc<Grant>,
        sequence: u32,
        first: u32,
        (slot, len): (u32, u64),
    ) -> Result<bool, PathError> {
        let Shared { pool, posts, posted, .. } = &mut *self.shared;
        let table = Arc::clone(pool.table().ok_or(PathError::Protocol("a pool without a table"))?);
        let (id, grant) = (WriteId(*posts), Arc::clone(grant));
        let items = pool.send_items(slot, len);
        let (peer, part, buffers) = (self.peer, CHUNKS, 0..1);
        let write = Write { id, peer, grant, part, sequence, first, buffers, table, items };
        match self.inner.post(write) {
            Ok(()) => {
                *posts += 1;
                posted.insert(id, (peer, slot));
                Ok(true)
            }
            // No path: its end is on its way.
            Err(PostError::Busy(_) | PostError::NoPath(_)) => Ok(false),
            Err(_) => Err(PathError::Protocol("a staging window that the fabric cannot write")),
        }
    }
}
