//! TLS with pre-shared keys on a hostile wire, and files of keys.
#![no_main]

use std::sync::LazyLock;
use udm_front::nbd::fuzz::tls::keys::{KeyEnds, keys};

static ENDS: LazyLock<KeyEnds> = LazyLock::new(KeyEnds::default);

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    keys(&ENDS, bytes);
});
