//! See `fuzz_entry::etcd`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_entry::etcd(data));
