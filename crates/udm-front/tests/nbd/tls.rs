//! TLS: what works without it works with it, and what must not get through does not.

use super::certs::{Authority, put, set_mode};
use super::client::{Client, FLUSH, READ, STYLES, Style, WRITE, greet, option};
use super::rig::{DEVICE, Rig, Served};
use super::{MEMORY, MIB, drivers, pattern};
use rustls::crypto::{CipherSuiteCommon, CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned, SupportedCipherSuite,
    SupportedProtocolVersion, Tls13CipherSuite, version,
};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;
use udm_driver::DriverChoice;
use udm_front::nbd::tls::TlsSettings;
use udm_front::nbd::tls::credentials::Credentials;

const LIST: u32 = 3;
const STARTTLS: u32 = 5;
const GO: u32 = 7;
const STRUCTURED_REPLY: u32 = 8;
const ACK: u32 = 1;
const ERR_UNSUP: u32 = (1 << 31) + 1;
const ERR_INVALID: u32 = (1 << 31) + 3;
const ERR_TLS_REQD: u32 = (1 << 31) + 5;

type TlsStream = StreamOwned<ClientConnection, UnixStream>;

/// A server's files, and what its clients need.
struct Trust {
    authority: Authority,
    dir: TempDir,
}

impl Trust {
    fn new() -> Trust {
        let authority = Authority::new();
        let dir = authority.directory();
        Trust { authority, dir }
    }

    fn credentials(&self, is_required: bool, verify_peer: bool) -> Credentials {
        Credentials { dir: self.dir.path().to_owned(), is_required, verify_peer }
    }

    fn load(&self, is_required: bool, verify_peer: bool) -> TlsSettings {
        self.credentials(is_required, verify_peer).load().expect("the files are good")
    }

    /// A client's configuration; with a certificate signed by `signer`, if there is one.
    fn client(&self, signer: Option<&Authority>) -> Arc<ClientConfig> {
        self.client_of(&version::TLS13, signer)
    }

    fn client_of(
        &self,
        version: &'static SupportedProtocolVersion,
        signer: Option<&Authority>,
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::from_pem_slice(self.authority.pem.as_bytes());
        roots.add(authority.expect("a certificate")).expect("a good one");
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[version])
            .expect("a version we have")
            .with_root_certificates(roots);
        Arc::new(match signer {
            None => builder.with_no_client_auth(),
            Some(signer) => {
                let identity = signer.client();
                let cert = CertificateDer::from_pem_slice(identity.cert.as_bytes());
                let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes());
                builder
                    .with_client_auth_cert(vec![cert.expect("a certificate")], key.expect("a key"))
                    .expect("they fit")
            }
        })
    }
}

/// Asks for TLS; the answer's type.
fn start_tls(stream: &mut UnixStream) -> u32 {
    greet(stream);
    option(stream, STARTTLS, b"")[0].0
}

/// A connection on which TLS is about to begin with the first byte.
fn begin(rig: &Rig, served: &Served) -> UnixStream {
    let mut stream = rig.connect(served);
    assert_eq!(start_tls(&mut stream), ACK);
    stream
}

fn over_tls(stream: UnixStream, config: Arc<ClientConfig>) -> TlsStream {
    let name = ServerName::try_from("localhost").expect("a name");
    StreamOwned::new(ClientConnection::new(config, name).expect("a configuration"), stream)
}

fn secured(rig: &Rig, served: &Served, trust: &Trust) -> TlsStream {
    over_tls(begin(rig, served), trust.client(None))
}

fn name_of(export: &str) -> Vec<u8> {
    let mut body = (export.len() as u32).to_be_bytes().to_vec();
    body.extend(export.as_bytes());
    body.extend([0, 0]);
    body
}

#[test]
fn every_style_and_size_works_over_tls() {
    let trust = Trust::new();
    for choice in drivers() {
        let rig = Rig::new(2, choice, MEMORY);
        let served = rig.serve_tls(vec![rig.export(DEVICE, false)], trust.load(true, false));
        for style in STYLES {
            let mut client = Client::secured(secured(&rig, &served, &trust), style, DEVICE);
            assert_eq!(client.size_bytes, 16 * MIB);
            for kib in [4, 16, 60, 64, 68, 256, 260, 4096, 16384] {
                let data = pattern(style as u8 ^ kib as u8, kib << 10);
                assert_eq!(client.write(0, 0, &data), 0);
                assert!(client.ask(READ, 0, 0, data.len() as u64).data == data, "{kib} KiB");
            }
            assert_eq!(client.ask(FLUSH, 0, 0, 0).error, 0);
            assert_eq!(client.write(0, 16 * MIB, &[0; 512]), 28, "errors get through, too");
            assert_eq!(client.ask(READ, 0, 0, 512).error, 0);
        }
        rig.stop(&served, false);
    }
}

