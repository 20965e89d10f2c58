//! Every extent that a map entry means: it is there, whole, the right one, and alone in its place.
//!
//! Segments are taken in groups whose references fit the memory; for each group the map is read
//! once more. Within a segment references are sorted by address, so that extents are read in order,
//! in pieces of up to a megabyte.
//!
//! The tricky case is a piece that cannot be read: its extents are tried one by one, so that one
//! bad sector costs one extent.

use super::map::misplaced;
use super::{Code, Findings};
use crate::compress::format::geometry::MAP_ENTRIES;
use crate::compress::format::map::{MapExtent, map_entry};
use crate::compress::format::{ExtentHead, MapEntry};
use crate::compress::tools::view::View;
use crate::compress::tools::{Progress, Watch};
use alloc::vec::Vec;
use core::ops::Range;
use udm_meta::Disk;
use udm_meta::bytes::read_vec;

/// A piece is no longer, unless a single extent is.
const PIECE_BYTES: u64 = 1 << 20;
/// Gaps up to this are read along.
const GAP_BYTES: u64 = 64 << 10;

/// A block, and the extent its map entry means.
#[derive(Clone, Copy)]
struct Reference {
    extent: MapExtent,
    block: u64,
}

/// Verifies all extents. Gives how many there were.
pub(in crate::compress::tools) async fn verify(
    disk: &Disk,
    view: &View,
    live: &[u32],
    memory_bytes: usize,
    findings: &mut Findings,
    watch: Watch<'_>,
) -> u64 {
    let budget = (memory_bytes / size_of::<Reference>()).max(1) as u64;
    let total = live.iter().map(|live| u64::from(*live)).sum();
    let (mut done, mut extents) = (0, 0);
    let mut first = 0;
    while first < live.len() {
        let mut references = u64::from(live[first]);
        let mut end = first + 1;
        while end < live.len() && references + u64::from(live[end]) <= budget {
            references += u64::from(live[end]);
            end += 1;
        }
        if references > 0 {
            let mut group = collect(disk, view, first..end, references as usize).await;
            group.sort_unstable_by_key(|reference| (reference.extent.address, reference.block));
            extents += verify_group(disk, view, &group, findings).await;
            done += references;
            watch(Progress { step: "reading extents", done, total });
        }
        first = end;
    }
    extents
}

/// The references into some segments.
async fn collect(
    disk: &Disk,
    view: &View,
    segments: Range<usize>,
    expected: usize,
) -> Vec<Reference> {
    let mut group = Vec::with_capacity(expected);
    let geometry = &view.superblock.geometry;
    let (first, end) = (geometry.segment_pages, view.checkpoint.slots.page_count());
    let mut visit = |page: u64, body: Result<&[u8], _>| {
        // Damaged pages were reported when the map was counted.
        if let (Ok(body), Some(first_block)) = (body, geometry.first_block_of(page)) {
            for index in 0..MAP_ENTRIES as usize {
                let Ok(MapEntry::Extent(extent)) = map_entry(body, index) else { continue };
                let segment = geometry.place_of(extent.address).segment as usize;
                if segments.contains(&segment) && misplaced(view, &extent).is_none() {
                    group.push(Reference { extent, block: first_block + index as u64 });
                }
            }
        }
    };
    view.visit_pages(disk, first, end, &mut visit).await;
    group
}

/// Verifies sorted references. Gives the number of extents.
async fn verify_group(
    disk: &Disk,
    view: &View,
    group: &[Reference],
    findings: &mut Findings,
) -> u64 {
    let mut extents = 0;
    let mut rest = group;
    while let Some(first) = rest.first() {
        let len = piece_len(view, rest);
        let (piece, after) = rest.split_at(len);
        rest = after;
        let from = first.extent.address;
        let to = piece.iter().map(end_of).max().unwrap_or(from);
        let bytes = read_units(disk, view, from, to).await;
        for same in piece.chunk_by(|one, next| one.extent.address == next.extent.address) {
            extents += 1;
            let extent = same[0].extent;
            match &bytes {
                Some(bytes) => {
                    let at =
                        ((extent.address - from) << view.superblock.geometry.unit_shift) as usize;
                    verify_extent(view, same, bytes.get(at..).unwrap_or(&[]), findings);
                }
                None => match read_units(disk, view, extent.address, end_of(&same[0])).await {
                    Some(bytes) => verify_extent(view, same, &bytes, findings),
                    None => report(view, same, "cannot be read", findings),
                },
            }
        }
    }
    overlaps(view, group, findings);
    extents
}

fn end_of(reference: &Reference) -> u64 {
    reference.extent.address + u64::from(reference.extent.units)
}

/// How many references, from the first on, are read as one piece.
fn piece_len(view: &View, references: &[Reference]) -> usize {
    let geometry = &view.superblock.geometry;
    let from = references[0].extent.address;
    let segment = geometry.place_of(from).segment;
    let mut end = end_of(&references[0]);
    let mut len = 1;
    for reference in &references[1..] {
        let address = reference.extent.address;
        let gap = address.saturating_sub(end) << geometry.unit_shift;
        let length = (end_of(reference) - from) << geometry.unit_shift;
        let is_near = geometry.place_of(address).segment == segment && gap <= GAP_BYTES;
        // References of one extent stay together.
        if address != references[len - 1].extent.address && !(is_near && length <= PIECE_BYTES) {
            break;
        }
        end = end.max(end_of(reference));
        len += 1;
    }
    len
}

async fn read_units(disk: &Disk, view: &View, from: u64, to: u64) -> Option<Vec<u8>> {
    let geometry = &view.superblock.geometry;
    let at = geometry.data_offset_bytes + (from << geometry.unit_shift);
    let len = usize::try_from((to - from) << geometry.unit_shift).ok()?;
    read_vec(disk, at, len).await.ok()
}

/// All references to one address: the extent is whole, and the one each of them means.
fn verify_extent(view: &View, same: &[Reference], bytes: &[u8], findings: &mut Findings) {
    let unit_bytes = 1 << view.superblock.geometry.unit_shift;
    match ExtentHead::verify(view.superblock.salt, bytes) {
        Err(fault) => report(view, same, &alloc::format!("{fault}"), findings),
        Ok((head, _payload)) => {
            for reference in same {
                if !head.answers(reference.block, &reference.extent, unit_bytes) {
                    let one = core::slice::from_ref(reference);
                    report(view, one, "is not the one that the map means", findings);
                }
            }
        }
    }
}

fn report(view: &View, same: &[Reference], what: &str, findings: &mut Findings) {
    let (first, last) = (same[0], same[same.len() - 1]);
    let place = view.superblock.geometry.place_of(first.extent.address);
    let text = format_args!(
        "the extent of blocks {} to {}, in segment {} at byte {}, {what}",
        first.block, last.block, place.segment, place.offset_bytes
    );
    findings.damage(Code::Extent, text);
    same.iter().for_each(|reference| findings.lose_block(reference.block));
}

/// Two extents that share bytes. Sorted by address, a neighbour that begins too early tells.
fn overlaps(view: &View, group: &[Reference], findings: &mut Findings) {
    let mut end = 0;
    for same in group.chunk_by(|one, next| one.extent.address == next.extent.address) {
        let address = same[0].extent.address;
        if address < end {
            let place = view.superblock.geometry.place_of(address);
            let text = format_args!(
                "two extents share bytes in segment {} at byte {}",
                place.segment, place.offset_bytes
            );
            findings.damage(Code::Overlap, text);
        }
        end = end.max(same.iter().map(end_of).max().unwrap_or(end));
    }
}
