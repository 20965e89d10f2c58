//! dm statistics: the `@stats_*` messages, the regions they define, and how numbers are printed.
//!
//! They are messages of the device, not of a target: any sector will do, and no table is needed.
//! The definitions are kept here, the counters on the lanes (`engine/regions.rs`). They belong to
//! the device, survive table swaps, and go with it.
//!
//! Texts, order of checks and errors are the kernel's. Busy times of several lanes are added: each
//! lane knows only its own.
//!
//! The tricky case is the last area: it may be cut by the region's end, but is printed with its
//! full length.

use super::coordinator::{After, Coordinator};
use super::request::{Reply, ReplySink};
use crate::engine::{LaneStep, RegionNumbers, RegionSpec};
use crate::error::{ErrorCode, ErrorKind, UserError};
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::Write;
use core::ops::Range;
use udm_types::{DeviceId, Nanos, Sector};

/// Most areas of a region, on every lane 136 bytes each: a region of 1 TiB in steps of 1 MiB.
const AREAS_MAX: u64 = 1 << 20;
/// Most buckets of a region's histograms, on every lane.
const BUCKETS_MAX: u64 = 1 << 22;
/// Most regions of a device: each costs a look for every bio.
const REGIONS_MAX: usize = 256;

/// A region with what nobody but its makers looks at.
#[derive(Clone, Debug)]
pub(super) struct StatsRegion {
    spec: Arc<RegionSpec>,
    program: String,
    aux: String,
}

fn invalid(text: &str) -> UserError {
    UserError::new(ErrorCode::BadMessage, text)
}

fn missing(id: u32) -> UserError {
    let text = format!("there is no statistics region {id}");
    UserError::new(ErrorCode::BadMessage, text).of_kind(ErrorKind::NoEntry)
}

fn too_large(text: &str) -> UserError {
    UserError::new(ErrorCode::BadMessage, text).of_kind(ErrorKind::Overflow)
}

fn number<N: core::str::FromStr>(word: &str) -> Option<N> {
    let digits = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| word.parse().ok()).flatten()
}

fn id_of(word: &str) -> Result<u32, UserError> {
    let id: Option<u32> = number(word);
    id.filter(|id| i32::try_from(*id).is_ok()).ok_or_else(|| invalid("a region's number is wrong"))
}

impl Coordinator {
    /// Answers a message that begins with `@stats_`.
    pub(super) fn stats_message(&mut self, id: DeviceId, words: &[String], sink: ReplySink) {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let Some((verb, rest)) = words.split_first() else { return };
        let text = match verb.to_ascii_lowercase().as_str() {
            "@stats_create" => return self.stats_create(id, rest, sink),
            "@stats_print" => return self.stats_print(id, rest, false, sink),
            "@stats_print_clear" => return self.stats_print(id, rest, true, sink),
            "@stats_delete" => self.stats_delete(id, rest),
            "@stats_clear" => self.stats_clear(id, rest),
            "@stats_set_aux" => self.stats_set_aux(id, rest),
            "@stats_list" => self.stats_list(id, rest),
            _ => Err(UserError::new(ErrorCode::UnknownMessage, "no such statistics message")),
        };
        sink(text.map(Reply::Text));
    }

    fn stats_create(&mut self, id: DeviceId, words: &[&str], sink: ReplySink) {
        let Some(device) = self.device_mut(id) else { return };
        let len_sectors = device.live.as_ref().map_or(0, |live| live.table.len_sectors);
        let free = (0..).find(|id| device.regions.iter().all(|region| region.spec.id != *id));
        let region = match parse_region(free.unwrap_or(0), words, len_sectors) {
            Ok(region) if device.regions.len() < REGIONS_MAX => region,
            Ok(_) => return sink(Err(too_large("the device has too many statistics regions"))),
            Err(error) => return sink(Err(error)),
        };
        let spec = Arc::clone(&region.spec);
        device.regions.push(region);
        device.regions.sort_by_key(|region| region.spec.id);
        let text = format!("{}", spec.id);
        // Every lane counts before the caller hears of it.
        self.round(id, LaneStep::StatsCreate { spec }, After::Stats(Some(text), sink));
    }

