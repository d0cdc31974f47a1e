//! Between streams and rooms: a room's source that waits for a stream, and a stream that waits for
//! a room.
//!
//! Neither knows a device's driver: [`Streams`] is what they ask of one, and two devices answer,
//! [`crate::CudaDevice`] and [`crate::MockDevice`].

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use transport_core::disagg::node::{Readiness, SourceReady};
use transport_core::memory::MemoryRegion;

use crate::device::Device;
use crate::{CudaDevice, DeviceFault, GpuError};

/// A device whose streams, which are its caller's, can be looked at and held back.
pub trait Streams: Device + Sync {
    /// A stream of the caller's.
    type Stream;
    /// A point that a stream comes past.
    type Event: std::fmt::Debug + Send + Sync;

    /// The point where `stream` has done what it was given until now.
    fn record(&self, stream: &Self::Stream) -> Result<Self::Event, GpuError>;

    /// Whether the stream has come past it; any thread may ask.
    fn has_fired(&self, event: &Self::Event) -> Result<bool, DeviceFault>;

    /// What `stream` is given after this waits until the first 32-bit word of `word` is not below
    /// `value`. The word is kept until the stream has come past.
    fn hold(
        &self,
        stream: &Self::Stream,
        word: &Arc<Self::Pinned>,
        value: u32,
    ) -> Result<(), GpuError>;

    /// Where kernels find the first byte of `pinned`.
    fn address_of(&self, pinned: &Self::Pinned) -> u64;
}

/// The fence in front of a chunk (M4): fires when a stream has done what it was given before.
///
/// Record it behind the kernels that write the chunk's pages, and give it as the chunk's `ready`.
#[derive(Debug)]
pub struct SourceEvent<D: Streams = CudaDevice> {
    device: D,
    event: D::Event,
}

impl<D: Streams> SourceEvent<D> {
    /// Fires when `stream` has done what it was given until now.
    pub fn record(device: &D, stream: &D::Stream) -> Result<Self, GpuError> {
        Ok(Self { device: device.clone(), event: device.record(stream)? })
    }
}

impl<D: Streams> SourceReady for SourceEvent<D> {
    fn poll(&self) -> Readiness {
        match self.device.has_fired(&self.event) {
            Ok(true) => Readiness::Ready,
            Ok(false) => Readiness::Pending,
            Err(_) => Readiness::Failed,
        }
    }
}

/// A word in pinned memory that streams wait for and the processor opens: how kernels are queued
/// before their room has arrived.
///
/// Every gate opens: a room that failed opens its gate as failed, and one that is dropped does, too,
/// or the stream would wait for ever. Kernels behind it read [`StreamGate::status_address`].
#[derive(Debug)]
pub struct StreamGate<D: Streams = CudaDevice> {
    device: D,
    region: MemoryRegion,
    word: Arc<D::Pinned>,
}

/// Closed.
const CLOSED: u32 = 0;
/// Open: the room has arrived.
const ARRIVED: u32 = 1;
/// Open: it never will.
const FAILED: u32 = 2;

impl<D: Streams> StreamGate<D> {
    /// A closed gate.
    pub fn new(device: &D) -> Result<Self, GpuError> {
        // A page, zeroed: pages are what is pinned.
        let len = 4096;
        let region = MemoryRegion::allocate(len).ok_or(GpuError::Pin { len })?;
        let word = device.pin(&region)?;
        Ok(Self { device: device.clone(), region, word })
    }

    /// What `stream` is given after this waits until the gate is open.
    pub fn block(&self, stream: &D::Stream) -> Result<(), GpuError> {
        self.device.hold(stream, &self.word, ARRIVED)
    }

    /// Opens it: the room's bytes are in place.
    pub fn open(&self) {
        self.set(ARRIVED);
    }

    /// Opens it: the room has failed. Kernels behind it find [`StreamGate::status_address`] at 2.
    pub fn fail(&self) {
        self.set(FAILED);
    }

    /// Where kernels read how the gate was opened, as a 32-bit word: 1 arrived, 2 failed.
    pub fn status_address(&self) -> u64 {
        self.device.address_of(&self.word)
    }

    fn set(&self, status: u32) {
        // Whoever sees the word sees what was done before.
        fence(Ordering::Release);
        // In bounds: the region is a page.
        let _ = self.region.write(0, &status.to_ne_bytes());
    }

    fn status(&self) -> u32 {
        let mut bytes = [0; 4];
        // In bounds, as above.
        let _ = self.region.read(0, &mut bytes);
        u32::from_ne_bytes(bytes)
    }
}

impl<D: Streams> Drop for StreamGate<D> {
    fn drop(&mut self) {
        if self.status() == CLOSED {
            self.fail();
        }
    }
}
