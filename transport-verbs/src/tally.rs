//! Exact accounting of work requests of which few complete visibly.
//!
//! A queue pair carries requests out in the order posted, and reports: a success of those that
//! asked for it, which speaks for all before; and every failure, asked for or not. The first
//! failure stops the pair, and everything behind is reported as flushed. From that this tells, for
//! every *flight* (consecutive requests that belong together), exactly once how it ended.
//!
//! Order of calls: [`Tally::begin`], [`Tally::posted`] for its requests, *before* the doorbell, and
//! [`Tally::end`] with the last; then [`Tally::completed`] for whatever the device reports, and
//! [`Tally::drain`] once it reports no more.
//!
//! Invariant: `retired <= posted`; flights are in the order of their requests; only the last may be
//! unended.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

/// The device's status of what was flushed.
pub(crate) const FLUSHED: u32 = 5;

/// Requests in flight on one queue pair, and whose they are.
#[derive(Debug)]
pub(crate) struct Tally<T> {
    depth: u64,
    /// Requests posted so far: the number of the next.
    posted: u64,
    /// Requests of which the end is known.
    retired: u64,
    flights: VecDeque<Flight<T>>,
}

#[derive(Debug)]
struct Flight<T> {
    tag: T,
    /// The number of its first request.
    first: u64,
    /// The number behind its last request; `None` while more may follow.
    end: Option<u64>,
    /// The first failure among its requests.
    failed: Option<u32>,
}

impl<T> Tally<T> {
    /// For a queue pair of `depth` requests, of which one is kept for the marker that ends it.
    pub(crate) fn new(depth: u32) -> Self {
        Self { depth: u64::from(depth), posted: 0, retired: 0, flights: VecDeque::new() }
    }

    /// Requests that may be posted now.
    pub(crate) fn room(&self) -> usize {
        (self.depth - 1).saturating_sub(self.posted - self.retired) as usize
    }

