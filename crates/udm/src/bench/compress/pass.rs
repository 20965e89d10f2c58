//! One pass over a device: a fixed number of I/Os with real data, timed from first to last.
//!
//! What `load.rs` is not: it ends after so many I/Os and not after so long, its writes carry bytes
//! of a sample, and its reads can be compared with them. Used by `udm bench compress`.
//!
//! Rules. Payloads of writes are slices of the sample and are never copied here, so that the time
//! measured is the device's. A pass of writes ends with a flush, within the time: data that a
//! volume only holds in memory has cost nothing yet.
//!
//! The tricky case is the sample that is shorter than the device: block `b` then has the sample's
//! block `b` modulo its length, for writers and for verifying readers alike.

use std::sync::mpsc::Sender;
use udm_core::{Actor, ActorCx, BioBox};
use udm_driver::{cpu_time_ns, monotonic_ns};
use udm_lane::{Buf, Payload};
use udm_types::{BioFlags, DeviceId, Op, SECTOR_BYTES};

/// Where I/Os go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Places {
    /// One after the other from the beginning, and again.
    Sequential,
    /// Anywhere, all alike; data of writes is a random piece of the sample.
    Uniform,
    /// Four of five in the first fifth; data as above.
    Skewed,
}

/// What to do.
#[derive(Clone)]
pub(super) struct PassOrder {
    pub(super) device: DeviceId,
    pub(super) op: Op,
    pub(super) places: Places,
    pub(super) len_bytes: u64,
    /// The part of the device that is used, from its beginning.
    pub(super) span_bytes: u64,
    pub(super) ios: u64,
    pub(super) depth: u32,
    pub(super) seed: u64,
    /// What is written, and what sequential reads are compared with if `is_verified`.
    pub(super) sample: Buf,
    pub(super) is_verified: bool,
}

impl PassOrder {
    /// The whole span once, from its beginning, `(length of an I/O, span)`.
    pub(super) fn sequential(
        device: DeviceId,
        op: Op,
        (len_bytes, span_bytes): (u64, u64),
        sample: &Buf,
    ) -> PassOrder {
        PassOrder {
            device,
            op,
            places: Places::Sequential,
            len_bytes,
            span_bytes,
            ios: (span_bytes / len_bytes).max(1),
            // About four large ones: less than the volume's buffers, so that none of them waits.
            depth: ((4 << 20) / len_bytes).clamp(1, 32) as u32,
            seed: 1,
            sample: sample.clone(),
            is_verified: false,
        }
    }
}

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PassResult {
    pub(super) ios: u64,
    pub(super) errors: u64,
    pub(super) mismatches: u64,
    pub(super) wall_ns: u64,
    /// Of the lane's thread.
    pub(super) cpu_ns: u64,
}

/// The actor.
pub(super) struct Pass {
    order: PassOrder,
    rng: fastrand::Rng,
    sample: Payload,
    units: u64,
    begun: u64,
    started_ns: u64,
    started_cpu_ns: u64,
    is_flushing: bool,
    scratch: [Vec<u8>; 2],
    /// Where each I/O under way is, by tag.
    at: Vec<u64>,
    result: PassResult,
    report: Option<Sender<PassResult>>,
}

impl Pass {
    pub(super) fn new(order: PassOrder, report: Sender<PassResult>) -> Pass {
        let room = if order.is_verified { order.len_bytes as usize } else { 0 };
        Pass {
            rng: fastrand::Rng::with_seed(order.seed),
            sample: Payload::from_buf(order.sample.clone()),
            units: (order.span_bytes / order.len_bytes).max(1),
            begun: 0,
            started_ns: 0,
            started_cpu_ns: 0,
            is_flushing: false,
            scratch: [vec![0; room], vec![0; room]],
            at: vec![0; order.depth as usize],
            order,
            result: PassResult::default(),
            report: Some(report),
        }
    }

    /// The next unit of the device.
    fn place(&mut self) -> u64 {
        match self.order.places {
            Places::Sequential => self.begun % self.units,
            Places::Uniform => self.rng.u64(..self.units),
            Places::Skewed => {
                let fifth = (self.units / 5).max(1);
                match self.rng.u8(..5) {
                    0 if fifth < self.units => self.rng.u64(fifth..self.units),
                    _ => self.rng.u64(..fifth),
                }
            }
        }
    }

    /// Where in the sample the data of a unit begins.
    fn sample_at(&self, unit: u64) -> u64 {
        let units = self.sample.len_bytes() / self.order.len_bytes;
        unit % units * self.order.len_bytes
    }

    fn submit(&mut self, tag: u64, mut bio: BioBox, cx: &mut ActorCx<'_>) {
        let unit = self.place();
        self.begun += 1;
        self.at[tag as usize] = unit;
        if self.order.op == Op::Write {
            let piece = match self.order.places {
                Places::Sequential => unit,
                Places::Uniform | Places::Skewed => self.rng.u64(..u64::MAX),
            };
            bio.payload = self.sample.slice(self.sample_at(piece), self.order.len_bytes);
        }
        let len_sectors = self.order.len_bytes / SECTOR_BYTES;
        bio.ask(self.order.op, BioFlags::empty(), unit * len_sectors, len_sectors);
        cx.submit(self.order.device, tag, bio);
    }

    fn take(&mut self, tag: u64, bio: &BioBox) {
        self.result.ios += 1;
        self.result.errors += u64::from(!bio.status.is_ok());
        if self.order.is_verified && self.order.op == Op::Read {
            let from = self.sample_at(self.at[tag as usize]);
            let [wanted, found] = &mut self.scratch;
            self.sample.slice(from, self.order.len_bytes).copy_out(0, wanted);
            bio.payload.copy_out(0, found);
            self.result.mismatches += u64::from(wanted != found);
        }
    }

    fn finish(&mut self, cx: &mut ActorCx<'_>) {
        self.result.wall_ns = monotonic_ns() - self.started_ns;
        self.result.cpu_ns = cpu_time_ns() - self.started_cpu_ns;
        if let Some(report) = self.report.take() {
            // Whoever ordered the pass waits for it; if gone, nobody wants the figures.
            let _ = report.send(self.result);
        }
        cx.exit();
    }
}

impl Actor for Pass {
    fn on_start(&mut self, cx: &mut ActorCx<'_>) {
        self.started_ns = monotonic_ns();
        self.started_cpu_ns = cpu_time_ns();
        for tag in 0..u64::from(self.order.depth).min(self.order.ios) {
            let mut bio = cx.take_bio();
            if self.order.op == Op::Read {
                bio.payload = Payload::from_buf(Buf::alloc(self.order.len_bytes as usize));
            }
            self.submit(tag, bio, cx);
        }
    }

    fn on_bio(&mut self, tag: u64, mut bio: BioBox, cx: &mut ActorCx<'_>) {
        if self.is_flushing {
            self.result.errors += u64::from(!bio.status.is_ok());
            cx.recycle(bio);
            return self.finish(cx);
        }
        self.take(tag, &bio);
        if self.begun < self.order.ios {
            return self.submit(tag, bio, cx);
        }
        if cx.bios_in_flight() > 0 {
            return cx.recycle(bio);
        }
        if self.order.op == Op::Read {
            cx.recycle(bio);
            return self.finish(cx);
        }
        self.is_flushing = true;
        bio.payload = Payload::empty();
        bio.ask(Op::Flush, BioFlags::empty(), 0, 0);
        cx.submit(self.order.device, 0, bio);
    }
}
