//! The name of an NBD export in a table: `nbd://HOST[:PORT]/EXPORT?...`,
//! `nbd+unix:///EXPORT?socket=PATH&...`.
//!
//! Pure. The form is that of the NBD URI standard; whatever would end a word of a table (a space)
//! or a part of the name is written as a percent escape. Our own wishes stand beside `socket=` as
//! further options.
//!
//! Rules. A name says everything or is refused: options unknown, written twice or out of range are
//! errors that name the option and what it takes. Two names are the same device if what they say
//! is equal ([`NbdName::key`]), however it was written.
//!
//! The tricky case is the slash: the one after the host ends the host and is no part of the
//! export's name, a second one is.

use crate::name::shorten;
use udm_core::{ErrorCode, ErrorKind, UserError};
use udm_types::Nanos;

/// The port of NBD.
const PORT_DEFAULT: u16 = 10809;
/// Longest path of a unix socket: the kernel's address holds 108 bytes with a final NUL.
const SOCKET_LEN_BYTES_MAX: usize = 107;
/// Longest export name the protocol takes.
const EXPORT_LEN_BYTES_MAX: usize = 4096;
/// Most connections of one lane: more than one is for servers that serve a connection with one
/// thread, and none has more of these than a machine has cores.
const CONNECTIONS_MAX: u64 = 16;
/// The largest span an option takes: a day.
const SPAN_MS_MAX: u64 = 24 * 3600 * 1000;

/// A parsed name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NbdName {
    /// Where the server is.
    pub(super) server: Server,
    /// The export; empty for the server's default.
    pub(super) export: String,
    /// What else was said.
    pub(super) options: NbdOptions,
}

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Server {
    /// An absolute path.
    Unix(String),
    /// A name or address, and a port.
    Tcp(String, u16),
}

/// How to treat the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NbdOptions {
    /// Connections of each lane.
    pub(super) connections: u16,
    /// How long a request may take; zero for ever.
    pub(super) timeout: Nanos,
    /// The first pause between attempts to connect.
    pub(super) retry_min: Nanos,
    /// The longest pause.
    pub(super) retry_max: Nanos,
}

impl Default for NbdOptions {
    fn default() -> Self {
        NbdOptions {
            connections: 1,
            timeout: Nanos::from_secs(30),
            retry_min: Nanos::from_millis(100),
            retry_max: Nanos::from_secs(10),
        }
    }
}

/// True if a word of a table means to be the name of an NBD export.
pub(crate) fn is_nbd(text: &str) -> bool {
    text.split_once("://").is_some_and(|(scheme, _)| scheme.starts_with("nbd"))
}

impl NbdName {
    /// Parses a name.
    ///
    /// # Errors
    /// Says which part is wrong, and what stands there instead.
    pub(crate) fn parse(text: &str) -> Result<NbdName, UserError> {
        NbdName::parse_parts(text).map_err(|(what, hint)| {
            UserError::new(ErrorCode::BadArgument, format!("{}: {what}", shorten(text))).hint(hint)
        })
    }

    fn parse_parts(text: &str) -> Result<NbdName, Wrong> {
        let (scheme, rest) = text.split_once("://").ok_or(wrong("not an NBD name", FORMS))?;
        if rest.contains('#') {
            return Err(wrong("an NBD name has no '#' part", "write %23 for a '#' in a name"));
        }
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = place.split_once('/').unwrap_or((place, ""));
        let export = decode(path, "the export")?;
        if export.len() > EXPORT_LEN_BYTES_MAX {
            return Err(wrong("the export's name is longer than 4096 bytes", FORMS));
        }
        let (options, socket) = parse_query(query)?;
        let server = match (scheme, socket) {
            ("nbd", None) => parse_authority(authority)?,
            ("nbd", Some(_)) => {
                return Err(wrong("socket= is for nbd+unix://", FORMS));
            }
            ("nbd+unix", _) if !authority.is_empty() => {
                let what = "nbd+unix:// is followed by a third slash, not by a host";
                return Err(wrong(what, FORMS));
            }
            ("nbd+unix", None) => return Err(wrong("the option socket=PATH is missing", FORMS)),
            ("nbd+unix", Some(path)) => Server::Unix(check_socket(path)?),
            ("nbds" | "nbds+unix", _) => {
                return Err(wrong("connections with TLS are not supported", FORMS));
            }
            _ => {
                let what = format!("the scheme {scheme}:// is not supported");
                return Err((what, FORMS.to_owned()));
            }
        };
        Ok(NbdName { server, export, options })
    }

    /// Equal for names that mean the same.
    pub(crate) fn key(&self) -> String {
        format!("{:?} {:?} {:?}", self.server, self.export, self.options)
    }
}

/// What is wrong, and what would be right.
type Wrong = (String, String);

const FORMS: &str = "write nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH";

fn wrong(what: &str, hint: &str) -> Wrong {
    (what.to_owned(), hint.to_owned())
}

