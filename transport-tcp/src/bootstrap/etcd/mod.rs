//! The directory in etcd, for clusters: whoever reaches it finds every instance, also when the node
//! that would have served it is gone.
//!
//! Under `PREFIX/INSTANCE/` there are
//!
//! | key | value |
//! | --- | --- |
//! | `ranks/DP.CP.TP.PP` | the incarnation before this one, a line feed, the body of `PUT /route` |
//! | `rooms/ROOM` | a data-parallel rank |
//!
//! Liveness is etcd's: a rank's key has a lease that registering again renews, and goes with it.
//! Rooms share a lease for each minute, so that a request costs one write.
//!
//! What contradicts what, and what is ready, is the [`Registry`]'s to say: the ranks are put into
//! one in the order in which they came. Two that contradict each other may both be written at the
//! same moment; then the later one is passed over by everybody, and takes itself back.
//!
//! Not for keeping strangers out: that is etcd's access control, and the network's.

mod gateway;

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use transport_core::disagg::RoomId;
use transport_core::disagg::directory::{
    Conflict, Directory, DirectoryError, Field, Limits, Prefill, Rank, Registered, Registration,
    Registry, Seat, Value, Versioned,
};

use self::gateway::{Gateway, KeyValue, Lease, Operation};
use super::json::{RouteBody, to_text};
use super::parse::Fields;

/// How long rooms are placed under one lease.
const SHARED: Duration = Duration::from_secs(60);

/// How often a registration is tried that others interfere with.
const TRIES: usize = 8;

/// Operations in one transaction, as etcd allows unless it is told otherwise.
const MAX_OPERATIONS: usize = 128;

/// Settings of an [`EtcdDirectory`].
#[derive(Clone, Debug)]
pub struct EtcdConfig {
    /// Members of the cluster, like `10.0.0.7:2379`; tried in this order.
    pub endpoints: Vec<String>,
    /// What the keys of all instances begin with. Default `/kv-transport`.
    pub prefix: String,
    /// The instance. No slashes.
    pub instance: String,
    /// How long a call of etcd may take. Default 5 s.
    pub timeout: Duration,
    /// What the directory holds, and for how long.
    pub limits: Limits,
}

impl EtcdConfig {
    /// The defaults, for an instance that these members know.
    pub fn new(endpoints: Vec<String>, instance: impl Into<String>) -> Self {
        Self {
            endpoints,
            prefix: "/kv-transport".to_owned(),
            instance: instance.into(),
            timeout: Duration::from_secs(5),
            limits: Limits::default(),
        }
    }
}

/// An instance's directory in etcd. Thread-safe; blocks, see [`Directory`].
#[derive(Debug)]
pub struct EtcdDirectory {
    gateway: Gateway,
    root: String,
    limits: Limits,
    leases: Mutex<Leases>,
}

#[derive(Debug, Default)]
struct Leases {
    ranks: HashMap<Rank, Lease>,
    /// For rooms, and since when.
    rooms: Option<(Lease, Instant)>,
}

/// A rank's key, as it is there now.
#[derive(Debug)]
struct Entry {
    registration: Registration,
    superseded: Option<u64>,
    mod_revision: u64,
}

impl EtcdDirectory {
    /// A directory. Connects when it is first used.
    pub fn new(config: &EtcdConfig) -> Self {
        let root = format!("{}/{}", config.prefix, config.instance);
        let gateway = Gateway::new(&config.endpoints, config.timeout);
        Self { gateway, root, limits: config.limits, leases: Mutex::default() }
    }

    fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rank_key(&self, rank: Rank) -> String {
        let Rank { dp, cp, tp, pp } = rank;
        format!("{}/ranks/{dp}.{cp}.{tp}.{pp}", self.root)
    }

    fn room_key(&self, room: RoomId) -> String {
        format!("{}/rooms/{}", self.root, room.0)
    }

    /// All ranks, the first that came first.
    fn entries(&self) -> Result<Vec<Entry>, DirectoryError> {
        let mut found = self.gateway.range(&format!("{}/ranks/", self.root))?;
        found.sort_by_key(|found| found.create_revision);
        // What is not a registration was not written by this directory, and stands for no rank.
        Ok(found.iter().filter_map(Entry::parse).collect())
    }

