//! See `fuzz_entry::gpu_chunks`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_entry::gpu_chunks(data));
