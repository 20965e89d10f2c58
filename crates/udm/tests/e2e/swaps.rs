//! fio with verification while tables are swapped under noflush and the device grows.
//!
//! Three tables lay the same bytes at the same places: a stripe over two halves of a file, and the
//! same line by line as linear pieces; so whatever fio wrote under one it must find under another.
//! Some seconds by default, a minute with `UDM_LONG=1` in the environment.

use super::common::{Daemon, Place};
use super::outside::{Running, have, report, run};
use std::process::Command;

const LEN_SECTORS: u64 = 524_288;
const CHUNK_SECTORS: u64 = 2048;
const MORE_SECTORS: u64 = 131_072;

/// The same layout twice.
fn layouts(disk: &str) -> [String; 2] {
    let half = LEN_SECTORS / 2;
    let striped = format!("0 {LEN_SECTORS} striped 2 {CHUNK_SECTORS} {disk} 0 {disk} {half}");
    let pieces: Vec<String> = (0..LEN_SECTORS / CHUNK_SECTORS)
        .map(|chunk| {
            let at = (chunk / 2) * CHUNK_SECTORS + (chunk % 2) * half;
            format!("{} {CHUNK_SECTORS} linear {disk} {at}", chunk * CHUNK_SECTORS)
        })
        .collect();
    [striped, pieces.join("\n")]
}

/// Starts with a driver, or says that it cannot be had.
fn daemon_with(place: &Place, driver: &str) -> Option<Daemon> {
    if driver == "uring"
        && place.udm(&["run", "--driver", driver, "--table", "0 8 zero", "--", "true"]).code
            != Some(0)
    {
        eprintln!("not checked: io_uring is refused here");
        return None;
    }
    Some(place.daemon(&["--driver", driver, "--lanes", "2"]))
}

fn fio(place: &Place, seconds: u64) -> Running {
    let uri = format!("--uri=nbd+unix:///v?socket={}", place.text("nbd.sock"));
    let runtime = format!("--runtime={seconds}");
    let args = [
        "--name=v",
        "--ioengine=nbd",
        &uri,
        "--rw=randwrite",
        "--bs=4k",
        "--size=64M",
        "--numjobs=4",
        "--offset_increment=64M",
        "--iodepth=32",
        "--verify=crc32c",
        "--verify_backlog=512",
        "--verify_fatal=1",
        "--time_based",
        &runtime,
        "--output-format=json",
    ];
    Running::start(Command::new("fio").current_dir(place.path("")).args(args))
}

fn swap_under_load(driver: &str) {
    if !have(&["fio", "nbdinfo"]) {
        return;
    }
    let place = Place::new();
    let Some(daemon) = daemon_with(&place, driver) else { return };
    let disk = place.file("disk.img", LEN_SECTORS * 512);
    let more = place.file("more.img", MORE_SECTORS * 512);
    let mut tables = layouts(&disk);
    place.udm(&["create", "v", "--table", &tables[0]]).ok();
    place.udm(&["export", "v", "--nbd", &format!("unix:{}", place.text("nbd.sock"))]).ok();
    let long = std::env::var("UDM_LONG").as_deref() == Ok("1");
    let mut fio = fio(&place, if long { 60 } else { 5 });
    let (mut swaps, mut grown) = (0, false);
    while fio.is_running() {
        if swaps == 8 {
            for table in &mut tables {
                *table += &format!("\n{LEN_SECTORS} {MORE_SECTORS} linear {more} 0");
            }
            grown = true;
        }
        swaps += 1;
        place.udm(&["suspend", "--noflush", "v"]).ok();
        place.udm_with(&["load", "v"], &tables[swaps % 2]).ok();
        place.udm(&["resume", "v"]).ok();
    }
    let ended = fio.wait();
    assert_eq!(ended.code, Some(0), "{}{}", ended.out, ended.err);
    let told = report(&ended.out);
    for job in told["jobs"].as_array().expect("jobs") {
        assert_eq!(job["error"], 0, "{job}");
        assert!(job["read"]["total_ios"].as_u64() > Some(0), "it has verified");
    }
    assert!(grown, "only {swaps} swaps in all that time");
    let uri = format!("nbd+unix:///v?socket={}", place.text("nbd.sock"));
    let size: u64 = run("nbdinfo", &["--size", &uri]).ok().trim().parse().expect("a number");
    assert_eq!(size, (LEN_SECTORS + MORE_SECTORS) * 512);
    eprintln!("{driver}: {swaps} swaps, no error, no mismatch");
    daemon.terminate();
}

#[test]
fn tables_are_swapped_and_grown_under_fio_on_io_uring() {
    swap_under_load("uring");
}

#[test]
fn tables_are_swapped_and_grown_under_fio_on_the_portable_driver() {
    swap_under_load("portable");
}
