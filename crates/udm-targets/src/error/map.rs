//! `error` at work: kills every bio with an I/O error.
//!
//! Called by the doorway like any target. All operations fail alike, also discards: they are
//! offered only so that an `error` segment does not take discards away from the rest of its device.
//!
//! Must never send anything to the device a line may name; that device is there for its limits
//! alone. A suspend never waits for this target, since it holds nothing.

use udm_core::bio::BioBox;
use udm_core::{Mapped, Target, TargetCx};

/// `error` on one lane.
pub(super) struct Failing;

impl Target for Failing {
    fn map(&mut self, bio: BioBox, _cx: &mut TargetCx<'_>) -> Mapped {
        Mapped::Kill(bio)
    }
}
