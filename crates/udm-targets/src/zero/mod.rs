//! `zero`: a device of any size that reads as zeroes and forgets what is written.
//!
//! Stands on no device. Reads fill the payload; writes and discards complete at once; flushes have
//! nothing to do and are never sent here (`flush_bios` is 0). It keeps no state, prints an empty
//! status and an empty table line, takes no arguments and no messages.
//!
//! Write-zeroes is not offered, as in Linux: a front end writes zeroes instead, with the same
//! result.
//!
//! Manual: docs/targets/zero.md.

mod map;
mod table;

use alloc::boxed::Box;
use udm_core::table::{Args, BuildCx};
use udm_core::target::TargetConfig;
use udm_core::{TargetType, UserError};

/// The `zero` target type.
pub(crate) struct ZeroType;

impl TargetType for ZeroType {
    fn name(&self) -> &'static str {
        "zero"
    }

    fn version(&self) -> [u32; 3] {
        [1, 2, 0]
    }

    fn build(
        &self,
        args: &mut Args<'_>,
        _cx: &mut BuildCx<'_>,
    ) -> Result<Box<dyn TargetConfig>, UserError> {
        Ok(Box::new(table::ZeroConfig::parse(args)?))
    }
}
