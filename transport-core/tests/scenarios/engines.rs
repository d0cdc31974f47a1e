//! Engines of several ranks: pipelines that disagree, shapes that differ, writers that are missing.

use std::time::Duration;

use transport_core::disagg::node::{Completion, Open};
use transport_core::disagg::room::RoomState;
use transport_core::disagg::topology::{Component, Layout, Sharded, Topology};
use transport_core::disagg::{Cause, DType, KvLayout, RoomId};
use transport_core::memory::{BufferShape, Spans};
use transport_core::rng::Rng;
use transport_core::sim::{Faults, SimConfig};

use super::group::{AUX, World};
use super::look::{SOON, both_kinds, closed, closes, received, receives};

/// 4 layers of 4 heads, pages of 4 tokens, and two recurrent states.
fn engine(tp: u32, stages: &[u32]) -> Layout {
    let joined = [4, 8].map(|units| Sharded { units, unit_bytes: 3 }).to_vec();
    let first = Component::slots(vec![1, 2], vec![joined, vec![Sharded::replicated(5)]]);
    let second = Component::slots(vec![0], vec![vec![Sharded::replicated(64)]]);
    let kv = Component::kv(KvLayout::Nhd, 4, 4, 6, 4);
    let (dtype, state) = (DType::BFloat16, vec![first, second]);
    Layout { dtype, dp: 1, tp, cp: 1, stages: stages.to_vec(), kv, state }
}

/// Hands over a request of 6 pages in chunks of these many pages, and looks at every byte.
#[track_caller]
fn serves(world: &mut World, room: u64, chunks: &[u32]) {
    world.prefill.iter_mut().chain(&mut world.decode).for_each(|member| member.done.clear());
    let (to, from) = ([3, 1, 20, 8, 9, 10], [5, 6, 7, 2, 0, 15]);
    world.receive(room, &to);
    world.open(room);
    let mut sent = 0;
    for count in chunks {
        let next = sent + *count as usize;
        world.send(room, sent as u64 * 4, &from[sent..next], next == from.len());
        sent = next;
    }
    let end = world.net.now() + Duration::from_secs(60);
    let all = |w: &World| w.decode.iter().all(|m| !receives(&m.done, room).is_empty());
    assert!(world.run_until(end, all), "no end");
    for member in &world.decode {
        assert_eq!(received(&member.done, room), Ok(AUX.to_vec()), "{}", member.rank);
    }
    world.check(room, &to, 24);
}

#[test]
fn f01_a_stage_that_gave_up_takes_one_along_that_was_granted_just_then() {
    let mut world = World::new(&engine(1, &[2, 2]), &engine(1, &[4]), SimConfig::checked());
    // The second stage's clock starts three seconds later.
    let open = |world: &World, stage: usize| {
        world.prefill[stage].client.open(Open { room: RoomId(1) }).unwrap()
    };
    let first = open(&world, 0);
    world.run_for(Duration::from_secs(3));
    let second = open(&world, 1);
    world.run_for(Duration::from_secs(18));
    assert_eq!((first.poll(), second.poll()), (RoomState::Failed, RoomState::Bootstrapping));
    // Decode has room at last. The late stage would begin; the early one has told its engine.
    world.receive(1, &[3]);
    world.run_for(SOON);
    let given_up = Cause::NoGrant { waited_ms: 20_000 };
    for stage in &world.prefill {
        assert_eq!(closed(&stage.done, 1), Err(given_up), "{}", stage.rank);
    }
    assert_eq!(received(&world.decode[0].done, 1), Err(given_up));
    serves(&mut world, 1, &[6]);
}

