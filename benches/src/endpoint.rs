//! The endpoint that the arguments ask for.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use thiserror::Error;
use transport_core::Instant;
use transport_core::fabric::{
    Fabric, FabricError, FabricEvent, PeerId, PostError, Revoked, Write, WriteId,
};
use transport_core::link::{Endpoint, Link, LinkEvent, SendError};
use transport_core::memory::CacheTables;
use transport_core::transfer::{Grant, GrantId};
#[cfg(feature = "verbs")]
use transport_gpu::Direct;
use transport_gpu::{CudaDevice, MockDevice, RdmaDevice, Staged};
use transport_tcp::{Park, Targets, TcpConfig, TcpEndpoint};
#[cfg(feature = "verbs")]
use transport_verbs::{OpenError, VerbsConfig, VerbsEndpoint};

use crate::args::Fabric as Choice;
use crate::taken::{PathKind, Taken};

/// Said when RDMA is asked for and not in this program.
#[cfg(not(feature = "verbs"))]
pub(crate) const NOT_BUILT: &str =
    "this kvperf was built without it (cargo build --release -p kvperf --features verbs)";

/// Why there is no endpoint.
#[derive(Debug, Error)]
pub(crate) enum NoEndpoint {
    #[error("cannot open the port: {0}")]
    Port(#[from] io::Error),
    /// There is no RDMA here, or none in this program.
    #[error("RDMA: {0}")]
    NoRdma(String),
}

/// An endpoint over any fabric.
pub(crate) enum AnyEndpoint {
    /// Notes over what its paths go.
    Tcp(Box<TcpEndpoint>, Taken),
    /// Staged for a GPU, around one of the others.
    Cuda(Box<Staged<AnyEndpoint, CudaDevice>>),
    /// Staged for a mock device, around one of the others.
    Mock(Box<Staged<AnyEndpoint, MockDevice>>),
    #[cfg(feature = "verbs")]
    Verbs(Box<VerbsEndpoint>),
    /// Over RDMA, whose NIC reaches a device's memory.
    #[cfg(feature = "verbs")]
    Direct(Box<Direct<VerbsEndpoint>>),
}

/// An endpoint that does not reach a device's memory, and why.
pub(crate) struct Unreached {
    pub(crate) endpoint: AnyEndpoint,
    pub(crate) why: String,
}

/// Calls the same on whichever it is.
macro_rules! either {
    ($any:expr, $endpoint:ident => $call:expr) => {
        match $any {
            AnyEndpoint::Tcp($endpoint, _) => $call,
            AnyEndpoint::Cuda($endpoint) => $call,
            AnyEndpoint::Mock($endpoint) => $call,
            #[cfg(feature = "verbs")]
            AnyEndpoint::Verbs($endpoint) => $call,
            #[cfg(feature = "verbs")]
            AnyEndpoint::Direct($endpoint) => $call,
        }
    };
}

impl AnyEndpoint {
    /// Over RDMA, or what `link` says: it is for links, and for bytes over TCP or shared memory.
    /// `ports` are the RDMA ports to use, all if none are given. What paths bytes take is noted in
    /// `taken`.
    pub(crate) fn new(
        choice: Option<Choice>,
        link: TcpConfig,
        ports: &[String],
        taken: &Taken,
    ) -> Result<Self, NoEndpoint> {
        match choice {
            None | Some(Choice::Tcp | Choice::Local) => Self::tcp(link, taken),
            Some(Choice::Verbs) => Self::verbs(link, ports, taken),
            Some(Choice::Auto) => match Self::verbs(link.clone(), ports, taken) {
                Err(NoEndpoint::NoRdma(why)) => {
                    eprintln!("RDMA: {why}; this run goes without");
                    Self::tcp(link, taken)
                }
                other => other,
            },
        }
    }

    fn tcp(link: TcpConfig, taken: &Taken) -> Result<Self, NoEndpoint> {
        Ok(Self::Tcp(Box::new(TcpEndpoint::new(link)?), taken.clone()))
    }

    #[cfg(feature = "verbs")]
    fn verbs(link: TcpConfig, ports: &[String], taken: &Taken) -> Result<Self, NoEndpoint> {
        let (spin, ports) = (link.spin, ports.to_vec());
        match VerbsEndpoint::new(VerbsConfig { ports, link, spin, ..VerbsConfig::default() }) {
            Ok(endpoint) => {
                taken.note(PathKind::Rdma);
                Ok(Self::Verbs(Box::new(endpoint)))
            }
            Err(OpenError::Link(error)) => Err(error.into()),
            Err(why) => Err(NoEndpoint::NoRdma(why.to_string())),
        }
    }

    #[cfg(not(feature = "verbs"))]
    fn verbs(_: TcpConfig, _: &[String], _: &Taken) -> Result<Self, NoEndpoint> {
        Err(NoEndpoint::NoRdma(NOT_BUILT.to_owned()))
    }

