//! FUSE exports: a device as a file, by system calls, by fio, and under file systems.
//!
//! Mounting needs root and `/dev/fuse` here; without them the tests say so and pass. What a test
//! has mounted and attached is taken down by guards also when it fails.

use super::common::{Place, UDM, state_of};
use super::lanes::lanes_ran;
use super::nbd::NbdClient;
use super::outside::{Running, have, report, run, until};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use udm_testkit::fuse_way::{hold_way, over_rings, way};

const MIB: u64 = 1 << 20;

pub(super) fn can_mount() -> bool {
    let can = rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists();
    if !can {
        eprintln!("not checked: mounting needs root and /dev/fuse here");
    }
    can
}

/// Takes down what is mounted at a place, however the test ends.
pub(super) struct Unmounted(PathBuf);

impl Drop for Unmounted {
    fn drop(&mut self) {
        // Fails if it is not mounted any more.
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

/// A loop device; detached on drop.
pub(super) struct Loop(pub(super) String);

impl Loop {
    pub(super) fn attach(path: &Path) -> Loop {
        let path = path.to_str().expect("UTF-8");
        let found = run("losetup", &["--direct-io=on", "--find", "--show", path]).ok();
        Loop(found.trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = run("losetup", &["--detach", &self.0]);
    }
}

/// A place with the device `d` on a file of this size, served as the file `m`.
pub(super) fn served(
    place: &Place,
    disk_bytes: u64,
    sectors: u64,
    more: &[&str],
) -> (PathBuf, Unmounted) {
    let disk = place.file("disk.img", disk_bytes);
    place.udm(&["create", "d", "--table", &format!("0 {sectors} linear {disk} 0")]).ok();
    let path = place.path("m");
    let guard = Unmounted(path.clone());
    let shown = path.to_str().expect("UTF-8");
    let held = hold_way();
    let printed = place.udm(&[&["export", "d", "--fuse", shown], more].concat()).ok();
    drop(held);
    assert_eq!(printed.trim(), shown, "it prints what clients type");
    (path, guard)
}

/// How the requests of the only export come.
pub(super) fn transport(place: &Place) -> String {
    let listed = place.udm(&["--json", "exports"]).ok();
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    listed["exports"][0]["transport"].as_str().expect("a mount says it").to_owned()
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).expect("opens")
}

#[test]
fn bytes_anywhere_are_those_of_a_plain_array() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon(&["--lanes", "2"]);
    let (path, _guard) = served(&place, MIB, 2048, &[]);
    let file = open(&path);
    let mut model = vec![0_u8; MIB as usize];
    let mut random = fastrand::Rng::with_seed(11);
    for step in 0..600 {
        let at = random.usize(..model.len());
        let len = random.usize(1..6000).min(model.len() - at);
        match random.u8(..10) {
            0..4 => {
                random.fill(&mut model[at..at + len]);
                file.write_all_at(&model[at..at + len], at as u64).expect("written");
            }
            4 => {
                let kind = [
                    FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                    FallocateFlags::ZERO_RANGE,
                ][random.usize(..2)];
                fallocate(&file, kind, at as u64, len as u64).expect("zeroed");
                model[at..at + len].fill(0);
            }
            _ => {
                let mut read = vec![0; len];
                file.read_exact_at(&mut read, at as u64).expect("read");
                assert!(read == model[at..at + len], "step {step}: {at}+{len}");
            }
        }
    }
    let below = std::fs::read(place.path("disk.img")).expect("the file below");
    assert!(below == model, "the device below has the same bytes");
}

#[test]
fn unaligned_writers_of_one_block_lose_nothing() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon(&["--lanes", "2"]);
    let (path, _guard) = served(&place, MIB, 2048, &[]);
    // Eight writers, each with every eighth group of 40 bytes of the same few blocks.
    std::thread::scope(|scope| {
        for writer in 0..8_u8 {
            let path = &path;
            scope.spawn(move || {
                let file = open(path);
                for round in 1..=20_u8 {
                    for group in 0..32_u64 {
                        let at = (group * 8 + u64::from(writer)) * 40;
                        file.write_all_at(&[writer * 20 + round; 40], at).expect("written");
                    }
                }
            });
        }
    });
    let mut read = vec![0; 8 * 32 * 40];
    open(&path).read_exact_at(&mut read, 0).expect("read");
    for (number, group) in read.chunks(40).enumerate() {
        let expected = (number % 8) as u8 * 20 + 20;
        assert!(group.iter().all(|byte| *byte == expected), "group {number}: {group:?}");
    }
}

