//! A thread that does one thing again and again, until its owner drops it.
//!
//! For calls of a directory, which block. Not for driving a node. Invariant: between two rounds the
//! thread sleeps, and both the owner's end and [`Rounds::hurry`] wake it.

use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// What is done.
pub(super) trait Round: Send + 'static {
    type Error: Clone + Send;

    /// One round. How it went, and the pause until the next; `None`: there is no next.
    fn round(&mut self) -> (Result<(), Self::Error>, Option<Duration>);

    /// The owner has ended it.
    fn end(&mut self) {}
}

/// The thread. Dropping this ends it, after the round that it is in.
pub(super) struct Rounds<E> {
    shared: Arc<Shared<E>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared<E> {
    state: Mutex<State<E>>,
    changed: Condvar,
}

struct State<E> {
    /// Of the latest round.
    latest: Option<Result<(), E>>,
    hurry: bool,
    /// There is no other round.
    over: bool,
}

impl<E> Shared<E> {
    /// Nothing that holds the lock panics, and between any two statements the state is whole.
    fn lock(&self) -> MutexGuard<'_, State<E>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State<E>)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Sleeps until `done` holds, or so long. The state then.
    fn sleep(
        &self,
        most: Duration,
        mut done: impl FnMut(&State<E>) -> bool,
    ) -> MutexGuard<'_, State<E>> {
        let slept = self.changed.wait_timeout_while(self.lock(), most, |state| !done(state));
        slept.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl<E: Clone + Send + 'static> Rounds<E> {
    /// Begins at once.
    pub(super) fn spawn(name: &str, mut of: impl Round<Error = E>) -> io::Result<Self> {
        let state = State { latest: None, hurry: false, over: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let theirs = shared.clone();
        let run = move || {
            run(&theirs, &mut of);
            of.end();
        };
        let thread = Some(thread::Builder::new().name(name.to_owned()).spawn(run)?);
        Ok(Self { shared, thread })
    }

    /// How the latest round went; `None` in the first one.
    pub(super) fn latest(&self) -> Option<Result<(), E>> {
        self.shared.lock().latest.clone()
    }

    /// Waits until a round has gone well, or failed for good: at most so long. How the latest one
    /// went.
    pub(super) fn wait(
        &self,
        most: Duration,
        for_good: impl Fn(&E) -> bool,
    ) -> Option<Result<(), E>> {
        let done = |state: &State<E>| match &state.latest {
            Some(Ok(())) => true,
            Some(Err(error)) => state.over || for_good(error),
            None => state.over,
        };
        self.shared.sleep(most, done).latest.clone()
    }

    /// Lets the next round begin now.
    pub(super) fn hurry(&self) {
        self.shared.change(|state| state.hurry = true);
    }
}

fn run<R: Round>(shared: &Shared<R::Error>, of: &mut R) {
    while !shared.lock().over {
        let (result, pause) = of.round();
        let due = pause.and_then(|pause| Instant::now().checked_add(pause));
        shared.change(|state| {
            state.latest = Some(result);
            state.over |= due.is_none();
        });
        let left = due.unwrap_or_else(Instant::now).saturating_duration_since(Instant::now());
        shared.sleep(left, |state| state.over || state.hurry).hurry = false;
    }
}

impl<E> Drop for Rounds<E> {
    fn drop(&mut self) {
        self.shared.change(|state| state.over = true);
        // A thread that panicked has said so on stderr; there is nothing to add in a drop.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl<E> fmt::Debug for Rounds<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rounds").finish_non_exhaustive()
    }
}
