//! What a crash leaves: which of the unflushed writes the medium has kept.
//!
//! A power loss takes the cache. Of every sector written since, the durable version or **any one**
//! of the later ones remains, so any subset of the writes, in any order, torn at any sector; a few
//! sectors are shorn (a byte flipped). Writes under way count as writes of which any part may be
//! there. The death of the program alone leaves the cache as it is, volatile still; only what was
//! under way is done, half done or not done.
//!
//! Losses drawn sector by sector find torn structures; losses drawn write by write find wrong
//! orders, because whole structures survive. Both kinds are drawn; [`Crash::systematic`] lists
//! the second kind completely for small numbers of writes.
//!
//! The tricky case is a sector written twice since the last flush: keeping the older version while
//! the newer write's other sectors are there is legal, and happens.

use crate::crash::disk::{CrashDisk, Version};
use crate::crash::image::{Image, SECTOR_BYTES};
use fastrand::Rng;
use std::collections::BTreeMap;

/// How the machine or the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crash {
    /// Power is lost.
    Power(Loss),
    /// The program dies, the disk does not notice.
    Process,
}

/// Which unflushed writes survive a power loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// None.
    All,
    /// All of them.
    None,
    /// Each sector for itself, so many of a hundred.
    Sectors(u32),
    /// Each write as a whole, so many of a hundred.
    Writes(u32),
    /// The first so many writes.
    First(usize),
    /// The last so many writes.
    Last(usize),
    /// Only this one, counted from the newest.
    Only(usize),
    /// All but this one, counted from the newest.
    AllBut(usize),
}

/// Sectors of a hundred that are shorn when sectors are drawn one by one.
const SHORN_PERCENT: u32 = 2;

impl Crash {
    /// True if the cache is lost.
    pub(crate) fn is_power(self) -> bool {
        match self {
            Crash::Power(_) => true,
            Crash::Process => false,
        }
    }

    /// One of them; `process_percent` of a hundred are deaths of the program.
    pub(crate) fn draw(disk: &CrashDisk, process_percent: u32, rng: &mut Rng) -> Crash {
        if rng.u32(0..100) < process_percent {
            return Crash::Process;
        }
        let writes = unflushed(disk).len();
        let which = rng.usize(0..writes.clamp(1, 6));
        Crash::Power(match rng.u32(0..16) {
            0 => Loss::All,
            1 => Loss::None,
            2..=4 => Loss::Sectors(20),
            5..=7 => Loss::Sectors(50),
            8..=9 => Loss::Sectors(85),
            10..=11 => Loss::Writes(50),
            12 => Loss::First(rng.usize(0..=writes)),
            13 => Loss::Last(which + 1),
            14 => Loss::Only(which),
            _ => Loss::AllBut(which),
        })
    }

    /// All write-wise outcomes of a crash now (for at most `limit` writes each kind), the death of
    /// the program, and a few drawn ones.
    pub(crate) fn systematic(disk: &CrashDisk, limit: usize, rng: &mut Rng) -> Vec<Crash> {
        let writes = unflushed(disk).len();
        let mut list = vec![Crash::Process, Crash::Power(Loss::All)];
        if writes > 0 {
            list.push(Crash::Power(Loss::None));
        }
        for nr in 0..writes.min(limit) {
            list.push(Crash::Power(Loss::Only(nr)));
            if writes > 2 {
                list.push(Crash::Power(Loss::AllBut(nr)));
                list.push(Crash::Power(Loss::First(nr + 1)));
            }
        }
        let drawn = if writes > 0 { 3 } else { 0 };
        for _ in 0..drawn {
            list.push(Crash::Power(Loss::Sectors([20, 50, 85][rng.usize(0..3)])));
        }
        list
    }

    /// The disk after it.
    pub(crate) fn strike(self, disk: &CrashDisk, rng: &mut Rng) -> CrashDisk {
        match self {
            Crash::Power(loss) => power_loss(disk, loss, rng),
            Crash::Process => process_death(disk, rng),
        }
    }
}

