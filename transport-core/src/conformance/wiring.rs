//! Links between the endpoints under test: who is who, and the exchange of addresses.
//!
//! Endpoints number their peers as they like. So each says its index on every link that comes up,
//! and checks speak of indices only.

use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;

use crate::fabric::PeerId;
use crate::link::{Endpoint, LinkEvent};

/// First bytes of the suite's own messages; no check sends a message that begins so.
const MAGIC: &[u8] = b"\xffconformance\xff";
const HELLO: u8 = 1;
const ADDRESS: u8 = 2;

/// One endpoint and what it knows of the others.
#[derive(Debug)]
pub(super) struct Node<E> {
    pub(super) endpoint: E,
    index: usize,
    /// Who is behind a number; the last entry of an index is the current one.
    names: Vec<(PeerId, usize)>,
    /// Links that are up, and whether we dialled them.
    links: Vec<(PeerId, bool)>,
    /// Fabric addresses received, by index.
    pub(super) addresses: Vec<(usize, Vec<u8>)>,
    /// Messages that are not the suite's own.
    pub(super) messages: VecDeque<(usize, Vec<u8>)>,
    /// Ups (true) and downs of links, in order.
    pub(super) link_events: VecDeque<LinkEvent>,
}

impl<E: Endpoint> Node<E> {
    pub(super) fn new(endpoint: E, index: usize) -> Self {
        let (names, links, addresses) = Default::default();
        let (messages, link_events) = Default::default();
        Self { endpoint, index, names, links, addresses, messages, link_events }
    }

    /// The current number of the endpoint `index`, if its link is up and it said who it is.
    pub(super) fn peer(&self, index: usize) -> Option<PeerId> {
        let named = |peer: PeerId| self.index_of(peer) == Some(index);
        self.links.iter().map(|(peer, _)| *peer).find(|peer| named(*peer))
    }

    /// Who has, or had, that number.
    pub(super) fn index_of(&self, peer: PeerId) -> Option<usize> {
        self.names.iter().rev().find(|(known, _)| *known == peer).map(|(_, index)| *index)
    }

    /// Whether we dialled the link to `peer`.
    pub(super) fn dialled(&self, peer: PeerId) -> bool {
        self.links.contains(&(peer, true))
    }

    /// Sends our fabric's address; false when the link is busy.
    pub(super) fn send_address(&mut self, peer: PeerId) -> bool {
        let address = self.endpoint.address();
        self.endpoint.send(peer, &own(ADDRESS, &address)).is_ok()
    }

    /// Takes one link event; false when there is none. An error says what was wrong with it.
    pub(super) fn receive(&mut self) -> Result<bool, &'static str> {
        let mut message = vec![];
        let Some(event) = self.endpoint.receive(&mut message) else { return Ok(false) };
        match event {
            LinkEvent::Up { peer, dialler } => self.link_up(event, peer, dialler),
            LinkEvent::Down { peer, .. } => self.link_down(event, peer),
            LinkEvent::Message { peer } => self.message(peer, message),
        }?;
        Ok(true)
    }

    fn link_up(&mut self, up: LinkEvent, peer: PeerId, dialler: bool) -> Result<(), &'static str> {
        if self.is_linked(peer) {
            return Err("a link went up twice");
        }
        self.links.push((peer, dialler));
        self.link_events.push_back(up);
        let hello = own(HELLO, &(self.index as u32).to_le_bytes());
        self.endpoint.send(peer, &hello).map_err(|_| "a new link did not take a short message")
    }

    fn link_down(&mut self, down: LinkEvent, peer: PeerId) -> Result<(), &'static str> {
        if !self.is_linked(peer) {
            return Err("a link went down without being up");
        }
        self.links.retain(|(linked, _)| *linked != peer);
        self.link_events.push_back(down);
        Ok(())
    }

    fn message(&mut self, peer: PeerId, message: Vec<u8>) -> Result<(), &'static str> {
        if !self.is_linked(peer) {
            return Err("a message over a link that is not up");
        }
        let body = message.strip_prefix(MAGIC).and_then(<[u8]>::split_first);
        match (body, self.index_of(peer)) {
            (Some((&HELLO, index)), _) => {
                let index = u32::from_le_bytes(index.try_into().map_err(|_| "a damaged message")?);
                self.names.push((peer, index as usize));
            }
            (_, None) => return Err("a message came before the first one sent"),
            (Some((&ADDRESS, address)), Some(from)) => {
                self.addresses.push((from, address.to_vec()));
            }
            (_, Some(from)) => self.messages.push_back((from, message)),
        }
        Ok(())
    }

    fn is_linked(&self, peer: PeerId) -> bool {
        self.links.iter().any(|(linked, _)| *linked == peer)
    }
}

fn own(kind: u8, body: &[u8]) -> Vec<u8> {
    [MAGIC, &[kind], body].concat()
}
