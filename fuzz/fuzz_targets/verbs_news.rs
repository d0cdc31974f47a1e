//! See `fuzz_entry::verbs_news`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_entry::verbs_news(data));