    fn region(&self, id: DeviceId, word: &str) -> Result<&StatsRegion, UserError> {
        let number = id_of(word)?;
        let regions = self.device(id).map_or(&[][..], |device| &device.regions);
        regions.iter().find(|region| region.spec.id == number).ok_or_else(|| missing(number))
    }

    fn stats_delete(&mut self, id: DeviceId, words: &[&str]) -> Result<Option<String>, UserError> {
        let [word] = words else { return Err(invalid("expected a region's number")) };
        let region = self.region(id, word)?.spec.id;
        if let Some(device) = self.device_mut(id) {
            device.regions.retain(|known| known.spec.id != region);
        }
        self.tell(id, LaneStep::StatsDelete { region });
        Ok(None)
    }

    fn stats_clear(&mut self, id: DeviceId, words: &[&str]) -> Result<Option<String>, UserError> {
        let [word] = words else { return Err(invalid("expected a region's number")) };
        let spec = Arc::clone(&self.region(id, word)?.spec);
        let areas = 0..spec.area_count() as usize;
        self.tell(id, LaneStep::StatsRead { region: spec.id, areas, clear: true });
        Ok(Some(String::new()))
    }

    fn stats_set_aux(&mut self, id: DeviceId, words: &[&str]) -> Result<Option<String>, UserError> {
        let [word, aux] = words else {
            return Err(invalid("expected a region's number and a word"));
        };
        let number = self.region(id, word)?.spec.id;
        let regions = self.device_mut(id).map(|device| device.regions.iter_mut());
        for region in regions.into_iter().flatten().filter(|region| region.spec.id == number) {
            region.aux = String::from(*aux);
        }
        Ok(None)
    }

    fn stats_list(&self, id: DeviceId, words: &[&str]) -> Result<Option<String>, UserError> {
        let program = match words {
            [] => None,
            [program] => Some(*program),
            _ => return Err(invalid("expected one program at most")),
        };
        let mut text = String::new();
        let regions = self.device(id).map_or(&[][..], |device| &device.regions);
        for region in regions.iter().filter(|region| program.is_none_or(|p| p == region.program)) {
            let StatsRegion { spec, program, aux } = region;
            let len = spec.end_sector - spec.start_sector;
            let (id, start, step) = (spec.id, spec.start_sector, spec.step_sectors);
            // Writing to a string does not fail.
            let _ = write!(text, "{id}: {start}+{len} {step} {program} {aux}");
            if spec.precise {
                text.push_str(" precise_timestamps");
            }
            if !spec.bounds.is_empty() {
                text.push_str(" histogram:");
                push_joined(&mut text, &spec.bounds, ',');
            }
            text.push('\n');
        }
        Ok(Some(text))
    }

    fn stats_print(&mut self, id: DeviceId, words: &[&str], clear: bool, sink: ReplySink) {
        let (word, range) = match words {
            [word] => (*word, ["-", "-"]),
            [word, first, count] => (*word, [*first, *count]),
            _ => return sink(Err(invalid("expected a region's number, and a range of areas"))),
        };
        let found = self.region(id, word).and_then(|region| {
            let areas = areas_of(range, region.spec.area_count() as usize)?;
            Ok((Arc::clone(&region.spec), areas))
        });
        match found {
            Ok((spec, areas)) => {
                let step = LaneStep::StatsRead { region: spec.id, areas: areas.clone(), clear };
                self.round(id, step, After::StatsPrint(spec, areas, sink));
            }
            Err(error) => sink(Err(error)),
        }
    }
}

fn areas_of(range: [&str; 2], count: usize) -> Result<Range<usize>, UserError> {
    let part = |word: &str, default: usize| match word {
        "-" => Ok(default),
        _ => number(word).ok_or_else(|| invalid("an area's number is wrong")),
    };
    let (first, len) = (part(range[0], 0)?, part(range[1], usize::MAX)?);
    let end = first.checked_add(len).map_or(count, |end| end.min(count));
    Ok(first.min(end)..end)
}

