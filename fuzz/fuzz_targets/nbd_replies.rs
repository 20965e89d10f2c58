//! The bytes of an NBD server, as our client gets them: replies of every style, and handshakes.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| udm_lower::nbd::fuzz::replies(bytes));
