//! The oracle: judges every result the load gets, against what may legally have happened.
//!
//! It knows no engine. The load tells it what it submits and what comes back; the disks tell it
//! which write reaches them; the scripts tell it about tables, sizes, suspends. From that it holds
//!
//! - the legal values of every sector (`register.rs`), checked by each read,
//! - the flush epochs: when a flush ends well, each disk's *durable* image must hold a legal value
//!   for everything acknowledged before the flush was submitted,
//! - what may fail (`excuse.rs`) and what must,
//! - the order of barriers and of replayed I/O (`order.rs`).
//!
//! The tricky case is time. Virtual time stands still while much happens, so every submission and
//! completion gets a tick of its own, in the order the load saw them; "before" means an end tick
//! below a start tick. Within one turn of a lane the order in which completions reach the load is
//! the engine's choice, so order rules compare turns, not ticks.

mod book;
mod excuse;
mod order;
mod register;

pub(crate) use book::{Class, Volume};
pub(crate) use excuse::{FaultKind, WindowId};
use register::Register;
pub(crate) use register::Tick;

use crate::disk::{Disk, Owner};
use crate::value::{Contents, SECTOR_LEN, Tag, decode, sector_of, tag, volume_of, write_of};
use excuse::{Excuses, Failed};
use std::collections::{BTreeMap, BTreeSet};
use udm_types::{BioFlags, Op, Sector, Status};

/// What the load submits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Submission {
    /// The volume.
    pub volume: usize,
    /// The operation.
    pub op: Op,
    /// Its flags, as the load believes them to be.
    pub flags: BioFlags,
    /// First sector.
    pub sector: Sector,
    /// Length; 0 for a flush.
    pub len_sectors: Sector,
    /// The lane.
    pub lane: usize,
}

/// A bio under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    pub(crate) asked: Submission,
    pub(crate) seq: u64,
    pub(crate) start: Tick,
    /// When the last flush began that had gone well by then: sync faults since may be reported to
    /// it.
    pub(crate) flushed: Tick,
    /// The suspend that found it held, 0 for none.
    pub(crate) epoch: u64,
    /// The turn in which its data first reached a disk.
    pub(crate) started_turn: Option<u64>,
}

/// The judge.
#[derive(Debug)]
pub(crate) struct Oracle {
    tick: Tick,
    /// The world's count of turns.
    pub turn: u64,
    volumes: Vec<Option<Volume>>,
    under_way: BTreeMap<u32, Record>,
    starts: BTreeSet<Tick>,
    next_number: u32,
    /// Numbers of bios that an abort answered; their data may still reach a disk.
    given_up: BTreeSet<u32>,
    excuses: Excuses,
    violation: Option<String>,
    /// Sequence numbers are told in the wrong order (canary).
    pub swap_order: bool,
}

impl Oracle {
    /// An oracle of no volumes.
    pub(crate) fn new() -> Oracle {
        Oracle {
            tick: 1,
            turn: 0,
            volumes: Vec::new(),
            under_way: BTreeMap::new(),
            starts: BTreeSet::new(),
            next_number: 1,
            given_up: BTreeSet::new(),
            excuses: Excuses::default(),
            violation: None,
            swap_order: false,
        }
    }

    /// Notes a broken promise; the first one counts.
    pub(crate) fn violate(&mut self, text: String) {
        self.violation.get_or_insert(text);
    }

    /// The first broken promise.
    pub(crate) fn violation(&self) -> Option<&str> {
        self.violation.as_deref()
    }

    /// Bios under way.
    pub(crate) fn bios_under_way(&self) -> usize {
        self.under_way.len()
    }

    /// The oldest bio under way, for a report.
    pub(crate) fn describe_oldest(&self) -> String {
        self.under_way.iter().next().map_or_else(String::new, |(number, record)| {
            format!("bio {number}: {:?}", record.asked)
        })
    }

    pub(crate) fn next_tick(&mut self) -> Tick {
        self.tick += 1;
        self.tick
    }