fn parse_authority(text: &str) -> Result<Server, Wrong> {
    if text.contains('@') {
        return Err(wrong("a user name before the host is not supported", FORMS));
    }
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let unclosed = || wrong("the address in brackets has no ']'", FORMS);
            let (host, after) = rest.split_once(']').ok_or_else(unclosed)?;
            match after.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if after.is_empty() => (host, None),
                None => return Err(wrong("after ']' comes ':' and a port", FORMS)),
            }
        }
        None => match text.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                let hint = "write nbd://[::1]:10809/EXPORT";
                return Err(wrong("an IPv6 address stands in brackets", hint));
            }
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let host = decode(host, "the host")?;
    if host.is_empty() {
        return Err(wrong("the host is missing", FORMS));
    }
    let port = match port {
        None | Some("") => PORT_DEFAULT,
        Some(port) => match port.parse() {
            Ok(port) if port != 0 => port,
            _ => {
                let what = format!("'{}' is not a port (1 to 65535)", shorten(port));
                return Err((what, FORMS.to_owned()));
            }
        },
    };
    Ok(Server::Tcp(host, port))
}

fn check_socket(path: String) -> Result<String, Wrong> {
    if !path.starts_with('/') {
        let hint = "write the path from / on: the daemon's working directory is not yours";
        return Err(wrong("the path of the socket is not absolute", hint));
    }
    if path.len() > SOCKET_LEN_BYTES_MAX {
        let what = format!("the path of the socket has {} bytes, 107 are possible", path.len());
        return Err((what, "make a symbolic link to its folder with a shorter path".to_owned()));
    }
    Ok(path)
}

/// The options, and the socket's path if there is one.
fn parse_query(query: &str) -> Result<(NbdOptions, Option<String>), Wrong> {
    let (mut options, mut socket) = (NbdOptions::default(), None);
    let mut seen: Vec<&str> = Vec::new();
    for part in query.split('&').filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        if seen.contains(&name) {
            return Err(wrong(&format!("{name}= is written twice"), "leave one of them out"));
        }
        seen.push(name);
        match name {
            "socket" => socket = Some(decode(value, "the path of the socket")?),
            "connections" => {
                options.connections = match value.parse::<u64>() {
                    Ok(count) if (1..=CONNECTIONS_MAX).contains(&count) => count as u16,
                    _ => return Err(bad_value(name, value, "a number from 1 to 16")),
                };
            }
            "timeout" => {
                let expected = "seconds, up to 86400, 0 for no limit";
                let span = parse_span(value).ok_or_else(|| bad_value(name, value, expected))?;
                options.timeout = span;
            }
            "reconnect" => {
                let expected = "the shortest and the longest pause in seconds, like 0.1-10";
                let bad = || bad_value(name, value, expected);
                let (min, max) = value.split_once('-').ok_or_else(bad)?;
                let (min, max) = (parse_span(min).ok_or_else(bad)?, parse_span(max));
                let max = max.ok_or_else(bad)?;
                if min == Nanos::ZERO || max < min {
                    return Err(bad());
                }
                (options.retry_min, options.retry_max) = (min, max);
            }
            _ => {
                let what = format!("the option '{}' is not known", shorten(name));
                let hint = "there are socket=, connections=, timeout= and reconnect=";
                return Err((what, hint.to_owned()));
            }
        }
    }
    Ok((options, socket))
}

fn bad_value(name: &str, value: &str, expected: &str) -> Wrong {
    let what = format!("{name}= takes {expected}, found '{}'", shorten(value));
    (what, format!("leave {name}= out for the usual value"))
}

/// Seconds with up to three digits after the point.
fn parse_span(text: &str) -> Option<Nanos> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| {
        (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then_some(())
    };
    digits(whole)?;
    digits(fraction)?;
    let whole_ms = whole.parse::<u64>().ok()?.checked_mul(1000)?;
    let fraction_ms = format!("{fraction:0<3}").parse::<u64>().ok()?;
    let span_ms = (fraction.len() <= 3).then_some(whole_ms + fraction_ms)?;
    (span_ms <= SPAN_MS_MAX).then_some(Nanos::from_millis(span_ms))
}

/// Undoes percent escapes.
fn decode(text: &str, what: &str) -> Result<String, Wrong> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first != b'%' {
            bytes.push(first);
            rest = tail;
            continue;
        }
        let digit = |at: usize| tail.get(at).and_then(|&byte| char::from(byte).to_digit(16));
        let (Some(high), Some(low)) = (digit(0), digit(1)) else {
            let hint = "write %25 for a percent sign";
            return Err(wrong(&format!("{what} has a '%' without two hex digits"), hint));
        };
        // Two hex digits fit a byte.
        bytes.push((high * 16 + low) as u8);
        rest = &tail[2..];
    }
    if bytes.contains(&0) {
        return Err(wrong(&format!("{what} contains a NUL byte"), FORMS));
    }
    String::from_utf8(bytes).map_err(|_| wrong(&format!("{what} is not valid UTF-8"), FORMS))
}

