//! The log behind a checkpoint, followed record by record.
//!
//! The same rules as recovery (docs/formats/compress.md), written a second time on purpose: `check`
//! must not believe what the volume believes only because both share a mistake.
//!
//! Rules. Every record is verified with its body. A record that is incomplete, or does not continue
//! the chain, ends the log; that is normal. It is *damage* if a later record of the same life says
//! that what is missing was durable, or if the disk cannot be read there.
//!
//! The tricky case is an atomic group cut off by the end: its records were whole and count for
//! nothing. [`LogEnd::chain`] then stands before the group.

use super::view::View;
use crate::compress::format::RecordFlags;
use crate::compress::format::entry::{EntryFault, PlacedEntry, entries, verify};
use alloc::vec::Vec;
use core::fmt;
use udm_meta::Disk;
use udm_meta::bytes::read_vec;
use udm_meta::chain::{Chain, ChainFault};
use udm_meta::record::{LogPlace, Record, RecordFault, RecordHead, RecordRules};
use udm_types::Status;

/// Bytes read ahead.
const WINDOW_BYTES: u32 = 1 << 20;

/// Who is shown records, with their places.
pub type RecordVisit<'a> = &'a mut dyn FnMut(LogPlace, &Record<'_>);

/// Why the log does not go on at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The segment named as next does not exist.
    Outside,
    /// The disk cannot be read.
    Unreadable(Status),
    /// There is no whole record.
    Record(RecordFault),
    /// A whole record of another place in the log, or another life.
    Chain(ChainFault),
    /// A record that is whole and names blocks beyond the volume's end: nobody wrote that.
    Beyond,
    /// A record with contents that make no sense, or whose body is not whole.
    Entries(EntryFault),
}

/// Where the log ends, and why.
#[derive(Clone, Debug)]
pub struct LogEnd {
    /// The chain behind the last record that counts.
    pub chain: Chain,
    /// Records that count.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The highest sequence that any of them says is durable.
    pub durable_sequence: u64,
    /// Records of an atomic group without its end.
    pub dropped_records: u64,
    /// Each place tried last, and why it holds no further record.
    pub stops: Vec<(LogPlace, Stop)>,
    /// True if records are missing that were durable, or may be.
    pub is_damaged: bool,
}

/// A piece of a segment in memory.
pub struct Window {
    place: LogPlace,
    bytes: Vec<u8>,
}

impl Default for Window {
    fn default() -> Window {
        Window { place: LogPlace { segment: u32::MAX, offset_bytes: 0 }, bytes: Vec::new() }
    }
}

impl Window {
    /// At least `need` bytes at `place`, or as many as the segment has.
    ///
    /// # Errors
    /// The disk's answer.
    pub async fn at(
        &mut self,
        disk: &Disk,
        view: &View,
        place: LogPlace,
        need: u32,
    ) -> Result<&[u8], Status> {
        let segment_bytes = view.superblock.record_rules().segment_bytes;
        let need = need.min(segment_bytes.saturating_sub(place.offset_bytes));
        let start = place.offset_bytes.checked_sub(self.place.offset_bytes);
        let kept = start.filter(|start| {
            self.place.segment == place.segment
                && u64::from(*start) + u64::from(need) <= self.bytes.len() as u64
        });
        let start = match kept {
            Some(start) => start as usize,
            None => {
                let rest = segment_bytes.saturating_sub(place.offset_bytes);
                let len = WINDOW_BYTES.max(need).min(rest);
                self.bytes.clear();
                self.place = place;
                if len > 0 {
                    let at = view.superblock.geometry.offset_of(place);
                    let read = read_vec(disk, at, len as usize).await;
                    self.bytes = read.map_err(|error| error.status)?;
                }
                0
            }
        };
        Ok(&self.bytes[start..])
    }
}

/// Follows the log of `view`; `visit` sees every record, also those of a group that turns out to be
/// incomplete.
pub async fn walk(disk: &Disk, view: &View, visit: RecordVisit<'_>) -> LogEnd {
    let rules = view.superblock.record_rules();
    let mut window = Window::default();
    let mut end = LogEnd {
        chain: view.checkpoint.head.chain(),
        records: 0,
        bytes: 0,
        durable_sequence: 0,
        dropped_records: 0,
        stops: Vec::new(),
        is_damaged: false,
    };
    // The chain while inside an atomic group, and what the group holds so far.
    let mut chain = end.chain;
    let (mut group_records, mut group_bytes) = (0, 0);
    loop {
        let mut found = None;
        end.stops.clear();
        // Of two that fit the later life's counts; a given up tail may have stayed whole.
        for place in chain.places(&rules) {
            match accept(disk, view, &mut window, &chain, place).await {
                Ok(accepted) => {
                    let is_later = found
                        .is_none_or(|(_, before): (_, Accepted)| accepted.epoch > before.epoch);
                    if is_later {
                        found = Some((place, accepted));
                    }
                    if accepted.epoch == chain.epoch_ceiling {
                        break;
                    }
                }
                Err(stop) => end.stops.push((place, stop)),
            }
        }
        let Some((place, Accepted { total_bytes, .. })) = found else { break };
        let Ok(bytes) = window.at(disk, view, place, total_bytes).await else { break };
        let bytes = &bytes[..total_bytes as usize];
        let Ok(record) = Record::parse(&rules, place, bytes) else { break };
        let flags = RecordFlags::from_bits_truncate(record.head.flags);
        visit(place, &record);
        chain.follow(place, &record);
        // Nothing can be known durable that came after it: such a claim is damage, and no proof.
        let claim = record.head.durable_sequence;
        if claim < record.head.sequence {
            end.durable_sequence = end.durable_sequence.max(claim);
        }
        group_records += 1;
        group_bytes += u64::from(total_bytes);
        if !flags.contains(RecordFlags::ATOMIC) {
            end.chain = chain;
            end.records += core::mem::take(&mut group_records);
            end.bytes += core::mem::take(&mut group_bytes);
        }
    }
    end.dropped_records = group_records;
    let is_unreadable =
        end.stops.iter().any(|(_, stop)| matches!(stop, Stop::Unreadable(_) | Stop::Beyond));
    end.is_damaged = is_unreadable
        || end.durable_sequence >= chain.next_sequence
        || is_missed(disk, view, &chain).await;
    end
}