    /// Whether nothing is in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.posted == self.retired
    }

    /// The number of the next request.
    pub(crate) fn next(&self) -> u64 {
        self.posted
    }

    /// The next requests belong to `tag`.
    pub(crate) fn begin(&mut self, tag: T) {
        self.flights.push_back(Flight { tag, first: self.posted, end: None, failed: None });
    }

    /// One more request is about to be posted.
    pub(crate) fn posted(&mut self) {
        self.posted += 1;
    }

    /// The present flight fails, whatever the device reports of its requests.
    pub(crate) fn fail(&mut self, status: u32) {
        if let Some(flight) = self.flights.back_mut() {
            flight.failed.get_or_insert(status);
        }
    }

    /// No more requests of the present flight follow.
    pub(crate) fn end(&mut self) {
        if let Some(flight) = self.flights.back_mut() {
            flight.end = Some(self.posted);
        }
    }

    /// The device reports the end of request `id`. Calls `ended` for each flight that is over.
    pub(crate) fn completed(
        &mut self,
        id: u64,
        status: u32,
        mut ended: impl FnMut(T, Result<(), u32>),
    ) {
        if id < self.retired || id >= self.posted {
            return;
        }
        if status != 0 {
            // Of what comes before, nothing failed, or it had been reported before.
            let flight = self.flights.iter_mut().find(|f| f.end.is_none_or(|end| id < end));
            if let Some(flight) = flight.filter(|f| f.first <= id) {
                flight.failed.get_or_insert(status);
            }
        }
        self.retired = id + 1;
        while let Some(flight) = self.pop_ended() {
            ended(flight.tag, flight.failed.map_or(Ok(()), Err));
        }
    }

    /// The device reports nothing more: everything before the marker that said so and was not
    /// reported as failed has succeeded. `lost` requests were never taken by the device.
    pub(crate) fn drain(&mut self, lost: u64, mut ended: impl FnMut(T, Result<(), u32>)) {
        self.retired = self.posted - lost.min(self.posted - self.retired);
        while let Some(flight) = self.pop_ended() {
            ended(flight.tag, flight.failed.map_or(Ok(()), Err));
        }
        for flight in self.flights.drain(..) {
            ended(flight.tag, Err(flight.failed.unwrap_or(FLUSHED)));
        }
        self.retired = self.posted;
    }

    fn pop_ended(&mut self) -> Option<Flight<T>> {
        let over = self.flights.front()?.end.is_some_and(|end| end <= self.retired);
        if over { self.flights.pop_front() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A tally with flights of so many requests each, named by their places.
    fn flights(sizes: &[u64]) -> Tally<usize> {
        let mut tally = Tally::new(1000);
        for (tag, size) in sizes.iter().enumerate() {
            tally.begin(tag);
            (0..*size).for_each(|_| tally.posted());
            tally.end();
        }
        tally
    }

    #[test]
    fn one_success_speaks_for_all_before() {
        let mut tally = flights(&[3, 2, 4]);
        let mut ended = vec![];
        tally.completed(4, 0, |tag, result| ended.push((tag, result)));
        assert_eq!(ended, [(0, Ok(())), (1, Ok(()))]);
        assert_eq!(tally.room(), 999 - 4);
    }

    #[test]
    fn q2_an_unsignalled_failure_is_found_and_costs_only_its_own() {
        let mut tally = flights(&[3, 2, 4]);
        let mut ended = vec![];
        tally.completed(3, 10, |tag, result| ended.push((tag, result)));
        assert_eq!(ended, [(0, Ok(()))], "what came before it has landed");
        for id in 4..9 {
            tally.completed(id, FLUSHED, |tag, result| ended.push((tag, result)));
        }
        assert_eq!(ended, [(0, Ok(())), (1, Err(10)), (2, Err(FLUSHED))]);
        assert!(tally.is_idle());
    }

    #[test]
    fn q2_what_the_device_never_took_has_failed_and_the_silent_have_not() {
        let mut tally = flights(&[2, 2, 2]);
        tally.begin(3);
        tally.posted();
        let mut ended = vec![];
        tally.drain(3, |tag, result| ended.push((tag, result)));
        assert_eq!(ended, [(0, Ok(())), (1, Ok(())), (2, Err(FLUSHED)), (3, Err(FLUSHED))]);
    }

    #[test]
    fn a_flight_that_was_given_up_fails_though_its_requests_succeed() {
        let mut tally = flights(&[1]);
        tally.begin(1);
        tally.posted();
        tally.fail(10);
        tally.end();
        let mut ended = vec![];
        tally.completed(1, 0, |tag, result| ended.push((tag, result)));
        assert_eq!(ended, [(0, Ok(())), (1, Err(10))]);
    }

    #[test]
    fn reports_of_what_is_over_or_never_was_change_nothing() {
        let mut tally = flights(&[2]);
        tally.completed(7, 0, |_, _| panic!("never posted"));
        let mut count = 0;
        tally.completed(1, 0, |_, _| count += 1);
        tally.completed(0, 5, |_, _| count += 1);
        tally.completed(1, 0, |_, _| count += 1);
        assert_eq!(count, 1);
    }

    proptest! {
        /// Against a pair that carries out requests one by one, with some of them signalled, one
        /// that fails, and some that it never takes.
        #[test]
        fn q2_every_flight_ends_once_and_as_its_requests_did(
            sizes in prop::collection::vec(1u64..6, 1..12),
            signals in any::<u64>(), fails in 0u64..80, lost in 0u64..4,
        ) {
            let mut tally = flights(&sizes);
            let total: u64 = sizes.iter().sum();
            let taken = total.saturating_sub(lost);
            let mut ended = vec![];
            for id in 0..taken {
                let status = if id < fails { 0 } else if id == fails { 12 } else { FLUSHED };
                if status != 0 || signals >> (id % 64) & 1 == 1 {
                    tally.completed(id, status, |tag, result| ended.push((tag, result)));
                }
            }
            tally.drain(total - taken, |tag, result| ended.push((tag, result)));
            let mut first = 0;
            let expected: Vec<_> = sizes.iter().enumerate().map(|(tag, size)| {
                let range = first..first + size;
                first = range.end;
                let result = if range.contains(&fails) && fails < taken {
                    Err(12)
                } else if range.end > fails || range.end > taken {
                    Err(FLUSHED)
                } else {
                    Ok(())
                };
                (tag, result)
            }).collect();
            prop_assert_eq!(ended, expected);
        }
    }
}