/// Many readers on a file, until it is dropped: more than two lanes have slots for.
struct Crowd<'scope> {
    stop: Arc<AtomicBool>,
    readers: Vec<std::thread::ScopedJoinHandle<'scope, ()>>,
}

impl<'scope> Crowd<'scope> {
    fn start<'env>(scope: &'scope std::thread::Scope<'scope, 'env>, path: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let readers = (0..160_u64).map(|reader| {
            let (path, stop) = (path.to_owned(), Arc::clone(&stop));
            scope.spawn(move || {
                let (file, mut read) = (open(&path), [0; 4096]);
                while !stop.load(Ordering::Relaxed) {
                    file.read_exact_at(&mut read, reader * 4096).expect("read");
                }
            })
        });
        let readers = readers.collect();
        Crowd { stop, readers }
    }
}

impl Drop for Crowd<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.readers.drain(..).for_each(|reader| reader.join().expect("it reads"));
    }
}

#[test]
fn a_busy_mount_uses_all_lanes_and_an_idle_one_a_single_lane() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let daemon = place.daemon(&["--lanes", "3"]);
    let (path, _guard) = served(&place, MIB, 2048, &[]);
    let file = open(&path);
    let mut read = [0; 4096];
    file.read_exact_at(&mut read, 0).expect("read");
    let before = lanes_ran(&daemon);
    assert_eq!(before.len(), 3);
    (0..2000).for_each(|_| file.read_exact_at(&mut read, 0).expect("read"));
    let used = |before: &[u64]| -> Vec<u64> {
        before.iter().zip(lanes_ran(&daemon)).map(|(before, now)| now - before).collect()
    };
    let alone = used(&before);
    let busiest = *alone.iter().max().expect("three");
    let others = alone.iter().sum::<u64>() - busiest;
    assert!(others < busiest / 20, "one request at a time is one lane's: {alone:?}");
    std::thread::scope(|scope| {
        let before = lanes_ran(&daemon);
        let _crowd = Crowd::start(scope, &path);
        until("each lane serves", || {
            used(&before).iter().all(|ran| *ran > 20_000_000).then_some(())
        });
    });
    assert_eq!(std::fs::metadata(&path).expect("it answers").len(), MIB);
    let listed = place.udm(&["--json", "exports"]).ok();
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    assert_eq!(listed["exports"][0]["connections"], 1, "opened and closed on any lane: {listed}");
}

#[test]
fn parts_of_blocks_and_whole_blocks_do_not_undo_each_other_on_several_lanes() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let daemon = place.daemon(&["--lanes", "2"]);
    let (path, _guard) = served(&place, MIB, 2048, &[]);
    // Slow, so that two changes of a block at a time would meet.
    let disk = place.text("disk.img");
    place.udm(&["load", "d", "--table", &format!("0 2048 delay {disk} 0 1")]).ok();
    place.udm(&["resume", "d"]).ok();
    let before = lanes_ran(&daemon);
    std::thread::scope(|scope| {
        let _crowd = Crowd::start(scope, &path);
        until("both lanes serve", || {
            let now = lanes_ran(&daemon);
            before.iter().zip(now).all(|(before, now)| now - before > 5_000_000).then_some(())
        });
        let part = 100..140;
        let mut writers = Vec::new();
        for block in 0..4_u64 {
            let at = 512 * (512 + block);
            // Two for each block: one writes all of it, one a part. Each looks for its own.
            for (whole, range) in [(true, 0..512), (false, part.clone())] {
                let (path, part) = (&path, part.clone());
                writers.push(scope.spawn(move || {
                    let file = open(path);
                    for round in 0..100_usize {
                        let value = (round * 2 + usize::from(whole)) as u8;
                        let begin = range.start as u64;
                        file.write_all_at(&vec![value; range.len()], at + begin).expect("written");
                        let mut read = [0; 512];
                        file.read_exact_at(&mut read, at).expect("read");
                        let undone = (0..512)
                            .find(|byte| whole && !part.contains(byte) && read[*byte] != value);
                        assert_eq!(undone, None, "round {round}: a part undid the whole");
                    }
                }));
            }
        }
        // Eight more with parts of two blocks, none of which may be lost.
        for writer in 0..8_u8 {
            let path = &path;
            writers.push(scope.spawn(move || {
                let file = open(path);
                for round in 1..=60_u8 {
                    let at = 512 * 600 + u64::from(writer) * 100;
                    file.write_all_at(&[round; 100], at).expect("written");
                    let mut read = [0; 100];
                    file.read_exact_at(&mut read, at).expect("read");
                    assert!(read == [round; 100], "round {round}: {writer} was undone");
                }
            }));
        }
        writers.into_iter().for_each(|writer| writer.join().expect("nothing was undone"));
    });
}

