//! The contract of a lower device: where bios end when there is no mapped device below.
//!
//! A [`LowerDevice`] is shared and describes (size, limits, name); each lane opens its own
//! [`LowerLane`], which takes bios and drives operations on the lane's ring. Implementations are in
//! `udm-lower`; the simulator uses the same ones over its own driver.
//!
//! Rules. `submit` never blocks. Short reads and writes are continued, never taken as success. A
//! flush covers every write completed on *any* lane before it was submitted. A FUA write is durable
//! when it completes; a PREFLUSH write flushes first. `abort` answers bios at once although their
//! operations hang; the memory stays with the operation until it ends.
//!
//! The tricky case is the write that lands after its bio was aborted: it could overwrite newer
//! data. Until every abandoned operation has ended, the device is fenced: new bios get `Offline`.

use crate::bio::{Bio, BioBox, LostBios};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use udm_lane::{Completion, Driver, DriverOp, Errno, OpToken};
use udm_types::{LaneId, LowerId, Nanos, QueueLimits, Sector, Status};

/// A lower device as the whole daemon sees it.
pub trait LowerDevice: Send + Sync {
    /// How tables show it: `major:minor` for a block device, else as the user wrote it.
    fn shown(&self) -> String;
    /// Its size now.
    fn len_sectors(&self) -> Sector;
    /// What it accepts.
    fn limits(&self) -> QueueLimits;
    /// Opens the part of one lane. Runs on that lane, must not block for long.
    fn open_lane(&self, cx: &mut LowerCx<'_>) -> Result<Box<dyn LowerLane>, Errno>;

    /// Reads at once. For the control side, which may block: a table is built, and a target type
    /// wants to see what is on the device. `None` where only a lane can read.
    fn read_now(&self, offset_bytes: u64, into: &mut [u8]) -> Option<Result<(), Errno>> {
        let _ = (offset_bytes, into);
        None
    }

    /// How its connections stand, for path checkers and status; `None` for a device that is not
    /// reached over a connection. Cheap, and callable from any thread.
    fn link(&self) -> Option<LinkState> {
        None
    }
}

/// How a device that is reached over connections stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkState {
    /// Lanes that have the device open.
    pub lanes_open: u32,
    /// Lanes among them that can do I/O now.
    pub lanes_connected: u32,
    /// Connections that broke or could not be made, ever.
    pub failures: u64,
    /// Why the newest of these failed; kept after a later success.
    pub last_error: Option<String>,
    /// When the next attempt of a lane without connection is due, on the lanes' clock.
    pub next_try_at: Option<Nanos>,
    /// The other side came back as something else (smaller, other blocks, read-only): no I/O until
    /// it is again what was opened, or a table is loaded anew. `last_error` says what differs.
    pub is_misfit: bool,
}

impl LinkState {
    /// True if every lane that has the device open can do I/O.
    pub fn is_up(&self) -> bool {
        self.lanes_connected == self.lanes_open && !self.is_misfit
    }
}

/// A lower device as one lane sees it.
pub trait LowerLane {
    /// Takes a bio; completes it now or later through `cx`.
    fn submit(&mut self, bio: BioBox, cx: &mut LowerCx<'_>);

    /// An operation of this lane's part ended.
    fn on_op(&mut self, user: u32, completion: Completion, cx: &mut LowerCx<'_>) {
        let _ = (user, completion, cx);
    }

    /// A timer set with [`LowerCx::set_timer`] fired.
    fn on_timer(&mut self, token: u64, cx: &mut LowerCx<'_>) {
        let _ = (token, cx);
    }

    /// The turn ends and [`LowerCx::want_turn_end`] was called in it: the moment to send what was
    /// gathered, in one operation.
    fn on_turn_end(&mut self, cx: &mut LowerCx<'_>) {
        let _ = cx;
    }

    /// Completes with `Timeout` every bio that `select` picks, although its operation hangs, and
    /// fences the device until those operations have ended.
    fn abort(&mut self, select: &mut dyn FnMut(&Bio) -> bool, cx: &mut LowerCx<'_>) {
        let _ = (select, cx);
    }

    /// No table names the device on this lane any more. Operations that wait for somebody else (a
    /// receive) have to be ended, since the part is closed only after its last operation. If a
    /// table comes before that, bios arrive again without a notice.
    fn let_go(&mut self, cx: &mut LowerCx<'_>) {
        let _ = cx;
    }

    /// Nobody uses this lane's part any more; give back handles. Called with no bio inside.
    fn close(&mut self, cx: &mut LowerCx<'_>) {
        let _ = cx;
    }
}

/// A lower device with its number; the number is free again when the last reference goes.
#[derive(Clone)]
pub struct LowerRef {
    /// The number, the same on every lane.
    pub id: LowerId,
    /// The device.
    pub device: Arc<dyn LowerDevice>,
}

impl fmt::Debug for LowerRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.id, self.device.shown())
    }
}

