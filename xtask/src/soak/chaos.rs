//! What happens to the paths: one action after the other, chosen by a seed.
//!
//! Every action leaves the device in a state from which I/O can go on, at once or when a path is
//! back; so an error a client sees is a finding, whatever the order of actions was. Some actions
//! check something themselves: that I/O waits while both paths are dead, that it flows again after
//! a swap to a table with a new path.

use super::daemon::Daemon;
use super::path::PathServer;
use super::{pause, wait_until};
use crate::steps::Failed;
use std::fmt;
use std::time::{Duration, Instant};

/// Name of the device.
pub(super) const DEVICE: &str = "disk";
/// How long I/O may take to flow again once a path is there. The client reconnects within half a
/// second, checks come every half; the rest is for a machine that does other things, too.
const RECOVERY_MAX: Duration = Duration::from_secs(30);

/// Selectors with their arguments for a path; a reload takes another one.
const SELECTORS: [(&str, &str); 5] = [
    ("round-robin", "1"),
    ("queue-length", "1"),
    ("service-time", "1 1"),
    ("historical-service-time", "1"),
    ("latency", ""),
];

/// How often each thing was done.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    kills: u64,
    restarts: u64,
    reloads: u64,
    both_dead: u64,
    swaps: u64,
    /// The longest time from a restart of a path, with both dead, to the next completed I/O.
    slowest_recovery: Duration,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { kills, restarts, reloads, both_dead, swaps, slowest_recovery } = self;
        write!(
            f,
            "{kills} kills, {restarts} restarts, {reloads} noflush reloads, {both_dead} times both \
             dead, {swaps} swaps to a new path; slowest recovery {} ms",
            slowest_recovery.as_millis()
        )
    }
}

/// Numbers from a seed (xorshift).
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `bound`.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % bound
    }
}

/// The abuse and what it is done to.
pub(super) struct Chaos {
    pub(super) daemon: Daemon,
    pub(super) paths: [PathServer; 2],
    /// The path that is not in the table as a rule.
    pub(super) spare: PathServer,
    pub(super) random: Random,
    pub(super) counts: Counts,
    /// `queue_mode` of the device: `bio` or `rq`.
    pub(super) mode: &'static str,
    pub(super) len_sectors: u64,
}

impl Chaos {
    /// The table over these paths.
    fn table(&mut self, devices: &[String]) -> String {
        let (selector, args) = SELECTORS[self.random.below(SELECTORS.len() as u64) as usize];
        let words = args.split_whitespace().count();
        let paths: Vec<String> =
            devices.iter().map(|device| format!("{device} {args}").trim_end().to_owned()).collect();
        format!(
            "0 {} multipath 3 queue_if_no_path queue_mode {} 0 1 1 {selector} 0 {} {words} {}",
            self.len_sectors,
            self.mode,
            devices.len(),
            paths.join(" ")
        )
    }

    fn usual(&self) -> Vec<String> {
        self.paths.iter().map(PathServer::device).collect()
    }

    /// Starts the paths, makes the device and has its paths checked.
    pub(super) fn set_up(&mut self) -> Result<(), Failed> {
        for path in &mut self.paths {
            path.start()?;
        }
        let usual = self.usual();
        let table = self.table(&usual);
        self.daemon.udm(&["create", DEVICE, "--table", &table])?;
        let check = ["paths", DEVICE, "--check", "--check-interval", "500ms"];
        self.daemon.udm(&check).map(drop)
    }

    /// One action, then a moment of peace.
    pub(super) fn act(&mut self) -> Result<(), Failed> {
        self.daemon.check_alive()?;
        match self.random.below(100) {
            0..35 => self.kill_one(),
            35..65 => self.restart()?,
            65..85 => self.reload()?,
            85..95 => self.both_dead()?,
            _ => self.swap_to_spare()?,
        }
        let peace_ms = 50 + self.random.below(1_200);
        pause(Duration::from_millis(peace_ms));
        Ok(())
    }

