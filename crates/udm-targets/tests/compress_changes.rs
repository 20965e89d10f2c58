//! Every change a compress device can meet while it is busy, a thousand of them, chosen by a seed.
//!
//! Suspends of both kinds, swaps to tables with other arguments, longer and shorter tables, volumes
//! that give up what a shorter table hides, disks that grow, disks that hold everything until a
//! suspend's deadline has passed. Every sector is known, so what is lost or applied twice is seen;
//! at the end the production `check` must find nothing.
//!
//! The tricky case is a suspend that fails what hangs below: the volume may then lose what no flush
//! covered, so a flush comes before, and what is under way becomes unknown. Nothing else may.
//!
//! `UDM_SOAK_SEEDS=100..200` runs other seeds than the few of every test run.

mod volumes;

use udm_core::LowerDevice;
use udm_core::lifecycle::{OnTimeout, SuspendOptions};
use udm_meta::host::MemoryHost;
use udm_targets::compress::tools::check::{CheckRequest, check};
use udm_testkit::{Io, IoTicket, Model, TestWorld, mix};
use udm_types::{BioFlags, DeviceId, Nanos, OpSet, Sector, Status};

/// Changes for each seed.
const CHANGES: u64 = 250;
/// The disk at the begin, and how far its volume was laid out for.
const DISK_SECTORS: Sector = 8800;
const DISK_SECTORS_MAX: Sector = 16_000;
/// The device: shortest, at the begin, longest.
const LEN_MIN: Sector = 1024;
const LEN_START: Sector = 2048;
const LEN_MAX: Sector = 4096;
const ARGUMENTS: [&str; 5] = [
    "",
    " 1 writethrough",
    " 2 compressor zstd",
    " 4 max_extent 2 delta_mb 1",
    " 3 writeback 3 no_discard_passdown",
];

/// What was done, so that a run in which nothing happens is noticed.
#[derive(Debug, Default)]
struct Tally {
    suspends: u64,
    swaps: u64,
    shrinks: u64,
    disk_growths: u64,
    given_up: u64,
    failed_below: u64,
}

struct Changes {
    world: TestWorld,
    dm: DeviceId,
    model: Model,
    random: u64,
    /// Of the live table.
    len: Sector,
    generation: u64,
    tally: Tally,
}

/// A request under way, and the range it changes.
type Under = (IoTicket, Sector, Sector);

impl Changes {
    fn new(seed: u64) -> Changes {
        let mut world = TestWorld::new(udm_targets::registry(), 3);
        world.set_seed(seed);
        let disk = world.add_lower("d0", DISK_SECTORS);
        volumes::prepare(&disk, DISK_SECTORS, LEN_START);
        let dm = world.create("t", &format!("0 {LEN_START} compress d0"));
        Changes {
            world,
            dm,
            model: Model::new(LEN_MAX),
            random: mix(seed),
            len: LEN_START,
            generation: 0,
            tally: Tally::default(),
        }
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.random = mix(self.random);
        self.random % limit
    }

    fn options(&mut self) -> SuspendOptions {
        let noflush = self.below(2) == 0;
        SuspendOptions { noflush, reason: "test".into(), ..SuspendOptions::default() }
    }

    /// Requests from all lanes, each in its own twelfth of the first `limit` sectors, so that their
    /// outcome is known whatever their order is.
    fn submit_some(&mut self, limit: Sector) -> Vec<Under> {
        let part = limit / 12;
        (0..12)
            .map(|slot| {
                self.generation += 1;
                let len = 1 + self.below(part.min(40));
                let at = slot * part + self.below(part - len + 1);
                let io = match self.below(12) {
                    0 => Io::flush(),
                    1 => {
                        self.model.zero(at, len);
                        Io::write_zeroes(at, len)
                    }
                    2 => {
                        self.model.discard(at, len);
                        Io::discard(at, len)
                    }
                    kind => {
                        let flags = match kind {
                            3 => BioFlags::ORDERED,
                            4 => BioFlags::FUA,
                            5 => BioFlags::PREFLUSH | BioFlags::FUA,
                            _ => BioFlags::empty(),
                        };
                        let io = Io::write_pattern(at, len, self.generation).with(flags);
                        self.model.write(at, &io.bytes);
                        io
                    }
                };
                let lane = self.below(3) as u16;
                (self.world.submit(lane, self.dm, io), at, len)
            })
            .collect()
    }

