//! A driver without a world: a clock that moves by hand, and operations that end when told to.
//!
//! [`FakeWorld`] is shared by the drivers of all lanes and by the fake lower devices. It holds the
//! clock and the *latches*: a fake lower device that wants to hold a bio starts a driver operation
//! on a latch's handle; opening the latch completes that operation in the lane's next turn. So a
//! test can hold I/O for as long as it likes and let it go in any order, and the engine sees
//! nothing unusual.
//!
//! Rules. Nothing here blocks: `wait` returns at once and notes that the lane would have slept and
//! until when; that is how [`crate::TestWorld`] knows when nothing more can happen without the
//! clock. Everything runs in one thread; the mutexes only satisfy the `Send` that device traits ask
//! for.
//!
//! The tricky case is the order of completions: latches complete in the order they were opened, not
//! in the order their operations were started.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use udm_lane::{Completion, Driver, DriverOp, Errno, Handle, OpToken, Payload, RawHandle, Wake};
use udm_types::Nanos;

/// "No such device": what operations on anything but a latch give.
const ENODEV: Errno = Errno(19);
/// "Operation cancelled".
const ECANCELED: Errno = Errno(125);

/// What all lanes of a test share: clock and latches. Cheap to clone.
#[derive(Clone, Default)]
pub struct FakeWorld {
    state: Arc<Mutex<WorldState>>,
}

#[derive(Default)]
struct WorldState {
    now: Nanos,
    next_latch: u32,
    /// Opened latches, in the order of opening.
    opened: Vec<Handle>,
    next_event: u64,
}

/// Locks; a poisoned lock only says that another test assertion failed first.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FakeWorld {
    /// The time.
    pub fn now(&self) -> Nanos {
        lock(&self.state).now
    }

    /// Moves the clock; it never goes back.
    pub fn set_now(&self, now: Nanos) {
        let mut state = lock(&self.state);
        assert!(now >= state.now, "the clock does not go back");
        state.now = now;
    }

    /// A latch nobody has used yet, closed.
    pub fn new_latch(&self) -> Handle {
        let mut state = lock(&self.state);
        state.next_latch += 1;
        Handle(state.next_latch)
    }

    /// Opens a latch: the operation waiting on it completes.
    pub fn open_latch(&self, latch: Handle) {
        lock(&self.state).opened.push(latch);
    }

    /// Numbers that grow over all lanes and lower devices; gives logs a common order.
    pub fn next_event(&self) -> u64 {
        let mut state = lock(&self.state);
        state.next_event += 1;
        state.next_event
    }

    /// A driver for one more lane.
    pub fn driver(&self) -> (Box<dyn Driver>, LaneProbe) {
        let probe = LaneProbe::default();
        let driver = FakeDriver {
            world: self.clone(),
            probe: probe.clone(),
            pending: BTreeMap::new(),
            ended: Vec::new(),
        };
        (Box::new(driver), probe)
    }
}

/// What a test sees of one lane's driver. Cheap to clone.
#[derive(Clone, Default)]
pub struct LaneProbe {
    state: Arc<Mutex<ProbeState>>,
    woken: Arc<AtomicBool>,
}

#[derive(Default)]
struct ProbeState {
    asleep: bool,
    deadline: Option<Nanos>,
    waits: u64,
}

impl LaneProbe {
    /// True if the lane went to sleep in its last turn and nobody has woken it since.
    pub fn is_asleep(&self) -> bool {
        lock(&self.state).asleep && !self.woken.load(Ordering::SeqCst)
    }

    /// When the sleeping lane wants to wake up by itself.
    pub fn deadline(&self) -> Option<Nanos> {
        lock(&self.state).deadline
    }

    /// How many times the lane has waited: its loop turns as the driver sees them.
    pub fn waits(&self) -> u64 {
        lock(&self.state).waits
    }
}

impl Wake for LaneProbe {
    fn wake(&self) {
        self.woken.store(true, Ordering::SeqCst);
    }
}

/// One lane's fake driver.
struct FakeDriver {
    world: FakeWorld,
    probe: LaneProbe,
    /// Operations waiting on a latch.
    pending: BTreeMap<Handle, (OpToken, Payload)>,
    /// Operations that ended without a latch.
    ended: Vec<Completion>,
}

