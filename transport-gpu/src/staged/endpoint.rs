//! One turn of a staged endpoint, and its link: the owner's messages, with our own between them.

use transport_core::Instant;
use transport_core::fabric::{FabricEvent, PathError, PeerId, WriteError};
use transport_core::link::{Endpoint, Link, LinkEvent, SendError};

use super::Staged;
use super::context::Context;
use super::wire::Control;
use crate::device::Device;

impl<E: Endpoint, D: Device> Link for Staged<E, D> {
    fn send(&mut self, peer: PeerId, message: &[u8]) -> Result<(), SendError> {
        self.inner.send(peer, message)
    }

    fn receive(&mut self, message: &mut Vec<u8>) -> Option<LinkEvent> {
        loop {
            let event = self.inner.receive(message)?;
            match event {
                LinkEvent::Message { peer } if Control::is_for(&self.shared.nonce, message) => {
                    self.hear(peer, message);
                    continue;
                }
                LinkEvent::Down { peer, reason } => self.link_down(peer, reason),
                _ => {}
            }
            return Some(event);
        }
    }

    fn close(&mut self, peer: PeerId) {
        self.inner.close(peer);
    }
}

impl<E: Endpoint, D: Device> Endpoint for Staged<E, D> {
    fn progress(&mut self, now: Instant) -> bool {
        self.now = self.now.max(now);
        let mut moved = self.inner.progress(now);
        while let Some(event) = self.inner.poll(now) {
            self.handle(event);
            moved = true;
        }
        moved |= self.shared.look_at_queues();
        moved | self.turn_peers()
    }
}

impl<E: Endpoint, D: Device> Staged<E, D> {
    fn turn_peers(&mut self) -> bool {
        let Self { shared, inner, peers, now } = self;
        let mut moved = false;
        for (peer, known) in peers.iter_mut() {
            let Some(path) = &mut known.path else { continue };
            let mut ctx = Context { inner: &mut *inner, shared: &mut *shared, peer: *peer };
            if path.ended.is_none() {
                moved |= path.turn(known.hello, *now, &mut ctx);
            } else if path.finish(&mut ctx) {
                known.path = None;
                moved = true;
            }
        }
        moved
    }

    fn handle(&mut self, event: FabricEvent) {
        match event {
            FabricEvent::PathUp { peer } => {
                self.with_path(peer, |path, ctx| path.inner_up(ctx));
            }
            FabricEvent::PathDown { peer, reason } => {
                self.with_path(peer, |path, _| path.inner_down(reason));
            }
            FabricEvent::Completed { write, result } => {
                let Some((peer, slot)) = self.shared.posted.remove(&write) else { return };
                self.shared.pool.give_send(slot);
                if let Err(WriteError::Refused(_) | WriteError::Cancelled) = result {
                    let why = PathError::Protocol("the peer refuses what it has granted");
                    self.with_path(peer, |path, ctx| path.end(why, ctx));
                }
            }
            FabricEvent::Arrived { grant, sequence, .. } => {
                let holder = self.shared.holder(grant);
                let chunks = self.shared.config.term_chunks.into();
                self.with_holder(holder, |path| path.arrived(grant, sequence, chunks));
            }
            _ => {}
        }
    }

    /// Does something with the path to a peer that a correct one cannot make fail.
    fn with_holder(
        &mut self,
        holder: Option<PeerId>,
        act: impl FnOnce(&mut super::path::Path) -> Result<(), PathError>,
    ) {
        let Some(peer) = holder else { return };
        self.with_path(peer, |path, ctx| act(path).unwrap_or_else(|why| path.end(why, ctx)));
    }

    /// A message of the peer's staging to ours.
    fn hear(&mut self, peer: PeerId, message: &[u8]) {
        let control = Control::decode(message);
        if let Some(Control::Hello { path }) = control {
            self.peers.entry(peer).or_default().hello = Some(path);
            return;
        }
        self.with_path(peer, |path, ctx| {
            // A path that ends, or was given up, says nothing more, and needs to hear nothing.
            if !path.is_given_up() {
                let strange = PathError::Protocol("a malformed message of the staging");
                let heard = control.ok_or(strange).and_then(|control| path.hear(control, ctx));
                heard.unwrap_or_else(|why| path.end(why, ctx));
            }
        });
    }

    /// Without a link the two ends cannot speak of their path.
    fn link_down(&mut self, peer: PeerId, reason: PathError) {
        self.with_path(peer, |path, ctx| path.end(reason, ctx));
        let Some(known) = self.peers.get_mut(&peer) else { return };
        known.hello = None;
        if known.path.is_none() {
            self.peers.remove(&peer);
        }
    }
}
