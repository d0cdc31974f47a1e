//! See `fuzz_entry::directory`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_entry::directory(data));
