//! Pre-shared keys: who may connect, by name and secret, without certificates.
//!
//! ```text
//! alice:d543770c15ad93d76d3c2a4d35c4c0ab     a line for each; the secret is hex
//! ```
//!
//! The file is the one that nbdkit takes and GnuTLS's `psktool` writes. [`SharedKeys`] is read
//! once, when an export starts; a [`KeyChannel`] is one connection's records, with the interface of
//! `channel.rs`. TLS 1.3 only, with an exchange of keys of the moment, so that a secret that is
//! stolen later opens nothing that was said before.
//!
//! It stands on s2n-tls because rustls has no pre-shared keys of others' making (0.23). Rules are
//! those of `channel.rs`: one record at a time, nothing waits, nothing grows beyond its bound.
//!
//! The tricky case is a client that fails: s2n-tls wants a pause of seconds before it says why,
//! against attackers who measure time, which the suites of TLS 1.3 give nothing to measure. We do
//! not wait: the connection ends without an alert.

use super::credentials::{OTHERS, read, unreadable, wrong};
use super::pipes::Piped;
use super::{Broken, Opened, RECEIVE_BYTES_MAX, RECORD_BYTES_MAX};
use s2n_tls::config::{self, Config};
use s2n_tls::connection::Connection;
use s2n_tls::enums::{Blinding, PskHmac};
use s2n_tls::error::Error;
use s2n_tls::psk::{self, Psk};
use s2n_tls::security::Policy;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::task::Poll;
use udm_core::error::UserError;
use udm_lane::Payload;

/// Clients of one export. Each connection carries all keys until its handshake is over.
const KEYS_MAX: usize = 256;

/// Shorter secrets can be guessed (RFC 9257).
const SECRET_BYTES_MIN: usize = 16;

/// AES-GCM and ChaCha20-Poly1305, P-256 and others; a numbered policy never changes. Whatever it
/// knows of TLS 1.2, which has no such keys, leads nowhere.
const POLICY: &str = "20240503";

/// Room for a record beyond its plaintext.
const OVERHEAD_BYTES: usize = 256;

/// What may wait to be sent before we stop reading what the client says.
const OWED_BYTES_MAX: usize = 64 << 10;

/// The keys of an export.
#[derive(Debug)]
pub struct SharedKeys {
    config: Config,
    keys: Vec<Psk>,
}

impl SharedKeys {
    /// Reads a file of keys.
    ///
    /// # Errors
    /// `TlsFiles`, with the file, the line and what is wrong with it.
    pub fn load(path: &Path) -> Result<SharedKeys, UserError> {
        let bytes = read(path, |file| {
            let mode = file.metadata().map_err(|error| unreadable(path, &error))?.mode();
            if mode & OTHERS == 0 {
                return Ok(());
            }
            let what = format!("everybody may use these keys (mode {:03o})", mode & 0o777);
            Err(wrong(path, &what).hint(format!("chmod o= {}", path.display())))
        })?;
        SharedKeys::parse(path, &bytes)
    }

    /// Takes the keys from the text of a file, which is called `path` in errors.
    pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<SharedKeys, UserError> {
        let text = str::from_utf8(bytes).map_err(|_| wrong(path, "it is no text").hint(HINT))?;
        let lines = (1..).zip(text.lines().map(str::trim_end));
        let mut keys = Vec::new();
        let mut names = Vec::new();
        for (number, line) in lines.filter(|(_, line)| !(line.is_empty() || line.starts_with('#')))
        {
            let wrong = |what: &str| wrong(path, &format!("line {number}: {what}")).hint(HINT);
            let (name, secret) = line.split_once(':').ok_or_else(|| wrong("there is no ':'"))?;
            let secret = from_hex(secret).ok_or_else(|| wrong("the secret is not hex"))?;
            if name.is_empty() || names.contains(&name) {
                return Err(wrong("each client needs a name of its own"));
            }
            if secret.len() < SECRET_BYTES_MIN {
                return Err(wrong("the secret is shorter than 16 bytes (32 digits)"));
            }
            names.push(name);
            keys.push(key(name, &secret).map_err(|error| wrong(error.message()))?);
        }
        if keys.is_empty() || keys.len() > KEYS_MAX {
            let what = format!("{} keys are in it, and 1 to {KEYS_MAX} make sense", keys.len());
            return Err(wrong(path, &what).hint(HINT));
        }
        let config = configure().map_err(|error| wrong(path, error.message()))?;
        Ok(SharedKeys { config, keys })
    }
}

