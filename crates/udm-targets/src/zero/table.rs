//! The table line of `zero`: no arguments.
//!
//! An argument is an error and not ignored, as in Linux: it is most likely a device somebody meant
//! for another target, and ignoring it would lose what is written. The table prints no arguments
//! either.
//!
//! The traits say that `zero` discards by itself (there is nothing below that could) and takes
//! neither flushes nor write-zeroes.

use super::map::Zero;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use udm_core::table::Args;
use udm_core::target::{DeviceUse, TargetConfig, TargetTraits};
use udm_core::{Target, UserError};
use udm_types::{LaneId, QueueLimits, UNLIMITED};

/// A parsed `zero` line.
pub(super) struct ZeroConfig;

impl ZeroConfig {
    pub(super) fn parse(args: &mut Args<'_>) -> Result<ZeroConfig, UserError> {
        args.expect_count(&[0], "")?;
        Ok(ZeroConfig)
    }
}

impl TargetConfig for ZeroConfig {
    fn traits(&self) -> TargetTraits {
        TargetTraits {
            flush_bios: 0,
            discard_bios: 1,
            write_zeroes_bios: 0,
            discards_itself: true,
            ..TargetTraits::default()
        }
    }

    fn devices(&self) -> Vec<DeviceUse> {
        Vec::new()
    }

    fn io_hints(&self, limits: &mut QueueLimits) {
        limits.max_discard_sectors = UNLIMITED;
        limits.discard_granularity_bytes = 512;
    }

    fn table_args(&self) -> String {
        String::new()
    }

    fn instantiate(&self, _lane: LaneId) -> Box<dyn Target> {
        Box::new(Zero)
    }
}
