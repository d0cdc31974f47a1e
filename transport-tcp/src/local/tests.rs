//! Both halves over one channel in one thread: what a correct source sends, and what a hostile one
//! might.

use std::collections::VecDeque;
use std::sync::Arc;

use transport_core::fabric::{FabricEvent, PathError, PeerId, PostError, Refusal, Write};
use transport_core::fabric::{WriteError, WriteId};
use transport_core::memory::{CacheTables, MemoryRegion, PagedTable};
use transport_core::transfer::{Grant, GrantId, Part};

use super::channel::{Channel, SUBMISSIONS, WORDS};
use super::entry::{SourceSpan, begin, decode_answer};
use super::regions::{OwnRegions, PeerRegions};
use super::ring::Slot;
use super::source::Source;
use super::target::{Context, Taken, Target};
use crate::HostMemory;
use crate::frame::Ack;
use crate::grants::Grants;
use crate::memory::SharedMap;
use crate::sys::{OwnWords, PeerWords};

const PEER: PeerId = PeerId(1);
const PAGE: u64 = 512;
const OK: Result<(), Refusal> = Ok(());

/// A source and a target, and their ends of the channel.
struct World {
    here: Channel<OwnWords, PeerWords>,
    there: Channel<OwnWords, PeerWords>,
    source: Source,
    target: Target,
    own: OwnRegions,
    regions: PeerRegions,
    grants: Grants,
    grant: Arc<Grant>,
    from: MemoryRegion,
    to: MemoryRegion,
    tables: [CacheTables; 2],
    events: VecDeque<FabricEvent>,
}

fn tables(region: &MemoryRegion, pages: u32) -> CacheTables {
    let aux = MemoryRegion::allocate(64).unwrap();
    let table = |region: &MemoryRegion, bytes, items| PagedTable::packed(region, &[bytes], items);
    CacheTables::new(table(region, PAGE, pages).unwrap(), table(&aux, 64, 1).unwrap(), vec![])
        .unwrap()
}

impl World {
    /// A target that lets the source write all its pages.
    fn new(pages: u32) -> Self {
        let shared = |_| HostMemory::default().map_shared(PAGE as usize * pages as usize).unwrap();
        let [from, to] = [0, 1].map(shared);
        let bytes: Vec<u8> = (0..from.len()).map(|i| (i / PAGE as usize) as u8 | 1).collect();
        from.write(0, &bytes).unwrap();
        let tables = [tables(&from, pages), tables(&to, pages)];
        let own = OwnRegions::of(&tables[0]).unwrap();
        let mut regions = PeerRegions::default();
        for number in 0..own.len() {
            let (notice, file) = own.notice(number).unwrap();
            regions.add(notice, file.map(|file| file.try_clone_to_owned().unwrap())).unwrap();
        }
        let kv = (0..pages).collect();
        let id = GrantId { slot: 1, generation: 1 };
        let grant = Arc::new(Grant { id, tag: 7, kv, aux: [0], state: Box::new([]) });
        let mut grants = Grants::default();
        grants.bind(tables[1].clone()).unwrap();
        grants.insert(PEER, Arc::clone(&grant), None).unwrap();
        let ((mine, file), (theirs, their_file)) =
            (OwnWords::new(WORDS).unwrap(), OwnWords::new(WORDS).unwrap());
        let here = Channel::new(mine, PeerWords::open(their_file, WORDS).unwrap());
        let there = Channel::new(theirs, PeerWords::open(file, WORDS).unwrap());
        let (source, target) = (Source::new(4), Target::default());
        let events = VecDeque::new();
        Self { here, there, source, target, own, regions, grants, grant, from, to, tables, events }
    }

    /// A write of the first pages, the last of them first: their spans do not merge.
    fn write(&self, id: u64, pages: u32) -> Write {
        Write {
            id: WriteId(id),
            peer: PEER,
            grant: Arc::clone(&self.grant),
            part: Part::Kv,
            sequence: id as u32,
            first: 0,
            buffers: 0..1,
            table: Arc::clone(self.tables[0].table(Part::Kv).unwrap()),
            items: (0..pages).rev().collect(),
        }
    }

    fn submit(&mut self) {
        while self.source.submit(&mut self.here, &self.own).unwrap() {}
        self.here.flush();
    }

