//! TLS for NBD connections: STARTTLS in the handshake, then everything through `rustls`.
//!
//! - [`credentials`]: certificates and keys from a directory, before anybody connects.
//! - `channel`: the records of one connection, without I/O.
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

mod channel;
pub mod credentials;

pub(super) use channel::{Broken, Channel, Opened, RECEIVE_BYTES_MAX, RECORD_BYTES_MAX};

use super::negotiate::TlsPolicy;
use rustls::ServerConfig;
use std::fmt;
use std::sync::Arc;

/// How a listener speaks TLS.
#[derive(Clone)]
pub struct TlsSettings {
    config: Arc<ServerConfig>,
    is_required: bool,
}

impl TlsSettings {
    /// TLS with this configuration; `is_required`: clients that do not use it are refused.
    pub fn new(config: Arc<ServerConfig>, is_required: bool) -> TlsSettings {
        TlsSettings { config, is_required }
    }

    /// A channel for a connection.
    pub(super) fn channel(&self) -> Result<Channel, Broken> {
        Channel::new(Arc::clone(&self.config))
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

impl fmt::Debug for TlsSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TlsSettings(required: {})", self.is_required)
    }
}
