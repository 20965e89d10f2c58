//! Block devices, and the write-back error that must not get lost. Needs root, so it runs only
//! with `UDM_TEST_ROOT=1` and otherwise says that it was skipped.
//!
//! A loop device over a sparse file in a tiny tmpfs: writes to it succeed into the page cache, and
//! fail when they are written back, because the tmpfs is full. This is the error that only the
//! descriptor that was open at the time hears of.
#![allow(clippy::unwrap_used, reason = "what fails in here fails its test")]

mod lanes;

use lanes::Lane;
use std::path::{Path, PathBuf};
use std::process::Command;
use udm_core::{ErrorCode, ErrorKind};
use udm_driver::DriverChoice;
use udm_lower::LowerRegistry;
use udm_types::{BioFlags, Op, Status};

const NONE: BioFlags = BioFlags::empty();

/// A loop device, and what stands under it; gone on drop.
struct Loop {
    device: String,
    folder: PathBuf,
    _temp: tempfile::TempDir,
}

fn run(command: &str, args: &[&str]) -> String {
    let output = Command::new(command).args(args).output().unwrap();
    assert!(output.status.success(), "{command} {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

impl Loop {
    /// A device of 16 MiB over a tmpfs of `tmpfs_size`; `None` if this is not wanted.
    fn new(tmpfs_size: &str) -> Option<Loop> {
        if std::env::var_os("UDM_TEST_ROOT").is_none() {
            println!("skipped: needs root, set UDM_TEST_ROOT=1");
            return None;
        }
        let temp = tempfile::tempdir().unwrap();
        let folder = temp.path().to_owned();
        run("mount", &["-t", "tmpfs", "-o", tmpfs_size, "tmpfs", folder.to_str().unwrap()]);
        let image = folder.join("image");
        std::fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
        let device = run("losetup", &["--find", "--show", image.to_str().unwrap()]);
        Some(Loop { device, folder, _temp: temp })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        run("losetup", &["--detach", &self.device]);
        run("umount", &["--lazy", self.folder.to_str().unwrap()]);
    }
}

#[test]
fn a_write_back_error_reaches_the_flush_of_every_lane() {
    let Some(disk) = Loop::new("size=1m") else { return };
    for choice in [DriverChoice::Uring, DriverChoice::Portable] {
        let device = LowerRegistry::new(2).open(&disk.device, false).unwrap();
        let device = device.lower.unwrap().device;
        let (Some(mut one), Some(mut two)) =
            (Lane::open(0, choice, &device), Lane::open(1, choice, &device))
        else {
            continue;
        };
        for sector in (0..16 << 11).step_by(8192) {
            let status = one.one(Op::Write, NONE, sector, 8192, 7).status;
            assert_eq!(status, Status::Ok, "the page cache takes it");
        }
        assert_eq!(two.one(Op::Flush, NONE, 0, 0, 0).status, Status::IoErr);
        assert_eq!(one.one(Op::Flush, NONE, 0, 0, 0).status, Status::IoErr);
        assert_eq!(one.one(Op::Flush, NONE, 0, 0, 0).status, Status::Ok, "it has been told");
        assert_eq!(two.one(Op::Flush, NONE, 0, 0, 0).status, Status::Ok);
        one.close();
        two.close();
    }
}

#[test]
fn a_write_back_error_survives_the_last_table() {
    let Some(disk) = Loop::new("size=1m") else { return };
    let registry = LowerRegistry::new(1);
    let held = registry.open(&disk.device, false).unwrap();
    let device = held.lower.as_ref().unwrap().device.clone();
    let mut lane = Lane::open(0, DriverChoice::Auto, &device).unwrap();
    for sector in (0..16 << 11).step_by(8192) {
        assert_eq!(lane.one(Op::Write, NONE, sector, 8192, 7).status, Status::Ok);
    }
    lane.close();
    // Somebody else makes the kernel write back, and takes the report for himself.
    let synced = std::fs::File::open(&disk.device).unwrap().sync_data();
    assert!(synced.is_err());
    let mut lane = Lane::open(0, DriverChoice::Auto, &device).unwrap();
    assert_eq!(lane.one(Op::Flush, NONE, 0, 0, 0).status, Status::IoErr);
    lane.close();
}

#[test]
fn a_block_device_is_described_claimed_and_served() {
    let Some(disk) = Loop::new("size=32m") else { return };
    let registry = LowerRegistry::new(2);
    let opened = registry.open(&disk.device, false).unwrap();
    assert_eq!(opened.len_sectors, 16 << 11);
    let (major, minor) = opened.number.unwrap();
    assert_eq!(opened.shown, format!("{major}:{minor}"));
    let by_number = registry.open(&opened.shown, false).unwrap();
    let id = |found: &udm_core::table::DeviceRef| found.lower.as_ref().unwrap().id;
    assert_eq!((by_number.number, id(&by_number)), (opened.number, id(&opened)));
    drop(by_number);
    let direct = registry.open(&format!("direct:{}", disk.device), false).unwrap();
    let read_only = registry.open(&disk.device, true).unwrap();
    assert!(read_only.limits.read_only);

    let exclusive = |device: &str| run_status("mkfs.ext4", &["-q", device]);
    assert!(!exclusive(&disk.device), "it is claimed while it is open for writing");
    let device = direct.lower.as_ref().unwrap().device.clone();
    let mut lane = Lane::open(0, DriverChoice::Auto, &device).unwrap();
    assert_eq!(lane.one(Op::Write, BioFlags::FUA, 8, 8, 3).status, Status::Ok);
    assert_eq!(lane.one(Op::Discard, NONE, 0, 4096, 0).status, Status::Ok);
    assert_eq!(lane.one(Op::WriteZeroes, BioFlags::NO_UNMAP, 64, 64, 0).status, Status::Ok);
    assert_eq!(lane.one(Op::Read, NONE, 16, 8, 0).status, Status::Ok);
    lane.close();
    drop((opened, direct, device));
    assert!(exclusive(&disk.device), "and free again");

    drop(read_only);
    let mounted = disk.folder.join("mounted");
    std::fs::create_dir(&mounted).unwrap();
    run("mount", &[&disk.device, mounted.to_str().unwrap()]);
    let error = registry.open(&disk.device, false).expect_err("it is mounted");
    run("umount", &[mounted.to_str().unwrap()]);
    assert_eq!((error.code(), error.kind()), (ErrorCode::DeviceOpen, ErrorKind::Busy));
}

fn run_status(command: &str, args: &[&str]) -> bool {
    Command::new(command).args(args).output().unwrap().status.success()
}

#[test]
fn a_full_disk_behind_a_write_is_no_space() {
    let Some(disk) = Loop::new("size=1m") else { return };
    let path: &Path = &disk.folder.join("file");
    std::fs::File::create(path).unwrap().set_len(8 << 20).unwrap();
    for choice in [DriverChoice::Uring, DriverChoice::Portable] {
        let registry = LowerRegistry::new(1);
        let device = registry.open(path.to_str().unwrap(), false).unwrap().lower.unwrap().device;
        let Some(mut lane) = Lane::open(0, choice, &device) else { continue };
        assert_eq!(lane.one(Op::Write, NONE, 0, 8192, 7).status, Status::NoSpace);
        assert_eq!(lane.one(Op::Discard, NONE, 0, 8192, 0).status, Status::Ok);
        assert_eq!(lane.one(Op::Write, NONE, 0, 8, 7).status, Status::Ok, "there is room again");
        lane.close();
    }
}
