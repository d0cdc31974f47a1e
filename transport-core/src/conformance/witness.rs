//! Watches every event of every endpoint and holds it against what was posted.

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use super::memory::Memory;
use crate::fabric::{FabricEvent, PathError, Refusal, Write, WriteError, WriteId};
use crate::transfer::{GrantId, Part};

/// What must become of a write.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Expect {
    /// It lands.
    Lands,
    /// It lands whole, or is cancelled and nothing of it lands.
    LandsOrCancelled,
    /// The target refuses it, and nothing of it lands.
    Refused(Refusal),
    /// Something ends under it: any one result, and any part of its bytes inside the grant.
    Any,
}

/// A write that was posted, and what became of it.
#[derive(Clone, Debug)]
pub(super) struct Delivery {
    pub(super) id: WriteId,
    pub(super) from: usize,
    pub(super) to: usize,
    grant: GrantId,
    part: Part,
    sequence: u32,
    buffers: Range<u16>,
    /// Items read, and granted items written, pairwise.
    pairs: Vec<(u32, u32)>,
    bytes: u64,
    pub(super) expect: Expect,
    pub(super) arrived: bool,
    /// Whether its path has ended at the target, which says nothing of it any more; also when
    /// there is a new path since.
    cut: bool,
    pub(super) result: Option<Result<(), WriteError>>,
}

impl Delivery {
    /// `write` from endpoint `from` to endpoint `to`, whose granted items are `granted`.
    pub(super) fn new(ends: (usize, usize), write: &Write, granted: &[u32], to: Expect) -> Self {
        let targets = granted.get(write.first as usize..).unwrap_or(&[]);
        Self {
            id: write.id,
            from: ends.0,
            to: ends.1,
            grant: write.grant.id,
            part: write.part,
            sequence: write.sequence,
            buffers: write.buffers.clone(),
            pairs: write.items.iter().copied().zip(targets.iter().copied()).collect(),
            bytes: write.bytes(),
            expect: to,
            arrived: false,
            cut: false,
            result: None,
        }
    }

    fn is_named(&self, grant: GrantId, part: Part, sequence: u32) -> bool {
        (self.grant, self.part, self.sequence) == (grant, part, sequence)
    }
}

/// One end of a path, as its endpoint sees it: the endpoint, and the other one.
pub(super) type End = (usize, usize);

/// All that was posted and all that happened. Panics at what must not happen.
#[derive(Debug)]
pub(super) struct Witness {
    pub(super) check: &'static str,
    pub(super) memories: Vec<Memory>,
    pub(super) deliveries: Vec<Delivery>,
    /// Endpoints that were killed.
    pub(super) dead: Vec<usize>,
    /// Path ends that are up.
    pub(super) up: Vec<End>,
    /// Path ends that went down, in order.
    pub(super) downs: Vec<(End, PathError)>,
    /// Whether a path may go down.
    pub(super) may_go_down: bool,
}

impl Witness {
    pub(super) fn new(check: &'static str, memories: Vec<Memory>) -> Self {
        let (deliveries, dead, up, downs) = Default::default();
        Self { check, memories, deliveries, dead, up, downs, may_go_down: false }
    }

    /// Ends the check as failed.
    #[track_caller]
    pub(super) fn fail(&self, what: fmt::Arguments<'_>) -> ! {
        panic!("conformance check {}: {what}", self.check)
    }

    /// `event` happened at endpoint `at`; `peer` is the other end's index for path events.
    pub(super) fn see(&mut self, at: usize, event: FabricEvent, peer: Option<usize>) {
        match (event, peer) {
            (FabricEvent::Arrived { grant, part, sequence, bytes }, _) => {
                self.arrived(at, (grant, part, sequence), bytes);
            }
            (FabricEvent::Completed { write, result }, _) => self.completed(at, write, result),
            (FabricEvent::PathUp { .. }, Some(peer)) => self.path_up((at, peer)),
            (FabricEvent::PathDown { reason, .. }, Some(peer)) => {
                self.path_down((at, peer), reason);
            }
            (event, None) => self.fail(format_args!("endpoint {at}: {event:?} of a stranger")),
        }
    }

    fn arrived(&mut self, at: usize, name: (GrantId, Part, u32), bytes: u64) {
        let (grant, part, sequence) = name;
        let named = |d: &Delivery| d.to == at && d.is_named(grant, part, sequence);
        let awaited = |d: &Delivery| named(d) && !d.arrived && !d.cut;
        let Some(index) = self.deliveries.iter().position(awaited) else {
            let what = match self.deliveries.iter().rfind(|d| named(d)) {
                None => "arrived, but was never posted",
                Some(posted) if posted.cut => "arrived after its path went down",
                Some(_) => "arrived twice",
            };
            self.fail(format_args!("endpoint {at}: {name:?} {what}"));
        };
        let delivery = self.deliveries[index].clone();
        if matches!(delivery.expect, Expect::Refused(_)) {
            self.fail(format_args!("a write that must be refused has arrived: {delivery:?}"));
        }
        if bytes != delivery.bytes {
            self.fail(format_args!("{bytes} bytes arrived instead of {}", delivery.bytes));
        }
        self.must_hold(&delivery, "arrived");
        self.deliveries[index].arrived = true;
    }

