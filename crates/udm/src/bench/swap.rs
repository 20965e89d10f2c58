//! `udm bench swap`: tables swapped under noflush as fast as they go, under a verified load.
//!
//! Three tables with the same mapping and different shapes (one linear line, eight linear lines,
//! one stripe) take turns. A swap is `load` then `resume` with noflush: suspend, push back, bind,
//! resume, as one request. The swapper is an actor on the coordinator's lane, so that what is
//! measured is the engine and not the scheduling of a third thread on a machine whose lanes are all
//! busy.

use super::pauses::Pauses;
use super::verify::{self, LoadBoard, VerifyResult};
use super::{BenchError, SwapArgs};
use crate::runtime::{Runtime, RuntimeConfig};
use serde::Serialize;
use std::any::Any;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Sender};
use udm_core::engine::COORDINATOR_LANE;
use udm_core::lifecycle::{DeviceKey, Reply, ReplySink, Request, SuspendOptions};
use udm_core::{Actor, ActorCx, BioBox, LaneMessage, Table, UserError};
use udm_driver::monotonic_ns;
use udm_lane::Mailbox;
use udm_types::{ActorId, DeviceId, Sector};

const DEVICE_SECTORS: Sector = 1 << 17;
const DEVICE_BLOCKS: u64 = DEVICE_SECTORS / 8;

#[derive(Debug, Serialize)]
struct SwapReport {
    schema_version: u32,
    lanes: usize,
    driver: String,
    seconds: f64,
    swaps: u64,
    ios: u64,
    errors: u64,
    mismatches: u64,
    pause_us: Pauses,
}

pub(super) fn run(args: &SwapArgs) -> Result<(), BenchError> {
    let config =
        RuntimeConfig { lanes: args.lanes, driver: args.driver.into(), ..RuntimeConfig::default() };
    let runtime = Runtime::start(&config)?;
    let tables = tables(&runtime)?;
    let first = "0 131072 linear mem:64M:swap 0";
    let device = runtime.create("swap", None, first, false)?.id;
    let board = Arc::new(LoadBoard::default());
    let loads = verify::start(&runtime, (device, DEVICE_BLOCKS), args.depth, &board);
    let (swapped, result) = mpsc::channel();
    let swapper = Swapper {
        device,
        tables,
        board: Arc::clone(&board),
        mailbox: runtime.mailbox(COORDINATOR_LANE),
        end_ns: monotonic_ns() + (args.seconds * 1e9) as u64,
        swaps: 0,
        ticket: runtime.ticket(),
        report: Some(swapped),
    };
    let started_ns = monotonic_ns();
    runtime.spawn_actor(COORDINATOR_LANE, move || Box::new(swapper));
    let outcome = result.recv().map_err(|_| "the swapper ended early")?;
    let seconds = (monotonic_ns() - started_ns) as f64 / 1e9;
    board.stop.store(true, Ordering::Relaxed);
    let results: Vec<VerifyResult> = loads.iter().collect();
    let swaps = outcome?;
    report(args, &runtime, &board, &results, (swaps, seconds))
}

/// Tables of the same mapping and different shapes.
fn tables(runtime: &Runtime) -> Result<Vec<Arc<Table>>, UserError> {
    let eighth = DEVICE_SECTORS / 8;
    let mut pieces = String::new();
    for piece in 0..8 {
        let begin = piece * eighth;
        // Writing to a string cannot fail.
        let _ = writeln!(pieces, "{begin} {eighth} linear mem:64M:swap {begin}");
    }
    [
        format!("0 {DEVICE_SECTORS} linear mem:64M:swap 0"),
        pieces,
        format!("0 {DEVICE_SECTORS} striped 1 128 mem:64M:swap 0"),
    ]
    .iter()
    .map(|text| runtime.build_table(text, false))
    .collect()
}

