//! One client: an actor that moves bytes between a socket, the protocol and the engine.
//!
//! Installed by the listener on some lane, where it stays. It receives into the inbox, lets the
//! session take requests from it, submits their bios, and at the end of the turn sends everything
//! that was answered meanwhile in one go and receives again. In steady state that is a system call
//! or two for a whole batch of requests, and no allocation.
//!
//! Rules. What a client can make us hold is bounded (the `_MAX` constants); at a bound we stop
//! *reading requests*, never answering them. Every request that was taken is answered, unless the
//! client is gone. Nothing of the device's state lives here: a connection may die at any time.
//!
//! ```text
//! Negotiating --agreed--> Serving --DISC, end of stream, drain--> Draining --all sent--> Gone
//!      |                     |                                       |
//!      +---------------------+--- breach, socket error, cut ---------+------------------> Gone
//! ```
//!
//! With TLS, which a client begins in the handshake, `secured` stands between the socket and the
//! inbox, and between the outbox and the socket; nothing else knows of it.
//!
//! The tricky case is a client that dies while the device is suspended: its bios may be held for
//! hours. The socket is closed at once; the actor stays as a shell until they come back.

mod secured;
mod work;

use super::export::{ExportDescription, ExportList};
use super::inbox::Inbox;
use super::negotiate::{Agreed, EndReason, Negotiation, Progress, greeting};
use super::outbox::Outbox;
use super::requests::Requests;
use super::server::{ConnectionOrder, ConnectionWish, Export, ListenerLink};
use super::session::{Command, Session};
use super::tls::TlsSettings;
use super::wire::HeaderStyle;
use secured::Secured;
use std::any::Any;
use std::sync::Arc;
use udm_core::actor::{Actor, ActorCx, DeviceNotice};
use udm_core::bio::BioBox;
use udm_lane::{Buf, Completion, DriverOp, Handle, Payload, RawHandle, Segment};
use udm_types::{DeviceId, Nanos, SECTOR_BYTES};

/// Requests of one connection with the engine. Clients keep 128 or fewer under way.
const REQUESTS_MAX: usize = 256;

/// Memory a connection uses for replies and large writes before it stops taking requests: two or
/// three milliseconds of a fast disk, and no more than the lane's pool keeps, so that large
/// requests allocate nothing either. One more request is always taken, so the largest possible
/// (32 MiB) is never stuck.
const MEMORY_BYTES_MAX: u64 = 8 << 20;

/// How long a handshake may take. A connection that only sits there must not keep its slot.
const HANDSHAKE_MS: u64 = 120_000;

/// Requests taken at once from what was received; the rest follows in the next turn of the lane.
/// So their replies are on the way while we work on the rest, and the client prepares its next
/// requests meanwhile. Otherwise both sides of a connection of little depth wait for each other in
/// turns, and wake-ups cost more than the work. Fewer would mean more system calls.
const FIRST_REQUESTS: usize = 16;

/// Our word for the receive operation.
const OP_RECV: u32 = 0;
/// Our word for the send operation.
const OP_SEND: u32 = 1;

/// A connection.
pub(super) struct Connection {
    raw: Option<RawHandle>,
    handle: Option<Handle>,
    exports: Arc<[Export]>,
    listener: ListenerLink,
    tls: Option<TlsSettings>,
    /// Once the client has begun TLS.
    secured: Option<Box<Secured>>,
    stage: Stage,
    /// What the client chose.
    chosen: Option<Chosen>,
    inbox: Option<Inbox>,
    outbox: Outbox,
    requests: Requests,
    /// An accepted write whose payload is not complete.
    incoming: Option<IncomingWrite>,
    receiving: bool,
    sending: bool,
    handshake_until: Nanos,
    scratch: Vec<u8>,
    /// An empty payload, kept for its memory.
    spare_payload: Payload,
    /// Buffers on their way back to the pool; empty between calls.
    returning: Vec<Buf>,
}

enum Stage {
    Negotiating(Negotiation),
    Serving(Session),
    /// No more requests; what is under way is answered.
    Draining,
    /// The socket is closed.
    Gone,
}

struct Chosen {
    device: DeviceId,
    name: String,
    style: HeaderStyle,
}

