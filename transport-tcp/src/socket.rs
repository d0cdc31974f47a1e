//! Options of every socket, each with its reason.
#![forbid(unsafe_code)]

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use transport_core::fabric::PathError;

use crate::TcpConfig;

/// Connections the kernel keeps for us between two turns.
const BACKLOG: i32 = 1024;

/// A listening, non-blocking socket. `[::]` also serves IPv4.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    // A restarted node must get its port back while old connections are in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A non-blocking socket on its way to `address`.
pub(crate) fn dial(address: SocketAddr, config: &TcpConfig) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    let stream = TcpStream::from(socket);
    prepare(&stream, address, config)?;
    match SockRef::from(&stream).connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(stream),
    }
}

/// Sets the options that connections of both directions have.
pub(crate) fn prepare(stream: &TcpStream, peer: SocketAddr, config: &TcpConfig) -> io::Result<()> {
    let socket = SockRef::from(stream);
    stream.set_nonblocking(true)?;
    // We write whole frames and coalesce ourselves; waiting for more would only delay them.
    stream.set_nodelay(true)?;
    backstop(&socket, config.dead_after)?;
    if let Some(bytes) = config.socket_buffer {
        // Also ends the kernel's own sizing of these buffers, so only on request.
        socket.set_send_buffer_size(bytes as usize)?;
        socket.set_recv_buffer_size(bytes as usize)?;
    }
    if canonical(peer.ip()).is_loopback() {
        without_pacing(&socket);
    }
    Ok(())
}

/// Lets the kernel give up a peer that vanished without a word.
fn backstop(socket: &SockRef<'_>, dead_after: Duration) -> io::Result<()> {
    let idle = (dead_after / 2).max(Duration::from_secs(1));
    let probes = TcpKeepalive::new().with_time(idle).with_interval((idle / 3).max(ONE_SECOND));
    socket.set_tcp_keepalive(&probes.with_retries(3))?;
    socket.set_tcp_user_timeout(Some(dead_after))
}

const ONE_SECOND: Duration = Duration::from_secs(1);

/// BBR paces even the loopback device and loses 15 to 45 % of its throughput. Nothing is lost or
/// queued there, so any window-based control will do. An unprivileged process may only choose
/// what the administrator allows, hence the second choice, and no error when both are refused.
fn without_pacing(socket: &SockRef<'_>) {
    let chosen =
        socket.set_tcp_congestion(b"cubic").or_else(|_| socket.set_tcp_congestion(b"reno"));
    let _ = chosen;
}

/// Whether both ends are on this machine.
pub(crate) fn is_local(stream: &TcpStream, peer: SocketAddr) -> bool {
    let peer = canonical(peer.ip());
    let ours = stream.local_addr().map(|address| canonical(address.ip()));
    peer.is_loopback() || ours.is_ok_and(|ours| ours == peer)
}

fn canonical(address: IpAddr) -> IpAddr {
    // A listener on `[::]` sees IPv4 peers as `::ffff:a.b.c.d`.
    address.to_canonical()
}

/// What a failed read or write means for a connection.
pub(crate) fn path_error(error: &io::Error) -> PathError {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, TimedOut, UnexpectedEof};
    match error.kind() {
        BrokenPipe | ConnectionReset | UnexpectedEof => PathError::ClosedByPeer,
        TimedOut => PathError::Timeout,
        _ => PathError::Device(error.raw_os_error().unwrap_or(0)),
    }
}
