//! What can be known without a GPU: that everything says why there is none, and that the shipped
//! kernel is the one whose arithmetic is tested.

use super::*;
use crate::strided::Tile;

#[test]
fn without_a_gpu_every_entry_says_why_and_nothing_panics() {
    let Err(why) = CudaDevice::count() else {
        // There is one: then there is no ordinal without end.
        assert!(matches!(CudaDevice::open(u32::MAX), Err(GpuError::NoDevice(_))));
        return;
    };
    assert_eq!(CudaDevice::open(0).unwrap_err(), GpuError::NoDevice(why));
    assert!(!why.to_string().is_empty());
    assert_eq!(CudaDevice::count(), Err(why), "and says so again");
}

/// The lines of a C function, without space and comments.
fn body(source: &str, head: &str) -> String {
    let from = source.find(head).unwrap_or_else(|| panic!("no {head}"));
    let body = &source[from..from + source[from..].find("\n}").unwrap()];
    let code = body.lines().map(|line| line.split("//").next().unwrap_or(""));
    code.collect::<String>().split_whitespace().collect()
}

#[test]
fn the_kernels_arithmetic_is_that_of_the_tested_rule() {
    let source = include_str!("../../kernels/copy.cu");
    let place = body(source, "static __device__ __forceinline__ void place");
    for line in [
        "per_run=tile.run_bytes/tile.unit;",
        "run=index/per_run,within=index%per_run;",
        "*device=tile.device+((u64)run*(u64)tile.stride+(u64)(within*tile.unit));",
        "*host=tile.host+(u64)index*(u64)tile.unit;",
    ] {
        assert!(place.contains(line), "{line} is not in {place}");
    }
    let tile = body(source, "struct Tile");
    assert!(tile.ends_with("{u64device;u64host;u32run_bytes;u32stride;u32runs;u32unit;"), "{tile}");
    assert_eq!((size_of::<Tile>(), std::mem::offset_of!(Tile, stride)), (32, 20));
}

#[test]
fn the_shipped_ptx_is_a_kernel_that_old_drivers_and_gpus_take() {
    let ptx = include_str!("../../kernels/copy.ptx");
    assert!(ptx.contains(".version 7.7") && ptx.contains(".target sm_60"));
    assert!(ptx.contains(".visible .entry transport_copy("));
    assert!(ptx.contains("ld.v4.u32") && ptx.contains("st.v4.u32"), "sixteen bytes at a time");
}

#[test]
fn tiles_are_written_as_the_kernel_reads_them() {
    let tile = Tile { device: 1, host: 2, run_bytes: 3, stride: 4, runs: 5, unit: 6 };
    let bytes = sys::tile_bytes(&tile);
    let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!((word(0), word(8), word(16), word(20), word(24), word(28)), (1, 2, 3, 4, 5, 6));
}
