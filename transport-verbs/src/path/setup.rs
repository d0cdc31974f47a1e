//! Rails of a path: opened, lost, opened again.

use transport_core::fabric::{FabricEvent, PathError};

use super::{Context, Path};
use crate::control::Control;
use crate::rail::Rail;
use crate::sys::{Way, errno};

impl Path {
    /// The peer has connected.
    pub(crate) fn heard_open(&mut self, theirs: u32, ctx: &mut Context<'_>) {
        self.theirs = Some(theirs);
        ctx.out.extend(self.delayed.drain(..));
        self.reopen(ctx);
    }

    /// The peer's queue pair for a rail.
    pub(crate) fn heard_rail(
        &mut self,
        rail: u8,
        life: u32,
        (pair, psn): (u32, u32),
        ctx: &mut Context<'_>,
    ) -> Result<(), PathError> {
        let index = self.known(rail)?;
        if self.dialler {
            if self.rails[index].is_opening() && self.rails[index].life == life {
                self.complete(index, pair, psn, ctx);
            }
            return Ok(());
        }
        if !self.rails[index].is_clear() {
            return Err(PathError::Protocol("a rail opened before it was closed"));
        }
        self.answer(index, life, pair, psn, ctx);
        Ok(())
    }

    /// The peer says that a rail can be used.
    pub(crate) fn heard_ready(
        &mut self,
        rail: u8,
        life: u32,
        ctx: &mut Context<'_>,
    ) -> Result<(), PathError> {
        let index = self.known(rail)?;
        if self.rails[index].life == life {
            self.rail_up(index, ctx);
        }
        Ok(())
    }

    /// The peer's queue pair of a rail's life is gone, and so many of our announcements it took.
    pub(crate) fn heard_gone(
        &mut self,
        rail: u8,
        (life, taken): (u32, u64),
        ctx: &mut Context<'_>,
    ) -> Result<(), PathError> {
        let index = self.known(rail)?;
        if self.rails[index].life != life {
            return Ok(());
        }
        self.rails[index].heard_gone(taken);
        self.fail_rail(index, 0, ctx);
        self.cleared(index, ctx);
        Ok(())
    }

    /// One of our ports came up or went down.
    pub(crate) fn port_changed(&mut self, port: usize, active: bool, ctx: &mut Context<'_>) {
        for index in 0..self.rails.len() {
            if self.rails[index].ours != port {
                continue;
            }
            if active {
                self.rails[index].retry_at = ctx.now;
            } else {
                self.fail_rail(index, libc::ENETDOWN, ctx);
            }
        }
    }

    /// A queue pair of ours failed by itself.
    pub(crate) fn pair_failed(&mut self, nic: usize, pair: u32, ctx: &mut Context<'_>) {
        if let Some(index) = self.rail_of(nic, pair, ctx) {
            self.fail_rail(index, libc::EIO, ctx);
        }
    }

    /// A queue pair of ours has failed, and nothing more comes by it.
    pub(crate) fn pair_silent(&mut self, nic: usize, pair: u32, ctx: &mut Context<'_>) {
        if let Some(index) = self.rail_of(nic, pair, ctx) {
            self.rails[index].silent();
            self.fail_rail(index, libc::EIO, ctx);
        }
    }

    /// The rail with this queue pair. Devices number theirs independently.
    pub(super) fn rail_of(&self, nic: usize, pair: u32, ctx: &Context<'_>) -> Option<usize> {
        let is_it = |rail: &Rail| rail.pair() == Some(pair) && ctx.ports[rail.ours].nic == nic;
        self.rails.iter().position(is_it)
    }

    /// Opens rails that are due, if that is for us to do.
    pub(super) fn reopen(&mut self, ctx: &mut Context<'_>) {
        if !self.dialler || self.theirs.is_none() || self.is_ending() {
            return;
        }
        for index in 0..self.rails.len() {
            let rail = &self.rails[index];
            let due = rail.is_clear() && ctx.now >= rail.retry_at;
            if due && !self.open_rail(index, self.rails[index].life + 1, ctx) {
                self.rails[index].postpone(ctx.now, ctx.config.rail_retry_most);
            }
        }
    }

    /// Makes our pair of a rail's new life, and tells the peer. False when that is not possible.
    fn open_rail(&mut self, index: usize, life: u32, ctx: &mut Context<'_>) -> bool {
        if !self.make_pair(index, life, ctx) {
            return false;
        }
        self.tell_pair(index, ctx);
        true
    }

    fn make_pair(&mut self, index: usize, life: u32, ctx: &mut Context<'_>) -> bool {
        let rail = &mut self.rails[index];
        let port = &ctx.ports[rail.ours];
        if !port.active {
            rail.error = libc::ENETDOWN;
            return false;
        }
        let device = (&ctx.nics[port.nic], port);
        let made = rail.open(life, ctx.now, device, ctx.config.send_depth);
        if let Err(error) = made {
            rail.error = errno(&error);
            return false;
        }
        if let Some(pair) = rail.pair() {
            ctx.pairs.insert((port.nic, pair), ctx.peer);
        }
        true
    }

