//! See `fuzz_entry::gpu_regions`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_entry::gpu_regions(data));