    fn take(&mut self) -> Result<Taken, PathError> {
        let Self { grants, regions, events, .. } = self;
        let taken = self.target.turn(
            &mut self.there,
            &mut Context { peer: PEER, grants, regions, events, turn: 8 << 20 },
        );
        self.there.flush();
        taken
    }

    fn answer(&mut self) -> Option<Ack> {
        self.here.hear().unwrap().map(|slot| decode_answer(slot).unwrap())
    }

    /// What arrived, by sequence number.
    fn arrived(&mut self) -> Vec<u32> {
        let number = |event| match event {
            FabricEvent::Arrived { sequence, .. } => sequence,
            other => panic!("{other:?}"),
        };
        self.events.drain(..).map(number).collect()
    }

    fn bytes(region: &MemoryRegion) -> Vec<u8> {
        let mut bytes = vec![0; region.len()];
        region.read(0, &mut bytes).unwrap();
        bytes
    }

    fn is_untouched(&self) -> bool {
        Self::bytes(&self.to).iter().all(|byte| *byte == 0)
    }

    /// Whether page `i` went to page `pages - 1 - i`.
    fn has_landed(&self) -> bool {
        let (from, to) = (Self::bytes(&self.from), Self::bytes(&self.to));
        from.chunks(PAGE as usize).eq(to.chunks(PAGE as usize).rev())
    }

    /// What slots that no source of ours would submit do.
    fn attack(&mut self, slots: &[Slot]) -> Result<Taken, PathError> {
        slots.iter().for_each(|slot| self.here.submit(*slot));
        self.here.flush();
        self.take()
    }

    fn begin(&self, total: u64) -> Vec<Slot> {
        begin(&self.write(9, 2), 0, total).to_vec()
    }
}

fn span(region: u16, offset: u64, len: u64) -> Slot {
    SourceSpan { region, offset, len }.encode()
}

#[test]
fn more_spans_than_the_ring_has_slots_land_and_are_answered_once() {
    let pages = 3 * SUBMISSIONS as u32;
    let mut world = World::new(pages);
    world.source.post(world.write(5, pages), &world.own).unwrap();
    let mut turns = 0;
    while world.events.is_empty() {
        world.submit();
        world.take().unwrap();
        turns += 1;
        assert!(turns < 100, "it stands still");
    }
    assert!(turns > 2, "the ring is larger than this test thinks");
    assert_eq!(world.arrived(), [5]);
    assert!(world.has_landed());
    let ack = world.answer().unwrap();
    assert_eq!(ack.result, OK);
    let done = FabricEvent::Completed { write: WriteId(5), result: Ok(()) };
    assert_eq!(world.source.answered(ack), Ok(done));
    assert_eq!(world.answer(), None);
}

#[test]
fn m2_a_write_that_was_withdrawn_is_never_announced() {
    let mut world = World::new(8);
    world.source.post(world.write(0, 8), &world.own).unwrap();
    world.submit();
    world.here.withdraw();
    // Its owner uses the pages for something else.
    world.from.write(0, &[0xdd; 8 * PAGE as usize]).unwrap();
    assert_eq!(world.take(), Err(PathError::ClosedByPeer));
    assert!(world.events.is_empty());
}

#[test]
fn m3_a_grant_withdrawn_in_the_midst_of_a_write_stops_it_at_once() {
    let pages = 2 * SUBMISSIONS as u32;
    let mut world = World::new(pages);
    world.source.post(world.write(0, pages), &world.own).unwrap();
    world.submit();
    world.take().unwrap();
    assert!(world.events.is_empty(), "half of it is not submitted");
    world.grants.remove(world.grant.id);
    world.target.revoke(world.grant.id);
    let before = World::bytes(&world.to);
    let mut ack = None;
    while ack.is_none() {
        world.submit();
        world.take().unwrap();
        ack = world.answer();
    }
    assert_eq!(ack.unwrap().result, Err(Refusal::NoGrant));
    assert!(world.events.is_empty() && World::bytes(&world.to) == before);
    // The ring goes on behind it.
    world.grants.insert(PEER, Arc::clone(&world.grant), None).unwrap();
    world.source.answered(Ack { cookie: 0, result: Err(Refusal::NoGrant) }).unwrap();
    world.source.post(world.write(1, 3), &world.own).unwrap();
    world.submit();
    world.take().unwrap();
    assert_eq!(world.arrived(), [1]);
}

