//! The wire between a real client and the server, and what happens to records on it.
//!
//! Used by both entries, with a [`Client`] of the library that each is about. It plays the input,
//! and judges what came of it: see the header of `tls`.
//!
//! The tricky case is a wire that only looks spoilt: records that were swapped with themselves, an
//! end of nothing cut off. What did not change a byte is not counted, so that everything has to
//! arrive then.

use super::server::{Line, Server};
use super::{Peer, Stage};
use crate::nbd::negotiate::{Negotiation, TlsPolicy};
use crate::nbd::tls::TlsSettings;

/// More rounds between the two mean that they talk about nothing for ever.
const ROUNDS_MAX: usize = 10_000;

/// Changes of the client's keys that every server takes.
const CHANGES_MAX: u32 = 16;

/// What a client says before it is told anything: flags, and STARTTLS.
const BEGIN: &[u8] = b"\0\0\0\x03IHAVEOPT\0\0\0\x05\0\0\0\0";

/// A client whose records are good until they are under way.
pub(super) trait Client {
    /// It cannot say anything yet.
    fn is_shaking(&self) -> bool;
    /// Seals these bytes.
    fn say(&mut self, text: &[u8]);
    /// Changes its keys, if it can now.
    fn change_keys(&mut self);
    /// Says that it has no more to say.
    fn close(&mut self);
    /// Appends what it has to send.
    fn collect(&mut self, bytes: &mut Vec<u8>);
    /// Takes some of what the server has sent, and appends what was in it.
    fn hear(&mut self, sent: &mut &[u8], heard: &mut Vec<u8>) -> Heard;
}

/// What a client thinks of what it has heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Well,
    /// The server has ended.
    End,
    /// No server may say that.
    Wrong,
}

/// Plays the script with a client that is made when TLS begins; how much it was answered through
/// TLS, in bytes. `is_welcome`: the server should take this client. `says_before`: the script
/// begins with something in the clear.
pub(super) fn play<C: Client>(
    settings: &TlsSettings,
    client: impl FnOnce() -> C,
    script: &mut &[u8],
    [is_welcome, says_before]: [bool; 2],
) -> usize {
    let mut server = Server::new(settings);
    if says_before {
        let len = usize::from(take(script));
        let before = take_some(script, len).to_vec();
        server.receive(&[&BEGIN[..4], &before].concat());
        server.receive(&BEGIN[4..]);
    } else {
        server.receive(BEGIN);
    }
    let Line::Secured(_) = server.line else { return 0 };
    let mut wire = Wire::new(server, client());
    wire.is_spoilt = !is_welcome;
    wire.settle();
    while !script.is_empty() && !wire.is_over() {
        wire.act(script);
    }
    wire.settle();
    wire.judge();
    wire.heard.len()
}

pub(super) fn take(script: &mut &[u8]) -> u8 {
    script.split_off_first().copied().unwrap_or(0)
}

fn take_some<'a>(script: &mut &'a [u8], len: usize) -> &'a [u8] {
    let (some, rest) = script.split_at(len.min(script.len()));
    *script = rest;
    some
}

/// Both ends, and what is on the way from the client.
struct Wire<C> {
    server: Server,
    client: C,
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

impl<C: Client> Wire<C> {
    fn new(server: Server, client: C) -> Wire<C> {
        Wire {
            server,
            client,
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
                self.client.change_keys();
                self.changes += 1;
                // A client that does nothing else is refused.
                self.is_spoilt |= self.changes > CHANGES_MAX;
                self.collect();
            }
            10 => {
                self.client.close();
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
        if self.has_closed || self.client.is_shaking() {
            return;
        }
        self.client.say(text);
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
        let before = self.under_way.len();
        self.client.collect(&mut self.under_way);
        if self.hello.is_empty() {
            self.hello.extend_from_slice(&self.under_way[before..]);
        }
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
        match self.client.hear(sent, &mut self.heard) {
            Heard::Well => {}
            Heard::End => self.is_dead = true,
            Heard::Wrong => {
                assert!(self.is_spoilt, "the server has sent something wrong");
                self.is_dead = true;
            }
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