/// The lines of some areas.
pub(super) fn print(spec: &RegionSpec, areas: Range<usize>, numbers: &RegionNumbers) -> String {
    let mut text = String::new();
    let width = spec.bucket_count();
    for (place, (index, area)) in areas.zip(&numbers.areas).enumerate() {
        let start = spec.start_sector + index as u64 * spec.step_sectors;
        let time = |time: Nanos| if spec.precise { time.0 } else { time.as_millis() };
        // Writing to a string does not fail.
        let _ = write!(text, "{start}+{}", spec.step_sectors);
        for way in &area.ways {
            let took = time(way.took);
            let _ = write!(text, " {} {} {} {took}", way.ios, way.merges, way.sectors);
        }
        let in_flight: u64 = area.ways.iter().map(|way| way.in_flight).sum();
        let (busy, weighted) = (time(area.busy), time(area.weighted));
        let [read, write] = area.ways.map(|way| time(way.busy));
        let _ = write!(text, " {in_flight} {busy} {weighted} {read} {write}");
        if width > 0 {
            text.push(' ');
            push_joined(&mut text, &numbers.buckets[place * width..(place + 1) * width], ':');
        }
        text.push('\n');
    }
    text
}

fn push_joined(text: &mut String, numbers: &[u64], between: char) {
    for (index, number) in numbers.iter().enumerate() {
        if index > 0 {
            text.push(between);
        }
        let _ = write!(text, "{number}");
    }
}

/// `RANGE STEP [COUNT FEATURES...] [PROGRAM [AUX]]`.
fn parse_region(id: u32, words: &[&str], len_sectors: Sector) -> Result<StatsRegion, UserError> {
    let [range, step, rest @ ..] = words else {
        return Err(invalid("expected a range and a step"));
    };
    let (start_sector, end_sector) = parse_range(range, len_sectors)?;
    let step_sectors = parse_step(step, end_sector - start_sector)?;
    let mut rest = rest.iter().copied().peekable();
    let (mut precise, mut bounds) = (false, Vec::new());
    if let Some(count) = rest.peek().and_then(|word| number::<u32>(word)) {
        rest.next();
        for _ in 0..count {
            let feature = rest.next().ok_or_else(|| invalid("a feature is missing"))?;
            let lower = feature.to_ascii_lowercase();
            if lower == "precise_timestamps" {
                precise = true;
            } else if let Some(list) = lower.strip_prefix("histogram:")
                && bounds.is_empty()
            {
                bounds = parse_bounds(list)?;
            } else {
                return Err(invalid("a feature is not known, or there twice"));
            }
        }
    }
    let program = rest.next().unwrap_or("-").into();
    let aux = rest.next().unwrap_or("-").into();
    if rest.next().is_some() {
        return Err(invalid("there are too many words"));
    }
    let spec = RegionSpec { id, start_sector, end_sector, step_sectors, precise, bounds };
    let areas = spec.area_count();
    if areas > AREAS_MAX || areas.saturating_mul(spec.bucket_count() as u64) > BUCKETS_MAX {
        return Err(too_large("the region has too many areas or buckets"));
    }
    Ok(StatsRegion { spec: Arc::new(spec), program, aux })
}

fn parse_range(range: &str, len_sectors: Sector) -> Result<(Sector, Sector), UserError> {
    if range == "-" {
        return Ok((0, len_sectors.max(1)));
    }
    let parts = range.split_once('+').and_then(|(start, len)| {
        let start: Sector = number(start)?;
        Some((start, start.checked_add(number(len)?)?))
    });
    parts
        .filter(|(start, end)| start < end)
        .ok_or_else(|| invalid("the range is '-' or START+LENGTH"))
}

fn parse_step(step: &str, len_sectors: Sector) -> Result<Sector, UserError> {
    let sectors = match step.strip_prefix('/') {
        Some(parts) => number::<u32>(parts)
            .filter(|parts| *parts > 0)
            .map(|parts| len_sectors.div_ceil(Sector::from(parts))),
        None => number(step).filter(|sectors| *sectors > 0),
    };
    sectors.ok_or_else(|| invalid("the step is a number of sectors or /AREAS"))
}

fn parse_bounds(list: &str) -> Result<Vec<u64>, UserError> {
    let bounds: Option<Vec<u64>> = list.split(',').map(number).collect();
    bounds
        .filter(|bounds| bounds.is_sorted_by(|a, b| a < b))
        .ok_or_else(|| invalid("a histogram's bounds are rising numbers"))
}
