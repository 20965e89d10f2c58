//! `striped`: chunks dealt out in turn over several legs (RAID 0).
//!
//! Arguments are in `table.rs`, chunk arithmetic and the fan-out of discards in `map.rs`, the
//! health letters in `status.rs`. Reads and writes never cross a chunk (`max_io_len_sectors`), so
//! each goes to one leg; discards and write-zeroes are copied for each leg, which takes its share
//! of the range.
//!
//! Errors are counted per leg and lane and shown as letters in the status; the first ones raise a
//! table event. The error itself is passed on unchanged: `striped` has no redundancy.
//!
//! Manual: docs/targets/striped.md.

mod map;
mod status;
mod table;

use alloc::boxed::Box;
use udm_core::table::{Args, BuildCx};
use udm_core::target::TargetConfig;
use udm_core::{TargetType, UserError};

/// The `striped` target type.
pub(crate) struct StripedType;

impl TargetType for StripedType {
    fn name(&self) -> &'static str {
        "striped"
    }

    fn version(&self) -> [u32; 3] {
        [1, 7, 0]
    }

    fn build(
        &self,
        args: &mut Args<'_>,
        cx: &mut BuildCx<'_>,
    ) -> Result<Box<dyn TargetConfig>, UserError> {
        Ok(Box::new(table::StripedConfig::parse(args, cx)?))
    }
}
