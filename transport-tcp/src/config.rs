//! What can be chosen, and what is chosen when nobody does.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::time::Duration;

/// Settings of a [`crate::TcpEndpoint`].
///
/// ```
/// use transport_tcp::TcpConfig;
///
/// let server = TcpConfig { listen: Some("[::1]:0".parse().unwrap()), ..TcpConfig::default() };
/// let client = TcpConfig::default(); // only dials
/// assert!(client.listen.is_none());
/// # let _ = server;
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TcpConfig {
    /// Where peers may dial us; port 0 takes a free one. `[::]` serves IPv4 as well. `None`: only
    /// we dial. Default `None`.
    pub listen: Option<SocketAddr>,
    /// Lanes wanted to each peer, at most 16; the path gets the smaller number of the two sides.
    /// 0 chooses: one inside a machine, four over a network. Default 0.
    pub lanes: u16,
    /// Writes in flight to one peer; one more is [`transport_core::fabric::PostError::Busy`].
    /// Clamped to 1 ..= 4096. Default 1024.
    pub depth: usize,
    /// Bytes of control messages that may wait for one peer; more is
    /// [`transport_core::link::SendError::Busy`]. A single message of any allowed length always
    /// fits into an empty queue. Default 4 MiB.
    pub link_queue: usize,
    /// Whether memory is shared with peers on this machine. Default [`SameHost::Upgrade`].
    pub same_host: SameHost,
    /// Whether a peer's memory on this machine may be read through the kernel (`process_vm_readv`)
    /// where it is in no memory file. Such a read takes as long as the peer's pages need to be there,
    /// and the endpoint's thread with it: for ever, if a debugger or a file system that never answers
    /// stands behind them. With `false` a peer that shows such memory gets a path as if it could not
    /// share any. Default true.
    pub foreign_memory: bool,
    /// How long [`crate::TcpEndpoint::wait`] polls before it parks. Polling saves the microseconds
    /// of going to sleep and being woken; it costs a core while it lasts, if no other thread wants it.
    /// Default 20 µs.
    pub spin: Duration,
    /// Send and receive buffer of every lane, in bytes. `None` leaves the size to the kernel, which
    /// fits it to the way's delay; set it where `net.ipv4.tcp_wmem` or `tcp_rmem` are too small for
    /// the way. Default `None`.
    pub socket_buffer: Option<u32>,
    /// How long a connection may take to be opened and to say what it is. Default 5 s.
    pub preface_timeout: Duration,
    /// How long all lanes of a path may take to come up, on both sides. Default 10 s.
    pub path_timeout: Duration,
    /// When the kernel gives up a connection whose peer does not answer at all. Only the backstop
    /// under the heartbeat of the protocol above. Default 60 s.
    pub dead_after: Duration,
    /// First pause before a peer is dialled again. Each is twice the one before, until a path was up
    /// or a link has lasted as long as the longest pause. Default 50 ms.
    pub redial_first: Duration,
    /// Longest pause before a peer is dialled again. Default 2 s.
    pub redial_most: Duration,
    /// Connections that may be waiting to be identified, or to be closed, at once. Default 256.
    pub max_pending: usize,
    /// Peers that may be connected at once, those we dial included. Default 1024.
    pub max_peers: usize,
}

/// What becomes of paths between two processes of one machine.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum SameHost {
    /// TCP, as everywhere.
    Never,
    /// Nothing but shared memory: a path to a peer that is elsewhere, or whose memory cannot be
    /// shared, does not come up.
    Require,
    /// Shared memory where both ends prove that they run under one kernel and can read each other's
    /// memory, else TCP. Memory from [`crate::HostMemory::map_shared`] is the fastest to send from;
    /// other memory needs the permission to read the process (that of a debugger), and can be
    /// [kept out](TcpConfig::foreign_memory). The peer can then read all memory that was bound; write
    /// it can not.
    #[default]
    Upgrade,
}

impl Default for TcpConfig {
    fn default() -> Self {
        Self {
            listen: None,
            lanes: 0,
            depth: 1024,
            same_host: SameHost::default(),
            foreign_memory: true,
            link_queue: 4 << 20,
            spin: Duration::from_micros(20),
            socket_buffer: None,
            preface_timeout: Duration::from_secs(5),
            path_timeout: Duration::from_secs(10),
            dead_after: Duration::from_secs(60),
            redial_first: Duration::from_millis(50),
            redial_most: Duration::from_secs(2),
            max_pending: 256,
            max_peers: 1024,
        }
    }
}
