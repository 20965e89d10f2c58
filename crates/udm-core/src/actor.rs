//! Actors: what submits bios on a lane and gets them back. A front end's connection is one.
//!
//! An actor lives on one lane and is called by it, never concurrently: with a bio that came back,
//! an operation that ended, a timer, a message, and (if it asked) the end of a loop turn, which is
//! where replies gathered in the turn go out in one system call. An actor may do driver operations
//! of its own (sockets) and submit bios to any device.
//!
//! Rules. An actor never blocks and bounds what it has in flight (back-pressure: it stops reading).
//! After [`ActorCx::exit`] it is kept until its last bio and operation have come back, and only
//! then dropped; completions that arrive meanwhile still reach it.
//!
//! The tricky case: a bio comes back with `sector` and `dest` as submitted, and may be submitted
//! again at once. Reusing it that way is how steady state allocates nothing.

use crate::bio::{BioBox, Dest};
use crate::engine::parts::Shared;
use crate::engine::tokens::actor_token;
use crate::engine::{DeviceView, Devices, LaneMessage};
use alloc::boxed::Box;
use core::any::Any;
use udm_lane::{BufPool, Completion, Driver, DriverOp};
use udm_types::{ActorId, DeviceId, LaneId, Nanos};

/// Something about a device that concerns its users.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceNotice {
    /// The device has another size (or limits) now.
    Resized(DeviceId),
    /// The device is gone.
    Removed(DeviceId),
}

/// Something that lives on a lane and does I/O. All calls come from the lane's loop.
pub trait Actor {
    /// The actor was installed.
    fn on_start(&mut self, cx: &mut ActorCx<'_>) {
        let _ = cx;
    }
    /// A bio came back; `bio.status` is its result. Recycle it or submit it again.
    fn on_bio(&mut self, tag: u64, bio: BioBox, cx: &mut ActorCx<'_>);
    /// An operation ended (or gave one of several results).
    fn on_op(&mut self, user: u32, completion: Completion, cx: &mut ActorCx<'_>) {
        let _ = (user, completion, cx);
    }
    /// A timer fired. There is no cancel; ignore what is stale.
    fn on_timer(&mut self, token: u64, cx: &mut ActorCx<'_>) {
        let _ = (token, cx);
    }
    /// The turn ends; called once after [`ActorCx::want_turn_end`].
    fn on_turn_end(&mut self, cx: &mut ActorCx<'_>) {
        let _ = cx;
    }
    /// A device changed. Every actor is told; most do not care.
    fn on_notice(&mut self, notice: DeviceNotice, cx: &mut ActorCx<'_>) {
        let _ = (notice, cx);
    }
    /// Somebody sent this actor a message.
    fn on_message(&mut self, message: Box<dyn Any + Send>, cx: &mut ActorCx<'_>) {
        let _ = (message, cx);
    }
}

/// What an actor may reach while it is called.
pub struct ActorCx<'a> {
    pub(crate) shared: &'a mut Shared,
    pub(crate) devices: &'a Devices,
    pub(crate) slot: &'a mut ActorUse,
    pub(crate) id: ActorId,
}

/// What the lane counts for an actor.
#[derive(Debug, Default)]
pub(crate) struct ActorUse {
    pub(crate) bios_in_flight: u32,
    pub(crate) ops_in_flight: u32,
    pub(crate) exiting: bool,
    pub(crate) wants_turn_end: bool,
}

impl ActorCx<'_> {
    /// This actor's number on its lane.
    pub fn id(&self) -> ActorId {
        self.id
    }

    /// The lane.
    pub fn lane(&self) -> LaneId {
        self.shared.lane
    }

    /// How many lanes there are.
    pub fn lane_count(&self) -> usize {
        self.shared.peers.len()
    }

    /// The lane's clock of this turn.
    #[inline]
    pub fn now(&self) -> Nanos {
        self.shared.now
    }

    /// A blank bio.
    #[inline]
    pub fn take_bio(&mut self) -> BioBox {
        self.shared.take_bio()
    }

    /// Gives a bio back. Its payload is dropped; take it out first to keep the buffers.
    #[inline]
    pub fn recycle(&mut self, bio: BioBox) {
        self.shared.recycle(bio);
    }

    /// The lane's buffers.
    pub fn bufs(&mut self) -> &mut BufPool {
        &mut self.shared.bufs
    }

    /// Submits a bio to a device; it comes back to `on_bio` with `tag`. It is taken up when this
    /// call of the actor has returned.
    #[inline]
    pub fn submit(&mut self, device: DeviceId, tag: u64, bio: BioBox) {
        self.submit_to(Dest::Device(device), tag, bio);
    }

    /// Submits a bio to a mapped or a lower device. A lower device must be kept open on this lane
    /// (by a table, or by `Engine::open_lower`).
    #[inline]
    pub fn submit_to(&mut self, dest: Dest, tag: u64, mut bio: BioBox) {
        self.slot.bios_in_flight += 1;
        bio.dest = dest;
        self.shared.submit_from_actor(self.id, tag, bio);
    }

    /// Starts an operation on the lane's driver; its end comes to `on_op` with `user`.
    pub fn submit_op(&mut self, user: u32, op: DriverOp) {
        self.slot.ops_in_flight += 1;
        self.shared.driver.submit(actor_token(self.id, user), op);
    }

    /// Asks for an operation to end early; it still ends through `on_op`.
    pub fn cancel_op(&mut self, user: u32) {
        self.shared.driver.cancel(actor_token(self.id, user));
    }

    /// The driver, to register, shut down and close handles.
    pub fn driver(&mut self) -> &mut dyn Driver {
        &mut *self.shared.driver
    }

    /// Asks for `on_timer` at `deadline`.
    pub fn set_timer(&mut self, deadline: Nanos, token: u64) {
        self.shared.set_actor_timer(deadline, self.id, token);
    }

    /// Asks for `on_turn_end` at the end of this turn.
    #[inline]
    pub fn want_turn_end(&mut self) {
        if !self.slot.wants_turn_end {
            self.slot.wants_turn_end = true;
            self.shared.turn_enders.push(self.id);
        }
    }

    /// The device as it is now: size, limits. `None` if it is gone or has no table.
    pub fn device(&self, device: DeviceId) -> Option<DeviceView> {
        self.devices.view(device)
    }

    /// Sends a message to a lane (also to this one); delivered in order, never dropped.
    pub fn send(&mut self, lane: LaneId, message: LaneMessage) {
        self.shared.send(lane, message);
    }

    /// Installs an actor on a lane; `make` runs there.
    pub fn spawn_on(
        &mut self,
        lane: LaneId,
        make: impl FnOnce() -> Box<dyn Actor> + Send + 'static,
    ) {
        self.shared.send(
            lane,
            LaneMessage::Run(Box::new(move |engine| {
                engine.spawn_actor(make());
            })),
        );
    }

    /// Ends this actor once its bios and operations have come back.
    pub fn exit(&mut self) {
        self.slot.exiting = true;
        self.shared.exiting.push(self.id);
    }

    /// Bios of this actor under way.
    pub fn bios_in_flight(&self) -> u32 {
        self.slot.bios_in_flight
    }

    /// Operations of this actor under way.
    pub fn ops_in_flight(&self) -> u32 {
        self.slot.ops_in_flight
    }
}
