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

use super::{Peer, Stage};
use crate::nbd::negotiate::{Negotiation, TlsPolicy};
use crate::nbd::tls::credentials::provider;
use crate::nbd::tls::{Broken, Channel, Opened, RECEIVE_BYTES_MAX, TlsSettings};
use rustls::crypto::{CipherSuiteCommon, CryptoProvider};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, SupportedCipherSuite,
    Tls13CipherSuite, version,
};
use std::io::{Read, Write};
use std::sync::Arc;
use udm_lane::{BufPool, Payload, Segment};

/// Bytes of the server's that one send may take.
const SEND_BYTES: usize = 64 << 10;

/// More rounds between the two mean that they talk about nothing for ever.
const ROUNDS_MAX: usize = 10_000;

/// Changes of the client's keys that every server takes.
const CHANGES_MAX: u32 = 16;

/// What a channel may keep.
const CHANNEL_BYTES_MAX: usize = 320 << 10;

/// What a client says before it is told anything: flags, and STARTTLS.
const BEGIN: &[u8] = b"\0\0\0\x03IHAVEOPT\0\0\0\x05\0\0\0\0";

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
    let mut server = Server::new(&ends.servers[chosen % ends.servers.len()]);
    // Some inputs say something before TLS begins, or instead of it.
    if first & 1 == 1 {
        let len = usize::from(take(&mut script));
        let before = take_some(&mut script, len).to_vec();
        server.receive(&[&BEGIN[..4], &before].concat());
        server.receive(&BEGIN[4..]);
    } else {
        server.receive(BEGIN);
    }
    let Line::Secured(_) = server.line else { return 0 };
    let config = &ends.clients[chosen / ends.servers.len() % ends.clients.len()];
    let mut wire = Wire::new(server, Arc::clone(config));
    wire.settle();
    while !script.is_empty() && !wire.is_over() {
        wire.act(&mut script);
    }
    wire.settle();
    wire.judge();
    wire.heard.len()
}

fn take(script: &mut &[u8]) -> u8 {
    script.split_off_first().copied().unwrap_or(0)
}

fn take_some<'a>(script: &mut &'a [u8], len: usize) -> &'a [u8] {
    let (some, rest) = script.split_at(len.min(script.len()));
    *script = rest;
    some
}

/// How the server takes what arrives.
enum Line {
    /// No TLS yet.
    Plain,
    Secured(Box<Channel>),
    /// The connection has ended.
    Over,
}

/// The server's side, as a connection does it.
struct Server {
    settings: TlsSettings,
    peer: Peer,
    line: Line,
    /// What was said before TLS.
    before: Vec<u8>,
    window: Vec<u8>,
    /// All that was opened, and all that was answered since TLS began.
    opened: Vec<u8>,
    answered: Vec<u8>,
    /// What has been sent and not taken.
    sent: Vec<u8>,
    /// What is sealed into.
    room: Vec<u8>,
    pool: BufPool,
}

impl Server {
    fn new(settings: &TlsSettings) -> Server {
        let mut peer = Peer::new();
        peer.stage = Stage::Negotiating(Negotiation::new(TlsPolicy::Allowed));
        Server {
            settings: settings.clone(),
            peer,
            line: Line::Plain,
            before: Vec::new(),
            window: Vec::new(),
            opened: Vec::new(),
            answered: Vec::new(),
            sent: Vec::new(),
            room: vec![0; SEND_BYTES],
            pool: BufPool::new(),
        }
    }

    fn receive(&mut self, bytes: &[u8]) {
        match &self.line {
            Line::Plain => self.receive_plain(bytes),
            Line::Secured(_) => {
                bytes.chunks(RECEIVE_BYTES_MAX).for_each(|piece| self.receive_records(piece));
            }
            Line::Over => {}
        }
    }

    fn receive_plain(&mut self, bytes: &[u8]) {
        self.before.extend_from_slice(bytes);
        self.window.extend_from_slice(bytes);
        let consumed = self.peer.receive(&self.window);
        self.window.drain(..consumed);
        self.peer.out.clear();
        if std::mem::take(&mut self.peer.wants_tls) {
            // What has come already was sent by somebody who did not wait for the answer.
            self.line = match self.settings.channel() {
                Ok(channel) if self.window.is_empty() => Line::Secured(Box::new(channel)),
                Ok(_) | Err(Broken) => Line::Over,
            };
        } else if self.peer.is_over() {
            self.line = Line::Over;
        }
    }

