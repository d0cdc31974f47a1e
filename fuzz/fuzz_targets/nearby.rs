//! See `fuzz_entry::nearby`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_entry::nearby(data));