    /// The instance that these ranks make.
    fn registry(&self, entries: &[Entry]) -> Registry {
        let mut registry = Registry::new(self.limits, 0);
        for entry in entries {
            // One that contradicts those before it is no part of the instance.
            let _ = registry.register(transport_core::Instant::ZERO, &entry.registration);
        }
        registry
    }

    fn snapshot(&self) -> Result<(Registry, u64), DirectoryError> {
        let entries = self.entries()?;
        Ok((self.registry(&entries), epoch(&entries)))
    }

    /// One try. `false`: somebody else wrote this rank meanwhile.
    fn try_register(&self, offered: &Registration) -> Result<bool, DirectoryError> {
        let entries = self.entries()?;
        let held = entries.iter().find(|entry| entry.registration.rank == offered.rank);
        held.map_or(Ok(()), |held| held.refuse_superseded(offered))?;
        let registered =
            self.registry(&entries).register(transport_core::Instant::ZERO, offered)?;
        if registered == Registered::Known && self.renew(offered)? {
            return Ok(true);
        }
        let before = held.and_then(|held| held.before(offered));
        let value = format!(
            "{}\n{}",
            before.map(|life| life.to_string()).unwrap_or_default(),
            to_text(&RouteBody::new(offered)?)
        );
        let lease = offered.lease.map(|lease| self.gateway.grant(lease)).transpose()?;
        let put = Operation::Put { key: self.rank_key(offered.rank), value, lease };
        let revision = held.map_or(0, |held| held.mod_revision);
        if !self.gateway.put_if(&put, revision)? {
            return Ok(false);
        }
        match lease {
            Some(lease) => self.leases().ranks.insert(offered.rank, lease),
            None => self.leases().ranks.remove(&offered.rank),
        };
        self.stand_or_leave(offered).map(|()| true)
    }

    /// Renews the lease of a rank that is there. `false`: it needs another.
    fn renew(&self, offered: &Registration) -> Result<bool, DirectoryError> {
        let lease = self.leases().ranks.get(&offered.rank).copied();
        match (offered.lease, lease) {
            (None, None) => Ok(true),
            (Some(_), Some(lease)) => self.gateway.keep_alive(lease),
            _ => Ok(false),
        }
    }

    /// What was just written may contradict what another rank wrote at the same moment, and first.
    fn stand_or_leave(&self, offered: &Registration) -> Result<(), DirectoryError> {
        let entries = self.entries()?;
        let registered = self.registry(&entries).register(transport_core::Instant::ZERO, offered);
        registered.map(drop).inspect_err(|_| {
            // The refusal is what the caller has to know; the lease takes care of a key that stays.
            let _ = self.unregister(offered.rank, offered.incarnation);
        })
    }

    /// The lease under which rooms are placed now.
    fn room_lease(&self) -> Result<Lease, DirectoryError> {
        if let Some((lease, since)) = self.leases().rooms
            && since.elapsed() < SHARED
        {
            return Ok(lease);
        }
        let limit = self.limits.rooms as u64;
        if self.gateway.count(&format!("{}/rooms/", self.root))? >= limit {
            return Err(DirectoryError::Full { limit });
        }
        let lease = self.gateway.grant(self.limits.keep_rooms + SHARED)?;
        self.leases().rooms = Some((lease, Instant::now()));
        Ok(lease)
    }
}

impl Directory for EtcdDirectory {
    fn register(&self, registration: &Registration) -> Result<(), DirectoryError> {
        registration.check(&self.limits)?;
        for _ in 0..TRIES {
            if self.try_register(registration)? {
                return Ok(());
            }
        }
        Err(DirectoryError::Unreachable { errno: 0 })
    }

    fn unregister(&self, rank: Rank, incarnation: Option<u64>) -> Result<(), DirectoryError> {
        let entries = self.entries()?;
        let is_it = |entry: &&Entry| {
            entry.registration.rank == rank && entry.registration.incarnation == incarnation
        };
        let Some(entry) = entries.iter().find(is_it) else { return Ok(()) };
        let delete = Operation::Delete { key: self.rank_key(rank) };
        // If somebody wrote it meanwhile, it is another life, and not ours to delete.
        self.gateway.put_if(&delete, entry.mod_revision)?;
        self.leases().ranks.remove(&rank);
        Ok(())
    }

