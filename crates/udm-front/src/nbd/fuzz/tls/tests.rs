//! The fuzzer's entry for TLS with inputs from a seed, and some that are known to go far.

use super::{Ends, tls};
use rustls::pki_types::PrivateKeyDer;

fn ends() -> Ends {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("made");
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    Ends::new(made.cert.der(), &key).expect("they are good")
}

/// GO for the first export, a write of 512 bytes, a read of them.
fn said() -> Vec<Vec<u8>> {
    let go = b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x08\0\0\0\x02rw\0\0";
    let head = |kind: u8, cookie: u8| {
        let mut head = b"\x25\x60\x95\x13\0\0\0".to_vec();
        head.extend([kind, 0, 0, 0, 0, 0, 0, 0, cookie]);
        head.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0]);
        head
    };
    let data = [7; 512];
    vec![
        go[4..].to_vec(),
        head(1, 1),
        data[..255].to_vec(),
        data[..255].to_vec(),
        data[..2].to_vec(),
        head(0, 2),
    ]
}

/// All of it on a good wire, by these ends.
pub(super) fn good(chosen: u8) -> Vec<u8> {
    let mut input = vec![chosen << 1];
    for text in said() {
        input.extend([0, text.len() as u8]);
        input.extend(text);
        input.extend([9, 11, 3]);
    }
    input
}

/// All of it on a bad wire: some stays under way, something happens to it, then it is delivered.
pub(super) fn spoilt(seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut input = vec![random.u8(..) & !1];
    for text in said() {
        input.extend([*random.choice([0, 132].iter()).expect("one"), text.len() as u8]);
        input.extend(text);
        for _ in 0..random.u8(..4) {
            input.extend([random.u8(3..12), random.u8(..), random.u8(..)]);
        }
    }
    input
}

/// Bytes that mean nothing.
pub(super) fn noise(seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..random.usize(..400)).map(|_| random.u8(..)).collect()
}

#[test]
fn nothing_is_lost_on_a_good_wire() {
    let ends = ends();
    for chosen in 0..6 {
        // The reply to GO, one to the write, one to the read with its data.
        assert!(tls(&ends, &good(chosen)) > 16 + 16 + 512, "way {chosen}");
    }
}

#[test]
fn seeded_spoilers_break_nothing_but_their_connection() {
    let ends = ends();
    for seed in 0..100 {
        tls(&ends, &spoilt(seed));
        tls(&ends, &noise(seed));
    }
}