/// Where the payload of an accepted write is gathered.
enum IncomingWrite {
    /// In the inbox.
    Inline(Command),
    /// In memory of its own, which it is received into.
    Owned { command: Command, payload: Payload, filled: usize },
}

/// The exports of a listener as a lane sees them now.
struct LaneExports<'a, 'b> {
    exports: &'a [Export],
    cx: &'a ActorCx<'b>,
}

impl ExportList for LaneExports<'_, '_> {
    fn lookup(&self, name: &str) -> Option<ExportDescription> {
        let export = self.exports.iter().find(|export| export.name == name)?;
        let view = self.cx.device(export.device)?;
        Some(ExportDescription {
            name: export.name.clone(),
            description: export.description.clone(),
            size_bytes: view.len_sectors * SECTOR_BYTES,
            limits: view.limits,
            read_only: export.read_only,
        })
    }

    fn names(&self) -> Vec<String> {
        self.exports.iter().map(|export| export.name.clone()).collect()
    }
}

impl Connection {
    /// A connection over an accepted socket, which it takes over.
    pub(super) fn new(
        raw: RawHandle,
        exports: Arc<[Export]>,
        tls: Option<TlsSettings>,
        listener: ListenerLink,
    ) -> Connection {
        let negotiation = Negotiation::new(TlsSettings::policy(tls.as_ref()));
        Connection {
            raw: Some(raw),
            handle: None,
            exports,
            listener,
            tls,
            secured: None,
            stage: Stage::Negotiating(negotiation),
            chosen: None,
            inbox: None,
            outbox: Outbox::default(),
            requests: Requests::default(),
            incoming: None,
            receiving: false,
            sending: false,
            handshake_until: Nanos::ZERO,
            scratch: Vec::new(),
            spare_payload: Payload::empty(),
            returning: Vec::new(),
        }
    }

    /// Takes as much from the inbox as there is and as the bounds allow, but not more than
    /// `requests_max` requests.
    fn take_requests(&mut self, mut requests_max: usize, cx: &mut ActorCx<'_>) {
        loop {
            if self.is_full() {
                return;
            }
            if self.incoming.is_none() {
                if requests_max == 0 {
                    return;
                }
                requests_max -= 1;
            }
            let goes_on = match self.stage {
                Stage::Negotiating(_) => self.negotiate(cx),
                Stage::Serving(_) if self.incoming.is_some() => self.gather_payload(cx),
                Stage::Serving(_) => self.take_request(cx),
                Stage::Draining | Stage::Gone => false,
            };
            if !goes_on {
                return;
            }
        }
    }

    /// True if this connection holds as much as it may.
    fn is_full(&self) -> bool {
        self.requests.len() >= REQUESTS_MAX
            || self.outbox.memory_bytes() as u64 + self.requests.owned_bytes() >= MEMORY_BYTES_MAX
    }

    fn negotiate(&mut self, cx: &mut ActorCx<'_>) -> bool {
        let (Stage::Negotiating(negotiation), Some(inbox)) = (&mut self.stage, &mut self.inbox)
        else {
            return false;
        };
        inbox.copy_unread(&mut self.scratch);
        let exports = LaneExports { exports: &self.exports, cx };
        let mut answer = Vec::new();
        let (consumed, progress) = negotiation.step(&self.scratch, &exports, &mut answer);
        inbox.consume(consumed);
        self.outbox.push(&answer, cx.bufs());
        match progress {
            Progress::NeedMore => return false,
            Progress::Continue => {}
            Progress::StartTls => self.start_tls(cx),
            Progress::Agreed(agreed) => self.serve(&agreed),
            Progress::Ended(EndReason::Aborted) => self.stage = Stage::Draining,
            Progress::Ended(
                EndReason::UnknownClientFlags(_)
                | EndReason::BadMagic(_)
                | EndReason::OptionTooLong(_)
                | EndReason::TooManyOptions
                | EndReason::NoSuchExport
                | EndReason::OutOfPlace(_),
            ) => self.hang_up(cx),
        }
        true
    }

    fn serve(&mut self, agreed: &Agreed) {
        let name = &agreed.export.name;
        let Some(export) = self.exports.iter().find(|export| export.name == *name) else {
            self.stage = Stage::Draining;
            return;
        };
        self.chosen =
            Some(Chosen { device: export.device, name: name.clone(), style: agreed.style });
        self.stage = Stage::Serving(Session::new(agreed));
    }