    /// A bio is about to be submitted. Returns its number, which its data carries.
    pub(crate) fn submit(&mut self, asked: Submission) -> u32 {
        let start = self.next_tick();
        let number = self.next_number;
        self.next_number += 1;
        let swap = u64::from(self.swap_order);
        let Some(volume) = self.volumes[asked.volume].as_mut() else {
            self.violate("the load uses a volume that is gone".into());
            return number;
        };
        let seq = volume.take_seq(asked.lane) ^ swap;
        let (epoch, flushed) = (volume.epoch, volume.last_good_flush);
        if asked.op.is_write() {
            let zeroes = asked.op != Op::Write;
            volume.for_data(asked, |register| register.begin(number, zeroes, start));
        }
        self.starts.insert(start);
        let record = Record { asked, seq, start, flushed, epoch, started_turn: None };
        self.under_way.insert(number, record);
        number
    }

    /// A bio came back. `found` is what a read brought.
    pub(crate) fn complete(&mut self, number: u32, status: Status, found: &[u8], disks: &[Disk]) {
        let now = self.next_tick();
        let Some(record) = self.under_way.remove(&number) else {
            return self.violate(format!("bio {number} came back twice"));
        };
        self.check_order_at_end(number, &record, status);
        let asked = record.asked;
        if status.is_ok() {
            self.check_success(number, &record, found, disks, now);
        } else {
            self.check_failure(number, &record, status);
        }
        self.starts.remove(&record.start);
        if asked.op.is_write() {
            let oldest = self.starts.first().copied().unwrap_or(now);
            let certain = status.is_ok() && asked.op != Op::Discard;
            if let Some(volume) = self.volumes[asked.volume].as_mut() {
                volume.for_data(asked, |register| register.end(number, certain, now, oldest));
            }
        }
    }

    fn check_success(
        &mut self,
        number: u32,
        record: &Record,
        found: &[u8],
        disks: &[Disk],
        now: Tick,
    ) {
        let asked = record.asked;
        let Some(volume) = self.volumes[asked.volume].as_ref() else { return };
        let end = asked.sector.saturating_add(asked.len_sectors);
        if asked.len_sectors > 0 && !volume.may_fit(end, record.start) {
            let text = format!("bio {number} {asked:?} succeeded beyond the end");
            return self.violate(text);
        }
        if asked.len_sectors > 0 && volume.surely_touches_error(asked.sector, end, record.start) {
            return self.violate(format!("bio {number} {asked:?} succeeded on an error region"));
        }
        if asked.op == Op::Read {
            self.check_read(number, record, found, now);
        }
        if asked.op == Op::Write && asked.flags.contains(BioFlags::FUA) {
            let (sector, len) = (asked.sector, asked.len_sectors);
            let start = record.start;
            self.check_durable(asked.volume, sector, len, disks, |register, tag| {
                register.is_not_older(tag, start)
            });
        }
        let flushes = asked.flags.intersects(BioFlags::PREFLUSH | BioFlags::ORDERED);
        if asked.op == Op::Flush || flushes {
            if !self.excuses.sync_failed_since(record.start) || asked.op == Op::Flush {
                let start = record.start;
                self.check_durable(asked.volume, 0, Sector::MAX, disks, |register, tag| {
                    register.may_be_durable(tag, start)
                });
            }
            if let Some(volume) = self.volumes[asked.volume].as_mut() {
                volume.last_good_flush = volume.last_good_flush.max(record.start);
            }
        }
    }

    fn check_failure(&mut self, number: u32, record: &Record, status: Status) {
        let asked = record.asked;
        if matches!(status, Status::Timeout | Status::Offline) {
            self.given_up.insert(number);
        }
        let Some(volume) = self.volumes[asked.volume].as_ref() else { return };
        let end = asked.sector.saturating_add(asked.len_sectors);
        let unsupported =
            status == Status::NotSupported && matches!(asked.op, Op::Discard | Op::WriteZeroes);
        let full = status == Status::NoSpace && asked.op.is_write() && volume.may_be_full;
        let beyond = asked.len_sectors > 0 && volume.may_overhang(end, record.start);
        let reclassed =
            (asked.sector..end).any(|sector| !volume.is_sure_of_class(sector, record.start));
        let by_design =
            asked.len_sectors > 0 && (volume.touches_error(asked.sector, end) || reclassed);
        let durable = asked.op == Op::Flush || !asked.flags.is_empty();
        let flush_failed =
            durable && self.excuses.sync_failed_since(record.start.min(record.flushed));
        let explained = self.excuses.explain(Failed {
            volume: asked.volume,
            reads: asked.op == Op::Read,
            first: asked.sector,
            end,
            start: record.start,
        });
        if !(unsupported || full || beyond || by_design || flush_failed || explained) {
            self.violate(format!("bio {number} {asked:?} failed ({status:?}) for no reason"));
        }
    }

