//! The table line of `delay`: one, two or three times `DEVICE START DELAY_MS`.
//!
//! In this order: reads, writes, flushes. A class that is not given takes the one before it. The
//! table prints as many triples as were given, so text read back is the text that was loaded.
//!
//! A delay has 32 bits (49 days). Linux lets a larger number wrap silently; here it is an error.
//!
//! The tricky case is a device named in two triples: it is opened twice but is one device, so the
//! stacked limits and `deps` see it once.

use super::map::{CLASSES, Class, Delay, Wait};
use super::status;
use crate::leg::Leg;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use udm_core::table::{Args, BuildCx};
use udm_core::target::{DeviceUse, TargetConfig, TargetTraits};
use udm_core::{Target, UserError};
use udm_types::{LaneId, Nanos, Sector};

/// One triple.
struct Triple {
    leg: Leg,
    delay_ms: u32,
}

/// A parsed `delay` line.
pub(super) struct DelayConfig {
    /// One to three.
    triples: Vec<Triple>,
    len_sectors: Sector,
}

const USAGE: &str = "DEVICE START_SECTOR DELAY_MS [WRITE_DEVICE WRITE_START WRITE_MS \
                     [FLUSH_DEVICE FLUSH_START FLUSH_MS]]";

impl DelayConfig {
    pub(super) fn parse(
        args: &mut Args<'_>,
        cx: &mut BuildCx<'_>,
    ) -> Result<DelayConfig, UserError> {
        args.expect_count(&[3, 6, 9], USAGE)?;
        let mut triples = Vec::with_capacity(CLASSES);
        while args.left() > 0 {
            // Linux looks for the device when the numbers behind it are right.
            let mut pair = args.clone();
            Leg::skip(args)?;
            let delay_ms = args.number32("the delay in milliseconds", 0..=u32::MAX)?;
            let leg = Leg::parse(&mut pair, cx)?;
            triples.push(Triple { leg, delay_ms });
        }
        Ok(DelayConfig { triples, len_sectors: cx.len_sectors })
    }

    /// The triple of a class: its own, or the last one given.
    fn class(&self, class: Class) -> Wait {
        let index = (class as usize).min(self.triples.len() - 1);
        let triple = &self.triples[index];
        let delay = Nanos::from_millis(u64::from(triple.delay_ms));
        Wait::new(triple.leg.at(), delay)
    }
}

impl TargetConfig for DelayConfig {
    fn traits(&self) -> TargetTraits {
        TargetTraits { write_zeroes_bios: 0, ..TargetTraits::default() }
    }

    fn devices(&self) -> Vec<DeviceUse> {
        self.triples.iter().map(|triple| triple.leg.part(self.len_sectors)).collect()
    }

    fn table_args(&self) -> String {
        let print = |triple: &Triple| format!("{} {}", triple.leg.print(), triple.delay_ms);
        self.triples.iter().map(print).collect::<Vec<_>>().join(" ")
    }

    fn status_args(&self, counters: &[u64]) -> String {
        status::print(counters)
    }

    fn instantiate(&self, _lane: LaneId) -> Box<dyn Target> {
        Box::new(Delay::new(Class::ALL.map(|class| self.class(class))))
    }
}
