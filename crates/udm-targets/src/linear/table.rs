//! The table line of `linear`: `DEVICE START`, exactly two arguments.
//!
//! Called when a table is built and when its text is asked for. Printing gives what was parsed,
//! with the device as the system numbers it and the start as a plain decimal (`010` comes back as
//! `10`). Whether the range lies inside the device is checked by the core, for all targets alike.
//!
//! This file never does I/O and never looks at a lane.

use super::map::Linear;
use crate::leg::Leg;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use udm_core::table::{Args, BuildCx};
use udm_core::target::{DeviceUse, TargetConfig, TargetTraits};
use udm_core::{Target, UserError};
use udm_types::{LaneId, Sector};

/// A parsed `linear` line.
pub(super) struct LinearConfig {
    leg: Leg,
    len_sectors: Sector,
}

impl LinearConfig {
    pub(super) fn parse(
        args: &mut Args<'_>,
        cx: &mut BuildCx<'_>,
    ) -> Result<LinearConfig, UserError> {
        args.expect_count(&[2], "DEVICE START_SECTOR")?;
        Ok(LinearConfig { leg: Leg::parse(args, cx)?, len_sectors: cx.len_sectors })
    }
}

impl TargetConfig for LinearConfig {
    fn traits(&self) -> TargetTraits {
        TargetTraits {
            flush_bypasses_map: true,
            shift: Some(self.leg.shift()),
            ..TargetTraits::default()
        }
    }

    fn devices(&self) -> Vec<DeviceUse> {
        vec![self.leg.part(self.len_sectors)]
    }

    fn table_args(&self) -> String {
        self.leg.print()
    }

    fn instantiate(&self, _lane: LaneId) -> Box<dyn Target> {
        Box::new(Linear { leg: self.leg.at() })
    }
}
