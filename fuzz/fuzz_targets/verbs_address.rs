//! See `fuzz_entry::verbs_address`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_entry::verbs_address(data));