    fn receive_records(&mut self, bytes: &[u8]) {
        let Line::Secured(channel) = &mut self.line else { return };
        assert!(channel.is_drained(), "nothing is received while records wait");
        let Ok(room) = channel.received(bytes.len()) else { return self.end() };
        room.copy_from_slice(bytes);
        loop {
            let Line::Secured(channel) = &mut self.line else { return };
            let before = self.opened.len();
            let opened = channel.open(|plain| self.opened.extend_from_slice(plain));
            self.window.extend_from_slice(&self.opened[before..]);
            let consumed = self.peer.receive(&self.window);
            self.window.drain(..consumed);
            self.answer();
            if let Line::Secured(channel) = &self.line {
                assert!(channel.memory_bytes() <= CHANNEL_BYTES_MAX, "it keeps too much");
            }
            match opened {
                Ok(Opened::Record | Opened::MustSend) => {}
                Ok(Opened::NeedMore) => return,
                Ok(Opened::Ended) | Err(Broken) => return self.end(),
            }
            if self.peer.is_over() {
                return self.end();
            }
        }
    }

    /// Seals what the session has answered, and what the channel owes.
    fn answer(&mut self) {
        let Line::Secured(channel) = &mut self.line else { return };
        let answer = std::mem::take(&mut self.peer.out);
        let mut done = 0;
        while done < answer.len() || channel.owes() {
            let (rest, out) = (&answer[done..], &mut self.room);
            let plain = (!rest.is_empty()).then(|| payload(rest, &mut self.pool));
            let Ok((bytes, plain_bytes)) = channel.seal(plain.as_ref(), out) else { return };
            assert!(plain_bytes <= rest.len(), "no more is sealed than there is");
            self.sent.extend_from_slice(&out[..bytes]);
            self.answered.extend_from_slice(&rest[..plain_bytes]);
            done += plain_bytes;
            if bytes == 0 {
                return;
            }
        }
    }

    /// Says goodbye, or why not.
    fn end(&mut self) {
        self.answer();
        let Line::Secured(channel) = &mut self.line else { return };
        channel.close();
        if let Ok((bytes, _)) = channel.seal(None, &mut self.room) {
            self.sent.extend_from_slice(&self.room[..bytes]);
        }
        self.line = Line::Over;
    }
}

/// Bytes as replies lie: in two pieces.
fn payload(bytes: &[u8], pool: &mut BufPool) -> Payload {
    let mut payload = Payload::empty();
    let (head, rest) = bytes.split_at(bytes.len().min(16));
    for piece in [head, rest].into_iter().filter(|piece| !piece.is_empty()) {
        let buf = pool.take(piece.len());
        buf.copy_in(0, piece);
        let len_bytes = u32::try_from(piece.len()).expect("invariant: answers are bounded");
        payload.push(Segment { buf, offset_bytes: 0, len_bytes });
    }
    payload
}

/// Both ends, and what is on the way from the client.
struct Wire {
    server: Server,
    client: ClientConnection,
    /// From the client, not yet delivered.
    under_way: Vec<u8>,
    /// Its first message, to be sent again.
    hello: Vec<u8>,
    /// All it was asked to seal, and all it has opened.
    said: Vec<u8>,
    heard: Vec<u8>,
    changes: u32,
    is_spoilt: bool,
    has_closed: bool,
    /// It has ended with an error.
    is_dead: bool,
}

impl Wire {
    fn new(server: Server, config: Arc<ClientConfig>) -> Wire {
        let name = ServerName::try_from("localhost").expect("invariant: it is a name");
        let client = ClientConnection::new(config, name);
        Wire {
            server,
            client: client.expect("invariant: the configuration is good"),
            under_way: Vec::new(),
            hello: Vec::new(),
            said: Vec::new(),
            heard: Vec::new(),
            changes: 0,
            is_spoilt: false,
            has_closed: false,
            is_dead: false,
        }
    }

    fn is_over(&self) -> bool {
        self.is_dead || matches!(self.server.line, Line::Over)
    }

