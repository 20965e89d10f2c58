//! A live line with percent and the time left, for whoever watches a tool on a terminal.
//!
//! It goes to the error stream and is rewritten in place; in a pipe there is none. The clock is
//! read at most once in so many calls, since tools report every page they look at.
//!
//! The tricky case is work without a known end (`total` 0, a log): the line counts.

use std::io::{IsTerminal, Write, stderr};
use udm_driver::monotonic_ns;
use udm_targets::compress::tools::Progress as Step;

/// Calls between two looks at the clock.
const CALLS_A_LOOK: u32 = 64;
/// Time between two lines: often enough to look alive.
const LIVE_EVERY_NS: u64 = 200_000_000;
const NS_A_S: u64 = 1_000_000_000;

/// The live line.
pub(super) struct Progress {
    is_live: bool,
    calls: u32,
    step: &'static str,
    step_begun_ns: u64,
    shown_ns: u64,
    is_on_screen: bool,
}

impl Progress {
    /// Shows something only to somebody who watches.
    pub(super) fn new() -> Progress {
        Progress {
            is_live: stderr().is_terminal(),
            calls: 0,
            step: "",
            step_begun_ns: 0,
            shown_ns: 0,
            is_on_screen: false,
        }
    }

    /// Hears how far a tool is.
    pub(super) fn hear(&mut self, step: Step) {
        self.calls = self.calls.wrapping_add(1);
        let is_new = step.step != self.step;
        if !self.is_live || !(is_new || self.calls.is_multiple_of(CALLS_A_LOOK)) {
            return;
        }
        let now_ns = monotonic_ns();
        if is_new {
            self.step = step.step;
            self.step_begun_ns = now_ns;
        }
        if !is_new && now_ns.saturating_sub(self.shown_ns) < LIVE_EVERY_NS {
            return;
        }
        self.shown_ns = now_ns;
        self.is_on_screen = true;
        let line = line(step, now_ns.saturating_sub(self.step_begun_ns));
        // A closed terminal is nobody's loss.
        let _ = write!(stderr(), "\r\x1b[K{line}");
        let _ = stderr().flush();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_on_screen {
            let _ = write!(stderr(), "\r\x1b[K");
            let _ = stderr().flush();
        }
    }
}

/// The words for a step that has taken so long.
fn line(step: Step, taken_ns: u64) -> String {
    let Step { step, done, total } = step;
    if total == 0 {
        return format!("{step}: {done}");
    }
    let percent = done.min(total) * 100 / total;
    if done == 0 || taken_ns < NS_A_S {
        return format!("{step}: {percent}%");
    }
    let left = u128::from(total.saturating_sub(done)) * u128::from(taken_ns) / u128::from(done);
    let left_s = left / u128::from(NS_A_S);
    format!("{step}: {percent}%, {}:{:02} left", left_s / 60, left_s % 60)
}

#[cfg(test)]
mod tests {
    use super::{NS_A_S, Step, line};

    #[test]
    fn the_time_left_is_told_once_it_can_be_known() {
        let step = |done, total| Step { step: "reading", done, total };
        assert_eq!(line(step(7, 0), 9 * NS_A_S), "reading: 7");
        assert_eq!(line(step(0, 10), 9 * NS_A_S), "reading: 0%");
        assert_eq!(line(step(5, 10), NS_A_S / 2), "reading: 50%");
        assert_eq!(line(step(1, 4), 25 * NS_A_S), "reading: 25%, 1:15 left");
        assert_eq!(line(step(u64::MAX / 128, u64::MAX / 128), NS_A_S), "reading: 100%, 0:00 left");
    }
}