const HINT: &str = "a line is NAME:HEX; psktool -u NAME -p FILE makes one";

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()).collect()
}

fn key(name: &str, secret: &[u8]) -> Result<Psk, Error> {
    let mut key = psk::Builder::new()?;
    key.set_identity(name.as_bytes())?.set_secret(secret)?.set_hmac(PskHmac::SHA256)?;
    key.build()
}

fn configure() -> Result<Config, Error> {
    let mut config = config::Builder::new();
    config.set_security_policy(&Policy::from_version(POLICY)?)?;
    config.build()
}

/// The client's end: somebody who says this name and has this secret. For fuzzing and tests.
pub(crate) fn connect(name: &str, secret: &[u8]) -> Result<Piped, Error> {
    let mut tls = Connection::new_client();
    tls.set_config(configure()?)?;
    tls.set_blinding(Blinding::SelfService)?;
    tls.append_psk(&key(name, secret)?)?;
    Piped::new(tls)
}

/// One connection's TLS with pre-shared keys.
pub(crate) struct KeyChannel {
    tls: Piped,
    /// Plaintext on its way into or out of a record.
    plain: Vec<u8>,
    is_shaken: bool,
    is_broken: bool,
}

impl KeyChannel {
    /// A channel whose handshake the client begins.
    pub(crate) fn new(keys: &SharedKeys) -> Result<KeyChannel, Broken> {
        let connection = || {
            let mut tls = Connection::new_server();
            tls.set_config(keys.config.clone())?;
            tls.set_blinding(Blinding::SelfService)?.prefer_throughput()?;
            keys.keys.iter().try_for_each(|key| tls.append_psk(key))?;
            Piped::new(tls)
        };
        let mut tls = connection().map_err(|_| Broken)?;
        tls.pipes().incoming.reserve_exact(RECEIVE_BYTES_MAX);
        let plain = vec![0; RECORD_BYTES_MAX];
        Ok(KeyChannel { tls, plain, is_shaken: false, is_broken: false })
    }

    /// Where the next `len_bytes` of ciphertext go; they count as received. Only to be called
    /// after [`Opened::NeedMore`].
    pub(crate) fn received(&mut self, len_bytes: usize) -> Result<&mut [u8], Broken> {
        if self.is_broken {
            return Err(Broken);
        }
        let pipes = self.tls.pipes();
        // What is left of a record when there is no whole one is with the library already.
        debug_assert_eq!(pipes.start, pipes.incoming.len());
        pipes.start = 0;
        pipes.incoming.resize(len_bytes, 0);
        Ok(&mut pipes.incoming)
    }

    /// True if nothing can be opened before more was received.
    pub(crate) fn is_drained(&self) -> bool {
        let pipes = self.tls.look();
        pipes.start == pipes.incoming.len() && self.tls.state().peek_len() == 0
    }

    /// Opens the next record and gives its plaintext to `sink`.
    pub(crate) fn open(&mut self, mut sink: impl FnMut(&[u8])) -> Result<Opened, Broken> {
        if self.is_broken {
            return Err(Broken);
        }
        if self.tls.look().outgoing.len() > OWED_BYTES_MAX {
            return Ok(Opened::MustSend);
        }
        if !self.is_shaken {
            match self.tls.tls().poll_negotiate().map_ok(drop) {
                Poll::Pending => return Ok(Opened::NeedMore),
                Poll::Ready(Err(_)) => return Err(self.broken()),
                Poll::Ready(Ok(())) => self.is_shaken = true,
            }
        }
        match self.tls.tls().poll_recv(&mut self.plain) {
            Poll::Pending => Ok(Opened::NeedMore),
            Poll::Ready(Ok(0)) => Ok(Opened::Ended),
            Poll::Ready(Ok(len)) => {
                sink(&self.plain[..len]);
                Ok(Opened::Record)
            }
            Poll::Ready(Err(_)) => Err(self.broken()),
        }
    }

