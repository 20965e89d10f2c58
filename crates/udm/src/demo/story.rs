//! The acts of the demo, in order, over a runtime of its own.
//!
//! ```text
//!   lanes: verified load (bench/verify.rs)      a part of the device for each
//!     demo       linear | 4 x linear | striped  swapped all the time, grown once
//!     demo-leg   linear, then delay 1 h, then linear again
//!     memory     256 MiB, sparse
//! ```
//! Everything here happens on the thread that runs the verb, by the same requests that the daemon's
//! clients make; the lanes do I/O without a break. Waiting is waiting for an answer or for a
//! counter of the load to move, with a bound after which the story has failed.
//!
//! The tricky case is measuring pauses: the load notes its longest pause between two swaps, so the
//! window is closed (0) before the device dies, or that outage would count as a pause of a swap.

use super::DemoError;
use super::progress::Progress;
use super::report::{Report, grouped, mib};
use crate::bench::pauses::Pauses;
use crate::bench::verify::{LoadBoard, Verify, VerifyOrder, VerifyResult};
use crate::cli::SCHEMA_VERSION;
use crate::runtime::{Runtime, RuntimeConfig};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Duration;
use udm_core::lifecycle::{DeviceKey, Gauges, Reply, Request, SuspendOptions, SuspendStatus};
use udm_core::{ErrorCode, Table, UserError};
use udm_driver::monotonic_ns;
use udm_types::{DeviceId, LaneId, Nanos, Sector};

/// The memory below everything; sparse, so only what the load writes is taken.
const LEG_SECTORS: Sector = 1 << 19;
const SMALL_SECTORS: Sector = 1 << 17;
const LARGE_SECTORS: Sector = 1 << 18;
/// Sectors of a block of the verified load.
const BLOCK_SECTORS: Sector = 8;
/// I/Os under way for each load.
const DEPTH: u32 = 16;
/// How long the dead device would keep an I/O: longer than anybody watches.
const DEAD_MS: u64 = 3_600_000;
/// Longest wait for something that takes milliseconds; beyond it something is broken.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at a counter.
const LOOK: Duration = Duration::from_millis(20);
/// Shapes of a table that take turns.
const SHAPES: u64 = 3;
/// Swaps at least, however slow the machine.
const SWAPS_MIN: u64 = 30;

/// The runtime with its load, and what happened so far.
pub(super) struct Story {
    runtime: Runtime,
    progress: Progress,
    demo: DeviceId,
    /// Tables of the same mapping and different shapes, built once.
    shapes: Vec<Arc<Table>>,
    board: Arc<LoadBoard>,
    finished: Receiver<VerifyResult>,
    finish: Sender<VerifyResult>,
    loads: usize,
    started_ns: u64,
    seconds: u64,
    swaps: u64,
    given_up: Option<UserError>,
    dead_ios: u64,
    dead_ns: u64,
}

impl Story {
    /// Starts the engine, makes the devices and sets the load going.
    pub(super) fn begin(seconds: u64, mut progress: Progress) -> Result<Story, DemoError> {
        let runtime = Runtime::start(&RuntimeConfig::default())?;
        runtime.create("demo-leg", None, &leg_table(), false)?;
        let demo = runtime.create("demo", None, &shape(0, SMALL_SECTORS), false)?.id;
        progress.say(&format!(
            "create   a mapped device of {} over memory; {} lane(s), {}",
            mib(SMALL_SECTORS),
            runtime.lane_count(),
            runtime.driver().name
        ));
        let shapes: Result<Vec<_>, _> = (0..SHAPES)
            .map(|turn| runtime.build_table(&shape(turn, SMALL_SECTORS), false))
            .collect();
        let (finish, finished) = mpsc::channel();
        let mut story = Story {
            runtime,
            progress,
            demo,
            shapes: shapes?,
            board: Arc::default(),
            finished,
            finish,
            loads: 0,
            started_ns: monotonic_ns(),
            seconds,
            swaps: 0,
            given_up: None,
            dead_ios: 0,
            dead_ns: 0,
        };
        story.load_range(0, SMALL_SECTORS);
        Ok(story)
    }