#[test]
fn f01_decode_stages_whose_clocks_differ_end_the_room_alike() {
    let stages = engine(1, &[2, 2]);
    let mut world = World::new(&stages, &stages, SimConfig::checked());
    world.receive_at(0, 1, &[3], 0);
    world.run_for(Duration::from_secs(3));
    world.receive_at(1, 1, &[3], 0);
    // The first stage is told that its grant is not kept any longer, the second's still is; then
    // prefill begins after all.
    world.run_for(Duration::from_secs(16));
    world.open(1);
    world.run_for(SOON);
    let never = received(&world.decode[0].done, 1).unwrap_err();
    assert!(matches!(never, Cause::NeverOpened { .. }), "{never:?}");
    for stage in &world.decode {
        assert_eq!(received(&stage.done, 1), Err(never), "{}", stage.rank);
    }
    for stage in &world.prefill {
        assert_eq!(closed(&stage.done, 1), Err(never), "{}", stage.rank);
    }
    (0..2).for_each(|rank| world.receive_at(rank, 1, &[3], 1));
    world.open(1);
    world.send(1, 0, &[5], true);
    world.run_for(SOON);
    assert_eq!(world.decode.iter().filter(|m| received_again(&m.done)).count(), 2);
}

/// Whether the second receive of room 1 succeeded.
fn received_again(done: &[Completion]) -> bool {
    receives(done, 1).get(1).is_some_and(|(result, _)| result.is_ok())
}

#[test]
fn s1_a_stage_that_lags_behind_a_timeout_is_waiting_and_not_wrong() {
    let mut world = World::new(&engine(1, &[2, 2]), &engine(1, &[4]), SimConfig::checked());
    world.prefill[0].client.open(Open { room: RoomId(1) }).unwrap();
    world.run_for(Duration::from_secs(3));
    let lagging = world.prefill[1].client.open(Open { room: RoomId(1) }).unwrap();
    world.run_for(Duration::from_secs(18));
    // The engine's consensus names the room; this stage's own state is not there yet.
    assert_eq!(closed(&world.prefill[0].done, 1), Err(Cause::NoGrant { waited_ms: 20_000 }));
    assert_eq!(lagging.poll(), RoomState::Bootstrapping);
    world.prefill[1].client.cancel(RoomId(1)).unwrap();
    world.run_for(SOON);
    assert_eq!(lagging.poll(), RoomState::Failed);
    assert_eq!(closed(&world.prefill[1].done, 1), Err(Cause::Cancelled));
    world.prefill[1].client.cancel(RoomId(1)).unwrap();
    world.run_for(SOON);
    assert_eq!(closes(&world.prefill[1].done, 1).len(), 1, "final states are final");
}

#[test]
fn f02_a_storm_of_aborts_ends_every_room_once_on_every_stage_and_the_pipeline_serves_on() {
    let (whole, stages) = (engine(1, &[4]), engine(1, &[1, 1, 1, 1]));
    let shapes = [(&stages, &whole), (&whole, &stages), (&stages, &stages)];
    for (seed, (from, to)) in (0..24).zip(shapes.into_iter().cycle()) {
        let mut world = World::new(from, to, SimConfig::checked());
        let mut rng = Rng::new(seed);
        let rooms = 0..20;
        for room in rooms.clone() {
            world.receive(room, &[room as u32]);
            world.open(room);
            if rng.chance(500_000) {
                world.send(room, 0, &[room as u32], rng.chance(500_000));
            }
        }
        for room in rooms.clone() {
            world.run_for(Duration::from_micros(rng.below(200)));
            let members = world.prefill.iter().chain(&world.decode).count();
            let member = world.prefill.iter().chain(&world.decode).nth(rng.index(members)).unwrap();
            member.client.cancel(RoomId(room)).unwrap();
        }
        world.run_for(Duration::from_secs(30));
        for room in rooms {
            let decode = received(&world.decode[0].done, room).map(drop);
            for stage in &world.prefill {
                let closed = closed(&stage.done, room);
                assert_eq!(closed, decode, "seed {seed} room {room} {}", stage.rank);
            }
            for stage in &world.decode {
                let received = received(&stage.done, room).map(drop);
                assert_eq!(received, decode, "seed {seed} room {room} {}", stage.rank);
            }
        }
        // Cancels that came too late are remembered for their rooms; this one had none.
        serves(&mut world, 23, &[3, 3]);
    }
}

