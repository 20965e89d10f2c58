//! A vhost-user client and its guest: messages with descriptors, memory, rings.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| udm_front::vhost_user::fuzz::connection(bytes));
