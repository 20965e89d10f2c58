//! Lines to a table: the kernel's rules, the targets' constructors, stacked limits, area checks.
//!
//! Runs on the control side, where opening devices may block; its result, a [`Table`], is immutable
//! and goes to the lanes. Nothing here touches a live device: a failed build changes nothing.
//!
//! Order of checks is the kernel's (add-target rules), line by line, so the first error a user
//! sees is the one Linux would report. One difference on purpose: sizes and alignment are checked
//! at every load, not only at the first; an error at load leaves the device alone, while Linux's
//! error at resume leaves it suspended.
//!
//! The tricky case is the block that straddles two lines: with 4 KiB blocks stacked from one
//! target, a neighbour of 512-byte blocks must begin and end so that no 4 KiB block needs half a
//! sector of it.

use super::args::Args;
use super::registry::Registry;
use super::text::{TARGETS_MAX, TableLine, shorten};
use crate::bio::Dest;
use crate::error::{ErrorCode, UserError};
use crate::lower::LowerRef;
use crate::target::{DeviceUse, MapMode, TargetConfig, TargetTraits, TargetType, ops_of};
use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use udm_types::{
    DeviceFeatures, DeviceId, MAX_SECTOR, Nanos, OpSet, QueueLimits, SECTOR_BYTES, Sector,
};

/// A device below, found by the name a table line gives.
#[derive(Clone, Debug)]
pub struct DeviceRef {
    /// Where bios for it go.
    pub dest: Dest,
    /// How `table` and `status` show it: `major:minor`, or as written for what has no number.
    pub shown: String,
    /// Its size.
    pub len_sectors: Sector,
    /// What it accepts.
    pub limits: QueueLimits,
    /// Its block device number, if it has one.
    pub number: Option<(u32, u32)>,
    /// The lower device, kept open for as long as the table lives.
    pub lower: Option<LowerRef>,
}

impl DeviceRef {
    /// A lower device as it is now, without a number.
    pub fn of_lower(lower: &LowerRef) -> DeviceRef {
        DeviceRef {
            dest: Dest::Lower(lower.id),
            shown: lower.device.shown(),
            len_sectors: lower.device.len_sectors(),
            limits: lower.device.limits(),
            number: None,
            lower: Some(lower.clone()),
        }
    }

    /// The mapped device, if it is one.
    pub fn mapped(&self) -> Option<DeviceId> {
        match self.dest {
            Dest::Device(id) => Some(id),
            Dest::Lower(_) => None,
        }
    }
}

/// Finds devices by name. The daemon's opens files; the simulator's gives simulated disks.
pub trait DeviceResolver {
    /// Opens (or finds open) the device a table names.
    fn resolve(&mut self, name: &str, read_only: bool) -> Result<DeviceRef, UserError>;
}

/// What a target type may use while it builds a config.
pub struct BuildCx<'a> {
    resolver: &'a mut dyn DeviceResolver,
    /// The table is loaded read-only.
    pub read_only: bool,
    /// Where the target begins on the mapped device.
    pub begin_sector: Sector,
    /// How long it is.
    pub len_sectors: Sector,
    /// The clock when the table was built (flakey counts from here).
    pub now: Nanos,
    /// A seed of this load, for targets that draw random numbers.
    pub seed: u64,
}