    fn tell_pair(&self, index: usize, ctx: &mut Context<'_>) {
        let rail = &self.rails[index];
        if let (Some(pair), Some(psn)) = (rail.pair(), rail.psn()) {
            let (epoch, life) = (self.epoch, rail.life);
            ctx.send(&Control::Rail { epoch, rail: index as u8, life, pair, psn });
        }
    }

    /// Answers the peer's pair with ours, connected.
    fn answer(&mut self, index: usize, life: u32, pair: u32, psn: u32, ctx: &mut Context<'_>) {
        if !self.make_pair(index, life, ctx) {
            self.rails[index].refuse(life);
            let epoch = self.epoch;
            return ctx.send(&Control::Gone { epoch, rail: index as u8, life, taken: 0 });
        }
        if self.join(index, pair, psn, ctx) {
            self.tell_pair(index, ctx);
        }
    }

    /// The peer has answered with its pair, connected to ours.
    fn complete(&mut self, index: usize, pair: u32, psn: u32, ctx: &mut Context<'_>) {
        if self.join(index, pair, psn, ctx) {
            let (epoch, life) = (self.epoch, self.rails[index].life);
            ctx.send(&Control::Ready { epoch, rail: index as u8, life });
            self.rail_up(index, ctx);
        }
    }

    /// Connects our pair to the peer's. False when the device refuses; the rail has failed then.
    fn join(&mut self, index: usize, pair: u32, psn: u32, ctx: &mut Context<'_>) -> bool {
        let rail = &mut self.rails[index];
        let (port, theirs) = (&ctx.ports[rail.ours], &self.their_ports[rail.theirs]);
        let way = Way {
            port: port.number,
            gid: port.gid,
            remote_gid: theirs.gid,
            remote_lid: theirs.lid,
            remote_pair: pair,
            remote_psn: psn & 0xff_ffff,
            psn: 0,
            mtu: 1,
            global: theirs.ethernet,
            timeout: ctx.config.packet_timeout.min(31),
            retries: ctx.config.packet_retries.min(7),
        };
        match rail.connect(&way) {
            Ok(()) => true,
            Err(error) => {
                self.fail_rail(index, errno(&error), ctx);
                false
            }
        }
    }

    fn rail_up(&mut self, index: usize, ctx: &mut Context<'_>) {
        if !self.rails[index].up(ctx.config.rail_retry_first) {
            return;
        }
        ctx.stats.rails_up += 1;
        self.working += 1;
        self.deadline = transport_core::Instant::FAR;
        if !std::mem::replace(&mut self.up, true) {
            ctx.events.push_back(FabricEvent::PathUp { peer: ctx.peer });
        }
    }

    fn fail_rail(&mut self, index: usize, error: i32, ctx: &mut Context<'_>) {
        let was_up = self.rails[index].is_up();
        if self.rails[index].fail(error, ctx.now) && was_up {
            self.lost_rails(1, ctx);
        }
    }

    /// So many rails that were up have failed.
    pub(super) fn lost_rails(&mut self, lost: usize, ctx: &mut Context<'_>) {
        ctx.stats.rails_down += lost as u64;
        self.working -= lost.min(self.working);
        if lost > 0 && !self.rails.iter().any(|rail| rail.is_up()) {
            self.deadline = ctx.now + ctx.config.path_timeout;
        }
    }

    /// Destroys the pair of a failed rail of which all was reported and taken, and tells the peer.
    pub(super) fn finish_rail(&mut self, index: usize, ctx: &mut Context<'_>) -> bool {
        let rail = &mut self.rails[index];
        let nic = ctx.ports[rail.ours].nic;
        let finished = rail.finish(ctx.now, &ctx.nics[nic], &mut self.ended);
        let Some(pair) = finished else { return false };
        ctx.pairs.remove(&(nic, pair));
        let (epoch, life, taken) = (self.epoch, rail.life, rail.taken);
        if !self.is_ending() {
            ctx.send(&Control::Gone { epoch, rail: index as u8, life, taken });
            self.cleared(index, ctx);
        }
        true
    }

    /// Once both pairs of a rail are gone its work goes to others, and it may be opened again.
    fn cleared(&mut self, index: usize, ctx: &mut Context<'_>) {
        if self.rails[index].is_clear() {
            self.rails[index].postpone(ctx.now, ctx.config.rail_retry_most);
            self.take_over(index, ctx);
        }
    }

    fn known(&self, rail: u8) -> Result<usize, PathError> {
        let index = usize::from(rail);
        let known = index < self.rails.len();
        known.then_some(index).ok_or(PathError::Protocol("a rail that is not there"))
    }
}