/// A lane that goes to sleep while another asks it to hold blocks once held them for ever.
#[test]
fn unaligned_writers_get_on_while_lanes_come_and_go() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon(&["--lanes", "3"]);
    let (path, _guard) = served(&place, MIB, 2048, &[]);
    let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for writer in 0..4_u64 {
            let (path, stop, written) = (&path, &stop, &written);
            scope.spawn(move || {
                let file = open(path);
                while !stop.load(Ordering::Relaxed) {
                    file.write_all_at(&[writer as u8; 100], writer * 100).expect("written");
                    written.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..8 {
            for with_crowd in [true, false] {
                let before = written.load(Ordering::Relaxed);
                let crowd = with_crowd.then(|| Crowd::start(scope, &path));
                until("the writers get on", || {
                    (written.load(Ordering::Relaxed) >= before + 500).then_some(())
                });
                drop(crowd);
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    let mut read = [0; 400];
    open(&path).read_exact_at(&mut read, 0).expect("read");
    assert!((0..400).all(|at| read[at] == (at / 100) as u8), "each has its own bytes");
}

#[test]
fn the_end_of_the_device_is_the_end_of_the_file() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon(&["--lanes", "1"]);
    let (path, _guard) = served(&place, MIB, 2048, &[]);
    let file = open(&path);
    let mut tail = [1; 100];
    assert_eq!(file.read_at(&mut tail, MIB - 10).expect("read"), 10);
    assert_eq!(file.read_at(&mut tail, MIB).expect("the end"), 0);
    assert_eq!(file.write_at(&tail, MIB - 10).expect("written"), 10);
    let error = file.write_at(&tail, MIB).expect_err("beyond");
    assert_eq!(error.raw_os_error(), Some(28), "{error}");
    assert_eq!(file.set_len(5).expect_err("the table makes the size").raw_os_error(), Some(22));
    assert_eq!(rustix::fs::seek(&file, SeekFrom::Hole(7)), Ok(MIB));
    assert_eq!(rustix::fs::seek(&file, SeekFrom::Data(7)), Ok(7));
    // Opened with O_TRUNC, as `dd` and the shell do: a device keeps its size.
    let truncated = OpenOptions::new().write(true).truncate(true).open(&path).expect("opens");
    assert_eq!(truncated.metadata().expect("size").len(), MIB);
}

#[test]
fn fuse_and_nbd_see_one_device_and_a_resize_is_seen_at_once() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon(&["--lanes", "2"]);
    let (path, _guard) = served(&place, 2 * MIB, 2048, &[]);
    let socket = place.path("n.sock");
    let address = format!("unix:{}", socket.display());
    place.udm(&["export", "d", "--nbd", &address, "--name", "n"]).ok();
    let file = open(&path);
    let mut client = NbdClient::connect(&socket, "n").expect("connected");
    for round in 0..50_u8 {
        client.write(4096, &[round; 512], 0).expect("connected").expect("written");
        let mut read = [0; 512];
        file.read_exact_at(&mut read, 4096).expect("read");
        assert_eq!(read, [round; 512], "written by NBD, read by FUSE");
        file.write_all_at(&[!round; 100], 4200).expect("written");
        let read = client.read(4096, 512).expect("connected").expect("read");
        assert_eq!((read[0], read[104], read[203], read[204]), (round, !round, !round, round));
    }
    let disk = place.text("disk.img");
    place.udm(&["load", "d", "--table", &format!("0 4096 linear {disk} 0")]).ok();
    place.udm(&["resume", "d"]).ok();
    assert_eq!(file.metadata().expect("size").len(), 2 * MIB, "an open file sees it");
    assert_eq!(transport(&place), way().word());
    file.write_all_at(&[9; 512], 2 * MIB - 512).expect("the new end is there");
    let exports = place.udm(&["exports"]).ok();
    assert!(exports.contains(path.to_str().expect("UTF-8")), "{exports}");
}

#[test]
fn a_read_only_export_refuses_writers() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon(&["--lanes", "1"]);
    let (path, _guard) = served(&place, MIB, 2048, &["--readonly"]);
    let error = OpenOptions::new().write(true).open(&path).expect_err("read-only");
    assert_eq!(error.raw_os_error(), Some(30), "{error}");
    assert_eq!(File::open(&path).expect("opens").read_at(&mut [0; 512], 0).expect("read"), 512);
}

#[test]
fn who_unmounts_ends_the_export_and_who_unexports_unmounts() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let state = place.text("state");
    let daemon = place.daemon(&["--lanes", "1", "--state", &state]);
    let (path, _guard) = served(&place, MIB, 2048, &[]);
    place
        .udm(&["export", "d", "--fuse", path.to_str().expect("UTF-8"), "--name", "e"])
        .fails("UDM-0501");
    let dir = place.text("state");
    place.udm(&["export", "d", "--fuse", &dir, "--name", "e"]).fails("UDM-0505");
    run("umount", &[path.to_str().expect("UTF-8")]).ok();
    until("the export is gone", || {
        (place.udm(&["exports"]).ok().trim() == "No exports found").then_some(())
    });
    until("and the state knows", || {
        (state_of(&place.path("state"))["exports"] == serde_json::json!([])).then_some(())
    });
    assert!(!path.exists(), "the file was made for it and goes with it");
    // The file is one of somebody else's now, which stays.
    std::fs::write(&path, b"mine").expect("written");
    let held = hold_way();
    place.udm(&["export", "d", "--fuse", path.to_str().expect("UTF-8")]).ok();
    drop(held);
    assert_eq!(path.metadata().expect("there").len(), MIB);
    place.udm(&["unexport", "d"]).ok();
    assert_eq!(std::fs::read(&path).expect("still there"), b"mine");
    place.udm(&["remove", "d"]).ok();
    let said = daemon.terminate();
    assert!(said.contains("export 'd' has ended: it was unmounted"), "{said}");
}

#[test]
fn a_killed_daemons_mount_is_replaced_and_holds_what_was_synced() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let state = place.text("state");
    let mut daemon = place.daemon(&["--state", &state]);
    let (path, _guard) = served(&place, MIB, 2048, &[]);
    for round in 1..=5_u8 {
        let file = open(&path);
        file.write_all_at(&[round; 4096], u64::from(round) * 8192).expect("written");
        file.sync_all().expect("synced");
        daemon.kill();
        let dead = file.read_at(&mut [0; 512], 0).expect_err("its server is dead");
        // ENOTCONN, ECONNABORTED; while the kernel takes the rings down also ECANCELED.
        assert!(matches!(dead.raw_os_error(), Some(103 | 107 | 125)), "{dead}");
        let held = hold_way();
        daemon = place.daemon(&["--state", &state]);
        drop(held);
        assert_eq!(transport(&place), way().word());
        let file = open(&path);
        for earlier in 1..=round {
            let mut read = [0; 4096];
            file.read_exact_at(&mut read, u64::from(earlier) * 8192).expect("read");
            assert!(read == [earlier; 4096], "round {round}: {earlier} is lost");
        }
    }
}

