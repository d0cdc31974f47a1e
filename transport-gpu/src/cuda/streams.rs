//! Streams of the caller's: events on them, and words that they wait for.
#![allow(unsafe_code, reason = "takes handles of streams that callers vouch for")]

use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::CudaEvent;

use super::memory::CudaPinned;
use super::{CudaDevice, sys};
use crate::streams::Streams;
use crate::{DeviceFault, GpuError};

/// A stream of the caller's, by its handle.
#[derive(Debug)]
pub struct CudaStreamHandle(u64);

impl CudaStreamHandle {
    /// The default stream.
    pub const DEFAULT: Self = Self(0);

    /// A stream by its handle, which PyTorch calls `stream.cuda_stream`; 0 is the default stream.
    ///
    /// # Safety
    ///
    /// Wherever the handle is used, it must be 0 or a live stream of the primary context of the device
    /// that it is used with.
    pub unsafe fn new(stream: u64) -> Self {
        Self(stream)
    }
}

impl Streams for CudaDevice {
    type Stream = CudaStreamHandle;
    type Event = CudaEvent;

    fn record(&self, stream: &CudaStreamHandle) -> Result<CudaEvent, GpuError> {
        let event = self.context().new_event(None).map_err(sys::driver)?;
        // SAFETY: a live stream of this context, by whoever made the handle.
        unsafe { sys::record(&event, stream.0) }?;
        Ok(event)
    }

    fn has_fired(&self, event: &CudaEvent) -> Result<bool, DeviceFault> {
        // Any thread may look, also one that has never seen the device.
        let bound = event.context().bind_to_thread();
        let fired = bound.and_then(|()| event.try_is_complete());
        fired.map_err(|error| DeviceFault(error.0 as i32))
    }

    fn hold(
        &self,
        stream: &CudaStreamHandle,
        word: &Arc<CudaPinned>,
        value: u32,
    ) -> Result<(), GpuError> {
        let kept = &self.inner.words;
        kept.sweep(self);
        // Made first: behind the wait, something must tell when the stream has come past.
        let event = self.context().new_event(None).map_err(sys::driver)?;
        // SAFETY: the stream as in `record`; the word is kept until the event has fired.
        unsafe { sys::wait_for_word(self.context(), stream.0, word.device(), value) }?;
        // SAFETY: as in `record`.
        let recorded = unsafe { sys::record(&event, stream.0) };
        kept.keep(recorded.is_ok().then_some(event), word);
        recorded
    }

    fn address_of(&self, pinned: &CudaPinned) -> u64 {
        pinned.device()
    }
}

/// Words that streams may still look at. Looked at when streams are held.
#[derive(Debug, Default)]
pub(super) struct Words {
    kept: Mutex<Vec<Kept>>,
}

/// A word, and what fires when its stream has come past; `None` when nothing tells.
type Kept = (Option<CudaEvent>, Arc<CudaPinned>);

impl Words {
    fn keep(&self, event: Option<CudaEvent>, word: &Arc<CudaPinned>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push((event, Arc::clone(word)));
    }

    fn sweep(&self, device: &CudaDevice) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        // What cannot be asked about is kept.
        let over = |event: &CudaEvent| device.has_fired(event) == Ok(true);
        kept.retain(|(event, _)| !event.as_ref().is_some_and(over));
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        let kept = std::mem::take(self.kept.get_mut().unwrap_or_else(PoisonError::into_inner));
        let fired =
            |event: &CudaEvent| event.context().bind_to_thread().is_ok() && event.is_complete();
        for (event, word) in kept {
            if !event.as_ref().is_some_and(fired) {
                // Its stream looks at it still, and nobody will ask again: a page is left pinned.
                std::mem::forget(word);
            }
        }
    }
}