    fn load(&mut self, len: Sector) {
        let arguments = ARGUMENTS[self.below(ARGUMENTS.len() as u64) as usize];
        self.world.load(self.dm, &format!("0 {len} compress d0{arguments}"));
    }

    /// A suspend, a swap, or both, while the disk may hold what it gets.
    fn suspend_or_swap(&mut self) {
        let next = match self.below(4) {
            0 => None,
            1 => Some(self.len),
            _ => Some(LEN_MIN + self.below((LEN_MAX - LEN_MIN) / 8 + 1) * 8),
        };
        let holds = self.below(3) == 0;
        if holds {
            self.world.lower("d0").hold(OpSet::WRITE | OpSet::FLUSH);
        }
        // What is under way while a shorter table comes would fail beyond its end, as it should.
        let limit = self.len.min(next.unwrap_or(self.len));
        let under = self.submit_some(limit);
        if self.below(2) == 0 {
            self.world.run();
        }
        if let Some(next) = next {
            self.load(next);
        }
        let options = self.options();
        let suspend = self.world.start_suspend(self.dm, options);
        if holds {
            self.world.lower("d0").release_newest_first();
            self.world.lower("d0").flow();
        }
        self.world.run();
        assert!(self.world.answer(suspend).is_some_and(|answer| answer.is_ok()));
        self.world.resume(self.dm);
        self.len = next.unwrap_or(self.len);
        self.tally.suspends += 1;
        self.tally.swaps += u64::from(next.is_some());
        self.all_done(under);
    }

    fn all_done(&mut self, under: Vec<Under>) {
        self.world.settle();
        for (ticket, at, len) in under {
            let status = self.world.done(ticket).expect("back").status;
            assert_eq!(status, Status::Ok, "{len} sectors at {at}");
        }
    }

    /// The volume becomes as short as the table; what was hidden is gone.
    fn shrink(&mut self) {
        let under = self.submit_some(self.len);
        assert!(self.world.message(self.dm, 0, &["shrink"]).is_ok());
        self.all_done(under);
        self.model.zero(self.len, LEN_MAX - self.len);
        self.tally.shrinks += 1;
    }

    fn grow_disk(&mut self) {
        let disk = self.world.lower("d0").clone();
        let grown = disk.len_sectors() + self.below(6) * 128;
        disk.set_len_sectors(grown.min(DISK_SECTORS_MAX));
        self.tally.disk_growths += 1;
        self.suspend_or_swap();
    }

    /// The disk holds everything; a suspend ends at its deadline all the same, and not before.
    fn stall(&mut self) {
        let fails = self.below(3) == 0;
        if fails {
            assert_eq!(self.world.io(self.dm, Io::flush()).status, Status::Ok);
        }
        self.world.lower("d0").hold(OpSet::all());
        let under = self.submit_some(self.len);
        self.world.run();
        let deadline = Nanos::from_millis(1 + self.below(2000));
        let on_timeout = if fails { OnTimeout::Fail } else { OnTimeout::Resume };
        let options = SuspendOptions { deadline: Some(deadline), on_timeout, ..self.options() };
        let suspend = self.world.start_suspend(self.dm, options);
        self.world.advance(deadline);
        let answer = self.world.answer(suspend).expect("the deadline has passed");
        // Where nothing had to be written, a suspend may go through over a disk that stalls.
        let is_suspended = self.world.status(self.dm).suspended;
        assert_eq!(answer.is_ok(), is_suspended, "{answer:?}");
        self.world.lower("d0").flow();
        self.world.run();
        if is_suspended {
            self.world.resume(self.dm);
        }
        match fails {
            true => {
                self.after_failure(&under);
                self.tally.failed_below += 1;
            }
            false => {
                self.all_done(under);
                self.tally.given_up += u64::from(!is_suspended);
            }
        }
    }

