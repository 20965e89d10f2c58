//! The kernel's switch for FUSE over io_uring, turned for the mounts of a benchmark or a soak.
//!
//! It is one for the whole machine, and off by default. It counts when a mount begins; what is
//! mounted stays as it is. So it is turned back as soon as the mounts are there.

use crate::steps::Failed;
use std::fs;
use std::path::Path;

const SWITCH: &str = "/sys/module/fuse/parameters/enable_uring";

/// The switch, turned; as it was again on drop.
pub(crate) struct FuseRings {
    was: String,
}

impl FuseRings {
    /// Turns it on or off. Nothing if this kernel has none.
    pub(crate) fn switch(on: bool) -> Result<Option<FuseRings>, Failed> {
        if !Path::new(SWITCH).exists() {
            return Ok(None);
        }
        let was = fs::read_to_string(SWITCH).map_err(Failed::to(format!("read {SWITCH}")))?;
        let wanted = if on { "Y" } else { "N" };
        fs::write(SWITCH, wanted).map_err(Failed::to(format!("write {SWITCH}")))?;
        Ok(Some(FuseRings { was }))
    }
}

impl Drop for FuseRings {
    fn drop(&mut self) {
        // It could be written a moment ago.
        let _ = fs::write(SWITCH, self.was.trim());
    }
}