#[test]
fn m3_what_is_not_granted_is_refused_whole() {
    let mut world = World::new(4);
    let Grant { id, tag, .. } = *world.grant;
    let grant = |id, tag| Arc::new(Grant { id, tag, ..(*world.grant).clone() });
    let stale = grant(GrantId { generation: 0, ..id }, tag);
    let (unknown, guessed) = (Refusal::NoGrant, Refusal::WrongTag);
    for (grant, refusal) in [(stale, unknown), (grant(id, tag + 1), guessed)] {
        let write = Write { grant, ..world.write(3, 2) };
        world.source.post(write, &world.own).unwrap();
        world.submit();
        world.take().unwrap();
        let ack = world.answer().unwrap();
        assert_eq!(ack.result, Err(refusal));
        world.source.answered(ack).unwrap();
    }
    assert!(world.is_untouched() && world.events.is_empty());
}

#[test]
fn w4_hostile_slots_end_the_path_and_touch_nothing() {
    let outside = [
        // No such region, none of it, beyond its end, so far that the sum overflows.
        span(9, 0, PAGE),
        span(0, 0, 0),
        span(0, 4 * PAGE - 1, 2),
        span(0, (1 << 48) - 1, u64::MAX),
        // More than the write has.
        span(0, 0, 2 * PAGE + 1),
    ];
    for slot in outside {
        let mut world = World::new(4);
        let slots = [world.begin(2 * PAGE), vec![slot]].concat();
        let attacked = world.attack(&slots);
        assert!(matches!(attacked, Err(PathError::Protocol(_))), "{slot:?}: {attacked:?}");
        assert!(world.is_untouched() && world.events.is_empty());
    }
    for damage in [0, 1 << 48, 200 << 8, 2] {
        let mut world = World::new(4);
        let mut slots = world.begin(2 * PAGE);
        slots[0][0] = if damage == 0 { 0 } else { slots[0][0] | damage };
        assert!(matches!(world.attack(&slots), Err(PathError::Protocol(_))), "{damage:x}");
    }
}

#[test]
fn m3_a_write_that_says_another_length_than_its_grant_has_is_refused() {
    let mut world = World::new(4);
    let slots = [world.begin(PAGE), vec![span(0, 0, PAGE)]].concat();
    world.attack(&slots).unwrap();
    assert_eq!(world.answer().unwrap().result, Err(Refusal::OutOfGrant));
    assert!(world.is_untouched());
}

#[test]
fn answers_to_no_write_end_the_path_and_q3_a_full_queue_gives_back() {
    let mut world = World::new(4);
    let ack = |cookie| Ack { cookie, result: OK };
    assert!(world.source.answered(ack(0)).is_err(), "nothing was posted");
    for id in 0..4 {
        world.source.post(world.write(id, 1), &world.own).unwrap();
    }
    let full = world.source.post(world.write(4, 1), &world.own);
    assert!(matches!(full, Err(PostError::Busy(write)) if write.id == WriteId(4)));
    assert!(world.source.answered(ack(0)).is_err(), "it was not submitted");
    let cancelled = Err(WriteError::Cancelled);
    let gone = FabricEvent::Completed { write: WriteId(2), result: cancelled };
    assert_eq!(world.source.cancel(WriteId(2)), Some(gone));
    world.submit();
    assert_eq!(world.source.cancel(WriteId(1)), None, "it has begun");
    assert!(world.source.answered(ack(2)).is_err(), "it was cancelled");
    for cookie in [1, 0, 3] {
        world.source.answered(ack(cookie)).unwrap();
        assert!(world.source.answered(ack(cookie)).is_err(), "twice");
    }
    world.source.post(world.write(5, 1), &world.own).unwrap();
    let failed: Vec<_> = world.source.fail(PathError::Timeout).collect();
    let error = Err(WriteError::Path(PathError::Timeout));
    assert_eq!(failed, [FabricEvent::Completed { write: WriteId(5), result: error }]);
}

#[test]
fn memory_that_the_peer_was_not_told_of_is_a_misfit() {
    let mut world = World::new(4);
    let other = HostMemory::default().map_shared(4 * PAGE as usize).unwrap();
    assert!(other.owner::<SharedMap>().is_some());
    let table = Arc::new(PagedTable::packed(&other, &[PAGE], 4).unwrap());
    let write = Write { table, ..world.write(0, 1) };
    let posted = world.source.post(write, &world.own);
    assert!(matches!(posted, Err(PostError::Misfit(_))));
}
