//! The swarm: which features and faults a seed has switched on, and how strongly.
//!
//! A world in which everything happens at once hides whole classes of bugs: resets mask stale
//! data, errors mask lost writes. So each seed first draws what may happen in it. Everything a
//! world decides later is drawn from the same generator, so the seed alone makes the run.
//!
//! The tricky case is a knob drawn only in some seeds: drawing order is part of what a seed means.
//! All knobs are therefore always drawn, and canaries and switches given on the command line are
//! laid over the result afterwards.

use crate::state::Canary;
use fastrand::Rng;
use udm_types::Sector;

/// The fault kinds of a simulated disk operation, with how often each strikes (per thousand).
#[derive(Clone, Debug, Default)]
pub(crate) struct FaultRates {
    /// EIO, after doing a part or nothing.
    pub eio: u32,
    /// Fewer bytes done than asked.
    pub short: u32,
    /// Short in the middle of a sector too.
    pub short_in_sector: bool,
    /// EINTR: nothing done, try again.
    pub eintr: u32,
    /// EAGAIN: nothing done, try again.
    pub eagain: u32,
    /// ENOSPC on writes.
    pub enospc: u32,
    /// Ten to a thousand times slower.
    pub slow: u32,
    /// Does not end before the disk is healed.
    pub hang: u32,
}

/// How often the load does what (weights).
#[derive(Clone, Debug)]
pub(crate) struct LoadWeights {
    /// Plain reads.
    pub read: u32,
    /// Plain writes.
    pub write: u32,
    /// Writes with FUA.
    pub fua: u32,
    /// Writes with PREFLUSH.
    pub preflush: u32,
    /// Ordered barriers.
    pub ordered: u32,
    /// Empty flushes.
    pub flush: u32,
    /// Discards.
    pub discard: u32,
    /// Write-zeroes.
    pub zeroes: u32,
    /// I/O that begins or ends beyond the end (per thousand).
    pub beyond_end: u32,
}

/// What a world may contain.
#[derive(Clone, Debug)]
pub(crate) struct Swarm {
    /// Lanes.
    pub lanes: usize,
    /// Logical block in sectors (1 or 8), of everything.
    pub block_sectors: Sector,
    /// Disks.
    pub disks: usize,
    /// Volumes (stacks that the load uses).
    pub volumes: usize,
    /// Load actors a volume.
    pub actors: usize,
    /// Bios an actor has in flight at the most.
    pub depth: u32,
    /// Deepest stack of mapped devices.
    pub stack_depth: usize,
    /// Disks can punch holes and zero ranges.
    pub fallocate: bool,
    /// Disk faults.
    pub faults: FaultRates,
    /// The load.
    pub load: LoadWeights,
    /// Completions may be handed over a few at a time.
    pub partial_delivery: bool,
    /// Lanes may turn although nothing woke them.
    pub spurious_turns: bool,
    /// Delay targets.
    pub delay: bool,
    /// Hold targets (they keep bios and push them back).
    pub hold: bool,
    /// Flakey targets that are down at times.
    pub flakey: bool,
    /// Zero and error regions.
    pub regions: bool,
    /// Striped targets.
    pub striped: bool,
    /// Table swaps that keep every sector where it is.
    pub swaps: bool,
    /// Swaps that move data elsewhere while the device is suspended.
    pub relayouts: bool,
    /// Growing and shrinking.
    pub resizes: bool,
    /// A dead table in between.
    pub dead_tables: bool,
    /// Suspends without a swap.
    pub suspends: bool,
    /// Deadlines on suspends.
    pub deadlines: bool,
    /// Noflush suspends.
    pub noflush: bool,
    /// Requests that come in between from elsewhere; excludes moving data and resizing.
    pub races: bool,
    /// Devices that come and go beside the volumes.
    pub scratch: bool,
    /// Volumes are removed and made anew.
    pub churn: bool,
    /// Longest time between two changes of a volume.
    pub pace_ms: u64,
    /// Disks that only paths lead to, for multipath targets; 0 if there are no such targets.
    pub luns: usize,
    /// Paths to each.
    pub paths_each: usize,
    /// Multipath devices in request mode (some), not all in bio mode.
    pub requests: bool,
    /// Multipath tables that do not queue, and messages that stop queueing.
    pub giving_up: bool,
    /// Longest time between two changes of the paths' health; 0 if they stay alive.
    pub weather_ms: u64,
    /// The first volume is a compress device on a disk of its own. An abort would make it
    /// read-only, so there are none in such a world.
    pub compress: bool,
}

