//! `null:SIZE`: takes everything, keeps nothing, costs next to nothing.
//!
//! For measuring what is above it. Every bio is answered at once, through the same queue as any
//! other, so that what is measured is the engine's whole way.
//!
//! A read leaves the payload as it was: its contents are *undefined*, and may be old data of this
//! daemon. Nobody should export a null device to a client who may not see that data; the `zero`
//! target is there for whoever wants zeroes.

use udm_core::{BioBox, LowerCx, LowerDevice, LowerLane};
use udm_lane::Errno;
use udm_types::{QueueLimits, Sector, Status};

/// A null device.
pub(crate) struct NullDevice {
    shown: String,
    len_sectors: Sector,
    read_only: bool,
}

impl NullDevice {
    pub(crate) fn new(shown: &str, len_sectors: Sector, read_only: bool) -> NullDevice {
        NullDevice { shown: shown.to_owned(), len_sectors, read_only }
    }
}

impl LowerDevice for NullDevice {
    fn shown(&self) -> String {
        self.shown.clone()
    }

    fn len_sectors(&self) -> Sector {
        self.len_sectors
    }

    fn limits(&self) -> QueueLimits {
        QueueLimits { read_only: self.read_only, ..QueueLimits::default() }
    }

    fn open_lane(&self, _cx: &mut LowerCx<'_>) -> Result<Box<dyn LowerLane>, Errno> {
        Ok(Box::new(NullLane))
    }
}

struct NullLane;

impl LowerLane for NullLane {
    #[inline]
    fn submit(&mut self, bio: BioBox, cx: &mut LowerCx<'_>) {
        cx.complete(bio, Status::Ok);
    }
}
