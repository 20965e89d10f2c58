//! `udm compress dump`: shows what is on a volume, piece by piece.
//!
//! Superblock and checkpoint always; the segment table, the map and the log if asked for, or all
//! records of one segment. The tricky case is a large map: with `--json` all of it is one object in
//! memory, as text it is too; who dumps terabytes asks for a segment.

use super::device::{Device, Purpose};
use super::format::told;
use super::{DeviceArg, on_device, uuid_text};
use crate::cli::{Failure, Output};
use clap::Args;
use serde_json::{Value, json};
use udm_targets::compress::format::{Entry, MapEntry, PlacedEntry};
use udm_targets::compress::tools::dump::{DumpRequest, Item, dump};

/// `compress dump`.
#[derive(Clone, Debug, Args)]
pub struct DumpArgs {
    #[command(flatten)]
    pub device: DeviceArg,
    /// The segment table.
    #[arg(long)]
    pub segments: bool,
    /// The map, in runs of blocks.
    #[arg(long)]
    pub map: bool,
    /// The records behind the checkpoint.
    #[arg(long)]
    pub log: bool,
    /// All records of a segment, whether they count or not.
    #[arg(long, value_name = "NUMBER")]
    pub segment: Option<u32>,
}

/// Shows a volume.
pub(super) fn run(args: &DumpArgs, output: &mut Output) -> Result<(), Failure> {
    let mut device = Device::open(&args.device.device, Purpose::Look)?;
    let request = DumpRequest {
        segments: args.segments,
        map: args.map,
        log: args.log,
        segment: args.segment,
    };
    let is_json = output.json;
    let shown = &mut *output;
    on_device(&mut device, |disk, mut progress| async move {
        let mut show = |item: Item| match is_json {
            true => shown.push("dump", &to_json(&item)),
            false => shown.text(&to_text(&item)),
        };
        dump(&disk, &request, &mut show, &mut |step| progress.hear(step)).await
    })
    .map_err(|error| told(&error))?;
    Ok(())
}

fn to_text(item: &Item) -> String {
    match item {
        Item::Superblock(superblock) => {
            let geometry = &superblock.geometry;
            format!(
                "superblock: uuid {}, generation {}, salt {:#010x}\n  {geometry:?}\n",
                uuid_text(&superblock.uuid),
                superblock.generation,
                superblock.salt
            )
        }
        Item::Checkpoint(checkpoint) => {
            format!("checkpoint {}: {:?}\n", checkpoint.number, checkpoint.head)
        }
        Item::Segment(segment, Some(entry)) => format!(
            "segment {segment}: {:?}, {} live blocks, {} live units\n",
            entry.state, entry.live_blocks, entry.live_units
        ),
        Item::Segment(segment, None) => format!("segment {segment}: damaged\n"),
        Item::Map(first, blocks, entry) => {
            let last = first + blocks - 1;
            let what = match entry {
                MapEntry::Hole => "hole".to_owned(),
                MapEntry::Fill(pattern) => format!("filled with {pattern:#010x}"),
                MapEntry::Poisoned => "lost".to_owned(),
                MapEntry::Extent(extent) => format!(
                    "extent at unit {}, {} units, from its block {}, tag {:#04x}",
                    extent.address, extent.units, extent.index, extent.tag
                ),
            };
            format!("blocks {first} to {last}: {what}\n")
        }
        Item::Record(place, head, total_bytes, entries) => {
            let mut text = format!(
                "record {} at segment {} byte {}: {total_bytes} bytes, epoch {}, flags {}, \
                 durable {}, next segment {}\n",
                head.sequence,
                place.segment,
                place.offset_bytes,
                head.epoch,
                head.flags,
                head.durable_sequence,
                head.next_segment
            );
            for placed in entries {
                text += &format!("  {}\n", entry_text(placed));
            }
            text
        }
        Item::Damage(what) => format!("damage: {what}\n"),
    }
}

fn entry_text(placed: &PlacedEntry) -> String {
    let (first, count) = (placed.entry.first_block(), u64::from(placed.entry.blocks()));
    let last = first + count - 1;
    match placed.entry {
        Entry::Extent { codec, payload_bytes, .. } => {
            let at = placed.offset_bytes;
            format!("blocks {first} to {last}: {codec}, {payload_bytes} bytes at {at}")
        }
        Entry::Unmap { .. } => format!("blocks {first} to {last}: unmapped"),
        Entry::Fill { pattern, .. } => {
            format!("blocks {first} to {last}: filled with {pattern:#010x}")
        }
    }
}

