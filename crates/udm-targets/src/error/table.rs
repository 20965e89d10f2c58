//! The table line of `error`: nothing, or `DEVICE START`, or anything.
//!
//! With exactly two arguments they name a device as for `linear`: it is opened and its limits are
//! stacked, so that an `error` segment can keep the block size of the device it stands in for. Any
//! other number of arguments is ignored, as Linux does: a table line of another type can be turned
//! into `error` by changing one word.
//!
//! The tricky part is that the table prints no arguments even when a device was named; loading the
//! printed text gives a target that behaves the same but holds no device.

use super::map::Failing;
use crate::leg::Leg;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use udm_core::table::{Args, BuildCx};
use udm_core::target::{DeviceUse, MapMode, TargetConfig, TargetTraits};
use udm_core::{Target, UserError};
use udm_types::{LaneId, QueueLimits, Sector, UNLIMITED};

/// A parsed `error` line.
pub(super) struct ErrorConfig {
    leg: Option<Leg>,
    len_sectors: Sector,
}

impl ErrorConfig {
    pub(super) fn parse(
        args: &mut Args<'_>,
        cx: &mut BuildCx<'_>,
    ) -> Result<ErrorConfig, UserError> {
        let leg = if args.left() == 2 { Some(Leg::parse(args, cx)?) } else { None };
        Ok(ErrorConfig { leg, len_sectors: cx.len_sectors })
    }
}

impl TargetConfig for ErrorConfig {
    fn traits(&self) -> TargetTraits {
        TargetTraits {
            flush_bios: 0,
            discard_bios: 1,
            write_zeroes_bios: 0,
            discards_itself: true,
            mode: MapMode::Either,
            ..TargetTraits::default()
        }
    }

    fn devices(&self) -> Vec<DeviceUse> {
        self.leg.iter().map(|leg| leg.part(self.len_sectors)).collect()
    }

    fn io_hints(&self, limits: &mut QueueLimits) {
        limits.max_discard_sectors = UNLIMITED;
        limits.discard_granularity_bytes = limits.discard_granularity_bytes.max(512);
    }

    fn table_args(&self) -> String {
        String::new()
    }

    fn instantiate(&self, _lane: LaneId) -> Box<dyn Target> {
        Box::new(Failing)
    }
}
