//! Buffers of dm ioctls: sizes, offsets, chains of specs, strings without an end.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| udm_control::fuzz::ioctls(bytes));