/// The writes a crash may lose, as numbers, oldest first; those under way come last.
fn unflushed(disk: &CrashDisk) -> Vec<u64> {
    let mut numbers: Vec<u64> =
        disk.pending.values().flat_map(|versions| versions.iter().map(|v| v.nr)).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let begun = disk.under_way.iter().enumerate();
    numbers.extend(
        begun.filter(|(_, op)| op.versions(0).next().is_some()).map(|(at, _)| number(disk, at)),
    );
    numbers
}

/// The number a write under way would get.
fn number(disk: &CrashDisk, at: usize) -> u64 {
    disk.completed + 1 + at as u64
}

/// How much of a write under way is done.
fn part_done(versions: Vec<(usize, Version)>, rng: &mut Rng) -> Vec<(usize, Version)> {
    let count = versions.len();
    match rng.u32(0..4) {
        0 => Vec::new(),
        1 => versions,
        2 => {
            let cut = rng.usize(0..=count);
            versions.into_iter().take(cut).collect()
        }
        _ => versions.into_iter().filter(|_| rng.bool()).collect(),
    }
}

fn process_death(disk: &CrashDisk, rng: &mut Rng) -> CrashDisk {
    let mut left = disk.fork();
    // What is in the cache now is there before anything the next program does.
    left.completed += disk.under_way.len() as u64;
    for (at, op) in disk.under_way.iter().enumerate() {
        let versions = op.versions(number(disk, at)).collect();
        for (sector, version) in part_done(versions, rng) {
            left.cached.put(sector, version.bytes());
            left.pending.entry(sector).or_default().push(version);
        }
    }
    left
}

fn power_loss(disk: &CrashDisk, loss: Loss, rng: &mut Rng) -> CrashDisk {
    if loss == Loss::All {
        return disk.restarted(disk.durable.clone());
    }
    let mut choices: BTreeMap<usize, Vec<Version>> = disk.pending.clone();
    for (at, op) in disk.under_way.iter().enumerate() {
        let versions = op.versions(number(disk, at)).collect();
        for (sector, version) in part_done(versions, rng) {
            choices.entry(sector).or_default().push(version);
        }
    }
    let mut image = disk.durable.clone();
    match loss {
        Loss::Sectors(percent) => keep_sectors(&choices, percent, &mut image, rng),
        Loss::All
        | Loss::None
        | Loss::Writes(_)
        | Loss::First(_)
        | Loss::Last(_)
        | Loss::Only(_)
        | Loss::AllBut(_) => keep_writes(disk, &choices, loss, &mut image, rng),
    }
    disk.restarted(image)
}

fn keep_sectors(
    choices: &BTreeMap<usize, Vec<Version>>,
    percent: u32,
    image: &mut Image,
    rng: &mut Rng,
) {
    for (&sector, versions) in choices {
        if rng.u32(0..100) >= percent {
            continue;
        }
        let newest = versions.len() - 1;
        let kept = if rng.u32(0..100) < 80 { newest } else { rng.usize(0..=newest) };
        image.put(sector, versions[kept].bytes());
        if rng.u32(0..100) < SHORN_PERCENT {
            image.spoil(sector, rng.usize(0..SECTOR_BYTES), rng.u8(1..));
        }
    }
}

fn keep_writes(
    disk: &CrashDisk,
    choices: &BTreeMap<usize, Vec<Version>>,
    loss: Loss,
    image: &mut Image,
    rng: &mut Rng,
) {
    let numbers = unflushed(disk);
    let count = numbers.len();
    let from_newest = |back: usize| count.checked_sub(back + 1);
    let is_kept = |at: usize, rng: &mut Rng| match loss {
        Loss::All => false,
        Loss::None => true,
        Loss::Sectors(percent) | Loss::Writes(percent) => rng.u32(0..100) < percent,
        Loss::First(first) => at < first,
        Loss::Last(last) => at + last >= count,
        Loss::Only(back) => from_newest(back) == Some(at),
        Loss::AllBut(back) => from_newest(back) != Some(at),
    };
    let kept: Vec<u64> =
        numbers.iter().enumerate().filter(|(at, _)| is_kept(*at, rng)).map(|(_, &nr)| nr).collect();
    for (&sector, versions) in choices {
        let newest = versions.iter().rev().find(|v| kept.binary_search(&v.nr).is_ok());
        if let Some(version) = newest {
            image.put(sector, version.bytes());
        }
    }
}