    fn completed(&mut self, at: usize, id: WriteId, result: Result<(), WriteError>) {
        let named = |d: &Delivery| d.from == at && d.id == id;
        let Some(index) = self.deliveries.iter().position(named) else {
            self.fail(format_args!("endpoint {at}: {id:?} completed, but was never posted"));
        };
        let delivery = self.deliveries[index].clone();
        if let Some(before) = delivery.result {
            self.fail(format_args!("completed twice, {before:?} and {result:?}: {delivery:?}"));
        }
        if !may_end(delivery.expect, result) {
            self.fail(format_args!("completed with {result:?}: {delivery:?}"));
        }
        if self.went_down((at, delivery.to)) {
            self.fail(format_args!("a completion after its path went down: {delivery:?}"));
        }
        if result.is_ok() {
            self.must_hold(&delivery, "completed");
        }
        self.deliveries[index].result = Some(result);
    }

    fn path_up(&mut self, end: End) {
        if self.up.contains(&end) {
            self.fail(format_args!("the path {end:?} went up twice"));
        }
        self.up.push(end);
    }

    fn path_down(&mut self, end: End, reason: PathError) {
        if !self.may_go_down {
            self.fail(format_args!("the path {end:?} went down: {reason}"));
        }
        let Some(index) = self.up.iter().position(|up| *up == end) else {
            self.fail(format_args!("the path {end:?} went down without being up"));
        };
        self.up.swap_remove(index);
        self.downs.push((end, reason));
        let open = |d: &&Delivery| (d.from, d.to) == end && d.result.is_none();
        if let Some(delivery) = self.deliveries.iter().find(open) {
            self.fail(format_args!("the path went down before its writes were over: {delivery:?}"));
        }
        let cut = |d: &&mut Delivery| (d.to, d.from) == end && !d.arrived;
        self.deliveries.iter_mut().filter(cut).for_each(|delivery| delivery.cut = true);
    }

    fn went_down(&self, end: End) -> bool {
        !self.up.contains(&end) && self.downs.iter().any(|(down, _)| *down == end)
    }

    /// All bytes of `delivery` must be at the target now; the image says so from now on.
    fn must_hold(&mut self, delivery: &Delivery, when: &str) {
        if !self.holds(delivery) {
            self.fail(format_args!("{when} before all its bytes were in place: {delivery:?}"));
        }
        self.place(delivery, Memory::expect);
    }

    /// Whether all bytes of `delivery` are at the target.
    pub(super) fn holds(&self, delivery: &Delivery) -> bool {
        let (source, target) = (&self.memories[delivery.from], &self.memories[delivery.to]);
        let part = delivery.part;
        let landed = |buffer, (from, to)| {
            target.actual(part, buffer, to) == source.expected(part, buffer, from)
        };
        delivery.buffers.clone().all(|buffer| delivery.pairs.iter().all(|p| landed(buffer, *p)))
    }

    fn place(&mut self, delivery: &Delivery, put: fn(&mut Memory, Part, u16, u32, &[u8])) {
        for buffer in delivery.buffers.clone() {
            for (from, to) in &delivery.pairs {
                let source = &self.memories[delivery.from];
                let bytes = source.expected(delivery.part, buffer, *from);
                put(&mut self.memories[delivery.to], delivery.part, buffer, *to, &bytes);
            }
        }
    }

    /// Takes note of a write that is about to be posted. What it reads must be written by no other,
    /// or nobody could say what it brings.
    pub(super) fn posted(&mut self, mut delivery: Delivery) {
        let mixed = |a: &Delivery, b: &Delivery| {
            let read = |item| a.pairs.iter().any(|(from, _)| *from == item);
            a.from == b.to && a.part == b.part && b.pairs.iter().any(|(_, to)| read(*to))
        };
        let mut others = self.deliveries.iter();
        let mixed = others.any(|other| mixed(&delivery, other) || mixed(other, &delivery));
        assert!(!mixed, "the check {} reads what it writes", self.check);
        delivery.cut = self.went_down((delivery.to, delivery.from));
        self.deliveries.push(delivery);
    }

    /// Whether everything that must still happen has happened.
    pub(super) fn is_settled(&self) -> bool {
        self.deliveries.iter().all(|delivery| self.is_over(delivery))
    }

    fn is_over(&self, delivery: &Delivery) -> bool {
        let completed = delivery.result.is_some() || self.dead.contains(&delivery.from);
        let lost = self.dead.contains(&delivery.to) || delivery.cut;
        completed && (delivery.arrived || lost || delivery.result != Some(Ok(())))
    }

