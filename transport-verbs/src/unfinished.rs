//! The shares that one life of a rail did not finish, and which of them have landed all the same.
//!
//! A device that fails before it has heard of a success reports a failure. So what it reports is not
//! enough to write anything again: by then a room may have succeeded with these very bytes, and its
//! pages be another's. But a queue pair carries shares in the order posted, and each announces
//! itself once: when the peer says how many announcements it took, that many of the first have
//! landed. A share that it did not take cannot have let a room succeed.
//!
//! And where the peer took fewer than our device said had landed, one of the two is wrong, and what
//! was reported as landed is not there. (Seen of Soft-RoCE over a wire that loses and repeats
//! packets.) That must not look like success.
#![forbid(unsafe_code)]

use crate::outbox::Share;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Unfinished {
    /// Announcements of this life that are over, whether they came or not: the place of the next.
    over: u64,
    /// How many of the first of them have come, if our device is right.
    landed: u64,
    held: Vec<Held>,
}

#[derive(Debug)]
struct Held {
    /// Its place among the shares of this life.
    place: u64,
    share: Share,
    status: u32,
}

impl Unfinished {
    /// The next share of this life has landed. (One that is refused for good announces nothing.)
    pub(crate) fn passed(&mut self) {
        self.over += 1;
        self.landed = self.over;
    }

    /// The next share of this life failed with its rail; the status of its request.
    pub(crate) fn hold(&mut self, share: Share, status: u32) {
        self.held.push(Held { place: self.over, share, status });
        self.over += 1;
    }

    /// Whether none waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Whether the peer, who took so many announcements, lacks one that our device reported as landed.
    pub(crate) fn lacks(&self, taken: u64) -> bool {
        taken < self.landed
    }

    /// This life is over, and the peer took so many announcements: what has landed ends as a
    /// success, what has not as the failure of its request.
    pub(crate) fn release(&mut self, taken: u64) -> impl Iterator<Item = (Share, Result<(), u32>)> {
        let held = std::mem::take(self).held.into_iter();
        held.map(move |Held { place, share, status }| {
            (share, if place < taken { Ok(()) } else { Err(status) })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_peer_has_taken_landed_and_the_next_life_counts_anew() {
        let share = |index| Share { write: 1, index };
        let mut life = Unfinished::default();
        life.passed();
        life.hold(share(1), 12);
        life.hold(share(2), 5);
        assert!(!life.is_empty());
        let ends: Vec<_> = life.release(2).collect();
        assert_eq!(ends, [(share(1), Ok(())), (share(2), Err(5))]);
        life.hold(share(3), 5);
        assert_eq!(life.release(0).next(), Some((share(3), Err(5))));
    }

    #[test]
    fn a_peer_that_took_less_than_has_landed_is_found_out() {
        let mut life = Unfinished::default();
        life.passed();
        life.passed();
        life.hold(Share { write: 1, index: 3 }, 5);
        assert!(life.lacks(1));
        assert!(!life.lacks(2) && !life.lacks(3));
        assert_eq!(life.release(2).count(), 1);
        assert!(!life.lacks(0), "the next life owes nothing");
    }
}