#[test]
fn the_older_version_has_keys_that_last() {
    let (trust, rig) = (Trust::new(), Rig::new(1, DriverChoice::Auto, MEMORY));
    let served = rig.serve_tls(vec![rig.export(DEVICE, false)], trust.load(true, true));
    let config = trust.client_of(&version::TLS12, Some(&trust.authority));
    let mut client = Client::secured(over_tls(begin(&rig, &served), config), Style::Extended, "");
    let data = pattern(8, 1 << 20);
    assert_eq!(client.write(0, 0, &data), 0);
    assert!(client.ask(READ, 0, 0, 1 << 20).data == data);
    let suite = client.stream.conn.negotiated_cipher_suite().expect("agreed on");
    assert!(format!("{suite:?}").contains("CHACHA20_POLY1305"), "{suite:?}");
    rig.stop(&served, false);
    assert_eq!(client.stream.read_to_end(&mut Vec::new()).expect("an orderly end"), 0);
}

#[test]
fn a_pipelined_batch_is_answered_over_tls() {
    let (trust, rig) = (Trust::new(), Rig::new(1, DriverChoice::Auto, MEMORY));
    let served = rig.serve_tls(vec![rig.export(DEVICE, false)], trust.load(false, false));
    let mut client = Client::secured(secured(&rig, &served, &trust), Style::Structured, "");
    let mut bytes = Vec::new();
    for cookie in 0..300_u64 {
        bytes.extend(client.request(WRITE, 0, cookie, cookie * 4096, 4096));
        bytes.extend(pattern(cookie as u8, 4096));
    }
    client.send(&bytes);
    let mut seen = [false; 300];
    for _ in 0..300 {
        let reply = client.reply(0);
        assert_eq!(reply.error, 0);
        seen[reply.cookie as usize] = true;
    }
    assert!(seen.iter().all(|seen| *seen));
    // More than a connection may hold, and nobody reads it: the server stops reading requests.
    let reads: Vec<u8> = (0..64_u64)
        .flat_map(|cookie| client.request(READ, 0, cookie, cookie % 300 * 4096, MIB))
        .collect();
    client.send(&reads);
    let mut other = Client::secured(secured(&rig, &served, &trust), Style::Simple, "");
    assert_eq!(other.ask(READ, 0, 4096, 4096).data, pattern(1, 4096), "others go on");
    for _ in 0..64 {
        let reply = client.reply(1 << 20);
        assert!(reply.data[..4096] == pattern(reply.cookie as u8, 4096), "{}", reply.cookie);
    }
}

#[test]
fn requests_wait_for_a_resume_over_tls() {
    let (trust, rig) = (Trust::new(), Rig::new(1, DriverChoice::Auto, MEMORY));
    let served = rig.serve_tls(vec![rig.export(DEVICE, false)], trust.load(true, false));
    let mut client = Client::secured(secured(&rig, &served, &trust), Style::Simple, "");
    rig.suspend(true);
    let mut bytes = Vec::new();
    for cookie in 0..200_u64 {
        bytes.extend(client.request(WRITE, 0, cookie, cookie * 8192, 8192));
        bytes.extend([cookie as u8; 8192]);
    }
    let sender = std::thread::spawn(move || {
        client.send(&bytes);
        client
    });
    rig.wait_for(|lanes| lanes[0].held >= 50);
    rig.resume(false);
    let mut client = sender.join().expect("all sent");
    for _ in 0..200 {
        assert_eq!(client.reply(0).error, 0);
    }
    for cookie in 0..200_u64 {
        assert!(client.ask(READ, 0, cookie * 8192, 8192).data == [cookie as u8; 8192]);
    }
}