/// A whole record that goes on with the chain.
#[derive(Clone, Copy)]
struct Accepted {
    total_bytes: u32,
    epoch: u32,
}

/// The record at `place`, if it is whole and the next one.
async fn accept(
    disk: &Disk,
    view: &View,
    window: &mut Window,
    chain: &Chain,
    place: LogPlace,
) -> Result<Accepted, Stop> {
    let rules = view.superblock.record_rules();
    if place.segment >= view.checkpoint.head.segments {
        return Err(Stop::Outside);
    }
    let mut need = rules.align_bytes;
    loop {
        let bytes = window.at(disk, view, place, need).await.map_err(Stop::Unreadable)?;
        match Record::parse(&rules, place, bytes) {
            Err(RecordFault::Short { need_bytes }) if need_bytes > need => need = need_bytes,
            Err(fault) => return Err(Stop::Record(fault)),
            Ok(record) => {
                chain.check(&record.head).map_err(Stop::Chain)?;
                if (bytes.len() as u64) < u64::from(record.total_bytes) {
                    need = record.total_bytes;
                    continue;
                }
                verify(&rules, &record, Some(&bytes[..record.total_bytes as usize]))
                    .map_err(Stop::Entries)?;
                let is_summary = record.head.flags & RecordFlags::SUMMARY.bits() != 0;
                let blocks = view.checkpoint.head.logical_blocks;
                let is_beyond = |placed: PlacedEntry| {
                    placed.entry.first_block() + u64::from(placed.entry.blocks()) > blocks
                };
                if !is_summary && entries(&rules, &record).flatten().any(is_beyond) {
                    return Err(Stop::Beyond);
                }
                let RecordHead { epoch, .. } = record.head;
                return Ok(Accepted { total_bytes: record.total_bytes, epoch });
            }
        }
    }
}

/// Whether a record of this life, behind the end of the log, says that what is missing was durable.
/// Looks through the rest of the segment and the next one.
async fn is_missed(disk: &Disk, view: &View, chain: &Chain) -> bool {
    let rules = view.superblock.record_rules();
    let segments = view.checkpoint.head.segments;
    let starts = [chain.place, LogPlace { segment: chain.next_segment, offset_bytes: 0 }];
    let mut is_missed = false;
    for start in starts.into_iter().filter(|place| place.segment < segments) {
        let mut visit = |_place: LogPlace, record: &Record<'_>| {
            is_missed |= proves_loss(chain, record);
        };
        // What cannot be read proves nothing.
        let _unreadable = scan(disk, view, &rules, start, &mut visit).await;
    }
    is_missed
}

fn proves_loss(chain: &Chain, record: &Record<'_>) -> bool {
    let head = &record.head;
    let is_behind_fence = head.sequence > chain.fence.sequence;
    head.sequence > chain.next_sequence
        && head.durable_sequence >= chain.next_sequence
        && head.durable_sequence < head.sequence
        && (chain.epoch_floor..=chain.epoch_ceiling).contains(&head.epoch)
        && (!is_behind_fence || head.epoch >= chain.fence.epoch)
}

/// Shows the records of a segment from `place` on, whatever their chain, header and table whole;
/// bodies are not verified. For `dump` and `repair`.
///
/// # Errors
/// If a part of the segment cannot be read; the rest was shown.
pub async fn scan(
    disk: &Disk,
    view: &View,
    rules: &RecordRules,
    mut place: LogPlace,
    visit: RecordVisit<'_>,
) -> Result<(), Status> {
    let mut window = Window::default();
    let mut outcome = Ok(());
    while rules.has_room(place.offset_bytes) {
        let mut need = rules.align_bytes;
        let step = loop {
            let bytes = match window.at(disk, view, place, need).await {
                Ok(bytes) => bytes,
                Err(status) => {
                    outcome = Err(status);
                    break rules.align_bytes;
                }
            };
            match Record::parse(rules, place, bytes) {
                Err(RecordFault::Short { need_bytes }) if need_bytes > need => need = need_bytes,
                Err(_none) => break rules.align_bytes,
                Ok(record) => {
                    visit(place, &record);
                    break record.total_bytes;
                }
            }
        };
        place.offset_bytes += step;
    }
    outcome
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stop::Beyond => f.write_str("the record there names blocks beyond the volume's end"),
            Stop::Outside => f.write_str("there is no such segment"),
            Stop::Unreadable(status) => write!(f, "it cannot be read: {}", status.describe()),
            Stop::Record(fault) => write!(f, "what is there {fault}"),
            Stop::Chain(fault) => write!(f, "the record there {fault}"),
            Stop::Entries(fault) => write!(f, "the record there {fault}"),
        }
    }
}
