//! What can be chosen, and what is chosen when nobody does.
#![forbid(unsafe_code)]

use std::time::Duration;

use transport_tcp::TcpConfig;

/// Settings of a [`crate::VerbsEndpoint`].
///
/// ```
/// use transport_verbs::VerbsConfig;
///
/// let all_ports = VerbsConfig::default();
/// let two_ports = VerbsConfig { ports: vec!["mlx5_0:1".into(), "mlx5_3".into()], ..all_ports };
/// # let _ = two_ports;
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VerbsConfig {
    /// The ports to use, as `device:port`, or `device` for all its ports. Empty: every usable port,
    /// at most [`crate::MAX_PORTS`]. Default empty.
    pub ports: Vec<String>,
    /// Settings of the links, over which control messages go. Lanes, depth and the way within one
    /// host have no meaning here.
    pub link: TcpConfig,
    /// Writes in flight to one peer; one more is [`transport_core::fabric::PostError::Busy`].
    /// Default 1024.
    pub depth: usize,
    /// Work requests in flight on one queue pair, as far as the device allows. Default 512.
    pub send_depth: u32,
    /// Announcements of writes that a device holds until they are polled, of all peers together,
    /// as far as it allows. When they are used up, peers' devices try again until there is room.
    /// Default 4096.
    pub receive_depth: u32,
    /// Whether devices that can may write memory out of order, which is faster; an arrival still
    /// comes after all its bytes. Default true.
    pub relaxed_ordering: bool,
    /// How long a path may have no rail that works, when it is built and later. Default 10 s.
    pub path_timeout: Duration,
    /// How long a device may report nothing of requests that it was given, and a peer say nothing
    /// of what it was asked, before the rail, or the path, has failed: then a write that makes no
    /// progress ends with an error. Default 10 s.
    pub stall_timeout: Duration,
    /// First pause before a failed rail is tried again; every failure doubles it. Default 20 ms.
    pub rail_retry_first: Duration,
    /// Longest pause before a failed rail is tried again. Default 2 s.
    pub rail_retry_most: Duration,
    /// How long a packet may be unacknowledged before it is sent again: 4.096 µs * 2^n, n up to
    /// 31. Default 14, which is 67 ms.
    pub packet_timeout: u8,
    /// How often a packet is sent again before its rail has failed, up to 7. Default 7, which
    /// Soft-RoCE takes for ever; [`stall_timeout`](Self::stall_timeout) ends that too.
    pub packet_retries: u8,
    /// Longest registration, in bytes, even if devices take longer ones. Longer regions are
    /// registered in pieces. Default: no limit but the devices'.
    pub max_registration: u64,
    /// How long [`crate::VerbsEndpoint::wait`] polls before it parks. Default 20 µs.
    pub spin: Duration,
}

impl Default for VerbsConfig {
    fn default() -> Self {
        Self {
            ports: Vec::new(),
            link: TcpConfig::default(),
            depth: 1024,
            send_depth: 512,
            receive_depth: 4096,
            relaxed_ordering: true,
            path_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(10),
            rail_retry_first: Duration::from_millis(20),
            rail_retry_most: Duration::from_secs(2),
            packet_timeout: 14,
            packet_retries: 7,
            max_registration: u64::MAX,
            spin: Duration::from_micros(20),
        }
    }
}
