//! Everything at once, by seed: a stack of two devices under random I/O, suspends, swaps, resizes,
//! holds and faults, with every lane turned in random order.
//!
//! Both devices keep sector `s` at sector `s` of the disk, through lines of random targets and
//! lengths. So a sector's value is known whatever tables are live: at most one request touches a
//! sector at a time, a write that succeeded must be read back, one that failed leaves its sectors
//! undefined.
//!
//! Errors are allowed only where something explains them: a fault that was active, or a range
//! beyond the smallest size a table ever has. At the end everything is repaired and let go; then
//! nothing may be left: no request, no answer, no bio.
//!
//! `UDM_SOAK_SEEDS=1000..2000` runs other seeds than the few of every test run.

use std::collections::BTreeMap;
use std::ops::Range;
use udm_core::lifecycle::{DeviceKey, OnTimeout, Request, StatusKind, SuspendOptions};
use udm_testkit::{
    Io, IoTicket, MemLower, SECTOR_LEN, Started, TestWorld, mix, pattern, probe_type,
};
use udm_types::{BioFlags, DeviceId, Nanos, Op, OpSet, Sector, Status};

/// The smallest size of any table, and the largest.
const LEN_MIN: Sector = 192;
const LEN_MAX: Sector = 320;
const STEPS: usize = 250;

/// What was asked of the life cycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Suspend,
    Resume,
    Other,
}

/// What happened in a run.
#[derive(Debug, Default)]
struct Tally {
    done: u64,
    failed: u64,
    suspends: u64,
    given_up: u64,
    swaps: u64,
    removed: u64,
}

/// A request under way.
struct Under {
    io: Io,
    generation: u64,
    /// Faults there had been when it was submitted; no number if one was active.
    faults: u64,
}

struct Soak {
    world: TestWorld,
    disk: MemLower,
    /// The lower device of the stack and the one on it.
    devices: [DeviceId; 2],
    random: u64,
    /// Which write each sector holds; 0 for zeroes, `None` for anything.
    values: Vec<Option<u64>>,
    busy: Vec<bool>,
    under: BTreeMap<IoTicket, Under>,
    started: Vec<(Started, What)>,
    generation: u64,
    faults: u64,
    faulty: bool,
    /// What happened, so that a soak in which nothing happens is noticed.
    tally: Tally,
    /// A remove of the upper device that has not been answered.
    removing: Option<Started>,
    /// The upper device was removed before; what came after found nothing.
    removals: u64,
    /// A suspend may have failed what hangs; the device is fenced until that has ended.
    aborts: bool,
}

impl Soak {
    fn new(seed: u64) -> Soak {
        let known = udm_targets::registry();
        let types = known.types().iter().copied().chain([probe_type()]);
        let mut world = TestWorld::new(udm_core::Registry::new(types), 3);
        world.set_seed(seed);
        let disk = world.add_lower("d0", LEN_MAX);
        let bottom = world.create("bottom", &format!("0 {LEN_MAX} linear d0 0"));
        let top = world.create("top", &format!("0 {LEN_MAX} linear dm:bottom 0"));
        Soak {
            world,
            disk,
            devices: [bottom, top],
            random: mix(seed),
            values: vec![Some(0); LEN_MAX as usize],
            busy: vec![false; LEN_MAX as usize],
            under: BTreeMap::new(),
            started: Vec::new(),
            generation: 0,
            faults: 0,
            faulty: false,
            aborts: false,
            tally: Tally::default(),
            removing: None,
            removals: 0,
        }
    }

    fn below(&mut self, below: u64) -> u64 {
        self.random = mix(self.random);
        self.random % below
    }

    /// A table of random lines that keeps every sector in its place.
    fn layout(&mut self, below: &str) -> String {
        let len = LEN_MIN + self.below(3) * 64;
        let mut lines = Vec::new();
        let mut begin = 0;
        while begin < len {
            let line_len = (8 * (1 + self.below(20))).min(len - begin);
            let place = format!("{below} {begin}");
            let args = match self.below(6) {
                0 => format!("probe {place}"),
                1 => format!("delay {place} {}", self.below(20)),
                2 => format!("delay {place} {} {place} {}", self.below(5), self.below(40)),
                3 => format!("flakey {place} 1000000 0"),
                4 => format!("striped 1 {} {place}", [1, 2, 4, 8][self.below(4) as usize]),
                _ => format!("linear {place}"),
            };
            lines.push(format!("{begin} {line_len} {args}"));
            begin += line_len;
        }
        lines.join("\n")
    }