    fn check_read(&mut self, number: u32, record: &Record, found: &[u8], now: Tick) {
        let asked = record.asked;
        let mut broken = None;
        let Some(volume) = self.volumes[asked.volume].as_mut() else { return };
        for (bytes, sector) in found.chunks_exact(SECTOR_LEN).zip(asked.sector..) {
            let contents = decode(bytes);
            let judged = match volume.class(sector) {
                Class::Zero | Class::Data | Class::Error
                    if !volume.is_sure_of_class(sector, record.start) =>
                {
                    true
                }
                Class::Zero => contents == Contents::Whole(0),
                Class::Error => false,
                Class::Data => {
                    let register = volume.register(sector);
                    let legal = is_legal(&contents, asked.volume, sector, |tag| {
                        register.may_be_read(tag, record.start)
                    });
                    if let Contents::Whole(tag) = contents {
                        register.pin(tag, record.start, now);
                    }
                    legal
                }
            };
            if !judged {
                let legal = volume.register(sector).describe();
                broken = Some(format!(
                    "read {number} of volume {} found {} in sector {sector}; legal:{legal}",
                    asked.volume,
                    shown(&contents)
                ));
                break;
            }
        }
        if let Some(text) = broken {
            self.violate(text);
        }
    }

    /// The durable image of a range must hold values that `legal` allows.
    fn check_durable(
        &mut self,
        index: usize,
        sector: Sector,
        len_sectors: Sector,
        disks: &[Disk],
        legal: impl Fn(&Register, Tag) -> bool,
    ) {
        let Some(volume) = self.volumes[index].as_mut() else { return };
        let end = sector.saturating_add(len_sectors).min(volume.sure_len_sectors());
        let mut broken = None;
        for sector in sector..end {
            let Some((disk, place)) = volume.spot(sector) else { continue };
            let contents = decode(disks[disk].durable_sector(place));
            let register = volume.register(sector);
            if !is_legal(&contents, index, sector, |tag| legal(register, tag)) {
                broken = Some(format!(
                    "after a flush the medium holds {} in sector {sector} of volume {index} \
                     (disk {disk} sector {place}); legal:{}",
                    shown(&contents),
                    register.describe()
                ));
                break;
            }
        }
        if let Some(text) = broken {
            self.violate(text);
        }
    }

    /// A fault was injected into an operation on these sectors.
    pub(crate) fn fault(&mut self, kind: FaultKind, owners: impl Iterator<Item = Owner>) {
        let now = self.next_tick();
        self.excuses.fault(kind, owners, now);
    }

    /// From now on everything (of one volume, or of all) may fail.
    pub(crate) fn open_window(&mut self, volume: Option<usize>) -> WindowId {
        let now = self.next_tick();
        self.excuses.open(volume, now)
    }

    /// A window ends.
    pub(crate) fn close_window(&mut self, window: WindowId) {
        let now = self.next_tick();
        self.excuses.close(window, now);
    }
}

impl Default for Oracle {
    fn default() -> Self {
        Oracle::new()
    }
}

fn is_legal(
    contents: &Contents,
    volume: usize,
    sector: Sector,
    legal: impl Fn(Tag) -> bool,
) -> bool {
    let fits = |&found: &Tag| found == 0 || found == tag(write_of(found), volume, sector);
    match contents {
        Contents::Whole(found) => fits(found) && legal(*found),
        Contents::Torn(tags) => tags.iter().all(|found| fits(found) && legal(*found)),
        Contents::Garbage => false,
    }
}

fn shown(contents: &Contents) -> String {
    let one = |tag: &Tag| match tag {
        0 => "zeroes".to_owned(),
        tag => format!(
            "write {} of volume {} sector {}",
            write_of(*tag),
            volume_of(*tag),
            sector_of(*tag)
        ),
    };
    match contents {
        Contents::Whole(tag) => one(tag),
        Contents::Torn(tags) => {
            let parts: Vec<String> = tags.iter().map(one).collect();
            format!("a mix of {}", parts.join(" and "))
        }
        Contents::Garbage => "garbage".to_owned(),
    }
}
