//! Isolation: what a volume loses while another one's disk stalls.
//!
//! Two volumes on one lane, the worst case: the lane's computing, its buffers and its turns are all
//! they could fight for. The disk of the second is suspended, which holds every I/O; the second has
//! a full load on it, which comes to a stop when its buffers are full. The first is measured with
//! the second idle and with the second stalled, turn after turn.
//!
//! Rules. When the disk goes on, every I/O of the stalled volume has to end well. The tricky case
//! is a stall that is none yet: the measurement begins when the other one's buffers are full.

use super::super::BenchError;
use super::bed::{Bed, Volume};
use super::parts::{LARGE_BYTES, Rig, SMALL_BYTES};
use super::pass::{PassOrder, PassResult, Places};
use serde::Serialize;
use std::time::{Duration, Instant};
use udm_types::Op;

/// A stall that does not come within this has gone wrong.
const STALL_MAX: Duration = Duration::from_secs(30);

/// What one volume does while another is stalled.
#[derive(Debug, Serialize)]
pub(super) struct Isolation {
    pub(super) rounds: u32,
    /// Medians: 4 KiB random writes with the other volume idle, and stalled.
    pub(super) idle_mb_per_s: f64,
    pub(super) stalled_mb_per_s: f64,
    /// Of the speed with the other one idle: median of the rounds, by the clock.
    pub(super) percent: f64,
    /// The same by CPU time of the lane.
    pub(super) percent_by_cpu: f64,
    /// I/Os that the stalled disk held, at the last look.
    pub(super) held: u64,
    /// I/Os of the stalled volume, all of which ended well when its disk went on.
    pub(super) stalled_ios: u64,
}

/// Measures both cases, `rounds` times.
pub(super) fn isolation(rig: &Rig<'_>, rounds: u32) -> Result<Isolation, BenchError> {
    let other = rig.bed.beside(rig.bed.disk_bytes())?;
    let other_rig = Rig { bed: &other, ..*rig };
    let (free, stalled) =
        (rig.volume(rig.sample.len_bytes())?, other_rig.volume(LARGE_BYTES * 32)?);
    // The first pass of all pays for memory that no other will.
    measure(rig, &free)?;
    let mut told = Isolation {
        rounds,
        idle_mb_per_s: 0.0,
        stalled_mb_per_s: 0.0,
        percent: 0.0,
        percent_by_cpu: 0.0,
        held: 0,
        stalled_ios: 0,
    };
    let (mut pairs, mut order) = (Vec::new(), write_order(&other_rig, &stalled));
    for round in 0..rounds {
        let idle = measure(rig, &free)?;
        other.stall()?;
        order.seed = round.into();
        let pass = other.start(order.clone());
        wait_until_stalled(&other, &stalled)?;
        let beside = measure(rig, &free)?;
        told.held = other.held()?;
        other.go_on()?;
        told.stalled_ios += Bed::end_of(&pass)?.ios;
        pairs.push((idle, beside));
    }
    stalled.remove()?;
    free.remove()?;
    let bytes = rig.sample.len_bytes() as f64;
    let median = |number: &dyn Fn(&(PassResult, PassResult)) -> f64| {
        let mut numbers: Vec<f64> = pairs.iter().map(number).collect();
        numbers.sort_by(f64::total_cmp);
        numbers.get(numbers.len() / 2).copied().unwrap_or(f64::NAN)
    };
    told.idle_mb_per_s = median(&|(idle, _)| bytes * 1e3 / idle.wall_ns as f64);
    told.stalled_mb_per_s = median(&|(_, beside)| bytes * 1e3 / beside.wall_ns as f64);
    told.percent = median(&|(idle, beside)| 100.0 * idle.wall_ns as f64 / beside.wall_ns as f64);
    told.percent_by_cpu =
        median(&|(idle, beside)| 100.0 * idle.cpu_ns as f64 / beside.cpu_ns as f64);
    Ok(told)
}

/// Random writes of small blocks, as many as the sample has.
fn measure(rig: &Rig<'_>, volume: &Volume<'_>) -> Result<PassResult, BenchError> {
    let shape = (SMALL_BYTES, rig.sample.len_bytes());
    let order = PassOrder::sequential(volume.id, Op::Write, shape, &rig.sample.buf);
    rig.bed.run(PassOrder { places: Places::Uniform, ..order })
}

/// More than buffers hold, so that it stalls in the middle.
fn write_order(rig: &Rig<'_>, volume: &Volume<'_>) -> PassOrder {
    let shape = (SMALL_BYTES, LARGE_BYTES * 32);
    let order = PassOrder::sequential(volume.id, Op::Write, shape, &rig.sample.buf);
    PassOrder { places: Places::Uniform, ..order }
}

/// Waits until the disk holds I/O and the volume has taken nothing more for a while: what it
/// compresses until its buffers are full is not the stall.
fn wait_until_stalled(bed: &Bed, volume: &Volume<'_>) -> Result<(), BenchError> {
    /// Looks without a change, a millisecond apart.
    const QUIET_LOOKS: u32 = 50;
    let begin = Instant::now();
    let (mut seen, mut quiet) = ((0, String::new()), 0);
    while quiet < QUIET_LOOKS {
        let now = (bed.held()?, volume.status(0)?);
        quiet = if now.0 > 0 && now == seen { quiet + 1 } else { 0 };
        seen = now;
        if begin.elapsed() > STALL_MAX {
            return Err("the disk holds nothing, or the volume goes on".into());
        }
        std::thread::park_timeout(Duration::from_millis(1));
    }
    Ok(())
}
