//! Prefill side: the ranks of a process register, and stay registered.
//!
//! Not for serving the directory, and not for finding others. Invariant: what was registered here is
//! renewed well within its lease for as long as its owner wants it, and taken back after.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use transport_core::disagg::directory::{Conflict, DirectoryError, Field, Registration};

use super::SharedDirectory;
use super::rounds::{Round, Rounds};

/// Pause after a registration that was not taken.
const RETRY: Duration = Duration::from_millis(500);

/// Registers the ranks of a process, and renews their leases.
///
/// Calls block for as long as the directory's do: make them from a thread that may wait, or have
/// [`Registrar::spawn`] make one for them. Register when the nodes' ports are open, with the very
/// incarnations that the nodes have, and take it back before the nodes end.
pub struct Registrar {
    directory: SharedDirectory,
    ranks: Vec<Registration>,
    lease: Duration,
}

impl Registrar {
    /// A lease for most uses: renewed every 5 s, so a directory that was restarted knows its ranks
    /// again that soon, and a process that died is gone after 15 s.
    pub const LEASE: Duration = Duration::from_secs(15);

    /// Of these ranks, in place of whose own leases comes `lease`: whole seconds, of which there is
    /// one at least.
    pub fn new(
        directory: SharedDirectory,
        ranks: impl IntoIterator<Item = Registration>,
        lease: Duration,
    ) -> Self {
        let lease = Duration::from_secs(lease.as_secs().max(1));
        let leased = |rank| Registration { lease: Some(lease), ..rank };
        Self { directory, ranks: ranks.into_iter().map(leased).collect(), lease }
    }

    /// Registers each rank, or renews its lease. To be called again after [`Self::renew_after`],
    /// also when it fails: a directory comes back, and what contradicts us may be what a process
    /// before us left, which goes with its lease.
    ///
    /// # Errors
    ///
    /// The first, after the other ranks were tried as well, unless the directory cannot be reached.
    /// After one that [is the end](is_superseded) do not try again: somebody has taken our place.
    pub fn register(&self) -> Result<(), DirectoryError> {
        let mut all = Ok(());
        for rank in &self.ranks {
            let registered = self.directory.register(rank);
            if matches!(registered, Err(DirectoryError::Unreachable { .. })) {
                return registered;
            }
            all = all.and(registered);
        }
        all
    }

    /// How long a registration is good before it should be renewed: a third of the lease.
    pub fn renew_after(&self) -> Duration {
        self.lease / 3
    }

    /// Takes the registrations back. One that cannot be goes with its lease.
    pub fn leave(&self) {
        for rank in &self.ranks {
            let left = self.directory.unregister(rank.rank, rank.incarnation);
            if matches!(left, Err(DirectoryError::Unreachable { .. })) {
                return;
            }
        }
    }

    /// Does all of this on a thread of its own, until the returned value is dropped. Fails when the
    /// system gives no thread.
    pub fn spawn(self) -> io::Result<Registered> {
        Ok(Registered { rounds: Rounds::spawn("registrar", self)? })
    }
}

impl Round for Registrar {
    type Error = DirectoryError;

    fn round(&mut self) -> (Result<(), DirectoryError>, Option<Duration>) {
        let registered = self.register();
        let pause = match &registered {
            Ok(()) => Some(self.renew_after()),
            Err(error) if is_superseded(error) => None,
            Err(_) => Some(RETRY),
        };
        (registered, pause)
    }

    fn end(&mut self) {
        self.leave();
    }
}

impl fmt::Debug for Registrar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ranks, lease, .. } = self;
        f.debug_struct("Registrar").field("ranks", ranks).field("lease", lease).finish()
    }
}

/// Whether the directory refused a registration because a newer life of the rank has registered.
pub fn is_superseded(error: &DirectoryError) -> bool {
    matches!(error, DirectoryError::Conflict(Conflict { field: Field::Incarnation, .. }))
}

/// Ranks that are kept registered. Dropping this takes the registrations back, for which it waits as
/// long as one call of the directory may take.
#[derive(Debug)]
pub struct Registered {
    rounds: Rounds<DirectoryError>,
}

impl Registered {
    /// Waits until all ranks are registered, at most so long.
    ///
    /// # Errors
    ///
    /// Why they are not: at once where it takes somebody to change something. A
    /// [`DirectoryError::Conflict`] is waited for, as that with a dead instance ends with its leases.
    /// The thread goes on trying, unless it [was superseded](is_superseded).
    pub fn wait(&self, patience: Duration) -> Result<(), DirectoryError> {
        let for_good = |error: &DirectoryError| {
            !error.may_retry() && !matches!(error, DirectoryError::Conflict(_))
        };
        let no_answer = Err(DirectoryError::Unreachable { errno: 0 });
        self.rounds.wait(patience, for_good).unwrap_or(no_answer)
    }

    /// How it went the last time; `None` before the first. For logs: failures are tried again.
    pub fn latest(&self) -> Option<Result<(), DirectoryError>> {
        self.rounds.latest()
    }
}

/// The address of this host by which `peer` would be reached: what a rank that listens at all
/// addresses may register. Sends nothing. Fails when there is no way to `peer`.
pub fn address_towards(peer: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr = match peer {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(peer)?;
    Ok(socket.local_addr()?.ip())
}
