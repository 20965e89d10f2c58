//! A compress volume with changes anywhere, before the tools and before the target.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| udm_targets::compress::fuzz::volume(bytes));
