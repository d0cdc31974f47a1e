//! One peer: the path to it, how the two ends find each other on it, and how it ends.
//!
//! A path is up when the inner one is and the peer has given a window. It is down when the inner one
//! is *and* the device neither reads nor writes for it any more: what was posted completes, and
//! `PathDown` is reported, only then (M2). A device that hangs holds that back for ever; so do its
//! pages stay where they are.

use std::collections::VecDeque;
use std::sync::Arc;

use transport_core::Instant;
use transport_core::fabric::{FabricEvent, PathError};
use transport_core::link::Endpoint;
use transport_core::transfer::GrantId;

use super::context::Context;
use super::inlet::Inlet;
use super::outlet::Outlet;
use super::wire::{Control, Greeting, Nonce};
use crate::device::Device;

/// A peer whose link is up, or that has a path.
#[derive(Debug, Default)]
pub(super) struct Peer {
    /// Its number of the latest path that it opened.
    pub(super) hello: Option<u64>,
    pub(super) path: Option<Path>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Path {
    /// Our number of it.
    number: u64,
    /// The peer's endpoint.
    nonce: Nonce,
    /// By when it must be up.
    deadline: Instant,
    inner_up: bool,
    reported_up: bool,
    hello_due: bool,
    /// The peer's number of the path for which it was greeted.
    greeted: Option<u64>,
    /// What the peer is to be told of our window.
    greetings: Vec<Greeting>,
    /// How many of them it was told.
    told: usize,
    /// How many of our regions it was shown.
    shown: usize,
    /// It is to be told that its regions are open.
    opened_due: bool,
    /// It asked whether the path was still there after these chunks.
    still_due: Option<u64>,
    /// Inner grants in force, by term.
    grants: VecDeque<(u64, GrantId)>,
    pub(super) outlet: Outlet,
    pub(super) inlet: Inlet,
    /// Why we end it, when we do.
    why: Option<PathError>,
    /// Why it ended, inside.
    pub(super) ended: Option<PathError>,
}

impl Path {
    pub(super) fn new(
        number: u64,
        nonce: Nonce,
        deadline: Instant,
        outlet: Outlet,
        inlet: Inlet,
    ) -> Self {
        let (greetings, grants) = Default::default();
        Self {
            number,
            nonce,
            deadline,
            inner_up: false,
            reported_up: false,
            hello_due: true,
            greeted: None,
            greetings,
            told: 0,
            shown: 0,
            opened_due: false,
            still_due: None,
            grants,
            outlet,
            inlet,
            why: None,
            ended: None,
        }
    }

    /// Whether writes can be posted.
    pub(super) fn is_up(&self) -> bool {
        self.reported_up && self.ended.is_none()
    }

    /// Whether it has ended, or we have ended it.
    pub(super) fn is_given_up(&self) -> bool {
        self.ended.is_some() || self.why.is_some()
    }

    /// Whether the device copies for it, or is to.
    pub(super) fn is_busy(&self) -> bool {
        self.ended.is_some() || self.outlet.is_busy() || self.inlet.is_busy()
    }

    /// Ends it for a reason; the inner fabric says when.
    pub(super) fn end<E: Endpoint, D: Device>(
        &mut self,
        why: PathError,
        ctx: &mut Context<'_, E, D>,
    ) {
        if self.ended.is_none() {
            self.why = self.why.or(Some(why));
            ctx.inner.disconnect(ctx.peer);
        }
    }

    /// The inner path is up: the peer is given a window.
    pub(super) fn inner_up<E: Endpoint, D: Device>(&mut self, ctx: &mut Context<'_, E, D>) {
        self.inner_up = true;
        for term in [0, 1] {
            self.grant_term(term, ctx);
        }
    }

    /// The inner path is down.
    pub(super) fn inner_down(&mut self, reason: PathError) {
        self.ended = Some(self.why.unwrap_or(reason));
    }

    /// Puts the window's grant for a term in force, and has the peer told.
    fn grant_term<E: Endpoint, D: Device>(&mut self, term: u64, ctx: &mut Context<'_, E, D>) {
        let Ok(grant) = ctx.shared.new_grant(self.inlet.window(), term) else {
            return self.end(PathError::Device(libc::EIO), ctx);
        };
        let chunks = ctx.shared.config.term_chunks.into();
        self.greetings.push(ctx.shared.pool.greeting(&grant, term, chunks));
        self.grants.push_back((term, grant.id));
        if ctx.inner.grant(ctx.peer, Arc::new(grant), None).is_err() {
            self.end(PathError::Device(libc::ENOMEM), ctx);
        }
    }

    /// The peer's chunk lies in its slot: the inner grant and the number of its arrival.
    pub(super) fn arrived(
        &mut self,
        grant: GrantId,
        sequence: u32,
        chunks: u64,
    ) -> Result<(), PathError> {
        let term = self.grants.iter().find(|(_, id)| *id == grant).map(|(term, _)| *term);
        let strange = PathError::Protocol("a chunk under no window");
        let serial = term.ok_or(strange)? * chunks + u64::from(sequence);
        self.inlet.arrived(serial)
    }

    /// One turn. True when something moved.
    pub(super) fn turn<E: Endpoint, D: Device>(
        &mut self,
        hello: Option<u64>,
        now: Instant,
        ctx: &mut Context<'_, E, D>,
    ) -> bool {
        if !self.is_alive(now, ctx) {
            return false;
        }
        let moved = self.inlet.turn(ctx).and_then(|landed| Ok(landed | self.outlet.turn(ctx)?));
        let moved = moved.unwrap_or_else(|why| {
            self.end(why, ctx);
            true
        });
        self.next_term(ctx);
        self.speak(hello, ctx);
        moved | self.report_up(ctx)
    }