    /// Starts a load on every lane, each with its own part of a range.
    fn load_range(&mut self, first_sector: Sector, end_sector: Sector) {
        let lanes = self.runtime.lane_count();
        let blocks = (end_sector - first_sector) / BLOCK_SECTORS / lanes as u64;
        for lane in 0..lanes {
            let first_block = first_sector / BLOCK_SECTORS + lane as u64 * blocks;
            let order = VerifyOrder { device: self.demo, first_block, blocks, depth: DEPTH };
            let (board, finish) = (Arc::clone(&self.board), self.finish.clone());
            let lane = LaneId(u16::try_from(lane).expect("invariant: lanes are bounded"));
            self.runtime.spawn_actor(lane, move || Box::new(Verify::new(order, board, finish)));
            self.loads += 1;
        }
    }

    /// The load alone, for a twentieth of the time.
    pub(super) fn warm_up(&mut self) {
        let lanes = self.runtime.lane_count();
        self.progress.say(&format!(
            "load     every block is written, read back and compared; {DEPTH} I/Os under way on \
             each of {lanes} lane(s)"
        ));
        self.run_until(self.at(5));
    }

    /// Swaps tables as fast as they go, for half of the time.
    pub(super) fn swap_tables(&mut self) -> Result<(), DemoError> {
        let before = self.swaps;
        let end_ns = self.at(55);
        while monotonic_ns() < end_ns || self.swaps - before < SWAPS_MIN {
            let next = ((self.swaps + 1) % SHAPES) as usize;
            self.swap(Arc::clone(&self.shapes[next]))?;
            self.show();
        }
        let swaps = grouped(self.swaps - before);
        self.progress.say(&format!(
            "swap     {swaps} tables swapped under noflush between linear, 4 x linear and striped"
        ));
        Ok(())
    }

    /// One swap: load, then resume with noflush.
    fn swap(&mut self, table: Arc<Table>) -> Result<Sector, DemoError> {
        let device = DeviceKey::Id(self.demo);
        self.runtime.request(Request::Load { device: device.clone(), table })?;
        self.board.window.store(self.swaps + 1, Ordering::Relaxed);
        let status = self.runtime.resume(&device, noflush("demo: swap"))?;
        self.swaps += 1;
        Ok(status.len_sectors)
    }

    /// Doubles the device and uses the new half.
    pub(super) fn grow(&mut self) -> Result<(), DemoError> {
        let larger = self.runtime.build_table(&shape(self.swaps + 1, LARGE_SECTORS), false)?;
        let len_sectors = self.swap(larger)?;
        if len_sectors != LARGE_SECTORS {
            return Err(format!("grown to {LARGE_SECTORS} sectors, found {len_sectors}").into());
        }
        self.load_range(SMALL_SECTORS, LARGE_SECTORS);
        let (from, to) = (mib(SMALL_SECTORS), mib(LARGE_SECTORS));
        self.progress.say(&format!("grow     {from} -> {to} in a swap; the load uses both halves"));
        self.run_until(self.at(65));
        Ok(())
    }

    /// The device below dies; a suspend gives up; another device takes its place.
    pub(super) fn replace_a_dead_device(&mut self) -> Result<(), DemoError> {
        self.end_pause_windows();
        let leg = DeviceKey::Name("demo-leg".into());
        let dead = format!("0 {LEG_SECTORS} delay mem:256M:demo 0 {DEAD_MS}");
        self.runtime.load(&leg, &dead, false)?;
        let died_ns = monotonic_ns();
        self.runtime.resume(&leg, noflush("demo: the device dies"))?;
        let all = self.loads as u64 * u64::from(DEPTH);
        self.dead_ios = self.wait_for("all I/O hangs in the dead device", |story| {
            let gauges = gauges(&story.runtime, &leg)?;
            Ok((gauges.in_flight >= all).then_some(gauges.in_flight))
        })?;
        let hanging = grouped(self.dead_ios);
        self.progress
            .say(&format!("dead     the device below stops answering; {hanging} I/Os hang"));
        self.suspend_in_vain()?;
        self.runtime.load(&leg, &leg_table(), false)?;
        self.runtime.resume(&leg, noflush("demo: replace the dead device"))?;
        let before = self.board.ios.load(Ordering::Relaxed);
        self.wait_for("I/O flows again", |story| {
            Ok((story.board.ios.load(Ordering::Relaxed) > before + 2 * all).then_some(()))
        })?;
        self.dead_ns = monotonic_ns() - died_ns;
        self.progress.say(&format!(
            "replace  a noflush swap below to a healthy table; I/O flows again after {} ms",
            self.dead_ns / 1_000_000
        ));
        Ok(())
    }

