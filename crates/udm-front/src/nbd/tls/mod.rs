//! TLS for NBD connections: STARTTLS in the handshake, then everything through a TLS library.
//!
//! - [`credentials`]: certificates and keys from a directory, before anybody connects.
//! - `channel`: the records of one connection, without I/O: `by_rustls` the handshake and TLS 1.2,
//!   `records` what comes after it in 1.3.
//! - [`keys`]: the same with pre-shared keys, which rustls does not have, by s2n-tls; `pipes` is
//!   the memory between it and the socket.
//!
//! The connection keeps its socket operations; it receives ciphertext instead of requests, and
//! sends records made from the replies that the outbox has gathered. There are no threads and no
//! waiting in here; what a peer can make us hold is bounded by the channel's two buffers.
//!
//! TLS 1.3 is spoken, and 1.2 with ChaCha20-Poly1305 alone: 1.2 cannot change its keys in a running
//! connection, so one with AES-GCM would have to end after 2^24 records, a few minutes of small
//! requests, which no NBD client expects. nbd-client knows nothing newer.
//!
//! The tricky case is the change from plain to encrypted: bytes that came *before* the client knew
//! our answer to STARTTLS are somebody's injection, never requests (CVE-2021-3716 elsewhere); so
//! the handshake starts over after it, and anything left unread ends the connection.

mod by_rustls;
mod channel;
pub mod credentials;
#[cfg(feature = "tls-psk")]
pub mod keys;
#[cfg(feature = "tls-psk")]
pub(super) mod pipes;
mod records;

pub(super) use channel::{Broken, Opened, RECEIVE_BYTES_MAX, RECORD_BYTES_MAX};

use super::negotiate::TlsPolicy;
use rustls::ServerConfig;
use std::fmt;
use std::sync::Arc;
use udm_lane::Payload;

/// How a listener speaks TLS.
#[derive(Clone)]
pub struct TlsSettings {
    trust: Trust,
    is_required: bool,
}

/// What tells the two sides that they may trust each other.
#[derive(Clone)]
enum Trust {
    Certificates(Arc<ServerConfig>),
    #[cfg(feature = "tls-psk")]
    Keys(Arc<keys::SharedKeys>),
}

impl TlsSettings {
    /// TLS with this configuration; `is_required`: clients that do not use it are refused.
    pub fn new(config: Arc<ServerConfig>, is_required: bool) -> TlsSettings {
        TlsSettings { trust: Trust::Certificates(config), is_required }
    }

    /// TLS with pre-shared keys instead of certificates.
    #[cfg(feature = "tls-psk")]
    pub fn with_keys(keys: keys::SharedKeys, is_required: bool) -> TlsSettings {
        TlsSettings { trust: Trust::Keys(Arc::new(keys)), is_required }
    }

    /// A channel for a connection.
    pub(super) fn channel(&self) -> Result<Channel, Broken> {
        match &self.trust {
            Trust::Certificates(config) => {
                let channel = channel::Channel::new(Arc::clone(config))?;
                Ok(Channel::Certificates(Box::new(channel)))
            }
            #[cfg(feature = "tls-psk")]
            Trust::Keys(keys) => keys::KeyChannel::new(keys).map(Channel::Keys),
        }
    }

    /// What the handshake does about it.
    pub(super) fn policy(settings: Option<&TlsSettings>) -> TlsPolicy {
        match settings {
            None => TlsPolicy::Off,
            Some(TlsSettings { is_required: false, .. }) => TlsPolicy::Allowed,
            Some(TlsSettings { is_required: true, .. }) => TlsPolicy::Required,
        }
    }
}

/// One connection's TLS, in either way. What the calls mean is in `channel`.
pub(super) enum Channel {
    Certificates(Box<channel::Channel>),
    #[cfg(feature = "tls-psk")]
    Keys(keys::KeyChannel),
}

/// Hands a call on to whichever it is.
macro_rules! either {
    ($channel:expr, $way:ident => $call:expr) => {
        match $channel {
            Channel::Certificates($way) => $call,
            #[cfg(feature = "tls-psk")]
            Channel::Keys($way) => $call,
        }
    };
}

impl Channel {
    pub(super) fn received(&mut self, len_bytes: usize) -> Result<&mut [u8], Broken> {
        either!(self, way => way.received(len_bytes))
    }

    pub(super) fn is_drained(&self) -> bool {
        either!(self, way => way.is_drained())
    }

    pub(super) fn open(&mut self, sink: impl FnMut(&[u8])) -> Result<Opened, Broken> {
        either!(self, way => way.open(sink))
    }

    pub(super) fn seal(
        &mut self,
        plain: Option<&Payload>,
        out: &mut [u8],
    ) -> Result<(usize, usize), Broken> {
        either!(self, way => way.seal(plain, out))
    }

    pub(super) fn close(&mut self) {
        either!(self, way => way.close());
    }

    pub(super) fn owes(&self) -> bool {
        either!(self, way => way.owes())
    }

    /// What it keeps, without what s2n-tls does.
    pub(super) fn memory_bytes(&self) -> usize {
        either!(self, way => way.memory_bytes())
    }
}

impl fmt::Debug for TlsSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TlsSettings(required: {})", self.is_required)
    }
}