    /// Ends the path when it cannot go on; whether it goes on.
    fn is_alive<E: Endpoint, D: Device>(
        &mut self,
        now: Instant,
        ctx: &mut Context<'_, E, D>,
    ) -> bool {
        let late = !self.reported_up && now > self.deadline;
        let why = ctx.shared.fault().or(late.then_some(PathError::Timeout));
        if let Some(why) = why.filter(|_| self.why.is_none()) {
            self.end(why, ctx);
        }
        self.why.is_none()
    }

    fn report_up<E: Endpoint, D: Device>(&mut self, ctx: &mut Context<'_, E, D>) -> bool {
        let is_up = self.inner_up && self.outlet.is_open() && !self.reported_up;
        if is_up {
            self.reported_up = true;
            ctx.shared.events.push_back(FabricEvent::PathUp { peer: ctx.peer });
        }
        is_up
    }

    /// When a term is over its grant goes, and the one after the next comes.
    fn next_term<E: Endpoint, D: Device>(&mut self, ctx: &mut Context<'_, E, D>) {
        let over = self.inlet.retired() / u64::from(ctx.shared.config.term_chunks);
        while let Some((term, id)) = self.grants.front().copied().filter(|(term, _)| *term < over) {
            // All its chunks have come, so it is fenced whatever the fabric says.
            let _ = ctx.inner.revoke(id);
            self.grants.pop_front();
            self.greetings.retain(|greeting| greeting.term != term);
            self.told = self.told.saturating_sub(1);
            self.grant_term(term + 2, ctx);
        }
    }

    /// Sends what the peer is to know, as far as the link has room.
    fn speak<E: Endpoint, D: Device>(&mut self, hello: Option<u64>, ctx: &mut Context<'_, E, D>) {
        let nonce = self.nonce;
        let mut say = |control: Control| ctx.inner.send(ctx.peer, &control.encode(&nonce)).is_ok();
        self.hello_due = self.hello_due && !say(Control::Hello { path: self.number });
        let Some(path) = hello else { return };
        if self.greeted != Some(path) {
            (self.greeted, self.told, self.shown) = (Some(path), 0, 0);
        }
        while let Some(greeting) = self.greetings.get(self.told).copied() {
            if !say(Control::Greeting { path, greeting }) {
                return;
            }
            self.told += 1;
        }
        while let Some((regions, next)) = ctx.shared.exports.show(path, self.shown) {
            if !say(regions) {
                return;
            }
            self.shown = next;
        }
        self.opened_due = self.opened_due && !say(Control::Opened { path });
        self.still_due = self.still_due.filter(|upto| !say(Control::Still { path, upto: *upto }));
        if let Some(upto) = self.inlet.question()
            && say(Control::Pulled { path, upto })
        {
            self.inlet.asked(upto);
        }
        if let Some((retired, refusals)) = self.inlet.note()
            && say(Control::Note { path, retired, refusals })
        {
            self.inlet.noted(retired);
        }
    }

    /// What the peer says of a path that may be this one.
    pub(super) fn hear<E: Endpoint, D: Device>(
        &mut self,
        control: Control,
        ctx: &mut Context<'_, E, D>,
    ) -> Result<(), PathError> {
        match control {
            Control::Greeting { path, greeting } if path == self.number => {
                self.outlet.open(&greeting)
            }
            Control::Note { path, retired, refusals } if path == self.number => {
                self.outlet.retire(retired, &refusals, &mut ctx.shared.events)
            }
            Control::Regions { path, machine, total, first, handles } if path == self.number => {
                if ctx.shared.config.pull {
                    let (device, place) = (&ctx.shared.device, (total, first));
                    self.opened_due = self.inlet.opened.open(device, machine, place, &handles)?;
                }
                Ok(())
            }
            Control::Opened { path } if path == self.number => {
                self.outlet.pulls();
                Ok(())
            }
            Control::Pulled { path, upto } if path == self.number => {
                // The path is there now, as `hear` is asked; a source that gave it up says nothing.
                let sent = self.outlet.has_posted(upto);
                sent.then_some(()).ok_or(PathError::Protocol("it pulled what was not sent"))?;
                self.still_due = self.still_due.max(Some(upto));
                Ok(())
            }
            Control::Still { path, upto } if path == self.number => self.inlet.confirm(upto),
            // About an earlier path.
            _ => Ok(()),
        }
    }

    /// Reports the end once the device is done with it. True when it did.
    pub(super) fn finish<E: Endpoint, D: Device>(&mut self, ctx: &mut Context<'_, E, D>) -> bool {
        let Some(reason) = self.ended else { return false };
        let (out, into) = (self.outlet.is_quiet(ctx), self.inlet.is_quiet(ctx));
        if !(out && into) {
            return false;
        }
        self.outlet.fail(reason, ctx);
        ctx.shared.grants.remove_peer(ctx.peer);
        let window = self.inlet.window();
        ctx.shared.pool.give_window(window);
        if let Some(holder) = ctx.shared.windows.get_mut(window as usize) {
            *holder = None;
        }
        ctx.shared.events.push_back(FabricEvent::PathDown { peer: ctx.peer, reason });
        true
    }
}