    /// What was under way has failed or not; a new table recovers all else.
    fn after_failure(&mut self, under: &[Under]) {
        self.world.settle();
        for (ticket, at, len) in under {
            assert!(self.world.done(*ticket).is_some(), "{len} sectors at {at} hang");
            self.model.discard(*at, *len);
        }
        self.load(self.len);
        self.world.suspend(self.dm, true);
        self.world.resume(self.dm);
    }

    fn check_some(&mut self) {
        let len = 1 + self.below(64);
        let at = self.below(self.len - len + 1);
        let lane = self.below(3) as u16;
        let read = self.world.io_on(lane, self.dm, Io::read(at, len));
        assert_eq!(read.status, Status::Ok);
        self.model.check(at, &read.bytes).unwrap_or_else(|text| panic!("{text}"));
    }

    fn step(&mut self) {
        match self.below(20) {
            0..14 => self.suspend_or_swap(),
            14 => self.shrink(),
            15 | 16 => self.grow_disk(),
            _ => self.stall(),
        }
        match self.below(4) {
            0 => {
                let span = Nanos::from_millis(self.below(3000));
                self.world.advance(span);
            }
            1 => self.message(),
            _ => self.world.run(),
        }
        self.check_some();
    }

    fn message(&mut self) {
        let words = [&["checkpoint"][..], &["gc", "2"], &["scrub"]][self.below(3) as usize];
        assert!(self.world.message(self.dm, 0, words).is_ok());
        self.world.run();
    }

    fn finish(mut self) -> Tally {
        self.world.settle();
        self.world.swap(self.dm, &format!("0 {LEN_MAX} compress d0"), false);
        let all = self.world.io(self.dm, Io::read(0, LEN_MAX));
        assert_eq!(all.status, Status::Ok);
        self.model.check(0, &all.bytes).expect("all of it");
        self.world.remove(self.dm);
        self.world.assert_quiet();
        let disk = self.world.lower("d0");
        let mut host = MemoryHost::from_bytes(disk.bytes(0, disk.len_sectors()));
        let request = CheckRequest::default();
        let report = host.run(|disk| async move { check(&disk, &request, &mut |_| ()).await });
        assert!(report.is_sound(), "{report:?}");
        self.tally
    }
}

#[test]
fn a_thousand_changes_of_every_kind_lose_nothing() {
    let seeds = match std::env::var("UDM_SOAK_SEEDS") {
        Ok(text) => {
            let (from, to) = text.split_once("..").expect("UDM_SOAK_SEEDS=FROM..TO");
            from.parse().expect("a number")..to.parse().expect("a number")
        }
        Err(_) => 0..4,
    };
    let mut tallies = Vec::new();
    for seed in seeds {
        // The last seed printed is the one that failed.
        println!("seed {seed}");
        let mut changes = Changes::new(seed);
        for _ in 0..CHANGES {
            changes.step();
        }
        tallies.push(changes.finish());
    }
    let sum = |of: fn(&Tally) -> u64| tallies.iter().map(of).sum::<u64>();
    let runs = tallies.len() as u64;
    assert!(sum(|tally| tally.suspends) > 100 * runs, "{tallies:?}");
    assert!(sum(|tally| tally.swaps) > 80 * runs, "{tallies:?}");
    assert!(sum(|tally| tally.shrinks) > 3 * runs, "{tallies:?}");
    assert!(sum(|tally| tally.disk_growths) > 5 * runs, "{tallies:?}");
    assert!(sum(|tally| tally.given_up) > 5 * runs, "{tallies:?}");
    assert!(sum(|tally| tally.failed_below) > 3 * runs, "{tallies:?}");
}