impl BuildCx<'_> {
    /// Takes a device name from the arguments and finds the device.
    pub fn device(&mut self, args: &mut Args<'_>, what: &str) -> Result<DeviceRef, UserError> {
        let name = args.word(what)?;
        self.resolver.resolve(name, self.read_only).map_err(|error| args.previous(error))
    }

    /// Reads from a device, to look whether it holds what the target needs. `None` where that is
    /// not possible before a table is live (mapped devices, connections): the target then finds out
    /// in its `preresume`.
    ///
    /// # Errors
    /// A range beyond the end, and what reading gives.
    pub fn read_head(
        &self,
        device: &DeviceRef,
        offset_bytes: u64,
        len_bytes: usize,
    ) -> Result<Option<Vec<u8>>, UserError> {
        let end = offset_bytes.checked_add(len_bytes as u64);
        if end.is_none_or(|end| end > device.len_sectors * SECTOR_BYTES) {
            let text = format!(
                "{} is too small: {len_bytes} bytes at byte {offset_bytes} are needed",
                device.shown
            );
            return Err(UserError::new(ErrorCode::DeviceTooSmall, text));
        }
        let Some(lower) = &device.lower else { return Ok(None) };
        let mut bytes = vec![0; len_bytes];
        match lower.device.read_now(offset_bytes, &mut bytes) {
            None => Ok(None),
            Some(Ok(())) => Ok(Some(bytes)),
            Some(Err(errno)) => {
                let text = format!(
                    "{} cannot be read at byte {offset_bytes} (errno {})",
                    device.shown, errno.0
                );
                Err(UserError::new(ErrorCode::DeviceOpen, text))
            }
        }
    }
}

/// One target of a table.
pub struct TableTarget {
    /// First sector on the mapped device.
    pub begin_sector: Sector,
    /// Length.
    pub len_sectors: Sector,
    /// Its type.
    pub target_type: &'static dyn TargetType,
    /// Its parsed line.
    pub config: Arc<dyn TargetConfig>,
    /// What it can do, asked once.
    pub traits: TargetTraits,
    /// The operations it takes.
    pub ops: OpSet,
    /// Devices below it, asked once.
    pub devices: Vec<DeviceUse>,
}

impl TableTarget {
    /// The first sector after it.
    #[inline]
    pub fn end_sector(&self) -> Sector {
        self.begin_sector + self.len_sectors
    }
}

/// How an empty flush passes a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FlushRoute {
    /// Straight to each distinct device below, not through `map`.
    Devices(Vec<Dest>),
    /// Through `map` of every target that takes flushes.
    Targets,
}

/// A table: targets that cover a device from sector 0 without gaps.
pub struct Table {
    /// The targets in order.
    pub targets: Vec<TableTarget>,
    /// Size of the mapped device.
    pub len_sectors: Sector,
    /// Limits of the mapped device.
    pub limits: QueueLimits,
    /// Whether it maps bios or requests.
    pub mode: MapMode,
    /// How flushes go.
    pub flush_route: FlushRoute,
    /// Lower devices used, each once.
    pub lowers: Vec<LowerRef>,
    /// Mapped devices used, each once.
    pub mapped: Vec<DeviceId>,
    /// Loaded read-only.
    pub read_only: bool,
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for target in &self.targets {
            writeln!(
                f,
                "{} {} {} {}",
                target.begin_sector,
                target.len_sectors,
                target.target_type.name(),
                target.config.table_args()
            )?;
        }
        Ok(())
    }
}

impl Table {
    /// The target that holds a sector.
    pub fn target_at(&self, sector: Sector) -> Option<usize> {
        let index = self.targets.partition_point(|target| target.end_sector() <= sector);
        (index < self.targets.len()).then_some(index)
    }

    /// Distinct devices below with their numbers, newest first (the order of `dmsetup deps`).
    pub fn deps(&self) -> Vec<(Option<(u32, u32)>, String)> {
        let mut seen = BTreeSet::new();
        let mut deps = Vec::new();
        for part in self.targets.iter().flat_map(|target| &target.devices) {
            if seen.insert(part.device.dest) {
                deps.push((part.device.number, part.device.shown.clone()));
            }
        }
        deps.reverse();
        deps
    }

