//! The server's side of a fuzzed TLS connection: channel and session as a connection puts them
//! together, without sockets.
//!
//! Used by `wire.rs`. It checks on the way that nothing is received while records wait, that no
//! more is sealed than there is, and that a channel keeps what it keeps within a bound. The tricky
//! case is the change to TLS: whoever has sent more by then did not wait for the answer, and loses
//! the connection.

use super::{Peer, Stage};
use crate::nbd::negotiate::{Negotiation, TlsPolicy};
use crate::nbd::tls::{Broken, Channel, Opened, RECEIVE_BYTES_MAX, TlsSettings};
use udm_lane::{BufPool, Payload, Segment};

/// Bytes of the server's that one send may take.
const SEND_BYTES: usize = 64 << 10;

/// What a channel may keep.
const CHANNEL_BYTES_MAX: usize = 320 << 10;

/// How the server takes what arrives.
pub(super) enum Line {
    /// No TLS yet.
    Plain,
    Secured(Box<Channel>),
    /// The connection has ended.
    Over,
}

/// The server's side, as a connection does it.
pub(super) struct Server {
    settings: TlsSettings,
    peer: Peer,
    pub(super) line: Line,
    /// What was said before TLS.
    pub(super) before: Vec<u8>,
    window: Vec<u8>,
    /// All that was opened, and all that was answered since TLS began.
    pub(super) opened: Vec<u8>,
    pub(super) answered: Vec<u8>,
    /// What has been sent and not taken.
    pub(super) sent: Vec<u8>,
    /// What is sealed into.
    room: Vec<u8>,
    pool: BufPool,
}

impl Server {
    pub(super) fn new(settings: &TlsSettings) -> Server {
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

    pub(super) fn receive(&mut self, bytes: &[u8]) {
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