#[test]
fn a_file_for_up_mounts_and_an_orderly_end_unmounts() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let disk = place.file("disk.img", 4 * MIB);
    let text = format!(
        "[[device]]\nname = \"disk\"\ntable = \"0 8192 linear {disk} 0\"\n\n\
         [[export]]\ndevice = \"disk\"\nfuse = \"disk.raw\"\n"
    );
    std::fs::write(place.path("up.toml"), text).expect("written");
    let path = place.path("disk.raw");
    let _guard = Unmounted(path.clone());
    for round in 1..=2_u8 {
        let mut up = Command::new(UDM);
        up.arg("up").arg(place.path("up.toml")).env("UDM_SOCKET", place.path("control.sock"));
        let held = hold_way();
        let mut served = Running::start(&mut up);
        until("it is mounted", || {
            assert!(served.is_running(), "it has ended");
            (std::fs::metadata(&path).ok()?.len() == 4 * MIB).then_some(())
        });
        drop(held);
        let file = open(&path);
        let mut before = [0; 512];
        file.read_exact_at(&mut before, 4096).expect("read");
        assert!(before == [round - 1; 512], "round {round}: what was written stayed");
        file.write_all_at(&[round; 512], 4096).expect("written");
        drop(file);
        served.end().ok();
        let left = std::fs::metadata(&path).map_or(0, |file| file.len());
        assert_eq!(left, 0, "it is not mounted any more");
    }
}