    /// The type all targets are bound to, if it is one that cannot be replaced.
    pub fn immutable_type(&self) -> Option<&'static str> {
        let first = self.targets.first()?.target_type;
        first.features().immutable.then_some(first.name())
    }

    /// True if `table` needs the targets' counters for the live table.
    pub fn shows_state(&self) -> bool {
        self.targets.iter().any(|target| target.traits.live_table)
    }

    /// True if a target does I/O or work of its own.
    pub fn has_own_work(&self) -> bool {
        self.targets.iter().any(|target| target.traits.own_work)
    }

    /// True if a wildcard target stands in the table.
    pub fn has_wildcard(&self) -> bool {
        self.targets.iter().any(|target| target.target_type.features().wildcard)
    }
}

/// Builds tables.
pub struct TableBuilder<'a> {
    /// The target types there are.
    pub registry: &'a Registry,
    /// Finds devices.
    pub resolver: &'a mut dyn DeviceResolver,
    /// Load read-only.
    pub read_only: bool,
    /// The clock.
    pub now: Nanos,
    /// Seed for targets that draw random numbers.
    pub seed: u64,
}

impl TableBuilder<'_> {
    /// Builds a table from its lines.
    pub fn build(mut self, lines: &[TableLine]) -> Result<Table, UserError> {
        if lines.is_empty() {
            return Err(UserError::new(ErrorCode::EmptyTable, "the table has no lines"));
        }
        if lines.len() > TARGETS_MAX {
            return Err(UserError::new(
                ErrorCode::TooManyTargets,
                format!("{} lines, the limit is {TARGETS_MAX}", lines.len()),
            ));
        }
        let mut targets: Vec<TableTarget> = Vec::with_capacity(lines.len());
        for line in lines {
            let target = self.add_target(line, &targets)?;
            targets.push(target);
        }
        let mode = mode_of(&targets)?;
        let limits = stack_limits(&targets, lines, self.read_only)?;
        Ok(assemble(targets, limits, mode, self.read_only))
    }

    fn add_target(
        &mut self,
        line: &TableLine,
        before: &[TableTarget],
    ) -> Result<TableTarget, UserError> {
        let at = |error: UserError, field: u32| error.at_line(line.line).at_field(field);
        let end_before = before.last().map_or(0, TableTarget::end_sector);
        let rule = |text: String| at(UserError::new(ErrorCode::TypeRule, text), 3);
        if let Some(first) = before.first()
            && first.target_type.features().singleton
        {
            let name = first.target_type.name();
            return Err(rule(format!("{name} must be the only target of its table")));
        }
        if line.len_sectors == 0 {
            return Err(at(UserError::new(ErrorCode::ZeroLength, "the length is 0"), 2));
        }
        if line.begin_sector.checked_add(line.len_sectors).is_none_or(|end| end > MAX_SECTOR) {
            let text = "start + length is beyond 2^54 - 1 sectors";
            return Err(at(UserError::new(ErrorCode::RangeOverflow, text), 2));
        }
        let target_type = self.find_type(line)?;
        let features = target_type.features();
        if features.singleton && !before.is_empty() {
            return Err(rule(format!("{} must be the only target", target_type.name())));
        }
        if features.always_writable && self.read_only {
            return Err(rule(format!("{} cannot be read-only", target_type.name())));
        }
        // The rule below kept the lines before uniform if any of them is immutable, so the first
        // speaks for all; looking at each would cost the square of the number of lines.
        let first = before.first().map(|target| target.target_type);
        let immutable = first.is_some_and(|first| first.features().immutable);
        let same = first.is_none_or(|first| first.name() == target_type.name());
        if (immutable || (features.immutable && !before.is_empty())) && !same {
            return Err(rule("this type does not mix with the other targets".into()));
        }
        check_begin(line, end_before)?;
        self.construct(line, target_type)
    }

    fn find_type(&self, line: &TableLine) -> Result<&'static dyn TargetType, UserError> {
        self.registry.find(&line.target).ok_or_else(|| {
            let error = UserError::new(
                ErrorCode::UnknownTarget,
                format!("there is no target type '{}'", shorten(&line.target)),
            )
            .at_line(line.line)
            .at_field(3);
            match self.registry.nearest(&line.target) {
                Some(near) => error.hint(format!("did you mean '{near}'?")),
                None => error.hint(format!("types: {}", self.registry.names())),
            }
        })
    }

    fn construct(
        &mut self,
        line: &TableLine,
        target_type: &'static dyn TargetType,
    ) -> Result<TableTarget, UserError> {
        let mut cx = BuildCx {
            resolver: self.resolver,
            read_only: self.read_only,
            begin_sector: line.begin_sector,
            len_sectors: line.len_sectors,
            now: self.now,
            seed: self.seed.wrapping_add(line.begin_sector),
        };
        let mut args = Args::new(line);
        let config: Box<dyn TargetConfig> =
            target_type.build(&mut args, &mut cx).map_err(|error| {
                if error.line().is_none() { error.at_line(line.line) } else { error }
            })?;
        let config: Arc<dyn TargetConfig> = config.into();
        let traits = config.traits();
        Ok(TableTarget {
            begin_sector: line.begin_sector,
            len_sectors: line.len_sectors,
            target_type,
            ops: ops_of(&traits),
            devices: config.devices(),
            traits,
            config,
        })
    }
}

