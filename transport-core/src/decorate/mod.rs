//! Endpoints around endpoints: for looking at what passes, and for breaking it on purpose.
//!
//! * [`Tracer`] shows every call and every event to a closure.
//! * [`Faulty`] damages what arrives, as a broken fabric would, to prove that somebody notices.
//!
//! A decorator is a [`Decorator`]; [`Decorated`] is the endpoint made of one and another endpoint,
//! and the only place that delegates. Decorators stack: a `Tracer<Faulty<E>, F>` shows what a
//! faulty endpoint reports. They cost a branch or two per event; nothing when they are not used.
#![forbid(unsafe_code)]

mod event;
mod faulty;
mod tracer;

use alloc::sync::Arc;
use alloc::vec::Vec;

pub use event::Event;
pub use faulty::{Fault, Faulty, Injector};
pub use tracer::{Tracer, Tracing};

use crate::Instant;
use crate::fabric::{Fabric, FabricError, FabricEvent, PeerId, PostError, Revoked, Write, WriteId};
use crate::link::{Endpoint, Link, LinkEvent, SendError};
use crate::memory::CacheTables;
use crate::transfer::{Grant, GrantId};

/// What happens around an endpoint's calls.
pub trait Decorator {
    /// Something passes between the endpoint and its caller.
    fn see(&mut self, event: &Event<'_>);

    /// Whether the caller learns of a fabric event. Asked before it is seen; called once for each.
    fn passes(&mut self, event: &FabricEvent) -> bool {
        let _ = event;
        true
    }
}

/// An endpoint with a decorator around it.
#[derive(Debug)]
pub struct Decorated<E, D> {
    endpoint: E,
    decorator: D,
}

impl<E: Endpoint, D: Decorator> Decorated<E, D> {
    /// Puts `decorator` around `endpoint`. Do it before [`Fabric::bind`], so that it sees all.
    pub fn with(endpoint: E, decorator: D) -> Self {
        Self { endpoint, decorator }
    }

    /// The endpoint inside.
    pub fn endpoint(&self) -> &E {
        &self.endpoint
    }

    /// The endpoint inside, for what [`Endpoint`] does not have (dialling, statistics). What is
    /// called on it directly is not seen.
    pub fn endpoint_mut(&mut self) -> &mut E {
        &mut self.endpoint
    }

    /// The endpoint, without the decorator.
    pub fn into_endpoint(self) -> E {
        self.endpoint
    }

    /// The decorator.
    pub fn decorator(&self) -> &D {
        &self.decorator
    }
}

impl<E: Endpoint, D: Decorator> Fabric for Decorated<E, D> {
    fn bind(&mut self, tables: CacheTables) -> Result<(), FabricError> {
        self.decorator.see(&Event::Bind(&tables));
        self.endpoint.bind(tables)
    }

    fn address(&self) -> Vec<u8> {
        self.endpoint.address()
    }

    fn connect(&mut self, peer: PeerId, address: &[u8], dialler: bool) -> Result<(), FabricError> {
        self.decorator.see(&Event::Connect { peer, dialler });
        self.endpoint.connect(peer, address, dialler)
    }

    fn disconnect(&mut self, peer: PeerId) {
        self.decorator.see(&Event::Disconnect { peer });
        self.endpoint.disconnect(peer);
    }

    fn grant(
        &mut self,
        peer: PeerId,
        grant: Arc<Grant>,
        view: Option<&CacheTables>,
    ) -> Result<(), FabricError> {
        self.endpoint.grant(peer, Arc::clone(&grant), view)?;
        self.decorator.see(&Event::Grant { peer, grant: &grant, view });
        Ok(())
    }

    fn revoke(&mut self, grant: GrantId) -> Revoked {
        let revoked = self.endpoint.revoke(grant);
        self.decorator.see(&Event::Revoke { grant, revoked });
        revoked
    }

    fn post(&mut self, write: Write) -> Result<(), PostError> {
        self.decorator.see(&Event::Post(&write));
        let posted = self.endpoint.post(write);
        posted.inspect_err(|error| self.decorator.see(&Event::NotPosted(error)))
    }

    fn cancel(&mut self, write: WriteId) {
        self.decorator.see(&Event::Cancel(write));
        self.endpoint.cancel(write);
    }

    fn poll(&mut self, now: Instant) -> Option<FabricEvent> {
        loop {
            let event = self.endpoint.poll(now)?;
            if self.decorator.passes(&event) {
                self.decorator.see(&Event::Fabric(&event));
                return Some(event);
            }
        }
    }
}

impl<E: Endpoint, D: Decorator> Link for Decorated<E, D> {
    fn send(&mut self, peer: PeerId, message: &[u8]) -> Result<(), SendError> {
        let result = self.endpoint.send(peer, message);
        self.decorator.see(&Event::Send { peer, message, result });
        result
    }

    fn receive(&mut self, message: &mut Vec<u8>) -> Option<LinkEvent> {
        let event = self.endpoint.receive(message)?;
        self.decorator.see(&Event::Link { event, message });
        Some(event)
    }

    fn close(&mut self, peer: PeerId) {
        self.decorator.see(&Event::Close { peer });
        self.endpoint.close(peer);
    }
}

impl<E: Endpoint, D: Decorator> Endpoint for Decorated<E, D> {
    fn progress(&mut self, now: Instant) -> bool {
        self.endpoint.progress(now)
    }
}

#[cfg(all(test, feature = "sim", feature = "conformance"))]
mod tests;
