//! See `fuzz_entry::gpu_address`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_entry::gpu_address(data));