/// What a lower device may reach while it is called.
pub struct LowerCx<'a> {
    pub(crate) driver: &'a mut dyn Driver,
    pub(crate) done: &'a mut VecDeque<BioBox>,
    pub(crate) timers: &'a mut Vec<(Nanos, LowerId, u64)>,
    pub(crate) turn_enders: &'a mut Vec<LowerId>,
    pub(crate) ops_in_flight: &'a mut u32,
    pub(crate) id: LowerId,
    /// The lane.
    pub lane: LaneId,
    /// The lane's clock of this turn.
    pub now: Nanos,
}

impl LowerCx<'_> {
    /// Finishes a bio.
    #[inline]
    pub fn complete(&mut self, mut bio: BioBox, status: Status) {
        bio.status = status;
        self.done.push_back(bio);
    }

    /// Starts an operation; its end comes to [`LowerLane::on_op`] with `user`.
    pub fn submit_op(&mut self, user: u32, op: DriverOp) {
        *self.ops_in_flight += 1;
        let token = crate::engine::tokens::lower_token(self.id, user);
        self.driver.submit(token, op);
    }

    /// Asks for an operation to end early; it still ends through `on_op`.
    pub fn cancel_op(&mut self, user: u32) {
        let token: OpToken = crate::engine::tokens::lower_token(self.id, user);
        self.driver.cancel(token);
    }

    /// Asks for [`LowerLane::on_timer`] at `deadline`.
    pub fn set_timer(&mut self, deadline: Nanos, token: u64) {
        self.timers.push((deadline, self.id, token));
    }

    /// Asks for [`LowerLane::on_turn_end`] in this turn. Once a turn is enough: every call of this
    /// is one call of that.
    #[inline]
    pub fn want_turn_end(&mut self) {
        self.turn_enders.push(self.id);
    }

    /// The driver, to register and close handles.
    pub fn driver(&mut self) -> &mut dyn Driver {
        self.driver
    }
}

/// A lane in miniature for tests of lower devices: holds what a [`LowerCx`] reaches, and lets the
/// test look at it. The engine does not use it.
///
/// Operations go to the test's driver with tokens whose low 32 bits are the `user` word.
#[derive(Debug, Default)]
pub struct LowerBench {
    /// Completed bios, in order.
    pub done: VecDeque<BioBox>,
    /// Timers asked for: when, for whom, with which token.
    pub timers: Vec<(Nanos, LowerId, u64)>,
    /// Who asked for the end of the turn; a test that calls `on_turn_end` empties it.
    pub turn_enders: Vec<LowerId>,
    /// Operations started. A test that passes completions on takes them off again.
    pub ops_in_flight: u32,
    lost: LostBios,
}

impl LowerBench {
    /// What a device is called with, on `lane` at `now`.
    pub fn cx<'a>(
        &'a mut self,
        driver: &'a mut dyn Driver,
        lane: LaneId,
        now: Nanos,
    ) -> LowerCx<'a> {
        LowerCx {
            driver,
            done: &mut self.done,
            timers: &mut self.timers,
            turn_enders: &mut self.turn_enders,
            ops_in_flight: &mut self.ops_in_flight,
            id: LowerId(0),
            lane,
            now,
        }
    }

    /// A blank bio.
    pub fn bio(&self) -> BioBox {
        Box::new(Bio::new(LaneId(0), self.lost.clone()))
    }
}
