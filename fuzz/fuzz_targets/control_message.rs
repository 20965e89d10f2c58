//! What arrives on the control socket: framing, JSON, calls and their parameters.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| udm_control::fuzz::message(bytes));
