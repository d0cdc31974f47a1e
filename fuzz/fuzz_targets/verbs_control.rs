//! See `fuzz_entry::verbs_control`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_entry::verbs_control(data));