#[test]
fn required_means_that_nothing_is_said_before() {
    let (trust, rig) = (Trust::new(), Rig::new(1, DriverChoice::Auto, MEMORY));
    let served = rig.serve_tls(vec![rig.export(DEVICE, false)], trust.load(true, false));
    let mut stream = rig.connect(&served);
    greet(&mut stream);
    for (number, body) in [(LIST, vec![]), (GO, name_of(DEVICE)), (STRUCTURED_REPLY, vec![])] {
        assert_eq!(option(&mut stream, number, &body)[0].0, ERR_TLS_REQD);
    }
    assert_eq!(option(&mut stream, STARTTLS, b"data")[0].0, ERR_INVALID);
    assert_eq!(option(&mut stream, STARTTLS, b"")[0].0, ACK);
    let mut stream = over_tls(stream, trust.client(None));
    assert_eq!(option(&mut stream, STARTTLS, b"")[0].0, ERR_INVALID, "it is in use");
    assert_eq!(option(&mut stream, LIST, b"").len(), 2);
    // The option of old clients has no error reply.
    let mut stream = rig.connect(&served);
    greet(&mut stream);
    stream.write_all(b"IHAVEOPT\0\0\0\x01\0\0\0\x03vol").expect("sent");
    assert_eq!(stream.read(&mut [0; 8]).expect("an end"), 0);
}

#[test]
fn allowed_means_either_and_off_means_no() {
    let (trust, rig) = (Trust::new(), Rig::new(1, DriverChoice::Auto, MEMORY));
    let served = rig.serve_tls(vec![rig.export(DEVICE, false)], trust.load(false, false));
    let mut plain = Client::new(rig.connect(&served), Style::Simple, "");
    assert_eq!(plain.write(0, 0, &pattern(3, 4096)), 0);
    let mut client = Client::secured(secured(&rig, &served, &trust), Style::Extended, "");
    assert_eq!(client.ask(READ, 0, 0, 4096).data, pattern(3, 4096), "one device");
    let off = rig.serve(vec![rig.export(DEVICE, false)]);
    assert_eq!(start_tls(&mut rig.connect(&off)), ERR_UNSUP);
}

#[test]
fn what_was_agreed_on_in_the_clear_is_forgotten() {
    let (trust, rig) = (Trust::new(), Rig::new(1, DriverChoice::Auto, MEMORY));
    let served = rig.serve_tls(vec![rig.export(DEVICE, false)], trust.load(false, false));
    let mut stream = rig.connect(&served);
    greet(&mut stream);
    assert_eq!(option(&mut stream, STRUCTURED_REPLY, b"")[0].0, ACK);
    assert_eq!(option(&mut stream, STARTTLS, b"")[0].0, ACK);
    let stream = over_tls(stream, trust.client(None));
    let mut client = Client::secured(stream, Style::Simple, "");
    assert_eq!(client.flags & 0x80, 0, "no DF without structured replies");
    assert_eq!(client.ask(READ, 0, 0, 512).data, [0; 512], "a simple reply");
}

#[test]
fn bytes_slipped_in_before_tls_end_the_connection() {
    let (trust, rig) = (Trust::new(), Rig::new(1, DriverChoice::Auto, MEMORY));
    let served = rig.serve_tls(vec![rig.export(DEVICE, false)], trust.load(false, false));
    let mut stream = rig.connect(&served);
    greet(&mut stream);
    let injected = b"IHAVEOPT\0\0\0\x05\0\0\0\0IHAVEOPT\0\0\0\x03\0\0\0\0";
    stream.write_all(injected).expect("sent");
    let mut rest = Vec::new();
    // A reset counts as an end: not all that we sent was read.
    let _ = stream.read_to_end(&mut rest);
    let words = |bytes: &[u8]| rest.windows(bytes.len()).any(|window| window == bytes);
    assert!(!words(b"vol"), "the injected list is not answered");
    rig.wait_for(|lanes| lanes[0].actors == 1);
}