    /// From now on pauses are not those of a swap. Two turns of every lane make sure that its load
    /// has noticed.
    fn end_pause_windows(&self) {
        self.board.window.store(0, Ordering::Relaxed);
        for lane in (0..self.runtime.lane_count()).chain(0..self.runtime.lane_count()) {
            let lane = LaneId(u16::try_from(lane).expect("invariant: lanes are bounded"));
            self.runtime.on_lane(lane, |_| ());
        }
    }

    /// A suspend that cannot finish: it has to give up by its deadline and say why.
    fn suspend_in_vain(&mut self) -> Result<(), DemoError> {
        let deadline = Nanos::from_millis((self.seconds * 1_000 / 30).clamp(200, 2_000));
        let device = DeviceKey::Id(self.demo);
        let options = SuspendOptions {
            deadline: Some(deadline),
            reason: "demo: look at the dead device".into(),
            ..SuspendOptions::default()
        };
        let (sender, answer) = mpsc::sync_channel(1);
        let ticket = self.runtime.ticket();
        let request = Request::Suspend { device: device.clone(), options, ticket };
        // The answer is waited for below, longer than the deadline.
        self.runtime.post(request, Box::new(move |reply| drop(sender.send(reply))));
        let seen = self.wait_for("the suspend is visible", |story| {
            let gauges = gauges(&story.runtime, &device)?;
            Ok(gauges.device.and_then(|device| device.suspend).map(|on| (on, gauges.in_flight)))
        })?;
        self.progress.say(&suspend_line(&seen.0, seen.1));
        match answer.recv_timeout(PATIENCE) {
            Ok(Err(error)) if error.code() == ErrorCode::SuspendTimedOut => {
                self.progress.say(&format!("         given up: {error}"));
                self.given_up = Some(error);
                Ok(())
            }
            Ok(Err(error)) => Err(error.into()),
            Ok(Ok(_)) => Err("the suspend ended although the device below is dead".into()),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                Err("the suspend did not give up at its deadline".into())
            }
        }
    }

    /// The load alone, until the time is up.
    pub(super) fn run_on(&mut self) {
        self.run_until(self.at(100));
    }

    /// Ends the load and adds everything up.
    pub(super) fn end(mut self) -> Result<Report, DemoError> {
        self.board.stop.store(true, Ordering::Relaxed);
        let mut pauses_ns = Vec::new();
        let mut loads_left = self.loads;
        while loads_left > 0 {
            match self.finished.recv_timeout(PATIENCE) {
                Ok(result) => pauses_ns.extend(result.pauses_ns),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
            loads_left -= 1;
        }
        self.progress.wipe();
        // A load ends when all of its I/Os are back; one that does not end has lost some.
        let lost = count(&self.board.errors) + loads_left as u64 * u64::from(DEPTH);
        let (given_up_code, given_up_message) = self.given_up.as_ref().map_or_else(
            || (String::new(), String::new()),
            |error| (error.code().as_str().to_owned(), error.message().to_owned()),
        );
        Ok(Report {
            schema_version: SCHEMA_VERSION,
            lanes: self.runtime.lane_count(),
            driver: self.runtime.driver().name.into(),
            seconds: (monotonic_ns() - self.started_ns) as f64 / 1e9,
            ios: count(&self.board.ios),
            swaps: self.swaps,
            pause_us: Pauses::of(pauses_ns)?,
            grown_from_sectors: SMALL_SECTORS,
            grown_to_sectors: LARGE_SECTORS,
            suspends_given_up: u64::from(self.given_up.is_some()),
            given_up_code,
            given_up_message,
            dead_device_ios: self.dead_ios,
            dead_device_ms: self.dead_ns / 1_000_000,
            lost,
            mismatches: count(&self.board.mismatches),
        })
    }

    /// The clock at so many hundredths of the story.
    fn at(&self, percent: u64) -> u64 {
        self.started_ns + self.seconds * 10_000_000 * percent
    }

    /// Lets the load run; ends early if a load does, which none should.
    fn run_until(&mut self, end_ns: u64) {
        while monotonic_ns() < end_ns {
            let left = Duration::from_nanos(end_ns.saturating_sub(monotonic_ns()));
            // Nothing is sent before the end, so this is a wait that shows the live line.
            if self.finished.recv_timeout(left.min(LOOK)).is_ok() {
                return;
            }
            self.show();
        }
    }

    /// Waits until `look` finds something.
    fn wait_for<T>(
        &mut self,
        what: &str,
        mut look: impl FnMut(&Story) -> Result<Option<T>, DemoError>,
    ) -> Result<T, DemoError> {
        let end_ns = monotonic_ns() + PATIENCE.as_nanos() as u64;
        while monotonic_ns() < end_ns {
            if let Some(found) = look(self)? {
                return Ok(found);
            }
            self.run_until(monotonic_ns() + LOOK.as_nanos() as u64);
        }
        Err(format!("waited {} s in vain until {what}", PATIENCE.as_secs()).into())
    }

    fn show(&mut self) {
        let Story { progress, board, swaps, started_ns, seconds, .. } = self;
        progress.live(|| {
            let ran_s = (monotonic_ns() - *started_ns) / 1_000_000_000;
            format!(
                "{} I/Os verified, {} swaps, {} lost, {} mismatches, {} s left",
                grouped(count(&board.ios)),
                grouped(*swaps),
                count(&board.errors),
                count(&board.mismatches),
                seconds.saturating_sub(ran_s)
            )
        });
    }
}