    fn submit(&mut self) {
        let large = self.below(4) == 0;
        let len = 1 + self.below(if large { LEN_MAX } else { 24 });
        let sector = self.below(LEN_MAX - len + 1);
        let range = sector as usize..(sector + len) as usize;
        let op = Op::ALL[self.below(Op::COUNT as u64) as usize];
        if op != Op::Flush && self.busy[range.clone()].contains(&true) {
            return;
        }
        self.generation += 1;
        let mut io = match op {
            Op::Read => Io::read(sector, len),
            Op::Write => Io::write(sector, pattern(sector, len, self.generation)),
            Op::Flush => Io::flush(),
            Op::Discard => Io::discard(sector, len),
            Op::WriteZeroes => Io::write_zeroes(sector, len),
        };
        if op == Op::Write {
            let flags = [BioFlags::FUA, BioFlags::PREFLUSH, BioFlags::ORDERED];
            let chosen = self.below(12) as usize;
            io = io.with(flags.get(chosen).copied().unwrap_or_default());
        }
        if op != Op::Flush {
            self.busy[range].fill(true);
        }
        let (lane, device) = (self.below(3) as u16, self.devices[self.below(4).min(1) as usize]);
        let ticket = self.world.submit(lane, device, io.clone());
        let faults = if self.faulty { u64::MAX } else { self.faults };
        let under = Under { io, generation: self.generation, faults };
        self.under.insert(ticket, under);
    }

    /// Takes results in and compares them with what is known.
    fn collect(&mut self) {
        let tickets: Vec<IoTicket> = self.under.keys().copied().collect();
        for ticket in tickets {
            let Some(done) = self.world.done(ticket) else { continue };
            let under = self.under.remove(&ticket).expect("it was under way");
            let Under { io, generation, faults } = under;
            let range = io.sector as usize..(io.sector + io.len_sectors) as usize;
            let what = format!("{:?} {:?} at {range:?}", io.op, io.flags);
            self.tally.done += 1;
            if !done.status.is_ok() {
                self.tally.failed += 1;
                let refused = done.status == Status::NotSupported
                    && matches!(io.op, Op::Discard | Op::WriteZeroes);
                let fault = self.faulty || self.faults != faults;
                let aborted = matches!(done.status, Status::Timeout | Status::Offline);
                let beyond = range.end as Sector > LEN_MIN && done.status == Status::IoErr;
                let gone = matches!(done.status, Status::Offline | Status::IoErr);
                let explained = refused
                    || fault
                    || beyond
                    || (aborted && self.aborts)
                    || (gone && self.removals > 0);
                assert!(explained, "{what}: {:?}", done.status);
            }
            self.settle_values(&io, generation, done.status, &range);
            if io.op == Op::Read && done.status.is_ok() {
                self.compare(&range, &done.bytes, &what);
            }
            if io.op != Op::Flush {
                self.busy[range].fill(false);
            }
        }
    }

    fn settle_values(&mut self, io: &Io, generation: u64, status: Status, range: &Range<usize>) {
        let value = match (io.op, status.is_ok()) {
            (Op::Read | Op::Flush, _) => return,
            (Op::Write, true) => Some(generation),
            (Op::WriteZeroes, true) => Some(0),
            (Op::Discard, true) | (Op::Write | Op::WriteZeroes | Op::Discard, false) => None,
        };
        self.values[range.clone()].fill(value);
    }

    fn compare(&self, range: &Range<usize>, bytes: &[u8], what: &str) {
        for (sector, found) in range.clone().zip(bytes.chunks(SECTOR_LEN)) {
            let wanted = match self.values[sector] {
                None => continue,
                Some(0) => vec![0; SECTOR_LEN],
                Some(generation) => pattern(sector as Sector, 1, generation),
            };
            let found = udm_testkit::stamp(found);
            assert_eq!(found, udm_testkit::stamp(&wanted), "{what}: sector {sector}");
        }
    }