#[test]
fn garbage_costs_its_sender_the_connection_only() {
    let (trust, rig) = (Trust::new(), Rig::new(1, DriverChoice::Auto, MEMORY));
    let served = rig.serve_tls(vec![rig.export(DEVICE, false)], trust.load(false, false));
    let mut other = Client::secured(secured(&rig, &served, &trust), Style::Simple, "");
    let hello_of_4_gib = [&[22, 3, 1, 0, 9, 1, 0xff, 0xff, 0xff][..], &[0; 200]].concat();
    let many_empty_records = [23, 3, 3, 0, 0].repeat(100_000);
    let endless_hello: Vec<u8> =
        (0..40).flat_map(|_| [&[22, 3, 1, 64, 0][..], &[1; 16384]].concat()).collect();
    for garbage in [
        &[0xff_u8; 300][..],
        b"IHAVEOPT\0\0\0\x03\0\0\0\0",
        b"GET / HTTP/1.1\r\n\r\n",
        &[22, 3, 1, 0xff, 0xff, 1, 0, 0, 0],
        &hello_of_4_gib,
        &many_empty_records,
        &endless_hello,
    ] {
        let mut stream = begin(&rig, &served);
        // It may be over before all is sent.
        let _ = stream.write_all(garbage);
        let _ = stream.read_to_end(&mut Vec::new());
        assert_eq!(other.ask(READ, 0, 0, 512).error, 0);
    }
    // Garbage after a good handshake: the keys are agreed on, the record is not sealed by them.
    let mut client = Client::secured(secured(&rig, &served, &trust), Style::Simple, "");
    assert_eq!(client.ask(READ, 0, 0, 512).error, 0);
    client.stream.sock.write_all(&[&[23, 3, 3, 0, 100][..], &[7; 100]].concat()).expect("sent");
    let mut alert = Vec::new();
    let _ = client.stream.sock.read_to_end(&mut alert);
    assert_eq!(alert.first(), Some(&23), "the client is told by an alert, sealed as all is");
    // And one that goes away within the handshake.
    let mut stream = begin(&rig, &served);
    stream.write_all(&[22, 3, 1, 2, 0, 1, 0]).expect("sent");
    drop(stream);
    rig.wait_for(|lanes| lanes[0].actors == 2);
    assert_eq!(other.ask(READ, 0, 0, 512).error, 0);
}

#[test]
fn a_plain_request_within_tls_ends_the_connection_and_does_nothing() {
    let (trust, rig) = (Trust::new(), Rig::new(1, DriverChoice::Auto, MEMORY));
    let served = rig.serve_tls(vec![rig.export(DEVICE, false)], trust.load(false, false));
    let mut client = Client::secured(secured(&rig, &served, &trust), Style::Simple, "");
    assert_eq!(client.write(0, 0, &pattern(1, 512)), 0);
    let mut plain = client.request(WRITE, 0, 9, 0, 512);
    plain.extend([0xee; 512]);
    client.stream.sock.write_all(&plain).expect("sent");
    let mut told = Vec::new();
    // A reset counts as an end: not all that we sent was read.
    let _ = client.stream.sock.read_to_end(&mut told);
    assert_eq!(told.first(), Some(&23), "an alert, sealed as all is, and no reply");
    let mut other = Client::secured(secured(&rig, &served, &trust), Style::Simple, "");
    assert_eq!(other.ask(READ, 0, 0, 512).data, pattern(1, 512));
    rig.wait_for(|lanes| lanes[0].actors == 2);
}

#[test]
fn handshakes_that_never_finish_keep_nobody_from_working() {
    let (trust, rig) = (Trust::new(), Rig::new(1, DriverChoice::Auto, MEMORY));
    let served = rig.serve_tls(vec![rig.export(DEVICE, false)], trust.load(false, false));
    let mut hello = Vec::new();
    let name = ServerName::try_from("localhost").expect("a name");
    let mut conn = ClientConnection::new(trust.client(None), name).expect("a configuration");
    conn.write_tls(&mut hello).expect("written");
    let mut silent = Vec::new();
    for round in 0..20 {
        // Nothing said; half an option; TLS asked for; half a hello; a hello, and no more.
        silent.push(rig.connect(&served));
        let mut stream = rig.connect(&served);
        greet(&mut stream);
        stream.write_all(b"IHAVEOPT\0\0\0\x07\0\0\x10\0").expect("sent");
        silent.push(stream);
        silent.push(begin(&rig, &served));
        for len in [hello.len() / 2 + round, hello.len()] {
            let mut stream = begin(&rig, &served);
            stream.write_all(&hello[..len]).expect("sent");
            silent.push(stream);
        }
    }
    let mut client = Client::secured(secured(&rig, &served, &trust), Style::Simple, "");
    assert_eq!(client.write(0, 0, &pattern(2, 4096)), 0);
    assert_eq!(client.ask(READ, 0, 0, 4096).data, pattern(2, 4096));
    // Nothing of theirs is under way, so an orderly end does not wait for them either.
    rig.stop(&served, false);
    for mut stream in silent {
        let _ = stream.read_to_end(&mut Vec::new());
    }
}

