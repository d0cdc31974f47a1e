//! A run's part in a directory: the prefill side serves it or registers, the decode side looks there.
//!
//! For the stand-ins of the engines, which do what an engine would with `transport-tcp`'s pieces. Not
//! for which group has a request: see [`super::routing`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use transport_core::disagg::directory::{
    self, DirectoryError, Endpoint, Prefill, Registration, Shape,
};
use transport_core::disagg::topology::{Rank, RankSizes, Side};
use transport_core::disagg::trust::SharedKey;
use transport_tcp::bootstrap::{
    BootstrapClient, BootstrapConfig, BootstrapServer, ClientConfig, Registered, Registrar,
    RunningBootstrap, SharedDirectory, address_towards, wait_until_ready,
};

use super::link::{Line, say};
use super::{RunError, read_key};
use crate::args::{HostPort, PrefillMeeting, RankArgs, Routing, RunArgs};
use crate::workload::Workload;

/// How long a registration may be refused: a crashed instance that was otherwise is gone by then.
const PATIENCE: Duration = Duration::from_secs(20);

/// Pause between two looks whether somebody needs the directory still.
const LINGER: Duration = Duration::from_millis(20);

/// An instance that is complete, and where it says so.
pub(super) struct Found {
    pub(super) directory: SharedDirectory,
    pub(super) instance: Prefill,
}

impl Found {
    /// Waits for the instance whose directory is at `address`.
    pub(super) fn wait(address: &HostPort, args: &RunArgs) -> Result<Self, RunError> {
        let directory = client(address, key(args)?);
        let instance = wait_until_ready(&*directory, args.patience());
        let instance = instance.map_err(|error| wrong(&error))?.value;
        Ok(Self { directory, instance })
    }

    /// The arguments with the instance's ranks in place of those that were not told. An error when
    /// what was told is otherwise.
    pub(super) fn complete(&self, args: &RunArgs) -> Result<RunArgs, RunError> {
        let Prefill { shape, page_tokens, .. } = &self.instance;
        let RankArgs { prefill_dp, prefill_tp, prefill_pp, prefill_cp, .. } = args.ranks;
        let [prefill_dp, prefill_tp, prefill_pp, prefill_cp] = [
            agree("--prefill-dp", prefill_dp, shape.dp)?,
            agree("--prefill-tp", prefill_tp, shape.tp)?,
            agree("--prefill-pp", prefill_pp, shape.pp)?,
            agree("--prefill-cp", prefill_cp, shape.cp)?,
        ]
        .map(Some);
        agree("--page-tokens", Some(args.model.layout.page_tokens), *page_tokens)?;
        let dp_policy = policy(&self.instance);
        let told = args.ranks.clone();
        let ranks = RankArgs { prefill_dp, prefill_tp, prefill_pp, prefill_cp, dp_policy, ..told };
        Ok(RunArgs { ranks, ..args.clone() })
    }
}

/// What the directory says of an option, if it was not told otherwise.
fn agree(option: &str, told: Option<u32>, found: u32) -> Result<u32, RunError> {
    match told {
        Some(told) if told != found => {
            Err(RunError::Peer(format!("{option} {told}, but the directory says {found}")))
        }
        _ => Ok(found),
    }
}

fn policy(instance: &Prefill) -> Routing {
    if instance.follow_room { Routing::Follow } else { Routing::Directory }
}

/// A prefill process's directory: its own, or one elsewhere.
pub(super) struct Presence {
    pub(super) directory: SharedDirectory,
    server: Option<RunningBootstrap>,
    /// What to register as our host.
    host: Option<String>,
    registered: Option<Registered>,
}

impl Presence {
    /// Serves the directory, or goes to the one that is told; `None` when none is.
    pub(super) fn open(
        meeting: &PrefillMeeting,
        child: bool,
        args: &RunArgs,
    ) -> Result<Option<Self>, RunError> {
        let (key, host) = (key(args)?, meeting.advertise.clone());
        let presence = |directory, server, host| Self { directory, server, host, registered: None };
        if let Some(at) = meeting.bootstrap_listen {
            let server = serve(at, key, child)?;
            let directory = Arc::new(server.directory().clone());
            return Ok(Some(presence(directory, Some(server), host)));
        }
        let Some(at) = &meeting.bootstrap else { return Ok(None) };
        let anywhere = meeting.listen.is_some_and(|listen| listen.ip().is_unspecified());
        let host = match host {
            None if anywhere => Some(seen_by(at)?),
            host => host,
        };
        Ok(Some(presence(client(at, key), None, host)))
    }

