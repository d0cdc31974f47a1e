//! Checks of what a target refuses (M3). The writes here are hostile: their grants were altered so
//! that they look right to the fabric that posts them. Each is refused whole, with its reason, and
//! the path serves the next write.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use super::Harness;
use super::memory::{Geometry, TableSpec};
use super::rig::{Lists, Rig, Ticket, all_parts};
use super::witness::Expect::{Lands, Refused};
use crate::fabric::{Fabric, FabricError, Refusal, Revoked, Write};
use crate::transfer::{Grant, GrantId, Part};

/// Two endpoints, unless the fabric leaves checking to its peers.
fn checked_pair<'h, H: Harness>(harness: &'h mut H, check: &'static str) -> Option<Rig<'h, H>> {
    harness.target_checks().then(|| Rig::pair(harness, check))
}

/// The ticket with its grant altered.
fn forged(ticket: &Ticket, alter: impl FnOnce(&mut Grant)) -> Ticket {
    let mut grant = Grant::clone(&ticket.grant);
    alter(&mut grant);
    Ticket { grant: Arc::new(grant), ..ticket.clone() }
}

/// One KV item in the buffers that both ends have. Numbered by its id, as no two may be the same.
fn numbered<H: Harness>(rig: &mut Rig<'_, H>, ticket: &Ticket) -> Write {
    let write = rig.write(ticket, Part::Kv, &[1]);
    Write { sequence: write.id.0 as u32, buffers: 0..3, ..write }
}

/// Posts a write under `ticket` that the target must refuse.
fn refused<H: Harness>(rig: &mut Rig<'_, H>, ticket: &Ticket, refusal: Refusal) {
    let write = numbered(rig, ticket);
    rig.post(ticket, write, Refused(refusal));
    rig.settle();
}

/// Posts a write under `ticket` that must land.
fn served<H: Harness>(rig: &mut Rig<'_, H>, ticket: &Ticket) {
    let write = numbered(rig, ticket);
    rig.post(ticket, write, Lands);
    rig.settle();
}

/// Unknown, withdrawn and outlived grants.
pub fn writes_without_a_grant_in_force_are_refused<H: Harness>(harness: &mut H) {
    let check = "writes_without_a_grant_in_force_are_refused";
    let Some(mut rig) = checked_pair(harness, check) else { return };
    let good = rig.grant(0, 1, &Lists::kv([1]));
    for (slot, generation) in [(1000, 1), (u32::MAX, u32::MAX), (1, 0), (1, 2)] {
        let unknown = forged(&good, |grant| grant.id = GrantId { slot, generation });
        refused(&mut rig, &unknown, Refusal::NoGrant);
    }
    served(&mut rig, &good);
    let fenced = rig.node(0).endpoint.revoke(good.grant.id);
    rig.ensure(fenced == Revoked::Fenced, "a fabric that checks must fence at once");
    refused(&mut rig, &good, Refusal::NoGrant);
    let next = GrantId { generation: good.grant.id.generation + 1, ..good.grant.id };
    let next = rig.grant_as(next, (1, 0), &Lists::kv([2]));
    refused(&mut rig, &good, Refusal::NoGrant);
    served(&mut rig, &next);
    rig.finish();
}

/// A peer cannot use what was granted to another, though it knows everything about it.
pub fn a_grant_serves_its_own_peer_only<H: Harness>(harness: &mut H) {
    if !harness.target_checks() {
        return;
    }
    let geometries = [Geometry::small(), Geometry::small(), Geometry::small()];
    let mut rig = Rig::of(harness, "a_grant_serves_its_own_peer_only", &geometries);
    let owned = rig.grant(0, 1, &Lists::kv([5]));
    let stolen = Ticket { from: 2, ..owned.clone() };
    refused(&mut rig, &stolen, Refusal::NoGrant);
    served(&mut rig, &owned);
    rig.finish();
}

/// The tag must be the grant's, bit for bit.
pub fn a_wrong_tag_is_refused<H: Harness>(harness: &mut H) {
    let Some(mut rig) = checked_pair(harness, "a_wrong_tag_is_refused") else { return };
    let good = rig.grant(0, 1, &Lists::kv([5, 6]));
    for flip in [1, 1 << 63, u64::MAX] {
        refused(&mut rig, &forged(&good, |grant| grant.tag ^= flip), Refusal::WrongTag);
    }
    served(&mut rig, &good);
    rig.finish();
}

