//! Starting and stopping lane threads.
//!
//! A driver belongs to the thread that made it, and mailboxes need every driver's waker, so lanes
//! start in two steps: each thread opens its driver and hands its waker out; when all are there,
//! each gets the mailboxes and begins to turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use udm_core::engine::MAILBOX_CAPACITY;
use udm_core::{Engine, EngineConfig, LaneMessage};
use udm_driver::{DriverChoice, DriverError, DriverReport, spawn_lane};
use udm_lane::{Driver, Mailbox, MailboxReceiver, Wake, mailbox};
use udm_types::LaneId;

/// A lane's thread from outside.
pub(super) struct Lane {
    pub(super) mailbox: Mailbox<LaneMessage>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What a lane needs once all lanes are there.
struct Wiring {
    peers: Vec<Mailbox<LaneMessage>>,
    receiver: MailboxReceiver<LaneMessage>,
}

struct Starting {
    thread: JoinHandle<()>,
    stop: Arc<AtomicBool>,
    waker: Arc<dyn Wake>,
    wiring: mpsc::Sender<Wiring>,
}

/// Starts `count` lanes.
pub(super) fn start(
    count: usize,
    choice: DriverChoice,
    pins: impl Fn(usize) -> Option<usize>,
) -> Result<(Vec<Lane>, DriverReport), DriverError> {
    let mut starting = Vec::with_capacity(count);
    let mut first_report = None;
    for index in 0..count {
        // On an error the lanes started so far end: their wiring channels are dropped.
        let (lane, report) = start_one(index, choice, pins(index))?;
        starting.push(lane);
        first_report.get_or_insert(report);
    }
    let (peers, receivers): (Vec<_>, Vec<_>) =
        starting.iter().map(|lane| mailbox(MAILBOX_CAPACITY, Arc::clone(&lane.waker))).unzip();
    let lanes = starting
        .into_iter()
        .zip(receivers)
        .zip(&peers)
        .map(|((lane, receiver), mailbox)| {
            // The thread waits for its wiring, so this cannot fail.
            drop(lane.wiring.send(Wiring { peers: peers.clone(), receiver }));
            Lane { mailbox: mailbox.clone(), stop: lane.stop, thread: Some(lane.thread) }
        })
        .collect();
    let report = first_report.expect("invariant: there is at least one lane");
    Ok((lanes, report))
}

fn start_one(
    index: usize,
    choice: DriverChoice,
    pin: Option<usize>,
) -> Result<(Starting, DriverReport), DriverError> {
    let stop = Arc::new(AtomicBool::new(false));
    let (wiring, wired) = mpsc::channel::<Wiring>();
    let (waker_sender, waker) = mpsc::sync_channel(1);
    let stopped = Arc::clone(&stop);
    let (thread, report) = spawn_lane(index, choice, pin, move |driver| {
        if waker_sender.send(driver.waker()).is_ok()
            && let Ok(wiring) = wired.recv()
        {
            run(index, driver, wiring, &stopped);
        }
    })?;
    let waker = waker.recv().expect("invariant: a lane sends its waker before anything else");
    Ok((Starting { thread, stop, waker, wiring }, report))
}

fn run(index: usize, driver: Box<dyn Driver>, wiring: Wiring, stop: &AtomicBool) {
    let lane = LaneId(u16::try_from(index).expect("invariant: lanes are bounded"));
    let Wiring { peers, receiver } = wiring;
    let mut engine = Engine::new(EngineConfig { lane, peers, receiver, driver });
    while !stop.load(Ordering::Relaxed) {
        engine.turn(true);
    }
}

/// Stops lanes and waits for them.
pub(super) fn stop(lanes: &mut [Lane]) {
    for lane in lanes.iter_mut() {
        let stop = Arc::clone(&lane.stop);
        stop.store(true, Ordering::Relaxed);
        // The message makes a sleeping lane look; a full mailbox means it is awake anyway.
        drop(lane.mailbox.send(LaneMessage::Run(Box::new(|_| {}))));
    }
    for lane in lanes.iter_mut() {
        if let Some(thread) = lane.thread.take() {
            // A lane that panicked has already printed why.
            drop(thread.join());
        }
    }
}