    /// An action that needs no I/O to be waiting, for a program that may be about to end.
    pub(super) fn act_briefly(&mut self) -> Result<(), Failed> {
        self.daemon.check_alive()?;
        match self.random.below(4) {
            0 => self.kill_one(),
            1 => self.reload()?,
            _ => self.restart()?,
        }
        let peace_ms = 20 + self.random.below(200);
        pause(Duration::from_millis(peace_ms));
        Ok(())
    }

    /// Kills one path if both are up, so that the other has to take over.
    fn kill_one(&mut self) {
        if self.paths.iter().all(PathServer::is_up) {
            let victim = self.random.below(2) as usize;
            self.paths[victim].kill();
            self.counts.kills += 1;
        }
    }

    fn restart(&mut self) -> Result<(), Failed> {
        for path in self.paths.iter_mut().filter(|path| !path.is_up()) {
            path.start()?;
            self.counts.restarts += 1;
        }
        Ok(())
    }

    /// The same paths in a new table, by another selector. A path that is dead at this moment stays
    /// open from the table before.
    fn reload(&mut self) -> Result<(), Failed> {
        let usual = self.usual();
        self.swap(&usual)?;
        self.counts.reloads += 1;
        Ok(())
    }

    fn swap(&mut self, devices: &[String]) -> Result<(), Failed> {
        let table = self.table(devices);
        self.daemon.udm(&["load", DEVICE, "--table", &table])?;
        self.daemon.udm(&["resume", "--noflush", DEVICE]).map(drop)
    }

    /// Kills both; I/O must wait, without an error, until one is back.
    fn both_dead(&mut self) -> Result<(), Failed> {
        self.kill_both()?;
        let first = self.random.below(2) as usize;
        self.paths[first].start()?;
        self.counts.restarts += 1;
        self.flows_again("a path is back")
    }

    fn kill_both(&mut self) -> Result<(), Failed> {
        for path in self.paths.iter_mut().filter(|path| path.is_up()) {
            path.kill();
            self.counts.kills += 1;
        }
        self.counts.both_dead += 1;
        let daemon = &self.daemon;
        wait_until("I/O waits while both paths are dead", RECOVERY_MAX, || {
            Ok(daemon.done(DEVICE)?.waiting > 0)
        })?;
        let span_ms = 100 + self.random.below(1_000);
        let before = self.daemon.done(DEVICE)?;
        pause(Duration::from_millis(span_ms));
        let after = self.daemon.done(DEVICE)?;
        match after.errors == 0 && after.waiting >= before.waiting {
            true => Ok(()),
            false => Err(Failed::new(format!("with both dead: {before:?}, then {after:?}"))),
        }
    }

    fn flows_again(&mut self, why: &str) -> Result<(), Failed> {
        let begin = Instant::now();
        let (daemon, before) = (&self.daemon, self.daemon.done(DEVICE)?.ios);
        let is_flowing = || Ok(daemon.done(DEVICE)?.ios > before);
        wait_until(&format!("I/O flows again: {why}"), RECOVERY_MAX, is_flowing)?;
        self.counts.slowest_recovery = self.counts.slowest_recovery.max(begin.elapsed());
        Ok(())
    }

    /// Both dead, then a table with a path that was never there: what waits goes on through it.
    fn swap_to_spare(&mut self) -> Result<(), Failed> {
        self.kill_both()?;
        self.spare.start()?;
        let spare = [self.spare.device()];
        self.swap(&spare)?;
        self.flows_again("a table with a new path")?;
        self.counts.swaps += 1;
        for path in &mut self.paths {
            path.start()?;
            self.counts.restarts += 1;
        }
        let usual = self.usual();
        self.swap(&usual)?;
        self.spare.kill();
        Ok(())
    }

    /// All paths up and active, nothing failed.
    pub(super) fn settle(&mut self) -> Result<(), Failed> {
        self.restart()?;
        let daemon = &self.daemon;
        wait_until("both paths are active again", RECOVERY_MAX, || {
            Ok(daemon.active_paths(DEVICE)? == 2)
        })?;
        let done = self.daemon.done(DEVICE)?;
        match done.errors + done.breaches {
            0 => Ok(()),
            _ => Err(Failed::new(format!("the device counted errors: {done:?}"))),
        }
    }
}