    /// The endpoint, its NIC reaching the device's memory in the tables, and how it does.
    pub(crate) fn reaching(
        self,
        device: &(impl RdmaDevice + Clone + 'static),
        tables: &CacheTables,
    ) -> Result<(Self, String), Unreached> {
        match self {
            #[cfg(feature = "verbs")]
            Self::Verbs(endpoint) => {
                let mut direct = Direct::new(*endpoint, device.clone());
                match direct.register(tables) {
                    Some(path) if !path.is_direct() => {
                        let endpoint = Self::Verbs(Box::new(direct.into_inner()));
                        Err(Unreached { endpoint, why: path.to_string() })
                    }
                    path => {
                        let how = path.map_or("none on the device".to_owned(), |p| p.to_string());
                        Ok((Self::Direct(Box::new(direct)), how))
                    }
                }
            }
            endpoint => {
                let _ = (device, tables);
                let why = "staged through host memory; the fabric has no NIC that reaches them";
                Err(Unreached { endpoint, why: why.to_owned() })
            }
        }
    }

    pub(crate) fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(endpoint, _) => endpoint.local_addr(),
            #[cfg(feature = "verbs")]
            Self::Verbs(endpoint) => endpoint.local_addr(),
            #[cfg(feature = "verbs")]
            Self::Direct(direct) => direct.inner().local_addr(),
            Self::Cuda(staged) => staged.inner().local_addr(),
            Self::Mock(staged) => staged.inner().local_addr(),
        }
    }

    /// Whom it dials, to be told from other threads.
    pub(crate) fn targets(&self) -> Targets {
        match self {
            Self::Tcp(endpoint, _) => endpoint.targets(),
            #[cfg(feature = "verbs")]
            Self::Verbs(endpoint) => endpoint.links().targets(),
            #[cfg(feature = "verbs")]
            Self::Direct(direct) => direct.inner().links().targets(),
            Self::Cuda(staged) => staged.inner().targets(),
            Self::Mock(staged) => staged.inner().targets(),
        }
    }

    pub(crate) fn dial(&mut self, address: SocketAddr) -> io::Result<PeerId> {
        match self {
            Self::Tcp(endpoint, _) => endpoint.dial(address),
            #[cfg(feature = "verbs")]
            Self::Verbs(endpoint) => endpoint.dial(address),
            #[cfg(feature = "verbs")]
            Self::Direct(direct) => direct.inner_mut().dial(address),
            Self::Cuda(staged) => staged.inner_mut().dial(address),
            Self::Mock(staged) => staged.inner_mut().dial(address),
        }
    }
}

impl Fabric for AnyEndpoint {
    fn bind(&mut self, tables: CacheTables) -> Result<(), FabricError> {
        either!(self, endpoint => endpoint.bind(tables))
    }

    fn address(&self) -> Vec<u8> {
        either!(self, endpoint => endpoint.address())
    }

    fn connect(&mut self, peer: PeerId, address: &[u8], dialler: bool) -> Result<(), FabricError> {
        either!(self, endpoint => endpoint.connect(peer, address, dialler))
    }

    fn disconnect(&mut self, peer: PeerId) {
        either!(self, endpoint => endpoint.disconnect(peer))
    }

    fn grant(
        &mut self,
        peer: PeerId,
        grant: Arc<Grant>,
        view: Option<&CacheTables>,
    ) -> Result<(), FabricError> {
        either!(self, endpoint => endpoint.grant(peer, grant, view))
    }

    fn revoke(&mut self, grant: GrantId) -> Revoked {
        either!(self, endpoint => endpoint.revoke(grant))
    }

    fn post(&mut self, write: Write) -> Result<(), PostError> {
        either!(self, endpoint => endpoint.post(write))
    }

    fn cancel(&mut self, write: WriteId) {
        either!(self, endpoint => endpoint.cancel(write))
    }

    fn poll(&mut self, now: Instant) -> Option<FabricEvent> {
        let event = either!(self, endpoint => endpoint.poll(now));
        if let (Self::Tcp(endpoint, taken), Some(FabricEvent::PathUp { peer })) = (self, &event) {
            let shared = endpoint.is_same_host(*peer);
            taken.note(if shared { PathKind::SharedMemory } else { PathKind::Tcp });
        }
        event
    }
}

impl Link for AnyEndpoint {
    fn send(&mut self, peer: PeerId, message: &[u8]) -> Result<(), SendError> {
        either!(self, endpoint => endpoint.send(peer, message))
    }

    fn receive(&mut self, message: &mut Vec<u8>) -> Option<LinkEvent> {
        either!(self, endpoint => endpoint.receive(message))
    }

    fn close(&mut self, peer: PeerId) {
        either!(self, endpoint => endpoint.close(peer))
    }
}

impl Endpoint for AnyEndpoint {
    fn progress(&mut self, now: Instant) -> bool {
        either!(self, endpoint => endpoint.progress(now))
    }
}

impl Park for AnyEndpoint {
    fn park(&mut self, timeout: Duration) {
        either!(self, endpoint => endpoint.park(timeout));
    }

    fn unparker(&self) -> Waker {
        either!(self, endpoint => endpoint.unparker())
    }
}
