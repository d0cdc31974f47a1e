//! placeholder, replaced by the queue branch
use crate::sync::{AtomicUsize, Ordering};

/// placeholder
#[derive(Debug, Default)]
pub struct PinCount(AtomicUsize);
const CLOSING: usize = !(usize::MAX >> 1);
impl PinCount {
    /// placeholder
    pub fn new() -> Self {
        Self(AtomicUsize::new(0))
    }
    /// placeholder
    pub fn enter(&self) -> bool {
        self.0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |v| {
                (v & CLOSING == 0).then_some(v + 1)
            })
            .is_ok()
    }
    /// placeholder
    pub fn exit(&self) -> bool {
        self.0.fetch_sub(1, Ordering::AcqRel) == CLOSING | 1
    }
    /// placeholder
    pub fn close(&self) -> bool {
        self.0.fetch_or(CLOSING, Ordering::AcqRel) == 0
    }
}
impl PinCount {
    /// placeholder
    pub fn is_drained(&self) -> bool {
        self.0.load(Ordering::Acquire) == CLOSING
    }
}
