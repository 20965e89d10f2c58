//! How busy a lane is with a mount: when it asks another one for help, and when it is not needed.
//!
//! The server counts each message here. Turns are counted and no time is taken, so the same load
//! gives the same answer. The tricky case is a batch now and then: it is no reason to wake another
//! lane, which is why only full turns in a row count.

use udm_types::Nanos;

/// A turn with so many requests is full: it is what the driver fetches in a turn, so more may wait.
const FULL_TURN: u32 = 16;
/// After so many full turns in a row, some milliseconds, a lane has more to do than it can. A batch
/// now and then is no reason: it costs less if one lane has all of it.
const FULL_TURNS: u32 = 32;
/// After so many turns with one request each a mate sleeps again. Every request wakes all lanes
/// that wait for one, so one that is not needed costs the others.
const LULL_TURNS: u32 = 32;

/// How busy the turns of this lane are.
#[derive(Default)]
pub(super) struct Turn {
    /// Its time.
    at: Nanos,
    /// Messages in it.
    messages: u32,
    /// Turns with one message before it, in a row.
    lull: u32,
    /// Full turns before it, in a row.
    full: u32,
}

impl Turn {
    /// Nothing is known yet.
    pub(super) fn from(now: Nanos) -> Turn {
        // Two messages are no lull.
        Turn { at: now, messages: 2, lull: 0, full: 0 }
    }

    /// Counts a message.
    pub(super) fn count(&mut self, now: Nanos) {
        if now != self.at {
            self.at = now;
            self.lull = if self.messages > 1 { 0 } else { self.lull + 1 };
            self.full = if self.messages < FULL_TURN { 0 } else { self.full + 1 };
            self.messages = 0;
        }
        self.messages += 1;
    }

    /// Whether there is more to do than this lane can, which is so without a free slot. Said once.
    pub(super) fn take_crowd(&mut self, no_slot: bool) -> bool {
        let is_crowded = no_slot || self.full >= FULL_TURNS;
        if is_crowded {
            self.full = 0;
        }
        is_crowded
    }

    /// Whether there is so little to do that others can. Said once.
    pub(super) fn take_lull(&mut self) -> bool {
        let is_lull = self.lull >= LULL_TURNS;
        if is_lull {
            self.lull = 0;
        }
        is_lull
    }
}