#[test]
fn f09_all_state_components_are_there_to_the_byte_however_late_one_of_them_is() {
    for sim in both_kinds() {
        let sim = SimConfig { mtu: 16, burst: 1, ..sim };
        let mut world = World::new(&engine(2, &[4]), &engine(1, &[4]), sim);
        let delay = Duration::from_millis(5);
        world.net.set_faults(Faults { delay_any: 300_000, delay, ..Faults::default() });
        (0..20).for_each(|room| serves(&mut world, room, &[2, 4]));
    }
}

#[test]
fn f11_a_room_is_complete_when_each_writer_has_reported_and_not_when_so_many_reports_came() {
    let mut world = World::new(&engine(4, &[4]), &engine(1, &[4]), SimConfig::checked());
    world.receive(1, &[3]);
    world.open(1);
    world.run_for(SOON);
    let slow = world.prefill[3].address;
    world.net.stop(slow);
    world.send(1, 0, &[5], true);
    world.run_for(SOON);
    assert_eq!(receives(&world.decode[0].done, 1), []);
    world.net.resume(slow);
    world.run_for(SOON);
    assert_eq!(received(&world.decode[0].done, 1), Ok(AUX.to_vec()));
    world.check(1, &[3], 4);
}

#[test]
fn f29_engines_of_other_shapes_exchange_few_writes_in_chunks_of_any_length() {
    for sim in both_kinds() {
        let mut world = World::new(&engine(4, &[4]), &engine(2, &[2, 2]), sim);
        for (room, chunks) in (0..).zip([&[6][..], &[1, 5], &[2, 1, 3], &[1, 1, 1, 1, 1, 1]]) {
            let before: Vec<u64> = world.prefill.iter().map(|m| m.node.stats().writes).collect();
            serves(&mut world, room, chunks);
            for (member, before) in world.prefill.iter().zip(before) {
                // For each of two readers: a write for each chunk, two states and the aux record.
                let writes = member.node.stats().writes - before;
                let most = 2 * (chunks.len() as u64 + 3);
                assert!(writes <= most, "{}: {writes} writes of {most}", member.rank);
            }
        }
    }
}

#[test]
fn f34_ranks_that_do_not_divide_are_refused_with_both_sides_named() {
    let dense = |tp| Layout { state: vec![], ..engine(tp, &[4]) };
    for (prefill, decode) in [(3, 2), (3, 4), (2, 3)] {
        let error = Topology::new(dense(prefill), dense(decode)).unwrap_err().to_string();
        let both = format!("prefill tp {prefill} and decode tp {decode}");
        assert!(error.contains(&both), "{error}");
    }
}

#[test]
fn f39_every_ranks_silence_is_noticed_not_only_the_first_ones() {
    let mut world = World::new(&engine(4, &[4]), &engine(1, &[4]), SimConfig::checked());
    world.receive(1, &[3]);
    world.open(1);
    world.run_for(SOON);
    world.net.stop(world.prefill[3].address);
    world.run_for(Duration::from_secs(8));
    let decode = received(&world.decode[0].done, 1);
    assert!(matches!(decode, Err(Cause::PeerDown(_))), "{decode:?}");
    for member in &world.prefill[..3] {
        let is_down = |c: &Completion| matches!(c, Completion::Closed { result: Err(_), .. });
        assert!(member.done.iter().any(is_down), "{}: {:?}", member.rank, member.done);
    }
}

#[test]
fn f43_neighbouring_pages_are_one_span_for_each_buffer_and_scattered_ones_need_no_list() {
    let shapes = [BufferShape::dense(0, 1 << 16); 122];
    let neighbours: Vec<u32> = (0..8192).collect();
    assert_eq!(Spans::new(&shapes, 0..122, &neighbours).count(), 122);
    let scattered: Vec<u32> = (0..8192).map(|page| page * 2).collect();
    let mut spans = Spans::new(&shapes, 0..122, &scattered);
    // The walk is a few words, whatever it has before it.
    assert!(size_of_val(&spans) <= 160);
    assert_eq!(spans.nth(8192).map(|span| (span.buffer, span.offset)), Some((1, 0)));
}
