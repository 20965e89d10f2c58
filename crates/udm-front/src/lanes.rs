//! The lanes: which of them an export uses, and how a control thread of a front end reaches them.
//!
//! [`LaneShare`] is arithmetic. `Lanes` are their mailboxes; it blocks where it waits for an
//! answer, so it is never used on a lane. Lanes run for as long as anybody serves; an answer that
//! never comes means that they have ended.

use std::num::NonZeroU16;
use std::sync::mpsc::{SyncSender, sync_channel};
use udm_core::LaneMessage;
use udm_core::actor::{Actor, ActorCx};
use udm_core::bio::BioBox;
use udm_core::engine::DeviceView;
use udm_lane::{Mailbox, MailboxFull};
use udm_types::{ActorId, DeviceId, LaneId};

/// Where the watch over changes and questions about a device live.
pub(crate) const HOME_LANE: LaneId = LaneId(0);

/// The lanes that an export uses, for its queues or connections in turn.
///
/// More lanes answer more at once. Fewer cost less for each request, as long as they are not full:
/// one that wakes up finds requests of several queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneShare {
    first: usize,
    most: Option<NonZeroU16>,
}

impl LaneShare {
    /// The lanes of an export of this device: all, or not more than `most`. Devices begin at
    /// different lanes, so that those with one queue or connection are spread, too.
    pub fn new(device: DeviceId, most: Option<NonZeroU16>) -> LaneShare {
        LaneShare { first: device.index(), most }
    }

    /// How many there are, if the daemon has so many.
    pub fn count(self, lanes: usize) -> usize {
        self.most.map_or(lanes, |most| lanes.min(usize::from(most.get())))
    }

    /// The lane of the queue or connection with this number.
    pub fn lane(self, number: usize, lanes: usize) -> LaneId {
        let index = self.first + number % self.count(lanes).max(1);
        // Fits: there are at most 256 lanes.
        LaneId((index % lanes.max(1)) as u16)
    }
}

/// All lanes.
#[derive(Clone)]
pub(crate) struct Lanes {
    mailboxes: Vec<Mailbox<LaneMessage>>,
}

impl Lanes {
    pub(crate) fn new(mailboxes: Vec<Mailbox<LaneMessage>>) -> Lanes {
        Lanes { mailboxes }
    }

    /// The lane of a queue.
    pub(crate) fn lane_of(&self, share: LaneShare, queue: u16) -> LaneId {
        share.lane(usize::from(queue), self.mailboxes.len())
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

#[cfg(test)]
mod tests {
    use super::LaneShare;
    use std::num::NonZeroU16;
    use udm_types::DeviceId;

    fn lanes(device: u32, most: u16, lanes: usize) -> Vec<u16> {
        let share = LaneShare::new(DeviceId(device), NonZeroU16::new(most));
        (0..5).map(|queue| share.lane(queue, lanes).0).collect()
    }

    #[test]
    fn queues_go_round_the_share_and_shares_begin_at_different_lanes() {
        assert_eq!(lanes(0, 0, 3), [0, 1, 2, 0, 1]);
        assert_eq!(lanes(2, 0, 3), [2, 0, 1, 2, 0]);
        assert_eq!(lanes(2, 2, 3), [2, 0, 2, 0, 2]);
        assert_eq!(lanes(4, 1, 3), [1; 5]);
        // More than there are is all.
        assert_eq!(lanes(1, 9, 3), lanes(1, 0, 3));
        let share = LaneShare::new(DeviceId(0), NonZeroU16::new(2));
        assert_eq!((share.count(8), share.count(1)), (2, 1));
    }
}
