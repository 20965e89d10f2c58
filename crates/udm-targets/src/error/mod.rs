//! `error`: a range on which every I/O fails.
//!
//! Used to fill holes on purpose, to stand in for a lost device, and to pull a device out from
//! under its users (`wipe_table`). It is a wildcard: it may replace any target type in a reload,
//! and after it any type may follow.
//!
//! Empty flushes succeed, since there is nothing to flush (`flush_bios` is 0); in a table with
//! other targets they still reach those. It takes no messages; status and table print no arguments.
//!
//! Manual: docs/targets/error.md.

mod map;
mod table;

use alloc::boxed::Box;
use udm_core::table::{Args, BuildCx};
use udm_core::target::{TargetConfig, TypeFeatures};
use udm_core::{TargetType, UserError};

/// The `error` target type.
pub(crate) struct ErrorType;

impl TargetType for ErrorType {
    fn name(&self) -> &'static str {
        "error"
    }

    fn version(&self) -> [u32; 3] {
        [1, 7, 0]
    }

    fn features(&self) -> TypeFeatures {
        TypeFeatures { wildcard: true, ..TypeFeatures::default() }
    }

    fn build(
        &self,
        args: &mut Args<'_>,
        cx: &mut BuildCx<'_>,
    ) -> Result<Box<dyn TargetConfig>, UserError> {
        Ok(Box::new(table::ErrorConfig::parse(args, cx)?))
    }
}
