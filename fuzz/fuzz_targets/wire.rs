//! See `fuzz_entry::wire`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_entry::wire(data));
