//! The bed that compress is measured on: a volume over memory, with a counting layer between.
//!
//! ```text
//!   top    compress          Bed::create, Bed::run
//!   below  linear            counts what reaches the disk (Bed::lowered), stalls (Bed::stall)
//!   mem:   memory            touched once, so that the kernel's page faults are not measured
//! ```
//! One lane: what is measured is what one worker does.
//!
//! Rules. What reaches the disk is counted by the layer below, never taken from the volume's own
//! word. A bed's volume is made anew for each part, so that no part sees the garbage of another.
//!
//! The tricky case is formatting memory, which has no path: the tool runs on this thread and each
//! of its operations is a task on the lane (`LaneHost`).

use super::super::BenchError;
use super::pass::{Pass, PassOrder, PassResult};
use crate::runtime::{Runtime, RuntimeConfig};
use serde::Serialize;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};
use udm_core::lifecycle::{DeviceKey, Gauges, Reply, Request, StatusKind, SuspendOptions};
use udm_lane::{Buf, Payload};
use udm_meta::Disk;
use udm_meta::host::{BlockHost, run_on};
use udm_targets::compress::codec::CoderChoice;
use udm_targets::compress::format::{Defaults, Shape};
use udm_targets::compress::tools::format::{FormatRequest, Plan, format};
use udm_targets::compress::tools::view;
use udm_types::{BioFlags, DeviceId, LaneId, Op, SECTOR_BYTES, Status};

const LANE: LaneId = LaneId(0);
/// A checkpoint that takes longer has gone wrong.
const CHECKPOINT_MAX: Duration = Duration::from_secs(120);

/// A runtime with a disk.
pub(super) struct Bed {
    pub(super) runtime: Arc<Runtime>,
    /// Part of the names of its devices.
    label: &'static str,
    below: DeviceId,
    disk_bytes: u64,
}

/// What reached the disk below.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Lowered {
    pub(super) reads: u64,
    pub(super) read_bytes: u64,
    pub(super) writes: u64,
    pub(super) written_bytes: u64,
    pub(super) flushes: u64,
}

/// A volume on a bed, until it is removed.
pub(super) struct Volume<'a> {
    bed: &'a Bed,
    pub(super) id: DeviceId,
    pub(super) plan: Plan,
}

impl Bed {
    /// A disk in memory.
    pub(super) fn make(config: &RuntimeConfig, disk_bytes: u64) -> Result<Bed, BenchError> {
        Bed::in_memory(Arc::new(Runtime::start(config)?), "a", disk_bytes)
    }

    /// Another disk of the same runtime.
    pub(super) fn beside(&self, disk_bytes: u64) -> Result<Bed, BenchError> {
        Bed::in_memory(Arc::clone(&self.runtime), "b", disk_bytes)
    }

    fn in_memory(
        runtime: Arc<Runtime>,
        label: &'static str,
        disk_bytes: u64,
    ) -> Result<Bed, BenchError> {
        let bed = Bed::over(runtime, label, &format!("mem:{disk_bytes}:{label}"), disk_bytes)?;
        let sample = Buf::alloc(1 << 20);
        sample.fill(0, 1 << 20, 0x5a);
        bed.run(PassOrder::sequential(bed.below, Op::Write, (1 << 20, disk_bytes), &sample))?;
        Ok(bed)
    }

    /// A disk by its name in tables.
    pub(super) fn on(
        config: &RuntimeConfig,
        disk: &str,
        disk_bytes: u64,
    ) -> Result<Bed, BenchError> {
        Bed::over(Arc::new(Runtime::start(config)?), "a", disk, disk_bytes)
    }

    fn over(
        runtime: Arc<Runtime>,
        label: &'static str,
        disk: &str,
        disk_bytes: u64,
    ) -> Result<Bed, BenchError> {
        let table = format!("0 {} linear {disk} 0", disk_bytes / SECTOR_BYTES);
        let below = runtime.create(&format!("below-{label}"), None, &table, false)?.id;
        Ok(Bed { runtime, label, below, disk_bytes })
    }