/// More positions than were granted, positions beyond them, parts, buffers and sizes that the
/// target does not have, or did not grant.
pub fn writes_outside_the_grant_are_refused<H: Harness>(harness: &mut H) {
    if !harness.target_checks() {
        return;
    }
    let geometries = [Geometry::small(), larger()];
    let mut rig = Rig::of(harness, "writes_outside_the_grant_are_refused", &geometries);
    let good = rig.grant(0, 1, &Lists { kv: vec![5, 6, 7], ..all_parts() });
    let wide = forged(&good, |grant| {
        grant.kv = (0..60).collect();
        grant.state = (0..3).map(|_| (0..8).collect()).collect::<Box<[Arc<[u32]>]>>();
    });
    for hostile in outside(&mut rig, &wide) {
        rig.post(&wide, hostile, Refused(Refusal::OutOfGrant));
        rig.settle();
    }
    served(&mut rig, &good);
    rig.finish();
}

/// `Geometry::small` with one more KV buffer, one more state component, and larger state items.
fn larger() -> Geometry {
    let mut geometry = Geometry::small();
    geometry.kv = TableSpec::new(64, &[(256, 0), (256, 0), (96, 0), (96, 0)]);
    geometry.state[0] = TableSpec::new(8, &[(513, 0)]);
    geometry.state.push(TableSpec::new(8, &[(16, 0)]));
    geometry
}

/// Writes that their poster finds in order, and that no honest poster would have.
fn outside<H: Harness>(rig: &mut Rig<'_, H>, wide: &Ticket) -> Vec<Write> {
    let all: Arc<[u32]> = (0..60).collect();
    vec![
        Write { items: all, ..numbered(rig, wide) },
        Write { items: Arc::from([1, 2]), first: 2, ..numbered(rig, wide) },
        Write { first: 58, ..numbered(rig, wide) },
        Write { buffers: 0..4, ..numbered(rig, wide) },
        Write { buffers: 3..4, ..numbered(rig, wide) },
        rig.write(wide, Part::State(0), &[0]),
        rig.write(wide, Part::State(2), &[0]),
        Write { first: 4, ..rig.write(wide, Part::State(1), &[0]) },
    ]
}

/// Binding twice, grants of items that do not exist, one id for two grants, addresses that are none.
pub fn calls_that_cannot_be_served_say_so<H: Harness>(harness: &mut H) {
    let geometries = [Geometry::small(), Geometry::small()];
    let mut rig = Rig::unconnected(harness, "calls_that_cannot_be_served_say_so", &geometries);
    let tables = rig.witness.memories[0].tables.clone();
    let again = rig.node(0).endpoint.bind(tables);
    rig.ensure(again == Err(FabricError::OutOfOrder), "binding twice is out of order");
    let peer = rig.peer(0, 1);
    let garbage = rig.node(0).endpoint.connect(peer, b"no fabric's address", true);
    rig.ensure(garbage == Err(FabricError::BadAddress), "a malformed address is one");
    rig.connect(0, 1);
    let good = rig.grant(0, 1, &all_parts());
    let mut grant = |alter: fn(&mut Grant)| {
        let grant = Arc::clone(&forged(&good, alter).grant);
        rig.node(0).endpoint.grant(peer, grant, None)
    };
    let twice = grant(|_| {});
    let kv = grant(|grant| (grant.id.slot, grant.kv) = (900, Arc::from([1, 64])));
    let aux = grant(|grant| (grant.id.slot, grant.aux) = (901, [8]));
    let state = grant(|grant| {
        grant.id.slot = 902;
        grant.state = Box::new([Arc::from([]), Arc::from([]), Arc::from([0])]);
    });
    let outside = |part, item| Err(FabricError::ItemOutOfRange { part, item });
    rig.ensure(twice == Err(FabricError::GrantInForce(good.grant.id)), "one id for two grants");
    rig.ensure(kv == outside(Part::Kv, 64), "a grant of a KV page that is not there");
    rig.ensure(aux == outside(Part::Aux, 8), "a grant of an aux slot that is not there");
    rig.ensure(state == outside(Part::State(2), 0), "a grant of a component that is not there");
    let unknown = rig.node(0).endpoint.revoke(GrantId { slot: 900, generation: 1 });
    rig.ensure(unknown == Revoked::Fenced, "an unknown grant is fenced");
    rig.finish();
}
