//! `flakey`: a device that works for a while, then misbehaves for a while, over and over.
//!
//! Up and down seconds are counted from when the table was built. While down it fails reads or
//! writes, drops writes, or corrupts one byte of what passes. Arguments and features are in
//! `table.rs`, the two phases in `map.rs`, the choice of bytes and the private copies in
//! `corrupt.rs`.
//!
//! The submitter's own data is never changed on a write: a corrupted *copy* goes down and the
//! original comes back. The status is empty; there are no messages.
//!
//! Manual: docs/targets/flakey.md.

mod corrupt;
mod map;
mod table;

use alloc::boxed::Box;
use udm_core::table::{Args, BuildCx};
use udm_core::target::TargetConfig;
use udm_core::{TargetType, UserError};

/// The `flakey` target type.
pub(crate) struct FlakeyType;

impl TargetType for FlakeyType {
    fn name(&self) -> &'static str {
        "flakey"
    }

    fn version(&self) -> [u32; 3] {
        [1, 5, 0]
    }

    fn build(
        &self,
        args: &mut Args<'_>,
        cx: &mut BuildCx<'_>,
    ) -> Result<Box<dyn TargetConfig>, UserError> {
        Ok(Box::new(table::FlakeyConfig::parse(args, cx)?))
    }
}