/// Whether a table maps bios or requests; "either" if all its targets leave it open.
fn mode_of(targets: &[TableTarget]) -> Result<MapMode, UserError> {
    let has = |mode| targets.iter().any(|target| target.traits.mode == mode);
    match (has(MapMode::Bio), has(MapMode::Request)) {
        (true, true) => Err(UserError::new(
            ErrorCode::MapModeRule,
            "targets that map bios and targets that map requests are mixed",
        )),
        (true, false) => Ok(MapMode::Bio),
        (false, true) => Ok(MapMode::Request),
        (false, false) => Ok(MapMode::Either),
    }
}

fn check_begin(line: &TableLine, end_before: Sector) -> Result<(), UserError> {
    let (code, what) = match line.begin_sector.cmp(&end_before) {
        core::cmp::Ordering::Equal => return Ok(()),
        core::cmp::Ordering::Greater => (ErrorCode::Gap, "a gap before this line"),
        core::cmp::Ordering::Less => (ErrorCode::Overlap, "this line overlaps what is before it"),
    };
    Err(UserError::new(
        code,
        format!("{what}: it starts at {}, expected {end_before}", line.begin_sector),
    )
    .at_line(line.line)
    .at_field(1))
}

/// Stacks limits of all targets, checks areas and alignment.
fn stack_limits(
    targets: &[TableTarget],
    lines: &[TableLine],
    read_only: bool,
) -> Result<QueueLimits, UserError> {
    let mut whole = QueueLimits { read_only, ..QueueLimits::default() };
    let mut blocks_sectors = Vec::with_capacity(targets.len());
    let mut all_discard = true;
    let mut all_zero = true;
    for (target, line) in targets.iter().zip(lines) {
        let mut own = QueueLimits::default();
        for part in &target.devices {
            own.stack(&part.device.limits);
        }
        let devices_discard = own.max_discard_sectors != 0;
        let devices_zero = own.max_write_zeroes_sectors != 0 && !target.devices.is_empty();
        target.config.io_hints(&mut own);
        for part in &target.devices {
            check_area(part, &own, read_only).map_err(|error| error.at_line(line.line))?;
        }
        all_discard &=
            target.traits.discard_bios > 0 && (target.traits.discards_itself || devices_discard);
        all_zero &=
            target.traits.write_zeroes_bios > 0 && (target.traits.zeroes_itself || devices_zero);
        if target.traits.flush_bios > 0 && target.traits.flushes_itself {
            own.features |= DeviceFeatures::WRITE_CACHE | DeviceFeatures::FUA;
        }
        // A target that discards by itself does not depend on what is below.
        if target.traits.discards_itself && own.max_discard_sectors == 0 {
            own.max_discard_sectors = udm_types::UNLIMITED;
        }
        if target.traits.zeroes_itself && own.max_write_zeroes_sectors == 0 {
            own.max_write_zeroes_sectors = udm_types::UNLIMITED;
        }
        blocks_sectors.push(own.logical_block_sectors());
        whole.stack(&own);
    }
    check_alignment(targets, lines, &blocks_sectors, whole.logical_block_sectors())?;
    if !all_discard {
        whole.forbid_discard();
    }
    if !all_zero {
        whole.max_write_zeroes_sectors = 0;
    }
    Ok(whole)
}

