//! The status of a compress target, and what its message `stats` answers.
//!
//! ```text
//! WRITTEN STORED METADATA USED/TOTAL LIVE_BLOCKS LIVE_BYTES GC_BYTES MAP_BYTES LOG_BYTES MODE
//! ```
//! The first three are the ancestor's: bytes written by users, bytes of compressed data written for
//! them, bytes of metadata written; since the table was loaded. USED/TOTAL are segments; LIVE is as
//! of the last checkpoint; LOG_BYTES is the log behind it. MODE: `ok`, `ro` (read-only after an
//! error), `needs_check`, `out_of_space`, `recovering`, `failed`; `-` where no volume is open (an
//! inactive table).
//!
//! Rules. Only the home lane counts, so a sum over the lanes is its numbers. The tricky case is the
//! mode, which is a word and not a number: it travels as one.

use super::volume::{Counters, ResizeFault, State, Trouble, Volume};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use udm_types::SECTOR_BYTES;

const COUNTERS: usize = 11;

/// Words of modes, by number.
const MODES: [&str; 7] = ["-", "ok", "ro", "needs_check", "out_of_space", "recovering", "failed"];

/// The mode's number.
fn mode(state: &State, is_out_of_space: bool) -> u64 {
    match state {
        State::Serving if is_out_of_space => 4,
        State::Serving => 1,
        State::ReadOnly(Trouble::NeedsCheck) => 3,
        State::ReadOnly(_) => 2,
        State::Recovering => 5,
        State::Failed(_) => 6,
    }
}

/// Adds what the volume counts.
pub(super) fn add(volume: &Volume, is_out_of_space: bool, sum: &mut Vec<u64>) {
    sum.resize(sum.len().max(COUNTERS), 0);
    let counters = volume.counters();
    let Counters { counts, record_bytes, .. } = counters;
    // Records hold extents of users and of the cleaner; the rest of them is metadata.
    let tables = record_bytes.saturating_sub(counts.stored_bytes + counts.gc_bytes);
    let own: [u64; COUNTERS] = [
        counts.written_bytes,
        counts.stored_bytes,
        counts.map_bytes + tables,
        counters.segments_used,
        counters.segments,
        counters.live_blocks,
        counters.live_bytes,
        counts.gc_bytes,
        counts.map_bytes,
        counters.log_bytes,
        mode(&volume.state(), is_out_of_space),
    ];
    sum.iter_mut().zip(own).for_each(|(sum, own)| *sum += own);
}

/// The status line.
pub(super) fn print(counters: &[u64]) -> String {
    let at = |place: usize| counters.get(place).copied().unwrap_or(0);
    let mode = MODES.get(at(10) as usize).copied().unwrap_or("-");
    format!(
        "{} {} {} {}/{} {} {} {} {} {} {mode}",
        at(0),
        at(1),
        at(2),
        at(3),
        at(4),
        at(5),
        at(6),
        at(7),
        at(8),
        at(9)
    )
}

/// The answer to `stats`: `NAME NUMBER` pairs, and at the end how the last resize failed and why it
/// does not do everything.
pub(super) fn stats(volume: &Volume, resize_fault: Option<ResizeFault>) -> String {
    let counters = volume.counters();
    let counts = &counters.counts;
    let pairs = [
        ("logical_blocks", counters.logical_blocks),
        ("used_bytes", counters.used_bytes),
        ("device_sectors", counters.disk_bytes / SECTOR_BYTES),
        ("shrinking_to_sectors", counters.shrinking_to_bytes / SECTOR_BYTES),
        ("read_bytes", counts.read_bytes),
        ("data_reads", counts.data_reads),
        ("page_reads", counts.page_reads),
        ("rereads", counts.rereads),
        ("records", counters.records),
        ("record_bytes", counters.record_bytes),
        ("commits", counts.commits),
        ("checkpoint", counters.checkpoint),
        ("checkpoints", counts.checkpoints),
        ("segments_cleaned", counts.segments_cleaned),
        ("segments_freed", counts.segments_freed),
        ("punched_bytes", counts.punched_bytes),
        ("changes", counters.changes),
        ("buffered_bytes", counters.buffered_bytes),
        ("memory_bytes", counters.memory_bytes),
    ];
    let words: Vec<String> =
        pairs.iter().map(|(name, number)| format!("{name} {number}")).collect();
    let mut text = words.join(" ");
    if let Some(fault) = resize_fault {
        text += &format!(" resize {fault}");
    }
    match volume.state() {
        State::Serving | State::Recovering => {}
        State::ReadOnly(trouble) => text += &format!(" trouble read-only: {trouble}"),
        State::Failed(trouble) => text += &format!(" trouble {trouble}"),
    }
    text
}
