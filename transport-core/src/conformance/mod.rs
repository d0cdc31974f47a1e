//! The suite that every fabric passes: what [`crate::fabric`] and [`crate::link`] promise, checked
//! from the outside.
//!
//! A fabric's tests implement [`Harness`] and call [`run_all`], or
//! [`conformance_tests!`](crate::conformance_tests) for one named test per check. Each check is a
//! public function too, so that one can be run under a debugger or for many seeds.
//!
//! A check makes its own endpoints, drives them, and panics with what was promised and what
//! happened instead. Whatever it looks for, it also watches everything else: each arrival and each
//! completion must belong to a write that was posted, come once, and find the bytes in place; every
//! byte that no write names must keep its value; a wait that takes longer than
//! [`Harness::patience`] is a failure that says what never came.
//!
//! Not for speed, and not for the rooms above: a fabric knows none.
#![forbid(unsafe_code)]

mod delivery;
mod fences;
mod landing;
mod links;
mod memory;
mod refusals;
mod rig;
mod vectors;
mod wiring;
mod witness;

use alloc::vec::Vec;
use core::time::Duration;

pub use self::vectors::vectors;

use crate::Instant;
use crate::link::Endpoint;
use crate::memory::MemoryRegion;

/// What a fabric's tests provide.
pub trait Harness {
    /// The endpoint under test.
    type Endpoint: Endpoint;

    /// Fresh endpoints, 2 or 3, nothing bound yet. The first has, or gets without further calls, a
    /// link with each of the others; who dials is the harness's choice.
    fn start(&mut self, endpoints: usize) -> Vec<Self::Endpoint>;

    /// Lets time pass between two turns of the endpoints and says what time it is. `idle` is true
    /// when nothing moved in the last turn: then wait a little (a fraction of a millisecond), or
    /// advance the simulation. The time must grow, or a check that hangs hangs for ever.
    fn step(&mut self, idle: bool) -> Instant;

    /// Ends an endpoint as abruptly as its process might. Its peers must notice within
    /// [`Harness::patience`].
    fn kill(&mut self, endpoint: Self::Endpoint) {
        drop(endpoint);
    }

    /// Memory to transfer from and to.
    fn region(&mut self, len: usize) -> MemoryRegion {
        MemoryRegion::allocate(len).expect("memory for the conformance suite")
    }

    /// Whether the target itself refuses what its grants do not allow (M3). Where it does not (RDMA
    /// between trusted peers), the checks of hostile writes are left out.
    fn target_checks(&self) -> bool {
        true
    }

    /// How long, on the clock of [`Harness::step`], anything awaited may take.
    fn patience(&self) -> Duration {
        Duration::from_secs(10)
    }

    /// How long to watch for what must not happen.
    fn aftermath(&self) -> Duration {
        Duration::from_millis(20)
    }

    /// Called with the name of each check before it starts.
    fn begin(&mut self, check: &'static str) {
        let _ = check;
    }
}

/// Calls `$with! { ($args) check check ... }` with every check of the suite: the one list of them.
#[doc(hidden)]
#[macro_export]
macro_rules! for_each_conformance_check {
    ($with:path, ($($args:tt)*)) => {
        $with! { ($($args)*)
            bytes_land_in_the_granted_items_and_nowhere_else
            items_land_in_any_order_from_repeated_sources
            neighbouring_pages_merge_without_spilling
            strided_items_leave_their_gaps_alone
            sliced_items_land_run_by_run
            layer_ranges_write_only_their_buffers
            items_of_any_size_land
            thousands_of_scattered_pages_land
            empty_writes_complete_and_arrive
            random_writes_land_exactly
            many_writes_of_several_parts_each_arrive_once
            both_directions_work_at_once
            two_writers_to_one_target_do_not_mix
            a_full_queue_gives_the_write_back_whole
            cancelled_writes_land_whole_or_not_at_all
            a_write_keeps_its_source_until_it_is_over
            misfits_are_given_back_and_move_nothing
            writes_without_a_grant_in_force_are_refused
            a_grant_serves_its_own_peer_only
            a_wrong_tag_is_refused
            writes_outside_the_grant_are_refused
            calls_that_cannot_be_served_say_so
            nothing_lands_after_a_fence
            a_second_revoke_promises_no_more_than_the_first
            nothing_lands_after_the_path_went_down
            writes_in_flight_end_before_their_path
            a_path_can_be_built_again
            a_killed_peer_ends_its_writes_and_its_link
            nothing_lands_where_the_endpoint_is_gone
            regions_close_when_their_endpoint_is_gone
            messages_come_whole_in_order_and_once
            the_longest_message_passes_and_a_longer_one_does_not
            a_full_link_says_busy_and_drains
            a_closed_link_goes_down_once_and_comes_back
            links_to_nobody_say_so
        }
    };
}

macro_rules! run_all_of {
    (($harness:ident) $($check:ident)*) => {
        $( $check($harness); )*
    };
}

/// Runs every check. Panics at the first that fails, with its name.
pub fn run_all(harness: &mut impl Harness) {
    for_each_conformance_check!(run_all_of, (harness));
}

/// One `#[test]` per check; the argument is an expression that makes a [`Harness`].
///
/// ```ignore
/// transport_core::conformance_tests!(MyHarness::new());
/// ```
#[macro_export]
macro_rules! conformance_tests {
    ($harness:expr) => {
        $crate::for_each_conformance_check!($crate::conformance_tests_of, ($harness));
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! conformance_tests_of {
    (($harness:expr) $($check:ident)*) => {
        $(
            #[test]
            fn $check() {
                $crate::conformance::$check(&mut $harness);
            }
        )*
    };
}

pub use delivery::{
    a_full_queue_gives_the_write_back_whole, a_write_keeps_its_source_until_it_is_over,
    both_directions_work_at_once, cancelled_writes_land_whole_or_not_at_all,
    many_writes_of_several_parts_each_arrive_once, misfits_are_given_back_and_move_nothing,
    two_writers_to_one_target_do_not_mix,
};
pub use fences::{
    a_killed_peer_ends_its_writes_and_its_link, a_path_can_be_built_again,
    a_second_revoke_promises_no_more_than_the_first, nothing_lands_after_a_fence,
    nothing_lands_after_the_path_went_down, nothing_lands_where_the_endpoint_is_gone,
    regions_close_when_their_endpoint_is_gone, writes_in_flight_end_before_their_path,
};
pub use landing::{
    bytes_land_in_the_granted_items_and_nowhere_else, empty_writes_complete_and_arrive,
    items_land_in_any_order_from_repeated_sources, items_of_any_size_land,
    layer_ranges_write_only_their_buffers, neighbouring_pages_merge_without_spilling,
    random_writes_land_exactly, sliced_items_land_run_by_run, strided_items_leave_their_gaps_alone,
    thousands_of_scattered_pages_land,
};
pub use links::{
    a_closed_link_goes_down_once_and_comes_back, a_full_link_says_busy_and_drains,
    links_to_nobody_say_so, messages_come_whole_in_order_and_once,
    the_longest_message_passes_and_a_longer_one_does_not,
};
pub use refusals::{
    a_grant_serves_its_own_peer_only, a_wrong_tag_is_refused, calls_that_cannot_be_served_say_so,
    writes_outside_the_grant_are_refused, writes_without_a_grant_in_force_are_refused,
};