fn check_area(part: &DeviceUse, own: &QueueLimits, read_only: bool) -> Result<(), UserError> {
    let device = &part.device;
    if device.limits.read_only && !read_only {
        return Err(UserError::new(
            ErrorCode::ReadOnlyBelow,
            format!("{} cannot be written", device.shown),
        )
        .hint("load the table with --readonly"));
    }
    let end = part.start_sector.checked_add(part.len_sectors);
    let size = device.len_sectors;
    if size != 0 && (part.start_sector >= size || end.is_none_or(|end| end > size)) {
        return Err(UserError::new(
            ErrorCode::DeviceTooSmall,
            format!(
                "{} has {size} sectors, but sectors {} to {} are needed",
                device.shown,
                part.start_sector,
                part.start_sector.saturating_add(part.len_sectors)
            ),
        ));
    }
    let block = own.logical_block_sectors();
    if !part.start_sector.is_multiple_of(block) || !part.len_sectors.is_multiple_of(block) {
        return Err(UserError::new(
            ErrorCode::Misaligned,
            format!(
                "start {} and length {} on {} must be multiples of {block} sectors",
                part.start_sector, part.len_sectors, device.shown
            ),
        ));
    }
    Ok(())
}

fn check_alignment(
    targets: &[TableTarget],
    lines: &[TableLine],
    blocks_sectors: &[Sector],
    whole_block: Sector,
) -> Result<(), UserError> {
    let refuse = |line: &TableLine| {
        UserError::new(
            ErrorCode::Misaligned,
            format!("a block of {whole_block} sectors would be cut here"),
        )
        .at_line(line.line)
    };
    let mut missing = 0;
    for ((target, line), block) in targets.iter().zip(lines).zip(blocks_sectors) {
        if missing < target.len_sectors && missing % block != 0 {
            return Err(refuse(line));
        }
        let over = target.end_sector() % whole_block;
        missing = if over == 0 { 0 } else { whole_block - over };
    }
    match (missing, lines.last()) {
        (1.., Some(line)) => Err(refuse(line)),
        _ => Ok(()),
    }
}

fn assemble(
    targets: Vec<TableTarget>,
    limits: QueueLimits,
    mode: MapMode,
    read_only: bool,
) -> Table {
    let mut lowers: Vec<LowerRef> = Vec::new();
    let mut mapped: Vec<DeviceId> = Vec::new();
    let mut dests: Vec<Dest> = Vec::new();
    // Sorted sets keep a table of 20,000 lines from costing 20,000 squared.
    let mut seen = BTreeSet::new();
    let mut flushed = BTreeSet::new();
    for target in &targets {
        for part in &target.devices {
            // A target that takes no flush (error) does not have its device flushed either.
            if target.traits.flush_bios > 0 && flushed.insert(part.device.dest) {
                dests.push(part.device.dest);
            }
            if seen.insert(part.device.dest) {
                lowers.extend(part.device.lower.clone());
                mapped.extend(part.device.mapped());
            }
        }
    }
    let bypass = targets
        .iter()
        .all(|target| target.traits.flush_bypasses_map || target.traits.flush_bios == 0);
    let flush_route = if bypass { FlushRoute::Devices(dests) } else { FlushRoute::Targets };
    let len_sectors = targets.last().map_or(0, TableTarget::end_sector);
    Table { targets, len_sectors, limits, mode, flush_route, lowers, mapped, read_only }
}
