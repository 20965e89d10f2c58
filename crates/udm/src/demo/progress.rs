//! What the demo shows while it runs: a live line on a terminal, and a line for each act.
//!
//! The live line goes to the error stream and is rewritten in place; in a pipe there is none. The
//! lines of the acts go to the output stream and stay; with `--json` there are none, so that the
//! output is one JSON object. Called from the story's thread only, never from a lane.
//!
//! The tricky case is an act's line while the live line stands on the same screen: the live line is
//! wiped first.

use std::io::{IsTerminal, Write, stderr, stdout};
use udm_driver::monotonic_ns;

/// Time between two live lines: often enough to look alive, too rarely to cost anything.
const LIVE_EVERY_NS: u64 = 100_000_000;

/// Live line and acts.
pub(super) struct Progress {
    live: bool,
    acts: bool,
    shown_ns: u64,
    on_screen: bool,
}

impl Progress {
    /// Shows acts only if `acts`, and a live line only to somebody who watches.
    pub(super) fn new(acts: bool) -> Progress {
        Progress { live: stderr().is_terminal(), acts, shown_ns: 0, on_screen: false }
    }

    /// Rewrites the live line, unless that was done a moment ago.
    pub(super) fn live(&mut self, line: impl FnOnce() -> String) {
        let now_ns = monotonic_ns();
        if !self.live || now_ns.saturating_sub(self.shown_ns) < LIVE_EVERY_NS {
            return;
        }
        self.shown_ns = now_ns;
        self.on_screen = true;
        // A closed terminal is nobody's loss.
        let _ = write!(stderr(), "\r\x1b[K{}", line());
        let _ = stderr().flush();
    }

    /// Wipes the live line.
    pub(super) fn wipe(&mut self) {
        if self.on_screen {
            self.on_screen = false;
            let _ = write!(stderr(), "\r\x1b[K");
            let _ = stderr().flush();
        }
    }

    /// A line that stays.
    pub(super) fn say(&mut self, line: &str) {
        self.wipe();
        if self.acts {
            // As above.
            let _ = writeln!(stdout(), "{line}");
            let _ = stdout().flush();
        }
    }
}
