//! CPU time of this process and this thread, and of work that is not the transport's.
//!
//! For reporting CPU seconds per GB of the transport alone: making and checking the pattern costs
//! about as much as moving it, so both are run inside [`Excluded::run`] and subtracted. And a clock
//! that two processes can both read.
//!
//! Unsafe code: one system call.

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// CPU time, user and system, that all threads of this process have used.
pub fn process() -> Duration {
    clock(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// CPU time, user and system, that this thread has used.
pub fn thread() -> Duration {
    clock(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// Nanoseconds since a moment that all processes of this machine share.
pub fn monotonic() -> u64 {
    u64::try_from(clock(libc::CLOCK_MONOTONIC).as_nanos()).unwrap_or(u64::MAX)
}

/// Adds up the CPU time of work that is not to be counted, over any number of threads.
///
/// ```
/// use kvperf::cpu::{self, Excluded};
///
/// static PATTERN: Excluded = Excluded::new();
/// let sum: u64 = PATTERN.run(|| (0..1000).sum());
/// let transport = cpu::process().saturating_sub(PATTERN.total());
/// # assert_eq!((sum, transport <= cpu::process()), (499_500, true));
/// ```
#[derive(Debug, Default)]
pub struct Excluded {
    nanos: AtomicU64,
}

impl Excluded {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self { nanos: AtomicU64::new(0) }
    }

    /// Does `work` and adds the CPU time this thread spent on it. Costs two system calls, so give
    /// it a chunk of pages rather than each page.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> T {
        let before = thread();
        let result = work();
        let spent = thread().saturating_sub(before);
        let nanos = u64::try_from(spent.as_nanos()).unwrap_or(u64::MAX);
        // A counter that publishes nothing else, read when the work is over.
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
        result
    }

    /// CPU time added so far.
    pub fn total(&self) -> Duration {
        Duration::from_nanos(self.nanos.load(Ordering::Relaxed))
    }
}

/// Zero when the system has no such clock: every Unix we build for has both.
#[allow(unsafe_code)]
fn clock(id: libc::clockid_t) -> Duration {
    let mut time = MaybeUninit::<libc::timespec>::zeroed();
    // SAFETY: the pointer is to a timespec of ours, which the call may write.
    let failed = unsafe { libc::clock_gettime(id, time.as_mut_ptr()) } != 0;
    // SAFETY: all zero bytes are a valid timespec, and so is what the call wrote.
    let time = unsafe { time.assume_init() };
    let (seconds, nanos) = (time.tv_sec.try_into(), time.tv_nsec.try_into());
    match (seconds, nanos) {
        (Ok(seconds), Ok(nanos)) if !failed => Duration::new(seconds, nanos),
        _ => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::time::Instant;

    use super::*;

    /// Burns CPU until this thread has used so much of it.
    fn burn(amount: Duration) {
        let start = thread();
        while thread() - start < amount {
            black_box((0..10_000_u64).fold(0, |sum, n| black_box(sum + n)));
        }
    }

    #[test]
    fn work_counts_and_waiting_does_not() {
        let (cpu, wall) = (thread(), Instant::now());
        std::thread::sleep(Duration::from_millis(30));
        let slept = thread() - cpu;
        assert!(slept < wall.elapsed() / 2, "{slept:?} of CPU time asleep");
        let (cpu, wall) = (thread(), Instant::now());
        burn(Duration::from_millis(5));
        let worked = thread() - cpu;
        assert!((Duration::from_millis(5)..=wall.elapsed()).contains(&worked), "{worked:?}");
    }

    #[test]
    fn excluded_work_is_added_over_threads_and_is_part_of_the_process() {
        let amount = Duration::from_millis(5);
        let excluded = Excluded::new();
        let before = process();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| excluded.run(|| burn(amount)));
            }
        });
        assert!(excluded.total() >= 3 * amount);
        assert!(process() - before >= 3 * amount);
    }

    #[test]
    fn the_result_of_the_work_comes_back() {
        assert_eq!(Excluded::new().run(|| 42), 42);
    }
}
