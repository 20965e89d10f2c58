//! `linear`: a range of a device below, shifted.
//!
//! The plainest target and the one every speed figure starts from. Arguments are in `table.rs`, the
//! remap in `map.rs`. It keeps no state, counts nothing, prints an empty status and takes no
//! messages. All operations pass; an empty flush does not even come here (it goes straight to each
//! distinct device of the table, see `flush_bypasses_map`).
//!
//! Manual: docs/targets/linear.md.

mod map;
mod table;

use alloc::boxed::Box;
use udm_core::table::{Args, BuildCx};
use udm_core::target::TargetConfig;
use udm_core::{TargetType, UserError};

/// The `linear` target type.
pub(crate) struct LinearType;

impl TargetType for LinearType {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn version(&self) -> [u32; 3] {
        [1, 5, 0]
    }

    fn build(
        &self,
        args: &mut Args<'_>,
        cx: &mut BuildCx<'_>,
    ) -> Result<Box<dyn TargetConfig>, UserError> {
        Ok(Box::new(table::LinearConfig::parse(args, cx)?))
    }
}
