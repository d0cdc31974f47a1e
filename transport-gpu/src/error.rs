//! What can go wrong with a device, and what to do about it.

use thiserror::Error;

/// Why there is no device to use. Stage nothing and keep KV in host memory, or mend the machine.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum NoDevice {
    /// The driver's library was not found: no NVIDIA driver is installed, or none that this process
    /// may see.
    #[error("libcuda.so.1 is not on this machine")]
    NoDriver,
    /// The library is there and does not start: the kernel's module is missing, or its version does
    /// not match. The number is the driver's `CUresult`.
    #[error("the CUDA driver does not start: CUresult {0}")]
    DriverFailed(i32),
    /// The driver starts and sees no GPU.
    #[error("the CUDA driver sees no GPU")]
    NoGpu,
    /// There is no GPU of that ordinal.
    #[error("no GPU {ordinal}: this process sees {count}")]
    NoSuchOrdinal {
        /// The ordinal asked for.
        ordinal: u32,
        /// GPUs that there are.
        count: u32,
    },
    /// The driver is too old for what is asked of it. Versions as CUDA counts them: 11070 is 11.7.
    #[error("the CUDA driver is of version {version}; {needed} is needed")]
    TooOld {
        /// The driver's version.
        version: i32,
        /// The oldest that serves.
        needed: i32,
    },
}

/// A call about a device or its memory that cannot be served.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum GpuError {
    /// There is no device. See the reason.
    #[error("no GPU: {0}")]
    NoDevice(#[from] NoDevice),
    /// The driver said no; the number is its `CUresult`. What it means for the device is in the
    /// driver's manual; out of memory is 2.
    #[error("the CUDA driver's status is {0}")]
    Driver(i32),
    /// An address that is not the device's memory, or not all of the length is.
    #[error("{len} bytes at {address:#x} are not memory of GPU {ordinal}")]
    NotDeviceMemory {
        /// First byte.
        address: u64,
        /// Bytes.
        len: usize,
        /// The device.
        ordinal: u32,
    },
    /// Memory of another device. Use a device handle of that ordinal.
    #[error("memory of GPU {found}, where memory of GPU {expected} is needed")]
    OtherDevice {
        /// The device asked for.
        expected: u32,
        /// The device that has the memory.
        found: u32,
    },
    /// Memory that another context of the device owns.
    #[error("memory of another context of GPU {ordinal}")]
    OtherContext {
        /// The device.
        ordinal: u32,
    },
    /// Copies and registrations need a better aligned address.
    #[error("address {address:#x} is not aligned to {needed} bytes")]
    Misaligned {
        /// The address.
        address: u64,
        /// What it must be a multiple of.
        needed: u64,
    },
    /// No bytes were asked for, or more than can be.
    #[error("a region of {len} bytes cannot be")]
    Length {
        /// Bytes asked for.
        len: usize,
    },
    /// Host memory of this length could not be had or pinned.
    #[error("{len} bytes of host memory cannot be pinned")]
    Pin {
        /// Bytes asked for.
        len: usize,
    },
    /// Settings of [`crate::StagingConfig`] that cannot be; the text names the setting.
    #[error("settings of the staging: {0}")]
    Config(&'static str),
    /// The random numbers of the system are not to be had (an errno).
    #[error("no random numbers: errno {0}")]
    Random(i32),
}

/// A copy that failed after it was taken. Nothing more is executed on its queue, and the device is
/// not to be trusted until its context was made anew. The number is the driver's `CUresult`.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("a copy failed: CUresult {0}")]
pub struct DeviceFault(pub i32);
