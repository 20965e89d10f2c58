//! A verified load: every block that was written is read back and compared, all the time.
//!
//! Each place of the loop owns blocks nobody else touches, and goes write, read, compare, next
//! block. A block's data is its number and version all over, so a lost, stale, torn or misplaced
//! write shows. Used by `bench swap` and by `demo`.
//!
//! The loop also measures pauses: the longest time without a completion on this lane, for each
//! window that the swapper announces by counting [`LoadBoard::window`] up.

use crate::runtime::Runtime;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use udm_core::{Actor, ActorCx, BioBox};
use udm_driver::monotonic_ns;
use udm_lane::{Buf, Payload};
use udm_types::{BioFlags, DeviceId, LaneId, Op, Sector};

/// Block of the verified load.
pub(crate) const BLOCK_BYTES: usize = 4096;
const BLOCK_SECTORS: Sector = 8;
const WORDS: usize = BLOCK_BYTES / 8;

/// What swapper and loads share; read a few times an I/O, written rarely.
#[derive(Debug, Default)]
pub(crate) struct LoadBoard {
    /// Counted up by the swapper when a swap begins.
    pub(crate) window: AtomicU64,
    /// Set when the loads should end.
    pub(crate) stop: AtomicBool,
    /// I/Os so far, by all lanes.
    pub(crate) ios: AtomicU64,
    /// Blocks that came back wrong.
    pub(crate) mismatches: AtomicU64,
    /// I/Os that failed.
    pub(crate) errors: AtomicU64,
}

/// The part of a device a load works on.
#[derive(Clone, Debug)]
pub(crate) struct VerifyOrder {
    pub(crate) device: DeviceId,
    pub(crate) first_block: u64,
    pub(crate) blocks: u64,
    pub(crate) depth: u32,
}

/// What a load reports at its end.
#[derive(Debug, Default)]
pub(crate) struct VerifyResult {
    /// Longest pause of each window, in nanoseconds.
    pub(crate) pauses_ns: Vec<u64>,
    /// The same for each window by its number, with the pauses its begin and end fell into.
    pub(crate) windows: Vec<(u64, u64)>,
}

/// Starts a load on every lane, each on its share of the device's blocks; each ends with a report.
pub(super) fn start(
    runtime: &Runtime,
    (device, device_blocks): (DeviceId, u64),
    depth: u32,
    board: &Arc<LoadBoard>,
) -> Receiver<VerifyResult> {
    let (sender, receiver) = mpsc::channel();
    let share = device_blocks / runtime.lane_count() as u64;
    for lane in 0..runtime.lane_count() {
        let order = VerifyOrder { device, first_block: lane as u64 * share, blocks: share, depth };
        let (board, sender) = (Arc::clone(board), sender.clone());
        let lane = LaneId(lane as u16);
        runtime.spawn_actor(lane, move || Box::new(Verify::new(order, board, sender)));
    }
    receiver
}

pub(crate) struct Verify {
    order: VerifyOrder,
    board: Arc<LoadBoard>,
    places: Vec<Place>,
    window: u64,
    last_ns: u64,
    longest_ns: u64,
    longest_with_edges_ns: u64,
    scratch: Vec<u8>,
    unposted_ios: u64,
    result: VerifyResult,
    report: Option<Sender<VerifyResult>>,
}

struct Place {
    block: u64,
    version: u64,
    reading: bool,
}

impl Verify {
    pub(crate) fn new(
        order: VerifyOrder,
        board: Arc<LoadBoard>,
        report: Sender<VerifyResult>,
    ) -> Verify {
        Verify {
            places: (0..u64::from(order.depth))
                .map(|place| Place { block: place, version: 1, reading: false })
                .collect(),
            order,
            board,
            window: 0,
            last_ns: 0,
            longest_ns: 0,
            longest_with_edges_ns: 0,
            scratch: vec![0; BLOCK_BYTES],
            unposted_ios: 0,
            result: VerifyResult::default(),
            report: Some(report),
        }
    }

