//! `delay`: I/O arrives later than it was sent, by class.
//!
//! Reads, writes and flushes each have a device, a start and a delay in milliseconds; arguments are
//! in `table.rs`, the queues in `map.rs`, the counts of waiting bios in `status.rs`. With three
//! arguments all classes are the same, with six flushes go with writes.
//!
//! The delayed bios are held by the target, so a suspend has to get them out: `presuspend` sends
//! all of them at once, and nothing is delayed until resume.
//!
//! Manual: docs/targets/delay.md.

mod map;
mod status;
mod table;

use alloc::boxed::Box;
use udm_core::table::{Args, BuildCx};
use udm_core::target::TargetConfig;
use udm_core::{TargetType, UserError};

/// The `delay` target type.
pub(crate) struct DelayType;

impl TargetType for DelayType {
    fn name(&self) -> &'static str {
        "delay"
    }

    fn version(&self) -> [u32; 3] {
        [1, 5, 0]
    }

    fn build(
        &self,
        args: &mut Args<'_>,
        cx: &mut BuildCx<'_>,
    ) -> Result<Box<dyn TargetConfig>, UserError> {
        Ok(Box::new(table::DelayConfig::parse(args, cx)?))
    }
}
