//! Decode side: finds a prefill instance, and has nodes dial it wherever it is.
//!
//! Not for which data-parallel rank has a request: that is
//! [`resolve`](transport_core::disagg::directory::resolve()). Invariant: a directory that is away, or
//! knows less than before, ends no link: what was found is dialled until something else is found.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;
use transport_core::disagg::directory::{
    Directory, DirectoryError, Endpoint, Prefill, Rank, Seat, Versioned,
};

use super::SharedDirectory;
use super::rounds::{Round, Rounds};
use crate::Targets;

/// First and longest pause between two looks for an instance that is not complete.
const PAUSES: [Duration; 2] = [Duration::from_millis(20), Duration::from_secs(1)];

/// Why an instance was not found.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum FindError {
    /// The directory did not say. A [`DirectoryError::Conflict`]: the instance is not the one that
    /// was expected; it was restarted with another layout.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// A rank registered a host that has no address here.
    #[error("the host of rank {rank} cannot be found (system error {errno})")]
    Host {
        /// The rank.
        rank: Rank,
        /// The system's error number; 0 when there is none.
        errno: i32,
    },
}

/// What an instance is, once each of its ranks is there; asks until then, at most so long. Blocks.
///
/// # Errors
///
/// What the directory said last; at once if asking again is of no use.
pub fn wait_until_ready(
    directory: &dyn Directory,
    patience: Duration,
) -> Result<Versioned<Prefill>, DirectoryError> {
    let (begun, [mut pause, longest]) = (Instant::now(), PAUSES);
    loop {
        match directory.prefill() {
            Err(error) if error.may_retry() && begun.elapsed() < patience => {
                thread::sleep(pause.min(patience.saturating_sub(begun.elapsed())));
                pause = (pause * 2).min(longest);
            }
            answer => return answer,
        }
    }
}

/// Has the nodes of a process dial the ranks of one prefill instance.
///
/// Calls block for as long as the directory's do, and for looking up hosts: make them from a thread
/// that may wait, or have [`Finder::spawn`] make one for them; never from one that drives a node.
pub struct Finder {
    directory: SharedDirectory,
    expected: Prefill,
    nodes: Vec<Node>,
    /// Of all that was found last; `None` when it must be asked again.
    epoch: Option<u64>,
    found: BTreeMap<Rank, Seat>,
}

/// One node here, and the ranks that it has to do with.
#[derive(Debug)]
struct Node {
    targets: Targets,
    ranks: Vec<Rank>,
}

impl Finder {
    /// Of the instance that is `expected`: what [`wait_until_ready`] gave, and the layouts of the
    /// nodes were made from.
    pub fn new(directory: SharedDirectory, expected: Prefill) -> Self {
        Self { directory, expected, nodes: Vec::new(), epoch: None, found: BTreeMap::new() }
    }

    /// Has a node dial these ranks, and set no other targets: those of its endpoint are ours.
    pub fn node(mut self, targets: Targets, ranks: impl IntoIterator<Item = Rank>) -> Self {
        self.nodes.push(Node { targets, ranks: ranks.into_iter().collect() });
        self.epoch = None;
        self
    }

    /// Looks where the ranks are, and has them dialled there. Whether any has moved or begun a new
    /// life since the last look.
    ///
    /// Costs one short question when nothing has changed, if the directory has epochs; SGLang's has
    /// none, so each rank is asked for. Call it when a peer is lost, and every few seconds.
    ///
    /// # Errors
    ///
    /// Nothing has changed: what was found before is still dialled.
    pub fn look(&mut self) -> Result<bool, FindError> {
        let now = self.directory.prefill()?;
        if now.epoch.is_some() && now.epoch == self.epoch {
            return Ok(false);
        }
        now.value.check(&self.expected).map_err(DirectoryError::from)?;
        let seats = self.seats()?;
        // Answers of different moments need not fit together: the next look asks again.
        let one_moment = seats.values().all(|seat| seat.epoch == now.epoch);
        let found = seats.into_iter().map(|(rank, seat)| (rank, seat.value)).collect();
        let moved = found != self.found;
        if moved {
            self.dial(&found)?;
            self.found = found;
        }
        self.epoch = now.epoch.filter(|_| one_moment);
        Ok(moved)
    }

    fn seats(&self) -> Result<BTreeMap<Rank, Versioned<Seat>>, FindError> {
        let ranks: BTreeSet<Rank> =
            self.nodes.iter().flat_map(|node| &node.ranks).copied().collect();
        ranks.into_iter().map(|rank| Ok((rank, self.directory.seat(rank)?))).collect()
    }

    fn dial(&self, found: &BTreeMap<Rank, Seat>) -> Result<(), FindError> {
        let resolve = |(rank, seat): (&Rank, &Seat)| Ok((*rank, address(*rank, &seat.endpoint)?));
        let addresses: BTreeMap<_, _> =
            found.iter().map(resolve).collect::<Result<_, FindError>>()?;
        for node in &self.nodes {
            node.targets.set(node.ranks.iter().filter_map(|rank| addresses.get(rank)).copied());
        }
        Ok(())
    }

    /// Looks on a thread of its own, at once and then each time `every` has passed, until the
    /// returned value is dropped. Fails when the system gives no thread.
    pub fn spawn(self, every: Duration) -> io::Result<Finding> {
        Ok(Finding { rounds: Rounds::spawn("finder", Looking { finder: self, every })? })
    }
}

/// The first address of a rank's host.
fn address(rank: Rank, Endpoint { host, port }: &Endpoint) -> Result<SocketAddr, FindError> {
    let found = (host.as_str(), *port).to_socket_addrs();
    let errno = found.as_ref().err().and_then(io::Error::raw_os_error).unwrap_or_default();
    found.ok().and_then(|mut all| all.next()).ok_or(FindError::Host { rank, errno })
}

impl fmt::Debug for Finder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Finder").field("found", &self.found).finish_non_exhaustive()
    }
}

struct Looking {
    finder: Finder,
    every: Duration,
}

impl Round for Looking {
    type Error = FindError;

    fn round(&mut self) -> (Result<(), FindError>, Option<Duration>) {
        (self.finder.look().map(drop), Some(self.every))
    }
}

/// A search that goes on. Dropping it ends it, for which it waits as long as one look may take; what
/// was found is still dialled.
#[derive(Debug)]
pub struct Finding {
    rounds: Rounds<FindError>,
}

impl Finding {
    /// Waits until the ranks are found, at most so long.
    ///
    /// # Errors
    ///
    /// Why they are not: at once where it takes somebody to change something. The thread goes on
    /// looking: the caller decides whether to go on waiting.
    pub fn wait(&self, patience: Duration) -> Result<(), FindError> {
        let for_good =
            |error: &FindError| matches!(error, FindError::Directory(e) if !e.may_retry());
        let no_answer = DirectoryError::Unreachable { errno: 0 };
        self.rounds.wait(patience, for_good).unwrap_or(Err(no_answer.into()))
    }

    /// Looks again now: when a peer is lost.
    pub fn hurry(&self) {
        self.rounds.hurry();
    }

    /// How the latest look went; `None` before the first is over. For logs: it looks again.
    pub fn latest(&self) -> Option<Result<(), FindError>> {
        self.rounds.latest()
    }
}
