//! TLS with a hostile wire: what a fuzzer's bytes make of the way between a client and a server.
//!
//! Used by libFuzzer and by the seeded test below. The input is a little program: what the client
//! sends, and what happens to its records on the way (bits flipped, ends cut off, records
//! swapped, sent twice, garbage between them, plain requests where records should be). A real
//! client of rustls is the other end, so that there are good records to spoil.
//!
//! It checks what must hold for *every* input: no panic; what the server opens is the beginning of
//! what the client sealed, byte for byte, whatever was done to it on the way; what the client
//! opens is the beginning of what the server answered; a channel that broke stays broken; what it
//! keeps stays within its bounds. And if nothing was spoilt, all that was sent arrives, and the
//! answer is the one to the same bytes in the clear.
//!
//! The tricky case is where TLS begins: only the server knows, since the client's options before
//! STARTTLS are part of the input. So the wire asks it, and starts the client then.

#[cfg(feature = "tls-psk")]
pub mod keys;
mod server;
mod wire;

use super::{Peer, Stage};
use crate::nbd::tls::TlsSettings;
use crate::nbd::tls::credentials::provider;
use rustls::crypto::{CipherSuiteCommon, CryptoProvider};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, SupportedCipherSuite,
    Tls13CipherSuite, version,
};
use std::io::{Read, Write};
use std::sync::Arc;
use wire::{Client, Heard, play, take};

/// Records that the keys of one of the servers last: changes of keys are part of the play.
const SHORT_LIFE_RECORDS: u64 = 3;

/// All configurations of both ends, of which the input chooses.
pub struct Ends {
    servers: Vec<TlsSettings>,
    clients: Vec<Arc<ClientConfig>>,
}

impl Ends {
    /// With a server that has this certificate, for `localhost` and signed by itself, and its key.
    ///
    /// # Errors
    /// If they are not good.
    pub fn new(
        cert: &CertificateDer<'static>,
        key: &PrivateKeyDer<'static>,
    ) -> Result<Ends, rustls::Error> {
        let mut servers = Vec::new();
        for (provider, ours) in [(provider(), true), (short_lived(), true), (provider(), false)] {
            let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
                .with_protocol_versions(&[&version::TLS13, &version::TLS12])?
                .with_no_client_auth()
                .with_single_cert(vec![cert.clone()], key.clone_key())?;
            config.send_tls13_tickets = 0;
            config.enable_secret_extraction = ours;
            servers.push(TlsSettings::new(Arc::new(config), false));
        }
        let mut roots = RootCertStore::empty();
        roots.add(cert.clone())?;
        let mut clients = Vec::new();
        for version in [&version::TLS13, &version::TLS12] {
            let config = ClientConfig::builder_with_provider(Arc::new(provider()))
                .with_protocol_versions(&[version])?
                .with_root_certificates(roots.clone())
                .with_no_client_auth();
            clients.push(Arc::new(config));
        }
        Ok(Ends { servers, clients })
    }
}

/// Ciphers whose keys do not last.
fn short_lived() -> CryptoProvider {
    let mut provider = provider();
    for suite in &mut provider.cipher_suites {
        let SupportedCipherSuite::Tls13(old) = suite else { continue };
        let common = CipherSuiteCommon {
            suite: old.common.suite,
            hash_provider: old.common.hash_provider,
            confidentiality_limit: SHORT_LIFE_RECORDS,
        };
        // Made once for each run of a fuzzer, and rustls asks for ciphers that stay.
        *suite =
            SupportedCipherSuite::Tls13(Box::leak(Box::new(Tls13CipherSuite { common, ..**old })));
    }
    provider
}

/// Plays the input; how much the client was answered through TLS, in bytes.
///
/// # Panics
/// If one of the properties of the module header does not hold.
pub fn tls(ends: &Ends, input: &[u8]) -> usize {
    let mut script = input;
    let first = take(&mut script);
    let chosen = usize::from(first >> 1);
    let settings = &ends.servers[chosen % ends.servers.len()];
    let config = &ends.clients[chosen / ends.servers.len() % ends.clients.len()];
    let client = || {
        let name = ServerName::try_from("localhost").expect("invariant: it is a name");
        let client = ClientConnection::new(Arc::clone(config), name);
        client.expect("invariant: the configuration is good")
    };
    play(settings, client, &mut script, [true, first & 1 == 1])
}

impl Client for ClientConnection {
    fn is_shaking(&self) -> bool {
        self.is_handshaking()
    }

    fn say(&mut self, text: &[u8]) {
        self.writer().write_all(text).expect("invariant: its buffer takes this");
    }

    fn change_keys(&mut self) {
        // Before the handshake is over and in TLS 1.2 there is no such thing.
        let _ = self.refresh_traffic_keys();
    }

    fn close(&mut self) {
        self.send_close_notify();
    }

    fn collect(&mut self, bytes: &mut Vec<u8>) {
        while self.wants_write() {
            if self.write_tls(bytes).is_err() {
                break;
            }
        }
    }

    fn hear(&mut self, sent: &mut &[u8], heard: &mut Vec<u8>) -> Heard {
        let taken = self.read_tls(sent);
        let state = self.process_new_packets();
        let (Ok(taken), Ok(_)) = (taken, state) else { return Heard::Wrong };
        let mut plain = [0; 4096];
        while let Ok(len) = self.reader().read(&mut plain)
            && len > 0
        {
            heard.extend_from_slice(&plain[..len]);
        }
        // Nothing is read at its end.
        if taken == 0 { Heard::End } else { Heard::Well }
    }
}

#[cfg(test)]
mod tests;