impl Swarm {
    /// Draws a world.
    pub(crate) fn draw(rng: &mut Rng) -> Swarm {
        let mut on = |of_eight: u32| rng.u32(0..8) < of_eight;
        let (fallocate, partial_delivery, spurious_turns) = (on(6), on(4), on(4));
        let (delay, hold, flakey, regions, striped) = (on(3), on(4), on(2), on(3), on(5));
        let (swaps, relayouts, resizes, dead_tables) = (on(7), on(4), on(4), on(2));
        let (suspends, deadlines, noflush, races) = (on(5), on(4), on(6), on(2));
        let (scratch, churn) = (on(3), on(2));
        let faults = draw_faults(rng);
        let load = draw_load(rng);
        let paths = draw_paths(rng);
        let compress = rng.u32(0..8) == 0 && !races;
        Swarm {
            lanes: rng.usize(1..=4),
            block_sectors: if rng.u32(0..4) == 0 { 8 } else { 1 },
            disks: rng.usize(1..=4),
            volumes: rng.usize(1..=3),
            actors: rng.usize(1..=4),
            depth: rng.u32(1..=12),
            stack_depth: rng.usize(1..=4),
            fallocate,
            faults,
            load,
            partial_delivery,
            spurious_turns,
            delay,
            hold,
            flakey: flakey && !races,
            regions,
            striped,
            swaps,
            relayouts: relayouts && !races,
            resizes: resizes && !races,
            dead_tables: dead_tables && !races,
            suspends,
            deadlines: deadlines && !compress,
            noflush,
            races,
            scratch,
            churn: churn && !races,
            pace_ms: [1, 4, 12, 30][rng.usize(0..4)],
            // Where others swap tables, nobody here knows which paths are in use.
            luns: if paths.on && !races { paths.luns } else { 0 },
            paths_each: paths.each,
            requests: paths.requests,
            giving_up: paths.giving_up,
            weather_ms: paths.weather_ms,
            compress,
        }
    }
}

/// What is drawn about paths.
struct PathKnobs {
    on: bool,
    luns: usize,
    each: usize,
    requests: bool,
    giving_up: bool,
    weather_ms: u64,
}

fn draw_paths(rng: &mut Rng) -> PathKnobs {
    PathKnobs {
        on: rng.u32(0..8) < 3,
        luns: rng.usize(1..=3),
        each: rng.usize(1..=4),
        requests: rng.u32(0..8) < 5,
        giving_up: rng.u32(0..8) < 2,
        weather_ms: [0, 5, 20, 60][rng.usize(0..4)],
    }
}

impl Swarm {
    /// Lays over what the command line asks for, and what a canary needs to be heard.
    pub(crate) fn adjust(
        &mut self,
        lanes: Option<usize>,
        only: Option<&str>,
        canary: Option<Canary>,
    ) {
        if let Some(lanes) = lanes {
            self.lanes = lanes.clamp(1, 4);
        }
        if let Some(only) = only {
            self.leave_only(only);
        }
        if canary.is_some() {
            // Real faults would excuse what the planted bug does.
            self.faults = FaultRates::default();
            self.flakey = false;
            self.races = false;
            self.dead_tables = false;
            // Nor is it heard on a disk that nobody can read.
            self.compress = false;
        }
        match canary {
            Some(Canary::HoldForever) => self.suspends = true,
            Some(Canary::SwappedOrder) => {
                // Only the order of replay shall give it away.
                self.load.ordered = 0;
                (self.suspends, self.delay, self.hold) = (true, false, false);
            }
            Some(Canary::WrongSector) => self.swaps = true,
            Some(Canary::FakeBarrier) => self.load.ordered += 8,
            Some(Canary::FakeFlush) => {
                self.load.ordered = 0;
                self.load.flush += 8;
            }
            Some(Canary::FlushLie) => self.load.flush += 8,
            Some(Canary::LongTable) => self.load.beyond_end += 60,
            Some(
                Canary::DropWrite
                | Canary::StaleRewrite
                | Canary::SpuriousError
                | Canary::LostCompletion,
            )
            | None => {}
        }
    }

