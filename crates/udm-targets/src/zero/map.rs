//! `zero` at work: answers every bio itself.
//!
//! The one simple target that touches a payload: a read fills it with zeroes. Nothing is sent on,
//! so a bio ends here and goes back in the same turn; no suspend ever waits for it.
//!
//! A FUA or PREFLUSH write is durable at once: there is nothing to keep. Write-zeroes cannot arrive
//! (the core refuses it with "not supported", since the traits offer none) and fails like every
//! operation Linux's `zero` does not know.

use udm_core::bio::BioBox;
use udm_core::{Mapped, Target, TargetCx};
use udm_types::{Op, Status};

/// `zero` on one lane.
pub(super) struct Zero;

impl Target for Zero {
    fn map(&mut self, bio: BioBox, cx: &mut TargetCx<'_>) -> Mapped {
        match bio.op {
            Op::Read => bio.payload.fill(0, bio.payload.len_bytes(), 0),
            Op::Write | Op::Flush | Op::Discard => {}
            Op::WriteZeroes => return Mapped::Kill(bio),
        }
        cx.complete(bio, Status::Ok);
        Mapped::Submitted
    }
}
