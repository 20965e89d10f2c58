//! The lanes as a control thread of a front end reaches them: by their mailboxes.
//!
//! Blocks where it waits for an answer, so it is never used on a lane. Lanes run for as long as
//! anybody serves; an answer that never comes means that they have ended.

use std::sync::mpsc::{SyncSender, sync_channel};
use udm_core::LaneMessage;
use udm_core::actor::{Actor, ActorCx};
use udm_core::bio::BioBox;
use udm_core::engine::DeviceView;
use udm_lane::{Mailbox, MailboxFull};
use udm_types::{ActorId, DeviceId, LaneId};

/// Where the watch over changes and questions about a device live.
pub(crate) const HOME_LANE: LaneId = LaneId(0);

/// All lanes.
#[derive(Clone)]
pub(crate) struct Lanes {
    mailboxes: Vec<Mailbox<LaneMessage>>,
}

impl Lanes {
    pub(crate) fn new(mailboxes: Vec<Mailbox<LaneMessage>>) -> Lanes {
        Lanes { mailboxes }
    }

    /// The lane of a device's queue. Devices begin at different lanes, so that disks of one queue
    /// are spread, too.
    pub(crate) fn lane_of(&self, device: DeviceId, queue: u16) -> LaneId {
        let first = device.index() + usize::from(queue);
        LaneId((first % self.mailboxes.len()) as u16)
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.mailboxes.len()
    }

    /// Sends a message, waiting for room.
    pub(crate) fn tell(&self, lane: LaneId, message: LaneMessage) {
        let mut message = message;
        while let Err(MailboxFull(back)) = self.mailboxes[lane.index()].send(message) {
            message = back;
            std::thread::yield_now();
        }
    }

    /// Installs an actor and waits until it is there. `None` if the lanes have ended.
    pub(crate) fn spawn(
        &self,
        lane: LaneId,
        make: impl FnOnce() -> Box<dyn Actor> + Send + 'static,
    ) -> Option<ActorId> {
        let (sender, receiver) = sync_channel(1);
        // The receiver waits below.
        let run = move |engine: &mut udm_core::Engine| {
            let _ = sender.send(engine.spawn_actor(make()));
        };
        self.tell(lane, LaneMessage::Run(Box::new(run)));
        receiver.recv().ok()
    }

    /// The device as it is now. `None` if it has no table.
    pub(crate) fn view(&self, device: DeviceId) -> Option<DeviceView> {
        let (sender, receiver) = sync_channel(1);
        self.spawn(HOME_LANE, move || Box::new(Question { device, sender }))?;
        receiver.recv().ok().flatten()
    }
}

/// An actor that looks at a device once and is gone.
struct Question {
    device: DeviceId,
    sender: SyncSender<Option<DeviceView>>,
}

impl Actor for Question {
    fn on_start(&mut self, cx: &mut ActorCx<'_>) {
        // Fails if the asker is gone.
        let _ = self.sender.send(cx.device(self.device));
        cx.exit();
    }

    fn on_bio(&mut self, _tag: u64, bio: BioBox, cx: &mut ActorCx<'_>) {
        debug_assert!(false, "it submits no bios");
        cx.recycle(bio);
    }
}
