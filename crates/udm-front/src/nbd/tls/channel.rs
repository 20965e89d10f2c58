//! The TLS records of one connection: ciphertext in, plaintext out, and the other way round.
//!
//! Used by the connection with bytes it has received and memory it is about to send; nothing here
//! touches a socket, waits or grows. It stands on the unbuffered interface of rustls, which works
//! on slices we own.
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

use rustls::ServerConfig;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus,
};
use std::sync::Arc;
use udm_lane::Payload;

/// Plaintext of the longest record.
pub(crate) const RECORD_BYTES_MAX: usize = 16 << 10;

/// What a record needs beyond its plaintext, with a change of keys in front of it; generously.
const OVERHEAD_BYTES: usize = 256;

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

/// One connection's TLS.
pub(crate) struct Channel {
    tls: UnbufferedServerConnection,
    incoming: Vec<u8>,
    start: usize,
    end: usize,
    /// Up to here rustls has looked and found no whole record.
    shown: usize,
    owed: Vec<u8>,
    /// Plaintext on its way into a record, since replies lie in several pieces.
    plain: Vec<u8>,
    is_broken: bool,
}

impl Channel {
    /// A channel whose handshake the client begins.
    ///
    /// # Errors
    /// If the configuration is not one for servers without a transport of their own.
    pub(crate) fn new(config: Arc<ServerConfig>) -> Result<Channel, Broken> {
        Ok(Channel {
            tls: UnbufferedServerConnection::new(config).map_err(|_| Broken)?,
            incoming: vec![0; RECEIVE_BYTES_MAX + REST_BYTES_MAX],
            start: 0,
            end: 0,
            shown: 0,
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
            let UnbufferedStatus { mut discard, state } =
                self.tls.process_tls_records(&mut self.incoming[self.start..self.end]);
            let opened = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        // An error cannot be here: this interface has opened the record already.
                        let Ok(record) = record else { break };
                        sink(record.payload);
                        discard += record.discard;
                    }
                    Some(Ok(Opened::Record))
                }
                Ok(ConnectionState::EncodeTlsData(data)) => {
                    take_owed(data, &mut self.owed);
                    None
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    data.done();
                    None
                }
                Ok(ConnectionState::WriteTraffic(_) | ConnectionState::BlockedHandshake) => {
                    Some(Ok(Opened::NeedMore))
                }
                Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => {
                    Some(Ok(Opened::Ended))
                }
                // Early data, which we do not offer, or what a later rustls may add.
                Ok(_) | Err(_) => Some(Err(Broken)),
            };
            self.start += discard;
            self.shown = self.start;
            match opened {
                None => {}
                Some(Ok(Opened::NeedMore)) => {
                    self.shown = self.end;
                    return Ok(Opened::NeedMore);
                }
                Some(Ok(opened)) => return Ok(opened),
                Some(Err(Broken)) => return Err(self.broken()),
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
        let plain_bytes = plain.map_or(0, |plain| plain.len_bytes() as usize);
        let mut sealed = 0;
        while sealed < plain_bytes && self.owed.is_empty() && !self.is_broken {
            let shown = self.start..self.shown;
            let UnbufferedStatus { discard, state } =
                self.tls.process_tls_records(&mut self.incoming[shown]);
            let mut went_on = true;
            let sealing = match state {
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    let mut sealing = Ok(());
                    while let Some(plain) = plain
                        && sealed < plain_bytes
                        && out.len() - written >= RECORD_BYTES_MAX + OVERHEAD_BYTES
                    {
                        let len = RECORD_BYTES_MAX.min(plain_bytes - sealed);
                        let record = &mut self.plain[..len];
                        plain.copy_out(sealed as u64, record);
                        match traffic.encrypt(record, &mut out[written..]) {
                            Ok(len_bytes) => written += len_bytes,
                            Err(EncryptError::InsufficientSize(_)) => break,
                            Err(EncryptError::EncryptExhausted) => {
                                sealing = Err(Broken);
                                break;
                            }
                        }
                        sealed += len;
                    }
                    went_on = false;
                    sealing
                }
                Ok(ConnectionState::EncodeTlsData(data)) => {
                    take_owed(data, &mut self.owed);
                    Ok(())
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    data.done();
                    Ok(())
                }
                // The handshake is not over, or the connection is.
                Ok(_) => {
                    went_on = false;
                    Ok(())
                }
                Err(_) => Err(Broken),
            };
            self.start += discard;
            self.shown = self.shown.max(self.start);
            if sealing.is_err() {
                return Err(self.broken());
            }
            written += self.give_owed(&mut out[written..]);
            if !went_on {
                break;
            }
        }
        Ok((written, sealed))
    }

    /// Says that nothing more comes from us; the bytes of that are owed then.
    pub(crate) fn close(&mut self) {
        let shown = self.start..self.shown;
        let UnbufferedStatus { discard, state } =
            self.tls.process_tls_records(&mut self.incoming[shown]);
        if let Ok(ConnectionState::WriteTraffic(mut traffic)) = state {
            let mut notify = [0; OVERHEAD_BYTES];
            if let Ok(len) = traffic.queue_close_notify(&mut notify) {
                self.owed.extend_from_slice(&notify[..len]);
            }
        }
        self.start += discard;
        self.shown = self.shown.max(self.start);
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

    /// Ends the channel; the alert that rustls has for the client is owed then.
    fn broken(&mut self) -> Broken {
        if self.is_broken {
            return Broken;
        }
        self.is_broken = true;
        // Asked once more than it has something to say, rustls would look at its input again.
        while self.tls.wants_write() {
            let rest = self.start..self.end;
            let status = self.tls.process_tls_records(&mut self.incoming[rest]);
            let Ok(ConnectionState::EncodeTlsData(data)) = status.state else { break };
            take_owed(data, &mut self.owed);
        }
        Broken
    }
}

/// Appends a message of rustls to what is owed.
fn take_owed<Data>(mut data: EncodeTlsData<'_, Data>, owed: &mut Vec<u8>) {
    let start = owed.len();
    // It says how long it is when asked with too little room.
    if let Err(EncodeError::InsufficientSize(wanted)) = data.encode(&mut []) {
        owed.resize(start + wanted.required_size, 0);
        if data.encode(&mut owed[start..]).is_err() {
            owed.truncate(start);
        }
    }
}