    fn key(&mut self) -> (usize, DeviceKey) {
        let which = self.below(2) as usize;
        (which, DeviceKey::Id(self.devices[which]))
    }

    fn start_suspend(&mut self) {
        let (_, device) = self.key();
        let on_timeout = if self.below(2) == 0 { OnTimeout::Resume } else { OnTimeout::Fail };
        let deadline = (self.below(3) == 0).then(|| Nanos::from_millis(1 + self.below(50)));
        if deadline.is_some() && on_timeout == OnTimeout::Fail {
            self.aborts = true;
        }
        let noflush = self.below(3) != 0;
        let options = SuspendOptions { noflush, deadline, on_timeout, reason: "soak".into() };
        let started = self.world.start(|ticket| Request::Suspend { device, options, ticket });
        self.started.push((started, What::Suspend));
    }

    fn start_resume(&mut self, device: DeviceKey) {
        let options = SuspendOptions { noflush: self.below(2) == 0, ..SuspendOptions::default() };
        let started = self.world.start(|ticket| Request::Resume { device, options, ticket });
        self.started.push((started, What::Resume));
    }

    fn start_load(&mut self) {
        let (which, device) = self.key();
        let text = self.layout(["d0", "dm:bottom"][which]);
        // The device below may be smaller at the moment; then the table is refused, rightly.
        if let Ok(table) = self.world.build(&text) {
            let started = self.world.start(|_| Request::Load { device, table });
            self.started.push((started, What::Other));
        }
    }

    fn send_message(&mut self) {
        let (_, device) = self.key();
        let sector = self.below(LEN_MIN);
        let word = ["hold", "flow", "return"][self.below(3) as usize];
        let words = vec![word.to_owned()];
        let started = self.world.start(|_| Request::Message { device, sector, words });
        self.started.push((started, What::Other));
    }

    /// Takes the upper device away under I/O; another one comes when it is gone.
    fn start_remove(&mut self) {
        if self.removing.is_none() {
            self.removals += 1;
            let device = DeviceKey::Id(self.devices[1]);
            let started = self.world.start(|_| Request::Remove { device, deferred: false });
            self.removing = Some(started);
        }
    }

    /// Makes the upper device again once it is gone.
    fn replace_removed(&mut self) {
        let Some(started) = self.removing else { return };
        let Some(answer) = self.world.answer(started) else { return };
        assert!(answer.is_ok(), "nobody has the upper device open: {answer:?}");
        self.removing = None;
        self.tally.removed += 1;
        let name = format!("top{}", self.removals);
        let text = self.layout("dm:bottom");
        self.devices[1] = self.world.create_empty(&name);
        // Without a table, if the device below is too small at the moment.
        if let Ok(table) = self.world.build(&text) {
            let device = DeviceKey::Id(self.devices[1]);
            let started = self.world.start(|_| Request::Load { device, table });
            self.started.push((started, What::Other));
            self.start_resume(DeviceKey::Id(self.devices[1]));
        }
    }

    /// Questions, and requests that take others back; each has to be answered.
    fn ask_something(&mut self) {
        let (_, device) = self.key();
        let ticket = self.started.last().map_or(0, |(started, _)| started.number());
        let request = match self.below(7) {
            0 => Request::Cancel { ticket },
            1 => Request::Clear { device },
            2 => Request::Status { device },
            3 => Request::Gauges { device },
            4 => Request::Deps { device, inactive: true },
            5 => Request::TableStatus { device, inactive: false, kind: StatusKind::Info },
            _ => Request::List,
        };
        let started = self.world.start(|_| request);
        self.started.push((started, What::Other));
    }

    fn disturb(&mut self) {
        match self.below(6) {
            0 => {
                let ops = OpSet::from_bits_truncate(self.below(32) as u8);
                self.disk.hold(ops);
            }
            1 | 2 => {
                let held = self.disk.held().len() as u64;
                if held > 0 {
                    let index = self.below(held) as usize;
                    self.disk.release(index);
                }
            }
            3 => self.disk.release_newest_first(),
            4 => self.disk.flow(),
            _ if self.below(3) > 0 => {
                self.disk.heal();
                self.faulty = false;
            }
            _ => {
                let at = self.below(LEN_MAX);
                self.faults += 1;
                self.faulty = true;
                self.disk.fail(at..at + 8, OpSet::all(), Status::Medium);
            }
        }
    }