    /// Formats the disk and brings a volume up on it.
    pub(super) fn create(
        &self,
        choice: CoderChoice,
        logical_bytes: u64,
        words: &str,
    ) -> Result<Volume<'_>, BenchError> {
        let request = FormatRequest {
            shape: Shape::for_device(self.disk_bytes),
            logical_bytes: Some(logical_bytes),
            uuid: [0xbe; 16],
            salt: 0xbe,
            defaults: Defaults { codec: choice.codec, level: choice.level },
            is_discarded: false,
        };
        let plan = self
            .tool(|disk| async move { format(&disk, &request, &mut |_step| ()).await })
            .map_err(|error| error.to_string())?;
        let count = words.split_whitespace().count();
        let sectors = logical_bytes / SECTOR_BYTES;
        let label = self.label;
        let table = format!("0 {sectors} compress dm:below-{label} {count} {words}");
        let name = format!("top-{label}");
        let id = self.runtime.create(&name, None, table.trim_end(), false)?.id;
        Ok(Volume { bed: self, id, plan })
    }

    /// Runs a tool on the disk.
    fn tool<T, F: Future<Output = T>>(&self, task: impl FnOnce(Disk) -> F) -> T {
        let disk = Disk::new(self.disk_bytes);
        let task = task(disk.clone());
        run_on(&disk, &mut LaneHost { runtime: &self.runtime, device: self.below }, task)
    }

    pub(super) fn disk_bytes(&self) -> u64 {
        self.disk_bytes
    }

    /// Does a pass; all its I/Os have to succeed.
    pub(super) fn run(&self, order: PassOrder) -> Result<PassResult, BenchError> {
        Bed::end_of(&self.start(order))
    }

    /// Begins a pass.
    pub(super) fn start(&self, order: PassOrder) -> Receiver<PassResult> {
        let (sender, receiver) = mpsc::channel();
        self.runtime.spawn_actor(LANE, move || Box::new(Pass::new(order, sender)));
        receiver
    }

    /// Waits for a pass.
    pub(super) fn end_of(pass: &Receiver<PassResult>) -> Result<PassResult, BenchError> {
        let result = pass.recv().map_err(|_| "the lane ended early")?;
        match (result.errors, result.mismatches) {
            (0, 0) => Ok(result),
            (errors, mismatches) => {
                Err(format!("{errors} I/Os failed, {mismatches} gave wrong data").into())
            }
        }
    }

    /// From now on the disk holds every I/O, as one that stalls does.
    pub(super) fn stall(&self) -> Result<(), BenchError> {
        let options = SuspendOptions { noflush: true, ..SuspendOptions::default() };
        self.runtime.suspend(&DeviceKey::Id(self.below), options)?;
        Ok(())
    }

    /// The disk goes on.
    pub(super) fn go_on(&self) -> Result<(), BenchError> {
        self.runtime.resume(&DeviceKey::Id(self.below), SuspendOptions::default())?;
        Ok(())
    }

    /// I/Os the stalled disk holds.
    pub(super) fn held(&self) -> Result<u64, BenchError> {
        Ok(self.gauges()?.held)
    }

    fn gauges(&self) -> Result<Box<Gauges>, BenchError> {
        let device = DeviceKey::Id(self.below);
        match self.runtime.request(Request::Gauges { device })? {
            Reply::Gauges(gauges) => Ok(gauges),
            other => Err(format!("an answer to another question: {other:?}").into()),
        }
    }

    /// What has reached the disk so far.
    pub(super) fn lowered(&self) -> Result<Lowered, BenchError> {
        let gauges = self.gauges()?;
        let bytes = |op: Op| gauges.sectors[op.index()] * SECTOR_BYTES;
        let ios = |op: Op| gauges.ios[op.index()];
        Ok(Lowered {
            reads: ios(Op::Read),
            read_bytes: bytes(Op::Read),
            writes: ios(Op::Write),
            written_bytes: bytes(Op::Write),
            flushes: ios(Op::Flush),
        })
    }
}

impl Lowered {
    pub(super) fn since(self, before: Lowered) -> Lowered {
        Lowered {
            reads: self.reads - before.reads,
            read_bytes: self.read_bytes - before.read_bytes,
            writes: self.writes - before.writes,
            written_bytes: self.written_bytes - before.written_bytes,
            flushes: self.flushes - before.flushes,
        }
    }
}