#[test]
fn a_client_has_to_show_a_certificate_of_our_authority() {
    let (trust, rig) = (Trust::new(), Rig::new(1, DriverChoice::Auto, MEMORY));
    let served = rig.serve_tls(vec![rig.export(DEVICE, false)], trust.load(true, true));
    let stranger = Authority::new();
    for signer in [None, Some(&stranger)] {
        let mut stream = over_tls(begin(&rig, &served), trust.client(signer));
        // The client believes to be done before the server has looked at its certificate.
        let error = stream.read_exact(&mut [0; 1]).expect_err("refused").to_string();
        assert!(error.contains("fatal alert"), "{error}");
    }
    let stream = over_tls(begin(&rig, &served), trust.client(Some(&trust.authority)));
    let mut client = Client::secured(stream, Style::Simple, "");
    assert_eq!(client.ask(READ, 0, 0, 512).error, 0);
}

/// The provider's TLS 1.3 suites, with keys that are worn out after so many records.
fn short_lived(records: u64) -> CryptoProvider {
    let mut provider = ring::default_provider();
    for suite in &mut provider.cipher_suites {
        let SupportedCipherSuite::Tls13(old) = suite else { continue };
        let common = CipherSuiteCommon {
            suite: old.common.suite,
            hash_provider: old.common.hash_provider,
            confidentiality_limit: records,
        };
        let new: &'static Tls13CipherSuite =
            Box::leak(Box::new(Tls13CipherSuite { common, ..**old }));
        *suite = SupportedCipherSuite::Tls13(new);
    }
    provider
}

/// A server's settings whose own keys last so many records; `ours`: the records after the handshake
/// are sealed by us and not by rustls.
fn short_lived_settings(trust: &Trust, records: u64, ours: bool) -> TlsSettings {
    let read = |name| std::fs::read(trust.dir.path().join(name)).expect("made");
    let cert = CertificateDer::from_pem_slice(&read("server-cert.pem")).expect("a certificate");
    let key = PrivateKeyDer::from_pem_slice(&read("server-key.pem")).expect("a key");
    let mut config = ServerConfig::builder_with_provider(Arc::new(short_lived(records)))
        .with_protocol_versions(&[&version::TLS13])
        .expect("a version we have")
        .with_no_client_auth()
        .with_single_cert(vec![cert], key)
        .expect("they fit");
    config.enable_secret_extraction = ours;
    TlsSettings::new(Arc::new(config), true)
}

#[test]
fn keys_are_changed_without_a_pause() {
    for ours in [true, false] {
        let (trust, rig) = (Trust::new(), Rig::new(1, DriverChoice::Auto, MEMORY));
        let tls = short_lived_settings(&trust, 20, ours);
        let served = rig.serve_tls(vec![rig.export(DEVICE, false)], tls);
        let mut client = Client::secured(secured(&rig, &served, &trust), Style::Structured, "");
        let data = pattern(5, 1 << 20);
        for round in 0..100 {
            let len = if round % 10 == 0 { data.len() } else { 4096 };
            assert_eq!(client.write(0, 0, &data[..len]), 0);
            assert!(client.ask(READ, 0, 0, len as u64).data == data[..len]);
            if round % 7 == 0 {
                client.stream.conn.refresh_traffic_keys().expect("possible in this version");
            }
        }
    }
}

#[test]
fn a_change_of_keys_right_after_the_handshake_is_taken() {
    let (trust, rig) = (Trust::new(), Rig::new(1, DriverChoice::Auto, MEMORY));
    let served = rig.serve_tls(vec![rig.export(DEVICE, false)], trust.load(true, false));
    let TlsStream { mut conn, mut sock } = secured(&rig, &served, &trust);
    // The last message of the handshake, two changes of keys and the first request in one piece.
    conn.write_tls(&mut sock).expect("sent");
    while conn.is_handshaking() {
        conn.read_tls(&mut sock).expect("received");
        conn.process_new_packets().expect("the server's part");
    }
    conn.refresh_traffic_keys().expect("possible in this version");
    conn.refresh_traffic_keys().expect("possible in this version");
    let mut client = Client::secured(StreamOwned::new(conn, sock), Style::Extended, "");
    assert_eq!(client.write(0, 0, &pattern(9, 4096)), 0);
    assert!(client.ask(READ, 0, 0, 4096).data == pattern(9, 4096));
}

