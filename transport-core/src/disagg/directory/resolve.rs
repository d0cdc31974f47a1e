//! Which data-parallel rank of a prefill instance serves a request (R4).
//!
//! Both sides decide by themselves, from the same facts, so they must decide alike: the decode side
//! [resolves](resolve), the prefill rank that got the request [announces](announce). Where a router
//! sent the request elsewhere than both would compute, the prefill rank finds out, and the request
//! fails with the numbers of both ranks: its [node](crate::disagg::node::NodeConfig::follow_room) tells
//! the decode nodes that it knows. For the others it [places](super::Directory::place) the room where it
//! is, and the decode side, which asks for every room whose prefill rank does not answer,
//! [learns the same](confirm).

use core::num::NonZeroU32;

use thiserror::Error;

use crate::disagg::RoomId;

/// How a prefill instance spreads requests over its data-parallel ranks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DpPolicy {
    /// Data-parallel ranks.
    pub dp_size: NonZeroU32,
    /// Requests go to rank `room % dp_size`.
    pub follow_room: bool,
    /// Ask the directory even so. Must be set on both sides or on none: it allows mixed routing.
    pub force_query: bool,
}

/// What is known of a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DpRequest {
    /// Its room.
    pub room: RoomId,
    /// The rank that the router named in the request, if it did.
    pub explicit: Option<u32>,
}

/// Where a decode node finds a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Resolved {
    /// Only the directory knows: [`super::Directory::dp_ranks`].
    Ask,
    /// At this rank.
    Rank(u32),
}

/// What the prefill rank that has a request does about it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Announce {
    /// Decode nodes ask: [`super::Directory::place`] it.
    Place,
    /// Decode nodes know.
    Silent,
}

/// A request cannot be served as it was routed.
#[derive(Clone, Copy, Debug, Eq, Error, Hash, PartialEq)]
#[non_exhaustive]
pub enum DpError {
    /// It is at another rank than where the decode side looks.
    #[error(transparent)]
    Misrouted(#[from] Misrouted),
    /// The router named a rank that the instance does not have.
    #[error("{room}: there is no data-parallel rank {rank}, only {dp_size}")]
    NoSuchRank {
        /// The request's room.
        room: RoomId,
        /// The rank named.
        rank: u32,
        /// Data-parallel ranks of the instance.
        dp_size: NonZeroU32,
    },
}

/// A request is at another rank than its room or its router's word implies. Let the router follow
/// the rooms, let it name the rank in the request, or set `force_query` on both sides.
#[derive(Clone, Copy, Debug, Eq, Error, Hash, PartialEq)]
#[error(
    "{room} was routed to data-parallel rank {routed}, but the decode side looks for it at rank {implied}; \
     let the router follow the room or set force_query on both sides"
)]
pub struct Misrouted {
    /// The request's room.
    pub room: RoomId,
    /// The rank that has it.
    pub routed: u32,
    /// The rank where it is looked for.
    pub implied: u32,
}

/// Decode side: where the request is. An explicit rank wins, then the room, then the directory.
///
/// # Errors
///
/// [`DpError::NoSuchRank`]: fail the request.
pub fn resolve(request: DpRequest, policy: DpPolicy) -> Result<Resolved, DpError> {
    Ok(implied(request, policy)?.map_or(Resolved::Ask, Resolved::Rank))
}

/// Prefill side: what `own`, the data-parallel rank that has the request, does about it.
///
/// # Errors
///
/// [`DpError::Misrouted`]: fail the request, and place it in the directory so that the decode side
/// learns it too. [`DpError::NoSuchRank`]: fail the request.
pub fn announce(own: u32, request: DpRequest, policy: DpPolicy) -> Result<Announce, DpError> {
    match implied(request, policy)? {
        None => Ok(Announce::Place),
        Some(implied) if implied == own => Ok(Announce::Silent),
        Some(implied) => Err(Misrouted { room: request.room, routed: own, implied }.into()),
    }
}

/// Decode side: whether a request that is looked for at rank `looked_at` is there, given what the
/// directory says. Silence of the directory says nothing.
///
/// # Errors
///
/// [`Misrouted`], the same as the prefill side's.
pub fn confirm(room: RoomId, looked_at: u32, placed: Option<u32>) -> Result<(), Misrouted> {
    match placed {
        Some(routed) if routed != looked_at => Err(Misrouted { room, routed, implied: looked_at }),
        _ => Ok(()),
    }
}

