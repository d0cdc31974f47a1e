//! See `fuzz_entry::lane`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_entry::lane(data));
