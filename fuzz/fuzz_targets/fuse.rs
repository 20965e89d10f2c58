//! Messages of the kernel to the FUSE server, one after the other.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| udm_front::fuse::fuzz::session(bytes));