    fn submit(&mut self, tag: u64, mut bio: BioBox, cx: &mut ActorCx<'_>) {
        let place = &self.places[tag as usize];
        let block = self.order.first_block + place.block;
        let op = if place.reading { Op::Read } else { Op::Write };
        if op == Op::Write {
            fill(&mut self.scratch, block, place.version);
            bio.payload.copy_in(0, &self.scratch);
        }
        bio.ask(op, BioFlags::empty(), block * BLOCK_SECTORS, BLOCK_SECTORS);
        cx.submit(self.order.device, tag, bio);
    }

    /// Takes a completion into account; the place then knows what comes next.
    fn take(&mut self, tag: u64, bio: &BioBox) {
        let place = &mut self.places[tag as usize];
        if !bio.status.is_ok() {
            self.board.errors.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if place.reading {
            bio.payload.copy_out(0, &mut self.scratch);
            let block = self.order.first_block + place.block;
            if !holds(&self.scratch, block, place.version) {
                self.board.mismatches.fetch_add(1, Ordering::Relaxed);
            }
            place.block += u64::from(self.order.depth);
            if place.block >= self.order.blocks {
                place.block = tag;
                place.version += 1;
            }
        }
        place.reading = !place.reading;
    }

    fn measure(&mut self) {
        let now_ns = monotonic_ns();
        let gap_ns = if self.last_ns == 0 { 0 } else { now_ns - self.last_ns };
        self.longest_ns = self.longest_ns.max(gap_ns);
        self.longest_with_edges_ns = self.longest_with_edges_ns.max(gap_ns);
        self.last_ns = now_ns;
        let window = self.board.window.load(Ordering::Relaxed);
        if window != self.window {
            if self.window != 0 {
                self.result.pauses_ns.push(self.longest_ns);
            }
            self.result.windows.push((self.window, self.longest_with_edges_ns));
            self.window = window;
            self.longest_ns = 0;
            self.longest_with_edges_ns = gap_ns;
        }
        self.unposted_ios += 1;
        if self.unposted_ios == 64 {
            self.board.ios.fetch_add(self.unposted_ios, Ordering::Relaxed);
            self.unposted_ios = 0;
        }
    }
}

impl Actor for Verify {
    fn on_start(&mut self, cx: &mut ActorCx<'_>) {
        for tag in 0..self.places.len() as u64 {
            let mut bio = cx.take_bio();
            bio.payload = Payload::from_buf(Buf::alloc(BLOCK_BYTES));
            self.submit(tag, bio, cx);
        }
    }

    fn on_bio(&mut self, tag: u64, bio: BioBox, cx: &mut ActorCx<'_>) {
        self.measure();
        self.take(tag, &bio);
        if !self.board.stop.load(Ordering::Relaxed) {
            return self.submit(tag, bio, cx);
        }
        cx.recycle(bio);
        if cx.bios_in_flight() == 0 {
            self.board.ios.fetch_add(self.unposted_ios, Ordering::Relaxed);
            if let Some(report) = self.report.take() {
                // Whoever started the load waits for it; if gone, nobody wants the figures.
                drop(report.send(core::mem::take(&mut self.result)));
            }
            cx.exit();
        }
    }
}

fn word(block: u64, version: u64, index: usize) -> u64 {
    (block << 20 | version & 0xf_ffff).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ index as u64
}

fn fill(data: &mut [u8], block: u64, version: u64) {
    for (index, chunk) in data.chunks_exact_mut(8).enumerate() {
        chunk.copy_from_slice(&word(block, version, index).to_le_bytes());
    }
}

fn holds(data: &[u8], block: u64, version: u64) -> bool {
    debug_assert_eq!(data.len(), WORDS * 8);
    data.chunks_exact(8)
        .enumerate()
        .all(|(index, chunk)| *chunk == word(block, version, index).to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::{BLOCK_BYTES, fill, holds};

    #[test]
    fn a_block_knows_its_number_and_version() {
        let mut data = vec![0; BLOCK_BYTES];
        fill(&mut data, 7, 3);
        assert!(holds(&data, 7, 3));
        assert!(!holds(&data, 7, 2), "a stale block shows");
        assert!(!holds(&data, 8, 3), "a misplaced block shows");
        data[4095] ^= 1;
        assert!(!holds(&data, 7, 3), "one flipped bit shows");
    }
}