fn parts(op: DriverOp) -> (Option<Handle>, Payload) {
    match op {
        DriverOp::Sync { handle } => (Some(handle), Payload::empty()),
        DriverOp::Read { payload, .. }
        | DriverOp::Write { payload, .. }
        | DriverOp::Send { payload, .. } => (None, payload),
        DriverOp::Recv { segment, .. } => (None, Payload::from(segment)),
        DriverOp::Fallocate { .. }
        | DriverOp::Accept { .. }
        | DriverOp::Watch { .. }
        | DriverOp::Exchange { .. } => (None, Payload::empty()),
        DriverOp::Command { memory, .. } | DriverOp::Lend { memory, .. } => (None, memory),
    }
}

impl FakeDriver {
    /// Completions that are due: without latch, and of opened latches.
    fn collect(&mut self, completions: &mut Vec<Completion>) {
        completions.append(&mut self.ended);
        let mut state = lock(&self.world.state);
        let pending = &mut self.pending;
        state.opened.retain(|latch| match pending.remove(latch) {
            Some((token, payload)) => {
                completions.push(Completion { token, result: Ok(0), payload, more: false });
                false
            }
            // Another lane's, or its operation has not been started yet.
            None => true,
        });
    }
}

impl Driver for FakeDriver {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn register(&mut self, _raw: RawHandle) -> Result<Handle, Errno> {
        Ok(self.world.new_latch())
    }

    fn close(&mut self, _handle: Handle) {}

    fn shutdown(&mut self, _handle: Handle) {}

    fn submit(&mut self, token: OpToken, op: DriverOp) {
        let (latch, payload) = parts(op);
        match latch {
            Some(latch) => {
                self.pending.insert(latch, (token, payload));
            }
            None => {
                self.ended.push(Completion { token, result: Err(ENODEV), payload, more: false });
            }
        }
    }

    fn cancel(&mut self, token: OpToken) {
        let found = self.pending.iter().find(|(_, (pending, _))| *pending == token);
        if let Some(latch) = found.map(|(latch, _)| *latch)
            && let Some((token, payload)) = self.pending.remove(&latch)
        {
            self.ended.push(Completion { token, result: Err(ECANCELED), payload, more: false });
        }
    }

    fn wait(&mut self, deadline: Option<Nanos>, completions: &mut Vec<Completion>) {
        let before = completions.len();
        self.collect(completions);
        let woken = self.probe.woken.swap(false, Ordering::SeqCst);
        let due = deadline.is_some_and(|deadline| deadline <= self.world.now());
        let mut state = lock(&self.probe.state);
        state.waits += 1;
        state.asleep = !woken && !due && completions.len() == before;
        state.deadline = deadline;
    }

    fn now(&mut self) -> Nanos {
        self.world.now()
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::new(self.probe.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::FakeWorld;
    use udm_lane::{DriverOp, OpToken};
    use udm_types::Nanos;

    #[test]
    fn latches_complete_in_the_order_they_are_opened() {
        let world = FakeWorld::default();
        let (mut driver, probe) = world.driver();
        let latches = [world.new_latch(), world.new_latch()];
        for (index, handle) in latches.into_iter().enumerate() {
            driver.submit(OpToken(index as u64), DriverOp::Sync { handle });
        }
        let mut completions = Vec::new();
        driver.wait(Some(Nanos(7)), &mut completions);
        assert!(completions.is_empty() && probe.is_asleep());
        assert_eq!(probe.deadline(), Some(Nanos(7)));
        world.open_latch(latches[1]);
        world.open_latch(latches[0]);
        driver.wait(None, &mut completions);
        let order: Vec<u64> = completions.iter().map(|completion| completion.token.0).collect();
        assert_eq!(order, [1, 0]);
        assert!(!probe.is_asleep());
    }

    #[test]
    fn a_woken_lane_is_not_asleep() {
        let (mut driver, probe) = FakeWorld::default().driver();
        driver.wait(None, &mut Vec::new());
        assert!(probe.is_asleep());
        driver.waker().wake();
        assert!(!probe.is_asleep());
    }
}