    fn prefill(&self) -> Result<Versioned<Prefill>, DirectoryError> {
        let (mut registry, epoch) = self.snapshot()?;
        let prefill = registry.prefill(transport_core::Instant::ZERO)?;
        Ok(Versioned { epoch: Some(epoch), ..prefill.cloned() })
    }

    fn seat(&self, rank: Rank) -> Result<Versioned<Seat>, DirectoryError> {
        let (mut registry, epoch) = self.snapshot()?;
        let seat = registry.seat(transport_core::Instant::ZERO, rank)?;
        Ok(Versioned { epoch: Some(epoch), ..seat.cloned() })
    }

    fn place(&self, room: RoomId, dp_rank: u32) -> Result<(), DirectoryError> {
        let lease = Some(self.room_lease()?);
        let put =
            |lease| Operation::Put { key: self.room_key(room), value: dp_rank.to_string(), lease };
        if self.gateway.transact(&[put(lease)]).is_ok() {
            return Ok(());
        }
        // etcd may have lost the lease; a new one tells that from anything else.
        self.leases().rooms = None;
        let lease = Some(self.room_lease()?);
        self.gateway.transact(&[put(lease)]).map(drop)
    }

    fn dp_ranks(&self, rooms: &[RoomId]) -> Result<Vec<(RoomId, u32)>, DirectoryError> {
        let mut found = Vec::new();
        for rooms in rooms.chunks(MAX_OPERATIONS) {
            let operations: Vec<_> =
                rooms.iter().map(|room| Operation::Get { key: self.room_key(*room) }).collect();
            let values = self.gateway.transact(&operations)?;
            let placed = rooms.iter().zip(values);
            found.extend(placed.filter_map(|(room, value)| Some((*room, value?.parse().ok()?))));
        }
        Ok(found)
    }

    fn complete(&self, rooms: &[RoomId]) -> Result<(), DirectoryError> {
        for rooms in rooms.chunks(MAX_OPERATIONS) {
            let operations: Vec<_> =
                rooms.iter().map(|room| Operation::Delete { key: self.room_key(*room) }).collect();
            self.gateway.transact(&operations)?;
        }
        Ok(())
    }
}

impl Entry {
    fn parse(found: &KeyValue) -> Option<Self> {
        let (superseded, body) = found.value.split_once('\n')?;
        let registration = Fields::parse(body.as_bytes()).ok()?.registration().ok()?;
        // That the key is there is its lease.
        let registration = Registration { lease: None, ..registration };
        let superseded = superseded.parse().ok();
        Some(Self { registration, superseded, mod_revision: found.mod_revision })
    }

    /// A word of the life before this one changes nothing.
    fn refuse_superseded(&self, offered: &Registration) -> Result<(), Conflict> {
        match offered.incarnation {
            Some(life) if self.superseded == Some(life) => Err(Conflict {
                field: Field::Incarnation,
                registered: self.registration.incarnation.into(),
                offered: Value::Number(life),
            }),
            _ => Ok(()),
        }
    }

    /// The life before the one that is offered, once that is written.
    fn before(&self, offered: &Registration) -> Option<u64> {
        let same_life = self.registration.incarnation == offered.incarnation;
        if same_life { self.superseded } else { self.registration.incarnation }
    }
}

/// The answer to a range of ranks, from its bytes to the instance, for fuzzing.
#[cfg(feature = "fuzzing")]
pub fn fuzz(data: &[u8]) {
    let Some(mut found) = gateway::found(data) else { return };
    found.sort_by_key(|found| found.create_revision);
    let entries: Vec<_> = found.iter().filter_map(Entry::parse).collect();
    static DIRECTORY: std::sync::LazyLock<EtcdDirectory> =
        std::sync::LazyLock::new(|| EtcdDirectory::new(&EtcdConfig::new(Vec::new(), "fuzzed")));
    let mut registry = DIRECTORY.registry(&entries);
    assert!(registry.ranks() <= entries.len(), "more ranks than entries");
    let _ = (epoch(&entries), registry.prefill(transport_core::Instant::ZERO).is_ok());
}

/// Differs whenever a rank came, went or began a new life: every write has a higher revision than
/// all before it, and without a write ranks only become fewer.
fn epoch(entries: &[Entry]) -> u64 {
    let latest = entries.iter().map(|entry| entry.mod_revision).max().unwrap_or_default();
    (latest << 16) | (entries.len() as u64 & 0xffff)
}