    /// Holds the end of the check against the promises: every write over, every byte in place.
    pub(super) fn conclude(&mut self) {
        for delivery in self.deliveries.clone() {
            self.conclude_delivery(&delivery);
        }
        for (index, memory) in self.memories.iter().enumerate() {
            if let Some(difference) = memory.difference().filter(|_| !self.dead.contains(&index)) {
                self.fail(format_args!("endpoint {index}: wrong byte, {difference:?}"));
            }
        }
    }

    fn conclude_delivery(&mut self, delivery: &Delivery) {
        if !self.is_over(delivery) {
            self.fail(format_args!("never over: {delivery:?}"));
        }
        let nothing_landed =
            matches!(delivery.result, Some(Err(WriteError::Cancelled))) || !may_land(delivery);
        match (delivery.arrived, nothing_landed) {
            (true, true) => self.fail(format_args!("arrived, but must not: {delivery:?}")),
            (false, false) => self.place(delivery, Memory::allow),
            _ => {}
        }
    }
}

fn may_land(delivery: &Delivery) -> bool {
    !matches!(delivery.expect, Expect::Refused(_))
}

fn may_end(expect: Expect, result: Result<(), WriteError>) -> bool {
    match expect {
        Expect::Lands => result.is_ok(),
        Expect::LandsOrCancelled => matches!(result, Ok(()) | Err(WriteError::Cancelled)),
        Expect::Refused(refusal) => result == Err(WriteError::Refused(refusal)),
        Expect::Any => true,
    }
}

#[cfg(test)]
mod tests {
    use alloc::sync::Arc;
    use alloc::vec;

    use super::super::memory::Geometry;
    use super::*;
    use crate::fabric::PeerId;
    use crate::transfer::Grant;

    const GRANT: GrantId = GrantId { slot: 1, generation: 1 };

    /// Two endpoints, and a write of nothing from the second to the first, posted on their path.
    fn posted() -> Witness {
        let mut allocate = |len| crate::memory::MemoryRegion::allocate(len).unwrap();
        let mut memory = |seed| Memory::new(&Geometry::pages(2, 8), seed, &mut allocate);
        let mut witness = Witness::new("a test of its witness", vec![memory(1), memory(2)]);
        witness.may_go_down = true;
        up(&mut witness);
        let table = Arc::clone(witness.memories[1].tables.table(Part::Kv).unwrap());
        let kv: Arc<[u32]> = Arc::new([]);
        let grant = Grant { id: GRANT, tag: 1, kv: Arc::clone(&kv), aux: [0], state: [].into() };
        let (id, grant, peer) = (WriteId(7), Arc::new(grant), PeerId(0));
        let (part, buffers, items) = (Part::Kv, 0..1, kv);
        let write = Write { id, peer, grant, part, sequence: 0, first: 0, buffers, table, items };
        witness.posted(Delivery::new((1, 0), &write, &[], Expect::Any));
        witness
    }

    fn up(witness: &mut Witness) {
        for end in [0, 1] {
            witness.see(end, FabricEvent::PathUp { peer: PeerId(0) }, Some(1 - end));
        }
    }

    /// The write lands, and the path ends before the target's fabric has told of that.
    fn end_before_the_arrival(witness: &mut Witness) {
        witness.see(1, FabricEvent::Completed { write: WriteId(7), result: Ok(()) }, None);
        for (end, reason) in [(0, PathError::ClosedHere), (1, PathError::ClosedByPeer)] {
            let down = FabricEvent::PathDown { peer: PeerId(0), reason };
            witness.see(end, down, Some(1 - end));
        }
    }

    fn arrive(witness: &mut Witness) {
        let (grant, part) = (GRANT, Part::Kv);
        witness.see(0, FabricEvent::Arrived { grant, part, sequence: 0, bytes: 0 }, None);
    }

    #[test]
    fn an_arrival_is_awaited_until_its_path_ends_and_not_on_the_next() {
        let mut witness = posted();
        witness.see(1, FabricEvent::Completed { write: WriteId(7), result: Ok(()) }, None);
        assert!(!witness.is_settled(), "it has landed, and the target must hear that");
        let mut witness = posted();
        end_before_the_arrival(&mut witness);
        assert!(witness.is_settled());
        up(&mut witness);
        assert!(witness.is_settled(), "a new path does not bring back what the old one left out");
    }

    #[test]
    #[should_panic(expected = "arrived after its path went down")]
    fn an_arrival_of_the_old_path_on_the_new_one_is_a_failure() {
        let mut witness = posted();
        end_before_the_arrival(&mut witness);
        up(&mut witness);
        arrive(&mut witness);
    }

    #[test]
    #[should_panic(expected = "arrived twice")]
    fn a_second_arrival_is_a_failure() {
        let mut witness = posted();
        arrive(&mut witness);
        arrive(&mut witness);
    }
}