/// The rank that both sides can tell without asking.
fn implied(request: DpRequest, policy: DpPolicy) -> Result<Option<u32>, DpError> {
    let DpRequest { room, explicit } = request;
    let dp_size = policy.dp_size;
    match explicit {
        Some(rank) if rank >= dp_size.get() => Err(DpError::NoSuchRank { room, rank, dp_size }),
        Some(rank) => Ok(Some(rank)),
        None if dp_size.get() == 1 => Ok(Some(0)),
        None if policy.follow_room && !policy.force_query => {
            // A remainder of division by a u32 is one.
            Ok(Some((room.0 % u64::from(dp_size.get())) as u32))
        }
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ROOM: RoomId = RoomId(14);

    fn policy(dp_size: u32, follow_room: bool, force_query: bool) -> DpPolicy {
        let dp_size = NonZeroU32::new(dp_size).expect("tests have ranks");
        DpPolicy { dp_size, follow_room, force_query }
    }

    fn request(explicit: Option<u32>) -> DpRequest {
        DpRequest { room: ROOM, explicit }
    }

    #[test]
    fn r4_an_explicit_rank_wins_then_the_room_then_the_directory() {
        let follow = policy(4, true, false);
        assert_eq!(resolve(request(Some(3)), follow), Ok(Resolved::Rank(3)));
        assert_eq!(resolve(request(None), follow), Ok(Resolved::Rank(2)));
        assert_eq!(resolve(request(None), policy(4, false, false)), Ok(Resolved::Ask));
        assert_eq!(resolve(request(None), policy(1, false, true)), Ok(Resolved::Rank(0)));
    }

    #[test]
    fn r4_force_query_turns_the_fast_path_off_on_both_sides() {
        let forced = policy(4, true, true);
        assert_eq!(resolve(request(None), forced), Ok(Resolved::Ask));
        assert_eq!(announce(1, request(None), forced), Ok(Announce::Place));
        assert_eq!(resolve(request(Some(3)), forced), Ok(Resolved::Rank(3)));
    }

    #[test]
    fn f26_a_request_routed_elsewhere_fails_on_both_sides_with_both_ranks() {
        let follow = policy(4, true, false);
        let misrouted = Misrouted { room: ROOM, routed: 1, implied: 2 };
        assert_eq!(announce(1, request(None), follow), Err(misrouted.into()));
        assert_eq!(confirm(ROOM, 2, Some(1)), Err(misrouted));
        let explicit = Misrouted { room: ROOM, routed: 1, implied: 3 };
        assert_eq!(announce(1, request(Some(3)), follow), Err(explicit.into()));
    }

    #[test]
    fn r4_a_rank_that_does_not_exist_is_named_with_the_size() {
        let dp_size = NonZeroU32::new(4).unwrap();
        let error = Err(DpError::NoSuchRank { room: ROOM, rank: 4, dp_size });
        assert_eq!(resolve(request(Some(4)), policy(4, true, false)), error);
    }

    proptest! {
        /// Whatever the routing: when the prefill rank goes on with a request, the decode side
        /// looks exactly there, or asks and is told; and the prefill rank never refuses one that
        /// the decode side would have found.
        #[test]
        fn r4_both_sides_decide_alike(
            room: u64, dp_size in 1u32..64, own in 0u32..64, follow: bool, force: bool,
            explicit in proptest::option::of(0u32..64),
        ) {
            let own = own % dp_size;
            let policy = policy(dp_size, follow, force);
            let request = DpRequest { room: RoomId(room), explicit };
            let decode = resolve(request, policy);
            match announce(own, request, policy) {
                Ok(Announce::Place) => prop_assert_eq!(decode, Ok(Resolved::Ask)),
                Ok(Announce::Silent) => prop_assert_eq!(decode, Ok(Resolved::Rank(own))),
                Err(DpError::Misrouted(misrouted)) => {
                    prop_assert_eq!(decode, Ok(Resolved::Rank(misrouted.implied)));
                    prop_assert_ne!(misrouted.implied, own);
                    let told = confirm(request.room, misrouted.implied, Some(own));
                    prop_assert_eq!(told, Err(misrouted));
                }
                Err(error) => prop_assert_eq!(decode, Err(error)),
            }
        }
    }
}