fn report(
    args: &SwapArgs,
    runtime: &Runtime,
    board: &LoadBoard,
    results: &[VerifyResult],
    (swaps, seconds): (u64, f64),
) -> Result<(), BenchError> {
    let report = SwapReport {
        schema_version: 1,
        lanes: runtime.lane_count(),
        driver: runtime.driver().name.into(),
        seconds,
        swaps,
        ios: board.ios.load(Ordering::Relaxed),
        errors: board.errors.load(Ordering::Relaxed),
        mismatches: board.mismatches.load(Ordering::Relaxed),
        pause_us: Pauses::of(results.iter().flat_map(|result| &result.pauses_ns).copied())?,
    };
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!(
            "{} swaps in {:.1} s on {} lane(s) ({}), under {} verified I/Os",
            report.swaps, report.seconds, report.lanes, report.driver, report.ios
        );
        let Pauses { p50, p99, max } = report.pause_us;
        println!("  pause of I/O: {p50:.0} us p50, {p99:.0} p99, {max:.0} max");
        println!("  {} errors, {} mismatches", report.errors, report.mismatches);
    }
    if report.errors + report.mismatches > 0 {
        return Err("I/O was lost or damaged".into());
    }
    Ok(())
}

/// Swaps tables, one after the other, until the time is up.
struct Swapper {
    device: DeviceId,
    tables: Vec<Arc<Table>>,
    board: Arc<LoadBoard>,
    mailbox: Mailbox<LaneMessage>,
    end_ns: u64,
    swaps: u64,
    ticket: u64,
    report: Option<Sender<Result<u64, UserError>>>,
}

/// What a request of the swapper was answered.
struct Answered(Result<(), UserError>, Step);

#[derive(Clone, Copy)]
enum Step {
    Loaded,
    Resumed,
}

impl Swapper {
    fn ask(&self, request: Request, step: Step, cx: &mut ActorCx<'_>) {
        let sink = answer_to(self.mailbox.clone(), cx.id(), step);
        cx.send(COORDINATOR_LANE, LaneMessage::Request(Box::new(request), sink));
    }

    fn load(&mut self, cx: &mut ActorCx<'_>) {
        let next = (self.swaps as usize + 1) % self.tables.len();
        let table = Arc::clone(&self.tables[next]);
        let device = DeviceKey::Id(self.device);
        self.ask(Request::Load { device, table }, Step::Loaded, cx);
    }

    fn resume(&mut self, cx: &mut ActorCx<'_>) {
        self.board.window.fetch_add(1, Ordering::Relaxed);
        let options = SuspendOptions { noflush: true, ..SuspendOptions::default() };
        let device = DeviceKey::Id(self.device);
        self.ask(Request::Resume { device, options, ticket: self.ticket }, Step::Resumed, cx);
    }

    fn finish(&mut self, outcome: Result<u64, UserError>, cx: &mut ActorCx<'_>) {
        if let Some(report) = self.report.take() {
            // The bench waits for this.
            drop(report.send(outcome));
        }
        cx.exit();
    }
}

/// A sink that mails the answer to an actor.
fn answer_to(mailbox: Mailbox<LaneMessage>, actor: ActorId, step: Step) -> ReplySink {
    Box::new(move |reply: Result<Reply, UserError>| {
        let answered: Box<dyn Any + Send> = Box::new(Answered(reply.map(drop), step));
        // The coordinator's lane empties its mailbox every turn, and this is its only mail.
        drop(mailbox.send(LaneMessage::ToActor(actor, answered)));
    })
}

impl Actor for Swapper {
    fn on_start(&mut self, cx: &mut ActorCx<'_>) {
        self.load(cx);
    }

    fn on_bio(&mut self, _tag: u64, bio: BioBox, cx: &mut ActorCx<'_>) {
        cx.recycle(bio);
    }

    fn on_message(&mut self, message: Box<dyn Any + Send>, cx: &mut ActorCx<'_>) {
        let Ok(answered) = message.downcast::<Answered>() else { return };
        let Answered(outcome, step) = *answered;
        match (outcome, step) {
            (Err(error), _) => self.finish(Err(error), cx),
            (Ok(()), Step::Loaded) => self.resume(cx),
            (Ok(()), Step::Resumed) => {
                self.swaps += 1;
                if cx.now().0 < self.end_ns {
                    self.load(cx);
                } else {
                    self.finish(Ok(self.swaps), cx);
                }
            }
        }
    }
}