#[test]
fn an_fsync_syncs_the_file_below() {
    if !can_mount() || !have(&["strace"]) {
        return;
    }
    if run("strace", &["-qq", "-o", "/dev/null", "true"]).code != Some(0) {
        eprintln!("not checked: tracing is refused here");
        return;
    }
    let place = Place::new();
    let trace = place.text("trace");
    // As in `durable.rs`: the portable driver's system calls can be seen.
    let mut daemon = Running::start(
        Command::new("strace")
            .args(["-D", "-f", "-qq", "-o", &trace, "-e", "trace=fdatasync", UDM])
            .args(["daemon", "--driver", "portable", "--lanes", "1"])
            .env("UDM_SOCKET", place.path("control.sock")),
    );
    until("the daemon answers", || {
        assert!(daemon.is_running(), "the daemon has ended");
        (place.udm(&["ls"]).code == Some(0)).then_some(())
    });
    let (path, _guard) = served(&place, MIB, 2048, &[]);
    let syncs = || {
        let text = std::fs::read_to_string(&trace).expect("the trace");
        text.lines().filter(|line| line.contains("fdatasync(")).count()
    };
    let file = open(&path);
    for count in 1..=5 {
        file.write_all_at(&[7; 8192], 0).expect("written");
        file.sync_data().expect("synced");
        // The tracer writes its line when the call returns, perhaps after we hear of it.
        until("the file below is synced", || (syncs() >= count).then_some(()));
        assert_eq!(syncs(), count, "once for each");
    }
    place.udm(&["unexport", "d"]).ok();
}

