//! A thread that drives a node: takes turns while something moves, parks when nothing does.
//!
//! For schedulers that do not want to call [`Node::progress`] themselves. Started and stopped by
//! its owner, as the few others of this crate are (a bootstrap server's, and those of who registers and
//! looks there).
#![forbid(unsafe_code)]

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use transport_core::Instant;
use transport_core::decorate::{Decorated, Decorator};
use transport_core::disagg::node::Node;
use transport_core::link::Endpoint;

use crate::TcpEndpoint;

/// Longest pause between two turns, so that a driver that was told to stop never lingers.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// An endpoint that a thread can park on.
pub trait Park: Endpoint {
    /// Blocks until there may be something to do, or `timeout` has passed.
    fn park(&mut self, timeout: Duration);

    /// Ends a [`Park::park`] from any thread.
    fn unparker(&self) -> Waker;
}

impl Park for TcpEndpoint {
    fn park(&mut self, timeout: Duration) {
        self.wait(timeout);
    }

    fn unparker(&self) -> Waker {
        self.waker()
    }
}

impl<E: Park, D: Decorator> Park for Decorated<E, D> {
    fn park(&mut self, timeout: Duration) {
        self.endpoint_mut().park(timeout);
    }

    fn unparker(&self) -> Waker {
        self.endpoint().unparker()
    }
}

/// A running driver thread. Dropping it stops the thread, which sends what the node has decided as
/// far as that is possible at once, and waits for its end; the node, its links and its paths go with
/// it. An endpoint gives its peers a moment to acknowledge that: at most 50 ms, see [`TcpEndpoint`].
pub struct Driver {
    stop: Arc<AtomicBool>,
    unpark: Waker,
    thread: Option<JoinHandle<()>>,
}

impl Driver {
    /// Starts a thread that owns `node` from now on. Give the node's configuration the endpoint's
    /// waker as its `driver`, or requests wait until the thread wakes by itself. Fails when the
    /// system gives no thread.
    pub fn spawn<E: Park + Send + 'static>(node: Node<E>) -> io::Result<Self> {
        Self::spawn_with(node, || {})
    }

    /// The same, for schedulers that live on that thread: `after_turn` is called after each of the
    /// node's turns, and finds there the completions and events that the turn brought. What it submits
    /// is taken up in the next turn. It must not block, nor drop the driver.
    pub fn spawn_with<E: Park + Send + 'static>(
        mut node: Node<E>,
        mut after_turn: impl FnMut() + Send + 'static,
    ) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let unpark = node.endpoint_mut().unparker();
        let stopped = stop.clone();
        let drive = move || drive(&mut node, &stopped, &mut after_turn);
        let thread = Some(thread::Builder::new().name("transport".to_owned()).spawn(drive)?);
        Ok(Self { stop, unpark, thread })
    }
}

fn drive<E: Park>(node: &mut Node<E>, stop: &AtomicBool, after_turn: &mut impl FnMut()) {
    let clock = std::time::Instant::now();
    let now = || {
        let nanos = clock.elapsed().as_nanos();
        Instant::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    };
    while !stop.load(Ordering::Acquire) {
        let progress = node.progress(now());
        after_turn();
        if !progress.moved {
            let pause = (progress.wake_at - now()).min(LONGEST_PAUSE);
            node.endpoint_mut().park(pause);
        }
    }
    // Messages that a turn gives rise to leave in the next: who acted on the last turn's completions
    // and dropped the driver must not keep the other side from hearing the same.
    node.progress(now());
    after_turn();
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.unpark.wake_by_ref();
        // A thread that panicked has said so on stderr; there is nothing to add in a drop.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").finish_non_exhaustive()
    }
}
