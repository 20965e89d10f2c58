//! The TLS records of one connection: ciphertext in, plaintext out, and the other way round.
//!
//! Used by the connection with bytes it has received and memory it is about to send; nothing here
//! touches a socket, waits or grows. It stands on the unbuffered interface of rustls, which works
//! on slices we own. When a handshake of TLS 1.3 is over, `records` takes the connection over.
//!
//! Rules. One record is opened at a time, and only if its plaintext has a place to go, so a slow
//! device makes us stop reading from the socket, as without TLS. What rustls itself has to say (its
//! part of the handshake, alerts, new keys) waits in `owed` and goes out before any record sealed
//! later. Once broken, a channel only gives what it owes: the alert that tells the client why.
//!
//! ```text
//! incoming: | opened | whole records, part of one | room for the next receive |
//!           0        start                        end
//! ```
//!
//! The tricky case is sealing while whole records wait in `incoming`: rustls wants to see its input
//! at every call, and would open the next record, which has no place to go. It is shown exactly
//! what it has seen before: all up to `shown` if it found no whole record in that, nothing
//! otherwise. It keeps no part of a message across a record of requests, so both are the truth.
//! And until the handshake is over, it is shown one record at a time, so that it has seen nothing
//! beyond the client's last message when the keys are taken over: it would have changed them for
//! an early change of keys, and not have told anybody.

use super::records::{Content, Records};
use rustls::ServerConfig;
use rustls::server::UnbufferedServerConnection;
use std::sync::Arc;
use udm_lane::Payload;

/// Plaintext of the longest record.
pub(crate) const RECORD_BYTES_MAX: usize = 16 << 10;

/// What a record needs beyond its plaintext, with a change of keys in front of it; generously.
pub(super) const OVERHEAD_BYTES: usize = 256;

/// Room for what is received at once, behind the rest of what came before.
pub(crate) const RECEIVE_BYTES_MAX: usize = 64 << 10;

/// Room for the largest rest that is no whole record: a handshake message of many certificates.
const REST_BYTES_MAX: usize = 80 << 10;

/// What rustls may have to say before we stop asking it. A certificate chain fits; a client that
/// makes us talk without reading what we say does not.
const OWED_BYTES_MAX: usize = 64 << 10;

/// The channel cannot go on. What it owes (an alert) may still be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Broken;

/// What came of opening records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opened {
    /// A record: its plaintext was given to the sink.
    Record,
    /// No whole record is there; receive more.
    NeedMore,
    /// We owe too much; send first.
    MustSend,
    /// The client has said that it sends nothing more.
    Ended,
}

/// Who makes and reads the records.
pub(super) enum Layer {
    /// The handshake, and all of TLS 1.2.
    Rustls(Box<UnbufferedServerConnection>),
    /// TLS 1.3 after the handshake.
    Ours(Box<Records>),
    /// Nobody: the keys could not be taken over.
    Nobody,
}

/// One connection's TLS.
pub(crate) struct Channel {
    pub(super) layer: Layer,
    /// Whether [`Records`] may have the keys.
    pub(super) may_take_over: bool,
    pub(super) incoming: Vec<u8>,
    pub(super) start: usize,
    pub(super) end: usize,
    /// Up to here rustls has looked and found no whole record.
    pub(super) shown: usize,
    /// Up to here it may look, while it has the handshake.
    pub(super) allowed: usize,
    pub(super) owed: Vec<u8>,
    /// Plaintext on its way into a record of rustls, since replies lie in several pieces.
    pub(super) plain: Vec<u8>,
    pub(super) is_broken: bool,
}

impl Channel {
    /// A channel whose handshake the client begins.
    ///
    /// # Errors
    /// If the configuration is not one for servers without a transport of their own.
    pub(crate) fn new(config: Arc<ServerConfig>) -> Result<Channel, Broken> {
        let may_take_over = config.enable_secret_extraction;
        let tls = UnbufferedServerConnection::new(config).map_err(|_| Broken)?;
        Ok(Channel {
            layer: Layer::Rustls(Box::new(tls)),
            may_take_over,
            incoming: vec![0; RECEIVE_BYTES_MAX + REST_BYTES_MAX],
            start: 0,
            end: 0,
            shown: 0,
            allowed: 0,
            owed: Vec::new(),
            plain: vec![0; RECORD_BYTES_MAX],
            is_broken: false,
        })
    }

    /// Where the next `len_bytes` of ciphertext go; they count as received. Only to be called
    /// after [`Opened::NeedMore`], with at most [`RECEIVE_BYTES_MAX`].
    ///
    /// # Errors
    /// If a single message is longer than any that we accept.
    pub(crate) fn received(&mut self, len_bytes: usize) -> Result<&mut [u8], Broken> {
        let rest = self.end - self.start;
        if rest > REST_BYTES_MAX || self.is_broken {
            return Err(self.broken());
        }
        if self.incoming.len() - self.end < len_bytes {
            self.incoming.copy_within(self.start..self.end, 0);
            self.shown -= self.start;
            self.allowed = self.allowed.saturating_sub(self.start);
            (self.start, self.end) = (0, rest);
        }
        self.end += len_bytes;
        Ok(&mut self.incoming[self.end - len_bytes..self.end])
    }

