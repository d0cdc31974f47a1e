//! Between streams and rooms: a room's source that waits for a stream, and a stream that waits for a
//! room.
#![allow(unsafe_code, reason = "takes handles of streams that callers vouch for")]

use std::sync::atomic::{Ordering, fence};
use std::sync::{Mutex, PoisonError};

use cudarc::driver::CudaEvent;
use transport_core::disagg::node::{Readiness, SourceReady};
use transport_core::memory::MemoryRegion;

use super::CudaDevice;
use super::memory::CudaPinned;
use super::sys;
use crate::GpuError;

/// The fence in front of a chunk (M4): fires when a stream has done what it was given before.
///
/// Record it behind the kernels that write the chunk's pages, and give it as the chunk's `ready`.
#[derive(Debug)]
pub struct SourceEvent {
    event: CudaEvent,
}

impl SourceEvent {
    /// Fires when `stream` has done what it was given until now. The handle is what PyTorch calls
    /// `stream.cuda_stream`; 0 is the default stream.
    ///
    /// # Safety
    ///
    /// `stream` must be 0 or a live stream of the device's primary context.
    pub unsafe fn record(device: &CudaDevice, stream: u64) -> Result<Self, GpuError> {
        let event = device.context().new_event(None).map_err(sys::driver)?;
        // SAFETY: by the caller.
        unsafe { sys::record(&event, stream) }?;
        Ok(Self { event })
    }
}

impl SourceReady for SourceEvent {
    fn poll(&self) -> Readiness {
        // Any thread may look, also one that has never seen the device.
        let bound = self.event.context().bind_to_thread();
        match bound.and_then(|()| self.event.try_is_complete()) {
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
pub struct StreamGate {
    device: CudaDevice,
    word: Option<CudaPinned>,
    /// Fire when the streams have come past.
    waits: Mutex<Vec<CudaEvent>>,
}

/// Closed.
const CLOSED: u32 = 0;
/// Open: the room has arrived.
const ARRIVED: u32 = 1;
/// Open: it never will.
const FAILED: u32 = 2;

impl StreamGate {
    /// A closed gate.
    pub fn new(device: &CudaDevice) -> Result<Self, GpuError> {
        device.inner.graveyard.sweep();
        let len = 4096;
        let region = MemoryRegion::allocate(len).ok_or(GpuError::Pin { len })?;
        let word = Some(CudaPinned::new(device.context(), &region)?);
        let (device, waits) = (device.clone(), Mutex::default());
        let gate = Self { device, word, waits };
        gate.set(CLOSED);
        Ok(gate)
    }

    /// What `stream` is given after this waits until the gate is open.
    ///
    /// # Safety
    ///
    /// `stream` must be 0 or a live stream of the device's primary context.
    pub unsafe fn block(&self, stream: u64) -> Result<(), GpuError> {
        let context = self.device.context();
        let event = context.new_event(None).map_err(sys::driver)?;
        // SAFETY: the stream by the caller; the word stays until the event has fired.
        unsafe { sys::wait_for_word(context, stream, self.status_address(), ARRIVED) }?;
        // SAFETY: by the caller.
        let recorded = unsafe { sys::record(&event, stream) };
        if recorded.is_err() {
            // Nothing would tell when the stream has come past: so it is let past, and waited for.
            self.fail();
            let _ = context.synchronize();
        }
        self.waits.lock().unwrap_or_else(PoisonError::into_inner).push(event);
        recorded
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
        self.word.as_ref().map_or(0, CudaPinned::device)
    }

    fn set(&self, status: u32) {
        // Whoever sees the word sees what was done before.
        fence(Ordering::Release);
        if let Some(word) = &self.word {
            // In bounds: the region has 4096 bytes.
            let _ = word.region().write(0, &status.to_ne_bytes());
        }
    }

    fn status(&self) -> u32 {
        let mut bytes = [0; 4];
        let read = self.word.as_ref().map(|word| word.region().read(0, &mut bytes));
        read.map_or(FAILED, |_| u32::from_ne_bytes(bytes))
    }
}

impl Drop for StreamGate {
    fn drop(&mut self) {
        if self.status() == CLOSED {
            self.fail();
        }
        let waits = std::mem::take(&mut *self.waits.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(word) = self.word.take() {
            self.device.inner.graveyard.bury(Grave { word, waits });
        }
    }
}

/// Gates that were dropped, whose words streams may still look at. Looked at when gates are made.
#[derive(Debug, Default)]
pub(super) struct Graveyard {
    graves: Mutex<Vec<Grave>>,
}

impl Drop for Graveyard {
    fn drop(&mut self) {
        self.sweep();
        let graves = self.graves.get_mut().unwrap_or_else(PoisonError::into_inner);
        // Streams look at these still, and nobody will ask again: some pages are left pinned.
        std::mem::take(graves).into_iter().for_each(std::mem::forget);
    }
}

#[derive(Debug)]
struct Grave {
    #[allow(dead_code, reason = "kept until the streams have come past")]
    word: CudaPinned,
    waits: Vec<CudaEvent>,
}

impl Graveyard {
    fn bury(&self, grave: Grave) {
        self.graves.lock().unwrap_or_else(PoisonError::into_inner).push(grave);
        self.sweep();
    }

    fn sweep(&self) {
        let mut graves = self.graves.lock().unwrap_or_else(PoisonError::into_inner);
        // What cannot be asked about is kept.
        let over =
            |event: &CudaEvent| event.context().bind_to_thread().is_ok() && event.is_complete();
        graves.retain(|grave| !grave.waits.iter().all(over));
    }
}
