//! Grants and tables of a path: ours, told to the peer, and the peer's, told to us.

use std::sync::Arc;

use transport_core::fabric::{FabricError, PathError, Refusal};
use transport_core::memory::CacheTables;
use transport_core::transfer::{Grant, GrantId};

use super::{Context, Path};
use crate::control::Control;
use crate::grants::Meaning;
use crate::news::Place;
use crate::news::Short;
use crate::nic::{News, NewsKind};
use crate::outbox::Granted;
use crate::remote::RemoteTables;
use crate::sys::errno;

/// Tables that one peer may tell us of.
const MAX_TABLES: usize = 1024;
/// Grants that one peer may tell us of.
const MAX_GRANTED: usize = 1 << 20;
/// Refusals of a peer that are remembered.
const MAX_REFUSED: usize = 4096;

impl Path {
    /// Lets the peer write items of `tables`, and tells it.
    pub(crate) fn grant(
        &mut self,
        grant: Arc<Grant>,
        tables: &CacheTables,
        ctx: &mut Context<'_>,
    ) -> Result<(), FabricError> {
        let number = self.tell_tables(tables, ctx)?;
        let (epoch, id, tag) = (self.epoch, grant.id, grant.tag);
        let place = self.grants.insert(grant);
        self.tell(&Control::Grant { epoch, id, tag, place, tables: number }, ctx);
        Ok(())
    }

    /// Withdraws a grant, if it is in force. Writes of it may be under way.
    pub(crate) fn revoke(&mut self, id: GrantId, ctx: &mut Context<'_>) {
        if self.grants.remove(id) {
            self.tell(&Control::Revoke { epoch: self.epoch, id }, ctx);
        }
    }

    /// The number under which the peer knows the tables; it is told of new ones.
    fn tell_tables(
        &mut self,
        tables: &CacheTables,
        ctx: &mut Context<'_>,
    ) -> Result<u32, FabricError> {
        if let Some(known) = self.told.iter().position(|told| same(told, tables)) {
            return Ok(known as u32);
        }
        let parts = tables.parts().filter_map(|part| tables.table(part));
        let locals = parts.map(|table| ctx.memory.table(table)).collect::<Result<Vec<_>, _>>();
        let locals = locals.map_err(|error| FabricError::Device(errno(&error)))?;
        let ports: Vec<usize> = ctx.ports.iter().map(|port| port.nic).collect();
        let body = RemoteTables::encode(tables, &locals, ctx.memory.shift(), &ports);
        let message =
            Control::Tables { epoch: self.epoch, id: self.told.len() as u32, body: &body };
        if body.len() + 64 > transport_core::link::MAX_MESSAGE || self.told.len() == MAX_TABLES {
            return Err(FabricError::Device(libc::EMSGSIZE));
        }
        self.tell(&message, ctx);
        self.told.push(tables.clone());
        Ok(self.told.len() as u32 - 1)
    }

    /// Messages that wait for the peer to connect.
    pub(crate) fn delayed(&self) -> usize {
        self.delayed.len()
    }

    /// Sends what the peer can understand only once it has connected.
    fn tell(&mut self, message: &Control<'_>, ctx: &mut Context<'_>) {
        if self.theirs.is_some() { ctx.send(message) } else { self.delayed.push(message.encode()) }
    }

    /// The peer has told of tables.
    pub(crate) fn heard_tables(&mut self, id: u32, body: &[u8]) -> Result<(), PathError> {
        let tables = RemoteTables::decode(body, self.their_ports.len());
        let tables = tables.ok_or(PathError::Protocol("malformed tables"))?;
        if self.tables.len() >= MAX_TABLES {
            return Err(PathError::Protocol("too many tables"));
        }
        self.tables.insert(id, Arc::new(tables));
        Ok(())
    }