#[test]
fn a_client_that_only_changes_keys_is_ended() {
    let (trust, rig) = (Trust::new(), Rig::new(1, DriverChoice::Auto, MEMORY));
    let served = rig.serve_tls(vec![rig.export(DEVICE, false)], trust.load(true, false));
    let mut client = Client::secured(secured(&rig, &served, &trust), Style::Simple, "");
    for _ in 0..30 {
        client.stream.conn.refresh_traffic_keys().expect("possible in this version");
    }
    assert_eq!(client.ask(READ, 0, 0, 512).error, 0, "many are fine");
    for _ in 0..40 {
        client.stream.conn.refresh_traffic_keys().expect("possible in this version");
    }
    let _ = client.stream.flush();
    let error = client.stream.read(&mut [0; 1]).expect_err("ended").to_string();
    assert!(error.contains("UnexpectedMessage"), "{error}");
}

#[test]
fn the_end_of_an_export_is_said_in_tls() {
    let (trust, rig) = (Trust::new(), Rig::new(1, DriverChoice::Auto, MEMORY));
    let served = rig.serve_tls(vec![rig.export(DEVICE, false)], trust.load(true, false));
    let mut client = Client::secured(secured(&rig, &served, &trust), Style::Simple, "");
    assert_eq!(client.ask(READ, 0, 0, 512).error, 0);
    rig.stop(&served, false);
    let mut rest = Vec::new();
    // Without its goodbye, rustls would call this end an error.
    assert_eq!(client.stream.read_to_end(&mut rest).expect("an orderly end"), 0);
}

#[test]
fn what_is_wrong_with_a_file_is_said() {
    let trust = Trust::new();
    let path = |name: &str| trust.dir.path().join(name);
    let error = |verify_peer| {
        let error = trust.credentials(true, verify_peer).load().expect_err("not good");
        format!("{} | {}", error.message(), error.hint_text())
    };
    let says = |text: &str, name: &str, words: &str| {
        assert!(text.contains(&path(name).display().to_string()), "{text}");
        assert!(text.contains(words), "{text}");
    };
    let good = |name: &str| std::fs::read_to_string(path(name)).expect("made");
    let (key, cert) = (good("server-key.pem"), good("server-cert.pem"));

    set_mode(&path("server-key.pem"), 0o644);
    says(&error(false), "server-key.pem", "mode 644");
    says(&error(false), "server-key.pem", "chmod o= ");
    set_mode(&path("server-key.pem"), 0o640);
    trust.load(false, false);

    let spoil = |name: &str, text: &str| put(trust.dir.path(), name, text);
    spoil("server-key.pem", "no key");
    says(&error(false), "server-key.pem", "no private key");
    let encrypted =
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    spoil("server-key.pem", encrypted);
    says(&error(false), "server-key.pem", "encrypted");
    spoil("server-key.pem", &trust.authority.server().key);
    says(&error(false), "server-key.pem", "not the key of");
    spoil("server-key.pem", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
    says(&error(false), "server-key.pem", "ECDSA");
    spoil("server-key.pem", &key);

    spoil("server-cert.pem", &key);
    says(&error(false), "server-cert.pem", "no certificate");
    spoil("server-cert.pem", "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n");
    says(&error(false), "server-cert.pem", "PEM");
    spoil("server-cert.pem", &cert);

    spoil("ca-crl.pem", "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n");
    says(&error(true), "ca-crl.pem", "");
    spoil("ca-crl.pem", "");
    trust.load(true, true);
    std::fs::remove_file(path("ca-cert.pem")).expect("it was there");
    says(&error(true), "ca-cert.pem", "No such file");
    trust.load(true, false);
    let missing =
        Credentials { dir: Path::new("/nowhere").into(), ..trust.credentials(true, false) };
    assert!(missing.load().is_err());
}