    /// Registers these ranks of the group, each with where it waits and its life.
    pub(super) fn register(
        &mut self,
        group: u32,
        seats: impl Iterator<Item = (Rank, SocketAddr, u64)>,
        workload: &Workload,
        args: &RunArgs,
    ) -> Result<(), RunError> {
        let sizes = workload.topology.layout(Side::Prefill).sizes();
        let instance = instance(sizes, workload, args);
        let seats: Vec<_> = seats.collect();
        let registration = |rank: Rank| {
            // A rank that has no part in any request has no node here, and nobody dials it; but the
            // instance is complete only with it.
            let seat = seats.iter().find(|(of, ..)| *of == rank).or(seats.first())?;
            let (_, address, incarnation) = *seat;
            let host = self.host.clone().unwrap_or_else(|| address.ip().to_string());
            let endpoint = Endpoint { host, port: address.port() };
            let (rank, incarnation) = (in_directory(rank), Some(incarnation));
            let prefill = instance.clone();
            Some(Registration { rank, endpoint, incarnation, lease: None, prefill })
        };
        let ranks: Vec<_> = sizes.group(group).filter_map(registration).collect();
        let registrar = Registrar::new(self.directory.clone(), ranks, Registrar::LEASE);
        let registered = registrar.spawn().map_err(RunError::io("cannot start a thread"))?;
        registered.wait(PATIENCE).map_err(|error| wrong(&error))?;
        self.registered = Some(registered);
        Ok(())
    }

    /// Takes the registrations back. Who serves the directory does so until the other groups have
    /// left it, or their leases have ended, and for a while until no request is in it that somebody
    /// may look for.
    pub(super) fn leave(mut self, args: &RunArgs) {
        self.registered = None;
        let (Some(server), begun) = (self.server, Instant::now()) else { return };
        let is_needed = || {
            let stats = server.directory().stats();
            stats.ranks > 0 || (stats.rooms > 0 && begun.elapsed() < args.transfer.stall())
        };
        while is_needed() {
            thread::sleep(LINGER);
        }
    }
}

fn serve(
    at: SocketAddr,
    key: Option<SharedKey>,
    child: bool,
) -> Result<RunningBootstrap, RunError> {
    let config = BootstrapConfig { key, ..BootstrapConfig::default() };
    let server = BootstrapServer::bind(at, config);
    let server = server.map_err(RunError::io("cannot open the port of the directory"))?;
    let server = server.spawn().map_err(RunError::io("cannot start a thread"))?;
    if child {
        say(&Line::Directory(server.address()));
    } else {
        // That there is no key, the nodes say.
        eprintln!("serving the directory at {}", server.address());
    }
    Ok(server)
}

/// Our address, as the host of the directory sees us.
fn seen_by(directory: &HostPort) -> Result<String, RunError> {
    let unknown = "cannot tell our address; give --advertise";
    let peer = directory.resolve().map_err(RunError::io(unknown))?[0];
    Ok(address_towards(peer).map_err(RunError::io(unknown))?.to_string())
}

fn instance(sizes: RankSizes, workload: &Workload, args: &RunArgs) -> Prefill {
    let RankSizes { dp, tp, pp, cp } = sizes;
    let geometry = &workload.geometry;
    Prefill {
        kv_dtype: Some(geometry.dtype.name().to_owned()),
        follow_room: args.ranks.dp_policy == Routing::Follow,
        ..Prefill::new(Shape { dp, cp, tp, pp }, geometry.page_tokens)
    }
}

/// A rank, as the directory names it.
pub(super) fn in_directory(rank: Rank) -> directory::Rank {
    let Rank { dp, tp, pp, cp } = rank;
    directory::Rank { dp, cp, tp, pp }
}

fn client(address: &HostPort, key: Option<SharedKey>) -> SharedDirectory {
    Arc::new(BootstrapClient::new(address, ClientConfig { key, ..ClientConfig::default() }))
}

fn key(args: &RunArgs) -> Result<Option<SharedKey>, RunError> {
    args.transfer.key_file.as_deref().map(read_key).transpose()
}

fn wrong(error: &DirectoryError) -> RunError {
    RunError::Peer(format!("the directory: {error}"))
}