impl Volume<'_> {
    /// A number of the target's `stats`.
    pub(super) fn stat(&self, name: &str) -> Result<u64, BenchError> {
        let words = self.message("stats")?;
        let mut words = words.split(' ');
        let found = words.by_ref().find(|word| *word == name).and_then(|_| words.next());
        let number = found.and_then(|number| number.parse().ok());
        number.ok_or_else(|| format!("no {name} in the stats").into())
    }

    /// A word of the status line.
    pub(super) fn status(&self, place: usize) -> Result<String, BenchError> {
        let device = DeviceKey::Id(self.id);
        let request = Request::TableStatus { device, inactive: false, kind: StatusKind::Info };
        let Reply::Lines { lines, .. } = self.bed.runtime.request(request)? else {
            return Err("no status lines".into());
        };
        let line = lines.first().map(|line| line.args.clone()).unwrap_or_default();
        let word = line.split(' ').nth(place).map(str::to_owned);
        word.ok_or_else(|| "the status has too few words".into())
    }

    fn message(&self, text: &str) -> Result<String, BenchError> {
        let words = text.split(' ').map(str::to_owned).collect();
        let request = Request::Message { device: DeviceKey::Id(self.id), sector: 0, words };
        match self.bed.runtime.request(request)? {
            Reply::Text(text) => Ok(text.unwrap_or_default()),
            other => Err(format!("an answer to another question: {other:?}").into()),
        }
    }

    /// Folds all changes into the map, and waits for that.
    pub(super) fn checkpoint(&self) -> Result<(), BenchError> {
        let before = self.stat("checkpoints")?;
        self.message("checkpoint")?;
        let begin = Instant::now();
        while self.stat("checkpoints")? == before {
            if begin.elapsed() > CHECKPOINT_MAX {
                return Err("no checkpoint came".into());
            }
            std::thread::park_timeout(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Bytes of the disk that hold something, as of the last checkpoint: the log up to its end,
    /// both slots of every map page there is, and what has a fixed place.
    pub(super) fn used_bytes(&self) -> Result<u64, BenchError> {
        let view = self.bed.tool(|disk| async move { view::open(&disk).await });
        let view = view.map_err(|fault| fault.to_string())?;
        let used = self.status(3)?;
        let segments = used.split('/').next().and_then(|used| used.parse::<u64>().ok());
        let segments = segments.ok_or("the status does not say how many segments are used")?;
        let geometry = &self.plan.superblock.geometry;
        // Two of them are the open one, which is used up to its end, and the next one: empty.
        let log_bytes = segments.saturating_sub(2) * geometry.segment_bytes()
            + u64::from(view.checkpoint.head.start.offset_bytes);
        let slots = &view.checkpoint.slots;
        let pages = (0..slots.page_count()).filter(|page| slots.get(*page).is_some()).count();
        let fixed_bytes = 3 * 4096 + 2 * geometry.checkpoint_len_bytes;
        Ok(log_bytes + pages as u64 * 2 * 4096 + fixed_bytes)
    }

    /// Takes the device away; what is on the disk stays.
    pub(super) fn remove(self) -> Result<(), BenchError> {
        let device = DeviceKey::Id(self.id);
        self.bed.runtime.request(Request::Remove { device, deferred: false })?;
        Ok(())
    }
}

/// Does a tool's operations on a lane, one after the other.
struct LaneHost<'a> {
    runtime: &'a Runtime,
    device: DeviceId,
}

impl LaneHost<'_> {
    fn run(&self, op: Op, offset_bytes: u64, len_bytes: u64, payload: Payload) -> Status {
        let (sender, receiver) = mpsc::channel();
        let device = self.device;
        let range = (offset_bytes / SECTOR_BYTES, len_bytes / SECTOR_BYTES);
        self.runtime.on_lane(LANE, move |engine| {
            let io = engine.async_io();
            engine.spawn_task(async move {
                let end = io.start(device, op, BioFlags::empty(), range, payload).await;
                // Whoever asked waits below.
                let _ = sender.send(end.0);
            });
        });
        receiver.recv().unwrap_or(Status::IoErr)
    }
}

impl BlockHost for LaneHost<'_> {
    fn read(&mut self, offset_bytes: u64, payload: &Payload) -> Status {
        self.run(Op::Read, offset_bytes, payload.len_bytes(), payload.clone())
    }

    fn write(&mut self, offset_bytes: u64, payload: &Payload) -> Status {
        self.run(Op::Write, offset_bytes, payload.len_bytes(), payload.clone())
    }

    fn flush(&mut self) -> Status {
        self.run(Op::Flush, 0, 0, Payload::empty())
    }

    fn discard(&mut self, offset_bytes: u64, len_bytes: u64) -> Status {
        self.run(Op::Discard, offset_bytes, len_bytes, Payload::empty())
    }
}
