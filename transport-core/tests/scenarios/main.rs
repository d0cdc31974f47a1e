//! What went wrong in systems of this kind, and does not here: a test for each scenario, named after
//! its number. `F` numbers are failures that other transports had, `S` numbers three reports of them
//! that were studied in full. Numbers that are left out name what is no matter of this family.
//!
//! Tests named without a file are in this folder; others that look at the same thing more closely,
//! or where sockets and HTTP are needed, are named with theirs.
//!
//! | scenario | tests, or why it cannot be |
//! |---|---|
//! | F1 pipeline stages time out at different moments, one crashes | `decisions::f01_`, `engines::f01_` (two); a handle's state may be read at any time: there is no state that a reader must not meet |
//! | F2 aborts on several stages lock the pipeline | `decisions::f02_`, `engines::f02_`; `tests/node/ranks.rs` and `tests/node/siblings.rs` `r3_`, `disagg/consensus/model_tests.rs` |
//! | F3 decode is full, prefill waits out its deadline | `backpressure::f03_`, `decisions::f03_`, `rooms::f03_`; `tests/node/admission.rs`, `tests/node/asks.rs` `r5_`, `tests/node/endings.rs` `r7_a_decode_node_that_is_full_says_so_to_the_prefill_side` |
//! | F4 pages are offered to a room that prefill gave up | `rooms::f04_`; `tests/node/messages.rs` `rooms_and_early_grants_are_bounded`, `disagg/directory/registry_tests.rs` `f04_`, `transport-tcp/tests/bootstrap/server.rs` `f04_` |
//! | F5 a room number used again adopts old destinations | `rooms::f05_` |
//! | F6 an abort overtakes the sender | `rooms::f06_`; `tests/node/messages.rs` `r7_an_abort_that_overtakes_its_grant_is_answered_and_refuses_the_grant` |
//! | F7 a room number given twice | `rooms::f07_` (two) |
//! | F8 a dense model hangs on aux or state | `parts::f08_`, `parts::s3_` |
//! | F9 one of several state components stands for all | `parts::f09_`, `engines::f09_` |
//! | F10 a full prefix hit never completes | `parts::f10_` |
//! | F11 completion counts reports instead of writers | `engines::f11_`; `disagg/room/decode_tests.rs` `g5_a_manifest_of_another_rank_changes_nothing` |
//! | F12 pages are used again while the old writer writes | `rooms::f12_`; `tests/node/faults.rs`, `transport-tcp/tests/failure.rs` `m2_` |
//! | F14 one bad chunk ends a worker; no deadline after bootstrap | `strangers::f14_` (two); there is no worker thread to end: a node is one state machine |
//! | F15 one malformed message ends the control thread | `strangers::f15_`; `tests/wire_properties.rs` `w1_`, `transport-tcp/tests/hostile.rs` `w4_`, `transport-tcp/tests/bootstrap/hostile.rs` `w4_` |
//! | F16 an aux write without bounds or owner | `strangers::f16_`; aux is never carried by a message: it is written under a grant, which targets check (`transport-tcp/tests/hostile.rs` `m3_`) and whose record is checked as a unit (`tests/node/messages.rs` `g6_`); with a shared key only peers that prove it are listened to: `tests/node/trust.rs` |
//! | F18 room 0 means "not written" | `rooms::f18_` |
//! | F19 prefill is replaced behind its address | `rooms::f19_`, `directory::f19_`; `transport-tcp/tests/bootstrap/server.rs` `f19_` |
//! | F20 one dead node takes along those whose address begins alike | `directory::f20_`; nodes know peers by number and ranks by four numbers, nothing by text |
//! | F21 sockets or descriptors run out | cannot grow with rooms: rooms share one link and one path for each peer; peers and strangers are bounded: `transport-tcp/tests/port.rs` `no_more_peers_than_allowed`, `a_crowd_is_turned_away_and_makes_room_when_it_leaves` |
//! | F23 a failure at prefill is not told to decode | `rooms::f23_` (two); `tests/node/endings.rs` `r7_`, `tests/node/messages.rs` `r7_` |
//! | F24 registration before the directory is there | `rooms::f24_`, `directory::f24_`; `transport-tcp/tests/bootstrap/client.rs` `a_server_restarted_at_the_same_address_is_used_again_without_a_new_client` |
//! | F26 two sources say which data-parallel rank | `directory::f26_`, `routing::s2_`, `directory::s2_` (two); `disagg/directory/resolve.rs` `f26_`, `r4_both_sides_decide_alike` |
//! | F27 a rank's entry expires before its request | `directory::f27_`; `transport-tcp/tests/bootstrap/server.rs` `f27_` |
//! | F28 the scheduler waits for a dead address | cannot: a turn of a node does no HTTP and waits for nothing, links are dialled by the endpoint beside it, and a client's calls only enter a queue; a slow peer holds up none but its own rooms: `tests/node/busy.rs` `a_peer_that_is_slow_does_not_hold_up_another` |
//! | F29 engines of other shapes: tiny writes, chunks off the grid | `engines::f29_`; there is no staging ring that could leak or lock: `tests/topology` carries out every plan to the byte |
//! | F30 a request longer than a chunk hangs | `parts::f30_` |
//! | F31 memory that was never registered is found at the first write | `strangers::f31_`; `tests/node/ranks.rs` `tables_that_are_not_the_ranks_are_refused_before_anybody_is_met` |
//! | F32 state that a backend does not carry | `strangers::f32_` |
//! | F33 settings that differ look like a timeout | `strangers::f33_`; `disagg/directory/registry_tests.rs` `f33_`, `transport-tcp/tests/bootstrap/server.rs` `f33_` |
//! | F34 ranks that do not divide are mapped all the same | `engines::f34_`; `tests/topology/errors.rs` `p1_`, `tests/node/ranks.rs` `w2_engines_that_cannot_be_mapped_refuse_each_other_with_both_values` |
//! | F35 sizes above 4 GiB | `strangers::f35_` |
//! | F36 the source is read before it is ready | `parts::f36_`; `tests/node/rooms.rs` `m4_` |
//! | F38 prefill failed, decode is not cancelled | `rooms::f38_` |
//! | F39 only one side, or one rank, is watched | `rooms::f39_`, `engines::f39_` |
//! | F40 mixed versions | `strangers::f40_`; `tests/wire_golden.rs`, `transport-tcp/tests/port.rs` `a_peer_of_another_version_learns_ours` |
//! | F42 told before the bytes can be seen | `parts::f42_`; every fabric passes `transport_core::conformance` |
//! | F43 scattered pages cost half a second | `engines::f43_`; measured by `benches/benches/planner.rs` |
//! | S1 pipeline race at a timeout, with a full decode side | `backpressure::s1_`, `decisions::s1_` (two), `engines::s1_`, with F1 and F3 |
//! | S2 an explicit rank overrides follow-room | `routing::s2_`, `directory::s2_` (two) |
//! | S3 dense models: `[]` on one side, nothing on the other | `parts::s3_` |

#[path = "../node/group.rs"]
#[allow(dead_code, reason = "shared with the tests of nodes, which use all of it")]
mod group;
#[path = "../node/hall.rs"]
#[allow(dead_code, reason = "shared with the tests of nodes, which use all of it")]
mod hall;
#[path = "../node/world.rs"]
#[allow(dead_code, reason = "shared with the tests of nodes, which use all of it")]
mod world;

mod backpressure;
mod decisions;
mod directory;
mod engines;
mod look;
mod parts;
mod rooms;
mod routing;
mod strangers;