    /// One step of the input.
    fn act(&mut self, script: &mut &[u8]) {
        let action = take(script);
        match action % 12 {
            0..=2 => self.say(script, action),
            3 => {
                let len = usize::from(take(script) % 64);
                let garbage = take_some(script, len).to_vec();
                self.spoil(|under_way| under_way.extend(garbage));
            }
            4 => {
                let (place, bit) = (usize::from(take(script)), take(script) % 8);
                self.spoil(|bytes| {
                    let len = bytes.len().max(1);
                    if let Some(byte) = bytes.get_mut(place % len) {
                        *byte ^= 1 << bit;
                    }
                });
            }
            5 => {
                let len = usize::from(take(script));
                self.spoil(|bytes| bytes.truncate(bytes.len().saturating_sub(len)));
            }
            6 => self.spoil(|bytes| {
                let first = first_record(bytes);
                bytes.rotate_left(first);
            }),
            7 => self.spoil(|bytes| {
                let first = first_record(bytes);
                bytes.extend_from_within(..first);
            }),
            8 => {
                let hello = self.hello.clone();
                self.spoil(|bytes| bytes.extend(hello));
            }
            9 => {
                // Before the handshake is over and in TLS 1.2 there is no such thing.
                let _ = self.client.refresh_traffic_keys();
                self.changes += 1;
                // A client that does nothing else is refused.
                self.is_spoilt |= self.changes > CHANGES_MAX;
                self.collect();
            }
            10 => {
                self.client.send_close_notify();
                self.has_closed = true;
                self.collect();
            }
            _ => {
                // What is under way comes in pieces.
                let len = usize::from(take(script)) + 1;
                for piece in std::mem::take(&mut self.under_way).chunks(len) {
                    self.server.receive(piece);
                }
                self.settle();
            }
        }
    }

    /// The client seals the next bytes of the input. Some stay under way, to be spoilt.
    fn say(&mut self, script: &mut &[u8], action: u8) {
        let len = usize::from(take(script));
        let text = take_some(script, len);
        if self.has_closed || self.client.is_handshaking() {
            return;
        }
        self.client.writer().write_all(text).expect("invariant: its buffer takes this");
        self.said.extend_from_slice(text);
        self.collect();
        if action < 128 {
            self.settle();
        }
    }

    /// Does something to what is under way, if that changes it.
    fn spoil(&mut self, change: impl FnOnce(&mut Vec<u8>)) {
        let before = self.under_way.clone();
        change(&mut self.under_way);
        self.is_spoilt |= self.under_way != before;
    }

    fn collect(&mut self) {
        let mut bytes = Vec::new();
        while self.client.wants_write() {
            if self.client.write_tls(&mut bytes).is_err() {
                break;
            }
        }
        if self.hello.is_empty() {
            self.hello.clone_from(&bytes);
        }
        self.under_way.extend(bytes);
    }

    /// Delivers everything in both directions until nobody has anything to say.
    fn settle(&mut self) {
        for _ in 0..ROUNDS_MAX {
            self.collect();
            if self.under_way.is_empty() && self.server.sent.is_empty() {
                return;
            }
            let bytes = std::mem::take(&mut self.under_way);
            self.server.receive(&bytes);
            let sent = std::mem::take(&mut self.server.sent);
            let mut sent = &sent[..];
            while !sent.is_empty() && !self.is_dead {
                self.hear(&mut sent);
            }
        }
        panic!("they talk for ever");
    }

    fn hear(&mut self, sent: &mut &[u8]) {
        let taken = self.client.read_tls(sent);
        let state = self.client.process_new_packets();
        let (Ok(taken), Ok(_)) = (taken, state) else {
            assert!(self.is_spoilt, "the server has sent something wrong");
            self.is_dead = true;
            return;
        };
        // Nothing is read at its end.
        self.is_dead |= taken == 0;
        let mut plain = [0; 4096];
        while let Ok(len) = self.client.reader().read(&mut plain)
            && len > 0
        {
            self.heard.extend_from_slice(&plain[..len]);
        }
    }

    fn judge(&self) {
        let Server { before, opened, answered, .. } = &self.server;
        assert!(self.said.starts_with(opened), "the server has opened what nobody sealed");
        assert!(answered.starts_with(&self.heard), "the client has opened what nobody sealed");
        if self.is_spoilt || self.has_closed {
            return;
        }
        if !self.is_over() {
            assert!(self.said == *opened, "something was lost");
        }
        assert!(self.is_dead || self.heard == *answered, "an answer was lost");
        let mut plain = Peer::new();
        plain.stage = Stage::Negotiating(Negotiation::new(TlsPolicy::Allowed));
        plain.receive(before);
        plain.out.clear();
        plain.receive(opened);
        assert!(plain.out.starts_with(answered), "TLS changes an answer");
    }
}

/// Where the first record ends, if it is one.
fn first_record(bytes: &[u8]) -> usize {
    let len = match bytes {
        [_, _, _, high, low, ..] => 5 + usize::from(u16::from_be_bytes([*high, *low])),
        _ => bytes.len(),
    };
    len.min(bytes.len())
}

#[cfg(test)]
mod tests;