    fn style(&self) -> HeaderStyle {
        self.chosen.as_ref().map_or(HeaderStyle::Simple, |chosen| chosen.style)
    }

    /// Starts the next send and the next receive; closes when all is said.
    fn move_on(&mut self, cx: &mut ActorCx<'_>) {
        let Some(handle) = self.handle else { return };
        if self.secured.is_some() {
            self.seal_replies(cx);
        } else if !self.sending
            && let Some(payload) = self.outbox.next_send()
        {
            self.sending = true;
            cx.submit_op(OP_SEND, DriverOp::Send { handle, payload });
        }
        match self.stage {
            Stage::Negotiating(_) | Stage::Serving(_) => self.receive(handle, cx),
            Stage::Draining => {
                let is_answered = self.requests.len() == 0 && self.outbox.is_idle();
                if (is_answered || self.is_broken()) && self.is_all_sealed_sent(cx) {
                    self.hang_up(cx);
                }
            }
            Stage::Gone => {}
        }
    }

    fn receive(&mut self, handle: Handle, cx: &mut ActorCx<'_>) {
        if self.receiving || self.is_full() {
            return;
        }
        let segment = match (&self.incoming, &mut self.inbox) {
            _ if self.secured.is_some() => self.room_for_records(),
            (Some(IncomingWrite::Owned { payload, filled, .. }), _) => rest_of(payload, *filled),
            (None | Some(IncomingWrite::Inline(_)), Some(inbox)) => inbox.room(cx.bufs()),
            (None | Some(IncomingWrite::Inline(_)), None) => None,
        };
        if let Some(segment) = segment {
            self.receiving = true;
            cx.submit_op(OP_RECV, DriverOp::Recv { handle, segment });
        }
    }

    fn received(&mut self, completion: Completion, cx: &mut ActorCx<'_>) {
        self.receiving = false;
        // Let go of the memory before anybody asks whether it is free.
        drop(completion.payload);
        match completion.result {
            Ok(len) if len > 0 && self.secured.is_some() => {
                self.received_records(len as usize, cx);
            }
            Ok(0) => match self.stage {
                // The client closed, or said all it wants to say. It may still read answers.
                Stage::Negotiating(_) | Stage::Serving(_) => self.stage = Stage::Draining,
                Stage::Draining | Stage::Gone => {}
            },
            Ok(len) => {
                let len = len as usize;
                match (&mut self.incoming, &mut self.inbox) {
                    (Some(IncomingWrite::Owned { filled, .. }), _) => *filled += len,
                    (None | Some(IncomingWrite::Inline(_)), Some(inbox)) => inbox.received(len),
                    (None | Some(IncomingWrite::Inline(_)), None) => {}
                }
                self.take_requests(FIRST_REQUESTS, cx);
            }
            Err(_) => self.hang_up(cx),
        }
    }

    fn sent(&mut self, completion: Completion, cx: &mut ActorCx<'_>) {
        self.sending = false;
        let Ok(len) = completion.result else { return self.hang_up(cx) };
        if self.secured.as_ref().is_some_and(|secured| secured.has_begun()) {
            return self.sent_records(len as usize, completion.payload, cx);
        }
        let rest = self.outbox.sent(len as usize, completion.payload, cx.bufs());
        if let (Some(payload), Some(handle)) = (rest, self.handle) {
            self.sending = true;
            cx.submit_op(OP_SEND, DriverOp::Send { handle, payload });
        }
    }

    /// Closes the socket. Bios under way come back to a shell that answers nobody.
    fn hang_up(&mut self, cx: &mut ActorCx<'_>) {
        self.stage = Stage::Gone;
        let Some(handle) = self.handle.take() else { return };
        cx.driver().shutdown(handle);
        cx.driver().close(handle);
        self.incoming = None;
        self.release_tls(cx);
        self.outbox.release(cx.bufs());
        if let Some(mut inbox) = self.inbox.take() {
            inbox.release(cx.bufs());
        }
        self.listener.tell_closed(cx);
        cx.exit();
    }

