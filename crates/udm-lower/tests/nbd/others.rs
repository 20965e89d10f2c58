//! Against nbdkit and qemu-nbd: random I/O with a model, while the server is killed, stopped and
//! started again.
//!
//! Skipped with the reason printed where a program is missing, unless `CI` is `true`.

use super::{CHOICES, NONE};
use crate::lanes::Lane;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use udm_core::LowerDevice;
use udm_driver::DriverChoice;
use udm_lower::LowerRegistry;
use udm_types::{BioFlags, Op, Status};

const SECTORS: u64 = 8192;

/// A server of somebody else's over a file.
struct Outside {
    program: &'static str,
    child: Child,
}

impl Outside {
    fn start(program: &'static str, folder: &Path) -> Option<Outside> {
        let (disk, socket) = (folder.join("disk"), folder.join("s"));
        if !disk.exists() {
            std::fs::File::create(&disk).unwrap().set_len(SECTORS * 512).unwrap();
        }
        let _ = std::fs::remove_file(&socket);
        let mut command = Command::new(program);
        match program {
            "nbdkit" => {
                command.args(["--foreground", "--unix"]).arg(&socket).arg("file").arg(&disk)
            }
            _ => command
                .args(["--persistent", "--shared=8", "--format=raw", "--socket"])
                .arg(&socket)
                .arg(&disk),
        };
        let child = match command.stdin(Stdio::null()).spawn() {
            Ok(child) => child,
            Err(error) if std::env::var("CI").as_deref() != Ok("true") => {
                println!("skipped: {program} cannot be started here: {error}");
                return None;
            }
            Err(error) => panic!("{program}: {error}"),
        };
        let mut outside = Outside { program, child };
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(outside.child.try_wait().unwrap().is_none(), "{program} ended at once");
            std::thread::yield_now();
        }
        Some(outside)
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap();
        if signal == Signal::STOP {
            // Its threads stop one after the other; the last is reported.
            let (_, status) = waitpid(Some(pid), WaitOptions::UNTRACED).unwrap().unwrap();
            assert!(status.stopped());
        }
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn name_of(folder: &Path, options: &str) -> String {
    format!("nbd+unix:///?socket={}{options}", folder.join("s").display())
}

/// A read or write that has to work.
fn good(lane: &mut Lane, op: Op, sector: u64, len: u64, byte: u8) {
    let bio = lane.one(op, NONE, sector, len, if op == Op::Read { !byte } else { byte });
    assert_eq!(bio.status, Status::Ok, "{op:?} at {sector}");
    if op == Op::Read {
        assert!(super::is_all(&bio, byte), "sector {sector}");
    }
}

#[test]
fn random_io_agrees_with_a_model() {
    for (program, choice) in [
        ("nbdkit", CHOICES[0]),
        ("nbdkit", CHOICES[1]),
        ("qemu-nbd", CHOICES[0]),
        ("qemu-nbd", CHOICES[1]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let Some(server) = Outside::start(program, folder.path()) else { continue };
        let registry = LowerRegistry::new(1);
        let device = registry.open(&name_of(folder.path(), "&connections=2"), false).unwrap();
        assert_eq!(device.len_sectors, SECTORS);
        let device = device.lower.unwrap().device;
        let Some(mut lane) = Lane::open(0, choice, &device) else { continue };
        let model = random_io(&mut lane);
        lane.close();
        drop(server);
        let bytes = std::fs::read(folder.path().join("disk")).unwrap();
        for (sector, (expected, piece)) in model.iter().zip(bytes.chunks(512)).enumerate() {
            assert!(piece.iter().all(|seen| seen == expected), "{program} sector {sector}");
        }
    }
}

/// Many bios at once, none over another; what the disk must hold.
fn random_io(lane: &mut Lane) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(11);
    let mut model = vec![0_u8; SECTORS as usize];
    let mut busy = vec![false; SECTORS as usize];
    let mut in_flight = 0;
    for step in 0..3000_u32 {
        let most = if random.u8(0..10) == 0 { 600 } else { 32 };
        let len = random.u64(1..=most);
        let sector = random.u64(0..=SECTORS - len);
        let range = sector as usize..(sector + len) as usize;
        if busy[range.clone()].iter().any(|&busy| busy) {
            continue;
        }
        let op = [Op::Read, Op::Read, Op::Write, Op::Write, Op::WriteZeroes, Op::Flush]
            [random.usize(..6)];
        let byte = (step % 250) as u8 + 1;
        let mut flags = BioFlags::empty();
        flags.set(BioFlags::FUA, op.is_write() && random.u8(..8) == 0);
        flags.set(BioFlags::PREFLUSH, op.is_write() && random.u8(..8) == 0);
        let bio = match op {
            Op::Flush => lane.bio(op, flags, 0, 0, 0),
            Op::Read | Op::Write | Op::Discard | Op::WriteZeroes => {
                busy[range.clone()].fill(true);
                lane.bio(op, flags, sector, len, byte)
            }
        };
        match op {
            Op::Write => model[range].fill(byte),
            Op::WriteZeroes => model[range].fill(0),
            Op::Read | Op::Flush | Op::Discard => {}
        }
        lane.submit(bio);
        in_flight += 1;
        while in_flight >= 40 || (step == 2999 && in_flight > 0) {
            for bio in lane.turn() {
                in_flight -= 1;
                settle(&bio, &model, &mut busy);
            }
        }
    }
    while in_flight > 0 {
        for bio in lane.turn() {
            in_flight -= 1;
            settle(&bio, &model, &mut busy);
        }
    }
    model
}

fn settle(bio: &udm_core::BioBox, model: &[u8], busy: &mut [bool]) {
    assert_eq!(bio.status, Status::Ok, "{:?} at {}", bio.op, bio.sector);
    let range = bio.sector as usize..bio.end_sector() as usize;
    if bio.op == Op::Read {
        let mut bytes = vec![0; bio.payload.len_bytes() as usize];
        bio.payload.copy_out(0, &mut bytes);
        for (expected, piece) in model[range.clone()].iter().zip(bytes.chunks(512)) {
            assert!(piece.iter().all(|seen| seen == expected), "near sector {}", bio.sector);
        }
    }
    busy[range].fill(false);
}

#[test]
fn a_server_killed_in_the_middle_of_io_is_used_again_when_it_is_back() {
    for program in ["nbdkit", "qemu-nbd"] {
        for choice in CHOICES {
            killed(program, choice);
        }
    }
}

fn killed(program: &'static str, choice: DriverChoice) {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut server) = Outside::start(program, folder.path()) else { return };
    let registry = LowerRegistry::new(1);
    let name = name_of(folder.path(), "&reconnect=0.005-0.01");
    let device: Arc<dyn LowerDevice> = registry.open(&name, false).unwrap().lower.unwrap().device;
    let Some(mut lane) = Lane::open(0, choice, &device) else { return };
    for round in 1..4_u8 {
        lane.turn_until(|| device.link().unwrap().is_up());
        good(&mut lane, Op::Write, 0, 64, round);
        for index in 0..64 {
            let bio = lane.bio(Op::Write, NONE, 64 + index * 8, 8, round);
            lane.submit(bio);
        }
        let program = server.program;
        drop(server);
        let mut left = 64;
        while left > 0 {
            let done = lane.turn();
            left -= done.len();
            for bio in done {
                assert!(matches!(bio.status, Status::Ok | Status::Transport), "{:?}", bio.status);
            }
        }
        assert_eq!(lane.one(Op::Read, NONE, 0, 8, 0).status, Status::Transport);
        server = Outside::start(program, folder.path()).unwrap();
        lane.turn_until(|| device.link().unwrap().is_up());
        good(&mut lane, Op::Read, 0, 64, round);
    }
    lane.close();
}

#[test]
fn a_stopped_server_times_out_and_goes_on_when_it_continues() {
    for program in ["nbdkit", "qemu-nbd"] {
        for choice in CHOICES {
            stopped(program, choice);
        }
    }
}

fn stopped(program: &'static str, choice: DriverChoice) {
    let folder = tempfile::tempdir().unwrap();
    let Some(server) = Outside::start(program, folder.path()) else { return };
    let registry = LowerRegistry::new(1);
    let name = name_of(folder.path(), "&timeout=0.1&reconnect=0.005-0.01");
    let device: Arc<dyn LowerDevice> = registry.open(&name, false).unwrap().lower.unwrap().device;
    let Some(mut lane) = Lane::open(0, choice, &device) else { return };
    good(&mut lane, Op::Write, 0, 64, 5);
    server.signal(Signal::STOP);
    // One for nbdkit: with two replies to a client that has gone it ends itself (an assertion).
    let lens: &[u64] = if program == "nbdkit" { &[512] } else { &[8, 512] };
    for &len in lens {
        let bio = lane.bio(Op::Read, NONE, 0, len, 1);
        lane.submit(bio);
    }
    let mut done = Vec::new();
    while done.len() < lens.len() {
        done.extend(lane.turn());
    }
    assert!(done.iter().all(|bio| bio.status == Status::Timeout));
    assert!(!device.link().unwrap().is_up());
    server.signal(Signal::CONT);
    lane.turn_until(|| device.link().unwrap().is_up());
    good(&mut lane, Op::Read, 0, 64, 5);
    assert!(done.iter().all(|bio| super::is_all(bio, 1)), "late answers went nowhere");
    lane.close();
}
