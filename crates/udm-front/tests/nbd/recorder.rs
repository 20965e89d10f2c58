//! A lower device that writes down what reaches it and answers as it was told.

use std::sync::{Arc, Mutex, PoisonError};
use udm_core::bio::BioBox;
use udm_core::table::DeviceRef;
use udm_core::{LowerCx, LowerDevice, LowerLane, LowerRef};
use udm_lane::Errno;
use udm_types::{BioFlags, DeviceFeatures, LowerId, Op, QueueLimits, Sector, Status};

/// The name of the recorder in tables.
pub(crate) const RECORDER: &str = "recorder";

/// Far from the numbers that the registry of real devices gives.
const RECORDER_ID: LowerId = LowerId(63);

/// One bio that reached the recorder.
pub(crate) type Seen = (Op, BioFlags, Sector, Sector);

/// A device of 16 MiB with a write cache.
#[derive(Clone, Default)]
pub(crate) struct Recorder {
    notes: Arc<Mutex<Notes>>,
}

#[derive(Default)]
struct Notes {
    seen: Vec<Seen>,
    answers: Vec<(Op, Status)>,
}

impl Recorder {
    /// The device as a resolver gives it.
    pub(crate) fn device(&self) -> DeviceRef {
        DeviceRef::of_lower(&LowerRef { id: RECORDER_ID, device: Arc::new(self.clone()) })
    }

    /// Every bio with this operation gets this answer from now on.
    pub(crate) fn answer(&self, op: Op, status: Status) {
        self.with(|notes| notes.answers.push((op, status)));
    }

    /// What has been seen since the last call.
    pub(crate) fn take(&self) -> Vec<Seen> {
        self.with(|notes| std::mem::take(&mut notes.seen))
    }

    fn with<T>(&self, visit: impl FnOnce(&mut Notes) -> T) -> T {
        visit(&mut self.notes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl LowerDevice for Recorder {
    fn shown(&self) -> String {
        RECORDER.to_owned()
    }

    fn len_sectors(&self) -> Sector {
        32768
    }

    fn limits(&self) -> QueueLimits {
        let features = DeviceFeatures::WRITE_CACHE | DeviceFeatures::FUA;
        QueueLimits { features, ..QueueLimits::default() }
    }

    fn open_lane(&self, _cx: &mut LowerCx<'_>) -> Result<Box<dyn LowerLane>, Errno> {
        Ok(Box::new(self.clone()))
    }
}

impl LowerLane for Recorder {
    fn submit(&mut self, bio: BioBox, cx: &mut LowerCx<'_>) {
        let status = self.with(|notes| {
            notes.seen.push((bio.op, bio.flags, bio.sector, bio.len_sectors));
            let told = notes.answers.iter().rev().find(|(op, _)| *op == bio.op);
            told.map_or(Status::Ok, |(_, status)| *status)
        });
        cx.complete(bio, status);
    }
}