/// An error for a name that is fine, but whose server is not to be had.
pub(super) fn unreachable(shown: &str, reason: &str, kind: ErrorKind) -> UserError {
    let text = format!("{}: {reason}", shorten(shown));
    UserError::new(ErrorCode::DeviceOpen, text).of_kind(kind)
}

#[cfg(test)]
mod tests {
    use super::{NbdName, NbdOptions, Server, is_nbd};
    use udm_core::ErrorCode;
    use udm_types::Nanos;

    fn name(text: &str) -> NbdName {
        NbdName::parse(text).unwrap_or_else(|error| panic!("{text}: {}", error.message()))
    }

    #[test]
    fn every_form_of_a_name_parses() {
        let tcp = |host: &str, port| Server::Tcp(host.to_owned(), port);
        for (text, server, export) in [
            ("nbd://localhost", tcp("localhost", 10809), ""),
            ("nbd://localhost/", tcp("localhost", 10809), ""),
            ("nbd://localhost:/a", tcp("localhost", 10809), "a"),
            ("nbd://10.0.0.1:99/a/b", tcp("10.0.0.1", 99), "a/b"),
            ("nbd://[::1]/x", tcp("::1", 10809), "x"),
            ("nbd://[fe80::1%25eth0]:7/x", tcp("fe80::1%eth0", 7), "x"),
            ("nbd://h//x%20y%2F", tcp("h", 10809), "/x y/"),
            ("nbd+unix:///e?socket=/run/s", Server::Unix("/run/s".into()), "e"),
            ("nbd+unix://?socket=/run/s", Server::Unix("/run/s".into()), ""),
            ("nbd+unix:///?socket=/a%26b%20c/s", Server::Unix("/a&b c/s".into()), ""),
        ] {
            let parsed = name(text);
            assert_eq!((parsed.server, parsed.export.as_str()), (server, export), "{text}");
            assert_eq!(parsed.options, NbdOptions::default());
            assert!(is_nbd(text));
        }
        for text in ["/nbd://x", "nbd.img", "mem:1M", "file:/nbd"] {
            assert!(!is_nbd(text), "{text}");
        }
    }

    #[test]
    fn options_are_read_and_make_a_different_device() {
        let text = "nbd://h/e?connections=4&timeout=2.5&reconnect=0.02-1";
        let parsed = name(text);
        let expected = NbdOptions {
            connections: 4,
            timeout: Nanos::from_millis(2500),
            retry_min: Nanos::from_millis(20),
            retry_max: Nanos::from_secs(1),
        };
        assert_eq!(parsed.options, expected);
        assert_eq!(name("nbd://h/e?timeout=0").options.timeout, Nanos::ZERO);
        assert_ne!(parsed.key(), name("nbd://h/e").key());
        assert_eq!(name("nbd://h:10809/%65?timeout=30").key(), name("nbd://h/e").key());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, part) in [
            ("nbd+unix:///e", "socket=PATH is missing"),
            ("nbd+unix:///e?socket=run/s", "not absolute"),
            ("nbd+unix://host/e?socket=/s", "third slash"),
            ("nbd://h/e?socket=/s", "nbd+unix://"),
            ("nbd:///e", "host is missing"),
            ("nbd://h:0/e", "'0' is not a port"),
            ("nbd://h:99999/e", "not a port"),
            ("nbd://::1/e", "brackets"),
            ("nbd://[::1/e", "no ']'"),
            ("nbd://u@h/e", "user name"),
            ("nbds://h/e", "TLS"),
            ("nbd+vsock://2/e", "nbd+vsock:// is not supported"),
            ("nbd://h/e#x", "'#'"),
            ("nbd://h/%", "two hex digits"),
            ("nbd://h/%4", "two hex digits"),
            ("nbd://h/%00", "NUL"),
            ("nbd://h/%ff", "UTF-8"),
            ("nbd://h/e?connections=0", "1 to 16, found '0'"),
            ("nbd://h/e?connections=17", "1 to 16"),
            ("nbd://h/e?timeout=", "seconds"),
            ("nbd://h/e?timeout=-1", "seconds"),
            ("nbd://h/e?timeout=1.2345", "seconds"),
            ("nbd://h/e?timeout=99999999999999999999", "seconds"),
            ("nbd://h/e?reconnect=5", "shortest and the longest"),
            ("nbd://h/e?reconnect=0-1", "shortest and the longest"),
            ("nbd://h/e?reconnect=5-1", "shortest and the longest"),
            ("nbd://h/e?timeout=1&timeout=2", "timeout= is written twice"),
            ("nbd://h/e?tls=on", "'tls' is not known"),
        ] {
            let error = NbdName::parse(text).expect_err(text);
            assert_eq!(error.code(), ErrorCode::BadArgument);
            assert!(error.message().contains(part), "{text}: {}", error.message());
            assert!(!error.hint_text().is_empty(), "{text}");
        }
        let long = format!("nbd+unix:///?socket=/{}", "s".repeat(107));
        let error = NbdName::parse(&long).expect_err("too long for the kernel");
        assert!(error.message().contains("108 bytes"), "{}", error.message());
    }
}
