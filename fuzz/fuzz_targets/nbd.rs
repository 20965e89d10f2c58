//! The bytes of an NBD client, from its flags on: handshake, options, commands.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| udm_front::nbd::fuzz::session(bytes));
