//! See `fuzz_entry::aux`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_entry::aux(data));