fn to_json(item: &Item) -> Value {
    match item {
        Item::Superblock(superblock) => {
            let geometry = &superblock.geometry;
            json!({
                "kind": "superblock",
                "uuid": uuid_text(&superblock.uuid),
                "generation": superblock.generation,
                "salt": superblock.salt,
                "device_bytes": geometry.device_bytes,
                "checkpoint_offset_bytes": geometry.checkpoint_offset_bytes,
                "checkpoint_len_bytes": geometry.checkpoint_len_bytes,
                "data_offset_bytes": geometry.data_offset_bytes,
                "segment_bytes": geometry.segment_bytes(),
                "align_bytes": geometry.physical_bytes(),
                "unit_bytes": geometry.unit_bytes(),
                "record_limit_bytes": geometry.record_limit_bytes,
                "extent_blocks": geometry.extent_blocks,
                "reserve_segments": geometry.reserve_segments,
                "segment_pages": geometry.segment_pages,
            })
        }
        Item::Checkpoint(checkpoint) => {
            let head = &checkpoint.head;
            json!({
                "kind": "checkpoint",
                "checkpoint": checkpoint.number,
                "next_sequence": head.next_sequence,
                "epoch": head.epoch,
                "fence_sequence": head.fence.sequence,
                "fence_epoch": head.fence.epoch,
                "segment": head.start.segment,
                "offset_bytes": head.start.offset_bytes,
                "next_segment": head.next_segment,
                "flags": head.flags.bits(),
                "logical_blocks": head.logical_blocks,
                "segments": head.segments,
                "live_blocks": head.live_blocks,
                "live_units": head.live_units,
            })
        }
        Item::Segment(segment, entry) => json!({
            "kind": "segment",
            "segment": segment,
            "state": entry.map(|entry| format!("{:?}", entry.state).to_lowercase()),
            "live_blocks": entry.map(|entry| entry.live_blocks),
            "live_units": entry.map(|entry| entry.live_units),
        }),
        Item::Map(first, blocks, entry) => map_json(*first, *blocks, entry),
        Item::Record(place, head, total_bytes, entries) => {
            let entries: Vec<Value> = entries.iter().map(entry_json).collect();
            json!({
                "kind": "record",
                "sequence": head.sequence,
                "segment": place.segment,
                "offset_bytes": place.offset_bytes,
                "len_bytes": total_bytes,
                "epoch": head.epoch,
                "flags": head.flags,
                "durable_sequence": head.durable_sequence,
                "next_segment": head.next_segment,
                "entries": entries,
            })
        }
        Item::Damage(text) => json!({ "kind": "damage", "text": text }),
    }
}

fn map_json(first: u64, blocks: u64, entry: &MapEntry) -> Value {
    let mut value = json!({ "kind": "map", "first_block": first, "blocks": blocks });
    let more = match entry {
        MapEntry::Hole => json!({ "entry": "hole" }),
        MapEntry::Poisoned => json!({ "entry": "poisoned" }),
        MapEntry::Fill(pattern) => json!({ "entry": "fill", "pattern": pattern }),
        MapEntry::Extent(extent) => json!({
            "entry": "extent",
            "address_units": extent.address,
            "len_units": extent.units,
            "index": extent.index,
            "tag": extent.tag,
        }),
    };
    if let (Value::Object(value), Value::Object(more)) = (&mut value, more) {
        value.extend(more);
    }
    value
}

fn entry_json(placed: &PlacedEntry) -> Value {
    let mut value = json!({
        "first_block": placed.entry.first_block(),
        "blocks": placed.entry.blocks(),
    });
    let more = match placed.entry {
        Entry::Unmap { .. } => json!({ "entry": "unmap" }),
        Entry::Fill { pattern, .. } => json!({ "entry": "fill", "pattern": pattern }),
        Entry::Extent { codec, payload_bytes, .. } => json!({
            "entry": "extent",
            "codec": codec.name(),
            "payload_bytes": payload_bytes,
            "offset_bytes": placed.offset_bytes,
        }),
    };
    if let (Value::Object(value), Value::Object(more)) = (&mut value, more) {
        value.extend(more);
    }
    value
}
