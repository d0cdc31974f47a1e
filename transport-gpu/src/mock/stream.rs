//! Streams of the mock device: kernels that copy, one after the other, and late.

use std::sync::Arc;

use transport_core::memory::MemoryRegion;

use super::MockDevice;
use crate::streams::Streams;
use crate::{DeviceFault, GpuError};

/// A stream of the mock's. What it was given is done when it is dropped, or never.
#[derive(Debug)]
pub struct MockStream {
    device: MockDevice,
    number: u64,
}

/// A point in a [`MockStream`].
#[derive(Debug)]
pub struct MockEvent {
    stream: u64,
    /// What the stream had been given.
    given: u64,
}

/// What a stream does.
#[derive(Debug)]
pub(super) enum Step {
    /// Copies bytes from one of the device's addresses to another.
    Copy { from: u64, to: u64, len: usize },
    /// Waits for a word.
    Wait { word: Arc<MemoryRegion>, value: u32 },
}

impl MockStream {
    /// A stream that was given nothing.
    pub fn new(device: &MockDevice) -> Self {
        let number = device.world().new_stream();
        Self { device: device.clone(), number }
    }

    /// A kernel that copies all of `from` to `to`, of the same length, both of the device's memory.
    /// Keep both until it is over: what it does not find counts as a violation.
    pub fn copy(&self, from: &MemoryRegion, to: &MemoryRegion) {
        let len = from.len().min(to.len());
        let (from, to) = (from.as_ptr() as u64, to.as_ptr() as u64);
        self.device.world().give(self.number, Step::Copy { from, to, len });
    }
}

impl Streams for MockDevice {
    type Stream = MockStream;
    type Event = MockEvent;

    fn record(&self, stream: &MockStream) -> Result<MockEvent, GpuError> {
        let stream = stream.number;
        Ok(MockEvent { stream, given: self.world().given(stream) })
    }

    fn has_fired(&self, event: &MockEvent) -> Result<bool, DeviceFault> {
        let mut world = self.world();
        world.advance_streams();
        Ok(world.done(event.stream) >= event.given)
    }

    fn hold(
        &self,
        stream: &MockStream,
        word: &Arc<MemoryRegion>,
        value: u32,
    ) -> Result<(), GpuError> {
        let word = Arc::clone(word);
        self.world().give(stream.number, Step::Wait { word, value });
        Ok(())
    }

    fn address_of(&self, pinned: &MemoryRegion) -> u64 {
        pinned.as_ptr() as u64
    }
}
