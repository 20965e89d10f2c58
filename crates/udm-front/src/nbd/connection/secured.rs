//! A connection's TLS: between the socket and the inbox, and between the outbox and the socket.
//!
//! Called by the connection where it would receive into the inbox and send from the outbox. What
//! is received goes into a buffer of its own and is opened into the inbox (or into the memory of a
//! large write) record by record; replies are sealed into one buffer and sent from there.
//!
//! Rules. Nothing is received while whole records wait, and none is opened while the inbox has no
//! room for it, so all bounds of a plain connection hold, and two buffers come on top. A reply's
//! memory is free once it is sealed. One send at a time, as without TLS.
//!
//! ```text
//! socket -> received -> Channel::open -> inbox  ... outbox -> Channel::seal -> sealed -> socket
//! ```
//!
//! The tricky case is the answer to STARTTLS, which is still plain: it leaves from the outbox as
//! it is ([`Secured::has_begun`]), and sealing begins when it is gone. The other is a client that
//! breaks TLS: it is told why by an alert, but has only so long to take it.

use super::{Connection, IncomingWrite, Stage};
use crate::nbd::inbox::Inbox;
use crate::nbd::tls::{Broken, Channel, Opened, RECEIVE_BYTES_MAX, RECORD_BYTES_MAX};
use udm_core::actor::ActorCx;
use udm_lane::{Buf, BufPool, DriverOp, Payload, Segment};
use udm_types::Nanos;

use super::{FIRST_REQUESTS, OP_SEND};

/// Size of the buffer that replies are sealed into: as large as one of those they come from.
const SEALED_BYTES: usize = 256 << 10;

/// How long a client that broke TLS has to take the alert.
const ALERT_MS: u64 = 5_000;

/// A connection's TLS.
pub(super) struct Secured {
    channel: Channel,
    /// The plain answer to STARTTLS has been sent.
    has_begun: bool,
    /// Ciphertext as it comes; only between a receive and its end.
    received: Buf,
    /// Sealed bytes on their way out: the buffer is there from sealing to the end of the send.
    sealed: Option<Buf>,
    sent_bytes: usize,
    sealed_bytes: usize,
    /// What is left of replies that did not fit.
    rest: Option<Payload>,
    /// The client has said that it sends nothing more.
    has_ended: bool,
    is_closed: bool,
    is_broken: bool,
}

impl Secured {
    /// True if sends and receives are records now.
    pub(super) fn has_begun(&self) -> bool {
        self.has_begun
    }
}

impl Connection {
    /// STARTTLS was answered.
    pub(super) fn start_tls(&mut self, cx: &mut ActorCx<'_>) {
        let unread = self.inbox.as_ref().is_none_or(|inbox| inbox.has_unread());
        let channel = self.tls.as_ref().map(|tls| tls.channel());
        // What has come already was sent by somebody who did not wait for the answer.
        let (false, false, Some(Ok(channel))) = (unread, self.receiving, channel) else {
            return self.hang_up(cx);
        };
        self.secured = Some(Box::new(Secured {
            channel,
            has_begun: false,
            received: cx.bufs().take(RECEIVE_BYTES_MAX),
            sealed: None,
            sent_bytes: 0,
            sealed_bytes: 0,
            rest: None,
            has_ended: false,
            is_closed: false,
            is_broken: false,
        }));
    }

    /// True if the client broke TLS.
    pub(super) fn is_broken(&self) -> bool {
        self.secured.as_ref().is_some_and(|secured| secured.is_broken)
    }

    /// Where the next ciphertext goes; `None` while there are records to open.
    pub(super) fn room_for_records(&self) -> Option<Segment> {
        let secured = self.secured.as_ref()?;
        secured.channel.is_drained().then(|| Segment {
            buf: secured.received.clone(),
            offset_bytes: 0,
            // Fits: it is a constant below 4 GiB.
            len_bytes: RECEIVE_BYTES_MAX as u32,
        })
    }

    /// Ciphertext has come.
    pub(super) fn received_records(&mut self, len_bytes: usize, cx: &mut ActorCx<'_>) {
        let Some(secured) = &mut self.secured else { return };
        match secured.channel.received(len_bytes) {
            Ok(room) => secured.received.copy_out(0, room),
            Err(Broken) => return self.break_tls(cx),
        }
        self.open_records(cx);
        self.take_requests(FIRST_REQUESTS, cx);
    }

    /// Opens records while there is room for what is in them. True if there was one.
    pub(super) fn open_records(&mut self, cx: &mut ActorCx<'_>) -> bool {
        let mut has_opened = false;
        while !self.is_full()
            && let Stage::Negotiating(_) | Stage::Serving(_) = self.stage
            && let (Some(secured), Some(inbox)) = (&mut self.secured, &mut self.inbox)
            && !(secured.has_ended || secured.channel.is_drained())
            && let Some(room) = inbox.room(cx.bufs())
            && room.len_bytes as usize >= RECORD_BYTES_MAX
        {
            drop(room);
            let (incoming, pool) = (&mut self.incoming, cx.bufs());
            match secured.channel.open(|plain| put(plain, incoming, inbox, pool)) {
                Ok(Opened::Record) => has_opened = true,
                Ok(Opened::NeedMore | Opened::MustSend) => break,
                Ok(Opened::Ended) => secured.has_ended = true,
                Err(Broken) => {
                    self.break_tls(cx);
                    break;
                }
            }
        }
        has_opened
    }

