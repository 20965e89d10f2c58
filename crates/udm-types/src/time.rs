//! Time as a plain value: nanoseconds since an origin the driver chose.
//!
//! The engine never reads a clock. A lane reads its driver's clock once a loop turn and hands the
//! value down, so a simulated clock and a real one are the same thing to everything above.

use core::ops::{Add, Sub};

/// A point in time or a span, in nanoseconds. Never goes backwards on one lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nanos(pub u64);

impl Nanos {
    /// The origin, and the empty span.
    pub const ZERO: Nanos = Nanos(0);

    /// A span of whole milliseconds (saturating).
    pub fn from_millis(millis: u64) -> Nanos {
        Nanos(millis.saturating_mul(1_000_000))
    }

    /// A span of whole seconds (saturating).
    pub fn from_secs(secs: u64) -> Nanos {
        Nanos(secs.saturating_mul(1_000_000_000))
    }

    /// The span in whole milliseconds, rounded down.
    pub fn as_millis(self) -> u64 {
        self.0 / 1_000_000
    }

    /// The span from `earlier` to `self`; zero if `earlier` is later.
    #[inline]
    pub fn since(self, earlier: Nanos) -> Nanos {
        Nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add for Nanos {
    type Output = Nanos;
    fn add(self, span: Nanos) -> Nanos {
        Nanos(self.0.saturating_add(span.0))
    }
}

impl Sub for Nanos {
    type Output = Nanos;
    fn sub(self, span: Nanos) -> Nanos {
        self.since(span)
    }
}
