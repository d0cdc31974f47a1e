//! Checks of ends: after a fence, after a path, after a peer, nothing moves any more (M2).

use alloc::vec::Vec;

use super::Harness;
use super::memory::Geometry;
use super::rig::{Lists, Rig, Ticket};
use super::witness::Expect::{Any, Lands, Refused};
use crate::fabric::{Fabric, PostError, Refusal, Revoked, Write, WriteError};
use crate::transfer::Part;

/// Writes in flight when something ends.
const FLIGHTS: u32 = 8;
/// Pages of each.
const PAGES: u32 = 8;

/// Granted pages. As many follow, to read from: what is read is written by nobody.
const GRANTED: u32 = FLIGHTS * PAGES;

/// Large pages, so that a write takes many turns.
fn large() -> [Geometry; 2] {
    let geometry = Geometry::pages(2 * GRANTED, 16 << 10);
    [geometry.clone(), geometry]
}

/// Posts the flights, to be ended at any time, and turns `turns` times.
fn launch<H: Harness>(rig: &mut Rig<'_, H>, ticket: &Ticket, turns: u32) {
    for sequence in 0..FLIGHTS {
        let first = GRANTED + sequence * PAGES;
        let items: Vec<u32> = (first..first + PAGES).rev().collect();
        let write = rig.write(ticket, Part::Kv, &items);
        rig.post(ticket, Write { sequence, first: sequence * PAGES, ..write }, Any);
    }
    (0..turns).for_each(|_| rig.turn());
}

/// Whether no flight failed but by the end of its path.
fn all_path_errors<H: Harness>(rig: &Rig<'_, H>, from: usize) -> bool {
    let flights = rig.witness.deliveries.iter().filter(|d| d.from == from && d.expect == Any);
    flights.filter_map(|d| d.result?.err()).all(|error| matches!(error, WriteError::Path(_)))
}

/// Once a grant is fenced, by `revoke` itself or, where that cannot be, by the end of the path, no
/// byte changes, though writes were in flight.
pub fn nothing_lands_after_a_fence<H: Harness>(harness: &mut H) {
    for turns in [0, 1, 2, 3, 4, 5, 8, 13, 21, 34] {
        let mut rig = Rig::of(harness, "nothing_lands_after_a_fence", &large());
        let ticket = rig.grant(0, 1, &Lists::kv(0..GRANTED));
        launch(&mut rig, &ticket, turns);
        let fence = rig.node(0).endpoint.revoke(ticket.grant.id);
        if fence == Revoked::NeedsDrain {
            rig.disconnect(0, 1);
        }
        let before = rig.witness.memories[0].snapshot();
        rig.settle();
        rig.watch_frozen(0, &before, "the grant was fenced");
        if fence == Revoked::Fenced {
            let fresh = rig.grant(0, 1, &Lists::kv([3, 2, 1]));
            let write = rig.write(&fresh, Part::Kv, &[60, 61, 62]);
            rig.post(&fresh, write, Lands);
        }
        rig.finish();
    }
}

/// A grant that was withdrawn and needs a drain is not fenced by being withdrawn again. Should it have
/// drained meanwhile, as a device does that copies no more, then nothing lands from then on.
pub fn a_second_revoke_promises_no_more_than_the_first<H: Harness>(harness: &mut H) {
    for turns in [0, 3, 10] {
        let check = "a_second_revoke_promises_no_more_than_the_first";
        let mut rig = Rig::of(harness, check, &large());
        let ticket = rig.grant(0, 1, &Lists::kv(0..GRANTED));
        launch(&mut rig, &ticket, turns);
        let [first, second] = [(); 2].map(|()| rig.node(0).endpoint.revoke(ticket.grant.id));
        rig.ensure(second == first, "the second revoke of a grant answers as the first");
        (0..turns).for_each(|_| rig.turn());
        let later = rig.node(0).endpoint.revoke(ticket.grant.id);
        let lasts = first == Revoked::NeedsDrain || later == Revoked::Fenced;
        rig.ensure(lasts, "a grant that was fenced stays so");
        if later == Revoked::NeedsDrain {
            rig.disconnect(0, 1);
        }
        let before = rig.witness.memories[0].snapshot();
        rig.settle();
        rig.watch_frozen(0, &before, "the grant was fenced, or its path went down");
        let last = rig.node(0).endpoint.revoke(ticket.grant.id);
        rig.ensure(last == Revoked::Fenced, "nothing is left to fence");
        rig.finish();
    }
}

/// After `PathDown`, whoever ended the path, no byte changes at that end.
pub fn nothing_lands_after_the_path_went_down<H: Harness>(harness: &mut H) {
    for (closer, turns) in [(0, 0), (0, 3), (0, 10), (0, 30), (1, 0), (1, 3), (1, 10), (1, 30)] {
        let check = "nothing_lands_after_the_path_went_down";
        let mut rig = Rig::of(harness, check, &large());
        let ticket = rig.grant(0, 1, &Lists::kv(0..GRANTED));
        launch(&mut rig, &ticket, turns);
        rig.witness.may_go_down = true;
        let peer = rig.peer(closer, 1 - closer);
        rig.node(closer).endpoint.disconnect(peer);
        rig.until("the path to go down at the target", |rig| !rig.witness.up.contains(&(0, 1)));
        let before = rig.witness.memories[0].snapshot();
        rig.settle();
        rig.watch_frozen(0, &before, "the path went down");
        rig.finish();
    }
}

