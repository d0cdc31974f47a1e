//! GPU memory for every fabric of the KV-cache transport.
#![deny(unsafe_code)]

pub mod check;
pub mod cuda;
pub mod device;
pub mod direct;
mod error;
pub mod mock;
pub mod pull;
mod random;
pub mod staged;
pub mod strided;
pub mod topology;

pub use cuda::{CudaDevice, GpuRegion, SourceEvent, StreamGate};
pub use device::{Batch, CopyQueue, Device, Direction, Ticket};
pub use direct::{DirectPath, ReadRule};
pub use error::{DeviceFault, GpuError, NoDevice};
pub use mock::{MockConfig, MockDevice};
pub use pull::{Handle, Pull};
pub use staged::{Staged, StagingConfig};