#[test]
fn fio_verifies_64_deep() {
    if !can_mount() || !have(&["fio"]) {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon(&["--lanes", "2"]);
    let (path, _guard) = served(&place, 64 * MIB, 131_072, &[]);
    let name = format!("--filename={}", path.display());
    let out = run(
        "fio",
        &[
            "--name=v",
            &name,
            "--ioengine=libaio",
            "--direct=1",
            "--rw=randrw",
            "--iodepth=64",
            "--bsrange=512-256k",
            "--bs_unaligned=0",
            "--blockalign=512",
            "--size=64M",
            "--verify=crc32c",
            "--verify_state_save=0",
            "--verify_fatal=1",
            "--output-format=json",
        ],
    )
    .ok();
    assert_eq!(report(&out)["jobs"][0]["error"], 0);
}

/// Has git check out these sources into a folder, cargo build some of them there, and git say that
/// all is as it was committed.
fn checked_out_and_built(folder: &Path) {
    let sources = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    if !have(&["git"]) || !Path::new(sources).join(".git").exists() {
        eprintln!("not checked: a git checkout, since these sources are none");
        return;
    }
    let tree = folder.join("tree");
    let git = |args: &[&str]| {
        // The sources may belong to somebody else than who runs the tests.
        let trust = ["-c", "safe.directory=*", "-C"];
        let place = if args[0] == "clone" { folder } else { &tree };
        run("git", &[&trust[..], &[place.to_str().expect("UTF-8")], args].concat()).ok()
    };
    git(&["clone", "--quiet", "--no-hardlinks", sources, "tree"]);
    let built = Running::start(
        Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--offline", "--locked", "-p", "udm-types"])
            .current_dir(&tree)
            .env("CARGO_TARGET_DIR", folder.join("built")),
    );
    built.wait().ok();
    git(&["fsck", "--strict", "--no-progress"]);
    assert_eq!(git(&["status", "--porcelain"]), "", "what was checked out is what was committed");
}

/// Makes a file system on a loop device on the file; copies, checks out and builds on it while
/// tables are swapped and the device grows; grows the file system, and checks it.
fn lives_under(make: &[&str], grow: &[&str], check: &[&str]) {
    if !can_mount() || !have(&["losetup", make[0], grow[0], check[0]]) {
        return;
    }
    let place = Place::new();
    let _daemon = place.daemon(&["--lanes", "2"]);
    let (path, _guard) = served(&place, 1024 * MIB, 700_000, &[]);
    let disk = place.text("disk.img");
    let device = Loop::attach(&path);
    run(make[0], &[&make[1..], &[&device.0]].concat()).ok();
    let mount = place.path("mnt");
    std::fs::create_dir(&mount).expect("made");
    run("mount", &[&device.0, mount.to_str().expect("UTF-8")]).ok();
    let mounted = Unmounted(mount.clone());
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let swaps = scope.spawn(|| {
            let mut sectors = 700_000;
            let mut count = 0;
            while !over.load(Ordering::Relaxed) || count < 5 {
                sectors = (sectors + 10_000).min(1_400_000);
                let table = format!("0 {sectors} linear {disk} 0");
                place.udm(&["load", "d", "--table", &table]).ok();
                place.udm(&["suspend", "--noflush", "d"]).ok();
                place.udm(&["resume", "d"]).ok();
                count += 1;
            }
            sectors
        });
        for copy in 0..2 {
            let to = mount.join(format!("copy{copy}"));
            let from = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
            run("cp", &["-r", from, to.to_str().expect("UTF-8")]).ok();
            run("sync", &["-f", to.to_str().expect("UTF-8")]).ok();
            run("diff", &["-r", from, to.to_str().expect("UTF-8")]).ok();
        }
        checked_out_and_built(&mount);
        over.store(true, Ordering::Relaxed);
        let sectors = swaps.join().expect("swapped");
        assert_eq!(path.metadata().expect("size").len(), sectors * 512);
    });
    run("losetup", &["--set-capacity", &device.0]).ok();
    let mount = mount.to_str().expect("UTF-8");
    // ext4 grows while it is mounted, too, but only for those who may take the system's reserves.
    if grow[0] == "xfs_growfs" {
        run(grow[0], &[&grow[1..], &[mount]].concat()).ok();
    }
    run("umount", &[mount]).ok();
    if grow[0] != "xfs_growfs" {
        run(grow[0], &[&grow[1..], &[&device.0]].concat()).ok();
    }
    drop(mounted);
    run(check[0], &[&check[1..], &[&device.0]].concat()).ok();
}

#[test]
fn ext4_lives_on_it_while_tables_change() {
    lives_under(&["mkfs.ext4", "-q"], &["resize2fs", "-f"], &["e2fsck", "-fn"]);
}

#[test]
fn xfs_lives_on_it_while_tables_change() {
    lives_under(&["mkfs.xfs", "-q"], &["xfs_growfs"], &["xfs_repair", "-n"]);
}

/// The same tests over the rings of the lanes.
macro_rules! over_rings {
    ($($test:ident,)*) => {
        mod over_rings {
            $(#[test]
            fn $test() {
                super::over_rings(super::$test);
            })*
        }
    };
}

over_rings! {
    bytes_anywhere_are_those_of_a_plain_array,
    unaligned_writers_of_one_block_lose_nothing,
    parts_of_blocks_and_whole_blocks_do_not_undo_each_other_on_several_lanes,
    unaligned_writers_get_on_while_lanes_come_and_go,
    the_end_of_the_device_is_the_end_of_the_file,
    fuse_and_nbd_see_one_device_and_a_resize_is_seen_at_once,
    a_read_only_export_refuses_writers,
    who_unmounts_ends_the_export_and_who_unexports_unmounts,
    a_killed_daemons_mount_is_replaced_and_holds_what_was_synced,
    a_file_for_up_mounts_and_an_orderly_end_unmounts,
    an_fsync_syncs_the_file_below,
    fio_verifies_64_deep,
    ext4_lives_on_it_while_tables_change,
}