/// Every write in flight when its path ends completes once, before `PathDown`: landed, or with a
/// path error. Then nothing can be posted.
pub fn writes_in_flight_end_before_their_path<H: Harness>(harness: &mut H) {
    for (closer, turns) in [(0, 0), (0, 2), (0, 9), (1, 0), (1, 2), (1, 9)] {
        let check = "writes_in_flight_end_before_their_path";
        let mut rig = Rig::of(harness, check, &large());
        let ticket = rig.grant(0, 1, &Lists::kv(0..GRANTED));
        launch(&mut rig, &ticket, turns);
        rig.disconnect(closer, 1 - closer);
        rig.ensure(all_path_errors(&rig, 1), "a write failed by something else than its path");
        let late = rig.write(&ticket, Part::Kv, &[1]);
        let posted = rig.node(1).endpoint.post(late);
        rig.ensure(matches!(posted, Err(PostError::NoPath(_))), "posted without a path");
        let peer = rig.peer(1, 0);
        rig.node(1).endpoint.disconnect(peer);
        rig.watch();
        rig.ensure(rig.witness.downs.len() == 2, "a path went down that was not there");
        rig.finish();
    }
}

/// After its end a path can be built anew over the same link. Grants end with their path: an old
/// one is not in force on the new path, and its id may be given again.
pub fn a_path_can_be_built_again<H: Harness>(harness: &mut H) {
    let mut rig = Rig::of(harness, "a_path_can_be_built_again", &large());
    for (round, closer) in [0, 1, 1, 0].into_iter().enumerate() {
        let ticket = rig.grant(0, 1, &Lists::kv(0..GRANTED));
        launch(&mut rig, &ticket, round as u32 * 3);
        rig.disconnect(closer, 1 - closer);
        rig.connect(0, 1);
        if rig.target_checks() {
            let stale = rig.write(&ticket, Part::Kv, &[1]);
            rig.post(&ticket, Write { sequence: 99, ..stale }, Refused(Refusal::NoGrant));
            rig.settle();
        }
        let again = rig.grant_as(ticket.grant.id, (1, 0), &Lists::kv([3, 4]));
        let write = rig.write(&again, Part::Kv, &[7, 7]);
        rig.post(&again, Write { sequence: 100, ..write }, Lands);
        rig.settle();
    }
    rig.finish();
}

/// When a peer dies, the survivor's writes to it end once with a path error, its writes to the
/// survivor stop, and the survivor is told, once for the path and once for the link. Other peers
/// notice nothing.
pub fn a_killed_peer_ends_its_writes_and_its_link<H: Harness>(harness: &mut H) {
    for turns in [0, 4, 20] {
        let [geometry, _] = large();
        let geometries = [geometry.clone(), geometry.clone(), geometry];
        let check = "a_killed_peer_ends_its_writes_and_its_link";
        let mut rig = Rig::of(harness, check, &geometries);
        let into = rig.grant(0, 1, &Lists::kv(0..GRANTED));
        let out = rig.grant(1, 0, &Lists::kv(0..GRANTED));
        launch(&mut rig, &into, 0);
        launch(&mut rig, &out, turns);
        rig.kill(1);
        rig.until("the dead peer's path to go down", |rig| !rig.witness.up.contains(&(0, 1)));
        let before = rig.witness.memories[0].snapshot();
        rig.settle();
        rig.ensure(all_path_errors(&rig, 0), "a write failed by something else than its path");
        rig.until("the dead peer's link to go down", |rig| rig.link_downs(0).len() == 1);
        rig.watch_frozen(0, &before, "the dead peer's path went down");
        rig.ensure(rig.link_downs(0).len() == 1, "a link must go down once");
        let other = rig.grant(0, 2, &Lists::kv([9, 8]));
        let write = rig.write(&other, Part::Kv, &[1, 2]);
        rig.post(&other, write, Lands);
        rig.finish();
    }
}

/// After an endpoint is gone, no byte changes in the memory that it had bound: whoever dropped it may use
/// its pages at once (M2).
pub fn nothing_lands_where_the_endpoint_is_gone<H: Harness>(harness: &mut H) {
    for turns in [0, 1, 3, 8, 21] {
        let check = "nothing_lands_where_the_endpoint_is_gone";
        let mut rig = Rig::of(harness, check, &large());
        let ticket = rig.grant(0, 1, &Lists::kv(0..GRANTED));
        launch(&mut rig, &ticket, turns);
        rig.kill(0);
        let before = rig.witness.memories[0].snapshot();
        rig.until("the dead peer's path to go down", |rig| !rig.witness.up.contains(&(1, 0)));
        rig.settle();
        rig.watch_frozen(0, &before, "its endpoint was dropped");
        rig.finish();
    }
}

/// Regions that writes use do not close (M1); when their endpoint is gone they do, also when it
/// went in the middle of writes.
pub fn regions_close_when_their_endpoint_is_gone<H: Harness>(harness: &mut H) {
    for turns in [0, 10] {
        let check = "regions_close_when_their_endpoint_is_gone";
        let mut rig = Rig::of(harness, check, &large());
        let ticket = rig.grant(0, 1, &Lists::kv(0..GRANTED));
        launch(&mut rig, &ticket, turns);
        let regions = rig.witness.memories[1].regions();
        let closed = regions.iter().any(|region| region.close());
        rig.ensure(!closed, "a region closed although an endpoint uses it");
        rig.kill(1);
        rig.settle();
        rig.watch();
        rig.witness.conclude();
        rig.witness.memories.truncate(1);
        rig.until("the regions to close", |_| regions.iter().all(|region| region.is_closed()));
    }
}