    /// True if nothing can be opened before more was received.
    pub(crate) fn is_drained(&self) -> bool {
        self.shown == self.end
    }

    /// Opens the next record and gives its plaintext, at most [`RECORD_BYTES_MAX`], to `sink`.
    ///
    /// # Errors
    /// If the peer broke the protocol, or its certificate is not one we trust.
    pub(crate) fn open(&mut self, mut sink: impl FnMut(&[u8])) -> Result<Opened, Broken> {
        loop {
            if self.is_broken {
                return Err(Broken);
            }
            if self.owed.len() > OWED_BYTES_MAX {
                return Ok(Opened::MustSend);
            }
            let opened = match &mut self.layer {
                Layer::Rustls(_) => self.open_by_rustls(&mut sink),
                Layer::Ours(records) => {
                    let bytes = &mut self.incoming[self.start..self.end];
                    match records.open(bytes) {
                        Ok(None) => Ok(Some(Opened::NeedMore)),
                        Ok(Some((len, content))) => {
                            let opened = match content {
                                Content::Plain(plain) => {
                                    sink(plain);
                                    Some(Opened::Record)
                                }
                                Content::Nothing => None,
                                Content::Ended => Some(Opened::Ended),
                            };
                            self.start += len;
                            self.shown = self.start;
                            Ok(opened)
                        }
                        Err(alert) => {
                            records.alert(alert, &mut self.owed);
                            Err(Broken)
                        }
                    }
                }
                Layer::Nobody => Err(Broken),
            };
            match opened {
                Ok(None) => {}
                Ok(Some(Opened::NeedMore)) => {
                    self.shown = self.end;
                    return Ok(Opened::NeedMore);
                }
                Ok(Some(opened)) => return Ok(opened),
                Err(Broken) => return Err(self.broken()),
            }
        }
    }

    /// Writes what is owed and records of as much of `plain` as fits into `out`. Returns how many
    /// bytes were written there, and how many of `plain` are in them.
    ///
    /// # Errors
    /// If the keys are used up and cannot be changed.
    pub(crate) fn seal(
        &mut self,
        plain: Option<&Payload>,
        out: &mut [u8],
    ) -> Result<(usize, usize), Broken> {
        let mut written = self.give_owed(out);
        let Some(plain) = plain else { return Ok((written, 0)) };
        let plain_bytes = plain.len_bytes() as usize;
        let mut sealed = 0;
        while sealed < plain_bytes && self.owed.is_empty() && !self.is_broken {
            let len = RECORD_BYTES_MAX.min(plain_bytes - sealed);
            if out.len() - written < Records::room_for(len) {
                break;
            }
            match &mut self.layer {
                Layer::Rustls(_) => {
                    let (bytes, plain_bytes) =
                        self.seal_by_rustls(plain, sealed, &mut out[written..])?;
                    let bytes = bytes + self.give_owed(&mut out[written + bytes..]);
                    written += bytes;
                    sealed += plain_bytes;
                    if bytes == 0 {
                        break;
                    }
                }
                Layer::Ours(records) => {
                    let room = &mut out[written..];
                    match records.seal(len, room, |place| plain.copy_out(sealed as u64, place)) {
                        Ok(bytes) => written += bytes,
                        Err(Broken) => return Err(self.broken()),
                    }
                    sealed += len;
                }
                Layer::Nobody => return Err(self.broken()),
            }
        }
        Ok((written, sealed))
    }

    /// Says that nothing more comes from us; the bytes of that are owed then.
    pub(crate) fn close(&mut self) {
        match &mut self.layer {
            Layer::Rustls(_) => self.close_by_rustls(),
            Layer::Ours(records) => records.close(&mut self.owed),
            Layer::Nobody => {}
        }
    }

    /// Moves what is owed to `out`; how much that was.
    fn give_owed(&mut self, out: &mut [u8]) -> usize {
        let len = self.owed.len().min(out.len());
        out[..len].copy_from_slice(&self.owed[..len]);
        self.owed.drain(..len);
        len
    }

    /// True if there is something to say that no reply depends on.
    pub(crate) fn owes(&self) -> bool {
        !self.owed.is_empty()
    }

    /// What it keeps; bounded whatever a client does.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.incoming.len() + self.owed.capacity() + self.plain.len()
    }

    /// Ends the channel; the alert for the client is owed then.
    pub(super) fn broken(&mut self) -> Broken {
        if !std::mem::replace(&mut self.is_broken, true) {
            self.take_alert_of_rustls();
        }
        Broken
    }
}
