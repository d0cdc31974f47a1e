//! See `fuzz_entry::trace`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_entry::trace(data));