    /// Writes what is owed and records of as much of `plain` as fits into `out`. Returns how many
    /// bytes were written there, and how many of `plain` are in them.
    pub(crate) fn seal(
        &mut self,
        plain: Option<&Payload>,
        out: &mut [u8],
    ) -> Result<(usize, usize), Broken> {
        let (mut written, mut sealed) = (self.give_owed(out), 0);
        let Some(plain) = plain else { return Ok((written, sealed)) };
        let plain_bytes = plain.len_bytes() as usize;
        while sealed < plain_bytes
            && self.is_shaken
            && !(self.is_broken || self.owes())
            && out.len() - written >= RECORD_BYTES_MAX + OVERHEAD_BYTES
        {
            let len = RECORD_BYTES_MAX.min(plain_bytes - sealed);
            plain.copy_out(sealed as u64, &mut self.plain[..len]);
            // Sending never blocks, so all of it is taken at once.
            match self.tls.tls().poll_send(&self.plain[..len]) {
                Poll::Ready(Ok(taken)) if taken == len => sealed += len,
                Poll::Ready(_) | Poll::Pending => return Err(self.broken()),
            }
            written += self.give_owed(&mut out[written..]);
        }
        Ok((written, sealed))
    }

    /// Says that nothing more comes from us; the bytes of that are owed then.
    pub(crate) fn close(&mut self) {
        if self.is_shaken && !self.is_broken {
            // It fails if the client has gone amid something, and then there is nobody to tell.
            let _ = self.tls.tls().poll_shutdown_send().map_ok(drop);
        }
    }

    /// True if there is something to say that no reply depends on.
    pub(crate) fn owes(&self) -> bool {
        !self.tls.look().outgoing.is_empty()
    }

    /// What it keeps beside what the library keeps; bounded whatever a client does.
    pub(crate) fn memory_bytes(&self) -> usize {
        let pipes = self.tls.look();
        pipes.incoming.capacity() + pipes.outgoing.capacity() + self.plain.len()
    }

    fn give_owed(&mut self, out: &mut [u8]) -> usize {
        let owed = &mut self.tls.pipes().outgoing;
        let len = owed.len().min(out.len());
        out[..len].copy_from_slice(&owed[..len]);
        owed.drain(..len);
        len
    }

    fn broken(&mut self) -> Broken {
        self.is_broken = true;
        Broken
    }
}

#[cfg(test)]
mod tests {
    use super::{KeyChannel, Opened, Piped, SharedKeys, connect};
    use std::fs;
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt as _;
    use std::task::Poll;
    use udm_lane::{Buf, Payload, Segment};

    const SECRET: [u8; 16] = [7; 16];

