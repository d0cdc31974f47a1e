//! See `fuzz_entry::proof`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_entry::proof(data));
