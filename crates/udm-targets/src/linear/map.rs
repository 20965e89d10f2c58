//! `linear` at work: one addition.
//!
//! Called by the doorway for every bio of the target. The new sector is
//! `start on the device + (sector - begin of the target)`; the sum cannot overflow, since the core
//! checked at load that the whole range lies inside the device below.
//!
//! Reads and writes do not even come here in release builds: the line's `shift` says the same as a
//! value, and the core adds it up itself (debug builds do both and compare). Discards and the like
//! do.
//!
//! Must never allocate, branch on data or keep state: this is the path whose cost is published
//! (`udm bench --target linear`). A flush comes here only in a table that mixes `linear` with
//! targets that do not let flushes bypass them.

use crate::leg::LegAt;
use udm_core::bio::BioBox;
use udm_core::{Mapped, Target, TargetCx};

/// `linear` on one lane.
pub(super) struct Linear {
    pub(super) leg: LegAt,
}

impl Target for Linear {
    #[inline]
    fn map(&mut self, mut bio: BioBox, cx: &mut TargetCx<'_>) -> Mapped {
        self.leg.aim(&mut bio, cx);
        Mapped::Remapped(bio)
    }
}