    fn obey(&mut self, wish: ConnectionWish, cx: &mut ActorCx<'_>) {
        match wish {
            ConnectionWish::Exports(exports) => {
                self.exports = exports;
                let still_there = self.chosen.as_ref().is_none_or(|chosen| {
                    self.exports
                        .iter()
                        .any(|export| export.name == chosen.name && export.device == chosen.device)
                });
                if !still_there {
                    self.drain(cx);
                }
            }
            ConnectionWish::Drain => self.drain(cx),
            ConnectionWish::Cut => self.hang_up(cx),
        }
    }

    /// Takes no more requests, answers what is under way, then closes.
    fn drain(&mut self, cx: &mut ActorCx<'_>) {
        match self.stage {
            Stage::Negotiating(_) | Stage::Serving(_) => {
                self.stage = Stage::Draining;
                cx.want_turn_end();
            }
            Stage::Draining | Stage::Gone => {}
        }
    }
}

/// Where byte `filled` and those after it go: the rest of one segment.
fn rest_of(payload: &Payload, filled: usize) -> Option<Segment> {
    let mut rest = None;
    payload.for_range(filled as u64, 1, |segment, start, _, _| {
        rest = Some(Segment {
            buf: segment.buf.clone(),
            offset_bytes: segment.offset_bytes + start,
            len_bytes: segment.len_bytes - start,
        });
    });
    rest
}

impl Actor for Connection {
    fn on_start(&mut self, cx: &mut ActorCx<'_>) {
        let handle = self.raw.take().and_then(|raw| cx.driver().register(raw).ok());
        self.listener.tell_opened(cx);
        let Some(handle) = handle else {
            self.stage = Stage::Gone;
            self.listener.tell_closed(cx);
            return cx.exit();
        };
        self.handle = Some(handle);
        self.inbox = Some(Inbox::new(cx.bufs()));
        self.outbox.push(&greeting(), cx.bufs());
        self.handshake_until = cx.now() + Nanos::from_millis(HANDSHAKE_MS);
        cx.set_timer(self.handshake_until, self.handshake_until.0);
        cx.want_turn_end();
    }

    fn on_bio(&mut self, tag: u64, bio: BioBox, cx: &mut ActorCx<'_>) {
        self.came_back(tag, bio, cx);
    }

    fn on_op(&mut self, user: u32, completion: Completion, cx: &mut ActorCx<'_>) {
        if self.handle.is_none() {
            return;
        }
        match user {
            OP_RECV => self.received(completion, cx),
            OP_SEND => self.sent(completion, cx),
            _ => debug_assert!(false, "an operation nobody started"),
        }
        cx.want_turn_end();
    }

    fn on_timer(&mut self, token: u64, cx: &mut ActorCx<'_>) {
        // It may be the timer of an earlier actor of this id.
        if token != self.handshake_until.0 {
            return;
        }
        match self.stage {
            Stage::Negotiating(_) => self.hang_up(cx),
            Stage::Draining if self.is_broken() => self.hang_up(cx),
            Stage::Serving(_) | Stage::Draining | Stage::Gone => {}
        }
    }

    fn on_turn_end(&mut self, cx: &mut ActorCx<'_>) {
        // The rest of what was received; also what a bound held back may go on now.
        self.take_requests(usize::MAX, cx);
        while self.open_records(cx) {
            self.take_requests(usize::MAX, cx);
        }
        self.end_if_said();
        self.move_on(cx);
    }

    fn on_notice(&mut self, notice: DeviceNotice, cx: &mut ActorCx<'_>) {
        let Some(chosen) = &self.chosen else { return };
        match notice {
            DeviceNotice::Resized(device) if device == chosen.device => {
                if let (Stage::Serving(session), Some(view)) = (&mut self.stage, cx.device(device))
                {
                    session.set_size_bytes(view.len_sectors * SECTOR_BYTES);
                }
            }
            DeviceNotice::Removed(device) if device == chosen.device => self.drain(cx),
            DeviceNotice::Resized(_) | DeviceNotice::Removed(_) => {}
        }
    }

    fn on_message(&mut self, message: Box<dyn Any + Send>, cx: &mut ActorCx<'_>) {
        // An order for an earlier actor of this id is none of ours.
        if let Ok(order) = message.downcast::<ConnectionOrder>()
            && order.number == self.listener.number
        {
            self.obey(order.wish, cx);
        }
    }
}
