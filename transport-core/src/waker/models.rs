//! Models of a waiter against threads that wake it.

use core::task::Poll;

use super::*;
use crate::model::{Kept, block_on, model, thread};
use crate::sync::Arc;

struct Event {
    happened: AtomicUsize,
    waker: AtomicWaker,
}

impl Event {
    fn new() -> Arc<Self> {
        Arc::new(Self { happened: AtomicUsize::new(0), waker: AtomicWaker::new() })
    }

    /// In this order, as the module asks. Relaxed: the waker alone must order it.
    fn happen(&self) {
        self.happened.fetch_add(1, Ordering::Relaxed);
        self.waker.wake();
    }

    fn wait_for(&self, times: usize) {
        block_on(|cx| {
            self.waker.register(cx.waker());
            match self.happened.load(Ordering::Relaxed) {
                happened if happened == times => Poll::Ready(()),
                _ => Poll::Pending,
            }
        });
    }
}

fn waits_for_two_threads() {
    let event = Kept::new(Event::new());
    let threads = [(); 2].map(|()| {
        let event = Arc::clone(&event);
        thread::spawn(move || event.happen())
    });
    event.wait_for(2);
    for thread in threads {
        thread.join().unwrap();
    }
}

fn waits_twice_for_one_thread() {
    let event = Kept::new(Event::new());
    let thread = thread::spawn({
        let event = Arc::clone(&event);
        move || {
            event.happen();
            event.happen();
        }
    });
    event.wait_for(2);
    thread.join().unwrap();
}

#[test]
fn loom_waker_loses_no_wake_up_of_two_threads() {
    model(waits_for_two_threads);
}

#[test]
fn loom_waker_loses_no_second_wake_up() {
    model(waits_twice_for_one_thread);
}

#[cfg(transport_loom)]
mod seeded {
    use super::*;
    use crate::fault::model_with;

    #[test]
    #[should_panic(expected = "deadlock")]
    fn loom_waker_catches_a_look_that_is_a_load() {
        model_with(Fault::WakerLoad, waits_for_two_threads);
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn loom_waker_catches_a_cell_given_up_by_a_store() {
        model_with(Fault::WakerStore, waits_for_two_threads);
    }
}