    fn step(&mut self) {
        match self.below(20) {
            0..=8 => self.submit(),
            9..=11 => {
                for _ in 0..self.below(6) {
                    let lane = self.below(3) as u16;
                    self.world.turn(lane);
                }
            }
            12 => {
                let span = Nanos::from_millis(self.below(15));
                self.world.advance(span);
            }
            13 | 14 => self.disturb(),
            15 => self.start_suspend(),
            16 | 17 => {
                let (_, device) = self.key();
                self.start_resume(device);
            }
            18 => self.start_load(),
            _ => match self.below(6) {
                0 | 1 => self.ask_something(),
                2 => self.start_remove(),
                _ => self.send_message(),
            },
        }
        self.collect();
        self.replace_removed();
        self.take_answers();
    }

    fn take_answers(&mut self) {
        let (world, tally) = (&mut self.world, &mut self.tally);
        self.started.retain(|&(started, what)| {
            match (world.answer(started), what) {
                (None, _) => return true,
                (Some(Ok(_)), What::Suspend) => tally.suspends += 1,
                (Some(Err(_)), What::Suspend) => tally.given_up += 1,
                (Some(Ok(_)), What::Resume) => tally.swaps += 1,
                (Some(_), What::Resume | What::Other) => {}
            }
            false
        });
    }

    /// Repairs everything, and everything has to come back.
    fn finish(&mut self) {
        self.disk.heal();
        self.disk.flow();
        self.world.settle();
        self.collect();
        for (which, below) in ["d0", "dm:bottom"].into_iter().enumerate() {
            self.replace_removed();
            assert!(which == 0 || self.removing.is_none(), "the remove was not answered");
            let device = self.devices[which];
            // A plain table, so that no probe holds anything any more.
            let table = self.world.build(&format!("0 {LEN_MAX} linear {below} 0"));
            let table = table.expect("the devices below are whole");
            let device = DeviceKey::Id(device);
            let key = device.clone();
            let started = self.world.start(|_| Request::Load { device, table });
            self.started.push((started, What::Other));
            self.start_resume(key);
            self.world.settle();
        }
        self.faulty = true;
        self.collect();
        self.faulty = false;
        self.take_answers();
        assert!(self.started.is_empty(), "requests without an answer: {:?}", self.started);
        assert!(self.under.is_empty(), "{} requests did not come back", self.under.len());
        for device in self.devices {
            let done = self.world.io(device, Io::read(0, LEN_MAX));
            assert_eq!(done.status, Status::Ok);
            self.compare(&(0..LEN_MAX as usize), &done.bytes, "at the end");
        }
        self.world.assert_quiet();
    }
}

#[test]
fn a_stack_survives_everything_at_once() {
    let seeds = match std::env::var("UDM_SOAK_SEEDS") {
        Ok(text) => {
            let (from, to) = text.split_once("..").expect("UDM_SOAK_SEEDS=FROM..TO");
            from.parse().expect("a number")..to.parse().expect("a number")
        }
        Err(_) => 0..60,
    };
    let mut tallies = Vec::new();
    for seed in seeds {
        // The last seed printed is the one that failed.
        println!("seed {seed}");
        let mut soak = Soak::new(seed);
        for _ in 0..STEPS {
            soak.step();
        }
        soak.finish();
        tallies.push(soak.tally);
    }
    let sum = |of: fn(&Tally) -> u64| tallies.iter().map(of).sum::<u64>();
    let runs = tallies.len() as u64;
    assert!(sum(|tally| tally.done) > 60 * runs, "{tallies:?}");
    assert!(sum(|tally| tally.failed) < sum(|tally| tally.done) / 2, "{tallies:?}");
    assert!(sum(|tally| tally.suspends) > runs, "{tallies:?}");
    assert!(sum(|tally| tally.given_up) > 0, "{tallies:?}");
    assert!(sum(|tally| tally.swaps) > 5 * runs, "{tallies:?}");
    assert!(sum(|tally| tally.removed) > runs / 4, "{tallies:?}");
}
