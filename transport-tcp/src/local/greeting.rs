//! The conversation in which two endpoints show each other that they are on one machine.
//!
//! What is proven, and how:
//!
//! * *The same kernel*: descriptors came through the socket, and in the memory that they show stands
//!   the nonce which the peer's address named, over the link.
//! * *The same peer*: the hello carries the key of the link, which only its two ends know.
//! * *All memory can be used*: each side says whether it sees the other's files, and can read the
//!   process of the other where there are none.
//!
//! Both sides say hello, tell of their regions to whom has proven to be the peer, and when they have
//! heard all of the other's, whether they are ready. If one is not, or goes away, the path is TCP.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use thiserror::Error;

use super::channel::{NONCE_OFFSET, Nonce, WORDS, is_signed, sign};
use super::message::{self, Hello, Message};
use super::regions::{Notice, OwnRegions, PeerRegions};
use super::socket::{LocalSocket, MAX_MESSAGE};
use crate::preface::LinkKey;
use crate::sys::{OwnWords, PROOF, PeerWords, Process};

/// Why two endpoints do not share memory. They can do without.
#[derive(Debug, Error)]
pub(crate) enum Apart {
    /// The peer's socket ended.
    #[error("the peer ended it")]
    Ended,
    /// It said what no correct peer says.
    #[error("the peer broke the protocol ({0})")]
    Protocol(&'static str),
    /// The system refused something.
    #[error("{0}")]
    System(#[from] io::Error),
    /// One side cannot use the other's memory.
    #[error("one side cannot read the other's memory")]
    Unusable,
}

/// What both ends of a link know, and greet each other with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub(crate) key: LinkKey,
    /// Ours.
    pub(crate) nonce: Nonce,
    /// As the peer's address says.
    pub(crate) theirs: Nonce,
    /// Whether we read memory through the peer's process.
    pub(crate) foreign_memory: bool,
}

/// A process that connected, and the hello that it said.
#[derive(Debug)]
pub(crate) struct Knock {
    pub(crate) socket: LocalSocket,
    pub(crate) hello: Message,
}

/// A conversation under way.
#[derive(Debug)]
pub(crate) struct Greeting {
    socket: LocalSocket,
    terms: Terms,
    own: Arc<OwnRegions>,
    words: OwnWords,
    /// Messages that the socket has not taken.
    hello: Option<(Vec<u8>, OwnedFd)>,
    told: usize,
    ready_sent: bool,
    /// What the peer has shown so far.
    peer: Option<(Hello, PeerWords)>,
    regions: PeerRegions,
    usable: bool,
    ready_heard: bool,
}

/// What a path within a machine is made of.
#[derive(Debug)]
pub(crate) struct Met {
    pub(crate) socket: LocalSocket,
    pub(crate) own: Arc<OwnRegions>,
    pub(crate) regions: PeerRegions,
    pub(crate) words: OwnWords,
    pub(crate) theirs: PeerWords,
}

impl Greeting {
    pub(crate) fn new(socket: LocalSocket, terms: Terms, own: Arc<OwnRegions>) -> io::Result<Self> {
        let (words, file) = OwnWords::new(WORDS)?;
        sign(&words, terms.nonce);
        let hello = Hello {
            key: terms.key,
            nonce: terms.nonce,
            proof_at: words.address() + NONCE_OFFSET,
            regions: own.len() as u64,
        };
        Ok(Self {
            socket,
            terms,
            own,
            words,
            hello: Some((hello.encode(), file)),
            told: 0,
            ready_sent: false,
            peer: None,
            regions: PeerRegions::default(),
            usable: true,
            ready_heard: false,
        })
    }

    /// Goes on, as far as that is possible now. True when both are ready.
    pub(crate) fn turn(&mut self) -> Result<bool, Apart> {
        self.tell()?;
        while !self.ready_heard && self.hear()? {}
        self.tell()?;
        if self.ready_heard && self.ready_sent && !self.usable {
            return Err(Apart::Unusable);
        }
        Ok(self.ready_heard && self.ready_sent)
    }

    /// Hands over what was found, once [`Greeting::turn`] has said true.
    pub(crate) fn into_met(self) -> Option<Met> {
        let Self { socket, own, regions, words, peer, .. } = self;
        let (_, theirs) = peer?;
        Some(Met { socket, own, regions, words, theirs })
    }