    /// Switches everything off but one feature (and the plain load).
    fn leave_only(&mut self, only: &str) {
        let on = |name: &str| name == only;
        if !on("faults") && !on("multipath") && !on("compress") {
            self.faults = FaultRates::default();
        }
        if on("multipath") {
            // What it is about: paths, and every change of a table over them.
            self.luns = self.luns.max(1 + self.volumes / 2);
            self.weather_ms = self.weather_ms.max(3);
            (self.swaps, self.suspends) = (true, true);
            self.races = false;
        } else {
            self.luns = 0;
        }
        self.compress = on("compress");
        self.deadlines &= !self.compress;
        self.swaps &= on("swaps") || on("multipath");
        self.relayouts &= on("relayouts");
        self.resizes &= on("resizes");
        self.dead_tables &= on("deaths");
        self.suspends &= on("suspends") || on("multipath");
        self.races &= on("races");
        self.scratch &= on("scratch");
        self.churn &= on("churn") || on("multipath");
        if !on("barriers") {
            self.load.ordered = 0;
        }
        match only {
            "swaps" => self.swaps = true,
            "compress" => (self.swaps, self.suspends, self.resizes) = (true, true, true),
            "relayouts" => self.relayouts = true,
            "resizes" => self.resizes = true,
            "deaths" => self.dead_tables = true,
            "suspends" => self.suspends = true,
            "races" => self.races = true,
            "scratch" => self.scratch = true,
            "churn" => self.churn = true,
            "barriers" => self.load.ordered += 8,
            _ => {}
        }
    }
}

fn draw_faults(rng: &mut Rng) -> FaultRates {
    let quiet = rng.u32(0..4) == 0;
    let mut rate = |of_eight: u32, most: u32| {
        let rate = rng.u32(1..=most);
        if rng.u32(0..8) < of_eight && !quiet { rate } else { 0 }
    };
    FaultRates {
        eio: rate(3, 40),
        short: rate(4, 120),
        short_in_sector: rate(3, 1) > 0,
        eintr: rate(3, 60),
        eagain: rate(2, 30),
        enospc: rate(2, 30),
        slow: rate(4, 50),
        hang: rate(3, 12),
    }
}

fn draw_load(rng: &mut Rng) -> LoadWeights {
    let mut weight = |of_eight: u32, most: u32| {
        let weight = rng.u32(1..=most);
        if rng.u32(0..8) < of_eight { weight } else { 0 }
    };
    LoadWeights {
        read: weight(8, 40),
        write: weight(8, 40),
        fua: weight(4, 8),
        preflush: weight(4, 8),
        ordered: weight(3, 8),
        flush: weight(6, 10),
        discard: weight(3, 8),
        zeroes: weight(4, 8),
        beyond_end: weight(4, 30),
    }
}

#[cfg(test)]
mod tests {
    use super::Swarm;
    use fastrand::Rng;

    #[test]
    fn every_switch_is_on_in_some_seeds_and_off_in_others() {
        type Switch = fn(&Swarm) -> bool;
        let switches: [(&str, Switch); 17] = [
            ("compress", |swarm| swarm.compress),
            ("eio", |swarm| swarm.faults.eio > 0),
            ("short", |swarm| swarm.faults.short > 0),
            ("hang", |swarm| swarm.faults.hang > 0),
            ("ordered", |swarm| swarm.load.ordered > 0),
            ("discard", |swarm| swarm.load.discard > 0),
            ("swaps", |swarm| swarm.swaps),
            ("relayouts", |swarm| swarm.relayouts),
            ("resizes", |swarm| swarm.resizes),
            ("deadlines", |swarm| swarm.deadlines),
            ("noflush", |swarm| swarm.noflush),
            ("hold", |swarm| swarm.hold),
            ("races", |swarm| swarm.races),
            ("big blocks", |swarm| swarm.block_sectors == 8),
            ("requests", |swarm| swarm.requests),
            ("multipath", |swarm| swarm.luns > 0),
            ("one lane", |swarm| swarm.lanes == 1),
        ];
        let worlds: Vec<Swarm> =
            (0..200).map(|seed| Swarm::draw(&mut Rng::with_seed(seed))).collect();
        for (name, switch) in switches {
            let on = worlds.iter().filter(|swarm| switch(swarm)).count();
            assert!((5..195).contains(&on), "{name} is on in {on} of 200 seeds");
        }
    }
}
