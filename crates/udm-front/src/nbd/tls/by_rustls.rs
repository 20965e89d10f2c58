//! What rustls does of a channel: the handshake, and all of TLS 1.2.
//!
//! The other half of `channel.rs`, which calls it and says what the fields mean. Everything goes
//! through one call of rustls that looks at its input and says what it wants next; here that is
//! turned into the channel's own words.
//!
//! Rules. Until the handshake is over rustls is shown one record more at a time, and only if it has
//! nothing to do with those before. When it is over, and it is TLS 1.3, `records` gets the keys.
//! Nothing is read of a client between these two moments.
//!
//! The tricky case is a client that never lets that happen (it cannot, but a later rustls might):
//! then rustls simply goes on with the records, too, as it does for TLS 1.2.

use super::channel::{Broken, Channel, Layer, OVERHEAD_BYTES, Opened, RECORD_BYTES_MAX};
use super::records::{HEADER_BYTES, Records};
use rustls::ProtocolVersion;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus,
};
use udm_lane::Payload;

impl Channel {
    /// One step of opening; `None` if there is another one.
    pub(super) fn open_by_rustls(
        &mut self,
        sink: &mut impl FnMut(&[u8]),
    ) -> Result<Option<Opened>, Broken> {
        let end = if self.may_take_over { self.allowed } else { self.end };
        let Layer::Rustls(tls) = &mut self.layer else { return Err(Broken) };
        let UnbufferedStatus { mut discard, state } =
            tls.process_tls_records(&mut self.incoming[self.start..end]);
        let opened = match state {
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    // An error cannot be here: this interface has opened the record already.
                    let Ok(record) = record else { break };
                    sink(record.payload);
                    discard += record.discard;
                }
                Ok(Some(Opened::Record))
            }
            Ok(ConnectionState::EncodeTlsData(data)) => {
                take_owed(data, &mut self.owed);
                Ok(None)
            }
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                Ok(None)
            }
            Ok(ConnectionState::WriteTraffic(_) | ConnectionState::BlockedHandshake) => {
                Ok(Some(Opened::NeedMore))
            }
            Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Ok(Some(Opened::Ended)),
            // Early data, which we do not offer, or what a later rustls may add.
            Ok(_) | Err(_) => Err(Broken),
        };
        self.start += discard;
        self.shown = self.start;
        self.allowed = self.allowed.max(self.start);
        if opened == Ok(Some(Opened::NeedMore)) {
            if self.take_over()? {
                return Ok(None);
            }
            if self.may_take_over && self.allowed < self.end {
                self.allowed = self.next_record_end();
                return Ok(None);
            }
        }
        opened
    }

    /// Where the record behind those that rustls may see ends, as far as it is there.
    fn next_record_end(&self) -> usize {
        let rest = &self.incoming[self.allowed..self.end];
        let len = match rest {
            [_, _, _, high, low, ..] => {
                HEADER_BYTES + usize::from(u16::from_be_bytes([*high, *low]))
            }
            _ => rest.len(),
        };
        self.allowed + len.min(rest.len())
    }

    /// Takes the keys over, if it is time for that. True if it was done.
    fn take_over(&mut self) -> Result<bool, Broken> {
        let Layer::Rustls(tls) = &self.layer else { return Ok(false) };
        if !self.may_take_over || tls.is_handshaking() {
            return Ok(false);
        }
        self.may_take_over = false;
        let is_new = tls.protocol_version() == Some(ProtocolVersion::TLSv1_3);
        if !is_new || self.start != self.allowed {
            return Ok(false);
        }
        if let Layer::Rustls(tls) = std::mem::replace(&mut self.layer, Layer::Nobody) {
            let (secrets, keys) = tls.dangerous_into_kernel_connection().map_err(|_| Broken)?;
            self.layer = Layer::Ours(Box::new(Records::new(secrets, keys)?));
            self.plain = Vec::new();
        }
        Ok(true)
    }

    /// Seals what fits of `plain` from byte `from` on: how much was written to `out`, and how many
    /// bytes of `plain` are in that.
    pub(super) fn seal_by_rustls(
        &mut self,
        plain: &Payload,
        from: usize,
        out: &mut [u8],
    ) -> Result<(usize, usize), Broken> {
        let plain_bytes = plain.len_bytes() as usize - from;
        let (mut written, mut sealed) = (0, 0);
        loop {
            let Layer::Rustls(tls) = &mut self.layer else { return Err(Broken) };
            let shown = self.start..self.shown;
            let UnbufferedStatus { discard, state } =
                tls.process_tls_records(&mut self.incoming[shown]);
            let mut goes_on = false;
            let sealing = match state {
                Ok(ConnectionState::WriteTraffic(mut traffic)) => loop {
                    let len = RECORD_BYTES_MAX.min(plain_bytes - sealed);
                    if len == 0 || out.len() - written < RECORD_BYTES_MAX + OVERHEAD_BYTES {
                        break Ok(());
                    }
                    let record = &mut self.plain[..len];
                    plain.copy_out((from + sealed) as u64, record);
                    match traffic.encrypt(record, &mut out[written..]) {
                        Ok(len_bytes) => written += len_bytes,
                        Err(EncryptError::InsufficientSize(_)) => break Ok(()),
                        Err(EncryptError::EncryptExhausted) => break Err(Broken),
                    }
                    sealed += len;
                },
                Ok(ConnectionState::EncodeTlsData(data)) => {
                    take_owed(data, &mut self.owed);
                    goes_on = true;
                    Ok(())
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    data.done();
                    goes_on = true;
                    Ok(())
                }
                // The handshake is not over, or the connection is.
                Ok(_) => Ok(()),
                Err(_) => Err(Broken),
            };
            self.start += discard;
            self.shown = self.shown.max(self.start);
            sealing.map_err(|Broken| self.broken())?;
            if !goes_on || !self.owed.is_empty() {
                return Ok((written, sealed));
            }
        }
    }

    /// Has rustls say goodbye.
    pub(super) fn close_by_rustls(&mut self) {
        let Layer::Rustls(tls) = &mut self.layer else { return };
        let shown = self.start..self.shown;
        let UnbufferedStatus { discard, state } =
            tls.process_tls_records(&mut self.incoming[shown]);
        if let Ok(ConnectionState::WriteTraffic(mut traffic)) = state {
            let mut notify = [0; OVERHEAD_BYTES];
            if let Ok(len) = traffic.queue_close_notify(&mut notify) {
                self.owed.extend_from_slice(&notify[..len]);
            }
        }
        self.start += discard;
        self.shown = self.shown.max(self.start);
    }

    /// The alert that rustls has for the client is owed, if it has one.
    pub(super) fn take_alert_of_rustls(&mut self) {
        let Layer::Rustls(tls) = &mut self.layer else { return };
        // Asked once more than it has something to say, rustls would look at its input again.
        while tls.wants_write() {
            let rest = self.start..self.end;
            let status = tls.process_tls_records(&mut self.incoming[rest]);
            let Ok(ConnectionState::EncodeTlsData(data)) = status.state else { break };
            take_owed(data, &mut self.owed);
        }
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