    /// Handles a message that somebody else has read from the socket.
    pub(crate) fn heard(&mut self, message: Message) -> Result<(), Apart> {
        match message {
            Message::Hello(hello, file) if self.peer.is_none() => {
                let known = hello.key == self.terms.key && hello.nonce == self.terms.theirs;
                let theirs = PeerWords::open(file, WORDS)?;
                if !known || !is_signed(&theirs, self.terms.theirs) {
                    return Err(Apart::Protocol("a stranger's hello"));
                }
                self.peer = Some((hello, theirs));
                self.check_all()
            }
            Message::Regions(notices) if self.peer.is_some() => {
                for (notice, file) in notices {
                    self.add(notice, file)?;
                }
                self.check_all()
            }
            Message::Ready(ok) if self.has_all() => {
                self.ready_heard = true;
                self.usable &= ok;
                Ok(())
            }
            _ => Err(Apart::Protocol("a message out of turn")),
        }
    }

    fn add(&mut self, notice: Notice, file: Option<OwnedFd>) -> Result<(), Apart> {
        if self.has_all() {
            return Err(Apart::Protocol("more regions than were promised"));
        }
        // A file that cannot be seen is no reason to end: the peer is told that we are not ready.
        if self.regions.add(notice, file).is_err() {
            self.usable = false;
            self.regions.add(Notice { shared: false, ..notice }, None)?;
        }
        Ok(())
    }

    /// Whether all of the peer's regions were told.
    fn has_all(&self) -> bool {
        self.peer.as_ref().is_some_and(|(hello, _)| self.regions.len() as u64 >= hello.regions)
    }

    /// With all regions there, finds out whether they can be read.
    fn check_all(&mut self) -> Result<(), Apart> {
        let Some((hello, _)) = self.peer.as_ref().filter(|_| self.has_all()) else { return Ok(()) };
        if self.regions.need_process() && !self.terms.foreign_memory {
            self.usable = false;
        } else if self.regions.need_process() {
            let [low, high] = self.terms.theirs.map(u64::to_ne_bytes);
            let proof: [u8; PROOF] =
                std::array::from_fn(|i| if i < 8 { low[i] } else { high[i - 8] });
            match Process::of(self.socket.as_fd(), hello.proof_at, proof) {
                Ok(process) => self.regions.set_process(process),
                Err(_) => self.usable = false,
            }
        }
        Ok(())
    }

    /// Sends what is due and fits.
    fn tell(&mut self) -> Result<(), Apart> {
        if let Some((bytes, file)) = &self.hello {
            if !sent(self.socket.send(bytes, &[file.as_fd()]))? {
                return Ok(());
            }
            self.hello = None;
        }
        // Our memory is shown to nobody who has not shown the nonce that came over the link.
        while self.peer.is_some() && self.told < self.own.len() {
            let (bytes, files, told) = message::regions(&self.own, self.told);
            if !sent(self.socket.send(&bytes, &files))? {
                return Ok(());
            }
            self.told += told;
        }
        if !self.ready_sent && self.has_all() {
            self.ready_sent = sent(self.socket.send(&message::ready(self.usable), &[]))?;
        }
        Ok(())
    }

    /// Receives a message. False when there is none.
    fn hear(&mut self) -> Result<bool, Apart> {
        let mut bytes = [0; MAX_MESSAGE];
        match hear(&self.socket, &mut bytes)? {
            Some(message) => self.heard(message).map(|()| true),
            None => Ok(false),
        }
    }
}

impl AsFd for Greeting {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The next message on a socket; `None` when there is none now.
pub(crate) fn hear(
    socket: &LocalSocket,
    bytes: &mut [u8; MAX_MESSAGE],
) -> Result<Option<Message>, Apart> {
    match socket.receive(bytes) {
        Ok(received) if received.len == 0 => Err(Apart::Ended),
        Ok(received) => {
            let message = message::decode(&bytes[..received.len], received.files);
            message.map(Some).ok_or(Apart::Protocol("a message of no known kind"))
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether a message was taken.
fn sent(result: io::Result<()>) -> Result<bool, Apart> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error.into()),
    }
}
