//! TLS with pre-shared keys on the same hostile wire, and files of such keys.
//!
//! Used by libFuzzer and by the seeded test below. The client is s2n-tls's own, over memory, as the
//! server is: so what is fuzzed here is our half of it (`nbd/tls/keys.rs`, `pipes.rs`), and the
//! library as far as records that were good once lead. The first byte chooses: a file of keys; or a
//! client of the server, with the right key, a wrong secret, or a name nobody knows.
//!
//! The same must hold as in the module above; and a client that is not welcome is not heard at all,
//! since it has nothing to say before its hands are shaken.

use super::wire::{Client, Heard, play, take};
use crate::nbd::tls::TlsSettings;
use crate::nbd::tls::keys::{SharedKeys, connect};
use crate::nbd::tls::pipes::Piped;
use s2n_tls::enums::PeerKeyUpdate;
use std::path::Path;
use std::task::Poll;

/// Whom the server knows.
const FILE: &str = "# a word\nbob:000102030405060708090a0b0c0d0e0f\n\
                    alice:07070707070707070707070707070707\n";

/// Names and secrets that clients try; only the first is right.
const CLIENTS: [(&str, [u8; 16]); 3] =
    [("alice", [7; 16]), ("alice", [8; 16]), ("mallory", [7; 16])];

/// Choices of the first byte: the rest is a file of keys.
const IS_FILE: u8 = 0xff;

/// The server that is fuzzed.
pub struct KeyEnds(TlsSettings);

impl Default for KeyEnds {
    fn default() -> KeyEnds {
        let keys = SharedKeys::parse(Path::new("keys"), FILE.as_bytes());
        KeyEnds(TlsSettings::with_keys(keys.expect("invariant: the file is good"), false))
    }
}

/// Plays the input; how much the client was answered through TLS, in bytes.
///
/// # Panics
/// If one of the properties of the module headers does not hold.
pub fn keys(ends: &KeyEnds, input: &[u8]) -> usize {
    let mut script = input;
    let first = take(&mut script);
    if first == IS_FILE {
        // What is refused is refused with a word, which is for people.
        let _ = SharedKeys::parse(Path::new("keys"), script);
        return 0;
    }
    let chosen = usize::from(first >> 1) % CLIENTS.len();
    let (name, secret) = CLIENTS[chosen];
    let client = || KeyClient {
        tls: connect(name, &secret).expect("invariant: the key is good"),
        is_shaken: false,
        is_broken: false,
    };
    play(&ends.0, client, &mut script, [chosen == 0, first & 1 == 1])
}

struct KeyClient {
    tls: Piped,
    is_shaken: bool,
    is_broken: bool,
}

impl KeyClient {
    /// Goes on with the handshake.
    fn shake(&mut self) {
        if !(self.is_shaken || self.is_broken) {
            match self.tls.tls().poll_negotiate().map_ok(drop) {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => self.is_shaken = true,
                Poll::Ready(Err(_)) => self.is_broken = true,
            }
        }
    }
}

impl Client for KeyClient {
    fn is_shaking(&self) -> bool {
        !self.is_shaken || self.is_broken
    }

    fn say(&mut self, text: &[u8]) {
        let mut said = 0;
        while said < text.len() {
            match self.tls.tls().poll_send(&text[said..]) {
                Poll::Ready(Ok(taken)) => said += taken,
                other => panic!("memory takes everything: {other:?}"),
            }
        }
    }

    fn change_keys(&mut self) {
        // With its next record; before the handshake is over there is no such thing.
        let _ = self.tls.tls().request_key_update(PeerKeyUpdate::KeyUpdateNotRequested);
    }

    fn close(&mut self) {
        if self.is_shaken && !self.is_broken {
            let _ = self.tls.tls().poll_shutdown_send().map_ok(drop);
        }
    }

    fn collect(&mut self, bytes: &mut Vec<u8>) {
        self.shake();
        bytes.append(&mut self.tls.pipes().outgoing);
    }

    fn hear(&mut self, sent: &mut &[u8], heard: &mut Vec<u8>) -> Heard {
        self.tls.pipes().incoming.extend_from_slice(sent);
        *sent = &[];
        self.shake();
        let mut plain = [0; 4096];
        while self.is_shaken {
            match self.tls.tls().poll_recv(&mut plain) {
                Poll::Pending => break,
                Poll::Ready(Ok(0)) => return Heard::End,
                Poll::Ready(Ok(len)) => heard.extend_from_slice(&plain[..len]),
                Poll::Ready(Err(_)) => self.is_broken = true,
            }
            if self.is_broken {
                break;
            }
        }
        if self.is_broken { Heard::Wrong } else { Heard::Well }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{good, noise, spoilt};
    use super::{IS_FILE, KeyEnds, keys};

    #[test]
    fn nothing_is_lost_on_a_good_wire_and_strangers_hear_nothing() {
        let ends = KeyEnds::default();
        for chosen in 0..3 {
            let heard = keys(&ends, &good(chosen));
            // The reply to GO, one to the write, one to the read with its data.
            assert!(if chosen == 0 { heard > 16 + 16 + 512 } else { heard == 0 }, "{heard}");
        }
    }

    #[test]
    fn seeded_spoilers_break_nothing_but_their_connection() {
        let ends = KeyEnds::default();
        for seed in 0..150 {
            keys(&ends, &spoilt(seed));
        }
        for seed in 0..200 {
            let mut input = noise(seed);
            if seed % 2 == 0 {
                input.insert(0, IS_FILE);
            }
            keys(&ends, &input);
        }
    }
}
