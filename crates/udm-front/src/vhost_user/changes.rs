//! Tells a client that its disk has changed: an actor on one lane with the client's second socket.
//!
//! The engine tells every actor of a new size before it reports the resize done; this one sends
//! the message in the same turn. The client then reads the configuration space, and the guest is
//! interrupted.
//!
//! The tricky case is a client that does not read: one message is under way and one more is
//! remembered, however often the size changes, since the message says only "look again". Who
//! wants to know that all is told (a resize is done when it is) waits here, too, and is answered
//! by the end of the actor at the latest, since what it waits with is dropped.

use super::wire::config_changed;
use std::any::Any;
use std::os::fd::{IntoRawFd, OwnedFd};
use udm_core::actor::{Actor, ActorCx, DeviceNotice};
use udm_core::bio::BioBox;
use udm_lane::{Buf, Completion, DriverOp, Handle, Payload, RawHandle, Segment};
use udm_types::DeviceId;

const OP_SEND: u32 = 0;

/// Ends the actor; send it as a message.
#[derive(Clone, Copy, Debug)]
pub struct EndChanges {
    /// Which actor is meant.
    pub number: u64,
}

/// Calls `done`, or drops it, when the client has been told all there is; send it as a message.
pub struct WhenTold {
    /// Which actor is meant.
    pub number: u64,
    /// What to call.
    pub done: Box<dyn FnOnce() + Send>,
}

impl std::fmt::Debug for WhenTold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "when {} has told", self.number)
    }
}

/// The actor.
pub struct Changes {
    number: u64,
    device: DeviceId,
    socket: Option<OwnedFd>,
    handle: Option<Handle>,
    message: Option<Segment>,
    sending: bool,
    again: bool,
    waiting: Vec<WhenTold>,
}

impl Changes {
    /// An actor for a client's second socket; install it on a lane.
    pub fn new(number: u64, device: DeviceId, socket: OwnedFd) -> Changes {
        Changes {
            number,
            device,
            socket: Some(socket),
            handle: None,
            message: None,
            sending: false,
            again: false,
            waiting: Vec::new(),
        }
    }

    fn send(&mut self, cx: &mut ActorCx<'_>) {
        let (Some(handle), Some(message)) = (self.handle, &self.message) else { return };
        if self.sending {
            self.again = true;
            return;
        }
        self.sending = true;
        let mut payload = Payload::empty();
        payload.push(message.clone());
        cx.submit_op(OP_SEND, DriverOp::Send { handle, payload });
    }

    /// Answers who waits, unless there is still something to tell.
    fn answer(&mut self) {
        if !self.sending {
            self.waiting.drain(..).for_each(|waiting| (waiting.done)());
        }
    }

    fn end(&mut self, cx: &mut ActorCx<'_>) {
        if let Some(handle) = self.handle.take() {
            cx.driver().shutdown(handle);
            cx.driver().close(handle);
        }
        cx.exit();
    }
}

impl Actor for Changes {
    fn on_start(&mut self, cx: &mut ActorCx<'_>) {
        let socket = self.socket.take().map(|socket| RawHandle(socket.into_raw_fd()));
        self.handle = socket.and_then(|raw| cx.driver().register(raw).ok());
        let bytes = config_changed();
        let buf = Buf::alloc(bytes.len());
        buf.copy_in(0, &bytes);
        self.message = Some(Segment::whole(buf));
    }

    fn on_bio(&mut self, _tag: u64, bio: BioBox, cx: &mut ActorCx<'_>) {
        debug_assert!(false, "it submits no bios");
        cx.recycle(bio);
    }

    fn on_op(&mut self, _user: u32, completion: Completion, cx: &mut ActorCx<'_>) {
        self.sending = false;
        // A socket that fails has no reader; the first socket will tell the same.
        if completion.result.is_ok() && std::mem::take(&mut self.again) {
            self.send(cx);
        }
        self.answer();
    }

    fn on_notice(&mut self, notice: DeviceNotice, cx: &mut ActorCx<'_>) {
        match notice {
            DeviceNotice::Resized(device) if device == self.device => self.send(cx),
            DeviceNotice::Resized(_) | DeviceNotice::Removed(_) => {}
        }
    }

    fn on_message(&mut self, message: Box<dyn Any + Send>, cx: &mut ActorCx<'_>) {
        let message = match message.downcast::<WhenTold>() {
            Ok(waiting) if waiting.number == self.number => {
                self.waiting.push(*waiting);
                return self.answer();
            }
            Ok(_) => return,
            Err(message) => message,
        };
        if let Ok(end) = message.downcast::<EndChanges>()
            && end.number == self.number
        {
            self.end(cx);
        }
    }
}
