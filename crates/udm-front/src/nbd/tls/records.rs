//! The records of TLS 1.3 after the handshake, sealed and opened where they lie.
//!
//! rustls makes the handshake and every key; the channel takes the keys over when both sides have
//! finished, by the interface that rustls has for the kernel's TLS. What is left is small enough
//! to be read at a sitting: a header, a nonce that is a counter, one call of the cipher (ring), and
//! the three kinds of messages that may still come. It is done here because rustls seals into
//! memory of its own and opens into more of it: four copies of every read and write, which cost
//! more than the cipher.
//!
//! Rules. A key seals one record for each value of its counter, and fewer than its cipher allows;
//! then it is changed. A record is believed only after its tag was checked, and whatever is wrong
//! with it ends the connection with the alert that RFC 8446 names. Nothing here allocates.
//!
//! ```text
//! | 23 3 3 | length | plaintext | kind | zeroes, if the sender likes | tag |
//! |---- associated ----|--------------- sealed ------------------|
//! ```
//!
//! The tricky case is a client that asks us to change our keys: it may ask any number of times
//! before we send, and gets one change, in front of the next record of replies. One that does
//! nothing but ask is ended, since each change costs us more than it costs the client.

use super::channel::{Broken, RECORD_BYTES_MAX};
use ring::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{ConnectionTrafficSecrets, ExtractedSecrets, SupportedCipherSuite};

/// Kind, version, length.
pub(super) const HEADER_BYTES: usize = 5;
/// All ciphers of TLS 1.3 have it.
const TAG_BYTES: usize = 16;
const NONCE_BYTES: usize = 12;
/// What a record may have beyond its plaintext: its kind, its tag, and padding (RFC 8446, 5.2).
const EXPANSION_BYTES_MAX: usize = 256;
/// Records without anything for us that may come in a row, as many as rustls takes.
const EMPTY_IN_A_ROW_MAX: u32 = 32;

const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION: u8 = 23;

const CLOSE_NOTIFY: u8 = 0;
const UNEXPECTED_MESSAGE: u8 = 10;
const BAD_RECORD_MAC: u8 = 20;
const RECORD_OVERFLOW: u8 = 22;
const INTERNAL_ERROR: u8 = 80;
const USER_CANCELED: u8 = 90;

/// The only message of a handshake that may still come, and ours: change of keys.
const KEY_UPDATE: [u8; 4] = [24, 0, 0, 1];

/// What ends a connection: the description of an alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Alert(u8);

/// What was in a record.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Content<'a> {
    /// Plaintext.
    Plain(&'a [u8]),
    /// Nothing for anybody but us.
    Nothing,
    /// The client sends nothing more.
    Ended,
}

/// One direction's key.
struct Key {
    aead: LessSafeKey,
    iv: [u8; NONCE_BYTES],
    /// Records so far.
    counter: u64,
}

