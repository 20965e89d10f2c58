//! The log behind the checkpoint: followed to its end, with every record proven.
//!
//! A log ends where no record continues it; that is what a crash leaves. It is damage if what is
//! missing was durable, if a record names blocks that do not exist, or if it was written over a
//! segment that the checkpoint still needs.

use super::{Code, Counts, Findings};
use crate::compress::tools::log::Stop;
use crate::compress::tools::view::View;
use crate::compress::tools::{Progress, Watch, log};
use udm_meta::Disk;
use udm_meta::record::{LogPlace, Record, RecordFault};

/// Follows the log.
pub(super) async fn follow(
    disk: &Disk,
    view: &View,
    live: &[u32],
    counts: &mut Counts,
    findings: &mut Findings,
    watch: Watch<'_>,
) {
    let head = view.checkpoint.head;
    let mut records = 0;
    let mut last_segment = head.start.segment;
    let mut visit = |place: LogPlace, record: &Record<'_>| {
        records += 1;
        watch(Progress { step: "reading the log", done: records, total: 0 });
        let sequence = record.head.sequence;
        if place.segment != last_segment && live.get(place.segment as usize).is_some_and(|n| *n > 0)
        {
            let segment = place.segment;
            let text = format_args!("record {sequence} overwrote segment {segment}, still in use");
            findings.damage(Code::Log, text);
        }
        last_segment = place.segment;
    };
    let end = log::walk(disk, view, &mut visit).await;
    counts.log_records = end.records;
    counts.log_bytes = end.bytes;
    let sequence = end.chain.next_sequence;
    for (place, stop) in &end.stops {
        let LogPlace { segment, offset_bytes } = place;
        let text = format_args!(
            "no record {sequence} in segment {segment} at byte {offset_bytes}: {stop}"
        );
        // Free room, or what an earlier life left there, is how every log ends.
        let is_quiet = match stop {
            Stop::Record(RecordFault::Magic | RecordFault::Segment(_)) => true,
            Stop::Chain(_) => true,
            Stop::Record(_)
            | Stop::Outside
            | Stop::Beyond
            | Stop::Unreadable(_)
            | Stop::Entries(_) => false,
        };
        if end.is_damaged {
            findings.damage(Code::Log, text);
        } else if !is_quiet {
            findings.normal(Code::Log, text);
        }
    }
    if end.is_damaged {
        let text = format_args!("the log ends before record {sequence}, and more was durable");
        findings.damage(Code::Log, text);
    }
    if end.dropped_records > 0 {
        let dropped = end.dropped_records;
        let text = format_args!("{dropped} records of an unfinished group do not count");
        findings.normal(Code::Log, text);
    }
}
