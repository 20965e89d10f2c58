//! Where an export listens, as users write it and as clients type it.
//!
//! Users write `unix:PATH`, `tcp:HOST:PORT` or `fd:NUMBER`; clients get an NBD URI. Names and paths
//! in a URI are percent-encoded, since a device may be called `my disk?`.
//!
//! The tricky case is a relative socket path: the URI must work from any directory, so it holds the
//! absolute path, while the socket is bound by the path given, which may be much shorter (the
//! system allows 107 bytes).

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use udm_core::error::{ErrorCode, UserError};

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// A TCP host and port, not yet looked up.
    Tcp(String, u16),
    /// A listening socket that was passed to this process: its number or name.
    Passed(String),
}

impl Address {
    /// Parses what a user wrote.
    ///
    /// # Errors
    /// `BadAddress`.
    pub(super) fn parse(text: &str) -> Result<Address, UserError> {
        let bad = |what: &str| {
            UserError::new(ErrorCode::BadAddress, format!("'{text}': {what}"))
                .hint("write unix:PATH, tcp:HOST:PORT or fd:NUMBER")
        };
        match text.split_once(':') {
            Some(("unix", "")) => Err(bad("the path is missing")),
            Some(("unix", path)) => Ok(Address::Unix(PathBuf::from(path))),
            Some(("tcp", rest)) => {
                let (host, port) =
                    rest.rsplit_once(':').ok_or_else(|| bad("the port is missing"))?;
                let port = port.parse().map_err(|_| bad("the port is a number up to 65535"))?;
                let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
                let host = bare.unwrap_or(host);
                if host.is_empty() {
                    return Err(bad("the host is missing"));
                }
                Ok(Address::Tcp(host.to_owned(), port))
            }
            Some(("fd", "")) => Err(bad("the number is missing")),
            Some(("fd", word)) => Ok(Address::Passed(word.to_owned())),
            _ => Err(bad("it begins with none of unix:, tcp: and fd:")),
        }
    }

    /// The socket address of a TCP host.
    ///
    /// # Errors
    /// `BadAddress` if the host is not known.
    pub(super) fn look_up(host: &str, port: u16) -> Result<SocketAddr, UserError> {
        let unknown = |what: String| {
            UserError::new(ErrorCode::BadAddress, format!("tcp:{host}:{port}: {what}"))
        };
        let mut found =
            (host, port).to_socket_addrs().map_err(|error| unknown(error.to_string()))?;
        found.next().ok_or_else(|| unknown("the host has no address".to_owned()))
    }

    /// What clients type for the export of this name; `is_secured`: it speaks TLS.
    pub(super) fn uri(&self, export: &str, is_secured: bool) -> String {
        let name = encode(export);
        let scheme = if is_secured { "nbds" } else { "nbd" };
        match self {
            Address::Unix(path) => {
                let absolute = std::path::absolute(path).unwrap_or_else(|_| path.clone());
                format!("{scheme}+unix:///{name}?socket={}", encode(&shown(&absolute)))
            }
            Address::Tcp(host, port) if host.contains(':') => {
                format!("{scheme}://[{host}]:{port}/{name}")
            }
            Address::Tcp(host, port) => format!("{scheme}://{host}:{port}/{name}"),
            Address::Passed(_) => format!("{scheme}:///{name}"),
        }
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Tcp(host, port) if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Address::Tcp(host, port) => write!(f, "tcp:{host}:{port}"),
            Address::Passed(word) => write!(f, "fd:{word}"),
        }
    }
}

/// Percent-encodes all but letters, digits and what is harmless everywhere in a URI.
fn encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded += &format!("%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::Address;
    use std::path::PathBuf;

    #[test]
    fn addresses_parse_and_print_back() {
        for text in ["unix:/run/a.sock", "tcp:localhost:10809", "tcp:[::1]:0", "fd:3", "fd:disk"] {
            assert_eq!(Address::parse(text).expect("good").to_string(), text);
        }
        for text in [
            "",
            "unix:",
            "fd:",
            "tcp:",
            "tcp:host",
            "tcp::1",
            "tcp:host:70000",
            "/run/a",
            "vsock:1",
        ] {
            assert!(Address::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn uris_encode_what_would_end_a_part() {
        let unix = Address::Unix(PathBuf::from("/run/a b.sock"));
        assert_eq!(unix.uri("my disk?", false), "nbd+unix:///my%20disk%3F?socket=/run/a%20b.sock");
        let six = Address::Tcp("::1".into(), 10809);
        assert_eq!(six.uri("d", true), "nbds://[::1]:10809/d");
    }
}
