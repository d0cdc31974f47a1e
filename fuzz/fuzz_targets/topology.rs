//! See `fuzz_entry::topology`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_entry::topology(data));