    /// The peer lets us write.
    pub(crate) fn heard_grant(
        &mut self,
        id: GrantId,
        tag: u64,
        place: Place,
        tables: u32,
    ) -> Result<(), PathError> {
        let tables = self.tables.get(&tables).ok_or(PathError::Protocol("a grant of no tables"))?;
        let tables = Arc::clone(tables);
        if self.granted.len() >= MAX_GRANTED {
            return Err(PathError::Protocol("too many grants"));
        }
        self.refused.remove(&id);
        self.answered(id);
        self.granted.insert(id, Granted { tag, place, tables });
        Ok(())
    }

    /// The peer does not let us write, or no more; what has begun ends as it does.
    pub(crate) fn heard_refusal(&mut self, id: GrantId) {
        self.granted.remove(&id);
        self.answered(id);
        if self.refused.len() >= MAX_REFUSED {
            // Who is forgotten is asked for again.
            self.refused.clear();
        }
        self.refused.insert(id);
    }

    /// The peer need not be asked for this grant any more.
    fn answered(&mut self, id: GrantId) {
        self.asking = self.asking.filter(|(asked, _)| *asked != id);
    }

    /// The peer asks for a grant of ours.
    pub(crate) fn heard_ask(&mut self, id: GrantId, ctx: &mut Context<'_>) {
        if !self.grants.contains(id) {
            ctx.send(&Control::Unknown { epoch: self.epoch, id });
        }
    }

    /// What the peer has said of the grant of the write that waits longest; `None` while there is
    /// none, or the peer is asked. The device refuses nothing, so it is an honest writer that does.
    pub(super) fn permission(&mut self, ctx: &mut Context<'_>) -> Option<Result<Granted, Refusal>> {
        let write = &self.outbox.front()?.write;
        let id = write.grant.id;
        let Some(granted) = self.granted.get(&id) else {
            if self.refused.contains(&id) {
                return Some(Err(Refusal::NoGrant));
            }
            if self.asking.is_none_or(|(asked, _)| asked != id) {
                self.asking = Some((id, ctx.now + ctx.config.stall_timeout));
                ctx.send(&Control::Ask { epoch: self.epoch, id });
            }
            return None;
        };
        if granted.tag != write.grant.tag {
            return Some(Err(Refusal::WrongTag));
        }
        let target = granted.tables.target(write.part, 0);
        let fits = target.is_some_and(|target| target.has(write.grant.items(write.part)));
        Some(if fits { Ok(granted.clone()) } else { Err(Refusal::OutOfGrant) })
    }

    /// A write of the peer has landed, over a queue pair of this device of ours.
    pub(crate) fn landed(
        &mut self,
        nic: usize,
        News { pair, what }: News,
        ctx: &mut Context<'_>,
    ) -> Result<(), PathError> {
        ctx.stats.announcements += 1;
        if self.is_ending() {
            return Ok(());
        }
        if let Some(rail) = self.rail_of(nic, pair, ctx) {
            self.rails[rail].taken += 1;
        }
        let meaning = match what {
            NewsKind::Record(record) => self.grants.record(&record)?,
            NewsKind::Short { bits, bytes } => match Short::decode(bits) {
                Some(short) => self.grants.short(short, u64::from(bytes))?,
                None => return Err(PathError::Protocol("an announcement of nothing")),
            },
            NewsKind::Garbage => return Err(PathError::Protocol("an announcement of nothing")),
        };
        match meaning {
            Meaning::Again => ctx.stats.repeated += 1,
            Meaning::Arrived(event) => ctx.events.push_back(event),
            Meaning::Part => {}
            Meaning::Stale => ctx.stats.stale += 1,
        }
        Ok(())
    }
}

/// Whether both are the same tables, not only equal ones.
fn same(a: &CacheTables, b: &CacheTables) -> bool {
    let table = |tables: &CacheTables, part| tables.table(part).map(Arc::as_ptr);
    a.parts().count() == b.parts().count() && a.parts().all(|part| table(a, part) == table(b, part))
}
