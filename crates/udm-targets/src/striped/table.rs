//! The table line of `striped`: `COUNT CHUNK {DEVICE START}`, one pair for each of COUNT legs.
//!
//! Called when a table is built and when its text is asked for. The length must be a multiple of
//! COUNT, and each leg's share a multiple of CHUNK, so that the last stripe is a whole one. CHUNK
//! may be any number of sectors, not only a power of two.
//!
//! The tricky case is the number of arguments: it depends on the first of them, so it can be
//! checked only after COUNT is known. A count that does not fit what follows is an error at the
//! place where words are missing or too many.

use super::map::{Chunks, Striped};
use super::status;
use crate::leg::Leg;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;
use udm_core::table::{Args, BuildCx};
use udm_core::target::{DeviceUse, TargetConfig, TargetTraits};
use udm_core::{ErrorCode, Target, UserError};
use udm_types::{LaneId, QueueLimits, SECTOR_BYTES, Sector};

/// A parsed `striped` line.
pub(super) struct StripedConfig {
    legs: Vec<Leg>,
    chunk_sectors: u32,
    leg_len_sectors: Sector,
}

const USAGE: &str = "COUNT CHUNK_SECTORS {DEVICE START_SECTOR}...";

impl StripedConfig {
    pub(super) fn parse(
        args: &mut Args<'_>,
        cx: &mut BuildCx<'_>,
    ) -> Result<StripedConfig, UserError> {
        let count = args.number32("the number of stripes", 1..=u32::MAX)?;
        let count_fits = cx.len_sectors.is_multiple_of(u64::from(count));
        if !count_fits {
            return Err(args.bad(format!(
                "the length {} is not a multiple of the number of stripes {count}",
                cx.len_sectors
            )));
        }
        let leg_len_sectors = cx.len_sectors / u64::from(count);
        let chunk_sectors = args.number32("the chunk in sectors", 1..=u32::MAX)?;
        if !leg_len_sectors.is_multiple_of(u64::from(chunk_sectors)) {
            return Err(args.bad(format!(
                "each stripe's share of {leg_len_sectors} sectors is not a multiple of the chunk \
                 {chunk_sectors}"
            )));
        }
        check_leg_words(args, count)?;
        let mut legs = Vec::with_capacity(args.left() / 2);
        while args.left() > 0 {
            legs.push(Leg::parse(args, cx)?);
        }
        Ok(StripedConfig { legs, chunk_sectors, leg_len_sectors })
    }
}

/// The words left must be two for each leg.
fn check_leg_words(args: &Args<'_>, count: u32) -> Result<(), UserError> {
    let found = args.left() as u64;
    let wanted = u64::from(count) * 2;
    if found == wanted {
        return Ok(());
    }
    let (code, at) = if found < wanted {
        (ErrorCode::TooFewArgs, found)
    } else {
        (ErrorCode::TooManyArgs, wanted)
    };
    // Fields 1 to 5 are START, LENGTH, TYPE, COUNT and CHUNK.
    let field = u32::try_from(6 + at).unwrap_or(u32::MAX);
    Err(UserError::new(
        code,
        format!("striped: {count} stripes need {wanted} words after the chunk, found {found}"),
    )
    .at_line(args.line().line)
    .at_field(field)
    .hint(format!("usage: START LENGTH striped {USAGE}")))
}

impl TargetConfig for StripedConfig {
    fn traits(&self) -> TargetTraits {
        let count = u32::try_from(self.legs.len()).expect("invariant: the count was a u32");
        TargetTraits {
            flush_bios: count,
            discard_bios: count,
            write_zeroes_bios: count,
            flush_bypasses_map: true,
            max_io_len_sectors: u64::from(self.chunk_sectors),
            wants_end_io: true,
            ..TargetTraits::default()
        }
    }

    fn devices(&self) -> Vec<DeviceUse> {
        self.legs.iter().map(|leg| leg.part(self.leg_len_sectors)).collect()
    }

    fn io_hints(&self, limits: &mut QueueLimits) {
        let chunk = u64::from(self.chunk_sectors);
        let stripe = chunk * self.legs.len() as u64;
        limits.chunk_sectors = chunk;
        let io_min = u32::try_from(chunk * SECTOR_BYTES);
        let io_opt = u32::try_from(stripe * SECTOR_BYTES);
        // Beyond 32 bits the hint is left out, as Linux does.
        if let (Ok(io_min), Ok(io_opt)) = (io_min, io_opt) {
            limits.io_min_bytes = io_min.max(limits.physical_block_bytes);
            limits.io_opt_bytes = io_opt;
        }
        // A discard is shared by the legs, so all of them together take more than one; whole
        // stripes keep the shares equal.
        if limits.max_discard_sectors >= chunk {
            let all =
                u32::try_from(limits.max_discard_sectors.saturating_mul(self.legs.len() as u64));
            if let Ok(all) = all {
                limits.max_discard_sectors = u64::from(all) / stripe * stripe;
            }
        }
    }

    fn table_args(&self) -> String {
        let mut text = format!("{} {}", self.legs.len(), self.chunk_sectors);
        for leg in &self.legs {
            write!(text, " {}", leg.print()).expect("invariant: writing to a string succeeds");
        }
        text
    }

    fn status_args(&self, counters: &[u64]) -> String {
        status::print(self.legs.iter().map(|leg| leg.device.shown.as_str()), counters)
    }

    fn instantiate(&self, _lane: LaneId) -> Box<dyn Target> {
        let legs = self.legs.iter().map(Leg::at).collect();
        Box::new(Striped::new(legs, Chunks::new(self.chunk_sectors, self.legs.len() as u64)))
    }
}
