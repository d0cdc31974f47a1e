//! What models are written against: loom under `cfg(transport_loom)`, real threads otherwise.
//!
//! The same bodies run in both: loom tries every interleaving, and the ordinary test run keeps them
//! compiling and tries a few on real hardware.

#[cfg(transport_loom)]
pub(crate) use self::stand_in::ArrayQueue;

#[cfg(all(test, transport_loom))]
pub(crate) use loom::{model, thread};
#[cfg(all(test, not(transport_loom)))]
pub(crate) use std::thread;

/// Runs `body` a few times, on real threads.
#[cfg(all(test, not(transport_loom)))]
pub(crate) fn model(body: impl Fn() + Send + Sync + 'static) {
    for _ in 0..50 {
        body();
    }
}

/// Runs `attempt` until it gives something, letting other threads run in between.
#[cfg(test)]
pub(crate) fn until<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        thread::yield_now();
    }
}

#[cfg(test)]
pub(crate) use self::parking::block_on;

/// Something that is not dropped while panicking. A seeded model that found its fault unwinds, in
/// part outside of the model, where dropping what holds loom's types would abort the test.
#[cfg(test)]
#[derive(Debug)]
pub(crate) struct Kept<T>(Option<T>);

#[cfg(test)]
impl<T> Kept<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Some(value))
    }
}

#[cfg(test)]
impl<T> core::ops::Deref for Kept<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("taken in drop only")
    }
}

#[cfg(test)]
impl<T> core::ops::DerefMut for Kept<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect("taken in drop only")
    }
}

#[cfg(test)]
impl<T> Drop for Kept<T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            core::mem::forget(self.0.take());
        }
    }
}

#[cfg(test)]
mod parking {
    use core::task::{Context, Poll, Waker};
    #[cfg(transport_loom)]
    use loom::sync::{Condvar, Mutex};
    use std::sync::Arc;
    #[cfg(not(transport_loom))]
    use std::sync::{Condvar, Mutex};
    use std::task::Wake;

    use super::thread;

    /// Not `thread::park`: in loom, unparking a thread that is in a `join` by then ends the join.
    struct Parker {
        woken: Mutex<bool>,
        changed: Condvar,
    }

    impl Parker {
        fn park(&self) {
            let mut woken = self.woken.lock().unwrap();
            while !*woken {
                woken = self.changed.wait(woken).unwrap();
            }
            *woken = false;
        }
    }

    impl Wake for Parker {
        fn wake(self: Arc<Self>) {
            *self.woken.lock().unwrap() = true;
            self.changed.notify_one();
        }
    }

    /// Polls until ready and sleeps in between: a lost wake-up hangs it, and loom says so.
    pub(crate) fn block_on<T>(mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> T {
        let parker = Arc::new(Parker { woken: Mutex::new(false), changed: Condvar::new() });
        let waker = Waker::from(parker.clone());
        let mut context = Context::from_waker(&waker);
        loop {
            match poll(&mut context) {
                Poll::Ready(value) => return value,
                Poll::Pending => parker.park(),
            }
            // Whoever has itself woken again waits for another thread to go on.
            thread::yield_now();
        }
    }
}

#[cfg(transport_loom)]
mod stand_in {
    use alloc::collections::VecDeque;
    use core::fmt;

    use loom::sync::Mutex;

    /// crossbeam's queue is invisible to loom; this one checks the protocol around it.
    pub(crate) struct ArrayQueue<T> {
        items: Mutex<VecDeque<T>>,
        capacity: usize,
    }

    #[allow(dead_code, reason = "crossbeam's calls, whichever the crate uses today")]
    impl<T> ArrayQueue<T> {
        pub(crate) fn new(capacity: usize) -> Self {
            assert!(capacity > 0, "capacity must be non-zero");
            Self { items: Mutex::new(VecDeque::new()), capacity }
        }

        pub(crate) fn push(&self, item: T) -> Result<(), T> {
            self.with(|items, capacity| {
                if items.len() == capacity {
                    return Err(item);
                }
                items.push_back(item);
                Ok(())
            })
        }

        pub(crate) fn pop(&self) -> Option<T> {
            self.with(|items, _| items.pop_front())
        }

        pub(crate) fn len(&self) -> usize {
            self.with(|items, _| items.len())
        }

        pub(crate) fn is_empty(&self) -> bool {
            self.len() == 0
        }

        pub(crate) fn is_full(&self) -> bool {
            self.len() == self.capacity
        }

        pub(crate) fn capacity(&self) -> usize {
            self.capacity
        }

        fn with<R>(&self, f: impl FnOnce(&mut VecDeque<T>, usize) -> R) -> R {
            f(
                &mut self.items.lock().expect("no model panics while it holds the lock"),
                self.capacity,
            )
        }
    }

    impl<T> fmt::Debug for ArrayQueue<T> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("ArrayQueue").field("capacity", &self.capacity).finish_non_exhaustive()
        }
    }
}
