//! The compress target: a crash-consistent log of compressed records with a two-slot map.
//!
//! | module | holds |
//! |---|---|
//! | `args`, `table`, `status`, `message` | its line, what the core is told, status, messages |
//! | `target` | binds a volume to the lanes of the engine |
//! | [`codec`] | compressing and decompressing one extent |
//! | [`format`] | what lies on the disk, both ways between bytes and values |
//! | [`tools`] | format, check and the other offline tools |
//! | [`volume`] | the volume at work, without any I/O of its own |
//!
//! Rules. No part of it believes bytes from a disk: they become values in [`format`] only. The
//! tricky case is everything that a power cut can leave behind; the order of writes that makes it
//! harmless is in docs/formats/compress.md.

mod args;
pub mod codec;
pub mod format;
pub mod fuzz;
mod message;
mod status;
mod table;
mod target;
pub mod tools;
pub mod volume;

use alloc::boxed::Box;
use table::CompressConfig;
use udm_core::table::{Args, BuildCx};
use udm_core::target::{TargetConfig, TypeFeatures};
use udm_core::{TargetType, UserError};

/// The `compress` type.
pub(crate) struct CompressType;

/// The same under the ancestor's word and with its arguments, on a volume of ours.
pub(crate) struct InsituType;

impl TargetType for CompressType {
    fn name(&self) -> &'static str {
        "compress"
    }

    fn version(&self) -> [u32; 3] {
        [1, 0, 0]
    }

    fn features(&self) -> TypeFeatures {
        // A recovery writes.
        TypeFeatures { always_writable: true, ..TypeFeatures::default() }
    }

    fn build(
        &self,
        args: &mut Args<'_>,
        cx: &mut BuildCx<'_>,
    ) -> Result<Box<dyn TargetConfig>, UserError> {
        Ok(Box::new(CompressConfig::new(args::parse(args, cx)?)))
    }
}

impl TargetType for InsituType {
    fn name(&self) -> &'static str {
        "insitu-comp"
    }

    fn version(&self) -> [u32; 3] {
        [1, 0, 0]
    }

    fn features(&self) -> TypeFeatures {
        CompressType.features()
    }

    fn build(
        &self,
        args: &mut Args<'_>,
        cx: &mut BuildCx<'_>,
    ) -> Result<Box<dyn TargetConfig>, UserError> {
        Ok(Box::new(CompressConfig::new(args::parse_insitu(args, cx)?)))
    }
}
