//! TLS on a hostile wire: what a client says, and what happens to its records on the way.
#![no_main]

use rustls::pki_types::PrivateKeyDer;
use std::sync::LazyLock;
use udm_front::nbd::fuzz::tls::{Ends, tls};

/// A certificate for each run; nothing that is found depends on it.
static ENDS: LazyLock<Ends> = LazyLock::new(|| {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("made");
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    Ends::new(made.cert.der(), &key).expect("they are good")
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    tls(&ENDS, bytes);
});