fn count(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn noflush(reason: &str) -> SuspendOptions {
    SuspendOptions { noflush: true, reason: reason.into(), ..SuspendOptions::default() }
}

fn leg_table() -> String {
    format!("0 {LEG_SECTORS} linear mem:256M:demo 0")
}

/// Tables of the same mapping and different shapes, in turn.
fn shape(turn: u64, len_sectors: Sector) -> String {
    match turn % SHAPES {
        0 => format!("0 {len_sectors} linear dm:demo-leg 0"),
        1 => {
            let quarter = len_sectors / 4;
            let line = |piece: u64| {
                let begin = piece * quarter;
                format!("{begin} {quarter} linear dm:demo-leg {begin}")
            };
            (0..4).map(line).collect::<Vec<_>>().join("\n")
        }
        _ => format!("0 {len_sectors} striped 1 128 dm:demo-leg 0"),
    }
}

/// A suspend as anybody sees it while it waits.
fn suspend_line(suspend: &SuspendStatus, in_flight: u64) -> String {
    let deadline_ms = suspend.deadline.map_or(0, |deadline| deadline.0 / 1_000_000);
    format!(
        "suspend  \"{}\": draining, {} I/Os in flight, deadline {deadline_ms} ms",
        suspend.reason,
        grouped(in_flight)
    )
}

fn gauges(runtime: &Runtime, device: &DeviceKey) -> Result<Gauges, UserError> {
    match runtime.request(Request::Gauges { device: device.clone() })? {
        Reply::Gauges(gauges) => Ok(*gauges),
        other => {
            let text = format!("expected counters, got {other:?}");
            Err(UserError::new(ErrorCode::Internal, text))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{LARGE_SECTORS, shape};
    use udm_core::table::parse_table;

    #[test]
    fn every_shape_covers_the_device() {
        for turn in 0..super::SHAPES {
            let lines = parse_table(&shape(turn, LARGE_SECTORS)).expect("a table");
            let covered: u64 = lines.iter().map(|line| line.len_sectors).sum();
            assert_eq!(covered, LARGE_SECTORS);
        }
    }
}