    fn loaded(text: &str, mode: u32) -> Result<SharedKeys, String> {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(text.as_bytes()).expect("written");
        fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).expect("set");
        SharedKeys::load(file.path()).map_err(|error| error.message().to_owned())
    }

    fn line(name: &str) -> String {
        format!("{name}:{}\n", "07".repeat(16))
    }

    fn client(name: &str, secret: &[u8]) -> Piped {
        connect(name, secret).expect("a client")
    }

    /// Carries what one side has to say to the other, once each way. False if the channel broke.
    fn carry(client: &mut Piped, channel: &mut KeyChannel, sink: &mut Vec<u8>) -> bool {
        let said = std::mem::take(&mut client.pipes().outgoing);
        let good = said.is_empty() || {
            channel.received(said.len()).expect("whole").copy_from_slice(&said);
            loop {
                match channel.open(|bytes| sink.extend_from_slice(bytes)) {
                    Ok(Opened::Record) => {}
                    Ok(Opened::NeedMore) => break true,
                    Ok(Opened::MustSend | Opened::Ended) | Err(_) => break false,
                }
            }
        };
        let mut out = vec![0; 256 << 10];
        let (written, _) = channel.seal(None, &mut out).expect("what is owed");
        client.pipes().incoming.extend_from_slice(&out[..written]);
        good
    }

    /// Shakes hands; whether both sides are content.
    fn shake(client: &mut Piped, channel: &mut KeyChannel) -> bool {
        let mut sink = Vec::new();
        for _ in 0..10 {
            let shaken = client.tls().poll_negotiate().map_ok(drop);
            if !carry(client, channel, &mut sink) || matches!(shaken, Poll::Ready(Err(_))) {
                return false;
            }
            if shaken.is_ready() {
                return channel.is_shaken;
            }
        }
        false
    }

    #[test]
    fn whom_the_file_names_gets_in_and_bytes_arrive_as_they_were() {
        let keys = loaded(&(line("bob") + "# a word\n\n" + &line("alice")), 0o600).expect("good");
        let mut channel = KeyChannel::new(&keys).expect("a channel");
        let mut client = client("alice", &SECRET);
        assert!(shake(&mut client, &mut channel));
        for len in [1, 100, 16 << 10, 40_000] {
            let bytes: Vec<u8> = (0..len).map(|at| at as u8).collect();
            let mut sent = 0;
            while sent < len {
                match client.tls().poll_send(&bytes[sent..]) {
                    Poll::Ready(Ok(taken)) => sent += taken,
                    other => panic!("not sent: {other:?}"),
                }
            }
            let mut heard = Vec::new();
            assert!(carry(&mut client, &mut channel, &mut heard));
            assert_eq!(heard, bytes, "to the server");
            assert!(channel.is_drained());
            let buf = Buf::alloc(len);
            buf.copy_in(0, &bytes);
            let mut payload = Payload::empty();
            payload.push(Segment::whole(buf));
            let mut out = vec![0; 64 << 10];
            let (written, sealed) = channel.seal(Some(&payload), &mut out).expect("sealed");
            assert_eq!(sealed, len);
            client.pipes().incoming.extend_from_slice(&out[..written]);
            let (mut back, mut part) = (Vec::new(), vec![0; 16 << 10]);
            while let Poll::Ready(Ok(len)) = client.tls().poll_recv(&mut part) {
                back.extend_from_slice(&part[..len]);
            }
            assert_eq!(back, bytes, "to the client");
        }
    }

    #[test]
    fn a_wrong_secret_a_wrong_name_and_garbage_end_the_connection() {
        let keys = loaded(&line("alice"), 0o600).expect("good");
        for (name, secret) in [("alice", [8; 16]), ("mallory", SECRET)] {
            let mut channel = KeyChannel::new(&keys).expect("a channel");
            assert!(!shake(&mut client(name, &secret), &mut channel), "{name}");
            assert!(!channel.is_shaken);
        }
        let mut random = fastrand::Rng::with_seed(1);
        for round in 0..200 {
            let mut channel = KeyChannel::new(&keys).expect("a channel");
            let mut client = client("alice", &SECRET);
            // Half of them begin well.
            if round % 2 == 0 {
                assert!(shake(&mut client, &mut channel));
            }
            let garbage: Vec<u8> = (0..random.usize(1..70_000)).map(|_| random.u8(..)).collect();
            let Ok(room) = channel.received(garbage.len()) else { continue };
            room.copy_from_slice(&garbage);
            let mut heard = 0;
            while let Ok(Opened::Record) = channel.open(|bytes| heard += bytes.len()) {}
            assert_eq!(heard, 0, "nothing that nobody sealed is heard");
        }
    }

    #[test]
    fn a_file_that_cannot_be_right_is_refused_with_its_line() {
        let refused = |text: &str, mode| loaded(text, mode).expect_err("refused");
        assert!(refused(&line("alice"), 0o644).contains("everybody may use these keys"));
        assert!(refused("", 0o600).contains("0 keys"));
        assert!(refused("alice\n", 0o600).contains("line 1: there is no ':'"));
        assert!(refused(&(line("a") + "b:xyz\n"), 0o600).contains("line 2: the secret is not hex"));
        assert!(refused("a:0707\n", 0o600).contains("line 1: the secret is shorter"));
        assert!(refused(&(line("a") + &line("a")), 0o600).contains("line 2: each client needs"));
        assert!(refused(":00", 0o600).contains("line 1: each client needs"));
    }
}
