//! How an NBD export speaks TLS: one object in calls, in `up` files and in the state file.
//!
//! What the directory has to hold is the daemon's business; it is read by the daemon, so a path is
//! absolute in calls and in the state file.
//!
//! The tricky case is `required`, which is true if it is left out: who names certificates wants no
//! client without them.

use serde::{Deserialize, Serialize};

/// TLS for an NBD export.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The directory with the server's certificate and key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificates: Option<String>,
    /// The file of pre-shared keys; instead of certificates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub psk: Option<String>,
    /// Clients without TLS are refused; true if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub required: Option<bool>,
    /// Clients have to show a certificate, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify_peer: Option<bool>,
}
