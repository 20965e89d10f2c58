//! A leg: part of a device below, as the argument pair `DEVICE START` names it.
//!
//! Used by every target that stands on devices (`linear`, `striped`, `error`, `delay`, `flakey`).
//! [`Leg`] is the parsed pair, shared by all lanes; [`LegAt`] is the small part of it that a lane
//! needs to send a bio there. A leg knows nothing of its target's rules.
//!
//! The tricky case is the empty flush: it has no range, its sector means nothing, and the target
//! may begin behind it; so it is sent to sector 0 instead of being translated.

use alloc::format;
use alloc::string::String;
use udm_core::bio::BioBox;
use udm_core::table::{Args, BuildCx, DeviceRef};
use udm_core::target::{DeviceUse, Shift, TargetCx};
use udm_core::{Dest, UserError};
use udm_types::{Op, Sector};

/// A device below and where on it the target's part starts.
#[derive(Clone, Debug)]
pub(crate) struct Leg {
    pub(crate) device: DeviceRef,
    pub(crate) start_sector: Sector,
}

/// What a lane needs of a leg.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LegAt {
    pub(crate) dest: Dest,
    pub(crate) start_sector: Sector,
}

impl Leg {
    /// Takes `DEVICE START` from the arguments. The number is looked at first, as Linux does:
    /// nothing is opened for a line that is wrong anyway.
    pub(crate) fn parse(args: &mut Args<'_>, cx: &mut BuildCx<'_>) -> Result<Leg, UserError> {
        Leg::skip(&mut args.clone())?;
        let device = cx.device(args, "the device")?;
        let start_sector = args.sector("the start sector on the device")?;
        Ok(Leg { device, start_sector })
    }

    /// Takes the pair without looking for the device.
    pub(crate) fn skip(args: &mut Args<'_>) -> Result<(), UserError> {
        args.word("the device")?;
        args.sector("the start sector on the device")?;
        Ok(())
    }

    /// The pair as `table` prints it.
    pub(crate) fn print(&self) -> String {
        format!("{} {}", self.device.shown, self.start_sector)
    }

    /// The range the target uses, for the area check and the stacked limits.
    pub(crate) fn part(&self, len_sectors: Sector) -> DeviceUse {
        DeviceUse { device: self.device.clone(), start_sector: self.start_sector, len_sectors }
    }

    /// The remap of a target that is this leg and nothing more.
    pub(crate) fn shift(&self) -> Shift {
        Shift { dest: self.device.dest, start_sector: self.start_sector }
    }

    /// The part a lane keeps.
    pub(crate) fn at(&self) -> LegAt {
        LegAt { dest: self.device.dest, start_sector: self.start_sector }
    }
}

impl LegAt {
    /// Points a bio at the same offset of this leg.
    #[inline]
    pub(crate) fn aim(self, bio: &mut BioBox, cx: &TargetCx<'_>) {
        let sector = match bio.op {
            Op::Flush => 0,
            Op::Read | Op::Write | Op::Discard | Op::WriteZeroes => {
                self.start_sector + (bio.sector - cx.begin_sector())
            }
        };
        bio.remap(self.dest, sector);
    }
}