    /// Every request that came before the client's goodbye was taken.
    pub(super) fn end_if_said(&mut self) {
        if self.secured.as_ref().is_some_and(|secured| secured.has_ended)
            && !self.is_full()
            && let Stage::Negotiating(_) | Stage::Serving(_) = self.stage
        {
            self.stage = Stage::Draining;
        }
    }

    /// Seals what waits and sends it.
    pub(super) fn seal_replies(&mut self, cx: &mut ActorCx<'_>) {
        let (Some(secured), Some(handle), false) = (&mut self.secured, self.handle, self.sending)
        else {
            return;
        };
        if !secured.has_begun {
            if let Some(payload) = self.outbox.next_send() {
                self.sending = true;
                return cx.submit_op(OP_SEND, DriverOp::Send { handle, payload });
            }
            secured.has_begun = true;
        }
        let plain = match secured.is_broken {
            true => None,
            false => secured.rest.take().or_else(|| self.outbox.next_send()),
        };
        if plain.is_none() && !secured.channel.owes() {
            return;
        }
        let mut sealed = secured.sealed.take().unwrap_or_else(|| cx.bufs().take(SEALED_BYTES));
        let room = sealed.get_mut().expect("invariant: nobody sends from it now");
        let Ok((sealed_bytes, plain_bytes)) = secured.channel.seal(plain.as_ref(), room) else {
            cx.bufs().put(sealed);
            return self.break_tls(cx);
        };
        if let Some(plain) = plain {
            secured.rest = match plain_bytes {
                0 => Some(plain),
                _ => self.outbox.sent(plain_bytes, plain, cx.bufs()),
            };
        }
        if sealed_bytes == 0 {
            return cx.bufs().put(sealed);
        }
        (secured.sent_bytes, secured.sealed_bytes) = (0, sealed_bytes);
        let payload = piece(&sealed, 0, sealed_bytes);
        secured.sealed = Some(sealed);
        self.sending = true;
        cx.submit_op(OP_SEND, DriverOp::Send { handle, payload });
    }

    /// Sealed bytes were sent: goes on with the rest of them, or gives the buffer back.
    pub(super) fn sent_records(
        &mut self,
        len_bytes: usize,
        payload: Payload,
        cx: &mut ActorCx<'_>,
    ) {
        drop(payload);
        let (Some(secured), Some(handle)) = (&mut self.secured, self.handle) else { return };
        secured.sent_bytes += len_bytes;
        let Some(sealed) = secured.sealed.take() else { return };
        if secured.sent_bytes >= secured.sealed_bytes {
            return cx.bufs().put(sealed);
        }
        let payload = piece(&sealed, secured.sent_bytes, secured.sealed_bytes);
        secured.sealed = Some(sealed);
        self.sending = true;
        cx.submit_op(OP_SEND, DriverOp::Send { handle, payload });
    }

    /// True if nothing is left to send, our goodbye included; says it first.
    pub(super) fn is_all_sealed_sent(&mut self, cx: &mut ActorCx<'_>) -> bool {
        let Some(secured) = &mut self.secured else { return true };
        if secured.has_begun && !secured.is_closed && !secured.is_broken {
            secured.is_closed = true;
            secured.channel.close();
            self.seal_replies(cx);
        }
        !self.sending && self.secured.as_ref().is_none_or(|secured| !secured.channel.owes())
    }

    /// Gives the memory back.
    pub(super) fn release_tls(&mut self, cx: &mut ActorCx<'_>) {
        if let Some(secured) = self.secured.take() {
            cx.bufs().put(secured.received);
            if let Some(sealed) = secured.sealed {
                cx.bufs().put(sealed);
            }
        }
    }

    /// The client broke TLS: no more requests and no replies, only the alert.
    fn break_tls(&mut self, cx: &mut ActorCx<'_>) {
        let Some(secured) = &mut self.secured else { return };
        if secured.is_broken {
            return;
        }
        secured.is_broken = true;
        secured.rest = None;
        self.stage = Stage::Draining;
        self.incoming = None;
        self.outbox.release(cx.bufs());
        self.handshake_until = cx.now() + Nanos::from_millis(ALERT_MS);
        cx.set_timer(self.handshake_until, self.handshake_until.0);
        cx.want_turn_end();
    }
}

/// Puts received plaintext where a plain connection would have received it.
fn put(
    mut plain: &[u8],
    incoming: &mut Option<IncomingWrite>,
    inbox: &mut Inbox,
    pool: &mut BufPool,
) {
    if let Some(IncomingWrite::Owned { command, payload, filled }) = incoming {
        // Fits: the session bounds payloads far below.
        let missing = command.len_bytes as usize - *filled;
        let (now, later) = plain.split_at(missing.min(plain.len()));
        payload.copy_in(*filled as u64, now);
        *filled += now.len();
        plain = later;
    }
    if plain.is_empty() {
        return;
    }
    // There is room for a whole record: that was asked before it was opened.
    if let Some(room) = inbox.room(pool) {
        room.buf.copy_in(room.offset_bytes as usize, plain);
        inbox.received(plain.len());
    }
}

/// Bytes `start..end` of a buffer of sealed records; they fit 32 bits.
fn piece(sealed: &Buf, start: usize, end: usize) -> Payload {
    let mut payload = Payload::empty();
    payload.push(Segment {
        buf: sealed.clone(),
        offset_bytes: start as u32,
        len_bytes: (end - start) as u32,
    });
    payload
}
