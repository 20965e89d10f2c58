//! The lower devices over the real drivers: files (buffered and direct) and memory against a model.
//!
//! Two lanes, each with a driver of its own, work on one device. Every operation chooses a range
//! that nothing else has in flight, so the model always knows what a read must bring. At the end
//! the file itself is compared.

#![allow(clippy::unwrap_used, reason = "what fails in here fails its test")]

mod lanes;

use lanes::Lane;
use std::sync::Arc;
use udm_core::{BioBox, LowerDevice};
use udm_driver::DriverChoice;
use udm_lower::LowerRegistry;
use udm_types::{BioFlags, Op, Status};

const SECTORS: u64 = 4096;
const IN_FLIGHT: usize = 24;

/// What a sector must hold; `None` after a discard.
type Model = Vec<Option<u8>>;

fn check_read(bio: &BioBox, model: &Model) {
    let mut bytes = vec![0; bio.payload.len_bytes() as usize];
    bio.payload.copy_out(0, &mut bytes);
    for (index, piece) in bytes.chunks(512).enumerate() {
        let sector = bio.sector as usize + index;
        if let Some(byte) = model[sector] {
            assert!(
                piece.iter().all(|&seen| seen == byte),
                "sector {sector}: {} for {byte}",
                piece[0]
            );
        }
    }
}

fn torture(
    device: &Arc<dyn LowerDevice>,
    choice: DriverChoice,
    seed: u64,
    steps: u32,
) -> Option<Model> {
    let block = device.limits().logical_block_sectors();
    let mut lanes = [Lane::open(0, choice, device)?, Lane::open(1, choice, device)?];
    let mut random = fastrand::Rng::with_seed(seed);
    let mut model: Model = vec![Some(0); SECTORS as usize];
    let mut busy = vec![false; SECTORS as usize];
    let mut in_flight = [0_usize; 2];
    for step in 0..steps {
        let turn = random.usize(..2);
        let lane = &mut lanes[turn];
        let len = random.u64(1..=64 / block) * block;
        let sector = random.u64(0..=(SECTORS - len) / block) * block;
        let range = sector as usize..(sector + len) as usize;
        let op =
            [Op::Read, Op::Read, Op::Write, Op::Write, Op::Flush, Op::Discard, Op::WriteZeroes]
                [random.usize(..7)];
        if op != Op::Flush && busy[range.clone()].iter().any(|&busy| busy) {
            continue;
        }
        let byte = (step % 250) as u8 + 1;
        let mut flags = BioFlags::empty();
        flags.set(BioFlags::FUA, op.is_write() && random.u8(..8) == 0);
        flags.set(BioFlags::PREFLUSH, op.is_write() && random.u8(..8) == 0);
        flags.set(BioFlags::NO_UNMAP, op == Op::WriteZeroes && random.bool());
        match op {
            Op::Read | Op::Flush => {}
            Op::Write => model[range.clone()].fill(Some(byte)),
            Op::Discard => model[range.clone()].fill(None),
            Op::WriteZeroes => model[range.clone()].fill(Some(0)),
        }
        let bio = match op {
            Op::Flush => lane.bio(op, flags, 0, 0, 0),
            _ => {
                busy[range].fill(true);
                lane.bio(op, flags, sector, len, byte)
            }
        };
        lane.submit(bio);
        in_flight[turn] += 1;
        while in_flight[turn] >= IN_FLIGHT || (in_flight[turn] > 0 && random.u8(..6) == 0) {
            in_flight[turn] -= settle(&mut lanes[turn], &model, &mut busy);
        }
    }
    for (lane, left) in lanes.iter_mut().zip(&mut in_flight) {
        while *left > 0 {
            *left -= settle(lane, &model, &mut busy);
        }
        lane.close();
    }
    Some(model)
}

/// Takes what is done; how many there were.
fn settle(lane: &mut Lane, model: &Model, busy: &mut [bool]) -> usize {
    let done = lane.turn();
    for bio in &done {
        assert_eq!(bio.status, Status::Ok, "{:?} at {}", bio.op, bio.sector);
        if bio.op == Op::Read {
            check_read(bio, model);
        }
        busy[bio.sector as usize..bio.end_sector() as usize].fill(false);
    }
    done.len()
}

fn new_file(folder: &tempfile::TempDir) -> String {
    let path = folder.path().join("disk");
    std::fs::File::create(&path).unwrap().set_len(SECTORS * 512).unwrap();
    path.to_str().unwrap().to_owned()
}

fn file_agrees_with_the_model(prefix: &str, choice: DriverChoice, seed: u64) {
    let folder = tempfile::tempdir().unwrap();
    let path = new_file(&folder);
    let registry = LowerRegistry::new(2);
    let device = match registry.open(&format!("{prefix}{path}"), false) {
        Ok(device) => device.lower.unwrap().device,
        Err(error) => return println!("skipped: {error}"),
    };
    let Some(model) = torture(&device, choice, seed, 3000) else { return };
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(bytes.len() as u64, SECTORS * 512, "the length of the file has not changed");
    for (sector, (expected, piece)) in model.iter().zip(bytes.chunks(512)).enumerate() {
        if let Some(byte) = expected {
            assert!(piece.iter().all(|seen| seen == byte), "sector {sector}");
        }
    }
}

