//! A lane without an engine: one real driver and one device's part, for the tests of this folder.
//!
//! The test submits bios and takes them when they are done; in between the lane passes the
//! driver's completions on, as the engine would. The low 32 bits of a token are the operation's
//! `user` word.

use std::sync::Arc;
use udm_core::{BioBox, LowerBench, LowerCx, LowerDevice, LowerLane};
use udm_driver::{DriverChoice, open_driver};
use udm_lane::{Buf, Completion, Driver, Payload};
use udm_types::{BioFlags, LaneId, Op};

/// A lane.
pub(crate) struct Lane {
    number: LaneId,
    driver: Box<dyn Driver>,
    bench: LowerBench,
    part: Option<Box<dyn LowerLane>>,
    completions: Vec<Completion>,
}

impl Lane {
    /// Opens the device's part of this lane; `None`, with the reason printed, if there is no such
    /// driver here.
    pub(crate) fn open(
        number: u16,
        choice: DriverChoice,
        device: &Arc<dyn LowerDevice>,
    ) -> Option<Lane> {
        let driver = match open_driver(choice) {
            Ok((driver, _)) => driver,
            Err(error) => {
                println!("skipped: {error}");
                return None;
            }
        };
        let (mut driver, mut bench) = (driver, LowerBench::default());
        let number = LaneId(number);
        let now = driver.now();
        let part = device.open_lane(&mut bench.cx(&mut *driver, number, now)).unwrap();
        Some(Lane { number, driver, bench, part: Some(part), completions: Vec::new() })
    }

    fn part(&mut self, call: impl FnOnce(&mut dyn LowerLane, &mut LowerCx<'_>)) {
        let now = self.driver.now();
        let part = self.part.as_mut().unwrap();
        call(&mut **part, &mut self.bench.cx(&mut *self.driver, self.number, now));
    }

    /// Submits a bio.
    pub(crate) fn submit(&mut self, bio: BioBox) {
        self.part(|part, cx| part.submit(bio, cx));
    }

    /// Waits until at least one bio is done.
    pub(crate) fn turn(&mut self) -> Vec<BioBox> {
        while self.bench.done.is_empty() {
            let mut completions = std::mem::take(&mut self.completions);
            self.driver.wait(None, &mut completions);
            for completion in completions.drain(..) {
                let user = completion.token.0 as u32;
                self.bench.ops_in_flight -= 1;
                self.part(|part, cx| part.on_op(user, completion, cx));
            }
            self.completions = completions;
        }
        self.bench.done.drain(..).collect()
    }

    /// One bio, there and back.
    pub(crate) fn one(
        &mut self,
        op: Op,
        flags: BioFlags,
        sector: u64,
        len_sectors: u64,
        byte: u8,
    ) -> BioBox {
        let bio = self.bio(op, flags, sector, len_sectors, byte);
        self.submit(bio);
        self.turn().pop().unwrap()
    }

    /// A bio whose data is all `byte`.
    pub(crate) fn bio(
        &self,
        op: Op,
        flags: BioFlags,
        sector: u64,
        len_sectors: u64,
        byte: u8,
    ) -> BioBox {
        let mut bio = self.bench.bio();
        bio.ask(op, flags, sector, len_sectors);
        if op.has_data() {
            let buf = Buf::alloc(len_sectors as usize * 512);
            buf.fill(0, buf.len_bytes(), byte);
            bio.payload = Payload::from_buf(buf);
        }
        bio
    }

    /// Closes the part; nothing may be under way.
    pub(crate) fn close(&mut self) {
        assert_eq!(self.bench.ops_in_flight, 0);
        self.part(|part, cx| part.close(cx));
        self.part = None;
    }
}
