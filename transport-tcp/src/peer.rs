//! What an endpoint knows of one peer.
#![forbid(unsafe_code)]

use std::net::{SocketAddr, TcpStream};

use transport_core::Instant;

use crate::address::LocalAddress;
use crate::dial::{Dialling, Redial};
use crate::link::LinkConn;
use crate::local::greeting::{Greeting, Knock};
use crate::path::Path;
use crate::preface::LinkKey;
use crate::reactor::Token;

/// A peer that is connected, or that we keep dialling.
#[derive(Debug)]
pub(crate) struct Peer {
    /// Where it is dialled, or came from.
    pub(crate) address: SocketAddr,
    /// Present for peers that we dial.
    pub(crate) redial: Option<Redial>,
    pub(crate) link: Link,
    /// What lanes of the present link carry.
    pub(crate) key: Option<LinkKey>,
    pub(crate) path: Option<Path>,
    /// The path within this machine, or what may become it. Once it is up there is no other.
    pub(crate) local: Local,
    /// What its address said of sharing memory, when our side has opened the path.
    pub(crate) nearby: Option<LocalAddress>,
    /// Lanes that came before [`transport_core::fabric::Fabric::connect`] was called here.
    pub(crate) early: Vec<EarlyLane>,
    /// Whether it is in the endpoint's queue of peers with something to send.
    pub(crate) queued: bool,
}

/// The state of a peer's link.
#[derive(Debug)]
pub(crate) enum Link {
    Dialling { token: Token, dialling: Dialling, deadline: Instant },
    Down,
    Up { token: Token, conn: LinkConn },
}

/// The state of the path within this machine.
#[derive(Debug, Default)]
pub(crate) enum Local {
    /// It came before our side opened the path.
    Early {
        token: Token,
        knock: Box<Knock>,
        deadline: Instant,
    },
    Greeting {
        token: Token,
        greeting: Box<Greeting>,
        deadline: Instant,
    },
    #[default]
    None,
    /// It is up; the endpoint has it, to look at often.
    Up,
}

/// A lane that waits to be bound.
#[derive(Debug)]
pub(crate) struct EarlyLane {
    pub(crate) token: Token,
    pub(crate) stream: TcpStream,
    pub(crate) index: u16,
    pub(crate) count: u16,
    pub(crate) deadline: Instant,
}

impl Local {
    /// When it must have become a path.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Early { deadline, .. } | Self::Greeting { deadline, .. } => Some(*deadline),
            Self::None | Self::Up => None,
        }
    }
}

impl Peer {
    pub(crate) fn new(address: SocketAddr, redial: Option<Redial>) -> Self {
        Self {
            address,
            redial,
            link: Link::Down,
            key: None,
            path: None,
            local: Local::None,
            nearby: None,
            early: Vec::new(),
            queued: false,
        }
    }

    /// The link, if it is up.
    pub(crate) fn conn_mut(&mut self) -> Option<&mut LinkConn> {
        match &mut self.link {
            Link::Up { conn, .. } => Some(conn),
            _ => None,
        }
    }

    /// Whether there is a path, up or not.
    pub(crate) fn has_path(&self) -> bool {
        self.path.is_some() || matches!(self.local, Local::Up)
    }

    pub(crate) fn is_up(&self) -> bool {
        matches!(self.link, Link::Up { .. })
    }

    /// Whether link or path could send something now.
    pub(crate) fn can_send(&self) -> bool {
        let link = matches!(&self.link, Link::Up { conn, .. } if conn.can_send());
        link || self.path.as_ref().is_some_and(Path::can_send)
    }

    /// The next moment at which something is due.
    pub(crate) fn next_timer(&self) -> Instant {
        let dialling = match self.link {
            Link::Dialling { deadline, .. } => Some(deadline),
            _ => None,
        };
        let redial = self.redial.as_ref().and_then(Redial::due);
        let path = self.path.as_ref().and_then(Path::deadline);
        let early = self.early.iter().map(|lane| lane.deadline);
        let all =
            [dialling, redial, path, self.local.deadline()].into_iter().flatten().chain(early);
        all.min().unwrap_or(Instant::FAR)
    }
}