impl Key {
    fn new((counter, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Key, Broken> {
        let (cipher, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&aead::AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&aead::AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => {
                (&aead::CHACHA20_POLY1305, key, iv)
            }
            // What a later rustls may add; none of it is offered.
            _ => return Err(Broken),
        };
        let key = UnboundKey::new(cipher, key.as_ref()).map_err(|_| Broken)?;
        let iv = iv.as_ref().try_into().map_err(|_| Broken)?;
        Ok(Key { aead: LessSafeKey::new(key), iv, counter })
    }

    /// The nonce of the next record. It is never given twice: the counter moves with it.
    fn next_nonce(&mut self) -> Nonce {
        let mut nonce = self.iv;
        for (byte, count) in nonce[NONCE_BYTES - 8..].iter_mut().zip(self.counter.to_be_bytes()) {
            *byte ^= count;
        }
        self.counter += 1;
        Nonce::assume_unique_for_key(nonce)
    }
}

/// Both directions of one connection.
pub(super) struct Records {
    keys: KernelConnection<ServerConnectionData>,
    opening: Key,
    sealing: Key,
    /// How many records one of our keys may seal.
    records_max: u64,
    /// The client wants our key changed before we send more.
    must_change: bool,
    empty_in_a_row: u32,
}

impl Records {
    /// Goes on where rustls stopped.
    ///
    /// # Errors
    /// If the keys are for a cipher that is not known here.
    pub(super) fn new(
        secrets: ExtractedSecrets,
        keys: KernelConnection<ServerConnectionData>,
    ) -> Result<Records, Broken> {
        let records_max = match keys.negotiated_cipher_suite() {
            SupportedCipherSuite::Tls13(suite) => suite.common.confidentiality_limit,
            SupportedCipherSuite::Tls12(_) => return Err(Broken),
        };
        let (opening, sealing) = (Key::new(secrets.rx)?, Key::new(secrets.tx)?);
        let (must_change, empty_in_a_row) = (false, 0);
        Ok(Records { keys, opening, sealing, records_max, must_change, empty_in_a_row })
    }

    /// Opens the record that `bytes` begin with, in place: how long it is, and what was in it;
    /// `None` if it is not all there.
    ///
    /// # Errors
    /// The alert to end the connection with.
    pub(super) fn open<'a>(
        &mut self,
        bytes: &'a mut [u8],
    ) -> Result<Option<(usize, Content<'a>)>, Alert> {
        let Some((header, rest)) = bytes.split_first_chunk_mut::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let [kind, _, _, high, low] = *header;
        let len = usize::from(u16::from_be_bytes([high, low]));
        if kind != APPLICATION {
            return Err(Alert(UNEXPECTED_MESSAGE));
        }
        if len > RECORD_BYTES_MAX + EXPANSION_BYTES_MAX {
            return Err(Alert(RECORD_OVERFLOW));
        }
        let Some(sealed) = rest.get_mut(..len) else { return Ok(None) };
        let nonce = self.opening.next_nonce();
        let opened = self.opening.aead.open_in_place(nonce, Aad::from(*header), sealed);
        let opened: &'a [u8] = opened.map_err(|_| Alert(BAD_RECORD_MAC))?;
        // The kind is the last byte that is not padding.
        let last = opened.iter().rposition(|byte| *byte != 0);
        let last = last.ok_or(Alert(UNEXPECTED_MESSAGE))?;
        if last > RECORD_BYTES_MAX {
            return Err(Alert(RECORD_OVERFLOW));
        }
        let content = self.content(opened[last], &opened[..last])?;
        Ok(Some((HEADER_BYTES + len, content)))
    }

    fn content<'a>(&mut self, kind: u8, plain: &'a [u8]) -> Result<Content<'a>, Alert> {
        if kind == APPLICATION && !plain.is_empty() {
            self.empty_in_a_row = 0;
            return Ok(Content::Plain(plain));
        }
        self.empty_in_a_row += 1;
        if self.empty_in_a_row > EMPTY_IN_A_ROW_MAX {
            return Err(Alert(UNEXPECTED_MESSAGE));
        }
        match (kind, plain) {
            (APPLICATION, []) => Ok(Content::Nothing),
            (ALERT, [_, CLOSE_NOTIFY]) => Ok(Content::Ended),
            (ALERT, [_, USER_CANCELED]) => Ok(Content::Nothing),
            // It has gone with an error of its own; what we would say to it nobody reads.
            (ALERT, [_, _]) => Err(Alert(CLOSE_NOTIFY)),
            (HANDSHAKE, [message @ .., wanted @ (0 | 1)]) if *message == KEY_UPDATE => {
                let secrets = self.keys.update_rx_secret();
                let key = secrets.map_err(|_| Broken).and_then(Key::new);
                self.opening = key.map_err(|Broken| Alert(INTERNAL_ERROR))?;
                self.must_change |= *wanted == 1;
                Ok(Content::Nothing)
            }
            _ => Err(Alert(UNEXPECTED_MESSAGE)),
        }
    }

    /// Writes a record of `len` bytes of plaintext, which `fill` puts where it is given, to the
    /// front of `out`; before it a change of our key, if it is time for one. How long that is.
    ///
    /// # Errors
    /// If a key cannot be changed. The counter is where it was; nothing may be sealed any more.
    ///
    /// # Panics
    /// If `out` is too short, which it is not if it is [`Records::room_for`] long.
    pub(super) fn seal(
        &mut self,
        len: usize,
        out: &mut [u8],
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<usize, Broken> {
        let mut written = 0;
        if self.must_change || self.sealing.counter + 1 >= self.records_max {
            let message = [24, 0, 0, 1, 0];
            written = self.put(HANDSHAKE, message.len(), out, |to| to.copy_from_slice(&message))?;
            let secrets = self.keys.update_tx_secret().map_err(|_| Broken)?;
            self.sealing = Key::new(secrets)?;
            self.must_change = false;
        }
        Ok(written + self.put(APPLICATION, len, &mut out[written..], fill)?)
    }

    /// How much room sealing so much plaintext takes at the most.
    pub(super) fn room_for(len: usize) -> usize {
        let around = HEADER_BYTES + 1 + TAG_BYTES;
        len + around + KEY_UPDATE.len() + 1 + around
    }

    /// Appends an alert to what is owed.
    pub(super) fn alert(&mut self, Alert(what): Alert, owed: &mut Vec<u8>) {
        const WARNING: u8 = 1;
        const FATAL: u8 = 2;
        let level = if what == CLOSE_NOTIFY { WARNING } else { FATAL };
        let start = owed.len();
        owed.resize(start + HEADER_BYTES + 2 + 1 + TAG_BYTES, 0);
        let put = self.put(ALERT, 2, &mut owed[start..], |to| to.copy_from_slice(&[level, what]));
        if put.is_err() {
            owed.truncate(start);
        }
    }

    /// Appends the goodbye to what is owed.
    pub(super) fn close(&mut self, owed: &mut Vec<u8>) {
        self.alert(Alert(CLOSE_NOTIFY), owed);
    }

    fn put(
        &mut self,
        kind: u8,
        len: usize,
        out: &mut [u8],
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<usize, Broken> {
        let sealed_bytes = len + 1 + TAG_BYTES;
        // Fits: records are at most 16 KiB long.
        let [high, low] = (sealed_bytes as u16).to_be_bytes();
        let header = [APPLICATION, 3, 3, high, low];
        let (place, out) = out.split_at_mut(HEADER_BYTES);
        place.copy_from_slice(&header);
        let (plain, tag_place) = out[..sealed_bytes].split_at_mut(len + 1);
        fill(&mut plain[..len]);
        plain[len] = kind;
        let nonce = self.sealing.next_nonce();
        let aead = &self.sealing.aead;
        let tag = aead.seal_in_place_separate_tag(nonce, Aad::from(header), plain);
        tag_place.copy_from_slice(tag.map_err(|_| Broken)?.as_ref());
        Ok(HEADER_BYTES + sealed_bytes)
    }
}
