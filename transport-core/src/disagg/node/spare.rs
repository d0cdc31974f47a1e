//! Queues of rooms that are over, kept for the next ones, so that a room need not allocate its own.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// Most queues kept.
const MOST: usize = 1024;
/// Longer ones are not kept: few rooms need them.
const LONGEST: usize = 16;

/// Empty queues with an allocation.
#[derive(Debug)]
pub(super) struct Spare<T> {
    queues: Vec<VecDeque<T>>,
}

impl<T> Spare<T> {
    pub(super) fn new() -> Self {
        Self { queues: Vec::new() }
    }

    /// An empty queue.
    pub(super) fn take(&mut self) -> VecDeque<T> {
        self.queues.pop().unwrap_or_default()
    }

    /// Drops what is in a queue, and keeps its allocation.
    pub(super) fn keep(&mut self, mut queue: VecDeque<T>) {
        queue.clear();
        if (1..=LONGEST).contains(&queue.capacity()) && self.queues.len() < MOST {
            self.queues.push(queue);
        }
    }
}
