//! GPU memory for every fabric of the KV-cache transport.
//!
//! * [`GpuRegion`]: a range of a GPU's memory as an ordinary region; [`CudaDevice`] is the GPU.
//! * [`Staged`]: an endpoint around any other that moves such memory through pinned host memory, or,
//!   within a machine, has the peer [`pull`] it from device to device.
//! * [`Direct`]: an endpoint whose NIC reaches such memory itself, and [`direct`]: when that can be,
//!   and when a kernel may read what it wrote.
//! * [`SourceEvent`], [`StreamGate`]: rooms that wait for streams, and streams that wait for rooms.
//! * [`topology`]: which NIC is near which GPU.
//! * [`device`], [`strided`]: what all of this asks of a device, and how scattered bytes are described
//!   to it; [`MockDevice`] is a device for machines without one.
//!
//! Nothing of CUDA is needed to build or to start. Without a GPU, [`CudaDevice::open`] says why
//! ([`NoDevice`]), and there is nothing else to call. **Nothing of CUDA has been run on a GPU yet**: the
//! README says what was tested, and how.
#![deny(unsafe_code)]

pub mod check;
pub mod cuda;
pub mod device;
pub mod direct;
mod error;
pub mod mock;
mod park;
pub mod pull;
mod random;
pub mod staged;
pub mod streams;
pub mod strided;
pub mod topology;

pub use cuda::{CudaDevice, CudaStreamHandle, GpuRegion};
pub use device::{Batch, CopyQueue, Device, Direction, Ticket};
pub use direct::{Direct, DirectPath, RdmaDevice, ReadRule};
pub use error::{DeviceFault, GpuError, NoDevice};
pub use mock::{MockConfig, MockDevice, MockStream};
pub use pull::{Handle, Pull};
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub use staged::fuzzing;
pub use staged::{Staged, StagingConfig};
pub use streams::{SourceEvent, StreamGate, Streams};

/// The README's example is compiled with the doctests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