#[test]
fn a_buffered_file_over_io_uring() {
    file_agrees_with_the_model("", DriverChoice::Uring, 1);
}

#[test]
fn a_buffered_file_over_the_portable_driver() {
    file_agrees_with_the_model("file:", DriverChoice::Portable, 2);
}

#[test]
fn a_direct_file_over_io_uring() {
    file_agrees_with_the_model("direct:", DriverChoice::Uring, 3);
}

#[test]
fn a_direct_file_over_the_portable_driver() {
    file_agrees_with_the_model("direct:", DriverChoice::Portable, 4);
}

#[test]
fn memory_agrees_with_the_model() {
    let device = LowerRegistry::new(2).open("mem:2M", false).unwrap().lower.unwrap().device;
    torture(&device, DriverChoice::Portable, 5, 5000).expect("the portable driver always opens");
}

#[test]
fn a_file_that_shrinks_below_its_readers_is_an_error_and_recovers() {
    for choice in [DriverChoice::Uring, DriverChoice::Portable] {
        let folder = tempfile::tempdir().unwrap();
        let path = new_file(&folder);
        let device = LowerRegistry::new(1).open(&path, false).unwrap().lower.unwrap().device;
        let Some(mut lane) = Lane::open(0, choice, &device) else { continue };
        let none = BioFlags::empty();
        assert_eq!(lane.one(Op::Write, none, 0, 16, 7).status, Status::Ok);
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        // The end is in the middle of the read: the kernel's answer comes short.
        file.set_len(4000).unwrap();
        assert_eq!(lane.one(Op::Read, none, 0, 16, 0).status, Status::IoErr);
        assert_eq!(lane.one(Op::Read, none, 1000, 8, 0).status, Status::IoErr);
        file.set_len(SECTORS * 512).unwrap();
        let bio = lane.one(Op::Read, none, 0, 16, 9);
        let mut bytes = [9; 8192];
        bio.payload.copy_out(0, &mut bytes);
        assert_eq!(bio.status, Status::Ok);
        assert!(bytes[..4000].iter().all(|&byte| byte == 7));
        assert!(bytes[4000..].iter().all(|&byte| byte == 0));
        lane.close();
    }
}

#[test]
fn discard_gives_the_blocks_of_a_file_back() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().unwrap();
    let path = new_file(&folder);
    let device = LowerRegistry::new(1).open(&path, false).unwrap();
    if device.limits.max_discard_sectors == 0 {
        return println!("skipped: this file system has no holes");
    }
    let device = device.lower.unwrap().device;
    let mut lane = Lane::open(0, DriverChoice::Portable, &device).unwrap();
    assert_eq!(lane.one(Op::Write, BioFlags::FUA, 0, SECTORS, 1).status, Status::Ok);
    assert!(std::fs::metadata(&path).unwrap().blocks() >= SECTORS);
    assert_eq!(lane.one(Op::Discard, BioFlags::empty(), 0, SECTORS, 0).status, Status::Ok);
    assert!(std::fs::metadata(&path).unwrap().blocks() < SECTORS / 8);
    let kept = BioFlags::NO_UNMAP | BioFlags::FUA;
    assert_eq!(lane.one(Op::WriteZeroes, kept, 0, SECTORS, 0).status, Status::Ok);
    assert!(std::fs::metadata(&path).unwrap().blocks() >= SECTORS, "zeroed, but kept");
    lane.close();
}

#[test]
fn null_answers_and_leaves_the_payload_alone() {
    let device = LowerRegistry::new(1).open("null:1M", false).unwrap().lower.unwrap().device;
    let mut lane = Lane::open(0, DriverChoice::Portable, &device).unwrap();
    for op in Op::ALL {
        let bio = lane.one(op, BioFlags::empty(), 0, 8, 3);
        assert_eq!(bio.status, Status::Ok);
        let mut bytes = vec![3; bio.payload.len_bytes() as usize];
        bio.payload.copy_out(0, &mut bytes);
        assert!(bytes.iter().all(|&byte| byte == 3));
    }
    lane.close();
}

#[test]
fn a_file_deleted_while_open_goes_on_and_is_opened_on_a_lane_that_comes_later() {
    let folder = tempfile::tempdir().unwrap();
    let path = new_file(&folder);
    let device = LowerRegistry::new(2).open(&path, false).unwrap().lower.unwrap().device;
    std::fs::remove_file(&path).unwrap();
    let mut lanes = [0, 1].map(|number| Lane::open(number, DriverChoice::Auto, &device).unwrap());
    assert_eq!(lanes[0].one(Op::Write, BioFlags::FUA, 8, 8, 5).status, Status::Ok);
    let bio = lanes[1].one(Op::Read, BioFlags::empty(), 8, 8, 0);
    let mut bytes = [0; 4096];
    bio.payload.copy_out(0, &mut bytes);
    assert_eq!((bio.status, bytes), (Status::Ok, [5; 4096]));
    for lane in &mut lanes {
        lane.close();
    }
}
