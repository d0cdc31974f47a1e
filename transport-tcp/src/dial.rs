//! Connections that we open: their first steps, and the pauses between attempts.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use thiserror::Error;
use transport_core::Instant;

use crate::preface::{PREFACE, Preface, PrefaceReader};
use crate::reject::Rejected;
use crate::{TcpConfig, socket};

/// Why an attempt to reach a peer failed. It is tried again after a pause.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum DialError {
    /// What answered is not a transport of this version: check the address, or the releases.
    #[error("the peer did not answer as expected: {0}")]
    Answer(Rejected),
    /// The system's errno: refused, unreachable, out of descriptors, ...
    #[error("{}", io::Error::from_raw_os_error(*.0))]
    System(i32),
    /// No answer in time.
    #[error("no answer in time")]
    Timeout,
}

/// A connection of ours until the peer has replied to its preface.
#[derive(Debug)]
pub(crate) struct Dialling {
    stream: TcpStream,
    preface: [u8; PREFACE],
    sent: usize,
    reader: PrefaceReader,
}

impl Dialling {
    /// Begins to connect to `address`.
    pub(crate) fn start(
        address: SocketAddr,
        preface: Preface,
        config: &TcpConfig,
    ) -> Result<Self, DialError> {
        let stream = socket::dial(address, config).map_err(|error| system(&error))?;
        let reader = PrefaceReader::default();
        Ok(Self { stream, preface: preface.encode(), sent: 0, reader })
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    pub(crate) fn into_stream(self) -> TcpStream {
        self.stream
    }

    /// Goes on, after epoll reported something: the peer's reply once it is there.
    pub(crate) fn turn(&mut self) -> Result<Option<Preface>, DialError> {
        // Until the connection stands a write answers `WouldBlock`, or why it will not stand.
        while self.sent < PREFACE {
            match self.stream.write(&self.preface[self.sent..]) {
                Ok(bytes) => self.sent += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(system(&error)),
            }
        }
        self.reader.read(&mut self.stream).map_err(DialError::Answer)
    }
}

/// The errno of a failed call.
fn system(error: &io::Error) -> DialError {
    DialError::System(error.raw_os_error().unwrap_or(0))
}

/// When a peer is dialled again, and why the last attempt failed.
#[derive(Debug)]
pub(crate) struct Redial {
    /// When the next attempt is due; `None` while one runs or the link is up.
    due: Option<Instant>,
    /// The next pause: twice the last one, until the peer has proven worth dialling.
    pause: Duration,
    /// When the link came up, while it is.
    up: Option<Instant>,
    last: Option<DialError>,
}

impl Redial {
    /// Due at once.
    pub(crate) fn new(config: &TcpConfig) -> Self {
        Self { due: Some(Instant::ZERO), pause: config.redial_first, up: None, last: None }
    }

    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    pub(crate) fn last_error(&self) -> Option<DialError> {
        self.last
    }

    /// An attempt begins.
    pub(crate) fn begin(&mut self) {
        self.due = None;
    }

    /// The attempt failed: when the next is due.
    pub(crate) fn failed(&mut self, error: DialError, now: Instant, config: &TcpConfig) -> Instant {
        self.last = Some(error);
        self.pause(now, config)
    }

    /// The link came up. That alone says little: the peer may refuse what comes next, every time.
    pub(crate) fn link_is_up(&mut self, now: Instant) {
        self.up = Some(now);
        self.last = None;
    }

    /// A path came up: the next pause is short.
    pub(crate) fn path_is_up(&mut self, config: &TcpConfig) {
        self.pause = config.redial_first;
    }

    /// The link ended: when the next attempt is due. Soon, if it had lasted: there are links that
    /// never have a path.
    pub(crate) fn pause(&mut self, now: Instant, config: &TcpConfig) -> Instant {
        let up = self.up.take();
        if up.is_some_and(|up| now - up >= config.redial_most) {
            self.pause = config.redial_first;
        }
        let due = now + self.pause;
        self.due = Some(due);
        self.pause = (self.pause * 2).min(config.redial_most);
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_short_after_a_path() {
        let config = TcpConfig::default();
        let mut redial = Redial::new(&config);
        assert_eq!(redial.due(), Some(Instant::ZERO));
        let now = Instant::from_nanos(7);
        let mut pauses = vec![];
        for _ in 0..8 {
            redial.begin();
            assert_eq!(redial.due(), None);
            pauses.push(redial.failed(DialError::Timeout, now, &config) - now);
        }
        assert_eq!(pauses[..3], [50, 100, 200].map(Duration::from_millis));
        assert_eq!(pauses[6..], [config.redial_most; 2]);
        assert_eq!(redial.last_error(), Some(DialError::Timeout));
        redial.link_is_up(now);
        assert_eq!(redial.last_error(), None);
        assert_eq!(redial.pause(now, &config) - now, config.redial_most, "it ended at once");
        redial.path_is_up(&config);
        assert_eq!(redial.pause(now, &config) - now, config.redial_first);
    }

    #[test]
    fn a_link_that_lasted_is_dialled_soon() {
        let config = TcpConfig::default();
        let mut redial = Redial::new(&config);
        let now = Instant::from_nanos(7);
        (0..8).for_each(|_| _ = redial.failed(DialError::Timeout, now, &config));
        redial.link_is_up(now);
        let later = now + config.redial_most;
        assert_eq!(redial.pause(later, &config) - later, config.redial_first);
    }
}
