//! The I/O of path checks: reads the first block of a path, on a lane, and says how that went.
//!
//! An actor on the coordinator's lane, made by the watcher (`watch.rs`), which sends it orders and
//! gets what came of them through a channel. It decides nothing.
//!
//! The tricky case is a read that hangs. Its time is up long before it comes back, and it cannot be
//! recalled; so the end of its time is told at once, its coming back later and separately, and the
//! device stays open on the lane until then. The watcher orders no other check of that path
//! meanwhile, so a dead device costs one bio and no more.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::mpsc::Sender;
use udm_core::engine::COORDINATOR_LANE;
use udm_core::{Actor, ActorCx, BioBox, Dest, Engine, LaneMessage, LowerRef};
use udm_lane::{Buf, Payload};
use udm_types::{ActorId, BioFlags, LowerId, Nanos, Op, SECTOR_BYTES, Sector, Status};

/// One check to be made.
#[derive(Debug)]
pub(super) struct CheckOrder {
    /// The watcher's number for it.
    pub(super) check: u64,
    /// Where to read.
    pub(super) dest: Dest,
    /// The device, if it is a lower one: it is opened on the lane for the check.
    pub(super) lower: Option<LowerRef>,
    /// Its logical block.
    pub(super) len_sectors: Sector,
    /// Without an answer for so long the check has failed.
    pub(super) timeout: Nanos,
}

/// What came of a check. Each gets one answer, and one end; they are the same unless it hung.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CheckNews {
    /// The answer.
    Answered(u64, Status),
    /// The read has come back.
    Ended(u64),
}

/// A check under way.
struct Running {
    lower: Option<LowerId>,
    is_answered: bool,
}

/// The actor.
pub(super) struct Checker<N: Fn(CheckNews) + Send> {
    running: BTreeMap<u64, Running>,
    news: N,
}

impl<N: Fn(CheckNews) + Send> Checker<N> {
    /// A checker that tells its news to `news`.
    pub(super) fn new(news: N) -> Checker<N> {
        Checker { running: BTreeMap::new(), news }
    }
}

/// Hands an order to the checker, with the device open. To be run on the checker's lane.
pub(super) fn start(engine: &mut Engine, actor: ActorId, order: CheckOrder) -> Result<(), String> {
    if let Some(lower) = &order.lower {
        engine.open_lower(lower).map_err(|error| error.message().to_owned())?;
    }
    engine.send(COORDINATOR_LANE, LaneMessage::ToActor(actor, Box::new(order)));
    Ok(())
}

/// Sends news to a channel; nobody listens any more while the daemon ends.
pub(super) fn to_channel<T: From<CheckNews>>(sender: Sender<T>) -> impl Fn(CheckNews) {
    move |news| drop(sender.send(T::from(news)))
}

impl<N: Fn(CheckNews) + Send> Actor for Checker<N> {
    fn on_message(&mut self, message: Box<dyn Any + Send>, cx: &mut ActorCx<'_>) {
        let Ok(order) = message.downcast::<CheckOrder>() else { return };
        let lower = order.lower.as_ref().map(|lower| lower.id);
        self.running.insert(order.check, Running { lower, is_answered: false });
        let mut bio = cx.take_bio();
        bio.ask(Op::Read, BioFlags::empty(), 0, order.len_sectors);
        let len_bytes = order.len_sectors * SECTOR_BYTES;
        bio.payload = Payload::from_buf(Buf::alloc(len_bytes as usize));
        cx.set_timer(cx.now() + order.timeout, order.check);
        cx.submit_to(order.dest, order.check, bio);
    }

    fn on_bio(&mut self, tag: u64, bio: BioBox, cx: &mut ActorCx<'_>) {
        let status = bio.status;
        cx.recycle(bio);
        let Some(running) = self.running.remove(&tag) else { return };
        if let Some(lower) = running.lower {
            // Not here: a lane does not close a device while it hands out its completions.
            let close = move |engine: &mut Engine| engine.close_lower(lower);
            cx.send(COORDINATOR_LANE, LaneMessage::Run(Box::new(close)));
        }
        if !running.is_answered {
            (self.news)(CheckNews::Answered(tag, status));
        }
        (self.news)(CheckNews::Ended(tag));
    }

    fn on_timer(&mut self, token: u64, _cx: &mut ActorCx<'_>) {
        let Some(running) = self.running.get_mut(&token) else { return };
        if !std::mem::replace(&mut running.is_answered, true) {
            (self.news)(CheckNews::Answered(token, Status::Timeout));
        }
    }
}
