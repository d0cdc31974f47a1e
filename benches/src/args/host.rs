//! A host and a port, as words.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::str::FromStr;

use thiserror::Error;

/// A host and a port that are looked up when they are needed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HostPort {
    host: String,
    port: u16,
}

impl HostPort {
    /// The addresses of the host, in the order to try them.
    ///
    /// # Errors
    ///
    /// When the name cannot be looked up or has no address.
    pub fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        let addresses: Vec<_> = (self.host.as_str(), self.port).to_socket_addrs()?.collect();
        if addresses.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("{self} has no address")));
        }
        Ok(addresses)
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// Why a text names no host and port.
#[derive(Clone, Copy, Debug, Error)]
pub enum HostPortError {
    /// No colon and number at the end.
    #[error("no port: expected HOST:PORT")]
    NoPort,
    /// The number is 0 or too large.
    #[error("the port is not within 1..=65535")]
    Port,
    /// No host, or an IPv6 address without brackets.
    #[error("no host: expected a name, an IPv4 address or an IPv6 address in brackets")]
    Host,
}

impl FromStr for HostPort {
    type Err = HostPortError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, port) = text.rsplit_once(':').ok_or(HostPortError::NoPort)?;
        let port = port.parse().ok().filter(|port| *port > 0).ok_or(HostPortError::Port)?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let plain = Some(host).filter(|host| !host.is_empty() && !host.contains([':', '[', ']']));
        let host = bracketed.or(plain).ok_or(HostPortError::Host)?.to_owned();
        Ok(Self { host, port })
    }
}
